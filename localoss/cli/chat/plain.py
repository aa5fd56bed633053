"""What a terminal that takes no codes is told while a prompt is read."""

from localoss.cli.terminal import say


class PlainProgress:
    """Says once that a prompt is long, to a terminal that takes no codes."""

    def __init__(self, at_terminal: bool) -> None:
        self._quiet = not at_terminal

    def __call__(self, done: int, total: int) -> None:
        if not self._quiet and total - done > 1000:
            say(f"(reading the prompt: {total - done:,} tokens; Ctrl-C stops)")
        self._quiet = True
