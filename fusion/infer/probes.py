"""Probes: weighted sums of the data whose joint density is a small Gaussian, from which the hyperparameters are learned.

A probe is a contrast between two sets of latent pixels (or the mean of all). In look n it sees

    y_n = sum_p w_n(p) y(p),    w_n ~ W plus / |W plus| - W minus / |W minus|  over the pixels that were seen,

so the latent field enters through a_n = W^T w_n and every level l of the hierarchy through the Gram matrix
G_l[n, n'] = <A_l^T a_n, A_l^T a_n'>: clouds, footprints, memberships and sensors on different grids are all in it, exactly.
Probes are taken at every scale, like a wavelet transform (scene, classes, places, objects, pixels), a random sample of
the small ones. Bands are reduced to one channel per canonical component by P = (A^T V^-1 A + 1/s2)^-1 A^T V^-1, A = H M.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array
from jax.tree_util import register_dataclass
from numpy.typing import NDArray

from fusion.infer.looks import Looks
from fusion.process.hierarchy import LEVELS, Hierarchy, Hyper

Plane = NDArray[np.float32]
Rows = dict[str, NDArray[Any]]

MOST = {"class": 12, "place": 24, "object": 40, "pixel": 96}
"""probes of each small scale"""
LOOKS = 40
"""looks of one probe at most: more are dealt out to several probes (scene, class) or thinned (the others)"""
SMALL = 24
"""probes with at most this many looks are computed apart from the larger ones"""
FLOOR = 1e-4
"""share of the signal's variance that no mean of many pixels is trusted beyond: keeps float32 factors sound"""
PER_LOOK = ("value", "seen", "judged", "tau", "sensor", "noise", "fixed", "offset")
CLEAR = 0.3
"""a channel that responds to its own component with less than this share is left out"""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Probes:
    """J probes of n looks and K channels, padded with looks of weight 0."""

    value: Array
    """(J, n, K) channel values"""
    response: Array
    """(J, K, K, n, n): g_nki g_mki, g the response of channel k to canonical component i"""
    seen: Array
    """(J, n, K) 1 = used, 0 = padding"""
    judged: Array
    """(J, n) 1 = predicted from the others when theta is judged: fine looks, all where the job has no fine sensor"""
    gram: Array
    """(J, 5, n, n) Gram matrix of each level of LEVELS"""
    tau: Array
    """(J, n, T) how each look weighs the latent times"""
    sensor: Array
    """(J, n) int32 index into Hyper.sensors"""
    noise: Array
    """(J, n, K) variance of the stated white noise"""
    fixed: Array
    """(J, n, K) variance that no factor scales (out-of-subspace)"""
    offset: Array
    """(J, n, K) variance of the stated acquisition effect"""
    gain: Array
    """(J, K, n, n) covariance of the stated gain error"""
    discrepancy: Array
    """(J, K, n, n) covariance of the stated discrepancy at lag 0"""
    lag: Array
    """(J, n, n) time differences in units of the stated correlation time"""
    scale: Array
    """(J,) int32 index into LEVELS; -1 = padding"""


def contrasts(hierarchy: Hierarchy, seed: int) -> Iterator[tuple[str, Plane, Plane]]:
    """(scale, plus, minus): the planes of all probes; minus is zero for the scene."""
    rng = np.random.default_rng([seed, *(abs(int(v)) for v in (hierarchy.rows[0], hierarchy.cols[0]))])
    _, _, height, width = hierarchy.shape
    zero = np.zeros((height, width), np.float32)
    yield "scene", zero + 1, zero
    shares = np.asarray(hierarchy.spaces["class"].weight, np.float32)
    for i in rng.permutation(len(shares) - 1)[: MOST["class"]]:  # where memberships sum to 1 the last contrast repeats the others
        if shares[i].std() > 1e-3:
            yield "class", shares[i], shares[i].max() - shares[i]
    yield from _blocks(hierarchy, zero, rng)
    yield from _objects(np.asarray(hierarchy.spaces["object"].label), zero, rng)


