"""What the cells of a coarse sensor say, in the preconditioner, of objects and of the top: of what objects and pixels leave of them.

Objects and pixels give way to the fine looks, whatever is above them. With B an object's covariance given the top and the fine looks, A what cells
see of objects' units and C of the top (in both, pixels have given way), G what the fine looks say of objects and the top together, and L the
precision of the cells, their discrepancy marginalised,

    objects | top = -B G - B A^T W (C - A B G),    their covariance B - B A^T W A B,    W = (L^-1 + A B A^T)^-1,

and the top learns (C - A B G)^T W (C - A B G). Without the second terms cells told the top what an object or a pixel might as well have done, and the
top stood fast where it could move: errors of the scene and of places went slowly, and looked small in units of its sd.

Cells that share objects are not told apart: the sums of A B A^T over a row stand in its diagonal block. That is more, so that no covariance becomes
negative, and the same for what is common to neighbouring cells. W is then one small block per cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

from fusion.infer.blocks import invert, last, root
from fusion.infer.channels import Channel, coarse_info
from fusion.infer.looks import Looks
from fusion.process.hierarchy import Hyper
from fusion.process.space import Objects

AT_ONCE = 2**24
"""latent pixels of all footprints that are held together"""
LEAST = 1e-9
"""least variance of what objects do in a cell, in units of a pixel's coefficients: a root needs one"""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Told:
    """What cells tell, given what they see of the objects."""

    objects: Array
    """(K, R, O)"""
    kinds: Array
    """(K, R, C)"""
    places: Array
    """(K, R, G)"""
    common: Array
    """(K, R) to all places alike"""
    rest: Array
    """(K, T + offsets) to the scene beyond a pixel's coefficients, and to offsets"""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one coarse sensor's looks: P of them, n looks."""

    share: Array
    """(P, O) of each object in what a cell sees"""
    kinds: Array
    """(C, P) classes, with liveliness"""
    places: Array
    """(G, P)"""
    own: Array
    """(K, P, R, R) what pixels leave of a change above them: mean of X_0"""
    info: Array
    """(K, P, R, R) W, of a pixel's coefficients"""
    half: Array
    """(K, P, R, n) W between coefficients and looks"""
    rest: Array
    """(K, n, T + offsets) what looks see of the scene beyond a pixel's coefficients, and of offsets"""

    def up(self, seen: Array) -> Told:
        """What cells tell that see `seen` (K, R, O), objects' units as pixels leave them."""
        at = seen @ self.share.T
        told = jnp.einsum("kpqr,krp->kqp", self.info, at)
        rest = jnp.einsum("knt,kn->kt", self.rest, jnp.einsum("kprn,krp->kn", self.half, at))
        on = jnp.einsum("kprq,krp->kqp", self.own, told)
        return Told(told @ self.share, on @ self.kinds.T, on @ self.places.T, told.sum(2), rest)

    def down(self, kinds: Array, places: Array, common: Array, scene: Array, gone: Array) -> Array:
        """(K, R, O) what cells tell objects, given the top: kinds (K, R, C), places (K, R, G), the scene common (K, R), all in pixels' coefficients.

        scene: (K, T + offsets). gone: (K, R, O) what objects and pixels have taken of it.
        """
        at = jnp.einsum("kpqr,krp->kqp", self.own, kinds @ self.kinds + places @ self.places) + common[:, :, None] - gone @ self.share.T
        rest = jnp.einsum("knt,kt->kn", self.rest, scene)
        return (jnp.einsum("kpqr,krp->kqp", self.info, at) + jnp.einsum("kprn,kn->krp", self.half, rest)) @ self.share


def shares(looks: Looks, objects: Objects) -> Array:
    """(P, O) of each object in what a cell sees."""
    height, width = looks.data.shape[2:]
    count = height * width
    each = min(count, max(1, AT_ONCE // looks.footprint.grid_shape[0] // looks.footprint.grid_shape[1]))

    def some(ids: Array) -> Array:
        return objects.gather(looks.footprint.adjoint(jax.nn.one_hot(ids, count).reshape(-1, height, width)))

    return jax.lax.map(some, jnp.arange(-(-count // each) * each).reshape(-1, each)).reshape(-1, objects.size)[:count]


def cells(
    looks: Looks, channels: Channel, hyper: Hyper, design: Array, rest: Array, share: Array, weights: tuple[Array, Array], leave: Array, moved: Array
) -> tuple[Cells, Array]:
    """(the cells of a series, (K, n, n) their precision W of what looks have in common).

    design: (K, n, R) what looks see of a pixel's coefficients. rest: as in `Cells`. share: (P, O). weights: classes (C, Y, X) and places (G, Y, X),
    with liveliness. leave: (K, O, R, R) mean X_0 of each object's pixels. moved: (K, O, R, R) covariance of an object's units as
    pixels leave them, with liveliness.
    """
    eye = jnp.eye(design.shape[2])
    spread = jnp.einsum("po,koqr->kpqr", share * share.sum(0), moved) + LEAST * eye
    low = last(root, spread)
    precise = coarse_info(looks, channels, hyper)
    told = precise @ design[:, None]
    known = jnp.swapaxes(design, 1, 2)[:, None] @ told  # L, of which W = L - L S (S + S L S)^-1 S L, S what objects do
    inverse = last(lambda a: invert(a)[0], eye + jnp.swapaxes(low, 2, 3) @ known @ low)
    taken = low @ inverse @ jnp.swapaxes(low, 2, 3)
    rest_of = eye - taken @ known
    info = known @ rest_of
    half = jnp.swapaxes(told @ rest_of, 2, 3)
    common = precise.sum(1) - jnp.einsum("kpnr,kpmr->knm", told @ taken, told)
    kinds, places = (looks.footprint(planes).reshape(len(planes), -1) for planes in weights)
    own = jnp.einsum("po,koqr->kpqr", share, leave)
    return Cells(share, kinds, places, own, 0.5 * (info + jnp.swapaxes(info, 2, 3)), half, rest), common
