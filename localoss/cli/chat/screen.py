"""One turn at a terminal: progress of the prefill, thinking that folds away, the answer as Markdown."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO, cast

from localoss.chat.parser import Event, MessageEnd, MessageStart, TextDelta
from localoss.cli.chat.markdown import Piece, Renderer, make_renderer, split_code, split_finished
from localoss.cli.chat.region import Region
from localoss.cli.terminal import printable

if TYPE_CHECKING:
    from localoss.chat.turn import Turn

_THINKING_LINES = 8  # how much of a thought is shown while it grows
_FRAME_S = 0.04
_BAR_CELLS = 24
_BAR_AFTER_S = 0.3
_KEPT_CHARACTERS = 4000  # of a thought: more than its shown lines have


def print_answer(out: TextIO, text: str) -> None:
    """Leave a whole answer as a turn leaves it: Markdown in which long lines of code stay whole."""
    region, renderer = Region(out), make_renderer()
    finished, last = split_finished(text)
    lines: list[str] = []
    for piece in [*finished, last]:
        drawn = renderer.markdown(piece.text, region.width, wraps_code=False)
        lines += [""] * bool(lines and drawn and not piece.goes_on) + drawn
    region.update([], lines)


class TurnScreen:
    """Shows a turn's events. Finished text is left as plain scrollback, what can still change is redrawn.

    status: one line about the turn so far, shown below everything else. show_thinking False: a thought is
    only counted, and leaves nothing behind.
    """

    def __init__(
        self,
        out: TextIO,
        renderer: Renderer,
        turn: "Turn",
        status: Callable[[], str],
        show_thinking: bool,
        pass_size: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        """pass_size: how many tokens of a prompt a pass takes at most, in chunks of how many, through how
        many layers.
        """
        self._pass_tokens, self._chunk_tokens, self._layers = pass_size
        self._region, self._renderer = Region(out), renderer
        self._turn, self._status, self._show_thinking = turn, status, show_thinking
        self._thinking = False
        self._calling = ""  # the tool that is called by the open message
        self._thought = ""  # the end of the open thought
        self._thought_began = (0.0, 0)  # time, and thinking tokens before it
        self._source, self._goes_on = "", False  # the part of the answer that isn't printed yet
        self._is_first = True  # nothing of the answer is printed yet
        self._read, self._cached = (0, 0), cast("int | None", None)  # of the prompt; what was there before
        self._layers_run = 0  # of the chunk that is being read
        self._begun = time.monotonic()
        self._next_frame = 0.0

    def prefill(self, done: int, total: int) -> None:
        """Note how much of the prompt has been read."""
        if self._cached is None:
            self._cached = done  # it is no work
        self._read, self._layers_run = (done, total), 0
        if done >= total:
            self._region.clear()

    def tick(self) -> None:
        """To be called before each layer: while the prompt is read, it draws how far that is."""
        done, total = self._read
        elapsed_s = time.monotonic() - self._begun
        if done < total and elapsed_s > _BAR_AFTER_S and self._is_time():
            tokens = min(self._pass_tokens, total - done)
            steps = self._layers * -(-tokens // self._chunk_tokens)
            done += tokens * min(self._layers_run, steps) // steps
            self._draw([self._bar(done, total, (done - (self._cached or 0)) / elapsed_s)])
        self._layers_run += 1

    def show(self, event: Event) -> None:
        if isinstance(event, MessageStart):
            self._start(event.channel == "analysis", event.recipient)
        elif isinstance(event, TextDelta):
            self._add(printable(event.text))
        elif isinstance(event, MessageEnd):
            self._end()

    def close(self) -> None:
        """Leave the terminal tidy, also after an answer that broke off."""
        self._end()

    def _bar(self, done: int, total: int, tokens_per_s: float) -> str:
        """As much of it as there is room for."""
        filled = round(_BAR_CELLS * done / total)
        bar = f"{'█' * filled}{'░' * (_BAR_CELLS - filled)}"
        counts = f"{done:,} of {total:,} tokens"
        if tokens_per_s:
            counts += f" · {tokens_per_s:,.1f} tokens/s"
        short = bar[:: _BAR_CELLS // 8]
        forms = f"reading {bar} {counts} · Ctrl-C stops", f"reading {short} {counts}", counts
        return self._dim(next((form for form in forms if len(form) <= self._region.width), counts))

    # Messages

    def _start(self, is_thought: bool, recipient: str | None) -> None:
        self._calling = (recipient or "").removeprefix("functions.")
        self._thinking, self._thought = is_thought or bool(recipient), ""
        self._thought_began = time.monotonic(), self._turn.thinking_tokens
        self._draw_if_time()

    def _add(self, text: str) -> None:
        if self._thinking:
            self._thought = (self._thought + text)[-_KEPT_CHARACTERS:]
        else:
            self._source += text
        self._draw_if_time()

    def _end(self) -> None:
        """Print what is left of the open message and take everything else away."""
        if self._thinking:
            leaves = (
                self._show_thinking and self._thought and not self._calling
            )  # a call gets a line once made
            self._region.update([], [self._folded(), ""] if leaves else [])
        else:
            finished, last = split_finished(self._source, self._goes_on)
            self._region.update([], [line for piece in [*finished, last] for line in self._piece(piece)])
            self._source, self._goes_on = "", False
        self._thinking = False

    # Drawing

    def _draw_if_time(self) -> None:
        if not self._is_time():
            return
        started = time.monotonic()
        if self._thinking:
            self._draw(self._open_thought())
        else:
            self._draw_answer()
        # Drawing takes a tenth of the time at most, whatever the length of a block.
        self._next_frame = max(self._next_frame, time.monotonic() + 9 * (time.monotonic() - started))

    def _draw_answer(self) -> None:
        finished, last = split_finished(self._source, self._goes_on)
        head, last = split_code(last, self._region.height - 2)
        printed = [line for piece in [*finished, *head] for line in self._piece(piece)]
        self._source, self._goes_on = last.text, last.goes_on
        was_first = self._is_first
        open_lines = self._piece(last, is_open=True)
        self._is_first = was_first  # the open piece is not printed
        self._draw(open_lines, printed)

    def _piece(self, piece: Piece, is_open: bool = False) -> list[str]:
        """A piece's lines, a blank one before them unless they go on from the lines above."""
        lines = self._renderer.markdown(piece.text, self._region.width, wraps_code=is_open)
        if not lines:
            return []
        blank = [] if self._is_first or piece.goes_on else [""]
        self._is_first = False
        return blank + lines

    def _open_thought(self) -> list[str]:
        if not self._show_thinking and not self._calling:
            return [self._dim(f"thinking: {self._turn.thinking_tokens:,} tokens")]
        lines = self._renderer.plain(self._thought, self._region.width, "dim")
        room = min(_THINKING_LINES, max(self._region.height - 3, 1))
        what = f"calling {self._calling}" if self._calling else "thinking"
        rule = f"── {what} ".ljust(min(self._region.width, 60), "─")
        return [self._dim(rule), *lines[-room:]]

    def _folded(self) -> str:
        began, tokens = self._thought_began
        tokens = self._turn.thinking_tokens - tokens
        return self._dim(f"▸ thought for {time.monotonic() - began:.1f} s, {tokens:,} tokens")

    def _draw(self, lines: list[str], printed: list[str] | None = None) -> None:
        self._region.update([*lines, self._dim(self._status())], printed or [])

    def _dim(self, text: str) -> str:
        lines = self._renderer.plain(text, self._region.width, "dim")
        return lines[0] if lines else ""

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now < self._next_frame:
            return False
        self._next_frame = now + _FRAME_S
        return True
