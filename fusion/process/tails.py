"""How errors are spread about what was expected, in units of their sd: most are smaller than a normal law has it, a few far larger.

Fields stay as they are for weeks and are cut in a day. A posterior that is normal given theta gets the mean square of its errors right and not
their shape: its intervals of 50 % are then too wide. The shape is a scale mixture of normals with mean square 1,

    z ~ mean_j N(0, s_j^2),    s_j^2 ~ 1 / q_j,    q_j: quantile (j - 1/2) / J of chi^2 with nu degrees of freedom,    mean_j s_j^2 = 1,

which is Student's t (Andrews & Mallows 1974, Journal of the Royal Statistical Society B 36) with J = 8 scales in place of all: its moments are finite
for every nu. Its parameter is the tail index 1 / nu (0 = normal, 1/2 at most), learned from looks that are predicted from all others.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr, ndtri

from fusion.errors import JobError

Floats = NDArray[np.float64]
SCALES = 8
HEAVIEST = 0.5
"""largest tail index: nu = 2, where Student's t loses its variance"""
LIGHTEST = 1e-6
"""smallest tail index that is told from 0"""
PRIOR = 0.15
"""sd of the tail index, a half-normal: nu = 10 in the median"""
STEPS = np.linspace(0.0, HEAVIEST, 51)
"""tail indices that are compared, and between whose quantiles others are interpolated"""
WIDEST = 12.0
"""sd: beyond it the law has less than 1e-4 of its mass"""


def scales(tail: Any, count: int = SCALES) -> Floats:
    """(..., count) s_j from the largest to the smallest, mean square 1.  tail: (...) 1 / nu."""
    half = 0.5 / np.maximum(np.asarray(tail, np.float64), LIGHTEST)[..., None]
    square = half / gammaincinv(half, (np.arange(count) + 0.5) / count)
    return np.asarray(np.sqrt(square / square.mean(-1, keepdims=True)))


def cdf(z: Any, tail: Any = 0.0) -> Floats:
    """P(Z < z), of arrays that broadcast."""
    return np.asarray(ndtr(np.asarray(z, np.float64)[..., None] / scales(tail)).mean(-1))


@cache
def _table() -> tuple[Floats, Floats]:
    """(z, cdf (tail indices of STEPS, z)) to interpolate quantiles in."""
    z = np.linspace(0.0, WIDEST, 2401)
    return z, np.stack([cdf(z, tail) for tail in STEPS])


def quantile(p: Any, tail: Any = 0.0) -> Floats:
    """z with P(Z < z) = p, over the axes of `tail` and then those of `p`; NaN where the tail index is.  p: inside 0..1."""
    z, table = _table()
    p, tail = np.asarray(p, np.float64), np.asarray(tail, np.float64)
    upper = np.maximum(p, 1 - p).ravel()
    found = np.stack([np.interp(upper, row, z) for row in table], 1) * np.sign(p - 0.5).reshape(-1, 1)  # (p, STEPS)
    each = [np.interp(tail, STEPS, row, left=np.nan, right=np.nan) for row in found]
    return np.stack(each, -1).reshape((*tail.shape, *p.shape))


def levels(q: Any) -> Floats:
    """The quantiles that somebody asks for, (Q,).  Raises JobError for one outside 0..1."""
    asked = np.atleast_1d(np.asarray(q, np.float64))
    if asked.size == 0 or not ((asked > 0) & (asked < 1)).all():
        raise JobError(f"asked for quantiles {q}: give numbers between 0 and 1, such as (0.05, 0.5, 0.95)")
    return asked


def crps(error: Any, sd: Any, tail: float = 0.0) -> Floats:
    """Continuous ranked probability score of errors under the law times their sd.

        mean_j A(e, s_j) - 1/2 mean_ij A(0, sqrt(s_i^2 + s_j^2)),    A(m, s) = 2 s phi(m / s) + m (2 Phi(m / s) - 1),    e = error / sd

    Source: Grimit, Gneiting, Berrocal & Johnson 2006, Quarterly Journal of the Royal Meteorological Society 132, eq. 5.
    """
    own = scales(tail)
    e = np.asarray(error, np.float64) / sd

    def spread(m: Any, s: float) -> Any:
        return 2 * s * np.exp(-0.5 * (m / s) ** 2) / np.sqrt(2 * np.pi) + m * (2 * ndtr(m / s) - 1)

    within = np.mean([spread(0.0, float(np.hypot(a, b))) for a in own for b in own])
    return np.asarray(sd * (sum(spread(e, s) for s in own) / SCALES - 0.5 * within))


def normal_score(z: Any, tail: Any) -> Floats:
    """Phi^-1 of the law's cdf at z: standard normal where z has the law, so that whatever is made for normal errors can judge it."""
    below = cdf(-np.abs(z), tail)  # the small tail, which floating point knows
    return np.asarray(-np.sign(z) * ndtri(np.maximum(below, 1e-300)))


def learned(groups: Iterable[Any], share: float) -> float:
    """The tail index of standardised errors, the mode under the prior; 0 where there are none.

    groups: each (n,), of a common scale of its own, which is learned beside it: how large errors are is the sd's business. share: of them that
    count as independent.
    """
    score = -0.5 * (STEPS / PRIOR) ** 2
    for group in groups:
        z = np.abs(np.asarray(group, np.float64))
        z = z[np.isfinite(z)]
        if z.size > 1 and z.any():
            score += share * _fitted(z)
    return float(STEPS[score.argmax()])


def _fitted(z: Floats) -> Floats:
    """(STEPS,) log likelihood of each tail index at the best of the scales between e^-2 and e^1.5 of what the median says.  z: (n,), |z|."""
    value, count = _binned(z)
    sizes = np.exp(np.linspace(-2.0, 1.5, 71)) * max(float(np.median(z)) / 0.6745, 1e-6)
    out = []
    for tail in STEPS:
        each = np.multiply.outer(sizes, scales(tail))[:, None]  # (sizes, 1, J)
        density = (np.exp(-0.5 * (value[:, None] / each) ** 2) / each).mean(-1)
        out.append((np.log(np.maximum(density, 1e-300)) @ count).max())
    return np.array(out)


def _binned(z: Floats) -> tuple[Floats, Floats]:
    """(values, how many there are of each): more than a few hundred are told apart to 3 % only."""
    if z.size <= 512:
        return z, np.ones(z.size)
    step = np.round(np.log(np.maximum(z, 1e-3 * np.median(z))) / 0.03)
    found, count = np.unique(step, return_counts=True)
    return np.exp(0.03 * found), count.astype(np.float64)


__all__ = ["HEAVIEST", "SCALES", "cdf", "crps", "learned", "levels", "normal_score", "quantile", "scales"]
