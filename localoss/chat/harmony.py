"""Messages to tokens in OpenAI's harmony chat format.

The openai-harmony library defines the format and does the rendering; here are the parts that it leaves to
its caller: the vocabulary file, the system and developer messages, and which thinking the model still sees.
Source: https://cookbook.openai.com/articles/openai-harmony
"""

import datetime
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localoss import settings
from localoss.chat.json_schema import readable
from localoss.chat.pieces import PIECE_CHARS, has_endless_word, pieces
from localoss.errors import ModelError, TooManyTokensError, UsageError

if TYPE_CHECKING:  # importing it takes a quarter of a second, and a chat's prompt doesn't wait for that
    import openai_harmony as library

VOCABULARY_FOLDER = Path(__file__).with_name("vocabulary")
VOCABULARY_TOKENS = 201_088  # rows of gpt-oss's embedding
TEXT_TOKENS = 199_998  # ids below are text, ids from here on are control tokens
END_OF_TEXT, RETURN, CONSTRAIN, CHANNEL, START = 199_999, 200_002, 200_003, 200_005, 200_006
END, MESSAGE, CALL = 200_007, 200_008, 200_012

CHANNELS = ("analysis", "commentary", "final")
EFFORTS = ("low", "medium", "high")
KNOWLEDGE_CUTOFF = "2024-06"
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
_CONTROL_LIKE = re.compile(r"<\|[a-z0-9_]+\|>")  # as every control token: to name all 1,091 takes 21 ms
_MAX_FUNCTION_CHARS = 1_000_000
_MAX_TOKEN_BYTES = 128  # no token of o200k is longer
_LEAST_MESSAGE_TOKENS = 4  # start, role, message, end


@dataclass(frozen=True)
class File:
    """A file's text that goes with a user's message."""

    name: str
    text: str


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    text: what was typed or answered; files: what goes before it. content: both, as the model reads them.
    role: user, assistant or tool. channel: one of CHANNELS for the assistant's. recipient: the tool that is
    called, such as functions.lookup. content_type: json or code where a call says so. name: the tool that
    answers. thinking: what led to a final message; pictures: files that a tool drew. Both for people, the
    model doesn't read them.
    """

    role: str
    text: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    name: str | None = None
    files: tuple[File, ...] = ()
    thinking: str | None = field(default=None, compare=False)
    pictures: tuple[str, ...] = field(default=(), compare=False)

    @property
    def content(self) -> str:
        return "\n\n".join([*(f"{file.name}:\n\n{file.text}" for file in self.files), self.text])


@dataclass(frozen=True)
class Function:
    """A function that the model may call: its name, what it does, and a JSON schema of its arguments.

    Raises: UsageError for a name that cannot stand in a message header.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not _FUNCTION_NAME.fullmatch(self.name):
            raise UsageError(f"function name {self.name!r}: use 1 to 64 letters, digits, '_', '-' or '.'")


def _today() -> str:
    return datetime.date.today().isoformat()


@dataclass(frozen=True)
class ChatSetup:
    """What stands before the first message of a conversation.

    effort: low, medium or high. instructions: the developer message. builtin_tools: openai-harmony's own, of
    "python" and "browser". tool_notes: texts of their descriptions, and what stands in their place here.
    tool_instructions: what follows the instructions about tools. date: when the conversation began; it stays,
    so that the prompt's tokens stay.
    Raises: UsageError for an unknown effort.
    """

    effort: str = "medium"
    instructions: str | None = None
    functions: tuple[Function, ...] = ()
    builtin_tools: tuple[str, ...] = ()
    tool_notes: tuple[tuple[str, str], ...] = ()
    tool_instructions: str | None = None
    date: str = field(default_factory=_today)

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise UsageError(f"effort is {self.effort!r}; choose one of {', '.join(EFFORTS)}")

    @property
    def developer_text(self) -> str:
        """All instructions."""
        return "\n\n".join(filter(None, (self.instructions, self.tool_instructions)))


@functools.cache
def encoding() -> "library.HarmonyEncoding":
    """The o200k_harmony encoding, from the vocabulary shipped with localoss; nothing is fetched.

    Raises: ModelError if the shipped file is missing or damaged.
    """
    import openai_harmony as library

    settings.set_variable("TIKTOKEN_ENCODINGS_BASE", str(VOCABULARY_FOLDER))
    try:
        return library.load_harmony_encoding(library.HarmonyEncodingName.HARMONY_GPT_OSS)
    except (library.HarmonyError, OSError) as error:
        raise ModelError(f"{VOCABULARY_FOLDER}: unusable ({error}); install localoss again") from None


