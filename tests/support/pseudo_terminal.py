"""A terminal for a program: its keyboard is a pseudo-terminal's, its screen is pyte's."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pexpect
import pyte

TESTS = Path(__file__).parent.parent
_QUIET_S = 0.15


class _Screen(pyte.HistoryScreen):
    """A screen that answers when it is asked where its cursor is."""

    def __init__(self, columns, lines):
        super().__init__(columns, lines, history=5000, ratio=0.5)
        self.answer = lambda data: None

    def write_process_input(self, data):
        self.answer(data)


class Terminal:
    """Runs `command`; its size is in columns and lines. `seen` keeps every byte that came."""

    def __init__(self, command, columns=100, lines=30, variables=()):
        environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "TERM": "xterm-256color"}
        environment |= {"XTERM_VERSION": "XTerm(380)"}  # pyte doesn't reflow lines either
        environment.pop("NO_COLOR", None)
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            env=environment | dict(variables),
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
    command = [sys.executable, str(TESTS / "support" / "scripted.py"), str(path), "chat", "tiny", *arguments]
    return Terminal(command, columns, lines, {"LOCALOSS_HOME": str(folder)} | dict(variables))
