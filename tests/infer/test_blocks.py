"""Many small matrices at once, against numpy in double precision; and that what is kept is what was computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion.infer.blocks import invert, invert_lower, kept, root, times


def spd(size: int, *batch: int) -> np.ndarray:
    """(size, size, *batch) symmetric positive definite, condition numbers of a few thousand."""
    a = np.random.default_rng(size).normal(size=(*batch, size, size))
    return np.moveaxis(a @ np.swapaxes(a, -1, -2) + 1e-2 * np.eye(size), (-2, -1), (0, 1))


@pytest.mark.parametrize("size", [1, 2, 8, 25])
def test_inverse_determinant_and_root_are_those_of_numpy(size: int) -> None:
    matrix = spd(size, 3, 5)
    last = np.moveaxis(matrix, (0, 1), (-2, -1))
    inverse, log_det = invert(jnp.asarray(matrix, jnp.float32))
    product = np.moveaxis(np.asarray(inverse, np.float64), (0, 1), (-2, -1)) @ last
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(size), product.shape), atol=0.02)
    np.testing.assert_allclose(np.asarray(log_det), np.linalg.slogdet(last)[1], rtol=1e-3, atol=1e-2)
    lower = np.moveaxis(np.asarray(root(jnp.asarray(matrix, jnp.float32))), (0, 1), (-2, -1))
    np.testing.assert_allclose(lower, np.linalg.cholesky(last), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("size", [4, 12, 24])
def test_a_root_of_what_rounding_made_indefinite_is_one_all_the_same(size: int) -> None:
    """Covariances of fewer things than they have rows: last pivots are rounding errors of either sign (a cell's objects, seen by few dates)."""
    rng = np.random.default_rng(size)
    few = rng.normal(size=(500, size, size // 2)) * np.geomspace(1, 1e-3, size // 2)
    matrix = (few @ np.swapaxes(few, 1, 2)).astype(np.float32) + np.float32(1e-9) * np.eye(size, dtype=np.float32)
    lower = np.moveaxis(np.asarray(root(jnp.moveaxis(matrix, (-2, -1), (0, 1))), np.float64), (0, 1), (-2, -1))
    wrong = np.abs(lower @ np.swapaxes(lower, 1, 2) - matrix).max((1, 2))
    assert (wrong < 1e-4 * np.trace(matrix, axis1=1, axis2=2)).all()


def test_lower_inverse_by_halves() -> None:
    factor = np.tril(np.random.default_rng(0).normal(size=(600, 600))) / 30 + np.eye(600)
    found = np.asarray(invert_lower(jnp.asarray(factor, jnp.float32)), np.float64)
    np.testing.assert_allclose(found @ factor, np.eye(600), atol=1e-4)


def test_kept_is_what_was_computed_also_side_by_side_and_for_nan() -> None:
    rng = np.random.default_rng(1)
    blocks, vector = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 3, 4, 5), (2, 3, 4, 5)))
    plain = np.einsum("kqryx,kryx->kqyx", blocks, vector)

    def product(vector: jax.Array) -> jax.Array:
        return kept(lambda: times(blocks, vector), vector)

    np.testing.assert_allclose(jax.jit(product)(vector), plain, rtol=1e-4, atol=1e-5)
    both = jax.jit(jax.vmap(product))(jnp.stack([vector, -2 * vector]))
    np.testing.assert_allclose(both, np.stack([plain, -2 * plain]), rtol=1e-4, atol=1e-5)
    spoiled = np.asarray(jax.jit(product)(vector.at[0, 0, 0, 0].set(jnp.nan)))
    assert np.isnan(spoiled[0, :, 0, 0]).all()
    assert np.isfinite(spoiled[1]).all()
