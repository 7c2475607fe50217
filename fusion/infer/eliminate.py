"""The preconditioner of a tile for one theta: unknowns eliminated from the many to the few (the equations: `precondition`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

from fusion.infer.blocks import invert, invert_lower, root
from fusion.infer.looks import Looks
from fusion.infer.precondition import Preconditioner
from fusion.process.hierarchy import Factors, Hierarchy, Hyper
from fusion.process.space import Objects, Smooth, Weights, dense

FAINT = 3e-3
"""squared transfer below which a pattern counts as unseen"""


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


def channel(looks: Looks, hyper: Hyper, weights: Array | None) -> Channel:
    """The scalar channels of a series (exact where M^T H^T Lambda H M is diagonal)."""
    white = looks.precision_for(hyper, weights)
    there = white > 0
    band = jnp.where(there, white, 0.0).sum((0, 2, 3)) / jnp.maximum(there.sum((0, 2, 3)), 1)
    power = (looks.colour**2).sum(1)
    weight = jnp.einsum("nbhw,b->nhw", white, power) / jnp.maximum((band * power).sum(), 1e-20)
    lam = (looks.colour**2).T @ band
    share = (looks.colour * band[:, None]) ** 2 / jnp.maximum(lam, 1e-12 * lam.max() + 1e-30) ** 2
    offset = (hyper.offset[looks.group] * looks.offset_sd) ** 2
    return Channel(weight, lam, share.sum(0), jnp.minimum(share.T @ offset, 10.0))


def mean_tau(looks: Looks) -> Array:
    """(n, T): one time weighting per look (the mean over its pixels where each has its own day)."""
    if looks.tau.ndim == 2:
        return looks.tau
    total = looks.tau.sum((1, 2))
    return total / jnp.maximum(total.sum(-1, keepdims=True), 1e-6)


def pixel_inverse(design: Array, lam: Array, weight: Array) -> Array:
    """(K, R, R, Y, X) inverse of I + sum_n lam_nk w_n(s) B_kn B_kn^T.  design: B (K, n, R). lam: (n, K). weight: (n, Y, X)."""
    width = design.shape[2]
    pairs = jnp.einsum("knq,knr,nk->qrkn", design, design, lam)

    def row(w: Array) -> Array:
        return invert(jnp.eye(width)[:, :, None, None] + jnp.einsum("qrkn,nx->qrkx", pairs, w))[0]

    blocks = jax.lax.map(row, jnp.moveaxis(weight, 1, 0))
    return jnp.transpose(blocks, (3, 1, 2, 0, 4))


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


def _unsure(design: Array, lam: Array, blurred: Sequence[Array], weight: Array) -> tuple[Array, ...]:
    """(K, R, R, Y, X) X_i - X_0 of each band: what blurred looks, of power `blurred` (N, K) for `lam`, leave open.

    A filter joins a pixel to the next row and column: the best seen of the four counts, and none where the filter would wrap around.
    """
    for axis in (1, 2):
        weight = jnp.maximum(weight, jnp.roll(weight, -1, axis))
    inside = jnp.ones(weight.shape[1:]).at[-1].set(0.0).at[:, -1].set(0.0)
    sharp = pixel_inverse(design, lam, weight)
    return tuple((pixel_inverse(design, power, weight) - sharp) * inside for power in blurred)


@dataclass(frozen=True, eq=False)
class _Side:
    """One set of places (objects or coarse cells) in the top's normal equations: design^T info design."""

    scene: Array
    kind: Array
    place: Array
    """(K, n, .) temporal designs"""
    stills: Array
    """(P,) weight of the scene"""
    kinds: Array
    """(C, P)"""
    places: Array
    """(G, P)"""

    def outer(self, info: Array) -> tuple[Array, ...]:
        """The blocks with the scene: scene-scene, class-scene, place-scene.  info: (K, P, n, n)."""
        stills = self.stills[:, None, None]
        js = jnp.einsum("kpnm,kmt->kpnt", info * stills, self.scene)
        ss = jnp.einsum("knt,knu->ktu", self.scene, jnp.einsum("kpnu,p->knu", js, self.stills))
        cs = jnp.einsum("cp,kprt->krct", self.kinds, jnp.einsum("knr,kpnt->kprt", self.kind, js))
        gs = jnp.einsum("gp,kprt->krgt", self.places, jnp.einsum("knr,kpnt->kprt", self.place, js))
        return ss, _square(cs), _square(gs)

    def temporal(self, info: Array) -> tuple[Array, ...]:
        """(K, P, ., .) class-class, place-class, place-place."""
        jc = jnp.einsum("kpnm,kmr->kpnr", info, self.kind)
        jp = jnp.einsum("kpnm,kmr->kpnr", info, self.place)
        return tuple(jnp.einsum("knq,kpnr->kpqr", b, j) for b, j in ((self.kind, jc), (self.place, jc), (self.place, jp)))

    def inner(self, info: Array, within: Array | None = None) -> tuple[Array, ...]:
        """The blocks within classes and places, each place weighed by its mean weights.  within: info of the place-place block, if another."""
        cc, gc, gg = self.temporal(info)
        gg = gg if within is None else self.temporal(within)[2]
        cc = jnp.einsum("cp,dp,kpqr->kqcrd", self.kinds, self.kinds, cc, optimize=True)
        gc = jnp.einsum("gp,cp,kpqr->kqgrc", self.places, self.kinds, gc, optimize=True)
        return _square(cc), _square(gc), self.inner_places(gg)

    def inner_places(self, gg: Array) -> Array:
        """(K, P, R_p, R_p) -> (K, R_p G, R_p G): one matrix product over the places."""
        rank, _, width, _ = gg.shape
        nodes = self.places.shape[0]
        both = (self.places[:, None] * self.places[None]).reshape(-1, self.places.shape[1])
        out = (both @ jnp.moveaxis(gg, 1, 0).reshape(both.shape[1], -1)).reshape(nodes, nodes, rank, width, width)
        return jnp.transpose(out, (2, 3, 0, 4, 1)).reshape(rank, width * nodes, width * nodes)


