"""From one fine image to the next: which images follow each other, and how much the ground changes between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusion.cube.calendar import Calendar
from fusion.infer.images import ALWAYS, Key
from fusion.infer.sight import Sight, Spread
from fusion.process.hierarchy import LEVELS, Hyper, level_covariance

SHOWN = 0.5
"""of what the median image shows: one that shows less does not stand between two others when these are compared"""


def previous(keys: Sequence[Key], patches: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) the plane before it in time of the same sensor and band, -1 = none.  Planes under more cloud than most are passed over.

    patches: (N, Q, h, w) of the planes named by keys, NaN = missing.
    """
    clear = np.isfinite(patches).mean((1, 2, 3)) * np.array([key[2] != ALWAYS for key in keys])
    least = SHOWN * np.median(clear[clear > 0]) if clear.any() else 0.0
    out = np.full(len(keys), -1)
    last: dict[tuple[str, str], int] = {}
    for i in sorted(range(len(keys)), key=lambda i: keys[i][2]):
        if clear[i] > least:
            out[i] = last.get(keys[i][:2], -1)
            last[keys[i][:2]] = i
    return out


def gaps(keys: Sequence[Key], before: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) is there a latent time between a plane and the one before it, for the looks around it to foretell?"""
    time = np.array([key[2] for key in keys])
    return (before >= 0) & (time - time[before] > 1)


def change(
    sensor: str, sight: Sight, keys: Sequence[Key], patches: NDArray[np.float32], calendar: Calendar, empirical: NDArray[np.floating] | None
) -> Spread | None:
    """How a sensor's images differ from the ones before them over the ground; None where none has one before it.

    d = y_i - y_b(i) less its mean over the ground.  Under the prior medians x_k of it has the variance
    sum_l sd_l^2 (C_l(i, i) + C_l(b, b) - 2 C_l(i, b)), l: all levels but the scene, which that mean takes out.
    sight: of the sensor. keys, patches: as of `previous`. empirical: (T, T) learned temporal covariance.
    """
    before, medians = previous(keys, patches), Hyper.default(1, ())
    place = {key: i for i, key in enumerate(keys)}
    levels = [level_covariance(calendar.days, medians, level, empirical) for level in LEVELS[1:]]
    covariance = np.tensordot(np.asarray(medians.sd[1:, 0], np.float64) ** 2, np.asarray(levels, np.float64), 1)
    pixels, square, expected = 0, np.zeros((len(sight.bands),) * 2), 0.0
    for time in sorted({key[2] for key in keys if key[0] == sensor}):
        planes = [place.get((sensor, band, time), -1) for band in sight.bands]
        if min(planes, default=-1) < 0 or (before[planes] < 0).any():
            continue
        found = (patches[planes] - patches[before[planes]]).reshape(len(planes), -1).astype(np.float64)
        found = found[:, np.isfinite(found).all(0)]
        found = found - found.mean(1, keepdims=True) if found.size else found
        last = keys[before[planes[0]]][2]
        pixels, square = pixels + found.shape[1], square + found @ found.T
        expected += found.shape[1] * float(covariance[time, time] + covariance[last, last] - 2 * covariance[time, last])
    return Spread(pixels, square / pixels, 2 * sight.noise, expected / pixels) if pixels else None
