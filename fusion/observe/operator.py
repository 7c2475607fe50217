"""Linear maps between latent planes (..., Y, X) and native planes (..., H, W), each with its adjoint and no scatter-add.

One law, five regimes: `Stencil` (same pixels, any sub-pixel phase), `Separable` (aligned, any ratio), `Dense` (a few broad
footprints), `Gathered` (many narrow ones in general position), `Tangent` (a derivative of any of them).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Weights = Any
"""float32 JAX array; numpy float64 where a footprint is built in double precision"""
COARSE = 3
"""latent pixels per native one from which a raster counts as coarse"""


@dataclass(frozen=True, eq=False)
class Footprint:
    """A linear map from latent planes (..., Y, X) to native planes (..., H, W); equal by identity."""

    seen: Weights
    """(H, W) share of each row's mass inside the grid, before rows are normalised; 0 where the row is dropped"""
    shape: tuple[int, int]
    """(H, W)"""
    grid_shape: tuple[int, int]
    """(Y, X)"""

    def __call__(self, z: jax.Array) -> jax.Array:
        """W z: (..., Y, X) -> (..., H, W)."""
        raise NotImplementedError

    def adjoint(self, v: jax.Array) -> jax.Array:
        """W' v: (..., H, W) -> (..., Y, X), without a scatter-add."""
        raise NotImplementedError

    @property
    def coarse(self) -> bool:
        """Whether a native pixel holds many latent ones."""
        return COARSE * self.shape[0] * self.shape[1] <= self.grid_shape[0] * self.grid_shape[1]

    @property
    def operations(self) -> int:
        """Multiply-adds per plane, forward or adjoint."""
        raise NotImplementedError

    def dense(self) -> NDArray[np.float64]:
        """The matrix itself (H W, Y X): for tests and tiny grids."""
        raise NotImplementedError


@partial(
    jax.tree_util.register_dataclass, data_fields=["seen", "keep", "rows", "cols"], meta_fields=["shape", "grid_shape", "offset"]
)
@dataclass(frozen=True, eq=False)
class Stencil(Footprint):
    """Pixels of the grid's own size and axes at any phase: one separable stencil, as shifted slices that fuse into one loop."""

    keep: Weights
    """(H, W) one over the mass inside the grid, 0 where the row is dropped"""
    rows: Weights
    """(J,) taps down"""
    cols: Weights
    """(J',) taps across"""
    offset: tuple[int, int]
    """latent (row, column) under the first tap of native pixel (0, 0)"""

    def __call__(self, z: jax.Array) -> jax.Array:
        half = _correlate(z, self.rows, self.offset[0], self.shape[0], -2)
        return self.keep * _correlate(half, self.cols, self.offset[1], self.shape[1], -1)

    def adjoint(self, v: jax.Array) -> jax.Array:
        down, across = (1 - o - len(t) for o, t in zip(self.offset, (self.rows, self.cols), strict=True))
        half = _correlate(self.keep * v, self.rows[::-1], down, self.grid_shape[0], -2)
        return _correlate(half, self.cols[::-1], across, self.grid_shape[1], -1)

    @property
    def operations(self) -> int:
        return self.shape[0] * self.grid_shape[1] * len(self.rows) + self.shape[0] * self.shape[1] * (len(self.cols) + 1)

    def dense(self) -> NDArray[np.float64]:
        rows, cols = (
            sum(np.eye(n, m, k=o + j) * float(t) for j, t in enumerate(taps))
            for taps, o, n, m in zip((self.rows, self.cols), self.offset, self.shape, self.grid_shape, strict=True)
        )
        return _product(self.keep, rows, cols)


