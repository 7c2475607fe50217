"""From observations to a posed problem: the hierarchy of one tile, its looks in array form, and the prior medians of theta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fusion.cube.cube import Cube
from fusion.infer.empirical import calibrated
from fusion.infer.looks import Looks, stack
from fusion.process import kernels
from fusion.process.hierarchy import Hierarchy, Hyper, build
from fusion.process.landscape import segments, soft_classes


@dataclass(frozen=True, eq=False)
class Problem:
    """What every engine starts from."""

    hierarchy: Hierarchy
    series: tuple[Looks, ...]
    hyper: Hyper
    """prior medians for the sensors at hand"""
    learned: tuple[Any, ...] = ()
    """what calibration found of each coarse raster"""


def pose(
    observations: Sequence[Any], cube: Cube, *, origin: tuple[int, int] = (0, 0), classes: int = 64, segment: int = 8,
    spacing: float | None = None, ranks: Mapping[str, int] | None = None, seed: int = 0, calibrate: bool = True,
) -> Problem:
    """The problem of one tile.

    origin: global (row, column) of its first pixel. classes: number of soft land-cover classes. segment: pixels across a
    segment. spacing: pixels between nodes of the smooth level, default one cell of the coarsest sensor. ranks: temporal
    functions per level.
    calibrate: first learn blur, shift, gain and discrepancy of coarse sensors where fine ones saw the same ground.
    """
    learned: tuple[Any, ...] = ()
    if calibrate:
        observations, learned = calibrated(observations, cube)
    useful = [o for o in observations if (np.asarray(o.precision) > 0).any() and np.asarray(o.layer.tau).any()]
    fine = [o for o in useful if 3 * o.data.shape[1] * o.data.shape[2] > np.prod(cube.grid.shape)]
    coarse = [o for o in useful if not any(o is f for f in fine)]
    sensors = tuple(sorted({o.sensor for o in useful}))
    counted = sorted(sensors, key=lambda name: -sum(o.sensor == name for o in fine))
    first = next((o for o in useful if o.sensor == counted[0]), None) if counted else None
    colour = np.eye(cube.basis.rank) if first is None else _sharpness(first)[:, None] * np.asarray(first.layer.colour, np.float64)
    images = _images(fine, cube.grid.shape)
    hierarchy = build(
        cube.calendar.days, cube.basis.prior, colour, soft_classes(images, count=classes, seed=seed),
        segments(images, segment, origin), origin=origin, spacing=spacing or _cell(coarse, cube), ranks=ranks,
        empirical=_empirical(coarse or fine, cube), capacity=int(np.prod([n // segment + 2 for n in cube.grid.shape])),
    )
    hyper = Hyper.default(cube.basis.rank, sensors)
    return Problem(hierarchy, stack(useful, hierarchy, sensors, cube.calendar.day_of), hyper, learned)


def _sharpness(obs: Any) -> NDArray[np.float64]:
    """(B,) one over the median noise sd: canonical components are those that the sensor tells apart independently."""
    seen = np.asarray(obs.precision) > 0
    noise = 1 / np.where(seen, obs.precision, 1.0) + np.asarray(obs.residual_var)[:, None, None]
    return np.array([1 / np.sqrt(max(float(np.median(n[s])), 1e-8)) if s.any() else 0.0 for n, s in zip(noise, seen, strict=True)])


def _images(fine: Sequence[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(N, Y, X) every fine look and band on the latent grid, NaN = missing; one empty image if there are none."""
    out = []
    for obs in fine:
        precision = np.asarray(obs.precision)
        both = np.concatenate([np.asarray(obs.data) * (precision > 0), (precision > 0).astype(np.float32)])
        total, weight = np.split(np.asarray(obs.layer.footprint.adjoint(jnp.asarray(both, jnp.float32))), 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            out.append(np.where(weight > 0.3 * max(float(weight.max()), 1e-6), total / weight, np.nan))
    return np.concatenate(out) if out else np.full((1, *shape), np.nan, np.float32)


def _cell(coarse: Sequence[Any], cube: Cube) -> float:
    """Pixels across a cell of the coarsest sensor, between 4 and the size of the tile; 16 if there is none."""
    if not coarse:
        return 16.0
    area = max(np.prod(cube.grid.shape) / max(int((np.asarray(o.layer.footprint.seen) > 0).sum()), 1) for o in coarse)
    return float(np.clip(2 * round(float(np.sqrt(area)) / 2), 4, max(4, *cube.grid.shape)))


def _empirical(observations: Sequence[Any], cube: Cube) -> NDArray[np.float32] | None:
    """(T, T) temporal covariance of places' deviations from the tile's mean, from the coarse sensor (or blocks of the fine one)."""
    days = cube.calendar.days
    if not observations or len(days) < 2:
        return None
    sensor = max(sorted({o.sensor for o in observations}), key=lambda n: sum(o.sensor == n for o in observations))
    bands, high, wide = next(o.data.shape for o in observations if o.sensor == sensor)
    mine = [o for o in observations if o.sensor == sensor and o.data.shape == (bands, high, wide)]
    step = max(1, int(np.sqrt(high * wide) // 12))
    series = np.zeros((len(days), bands, -(-high // step) * -(-wide // step)))
    weight = np.zeros_like(series)
    for obs in mine:
        index = int(np.abs(days - cube.calendar.day_of(obs.when)).argmin())
        seen = np.asarray(obs.precision) > 0
        values, there = (_blocks(a, step) for a in (np.where(seen, obs.data, 0.0), seen.astype(float)))
        mean = values.sum(-1) / np.maximum(there.sum(-1), 1)
        series[index] += values - there * mean[:, None]
        weight[index] += there
    series = np.where(weight > 0, series / np.maximum(weight, 1e-9), 0.0)
    spread = np.sqrt((series**2).sum((0, 2)) / np.maximum((weight > 0).sum((0, 2)), 1))
    series = series / np.maximum(spread, 1e-9)[None, :, None]
    medians = Hyper.default(1, ())
    anchor = np.asarray(kernels.mixture(days, medians.shares[3], medians.length[3]), np.float64)
    flat = series.reshape(len(days), -1).T, (weight > 0).astype(float).reshape(len(days), -1).T
    return kernels.empirical(*flat, anchor, strength=20.0)


def _blocks(planes: NDArray[np.floating], step: int) -> NDArray[np.floating]:
    """(B, H, W) -> (B, blocks): sums over step x step blocks."""
    rows, cols = (np.arange(0, n, step) for n in planes.shape[1:])
    return np.add.reduceat(np.add.reduceat(planes, rows, axis=1), cols, axis=2).reshape(len(planes), -1)
