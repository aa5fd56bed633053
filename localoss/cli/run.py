"""`localoss run`: one prompt, one answer."""

import json
import os
import stat
import sys
import time
from dataclasses import replace
from typing import Annotated

import typer

from localoss.cli import options
from localoss.cli.terminal import AnswerPrinter, stdin_bytes
from localoss.errors import UsageError
from localoss.options import LoadOptions, SamplingParams
from localoss.tools.choice import ToolOptions

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
LEAST_ANSWER_TOKENS = 512  # of it, if a server is asked that is there already
TOOL_TOKENS = 12_288  # more of it, where there are calls and their results


@options.takes_load_options
@options.takes_sampling_params
@options.takes_tool_options
def run(
    invocation: typer.Context,
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
    no_server: options.NoServer = False,
    *,
    sampling: SamplingParams,
    loading: LoadOptions,
    tooling: ToolOptions,
) -> None:
    """Answer one prompt.

    Without MODEL: localoss run "your question" asks the one that is installed, or the demo model.
    A running server that has the model answers; otherwise it is loaded. The answer alone goes to
    stdout; thinking is shown on stderr when that is a terminal.
    """
    from localoss.chat import harmony
    from localoss.chat.conversation import Conversation
    from localoss.cli.loading import find_or_load
    from localoss.cli.one_answer import OneAnswer
    from localoss.cli.tool_calls import opened_tools
    from localoss.hub.registry import default_model, model_and_text, name_of, usual_think_budget

    model, prompt = model_and_text([model, prompt])
    text = _prompt_text(prompt)
    model = default_model() if model is None else model
    instructions = options.instructions(system, system_file)
    _check_together(raw, as_json, show_probabilities, instructions, think_budget, tooling)
    with opened_tools(tooling) as tools:
        if raw:
            asked: Conversation | list[int] = harmony.encode_raw(text)
        else:
            setup = harmony.ChatSetup(effort.value, instructions)
            asked = Conversation(tools.add_to(setup) if tools else setup)
            asked.ask(text)
        tokens = asked if isinstance(asked, list) else asked.tokens()
        room = ANSWER_TOKENS + (TOOL_TOKENS if tools else 0)
        started = time.perf_counter()
        loading = replace(loading, prompt_tokens=len(tokens) + room)
        given = None if no_server else options.given_load_options(invocation)
        folder, engine = find_or_load(model, loading, given, least_context=len(tokens) + LEAST_ANSWER_TOKENS)
        load_s = time.perf_counter() - started

        if think_budget is None and not raw:
            think_budget = usual_think_budget(name_of(folder))
        answer = OneAnswer(engine, asked, sampling, think_budget, tools)
        if as_json:
            answer.generate(None, None)
            report = {"model": str(folder), **answer.report(), "load_s": round(load_s, 3)}
            print(json.dumps(report, ensure_ascii=False, indent=2), flush=True)
        else:
            thoughts = sys.stderr if sys.stderr.isatty() and not hide_thinking else None
            printer = AnswerPrinter(sys.stdout, thoughts)
            if show_probabilities:
                from localoss.cli.shades import ShadedPrinter

                printer = ShadedPrinter(sys.stdout, thoughts, lambda: answer.last_logprob)
            answer.generate(printer, thoughts)
        answer.finish()


def _check_together(
    raw: bool,
    as_json: bool,
    show_probabilities: bool,
    instructions: str | None,
    think_budget: int | None,
    tooling: ToolOptions,
) -> None:
    """Raises: UsageError for options that mean nothing together."""
    if raw and instructions is not None:
        raise UsageError("--raw has no system message; leave out --system or --raw")
    if as_json and show_probabilities:
        raise UsageError("--json has no colours; leave out --show-probabilities or --json")
    if raw and think_budget is not None:
        raise UsageError("--raw has no thinking that ends; leave out --think-budget or --raw")
    if raw and tooling.wants_any:
        raise UsageError("--raw has no calls; leave out the tools or --raw")


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
