"""A terminal for a program: its keyboard is a pseudo-terminal's, its screen is pyte's."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pexpect
import pyte

from support import forked

SCRIPTED = "scripted.py"
TESTS = Path(__file__).parent.parent
_QUIET_S = 0.15
FINAL = "<|channel|>final<|message|>"
TURN = "<|end|><|start|>assistant" + FINAL


def thinking(thought, answer, ending="<|return|>"):
    return "<|channel|>analysis<|message|>" + thought + TURN + answer + ending


class _Screen(pyte.HistoryScreen):
    """A screen that answers when it is asked where its cursor is."""

    def __init__(self, columns, lines):
        super().__init__(columns, lines, history=5000, ratio=0.5)
        self.answer = lambda data: None

    def write_process_input(self, data):
        self.answer(data)


class Terminal:
    """Runs `command`, or scripted.py if that is its first word. Its size is in columns and lines.

    `seen` keeps every byte that came.
    """

    def __init__(self, command, columns=100, lines=30, variables=()):
        environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "TERM": "xterm-256color"}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):  # the last two come from pytest-xdist
            environment.pop(name, None)
        environment |= dict(variables)
        if command[0] == SCRIPTED:
            self.child = forked.Spawned(command[1:], environment, (lines, columns), timeout=20)
        else:
            self.child = pexpect.spawn(
                command[0],
                command[1:],
                env=environment,
                timeout=20,
                dimensions=(lines, columns),
                # As a terminal does, even if the tests themselves were started where Ctrl-C is ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.child.delaybeforesend = None
        self._screen = _Screen(columns, lines)
        self._screen.answer = self.child.send
        self._stream = pyte.ByteStream(self._screen)
        self.seen = b""

    def type(self, text):
        self.child.send(text)

    def paste(self, text):
        self.child.send("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

    def resize(self, columns, lines):
        self.child.setwinsize(lines, columns)
        self._screen.resize(lines, columns)

    def take(self, timeout_s=0.05):
        """Show what the program has written meanwhile. False at its end."""
        try:
            data = self.child.read_nonblocking(1 << 16, timeout_s)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.seen += data
        self._stream.feed(data)
        return True

    def wait_for(self, *texts, timeout_s=30, where=None):
        """Until all of `texts` stand on the screen or above it."""
        ends = time.monotonic() + timeout_s
        look = where or self.everything
        while not all(text in look() for text in texts):
            assert time.monotonic() < ends, f"no {texts} in\n{self.everything()}"
            assert self.take() or all(text in look() for text in texts), f"ended:\n{self.everything()}"
        return self

    def wait_for_prompt(self):
        """Until the program waits for a message, and has written all that it will."""
        self.wait_for("> ", where=lambda: self.line() + " ", timeout_s=60)
        self.settle()

    def settle(self, quiet_s=_QUIET_S):
        before = None
        while before != len(self.seen):
            before = len(self.seen)
            self.take(quiet_s)

    def wait_for_end(self, timeout_s=20):
        ends = time.monotonic() + timeout_s
        while self.take():
            assert time.monotonic() < ends, self.everything()
        self.child.close()
        return self.child.exitstatus

    def line(self):
        """The line of the cursor."""
        return self._screen.display[self._screen.cursor.y].rstrip()

    def screen(self):
        return [line.rstrip() for line in self._screen.display]

    def status(self):
        """The last line of the screen."""
        return self.screen()[-1]

    def everything(self):
        """Scrollback and screen."""
        columns = self._screen.columns
        above = [
            "".join(row[x].data for x in range(max(row, default=-1) + 1)).rstrip()
            if max(row, default=-1) >= columns
            else "".join(row[x].data for x in range(columns)).rstrip()
            for row in self._screen.history.top
        ]
        return "\n".join([*above, *self.screen()])

    def style_at(self, text):
        """The attributes of the first character of `text` on the screen."""
        for y, line in enumerate(self._screen.display):
            if text in line:
                return self._screen.buffer[y][line.index(text)]
        raise AssertionError(f"no {text!r} in\n{self.everything()}")

    def close(self):
        with contextlib.suppress(pexpect.ExceptionPexpect):  # a busy machine takes longer to kill it
            self.child.close(force=True)


def scripted_chat(folder, *arguments, columns=100, lines=30, variables=(), **script):
    """`localoss chat tiny` on a scripted engine, whose data folder is `folder`."""
    (folder / "models" / "tiny").mkdir(parents=True, exist_ok=True)
    (folder / "models" / "tiny" / "localoss.json").touch()
    path = folder / "script.json"
    path.write_text(json.dumps(script))
    return Terminal(
        [SCRIPTED, str(path), "chat", "tiny", *arguments],
        columns,
        lines,
        {"LOCALOSS_HOME": str(folder)} | dict(variables),
    )


def reflowed(screen, columns):
    """Make `screen`, a pyte.HistoryScreen, narrower or wider as VTE, kitty and tmux do: lines wrap anew.

    A row whose last column is written goes on in the next one. The cursor stays at its character.
    """
    before, cursor = screen.columns, screen.cursor
    history = list(screen.history.top)
    last = max([cursor.y, *(y for y, line in enumerate(screen.display) if line.strip())])
    rows = [
        [row[x] for x in range(before)] for row in [*history, *(screen.buffer[y] for y in range(last + 1))]
    ]
    lines, at = [[]], (0, 0)
    for number, row in enumerate(rows):
        if number == len(history) + cursor.y:
            at = (len(lines) - 1, len(lines[-1]) + cursor.x)
        goes_on = row[-1].data not in (" ", "") or (row[-1].data == "" and row[-2].data.strip())
        end = before if goes_on else max((x + 1 for x, cell in enumerate(row) if cell.data != " "), default=0)
        lines[-1] += row[:end]
        if not goes_on:
            lines.append([])
    laid_out, place = [], (0, 0)
    for number, line in enumerate(lines[:-1] if lines[-1] == [] else lines):
        start, starts = 0, [0]
        while len(line) - start > columns:
            start += columns - (line[start + columns].data == "")  # a wide character isn't cut in two
            starts.append(start)
        if number == at[0]:
            row = max(index for index, begin in enumerate(starts) if begin <= at[1])
            place = (len(laid_out) + row, at[1] - starts[row])
        laid_out += [line[begin:end] for begin, end in zip(starts, [*starts[1:], len(line)], strict=True)]
    screen.resize(screen.lines, columns)
    screen.history.top.clear()
    above = max(len(laid_out) - screen.lines, 0)
    blank = screen.default_char
    for number, row in enumerate(laid_out):
        cells = pyte.screens.StaticDefaultDict(blank)
        cells.update(enumerate(row))
        if number < above:
            screen.history.top.append(cells)
        else:
            screen.buffer[number - above] = cells
    for y in range(len(laid_out) - above, screen.lines):
        screen.buffer[y] = pyte.screens.StaticDefaultDict(blank)
    cursor.y, cursor.x = max(place[0] - above, 0), min(place[1], columns - 1)


def logged(tmp_path):
    """What the engine was asked, prompt after prompt."""
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
