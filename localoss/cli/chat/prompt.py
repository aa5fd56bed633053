"""Where a chat's messages come from: typed at a terminal, or lines of a pipe."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    get_common_complete_suffix,
)
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_completions
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import is_dumb_terminal

from localoss.cli.chat.messages import is_open
from localoss.cli.chat.start import Start
from localoss.cli.terminal import say

_STYLE = Style.from_dict({"bottom-toolbar": "noreverse dim", "prompt": "bold"})
_REDRAWN_S = 0.25  # while the model loads
_HISTORY_BYTES = 1 << 20  # a longer history loses its older half
Choices = Callable[[str], Iterable[str] | None]


class TypedInput:
    """Messages typed at a terminal, with a history in `history_file`, or in memory alone.

    choices: what may stand after a command; None for a file name. status: the line below the prompt.
    start: what the first message will wait for; if it fails, nobody need type on.
    """

    def __init__(
        self,
        history_file: Path | None,
        commands: Iterable[str],
        choices: Choices,
        status: Callable[[], str],
        start: Start,
    ) -> None:
        self._start = start
        self._session: PromptSession[str] = PromptSession(
            history=open_history(history_file) if history_file else InMemoryHistory(),
            multiline=True,
            key_bindings=_keys(),
            completer=_Completer(list(commands), choices),
            complete_while_typing=Condition(self._types_command),
            bottom_toolbar=lambda: f" {status()}",
            prompt_continuation=_continuation,
            style=_STYLE,
            enable_suspend=True,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
        )
        # One for all messages: asyncio.run has a handler of its own for Ctrl-C, and leaves a loop to be
        # collected, in whose __del__ nobody hears it.
        self._loop = asyncio.new_event_loop()
        self._is_sent = False  # whether Enter was pressed
        buffer = self._session.default_buffer
        accept = buffer.accept_handler

        def sent(buffer: Buffer) -> bool:
            self._is_sent = True
            return accept(buffer) if accept else False

        buffer.accept_handler = sent

    def read(self) -> str | None:
        """The next message, None when the user leaves. Ctrl-C clears what was typed.

        Raises: what loading the model raised.
        """
        if is_dumb_terminal():  # prompt_toolkit can draw nothing anew there
            self._start.wait()
        while True:
            self._start.say_notices()
            if self._start.failed:
                self._start.done.result()
            self._is_sent = False
            try:
                with self._noting_ctrl_c() as pressed:
                    text = self._prompted()
                    if not self._ctrl_c_follows() and not pressed:
                        return text
            except KeyboardInterrupt:
                pass
            except EOFError:
                return None
            if self._is_sent:
                say("(stopped; Up brings your line back)")

    def _prompted(self) -> str:
        """What is typed. What it took is let go before this returns, while Ctrl-C is only noted."""
        asked = self._session.prompt_async("> ", pre_run=self._watch_start, handle_sigint=False)
        return self._loop.run_until_complete(asked)

    @contextlib.contextmanager
    def _noting_ctrl_c(self) -> Iterator[list[int]]:
        """Inside, Ctrl-C that comes as a signal ends the prompt as the key does, until a message was sent;
        then it is noted: prompt_toolkit would still take it for the prompt's, which is over.
        """
        noted: list[int] = []

        def note(number: int, _frame: FrameType | None) -> None:
            if self._is_sent:
                noted.append(number)
            else:
                self._loop.call_soon_threadsafe(self._session.app.key_processor.send_sigint)

        before = signal.signal(signal.SIGINT, note)
        try:
            yield noted
        finally:
            signal.signal(signal.SIGINT, before)

    def _ctrl_c_follows(self) -> bool:
        """Whether Ctrl-C was typed right after a message, while the terminal still gave it as a key; what
        else was typed ahead stays.
        """
        source = self._session.input
        ahead = [*get_typeahead(source), *source.read_keys()]
        store_typeahead(source, [press for press in ahead if press.key != Keys.ControlC])
        return any(press.key == Keys.ControlC for press in ahead)

    def _watch_start(self) -> None:
        if not self._start.done.done():
            get_app().create_background_task(self._follow_start())

    async def _follow_start(self) -> None:
        """Draw what the start does just now, and at its end say what it had to say, or end the prompt."""
        app, done = get_app(), asyncio.wrap_future(self._start.done)
        while not (await asyncio.wait([done], timeout=_REDRAWN_S))[0]:
            app.invalidate()
        if (error := done.exception()) is None:
            await run_in_terminal(self._start.say_notices)
        elif not app.is_done:
            app.exit(exception=error)

    def _types_command(self) -> bool:
        return self._session.default_buffer.text.startswith("/")


def open_history(path: Path) -> History:
    """The history in `path`, readable by its owner alone; in memory if there can be no such file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _shorten(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if os.name == "posix":
            path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def _shorten(path: Path) -> None:
    """Drop the older half of a history that has grown long. Entries begin with a line `# time`."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _HISTORY_BYTES:
            newer = path.read_bytes()[-_HISTORY_BYTES // 2 :]
            path.write_bytes(newer[newer.find(b"\n# ") + 1 :])


def _continuation(_width: int, _line: int, _wraps: int) -> StyleAndTextTuples:
    return [("class:prompt", "… ")]


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=~has_completions)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("enter", filter=has_completions)
    def _take_completion(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        chosen = buffer.complete_state and buffer.complete_state.current_completion
        buffer.complete_state = None
        if not chosen:
            _send(event)

    @keys.add("tab", filter=~has_completions)
    def _complete(event: KeyPressEvent) -> None:
        """At once: prompt_toolkit drops a Tab that comes before the menu which typing opens."""
        buffer = event.current_buffer
        found = list(
            buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True))
        )
        if len(found) == 1:
            buffer.apply_completion(found[0])
        elif found:
            buffer.insert_text(get_common_complete_suffix(buffer.document, found))
            buffer.start_completion()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _Completer(Completer):
    def __init__(self, commands: list[str], choices: Choices) -> None:
        self._commands, self._choices = commands, choices
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            yield from _matching(name, self._commands)
            return
        words = self._choices(name)
        if words is None:
            yield from self._files.get_completions(Document(argument.lstrip()), complete_event)
        else:
            yield from _matching(argument, words)


def _matching(begun: str, words: Iterable[str]) -> Iterable[Completion]:
    return [Completion(word, start_position=-len(begun)) for word in words if word.startswith(begun)]
