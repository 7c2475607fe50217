"""Covariances between dates: the temporal prior of every level, and the empirical covariance it may be blended with.

A level's temporal covariance is a convex mixture, unit variance on average over the dates,

    C = (1 - w) [ a_s 1 1^T + a_a cos(2 pi dt / 365.25) + a_m S(dt; length) + a_r M_1/2(dt / 4 d) ] + w E,
    S = SMOOTH M_3/2(dt / length) + (1 - SMOOTH) M_1/2(dt / (3 length)),

of what never changes, an annual cycle of free phase, slow change, rough change, and E, the covariance between dates
that the data show (`empirical`).  Slow change is a fifth smooth, the rest not.  A process with a slope (Matern-3/2) averages over looks of one
week, but carries their slope on into a gap, overshoots there and is too sure of it; an Ornstein-Uhlenbeck process stays near the
straight line across a gap, but between close looks follows each one's error.  The rough part never vanishes, so that C stays well
conditioned.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

YEAR = 365.25
ROUGH_DAYS = 4.0
"""correlation time of the rough part, days: two looks in one week share weather and ground wetness, two months do not"""
SMOOTH = 0.2
"""share of the slow part that has a slope: a compromise of Salton and four summers of Landsat (fusion/DESIGN.md)"""
PATIENCE = 3.0
"""memory of the slow part without a slope, in lengths of the one with: chosen on Salton and Coleambally (fusion/DESIGN.md)"""


def lags(days: ArrayLike) -> Array:
    """(T, T) absolute time differences, days.  days: (T,)."""
    days = jnp.asarray(days)
    return jnp.abs(days[:, None] - days[None, :])


def matern12(lag: Array, length: ArrayLike) -> Array:
    """exp(-|dt| / length), the Ornstein-Uhlenbeck process (Rasmussen & Williams 2006, eq. 4.18)."""
    return jnp.exp(-lag / length)


def matern32(lag: Array, length: ArrayLike) -> Array:
    """(1 + r) exp(-r), r = sqrt(3) |dt| / length: once differentiable (Rasmussen & Williams 2006, eq. 4.17)."""
    scaled = jnp.sqrt(3.0) * lag / length
    return (1.0 + scaled) * jnp.exp(-scaled)


def slow(lag: Array, length: ArrayLike) -> Array:
    """S of the module's equation: change over weeks, by a process with a slope and one that remembers three times as long without."""
    return SMOOTH * matern32(lag, length) + (1 - SMOOTH) * matern12(lag, PATIENCE * jnp.asarray(length))


def annual(lag: Array) -> Array:
    """cos(2 pi dt / year): one harmonic of random amplitude and phase (its two quadratures have equal variance)."""
    return jnp.cos(2.0 * jnp.pi * lag / YEAR)


def mixture(days: ArrayLike, shares: ArrayLike, length: ArrayLike, learned: ArrayLike = 0.0, empirical: ArrayLike | None = None) -> Array:
    """(T, T) temporal covariance of a level, the module's equation.

    days: (T,). shares: (4,) non-negative weights of static, annual, slow, rough; only their ratios matter.
    length: days, of the slow part. learned: w in [0, 1). empirical: (T, T) covariance of unit mean diagonal, or None.
    """
    lag = lags(days)
    shares = jnp.asarray(shares)
    part = shares / shares.sum()
    anchor = part[0] + part[1] * annual(lag) + part[2] * slow(lag, length) + part[3] * matern12(lag, ROUGH_DAYS)
    return jnp.asarray(anchor if empirical is None else (1.0 - learned) * anchor + learned * jnp.asarray(empirical))


def empirical(series: NDArray[np.floating], weight: NDArray[np.floating], anchor: NDArray[np.floating], strength: float = 4.0) -> NDArray[np.float32]:
    """(T, T) covariance between dates of a set of series, shrunk to an anchor A; unit mean diagonal, positive definite.

    E = (sum_j E[y_j y_j^T | what was seen of y_j] / s2 + strength A) / (J + strength),     y_j ~ N(0, s2 A) there, s2: the seen values' mean square

    the posterior mean under an inverse-Wishart prior of `strength` pseudo-series, after one step of expectation-maximisation from the anchor
    (Little & Rubin 2019, Statistical Analysis with Missing Data, section 11.2): a date that nothing saw hangs on its neighbours as the anchor
    says, as much as these vary. Pairs of dates counted one by one would make it a stranger between two dates that agree.

    series: (J, T) deviations from their common mean.  weight: (J, T) 1 where seen, 0 where not.
    """
    seen, anchor = np.asarray(weight) > 0, np.asarray(anchor, np.float64)
    y = np.where(seen, series, 0.0).astype(np.float64)
    square = float((y**2).sum() / max(seen.sum(), 1))
    if not square > 0:
        return np.asarray(anchor, dtype=np.float32)
    told = seen.any(axis=1)
    masks, which = np.unique(seen[told], axis=0, return_inverse=True)
    total = strength * anchor
    for i, mask in enumerate(masks):
        gain = np.linalg.solve(anchor[np.ix_(mask, mask)], anchor[mask]).T
        mine = y[told][which.reshape(-1) == i][:, mask] @ gain.T
        total = total + mine.T @ mine / square + len(mine) * (anchor - gain @ anchor[mask])
    return np.asarray(total / np.mean(np.diag(total)), dtype=np.float32)
