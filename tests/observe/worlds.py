"""A small cube, a few plain sensors and scenes for the laws of layers and observations."""

from __future__ import annotations

from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar, Instant, When
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.response import NODES, Response
from fusion.cube.spectrum import SpectralBasis
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Noise, Sensor

DAY = Instant(np.datetime64("2021-06-05T10:30"))


def cube(shape: tuple[int, int] = (18, 16), rank: int = 4, times: int = 9) -> Cube:
    grid = Grid(GeoBox(shape, Affine(30, 0, 500010, 0, -30, 4428000), "EPSG:32613"))
    end = np.datetime64("2021-05-20") + np.timedelta64(8 * (times - 1), "D")
    unit = np.linspace(0, 1, NODES.size)
    parts = np.stack([np.cos(np.pi * k * unit) for k in range(rank)], axis=1) * 0.1
    basis = SpectralBasis(NODES, 0.2 + 0.1 * unit, parts, np.diag(1.0 / np.arange(1, rank + 1)), np.full(NODES.size, 1e-5))
    return Cube(grid, Calendar.regular("2021-05-20", end, 8), basis)


def _never(*_: Any) -> Any:
    raise AssertionError("these sensors have no files")


def sensor(name: str = "plain", psf: PSF | None = None, pixel: float = 30.0, **facts: Any) -> Sensor:
    centres = {"blue": 480, "red": 660, "nir08": 860}
    bands = tuple(Band(n, Response.gaussian(c, 60.0), Noise(0.004, 0.01)) for n, c in centres.items())
    facts = {"bands": bands, "offset_sd": 0.01} | facts
    return Sensor(name=name, title=name, psf=psf or PSF("gaussian", 26.0), pixel=pixel, read=_never, revisit=_never, **facts)


def spectrometer(pixel: float = 30.0, psf: PSF | None = None) -> Sensor:
    return sensor("spectrometer", psf or PSF("gaussian", pixel), pixel, bands=(), channel_noise=Noise(0.003, 0.01))


def scene(
    geobox: GeoBox, bands: tuple[str, ...] = ("blue", "red", "nir08"), when: When = DAY, *,
    seed: int = 0, hole: bool = True, **extra: Any,
) -> Scene:
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.05, 0.4, (len(bands), *map(int, geobox.shape))).astype(np.float32)
    if hole:
        values[:, 4:6, 3:5] = np.nan
    sigma = (0.004 + 0.02 * np.nan_to_num(values, nan=0.1)).astype(np.float32)
    return Scene("plain", "look-1", bands, values, sigma, geobox, when, **extra)


def raster(pixel: float = 30.0, dx: float = -300.0, dy: float = 300.0, size: int = 60) -> GeoBox:
    return GeoBox((size, size), Affine(pixel, 0, 500010 + dx, 0, -pixel, 4428000 + dy), "EPSG:32613")