def check_vocabulary(vocab_tokens: int) -> None:
    """Raises: ModelError unless a model with `vocab_tokens` logits can write harmony.

    Fine-tuning may cut the vocabulary to the tokenizer's 200,019 or pad it: only what harmony writes counts.
    """
    if vocab_tokens <= CALL:
        raise ModelError(
            f"the model has a vocabulary of {vocab_tokens:,} tokens, not gpt-oss's {VOCABULARY_TOKENS:,}: "
            "it cannot chat"
        )


def render(setup: ChatSetup, messages: Sequence[Message], most_tokens: int | None = None) -> list[int]:
    """Tokens of the whole conversation, up to the `<|start|>assistant` that the model continues.

    Raises: UsageError for functions that are too long to be read; TooManyTokensError as soon as there are
    more than `most_tokens`, which nobody has to wait for.
    """
    import openai_harmony as library

    if most_tokens is not None:
        sizes = [len(text.encode("utf-8", "replace")) for text in _texts(setup, messages)]
        _check_count(sum(sizes) // _MAX_TOKEN_BYTES + _LEAST_MESSAGE_TOKENS * len(messages), most_tokens)
    is_long = len(setup.developer_text) > PIECE_CHARS
    head = [_system_message(setup)]
    if setup.developer_text or setup.functions:
        head.append(_developer_message(None if is_long else setup.developer_text, setup.functions))
    messages = drop_finished_analysis(messages)
    tokens = encoding().render_conversation_for_completion(
        library.Conversation.from_messages([*head, *map(_library_message, messages)]),
        library.Role.ASSISTANT,
        library.RenderConversationConfig(auto_drop_analysis=False),
    )
    texts = [""] * len(head) + [message.content for message in messages]
    if is_long:
        texts[1] = f"# Instructions\n\n{setup.developer_text}"
    return _with_long_texts(tokens, texts, most_tokens)


def _texts(setup: ChatSetup, messages: Sequence[Message]) -> list[str]:
    """All that a prompt is made of, but for functions, whose length is bounded, and dropped thoughts."""
    return [setup.developer_text, *(message.content for message in drop_finished_analysis(messages))]


def _check_count(tokens: int, most_tokens: int | None) -> None:
    """Raises: TooManyTokensError if there are more than `most_tokens`."""
    if most_tokens is not None and tokens > most_tokens:
        raise TooManyTokensError(tokens)


def render_reply(messages: Sequence[Message]) -> list[tuple[list[int], bool]]:
    """Tokens of each message of a turn that follows `render`, and whether the model is who writes them.

    A tool's result, which it doesn't write, may stand between a call and what follows.
    """
    rendered = [
        _with_long_texts(encoding().render(_library_message(message)), [message.content])
        for message in messages
    ]
    rendered[0] = rendered[0][2:]  # the prompt ends with `<|start|>assistant`
    if messages[-1].channel == "final":
        rendered[-1][-1] = RETURN
    return [(tokens, m.role == "assistant") for tokens, m in zip(rendered, messages, strict=True)]


def branch_points(prompt: Sequence[int]) -> list[int]:
    """Where a later prompt may part from this one: before each user's message, and at the end."""
    (user,) = encode_raw("user")
    pairs = itertools.pairwise(prompt)
    return [i for i, pair in enumerate(pairs) if pair == (START, user)] + [len(prompt)]


def drop_finished_analysis(messages: Sequence[Message]) -> list[Message]:
    """Leave out the analysis of every turn whose final answer stands, what python and browser did included.

    No later message brings it back, as a tool call does with openai-harmony 0.0.8's own dropping.
    """
    last_final = _last_final(messages)
    return [m for i, m in enumerate(messages) if i > last_final or m.channel != "analysis"]


def drop_finished_thoughts(messages: Sequence[Message]) -> list[Message]:
    """As drop_finished_analysis, for people: calls on the analysis channel and their results stay."""
    last_final = _last_final(messages)
    return [
        m
        for i, m in enumerate(messages)
        if i > last_final or m.channel != "analysis" or m.recipient or m.role == "tool"
    ]


def _last_final(messages: Sequence[Message]) -> int:
    return max((i for i, message in enumerate(messages) if message.channel == "final"), default=-1)


def encode_raw(text: str, most_tokens: int | None = None) -> list[int]:
    """Tokens of `text` as it stands, control tokens included, for prompts without the chat format.

    Raises: TooManyTokensError as soon as there are more than `most_tokens`.
    """
    if most_tokens is not None:
        _check_count(len(text.encode("utf-8", "replace")) // _MAX_TOKEN_BYTES, most_tokens)
    tokens: list[int] = []
    for part, control in _parts(_well_formed(text)):
        tokens += encode_text(part, None if most_tokens is None else most_tokens - len(tokens))
        if control:
            tokens += encoding().encode(control, allowed_special="all")
    return tokens


def encode_text(text: str, most_tokens: int | None = None) -> list[int]:
    """Tokens of `text`, in which nothing counts as a control token. Raises: as encode_raw."""
    tokens: list[int] = []
    for piece in pieces(_well_formed(text)):
        tokens += encoding().encode(piece, disallowed_special=())
        _check_count(len(tokens), most_tokens)
    return tokens


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """What stands before each control token, with the token; and what follows the last, with none."""
    end = 0
    for found in _CONTROL_LIKE.finditer(text):
        if found[0] in _control_tokens():
            yield text[end : found.start()], found[0]
            end = found.end()
    yield text[end:], ""


@functools.cache
def _control_tokens() -> frozenset[str]:
    return frozenset(encoding().special_tokens_set)


def token_bytes(token: int) -> bytes:
    """The bytes of a token: possibly half a character; a control token's are its name."""
    if token >= VOCABULARY_TOKENS:  # a padded vocabulary's, which the encoding doesn't know
        return f"<|reserved_{token}|>".encode()
    text: str = encoding().decode([token], errors="surrogateescape")
    return text.encode("utf-8", "surrogateescape")


def _system_message(setup: ChatSetup) -> "library.Message":
    import openai_harmony as library

    content = (
        library.SystemContent.new()
        .with_reasoning_effort(library.ReasoningEffort[setup.effort.upper()])
        .with_conversation_start_date(setup.date)
        .with_knowledge_cutoff(KNOWLEDGE_CUTOFF)
        .with_required_channels(list(CHANNELS))
    )
    for tool in setup.builtin_tools:
        declared = getattr(library.ToolNamespaceConfig, tool)()
        for text, meant in setup.tool_notes:
            declared.description = declared.description.replace(text, meant)
        content = content.with_tools(declared)
    return library.Message.from_role_and_content(library.Role.SYSTEM, content)


def _developer_message(instructions: str | None, functions: Sequence[Function]) -> "library.Message":
    """Raises: UsageError for functions that are too long."""
    import openai_harmony as library

    content = library.DeveloperContent.new()
    if instructions:
        content = content.with_instructions(_well_formed(instructions))
    if functions:
        functions = [replace(f, parameters=readable(f.parameters)) for f in functions]
        _check_lengths(functions)
        content = content.with_function_tools(
            [library.ToolDescription.new(f.name, f.description, f.parameters) for f in functions]
        )
    return library.Message.from_role_and_content(library.Role.DEVELOPER, content)


def _check_lengths(functions: Sequence[Function]) -> None:
    """Raises: UsageError for functions whose definitions would take the tokenizer too long."""
    total = 0
    for function in functions:
        text = f"{function.description} {json.dumps(function.parameters, ensure_ascii=False)}"
        total += len(text)
        if has_endless_word(text):
            raise UsageError(f"function {function.name!r}: a word has more than {PIECE_CHARS:,} characters")
    if total > _MAX_FUNCTION_CHARS:
        raise UsageError(
            f"the functions have {total:,} characters; at most {_MAX_FUNCTION_CHARS:,} are taken"
        )


def _with_long_texts(tokens: list[int], texts: Sequence[str], most_tokens: int | None = None) -> list[int]:
    """`tokens`, rendered messages, with those of `texts` put in that were too long for the library.

    Raises: TooManyTokensError.
    """
    filled: list[int] = []
    _check_count(len(tokens), most_tokens)
    position = 0
    for text in texts:
        start = tokens.index(MESSAGE, position) + 1
        filled += tokens[position:start]
        position = start
        if len(text) > PIECE_CHARS:
            while tokens[position] < TEXT_TOKENS:
                position += 1
            functions = encoding().decode(tokens[start:position])  # which follow long instructions
            room = None if most_tokens is None else most_tokens - len(filled)
            filled += encode_text(f"{text}\n\n{functions}" if functions else text, room)
    return filled + tokens[position:]


def _library_message(message: Message) -> "library.Message":
    """Without its text if that is long."""
    import openai_harmony as library

    role = library.Role(message.role)
    author = library.Author.new(role, message.name) if message.name else library.Author(role=role)
    text = message.content if len(message.content) <= PIECE_CHARS else ""
    result = library.Message.from_author_and_content(author, _well_formed(text))
    if message.channel:
        result = result.with_channel(message.channel)
    if message.recipient:
        result = result.with_recipient(message.recipient)
    if message.content_type:
        kind = message.content_type
        result = result.with_content_type("<|constrain|>json" if kind == "json" else kind)
    return result


def _well_formed(text: str) -> str:
    # Undecodable bytes of a command line or a pipe arrive as lone surrogates, which no tokenizer takes.
    return text.encode("utf-8", "replace").decode("utf-8")
