"""MXFP4 in the forward pass: weights as the quantizer will make them, gradients straight through."""

import torch
from torch import Tensor

from quant.format import numbers as formats


def round_mxfp4(weights: Tensor) -> Tensor:
    """`weights` (E, C, R), rounded to bfloat16, then in blocks of 32 along C; the gradient passes unchanged.

    The same values as quant.format.numbers' encode_mxfp4 and decode_mxfp4 of each expert's transpose.
    """
    with torch.no_grad():
        rounded = _rounded(weights.detach().bfloat16().float())
    return weights + (rounded - weights).detach()


def _rounded(weights: Tensor) -> Tensor:
    experts, columns, rows = weights.shape
    blocks = weights.view(experts, columns // 32, 32, rows)
    extremes = blocks.abs().amax(2, keepdim=True)
    exponents = torch.frexp(extremes).exponent - 1 - formats.FP4_LARGEST_EXPONENT
    scales = exponents.clamp(-formats.E8M0_BIAS, formats.E8M0_NAN - 1 - formats.E8M0_BIAS)
    magnitudes = blocks.abs()
    best, least = _nearest(magnitudes, scales)
    for step in formats.MXFP4_STEPS:
        tried, error = _nearest(magnitudes, scales + step)
        better = error < least * float(formats.SURELY_LESS)
        best, least = torch.where(better, tried, best), torch.where(better, error, least)
    return torch.copysign(best, blocks).view_as(weights)


def _nearest(magnitudes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """What `magnitudes` become with `scales` (exponents), and each block's squared error."""
    unit = torch.ldexp(torch.ones(scales.shape), scales)
    scaled = magnitudes / unit
    # FP4's steps are 0.5 up to 2, 1 up to 4 and 2 up to 6; an even multiple of a step has an even code.
    steps = torch.where(scaled < 2, 0.5, torch.where(scaled < 4, 1.0, 2.0))
    values = (scaled / steps).round_().mul_(steps).clamp_(max=float(formats.FP4_VALUES.max())).mul_(unit)
    return values, (magnitudes - values).square_().sum(2, keepdim=True)