@partial(jax.tree_util.register_dataclass, data_fields=["seen", "keep", "rows", "cols"], meta_fields=["shape", "grid_shape"])
@dataclass(frozen=True, eq=False)
class Separable(Footprint):
    """Pixels aligned with the grid: W = keep . (rows (x) cols), two small matrix products and no gather."""

    keep: Weights
    """(H, W) 1, or 0 where the row is dropped"""
    rows: Weights
    """(H, Y)"""
    cols: Weights
    """(W, X)"""

    def __call__(self, z: jax.Array) -> jax.Array:
        half = jnp.einsum("...yx,wx->...yw", z, self.cols, precision="highest")
        return self.keep * jnp.einsum("hy,...yw->...hw", self.rows, half, precision="highest")

    def adjoint(self, v: jax.Array) -> jax.Array:
        half = jnp.einsum("hy,...hw->...yw", self.rows, self.keep * v, precision="highest")
        return jnp.einsum("...yw,wx->...yx", half, self.cols, precision="highest")

    @property
    def operations(self) -> int:
        return self.grid_shape[0] * self.cols.size + self.shape[1] * self.rows.size + self.shape[0] * self.shape[1]

    def dense(self) -> NDArray[np.float64]:
        return _product(self.keep, self.rows, self.cols)


@partial(jax.tree_util.register_dataclass, data_fields=["seen", "weights", "pixel", "place"], meta_fields=["shape", "grid_shape"])
@dataclass(frozen=True, eq=False)
class Dense(Footprint):
    """A few broad footprints: the kept rows as one matrix."""

    weights: Weights
    """(P, Y X)"""
    pixel: Weights
    """(P,) int32: flat native pixel of each kept row"""
    place: Weights
    """(H W,) int32: its inverse, P where the row is dropped"""

    def __call__(self, z: jax.Array) -> jax.Array:
        flat = z.reshape(*z.shape[:-2], -1)
        seen = jnp.einsum("ps,...s->...p", self.weights, flat, precision="highest")
        return _put(seen, self.place).reshape(*z.shape[:-2], *self.shape)

    def adjoint(self, v: jax.Array) -> jax.Array:
        picked = v.reshape(*v.shape[:-2], -1)[..., self.pixel]
        return jnp.einsum("ps,...p->...s", self.weights, picked, precision="highest").reshape(*v.shape[:-2], *self.grid_shape)

    @property
    def operations(self) -> int:
        return int(self.weights.size)

    def dense(self) -> NDArray[np.float64]:
        full = np.zeros((self.shape[0] * self.shape[1], self.grid_shape[0] * self.grid_shape[1]))
        full[np.asarray(self.pixel)] = np.asarray(self.weights, dtype=np.float64)
        return full


@partial(
    jax.tree_util.register_dataclass, data_fields=["seen", "index", "weights", "back_index", "back_weights"],
    meta_fields=["shape", "grid_shape"],
)
@dataclass(frozen=True, eq=False)
class Gathered(Footprint):
    """Many narrow footprints in general position: J neighbours per native pixel, and the transposed table for the adjoint."""

    index: Weights
    """(J, H W) int32 flat latent pixel"""
    weights: Weights
    """(J, H W)"""
    back_index: Weights
    """(J', Y X) int32 flat native pixel"""
    back_weights: Weights
    """(J', Y X)"""

    def __call__(self, z: jax.Array) -> jax.Array:
        return _gather(self.index, self.weights, self.back_index, self.back_weights, z, self.shape)

    def adjoint(self, v: jax.Array) -> jax.Array:
        return _gather(self.back_index, self.back_weights, self.index, self.weights, v, self.grid_shape)

    @property
    def operations(self) -> int:
        return int(self.weights.size)

    def dense(self) -> NDArray[np.float64]:
        full = np.zeros((self.grid_shape[0] * self.grid_shape[1], self.shape[0] * self.shape[1]))
        np.add.at(full, (np.asarray(self.index), np.arange(full.shape[1])), np.asarray(self.weights, dtype=np.float64))
        return full.T


@partial(jax.tree_util.register_dataclass, data_fields=["seen", "plus", "minus", "scale"], meta_fields=["shape", "grid_shape"])
@dataclass(frozen=True, eq=False)
class Tangent(Footprint):
    """The derivative of a footprint by a nuisance (shift, width): a central difference, whose rows sum to zero."""

    plus: Footprint
    minus: Footprint
    scale: Weights
    """() one over the difference of the nuisance"""

    def __call__(self, z: jax.Array) -> jax.Array:
        return (self.plus(z) - self.minus(z)) * self.scale

    def adjoint(self, v: jax.Array) -> jax.Array:
        return (self.plus.adjoint(v) - self.minus.adjoint(v)) * self.scale

    @property
    def operations(self) -> int:
        return self.plus.operations + self.minus.operations

    def dense(self) -> NDArray[np.float64]:
        return (self.plus.dense() - self.minus.dense()) * float(self.scale)


