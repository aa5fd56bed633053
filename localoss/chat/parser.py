"""Generated tokens to messages, as they come. Control tokens are told by their id and never become text."""

import codecs
from dataclasses import dataclass

from localoss.chat import harmony
from localoss.chat.harmony import CHANNEL, CHANNELS, CONSTRAIN, END, MESSAGE, START, TEXT_TOKENS, Message

_NO_RECIPIENT = ("", "assistant", "all")  # a tool's answer is addressed so
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

    @property
    def open_channel(self) -> str | None:
        """The channel of the open message; None within a header."""
        return self._start.channel if self._header is None else None

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
    """Read a header, the tokens between `<|start|>` and `<|message|>`: `role [to=NAME] <|channel|> …`.

    Well-formed ones are read as openai-harmony reads them, others as far as they make sense. Text without a
    known channel counts as the answer, so that nothing said is lost.
    """
    split = tokens.index(CHANNEL) if CHANNEL in tokens else len(tokens)
    role_words, words = _words(tokens[:split]), _words(tokens[split:])
    recipients = [word.removeprefix("to=") for word in role_words + words if word.startswith("to=")]
    plain = [word for word in words if not word.startswith("to=")]
    recipient = next((name for name in recipients if name not in _NO_RECIPIENT), None)
    channel = next((name for name in CHANNELS if plain and plain[0].startswith(name)), None)
    return MessageStart(
        channel=channel or ("commentary" if recipient else "final"),
        recipient=recipient,
        content_type=plain[1] if len(plain) > 1 else None,
    )


def _words(tokens: list[int]) -> list[str]:
    texts = [b" " if token >= TEXT_TOKENS else harmony.token_bytes(token) for token in tokens]
    return b"".join(texts).decode("utf-8", "replace").split()
