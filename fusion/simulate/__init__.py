"""Worlds with known truth, seen by any sensor; everything made here says that it is simulated.

    >>> from fusion.simulate import world
    >>> made = world(Grid.from_bbox((13.0, 46.0, 13.02, 46.02)), "2020-04-01", "2020-07-01", seed=1)
    >>> scene = made.see("landsat-8", "2020-05-03")
    >>> made.archive("archive", ["landsat-8", "modis-mcd43a4"])        # real file formats under a static STAC catalog
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusion.cube.calendar import instant_of
from fusion.cube.grid import Grid
from fusion.errors import JobError
from fusion.simulate.ground import Array, Ground, Landscape, Uniform
from fusion.simulate.pictures import Pictures, sentinel2_pictures
from fusion.simulate.weather import Nuisances
from fusion.simulate.world import World, pixels_of

__all__ = ["Ground", "Landscape", "Nuisances", "Pictures", "Uniform", "World", "uniform_world", "world", "world_of_pictures"]

REACH = 1800.0
"""metres of ground around the grid: the footprint of a MODIS composite"""


def world(
    grid: Grid, start: Any, end: Any, *, seed: int = 0, finer: int = 3, reach: float = REACH, parcel: float = 250.0,
    texture: float = 1.0, changes: bool = True, nuisances: Nuisances | None = None,
) -> World:
    """A landscape of parcels with seasons, harvests, a flood, a fire, texture and weather.

    grid: where the truth will be asked for. finer: world pixels per latent pixel and axis. reach: metres of ground around the
    grid. parcel: typical width, metres. texture: 0 = uniform parcels. changes: harvest, flood and fire. seed: everything random.
    """
    period = _period(start, end)
    margin = int(np.ceil(reach * finer / grid.resolution))
    box = pixels_of(grid, finer, margin)
    shape = int(box.shape[0]), int(box.shape[1])
    ground = Landscape.drawn(
        shape, abs(box.transform.a), seed, period, south=grid.lonlat.centroid.coords[0][1] < 0, parcel=parcel, texture=texture,
        changes=changes,
    )  # fmt: skip
    return World(grid, ground, period, seed, finer, margin, nuisances or Nuisances())


def uniform_world(
    grid: Grid, start: Any, end: Any, wavelengths: Array, spectrum: Array, *, seed: int = 0, finer: int = 1,
    nuisances: Nuisances | None = None,
) -> World:
    """One spectrum everywhere and always."""
    margin = int(np.ceil(REACH * finer / grid.resolution))
    box = pixels_of(grid, finer, margin)
    ground = Uniform((int(box.shape[0]), int(box.shape[1])), np.asarray(wavelengths, float), np.asarray(spectrum, float))
    return World(grid, ground, _period(start, end), seed, finer, margin, nuisances or Nuisances())


def world_of_pictures(
    pictures: Pictures | None = None, *, resolution: float = 30.0, seed: int = 0, nuisances: Nuisances | None = None
) -> World:
    """A world driven by real images, by default the Sentinel-2 series of the `nrt` package (1 km in Romania, 2015-2021).

    The truth between the images is linear in time; the ground around them is their mirror image.
    """
    shown = pictures or sentinel2_pictures()
    finer = round(resolution / shown.grid.resolution)
    if finer < 1 or abs(finer * shown.grid.resolution - resolution) > 1e-6:
        raise JobError(f"latent pixels of {resolution} m are no multiple of the images' {shown.grid.resolution} m")
    rows, cols = (n // finer for n in shown.grid.shape)
    inner = shown.grid.crop(slice(0, rows * finer), slice(0, cols * finer))
    grid = Grid.from_attrs(inner.to_attrs() | {"shape": [rows, cols], "transform": _coarser(inner, resolution)})
    margin = int(np.ceil(REACH / shown.grid.resolution))
    ground = shown.around(rows * finer, cols * finer, margin)
    return World(grid, ground, shown.period, seed, finer, margin, nuisances or Nuisances())


def _coarser(grid: Grid, resolution: float) -> list[float]:
    return [resolution, 0.0, grid.transform.c, 0.0, -resolution, grid.transform.f]


def _period(start: Any, end: Any) -> tuple[np.datetime64, np.datetime64]:
    first, last = instant_of(start), instant_of(end)
    if last <= first:
        raise JobError(f"the period ends ({last}) before it starts ({first}): swap the two dates")
    return first, last
