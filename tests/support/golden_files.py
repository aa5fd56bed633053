"""Read the logits that tests/golden/make_golden.py stored."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "golden"
NAMES = ("short", "window", "long", "wide")


@dataclass(frozen=True)
class Golden:
    """`transformers` on one checkpoint: logits (P, V) f32 at `positions` of `tokens`."""

    tokens: list[int]
    positions: list[int]
    logits: np.ndarray
    checkpoint_sha256: str


def read_golden(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as stored:
        return Golden(
            tokens=stored["tokens"].tolist(),
            positions=stored["positions"].tolist(),
            logits=stored["logits"],
            checkpoint_sha256=str(stored["checkpoint_sha256"]),
        )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(reference || logits) in nats at each position; both (P, V) logits or log-probabilities."""
    p, q = log_softmax(reference), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1)
