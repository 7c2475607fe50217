"""The score by which theta is learned: against numpy, unbiased, and computed without stopping a small machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fusion.infer.collapsed import leave_one_out

PROGRAM = """
import jax, jax.numpy as jnp
from fusion.infer.collapsed import probed
from fusion.infer.probes import Probes
from fusion.process.hierarchy import Hyper
from tests.infer.oracle import DAYS, K, T, world

def batch(count, looks):
    flat, pair = (lambda *more: jnp.ones((count, looks, *more))), (lambda *more: jnp.ones((count, *more, looks, looks)))
    return Probes(
        value=flat(K), response=pair(K, K), seen=flat(K), judged=flat(), gram=0.1 * pair(5), tau=jnp.full((count, looks, T), 1 / T),
        sensor=jnp.zeros((count, looks), jnp.int32), noise=flat(K), fixed=0 * flat(K), offset=0 * flat(K), sudden=0 * flat(K), gain=0 * pair(K),
        discrepancy=0 * pair(K), lag=0 * pair(), scale=jnp.zeros(count, jnp.int32),
    )

hierarchy = world().hierarchy
density = jax.jit(jax.value_and_grad(lambda u, batches: probed(u, batches, hierarchy, ("fine",))))
u, batches = jnp.zeros(Hyper.size(K, 1)), (batch(288, 16), batch(96, 32))
for _ in range(40):
    value, slope = jax.block_until_ready(density(u, batches))
assert jnp.isfinite(value) and jnp.isfinite(slope).all()
"""


def test_probes_of_two_sizes_do_not_wait_for_each_other_for_good() -> None:
    """Two batched LAPACK calls at once take all threads of two cores and wait: the density has to do without."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=240, cwd=Path(__file__).parents[2])


def test_the_left_out_score_and_its_written_gradient() -> None:
    """Each judged value against the normal distribution that the other values give it, in float64 numpy, and by differences."""
    rng = np.random.default_rng(0)

    def wanted(covariance: np.ndarray, value: np.ndarray, judged: np.ndarray, sudden: np.ndarray) -> float:
        total = 0.0
        for i in np.flatnonzero(judged):
            rest = np.arange(len(value)) != i
            weight = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, i])
            variance = covariance[i, i] - weight @ covariance[rest, i] + sudden[i]
            total -= 0.5 * np.log(variance) + 0.5 * (value[i] - weight @ value[rest]) ** 2 / variance
        return float(total)

    for size in (3, 30):
        root = rng.normal(size=(size, size))
        covariance, value, judged = root @ root.T + size * np.eye(size), rng.normal(size=size) * 3, (rng.random(size) < 0.6) * 1.0
        sudden = rng.exponential(size=size) * size * (rng.random(size) < 0.5)
        single = tuple(jnp.asarray(v, jnp.float32) for v in (covariance, value, judged, sudden))
        np.testing.assert_allclose(leave_one_out(*single), wanted(covariance, value, judged, sudden), rtol=1e-4)
        slope_c, slope_v = jax.grad(lambda c, v, j, s: leave_one_out(c, v, j, s), (0, 1))(*single)
        turn, step = rng.normal(size=(size, size)), 1e-5
        turn, along = turn + turn.T, rng.normal(size=size)
        ends = [wanted(covariance + s * turn, value + s * along, judged, sudden) for s in (step, -step)]
        found = (np.asarray(slope_c) * turn).sum() + np.asarray(slope_v) @ along
        np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * step), rtol=2e-3)
