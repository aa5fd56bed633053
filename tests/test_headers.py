"""The header automaton: all that harmony allows passes, nothing else does."""

import numpy as np
import openai_harmony as library
import pytest

from localoss.chat import harmony
from localoss.chat.harmony import CALL, CHANNEL, END, MESSAGE, RETURN, START, ChatSetup, Function
from localoss.chat.headers import HeaderAutomaton
from localoss.chat.parser import MessageEnd, MessageStart, StreamParser
from localoss.errors import ModelError

VOCAB = harmony.VOCABULARY_TOKENS
PLAIN = ChatSetup()
TOOLS = ChatSetup(
    functions=(Function("get"), Function("get_weather"), Function("search.web-2")),
    builtin_tools=("python", "browser"),
)


def follow(automaton, tokens):
    """Advance through `tokens`, each of which the mask must allow."""
    for token in tokens:
        assert automaton.mask()[token], f"{token} is not allowed"
        automaton.advance(token)
    return automaton


def allowed(automaton):
    return set(np.flatnonzero(automaton.mask()).tolist())


def test_it_begins_with_a_channel_and_knows_three():
    automaton = HeaderAutomaton(VOCAB, PLAIN)
    assert allowed(automaton) == {CHANNEL}
    automaton.advance(CHANNEL)
    firsts = {harmony.encode_raw(name)[0] for name in harmony.CHANNELS}
    assert allowed(automaton) == firsts and len(firsts) == 3


@pytest.mark.parametrize(
    ("header", "ending"),
    [
        ("<|channel|>analysis", END),
        ("<|channel|>commentary", END),
        ("<|channel|>final", RETURN),
        ("<|channel|>commentary to=functions.get_weather <|constrain|>json", CALL),
        ("<|channel|>commentary to=functions.get<|constrain|>json", CALL),
        (" to=functions.search.web-2<|channel|>commentary json", CALL),
        (" to=functions.get<|channel|>commentary", CALL),
        ("<|channel|>analysis to=python code", CALL),
        (" to=browser.search<|channel|>analysis code", CALL),
    ],
)
def test_headers_and_the_end_of_their_message(header, ending):
    automaton = follow(HeaderAutomaton(VOCAB, TOOLS), harmony.encode_raw(header + "<|message|>"))
    assert allowed(automaton) == {*range(harmony.TEXT_TOKENS), ending}
    follow(automaton, [0, 199_997, ending])
    if ending == END:
        follow(automaton, harmony.encode_raw("<|start|>assistant"))
        assert CHANNEL in allowed(automaton)
    else:
        assert automaton.mask() is None


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>final to=functions.get",
        "<|channel|>analysis to=functions.get",
        "<|channel|>commentary to=python",
        "<|channel|>commentary to=functions.unknown",
        "<|channel|>commentary to=functions.get_weathers",
        "<|channel|>commentary json",
        "<|channel|>commentary to=functions.get <|constrain|>xml",
        "<|channel|>thoughts",
        "<|message|>",
        "hello",
    ],
)
def test_other_headers_are_refused(header):
    automaton = HeaderAutomaton(VOCAB, TOOLS)
    with pytest.raises(ValueError, match="cannot stand"):
        for token in harmony.encode_raw(header + "<|message|>"):
            assert automaton.mask() is not None
            automaton.advance(token)


def test_without_tools_there_is_no_recipient():
    automaton = HeaderAutomaton(VOCAB, PLAIN)
    follow(automaton, harmony.encode_raw("<|channel|>commentary"))
    assert allowed(automaton) == {MESSAGE}


@pytest.mark.parametrize("content_type", [None, "<|constrain|>json"])
@pytest.mark.parametrize("function", TOOLS.functions)
def test_what_openai_harmony_renders_passes(function, content_type):
    message = library.Message.from_role_and_content(library.Role.ASSISTANT, "{}").with_channel("commentary")
    message = message.with_recipient(f"functions.{function.name}")
    if content_type:
        message = message.with_content_type(content_type)
    tokens = harmony.encoding().render(message)
    assert tokens[:2] == [START, *harmony.encode_raw("assistant")]
    follow(HeaderAutomaton(VOCAB, TOOLS), tokens[2:])


