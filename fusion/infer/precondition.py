"""An approximate posterior that can be inverted in closed form: it preconditions the exact solve and carries most of its variance.

Per canonical component k, with the other components held apart, unknowns are eliminated from the many to the few:

    pixels  (R x R per pixel, exact for looks without blur)  ->  objects (R x R each)  ->  top = scene, offsets, classes, places (dense)

The fine looks enter pixel by pixel (block-shaped clouds are no obstacle); seen from the top an object is one place, with its mean weights.
Everything is seen in units of a pixel's liveliness a: fine looks weigh a^2 w, the scene and offsets have the weight 1 / a.

A pixel's block is X_0 = (I + J)^-1, J = sum_n p_n b_n b_n^T: look n sees its coefficients by b_n with the precision p_n. What classes, objects
and places add to the ground is e in those same coefficients (the levels share the temporal functions, of which pixels have the most), so a
pixel leaves them the information J - J X_0 J = I - X_0, and no sum over looks is needed: as J X_0 = I - X_0, a right-hand side r hands on r - X_0 r
and takes back X_0 (e - g) - e. Only the scene and the offsets, g = sum_n p_n b_n m_n, have a value m_n of their own for each look.

Coarse looks tell objects and the top (`cells`), but for those with small cells (`told_to_pixels`): they are taken for blurred fine ones. As
M = U^T D U with positive blocks D, M is positive definite whatever is approximated.

Components are not apart in the scene, where every pixel of every look adds to what they share: to M^-1 is added E (E^T Q E)^-1 E^T, E^T Q E all of Q
that is the scene's own, of all components (a coarse space of the additive Schwarz kind; Toselli & Widlund 2005, chapter 2).

A blurred look hardly sees the finest pattern of the pixels, so the pixels' inverse X_0 is far too sure there. With high-pass filters Phi_i,
the undecimated Haar ones along one axis and along both, and the blur's mean squared transfer g_i^2 in their bands,

    M^-1 = (U^T D U)^-1 + a^-1 sum_i Phi_i^T (Y_i - Y_0) Phi_i a^-1,   Y_i = (a^-2 + g_i^2 J)^-1,   J = information of the looks without blur

on the pixels, seen on the ground itself: what a blur hides is a pattern of the ground, not of what it is in units of an uneven liveliness. Every
Y_i - Y_0 is positive, the filters vanish on smooth fields, and the mean over all bands is the pixel's variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

from fusion.infer.blocks import kept, squared_times, times, transposed_times
from fusion.infer.cells import Cells, Told
from fusion.process.space import Objects, Smooth, Weights

White = dict[str, Array]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Preconditioner:
    """M: `apply` is M^-1 r, `draw` draws from N(0, M^-1)."""

    inverse: Array
    """(K, R, R, Y, X) pixel blocks X_0"""
    blurred: tuple[Array, ...]
    """(K, R, R, Y, X) Y_i - Y_0 of the bands that are high along one axis, and along both; () where there are no fine looks"""
    weight: Array
    """(N, Y, X) of all fine looks; p_n = lam_n weight_n"""
    still: Array
    """(Y, X) 1 / a"""
    lam: Array
    """(N, K)"""
    base: Array
    """(K, R, R) lower root of a pixel's temporal covariance: what its coefficients are units of"""
    pixel: Array
    """(K, N, R) b"""
    scene: Array
    """(K, N, T + offsets) what each look sees of the scene's coefficients and its own offset"""
    shown: Array
    """(N, Y, X) weight / liveliness: the scene, and offsets, come in units of a pixel's deviations"""
    stillness: Array
    """(O,) sum of 1 / liveliness over each object"""
    object: Array
    """(K, R, R_o) a unit's coefficients in units of the pixels': e = object u"""
    kind: Array
    """(K, R, R_c)"""
    place: Array
    """(K, R, R_p)"""
    told: Array
    """(K, O, R, R) sum of I - X_0 over the pixels of each object"""
    crossed: Array
    """(K, O, R, N) sum of p_n X_0 b_n / liveliness: what an object and the scene, look by look, have to do with each other"""
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
    top: tuple[Array, ...]
    """(K, ., .) panels of rows of the inverse of the lower Cholesky factor of the top's Schur complement"""
    cells: tuple[Cells, ...]
    """of each coarse sensor that pixels are not told of"""
    spanned: Array
    """(K, R, T + offsets) the scene's coefficients as a pixel's"""
    held: Array
    """(K, O, R, R_o) what pixels leave of an object's units, on average, with liveliness"""
    alone: Array
    """(K T, K T) inverse of the lower Cholesky factor of E^T Q E"""
    excess: Array
    """(K, T) variance of the scene that other components leave"""

    def _with_finest(self, pixels: Array, right: Array) -> Array:
        """(K, R, Y X) pixels + a^-1 sum_i Phi_i^T (Y_i - Y_0) Phi_i a^-1 of their right-hand side (K, R, Y, X)."""
        if not self.blurred:
            return pixels
        edge, corner = self.blurred
        down, both, along = kept(lambda: _bands(self.still * right), (right,) * 3)
        products = kept(lambda: (times(edge, down), times(corner, both), times(edge, along)), (right,) * 3)
        return kept(lambda: pixels + (self.still / 16 * _bands_back(*products)).reshape(pixels.shape), pixels)

    @property
    def variance(self) -> Array:
        """(K, R, R, Y, X) covariance of a pixel's own coefficients: the mean over the bands, a quarter of the spectrum each."""
        return self.inverse + (self.still**2 * (0.5 * self.blurred[0] + 0.25 * self.blurred[1]) if self.blurred else 0.0)

    def _split(self, top: Array) -> tuple[Array, Array, Array]:
        """(K, U) -> scene with offsets, classes (K, R_c, C), places (K, R_p, G)."""
        first, size = self.scene.shape[2], self.kinds.shape[0]
        second = first + self.kind.shape[2] * size
        return top[:, :first], top[:, first:second].reshape(len(top), -1, size), top[:, second:].reshape(len(top), self.place.shape[2], -1)

    def _told(self, objects: Array) -> Told | None:
        """What cells tell of objects' units (K, R_o, O)."""
        seen = jnp.einsum("korq,kqo->kro", self.held, objects)
        return jax.tree.map(lambda *each: reduce(add, each), *(c.up(seen) for c in self.cells)) if self.cells else None

    def _by_cells(self, told: Array) -> Array:
        """(K, R_o, O) what objects do of what cells tell them (K, R, O): B A^T."""
        return jnp.einsum("koqr,kro->kqo", self.object_inverse, jnp.einsum("korq,kro->kqo", self.held, told))

    def _upper(self, top: Array, objects: Array, cells: Sequence[Cells] = ()) -> tuple[White, Array, Array]:
        """(levels above the pixels, e - g, e): objects (K, R_o, O) conditioned on the top (K, U), and what all of them are to the pixels.

        e (K, R, Y, X): what they add to the ground, in units of the pixels' coefficients. e - g: less what the scene is in each look.
        """
        scene, kind, place = self._split(top)
        mean = jnp.einsum("knt,kt->kn", self.scene, scene)
        kinds, places = self.kind @ kind, self.place @ place
        told = jnp.einsum("koqr,kro->kqo", self.told, kinds @ self.kinds + places @ self.places)
        crossed = jnp.einsum("korn,kn->kro", self.crossed, mean)
        given = jnp.einsum("koqr,kro->kqo", self.object_inverse, jnp.swapaxes(self.object, 1, 2) @ (told + crossed))
        objects = objects - given
        if cells:
            gone = jnp.einsum("korq,kqo->kro", self.held, given) + crossed / self.stillness
            common = jnp.einsum("krt,kt->kr", self.spanned, scene)
            objects = objects - self._by_cells(reduce(add, [c.down(kinds, places, common, scene, gone) for c in cells]))
        field = self.classes.spread(kinds) + self.objects.spread(self.object @ objects) + self.nodes.spread(places)
        seen = jnp.einsum("krn,nyx->kryx", jnp.einsum("knr,kn->krn", self.pixel, mean * self.lam.T), self.shown)
        apart, field = kept(lambda: (field - seen, field), (seen, seen))
        return {"scene": scene, "class": kind, "object": objects, "place": place}, apart, field

    def _down(self, top: Array, objects: Array, pixels: Array, steps: int, cells: Sequence[Cells] = ()) -> White:
        """Back substitution: condition objects on the top and pixels (K, R, Y, X) on both."""
        upper, apart, field = self._upper(top, objects, cells)
        pixels = kept(lambda: pixels + times(self.inverse, apart) - field, pixels)
        return {**upper, "scene": upper["scene"][:, :steps], "pixel": pixels.reshape(*pixels.shape[:2], -1)}

    def apply(self, r: White) -> White:
        """M^-1 r."""
        rank, _, _, *space = self.inverse.shape
        own = r["pixel"].reshape(rank, -1, *space)
        pixels = kept(lambda: times(self.inverse, own), own)
        handed = kept(lambda: own - pixels, own)
        objects = r["object"] - jnp.swapaxes(self.object, 1, 2) @ self.objects.gather(handed)
        objects = jnp.einsum("koqr,kro->kqo", self.object_inverse, objects)
        told = self._told(objects)
        if told:
            objects = objects - self._by_cells(told.objects)
        units = self.object @ objects
        pulled = jnp.einsum("koqr,kro->kqo", self.told, units)
        steps = r["scene"].shape[1]
        total = self.lam.T * jnp.einsum("knr,krn->kn", self.pixel, Weights(self.shown).gather(pixels))
        over = told.objects / self.stillness if told else 0.0
        total = total + jnp.einsum("korn,kro->kn", self.crossed, units - over)
        scene = jnp.pad(r["scene"], ((0, 0), (0, self.scene.shape[2] - steps))) - jnp.einsum("knt,kn->kt", self.scene, total)
        kind = r["class"] - jnp.swapaxes(self.kind, 1, 2) @ (self.classes.gather(handed) + pulled @ self.kinds.T)
        place = r["place"] - jnp.swapaxes(self.place, 1, 2) @ (self.nodes.gather(handed) + pulled @ self.places.T)
        if told:
            scene = scene - jnp.einsum("krt,kr->kt", self.spanned, told.common) - told.rest
            kind, place = kind - jnp.swapaxes(self.kind, 1, 2) @ told.kinds, place - jnp.swapaxes(self.place, 1, 2) @ told.places
        right = jnp.concatenate([scene, kind.reshape(rank, -1), place.reshape(rank, -1)], axis=1)
        white = self._down(squared_times(self.top, right), objects, pixels, steps, self.cells)
        alone = (self.alone.T @ (self.alone @ r["scene"].reshape(-1))).reshape(r["scene"].shape)
        return {**white, "scene": white["scene"] + alone, "pixel": self._with_finest(white["pixel"], own)}

    def draw(self, key: Array, steps: int) -> White:
        """A draw of every level from N(0, M^-1) as it is where cells tell nothing of objects, and without the addition for the scene."""
        here = jax.random.normal(jax.random.fold_in(key, 1), self.inverse[:, 0].shape)
        there = jax.random.normal(jax.random.fold_in(key, 2), (self.lam.shape[1], *self.weight.shape))
        seen = jnp.sqrt(self.lam.T[:, :, None, None] * self.weight) * there
        pixels = times(self.inverse, here + jnp.einsum("knr,knyx->kryx", self.pixel, seen))
        return self._down(*self._draw_upper(jax.random.fold_in(key, 0)), pixels, steps)

    def draw_given(self, key: Array, steps: int) -> tuple[Array, Array]:
        """(scene (K, T), planes (K, R, Y, X)): the scene's coefficients from N(0, M^-1), and all deviations that are expected given a draw of all
        levels above the pixels: their sum e with the pixels' conditional mean X_0 (e - g) - e, in the coefficients of the temporal functions."""
        upper, apart, _ = self._upper(*self._draw_upper(key))
        return upper["scene"][:, :steps], jnp.einsum("kqr,kryx->kqyx", self.base, times(self.inverse, apart))

    def scene_variance(self, factor: Array) -> Array:
        """(K, T) variance of the scene in `draw_given`.  factor: (K, T, T), of its white coefficients."""
        first = [rows[:, :, : factor.shape[2]] for rows in self.top]
        return jnp.asarray(sum((jnp.einsum("kus,kts->kut", rows, factor[:, :, : rows.shape[2]]) ** 2).sum(1) for rows in first))

    def _draw_upper(self, key: Array) -> tuple[Array, Array]:
        """The top (K, U) from N(0, M^-1), and objects (K, R_o, O) about what they are given the top."""
        first, second = jax.random.split(key)
        rank, width = len(self.base), self.top[-1].shape[2]
        top = transposed_times(self.top, jax.random.normal(first, (rank, width)))
        white = jax.random.normal(second, (rank, self.object_root.shape[2], self.object_root.shape[1]))
        return top, jnp.einsum("koqr,kro->kqo", self.object_root, white)


def _bands(plane: Array) -> tuple[Array, Array, Array]:
    """Four times the undecimated Haar bands of planes (..., Y, X): high down the columns, both ways, along the rows; 0 beyond the last pixel."""
    wide = jnp.pad(plane, ((0, 0),) * (plane.ndim - 2) + ((0, 1), (0, 1)))
    here, right = wide[..., :-1, :-1], wide[..., :-1, 1:]
    below, across = wide[..., 1:, :-1], wide[..., 1:, 1:]
    return here - below + right - across, here - below - right + across, here + below - right - across


def _bands_back(down: Array, both: Array, along: Array) -> Array:
    """The transpose of `_bands`."""
    down, both, along = (jnp.pad(plane, ((0, 0),) * (plane.ndim - 2) + ((1, 0), (1, 0))) for plane in (down, both, along))
    here, left, above, across = ((..., rows, cols) for rows in (slice(1, None), slice(None, -1)) for cols in (slice(1, None), slice(None, -1)))
    out = down[here] + both[here] + along[here] + down[left] - both[left] - along[left]
    return out - down[above] - both[above] + along[above] - down[across] + both[across] - along[across]
