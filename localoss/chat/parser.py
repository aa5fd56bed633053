"""Generated tokens to messages, as they come. Control tokens are told by their id and never become text."""

import codecs
import re
from dataclasses import dataclass

import openai_harmony as library

from localoss.chat import harmony
from localoss.chat.harmony import CHANNEL, CHANNELS, CONSTRAIN, END, MESSAGE, START, TEXT_TOKENS, Message

_ENDINGS = {END: "end", harmony.RETURN: "return", harmony.CALL: "call"}


@dataclass(frozen=True)
class MessageStart:
    """A header is complete; the text of a message follows."""

    channel: str
    recipient: str | None
    content_type: str | None


@dataclass(frozen=True)
class TextDelta:
    """More text of the open message: whole characters only."""

    channel: str
    recipient: str | None
    text: str


@dataclass(frozen=True)
class MessageEnd:
    """The open message is complete. ending: end, return, call, or cut when its end token never came."""

    message: Message
    ending: str


Event = MessageStart | TextDelta | MessageEnd


class StreamParser:
    """Parses what a model writes after `<|start|>assistant`, one token at a time.

    It takes any stream of ids: a malformed header is read as far as it makes sense, a misplaced control token
    is left out. (openai-harmony's own StreamableParser raises at the first and passes the second on as text.)
    """

    def __init__(self, in_message: bool = False) -> None:
        """in_message: there is no header, the first token is text already, as after a raw prompt."""
        self._header = None if in_message else harmony.encode_raw("assistant")  # None inside a message
        self._start = MessageStart("final", None, None)
        self._text: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> list[Event]:
        """The events that `token` brings about. Never raises."""
        if self._header is None:
            return self._push_text(token)
        if token == MESSAGE:
            return [self._open(self._header)]
        if token == START or token in _ENDINGS:
            self._header = []
        elif 0 <= token < TEXT_TOKENS or token in (CHANNEL, CONSTRAIN):
            self._header.append(token)
        return []

    def finish(self) -> list[Event]:
        """The events left when generation stopped for another reason than an end token."""
        return [self._close("cut")] if self._header is None else []

    def _push_text(self, token: int) -> list[Event]:
        if token in _ENDINGS:
            return [self._close(_ENDINGS[token])]
        if token == START:
            return [self._close("cut")]
        if not 0 <= token < TEXT_TOKENS:
            return []
        text = self._decoder.decode(harmony.token_bytes(token))
        if not text:
            return []
        self._text.append(text)
        return [TextDelta(self._start.channel, self._start.recipient, text)]

    def _open(self, header: list[int]) -> MessageStart:
        self._start = read_header(header)
        self._header = None
        self._text.clear()
        return self._start

    def _close(self, ending: str) -> MessageEnd:
        self._header = []
        self._decoder.reset()  # what is left of half a character is dropped
        start = self._start
        message = Message(
            "assistant", "".join(self._text), start.channel, start.recipient, start.content_type
        )
        return MessageEnd(message, ending)


def read_header(tokens: list[int]) -> MessageStart:
    """Read a header: the tokens between `<|start|>` and `<|message|>`, of text, channel and constrain.

    openai-harmony reads it; what it refuses is read by looking for the parts that make sense. Text without a
    known channel counts as the answer, so that nothing said is lost.
    """
    try:
        (message,) = harmony.encoding().parse_messages_from_completion_tokens([START, *tokens, MESSAGE, END])
        channel, recipient, kind = message.channel, message.recipient, message.content_type
    except (library.HarmonyError, ValueError):
        channel, recipient, kind = _search_header(tokens)
    if recipient in ("assistant", "all"):  # the library's words for no recipient in particular
        recipient = None
    known = next((name for name in CHANNELS if channel and channel.startswith(name)), None)
    return MessageStart(known or ("commentary" if recipient else "final"), recipient, _plain_type(kind))


def _search_header(tokens: list[int]) -> tuple[str | None, str | None, str | None]:
    text = harmony.encoding().decode(tokens)
    channel = re.search(r"<\|channel\|>\s*([a-z]+)", text)
    recipient = re.search(r"\bto=([^\s<]+)", text)
    kind = re.search(r"<\|constrain\|>\s*(\w+)", text)
    return tuple(match and match[1] for match in (channel, recipient, kind))  # type: ignore[return-value]


def _plain_type(kind: str | None) -> str | None:
    plain = (kind or "").replace("<|constrain|>", "").replace("<|channel|>", "").strip()
    return plain or None
