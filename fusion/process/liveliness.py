"""How much each pixel of the ground changes from look to look, as a variance in units of the average: what its class does, and what it did itself.

    d_i(s) = y_i(s) - y_b(i)(s) - step_i                   b(i): the look of the same band before look i;  step_i, swing_i: mean and variance over s
    v(s)   = sum_i weight_i d_i^2(s) / swing_i / n(s)      over looks that saw s and the one before;  n(s) = sum_i weight_i
    a^2(s) = (GUESS c(s) + n v(s)) / (GUESS + n)

weight_i: 1 / bands of the sensor, so that n counts differences between dates, and ASIDE times that where no latent time lies between the two looks:
a field that changed from the first image to the second need not be the one that changes after them. c(s): the mean of v over the pixel's class
(`landscape.Cover`). The last line is the harmonic posterior mean of a^2 where precisions 1 / a^2 have a gamma prior of shape GUESS / 2 about the
class's (Gelman et al. 2013, Bayesian Data Analysis, section 2.6). Differences between neighbours in time foretell what happens between looks better
than the variance over all looks, which the seasons rule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Planes = NDArray[np.floating]
Floats = NDArray[np.float64]
GUESS = 1.0
"""differences between looks that a class's liveliness is worth as a guess at a pixel's: chosen on Coleambally"""
ASIDE = 0.1
"""what a difference between looks is worth if nothing is to be foretold between them"""


def differences(planes: Planes, before: NDArray[np.integer]) -> Floats:
    """(N, ...) planes minus the planes before them, NaN where either is missing.  before: (N,) index of a plane, -1 = none."""
    out = planes.astype(np.float64) - planes[before]
    out[before < 0] = np.nan
    return out


def usual(found: Floats) -> tuple[Floats, Floats]:
    """(step (N,), swing (N,)) of differences (N, ...): their mean and variance over the ground, 0 where nothing was seen."""
    flat = found.reshape(len(found), -1)
    seen = np.isfinite(flat)
    count = np.maximum(seen.sum(1), 1)
    step = np.where(seen, flat, 0.0).sum(1) / count
    return step, np.where(seen, (flat - step[:, None]) ** 2, 0.0).sum(1) / count


def change(found: Floats, step: Floats, swing: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """((...) v, (...) n) of the module's equation; where n = 0 there is no v, and it is 0.  found: (N, ...) differences; others: (N,)."""
    wide = (-1, *(1,) * (found.ndim - 1))
    told = np.isfinite(found) & (swing > 0).reshape(wide)
    each = told * weight.reshape(wide)
    unit = np.where(told, found - step.reshape(wide), 0.0) ** 2 / np.where(swing > 0, swing, 1.0).reshape(wide)
    number = each.sum(0)
    return (each * unit).sum(0) / np.where(number > 0, number, 1.0), number


def shrunk(own: Floats, number: Floats, group: Planes) -> Floats:
    """(...) a^2 of the module's equation.  own, number: of `change`; group: c."""
    return np.asarray((GUESS * group + number * own) / (GUESS + number), np.float64)
