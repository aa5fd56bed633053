"""What a program writes, bounded: its beginning and its end, however much it is."""

from collections import deque

_HALF_CHARS = 200_000  # far more than a result may have


class Output:
    """Takes text as it comes, and keeps its beginning and its end."""

    def __init__(self, half_chars: int = _HALF_CHARS) -> None:
        self._half = half_chars
        self._head: list[str] = []
        self._head_chars = 0
        self._tail: deque[str] = deque()
        self._tail_chars = 0
        self.chars = 0  # of all

    def write(self, text: str) -> None:
        self.chars += len(text)
        room = self._half - self._head_chars
        if room > 0:
            self._head.append(text[:room])
            self._head_chars += len(text[:room])
            text = text[room:]
        if text:
            self._tail.append(text[-self._half :])
            self._tail_chars += len(self._tail[-1])
            while self._tail_chars - len(self._tail[0]) >= self._half:
                self._tail_chars -= len(self._tail.popleft())

    def __str__(self) -> str:
        left_out = self.chars - self._head_chars - self._tail_chars
        head, tail = "".join(self._head), "".join(self._tail)
        return f"{head}\n[… {left_out:,} characters left out …]\n{tail}" if left_out else head + tail
