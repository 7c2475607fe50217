"""All looks of one sensor through one footprint, as one array program: forward, transpose and the covariance of what is not the field.

    y_n(b, p) = sum_k C(b, k) [ tau_n . m_k + sum_r (tau_n . Psi_r) (W c_kr)(p) ] + noise,      C = H M
    noise ~ N(0, N),   N = diag(1 / precision) + d^2 exp(-|t_n - t_n'| / days) + (o_b^2 + f_b^2 sum_j phi_j phi_j^T) [n = n'] + g_b^2 a a^T

white noise (with the variance out of the subspace, and what the functions of time leave out of fine looks: `remainder`) + the discrepancy
of a coarse sensor on its own cells + one offset per look and band + what a coarse look gets wrong by class (patterns phi on its cells) + one
relative gain per band (a = the reflectance it multiplies, taken from the data). N^-1 is applied exactly: the discrepancy is a small dense
block per cell and band, all that follows it is of low rank (Woodbury). Missing = precision 0: nothing else masks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from numpy.typing import NDArray

from fusion.infer.blocks import invert
from fusion.infer.discrepancy import TOGETHER, by_class
from fusion.infer.noise import TINY, Noise
from fusion.observe.operator import Dense
from fusion.process.hierarchy import Hierarchy, Hyper
from fusion.process.keyed import keyed_normal

FLOOR = 2e-4
"""least sd of white noise, reflectance: less than any instrument here resolves, and as far as float32 carries"""
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""numbers of looks that are compiled for; a series is padded with looks of precision 0"""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Looks:
    """n looks of one sensor, B bands, (H, W) native pixels."""

    data: Array
    """(n, B, H, W) reflectance minus the spectral mean, 0 where missing"""
    precision: Array
    """(n, B, H, W) 1 / stated sigma^2, 0 where missing"""
    footprint: Any
    """W"""
    colour: Array
    """(B, K) C = H M"""
    tau: Array
    """(n, T), or (n, H, W, T) where each pixel has its own day"""
    days: Array
    """(n,) centre, days since the first latent time"""
    mean: Array
    """(B,) reflectance of the spectral mean"""
    residual: Array
    """(B,) out-of-subspace variance"""
    left: Array
    """(n, B) variance of what the functions of time leave out of fine looks, at the prior medians"""
    offset_sd: Array
    """(B,)"""
    gain_sd: Array
    """(B,)"""
    discrepancy: Array
    """(2,) sd (reflectance; rms over the cells), correlation time (days); sd 0 = none"""
    uneven: Array
    """(H, W) sd of each cell's discrepancy in units of that sd"""
    patterns: Array
    """(J, H, W) phi; J = 0 where nothing is known of what its classes get wrong"""
    loadings: Array
    """(J, C) of the classes in each pattern"""
    fleeting: Array
    """(B,) f, what a look gets wrong anew, sd"""
    ids: Array
    """(n,) uint32 hash of each scene's name: keys of its random noise"""
    rows: Array
    """(H, W) int32 place of each observed pixel in the GLOBAL grid, in quarter pixels"""
    cols: Array
    group: Array
    """() index of the sensor in Hyper.sensors"""
    sensor: str = field(metadata={"static": True})
    coarse: bool = field(metadata={"static": True})
    """many latent pixels per observed pixel"""
    correlated: bool = field(metadata={"static": True})
    """has a discrepancy"""

    def phi(self, temporal: Array) -> Array:
        """tau . Psi: (n, R) or (n, H, W, R)."""
        return self.tau @ temporal

    def forward(self, mean: Array, planes: Array, temporal: Array) -> Array:
        """(n, B, H, W) what the sensor sees of a field.  mean: m (K, T). planes: c (K, R, Y, X). temporal: Psi (T, R)."""
        phi, scene = self.phi(temporal), self.colour @ mean
        seen = jnp.einsum("bk,kryx->bryx", self.colour, planes)
        if self._few(temporal):
            now = sum(phi[:, r, None, None, None] * seen[:, r] for r in range(phi.shape[1]))
            return self.footprint(now) + (self.tau @ scene.T)[:, :, None, None]
        seen = self.footprint(seen)
        if self.tau.ndim == 2:
            return jnp.einsum("nr,brhw->nbhw", phi, seen) + (self.tau @ scene.T)[:, :, None, None]
        return jnp.einsum("nhwr,brhw->nbhw", phi, seen) + jnp.einsum("nhwt,bt->nbhw", self.tau, scene)

    def adjoint(self, v: Array, temporal: Array) -> tuple[Array, Array]:
        """The transpose of `forward`: (n, B, H, W) -> ((K, T), (K, R, Y, X))."""
        phi = self.phi(temporal)
        same_day = self.tau.ndim == 2
        scene = self.colour.T @ (jnp.einsum("nb,nt->bt", v.sum((2, 3)), self.tau) if same_day else jnp.einsum("nbhw,nhwt->bt", v, self.tau))
        if self._few(temporal):
            return scene, jnp.einsum("nr,nkyx->kryx", phi, jnp.einsum("bk,nbyx->nkyx", self.colour, self.footprint.adjoint(v)))
        seen = jnp.swapaxes(jnp.einsum("nr,nbhw->rbhw" if same_day else "nhwr,nbhw->rbhw", phi, v), 0, 1)  # this way round CPUs copy no looks
        return scene, jnp.einsum("bk,bryx->kryx", self.colour, self.footprint.adjoint(seen))

    def _few(self, temporal: Array) -> bool:
        """Whether there are fewer looks than temporal functions: what each look sees is then cheaper to blur than the functions are."""
        return self.tau.ndim == 2 and len(self.tau) < temporal.shape[1]

    def precision_for(self, hyper: Hyper, weights: Array | None = None, *, left: bool = True) -> Array:
        """(n, B, H, W) precision of the white part: 1 / (noise^2 sigma^2 + residual + left), times robust weights.  left: with `left`."""
        beside = self.residual + self.left if left else self.residual[None]
        variance = hyper.noise[self.group] ** 2 + beside[:, :, None, None] * self.precision
        white = self.precision / variance
        return white if weights is None else white * weights

    @property
    def level(self) -> Array:
        """(B,) mean reflectance of what was seen: what a gain error multiplies.

        Not value by value: the data's own noise and pattern, taken for a regressor, would be explained by the gain.
        """
        count = jnp.maximum((self.precision > 0).sum((0, 2, 3)), 1)
        return self.mean + self.data.sum((0, 2, 3)) / count

    def noise(self, hyper: Hyper, weights: Array | None = None) -> Noise:
        """N^-1 for this theta.  weights: (n, B, H, W) robust factors on the white precision, or None."""
        white = self.precision_for(hyper, weights)
        offset = hyper.offset[self.group] * self.offset_sd
        there = self.precision > 0
        gain = (hyper.gain[self.group] * self.gain_sd * self.level)[:, None, None] * there
        log_det = jnp.where(there, jnp.log(jnp.where(there, white, 1.0)), 0.0).sum()
        if not self.correlated:
            total = jnp.maximum(white.sum((2, 3)), TINY)
            common = hyper.gain[self.group] * self.gain_sd * self.level
            spread = jnp.eye(len(self.days))[:, :, None] * offset**2 + common**2
            inverse, lost = invert(spread + jax.vmap(jnp.diag, 1, 2)(1 / total))
            log_det = log_det - lost.sum() - jnp.log(total).sum()
            return Noise(white, None, offset[:, None], self.patterns, gain, jnp.moveaxis(inverse, 2, 0), log_det)
        seen, count = white > 0, len(self.days)
        first = jnp.where(seen, jnp.sqrt(jnp.where(seen, white, 1.0)), 0.0)  # the root of 0 has no slope: it would spoil theta's gradient
        covariance = self.discrepancy_covariance(hyper)[:, :, None, None, None] * self.uneven**2
        inverse, lost = invert(jnp.eye(count)[:, :, None, None, None] + first[:, None] * covariance * first[None])
        cell = jnp.moveaxis(first[:, None] * inverse * first[None], (0, 1), (3, 4))
        log_det = log_det - lost.sum()
        shift = jnp.concatenate([offset[:, None], jnp.broadcast_to(self.by_class(hyper)[:, None], (len(offset), len(self.patterns)))], axis=1)
        patterns = jnp.concatenate([jnp.ones((1, *self.uneven.shape)), self.patterns])
        bare = Noise(white, cell, shift, patterns, gain, jnp.zeros(0), log_det)
        return bare.capped()

    def by_class(self, hyper: Hyper) -> Array:
        """(B,) sd of the patterns: a part of the white noise, and goes with its factor."""
        return hyper.noise[self.group] * self.fleeting

    def discrepancy_covariance(self, hyper: Hyper) -> Array:
        """(n, n) d^2 exp(-|dt| / days) of the Ornstein-Uhlenbeck discrepancy on each cell; times uneven^2."""
        sd, length = self.discrepancy * jnp.stack([hyper.discrepancy[self.group], hyper.discrepancy_days[self.group]])
        return sd**2 * jnp.exp(-jnp.abs(self.days[:, None] - self.days[None, :]) / length)

    def draw_noise(self, key: Array, hyper: Hyper, weights: Array | None = None) -> Array:
        """(n, B, H, W) one draw from N(0, N) where there are data; depends only on key, scene and global place."""
        white = self.precision_for(hyper, weights)
        bands = self.colour.shape[0]

        def own(kind: int) -> Array:
            """(n, B, H, W)"""
            return jax.vmap(lambda i: keyed_normal(jax.random.fold_in(jax.random.fold_in(key, kind), i), self.rows, self.cols, bands))(self.ids)

        def common(kind: int, names: Array, *shape: int) -> Array:
            """(names, *shape)"""
            return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, kind), i), shape))(names)

        out = own(0) * jnp.where(white > 0, 1 / jnp.sqrt(jnp.where(white > 0, white, 1.0)), 0.0)
        if self.correlated:
            covariance = self.discrepancy_covariance(hyper) + 1e-12 * jnp.eye(len(self.days))
            root = jnp.linalg.cholesky(covariance + 1e-5 * covariance[0, 0] * jnp.eye(len(self.days)))
            out = out + jnp.einsum("nm,mbhw->nbhw", root, own(1)) * self.uneven
        shift = common(2, self.ids, bands)
        factor = common(3, jnp.asarray([zlib.crc32(self.sensor.encode())], jnp.uint32), bands)[0]
        if len(self.patterns):
            wrong = common(4, self.ids, bands, self.loadings.shape[1])
            out = out + jnp.einsum("jhw,jc,nbc,b->nbhw", self.patterns, self.loadings, wrong, self.by_class(hyper), optimize=True)
        bare = self.noise_columns(hyper)
        return out + (bare[0] * shift)[:, :, None, None] + bare[1] * factor[None, :, None, None]

    def noise_columns(self, hyper: Hyper) -> tuple[Array, Array]:
        """(offset sd (B,), gain column (n, B, H, W))."""
        there = self.precision > 0
        gain = (hyper.gain[self.group] * self.gain_sd * self.level)[:, None, None] * there
        return hyper.offset[self.group] * self.offset_sd, gain


