"""`localoss chat`: a conversation with a model."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localoss.cli import options
from localoss.cli.terminal import say
from localoss.errors import UsageError
from localoss.options import LoadOptions, SamplingParams
from localoss.tools.choice import ToolOptions

if TYPE_CHECKING:
    from localoss.chat.conversation import Conversation
    from localoss.chat.remote import RemoteModel
    from localoss.chat.session import Session
    from localoss.cli.chat.messages import Input
    from localoss.cli.chat.repl import Chat
    from localoss.engine.engine import Engine


class Trim(StrEnum):
    """What is left out when the context is full."""

    none = "none"
    oldest = "oldest"


TrimOption = Annotated[
    Trim,
    typer.Option(
        "--trim", help="oldest: when the context fills, the model no longer sees the oldest messages."
    ),
]
ChatEffort = Annotated[
    options.Effort | None,
    typer.Option("--effort", help="How long the model thinks; medium, or as the session has it."),
]
SessionOption = Annotated[
    str | None,
    typer.Option(
        "--session",
        metavar="NAME",
        help="Begin a session of this name, or go on with it.",
        autocompletion=options.complete_session,
    ),
]
ContinueOption = Annotated[bool, typer.Option("--continue", help="Go on with the session used last.")]
NotifyOption = Annotated[
    bool, typer.Option("--notify", help="Ring and show a notice when an answer took long.")
]
PrivateOption = Annotated[bool, typer.Option("--private", help="Keep nothing of this chat.")]


@options.takes_load_options
@options.takes_sampling_params
@options.takes_tool_options
def chat(
    invocation: typer.Context,
    model: options.OptionalModelName = None,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="The first message; then you are asked.")
    ] = None,
    preset: options.Preset = None,
    effort: ChatEffort = None,
    system: options.System = None,
    system_file: options.SystemFile = None,
    hide_thinking: options.HideThinking = False,
    think_budget: options.ThinkBudget = None,
    trim: TrimOption = Trim.none,
    session: SessionOption = None,
    continued: ContinueOption = False,
    private: PrivateOption = False,
    notify: NotifyOption = False,
    no_server: options.NoServer = False,
    *,
    sampling: SamplingParams,
    loading: LoadOptions,
    tooling: ToolOptions,
) -> None:
    """Talk with a model; /help lists what can be typed besides text.

    Without MODEL, the session's, the one that is installed, or the demo model that comes with localoss.
    A running server that has the model answers; otherwise it is loaded.
    Every chat is kept as a session, written as it goes; `localoss sessions` lists them.
    """
    from localoss.cli.chat.repl import Chat
    from localoss.cli.chat.start import Start
    from localoss.cli.loading import find_or_load, introduction
    from localoss.cli.tool_calls import opened_tools
    from localoss.hub.registry import DEMO, default_model, find_model, model_and_text

    given = None if no_server else options.given_load_options(invocation)

    def load(name: str, **tells: Any) -> "tuple[Path, Engine | RemoteModel]":
        from localoss.chat.harmony import check_vocabulary

        folder, engine = find_or_load(name, loading, given, **tells)
        check_vocabulary(engine.config.vocab)
        return folder, engine

    def begin(start: Start) -> None:
        repl.use(*load(name, progress=start.show, notice=start.note), start.note)

    model, question = model_and_text([model, question])
    with opened_tools(tooling) as toolset:
        kept = _open_session(session, continued, private)
        conversation = _conversation(kept, effort, options.instructions(system, system_file))
        name = model or (kept and kept.model) or default_model()
        if name != DEMO:
            find_model(name)  # what is wrong with a name is said before there is a prompt
        start = Start(begin)
        repl = Chat(
            name,
            conversation,
            sampling,
            load,
            start,
            think_budget=think_budget,
            show_thinking=not hide_thinking,
            trims=trim == Trim.oldest,
            notifies=notify,
            toolset=toolset,
            session=kept,
        )
        _run_loop(repl, question, introduction(name))


def _run_loop(repl: "Chat", question: str | None, introduction: str | None) -> None:
    """Talk until the user leaves."""
    from localoss.cli.chat import commands

    messages = _input(repl, question)  # brings prompt_toolkit: before the thread that would compete with that
    with repl.start:
        if not repl.at_terminal:
            repl.start.wait()
        if introduction:
            repl.notice(introduction)
        repl.notice(f"{repl.title} · /help for help")
        repl.recall()
        try:
            repl.loop(messages, commands.dispatch)
        finally:
            repl.leave_session()


def _open_session(name: str | None, continued: bool, private: bool) -> "Session | None":
    """None for a chat that isn't kept. Raises: UsageError, BusyError."""
    from localoss.chat.session import Session
    from localoss.chat.session_store import last_session

    given = {"--session": name is not None, "--continue": continued, "--private": private}
    if sum(given.values()) > 1:
        both = " and ".join(option for option, is_given in given.items() if is_given)
        raise UsageError(f"{both} were both given; give one of them")
    if private:
        return None
    try:
        return Session(last_session() if continued else name)
    except OSError as error:
        if name is not None or continued:
            raise
        say(f"(this chat is not kept: {error.filename}: {error.strerror})")
        return None


def _conversation(
    kept: "Session | None", effort: options.Effort | None, instructions: str | None
) -> "Conversation":
    """The session's conversation, or a new one; what was asked for on the command line holds in either."""
    from localoss.chat.conversation import Conversation
    from localoss.chat.harmony import ChatSetup

    conversation = (kept and kept.conversation) or Conversation(ChatSetup())
    if effort is not None:
        conversation.set_effort(effort.value)
    if instructions is not None:
        conversation.set_instructions(instructions)
    return conversation


def _input(repl: "Chat", question: str | None) -> "Input":
    """Where messages come from: `question` first, then what is typed or piped."""
    typed = _typed_or_piped(repl)
    if question is None:
        return typed
    from localoss.cli.chat.messages import FirstMessage

    return FirstMessage(question, typed, repl.at_terminal)


def _typed_or_piped(repl: "Chat") -> "Input":
    from localoss import settings
    from localoss.cli.chat import commands
    from localoss.cli.chat.messages import PipedInput

    if not repl.at_terminal:
        return PipedInput()
    from localoss.cli.chat.prompt import TypedInput

    history = settings.home() / "history" if repl.session else None  # a private chat's lines stay in memory
    return TypedInput(history, commands.COMMANDS, commands.choices, repl.status, repl.start)