def test_a_sampler_that_knows_nothing_still_writes_harmony():
    """Uniform draws from the mask, bodies cut short: the parser finds well-formed messages alone."""
    generator = np.random.RandomState(7)
    recipients = set()
    for _ in range(60):
        automaton, parser, body = HeaderAutomaton(VOCAB, TOOLS), StreamParser(), 0
        ends = []
        for _ in range(400):
            mask = automaton.mask()
            if mask is None:
                break
            ids = np.flatnonzero(mask)
            control = ids[ids >= harmony.TEXT_TOKENS]
            body = body + 1 if len(ids) > 1_000 else 0
            token = int(control[0] if body > 3 else generator.choice(ids))
            automaton.advance(token)
            for event in parser.push(token):
                if isinstance(event, MessageStart):
                    recipients.add((event.channel, event.recipient))
                elif isinstance(event, MessageEnd):
                    ends.append(event.ending)
        assert ends and set(ends[:-1]) <= {"end"} and ends[-1] in ("return", "call")
    assert {("analysis", None), ("final", None), ("commentary", "functions.get_weather")} <= recipients
    assert all(
        channel == "commentary" for channel, name in recipients if name and name.startswith("functions")
    )


def test_body_masks_are_shared_and_safe():
    masks = [
        follow(HeaderAutomaton(VOCAB, PLAIN), harmony.encode_raw("<|channel|>final<|message|>")).mask()
        for _ in range(2)
    ]
    assert masks[0] is masks[1] and masks[0].dtype == np.uint8 and not masks[0].flags.writeable


def test_masks_of_two_sequences_do_not_mix():
    first, second = HeaderAutomaton(VOCAB, PLAIN), HeaderAutomaton(VOCAB, PLAIN)
    mask = first.mask()
    second.advance(CHANNEL)
    second.mask()
    assert np.flatnonzero(mask).tolist() == [CHANNEL]


def test_a_larger_vocabulary_has_no_more_tokens():
    automaton = HeaderAutomaton(VOCAB + 13, PLAIN)
    follow(automaton, harmony.encode_raw("<|channel|>analysis<|message|>"))
    assert automaton.mask().shape == (VOCAB + 13,) and not automaton.mask()[harmony.CALL + 1 :].any()


def test_another_vocabulary_is_refused():
    with pytest.raises(ModelError, match=r"2,056 tokens, not gpt-oss's 201,088"):
        HeaderAutomaton(2056, PLAIN)


FINAL = "<|start|>assistant<|channel|>final<|message|>"


def test_forcing_the_final_answer_ends_a_thought():
    automaton = follow(HeaderAutomaton(VOCAB, TOOLS), harmony.encode_raw("<|channel|>analysis<|message|>hm"))
    automaton.force_final()
    for token in [END, *harmony.encode_raw(FINAL)]:
        assert allowed(automaton) == {token}
        automaton.advance(token)
    assert allowed(automaton) == {*range(harmony.TEXT_TOKENS), RETURN}


def test_forcing_the_final_answer_at_the_start_or_within_a_header():
    automaton = HeaderAutomaton(VOCAB, TOOLS)
    automaton.force_final()
    follow(automaton, harmony.encode_raw("<|channel|>"))
    assert allowed(automaton) == set(harmony.encode_raw("final"))
    automaton = follow(HeaderAutomaton(VOCAB, TOOLS), harmony.encode_raw("<|channel|>analysis"))
    automaton.force_final()
    follow(automaton, harmony.encode_raw("<|message|>"))
    assert allowed(automaton) == {END}


def test_forcing_leaves_a_tool_call_alone():
    header = "<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"
    automaton = follow(HeaderAutomaton(VOCAB, TOOLS), harmony.encode_raw(header))
    automaton.force_final()
    assert allowed(automaton) == {*range(harmony.TEXT_TOKENS), CALL}
