"""The conversation itself: what is typed goes to the model, its answer to the terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localoss import settings
from localoss.chat.conversation import Conversation
from localoss.chat.parser import Event
from localoss.chat.session import Session
from localoss.chat.turn import Sampling, Turn
from localoss.cli.chat.figures import TurnFigures
from localoss.cli.chat.messages import Input, as_command, unquoted
from localoss.cli.terminal import AnswerPrinter, interrupts, printable, say, typing_waits
from localoss.errors import ContextFullError, LocalossError
from localoss.registry import models_folder
from quant.errors import QuantError

if TYPE_CHECKING:
    from localoss.cli.chat.calls import Calls
    from localoss.engine import Engine

_WARN_SHARE = 0.8  # of the context
# With --trim, room for an answer is made before it is needed, and enough for some turns at once: after it,
# the whole prompt is prefilled again.
_TRIM_SHARE, _TRIMMED_SHARE = 0.75, 0.5
Shows = Callable[[Event], None]
Progress = Callable[[int, int], None]


class Leave(Exception):
    """The user wants to leave."""


@dataclass(frozen=True)
class Attachment:
    """A file's text that goes with the next message."""

    name: str
    text: str
    tokens: int


@dataclass
class Chat:
    """A conversation at a terminal or over pipes.

    load: gives the folder and engine of another model, by name. trims: whether the oldest messages are left
    out when the context is full. calls: carries out the functions that the model calls.
    """

    folder: Path
    engine: "Engine"
    conversation: Conversation
    sampling: Sampling
    load: Callable[[str], tuple[Path, "Engine"]]
    show_thinking: bool = True
    trims: bool = False
    calls: "Calls | None" = None
    session: Session | None = None
    attachments: list[Attachment] = field(default_factory=list)
    turns: list[TurnFigures] = field(default_factory=list)
    last_thinking: str = ""
    used_tokens: int = 0

    def __post_init__(self) -> None:
        self.at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._obey: Callable[[str, str], None] = lambda name, argument: None
        self._attempts = 0  # answers to the last message so far
        self._warned = False
        self.use(self.folder, self.engine)

    def use(self, folder: Path, engine: "Engine") -> None:
        """Go on with another model."""
        self.folder, self.engine = folder, engine
        self.sequence: Any = engine.sequence(seed=self.sampling.seed)
        if self.session:
            self._tell(self.session.attach(folder, engine, self.sequence))
        self.count()

    def hold(self, messages: Input, obey: Callable[["Chat", str, str], None]) -> None:
        """Read and answer until the input ends or the user leaves; `obey` carries out commands."""
        while (text := messages.read()) is not None:
            try:
                command = as_command(text)
                if command:
                    obey(self, *command)
                elif message := unquoted(text):
                    self.ask(message.strip() if "\n" not in message else message)
            except Leave:
                return
            except KeyboardInterrupt:
                say("(stopped)")
            except (LocalossError, QuantError) as error:
                if not self.at_terminal and not command:
                    raise
                say(f"error: {error}" if not command else str(error))
            self.count()
            self.keep()

    def ask(self, text: str) -> None:
        """Send a message, with what waits for it, and show the answer."""
        waiting, self.attachments = self.attachments, []
        parts = [f"{file.name}:\n\n{file.text}" for file in waiting]
        self.conversation.ask("\n\n".join([*parts, text]))
        self._attempts = 0
        self.keep()
        try:
            self.reply()
        except LocalossError:
            self.conversation.take_back()
            self.attachments = waiting
            raise

    def reply(self) -> None:
        """Answer the last user's message, with the calls that it takes. Raises: ContextFullError."""
        while self._turn().finish == "call" and self.calls:
            call = self.conversation.messages[-1]
            self.conversation.messages.append(self.calls.answer(call))

    def _turn(self) -> Turn:
        """One answer, or what is said up to a call. Raises: ContextFullError if there is no room for it."""
        prompt = self._fitting_prompt()
        turn = Turn(self.engine, prompt, self.conversation.setup, self._sampling(), self.sequence)
        turn.rules = self.calls.rules if self.calls else None
        self._attempts += 1
        with self._display(turn) as (progress, show), interrupts() as cancelled:
            for event in turn.events(progress, cancelled):
                show(event)
        self.conversation.answer(turn.messages)
        self.turns.append(TurnFigures.of(turn))
        self.last_thinking = turn.thinking
        self.count()
        self.keep()
        if self.session:
            self._tell(self.session.save_cache(self.conversation, self.sequence))
        self._explain(turn)
        return turn

    def recall(self) -> None:
        """Show where a session stopped: its last message and answer, and what of it the cache holds."""
        asked = [message.text for message in self.conversation.messages if message.role == "user"]
        count, held = len(self.conversation.messages), len(self.sequence.tokens)
        say(f"(session: {count} messages, {self.used_tokens:,} tokens, of which {held:,} need no reading)")
        if asked:
            print(f"> {shortened(asked[-1], 200)}")
        if not self.conversation.is_answered:
            say("(this message has no answer yet: /regen answers it)")
        elif self.at_terminal and settings.color():
            from localoss.cli.chat.markdown import make_renderer
            from localoss.cli.chat.region import Region

            region = Region(sys.stdout)
            text = printable(self.conversation.last_answer)
            region.update([], make_renderer().markdown(text, region.width))
        else:
            print(printable(self.conversation.last_answer), flush=True)

    def keep(self) -> None:
        """Save the messages of a session."""
        if self.session:
            try:
                self.session.save_messages(self.conversation, self.model)
            except LocalossError as error:
                say(f"error: {error}")

    @property
    def model(self) -> str:
        """The name that opens this model again: the store's, or the folder's path."""
        if self.folder.parent == models_folder():
            return self.folder.name.replace("--", "/", 1)
        return str(self.folder.resolve())

    def count(self) -> None:
        """Count the tokens of the conversation anew."""
        self.used_tokens = len(self.conversation.tokens())

    def status(self, turn: Turn | None = None) -> str:
        """Model, effort, context in use and speed, in one line."""
        used, speed = self.used_tokens, 0.0
        if turn:
            used, speed = len(turn.prompt) + turn.generated_tokens, turn.decode_tokens_per_s
        elif self.turns:
            speed = self.turns[-1].decode_tokens_per_s
        parts = [
            self.folder.resolve().name,
            f"effort {self.conversation.setup.effort}",
            f"{used:,} of {self.engine.context_tokens:,} tokens",
            f"{speed:.1f} tokens/s" if speed else "",
        ]
        return " · ".join(part for part in parts if part)

    def choices(self) -> str:
        """What a user can do about a full context."""
        return (
            "/clear begins anew, /undo takes the last exchange back, `localoss chat --context N` with a "
            "larger N holds more if memory allows, --trim oldest leaves the oldest messages out"
        )

    def _tell(self, line: str | None) -> None:
        if line:
            say(f"({line})")

    def _sampling(self) -> Sampling:
        """The options; with a seed, every attempt at the same answer has one of its own."""
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=seed + self._attempts)

    def _fitting_prompt(self) -> list[int]:
        room = self.engine.context_tokens
        if self.trims and len(self.conversation.tokens()) > _TRIM_SHARE * room:
            count = self.conversation.leave_out_oldest(lambda tokens: tokens <= _TRIMMED_SHARE * room)
            if count:
                say(
                    f"(--trim oldest: the model no longer sees the "
                    f"{self.conversation.left_out} oldest messages)"
                )
        prompt = self.conversation.tokens()
        if len(prompt) >= room:
            raise ContextFullError(
                f"the conversation has {len(prompt):,} tokens with your message, and the context holds "
                f"{room:,}: {self.choices()}"
            )
        return prompt

    @contextmanager
    def _display(self, turn: Turn) -> Iterator[tuple[Progress, Shows]]:
        if self.at_terminal and settings.color():
            from localoss.cli.chat.markdown import make_renderer
            from localoss.cli.chat.screen import TurnScreen

            screen = TurnScreen(
                sys.stdout, make_renderer(), turn, lambda: self.status(turn), self.show_thinking
            )
            with typing_waits():
                try:
                    yield screen.prefill, screen.show
                finally:
                    screen.close()
        else:
            aside = sys.stdout if self.at_terminal and self.show_thinking else None
            printer = AnswerPrinter(sys.stdout, aside, dims=False)
            try:
                yield PlainProgress(self.at_terminal), printer.show
            finally:
                printer.close()

    def _explain(self, turn: Turn) -> None:
        room = self.engine.context_tokens
        if turn.finish == "cancelled":
            say(
                "(stopped)"
                if turn.messages
                else "(stopped; /regen answers your message, /undo takes it back)"
            )
        elif turn.finish == "length":
            say(f"(ended by --max-tokens {self.sampling.max_tokens})")
        elif turn.finish == "context":
            say(
                f"error: the answer broke off: {len(turn.prompt):,} tokens of conversation and "
                f"{turn.generated_tokens:,} of thinking and answer fill the context of {room:,}: "
                f"{self.choices()}"
            )
        is_nearly_full = self.used_tokens >= _WARN_SHARE * room
        if is_nearly_full and not self._warned and turn.finish != "context":
            say(
                f"(the context is {self.used_tokens / room:.0%} full: {self.used_tokens:,} of "
                f"{room:,} tokens; {self.choices()})"
            )
        self._warned = is_nearly_full


def shortened(text: str, most: int = 60) -> str:
    """The beginning of `text` as one line."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


class PlainProgress:
    """Says once that a prompt is long, to a terminal that takes no codes."""

    def __init__(self, at_terminal: bool) -> None:
        self._quiet = not at_terminal

    def __call__(self, done: int, total: int) -> None:
        if not self._quiet and total - done > 1000:
            say(f"(reading the prompt: {total - done:,} tokens; Ctrl-C stops)")
        self._quiet = True
