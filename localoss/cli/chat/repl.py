"""The conversation itself: what is typed goes to the model, its answer to the terminal."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from localoss import settings
from localoss.chat.conversation import Conversation
from localoss.cli.chat.figures import TurnFigures
from localoss.cli.chat.messages import Input, as_command, unquoted
from localoss.cli.chat.plain import PlainProgress
from localoss.cli.terminal import AnswerPrinter, interrupts, notify, printable, say, typing_waits, wrapped
from localoss.errors import ContextFullError, LocalossError
from localoss.hub.registry import name_of, usual_think_budget
from localoss.options import SamplingParams
from quant.errors import QuantError

if TYPE_CHECKING:  # what brings NumPy or openai_harmony: the prompt doesn't wait for them
    import numpy as np
    from numpy.typing import NDArray

    from localoss.chat.agent import Agent, CallDone, CallEvent
    from localoss.chat.harmony import ChatSetup, File
    from localoss.chat.parser import Event
    from localoss.chat.remote import RemoteModel, RemoteSequence
    from localoss.chat.session import Session
    from localoss.chat.turn import Turn
    from localoss.cli.chat.attachments import Attachment
    from localoss.cli.chat.start import Start
    from localoss.engine.engine import Engine
    from localoss.engine.sequence import Sequence as EngineSequence
    from localoss.tools.citations import Citation
    from localoss.tools.toolset import Toolset

_WARN_SHARE = 0.8  # of the context
# With --trim, room for an answer is made before it is needed, and enough for some turns at once: after it,
# the whole prompt is prefilled again.
_TRIM_SHARE, _TRIMMED_SHARE = 0.75, 0.5
_LONG_ANSWER_S = 10.0  # who waited longer may be looking elsewhere
_LEAVING = ("exit", "quit")
Shows = Callable[["Event"], None]
Progress = Callable[[int, int], None]


class Leave(Exception):
    """The user wants to leave."""


@dataclass
class Chat:
    """A conversation at a terminal or over pipes.

    name: of the model, or its folder. load: gives folder and engine of a model, by name. start: loads the
    first one and calls `use`; until it is done there is no `engine`. trims: whether the oldest messages are
    left out when the context is full. notifies: rings when a long answer is there.
    toolset: what the model may call.
    """

    name: str
    conversation: Conversation
    sampling: SamplingParams
    load: Callable[[str], tuple[Path, "Engine | RemoteModel"]]
    start: "Start"
    think_budget: int | None = None
    show_thinking: bool = True
    trims: bool = False
    notifies: bool = False
    toolset: "Toolset | None" = None
    session: "Session | None" = None
    attachments: "list[Attachment]" = field(default_factory=list)
    turns: list[TurnFigures] = field(default_factory=list)
    last_thinking: str = ""
    used_tokens: int = 0

    def __post_init__(self) -> None:
        self.at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.folder, self.engine = Path(self.name), cast("Engine | RemoteModel", None)
        self.sequence = cast("EngineSequence | RemoteSequence", None)
        self.server = ""  # the address of the one that has the model
        self.agent: Agent | None = None
        self.last_calls: list[CallDone] = []  # of the last answer
        if self.toolset:
            from localoss.chat import agent as agents

            self.agent = agents.Agent(self.toolset)
            self.conversation.setup = self.with_tools(self.conversation.setup)
        self.expert_counts: NDArray[np.int64] | None = None  # (layers, experts) of the last answer
        self._attempts = 0  # answers to the last message so far
        self._warned = False
        self.unsaved = ""  # why the session couldn't be saved last
        self._usual_budget: int | None = None

    def use(self, folder: Path, engine: "Engine | RemoteModel", note: Callable[[str], None] = say) -> None:
        """Go on with a model that is loaded; `note` is told what became of the session's cache."""
        self.folder, self.engine = folder, engine
        usual = usual_think_budget(self.model)
        if self.think_budget == self._usual_budget:  # nobody chose another
            self.think_budget = usual
        self._usual_budget = usual
        self.follow(note)

    def follow(self, note: Callable[[str], None] = say) -> None:
        """Go on with the session's cache, if there is one."""
        if self.engine is None:
            return
        from localoss.chat.remote import RemoteModel

        self.sequence = self.engine.sequence(seed=self.sampling.seed)
        self.server = self.engine.server.url if isinstance(self.engine, RemoteModel) else ""
        problem = self.session and self.session.attach(self.folder, self.engine, self.sequence)
        self.count()
        if problem:
            note(f"({problem})")
        if self.session and self.conversation.messages:
            size = f"{len(self.conversation.messages)} messages, {self.used_tokens:,} tokens"
            held = "" if self.server else f", of which {len(self.sequence.tokens):,} need no reading"
            note(f"(session: {size}{held})")

    def ready(self) -> None:
        """Wait until there is a model. Raises: what loading it raised."""
        self.start.wait()

    def loop(self, messages: Input, dispatch: Callable[["Chat", str, str], None]) -> None:
        """Read and answer until the input ends or the user leaves; `dispatch` carries out commands."""
        goes_on = True
        while goes_on:
            try:
                goes_on = self._heed(messages, dispatch)
            except KeyboardInterrupt:  # between two steps, where nothing was left to be stopped
                say("(stopped)")

    def _heed(self, messages: Input, dispatch: Callable[["Chat", str, str], None]) -> bool:
        """Read a line and do what it wants; whether there may be another."""
        text = messages.read()
        if text is None or (self.at_terminal and text.strip() in _LEAVING):  # as in `llm chat`
            return False
        command = as_command(text)
        try:
            if command:
                dispatch(self, *command)
            elif message := unquoted(text):
                self.ask(message.strip() if "\n" not in message else message)
        except Leave:
            return False
        except KeyboardInterrupt:
            loads = not self.start.done.done()
            say("(stopped; the model still loads: Up brings your line back)" if loads else "(stopped)")
        except (LocalossError, QuantError) as error:
            if self.start.failed or (not self.at_terminal and not command):
                raise
            say(f"error: {error}" if not command else str(error))
        if self.start.done.done():
            self.count()
            self.keep()
        return True

    def ask(self, text: str, files: "Sequence[File]" = ()) -> None:
        """Send a message, with `files` and those that wait for it, and show the answer."""
        self.ready()
        waiting, self.attachments = self.attachments, []
        self.conversation.ask(text, [*files, *(one.file for one in waiting)])
        self._attempts = 0
        self.keep()
        try:
            self.reply()
        except LocalossError:
            if not self.conversation.is_answered:  # what was done before it failed stays
                self.conversation.take_back()
                self.attachments = waiting
            raise

    def reply(self) -> None:
        """Answer the last user's message, with the calls that it takes. Raises: ContextFullError."""
        if self.agent is None:
            self._turn()
            return
        from localoss.chat import agent as agents
        from localoss.cli.tool_calls import call_interrupts

        self.last_calls.clear()
        room = self.engine.context_tokens
        with interrupts():  # of all its steps
            agents.answer(self.agent, self.conversation, self._turn, self._hear, call_interrupts, room)

    def _citation(self, cursor: int) -> "Citation | None":
        return self.toolset.citation(cursor) if self.toolset else None

    def with_tools(self, setup: "ChatSetup") -> "ChatSetup":
        """`setup` of a conversation, with the tools that there are."""
        return self.toolset.add_to(setup) if self.toolset else setup

    def _hear(self, event: "CallEvent") -> None:
        """Show what a call asked and gave."""
        from localoss.chat.agent import CallDone
        from localoss.cli.tool_calls import show_call

        show_call(event)
        if isinstance(event, CallDone):
            self.last_calls.append(event)
            self.keep()
            if event.is_stopped:
                say("(stopped)")

    def _turn(self) -> "Turn":
        """One answer, or what is said up to a call. Raises: ContextFullError if there is no room for it."""
        from localoss.chat.generate import generate
        from localoss.chat.rules import AnswerRules
        from localoss.chat.turn import Turn
        from localoss.tools.citations import Footnotes, with_footnotes

        rules = replace(self.agent.rules if self.agent else AnswerRules(), think_budget=self.think_budget)
        turn = Turn(self._fitting_prompt(), self.conversation.setup, self._sampling(), rules)
        self._attempts += 1
        with interrupts() as cancelled, self._display(turn) as (progress, show, tick):

            def read(done: int, total: int) -> None:
                progress(done, total)
                if done == total:  # the answer's experts are those after the prompt
                    self.expert_counts = self.engine.count_experts()

            events = generate(self.engine, turn, self.sequence, read, lambda: tick() or cancelled())
            for event in with_footnotes(events, Footnotes(self._citation)):
                show(event)
        if cancelled():
            turn.stop()
        self.conversation.answer(turn.whole_messages)
        self.turns.append(TurnFigures.of(turn))
        self.last_thinking = turn.thinking
        self.count()
        self.keep()
        problem = self.session and self.session.save_cache(self.conversation.tokens(), self.sequence)
        if problem:
            say(f"({problem})")
        self._explain(turn)
        if self.notifies and self.at_terminal and turn.prefill_s + turn.decode_s >= _LONG_ANSWER_S:
            notify(f"localoss: {shortened(turn.answer) or 'stopped'}")
        return turn

    def recall(self) -> None:
        """Show at a terminal where a session stopped: its last message and answer."""
        asked = self.conversation.last_asked
        if not self.at_terminal or not asked:
            return
        print(f"> {shortened(asked.text, 200)}")
        if asked.files:
            say(f"(with {printable(', '.join(file.name for file in asked.files))})")
        if not self.conversation.is_answered:
            say("(this message has no answer yet: /regen answers it)")
        elif settings.escape_codes():
            from localoss.cli.chat.screen import print_answer

            print_answer(sys.stdout, printable(self.conversation.last_answer))
        else:
            print(printable(self.conversation.last_answer), flush=True)

    def notice(self, text: str) -> None:
        """A word to the user before the first message; over pipes, stdout is for answers."""
        out = sys.stdout if self.at_terminal else sys.stderr
        print(wrapped(text, out), file=out, flush=True)

    def keep(self) -> None:
        """Save the messages of a session, once there are some."""
        if self.session and (self.conversation.messages or self.session.is_kept):
            try:
                self.session.save_messages(self.conversation, self.model)
                self.unsaved = ""
            except LocalossError as error:
                if str(error) != self.unsaved:  # once: each message tries it anew
                    self.unsaved = str(error)
                    say(f"error: {error}")

    def leave_session(self) -> None:
        """Close the session; at a terminal, say how to go on with it."""
        if self.session:
            is_kept, name = self.session.is_kept, self.session.name
            self.session.close()
            if is_kept and self.at_terminal:
                say(f"(kept as session {name}: `localoss chat --session {name}` goes on)")
            self.session = None

    @property
    def model(self) -> str:
        """The name that opens this model again."""
        return name_of(self.folder)

    def count(self) -> None:
        """Count the tokens of the conversation anew."""
        self.used_tokens = len(self.conversation.tokens())

    @property
    def title(self) -> str:
        """Model and effort, and the server that has it."""
        where = f" · at {self.server}" if self.server else ""
        return f"{self.folder.resolve().name} · effort {self.conversation.setup.effort}{where}"

    def status(self, turn: "Turn | None" = None) -> str:
        """Model, effort, context in use and speed, in one line."""
        if not self.start.done.done():
            return f"{self.title} · {self.start.status}"
        used, speed = self.used_tokens, 0.0
        if turn:
            used, speed = len(turn.prompt) + turn.generated_tokens, turn.decode_tokens_per_s
        elif self.turns:
            speed = self.turns[-1].decode_tokens_per_s
        text = f"{self.title} · {used:,} of {self.engine.context_tokens:,} tokens"
        return f"{text} · {speed:.1f} tokens/s" if speed else text

    def choices(self) -> str:
        """What a user can do about a full context."""
        return "/clear begins anew, /undo takes the last exchange back, /trim leaves the oldest messages out"

    def trim(self) -> int:
        """Leave out the oldest messages until there is room for some turns; how many went."""
        room = self.engine.context_tokens
        count = self.conversation.leave_out_oldest(lambda tokens: tokens <= _TRIMMED_SHARE * room)
        self.count()
        return count

    def _sampling(self) -> SamplingParams:
        """The options; with a seed, every attempt at the same answer has one of its own."""
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=seed + self._attempts)

    def _fitting_prompt(self) -> list[int]:
        room = self.engine.context_tokens
        if self.trims and len(self.conversation.tokens()) > _TRIM_SHARE * room and self.trim():
            say(f"(--trim oldest: the model no longer sees the {self.conversation.left_out} oldest messages)")
        prompt = self.conversation.tokens()
        if len(prompt) >= room:
            alone = len(Conversation(self.conversation.setup, self.conversation.messages[-1:]).tokens())
            remedy = self.choices()
            if alone >= room:
                remedy = (
                    f"your message alone has {alone:,}; send less of it, or begin with a larger --context"
                )
            raise ContextFullError(
                f"the conversation has {len(prompt):,} tokens with your message, and the context holds "
                f"{room:,}: {remedy}"
            )
        return prompt

    @contextmanager
    def _display(self, turn: "Turn") -> Iterator[tuple[Progress, Shows, Callable[[], None]]]:
        if self.at_terminal and settings.escape_codes():
            from localoss.cli.chat.markdown import make_renderer
            from localoss.cli.chat.screen import TurnScreen

            engine = self.engine
            pass_size = engine.pass_tokens, engine.chunk_tokens, engine.config.layers
            renderer, out = make_renderer(), sys.stdout
            screen = TurnScreen(out, renderer, turn, lambda: self.status(turn), self.show_thinking, pass_size)
            with typing_waits():
                try:
                    yield screen.prefill, screen.show, screen.tick
                finally:
                    screen.close()
        else:
            thoughts = sys.stdout if self.at_terminal and self.show_thinking else None
            printer = AnswerPrinter(sys.stdout, thoughts, dims=False)
            try:
                yield PlainProgress(self.at_terminal), printer.show, lambda: None
            finally:
                printer.close()

    def _explain(self, turn: "Turn") -> None:
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
