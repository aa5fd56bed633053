"""The demo model's dialogues: what is held out stays out, and what they teach is right."""

import itertools
import json
import re
from dataclasses import replace

import pytest

from localoss.chat import harmony
from localoss.chat.harmony import Message
from localoss.chat.headers import HeaderAutomaton
from localoss.chat.parser import MessageEnd, StreamParser
from localoss.demo import dialogues
from localoss.demo.dialogues import about
from localoss.demo.dialogues.topics import ASKED, COMMANDS, TOPICS

SKILLS = list(dialogues.SKILLS)


@pytest.fixture(scope="module")
def lessons():
    return list(itertools.islice(dialogues.training(seed=1), 3000))


@pytest.mark.parametrize("skill", SKILLS)
def test_nothing_held_out_is_trained_on(skill, lessons):
    held_out = {key for case in dialogues.held_out(skill, 100, seed=0) for key in case.keys}
    trained = {key for case in lessons for key in case.keys}
    kept = {key for key in held_out - trained if dialogues.case.is_held_out(key)}
    assert kept
    assert not any(dialogues.case.is_held_out(key) for key in trained)


@pytest.mark.parametrize("skill", SKILLS)
def test_the_same_seed_gives_the_same_cases(skill):
    assert dialogues.held_out(skill, 20, seed=3) == dialogues.held_out(skill, 20, seed=3)
    assert dialogues.held_out(skill, 20, seed=3) != dialogues.held_out(skill, 20, seed=4)


def test_sums_and_their_steps_are_right(lessons):
    sums = [case for case in lessons if case.skill == "sums"]
    assert len(sums) > 300
    for case in sums:
        for message in case.reply:
            for a, sign, b, more, c, result in re.findall(
                r"(\d+) ?([+-]) ?(\d+)(?:([+-])(\d+))? ?= ?(-?\d+)", message.text
            ):
                value = int(a) + int(sign + b) + int((more + c) or 0)
                assert value == int(result), message.text


def test_sorted_lists_are_sorted():
    for case in dialogues.held_out("comparing", 200, seed=0):
        if re.fullmatch(r"[\d, ]+", case.expected):
            numbers = [int(n) for n in case.expected.split(", ")]
            asked = [int(n) for n in re.findall(r"\d+", case.messages[-1].text)]
            assert sorted(numbers) == sorted(asked)
            assert numbers in (sorted(numbers), sorted(numbers, reverse=True))


def test_calls_have_arguments_that_fit_their_schema():
    kinds = {"string": str, "integer": int, "number": int, "boolean": bool}
    for case in dialogues.held_out("calls", 200, seed=0):
        name = case.reply[-1].recipient.removeprefix("functions.")
        (function,) = [f for f in case.setup.functions if f.name == name]
        arguments, schema = json.loads(case.expected), function.parameters
        assert set(schema["required"]) <= set(arguments) <= set(schema["properties"])
        for key, value in arguments.items():
            assert type(value) is kinds[schema["properties"][key]["type"]]


def test_no_question_belongs_to_two_topics():
    owners = {}
    for name in TOPICS:
        for question in about.questions(name):
            assert owners.setdefault(question, name) == name, question
    assert len(owners) > 5000


def test_no_generator_writes_what_people_asked():
    for name, texts in ASKED.items():
        known = set(about.questions(name))
        assert not [text for text in texts if text.lower().rstrip("?.!") in known]


@pytest.mark.parametrize("name", COMMANDS)
def test_answers_about_commands_name_the_command(name):
    assert COMMANDS[name].answer.startswith(f"`localoss {name}")


@pytest.mark.parametrize("skill", SKILLS)
def test_only_the_right_answer_is_right(skill):
    for case in dialogues.held_out(skill, 30, seed=1):
        right = case.reply[-1]
        assert case.is_right(case.reply)
        assert not case.is_right([])
        assert not case.is_right([replace(right, text=right.text + "7")])
        assert not case.is_right([Message("assistant", right.text, "analysis")])


def test_a_call_may_be_written_with_blanks():
    case = next(c for c in dialogues.held_out("calls", 30, seed=1) if len(json.loads(c.expected)) > 1)
    spaced = json.dumps(json.loads(case.expected), indent=1)
    assert case.is_right([replace(case.reply[-1], text=spaced)])


def test_effort_sets_the_length_of_the_analysis(lessons):
    lengths = {effort: [0] for effort in harmony.EFFORTS}
    for case in lessons:
        lengths[case.setup.effort].append(sum(len(m.text) for m in case.reply if m.channel == "analysis"))
    low, medium, high = (sum(lengths[effort]) / len(lengths[effort]) for effort in harmony.EFFORTS)
    assert low < medium / 2 < high / 3


@pytest.mark.parametrize("skill", SKILLS)
def test_replies_are_what_the_automaton_allows(skill):
    for case in dialogues.held_out(skill, 5, seed=2):
        automaton, parser = HeaderAutomaton(harmony.VOCABULARY_TOKENS, case.setup), StreamParser()
        events = []
        for token in itertools.chain(*(tokens for tokens, _ in harmony.render_reply(case.reply))):
            assert automaton.mask()[token]
            automaton.advance(token)
            events += parser.push(token)
        assert automaton.mask() is None  # the turn is over
        assert [e.message for e in events if isinstance(e, MessageEnd)] == list(case.reply)
