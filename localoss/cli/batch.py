"""`localoss batch`: a file of requests becomes a file of answers."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli import options
from localoss.cli.terminal import echo, say
from localoss.errors import ModelError, UsageError
from localoss.options import MOST_SLOTS, LoadOptions

if TYPE_CHECKING:
    from localoss.engine.engine import Engine
    from localoss.server.batches.journal import Journal
    from localoss.server.batches.running import Progress

_LINE_EVERY_S = 5.0  # where stderr is no terminal


@options.takes_load_options
def batch(
    requests: Annotated[
        Path, typer.Argument(metavar="IN", help="Requests, one a line, as OpenAI's batches.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="Where the answers go.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Answers all lines, whatever model they name."),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=64, help="Answers side by side; by default what fits, at most 8."
        ),
    ] = None,
    think_budget: options.ThinkBudget = None,
    as_json: options.AsJson = False,
    *,
    loading: LoadOptions,
) -> None:
    """Answer a file of requests, several side by side.

    Each line of IN is a request as OpenAI's batches have it: {"custom_id": …, "method": "POST", "url":
    "/v1/chat/completions", "body": …}; /v1/responses and /v1/completions are taken, too. OUT gets a line for
    each answer, OUT's name with .errors one for each line that failed. After Ctrl-C or a crash the same
    command goes on where it stopped; no line is answered twice.
    """
    try:
        from localoss.server.batches.journal import Journal, read_requests
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} isn't installed: pip install 'localoss[server]'") from None

    found = _Found()
    for request in read_requests(requests):
        found.total += 1
        found.custom_ids.add(request.custom_id or "")
        if request.fault is None:
            found.models.setdefault(str(request.body.get("model")), None)
    with Journal(out, out.with_name(f"{out.stem}.errors{out.suffix}")) as journal:
        if strangers := journal.strangers(found.custom_ids):
            raise UsageError(
                f"{out} has an answer to {min(strangers)!r}, which isn't in {requests}; choose another -o"
            )
        began = time.monotonic()
        if sum(journal.counts) < found.total:
            done = _answer(requests, journal, found, model, parallel, think_budget, loading)
        else:
            done = None
        journal.finish()
    _report(journal, done, time.monotonic() - began, as_json)


@dataclass
class _Found:
    """What the file of requests has. models: names of models that its lines ask for, in order."""

    total: int
    custom_ids: set[str]
    models: dict[str, None]

    def __init__(self) -> None:
        self.total, self.custom_ids, self.models = 0, set(), {}


def _answer(
    requests: Path,
    journal: "Journal",
    found: _Found,
    model: str | None,
    parallel: int | None,
    think_budget: int | None,
    loading: LoadOptions,
) -> "Progress":
    """Load the model and answer what isn't answered. Raises: UsageError."""
    from localoss.chat.harmony import check_vocabulary
    from localoss.cli.loading import load_model

    name = model or _named_model(list(found.models))
    folder, engine = load_model(name, replace(loading, slots=parallel))
    check_vocabulary(engine.config.vocab)
    served = folder.absolute().name.replace("--", "/", 1)
    with _shown() as told:
        running = _Running(engine, folder, served, think_budget, replaces_model=model is not None)
        return asyncio.run(running.run(requests, journal, found.total, parallel, told))


def _named_model(names: list[str]) -> str:
    """The model that a file's lines name. Raises: UsageError if that isn't here."""
    from localoss.hub.registry import default_model, find_model

    if not names:
        return default_model()
    try:
        find_model(names[0])
    except ModelError:
        raise UsageError(
            f"the requests name the model {names[0]!r}, which isn't here; "
            "`--model NAME` answers them with another"
        ) from None
    return names[0]


@dataclass
class _Running:
    """An application without a server. replaces_model: whatever model a line names is this one."""

    engine: "Engine"
    folder: Path
    model: str
    think_budget: int | None
    replaces_model: bool

    async def run(
        self,
        requests: Path,
        journal: "Journal",
        total: int,
        parallel: int | None,
        told: Callable[["Progress"], None],
    ) -> "Progress":
        from localoss.server.app import build_app
        from localoss.server.batches.journal import Request, read_requests
        from localoss.server.batches.running import run_requests
        from localoss.server.core.models import only
        from localoss.server.core.pool import SequencePool
        from localoss.server.core.scheduler import Scheduler
        from localoss.server.core.service import Service

        side_by_side = min(parallel or MOST_SLOTS, self.engine.slots)
        at_once = side_by_side + 1  # one more is ready when another ends
        scheduler = Scheduler(self.engine, at_once, side_by_side)
        pool = SequencePool(self.engine, self.engine.slots)
        service = Service(self.engine, self.model, scheduler, pool, default_think_budget=self.think_budget)
        app = build_app(only(service, self.folder), hosts=None)

        def named(request: Request) -> Request:
            body = request.body | {"model": self.model} if self.replaces_model else request.body
            return replace(request, body=body)

        try:
            lines = (named(request) for request in read_requests(requests))
            return await run_requests(app, lines, journal, at_once, told, total=total)
        finally:
            scheduler.stop()
            service.store.close()


@contextmanager
def _shown() -> Iterator[Callable[["Progress"], None]]:
    """A callback that shows how far the batch is: a bar on a terminal, else a line now and then."""
    from rich.console import Console

    console, began = Console(stderr=True), time.monotonic()

    def speed(progress: "Progress") -> str:
        return f"{progress.tokens / max(time.monotonic() - began, 1e-3):.1f} tokens/s"

    if not console.is_terminal:
        shown = began

        def line(progress: "Progress") -> None:
            nonlocal shown
            if time.monotonic() - shown >= _LINE_EVERY_S:
                shown = time.monotonic()
                say(f"{progress.done:,} of {progress.total:,}, {speed(progress)}")

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, speed="")
        yield lambda progress: bar.update(
            task, completed=progress.done, total=progress.total, speed=speed(progress)
        )


def _report(journal: "Journal", done: "Progress | None", seconds: float, as_json: bool) -> None:
    answered, failed = journal.counts
    tokens = done.tokens if done else 0
    if as_json:
        report: dict[str, Any] = {
            "answered": answered,
            "failed": failed,
            "out": str(journal.out),
            "errors": str(journal.errors) if failed else None,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds if done else None,
        }
        echo(json.dumps(report, indent=2))
        return
    speed = f", {tokens:,} tokens at {tokens / seconds:.1f}/s" if tokens else ""
    faults = f"; {failed:,} failed: {journal.errors}" if failed else ""
    say(f"{answered:,} answered: {journal.out}{speed}{faults}")
