"""The preconditioner where it is hard pressed: coarse looks alone, a few precise pixels among coarse ones, a top that rounding made indefinite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion.infer.blocks import panels, squared_times, transposed_times
from fusion.infer.cells import shares
from fusion.infer.channels import channel, coarse_info, latent_weight, told_to_pixels
from fusion.infer.eliminate import _factor
from fusion.infer.gaussian import System, add, dot, posterior, prepare, solve, white_noise
from fusion.infer.looks import stack
from fusion.process.hierarchy import LEVELS, Hyper, build
from tests.infer.oracle import DAYS, T, blur, boxes, identity, instant, look

SHAPE, K = (48, 48), 3


def dense(rows: Any) -> np.ndarray:
    """(K, U, U) of panels of rows."""
    width = rows[-1].shape[2]
    return np.concatenate([np.pad(np.asarray(p, np.float64), ((0, 0), (0, 0), (0, width - p.shape[2]))) for p in rows], axis=1)


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


def uneven(foot: Any, sigma: float) -> tuple[System, np.ndarray]:
    """(the system of four looks of one band under holes and with offsets, of ground whose liveliness spans a factor of ten, that (Y, X))."""
    rng = np.random.default_rng(3)
    rows, cols = np.indices((16, 16))
    lively = 0.2 * 10 ** rng.uniform(size=(16, 16))
    colour, memberships = np.ones((1, 1)), rng.dirichlet(np.ones(2), size=(16, 16)).transpose(2, 0, 1)
    hierarchy = build(DAYS, np.full((1, 1), 0.01), colour, memberships, rows // 4 * 4 + cols // 4, spacing=8.0, liveliness=lively)
    looks = []
    for i in range(4):
        noise = np.full((1, 16, 16), sigma)
        noise[:, 4 * i : 4 * i + 3, 2 * i :] = np.inf
        looks.append(look("fine", i, foot, colour, instant(1.4 * i), noise, offset=0.02))
    hyper = Hyper.default(1, ("fine",))
    others = [i for i, name in enumerate(LEVELS) if name in ("class", "place")]
    hyper = hyper.replace(sd=hyper.sd.at[jnp.array(others)].multiply(1e-3))
    return prepare(hierarchy, stack(looks, hierarchy, ("fine",), float), hyper, None), lively


@pytest.mark.usefixtures("hasty")
def test_pixels_of_any_liveliness_objects_and_the_scene_are_inverted_together() -> None:
    """M^-1 Q is the identity where only these vary and one sharp band sees them; without the addition for the scene."""
    system, _ = uneven(identity((16, 16)), 0.03)
    white = white_noise(jax.random.key(0), system.hierarchy)
    bare = replace(system.preconditioner, alone=jnp.zeros_like(system.preconditioner.alone))
    back = bare.apply(system(white))
    for name in ("scene", "object", "pixel"):
        np.testing.assert_allclose(back[name], white[name], atol=0.02, err_msg=name)


@pytest.mark.usefixtures("hasty")
def test_a_pattern_that_a_blur_hides_is_one_of_the_ground() -> None:
    """v^T Q M^-1 Q v / v^T Q v of the finest stripes and checks of uneven ground: .65 and .15 where filters act in units of liveliness."""
    system, lively = uneven(blur((16, 16), 1 / 3), 0.003)
    none = jax.tree.map(jnp.zeros_like, white_noise(jax.random.key(0), system.hierarchy))
    sign = (-1.0) ** np.arange(16)
    for wave, least in ((np.tile(sign, (16, 1)), 0.8), (np.tile(sign[:, None], 16), 0.8), (np.outer(sign, sign), 0.25)):
        white = {**none, "pixel": none["pixel"].at[0, 0].set((wave / lively).ravel())}
        force = system(white)
        quotient = sum(dot(force, system.preconditioner.apply(force)).values()) / sum(dot(white, force).values())
        assert least < quotient < 1.25


def test_tails_beside_a_cloud_count_by_their_squares() -> None:
    weight = np.random.default_rng(0).uniform(0.5, 2.0, (2, 256))
    weight.reshape(2, 16, 16)[:, :, 7:] = 0
    foot = blur((16, 16))
    full = foot.dense()
    expected = (weight @ full**2) / (full**2).sum(0) * full.sum(0)
    found = latent_weight(foot, jnp.asarray(weight.reshape(2, 16, 16), jnp.float32))
    np.testing.assert_allclose(found.reshape(2, -1), expected, rtol=1e-4, atol=1e-6)


def small_cells(patch: int, told: bool) -> float:
    """The error after 120 iterations where pixels hang on cells of four, whether or not the preconditioner is told of them."""
    hierarchy, series, hyper = scene(4, patch)
    assert all(told_to_pixels(series))
    system = prepare(hierarchy, series, hyper, None, told=tuple(told or not s.coarse for s in series))
    return float(jax.jit(solve)(system, system.explain([s.data for s in series]), 0.02, 120).error)


@pytest.mark.slow
@pytest.mark.parametrize("patch", [48, 0])
def test_small_cells_that_pixels_hang_on_do_not_slow_the_solver(patch: int) -> None:
    assert small_cells(patch, told=True) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("patch", [48, 0])
def test_small_cells_would_slow_a_solver_that_is_not_told(patch: int) -> None:
    assert small_cells(patch, told=False) > 0.03


@pytest.mark.parametrize(
    ("cell", "patch", "sigma", "most", "least"),
    [
        (16, 20, 0.002, 0.08, 90),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((16, 48, 0.01, 0.02, 40), (16, 0, 0.002, 0.08, 80), (24, 48, 0.02, 0.02, 20))),
    ],
)
def test_the_error_is_about_what_the_solver_says(cell: int, patch: int, sigma: float, most: float, least: int) -> None:
    """Of every level, in posterior sd: a preconditioner that is too sure somewhere stops too soon there."""
    hierarchy, series, hyper = scene(cell, patch, sigma)
    assert told_to_pixels(series) == tuple(not s.coarse for s in series)
    system = prepare(hierarchy, series, hyper, None)
    right = system.explain([s.data for s in series])
    found, exact = (jax.jit(solve)(system, right, tolerance, 400) for tolerance in (0.02, 1e-4))
    assert int(found.iterations) <= least
    away = add(found.white, exact.white, -1.0)
    for name, energy in dot(away, system(away)).items():
        assert np.sqrt(abs(float(energy)) / away[name].size) < most, name


def test_cells_tell_objects_what_their_own_freedom_leaves() -> None:
    """W = (L^-1 + A B A^T)^-1, from dense matrices; each object lies in one cell, so that nothing is lumped together."""
    hierarchy, series, hyper = scene(16, 48, 0.01)
    found = prepare(hierarchy, series, hyper, None).preconditioner
    (cells,) = found.cells
    (coarse,) = (s for s in series if s.coarse)
    functions = found.base.shape[1]
    design = np.einsum("nt,tr,krq->knq", coarse.tau, hierarchy.temporal[:, :functions], found.base)
    precise = np.asarray(coarse_info(coarse, channel(coarse, hyper, None), hyper), np.float64)
    held, inverse, share = (np.asarray(a, np.float64) for a in (found.held, found.object_inverse, cells.share))
    there = np.flatnonzero(share.sum(1))
    np.testing.assert_allclose(share[there].sum(1), np.ones(9), rtol=1e-4)
    for k in range(K):
        for p in there:
            told = design[k].T @ precise[k, p] @ design[k]
            free = np.einsum("o,oqr,ors,ots->qt", share[p] ** 2, held[k], inverse[k], held[k])
            expected = told @ np.linalg.inv(np.eye(functions) + free @ told)
            np.testing.assert_allclose(cells.info[k, p], expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("at_once", [2**24, 5 * 48 * 48])
def test_shares_are_sums_of_the_footprint_over_objects(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchy, series, _ = scene(16, 48)
    (coarse,) = (s for s in series if s.coarse)
    objects = hierarchy.spaces["object"]
    one_hot = np.eye(objects.size)[np.asarray(objects.label).ravel()]
    monkeypatch.setattr("fusion.infer.cells.AT_ONCE", at_once)
    np.testing.assert_allclose(shares(coarse, objects), coarse.footprint.dense() @ one_hot, atol=1e-5)


def test_what_looks_have_in_common_is_the_sum_of_their_precision() -> None:
    for looks in scene(16, 48, 0.01)[1]:
        noise = looks.noise(Hyper.default(K, ("coarse", "fine")))
        count, bands = looks.data.shape[:2]
        expected = np.zeros((bands, count, count))
        for n in range(count):
            ones = jnp.zeros(looks.data.shape).at[n].set(1.0)
            expected[:, :, n] = np.asarray(noise.apply(ones).sum((2, 3))).T
        np.testing.assert_allclose(noise.of_means, expected, rtol=2e-2, atol=1e-3 * np.abs(expected).max())


@pytest.mark.slow
def test_what_speeds_the_solver_does_not_make_the_sd_too_small() -> None:
    """Against that of exact draws: cells of 16 pixels say next to nothing of one of them."""
    hierarchy, series, hyper = scene(16, 0)
    exact = posterior(hierarchy, series, hyper, jax.random.key(1), pairs=64, samples=64, exact=True)
    found = jnp.einsum("jk,tkyx->tjyx", hierarchy.mixing**2, exact.canonical_var)  # in closed form
    share = np.sqrt(np.asarray(found)) / np.asarray(exact.sd)
    assert 0.95 < share.mean() < 1.15


@pytest.mark.slow
def test_residuals_of_small_cells_are_their_noise() -> None:
    """Data drawn from the model itself: chi-square is about 1 for both sensors, whatever preconditioner the sd is taken from."""
    hierarchy, series, hyper = scene(4, 48)
    system = prepare(hierarchy, series, hyper, None)
    key = jax.random.key(3)

    @jax.jit
    def data(system: System) -> list[jax.Array]:
        seen = system.predict(white_noise(key, system.hierarchy))
        return [jnp.where(s.precision > 0, one + s.draw_noise(key, hyper, None), 0.0) for s, one in zip(system.series, seen, strict=True)]

    drawn = tuple(replace(s, data=one) for s, one in zip(series, data(system), strict=True))
    found = posterior(hierarchy, drawn, hyper, key, samples=0, limit=200)
    np.testing.assert_allclose(found.chi_square, 1.0, atol=0.3)


def test_panels_are_the_matrix() -> None:
    rng = np.random.default_rng(3)
    root = rng.normal(size=(2, 50, 50))
    spd = root @ np.swapaxes(root, 1, 2)
    each = (panels(_factor(jnp.asarray(np.triu(a), jnp.float32))) for a in spd)
    rows = tuple(jnp.stack(p) for p in zip(*each, strict=True))
    vector = rng.normal(size=(2, 50))
    inverse = np.linalg.inv(spd + 1.0001 * np.eye(50))
    lower = dense(rows)
    np.testing.assert_allclose(np.swapaxes(lower, 1, 2) @ lower, inverse, atol=2e-3)
    np.testing.assert_allclose(squared_times(rows, jnp.asarray(vector, jnp.float32)), np.einsum("kuv,kv->ku", inverse, vector), atol=1e-2)
    np.testing.assert_allclose(transposed_times(rows, jnp.asarray(vector, jnp.float32)), np.einsum("kvu,kv->ku", lower, vector), atol=1e-2)


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
    lower = np.asarray(_factor(jnp.asarray(np.triu(spoiled), jnp.float32)), np.float64)
    assert np.isfinite(lower).all()
    assert np.linalg.eigvalsh(lower.T @ lower)[0] > 0
