"""localoss.Chat: text in, text out, over any engine."""

import subprocess
import sys

import pytest
from support.scripted import HELLO, ScriptedEngine

import localoss
from localoss.chat.parser import TextDelta
from localoss.errors import ContextFullError, LocalossError, UsageError
from quant.errors import QuantError

CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>'
SUNNY = "<|channel|>final<|message|>Sunny.<|return|>"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def roles(chat):
    return [message.role for message in chat.conversation.messages]


def test_ask_and_go_on():
    engine = ScriptedEngine([HELLO, SUNNY])
    chat = localoss.Chat(engine)
    reply = chat.ask("Hi")
    assert (reply.text, reply.thinking, reply.finish, reply.calls) == ("Hello!", "A greeting.", "return", ())
    events = list(chat.stream("And the weather?", effort="low", temperature=0))
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "Sunny." == chat.last.text
    assert engine.params.temperature == 0 and chat.conversation.setup.effort == "low"
    assert roles(chat) == ["user", "assistant"] * 2
    assert engine.sequences[0] is engine.sequences[1]


def test_many_chats_on_one_engine():
    engine = ScriptedEngine()
    one, other = localoss.Chat(engine), localoss.Chat(engine)
    assert one.ask("a").text == other.ask("b").text == "Hello!"
    assert engine.sequences[0] is not engine.sequences[1] and len(roles(other)) == 2


def test_tools():
    chat = localoss.Chat(ScriptedEngine([CALL, SUNNY]), tools=[WEATHER])
    reply = chat.ask("Rome?")
    assert [(call.name, call.arguments) for call in reply.calls] == [("get_weather", '{"city":"Rome"}')]
    chat.give_result(reply.calls[0], "sunny")
    assert chat.ask().text == "Sunny."


def test_schema():
    answer = '<|channel|>final<|message|>{"n": 3}<|return|>'
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert localoss.Chat(ScriptedEngine([answer])).ask("n?", schema=schema).json() == {"n": 3}
    with pytest.raises(UsageError, match="no JSON"):
        localoss.Chat(ScriptedEngine()).ask("n?").json()


def test_a_stream_that_is_left_keeps_what_was_said():
    chat = localoss.Chat(ScriptedEngine())
    events = chat.stream("Hi")
    for event in events:
        if isinstance(event, TextDelta) and event.channel == "final":
            break
    events.close()
    assert chat.last.finish == "cancelled" and chat.last.text and roles(chat) == ["user", "assistant"]


def test_what_cannot_be_asked_leaves_the_conversation_as_it_was():
    chat = localoss.Chat(ScriptedEngine(context_tokens=100))
    with pytest.raises(ContextFullError):
        chat.ask("word " * 200)
    with pytest.raises(UsageError, match="nothing to answer"):
        chat.ask()
    with pytest.raises(UsageError):
        chat.ask("Hi", effort="endless")
    with pytest.raises(UsageError, match="loaded already"):
        localoss.Chat(ScriptedEngine(), threads=2)
    assert roles(chat) == []


def test_one_except_catches_all():
    assert issubclass(QuantError, LocalossError) and issubclass(UsageError, LocalossError)


def test_importing_localoss_stays_light():
    script = "import sys, localoss; print([m for m in ('numpy', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "Chat" in localoss.__all__ and all(hasattr(localoss, name) for name in localoss.__all__)
