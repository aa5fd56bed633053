"""A model that loads on a thread of its own, while its user types already."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

from localoss.cli.terminal import StatusLine, say, typing_waits
from localoss.errors import Cancelled

_LOOK_S = 0.1


class Start:
    """Does `work` on a thread. The terminal is the main thread's: what there is to say waits for it.

    work: gets this Start, to `show` what it does and `note` what must be said. As a context it ends the work
    when it is left, at the next thing that is shown.
    """

    def __init__(self, work: Callable[["Start"], None]) -> None:
        self.status = "loading"
        self.done: Future[None] = Future()
        self._notices: list[str] = []
        self._left = False
        self._thread = threading.Thread(target=self._run, args=(work,), name="loading")

    def __enter__(self) -> "Start":
        self.done.set_running_or_notify_cancel()  # from now on nobody can cancel it
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        self._thread.join()

    @property
    def failed(self) -> bool:
        return self.done.done() and self.done.exception() is not None

    def show(self, what: str) -> None:
        """Note what takes time just now. Raises: Cancelled if nobody waits for it any more."""
        if self._left:
            raise Cancelled("left")
        self.status = what

    def note(self, line: str) -> None:
        """Have `line` said when the main thread can."""
        self._notices.append(line)

    def say_notices(self) -> None:
        while self._notices:
            say(self._notices.pop(0))

    def wait(self) -> None:
        """Until the work is done, telling about it meanwhile. Raises: what it raised."""
        if not self.done.done():
            with typing_waits():
                self._show_until_done()
        self.say_notices()
        self.done.result()

    def _show_until_done(self) -> None:
        line = StatusLine()
        try:
            while not wait([self.done], _LOOK_S).done:
                line.show(self.status)
        finally:
            line.clear()

    def _run(self, work: Callable[["Start"], None]) -> None:
        try:
            work(self)
        except BaseException as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
