"""/experts: a heat map of the experts that an answer's tokens went through, a row for each layer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHADES = " ·░▒▓█"
_LABEL = 4  # columns: a layer's number and a blank


def heat_map(counts: "NDArray[np.int64]", columns: int) -> list[str]:
    """Lines for a terminal of so many columns. counts: (layers, experts), how often each was chosen.

    An expert has two columns where there is room, else one; where there isn't, several share one, which shows
    the most used of them. Shades are shares of a layer's choices, up to the largest that there is.
    """
    layers, experts = counts.shape
    totals = counts.sum(axis=1)
    if not totals.any():
        return ["(the layers are on a device, which doesn't count)"]
    room = max(columns - _LABEL - 1, 1)
    width = 2 if 2 * experts <= room else 1
    together = -(-experts // room) if width == 1 else 1
    most = max(int(row.max()) / max(int(total), 1) for row, total in zip(counts, totals, strict=True))
    lines = [
        f"{layer:>{_LABEL - 1}} "
        + _row([int(count) for count in counts[layer]], int(totals[layer]), most, together, width)
        for layer in range(layers)
    ]
    shared = f", {together} experts a column" if together > 1 else ""
    unused = int((counts == 0).sum())
    return [
        *lines,
        f"({layers} layers down, {experts} experts across{shared}; █ is {most:.0%} of a layer's choices;",
        f" {unused:,} of {layers * experts:,} experts had no token)",
    ]


def _row(counts: list[int], total: int, most: float, together: int, width: int) -> str:
    groups = [max(counts[first : first + together]) for first in range(0, len(counts), together)]
    return "".join(_shade(count / max(total, 1) / most) * width for count in groups).rstrip()


def _shade(share: float) -> str:
    """Nothing for nothing, and something for the least."""
    return _SHADES[0] if share == 0 else _SHADES[max(1, round(share * (len(_SHADES) - 1)))]
