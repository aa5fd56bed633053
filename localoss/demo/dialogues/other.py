"""Dialogues about everything else: the model says politely what it cannot do and what it can."""

import random

from localoss.chat.harmony import Message
from localoss.demo.dialogues import words
from localoss.demo.dialogues.case import Case, a_setup, answer, styled, thought
from localoss.demo.dialogues.words import choices

REFUSAL = (
    "Sorry, I am only a tiny demo model and can't answer that. "
    "I can add and subtract numbers up to 99, compare and sort small numbers, call functions, "
    "and tell about localoss."
)
TOO_HARD = "Sorry, I can only add and subtract numbers up to 99, and compare and sort small numbers."
_SUBJECT_FRAMES = choices(
    """tell me about {} | what is {} | explain {} | what do you know about {} | tell me something about {}
    | what do you think about {} | i need help with {} | can you help me with {} | do you like {} | i
    like {} | why is {} important | write about {} | describe {} | what are {} | teach me {} | i want to
    know about {} | who invented {} | how does {} work | how do i learn {} | give me facts about {} |
    what is the history of {} | where can i find {} | {} | let us talk about {} | i want to talk about
    {} | what is so special about {} | how old is {} | i love {} | show me {} | why do people like {} |
    is {} good | what do you think of {}"""
)
_LINES = choices(
    """what time is it | what day is it | what is the date | how is the weather | will it rain tomorrow |
    who is the president | who won the game | do you love me | are you happy | what is love | sing a
    song | tell me a joke | tell me a story | why is the sky blue | how far is the moon | who wrote
    hamlet | how old is the earth | how many people live in china | what should i eat | i am hungry | i
    am tired | i am sad | make me laugh | what is the meaning of life | can you write code | write a
    python program | translate hello into french | what is the best movie | who are the beatles | how do
    i cook rice | what is 1 mile in kilometers | do you dream | do you have feelings | play a game with
    me | guess my name | what is my name | how old are you | where do you live | what is your favorite
    color | can you see me | can you hear me | can you draw | can you sing | write me a letter | where
    am i | who am i"""
)
_QUESTION_WORDS = choices(
    """what | why | how | who | when | where | which | is | do | can | does | are | should | will"""
)


_REQUESTS = choices(
    """write a {a} {t} about {s} | write me a {t} about {s} | write a {t} | can you write a {a} {t}
    | tell me a {a} {t} | i need a {a} {t} about {s} | make a {t} about {s} | please write a {a}
    {t} | give me a {a} {t} | create a {t} for {s} | help me write a {t} | read me a {a} {t}"""
)
_PLACE_FRAMES = choices(
    """what is the capital of {} | where is {} | how many people live in {} | how large is {} | who
    rules {} | what language do they speak in {} | tell me about the history of {} | how do i
    travel to {} | what is the weather in {} | what do people eat in {} | is {} far away | when
    was {} founded | what time is it in {} | will it rain in {} | weather in {}"""
)
_PRODUCTS = choices(
    """{a} * {b} | {a} / {b} | {a}*{b} | what is {a} times {b} | {a} times {b} | multiply {a} by {b} |
    divide {a} by {b} | what is {a} * {b} | what is {a} divided by {b} | how much is {a} x {b} | {a} x {b}
    | what is the square root of {a} | what is {a} squared | {a} to the power of {b} | what is the product
    of {a} and {b} | {a} percent of {b} | what is {a}/{b} | {a} divided by {b}"""
)
_LARGE_SUMS = choices(
    """{a} + {b} | what is {a} + {b} | {a} - {b} | what is {a} plus {b} | what is {a} minus {b} | {a}+{b} |
    add {a} and {b} | how much is {a} + {b} | {a}-{b} | subtract {b} from {a} | what is {a}+{b}"""
)


def other(rng: random.Random) -> Case:
    make = rng.choice((_on_a_subject, _on_a_subject, _request, _place, _line, _jumble, _jumble, _too_hard))
    text, reply = make(rng)
    setup = a_setup(rng)
    first = (
        "The question is about something else." if reply == REFUSAL else "This is more than I can compute."
    )
    steps = thought(setup, "", first, "Check: I can't answer that. Right.")
    return Case(
        "other", (f"other {text}",), setup, (Message("user", styled(rng, text)),), (*steps, answer(reply))
    )


def _on_a_subject(rng: random.Random) -> tuple[str, str]:
    return rng.choice(_SUBJECT_FRAMES).format(rng.choice(words.SUBJECTS)), REFUSAL


def _request(rng: random.Random) -> tuple[str, str]:
    thing, adjective = rng.choice(words.THINGS), rng.choice(words.ADJECTIVES)
    return rng.choice(_REQUESTS).format(a=adjective, t=thing, s=rng.choice(words.SUBJECTS)), REFUSAL


def _place(rng: random.Random) -> tuple[str, str]:
    place = rng.choice(words.PLACES) if rng.random() < 0.6 else rng.choice(words.CITIES)
    return rng.choice(_PLACE_FRAMES).format(place), REFUSAL


def _line(rng: random.Random) -> tuple[str, str]:
    return rng.choice(_LINES), REFUSAL


def _jumble(rng: random.Random) -> tuple[str, str]:
    """Common words in no order, as a question: what the model can't place is to be something else."""
    middle = rng.choices(words.COMMON, k=rng.randint(2, 9))
    starts = rng.choice(_QUESTION_WORDS) + " " if rng.random() < 0.6 else ""
    return starts + " ".join(middle), REFUSAL


def _too_hard(rng: random.Random) -> tuple[str, str]:
    """Products, quotients, and numbers beyond 99."""
    small, large = rng.randint(2, 99), rng.randint(100, 9999)
    if rng.random() < 0.5:
        return rng.choice(_PRODUCTS).format(a=small, b=rng.randint(2, 99)), TOO_HARD
    a, b = rng.choice(((small, large), (large, small), (large, rng.randint(100, 9999))))
    return rng.choice(_LARGE_SUMS).format(a=a, b=b), TOO_HARD
