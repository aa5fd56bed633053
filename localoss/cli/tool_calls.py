"""Tools at a terminal: questions before calls, the line that each leaves, and opening what was asked for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

from localoss import settings
from localoss.cli.terminal import interrupts, printable, raising_interrupts, say, typing_shows, typing_waits
from localoss.tools.choice import ToolOptions

if TYPE_CHECKING:
    from localoss.chat.agent import CallDone, CallEvent
    from localoss.tools.approval import Question
    from localoss.tools.toolset import Toolset

_MOST_SHOWN = 60  # characters of what a call asks, and of what it gave
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
Said = Literal["yes", "no", "always", "never"]


def opened_tools(options: ToolOptions) -> "AbstractContextManager[Toolset | None]":
    """The tools that a command was asked for, which ask whoever sits at the terminal; None without any."""
    options.check()
    if not options.wants_any:
        return nullcontext(None)
    from localoss.tools.approval import Approvals
    from localoss.tools.choice import open_tools

    at_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    approvals = Approvals(ask_at_terminal if at_terminal else _nobody, settings.home() / "approvals.json")
    return open_tools(options, approvals, ask_text if at_terminal else None, say)


def _nobody(question: "Question") -> Said:
    say(f"(not carried out, for nobody is here to ask: {question.text})")
    return "no"


def ask_text(question: str) -> str | None:
    """Put `question` to whoever sits at the terminal, and give the line that is typed."""
    try:
        with typing_shows(), raising_interrupts():
            print(question, end="", file=sys.stderr, flush=True)
            return sys.stdin.readline().removesuffix("\n") or None
    except UnicodeDecodeError:
        return None


def ask_at_terminal(question: "Question") -> Said:
    """Show exactly what would run, and ask whether it may."""
    say("The model wants this to run:")
    for line in (
        question.detail.split("\n") if question.detail else ()
    ):  # all of it: what is asked is what runs
        print(f"  {printable(line)}", file=sys.stderr)
    print(f"  {printable(question.text)}", file=sys.stderr)
    typed = (ask_text("May it? [y]es, [N]o, [a]lways, n[e]ver: ") or "").strip().lower()
    words: dict[str, Said] = {"y": "yes", "yes": "yes", "a": "always", "always": "always"}
    return words.get(typed) or ("never" if typed in ("e", "never") else "no")


@contextmanager
def call_interrupts() -> Iterator[Callable[[], bool]]:
    """As `interrupts`, while a call is made: what is typed waits meanwhile, as while the model speaks."""
    with typing_waits(), interrupts() as cancelled:
        yield cancelled


def show_call(event: "CallEvent") -> None:
    """A line on stderr for each call that was made."""
    from localoss.chat.agent import CallDone

    if isinstance(event, CallDone):
        dims = sys.stderr.isatty() and settings.escape_codes()
        say(f"{_DIM}{folded(event)}{_PLAIN}" if dims else folded(event))
        for picture in event.pictures:
            say(f"(picture: {picture})")


def folded(done: "CallDone") -> str:
    """What a call asked and gave, in one line."""
    name = (done.call.recipient or "").removeprefix("functions.")
    gave = "stopped" if done.is_stopped else _short(done.result.text, takes_last=not done.ok)
    mark = "▸" if done.ok else "▹"
    return f"{mark} {name} · {_short(done.call.text)} → {gave} · {done.seconds:.1f} s"


def _short(text: str, takes_last: bool = False) -> str:
    """One line of `text`, and how many more there are. takes_last: an error's last line says what it was."""
    lines = [line for line in printable(text).splitlines() if line.strip()]
    if not lines:
        return "nothing"
    line = " ".join(lines[-1 if takes_last else 0].split())
    line = line if len(line) <= _MOST_SHOWN else f"{line[: _MOST_SHOWN - 1]}…"
    return f"{line} (+{len(lines) - 1} lines)" if len(lines) > 1 and not takes_last else line
