"""The preconditioner where it is hard pressed: coarse looks alone, a few precise pixels among coarse ones, a top that rounding made indefinite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion.infer.blocks import squared_times, transposed_times
from fusion.infer.channels import told_to_pixels
from fusion.infer.eliminate import _factor
from fusion.infer.gaussian import posterior, prepare, solve
from fusion.infer.looks import stack
from fusion.process.hierarchy import Hyper, build
from tests.infer.oracle import DAYS, T, boxes, identity, instant, look

SHAPE, K = (48, 48), 3


def dense(panels: Any) -> np.ndarray:
    """(K, U, U) of panels of rows."""
    width = panels[-1].shape[2]
    return np.concatenate([np.pad(np.asarray(p, np.float64), ((0, 0), (0, 0), (0, width - p.shape[2]))) for p in panels], axis=1)


def scene(cell: int, patch: int, sigma: float = 0.002) -> Any:
    """(hierarchy, series, hyper): T coarse looks of cells of `cell` pixels, and one very precise fine look of patch x patch pixels."""
    rng = np.random.default_rng(0)
    rows, cols = np.indices(SHAPE)
    memberships = rng.dirichlet(np.ones(4), size=SHAPE).transpose(2, 0, 1)
    root, colour = rng.normal(size=(K, K)) * 0.1, rng.normal(size=(4, K))
    hierarchy = build(DAYS, root @ root.T, colour, memberships, rows // 4 * 12 + cols // 4, spacing=float(cell))
    looks = [
        look("coarse", i, boxes(cell, SHAPE), colour, instant(i), np.full((4, *(n // cell for n in SHAPE)), 0.002), offset=0.003, discrepancy=0.004)
        for i in range(T)
    ]
    if patch:
        spread = np.full((4, *SHAPE), np.inf)
        spread[:, :patch, :patch] = sigma
        looks.append(look("fine", 0, identity(SHAPE), colour, instant(2), spread, offset=0.003))
    for one in looks:
        one.data = np.where(one.precision > 0, 0.05 * rng.normal(size=one.data.shape), 0).astype(np.float32)
    sensors = ("coarse", "fine") if patch else ("coarse",)
    return hierarchy, stack(looks, hierarchy, sensors, float), Hyper.default(K, sensors)


@pytest.mark.parametrize(("cell", "patch", "most"), [(16, 0, 30), (4, 0, 120), (16, 20, 30), (4, 48, 120)])
def test_coarse_looks_that_pixels_hang_on_do_not_slow_the_solver(cell: int, patch: int, most: int) -> None:
    hierarchy, series, hyper = scene(cell, patch)

    told = told_to_pixels(series, hierarchy.temporal.shape[1])
    assert all(told)
    errors = []
    for which in (told, tuple(not s.coarse for s in series)):
        system = prepare(hierarchy, series, hyper, None, told=which)
        errors.append(float(jax.jit(solve)(system, system.explain([s.data for s in series]), 0.02, most).error))
    assert errors[0] <= 0.02
    assert errors[1] > 0.1  # what it is without


def test_coarse_looks_are_left_to_the_top_where_fine_ones_say_enough() -> None:
    series = scene(16, 48)[1]
    assert told_to_pixels(series, 1) == tuple(not s.coarse for s in series)


def test_what_speeds_the_solver_does_not_make_the_sd_too_small() -> None:
    """Against that of exact draws: cells of 16 pixels say next to nothing of one of them."""
    hierarchy, series, hyper = scene(16, 0)
    found = posterior(hierarchy, series, hyper, jax.random.key(0), samples=64)
    exact = posterior(hierarchy, series, hyper, jax.random.key(1), pairs=64, exact=True)
    share = np.asarray(found.sd) / np.asarray(exact.sd)
    assert 0.95 < share.mean() < 1.15


def test_panels_are_the_matrix() -> None:
    rng = np.random.default_rng(3)
    root = rng.normal(size=(2, 50, 50))
    spd = root @ np.swapaxes(root, 1, 2)
    panels = tuple(jnp.stack(p) for p in zip(*(_factor(jnp.asarray(np.tril(a), jnp.float32)) for a in spd), strict=True))
    vector = rng.normal(size=(2, 50))
    inverse = np.linalg.inv(spd + 1.0001 * np.eye(50))
    lower = dense(panels)
    np.testing.assert_allclose(np.swapaxes(lower, 1, 2) @ lower, inverse, atol=2e-3)
    np.testing.assert_allclose(squared_times(panels, jnp.asarray(vector, jnp.float32)), np.einsum("kuv,kv->ku", inverse, vector), atol=1e-2)
    np.testing.assert_allclose(transposed_times(panels, jnp.asarray(vector, jnp.float32)), np.einsum("kvu,kv->ku", lower, vector), atol=1e-2)


@pytest.mark.parametrize("amount", [1.5, 30.0, 600.0])
def test_an_indefinite_top_is_made_positive(amount: float) -> None:
    """amount: what rounding took from one direction of a matrix whose diagonal is about 600."""
    rng = np.random.default_rng(4)
    root = rng.normal(size=(20, 20)) * 5
    direction = rng.normal(size=20)
    spoiled = root @ root.T + 100 * np.eye(20) - (amount + 100) * np.outer(direction, direction) / (direction @ direction)
    values = np.linalg.eigvalsh(spoiled)
    spoiled -= (values[0] + amount) * np.outer(*(np.linalg.eigh(spoiled)[1][:, :1].T,) * 2)
    assert np.linalg.eigvalsh(spoiled)[0] == pytest.approx(-amount, rel=1e-3)
    lower = dense(tuple(p[None] for p in _factor(jnp.asarray(np.tril(spoiled), jnp.float32))))[0]
    assert np.isfinite(lower).all()
    assert np.linalg.eigvalsh(lower.T @ lower)[0] > 0
