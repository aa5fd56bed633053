"""Dialogues about numbers: sums and differences up to 99 with their steps, comparing, sorting."""

import random

from localoss.chat.harmony import Message
from localoss.demo.dialogues.case import Case, a_setup, answer, styled, thought
from localoss.demo.dialogues.words import choices

_SMALL = 20  # up to this, numbers are compared and sorted: a model of this size learns each one's place

_SUMS = choices(
    """{a} + {b} | {a}+{b} | {a} + {b} = | {a}+{b}= | what is {a} + {b} | what is {a}+{b} | what is {a}
    plus {b} | {a} plus {b} | how much is {a} + {b} | how much is {a} plus {b} | add {a} and {b} | add
    {b} to {a} | add {a} + {b} | please add {a} and {b} | can you add {a} and {b} | compute {a} + {b} |
    calculate {a} + {b} | calculate the sum of {a} and {b} | what is the sum of {a} and {b} | give me
    the sum of {a} and {b} | sum {a} and {b} | what do {a} and {b} make | what do you get if you add {a}
    and {b} | tell me {a} + {b} | what does {a} + {b} equal | what's {a} + {b} | what's {a} plus {b} |
    solve {a} + {b} | please compute {a} + {b} | i have {a} {things} and get {b} more, how many {things}
    do i have | {a} {things} and {b} {things}, how many in all | what is the total of {a} and {b} | how
    many are {a} and {b} together | please tell me what {a} + {b} is"""
)
_DIFFERENCES = choices(
    """{a} - {b} | {a}-{b} | {a} - {b} = | {a}-{b}= | what is {a} - {b} | what is {a}-{b} | what is {a}
    minus {b} | {a} minus {b} | how much is {a} - {b} | how much is {a} minus {b} | subtract {b} from
    {a} | please subtract {b} from {a} | can you subtract {b} from {a} | compute {a} - {b} | calculate
    {a} - {b} | take {b} from {a} | take {b} away from {a} | what is left if you take {b} from {a} |
    tell me {a} - {b} | what does {a} - {b} equal | what's {a} - {b} | what's {a} minus {b} | solve {a}
    - {b} | please compute {a} - {b} | what is {a} less {b} | please tell me what {a} - {b} is | i have
    {a} {things} and give away {b}, how many {things} are left"""
)
_THINGS = choices(
    """apples | books | coins | cards | eggs | balls | stones | cats | pens | tickets | cookies | boxes"""
)
_COMPARISONS = {
    "larger": choices(
        """which is larger, {a} or {b} | which number is larger, {a} or {b} | what is larger, {a} or {b} |
        which is bigger, {a} or {b} | which is greater, {a} or {b} | what is more, {a} or {b} | which is
        the larger number, {a} or {b} | compare {a} and {b} | compare {a} with {b} | which is more, {a}
        or {b} | what is the larger of {a} and {b} | the bigger one, {a} or {b} | which number is
        bigger, {a} or {b}"""
    ),
    "smaller": choices(
        """which is smaller, {a} or {b} | which number is smaller, {a} or {b} | which is less, {a} or {b} |
        what is smaller, {a} or {b} | what is less, {a} or {b} | what is the smaller of {a} and {b} |
        which is the smaller number, {a} or {b} | the smaller one, {a} or {b}"""
    ),
    "is larger": choices(
        """is {a} larger than {b} | is {a} greater than {b} | is {a} > {b} | is {a} more than {b} | is {a}
        bigger than {b} | is it true that {a} is larger than {b}"""
    ),
    "is smaller": choices(
        """is {a} smaller than {b} | is {a} less than {b} | is {a} < {b} | is it true that {a} is less than
        {b} | is {a} below {b}"""
    ),
}
_SORTS = choices(
    """sort {list} | sort these numbers: {list} | please sort {list} | put {list} in order | order {list} |
    sort the numbers {list} | can you sort {list} | arrange {list} in order | sort {list} from small to
    large | sort in ascending order: {list} | bring {list} into order | please put these in order:
    {list}"""
)
_EXTREMES = {
    "largest": choices(
        """what is the largest of {list} | which is the largest: {list} | find the largest number: {list} |
        what is the biggest of {list} | what is the largest number: {list}"""
    ),
    "smallest": choices(
        """what is the smallest of {list} | which is the smallest: {list} | find the smallest number:
        {list} | what is the smallest number: {list}"""
    ),
}


def sums(rng: random.Random) -> Case:
    """A sum or a difference of two numbers up to 99, mostly of two digits."""
    a, b = (rng.randint(10, 99) if rng.random() < 0.9 else rng.randint(0, 9) for _ in range(2))
    if rng.random() < 0.55:
        return _sum(rng, a, b)
    if rng.random() < 0.85:
        a, b = max(a, b), min(a, b)
    return _difference(rng, a, b)


def comparing(rng: random.Random) -> Case:
    return rng.choice((comparison, comparison, _sorting, _sorting, _extreme))(rng)


