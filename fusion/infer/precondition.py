"""An approximate posterior that can be inverted in closed form: it preconditions the exact solve and carries most of its variance.

Per canonical component k, with the other components held apart, unknowns are eliminated from the many to the few:

    pixels  (R x R per pixel, exact for looks without blur)  ->  objects (R x R each)  ->  top = scene, offsets, classes, places (dense)

The fine looks enter pixel by pixel (block-shaped clouds are no obstacle); seen from the top an object is one place, with its mean weights.
Everything is seen in units of a pixel's liveliness a: fine looks weigh a^2 w, the scene and offsets have the weight 1 / a.
Coarse looks enter the top only, with their discrepancy and offsets marginalised. As M = U^T D U with positive blocks D, M is
positive definite whatever is approximated.

A blurred look hardly sees the finest pattern of the pixels, so the pixels' inverse X_0 is far too sure there. With high-pass filters Phi_i,
the undecimated Haar ones along one axis and along both, and the blur's mean squared transfer g_i^2 in their bands,

    M^-1 = (U^T D U)^-1 + sum_i Phi_i^T (X_i - X_0) Phi_i,      X_i = (I + g_i^2 J)^-1,   J = information of the looks without blur

on the pixels. Every X_i - X_0 is positive, the filters vanish on smooth fields, and the mean over all bands is the pixel's variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

from fusion.infer.blocks import times
from fusion.process.space import Objects, Smooth, Weights

White = dict[str, Array]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Preconditioner:
    """M: `apply` is M^-1 r, `draw_upper` draws from N(0, M^-1)."""

    inverse: Array
    """(K, R, R, Y, X) pixel blocks X_0"""
    blurred: tuple[Array, ...]
    """(K, R, R, Y, X) X_i - X_0 of the bands that are high along one axis, and along both; () where there are no fine looks"""
    weight: Array
    """(N, Y, X) of all fine looks"""
    lam: Array
    """(N, K)"""
    pixel: Array
    """(K, N, R) phi L of the pixel level"""
    object: Array
    """(K, N, R_o)"""
    scene: Array
    """(K, N, T + offsets)"""
    still: Array
    """(Y, X) 1 / liveliness: the scene, and offsets, in units of a pixel's deviations"""
    stills: Array
    """(O,) its mean over each object"""
    kind: Array
    """(K, N, R_c)"""
    place: Array
    """(K, N, R_p)"""
    info: Array
    """(K, O, N, N) what an object's fine looks say, its pixels marginalised"""
    object_inverse: Array
    """(K, O, R_o, R_o)"""
    object_root: Array
    """(K, O, R_o, R_o) its lower Cholesky factor"""
    kinds: Array
    """(C, O) mean membership of each object"""
    places: Array
    """(G, O) mean node weights of each object"""
    objects: Objects
    classes: Weights
    nodes: Smooth
    top: Array
    """(K, U, U) inverse of the lower Cholesky factor of the top's Schur complement"""

    def _pixels(self, right: Array) -> Array:
        return times(self.inverse, right)

    def _finest(self, right: Array) -> Array:
        """sum_i Phi_i^T (X_i - X_0) Phi_i of the pixels' right-hand side (K, R, Y, X)."""
        if not self.blurred:
            return jnp.zeros_like(right)

        def bands(plane: Array) -> Array:
            """(3, R, Y, X): high down the columns, both ways, along the rows."""
            low, high = _haar(plane, 1)
            return jnp.stack([_haar(high, 2)[0], _haar(high, 2)[1], _haar(low, 2)[1]])

        edge, corner = self.blurred
        down, both, along = jnp.moveaxis(jax.lax.map(bands, right), 1, 0)  # a loop's results are kept, not computed again for each use
        out = _haar_back(times(edge, down), 3, 1) + _haar_back(times(corner, both), 3, -1)
        return _haar_back(out, 2, -1) + _haar_back(_haar_back(times(edge, along), 3, -1), 2, 1)

    @property
    def variance(self) -> Array:
        """(K, R, R, Y, X) covariance of a pixel's own coefficients: the mean over the bands, a quarter of the spectrum each."""
        return self.inverse + (0.5 * self.blurred[0] + 0.25 * self.blurred[1] if self.blurred else 0.0)

    def _to_looks(self, units: Array) -> Array:
        """Pixel coefficients (K, R, Y, X) -> weighted looks (K, N, Y, X)."""
        return jnp.einsum("knr,kryx->knyx", self.pixel, units) * self.lam.T[:, :, None, None] * self.weight

    def _split(self, top: Array) -> tuple[Array, Array, Array]:
        """(K, U) -> scene with offsets, classes (K, R_c, C), places (K, R_p, G)."""
        first = self.scene.shape[2]
        second = first + self.kind.shape[2] * self.kinds.shape[0]
        shape = top.shape[0]
        return top[:, :first], top[:, first:second].reshape(shape, -1, self.kinds.shape[0]), top[:, second:].reshape(shape, self.place.shape[2], -1)

    def _down(self, top: Array, objects: Array, pixels: Array, steps: int) -> White:
        """Back substitution: condition objects on the top and pixels on both."""
        scene, kind, place = self._split(top)
        mean = jnp.einsum("knt,kt->kn", self.scene, scene)[:, :, None]
        upper = mean * self.stills + jnp.einsum("knr,kro->kno", self.kind, kind @ self.kinds)
        upper = upper + jnp.einsum("knr,kro->kno", self.place, place @ self.places)
        told = jnp.einsum("knr,kno->kro", self.object, jnp.einsum("konm,kmo->kno", self.info, upper))
        objects = objects - jnp.einsum("koqr,kro->kqo", self.object_inverse, told)
        field = mean[..., None] * self.still + self.objects.spread(jnp.einsum("knr,kro->kno", self.object, objects))
        field = field + jnp.einsum("knr,kryx->knyx", self.kind, self.classes.spread(kind))
        field = field + jnp.einsum("knr,kryx->knyx", self.place, self.nodes.spread(place))
        seen = field * self.lam.T[:, :, None, None] * self.weight
        pixels = pixels - self._pixels(jnp.einsum("knr,knyx->kryx", self.pixel, seen))
        return {"scene": scene[:, :steps], "class": kind, "object": objects, "place": place, "pixel": pixels.reshape(*pixels.shape[:2], -1)}

    def apply(self, r: White) -> White:
        """M^-1 r."""
        rank, _, _, *space = self.inverse.shape
        own = r["pixel"].reshape(rank, -1, *space)
        pixels = self._pixels(own)
        looks = self._to_looks(pixels)
        objects = r["object"] - self.objects.gather(jnp.einsum("knr,knyx->kryx", self.object, looks))
        objects = jnp.einsum("koqr,kro->kqo", self.object_inverse, objects)
        pulled = jnp.einsum("konm,kmo->kno", self.info, jnp.einsum("knr,kro->kno", self.object, objects))
        steps = r["scene"].shape[1]
        total = (looks * self.still).sum((2, 3)) + pulled @ self.stills
        scene = jnp.pad(r["scene"], ((0, 0), (0, self.scene.shape[2] - steps))) - jnp.einsum("knt,kn->kt", self.scene, total)
        kind = r["class"] - self.classes.gather(jnp.einsum("knr,knyx->kryx", self.kind, looks))
        kind = kind - jnp.einsum("knr,kno->kro", self.kind, pulled) @ self.kinds.T
        place = r["place"] - self.nodes.gather(jnp.einsum("knr,knyx->kryx", self.place, looks))
        place = place - jnp.einsum("knr,kno->kro", self.place, pulled) @ self.places.T
        right = jnp.concatenate([scene, kind.reshape(rank, -1), place.reshape(rank, -1)], axis=1)
        top = jnp.einsum("kvu,kv->ku", self.top, jnp.einsum("kvw,kw->kv", self.top, right))
        white = self._down(top, objects, pixels, steps)
        return {**white, "pixel": white["pixel"] + self._finest(own).reshape(white["pixel"].shape)}

    def draw(self, key: Array, steps: int) -> White:
        """A draw from N(0, M^-1) of every level."""
        upper = self.draw_upper(jax.random.fold_in(key, 0), steps)
        here = jax.random.normal(jax.random.fold_in(key, 1), self.inverse[:, 0].shape)
        there = jax.random.normal(jax.random.fold_in(key, 2), (self.lam.shape[1], *self.weight.shape))
        seen = jnp.sqrt(self.lam.T[:, :, None, None] * self.weight) * there
        pixels = self._pixels(here + jnp.einsum("knr,knyx->kryx", self.pixel, seen))
        return {**upper, "pixel": upper["pixel"] + pixels.reshape(upper["pixel"].shape)}

    def draw_upper(self, key: Array, steps: int) -> White:
        """Every level but the pixels drawn from N(0, M^-1); the pixels at their conditional mean."""
        first, second = jax.random.split(key)
        noise = jax.random.normal(first, self.top.shape[:2])
        top = jnp.einsum("kvu,kv->ku", self.top, noise)
        white = jax.random.normal(second, (len(self.top), self.object_root.shape[2], self.object_root.shape[1]))
        objects = jnp.einsum("koqr,kro->kqo", self.object_root, white)
        return self._down(top, objects, jnp.zeros_like(self.inverse[:, 0]), steps)


def _haar(plane: Array, axis: int) -> tuple[Array, Array]:
    """Half sum and half difference with the next pixel along an axis (cyclic): squared transfers cos^2(w / 2) and sin^2(w / 2)."""
    other = jnp.roll(plane, -1, axis)
    return 0.5 * (plane + other), 0.5 * (plane - other)


def _haar_back(plane: Array, axis: int, sign: int) -> Array:
    """The transpose of the half sum (sign 1) or half difference (sign -1)."""
    return 0.5 * (plane + sign * jnp.roll(plane, 1, axis))
