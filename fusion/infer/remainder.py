"""What the functions of time leave out, found again pixel by pixel from what fine looks still show.

    x = (scene + levels, in R functions of time) + e,       e ~ N(0, a^2 D),       D = `Hierarchy.left_out`
    e = a D tau^T C^T W^T (N + A D A^T)^-1 r,               A D A^T = W C tau a^2 D tau^T C^T W^T

r: residual of the looks, their own offsets taken off; N: their white noise. To the solver e is noise of its own at each look (Finley, Sang,
Banerjee & Gelfand 2009, Computational Statistics & Data Analysis 53: the modified predictive process); here each pixel's residuals say what it was,
at looks and between them (the full-scale approximation of Sang & Huang 2012, Journal of the Royal Statistical Society B 74, with e apart from
pixel to pixel). Conjugate gradients over the looks: no block of R^2, n^2 or T^2 numbers per pixel is ever held.

The variance is what a time's own looks leave of e, v = a^2 d / (1 + a^2 d g^2 p), p the precision of components seen apart, averaged over the bands
of a blur's transfer g^2 as in `precondition`. Looks at other times, and e where it cancels an error of the rest, would make it less: it is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.sparse.linalg import cg
from numpy.typing import NDArray

from fusion.infer.blocks import invert, times
from fusion.infer.channels import latent_weight, mean_tau, transfer
from fusion.infer.looks import Looks
from fusion.infer.precondition import White
from fusion.process.hierarchy import Hierarchy, Hyper
from fusion.process.keyed import keyed_normal

TOLERANCE = 0.1
"""residual of conjugate gradients at their end, of the right-hand side: with .03 errors on Salton are the same to 2e-5"""
LIMIT = 60
"""iterations; the reference tile needs 12"""


@dataclass(frozen=True, eq=False)
class Remainder:
    """What is known of e, for one theta."""

    mean: NDArray[np.float32]
    """(T, K, Y, X)"""
    variance: NDArray[np.float32]
    """(T, K, Y, X)"""
    covariance: NDArray[np.float64]
    """(K, T, T) D"""

    @classmethod
    def of(
        cls, hierarchy: Hierarchy, series: Sequence[Looks], hyper: Hyper, weights: Sequence[Array | None], white: White
    ) -> Remainder:
        """From the looks of a tile and the solved white coefficients of its levels.  weights: robust factors on the white precision."""
        fine = [(s, w) for s, w in zip(series, weights, strict=True) if not s.coarse]
        covariance = hierarchy.left_out(hyper)
        looks, factors = tuple(s for s, _ in fine), tuple(w for _, w in fine)
        mean, variance = _solved(hierarchy, looks, hyper, factors, white, covariance)
        return cls(np.asarray(mean), np.asarray(variance), np.asarray(covariance, np.float64))

    @cached_property
    def _root(self) -> Array:
        """(K, T, T) a square root of D."""
        values, vectors = np.linalg.eigh(self.covariance)
        return jnp.asarray(vectors * np.sqrt(np.maximum(values, 0.0))[:, None], jnp.float32)

    @cached_property
    def _left(self) -> Array:
        """(T, K, Y, X) sd of e that looks leave, in units of that of D."""
        spread = np.sqrt(np.maximum(np.einsum("ktt->tk", self.covariance), 1e-12)).astype(np.float32)
        return jnp.asarray(np.sqrt(self.variance) / spread[:, :, None, None])

    def draw(self, hierarchy: Hierarchy, key: Array) -> Array:
        """(T, K, Y, X) e less its mean: as D hangs together in time, alike in the pixels of an object, with the variance that looks leave."""
        return _drawn(hierarchy, self._root, self._left, key)


@jax.jit
def _drawn(hierarchy: Hierarchy, root: Array, left: Array, key: Array) -> Array:
    objects, (rank, steps, _) = hierarchy.spaces["object"], root.shape
    rows, cols = objects.centre(hierarchy.rows, hierarchy.cols)
    white = keyed_normal(key, rows, cols, rank * steps).reshape(rank, steps, -1)
    return jnp.swapaxes(objects.spread(root @ white), 0, 1) * left


@jax.jit
def _solved(
    hierarchy: Hierarchy, series: tuple[Looks, ...], hyper: Hyper, weights: tuple[Array | None, ...], white: White, covariance: Array
) -> tuple[Array, Array]:
    """(e, v), each (T, K, Y, X)."""
    mean, planes = hierarchy.coefficients(white, hierarchy.factors(hyper))
    alive = hierarchy.liveliness
    open_ = jnp.einsum("ktt->tk", covariance)[:, :, None, None] * alive**2
    if not series:
        return jnp.zeros(hierarchy.shape), open_
    tau = jnp.concatenate([mean_tau(s) for s in series])
    roots = [_by_band(jnp.sqrt(s.precision_for(hyper, w, left=False))) for s, w in zip(series, weights, strict=True)]
    right = [root * _by_band(_residual(s, hyper, w, mean, planes, hierarchy)) for s, w, root in zip(series, weights, roots, strict=True)]
    across, within = covariance @ tau.T, tau @ covariance @ tau.T
    ends = np.cumsum([len(s.days) for s in series])[:-1]

    def back(v: list[Array]) -> Array:
        """a C^T W^T N^-1/2 v: (K, n, Y, X) of all looks."""
        each = [jnp.einsum("bk,bnyx->knyx", s.colour, s.footprint.adjoint(root * a)) for s, root, a in zip(series, roots, v, strict=True)]
        return alive * jnp.concatenate(each, axis=1)

    def curved(v: list[Array]) -> list[Array]:
        """(I + N^-1/2 A D A^T N^-1/2) v"""
        moved = jnp.split(alive * jnp.einsum("knm,kmyx->knyx", within, back(v)), ends, axis=1)
        seen = [s.footprint(jnp.einsum("bk,knyx->bnyx", s.colour, u)) for s, u in zip(series, moved, strict=True)]
        return [a + root * b for a, root, b in zip(v, roots, seen, strict=True)]

    def apart(looks: Looks, root: Array, power: Array) -> Array:
        """(B, B, n) the inverse of `curved` if looks were apart, every pixel as precise as their mean, and footprints single pixels."""
        even = jnp.sqrt((root**2).sum((2, 3)) / jnp.maximum((root > 0).sum((2, 3)), 1))
        shared = jnp.einsum("bk,nk,ck->bcn", looks.colour, power, looks.colour) * even[:, None] * even[None]
        return invert(jnp.eye(len(shared))[:, :, None] + shared)[0]

    blocks = [apart(*of) for of in zip(series, roots, jnp.split(jnp.einsum("knn->nk", within), ends), strict=True)]

    def near(v: list[Array]) -> list[Array]:
        """About the inverse of `curved`."""
        return [times(block[None, ..., None, None], a[None])[0] for block, a in zip(blocks, v, strict=True)]

    found = alive * jnp.einsum("ktn,knyx->tkyx", across, back(cg(curved, right, tol=TOLERANCE, maxiter=LIMIT, M=near)[0]))
    known = [
        jnp.einsum("nt,nkyx->tkyx", mean_tau(s) ** 2, latent_weight(s.footprint, jnp.einsum("bk,bnhw->nkhw", s.colour**2, root**2)))
        for s, root in zip(series, roots, strict=True)
    ]
    edge, corner = jnp.asarray(sum(transfer(s)[:, None, None, None, None] * p for s, p in zip(series, known, strict=True)))
    left = [share / (1.0 + open_ * p) for share, p in ((0.25, sum(known)), (0.5, edge), (0.25, corner))]
    return found, open_ * jnp.asarray(sum(left))


def _by_band(v: Array) -> Array:
    """(n, B, H, W) -> (B, n, H, W), in which products of bands with components copy nothing."""
    return jnp.swapaxes(v, 0, 1)


def _residual(looks: Looks, hyper: Hyper, weights: Array | None, mean: Array, planes: Array, hierarchy: Hierarchy) -> Array:
    """(n, B, H, W) data less what the solver sees in them: the field and, of what is left, what offsets and gains explain."""
    noise = looks.noise(hyper, weights)
    there = noise.white > 0
    left = jnp.where(there, looks.data - looks.forward(mean, planes, hierarchy.temporal), 0.0)
    return jnp.where(there, noise.apply(left) / jnp.where(there, noise.white, 1.0), 0.0)
