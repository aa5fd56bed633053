"""Versions of questions and answers: none is lost, and the terminal and the page mean the same ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localoss.chat import branches, transcript
from localoss.chat.conversation import Conversation
from localoss.chat.harmony import ChatSetup, Message
from localoss.errors import UsageError


def conversation(*texts):
    """Questions and answers in turn."""
    made = Conversation(ChatSetup(date="2026-11-29"))
    for index, text in enumerate(texts):
        add(made, text, is_answer=index % 2 == 1)
    return made


def add(made, text, is_answer):
    if is_answer:
        made.answer([Message("assistant", f"why {text}", "analysis"), Message("assistant", text, "final")])
    else:
        made.ask(text)


def texts(made):
    return [message.text for message in made.messages]


def test_another_answer_keeps_the_first_and_what_followed_it():
    made = conversation("a", "A1", "b", "B1")
    branches.part(made, 0, is_answer=True)
    add(made, "A2", is_answer=True)
    assert texts(made) == ["a", "A2"]
    assert (branches.rank(made, (0, True)), branches.ways(made, (0, True))) == (1, 2)
    branches.choose(made, 0, True, 0)
    assert texts(made) == ["a", "A1", "b", "B1"]
    assert (branches.rank(made, (0, True)), branches.ways(made, (0, True))) == (0, 2)


def test_versions_within_versions_come_back_with_them():
    made = conversation("a", "A", "b", "B1")
    branches.part(made, 1, is_answer=True)
    add(made, "B2", is_answer=True)
    branches.part(made, 0, is_answer=False)
    add(made, "c", is_answer=False)
    assert branches.ways(made, (1, True)) == 1, "those of another question"
    branches.choose(made, 0, False, 0)
    assert texts(made) == ["a", "A", "b", "B2"]
    assert (branches.rank(made, (1, True)), branches.ways(made, (1, True))) == (1, 2)


def test_a_version_without_messages_is_none():
    made = conversation("a", "A1")
    branches.part(made, 0, is_answer=True)
    branches.choose(made, 0, True, 0)
    assert texts(made) == ["a", "A1"] and not made.branches
    with branches.another_way(made, 0, is_answer=True):
        pass
    assert texts(made) == ["a", "A1"] and not made.branches


def test_places_that_there_are_not():
    made = conversation("a", "A")
    for exchange, is_answer in ((1, True), (2, False), (-1, False)):
        with pytest.raises(UsageError, match="1 questions"):
            branches.part(made, exchange, is_answer)
    with pytest.raises(UsageError, match="no version 3"):
        branches.choose(made, 0, True, 2)


def all_ways(made):
    """Every sequence of texts that can be reached, as a set: what is kept, whatever way is gone."""
    found = {tuple(texts(made))}
    prefix = texts(made)

    def walk(before, branch):
        start = _place_in(before, branch)
        path = before[:start] + [message.text for message in branch.messages]
        found.add(tuple(path))
        for inner in branch.branches:
            walk(path, inner)

    for branch in made.branches:
        walk(prefix, branch)
    return found


def _place_in(path, branch):
    asked = [index for index, text in enumerate(path) if text[0] == "q"]
    if branch.exchange == len(asked):
        return len(path)
    return asked[branch.exchange] + branch.is_answer


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "part", "choose", "save"]), st.integers(0, 5), st.booleans()),
    max_size=14,
)


@given(STEPS)
def test_nothing_that_was_said_is_ever_lost(tmp_path_factory, steps):
    made, everything = conversation(), set()
    path = tmp_path_factory.mktemp("branches") / "messages.json"
    for number, (step, place, is_answer) in enumerate(steps):
        exchange = place % max(made.asked, 1)
        if step == "ask":
            add(made, f"q{number}", is_answer=False)
            add(made, f"a{number}", is_answer=True)
        elif step == "part" and made.asked:
            branches.part(made, exchange, is_answer)
            if not is_answer:
                add(made, f"q{number}", is_answer=False)
            add(made, f"a{number}", is_answer=True)
        elif step == "choose" and made.asked:
            ways = branches.ways(made, (exchange, is_answer))
            branches.choose(made, exchange, is_answer, place % ways)
            assert branches.rank(made, (exchange, is_answer)) == place % ways
            assert branches.ways(made, (exchange, is_answer)) == ways
        elif step == "save":
            path.write_bytes(transcript.to_json(made, "demo", keeps_thinking=True))
            made, _ = transcript.read(path)
        everything |= {text for message in made.messages for text in [message.text]}
        reached = {text for way in all_ways(made) for text in way}
        assert reached == everything


def test_a_file_with_bad_branches_is_refused(tmp_path):
    made = conversation("a", "A")
    branches.part(made, 0, is_answer=True)
    document = json.loads(transcript.to_json(made, "demo"))
    for bad in ({"exchange": "0"}, {"rank": None}, {"is_answer": 1}, {"messages": [{}]}):
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(document | {"branches": [document["branches"][0] | bad]}))
        with pytest.raises(UsageError, match="not a saved conversation"):
            transcript.read(path)