def _blocks(hierarchy: Hierarchy, zero: Plane, rng: np.random.Generator) -> Iterator[tuple[str, Plane, Plane]]:
    """Neighbouring square blocks about as large as the spacing of the place level."""
    height, width = zero.shape
    space = hierarchy.spaces["place"]
    nodes = max(1, space.rows.shape[1] - 3), max(1, space.cols.shape[1] - 3)
    step = max(1, -(-height // nodes[0])), max(1, -(-width // nodes[1]))
    corners = [(y, x) for y in range(0, height - step[0] + 1, step[0]) for x in range(0, width - 2 * step[1] + 1, 2 * step[1])]
    for i in rng.permutation(len(corners))[: MOST["place"]]:
        (y, x), plus, minus = corners[i], zero.copy(), zero.copy()
        plus[y : y + step[0], x : x + step[1]] = 1
        minus[y : y + step[0], x + step[1] : x + 2 * step[1]] = 1
        yield "place", plus, minus


def _objects(label: NDArray[np.integer], zero: Plane, rng: np.random.Generator) -> Iterator[tuple[str, Plane, Plane]]:
    """Pairs of close objects, and pairs of close pixels inside other objects."""
    rows, cols = np.indices(label.shape)
    count = int(label.max()) + 1
    size = np.bincount(label.ravel(), minlength=count)
    centre = np.stack([np.bincount(label.ravel(), v.ravel(), count) for v in (rows, cols)], 1) / np.maximum(size, 1)[:, None]
    free = list(rng.permutation(np.flatnonzero(size > 0)))
    taken = 0
    while len(free) > 1 and taken < MOST["object"]:
        one = free.pop()
        other = free.pop(int(np.argmin(((centre[free] - centre[one]) ** 2).sum(1))))
        yield "object", (label == one).astype(np.float32), (label == other).astype(np.float32)
        taken += 1
    used = np.zeros(label.shape, bool)
    reach = 3 if min(label.shape) > 8 else 2  # apart, so that neighbouring footprints do not blur the contrast away
    taken = 0
    for flat in rng.permutation(label.size):
        y, x = divmod(int(flat), label.shape[1])
        near = (np.maximum(abs(rows - y), abs(cols - x)) <= reach) & (np.maximum(abs(rows - y), abs(cols - x)) >= reach - 1)
        mates = np.flatnonzero((near & (label == label[y, x]) & ~used).ravel())
        if used[y, x] or mates.size == 0:
            continue
        plus, minus = zero.copy(), zero.copy()
        plus[y, x] = 1
        minus.ravel()[rng.choice(mates)] = 1
        used |= (plus + minus) > 0
        yield "pixel", plus, minus
        taken += 1
        if taken == MOST["pixel"]:
            return


@jax.jit
def _see(
    looks: tuple[Looks, ...], spaces: dict[str, Any], liveliness: Array, plus: Array, minus: Array
) -> tuple[list[dict[str, Array]], Array]:
    """What every look makes of one probe, per series, and the Gram matrices (5, N, N) over all looks."""
    parts = [_see_series(series, plus, minus) for series in looks]
    latent = jnp.concatenate([p.pop("latent") for p in parts])
    gathered = [jnp.concatenate([p["total"] for p in parts])[:, None], *(spaces[name].gather(latent * liveliness) for name in LEVELS[1:])]
    return parts, jnp.stack([g @ g.T for g in gathered])


def _see_series(series: Looks, plus: Array, minus: Array) -> dict[str, Array]:
    """Sums over the pixels of each look, (n, ...), the overlap of their discrepancies (n, n) and their latent weights."""
    there = series.precision > 0  # (n, B, H, W)
    live = there.any((2, 3))
    seen = (there | ~live[:, :, None, None]).all(1) & live.any(1)[:, None, None]
    weight, good = jnp.zeros(seen.shape), jnp.ones(seen.shape[0], bool)
    for sign, side in ((1.0, plus), (-1.0, minus)):
        share = series.footprint(side)
        share = jnp.where(share > 0.3 * share.max(), share, 0.0)
        part = share * seen
        mass = part.sum((1, 2))
        clear = (part > 0).sum((1, 2)) >= 0.5 * (share > 0).sum()
        part = part / jnp.maximum(mass, 1e-12)[:, None, None]
        inside = (series.footprint.adjoint(part) * (side > 0)).sum((1, 2)) >= 0.25  # else the sensor is too coarse for it
        asked = jnp.any(side > 0)
        good &= ~asked | ((mass > 0) & clear & inside)
        weight = weight + jnp.where(asked, sign, 0.0) * part
    flat = weight.reshape(weight.shape[0], -1)
    uneven = flat * series.uneven.reshape(-1)
    return {
        "good": good, "live": live, "latent": series.footprint.adjoint(weight), "total": flat.sum(1),
        "tau": series.tau if series.tau.ndim == 2 else _mean_day(series.tau, jnp.abs(weight)),
        "square": (flat**2).sum(1), "overlap": uneven @ uneven.T, "value": jnp.einsum("nhw,nbhw->nb", weight, series.data),
        "white": jnp.einsum("nhw,nbhw->nb", weight**2, jnp.where(there, 1 / jnp.where(there, series.precision, 1.0), 0.0)),
        "gain": flat.sum(1)[:, None] * series.level * series.gain_sd,
    }


def _mean_day(tau: Array, weight: Array) -> Array:
    """(n, T) the probe's own average day where each pixel has one: tau (n, H, W, T), weight (n, H, W)."""
    return jnp.einsum("nhw,nhwt->nt", weight, tau) / jnp.maximum(weight.sum((1, 2)), 1e-12)[:, None]


def _deal(picked: NDArray[np.intp], scale: str, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Looks in order of time -> hands of at most LOOKS: interleaved and all used at large scales, else one run or one comb."""
    if picked.size <= LOOKS:
        return [picked] if picked.size >= (1 if scale == "scene" else 2) else []
    stride = -(-picked.size // LOOKS)
    if scale in ("scene", "class"):
        return [picked[i::stride] for i in range(stride)]
    if rng.random() < 0.5:
        return [picked[int(rng.integers(stride)) :: stride]]
    first = int(rng.integers(picked.size - LOOKS + 1))
    return [picked[first : first + LOOKS]]


def _rows(
    parts: list[Rows], gram: NDArray[Any], looks: Sequence[Looks], strength: NDArray[Any], scale: str, rng: np.random.Generator
) -> Iterator[Rows]:
    """The arrays of one probe over the looks that see it, one set for each hand of looks."""
    picked = np.flatnonzero(np.concatenate([p["good"] for p in parts]))
    days = np.concatenate([np.asarray(series.days) for series in looks])
    picked = picked[np.argsort(days[picked], kind="stable")]
    amount = np.maximum(np.einsum("lnn,l->n", gram, strength), 1e-12)
    counts, alone = [len(p["good"]) for p in parts], all(s.coarse for s in looks)
    series = [
        {**_channels(p, s, a), "sensor": np.full(n, int(s.group), np.int32), "judged": np.full(n, alone or not s.coarse, np.float64)}
        for p, s, a, n in zip(parts, looks, np.split(amount, np.cumsum(counts)[:-1]), counts, strict=True)
    ]
    overlap = scipy.linalg.block_diag(*(p["overlap"] for p in parts))
    stated = np.repeat([float(s.discrepancy[1]) for s in looks], counts)
    gain, error = _between(series, "gains"), _between(series, "errors")
    lag = np.abs(days[:, None] - days[None, :]) / np.sqrt(np.outer(stated, stated))
    for hand in _deal(picked, scale, rng):
        rows = {name: np.concatenate([s[name] for s in series])[hand] for name in (*PER_LOOK, "response")}
        if rows["judged"].sum() < 2:  # a fine look with no other beside it says little of how fine looks hang together
            continue
        response = rows.pop("response")
        between = {"gram": gram, "gain": gain, "discrepancy": error * overlap, "lag": lag}
        yield {
            **rows, **{name: value[..., hand[:, None], hand] for name, value in between.items()},
            "response": np.einsum("nki,mki->kinm", response, response),
        }


def _between(series: list[Rows], name: str) -> NDArray[Any]:
    """(K, N, N) covariance per channel of an error that all looks of a sensor share, band by band (rows (n, K, B))."""
    blocks = [[
        np.einsum("nkb,mkb->knm", one[name], other[name])
        if one["sensor"][:1] == other["sensor"][:1] and one[name].shape[2] == other[name].shape[2]
        else np.zeros((one[name].shape[1], len(one[name]), len(other[name])))
        for other in series] for one in series]
    return np.concatenate([np.concatenate(row, axis=2) for row in blocks], axis=1)


def _channels(seen: Rows, series: Looks, amount: NDArray[Any]) -> Rows:
    """Bands of the looks of one probe -> channels, with the variances that the instrument facts give them.

    amount: (n,) prior variance of a canonical component of the probe.
    """
    live, white = seen["live"], seen["white"].astype(np.float64)
    square, error_square = (v.astype(np.float64)[:, None] for v in (seen["square"], np.diag(seen["overlap"])))
    colour = live[:, :, None] * np.asarray(series.colour, np.float64)
    fixed = square * np.asarray(series.residual, np.float64) + FLOOR * amount[:, None] * (colour**2).sum(2)
    offset = (seen["total"][:, None] * np.asarray(series.offset_sd, np.float64)) ** 2
    error = float(series.discrepancy[0])
    variance = np.where(live, white + fixed + offset + error_square * error**2, 1.0)
    weighted = np.swapaxes(colour / variance[:, :, None], 1, 2)
    project = np.linalg.solve(weighted @ colour + np.eye(colour.shape[2]) / amount[:, None, None], weighted)
    own = np.einsum("nkb,nbk->nk", project, colour)  # share of each component that its channel keeps
    unit = np.sqrt(np.maximum(np.einsum("nkb,nb->nk", project**2, variance), 1e-30))
    project /= unit[..., None]  # noise of about one, for which float32 is enough
    sources = {"noise": white, "fixed": fixed, "offset": offset}
    spread = {name: np.einsum("nkb,nb->nk", project**2, live * v) for name, v in sources.items()}
    return {
        **spread, "value": np.einsum("nkb,nb->nk", project, seen["value"]), "response": project @ colour,
        "seen": (own > CLEAR).astype(np.float64), "tau": seen["tau"], "gains": project * (live * seen["gain"])[:, None],
        "errors": project * (live * error)[:, None],
    }


def probe(views: Sequence[tuple[Sequence[Looks], Hierarchy]], hyper: Hyper, seed: int = 0) -> tuple[Probes, ...]:
    """All probes of a tile, in at most two batches (few looks, many looks); empty where nothing was seen.

    views: looks with the hierarchy that they judge, all of one tile.
    hyper: a guess of theta, which only sets how bands are weighed into channels.
    """
    rng = np.random.default_rng(seed)
    strength = np.mean(np.asarray(hyper.sd) ** 2, axis=1)
    found: list[tuple[str, Rows]] = []
    for looks, hierarchy in views:
        fine = tuple(series for series in looks if not series.coarse)
        for scale, plus, minus in contrasts(hierarchy, seed) if looks else ():
            able = fine if fine and scale in ("object", "pixel") else tuple(looks)
            parts, gram = jax.device_get(_see(able, hierarchy.spaces, hierarchy.liveliness, plus, minus))
            found += [(scale, rows) for rows in _rows(parts, gram, able, strength, scale, rng)]
    batches = [f for f in found if len(f[1]["value"]) <= SMALL], [f for f in found if len(f[1]["value"]) > SMALL]
    return tuple(_stack(batch) for batch in batches if batch)


def _stack(batch: list[tuple[str, Rows]]) -> Probes:
    """Pad looks to a multiple of 8 and probes to one of 32, so that tiles share a compile, and stack."""
    size = -(-max(len(b["value"]) for _, b in batch) // 8) * 8
    spare = -len(batch) % 32

    def pad(name: str, array: NDArray[Any]) -> NDArray[Any]:
        rest = array.ndim - 1
        if name in PER_LOOK:
            return np.pad(array, [(0, size - array.shape[0]), *[(0, 0)] * rest])
        return np.pad(array, [*[(0, 0)] * (rest - 1), *[(0, size - array.shape[-1])] * 2])

    arrays = {
        name: jnp.asarray(
            np.stack([pad(name, b[name]) for _, b in batch] + [pad(name, 0 * batch[0][1][name])] * spare),
            jnp.int32 if name == "sensor" else jnp.float32,
        )
        for name in batch[0][1]
    }
    return Probes(**arrays, scale=jnp.asarray([LEVELS.index(name) for name, _ in batch] + [-1] * spare, jnp.int32))
