"""`localoss docs`: the documents that the browser tool searches."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localoss.cli.options import AsJson
from localoss.cli.terminal import StatusLine, echo, interrupts, printable_at_terminal, say

if TYPE_CHECKING:
    from localoss.tools.documents_index import DocumentsIndex, Update

app = typer.Typer(help="Index folders of documents, for the model's browser to search.")
_MOST_PROBLEMS = 10
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder; all below it counts.")]


@app.command()
def add(folder: Folder, as_json: AsJson = False) -> None:
    """Index a folder: text, Markdown, HTML, PDF and Word files. Given again, only what changed is read."""
    with _index() as index:
        _add(index, folder, as_json)


@app.command()
def update(as_json: AsJson = False) -> None:
    """Bring all folders up to date."""
    with _index() as index:
        for folder in index.folders:
            if folder.is_dir():
                _add(index, folder, as_json)
            else:
                say(f"{folder} is gone; `localoss docs rm` forgets it")


@app.command("list")
def list_folders(as_json: AsJson = False) -> None:
    """Show the folders, and how many files of each can be searched."""
    with _index() as index:
        found = [{"folder": str(folder), "files": index.count(folder)} for folder in index.folders]
        if as_json:
            echo(json.dumps({"index": str(index.path), "folders": found}, indent=2, ensure_ascii=False))
            return
        for one in found:
            echo(f"{one['files']:>8,} files  {printable_at_terminal(str(one['folder']))}")
        if not found:
            echo("no documents yet; localoss docs add FOLDER")


@app.command()
def rm(folder: Folder) -> None:
    """Forget a folder; its files stay."""
    with _index() as index:
        echo(f"{index.remove(folder):,} files forgotten")


@app.command()
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="Words.")],
    most: Annotated[int, typer.Option("--most", metavar="N", min=1, help="How many files to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Search the documents as the model does."""
    with _index() as index:
        hits = index.search(query, most)
        if as_json:
            shown = [{"path": str(hit.path), "title": hit.title, "passage": hit.passage} for hit in hits]
            echo(json.dumps(shown, indent=2, ensure_ascii=False))
            return
        for hit in hits:
            echo(printable_at_terminal(f"{hit.path}\n  {' '.join(hit.passage.split())}"))
        if not hits:
            echo("nothing was found")


@contextmanager
def _index() -> "Iterator[DocumentsIndex]":
    from localoss.tools.documents_index import DocumentsIndex

    index = DocumentsIndex()
    try:
        yield index
    finally:
        index.close()


def _add(index: "DocumentsIndex", folder: Path, as_json: bool) -> None:
    line = StatusLine()
    try:
        with interrupts() as cancelled:
            done = index.add(folder, lambda read, total: line.show(f"{read:,} of {total:,} files"), cancelled)
    finally:
        line.clear()
    if as_json:
        told = {"folder": str(folder), "read": done.read, "removed": done.removed, "unchanged": done.kept}
        echo(json.dumps(told | {"problems": dict(done.problems)}, indent=2, ensure_ascii=False))
        return
    _report(folder, done)


def _report(folder: Path, done: "Update") -> None:
    echo(f"{folder}: {done.read:,} files read, {done.kept:,} unchanged, {done.removed:,} gone")
    for _, problem in done.problems[:_MOST_PROBLEMS]:
        print(f"  not readable: {problem}", file=sys.stderr)
    if len(done.problems) > _MOST_PROBLEMS:
        print(f"  and {len(done.problems) - _MOST_PROBLEMS:,} more", file=sys.stderr)
