"""The naive lines: what a user gets without any model.

Gaps in a given image take the pixel's value from the given image before, else after; a coarse gap likewise in the coarse series.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.pairs import Case

Array = NDArray[np.float64]


def predictions(case: Case) -> dict[str, Array]:
    """method -> (B, Y, X): last image, linear in time between the nearest given dates, the same plus the coarse anomaly."""
    pair = case.pair
    fine = dict(zip(case.given, _carried(pair.fine[list(case.given)]), strict=True))
    coarse = _carried(pair.coarse)
    before, after = case.around
    share = (pair.fine_dates[case.target] - pair.fine_dates[before]) / (pair.fine_dates[after] - pair.fine_dates[before])
    index = [int(np.flatnonzero(pair.coarse_dates == pair.fine_dates[i])[0]) for i in (before, after, case.target)]
    linear = (1 - share) * fine[before] + share * fine[after]
    anomaly = coarse[index[2]] - (1 - share) * coarse[index[0]] - share * coarse[index[1]]
    spread = np.zeros_like(linear)
    blocks = anomaly.repeat(pair.ratio, axis=-2).repeat(pair.ratio, axis=-1)
    spread[:, : blocks.shape[1], : blocks.shape[2]] = blocks
    return {"last image": fine[before], "linear in time": linear, "linear + coarse anomaly": linear + spread}


def _carried(series: Array) -> Array:
    """(N, ...) with NaN replaced by the value before, and at the start by the value after."""
    out = series.copy()
    for i in range(1, len(out)):
        out[i] = np.where(np.isnan(out[i]), out[i - 1], out[i])
    for i in range(len(out) - 2, -1, -1):
        out[i] = np.where(np.isnan(out[i]), out[i + 1], out[i])
    return out
