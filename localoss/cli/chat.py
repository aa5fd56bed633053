"""`localoss chat`: a conversation, line by line."""

import difflib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localoss.cli import options
from localoss.cli.terminal import AnswerPrinter, PrefillProgress, interrupts, say
from localoss.errors import LocalossError, UsageError

if TYPE_CHECKING:
    from localoss.chat.conversation import Conversation
    from localoss.chat.turn import Sampling

_HELP = """\
/effort low|medium|high  how long the model thinks; without a word, say how long now
/clear                   start a new conversation
/help                    this list
/exit                    leave, as Ctrl-D does
Ctrl-C stops an answer, or clears the line."""


def chat(
    model: options.OptionalModelName = None,
    effort: options.EffortOption = options.Effort.medium,
    system: options.System = None,
    system_file: options.SystemFile = None,
    hide_thinking: options.HideThinking = False,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    context: options.Context = 8192,
    kv_dtype: options.KVDtypeOption = options.KVDtype.f16,
    threads: options.Threads = None,
) -> None:
    """Talk with a model; /help lists what can be typed besides text.

    Without MODEL, the one that is installed, or the demo model that comes with localoss.
    """
    from localoss.chat.conversation import Conversation
    from localoss.chat.harmony import ChatSetup, check_vocabulary
    from localoss.chat.turn import Sampling
    from localoss.cli.loading import introduction, load_model
    from localoss.registry import default_model

    sampling = Sampling(temperature, top_p, top_k, min_p, seed, max_tokens)
    conversation = Conversation(ChatSetup(effort.value, options.instructions(system, system_file)))
    model = model or default_model()
    folder, engine = load_model(model, context_tokens=context, threads=threads, kv_dtype=kv_dtype.value)
    check_vocabulary(engine.config.vocab)
    greeting = "".join(f"{line}\n" for line in [introduction(model)] if line)
    greeting += f"{folder.resolve().name} · context {engine.context_tokens:,} tokens · effort {effort.value}"
    Chat(engine, conversation, sampling, hide_thinking).hold(f"{greeting} · /help for help")


@dataclass
class Chat:
    """A conversation at a terminal or over pipes."""

    engine: Any
    conversation: "Conversation"
    sampling: "Sampling"
    hide_thinking: bool

    def __post_init__(self) -> None:
        self._sequence = self.engine.sequence(seed=self.sampling.seed)
        self._at_terminal = sys.stdin.isatty() and sys.stdout.isatty()

    def hold(self, greeting: str) -> None:
        """Read and answer until the input ends or the user leaves."""
        print(greeting, file=sys.stdout if self._at_terminal else sys.stderr, flush=True)
        for line in _typed_lines() if self._at_terminal else _piped_lines():
            text = line.strip()
            if text.startswith("/"):
                if not self._obey(text):
                    return
            elif text:
                self._reply(text)

    def _reply(self, text: str) -> None:
        try:
            self._answer(text)
        except LocalossError as error:
            self.conversation.take_back()
            if not self._at_terminal:
                raise
            say(f"error: {error}")

    def _answer(self, text: str) -> None:
        from localoss.chat.turn import Turn

        tokens = self.conversation.ask(text)
        turn = Turn(self.engine, tokens, self.conversation.setup, self.sampling, self._sequence)
        shows_thinking = sys.stdout.isatty() and not self.hide_thinking
        printer = AnswerPrinter(sys.stdout, sys.stdout if shows_thinking else None)
        progress = PrefillProgress()
        with interrupts() as cancelled:
            try:
                for event in turn.events(progress, cancelled):
                    progress.clear()
                    printer.show(event)
            finally:
                progress.clear()
                printer.close()
        self.conversation.answer(turn.messages)
        self._explain(turn.finish)

    def _explain(self, finish: str) -> None:
        if finish == "cancelled":
            say("(stopped)")
        elif finish == "length":
            say(f"(ended by --max-tokens {self.sampling.max_tokens})")
        elif finish == "context":
            say(f"(the context of {self.engine.context_tokens:,} tokens is full; /clear begins anew)")

    def _obey(self, text: str) -> bool:
        """Carry out a slash command. False: leave."""
        name, _, argument = text[1:].partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: say(_HELP),
            "clear": self._clear,
            "effort": self._set_effort,
        }
        if name in ("exit", "quit"):
            return False
        if name in commands:
            commands[name](argument.strip())
        else:
            nearest = difflib.get_close_matches(name, [*commands, "exit"], n=1)
            say(
                f"there is no /{name}; " + (f"did you mean /{nearest[0]}?" if nearest else "/help lists them")
            )
        return True

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        say("(a new conversation)")

    def _set_effort(self, effort: str) -> None:
        try:
            if effort:
                self.conversation.set_effort(effort)
            say(f"(effort {self.conversation.setup.effort})")
        except UsageError as error:
            say(str(error))


def _typed_lines() -> Iterator[str]:
    """Lines from the terminal, edited and remembered. Ctrl-C clears the line, Ctrl-D ends."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _piped_lines() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError:
        raise UsageError("stdin is not UTF-8 text") from None
