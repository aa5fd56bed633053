"""Drafting what comes next from what came before: text that is copied is run several tokens at a time.

It needs no second model, and sizes.lookup_bytes of memory. batch.py checks draft tokens by running them.
"""

from collections.abc import Iterable

from localoss.plan.sizes import MOST_DRAFT_TOKENS

_RUN = 6  # so many last tokens must have come before: fewer come again by chance


class PromptLookup:
    """The tokens of a sequence so far, and the draft tokens that may follow."""

    def __init__(self, tokens: Iterable[int]):
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # the place after each run's last occurrence
        self._draft: list[int] = []  # tokens that are still to come
        self._right = 0  # of the last draft
        self._length = 1
        for token in tokens:
            self._add(token)

    def comes(self, token: int) -> bool:
        """Note the next token of the conversation; whether the last draft had it."""
        self._add(token)
        if not self._draft:
            return False
        if self._draft.pop(0) == token:
            self._right += 1
            if not self._draft:
                self._length = min(2 * self._length + 1, MOST_DRAFT_TOKENS)
            return True
        self._draft, self._length = [], max(self._right, 1)
        return False

    def next(self, most: int) -> list[int]:
        """What followed when the last tokens came before: up to `most` tokens, none if they never did."""
        place, self._right = self._place, 0
        self._draft = self._tokens[place : place + min(self._length, most)] if place else []
        return list(self._draft)

    def _add(self, token: int) -> None:
        self._tokens.append(token)
        run = tuple(self._tokens[-_RUN:])
        self._place = self._places.get(run)  # of this run before now
        self._places[run] = len(self._tokens)
