"""The functions of time that deviations are made of: fewer than there are times, so they agree with a level's courses at knots.

    Psi = Q of the QR decomposition of [C(., looked knots), C'(., other knots)]          C: (T, T) the levels' mean temporal covariance
    f   ~ A_l f = Psi_l c,   c = Psi_l^T A_l f                                           f: a course of level l, Psi_l the first R_l functions
    A_l f = C_* C_**^-1 f_* + C'_o C'_oo^-1 (f_o - what the first term says there)       *: its looked knots, o: its other knots

C' = C - C(., looked) C(looked, looked)^-1 C(looked, .), looked: the times when fine looks saw the ground. Between knots a course is the line
of best prediction from them (predictive process: Banerjee, Gelfand, Finley & Sang 2008, Journal of the Royal Statistical Society B 70), which
stays among its neighbours; but a time with a look is predicted from knots with looks alone. At knots in gaps only the prior and coarse looks hold
a course; if looks hung on them, what the functions cannot follow in these looks would be followed by moving the gap, where nothing objects.

Knots are the pivots of a Cholesky decomposition (Harbrecht, Peters & Schneider 2012, Applied Numerical Mathematics 62): each in turn the time
that those before it leave most open. What is left open at looks counts APART of what is in gaps, since a pixel finds it again in its own looks
(`fusion.infer.remainder`). The first R_l knots belong to the first R_l functions.

The leading eigenvectors of C, which leave least variance over all times, are no such functions. What they leave out are differences of high order
between close times; without these a course is a polynomial through its looks, and swings between them (fusion/DESIGN.md, 30 November 2026).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVELS = ("class", "object", "place", "pixel")
FEW = {"class": 6, "object": 6, "place": 4, "pixel": 6}
"""functions per level of a long calendar, whose tiles would cost too much with more: time and memory go with R^2, of places with R^3"""
SHORT = 12
"""functions of every level where there are at most twice as many times: up to as many times nothing is left out"""
APART = 0.5
"""chosen on the gaps and single dates of Salton (fusion/DESIGN.md)"""
LEAST = 1e-9
"""variance under which nothing is left open, of one of the covariance"""


def temporal_functions(times: int, ranks: Mapping[str, int] | None = None) -> dict[str, int]:
    """level -> R_l, default FEW, or SHORT of each for a short calendar: never more than there are times, and pixels have as many as any other level.

    Whatever can change in a class or a segment can change in a pixel (how much, its variance says), and the solver eliminates pixels first.
    """
    usual = FEW if times > 2 * SHORT else dict.fromkeys(LEVELS, SHORT)
    out = {name: min({**usual, **(ranks or {})}[name], times) for name in LEVELS}
    return {**out, "pixel": max(out.values())}


def knots(covariance: Array, count: int, looked: Sequence[int] = ()) -> list[int]:
    """The first `count` knots, in order.  covariance: C. looked: times of fine looks."""
    fine = np.isin(np.arange(len(covariance)), looked)
    seen, chosen = given(covariance, np.flatnonzero(fine).tolist()), list[int]()
    for _ in range(count):
        first = [t for t in chosen if fine[t]]
        left = np.where(fine, APART * np.diag(given(covariance, first)), np.diag(given(seen, [t for t in chosen if not fine[t]])))
        left[chosen] = -1.0
        chosen.append(int(np.argmax(left)))
    return chosen


def given(covariance: Array, at: Sequence[int]) -> Array:
    """(T, T) covariance of courses whose values `at` some times are known."""
    return covariance - _best(covariance, at) @ covariance[at] if len(at) else covariance


def _best(covariance: Array, at: Sequence[int]) -> Array:
    """(T, len(at)) the weights of best prediction from the values at some times."""
    inner = covariance[at][:, at] + LEAST * np.eye(len(at))
    return np.asarray(np.linalg.solve(inner, covariance[at]).T)


def functions(covariance: Array, widths: Mapping[str, int], looked: Sequence[int] = ()) -> tuple[Array, dict[str, Array]]:
    """(Psi (T, R), level -> Psi_l^T A_l (R_l, T), from a course to its coefficients in the first R_l functions), of the module's equations.

    covariance: C. widths: level -> R_l, R the largest. looked: times of fine looks.
    """
    covariance = covariance.astype(np.float64)
    order, fine = knots(covariance, max(widths.values()), looked), set(looked)
    seen = given(covariance, sorted(fine))
    psi, _ = np.linalg.qr(np.stack([(covariance if t in fine else seen)[:, t] for t in order], axis=1))
    psi = psi * np.where(psi.sum(0) < 0, -1.0, 1.0)
    return psi, {level: psi[:, :width].T @ _followed(covariance, seen, order[:width], fine) for level, width in widths.items()}


def _followed(covariance: Array, seen: Array, at: Sequence[int], fine: set[int]) -> Array:
    """(T, T) A of the module's equation for the knots `at`.  seen: C'."""
    eye = np.eye(len(covariance))
    first, rest = [t for t in at if t in fine], [t for t in at if t not in fine]
    follows = _best(covariance, first) @ eye[first] if first else np.zeros_like(covariance)
    return follows + _best(seen, rest) @ (eye - follows)[rest] if rest else follows
