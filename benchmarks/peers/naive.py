"""The naive lines: what a user gets without any model.

Gaps in a given image take the pixel's value from the given image before, else after; a coarse gap likewise in the coarse series.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.pairs import Case, Pair

Array = NDArray[np.float64]


def predictions(case: Case) -> dict[str, Array]:
    """method -> (B, Y, X): last image, linear in time between the nearest given dates, the same plus the coarse anomaly.

    After the last given image: that image, and the same plus the coarse change since.
    """
    pair = case.pair
    fine = dict(zip(case.given, _carried(pair.fine[list(case.given)]), strict=True))
    coarse = dict(zip(pair.coarse_dates, _carried(pair.coarse), strict=True))
    day = pair.fine_dates
    last = max(case.given)
    if case.target > last:
        change = coarse[day[case.target]] - coarse[day[last]]
        return {"last image": fine[last], "last image + coarse change": fine[last] + _on_pixels(change, pair)}
    before, after = case.around
    share = (day[case.target] - day[before]) / (day[after] - day[before])
    linear = (1 - share) * fine[before] + share * fine[after]
    anomaly = coarse[day[case.target]] - (1 - share) * coarse[day[before]] - share * coarse[day[after]]
    return {"last image": fine[before], "linear in time": linear, "linear + coarse anomaly": linear + _on_pixels(anomaly, pair)}


def _on_pixels(cells: Array, pair: Pair) -> Array:
    """(B, Y, X) of cells (B, H, W), 0 beyond them."""
    out = np.zeros((len(cells), *pair.fine.shape[2:]))
    blocks = cells.repeat(pair.ratio, axis=-2).repeat(pair.ratio, axis=-1)
    out[:, : blocks.shape[1], : blocks.shape[2]] = blocks
    return out


def _carried(series: Array) -> Array:
    """(N, ...) with NaN replaced by the value before, and at the start by the value after."""
    out = series.copy()
    for i in range(1, len(out)):
        out[i] = np.where(np.isnan(out[i]), out[i - 1], out[i])
    for i in range(len(out) - 2, -1, -1):
        out[i] = np.where(np.isnan(out[i]), out[i + 1], out[i])
    return out
