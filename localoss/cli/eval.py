"""`localoss eval`: how well a model predicts a text, and how far its predictions are from another model's."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli.loading import load_model
from localoss.cli.options import AdapterNames, AsJson, KVDtype, ModelName, Threads
from localoss.cli.terminal import StatusLine, echo, interrupts, say, stdin_bytes
from localoss.errors import UsageError
from localoss.options import LoadOptions

if TYPE_CHECKING:
    from localoss.measure.evaluate import Scores

_INTERRUPTED = 130
_SUITE_CONTEXT = 32_768


def evaluate(
    model: ModelName,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A text, UTF-8; - for stdin. Not needed for demo.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL2", help="Compare predictions with this model's.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", min=2, help="Length of a window, by default 2,048; of suites 32,768."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", min=1, help="From one window to the next; half of it if not given."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Look at the text's first N tokens.")
    ] = None,
    cases: Annotated[
        int, typer.Option(metavar="N", min=1, help="Held-out cases of each skill of the demo model.")
    ] = 40,
    kv_dtype: Annotated[
        KVDtype, typer.Option("--kv-dtype", help="Numbers of MODEL's KV cache; MODEL2's are f16.")
    ] = KVDtype.f16,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="aime2025, gpqa_diamond, healthbench, another one of inspect_evals, or FILE.jsonl; several.",
        ),
    ] = None,
    effort: Annotated[
        str, typer.Option(metavar="LIST", help="At which efforts suites run.")
    ] = "low,medium,high",
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="A suite's first N questions.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How often each question is asked.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=64, help="Answers of suites side by side.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Judges answers, as inspect-ai names it, where a suite wants that."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="For logs and results of suites.")
    ] = None,
    threads: Threads = None,
    adapter: AdapterNames = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model's perplexity on a text, and with --against its divergence from another model.

    With --suite it answers published questions at each effort, several side by side; results come with 95 %
    intervals and OpenAI's own figures, and after Ctrl-C the same command goes on.

    A text that is longer than the context is read in windows; each token is scored once. Control tokens such
    as <|start|> count as what they are. `localoss eval demo` without FILE has the demo model answer questions
    that its training left out, in several number formats.
    """
    if suite:
        from localoss.cli.eval_suite import evaluate_suites

        if file or against:
            raise UsageError("--suite brings its own questions; leave out FILE and --against")
        how = {"limit": limit, "epochs": epochs, "max_tokens": max_tokens, "judge": judge}
        loading = LoadOptions(
            context or _SUITE_CONTEXT, threads, kv_dtype.value, slots=parallel, adapters=tuple(adapter or ())
        )
        evaluate_suites(model, suite, effort, loading, out, how, as_json)
        return
    if file is None:
        if adapter:
            raise UsageError("--adapter needs a text: localoss eval MODEL FILE --adapter DIR")
        _evaluate_demo(model, against, cases, threads, as_json)
        return
    from localoss.chat.harmony import encode_raw
    from localoss.measure.evaluate import score_text

    tokens = encode_raw(_read(file))[:max_tokens]
    if len(tokens) < 2:
        raise UsageError(f"{file}: too short, {len(tokens)} tokens; predicting one takes another before it")
    names = [model, against] if against else [model]
    context = min(context or 2048, len(tokens), *_longest_contexts(names, max(tokens)))
    stride = stride or context // 2
    engines = [
        load_model(name, LoadOptions(context, threads, cache.value, adapters=tuple(its or ())))[1]
        for name, cache, its in zip(names, (kv_dtype, KVDtype.f16), (adapter, None), strict=False)
    ]
    line = _ScoresLine(len(tokens) - 1)
    with interrupts() as cancelled:
        try:
            scores = score_text(
                engines[0], tokens, stride, *engines[1:], progress=line.count, cancelled=cancelled
            )
        finally:
            line.clear()
    scored = len(scores.nll)
    if not scored:
        raise typer.Exit(_INTERRUPTED)
    report = {"model": model, "file": file, "tokens": len(tokens), "scored_tokens": scored}
    report |= {
        "context": context,
        "stride": stride,
        "kv_dtype": kv_dtype.value,
        **_measures(scores),
        "against": against,
    }
    echo(json.dumps(report, indent=2) if as_json else _text(report))
    if scored < len(tokens) - 1:
        say("(stopped: this is the beginning of the text)")
        raise typer.Exit(_INTERRUPTED)


def _evaluate_demo(model: str, against: str | None, cases: int, threads: int | None, as_json: bool) -> None:
    from localoss.hub.registry import DEMO

    if model != DEMO:
        raise UsageError(f"which text? localoss eval {model} FILE, or - for stdin")
    if against:
        raise UsageError(f"--against needs a text: localoss eval {model} FILE --against {against}")
    from localoss.cli.eval_demo import evaluate_demo

    evaluate_demo(cases, threads, as_json)


def _read(file: str) -> str:
    """The text of a file, or of stdin for -. Raises: UsageError."""
    from localoss.chat.documents import decode_text, read_text

    return decode_text(stdin_bytes().read(), "stdin") if file == "-" else read_text(Path(file))


def _longest_contexts(names: list[str], highest: int) -> list[int]:
    """The models' contexts. Raises: UsageError if they cannot be compared, or don't know token `highest`."""
    from localoss.hub.registry import find_model
    from quant.format.config import read_config

    configs = [read_config(find_model(name, say) / "config.json") for name in names]
    vocabularies = [config.vocab for config in configs]
    if len(set(vocabularies)) > 1:
        known = " and ".join(f"{n:,} ({name})" for name, n in zip(names, vocabularies, strict=True))
        raise UsageError(f"the models' vocabularies have {known} tokens: they cannot be compared")
    if highest >= vocabularies[0]:
        raise UsageError(
            f"{names[0]}: a vocabulary of {vocabularies[0]:,} tokens is not gpt-oss's: it knows no text"
        )
    return [config.context for config in configs]


class _ScoresLine(StatusLine):
    """Says how much of a text was scored, and its perplexity so far."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self._total, self._done, self._nll = total, 0, 0.0

    def count(self, scores: "Scores") -> None:
        self._done += len(scores.nll)
        self._nll += float(scores.nll.sum())
        so_far = math.exp(self._nll / self._done)
        self.show(f"{self._done:,} of {self._total:,} tokens, perplexity {so_far:.4g}")


def _measures(scores: "Scores") -> dict[str, Any]:
    measures = {
        "nll": float(scores.nll.mean()),
        "perplexity": scores.perplexity,
        "perplexity_error": scores.perplexity_error,
    }
    if len(scores.kl):
        measures |= {
            "reference_perplexity": scores.reference_perplexity,
            "mean_kl": scores.mean_kl,
            "p99_kl": scores.p99_kl,
            "top1_agreement": scores.top1_agreement,
        }
    return measures


def _text(report: dict[str, Any]) -> str:
    """The report in lines of words and numbers."""
    spread = f"{report['perplexity']:.4f} ± {report['perplexity_error']:.4f}"
    where = f"over {report['scored_tokens']:,} tokens in windows of {report['context']:,}"
    lines = [f"perplexity     {spread} of {report['model']}, {where}, every {report['stride']:,}"]
    if report["against"]:
        lines += [
            f"               {report['reference_perplexity']:.4f} of {report['against']}",
            f"KL divergence  {report['mean_kl']:.5f} nats from {report['against']}, "
            f"99th percentile {report['p99_kl']:.5f}",
            f"same token     {report['top1_agreement']:.2%} of the time the likeliest of both",
        ]
    return "\n".join(lines)