def _square(a: Array) -> Array:
    return a.reshape(a.shape[0], a.shape[1] * a.shape[2], -1)


def _assemble(outer: Sequence[Array], inner: Sequence[Array]) -> Array:
    """(K, U, U) from the lower blocks; zero above them."""
    (ss, cs, gs), (cc, gc, gg) = outer, inner
    width = ss.shape[1] + cc.shape[1] + gg.shape[1]
    rows = ([ss], [cs, cc], [gs, gc, gg])
    blocks = [jnp.concatenate(row, 2) for row in rows]
    return jnp.concatenate([jnp.pad(a, ((0, 0), (0, 0), (0, width - a.shape[2]))) for a in blocks], 1)


def _told_by_objects(design: Array, lam: Array, weight: Array, inverse: Array, objects: Objects) -> Array:
    """(K, O, N, N) what the fine looks of an object's pixels say together, each pixel's own deviation marginalised.

    sum_s diag(p) - p B (I + B^T p B)^-1 B^T p,  p_n = lam_n w_n(s).  design: B (K, N, R). inverse: of the pixel blocks.
    """

    seen = objects.grouped(weight)  # (N, chunks, CHUNK)

    def component(given: tuple[Array, Array, Array]) -> Array:
        b, power, blocks = given
        p = power[:, None, None] * seen
        left = jnp.einsum("nr,rqci->cnqi", b, objects.grouped(blocks)) * jnp.moveaxis(p, 0, 1)[:, :, None]
        right = b[:, :, None] * jnp.moveaxis(p, 0, 1)[:, :, None]
        shared = jnp.einsum("cnqi,cmqi->cnm", left, right)
        alone = jnp.einsum("nci,nm->cnm", p, jnp.eye(len(b)))
        return jnp.einsum("co,cnm->onm", objects.owner, alone - shared)

    return jax.lax.map(component, (design, lam.T, inverse))


def _scatter(side: _Side, info: Array, objects: Objects, classes: Weights, nodes: Smooth, weights: Array) -> tuple[Array, ...]:
    """What the pixels of one object tell by differing in their class and place weights: blocks (class-class, place-class, place-place).

    The last is what they tell by their place weights themselves, mean and difference: nodes are few, so no pixel need be grouped.
    info: (K, O, n, n) per pixel.  weights: (G, Y, X) of the nodes.
    """
    cc, gc, gg = side.temporal(info)
    apart, away = (
        objects.grouped(planes - objects.spread(mean)) for planes, mean in ((classes.weight, side.kinds), (weights, side.places))
    )
    cc, gc = (jnp.einsum("io,koqr->ikqr", objects.owner, a) for a in (cc, gc))  # of the object of each chunk
    kinds = jnp.einsum("icd,ikqr->kqcrd", jnp.einsum("cij,dij->icd", apart, apart), cc)
    cross = jnp.einsum("igc,ikqr->kqgrc", jnp.einsum("gij,cij->igc", away, apart), gc)
    rows = jnp.einsum("yg,yh->ghy", nodes.rows, nodes.rows)
    cols = jnp.einsum("xg,xh->ghx", nodes.cols, nodes.cols)

    def product(planes: Array) -> Array:
        half = jnp.einsum("ghy,qryx->ghqrx", rows, planes)
        full = jnp.einsum("ijx,ghqrx->qgirhj", cols, half)
        return full.reshape(full.shape[0] * full.shape[1] * full.shape[2], -1)

    return _square(kinds), _square(cross), jax.lax.map(product, objects.spread(jnp.moveaxis(gg, 1, -1)))