def _sum(rng: random.Random, a: int, b: int) -> Case:
    setup, lines = a_setup(rng), _addition(a, b)
    steps = f"{lines[0]}, carry {_ones(a, b) // 10}. {lines[1]}. Together {a + b}."
    check = f"Check: {', '.join(_subtraction(a + b, b))}, so {a + b}-{b}={a}. Right."
    reply = thought(setup, f"{', '.join(lines)}.", steps, check)
    text = styled(rng, rng.choice(_SUMS).format(a=a, b=b, things=rng.choice(_THINGS)))
    key = f"sum {min(a, b)} {max(a, b)}"
    return Case("sums", (key,), setup, (Message("user", text),), (*reply, answer(f"{a} + {b} = {a + b}")))


def _difference(rng: random.Random, a: int, b: int) -> Case:
    setup = a_setup(rng)
    large, small = max(a, b), min(a, b)
    lines, result = _subtraction(large, small), large - small
    sign = f"{a} is less than {b}: the result is below zero. " if a < b else ""
    borrow = int(large % 10 < small % 10)
    steps = f"{sign}{lines[0]}, borrow {borrow}. {lines[1]}. Left {result}."
    check = f"Check: {', '.join(_addition(result, small))}, so {result}+{small}={large}. Right."
    reply = thought(setup, f"{sign}{', '.join(lines)}.", steps, check)
    text = styled(rng, rng.choice(_DIFFERENCES).format(a=a, b=b, things=rng.choice(_THINGS)))
    shown = f"-{result}" if a < b else f"{result}"
    return Case(
        "sums",
        (f"difference {a} {b}",),
        setup,
        (Message("user", text),),
        (*reply, answer(f"{a} - {b} = {shown}")),
    )


def _ones(a: int, b: int) -> int:
    return a % 10 + b % 10


def _addition(a: int, b: int) -> tuple[str, str]:
    """The lines for the ones and for the tens."""
    ones, carry = _ones(a, b), _ones(a, b) // 10
    return f"{a % 10}+{b % 10}={ones}", f"{a // 10}+{b // 10}+{carry}={a // 10 + b // 10 + carry}"


def _subtraction(a: int, b: int) -> tuple[str, str]:
    """The lines for the ones and for the tens of a - b, a >= b."""
    borrow = int(a % 10 < b % 10)
    ones = a % 10 + 10 * borrow
    return f"{ones}-{b % 10}={ones - b % 10}", f"{a // 10}-{b // 10}-{borrow}={a // 10 - b // 10 - borrow}"


def comparison(rng: random.Random) -> Case:
    """Which of two numbers is larger.

    "Is 3 larger than 5" is answered by "3 is smaller than 5.": a model of this size gets a yes or no wrong.
    """
    setup = a_setup(rng)
    a, b = rng.sample(range(_SMALL + 1), 2)
    kind = rng.choice(list(_COMPARISONS))
    if kind == "larger":
        text = f"{max(a, b)} is larger."
    elif kind == "smaller":
        text = f"{min(a, b)} is smaller."
    else:
        text = f"{a} is {'larger' if a > b else 'smaller'} than {b}."
    check = f"Check: {min(a, b)} is less than {max(a, b)}. Right."
    asked = styled(rng, rng.choice(_COMPARISONS[kind]).format(a=a, b=b))
    key = f"compare {min(a, b)} {max(a, b)}"
    return Case(
        "comparing",
        (key,),
        setup,
        (Message("user", asked),),
        (*thought(setup, "", _ends([a, b]), check), answer(text)),
    )


def _some_numbers(rng: random.Random) -> tuple[list[int], str, str]:
    """Three or four different small numbers, how they are written, and their key."""
    numbers = rng.sample(range(_SMALL + 1), rng.choice((3, 3, 4)))
    written = rng.choice((", ", ", ", " ")).join(map(str, numbers))
    if rng.random() < 0.2:
        head, last = written.rsplit(" ", 1)
        written = f"{head.rstrip(',')} and {last}"
    return numbers, written, f"numbers {sorted(numbers)}"


def _sorting(rng: random.Random) -> Case:
    setup = a_setup(rng)
    numbers, written, key = _some_numbers(rng)
    ordered = sorted(numbers)
    shown = ", ".join(map(str, ordered))
    check = f"In order: {shown}. Check: {ordered[0]} first, {ordered[-1]} last. Right."
    asked = styled(rng, rng.choice(_SORTS).format(list=written), question=False)
    reply = (*thought(setup, "", _ends(numbers), check), answer(shown))
    return Case("comparing", (key,), setup, (Message("user", asked),), reply)


def _extreme(rng: random.Random) -> Case:
    setup = a_setup(rng)
    numbers, written, key = _some_numbers(rng)
    kind = rng.choice(list(_EXTREMES))
    found = max(numbers) if kind == "largest" else min(numbers)
    asked = styled(rng, rng.choice(_EXTREMES[kind]).format(list=written))
    reply = (
        *thought(setup, "", _ends(numbers), f"The {kind} is {found}. Right."),
        answer(f"{found} is the {kind}."),
    )
    return Case("comparing", (key,), setup, (Message("user", asked),), reply)


def _ends(numbers: list[int]) -> str:
    return f"Smallest {min(numbers)}, largest {max(numbers)}."
