"""One look as a linear map of the latent cube: y(b, p) = sum_t tau(t) sum_s W(p, s) sum_k H(b, k) z(t, k, s), and its adjoint.

Order of contraction, by operation count: time first where the weights do not depend on the pixel (the window has 2-4 of the
latent times, so nothing else is read), then space on min(B, K) planes, then colour; with a day per pixel, space comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fusion.observe.operator import Footprint

FIELDS = ["footprint", "colour", "mean", "tau", "first", "near"]


@partial(jax.tree_util.register_dataclass, data_fields=FIELDS, meta_fields=[])
@dataclass(frozen=True, eq=False)
class Layer:
    """Footprint x response x temporal weights of one look; made by `Layer.of`. A pytree: pass it through jit as an argument."""

    footprint: Footprint
    colour: Any
    """(B, K) H of the data model: band responses x spectral basis"""
    mean: Any
    """(B,) band values of the basis' mean spectrum; not part of the linear map"""
    tau: Any
    """(T,) or (H, W, T) temporal weights"""
    first: Any
    """() int32: the first latent time whose weight is not zero"""
    near: Any
    """(n,) or (H, W, n): tau from `first` on; n is 2 for an instant"""

    @classmethod
    def of(
        cls, footprint: Footprint, colour: NDArray[np.floating], mean: NDArray[np.floating], tau: NDArray[np.floating]
    ) -> Layer:
        """The layer of a look.  tau: (T,) or, a day per pixel, (H, W, T)."""
        count = tau.shape[-1]
        used = np.flatnonzero(np.asarray(tau).reshape(-1, count).any(axis=0))
        low, high = (int(used[0]), int(used[-1])) if used.size else (0, 0)
        span = min(count, max(2, high - low + 1))  # an instant on a latent time has one weight: keep one compiled shape
        low = min(low, count - span)
        h, mu, whole, near = (jnp.asarray(np.asarray(a, np.float32)) for a in (colour, mean, tau, tau[..., low : low + span]))
        return cls(footprint, h, mu, whole, jnp.asarray(low, jnp.int32), near)

    def __call__(self, z: jax.Array) -> jax.Array:
        """(T, K, Y, X) -> (B, H, W), without the mean."""
        return _forward(self, z)

    def adjoint(self, v: jax.Array) -> jax.Array:
        """(B, H, W) -> (T, K, Y, X)."""
        return _adjoint(self, v)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, W)."""
        return self.colour.shape[0], *self.footprint.shape

    def operations(self) -> int:
        """Multiply-adds of one forward pass, as contracted."""
        bands, rank = self.colour.shape
        span, latent, native = self.near.shape[-1], int(np.prod(self.footprint.grid_shape)), int(np.prod(self.footprint.shape))
        colour = bands * rank * (latent if bands < rank else native)
        if self.near.ndim == 3:
            return span * (min(bands, rank) * (self.footprint.operations + native) + colour)
        return span * rank * latent + min(bands, rank) * self.footprint.operations + colour


def together(layers: Sequence[Layer], z: jax.Array) -> jax.Array:
    """(N, B, H, W) of N looks that share one footprint and one window length: one pass of the footprint over all their planes."""
    first = layers[0]
    if any(layer.footprint is not first.footprint or layer.near.shape != first.near.shape for layer in layers):
        raise ValueError("looks can be seen together only through one footprint and one length of time window")
    colour, start, near = (jnp.stack([getattr(layer, name) for layer in layers]) for name in ("colour", "first", "near"))
    if near.ndim == 2:  # one matrix product over all times reads z once; a gather of windows was measured slower
        return _together(first.footprint, colour, jnp.stack([layer.tau for layer in layers]), z)
    return _together_by_pixel(first.footprint, colour, start, near, z)


@jax.jit
def _forward(layer: Layer, z: jax.Array) -> jax.Array:
    near = jax.lax.dynamic_slice_in_dim(z, layer.first, layer.near.shape[-1], axis=0)
    return _see(layer.footprint, layer.colour, layer.near, near)


@jax.jit
def _together(footprint: Footprint, colour: jax.Array, tau: jax.Array, z: jax.Array) -> jax.Array:
    planes = jnp.einsum("nt,tkyx->nkyx", tau, z, precision="highest")
    if colour.shape[1] < colour.shape[2]:
        return footprint(jnp.einsum("nbk,nkyx->nbyx", colour, planes, precision="highest"))
    return jnp.einsum("nbk,nkhw->nbhw", colour, footprint(planes), precision="highest")


@jax.jit
def _together_by_pixel(footprint: Footprint, colour: jax.Array, first: jax.Array, near: jax.Array, z: jax.Array) -> jax.Array:
    def one(colour: jax.Array, first: jax.Array, near: jax.Array) -> jax.Array:
        return _see(footprint, colour, near, jax.lax.dynamic_slice_in_dim(z, first, near.shape[-1], axis=0))

    return jax.vmap(one)(colour, first, near)


def _see(footprint: Footprint, colour: jax.Array, near: jax.Array, z: jax.Array) -> jax.Array:
    """The contraction itself on the latent times that count.  z: (n, K, Y, X)."""
    narrow = colour.shape[0] < colour.shape[1]
    planes = jnp.einsum("t,tkyx->kyx", near, z, precision="highest") if near.ndim == 1 else z
    if narrow:
        planes = jnp.einsum("bk,...kyx->...byx", colour, planes, precision="highest")
    seen = footprint(planes)
    if near.ndim == 3:
        seen = jnp.einsum("hwt,tchw->chw", near, seen, precision="highest")
    return seen if narrow else jnp.einsum("bk,khw->bhw", colour, seen, precision="highest")


@jax.jit
def _adjoint(layer: Layer, v: jax.Array) -> jax.Array:
    colour, near = layer.colour, layer.near
    narrow = colour.shape[0] < colour.shape[1]
    planes = v if narrow else jnp.einsum("bk,bhw->khw", colour, v, precision="highest")
    if near.ndim == 3:
        planes = jnp.einsum("hwt,chw->tchw", near, planes, precision="highest")
    back = layer.footprint.adjoint(planes)
    if narrow:
        back = jnp.einsum("bk,...byx->...kyx", colour, back, precision="highest")
    if near.ndim == 1:
        back = near[:, None, None, None] * back
    zeros = jnp.zeros((layer.tau.shape[-1], *back.shape[1:]), back.dtype)
    return jax.lax.dynamic_update_slice_in_dim(zeros, back, layer.first, axis=0)
