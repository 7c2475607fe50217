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
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array
from jax.tree_util import register_dataclass
from numpy.typing import NDArray

from fusion.infer.contrasts import Plane, contrasts
from fusion.infer.looks import BUCKETS, Looks
from fusion.infer.problem import View
from fusion.process.hierarchy import LEVELS, Hierarchy, Hyper
from fusion.process.moment import foreseen
from fusion.process.space import Objects, Pixels, Smooth, Weights

Rows = dict[str, NDArray[Any]]

LOOKS = 40
"""looks of one probe at most: more are dealt out to several probes (scene, class) or thinned (the others)"""
BATCH = 8
"""probes that are looked at by one call"""
WINDOW, WHOLE = 32, 2**30
"""pixels across the window that most small probes fit into, and across one that holds any plane"""
SIZES = (8, 16, 24, LOOKS)
"""numbers of looks that are computed apart: most probes have few, and work grows with the square of what they are padded to"""
FLOOR = 1e-4
"""share of the signal's variance that no mean of many pixels is trusted beyond: keeps float32 factors sound"""
PER_LOOK = ("value", "seen", "judged", "tau", "sensor", "noise", "fixed", "offset", "sudden")
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
    sudden: Array
    """(J, n, K) variance of what may have changed at one moment between the fine looks around a fine look"""
    gain: Array
    """(J, K, n, n) covariance of the stated gain error"""
    discrepancy: Array
    """(J, K, n, n) covariance of the stated discrepancy at lag 0"""
    lag: Array
    """(J, n, n) time differences in units of the stated correlation time"""
    scale: Array
    """(J,) int32 index into LEVELS; -1 = padding"""


Facts = dict[str, Array]
"""what no probe changes of a series: seen (n, H, W) 1 where all its bands are, live (n, B), variance (n, B, H, W), gain (B,)"""


@jax.jit
def _facts(series: Looks) -> Facts:
    there = series.precision > 0
    live = there.any((2, 3))
    seen = (there | ~live[:, :, None, None]).all(1) & live.any(1)[:, None, None]
    variance = jnp.where(there, 1 / jnp.where(there, series.precision, 1.0), 0.0)
    return {"seen": seen.astype(jnp.float32), "live": live, "variance": variance, "gain": series.level * series.gain_sd}


def _share(series: Looks, side: Array) -> Array:
    """(H, W) what each native pixel sees of a side, 0 where that is little."""
    share = series.footprint(side)
    return jnp.where(share > 0.3 * share.max(), share, 0.0)


@jax.jit
def _reach(looks: tuple[Looks, ...], plus: Array, minus: Array) -> Array:
    """(C, 1 + S, 2, 2) first and last (row, column) that each probe (C, Y, X) touches on the latent grid and on that of every series."""

    def ends(touched: Array) -> Array:
        lines = touched.any(1), touched.any(0)
        return jnp.stack([jnp.stack([jnp.argmax(v) for v in lines]), jnp.stack([len(v) - 1 - jnp.argmax(v[::-1]) for v in lines])])

    def one(sides: tuple[Array, Array]) -> Array:
        shares = [sum(_share(series, side) for side in sides) for series in looks]
        latent = sum(series.footprint.adjoint(share) for series, share in zip(looks, shares, strict=True))
        return jnp.stack([ends(jnp.asarray(v) != 0) for v in (latent, *shares)])

    return jax.lax.map(one, (plus, minus))


@partial(jax.jit, static_argnames="size")
def _see(
    looks: tuple[Looks, ...], facts: tuple[Facts, ...], hierarchy: Hierarchy, plus: Array, minus: Array, corners: Array, size: int
) -> tuple[list[dict[str, Array]], Array]:
    """What every look makes of C probes (C, Y, X), per series (C, ...), and the Gram matrices (C, 5, N, N) over all looks.

    corners: (C, 1 + S, 2) of the windows of size x size pixels, latent and of each series, outside which a probe touches nothing.
    """

    def one(probe: tuple[Array, Array, Array]) -> tuple[list[dict[str, Array]], Array]:
        *sides, corner = probe
        parts = [_see_series(s, f, sides, place, size) for s, f, place in zip(looks, facts, corner[1:], strict=True)]
        alive = _cut(hierarchy.liveliness, corner[0], size)
        latent = alive * _cut(jnp.concatenate([p.pop("latent") for p in parts]), corner[0], size)
        spaces = (_window(hierarchy.spaces[name], corner[0], size) for name in LEVELS[1:])
        gathered = [jnp.concatenate([p["total"] for p in parts])[:, None], *(space.gather(latent) for space in spaces)]
        return parts, jnp.stack([g @ g.T for g in gathered])

    return jax.lax.map(one, (plus, minus, corners))


