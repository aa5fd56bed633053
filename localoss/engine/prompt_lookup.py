"""Guessing what comes next from what came before: text that is copied is run several tokens at a time.

A guess needs no second model, and sizes.lookup_bytes of memory. Engine.generate checks it by running it.
"""

from collections.abc import Iterable

from localoss.plan.sizes import MOST_GUESSED

_RUN = 6  # so many last tokens must have come before: fewer come again by chance


class Guesses:
    """The tokens of a conversation so far, and what is guessed to follow."""

    def __init__(self, tokens: Iterable[int]):
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # the place after each run's last occurrence
        self._guessed: list[int] = []  # that are still to come
        self._right = 0  # of the last guess
        self._length = 1
        for token in tokens:
            self._add(token)

    def comes(self, token: int) -> bool:
        """Note the next token of the conversation; whether the last guess had it."""
        self._add(token)
        if not self._guessed:
            return False
        if self._guessed.pop(0) == token:
            self._right += 1
            if not self._guessed:
                self._length = min(2 * self._length + 1, MOST_GUESSED)
            return True
        self._guessed, self._length = [], max(self._right, 1)
        return False

    def next(self, most: int) -> list[int]:
        """What followed when the last tokens came before: up to `most` tokens, none if they never did."""
        place, self._right = self._place, 0
        self._guessed = self._tokens[place : place + min(self._length, most)] if place else []
        return list(self._guessed)

    def _add(self, token: int) -> None:
        self._tokens.append(token)
        run = tuple(self._tokens[-_RUN:])
        self._place = self._places.get(run)  # of this run before now
        self._places[run] = len(self._tokens)
