"""`localoss run`: one prompt, one answer."""

import json
import os
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli import options
from localoss.cli.terminal import AnswerPrinter, PrefillProgress, interrupts, say, stdin_bytes
from localoss.errors import ContextFullError, UsageError
from localoss.options import LoadOptions, SamplingParams

if TYPE_CHECKING:
    from localoss.chat.turn import Turn
    from localoss.engine.engine import Engine

Prompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="What to ask; text on stdin is added below it.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Write one JSON object: messages, token counts, timings.")
]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="No chat format: the model continues the prompt, control tokens included."),
]

ShowProbabilities = Annotated[
    bool,
    typer.Option(
        "--show-probabilities",
        help="Colour the answer by how certain each word is; percents without colours.",
    ),
]

ANSWER_TOKENS = 4_096  # room that a context chosen for a long prompt leaves


@options.takes_load_options
@options.takes_sampling_params
def run(
    model: options.OptionalModelName = None,
    prompt: Prompt = None,
    preset: options.Preset = None,
    effort: options.EffortOption = options.Effort.medium,
    system: options.System = None,
    system_file: options.SystemFile = None,
    hide_thinking: options.HideThinking = False,
    as_json: AsJson = False,
    raw: Raw = False,
    show_probabilities: ShowProbabilities = False,
    think_budget: options.ThinkBudget = None,
    *,
    sampling: SamplingParams,
    loading: LoadOptions,
) -> None:
    """Answer one prompt.

    Without MODEL: localoss run "your question" asks the one that is installed, or the demo model.
    The answer alone goes to stdout; thinking is shown on stderr when that is a terminal.
    """
    from localoss.chat import harmony
    from localoss.chat.rules import AnswerRules
    from localoss.chat.turn import Turn
    from localoss.cli.loading import load_model
    from localoss.hub.registry import default_model, model_and_text

    model, prompt = model_and_text([model, prompt])
    text = _prompt_text(prompt)
    model = default_model() if model is None else model
    instructions = options.instructions(system, system_file)
    if raw and instructions is not None:
        raise UsageError("--raw has no system message; leave out --system or --raw")
    if as_json and show_probabilities:
        raise UsageError("--json has no colours; leave out --show-probabilities or --json")
    if raw and think_budget is not None:
        raise UsageError("--raw has no thinking that ends; leave out --think-budget or --raw")
    setup = None if raw else harmony.ChatSetup(effort.value, instructions)
    tokens = (
        harmony.encode_raw(text) if setup is None else harmony.render(setup, [harmony.Message("user", text)])
    )
    started = time.perf_counter()
    loading = replace(loading, prompt_tokens=len(tokens) + ANSWER_TOKENS)
    folder, engine = load_model(model, loading)
    load_s = time.perf_counter() - started

    turn = Turn(tokens, setup, sampling, AnswerRules(think_budget=think_budget))
    if as_json:
        _generate(engine, turn, None)
        print(json.dumps(_report(engine, turn, folder, load_s), ensure_ascii=False, indent=2), flush=True)
    else:
        aside = sys.stderr if sys.stderr.isatty() and not hide_thinking else None
        printer = AnswerPrinter(sys.stdout, aside)
        if show_probabilities:
            from localoss.cli.shades import ShadedPrinter

            printer = ShadedPrinter(sys.stdout, aside, lambda: turn.last_logprob)
        _generate(engine, turn, printer)
    _finish(engine, turn)


def _prompt_text(prompt: str | None) -> str:
    """The prompt, then what is piped in. Raises: UsageError if there is neither."""
    parts = [prompt or "", _piped_text()]
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise UsageError('there is no prompt: localoss run MODEL "your question", or pipe text in')
    return text


def _piped_text() -> str:
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    try:
        if stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode):  # /dev/null
            return ""
    except OSError:
        pass  # no file behind it, as in tests
    from localoss.chat.documents import decode_text

    return decode_text(stdin_bytes().read(), "stdin").removesuffix("\n")


def _generate(engine: "Engine", turn: "Turn", printer: AnswerPrinter | None) -> None:
    from localoss.chat.generate import generate

    progress = PrefillProgress()
    with interrupts() as cancelled:
        try:
            for event in generate(engine, turn, None, progress, cancelled):
                progress.clear()
                if printer:
                    printer.show(event)
        finally:
            progress.clear()
            if printer:
                printer.close()


def _finish(engine: "Engine", turn: "Turn") -> None:
    """Say what an unusual end means. Raises: ContextFullError, or typer.Exit after Ctrl-C."""
    if turn.finish == "cancelled":
        raise typer.Exit(130)
    if turn.finish == "context":
        raise ContextFullError(
            f"the answer broke off: {len(turn.prompt):,} tokens of prompt and {turn.generated_tokens:,} of "
            f"answer fill the context of {engine.context_tokens:,}; give a larger --context"
        )
    if turn.finish == "length" and not turn.answer:
        say(f"note: --max-tokens {turn.params.max_tokens} ended the answer before its final message")


def _report(engine: "Engine", turn: "Turn", folder: Path, load_s: float) -> dict[str, Any]:
    return {
        "model": str(folder),
        "answer": turn.answer,
        "thinking": turn.thinking,
        "messages": [
            {"channel": m.channel, "recipient": m.recipient, "content_type": m.content_type, "text": m.text}
            for m in turn.messages
        ],
        "finish": turn.finish,
        "prompt_tokens": len(turn.prompt),
        "generated_tokens": turn.generated_tokens,
        "thinking_tokens": turn.thinking_tokens,
        "load_s": round(load_s, 3),
        "prefill_s": round(turn.prefill_s, 3),
        "decode_s": round(turn.decode_s, 3),
        "prefill_tokens_per_s": round(turn.prefill_tokens_per_s, 2),
        "decode_tokens_per_s": round(turn.decode_tokens_per_s, 2),
        "gpu": engine.device_figures(),
    }