def squared(footprint: Footprint) -> Footprint:
    """The map whose every weight is squared: its adjoint of precisions is what a pixel alone is seen with, all others known.

    Raises TypeError for a derivative, which is a difference of two maps.
    """
    if isinstance(footprint, Tangent):
        raise TypeError("asked for the squared weights of a derivative: they are no product; square the footprint itself")
    factors = (name for name in ("keep", "rows", "cols", "weights", "back_weights") if hasattr(footprint, name))
    return replace(footprint, **{name: getattr(footprint, name) ** 2 for name in factors})


def _product(keep: Weights, rows: Weights, cols: Weights) -> NDArray[np.float64]:
    """(H W, Y X) keep . (rows (x) cols)."""
    full = np.einsum("hw,hy,wx->hwyx", *(np.asarray(a, dtype=np.float64) for a in (keep, rows, cols)))
    return np.asarray(full.reshape(keep.shape[0] * keep.shape[1], -1))


@partial(jax.jit, static_argnames=("offset", "count", "axis"))  # calibration calls it by itself, look after look
def _correlate(planes: jax.Array, taps: jax.Array, offset: int, count: int, axis: int) -> jax.Array:
    """out[h] = sum_j taps[j] planes[h + offset + j] along an axis, zero beyond its ends.

    A stack is done one after the other: a loop's results are kept, where open sums are computed again for each tap that uses them.
    """
    if planes.ndim > 2:
        return jax.lax.map(lambda plane: _correlate(plane, taps, offset, count, axis), planes.reshape(-1, *planes.shape[-2:])).reshape(
            *planes.shape[:-2], *(count if axis % 2 == i else planes.shape[i - 2] for i in range(2))
        )
    size, last = planes.shape[axis], count + offset + len(taps) - 1
    pad = [(0, 0), (0, 0)]
    pad[axis] = (max(0, -offset), max(0, last - size))
    padded, start = jnp.pad(planes, pad), max(0, offset)
    return sum(  # type: ignore[return-value]
        taps[j] * jax.lax.slice_in_dim(padded, start + j, start + j + count, axis=axis % 2) for j in range(len(taps))
    )


def _put(values: jax.Array, place: jax.Array) -> jax.Array:
    """(..., P) to (..., H W) by a gather from the values with one zero appended."""
    return jnp.concatenate([values, jnp.zeros((*values.shape[:-1], 1), values.dtype)], axis=-1)[..., place]


def _accumulate(index: jax.Array, weights: jax.Array, planes: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """sum_j weights[j] planes[index[j]], one neighbour after the other: memory stays at two planes."""
    lead = planes.shape[:-2]
    flat = planes.reshape(-1, planes.shape[-2] * planes.shape[-1]).T

    def add(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + row[1][:, None] * flat[row[0]], None

    start = jnp.zeros((weights.shape[1], flat.shape[1]), flat.dtype)
    total, _ = jax.lax.scan(add, start, (index, weights))
    return total.T.reshape(*lead, *shape)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _gather(index: Any, weights: Any, back_index: Any, back_weights: Any, planes: Any, shape: tuple[int, int]) -> jax.Array:
    return _accumulate(index, weights, planes, shape)


def _gather_forward(
    index: Any, weights: Any, back_index: Any, back_weights: Any, planes: Any, shape: tuple[int, int]
) -> tuple[jax.Array, Any]:
    return _accumulate(index, weights, planes, shape), (back_index, back_weights, planes.shape[-2:])


def _gather_backward(shape: tuple[int, int], residual: Any, cotangent: Any) -> tuple[Any, ...]:
    back_index, back_weights, back_shape = residual  # autodiff too goes through the transposed table, never a scatter
    return None, None, None, None, _accumulate(back_index, back_weights, cotangent, (int(back_shape[0]), int(back_shape[1])))


_gather.defvjp(_gather_forward, _gather_backward)
