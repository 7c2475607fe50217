"""Gain errors of a fine sensor beside a spectrometer, known truth (simulated)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.infer.gains import regained
from fusion.observe.footprint import footprint
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.psf import PSF
from fusion.observe.sensor import sensor

SIDE, RATIO, RANK, GAIN_SD = 48, 4, 6, 0.03
ERRORS = np.array([0.04, -0.03, 0.05, 0.02, -0.06, 0.01])
PSFS = {"fine": PSF("gaussian", 0.0, geolocation=0.0), "coarse": PSF("gaussian", 120.0, cell=False, geolocation=0.0)}


@pytest.fixture(scope="module")
def cube() -> Cube:
    grid = Grid(GeoBox((SIDE, SIDE), Affine(30, 0, 500_000, 0, -30, 4_400_000), "EPSG:32613"))
    return Cube(grid, Calendar(np.datetime64("2024-06-01", "us") + np.arange(2) * np.timedelta64(8, "D")), SpectralBasis.library(RANK))


@pytest.fixture(scope="module")
def ground(cube: Cube) -> Any:
    rng = np.random.default_rng(0)
    rough = rng.normal(size=(RANK, SIDE // 3, SIDE // 3)).repeat(3, 1).repeat(3, 2)
    return np.einsum("jk,kyx->jyx", np.linalg.cholesky(cube.basis.prior + 1e-12 * np.eye(RANK)), 0.5 * rough)


def seen(cube: Cube, ground: Any, kind: str, colour: Any, mean: Any, sigma: float, *, day: int = 0, gains: Any = 0.0, shift: float = 0.0,
         offset: float = 0.0, pseudo: bool = False) -> Observation:
    """A simulated look.  kind: fine or coarse. gains: errors of its bands. shift: metres east. offset: stated sd. pseudo: of reduced channels."""
    rng = np.random.default_rng(day)
    side = SIDE if kind == "fine" else SIDE // RATIO
    box = GeoBox((side, side), cube.grid.transform * Affine.scale(SIDE // side), cube.grid.crs)
    see, stated = (footprint(box, PSFS[kind], cube.grid, shift=(0.0, s)) for s in (shift, 0.0))
    data = np.asarray(see(jnp.asarray(np.einsum("bk,kyx->byx", colour, ground), jnp.float32)), np.float64)
    factor = 1 + np.broadcast_to(gains, len(mean))[:, None, None]
    data = (data + np.asarray(mean)[:, None, None]) * factor - np.asarray(mean)[:, None, None] + sigma * rng.normal(size=data.shape)
    there = np.broadcast_to(np.asarray(stated.seen) > 0, data.shape)
    each = np.ones(len(mean), np.float32)
    return Observation(
        kind, f"{kind}-{day}", tuple(f"{'pseudo-' * pseudo}{i}" for i in range(len(mean))), np.where(there, data, 0).astype(np.float32),
        np.where(there, 1 / sigma**2, 0).astype(np.float32), Layer.of(stated, np.asarray(colour), np.asarray(mean), np.eye(2)[day]),
        offset * each, (GAIN_SD if kind == "fine" else 0.0) * each, 0 * each, np.zeros(stated.shape, np.float32), 10.0,
        cube.calendar.times[day], box, PSFS[kind], None, simulated=True,
    )


def camera(cube: Cube) -> tuple[Any, Any]:
    """(colour, mean) of Landsat's six bands."""
    colour, mean, _ = cube.basis.responses(tuple(b.response for b in sensor("landsat-8").bands if b.name != "coastal"))
    return colour, mean


def spectrometer(cube: Cube, ground: Any, **changes: Any) -> Observation:
    return seen(cube, ground, "coarse", np.eye(RANK), np.zeros(RANK), 0.002, pseudo=True, **changes)


@pytest.mark.parametrize("shift", [0.0, 60.0])
def test_gain_errors_are_taken_out_of_contrast_and_mean(cube: Cube, ground: Any, shift: float) -> None:
    colour, mean = camera(cube)
    fine = [seen(cube, ground, "fine", colour, mean, 0.002, day=d, gains=ERRORS) for d in (0, 1)]
    spoiled, other, told = regained([*fine, spectrometer(cube, ground, shift=shift)], cube)
    wanted = seen(cube, ground, "fine", colour, mean, 0.002)
    left = np.array([np.polyfit(w.ravel() + m, g.ravel() + m, 1)[0] for w, g, m in zip(wanted.data, spoiled.data, mean, strict=True)]) - 1
    rms = float(np.sqrt((left**2).mean()))
    assert rms < (0.2 if shift == 0 else 0.6) * float(np.sqrt((ERRORS**2).mean())), left  # a displaced image has other ground at its edges
    assert (spoiled.gain_sd < (0.4 if shift == 0 else 0.9) * GAIN_SD).all()
    assert (other.data != fine[1].data).any()  # a gain is the sensor's: the day that no spectrometer saw is corrected too
    assert (told.data == spectrometer(cube, ground, shift=shift).data).all()
    assert "spectrometer" in spoiled.notes[-1]


def test_a_spectrometer_that_is_itself_unsure_moves_little(cube: Cube, ground: Any) -> None:
    colour, mean = camera(cube)
    fine = seen(cube, ground, "fine", colour, mean, 0.002, gains=ERRORS)
    sure, unsure = (regained([fine, spectrometer(cube, ground, offset=o)], cube)[0] for o in (0.0, 0.05))
    moved = [np.abs(one.data - fine.data).mean() for one in (sure, unsure)]
    assert moved[1] < 0.5 * moved[0]
    assert (unsure.gain_sd > sure.gain_sd).all()
    assert (unsure.gain_sd < GAIN_SD).all()


def test_only_a_spectrometer_of_the_day_teaches(cube: Cube, ground: Any) -> None:
    colour, mean = camera(cube)
    fine = seen(cube, ground, "fine", colour, mean, 0.002, gains=ERRORS)
    bands, level, _ = cube.basis.responses(tuple(b.response for b in sensor("modis-mcd43a4").bands[:2]))
    broad = seen(cube, ground, "coarse", bands, level, 0.002)
    for others in ([], [broad], [spectrometer(cube, ground, day=1)]):
        assert (regained([fine, *others], cube)[0].data == fine.data).all()
    hidden = spectrometer(cube, ground)
    hidden.precision[:, 1:] = 0  # a row of cells is too little
    assert (regained([fine, hidden], cube)[0].data == fine.data).all()
