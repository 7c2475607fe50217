"""The real pairs of the accuracy benchmark as observations: what is given, what is hidden, what is known of the sensors.

Files: cia_west.npz, salton_north.npz and boreas_west.npz under ../shared/data (see its README for the sources). A case gives
some fine images and the coarse series; the fine image of one date is hidden and is used for scoring alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar, Instant, When, Window
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import Response, SpectralBasis
from fusion.observe.observation import Observation, observe
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Noise, Sensor

Array = NDArray[np.float64]
DAY = np.timedelta64(1, "D")
CENTRES = {"blue": 480.0, "green": 560.0, "red": 660.0, "nir": 850.0, "swir1": 1650.0, "swir2": 2210.0}
"""nm, only to name the bands of a band-space basis"""
BLUR = 40 / 30
"""fine pixels, full width at half maximum of what a pixel sees: the Landsat adapter's 40 m at 30 m"""


@dataclass(frozen=True)
class Pair:
    """One file: fine and coarse series of one place."""

    name: str
    bands: tuple[str, ...]
    fine: Array
    """(N, B, Y, X)"""
    fine_dates: NDArray[np.datetime64]
    coarse: Array
    """(M, B, H, W)"""
    coarse_dates: NDArray[np.datetime64]
    ratio: int
    pixel: float
    """metres"""
    window: bool
    """a coarse value is the mean of 16 days (BRDF-adjusted composites), not one instant"""


@dataclass(frozen=True)
class Case:
    """Which dates of a pair are given and which is hidden."""

    pair: Pair
    protocol: str
    given: tuple[int, ...]
    target: int

    @property
    def truth(self) -> Array:
        """(B, Y, X) the hidden image."""
        return self.pair.fine[self.target]

    @property
    def around(self) -> tuple[int, int]:
        """The nearest given dates before and after the target."""
        return max(g for g in self.given if g < self.target), min(g for g in self.given if g > self.target)


