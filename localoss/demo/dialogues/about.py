"""Dialogues about localoss: the topics' questions from parts, and what people ask next."""

import random
from collections.abc import Iterator
from dataclasses import replace

from localoss.chat.harmony import Message
from localoss.demo.dialogues.case import NEVER_TRAINED, Case, a_setup, after, answer, styled, thought
from localoss.demo.dialogues.topics import ASKED, COMMANDS, TOPICS, Topic
from localoss.demo.dialogues.words import choices

_GOAL_FRAMES = choices(
    """how do i {} | how can i {} | how to {} | how do you {} | how would i {} | how could i {} | how does
    one {} | what command lets me {} | which command lets me {} | which command do i use to {} | what is
    the command to {} | which command is there to {} | what do i type to {} | what should i type to {} |
    what do i do to {} | i want to {} | i need to {} | i would like to {} | i'd like to {} | help me {}
    | can you help me {} | tell me how to {} | show me how to {} | explain how to {} | can you tell me
    how to {} | can i {} | could you tell me how to {} | is there a way to {} | is it possible to {} |
    is there a command to {} | can localoss {} | does localoss let me {} | what must i do to {} | what
    is the way to {} | what is the best way to {} | how do i {} with localoss | how can i {} with
    localoss | where can i {} | {} | i want to {}, how | how should i {} | what if i want to {} | i am
    trying to {} | what do i need to {}"""
)
_NAME_FRAMES = choices(
    """what is {} | what's {} | what is {} exactly | tell me about {} | explain {} | describe {} | tell me
    more about {} | what do you know about {} | can you explain {} | can you describe {} | what can you
    tell me about {} | i want to know about {} | give me information about {} | {} | what does {} mean |
    what about {} | and {} | please explain what {} is | tell me what {} is | do you know {} | can you
    tell me what {} is"""
)
_COMMAND_FRAMES = choices(
    """what does {} do | what is {} | what's {} | what is {} for | explain {} | how do i use {} | how does
    {} work | tell me about {} | describe {} | what is {} good for | when do i need {} | when do i use
    {} | {} | why would i use {} | help with {} | can you explain {} | what happens with {} | how to use
    {} | how can i use {} | tell me what {} does | do you know what {} does | what does {} do exactly |
    i want to use {} | explain what {} does | what can i do with {} | show me how to use {} | what is
    the use of {} | and {} | what about {} | and what does {} do"""
)
_COMMAND_NAMES = choices(
    """localoss {} | `localoss {}` | `{}` | the {} command | the command {} | the `{}` command | '{}' | {}
    | "{}" | localoss's {} command"""
)
_EXAMPLES = choices(
    """show me an example | give me an example | can you give me an example | an example please | example |
    for example | what does that look like | how does that look | show me | what exactly do i type |
    what do i type | can you show me an example | do you have an example | i would like an example |
    please give an example | what would i type | can i see an example | let me see an example"""
)
_BEFORE = (
    "",
    "",
    "",
    "",
    "",
    "please ",
    "hi, ",
    "hello, ",
    "hey, ",
    "ok, ",
    "so, ",
    "sorry, ",
    "well, ",
    "now ",
    "hello! ",
)
_AFTER = ("", "", "", "", "", "", "", " please", ", please", " here", " thanks", " now")


def about(rng: random.Random) -> Case:
    """A question about one topic, on its own."""
    # Commands come oftener: there are more ways to ask for them.
    topics = COMMANDS if rng.random() < 0.5 else TOPICS
    name = rng.choice(list(topics))
    return _case(rng, name, *_question(rng, name))


def example(rng: random.Random) -> Case:
    """After a topic's answer, "show me an example"."""
    first = about(rng)
    topic = _topic_of(first)
    asked = rng.choice(_EXAMPLES)
    setup = first.setup
    steps = f"An example for {topic.about}."
    reply = (
        *thought(setup, "", steps, f"Check: it is about {topic.about}. Right."),
        answer(f"`{topic.example}`"),
    )
    case = Case("about", (f"example {asked}",), setup, (Message("user", styled(rng, asked)),), reply)
    return after([first], case)


def questions(name: str) -> Iterator[str]:
    """Every question about the topic, without what may stand before or after it."""
    topic = TOPICS[name]
    yield from topic.lines
    for frames, parts in ((_GOAL_FRAMES, topic.goals), (_NAME_FRAMES, topic.names)):
        yield from (frame.format(part) for frame in frames for part in parts)
    if name in COMMANDS:
        forms = [form.format(name) for form in _COMMAND_NAMES]
        yield from (frame.format(form) for frame in _COMMAND_FRAMES for form in forms)


def asked(rng: random.Random) -> Case:
    """A question as a person would put it, which no generator has parts of."""
    name = rng.choice(list(ASKED))
    text = rng.choice(ASKED[name])
    case = _case(rng, name, text, text)
    return replace(case, skill="asked", keys=(NEVER_TRAINED + text,))


def _question(rng: random.Random, name: str) -> tuple[str, str]:
    """A question about the topic: as it is asked, and in its plain form."""
    topic = TOPICS[name]
    kinds = [(_GOAL_FRAMES, topic.goals)] * 3 + [(_NAME_FRAMES, topic.names)] * 2
    if name in COMMANDS:
        kinds += [(_COMMAND_FRAMES, tuple(form.format(name) for form in _COMMAND_NAMES))] * 3
    kinds += [(("{}",), topic.lines)] * 2
    frames, parts = rng.choice([kind for kind in kinds if kind[1]])
    plain = rng.choice(frames).format(rng.choice(parts))
    if plain in TOPICS["thanks"].lines + TOPICS["bye"].lines + TOPICS["hello"].lines:
        return styled(rng, plain, question=False), plain
    return styled(rng, rng.choice(_BEFORE) + plain + rng.choice(_AFTER)), plain


def _case(rng: random.Random, name: str, text: str, plain: str) -> Case:
    topic, setup = TOPICS[name], a_setup(rng)
    first = f"The question is about {topic.about}."
    known = f"Check: the answer is about {topic.about}. Right."
    reply = (*thought(setup, "", first, known), answer(topic.answer))
    return Case("about", (f"about {plain}",), setup, (Message("user", text),), reply)


def _topic_of(case: Case) -> Topic:
    return next(topic for topic in TOPICS.values() if topic.answer == case.expected)
