"""The functions of time that deviations are made of: fewer than there are times, so they agree with a level's courses at knots.

    Psi = Q of the QR decomposition of C(., knots)          C: (T, T) the levels' mean temporal covariance
    c   = Psi(knots_l, 1..R_l)^-1 f(knots_l)                 the coefficients of a course f of level l: its own values at its knots

Between knots a course is the line of best prediction from them (predictive process: Banerjee, Gelfand, Finley & Sang 2008, Journal of the Royal
Statistical Society B 70), which stays among its neighbours. Knots are the pivots of a Cholesky decomposition of C (Harbrecht, Peters & Schneider
2012, Applied Numerical Mathematics 62): each in turn the time that those before it leave most open. Times when fine looks saw the ground come
first: a function that cannot agree with a look is wrong between looks too. The first R_l knots belong to the first R_l functions, so a level
with fewer of both has its own courses exactly there.

The leading eigenvectors of C, which leave least variance over all times, are no such functions. What they leave out are differences of high order
between close times; without these a course is a polynomial through its looks, and swings between them (fusion/DESIGN.md, 30 November 2026).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RANKS = {"class": 6, "object": 8, "place": 6, "pixel": 8}
"""functions per level of a long calendar, whose tiles would cost too much with more: time and memory go with R^2"""
SHORT = 12
"""functions of every level where there are at most twice as many times: up to as many times nothing is left out"""


def temporal_functions(times: int, ranks: Mapping[str, int] | None = None) -> dict[str, int]:
    """level -> R_l, default RANKS, or SHORT for a short calendar: never more than there are times, and pixels have as many as any other level.

    Whatever can change in a class or a segment can change in a pixel (how much, its variance says), and the solver eliminates pixels first.
    """
    usual = RANKS if times > 2 * SHORT else dict.fromkeys(RANKS, SHORT)
    out = {name: min({**usual, **(ranks or {})}[name], times) for name in RANKS}
    return {**out, "pixel": max(out.values())}


def pivots(covariance: Array, count: int, looked: Sequence[int] = ()) -> list[int]:
    """The first `count` knots, in order.  covariance: (T, T). looked: the times that come first."""
    left, chosen, rest = covariance.astype(np.float64), list[int](), set(range(len(covariance)))
    for _ in range(count):
        pool = sorted(rest.intersection(looked) or rest)
        best = pool[int(np.argmax(np.diag(left)[pool]))]
        left = left - np.outer(left[:, best], left[best]) / max(left[best, best], 1e-12)
        chosen.append(best)
        rest.remove(best)
    return chosen


def functions(covariance: Array, widths: Mapping[str, int], looked: Sequence[int] = ()) -> tuple[Array, dict[str, Array]]:
    """(Psi (T, R), level -> (R_l, T) from a course to its coefficients in the first R_l functions), of the module's equations.

    covariance: C. widths: level -> R_l, R the largest. looked: times of fine looks.
    """
    knots = pivots(covariance, max(widths.values()), looked)
    psi, _ = np.linalg.qr(covariance[:, knots])
    psi = psi * np.where(psi.sum(0) < 0, -1.0, 1.0)
    given = {}
    for level, width in widths.items():
        at = knots[:width]
        given[level] = np.zeros((width, len(covariance)))
        given[level][:, at] = np.linalg.inv(psi[at, :width])
    return psi, given