def stack(observations: Sequence[Any], hierarchy: Hierarchy, sensors: tuple[str, ...], days_of: Any) -> tuple[Looks, ...]:
    """Group observations by sensor, footprint and colour.  sensors: names in the order of Hyper.sensors. days_of: instant -> days.

    Observations without one usable value are left out, exact duplicates (same sensor, scene and footprint) are used once.
    """
    groups: dict[tuple[Any, ...], list[Any]] = {}
    seen: set[tuple[Any, ...]] = set()
    for obs in sorted(observations, key=lambda o: (o.sensor, str(o.when), o.scene_id)):
        if not (np.asarray(obs.precision) > 0).any():
            continue
        layer = obs.layer
        name = (obs.sensor, obs.scene_id, id(layer.footprint), obs.data.shape, np.asarray(layer.colour).tobytes())
        if name in seen:
            continue
        seen.add(name)
        key = (obs.sensor, id(layer.footprint), obs.data.shape, np.asarray(layer.colour).tobytes(), np.ndim(layer.tau))
        groups.setdefault(key, []).append(obs)
    left = np.asarray(hierarchy.left_out(Hyper.default(hierarchy.mixing.shape[0], ())), np.float64)
    return tuple(_series(group, hierarchy, left, sensors.index(group[0].sensor), days_of) for group in groups.values())


