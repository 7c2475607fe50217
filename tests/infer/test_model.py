"""The joint model in numpyro and the collapsed densities say the same as the written equations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density

from fusion.infer.collapsed import exact, log_normal
from fusion.infer.model import joint
from fusion.infer.probes import LOOKS, _deal
from fusion.process.hierarchy import Hyper
from tests.infer import small

pytestmark = pytest.mark.slow  # minutes of compilation on two cores


@pytest.fixture(scope="module")
def tiny() -> Any:
    with small.shrunk():
        world = small.world()
        small.simulator(world)(1)
        yield world


def thetas(world: Any, count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [0.6 * rng.normal(size=Hyper.size(world.hyper.rank, 2)) for _ in range(count)]


def test_the_exact_density_is_the_dense_one_up_to_one_constant(tiny: Any) -> None:
    gaps = []
    for u in thetas(tiny):
        there = replace(tiny, hyper=Hyper.from_white(u, small.RANK, ("fine", "coarse")))
        found = exact(jnp.asarray(u, jnp.float32), tiny.series, tiny.hierarchy, ("fine", "coarse"))
        gaps.append(float(found) - there.log_evidence())
    np.testing.assert_allclose(gaps, gaps[0], atol=0.05)


def test_the_joint_density_is_prior_times_likelihood_as_written(tiny: Any) -> None:
    """log p(u, xi, errors, y) against its terms in float64 numpy."""
    rng = np.random.default_rng(0)
    series, sensors = tiny.series, ("fine", "coarse")
    u = thetas(tiny, 1)[0]
    hyper = Hyper.from_white(u, small.RANK, sensors)
    values = {"u": jnp.asarray(u, jnp.float32)}
    for name, shape in tiny.hierarchy.white_shapes.items():
        values[f"xi_{name}"] = jnp.asarray(rng.normal(size=shape), jnp.float32)
    for i, looks in enumerate(series):
        n, bands, *shape = looks.data.shape
        values |= {f"offset_{i}": jnp.asarray(rng.normal(size=(n, bands)), jnp.float32), f"gain_{i}": jnp.zeros(bands)}
        if looks.correlated:
            values[f"discrepancy_{i}"] = jnp.asarray(rng.normal(size=(n, bands, *shape)), jnp.float32)
    found, _ = log_density(joint, (series, tiny.hierarchy, sensors), {}, values)
    drawn = np.concatenate([np.asarray(v, np.float64).ravel() for v in values.values()])
    wanted = -0.5 * float((drawn**2).sum()) - 0.5 * drawn.size * np.log(2 * np.pi)
    white = {name: values[f"xi_{name}"] for name in tiny.hierarchy.white_shapes}
    z = np.asarray(tiny.hierarchy.field(*tiny.hierarchy.coefficients(white, tiny.hierarchy.factors(hyper))), np.float64)
    seen_of = {"fine": 0, "coarse": 0}
    where = {looks.sensor: i for i, looks in enumerate(series)}
    for obs in sorted(tiny.observations, key=lambda o: str(o.when)):
        k, n = where[obs.sensor], seen_of[obs.sensor]
        seen_of[obs.sensor] += 1
        g = sensors.index(obs.sensor)
        y = np.einsum("t,bk,ps,tks->bp", obs.layer.tau, obs.layer.colour, obs.layer.footprint.dense(), z.reshape(4, 2, -1))
        shift = float(hyper.offset[g]) * obs.offset_sd * np.asarray(values[f"offset_{k}"][n])
        y = y.reshape(obs.data.shape) + shift[:, None, None]
        if np.any(obs.discrepancy_sd):
            days = np.asarray(series[k].days, np.float64)
            lag = np.abs(days[:, None] - days) / (10 * float(hyper.discrepancy_days[g]))
            root = float(hyper.discrepancy[g]) * np.linalg.cholesky(np.exp(-lag) + 1e-5 * np.eye(4))
            cells = np.asarray(values[f"discrepancy_{k}"], np.float64).reshape(4, 2, -1)[..., :4]  # four cells, then padding
            y += np.einsum("m,mbp->bp", root[n], cells).reshape(y.shape) * obs.discrepancy_sd
        there = obs.precision > 0
        variance = float(hyper.noise[g]) ** 2 / obs.precision[there]
        wanted += float((-0.5 * (obs.data[there] - y[there]) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)).sum())
    assert float(found) == pytest.approx(wanted, abs=0.02 + 1e-5 * abs(wanted))


def test_student_noise_forgives_what_gaussian_noise_does_not(tiny: Any) -> None:
    """The same gross error costs far less: its log density falls with log r instead of r^2."""
    values = {f"xi_{n}": jnp.zeros(s) for n, s in tiny.hierarchy.white_shapes.items()}
    for i, looks in enumerate(tiny.series):
        n, bands, *shape = looks.data.shape
        values |= {f"offset_{i}": jnp.zeros((n, bands)), f"gain_{i}": jnp.zeros(bands)}
        values |= {f"discrepancy_{i}": jnp.zeros((n, bands, *shape))}
    spoiled = tuple(replace(s, data=s.data.at[0, 0, 0, 0].add(1.0)) if s.sensor == "fine" else s for s in tiny.series)

    def cost(nu: float | None) -> float:
        before, after = (
            log_density(joint, (s, tiny.hierarchy, ("fine", "coarse")), {"hyper": tiny.hyper, "nu": nu}, values)[0]
            for s in (tiny.series, spoiled)
        )
        return float(before - after)

    assert cost(None) > 500
    assert 0 < cost(4.0) < 30


def test_the_log_normal_and_its_written_gradient() -> None:
    rng = np.random.default_rng(0)
    for size in (3, 24, 41):
        root = rng.normal(size=(2, size, size))
        covariance, value = root @ root.transpose(0, 2, 1) + size * np.eye(size), rng.normal(size=(2, size))
        wanted = [-0.5 * (v @ np.linalg.solve(c, v) + np.linalg.slogdet(c)[1]) for c, v in zip(covariance, value, strict=True)]
        single = jnp.asarray(covariance, jnp.float32), jnp.asarray(value, jnp.float32)
        np.testing.assert_allclose(jax.vmap(log_normal)(*single), wanted, rtol=1e-4)
        slope_c, slope_v = jax.grad(lambda c, v: jax.vmap(log_normal)(c, v).sum(), (0, 1))(*single)
        for c, v, gc, gv in zip(covariance, value, slope_c, slope_v, strict=True):
            inverse = np.linalg.inv(c)
            np.testing.assert_allclose(gv, -inverse @ v, atol=1e-4)
            np.testing.assert_allclose(gc, 0.5 * (np.outer(inverse @ v, inverse @ v) - inverse), atol=1e-4)


def test_a_long_series_is_dealt_out_whole_or_thinned() -> None:
    looks, rng = np.arange(3 * LOOKS - 5), np.random.default_rng(0)
    hands = _deal(looks, "class", rng)
    assert np.array_equal(np.sort(np.concatenate(hands)), looks)
    assert max(map(len, hands)) <= LOOKS
    for _ in range(10):
        (hand,) = _deal(looks, "place", rng)
        assert len(hand) <= LOOKS
        assert (np.diff(hand) > 0).all()
    assert _deal(looks[:1], "pixel", rng) == []