def build(hierarchy: Hierarchy, factors: Factors, series: Sequence[Looks], hyper: Hyper, weights: Sequence[Array | None]) -> Preconditioner:
    """The preconditioner of a tile for one theta."""
    channels = [channel(s, hyper, w) for s, w in zip(series, weights, strict=True)]
    counts = [int(s.days.shape[0]) for s in series]
    steps, rank, *shape = hierarchy.shape
    starts = [sum(counts[:i]) for i in range(len(counts))]
    total = max(sum(counts), 1)
    objects, alive = hierarchy.spaces["object"], hierarchy.liveliness
    nodes = dense(hierarchy.spaces["place"], (shape[0], shape[1]))

    def designs(tau: Array, offset: Array) -> tuple[Array, ...]:
        """Temporal designs of looks: scene with offsets, class, place, object, pixel.  offset: (K, n, offsets)."""
        out = [jnp.concatenate([jnp.einsum("nt,kts->kns", tau, factors.scene), offset], axis=2)]
        for name in ("class", "place", "object", "pixel"):
            colouring = factors.coefficient[name]
            out.append(jnp.einsum("nr,krq->knq", tau @ hierarchy.temporal[:, : colouring.shape[1]], colouring))
        return tuple(out)

    def own(i: int) -> Array:
        """(K, n, total) the columns of a series' offsets."""
        hot = jax.nn.one_hot(starts[i] + jnp.arange(counts[i]), total)
        return jnp.sqrt(channels[i].offset)[:, None, None] * hot

    fine = [i for i, s in enumerate(series) if not s.coarse]
    if fine:
        weight = alive**2 * jnp.concatenate([jnp.maximum(series[i].footprint.adjoint(channels[i].weight), 0.0) for i in fine])
        lam = jnp.concatenate([jnp.broadcast_to(channels[i].lam, (counts[i], rank)) for i in fine])
        tau = jnp.concatenate([mean_tau(series[i]) for i in fine])
        offset = jnp.concatenate([own(i) for i in fine], axis=1)
        seen = [jnp.broadcast_to(transfer(series[i])[:, None], (2, counts[i])) for i in fine]
        faint = [lam * g[:, None] for g in jnp.concatenate(seen, axis=1)]
    else:
        faint = []
        weight, lam = jnp.zeros((1, shape[0], shape[1])), jnp.zeros((1, rank))
        tau, offset = jnp.zeros((1, steps)), jnp.zeros((rank, 1, total))
    scene, kind, place, thing, pixel = designs(tau, offset)
    size = objects.gather(jnp.ones((shape[0], shape[1])))
    mean_of = lambda planes: objects.gather(planes) / jnp.maximum(size, 1.0)  # noqa: E731
    inverse = pixel_inverse(pixel, lam, weight)
    blurred = _unsure(pixel, lam, faint, weight)
    info = _told_by_objects(pixel, lam, weight, inverse, objects)
    block = jnp.eye(thing.shape[2]) + jnp.einsum("knq,konm,kmr->koqr", thing, info, thing, optimize=True)
    object_inverse = jnp.moveaxis(invert(jnp.moveaxis(block, (2, 3), (0, 1)))[0], (0, 1), (2, 3))
    object_inverse = 0.5 * (object_inverse + jnp.swapaxes(object_inverse, 2, 3))
    told = jnp.einsum("konm,kmr->konr", info, thing)
    above = info - jnp.einsum("konq,koqr,komr->konm", told, object_inverse, told, optimize=True)
    kinds, places = mean_of(hierarchy.spaces["class"].weight), mean_of(nodes)
    still = 1.0 / alive
    stills = mean_of(still)
    side = _Side(scene, kind, place, stills, kinds, places)
    apart = _scatter(side, info / jnp.maximum(size, 1.0)[:, None, None], objects, hierarchy.spaces["class"], hierarchy.spaces["place"], nodes)
    together = side.inner(above, above - info)  # `apart` has the places' whole squares, not those about the object's mean alone
    normal = _assemble(side.outer(above), [a + b for a, b in zip(apart, together, strict=True)])
    for i, s in enumerate(series):
        if s.coarse:
            s_scene, s_kind, s_place, _, _ = designs(mean_tau(s), own(i))
            there = s.footprint(alive * jnp.concatenate([hierarchy.spaces["class"].weight, nodes]))
            there = there.reshape(there.shape[0], -1)
            split = kinds.shape[0]
            told = _coarse_info(s, channels[i], hyper)
            cells = _Side(s_scene, s_kind, s_place, jnp.ones(there.shape[1]), there[:split], there[split:])
            normal = normal + _assemble(cells.outer(told), cells.inner(told))

    def factor(schur: Array) -> Array:
        """From its lower half."""
        return invert_lower(jax.lax.linalg.cholesky(schur + 1.0001 * jnp.eye(len(schur)), symmetrize_input=False))

    top = jax.lax.map(factor, normal)  # one by one: CPUs multiply batches slowly
    return Preconditioner(
        inverse, blurred, weight, lam, pixel, thing, scene, still, stills, kind, place, info, object_inverse,
        jnp.moveaxis(root(jnp.moveaxis(object_inverse, (2, 3), (0, 1))), (0, 1), (2, 3)), kinds, places,
        objects, hierarchy.spaces["class"], hierarchy.spaces["place"], top,
    )


def _coarse_info(looks: Looks, channels: Channel, hyper: Hyper) -> Array:
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
