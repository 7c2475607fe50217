"""Simulation-based calibration: on worlds drawn from the model, ranks are uniform and errors are as large as they claim.

A few worlds here; `benchmarks/calibration.py` draws hundreds, theta included, and keeps the figure.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fusion.infer import gaussian
from fusion.infer.collapsed import covariance, probed, temporal
from fusion.infer.probes import probe
from fusion.infer.problem import whole
from fusion.process.hierarchy import LEVELS
from tests.infer import oracle, small

pytestmark = pytest.mark.slow  # minutes of compilation on two cores

WORLDS = 24


def calm() -> oracle.World:
    """The oracle's cloudy world without gain errors, whose column is taken from the data."""
    world = oracle.world("cloudy", complete=True)
    for obs in world.observations:
        obs.gain_sd[:] = 0
    return world


def test_probes_are_as_uncertain_as_their_covariance_says() -> None:
    """Over worlds drawn from the model, value^T S^-1 value averages the number of values, at every scale: whole courses, so nothing is left out."""
    world = oracle.world("cloudy", complete=True)
    for obs in world.observations:
        obs.gain_sd[:] = 0
    u, draw = world.hyper.to_white(), small.simulator(world)
    squares, counts, curves = dict.fromkeys(LEVELS, 0.0), dict.fromkeys(LEVELS, 0.0), []
    slope = jax.jit(jax.grad(lambda u, batches, hierarchy: probed(u, batches, hierarchy, world.hyper.sensors)))
    for seed in range(16):
        draw(seed)
        batches = probe([whole(world.series, world.hierarchy)], world.hyper, 0)
        curves.append(np.asarray(slope(u, batches, world.hierarchy)))
        for batch in batches:
            value = np.swapaxes(np.asarray(batch.value * batch.seen, np.float64), 1, 2)
            spread = np.asarray(covariance(batch, world.hyper, temporal(world.hierarchy, world.hyper)), np.float64)
            form = (value * np.linalg.solve(spread, value[..., None])[..., 0]).sum((1, 2))
            for i, name in enumerate(LEVELS):
                mine = np.asarray(batch.scale) == i
                squares[name] += float(form[mine].sum())
                counts[name] += float(np.asarray(batch.seen)[mine].sum())
    for name in LEVELS:
        ratio, error = squares[name] / counts[name], np.sqrt(2 / counts[name])
        assert abs(ratio - 1) < 5 * error + 0.03, f"{name}: {ratio:.3f} over {counts[name]:.0f} values"
    # The score at the true theta, in units of its own spread and the prior's: how far the estimate leans, in its own sd.
    lean = np.mean(curves, axis=0) / np.sqrt(np.var(curves, axis=0, ddof=1) + 1)
    assert np.sqrt(np.mean(lean**2)) < 0.6


def test_ranks_of_the_field_are_uniform() -> None:
    """Ranks of the truth among independent posterior draws, and its distance from the mean in claimed sd (Talts et al. 2018)."""
    world, pairs = calm(), 7
    draw = small.simulator(world)
    factors = world.hierarchy.factors(world.hyper)
    rng = np.random.default_rng(0)
    ranks, scores = [], []
    for seed in range(WORLDS):
        truth = draw(100 + seed)
        found = gaussian.posterior(world.hierarchy, world.series, world.hyper, jax.random.key(seed), pairs=pairs, samples=32)
        whites = [jax.tree.map(lambda a, i=i: a[i], found.deviations) for i in range(pairs)]
        deviations = [np.asarray(world.hierarchy.field(*world.hierarchy.coefficients(w, factors))) for w in whites]
        draws = np.asarray(found.mean) + np.array(deviations)  # one of each antithetic pair: independent
        places = rng.choice(truth.size, 40, replace=False)
        ranks.append((draws.reshape(pairs, -1)[:, places] < truth.ravel()[places]).sum(0))
        scores.append(((truth - np.asarray(found.mean)) / np.asarray(found.sd)).ravel()[places])
    counts = np.bincount(np.concatenate(ranks), minlength=pairs + 1)
    expected = counts.sum() / len(counts)
    assert (abs(counts - expected) < 6 * np.sqrt(expected)).all(), counts  # places of one world are correlated: six, not three
    z = np.concatenate(scores)
    assert 0.89 < np.sqrt(np.mean(z**2)) < 1.05  # the closed-form sd is up to a tenth too wide on a tile as small as this, and never too narrow
    assert abs(z.mean()) < 0.2
    assert 0.87 < np.mean(abs(z) < 1.645) < 0.93