def _see_series(series: Looks, facts: Facts, sides: Sequence[Array], corner: Array, size: int) -> dict[str, Array]:
    """Sums over the pixels of each look, (n, ...), the overlap of their discrepancies (n, n) and their latent weights."""
    known = facts["seen"], series.data, facts["variance"], series.uneven, series.patterns
    seen, data, variance, uneven, patterns = (_cut(v, corner, size) for v in known)
    weight, good = jnp.zeros(seen.shape), jnp.ones(len(seen), bool)
    for sign, side in zip((1.0, -1.0), sides, strict=True):
        share, toward = (_cut(v, corner, size) for v in (_share(series, side), series.footprint((side > 0).astype(side.dtype))))
        part = share * seen
        mass = part.sum((1, 2))
        clear = (part > 0).sum((1, 2)) >= 0.5 * (share > 0).sum()
        part = part / jnp.maximum(mass, 1e-12)[:, None, None]
        inside = (part * toward).sum((1, 2)) >= 0.25  # else the sensor is too coarse for it
        asked = jnp.any(side > 0)
        good &= ~asked | ((mass > 0) & clear & inside)
        weight = weight + jnp.where(asked, sign, 0.0) * part
    flat = weight.reshape(len(weight), -1)
    rough = flat * uneven.reshape(-1)
    by_class = (jnp.einsum("nhw,jhw->nj", weight, patterns) ** 2).sum(1)
    whole = jax.lax.dynamic_update_slice(jnp.zeros(facts["seen"].shape), weight, (0, *corner))
    return {
        "good": good, "live": facts["live"], "latent": series.footprint.adjoint(whole), "total": flat.sum(1),
        "tau": series.tau if series.tau.ndim == 2 else _mean_day(series.tau, jnp.abs(whole)),
        "square": (flat**2).sum(1), "overlap": rough @ rough.T, "value": _summed(flat, data),
        "white": _summed(flat**2, variance) + by_class[:, None] * series.fleeting**2, "gain": flat.sum(1)[:, None] * facts["gain"],
    }


def _summed(weight: Array, planes: Array) -> Array:
    """(n, B) weighted sums of (n, B, H, W), weight (n, H W): over one flat axis CPUs sum ten times as fast as over two."""
    return jnp.einsum("np,nbp->nb", weight, planes.reshape(*planes.shape[:2], -1))


def _cut(planes: Array, corner: Array, size: int) -> Array:
    """The window of (..., Y, X) that begins at a corner, moved inside where it would stick out."""
    *lead, height, width = planes.shape
    return jax.lax.dynamic_slice(planes, (*[0] * len(lead), *corner), (*lead, min(size, height), min(size, width)))


def _window(space: Any, corner: Array, size: int) -> Any:
    """The space of a level as a window sees it."""
    if isinstance(space, Smooth):
        ends = ((space.rows, corner[0]), (space.cols, corner[1]))
        rows, cols = (jax.lax.dynamic_slice(a, (first, 0), (min(size, len(a)), a.shape[1])) for a, first in ends)
        return replace(space, rows=rows, cols=cols)
    plane = space.label if isinstance(space, Objects) else space.like if isinstance(space, Pixels) else space.weight
    if size >= max(plane.shape[-2:]):
        return space
    cut = _cut(plane, corner, size)
    if isinstance(space, Objects):
        return Weights((cut == jnp.arange(space.size)[:, None, None]).astype(jnp.float32))
    return Pixels(cut) if isinstance(space, Pixels) else Weights(cut)