def _pad(arrays: list[Any], count: int) -> Array:
    stacked = np.stack([np.asarray(a, np.float32) for a in arrays])
    return jnp.asarray(np.concatenate([stacked, np.zeros((count - len(arrays), *stacked.shape[1:]), np.float32)]))


def _series(group: list[Any], hierarchy: Hierarchy, left: NDArray[np.float64], index: int, days_of: Any) -> Looks:
    first = group[0]
    count = next(b for b in BUCKETS if b >= len(group))
    colour = np.asarray(first.layer.colour, np.float64) @ np.asarray(hierarchy.mixing, np.float64)
    footprint, pick = _flat(first.layer.footprint)
    tau = _pad([np.asarray(o.layer.tau) if np.ndim(o.layer.tau) == 1 else pick(np.moveaxis(o.layer.tau, -1, 0)) for o in group], count)
    precision = [np.clip(np.nan_to_num(pick(o.precision), posinf=FLOOR**-2), 0.0, FLOOR**-2) * np.isfinite(pick(o.data)) for o in group]
    data = _pad([np.where(p > 0, np.nan_to_num(pick(o.data)), 0.0) for o, p in zip(group, precision, strict=True)], count)
    days = [float(days_of(o.when)) for o in group]
    rows, cols = _places(footprint, hierarchy)
    ids = [zlib.crc32(f"{o.sensor}/{o.scene_id}".encode()) for o in group]
    spread = pick(np.broadcast_to(np.asarray(first.discrepancy_sd, np.float64), first.data.shape[1:]))
    there = np.any([p > 0 for p in precision], axis=(0, 1))
    sd = float(np.sqrt(np.mean(spread[there] ** 2)))
    uneven = spread / sd if sd > 0 else np.ones_like(spread)
    precision, (phi, loadings), fleeting = _parted(precision, first, footprint, hierarchy, uneven)
    tau = tau if tau.ndim == 2 else jnp.moveaxis(tau, 1, -1)
    return Looks(
        data, _pad(precision, count), footprint, jnp.asarray(colour, jnp.float32), tau,
        jnp.asarray(days + [days[-1]] * (count - len(days)), jnp.float32), jnp.asarray(first.layer.mean, jnp.float32),
        jnp.asarray(first.residual_var, jnp.float32), jnp.asarray(_left_out(left, tau, colour) * (not footprint.coarse), jnp.float32),
        jnp.asarray(np.sqrt(np.mean([np.square(o.offset_sd) for o in group], axis=0)), jnp.float32), jnp.asarray(first.gain_sd, jnp.float32),
        jnp.asarray([sd, max(float(first.discrepancy_days), 0.1)], jnp.float32), jnp.asarray(uneven, jnp.float32),
        jnp.asarray(phi, jnp.float32), jnp.asarray(loadings, jnp.float32), jnp.asarray(fleeting, jnp.float32),
        jnp.asarray(ids + list(range(count - len(ids))), jnp.uint32), rows, cols, jnp.asarray(index, jnp.int32),
        sensor=first.sensor, coarse=first.layer.footprint.coarse, correlated=sd > 0,
    )


