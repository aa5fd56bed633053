"""What a forward pass on the CPU writes on its way, allocated once."""

from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from localoss.kernels.layer import Work, routines
from localoss.kernels.matmul import PANELS
from localoss.model.weights import address
from localoss.plan.sizes import buffer_sizes
from quant.format.config import ModelConfig

F32Array = NDArray[np.float32]


class Buffers:
    """What a forward pass of up to `tokens` tokens writes on its way, allocated once: sizes.buffer_sizes.

    `at` has the address of each array: asking NumPy for one takes as long as calling a kernel.
    """

    x: F32Array  # (tokens or pass_tokens, D): the residual stream
    qkv: F32Array
    blocks: F32Array
    router_logits: F32Array
    expert_ids: NDArray[np.int32]
    expert_weights: F32Array
    starts: NDArray[np.int64]
    active: NDArray[np.int32]
    sources: NDArray[np.int32]
    places: NDArray[np.int32]
    in_order: NDArray[np.int32]
    gathered: F32Array  # (D/32, pairs, 32) in exact arithmetic: what the experts are given
    h: NDArray[np.generic]  # (I/32, pairs, 32): float32 in exact arithmetic, else int8
    attention_scratch: F32Array

    def __init__(
        self,
        config: ModelConfig,
        tokens: int,
        threads: int,
        exact: bool,
        exact_experts: bool,
        pass_tokens: int = 0,
    ):
        """exact: activations stay float32. exact_experts: the experts' do, for exact or for bf16 weights.
        pass_tokens: rows of x, if there are to be more than the other buffers have.
        """
        sizes = buffer_sizes(config, tokens, threads, exact_experts, pass_tokens)
        # Written to, not np.empty: the system gives memory at the first write, and none may come later.
        arrays = {name: np.full(size.shape, 0, size.dtype) for name, size in sizes.items()}
        vars(self).update(arrays)
        self.tokens = tokens
        self.in_order[:] = np.arange(tokens)
        self.nbytes = sum(array.nbytes for array in arrays.values())
        self.at = SimpleNamespace(**{name: address(array) for name, array in arrays.items()})
        workers = (threads, self.at.scratch, self.at.counter, PANELS.address)
        self.work = tuple(
            Work(
                tuple(routines(exact_experts)),
                workers,
                exact,
                self.at.blocks,
                self.at.codes,
                self.at.scales,
                self.at.in_order,
            )
        )
        self._streams = [(self.x, self.at.x)]

    def add_streams(self, count: int) -> None:
        """Take memory for so many residual streams more, of passes that may wait between two layers."""
        self.waiting_x = np.full((count, *self.x.shape), 0, np.float32)
        self._streams += [(x, address(x)) for x in self.waiting_x]
        self.nbytes += self.waiting_x.nbytes

    def use_stream(self, number: int) -> None:
        """Let `x` be this residual stream: 0 is that of passes which run in one go.

        All else is written and read within one layer, so that passes which wait share it.
        """
        self.x, self.at.x = self._streams[number]
