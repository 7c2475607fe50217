"""How the levels of the hierarchy spread over the pixels: A_l(s, i), row s = pixel, column i = unit of the level.

Each space is a linear map `spread (..., m) -> (..., Y, X)` with its exact transpose `gather`, and no scatter-add
(float32 scatters are orders of magnitude slower than gathers on GPUs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from numpy.typing import NDArray

CHUNK = 32
"""pixels per partial sum of an object"""
TOGETHER = 8
"""planes that CPUs scatter together: few enough for what they turn to stay in cache"""


class Space(Protocol):
    """What every level's spatial factor can do."""

    @property
    def size(self) -> int:
        """m, the number of units."""
        ...

    def spread(self, units: Array) -> Array:
        """(..., m) -> (..., Y, X): A units."""
        ...

    def gather(self, plane: Array) -> Array:
        """(..., Y, X) -> (..., m): A^T plane."""
        ...


@register_dataclass
@dataclass(frozen=True, eq=False)
class Weights:
    """Dense weights: the scene (one unit of weight 1) and the classes (soft memberships)."""

    weight: Array
    """(m, Y, X)"""

    @property
    def size(self) -> int:
        """m."""
        return int(self.weight.shape[0])

    def spread(self, units: Array) -> Array:
        """Weighted sum of the units at every pixel."""
        return jnp.einsum("...m,myx->...yx", units, self.weight)

    def gather(self, plane: Array) -> Array:
        """Weighted sum of the pixels of every unit."""
        flat = plane.reshape(-1, plane.shape[-2] * plane.shape[-1])
        return (self.weight.reshape(self.size, -1) @ flat.T).T.reshape(*plane.shape[:-2], -1)  # this way round CPUs copy neither