def _left_out(covariance: NDArray[np.float64], tau: Array, colour: Any) -> Any:
    """(n, B) variance of what the functions of time leave out of a pixel at each look.  covariance: (K, T, T). tau: (n, T) or (n, H, W, T)."""
    at = np.asarray(tau).reshape(len(tau), -1, tau.shape[-1]).mean(1)
    return np.maximum(np.einsum("nt,kts,ns->nk", at, covariance, at), 0.0) @ (colour**2).T


def _parted(
    precision: list[Any], look: Any, footprint: Any, hierarchy: Hierarchy, uneven: Any
) -> tuple[list[Any], tuple[Any, Any], Any]:
    """(precision without what classes get wrong together, their patterns and loadings, sd (B,) of what a look gets wrong anew)."""
    memberships, fleeting = hierarchy.spaces["class"].weight, look.fleeting_sd
    none = [np.asarray(p) for p in precision], (np.zeros((0, *uneven.shape)), np.zeros((0, len(memberships)))), np.zeros(len(look.offset_sd))
    if fleeting is None or not (np.any(fleeting) and np.any(look.discrepancy_sd)):
        return none
    phi, loadings = by_class(np.asarray(footprint(memberships)))
    if not phi.any():
        return none
    less = TOGETHER * np.square(fleeting, dtype=np.float64)[:, None, None] * uneven**2
    rest = [np.where(p > 0, 1 / np.maximum(1 / np.where(p > 0, p, 1.0) - less, FLOOR**2), 0.0) for p in precision]
    return rest, (phi, loadings), fleeting


