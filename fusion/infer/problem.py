"""From observations to a posed problem: the hierarchy of one tile, its looks in array form, and the prior medians of theta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.cube.cube import Cube
from fusion.errors import JobError
from fusion.infer import looks
from fusion.infer.empirical import Learned, calibrated
from fusion.infer.gains import regained
from fusion.infer.grain import grain
from fusion.infer.images import ALWAYS, images, parted, with_map
from fusion.infer.landscape import Landscape, learn, surveyed
from fusion.infer.looks import Looks
from fusion.process.hierarchy import Hierarchy, Hyper, build
from fusion.process.landscape import Cover
from fusion.process.moment import SUDDEN

Judges = tuple[NDArray[np.float32], ...]
"""(n,) of each series: 1 = what theta foretells of the look may be judged by it"""
View = tuple[tuple[Looks, ...], Hierarchy, Judges]
"""looks, a hierarchy that foretells some of them from all others, and which"""


@dataclass(frozen=True, eq=False)
class Fold:
    """A hierarchy whose classes and segments were drawn from some of the fine looks, and who may judge it: the other looks."""

    hierarchy: Hierarchy
    judges: Judges


@dataclass(frozen=True, eq=False)
class Problem:
    """What every engine starts from."""

    hierarchy: Hierarchy
    series: tuple[Looks, ...]
    hyper: Hyper
    """prior medians for the sensors at hand, the noise of fine ones no more than their images allow (`grain`)"""
    learned: tuple[Any, ...] = ()
    """what calibration found of each coarse raster"""
    folds: tuple[Fold, ...] = ()
    seen: NDArray[np.bool_] | None = None
    """(T, Y, X) where fine looks saw the ground; None = nowhere"""

    @property
    def views(self) -> list[View]:
        """What theta is learned from: the folds, or the problem itself where there are none."""
        folds = [(self.series, fold.hierarchy, fold.judges) for fold in self.folds]
        return folds or [whole(self.series, self.hierarchy)]


def whole(series: tuple[Looks, ...], hierarchy: Hierarchy) -> View:
    """One hierarchy that every look may judge."""
    return series, hierarchy, tuple(np.ones(len(s.days), np.float32) for s in series)


def pose(
    observations: Sequence[Any], cube: Cube, *, origin: tuple[int, int] = (0, 0), classes: int = 64, segment: int = 8,
    spacing: float | None = None, ranks: Mapping[str, int] | None = None, seed: int = 0, calibrate: bool = True,
    landscape: Landscape | None = None, folded: bool = False, sudden: float = SUDDEN, land_cover: Any = None,
) -> Problem:
    """The problem of one tile.

    origin: global (row, column) of its first pixel. classes: number of soft land-cover classes. segment: pixels across a
    segment. spacing: pixels between nodes of the smooth level, default one cell of the coarsest sensor. ranks: temporal
    functions per level.
    calibrate: first learn blur, shift, gain and discrepancy of coarse sensors where fine ones saw the same ground, and the noise of the fine.
    landscape: what several tiles learned together (`fusion.infer.landscape`); None = learned from these observations alone.
    folded: with the folds that theta is learned from. sudden: share of a change between two looks that comes at one moment, 0 to 1.
    land_cover: (Y, X) integer codes of a map, negative = unknown, whose borders classes and segments heed as those of one more look; None = no map.
    """
    if not 0 <= sudden <= 1:
        raise JobError(f"asked for sudden = {sudden}: it is the share of a change that comes at one moment, give 0 to 1")
    learned: tuple[Learned, ...] = ()
    if calibrate:
        observations, learned = calibrated(regained(observations, cube), cube, None if landscape is None else landscape.learned)
    useful, fine, _ = parted(observations)
    keys, stack = with_map(*images(fine, cube), land_cover)
    if landscape is None:
        landscape = learn([surveyed(useful, keys, stack, learned, cube)], cube, classes=classes, seed=seed, halved=folded)
    planes = landscape.planes(keys, stack)

    def arranged(cover: Cover) -> Hierarchy:
        seen = cover.features(planes)
        kinds = cover.classes(seen, classes)
        return build(
            cube.calendar.days, landscape.prior, landscape.colour, kinds, cover.segments(seen, segment, origin),
            origin=origin, spacing=spacing or landscape.spacing, ranks=ranks, empirical=landscape.empirical,
            liveliness=cover.liveliness(kinds, planes), capacity=int(np.prod([n // segment + 2 for n in cube.grid.shape])),
            sudden=sudden, looked=sorted({time for _, _, time in landscape.keys} - {ALWAYS}),
        )

    hierarchy, sensors = arranged(landscape.cover), tuple(sorted({o.sensor for o in useful}))
    series = looks.stack(useful, hierarchy, sensors, cube.calendar.day_of)
    folds = tuple(Fold(arranged(half), _judges(series, half, landscape, cube)) for half in (landscape.halves if folded else ()))
    noise = [grain([o for o in fine if o.sensor == name]) if calibrate else 1.0 for name in sensors]
    medians = Hyper.default(cube.basis.rank, sensors)
    seen = np.zeros((len(cube.calendar), *cube.grid.shape), bool)
    for (_, _, time), plane in zip(keys, stack, strict=True):
        seen[time] |= np.isfinite(plane) & (time != ALWAYS)
    return Problem(hierarchy, series, medians.replace(noise=np.array(noise)), learned, folds, seen)


def _judges(series: Sequence[Looks], half: Cover, landscape: Landscape, cube: Cube) -> Judges:
    """(n,) of each series, 0 for fine looks whose images the cover was drawn from."""
    drawn = {(key[0], key[2]) for key, load in zip(landscape.keys, np.abs(half.loadings).max(0), strict=True) if load > 0}
    return tuple(
        np.array([one.coarse or (one.sensor, t) not in drawn for t in cube.calendar.nearest(one.days).tolist()], np.float32) for one in series
    )
