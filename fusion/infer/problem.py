"""From observations to a posed problem: the hierarchy of one tile, its looks in array form, and the prior medians of theta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.cube.cube import Cube
from fusion.infer import looks
from fusion.infer.empirical import Learned, calibrated
from fusion.infer.landscape import Landscape, images, learn, parted, surveyed
from fusion.infer.looks import Looks
from fusion.process.hierarchy import Hierarchy, Hyper, build


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
    landscape: Landscape | None = None,
) -> Problem:
    """The problem of one tile.

    origin: global (row, column) of its first pixel. classes: number of soft land-cover classes. segment: pixels across a
    segment. spacing: pixels between nodes of the smooth level, default one cell of the coarsest sensor. ranks: temporal
    functions per level.
    calibrate: first learn blur, shift, gain and discrepancy of coarse sensors where fine ones saw the same ground.
    landscape: what several tiles learned together (`fusion.infer.landscape`); None = learned from these observations alone.
    """
    learned: tuple[Learned, ...] = ()
    if calibrate:
        observations, learned = calibrated(observations, cube, None if landscape is None else landscape.learned)
    useful, fine, coarse = parted(observations)
    keys, stack = images(fine, cube)
    if landscape is None:
        landscape = learn([surveyed(useful, fine, coarse, keys, stack[:, None], learned, cube)], cube, classes=classes, seed=seed)
    seen = landscape.cover.features(landscape.planes(keys, stack))
    hierarchy = build(
        cube.calendar.days, cube.basis.prior, landscape.colour, landscape.cover.classes(seen, classes),
        landscape.cover.segments(seen, segment, origin), origin=origin, spacing=spacing or landscape.spacing, ranks=ranks,
        empirical=landscape.empirical, capacity=int(np.prod([n // segment + 2 for n in cube.grid.shape])),
    )
    sensors = tuple(sorted({o.sensor for o in useful}))
    return Problem(hierarchy, looks.stack(useful, hierarchy, sensors, cube.calendar.day_of), Hyper.default(cube.basis.rank, sensors), learned)
