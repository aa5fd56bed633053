"""Reduced checkpoints, the demo model's layout: one with random weights, and any with all of its rows."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from support import checkpoints, layouts, naive

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
KNOWN = 3000  # token ids with a row of their own
DIMENSIONS = dict(
    layers=3, hidden=64, intermediate=96, heads=6, kv_heads=3, head_dim=16,
    experts=7, active=4, vocab=201_088, window=24, rope="rope_scaling",
)  # fmt: skip


def token_ids(seed: int = 0) -> list[int]:
    """Both ends of the vocabulary, harmony's control tokens, and some between."""
    rng = np.random.RandomState(seed)
    fixed = [0, 1, *range(199_998, 200_019), 201_087]
    drawn = rng.choice(np.setdiff1d(np.arange(201_088), fixed), KNOWN - len(fixed), replace=False)
    return sorted([*fixed, *drawn.tolist()])


def tensors_of(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors with bfloat16 experts and KNOWN + 1 rows for the vocabulary, and config.json."""
    config = checkpoints.config_for(**DIMENSIONS)
    small = config | {"vocab_size": KNOWN + 1}
    tensors, dense_config = layouts.dense(checkpoints.make_tensors(small, seed), small)
    return tensors, dense_config | {"vocab_size": config["vocab_size"]}


def write(folder: Path, seed: int = 0) -> Path:
    """Write the reduced checkpoint into `folder`, and give the folder back."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, config = tensors_of(seed)
    checkpoints.write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "token_ids.json").write_text(json.dumps(token_ids()))
    return folder


def expand(source: Path, folder: Path) -> Path:
    """Write the reduced checkpoint `source` in the published layout, a row for every token, into `folder`."""
    config = json.loads((source / "config.json").read_text())
    known = json.loads((source / "token_ids.json").read_text())
    tensors = dict(naive.read_safetensors(source / "model.safetensors"))
    for name in VOCABULARY:
        rows = tensors[name]
        expanded = np.empty((config["vocab_size"], rows.shape[1]), np.uint16)
        expanded[:] = rows[len(known)]
        for row, token in enumerate(known):
            expanded[token] = rows[row]
        tensors[name] = expanded
    return checkpoints.write_tensors(folder, config, tensors)


def sha256_of(folder: Path) -> str:
    """One sha256 over the three files of a reduced checkpoint."""
    digest = hashlib.sha256()
    for name in ("config.json", "token_ids.json", "model.safetensors"):
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()
