"""gpt-oss's vocabulary as GGUF files carry it for llama.cpp: token texts, kinds, merges, a chat template.

tiktoken's file gives each token's bytes and rank. llama.cpp wants the pairs that byte pair encoding merges in
their order: a token's pair is what encoding its bytes with the lower ranks alone leaves.
"""

import base64
import binascii
from itertools import pairwise
from pathlib import Path
from typing import Any

from quant.errors import QuantError

VOCABULARY_TOKENS = 201_088  # rows of gpt-oss's embedding
START_OF_TEXT, END_OF_TEXT, RETURN, CALL = 199_998, 199_999, 200_002, 200_012
NAMES = {
    START_OF_TEXT: "startoftext",
    END_OF_TEXT: "endoftext",
    RETURN: "return",
    200_003: "constrain",
    200_005: "channel",
    200_006: "start",
    200_007: "end",
    200_008: "message",
    CALL: "call",
}
LAST_CONTROL = 200_018  # what follows has rows in the embedding, and no name
NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's kinds of tokens
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
Merge = tuple[bytes, bytes]


def add_vocabulary(writer: Any, path: Path, tokens: int = VOCABULARY_TOKENS) -> None:
    """Add the vocabulary of tiktoken's file `path`, harmony's control tokens and a chat template to gguf's
    `writer`, `tokens` in all, more than CALL. Raises: QuantError for a file that is missing or another.
    """
    ranks = read_ranks(path)
    words = [_visible(token) for token in ranks]
    controls = range(len(ranks), tokens)
    words += [f"<|{NAMES.get(token, f'reserved_{token}')}|>" for token in controls]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(words)
    kinds = [CONTROL if token <= LAST_CONTROL else UNUSED for token in controls]
    writer.add_token_types([NORMAL] * len(ranks) + kinds)
    writer.add_token_merges([f"{_visible(left)} {_visible(right)}" for left, right in merges_of(ranks)])
    writer.add_bos_token_id(START_OF_TEXT)
    writer.add_eos_token_id(RETURN)
    writer.add_pad_token_id(END_OF_TEXT)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def add_placeholder(writer: Any, tokens: int) -> None:
    """Add `tokens` tokens without text, for another vocabulary than gpt-oss's: llama.cpp wants some."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list([f"<{i}>" for i in range(tokens)])
    writer.add_token_types([NORMAL] * tokens)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(min(RETURN, tokens - 1))


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of tiktoken's file `path` and their ranks, which are their ids. Raises: QuantError."""
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except OSError as error:
        raise QuantError(f"{path}: cannot be read ({error.strerror}); install localoss again") from None
    except (ValueError, binascii.Error):
        raise QuantError(f"{path}: no vocabulary of tiktoken; install localoss again") from None
    if list(ranks.values()) != list(range(START_OF_TEXT)):
        raise QuantError(f"{path}: {len(ranks):,} tokens, not the {START_OF_TEXT:,} of gpt-oss")
    return ranks


def merges_of(ranks: dict[bytes, int]) -> list[Merge]:
    """The pair that makes each token of more than one byte, in the order of the ranks."""
    return [_pair(token, rank, ranks) for token, rank in ranks.items() if len(token) > 1]


def _pair(token: bytes, rank: int, ranks: dict[bytes, int]) -> Merge:
    """The two parts that byte pair encoding with ranks below `rank` leaves of `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        at = min(range(len(found)), key=found.__getitem__)
        if found[at] >= rank:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2:
        raise QuantError(f"token {rank} is no pair of earlier tokens; the vocabulary is damaged")
    return parts[0], parts[1]


def _visible(token: bytes) -> str:
    """`token` in the alphabet of GPT-2, a printable character for each byte."""
    return "".join(map(_ALPHABET.__getitem__, token))


def _alphabet() -> list[str]:
    """Printable Latin-1 stands for itself; the other bytes, in their order, for what follows 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]


_ALPHABET = _alphabet()
