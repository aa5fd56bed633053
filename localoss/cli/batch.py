"""`localoss batch`: a file of requests becomes a file of answers."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli import options
from localoss.cli.terminal import echo, say
from localoss.errors import ModelError, UsageError
from localoss.options import LoadOptions

if TYPE_CHECKING:
    from localoss.server.batches.answerer import Answering
    from localoss.server.batches.journal import Journal
    from localoss.server.batches.running import Progress, Work

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
    ray: options.Ray = None,
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
        from localoss.server.batches.answerer import Answering
        from localoss.server.batches.journal import Journal, read_requests
        from localoss.server.batches.running import Work
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
            ray = None if loading.spread else ray  # one model over all machines is loaded as any
            name = model or _named_model(list(found.models), is_here=ray is None)
            how = Answering(name, parallel, think_budget, replaces_model=model is not None)
            done = _answer(Work(requests, journal, found.total), how, loading, ray)
        else:
            done = None
        journal.finish()
    _report(journal, done, time.monotonic() - began, as_json)


class _Found:
    """What the file of requests has. models: names of models that its lines ask for, in order."""

    def __init__(self) -> None:
        self.total = 0
        self.custom_ids: set[str] = set()
        self.models: dict[str, None] = {}


def _answer(work: "Work", how: "Answering", loading: LoadOptions, ray: str | None) -> "Progress":
    """Load the model, here or on the machines of a cluster, and answer what isn't answered.

    Raises: UsageError.
    """
    if ray is not None:
        from localoss.cluster.batch import answer_on_cluster

        with _shown() as told:
            return answer_on_cluster(ray, work, how, loading, told, say)
    from localoss.chat.harmony import check_vocabulary
    from localoss.cli.loading import load_model
    from localoss.server.batches.answerer import Answerer
    from localoss.server.batches.running import run_requests

    folder, engine = load_model(how.model, replace(loading, slots=how.parallel))
    check_vocabulary(engine.config.vocab)

    async def answer(told: Callable[["Progress"], None]) -> "Progress":
        answerer = Answerer(engine, folder, how)
        try:
            return await run_requests(
                answerer.ask, work.requests(), work.journal, answerer.at_once, told, total=work.total
            )
        finally:
            answerer.close()

    with _shown() as told:
        return asyncio.run(answer(told))


def _named_model(names: list[str], is_here: bool) -> str:
    """The model that a file's lines name. Raises: UsageError if that isn't here, where it is to be."""
    from localoss.hub.registry import default_model, find_model

    if not names:
        return default_model()
    try:
        if is_here:
            find_model(names[0])
    except ModelError:
        raise UsageError(
            f"the requests name the model {names[0]!r}, which isn't here; "
            "`--model NAME` answers them with another"
        ) from None
    return names[0]


@contextmanager
def _shown() -> Iterator[Callable[["Progress"], None]]:
    """A callback that shows how far the batch is: a bar on a terminal, else a line now and then."""
    from rich.console import Console

    console, began = Console(stderr=True), time.monotonic()

    def speed(progress: "Progress") -> str:
        machines = ", ".join(f"{name} {done:,}" for name, done in sorted(progress.machines.items()))
        per_s = f"{progress.tokens / max(time.monotonic() - began, 1e-3):.1f} tokens/s"
        return f"{per_s} · {machines}" if machines else per_s

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
        if done and done.machines:
            report["machines"] = done.machines
        echo(json.dumps(report, indent=2))
        return
    speed = f", {tokens:,} tokens at {tokens / seconds:.1f}/s" if tokens else ""
    faults = f"; {failed:,} failed: {journal.errors}" if failed else ""
    say(f"{answered:,} answered: {journal.out}{speed}{faults}")
