"""What changed between two looks of a pixel may have changed at one moment that nobody saw.

    zeta(t) = sqrt(sudden) beta(t) d,     d = x(t+) - x(t-) - mean of it over the ground,     t- <= t <= t+ the looks around t
    E[beta(t) beta(t')] = u (1 - u'),     u = (t - t-) / (t+ - t-) <= u'

The variance of a Gaussian field between two looks does not heed how much they differ. But a harvest is a step: where its moment is uniform between
the looks, a step's mean is the straight line and its covariance d^2 u (1 - u'), that of a Brownian bridge (the uniform empirical process: Billingsley
1999, Convergence of Probability Measures, section 14). So a share `sudden` of it is added to the field's, for each canonical component apart. It is
nothing at the looks; no mean moves.

After a pixel's last look (and before its first) there is no second one to bridge to. But what it is said to have changed since is what a coarse
sensor tells of cells and classes of fields, and may have come to this pixel or not: there beta is one N(0, 1) for all times, and d = x(t) - x(t-).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SUDDEN = 0.2
"""share of a change between looks that comes at one moment: by the log density of hidden images of three places"""


@dataclass(frozen=True, eq=False)
class Between:
    """The looks around each time, for every place."""

    before: NDArray[np.intp]
    """(T, ...) index of the look at or before; 0 where none"""
    after: NDArray[np.intp]
    """(T, ...) index of the look at or after"""
    share: Floats
    """(T, ...) u, 0 where there are not two looks"""
    alone: NDArray[np.bool_]
    """(T, ...) where there are looks on one side only: `before` and `after` are the nearest"""

    @property
    def spread(self) -> Floats:
        """(T, ...) variance of beta: u (1 - u) between looks, 1 beyond them."""
        return np.where(self.alone, np.float32(1), self.share * (1 - self.share))

    @classmethod
    def of(cls, seen: NDArray[np.bool_], days: NDArray[np.floating], *, apart: bool = False) -> Between:
        """seen: (T, ...) where there are looks. days: (T,).  apart: the looks around a look are others, not itself, and on both sides."""
        count = len(seen)
        index = np.arange(count).reshape(-1, *(1,) * (seen.ndim - 1))
        before = np.maximum.accumulate(np.where(seen, index, -1), 0)
        after = np.minimum.accumulate(np.where(seen, index, count)[::-1], 0)[::-1]
        if apart:
            before = np.concatenate([np.full_like(before[:1], -1), before[:-1]])
            after = np.concatenate([after[1:], np.full_like(after[:1], count)])
        past, future = before >= 0, after < count
        alone = (past != future) & (not apart)
        first = np.where(past, before, after)  # the nearest look of those that are alone
        before, after = (np.where(past & future, at, np.where(alone, first, 0)) for at in (before, after))
        span = days[after] - days[before]
        gone = days.reshape(index.shape) - days[before]
        return cls(before, after, np.where(span > 0, gone / np.where(span > 0, span, 1.0), 0.0).astype(np.float32), alone)

    def change(self, x: NDArray[Any]) -> NDArray[Any]:
        """(T, K, ...) what x (T, K, ...) changes between the looks around each time, or since the nearest; 0 where there is none."""
        later, earlier = (np.take_along_axis(x, at[:, None], 0) for at in (self.after, self.before))
        return np.where(self.alone[:, None], x, later) - earlier

    def bridge(self, white: Floats) -> Floats:
        """(T, K, ...) beta, by its steps from time to time.  white: (T, K, ...) standard normals."""
        out, last, past = np.zeros_like(white), np.zeros_like(white[0]), np.zeros_like(self.share[0])
        for t, now in enumerate(self.share):
            fresh = np.full(now.shape, t == 0) | (self.before[t] != self.before[t - 1])
            past = np.where(fresh, 0.0, past)
            left = (1 - now) / (1 - past)
            last = np.where(fresh, 0.0, last) * left + np.sqrt(np.maximum(now - past, 0.0) * left) * white[t]
            out[t], past = last * (now > 0), now
        # no gap has the first time inside, nor the last: their numbers are free for what lies before the first look and after the last
        ahead = self.before > np.arange(len(white)).reshape(-1, *(1,) * (self.before.ndim - 1))
        np.copyto(out, white[:1], where=(self.alone & ahead)[:, None])
        np.copyto(out, white[-1:], where=(self.alone & ~ahead)[:, None])
        return out


def unseen(x: NDArray[Any], between: Between) -> NDArray[Any]:
    """(T, K, Y, X) d of the module's equation for a field x (T, K, Y, X)."""
    found, there = between.change(x), (between.spread > 0)[:, None]
    mean = (found * there).sum((2, 3), keepdims=True) / np.maximum(there.sum((2, 3), keepdims=True), 1)
    return np.asarray((found - mean) * there)


def foreseen(value: NDArray[Any], seen: NDArray[np.bool_], response: NDArray[Any], days: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n, K) u (1 - u) d^2 of looks between their neighbours, as their channels see it.

    value: (n, K) of channels k that respond to components i by response (n, K, K). seen: (n, K). days: (n,), not falling.
    """
    own = np.einsum("nkk->nk", response)
    component = np.where(seen, value / np.where(seen, own, 1.0), 0.0)
    between = Between.of(seen, days, apart=True)
    spread = between.spread * between.change(component[:, None])[:, 0] ** 2
    return np.asarray(np.einsum("nki,ni->nk", response**2, spread), np.float64)
