"""Muon: momentum whose every step is made orthogonal. Source: https://kellerjordan.github.io/posts/muon/"""

from collections.abc import Iterable
from concurrent.futures import Executor

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """For matrices (rows, columns), and stacks of them (experts, rows, columns), each a job of `pool`."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, pool: Executor) -> None:
        super().__init__(parameters, {"lr": lr})
        self._pool = pool

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            list(
                self._pool.map(lambda parameter, lr=group["lr"]: self._update(parameter, lr), group["params"])
            )

    @torch.no_grad()
    def _update(self, parameter: nn.Parameter, lr: float) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient: Tensor = parameter.grad  # type: ignore[assignment]
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        rows, columns = parameter.shape[-2:]
        parameter.add_(
            _orthogonal(gradient.lerp(momentum, _MOMENTUM)), alpha=-lr * max(1, rows / columns) ** 0.5
        )


def _orthogonal(x: Tensor) -> Tensor:
    """The nearest matrix whose singular values are all about 1."""
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT
