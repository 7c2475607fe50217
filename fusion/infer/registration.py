"""How wide a coarse cell is and by how much it is displaced, found by moving and blurring fine pictures of the same ground.

Least summed log residual variance over the bands, from the stated facts outwards, under a prior of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fusion.cube.cube import Cube
from fusion.infer.images import moved
from fusion.observe.footprint import footprint
from fusion.observe.observation import Observation
from fusion.observe.operator import Footprint
from fusion.observe.psf import FWHM_PER_SD

WHOLE = 0.9
"""share of a cell inside the grid that makes it one to register by"""
WIDTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.6, 2.0, 2.5)
"""tried factors on the blur"""
STEPS = (0.5, 0.25, 0.125)
"""pattern search of the shift, in cells"""
FARTHEST = 1.5
"""cells: geolocation is never worse"""
SHIFT_SD = 0.5
"""cells: a displacement is worth that much evidence against it"""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Coarse looks with fine pictures of their times."""

    coarse: list[Observation]
    pictures: Array
    """(n, B, Y, X) the fine images interpolated to the coarse look's times and bands"""
    clear: Array
    """(n, Y, X) 1 where the nearest fine look is clear"""
    days: Array
    """(n,)"""
    nearest: NDArray[np.integer]
    """(n,) which fine look is nearest in time"""


def residuals(pairs: Pairs, foot: Footprint, pictures: NDArray[np.floating], least: float = WHOLE) -> tuple[Array, Array]:
    """((n, B, H, W) y - W x, same-shaped weights 0 or 1).  least: share of a cell inside the grid that lets it teach."""
    seen = np.asarray(foot(jnp.asarray(pictures, jnp.float32)), np.float64)
    share = np.asarray(foot(jnp.asarray(pairs.clear, jnp.float32)))[:, None]
    inside = np.asarray(foot.seen) > least
    use = (np.stack([o.precision for o in pairs.coarse]) > 0) & (share > 0.85) & inside
    return np.where(use, np.stack([o.data for o in pairs.coarse]) - seen, 0.0), use.astype(np.float64)


def _misfit(pairs: Pairs, sharp: Footprint, fwhm: float, cube: Cube, widen: float, shift: tuple[float, float]) -> float:
    """Minus twice the profile log-likelihood of width and shift: a free mean per look and band, a free contrast and variance per band.

    The contrast is free because cells that wander from day to day lose contrast, which a width would otherwise explain.
    sharp: the footprint at the least of WIDTHS; the search blurs and moves the fine pictures instead of building footprints.
    fwhm: metres, of the stated blur.
    """
    pixel = cube.grid.resolution
    blur = float(np.sqrt(max(widen**2 - WIDTHS[0] ** 2, 0.0))) * fwhm / FWHM_PER_SD / pixel
    residual, use = residuals(pairs, sharp, moved(pairs.pictures, (shift[0] / pixel, -shift[1] / pixel), blur))
    count = np.maximum(use.sum(axis=(2, 3), keepdims=True), 1)
    data = np.where(use > 0, np.stack([o.data for o in pairs.coarse]), 0.0)
    measured, seen = (np.where(use > 0, a - a.sum(axis=(2, 3), keepdims=True) / count, 0.0) for a in (data, data - residual))
    squares = [(a * b).sum(axis=(0, 2, 3)) for a, b in ((measured, measured), (measured, seen), (seen, seen))]
    contrast = np.clip(squares[1] / np.maximum(squares[2], 1e-12), 0.5, 1.5)
    values = use.sum(axis=(0, 2, 3))
    variance = (squares[0] - 2 * contrast * squares[1] + contrast**2 * squares[2]) / np.maximum(values, 1)
    # bands share their errors and neighbours overlap: a fourth of the values is independent
    fit = 0.25 * float((values * np.log(np.maximum(variance, 1e-12))).sum())
    cell = pixel * float(np.sqrt(sharp.grid_shape[0] * sharp.grid_shape[1] / (sharp.shape[0] * sharp.shape[1])))
    prior = (np.log(widen) / 0.7) ** 2 + (shift[0] ** 2 + shift[1] ** 2) / (SHIFT_SD * cell) ** 2
    return fit + float(prior)


def registered(pairs: Pairs, cube: Cube, cell: float) -> tuple[float, tuple[float, float]]:
    """(width factor, shift) by a scan of widths and a pattern search of the shift, twice."""
    known: dict[tuple[float, tuple[float, float]], float] = {}
    first = pairs.coarse[0]
    sharp = seen_through(first, cube, WIDTHS[0])

    def score(widen: float, shift: tuple[float, float]) -> float:
        if (widen, shift) not in known:
            known[widen, shift] = _misfit(pairs, sharp, first.psf.fwhm, cube, widen, shift)
        return known[widen, shift]

    best = min(((w, (0.0, 0.0)) for w in WIDTHS), key=lambda c: score(*c))
    for step in STEPS:
        better = True
        while better:
            north, east = best[1]
            around = [(north + i * step * cell, east + j * step * cell) for i, j in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
            found = min(((best[0], s) for s in around if max(abs(s[0]), abs(s[1])) <= FARTHEST * cell), key=lambda c: score(*c))
            better, best = found != best, found
    return min(((w, best[1]) for w in WIDTHS), key=lambda c: score(*c))


def seen_through(obs: Observation, cube: Cube, widen: float, shift: tuple[float, float] = (0.0, 0.0)) -> Footprint:
    """The footprint of a look with its blur widened by a factor and displaced by (north, east) metres."""
    return footprint(obs.geobox, obs.psf, cube.grid, view=obs.view, widen=widen, shift=shift)
