"""A world of 4 x 4 pixels, small enough for plain NUTS on everything and for dense algebra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.observe.footprint import footprint
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.psf import PSF
from fusion.process.hierarchy import Hyper, build
from tests.infer import oracle
from tests.infer.oracle import World

STEPS, RANK, SIDE = 4, 2, 4
AREA, DATES = 12, 4


@contextmanager
def shrunk() -> Iterator[None]:
    """The oracle's dimensions made small while the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("T", STEPS), ("K", RANK), ("Y", SIDE), ("X", SIDE), ("DAYS", np.arange(STEPS) * 8.0)):
            patch.setattr(oracle, name, value)
        yield


def simulator(world: World) -> Callable[[int], np.ndarray]:
    """seed -> z (T, K, Y, X) drawn from the prior, the world's data being drawn from it with every error of the model."""
    for obs in world.observations:
        obs.data[:] = 0
    design, noise, _ = world.system()
    prior = world.prior()
    shape = (oracle.T, oracle.K, oracle.Y, oracle.X)
    roots = [np.linalg.cholesky(c + 1e-9 * np.diag(c).mean() * np.eye(len(c))) for c in (prior, noise)]

    def draw(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        z = roots[0] @ rng.normal(size=len(prior))
        y, start = design @ z + roots[1] @ rng.normal(size=len(noise)), 0
        for obs in world.observations:
            there = obs.precision > 0
            obs.data[there] = y[start : start + there.sum()]
            start += int(there.sum())
        return np.asarray(z.reshape(shape))

    return draw


def world(seed: int = 0) -> World:
    """Three fine looks with a hole and four coarse ones with a discrepancy; call inside `shrunk()`."""
    rng = np.random.default_rng(seed)
    shape = (SIDE, SIDE)
    labels = np.arange(SIDE)[:, None] // 2 * 2 + np.arange(SIDE)[None] // 2
    memberships = rng.dirichlet(np.ones(2), size=shape).transpose(2, 0, 1)
    fine, coarse = np.array([[1.0, 0.3], [0.8, -0.6], [1.2, 0.9]]), np.array([[0.9, 0.4], [1.1, -0.5]])
    prior = 0.1**2 * np.array([[1.0, 0.2], [0.2, 0.5]])
    hierarchy = build(
        np.arange(STEPS) * 8.0, prior, fine, memberships, labels, spacing=4.0,
        ranks={"class": 2, "object": 2, "place": 2, "pixel": 2},
    )
    looks = []
    for i, index in enumerate((0, 1.4, 3)):
        sigma = np.full((3, *shape), 0.02)
        sigma[:, i : i + 2, 2:] = np.inf
        tau = np.maximum(1 - np.abs(np.arange(STEPS) - index), 0)
        looks.append(oracle.look("fine", i, oracle.identity(shape), fine, tau, sigma, offset=0.01))
    for i in range(STEPS):
        sigma, tau = np.full((2, 2, 2), 0.01), np.eye(STEPS)[i]
        looks.append(oracle.look("coarse", i, oracle.boxes(2, shape), coarse, tau, sigma, offset=0.005, discrepancy=0.02))
    hyper = Hyper.default(RANK, ("fine", "coarse")).replace(noise=jnp.array([1.1, 0.9]))
    return World(hierarchy, hyper, looks, memberships, labels)


def tile() -> tuple[list[Observation], Cube]:
    """Four fine looks of a smooth simulated field on a real grid, calendar and basis."""
    rng = np.random.default_rng(1)
    grid = Grid(GeoBox((AREA, AREA), Affine(30, 0, 500_000, 0, -30, 4_400_000), "EPSG:32613"))
    basis = SpectralBasis.of_bands([560.0, 660.0, 860.0], [0.08, 0.1, 0.3], 0.03**2 * np.eye(3) + 0.02**2)
    cube = Cube(grid, Calendar.regular("2024-05-01", "2024-06-18", 16), basis)
    psf = PSF("gaussian", 26.0)
    foot = footprint(grid.geobox, psf, grid)
    pattern = 0.03 * np.sin(np.arange(AREA) / 3)[:, None] * np.cos(np.arange(AREA) / 4)
    looks = []
    for t in range(DATES):
        clean = (1 + 0.2 * t) * pattern[None] * np.array([0.5, 0.7, 1.0])[:, None, None]
        data = clean + 0.004 * rng.normal(size=(3, AREA, AREA))
        looks.append(Observation(
            "fine", f"look-{t}", ("green", "red", "nir"), data.astype(np.float32),
            np.full((3, AREA, AREA), 0.004**-2, np.float32),
            Layer.of(foot, np.eye(3), basis.mean, np.eye(DATES)[t]), np.full(3, 0.005, np.float32), np.full(3, 0.01, np.float32),
            np.zeros(3, np.float32), 0.0, 10.0, cube.calendar.times[t], grid.geobox, psf, None, simulated=True,
        ))
    return looks, cube
