"""The precision of what is not the field in the looks of one sensor (the equation: `looks`), applied exactly by Woodbury's identity."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

from fusion.infer.blocks import invert_lower

TINY = 1e-3
"""total precision under which a look counts as absent"""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Noise:
    """N^-1 of a series, for one theta."""

    white: Array
    """(n, B, H, W) precision"""
    cell: Array | None
    """(B, H, W, n, n) precision of white noise and discrepancy together, or None where there is no discrepancy"""
    shift: Array
    """(B, I) sd of what each look gets wrong as a whole, by pattern: o, then f"""
    patterns: Array
    """(I, H, W) on its pixels: everywhere 1, then phi"""
    gain: Array
    """(n, B, H, W) g a"""
    cap: Array
    """(B, I n + 1, I n + 1) inverse of I + V^T P V, P the precision of white noise and discrepancy, V = [patterns of each look, gain];
    without a discrepancy (B, n, n), the precision (S^-1 + C)^-1 of the looks' means"""
    log_det: Array
    """() log det N^-1 over the values that are there"""

    def _inner(self, r: Array) -> Array:
        assert self.cell is not None  # without a discrepancy the shifts are eliminated about each look's mean
        return jnp.moveaxis(jnp.einsum("bhwnm,bhwm->bhwn", self.cell, jnp.moveaxis(r, 0, -1)), -1, 0)  # so that no copy of `cell` is made

    def _project(self, v: Array) -> Array:
        """V^T v: (n, B, H, W) -> (B, I n + 1)."""
        shifts = self.shift[:, :, None] * jnp.einsum("ihw,nbhw->bin", self.patterns, v)
        return jnp.concatenate([shifts.reshape(v.shape[1], -1), (self.gain * v).sum((0, 2, 3))[:, None]], axis=1)

    def capped(self) -> Noise:
        """With its cap, and what that takes from the log determinant."""
        assert self.cell is not None
        bands, kinds = self.shift.shape
        pairs = (self.patterns[:, None] * self.patterns).reshape(kinds**2, -1)
        told = jnp.einsum("qp,bpx->bqx", pairs, self.cell.reshape(bands, pairs.shape[1], -1))
        told = told.reshape(bands, kinds, kinds, *self.cell.shape[3:]) * (self.shift[:, :, None] * self.shift[:, None])[..., None, None]
        told = jnp.swapaxes(told, 2, 3).reshape(bands, kinds * self.cell.shape[3], -1)
        lift = self._project(self._inner(self.gain))
        corner = jnp.concatenate([told, lift[:, :-1, None]], axis=2)
        matrix = jnp.concatenate([corner, lift[:, None]], axis=1) + jnp.eye(lift.shape[1])
        lower = [jnp.linalg.cholesky(one) for one in matrix]  # one by one: see `blocks`
        inverse = [invert_lower(one) for one in lower]
        lost = 2 * jnp.stack([jnp.log(jnp.diagonal(one)).sum() for one in lower]).sum()
        return replace(self, cap=jnp.stack([one.T @ one for one in inverse]), log_det=self.log_det - lost)

    @property
    def of_means(self) -> Array:
        """(B, n, n) 1^T N^-1 1: precision of what all pixels of a look have in common."""
        if self.cell is None:
            return self.cap
        looks = self.cell.sum((1, 2))
        shifts = jnp.einsum("ihw,bhwnm->bnim", self.patterns, self.cell) * self.shift[:, None, :, None]
        gain = jnp.moveaxis(self._inner(self.gain).sum((2, 3)), 0, 1)[:, :, None]
        seen = jnp.concatenate([shifts.reshape(*looks.shape[:2], -1), gain], axis=2)
        return looks - seen @ self.cap @ jnp.swapaxes(seen, 1, 2)

    def apply(self, r: Array) -> Array:
        """N^-1 r.  (n, B, H, W).

        Without a discrepancy the shifts of looks are eliminated about each look's mean r', S = sum of precision, C = Var(shift):
        N^-1 r = P (r - r') + P / S (S^-1 + C)^-1 r', which is Woodbury's identity without its cancellation of 1e9 against 1e9.
        """
        if self.cell is None:
            total = self.white.sum((2, 3))
            mean = (self.white * r).sum((2, 3)) / jnp.maximum(total, TINY)
            told = jnp.einsum("bij,jb->ib", self.cap, mean) / jnp.maximum(total, TINY)
            return self.white * (r - mean[:, :, None, None] + told[:, :, None, None])
        s = jnp.einsum("bij,bj->bi", self.cap, self._project(self._inner(r)))
        shift = jnp.einsum("ihw,bi,bin->nbhw", self.patterns, self.shift, s[:, :-1].reshape(*self.shift.shape, -1))
        return self._inner(r - shift - self.gain * s[:, -1][None, :, None, None])
