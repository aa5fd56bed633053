"""JSON schemas as masks over the next token, by llguidance; they hold inside one message only.

llguidance is part of `pip install 'localoss[tools]'` and 'localoss[server]'; it is imported where a schema is
first used.
"""

import base64
import functools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from localoss.chat.harmony import RETURN, TEXT_TOKENS, VOCABULARY_FOLDER, VOCABULARY_TOKENS
from localoss.errors import UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ANY_OBJECT: dict[str, Any] = {"type": "object"}
_MAX_SCHEMA_CHARS = 500_000
# Unbounded whitespace lets a model that is at a loss go on with spaces until its tokens run out.
_WHITESPACE = r"[ \n\t]{0,32}"


class Grammar:
    """A JSON schema, compiled. Raises: UsageError for one that is invalid or can't be followed.

    strict: every keyword must be followed. Otherwise those that llguidance doesn't know are left out, and
    what they ask for isn't promised.
    """

    def __init__(self, schema: dict[str, Any], strict: bool = True) -> None:
        try:
            text = json.dumps(schema, allow_nan=False)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the JSON schema is no JSON: {error}") from None
        if len(text) > _MAX_SCHEMA_CHARS:
            raise UsageError(
                f"the JSON schema has {len(text):,} characters; at most {_MAX_SCHEMA_CHARS:,} are taken"
            )
        self._matcher = _compiled(text, strict)

    def begin(self, vocab_tokens: int) -> "Body":
        """Masks for a new message."""
        return Body(self._matcher.deep_copy(), vocab_tokens)


class Body:
    """Follows the tokens of one message that a grammar holds."""

    def __init__(self, matcher: "LLMatcher", vocab_tokens: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((1, -(-VOCABULARY_TOKENS // 32)), np.int32)
        self._mask = np.zeros(vocab_tokens, np.uint8)

    def mask(self, ending: int) -> npt.NDArray[np.uint8]:
        """Allowed ids as ones, (vocab_tokens,) u8; `ending` is among them once the JSON is complete.

        Raises: UsageError if the grammar became too complex to follow.
        """
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            raise UsageError(f"the JSON schema is too complex: {_reason(self._matcher)}")
        text = np.unpackbits(self._bits.view(np.uint8)[0], count=TEXT_TOKENS, bitorder="little")
        self._mask[:TEXT_TOKENS] = text
        self._mask[ending] = self._matcher.is_accepting()
        return self._mask

    def advance(self, token: int) -> None:
        """Raises: ValueError for a token that the grammar doesn't allow."""
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} cannot stand here: {_reason(self._matcher)}")


@functools.lru_cache(maxsize=64)
def _compiled(schema: str, strict: bool) -> "LLMatcher":
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_pattern": _WHITESPACE, "lenient": not strict}
        )
    except ValueError as error:
        raise UsageError(f"the JSON schema can't be used: {error}") from None
    matcher = LLMatcher(_tokenizer(), grammar, log_level=0)
    if matcher.is_error():
        raise UsageError(f"the JSON schema can't be followed: {_reason(matcher)}")
    Body(matcher.deep_copy(), VOCABULARY_TOKENS).mask(RETURN)  # some show only then that they are too complex
    return matcher


def _reason(matcher: "LLMatcher") -> str:
    return " ".join(matcher.get_error().split())


@functools.cache
def _tokenizer() -> "LLTokenizer":
    """gpt-oss's vocabulary for llguidance, from the shipped file; takes a second or two, once.

    Raises: UsageError if llguidance isn't installed.
    """
    try:
        from llguidance import LLTokenizer
    except ImportError:
        raise UsageError("JSON schemas need llguidance: pip install 'localoss[tools]'") from None
    lines = (VOCABULARY_FOLDER / "o200k_base.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(word): int(rank) for word, rank in (line.split() for line in lines)}
    control = {f"<|control_{token}|>": token for token in range(TEXT_TOKENS, VOCABULARY_TOKENS)}
    made: LLTokenizer = LLTokenizer.from_tiktoken(  # type: ignore[attr-defined]  # missing in its stubs
        encoder=ranks,
        special_tokens=control,
        pattern=r"\s+|\S+",  # splits text to be tokenized; masks don't depend on it
        eos_token=RETURN,
        n_vocab=VOCABULARY_TOKENS,
        slices=None,
    )
    return made
