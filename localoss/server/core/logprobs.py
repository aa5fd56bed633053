"""Logprobs in OpenAI's shapes."""

from collections.abc import Sequence
from typing import Any

from localoss.chat.harmony import TEXT_TOKENS, token_bytes
from localoss.engine.sampler import Token


def token_text(token: int) -> str:
    """What a token is called in a response; a control token by its name, part of a character as it can be."""
    return token_bytes(token).decode("utf-8", "replace")


def raw_token_text(token: int) -> str:
    """As OpenAI's completions write a token: part of a character by its bytes."""
    spelled = token_bytes(token)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def chat_logprobs(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """`logprobs.content` of chat completions and responses."""
    return [
        _entry(token.id, token.logprob) | {"top_logprobs": [_entry(*pair) for pair in token.top]}
        for token in tokens
    ]


def _entry(token: int, logprob: float) -> dict[str, Any]:
    spelled = list(token_bytes(token)) if token < TEXT_TOKENS else None
    return {"token": token_text(token), "logprob": logprob, "bytes": spelled}
