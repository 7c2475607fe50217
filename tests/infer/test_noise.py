"""The noise of a coarse sensor whose looks get classes wrong together: against dense float64 matrices written from the equation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion.infer.discrepancy import PATTERNS, TOGETHER, by_class
from fusion.infer.looks import Looks, stack
from tests.infer import oracle

FLEETING = 0.012


@pytest.fixture(scope="module")
def case() -> tuple[oracle.World, Looks]:
    """A world whose coarse sensor errs anew in each look, and its coarse looks."""
    world = oracle.world()
    told = [
        SimpleNamespace(**{**vars(o), "fleeting_sd": np.full(len(o.data), FLEETING, np.float32), "precision": np.minimum(o.precision, 4000)})
        if o.sensor == "coarse" else o for o in world.observations
    ]
    series = stack(told, world.hierarchy, world.hyper.sensors, float)
    return world, next(s for s in series if s.coarse)


def dense(world: oracle.World, looks: Looks, band: int) -> np.ndarray:
    """(n P, n P) covariance of the values of a band: white noise less what classes share, the discrepancy, the offset and the classes."""
    group = int(looks.group)
    factor = {n: float(getattr(world.hyper, n)[group]) for n in ("noise", "offset", "discrepancy", "discrepancy_days")}
    footprint = oracle.boxes(2)
    spread = oracle._uneven(footprint).reshape(-1).astype(float)
    scale = spread**2 / (spread**2).mean()
    share = footprint.dense() @ world.memberships.reshape(len(world.memberships), -1).T
    share = share - share.mean(0)
    together = TOGETHER * share @ share.T * len(share) / (share**2).sum()
    count, cells = len(looks.days), len(share)
    days = np.asarray(looks.days, float)
    lag = np.exp(-np.abs(days[:, None] - days) / (factor["discrepancy_days"] * float(looks.discrepancy[1])))
    d = factor["discrepancy"] * 0.02 * spread
    stated = np.array([1 / 4000.0] * cells)  # of every cell that is seen
    white = factor["noise"] ** 2 * (stated - TOGETHER * FLEETING**2 * scale)
    out = np.kron(lag, np.diag(d**2)) + np.kron(np.eye(count), np.diag(white))
    alike = (factor["offset"] * float(looks.offset_sd[band])) ** 2 + (factor["noise"] * FLEETING) ** 2 * together
    return out + np.kron(np.eye(count), alike)


def test_precision_and_determinant(case: tuple[oracle.World, Looks]) -> None:
    world, looks = case
    noise = looks.noise(world.hyper)
    residual = np.random.default_rng(0).normal(size=looks.data.shape)
    found = np.asarray(noise.apply(jnp.asarray(residual, jnp.float32)), np.float64)
    log_det = 0.0
    for band in range(looks.data.shape[1]):
        keep = np.asarray(looks.precision[:, band]).reshape(-1) > 0
        cells = oracle.boxes(2).shape[0] * oracle.boxes(2).shape[1]
        real = np.tile(np.arange(looks.data.shape[3] * looks.data.shape[2]) < cells, len(looks.days))
        assert not (keep & ~real).any()
        covariance = dense(world, looks, band)[np.ix_(keep[real], keep[real])]
        wanted = np.linalg.solve(covariance, residual[:, band].reshape(-1)[keep])
        np.testing.assert_allclose(found[:, band].reshape(-1)[keep], wanted, atol=2e-3 * np.abs(wanted).max())
        log_det -= np.linalg.slogdet(covariance)[1]
    assert float(noise.log_det) == pytest.approx(log_det, abs=0.05)


def test_draws_have_that_covariance(case: tuple[oracle.World, Looks]) -> None:
    world, looks = case
    draws = 1500
    found = jax.jit(jax.vmap(lambda i: looks.draw_noise(jax.random.fold_in(jax.random.key(1), i), world.hyper)[:, 0]))(jnp.arange(draws))
    keep = np.asarray(looks.precision[:, 0]).reshape(-1) > 0
    cells = oracle.boxes(2).shape[0] * oracle.boxes(2).shape[1]
    real = np.tile(np.arange(looks.data.shape[3] * looks.data.shape[2]) < cells, len(looks.days))
    wanted = dense(world, looks, 0)[np.ix_(keep[real], keep[real])]
    sample = np.asarray(found, np.float64).reshape(draws, -1)[:, keep]
    error = np.abs(sample.T @ sample / draws - wanted) / np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert error.max() < 5.5 * np.sqrt(2 / draws)


def test_patterns_are_what_cells_have_of_the_classes() -> None:
    rng = np.random.default_rng(2)
    seen = np.zeros((12, 4, 10))
    seen[..., :8] = rng.dirichlet(np.ones(12) * 0.3, size=(4, 8)).transpose(2, 0, 1)
    phi, loadings = by_class(seen)
    assert phi.shape == (PATTERNS, 4, 10)
    there = phi[..., :8].reshape(PATTERNS, -1)
    np.testing.assert_allclose(phi[..., 8:], 0.0, atol=1e-12)
    np.testing.assert_allclose(there.sum(1), 0.0, atol=1e-9)  # what cells have in common is the offset's
    assert (there**2).sum(0).mean() == pytest.approx(TOGETHER)
    flat = seen[..., :8].reshape(12, -1)
    made = loadings @ (flat - flat.mean(1, keepdims=True))
    np.testing.assert_allclose(made * np.sqrt(TOGETHER / (made**2).sum(0).mean()), there, atol=1e-9)
    np.testing.assert_allclose(loadings @ loadings.T, np.eye(PATTERNS), atol=1e-9)
    assert not by_class(np.ones((3, 2, 5)) / 3)[0].any()  # all cells alike: nothing to share


def test_what_is_not_known_changes_nothing(case: tuple[oracle.World, Looks]) -> None:
    world, looks = case
    plain: Any = next(s for s in world.series if s.coarse)
    assert len(plain.patterns) == 0
    assert len(looks.patterns) == PATTERNS
