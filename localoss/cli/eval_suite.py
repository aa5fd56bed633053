"""`localoss eval --suite`: published evaluations, or questions of one's own, at each effort."""

import json
import sys
from pathlib import Path

from localoss.cli.loading import load_model
from localoss.cli.terminal import echo, say
from localoss.errors import UsageError
from localoss.options import LoadOptions
from quant.format.disk import errors_told, write_file

EFFORTS = ("low", "medium", "high")


def evaluate_suites(
    name: str,
    suites: list[str],
    efforts: str,
    loading: LoadOptions,
    out: Path | None,
    how: dict[str, int | str | None],
    as_json: bool,
) -> None:
    """Run them, and write results.json, results.md and plot.svg beside the logs.

    efforts: names with commas between. how: limit, epochs, max_tokens and judge of running.Plan.
    Raises: UsageError.
    """
    try:
        import inspect_ai  # noqa: F401 - asked for before a model is loaded

        from localoss.server.suites.results import plot, table
        from localoss.server.suites.running import Plan, Runner
    except ModuleNotFoundError as error:
        raise UsageError(f"--suite needs {error.name}: pip install 'localoss[eval]'") from None
    from localoss.server.suites.tasks import name_of, task_of

    plan = Plan(suites, _efforts(efforts), **how)  # type: ignore[arg-type]
    for suite in suites:
        task_of(suite)  # what can't be had is said before gigabytes are read
    if len({name_of(suite) for suite in suites}) < len(suites):
        raise UsageError("two suites of one name: their logs would lie in one folder")
    folder, engine = load_model(name, loading)
    out = out or Path(f"{folder.name}-eval")
    shows = not as_json and sys.stdout.isatty()
    results = Runner(engine, folder, out, loading.slots, shows).run(plan)
    _write(out / "results.json", json.dumps([one.as_json() for one in results], indent=1) + "\n")
    _write(out / "results.md", table(results))
    _write(out / "plot.svg", plot(results, f"{folder.name}, 95 % intervals; ring: OpenAI's figure"))
    if as_json:
        echo(json.dumps({"model": name, "results": [one.as_json() for one in results]}))
    else:
        echo(table(results), nl=False)
        say(f"{out}: results.json, results.md, plot.svg, and logs for `inspect view`")


def _efforts(text: str) -> list[str]:
    """Raises: UsageError."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [name for name in names if name not in EFFORTS]
    if wrong or not names:
        raise UsageError(f"--effort {text}: give {', '.join(EFFORTS)}, or some of them with commas between")
    return sorted(set(names), key=EFFORTS.index)


def _write(path: Path, text: str) -> None:
    with errors_told(path):
        write_file(path, text.encode())
