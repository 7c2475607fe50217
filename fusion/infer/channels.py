"""Looks as the preconditioner sees them: one scalar channel per canonical component, and which of them a pixel is told of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

from fusion.infer.blocks import invert
from fusion.infer.looks import Looks
from fusion.observe.operator import Footprint, squared
from fusion.process.hierarchy import Hyper

FAINT = 3e-3
"""squared transfer below which a pattern counts as unseen"""
CELL = 64
"""pixels per cell of a coarse raster up to which pixels and objects are told of it too, not only the top"""
MOST = 128
"""looks that pixels are told of: the work grows with their square"""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Channel:
    """Looks reduced to one scalar channel per component: x_k seen with precision lam_k w_n(s)."""

    weight: Array
    """(n, H, W) w, on native pixels"""
    lam: Array
    """(K,)"""
    spread: Array
    """(K,) multiplies a common per-band variance into the channel: v_k = spread_k v"""
    offset: Array
    """(K,) variance of an offset seen in the channel"""


def channel(looks: Looks, hyper: Hyper, weights: Array | None, *, lasting: bool = True) -> Channel:
    """The scalar channels of a series (exact where M^T H^T Lambda H M is diagonal).

    lasting: its discrepancy is kept apart; else it counts as white noise.
    """
    white = looks.precision_for(hyper, weights)
    there = white > 0
    band = jnp.where(there, white, 0.0).sum((0, 2, 3)) / jnp.maximum(there.sum((0, 2, 3)), 1)
    power = (looks.colour**2).sum(1)
    weight = jnp.einsum("nbhw,b->nhw", white, power) / jnp.maximum((band * power).sum(), 1e-20)
    lam = (looks.colour**2).T @ band
    share = (looks.colour * band[:, None]) ** 2 / jnp.maximum(lam, 1e-12 * lam.max() + 1e-30) ** 2
    offset = (hyper.offset[looks.group] * looks.offset_sd) ** 2
    if not lasting and looks.correlated:
        lam = lam / (1.0 + lam * share.sum(0) * looks.discrepancy_covariance(hyper)[0, 0])
    return Channel(weight, lam, share.sum(0), jnp.minimum(share.T @ offset, 10.0))


def told_to_pixels(series: Sequence[Looks]) -> tuple[bool, ...]:
    """Which series the solver's preconditioner tells the pixels of: the fine ones, and coarse ones of small cells, on which pixels hang.

    Larger cells tell objects and the top (`cells`): in a cell of many pixels each is next to nothing.
    """
    out, total = [], sum(len(s.days) for s in series if not s.coarse)
    for s in series:
        height, width = s.footprint.grid_shape
        small = s.coarse and height * width <= CELL * s.data.shape[2] * s.data.shape[3] and total + len(s.days) <= MOST
        total += len(s.days) if small else 0
        out.append(not s.coarse or small)
    return tuple(out)


def latent_weight(footprint: Footprint, weight: Array) -> Array:
    """(n, Y, X) what latent pixels are seen with by looks whose native pixels weigh w (n, H, W):  sum_p W^2 w / sum_p W^2  of  sum_p W.

    Of even ground that is W^T w. Beside a cloud only the tails of a blur see a pixel: they tell the sum of it and of its neighbours, which W^T w
    would count as if it were known of the pixel.
    """
    alone, seen = squared(footprint), jnp.ones((1, *weight.shape[1:]))
    share = alone.adjoint(weight) / jnp.maximum(alone.adjoint(seen), 1e-12)
    return jnp.maximum(share * footprint.adjoint(seen), 0.0)


def mean_tau(looks: Looks) -> Array:
    """(n, T): one time weighting per look (the mean over its pixels where each has its own day)."""
    if looks.tau.ndim == 2:
        return looks.tau
    total = looks.tau.sum((1, 2))
    return total / jnp.maximum(total.sum(-1, keepdims=True), 1e-6)


def transfer(looks: Looks) -> Array:
    """(2,) mean squared transfer of a blur in the bands high along one axis and along both: harmonic, since variances go by 1 / g^2.

    |G|^2 is the Fourier transform of W^T W of a point in the tile's middle.
    """
    height, width = looks.footprint.grid_shape
    point = jnp.zeros((1, height, width)).at[0, height // 2, width // 2].set(1.0)
    power = jnp.abs(jnp.fft.fft2(looks.footprint.adjoint(looks.footprint(point))[0]))
    power = jnp.minimum(power / jnp.maximum(power[0, 0], 1e-6), 1.0) + FAINT
    high = [jnp.sin(jnp.pi * jnp.arange(n) / n) ** 2 for n in (height, width)]
    edge = high[0][:, None] * (1 - high[1]) + (1 - high[0][:, None]) * high[1]
    corner = high[0][:, None] * high[1]
    return jnp.stack([jnp.minimum(w.sum() / (w / power).sum(), 1.0) for w in (edge, corner)])


def coarse_info(looks: Looks, channels: Channel, hyper: Hyper) -> Array:
    """(K, P, n, n) precision of a coarse cell's looks in each component's channel, the discrepancy marginalised."""
    cells = channels.weight.reshape(channels.weight.shape[0], -1).T
    amplitude = jnp.sqrt(channels.lam[:, None, None] * cells[None])
    if not looks.correlated:
        return jax.vmap(jax.vmap(jnp.diag))(amplitude**2)
    covariance = jnp.minimum(channels.spread, 1e6)[:, None, None] * looks.discrepancy_covariance(hyper)
    first = jnp.moveaxis(amplitude, 2, 0)
    uneven = looks.uneven.reshape(-1) ** 2
    inner = jnp.eye(len(first))[:, :, None, None] + first[:, None] * jnp.moveaxis(covariance, 0, 2)[..., None] * uneven * first[None]
    return jnp.transpose(first[:, None] * invert(inner)[0] * first[None], (2, 3, 0, 1))