def _seen(
    looks: tuple[Looks, ...], hierarchy: Hierarchy, sides: Sequence[tuple[Plane, Plane]]
) -> list[tuple[list[Rows], NDArray[Any]]]:
    """What `_see` says of each probe, BATCH of them at a time, those that fit into a window apart from the others."""
    if not sides:
        return []
    plus, minus = (np.stack(side) for side in zip(*sides, strict=True))

    def batches(which: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        for i in range(0, len(which), BATCH):
            yield np.resize(which[i : i + BATCH], BATCH)  # the last ones filled up, so that all share a compile

    facts, every = tuple(_facts(series) for series in looks), np.arange(len(plus))
    out: dict[int, tuple[list[Rows], NDArray[Any]]] = {}
    ends = {int(i): end for some in batches(every) for i, end in zip(some, np.asarray(_reach(looks, plus[some], minus[some])), strict=True)}
    reach = np.stack([ends[int(i)] for i in every])
    small = (reach[:, :, 1] - reach[:, :, 0] < WINDOW).all((1, 2))
    for size, which in ((WINDOW, every[small]), (WHOLE, every[~small])):
        for some in batches(which):
            told = jax.device_get(_see(looks, facts, hierarchy, plus[some], minus[some], reach[some, :, 0], size))
            out |= {int(i): jax.tree.map(lambda a, n=n: a[n], told) for n, i in enumerate(some)}
    return [out[int(i)] for i in every]


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
    parts: list[Rows], gram: NDArray[Any], looks: Sequence[Looks], judges: Sequence[NDArray[Any]], strength: NDArray[Any], scale: str,
    sudden: float, rng: np.random.Generator,
) -> Iterator[Rows]:
    """The arrays of one probe over the looks that see it, one set for each hand of looks."""
    picked = np.flatnonzero(np.concatenate([p["good"] for p in parts]))
    days = np.concatenate([np.asarray(series.days) for series in looks])
    picked = picked[np.argsort(days[picked], kind="stable")]
    amount = np.maximum(np.einsum("lnn,l->n", gram, strength), 1e-12)
    counts, alone = [len(p["good"]) for p in parts], all(s.coarse for s in looks)
    series = [
        {**_channels(p, s, a), "sensor": np.full(n, int(s.group), np.int32), "judged": j * (alone or not s.coarse)}
        for p, s, j, a, n in zip(parts, looks, judges, np.split(amount, np.cumsum(counts)[:-1]), counts, strict=True)
    ]
    overlap = scipy.linalg.block_diag(*(p["overlap"] for p in parts))
    stated = np.repeat([float(s.discrepancy[1]) for s in looks], counts)
    gain, error = _between(series, "gains"), _between(series, "errors")
    lag = np.abs(days[:, None] - days[None, :]) / np.sqrt(np.outer(stated, stated))
    for hand in _deal(picked, scale, rng):
        rows = {name: np.concatenate([s[name] for s in series])[hand] for name in (*PER_LOOK, "response") if name != "sudden"}
        if rows["judged"].sum() < 2:  # a fine look with no other beside it says little of how fine looks hang together
            continue
        response = rows.pop("response")
        between = {"gram": gram, "gain": gain, "discrepancy": error * overlap, "lag": lag}
        fine = np.repeat([not s.coarse for s in looks], counts)[hand, None]
        rows["sudden"] = (scale != "scene") * sudden * foreseen(rows["value"], fine & (rows["seen"] > 0), response, days[hand])
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


def probe(views: Sequence[View], hyper: Hyper, seed: int = 0) -> tuple[Probes, ...]:
    """All probes of a tile, in a batch for each of SIZES that occurs; empty where nothing was seen.

    views: looks, the hierarchy that foretells them and which of them judge it, all of one tile.
    hyper: a guess of theta, which only sets how bands are weighed into channels.
    """
    rng = np.random.default_rng(seed)
    strength = np.mean(np.asarray(hyper.sd) ** 2, axis=1)
    found: list[tuple[str, Rows]] = []
    for looks, hierarchy, judges in views:
        fine = tuple(series for series in looks if not series.coarse)
        asked = list(contrasts(hierarchy, seed)) if looks else []
        all_looks, fine_looks = jax.device_get((tuple(looks), fine))  # once, not for every probe
        every, close = (all_looks, judges), (fine_looks, tuple(j for j, s in zip(judges, looks, strict=True) if not s.coarse))
        near = [bool(fine) and scale in ("object", "pixel") for scale, _, _ in asked]
        told: dict[int, tuple[list[Rows], NDArray[Any]]] = {}
        for able, flag in ((tuple(looks), False), (fine, True)):
            which = [i for i, one in enumerate(near) if one == flag]
            told |= zip(which, _seen(able, hierarchy, [asked[i][1:] for i in which]), strict=True)
        for i, (scale, _, _) in enumerate(asked):
            found += [(scale, rows) for rows in _rows(*told[i], *(close if near[i] else every), strength, scale, float(hierarchy.sudden), rng)]
    sized = [(size, [f for f in found if least < len(f[1]["value"]) <= size]) for least, size in pairwise((0, *SIZES))]
    return tuple(_stack(batch, size) for size, batch in sized if batch)


def _stack(batch: list[tuple[str, Rows]], size: int) -> Probes:
    """Pad looks to `size` and probes to one of BUCKETS, so that tiles share a compile, and stack."""
    spare = next((b for b in BUCKETS if b >= len(batch)), len(batch)) - len(batch)

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
