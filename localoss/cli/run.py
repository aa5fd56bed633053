"""`localoss run`: one prompt, one answer."""

import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli import options
from localoss.cli.terminal import AnswerPrinter, PrefillProgress, interrupts, say
from localoss.errors import ContextFullError, UsageError

if TYPE_CHECKING:
    from localoss.chat.turn import Turn

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

ANSWER_TOKENS = 4_096  # room that a context chosen for a long prompt leaves


def run(
    model: options.ModelName,
    prompt: Prompt = None,
    effort: options.EffortOption = options.Effort.medium,
    system: options.System = None,
    system_file: options.SystemFile = None,
    hide_thinking: options.HideThinking = False,
    as_json: AsJson = False,
    raw: Raw = False,
    max_tokens: options.MaxTokens = None,
    think_budget: options.ThinkBudget = None,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    context: options.Context = None,
    kv_dtype: options.KVDtypeOption = options.KVDtype.f16,
    memory_limit: options.MemoryLimit = None,
    must_fit: options.MustFit = False,
    lookup: options.Lookup = False,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = 0,
    gpu_memory: options.GpuMemory = None,
) -> None:
    """Answer one prompt.

    The answer alone goes to stdout; thinking is shown on stderr when that is a terminal.
    """
    from localoss.chat import harmony
    from localoss.chat.turn import Sampling, Turn
    from localoss.cli.loading import load_model

    text = _prompt_text(prompt)
    sampling = Sampling(temperature, top_p, top_k, min_p, seed, max_tokens, think_budget=think_budget)
    instructions = options.instructions(system, system_file)
    if raw and instructions is not None:
        raise UsageError("--raw has no system message; leave out --system or --raw")
    if raw and think_budget is not None:
        raise UsageError("--raw has no thinking that ends; leave out --think-budget or --raw")
    setup = None if raw else harmony.ChatSetup(effort.value, instructions)
    tokens = (
        harmony.encode_raw(text) if setup is None else harmony.render(setup, [harmony.Message("user", text)])
    )
    started = time.perf_counter()
    folder, engine = load_model(
        model,
        context_tokens=context,
        prompt_tokens=len(tokens) + ANSWER_TOKENS,
        threads=threads,
        kv_dtype=kv_dtype.value,
        memory_limit=memory_limit,
        must_fit=must_fit,
        lookup=lookup,
        gpu_layers=gpu_layers,
        gpu_memory=gpu_memory,
    )
    load_s = time.perf_counter() - started

    turn = Turn(engine, tokens, setup, sampling)
    if as_json:
        _generate(turn, None)
        print(json.dumps(_report(turn, folder, load_s), ensure_ascii=False, indent=2), flush=True)
    else:
        aside = sys.stderr if sys.stderr.isatty() and not hide_thinking else None
        _generate(turn, AnswerPrinter(sys.stdout, aside))
    _finish(turn)


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
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise UsageError("stdin is not UTF-8 text") from None


def _generate(turn: "Turn", printer: AnswerPrinter | None) -> None:
    progress = PrefillProgress()
    with interrupts() as cancelled:
        try:
            for event in turn.events(progress, cancelled):
                progress.clear()
                if printer:
                    printer.show(event)
        finally:
            progress.clear()
            if printer:
                printer.close()


def _finish(turn: "Turn") -> None:
    """Say what an unusual end means. Raises: ContextFullError, or typer.Exit after Ctrl-C."""
    if turn.finish == "cancelled":
        raise typer.Exit(130)
    if turn.finish == "context":
        raise ContextFullError(
            f"the answer broke off: {len(turn.prompt):,} tokens of prompt and {turn.generated_tokens:,} of "
            f"answer fill the context of {turn.engine.context_tokens:,}; give a larger --context"
        )
    if turn.finish == "length" and not turn.answer:
        say(f"note: --max-tokens {turn.sampling.max_tokens} ended the answer before its final message")


def _report(turn: "Turn", folder: Path, load_s: float) -> dict[str, Any]:
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
        "gpu": turn.engine.gpu_figures(),
    }
