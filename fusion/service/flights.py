"""The spectral basis of a job sharpened by the job's own imaging spectrometers, before any tile is fused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.cube import Cube
from fusion.cube.grid import Grid, Tile
from fusion.cube.response import SHOULDERS, within
from fusion.cube.spectrum import Spectra, SpectralBasis
from fusion.errors import FusionError
from fusion.observe.scene import Scene
from fusion.observe.sensor import sensor
from fusion.service.job import Job
from fusion.service.policy import Item
from fusion.service.reading import Unreadable, read

FLIGHTS = 8
"""spectrometer scenes that are read for the basis, at most"""
ACROSS = 96
"""pixels across the coarse view of the whole area that they are read on: a look at the colours, not at the place"""
ENOUGH = 1000
"""spectra of one scene"""


def sharpened(cube: Cube, items: dict[str, list[Item]], job: Job) -> tuple[Cube, list[str]]:
    """(the cube with a hybrid basis, notes): the same K directions of what the job's bands tell apart, in a world of spectra narrowed
    by its own flights, and each flight's own error beside them. Without a usable flight the cube is as it was, and a note says so.
    """
    looks, notes = [], []
    view = Tile((0, 0), overview(cube.grid), (slice(0), slice(0)), 0)
    flown = [(sensor(name), document) for name, found in items.items() if not sensor(name).bands for document in found]
    for facts, document in flown[:FLIGHTS]:
        try:
            looks.append(spectra_of(read(facts, document, view, job.cluster.read_retries)))
        except (Unreadable, FusionError) as reason:
            notes.append(f"{facts.name} scene {document['id']} is not used for the spectral basis: {reason}")
    if not looks:
        return cube, [*notes, "no imaging spectrometer's scene could be used for the spectral basis: the library alone is"]
    bands = [band.response for source in job.sensors for band in sensor(source.name).bands]
    world = SpectralBasis.hybrid(SpectralBasis.library(40), looks, rank=max(12, min(cube.basis.rank, 40)))
    return replace(cube, basis=SpectralBasis.seen_by(bands, cube.basis.rank, library=world, elsewhere=0.01)), notes


def overview(grid: Grid) -> Grid:
    """The area on at most `ACROSS` pixels across."""
    step = math.ceil(max(grid.shape) / ACROSS)
    shape = math.ceil(grid.shape[0] / step), math.ceil(grid.shape[1] / step)
    return Grid(GeoBox(shape, grid.transform * Affine.scale(step), grid.crs))


def spectra_of(scene: Scene) -> Spectra:
    """At most `ENOUGH` of a scene's pixels, evenly taken, as they were measured."""
    assert scene.centres is not None  # a spectrometer's scene
    values = scene.reflectance.reshape(len(scene.bands), -1).astype(np.float64)
    seen = np.flatnonzero(np.isfinite(values).mean(axis=0) > 0.5)
    some = seen[:: max(1, len(seen) // ENOUGH)]
    sigma = scene.sigma.reshape(values.shape)[:, some][~within(scene.centres, SHOULDERS)]
    noise = float(np.nanmedian(sigma)) if np.isfinite(sigma).any() else 0.003
    return Spectra(scene.id, scene.centres, values[:, some].T, scene.fwhm, max(noise, 0.001))
