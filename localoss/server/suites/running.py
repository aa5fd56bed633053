"""Runs inspect-ai's tasks on an engine: its requests reach the application itself, without HTTP between."""

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from localoss.engine.engine import Engine
from localoss.errors import UsageError
from localoss.server.batches.answerer import Answerer, Answering
from localoss.server.suites.results import Result, interval, published
from localoss.server.suites.tasks import name_of, task_of

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

_ADDRESS = "http://localoss/v1"  # nobody listens there: the transport is the application


@dataclass(frozen=True)
class Plan:
    """What is asked. limit: of each suite the first so many questions. epochs: times that each is asked; None
    for as many as the suite wants. max_tokens: of an answer, thinking included; None for the context's room.
    judge: the model, in inspect-ai's words, that judges answers where a suite wants one.
    """

    suites: Sequence[str]
    efforts: Sequence[str]
    limit: int | None = None
    epochs: int | None = None
    max_tokens: int | None = None
    judge: str | None = None


@dataclass(frozen=True)
class Runner:
    """Runs suites on `engine`, whose model lies in `folder`; logs go to `out`.

    parallel: answers side by side; None for as many as there are slots. shows: whether inspect-ai draws how
    far it is.
    """

    engine: Engine
    folder: Path
    out: Path
    parallel: int | None = None
    shows: bool = False

    def run(self, plan: Plan) -> list[Result]:
        """Each suite at each effort. What is in the logs already isn't asked again. Raises: UsageError."""
        results = []
        for suite in plan.suites:
            for effort in plan.efforts:
                log = self._log(plan, suite, effort)
                results.append(_result(log, suite, effort, self.engine.config.layers))
        return results

    def _log(self, plan: Plan, suite: str, effort: str) -> "EvalLog":
        from inspect_ai import eval_set
        from inspect_ai.log import read_eval_log

        display: Literal["rich", "none"] = "rich" if self.shows else "none"
        answerer = Answerer(self.engine, self.folder, Answering(self.folder.name, self.parallel))
        try:
            with (
                nullcontext() if self.shows else redirect_stdout(sys.stderr)
            ):  # where it says that it is done
                done, logs = eval_set(
                    [task_of(suite)],
                    log_dir=str(self.out / f"{name_of(suite)}-{effort}"),
                    model=_model(answerer, effort, plan.max_tokens),
                    model_roles={"grader": plan.judge} if plan.judge else None,
                    limit=plan.limit,
                    epochs=plan.epochs,
                    retry_attempts=0,
                    retry_immediate=False,
                    display=display,
                    log_level="error",
                    max_samples=2 * answerer.at_once,
                    fail_on_error=False,
                    log_dir_allow_dirty=True,
                )
        finally:
            answerer.close()
        if not done:
            reason = next((log.error.message for log in logs if log.error), "it was interrupted")
            raise UsageError(
                f"{name_of(suite)} at {effort} effort isn't done: {reason.splitlines()[0][:300]}; "
                "the same command goes on with it"
            )
        return read_eval_log(logs[0].location)


def _model(answerer: Answerer, effort: str, max_tokens: int | None) -> Any:
    """The answerer as inspect-ai's model, by the openai client whose transport is the application."""
    import httpx2
    from inspect_ai.model import GenerateConfig, get_model

    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=answerer.app), timeout=None)
    config = GenerateConfig(
        reasoning_effort=cast(Any, effort),  # whoever makes a Plan has checked it
        max_tokens=max_tokens,
        temperature=1.0,
        top_p=1.0,
        max_connections=answerer.at_once,
    )
    return get_model(
        f"openai-api/localoss/{answerer.name}",
        config=config,
        base_url=_ADDRESS,
        api_key="none",
        memoize=False,
        http_client=client,
        max_retries=0,
    )


def _result(log: "EvalLog", suite: str, effort: str, layers: int) -> Result:
    """Raises: UsageError if nothing was scored."""
    values: dict[Any, list[float]] = {}
    failed = set()
    for sample in log.samples or []:
        if sample.error is not None or not sample.scores:
            failed.add(sample.id)
            continue
        values.setdefault(sample.id, []).append(_share(next(iter(sample.scores.values())).value))
    if not values:
        reason = next((sample.error.message for sample in log.samples or [] if sample.error), "no questions")
        reason = reason.splitlines()[0][:300]
        raise UsageError(f"{name_of(suite)} at {effort} effort: nothing was scored: {reason}")
    means = [math.fsum(each) / len(each) for each in values.values()]
    low, high = interval(means)
    return Result(
        name_of(suite),
        effort,
        len(means),
        max(map(len, values.values())),
        math.fsum(means) / len(means),
        low,
        high,
        failed=len(failed - set(values)),
        tokens=sum(usage.output_tokens for usage in log.stats.model_usage.values()),
        published=published(name_of(suite), effort, layers),
    )


def _share(value: Any) -> float:
    """A score of inspect-ai as a share of 1: its letters, or a number."""
    if isinstance(value, str):
        return {"C": 1.0, "P": 0.5}.get(value, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
