"""Rotary embedding with YaRN: the angles of each position. Source: https://arxiv.org/abs/2309.00071."""

import math

import numpy as np
from numpy.typing import NDArray

from localoss.plan.sizes import KEYS_AT_ONCE
from quant.format.config import ModelConfig

F32Array = NDArray[np.float32]


class Rope:
    """Cosines and sines of rotary angles.

    inv_freq (head_dim/2,) f32. concentration: what YaRN scales queries and keys by. offsets: see _offsets.
    Every step is rounded to float32 as PyTorch rounds it: at position 131,071 a last bit of inv_freq is
    0.005 in the angle.
    """

    def __init__(self, config: ModelConfig):
        rope, half = config.rope, config.head_dim // 2
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        # C libraries differ in the last bit of a float32 power, so take it in float64.
        wavelengths = np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)
        one, factor = np.float32(1), np.float32(rope.factor)
        self.inv_freq: F32Array = one / wavelengths
        self.concentration = np.float32(1)
        if rope.factor > 1:
            first, last = _ramp_ends(config)
            ramp = (np.arange(half, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
            kept = one - np.clip(ramp, 0, 1)  # 1: turns fast and stays as it is; 0: slowed down by `factor`
            self.inv_freq = one / (factor * wavelengths) * (one - kept) + one / wavelengths * kept
            self.concentration = np.float32(rope.concentration or 0.1 * math.log(rope.factor) + 1)

        self.offsets = self._offsets(config.context)

    def _offsets(self, context: int) -> tuple[F32Array, F32Array]:
        """What turns a key bias to any position in two steps, for int8 caches: see kernels/kv_store.py.

        cos and sin to the first position of each block of KEYS_AT_ONCE, (blocks, 2, head_dim/2) f32, and from
        there to each position in it, (2, head_dim/2, KEYS_AT_ONCE) f32, the latter without concentration.
        """
        turns = self.inv_freq.astype(np.float64)
        firsts = np.arange(0, context + 1, KEYS_AT_ONCE)[:, None] * turns
        steps = turns[:, None] * np.arange(KEYS_AT_ONCE)
        first = np.stack([np.cos(firsts), np.sin(firsts)], axis=1) * self.concentration
        within = np.stack([np.cos(steps), np.sin(steps)])
        return first.astype(np.float32), within.astype(np.float32)

    def at(self, position: int, tokens: int) -> tuple[F32Array, F32Array]:
        """cos and sin (tokens, head_dim/2) f32 for positions `position`, position + 1, …"""
        angles = np.arange(position, position + tokens, dtype=np.float32)[:, None] * self.inv_freq
        return np.cos(angles) * self.concentration, np.sin(angles) * self.concentration


def _ramp_ends(config: ModelConfig) -> tuple[float, float]:
    """Which pairs of dimensions turn beta_fast and beta_slow times within the original context."""
    rope, dim = config.rope, config.head_dim

    def pair_that_turns(times: float) -> float:
        return dim * math.log(rope.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    return first, last if last > first else first + 0.001
