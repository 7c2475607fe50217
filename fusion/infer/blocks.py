"""Linear algebra on many small symmetric positive definite matrices at once, the matrix axes first: (R, R, ...).

Batched LAPACK calls share XLA's CPU thread pool and wait inside it: two at a time stop a two-core machine for good (jaxlib 0.10). Sweeps
over whole arrays are as fast on CPUs and much faster on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

Planes = TypeVar("Planes")
ROUNDING = 1e-6
"""share of a diagonal that sums of a few dozen float32 terms leave uncertain"""
PANELS = 6
"""of the inverse of a tile's top: few enough to be quick to compile, enough to leave out most zeros and to stay in cache"""


def invert(matrix: Array) -> tuple[Array, Array]:
    """(inverses (R, R, ...), log determinants (...)) by Gauss-Jordan sweeps."""

    index = jnp.arange(matrix.shape[0]).reshape(-1, *(1,) * (matrix.ndim - 2))

    def sweep(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, log_det = state
        column, pivot = a[:, i], jnp.maximum(a[i, i], 1e-30)
        row = a[i] / pivot
        this_row, this_col = (index == i)[:, None], (index == i)[None]
        first = jnp.where(this_col, 1.0 / pivot, row[None])
        others = jnp.where(this_col, (-column / pivot)[:, None], a - column[:, None] * row[None])
        swept = jnp.where(this_row, first, others)  # one pass over the matrix, no updates in place
        return swept, log_det + jnp.log(pivot)

    return jax.lax.fori_loop(0, matrix.shape[0], sweep, (matrix, jnp.zeros(matrix.shape[2:])))


def root(matrix: Array) -> Array:
    """Lower Cholesky factors (R, R, ...), column by column.

    A pivot that is less than float32 knows of its diagonal is a rounding error, and so is its column, which would be divided by next to
    nothing: such a column is a bare pivot of that size.
    """
    size, known = matrix.shape[0], jnp.maximum(ROUNDING * jnp.diagonal(matrix), 1e-30)
    below = jnp.arange(size).reshape(-1, *(1,) * (matrix.ndim - 2))

    def column(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, out = state
        pivot, least = rest[i, i], known[..., i]
        this = jnp.where(below > i, jnp.where(pivot > least, rest[:, i] / jnp.sqrt(jnp.maximum(pivot, least)), 0.0), 0.0)
        this = jnp.where(below == i, jnp.sqrt(jnp.maximum(pivot, least)), this)
        return rest - this[:, None] * this[None], out.at[:, i].set(this)

    return jax.lax.fori_loop(0, size, column, (matrix, jnp.zeros_like(matrix)))[1]


def last(function: Callable[[Array], Array], matrix: Array) -> Array:
    """A function of matrices whose axes come first, of matrices (..., R, R) whose axes come last."""
    return jnp.moveaxis(function(jnp.moveaxis(matrix, (-2, -1), (0, 1))), (0, 1), (-2, -1))


def times(blocks: Array, vector: Array) -> Array:
    """Blocks (K, R, R, ...) times (K, R, ...), as R fused multiply-adds (a reduction over the third axis is 15 x slower on CPUs)."""
    total = blocks[:, :, 0] * vector[:, None, 0]
    for r in range(1, blocks.shape[2]):
        total = total + blocks[:, :, r] * vector[:, None, r]
    return total


def kept(compute: Callable[[], Planes], like: Planes) -> Planes:
    """What `compute` gives, of the shapes of `like`, computed once.  Has no derivative.

    XLA's CPU code computes an expression again inside every fused expression that uses it: one product of blocks up to 64 times. It does not look
    into a loop whose number of passes only the data tell: one, as a number equals itself (two, to the same end, for NaN). Unlike in a
    loop over components all cores work on each pass.
    """
    if jax.default_backend() != "cpu":
        return compute()
    some = jax.tree.leaves(like)[0].ravel()[0]
    passes = jnp.where(some == some, 1, 2)
    return jax.lax.while_loop(lambda state: state[0] < passes, lambda state: (state[0] + 1, compute()), (jnp.zeros_like(passes), like))[1]


def invert_lower(factor: Array) -> Array:
    """Inverse of one lower triangular matrix (U, U) by halves: a third of the work of a triangular solve, all of it products."""
    size = factor.shape[0]
    if size <= 256:
        return solve_triangular(factor, jnp.eye(size), lower=True)
    half = size // 2
    first, last = invert_lower(factor[:half, :half]), invert_lower(factor[half:, half:])
    corner = -(last @ (factor[half:, :half] @ first))
    top = jnp.concatenate([first, jnp.zeros((half, size - half))], axis=1)
    return jnp.concatenate([top, jnp.concatenate([corner, last], axis=1)])


def panels(lower: Array) -> tuple[Array, ...]:
    """A lower triangular matrix (U, U) as PANELS of its rows, each (rows, columns up to its last row): the zeros beyond are left out."""
    edges = [round(i * len(lower) / PANELS) for i in range(PANELS + 1)]
    return tuple(lower[a:b, :b] for a, b in pairwise(edges))


def transposed_times(rows: Sequence[Array], vector: Array) -> Array:
    """L^T v of panels (K, ., .) of lower triangular matrices L and vectors (K, U)."""
    total, first = jnp.zeros_like(vector), 0
    for panel in rows:
        last = first + panel.shape[1]
        total = total.at[:, : panel.shape[2]].add(jnp.einsum("kvu,kv->ku", panel, vector[:, first:last]))
        first = last
    return total


def squared_times(rows: Sequence[Array], vector: Array) -> Array:
    """L^T L v, panel by panel: each is read from memory once."""
    total = jnp.zeros_like(vector)
    for panel in rows:
        right = vector[:, : panel.shape[2]]
        total = total.at[:, : panel.shape[2]].add(jnp.einsum("kvu,kv->ku", panel, jnp.einsum("kvw,kw->kv", panel, right)))
    return total
