"""The other ways that a conversation went: kept where a question was edited or an answer made anew.

Where ways part, each has a rank, from 0 in the order they were made. Branches hold all but the one that the
conversation goes, so that its own rank is the one that is left.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from localoss.chat.conversation import Branch, Conversation
from localoss.errors import UsageError

Place = tuple[int, bool]  # a Branch's exchange and is_answer, which sort as the conversation goes


def part(conversation: Conversation, exchange: int, is_answer: bool) -> None:
    """Keep what follows the place as a branch, and end the conversation there: what comes next is another.

    exchange: number of a user's message. is_answer: whether that message stays. Raises: UsageError if there
    is no such message.
    """
    start, place = _start(conversation, exchange, is_answer), (exchange, is_answer)
    tail = conversation.messages[start:]
    further = [one for one in conversation.branches if _place(one) > place]
    others = [one for one in conversation.branches if _place(one) <= place]
    if tail:
        others.append(Branch(exchange, is_answer, rank(conversation, place), tail, further))
    conversation.messages = conversation.messages[:start]
    conversation.branches = others
    conversation.left_out = min(conversation.left_out, start)


@contextmanager
def another_way(conversation: Conversation, exchange: int, is_answer: bool) -> Iterator[None]:
    """What is said meanwhile is another way from the place on; if nothing is, it goes on as before."""
    before = rank(conversation, (exchange, is_answer))
    had_messages = _start(conversation, exchange, is_answer) < len(conversation.messages)
    part(conversation, exchange, is_answer)
    start = len(conversation.messages)
    try:
        yield
    finally:
        if had_messages and len(conversation.messages) <= start:
            choose(conversation, exchange, is_answer, before)


def choose(conversation: Conversation, exchange: int, is_answer: bool, wanted: int) -> None:
    """Go on with the way of rank `wanted` at a place. Raises: UsageError if there is none."""
    place = (exchange, is_answer)
    mine = rank(conversation, place)
    chosen = [one for one in conversation.branches if _place(one) == place and one.rank == wanted]
    if wanted == mine:
        return
    if not chosen:
        raise UsageError(f"the conversation has no version {wanted + 1} there")
    is_empty = _start(conversation, exchange, is_answer) == len(conversation.messages)
    part(conversation, exchange, is_answer)
    conversation.messages += chosen[0].messages
    conversation.branches = [one for one in conversation.branches if one is not chosen[0]]
    if is_empty:  # a way without messages is none: the ranks above it close up
        for one in conversation.branches:
            if _place(one) == place and one.rank > mine:
                one.rank -= 1
    conversation.branches += chosen[0].branches


def rank(conversation: Conversation, place: Place) -> int:
    """The rank of the way that the conversation goes at `place`: the least that no branch has."""
    taken = {one.rank for one in conversation.branches if _place(one) == place}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def ways(conversation: Conversation, place: Place) -> int:
    """How many ways there are at `place`."""
    return 1 + sum(_place(one) == place for one in conversation.branches)


def _start(conversation: Conversation, exchange: int, is_answer: bool) -> int:
    asked = [index for index, message in enumerate(conversation.messages) if message.role == "user"]
    if exchange == len(asked) and not is_answer:
        return len(conversation.messages)
    if not 0 <= exchange < len(asked):
        raise UsageError(f"the conversation has {len(asked)} questions, and no number {exchange + 1}")
    return asked[exchange] + is_answer


def _place(branch: Branch) -> Place:
    return branch.exchange, branch.is_answer