def read(folder: Path, name: str) -> Pair:
    """One of the three files.  Coarse data that were interpolated onto fine pixels (BOREAS) are averaged to cells of 480 m."""
    with np.load(folder / f"{name}.npz") as file:
        bands, fine = tuple(str(b) for b in file["bands"]), file["fine"].astype(np.float64)
        pixel = float(file["fine_pixel_m"])
        if "coarse" in file:
            ratio, coarse, coarse_dates = int(file["ratio"]), file["coarse"].astype(np.float64), file["coarse_dates"]
        else:
            ratio, coarse_dates = 16, file["dates"]
            count, _, height, width = fine.shape
            whole = file["coarse_on_fine_grid"][..., : height // ratio * ratio, : width // ratio * ratio].astype(np.float64)
            coarse = whole.reshape(count, len(bands), height // ratio, ratio, width // ratio, ratio).mean(axis=(3, 5))
        dates = file["fine_dates"] if "fine_dates" in file else file["dates"]
    days = dates.astype("datetime64[D]"), coarse_dates.astype("datetime64[D]")
    return Pair(name, bands, fine, days[0], coarse, days[1], ratio, pixel, name.startswith("salton"))


def cases(pair: Pair) -> Iterator[Case]:
    """The protocols of the published comparison for this file."""
    if pair.name.startswith("cia"):
        for first, second, target in ((0, 2, 1), (1, 3, 2), (0, 3, 1), (0, 3, 2)):
            yield Case(pair, "cia", (first, second), target)
    elif pair.name.startswith("boreas"):
        yield Case(pair, "boreas", (0, 2), 1)
    else:
        count = len(pair.fine)
        for protocol, reach, targets in (("loo", 0, range(1, count - 1)), ("gap5", 2, range(3, count - 3))):
            for target in targets:
                yield Case(pair, protocol, tuple(i for i in range(count) if abs(i - target) > reach), target)


def forecasts(pair: Pair) -> Iterator[Case]:
    """Images from those before them alone, and in short series from the last of these alone; coarse data end with the target."""
    count = int((pair.fine_dates <= pair.coarse_dates.max()).sum())
    short = count < 6
    for target in range(1, count) if short else range(count // 2 - 1, count, 3):
        for first in sorted({0, target - 1}) if short else (0,):
            known = pair.coarse_dates <= pair.fine_dates[target]
            upto = replace(pair, coarse=pair.coarse[known], coarse_dates=pair.coarse_dates[known])
            yield Case(upto, f"{pair.name} {'last image' if first else 'next'}", tuple(range(first, target)), target)


def cut(case: Case, cells: tuple[int, int], first: tuple[int, int] = (0, 0)) -> Case:
    """The same case on so many coarse cells down and across from the first one, by default the upper left corner."""
    pair = case.pair
    rows, cols = (slice(f, f + n) for f, n in zip(first, cells, strict=True))
    tall, wide = (slice(s.start * pair.ratio, s.stop * pair.ratio) for s in (rows, cols))
    return replace(case, pair=replace(pair, fine=pair.fine[..., tall, wide], coarse=pair.coarse[..., rows, cols]))


def small(pair: Pair, cells: int, places: int) -> Iterator[Case]:
    """The protocols at some places of the file, squares of so many coarse cells (the same at every call); of long series every fourth date."""
    rng = np.random.default_rng(0)
    down, across = (n - cells + 1 for n in pair.coarse.shape[2:])
    firsts = [(int(rng.integers(down)), int(rng.integers(across))) for _ in range(places)]
    for protocol, members in groupby(cases(pair), key=lambda case: case.protocol):
        for case in list(members)[:: 4 if len(pair.fine) > 6 else 1]:
            yield from (replace(cut(case, (cells, cells), first), protocol=f"{protocol}, {cells} x {cells} cells") for first in firsts)


def sensors(pair: Pair) -> tuple[Sensor, Sensor]:
    """(fine, coarse) facts, the same for all files but for pixel sizes: stated before looking, the product learns the rest."""

    def sensor(name: str, pixel: float, noise: Noise, psf: PSF, offset: float, discrepancy: float) -> Sensor:
        bands = tuple(Band(b, Response.gaussian(CENTRES[b], 30.0), noise) for b in pair.bands)
        return Sensor(
            name, name, bands, psf, pixel, read=_no_file, revisit=_no_plan, offset_sd=offset, gain_sd=0.0,
            discrepancy_sd=discrepancy, discrepancy_days=10.0,
        )

    cell = pair.ratio * pair.pixel
    return (
        sensor("fine", pair.pixel, Noise(0.004, 0.02), PSF("gaussian", BLUR * pair.pixel, cell=False), 0.005, 0.0),
        sensor("coarse", cell, Noise(0.002, 0.01), PSF("gaussian", cell, fwhm_prior=0.5), 0.005, 0.015),
    )


def _no_file(item: Any, grid: Grid) -> Scene:
    raise NotImplementedError("the benchmark's sensors have arrays, not files")


def _no_plan(lon: float, lat: float, first: date, last: date) -> list[Any]:
    return []


def observations(case: Case, basis: SpectralBasis | None = None) -> tuple[tuple[Observation, ...], Cube]:
    """What the product is given, and the cube that it is asked for: latent times are the fine dates and what fills their gaps.

    basis: instead of the bands themselves.
    """
    pair = case.pair
    crs = "EPSG:32611"
    place = Affine(pair.pixel, 0, 500_000.0, 0, -pair.pixel, 4_000_000.0)
    grid = Grid(GeoBox(pair.fine.shape[2:], place, crs))
    cells = GeoBox(pair.coarse.shape[2:], place * Affine.scale(pair.ratio), crs)
    cube = Cube(grid, Calendar(np.asarray(latent_times(pair), "datetime64[us]")), basis or _of_bands(case))
    fine, coarse = sensors(pair)
    out = []
    for i in case.given:
        scene = _scene(fine, pair.fine[i], grid.geobox, _noon(pair.fine_dates[i]), str(pair.fine_dates[i]))
        out.append(observe(scene, fine, cube))
    latent = cube.calendar.times.astype("datetime64[D]")
    for i in range(len(pair.coarse)):
        # daily composites of 16 days share 15 of them: one per latent time says as much
        if np.isfinite(pair.coarse[i]).any() and (not pair.window or pair.coarse_dates[i] in latent):
            scene = _scene(coarse, pair.coarse[i], cells, _when(pair, i), str(pair.coarse_dates[i]))
            out.append(observe(scene, coarse, cube))
    return tuple(out), cube


def _of_bands(case: Case) -> SpectralBasis:
    """The bands themselves as components, with the mean and the covariance of the given images."""
    pair = case.pair
    flat = np.moveaxis(pair.fine[list(case.given)], 1, 0).reshape(len(pair.bands), -1)
    flat = flat[:, np.isfinite(flat).all(axis=0)]
    return SpectralBasis.of_bands([CENTRES[b] for b in pair.bands], flat.mean(axis=1), np.atleast_2d(np.cov(flat)))


def latent_times(pair: Pair) -> NDArray[np.datetime64]:
    """(T,) every fine date inside the coarse period, and dates between so that no step is longer than 5 days in a long series."""
    times = sorted(set(pair.fine_dates[pair.fine_dates <= pair.coarse_dates.max()]))
    if len(pair.coarse) <= len(pair.fine):
        return np.array(times) + np.timedelta64(12, "h")
    filled: list[np.datetime64] = [*times]
    edges = sorted({pair.coarse_dates.min(), *times, pair.coarse_dates.max()})
    for low, high in pairwise(edges):
        parts = int(np.ceil((high - low) / (5 * DAY)))
        filled += [low + (high - low) * k // parts for k in range(1, parts)]
    return np.array(sorted({*filled, *edges})) + np.timedelta64(12, "h")


def _noon(day: np.datetime64) -> Instant:
    return Instant(np.datetime64(day, "us") + np.timedelta64(12, "h"))


def _when(pair: Pair, i: int) -> When:
    day = _noon(pair.coarse_dates[i]).time
    return Window(day - 8 * DAY, day + 7 * DAY, day) if pair.window else Instant(day)


def _scene(sensor: Sensor, values: Array, geobox: GeoBox, when: When, name: str) -> Scene:
    values = values.astype(np.float32)
    noise = sensor.bands[0].noise
    sigma = np.maximum(noise.a + noise.b * np.abs(np.nan_to_num(values)), 1e-4).astype(np.float32)
    return Scene(sensor.name, name, tuple(b.name for b in sensor.bands), values, sigma, geobox, when)