@register_dataclass
@dataclass(frozen=True, eq=False)
class Objects:
    """One unit per segment: every pixel belongs to exactly one."""

    label: Array
    """(Y, X) int32, 0 .. m-1"""
    order: Array
    """(chunks, CHUNK) int32: flat pixels grouped by object, padded with Y*X (a slot that holds zero)"""
    owner: Array
    """(chunks, m) float32 one-hot: the object of each chunk"""

    @classmethod
    def from_label(cls, label: NDArray[np.integer], capacity: int = 0) -> Objects:
        """Objects of a label map (Y, X); labels are renumbered without gaps, in increasing order.

        capacity: units to make room for, so that tiles with about as many objects share their array shapes (and one compile).
        """
        flat = np.unique(label.ravel(), return_inverse=True)[1].astype(np.int32)
        count = int(flat.max()) + 1
        sizes = np.bincount(flat, minlength=count)
        chunks = -(-sizes // CHUNK)
        units = -(-max(count, capacity) // 32) * 32
        total = -(-(flat.size // CHUNK + units) // 64) * 64  # never less than the sum of `chunks`, whatever the sizes
        order = np.full((total, CHUNK), flat.size, dtype=np.int32)
        first = np.concatenate([[0], np.cumsum(chunks)[:-1]])
        by_object = np.argsort(flat, kind="stable")
        rank = np.arange(flat.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order.reshape(-1)[first[flat[by_object]] * CHUNK + rank] = by_object
        owner = np.zeros((total, units), dtype=np.float32)
        owner[np.arange(int(chunks.sum())), np.repeat(np.arange(count), chunks)] = 1.0
        return cls(jnp.asarray(flat.reshape(label.shape)), jnp.asarray(order), jnp.asarray(owner))

    @property
    def size(self) -> int:
        """m, padded to a multiple of 32 (units that own no pixel keep their prior and touch nothing)."""
        return int(self.owner.shape[1])

    def spread(self, units: Array) -> Array:
        """The unit of every pixel's object."""
        return jnp.take(units, self.label, axis=-1)

    def gather(self, plane: Array) -> Array:
        """Sum over the pixels of every object: gather, partial sums of CHUNK, then one small matrix product; on CPUs a scatter of TOGETHER planes."""

        def scattered(plane: Array) -> Array:
            flat = plane.reshape(-1, plane.shape[-2] * plane.shape[-1])
            count, width = len(flat), min(TOGETHER, len(flat))
            flat = jnp.pad(flat, ((0, -count % width), (0, 0)))

            def some(planes: Array) -> Array:
                return jnp.zeros((self.size, width), flat.dtype).at[self.label.reshape(-1)].add(planes.T).T

            return jax.lax.map(some, flat.reshape(-1, width, flat.shape[1])).reshape(-1, self.size)[:count].reshape(*plane.shape[:-2], -1)

        return jax.lax.platform_dependent(plane, cpu=scattered, default=lambda plane: self.grouped(plane).sum(-1) @ self.owner)

    def whole(self, chunks: Array) -> Array:
        """(chunks, ...) -> (m, ...): the sum over the chunks of every object."""

        def scattered(chunks: Array) -> Array:
            return jnp.zeros((self.size, *chunks.shape[1:]), chunks.dtype).at[self.owner.argmax(1)].add(chunks)

        return jax.lax.platform_dependent(chunks, cpu=scattered, default=lambda chunks: jnp.tensordot(self.owner, chunks, (0, 0)))

    def grouped(self, plane: Array) -> Array:
        """(..., Y, X) -> (..., chunks, CHUNK): the pixels object by object, zeros in the slots that no pixel fills."""
        flat = plane.reshape(*plane.shape[:-2], -1)
        flat = jnp.concatenate([flat, jnp.zeros_like(flat[..., :1])], axis=-1)
        return jnp.take(flat, self.order, axis=-1)

    def centre(self, rows: Array, cols: Array) -> tuple[Array, Array]:
        """(m,) rounded global row and column of each object: the same for an object that lies whole in two tiles."""
        planes = jnp.stack(jnp.broadcast_arrays((rows - rows[0])[:, None], (cols - cols[0])[None, :], jnp.ones((1, 1))))
        row, col, size = self.gather(planes.astype(jnp.float32))
        size = jnp.maximum(size, 1.0)
        return rows[0] + jnp.round(row / size).astype(jnp.int32), cols[0] + jnp.round(col / size).astype(jnp.int32)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Smooth:
    """A smooth field: cubic B-splines on a lattice of nodes fixed in the GLOBAL grid, unit prior variance at every pixel."""

    rows: Array
    """(Y, Gy) weights, sum of squares 1 per row"""
    cols: Array
    """(X, Gx)"""
    node_rows: Array
    """(Gy,) global index of each node"""
    node_cols: Array
    """(Gx,)"""

    @classmethod
    def lattice(cls, shape: tuple[int, int], origin: tuple[int, int], spacing: float) -> Smooth:
        """Nodes every `spacing` pixels.  origin: global (row, column) of the first pixel, so that tiles share their nodes."""
        (rows, first), (cols, left) = (_splines(n, o, spacing) for n, o in zip(shape, origin, strict=True))
        return cls(jnp.asarray(rows), jnp.asarray(cols), first + jnp.arange(rows.shape[1]), left + jnp.arange(cols.shape[1]))

    @property
    def size(self) -> int:
        """m = Gy Gx."""
        return int(self.rows.shape[1] * self.cols.shape[1])

    def spread(self, units: Array) -> Array:
        """Interpolate the nodes, one axis at a time."""
        grid = units.reshape(*units.shape[:-1], self.rows.shape[1], self.cols.shape[1])
        return jnp.einsum("yg,...gh,xh->...yx", self.rows, grid, self.cols)

    def gather(self, plane: Array) -> Array:
        """Its transpose."""
        grid = jnp.einsum("yg,...yx,xh->...gh", self.rows, plane, self.cols)
        return grid.reshape(*plane.shape[:-2], -1)


def _splines(count: int, origin: int, spacing: float) -> tuple[NDArray[np.float32], int]:
    """Uniform cubic B-spline weights (count, nodes) of pixels origin .. origin+count-1, sums of squares 1; first node's index."""
    place = (origin + np.arange(count) + 0.5) / spacing
    first = int(np.floor(place[0])) - 1
    nodes = int(np.ceil(count / spacing)) + 4  # whatever the phase, so that all tiles have the same shapes
    q = np.abs(place[:, None] - (first + np.arange(nodes))[None, :])
    weight = np.where(q < 1, 2 / 3 - q**2 + q**3 / 2, np.maximum(2 - q, 0) ** 3 / 6)
    return np.asarray(weight / np.sqrt((weight**2).sum(1, keepdims=True)), dtype=np.float32), first


@register_dataclass
@dataclass(frozen=True, eq=False)
class Pixels:
    """The identity: every pixel is its own unit."""

    like: Array
    """(Y, X) zeros: carries the shape"""

    @property
    def size(self) -> int:
        """m = Y X."""
        return int(self.like.size)

    def spread(self, units: Array) -> Array:
        """(..., Y X) -> (..., Y, X)."""
        return units.reshape(*units.shape[:-1], *self.like.shape)

    def gather(self, plane: Array) -> Array:
        """(..., Y, X) -> (..., Y X)."""
        return plane.reshape(*plane.shape[:-2], -1)


def dense(space: Space, shape: tuple[int, int]) -> Array:
    """(m, Y, X) the matrix A^T of a small space, for preconditioners and pictures."""
    return jax.vmap(space.spread)(jnp.eye(space.size)).reshape(space.size, *shape)