def _flat(footprint: Any) -> tuple[Any, Callable[[Any], NDArray[np.float32]]]:
    """(footprint, pick): the cells of a few broad footprints as one padded row, since their number differs from tile to tile.

    pick: (..., H, W) -> (..., H', W') of the new arrangement, padding 0.
    """
    if not isinstance(footprint, Dense):
        return footprint, np.asarray
    pixel = np.asarray(footprint.pixel)
    size = -(-max(len(pixel), 1) // 32) * 32
    weights = np.zeros((size, footprint.weights.shape[1]), np.float32)
    weights[: len(pixel)] = np.asarray(footprint.weights)
    seen = np.zeros((1, size), np.float32)
    seen[0, : len(pixel)] = np.asarray(footprint.seen).reshape(-1)[pixel]
    index = jnp.arange(size, dtype=jnp.int32)

    def pick(planes: Any) -> NDArray[np.float32]:
        planes = np.asarray(planes)
        out = np.zeros((*planes.shape[:-2], 1, size), np.float32)
        out[..., 0, : len(pixel)] = planes.reshape(*planes.shape[:-2], -1)[..., pixel]
        return out

    return Dense(jnp.asarray(seen), (1, size), footprint.grid_shape, jnp.asarray(weights), index, index), pick


def _places(footprint: Any, hierarchy: Hierarchy) -> tuple[Array, Array]:
    """(H, W) global row and column of each observed pixel, in quarter latent pixels: where its footprint has its centre."""
    rows, cols = (np.asarray(a) for a in (hierarchy.rows, hierarchy.cols))
    local = np.stack(np.broadcast_arrays((rows - rows[0])[:, None], (cols - cols[0])[None, :])).astype(np.float32)
    centre = np.asarray(footprint(jnp.asarray(local)))
    quarter = [np.floor(4 * centre[i] + 0.37).astype(np.int64) + 4 * int(first) for i, first in enumerate((rows[0], cols[0]))]
    return tuple(jnp.asarray(q, jnp.int32) for q in quarter)  # type: ignore[return-value]
