"""The density of all probes is computed without stopping a small machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import jax, jax.numpy as jnp
from fusion.infer.collapsed import probed
from fusion.infer.probes import Probes
from fusion.process.hierarchy import Hyper
from tests.infer.oracle import DAYS, K, T, world

def batch(count, looks):
    flat, pair = (lambda *more: jnp.ones((count, looks, *more))), (lambda *more: jnp.ones((count, *more, looks, looks)))
    return Probes(
        value=flat(K), response=pair(K, K), seen=flat(K), gram=0.1 * pair(5), tau=jnp.full((count, looks, T), 1 / T),
        sensor=jnp.zeros((count, looks), jnp.int32), noise=flat(K), fixed=0 * flat(K), offset=0 * flat(K), gain=0 * pair(K),
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
    """Two batched LAPACK calls at once take all threads of two cores and wait: the density has to make one after the other."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=240, cwd=Path(__file__).parents[2])
