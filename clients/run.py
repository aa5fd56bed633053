"""Every client against the player: installs each, tries it, writes what passes into docs/clients-table.md.

`make clients` runs this; it needs npm, Python's registry and a quarter of an hour. Nothing outside --folder
and the table is written: programs get a home folder of their own. What came of a client is kept in --folder,
so that --only tries some and --resume goes on where a run was broken off.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from attempts import Result, try_client
from catalogue import CLIENTS, KINDS, SNIPPET
from install import install

HERE = Path(__file__).parent
COLUMNS = (*KINDS, SNIPPET)
_HEAD = "| Client | version | a plain answer | a stream | a tool's round trip | its snippet |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where clients are installed")
    parser.add_argument("--table", type=Path, default=HERE.parent / "docs" / "clients-table.md")
    parser.add_argument("--only", default="", help="a client's name, or part of some")
    parser.add_argument("--resume", action="store_true", help="leave out what passed in an earlier run")
    parser.add_argument("--patience", type=int, default=120, help="seconds that one attempt may take")
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    results = Results(folder / "results")
    named = [client for client in CLIENTS if client.name == chosen.only]
    named = named or [client for client in CLIENTS if chosen.only.lower() in client.name.lower()]
    with served(folder) as url:
        for client in named:
            if chosen.resume and (known := results.get(client.name)) and known.passes:
                continue
            version, problem = install(folder, client)
            result = Result(version, problem=problem)
            if not problem:
                result = try_client(folder, client, version, url, chosen.patience)
            results.put(client.name, result)
            print(client.name, version, result.text, sep="  ", flush=True)
            write_table(chosen.table, results)
    failed = [client.name for client in named if not results.get(client.name).passes]
    print(f"{len(named) - len(failed)} of {len(named)} pass", *failed, sep="\n  ")
    return bool(failed)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server whose model is the player."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    environment = os.environ | {"LOCALOSS_HOME": str(folder / "localoss"), "WIRE": str(folder / "wire.jsonl")}
    command = [sys.executable, HERE / "player.py", "serve", "demo", "--port", "0", "--no-page"]
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            while not (found := re.search(r"(http://\S+)/v1", log.read_text())):
                if server.poll() is not None:
                    sys.exit(f"the server didn't start: {log.read_text()}")
                time.sleep(0.2)
            yield found[1]
        finally:
            server.terminate()
            server.wait()


class Results:
    """What came of each client, a file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> Result | None:
        file = self._file(name)
        return Result(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None

    def put(self, name: str, result: Result) -> None:
        part = self._file(name).with_suffix(".part")
        part.write_text(json.dumps(vars(result), indent=1), encoding="utf-8")
        part.replace(self._file(name))

    def _file(self, name: str) -> Path:
        return self._folder / (re.sub(r"\W+", "-", name).strip("-") + ".json")


def write_table(path: Path, results: Results) -> None:
    rows = [_HEAD, "|---|---|---|---|---|---|"]
    notes = []
    for client in CLIENTS:
        result = results.get(client.name)
        if result is None:
            rows.append(f"| {client.name} | | not tried | not tried | not tried | not tried |")
            continue
        rows.append(f"| {client.name} | {result.version} | {' | '.join(map(result.word, COLUMNS))} |")
        notes += [f"- {client.name}: {one}" for one in (client.note, *result.notes) if one]
    text = f"""\
# Clients that were tried

Written by `make clients` on {datetime.date.today()}: real clients, as npm and PyPI give them, against
`localoss serve` with an engine that plays the model (clients/player.py). A stream counts where the
answer came in several pieces, and a tool where it ran and the model was given its result. Snippets are
those of [clients.md](clients.md#a-snippet-for-each).

"""
    text += "\n".join(rows) + "\n"
    part = path.with_suffix(".part")
    part.write_text(text + ("\n" + "\n".join(notes) + "\n" if notes else ""), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
