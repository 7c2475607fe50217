"""A season of one fine sensor (simulated): ground that greens in spring must not spoil the calm weeks after it."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.infer import fit
from fusion.observe.footprint import footprint
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.psf import PSF

DAYS = np.array([158, 166, 174, 182, 206, 214, 222, 230, 246, 262, 270, 286])
"""when two Landsats saw a place in one summer"""
HIDDEN, EDGE, NOISE = 8, 24, 0.004
SHARP = PSF("gaussian", 26.0)


def season() -> tuple[list[Observation], Cube, np.ndarray]:
    """(looks, cube, truth (T, B, Y, X) less the mean spectrum): fields green by a third or by a half of full scale within three weeks, then rest."""
    rng = np.random.default_rng(5)
    grid = Grid(GeoBox((EDGE, EDGE), Affine(30, 0, 500_000, 0, -30, 4_400_000), "EPSG:32613"))
    basis = SpectralBasis.of_bands([660.0, 860.0], [0.06, 0.3], 0.05**2 * np.array([[1.0, -0.3], [-0.3, 2.0]]))
    times = np.datetime64("2011-01-01", "us") + (DAYS - 1) * np.timedelta64(86_400_000_000, "us")
    cube = Cube(grid, Calendar(times), basis)
    lush = gaussian_filter(rng.normal(size=(EDGE, EDGE)), 2, mode="wrap")
    lush = 0.35 + 0.15 * lush / lush.std()
    green = 1 / (1 + np.exp(-(DAYS - 176) / 4.0)) - 0.05 * (DAYS - 200) / 80 - 0.7
    truth = green[:, None, None, None] * lush * np.array([-0.2, 1.0])[:, None, None]
    foot, looks = footprint(grid.geobox, SHARP, grid), []
    for t, time in enumerate(times):
        data = truth[t] + NOISE * rng.normal(size=truth[t].shape)
        looks.append(Observation(
            "fine", f"look-{t}", ("red", "nir"), data.astype(np.float32), np.full(data.shape, NOISE**-2, np.float32),
            Layer.of(foot, np.eye(2), basis.mean, np.eye(len(DAYS))[t]), np.full(2, 0.005, np.float32), np.zeros(2, np.float32),
            np.zeros(2, np.float32), np.zeros(data.shape[1:], np.float32), 10.0, time, grid.geobox, SHARP, None, simulated=True,
        ))
    return looks, cube, truth


@pytest.mark.parametrize("ranks", [None, {"class": 6, "object": 8, "place": 6, "pixel": 8}], ids=["all times", "fewer functions than looks"])
def test_a_hidden_look_of_a_calm_week_is_near_the_straight_line(ranks: dict[str, int] | None) -> None:
    looks, cube, truth = season()
    found = fit([look for t, look in enumerate(looks) if t != HIDDEN], cube, engine="gaussian", draws=0, ranks=ranks)
    seen = np.asarray(looks[HIDDEN].layer.footprint(found.mean[HIDDEN].astype(np.float32)))
    before, after = (looks[HIDDEN + side].data for side in (-1, 1))  # 16 days to either side
    ours, line = (np.sqrt(np.mean((image - truth[HIDDEN]) ** 2)) for image in (seen, (before + after) / 2))
    assert line < 0.004
    assert ours < 2 * line
    assert np.mean(np.abs(found.mean[HIDDEN] - truth[HIDDEN]) < 1.645 * found.sd[HIDDEN]) > 0.85
