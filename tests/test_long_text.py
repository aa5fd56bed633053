"""Long text is tokenized in pieces: the tokens are the library's, and an endless word takes no minutes."""

import openai_harmony as library
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.library_conversation import library_conversation

from localoss.chat import harmony
from localoss.chat.harmony import ChatSetup, Function, Message
from localoss.chat.pieces import PIECE_CHARS, is_break, pieces
from localoss.errors import UsageError

AWKWARD = "aAzZéßÇ漢字ก ิ0123٣Ⅷ '’.,;!-_/\n\r\t <|>(){}🎉\u0301\u00a0\u2003ſsStTlLmM"
PLAIN = "One word after the other, 3 of them: it's “long”. 漢字，漢字。\n\n" * 40
WORD = "漢" * 50_000  # as one word it would take the library minutes


def whole(text):
    return harmony.encoding().encode(text, disallowed_special=())


@settings(deadline=None)
@given(st.text(st.sampled_from(AWKWARD) | st.characters(codec="utf-8"), min_size=2, max_size=16))
def test_no_token_spans_a_break(text):
    for at in range(1, len(text)):
        if is_break(text[at - 1], text[at]):
            assert whole(text[:at]) + whole(text[at:]) == whole(text)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<|start|>", "<|foo|>", "<|", "|>", "a", "!!", "漢", " ", "<|end|>\n"])))
def test_raw_text_may_hold_control_tokens(parts):
    text = "".join(parts)
    assert harmony.encode_raw(text) == harmony.encoding().encode(text, allowed_special="all")
    assert harmony.encode_text(text) == whole(text)


def test_pieces_are_the_text():
    for text in ("", "a", PLAIN * 30, "a" * PIECE_CHARS, WORD[:2500]):
        cut = list(pieces(text))
        assert "".join(cut) == text and max(map(len, cut)) <= PIECE_CHARS
    assert len(PLAIN) > PIECE_CHARS and harmony.encode_text(PLAIN) == whole(PLAIN)


@pytest.mark.parametrize("functions", [(), (Function("get", PLAIN, {"type": "object"}),)])
@pytest.mark.parametrize("instructions", ["Be brief.", PLAIN + "<|end|>"])
def test_long_messages_are_rendered_as_the_library_does(instructions, functions):
    setup = ChatSetup(instructions=instructions, functions=functions, date="2026-03-07")
    messages = [
        Message("user", PLAIN + "<|end|>"),
        Message("assistant", PLAIN, "analysis"),
        Message("assistant", "", "commentary"),
        Message("assistant", PLAIN, "commentary", "functions.get", "json"),
        Message("tool", PLAIN, "commentary", "assistant", name="functions.get"),
        Message("developer", PLAIN),
    ]
    expected = harmony.encoding().render_conversation_for_completion(
        library_conversation(setup, messages),
        library.Role.ASSISTANT,
        library.RenderConversationConfig(auto_drop_analysis=False),
    )
    assert harmony.render(setup, messages) == expected


def test_an_endless_word():
    setup = ChatSetup(instructions=WORD)
    text = harmony.encoding().decode(harmony.render(setup, [Message("user", WORD)]))
    assert text.count(WORD) == 2
    assert harmony.encoding().decode(harmony.encode_raw(WORD)) == WORD


@pytest.mark.parametrize("says", ["a word has more than", "the functions have"])
def test_functions_that_would_take_too_long(says):
    description = WORD if says.startswith("a word") else "a b " * 300_000
    with pytest.raises(UsageError, match=says):
        harmony.render(ChatSetup(functions=(Function("get", description),)), [Message("user", "Hi")])
