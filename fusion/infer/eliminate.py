"""The preconditioner of a tile for one theta: unknowns eliminated from the many to the few (the equations: `precondition`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular

from fusion.infer.blocks import invert, invert_lower, last, panels, root
from fusion.infer.cells import Cells, cells, shares
from fusion.infer.channels import channel, latent_weight, mean_tau, transfer
from fusion.infer.looks import Looks
from fusion.infer.noise import Noise
from fusion.infer.precondition import Preconditioner
from fusion.process.hierarchy import Factors, Hierarchy, Hyper
from fusion.process.space import Objects, Smooth, Weights, dense

RAISED = (1e-5, 1e-3, 1.0)
"""shares of the sums of its rows and columns that are added to the top's Schur complement, in turn, where rounding has left it indefinite"""
LEAST = 1e-2
"""least sd of the pixel level here, in units of the largest level's: float32 tells I - X_0 in their units down to that"""


def pixel_inverse(design: Array, lam: Array, weight: Array) -> Array:
    """(K, R, R, Y, X) inverse of I + sum_n lam_nk w_n(s) B_kn B_kn^T.  design: B (K, n, R). lam: (n, K). weight: (n, Y, X)."""
    width = design.shape[2]
    pairs = jnp.einsum("knq,knr,nk->qrkn", design, design, lam)

    def row(w: Array) -> Array:
        return invert(jnp.eye(width)[:, :, None, None] + jnp.einsum("qrkn,nx->qrkx", pairs, w))[0]

    blocks = jax.lax.map(row, jnp.moveaxis(weight, 1, 0))
    return jnp.transpose(blocks, (3, 1, 2, 0, 4))


def _unsure(design: Array, lam: Array, blurred: Sequence[Array], weight: Array, power: Array) -> tuple[Array, ...]:
    """(K, R, R, Y, X) Y_i - Y_0 of each band: what blurred looks, of power `blurred` (N, K) for `lam`, leave open.

    weight: (N, Y, X) of the ground itself. power: a^2, (Y, X). A filter joins a pixel to the next row and column: the best seen and the calmest
    of the four count, and none where it would reach beyond the tile.
    """
    for axis in (-2, -1):
        weight = jnp.maximum(weight, jnp.roll(weight, -1, axis))
        power = jnp.minimum(power, jnp.roll(power, -1, axis))
    inside = power.at[-1].set(0.0).at[:, -1].set(0.0)
    sharp = pixel_inverse(design, lam, power * weight)
    return tuple((pixel_inverse(design, faint, power * weight) - sharp) * inside for faint in blurred)


@dataclass(frozen=True, eq=False)
class _Side:
    """One set of places (objects or coarse cells) in the top's normal equations: design^T info design."""

    kind: Array
    place: Array
    """(K, n, .) designs of classes and nodes in what is known of a place: a pixel's coefficients, or coarse looks"""
    kinds: Array
    """(C, P)"""
    places: Array
    """(G, P)"""

    def outer(self, told: Array) -> tuple[Array, Array]:
        """The blocks scene-class, scene-place.  told: (K, P, n, t) what a place says of the scene's coefficients."""
        pairs = ((self.kinds, self.kind), (self.places, self.place))
        sc, sg = (jnp.einsum("cp,kptr->ktrc", a, jnp.einsum("knr,kpnt->kptr", b, told)) for a, b in pairs)
        return sc.reshape(*sc.shape[:2], -1), sg.reshape(*sg.shape[:2], -1)

    def temporal(self, info: Array) -> tuple[Array, ...]:
        """(K, P, ., .) class-class, class-place, place-place."""
        jc = jnp.einsum("kpnm,kmr->kpnr", info, self.kind)
        jp = jnp.einsum("kpnm,kmr->kpnr", info, self.place)
        return tuple(jnp.einsum("knq,kpnr->kpqr", b, j) for b, j in ((self.kind, jc), (self.kind, jp), (self.place, jp)))

    def inner(self, info: Array, within: Array | None = None) -> tuple[Array, ...]:
        """The blocks within classes and places, each place weighed by its mean weights.  within: info of the place-place block, if another."""
        cc, cg, gg = self.temporal(info)
        gg = gg if within is None else self.temporal(within)[2]
        cc = jnp.einsum("cp,dp,kpqr->kqcrd", self.kinds, self.kinds, cc, optimize=True)
        cg = jnp.einsum("cp,gp,kpqr->kqcrg", self.kinds, self.places, cg, optimize=True)
        return _square(cc), _square(cg), self.inner_places(gg)

    def inner_places(self, gg: Array) -> Array:
        """(K, P, R_p, R_p) -> (K, R_p G, R_p G): one matrix product over the places."""
        rank, _, width, _ = gg.shape
        nodes = self.places.shape[0]
        first, second = np.triu_indices(nodes)  # a pair of nodes is the same either way round
        pair = np.zeros((nodes, nodes), np.int32)
        pair[first, second] = pair[second, first] = np.arange(first.size)
        out = (self.places[first] * self.places[second]) @ jnp.moveaxis(gg, 1, 0).reshape(gg.shape[1], -1)
        out = out[pair].reshape(nodes, nodes, rank, width, width)
        return jnp.transpose(out, (2, 3, 0, 4, 1)).reshape(rank, width * nodes, width * nodes)


def _square(a: Array) -> Array:
    return a.reshape(a.shape[0], a.shape[1] * a.shape[2], -1)


def _assemble(ss: Array, outer: Sequence[Array], inner: Sequence[Array]) -> Array:
    """(K, U, U) from the blocks on and above the diagonal; zero below them.  ss: (K, ., .) of the scene and offsets."""
    (sc, sg), (cc, cg, gg) = outer, inner
    width = ss.shape[1] + cc.shape[1] + gg.shape[1]
    rows = ([ss, sc, sg], [cc, cg], [gg])
    blocks = [jnp.concatenate(row, 2) for row in rows]
    return jnp.concatenate([jnp.pad(a, ((0, 0), (0, 0), (width - a.shape[2], 0))) for a in blocks], 1)


def _with_scene(design: Array, lam: Array, weight: Array, inverse: Array, still: Array, objects: Objects) -> tuple[Array, Array, Array]:
    """What pixels leave of looks of the scene m / a, seen look by look: ((K, O, R, N) sum of p_n X_0 b_n / a over each object, (K, R, N) the same
    / a^2 over all, (K, N, N) the sum of a^-2 [diag(p) - p_n b_n^T X_0 b_m p_m]).

    design: b (K, N, R). lam: (N, K). weight: (N, Y, X). still: 1 / a, (Y, X).
    """

    shown = still * weight

    def component(given: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        b, power, block = given
        solved = jnp.einsum("nr,rqyx->nqyx", b, block) * (power[:, None, None] * shown)[:, None]
        flat = solved.reshape(b.size, -1)
        lost = jnp.einsum("m,mq,nqm->nm", power, b, (flat @ shown.reshape(len(b), -1).T).reshape(*b.shape, -1))  # so that `solved` is not copied
        return objects.gather(solved), (flat @ still.reshape(-1)).reshape(b.shape).T, lost

    crossed, twice, lost = jax.lax.map(component, (design, lam.T, inverse))
    alone = lam.T * (still**2 * weight).sum((1, 2))
    return jnp.transpose(crossed, (0, 3, 2, 1)), twice, alone[:, :, None] * jnp.eye(len(lam)) - lost


def _scatter(side: _Side, info: Array, objects: Objects, classes: Weights, nodes: Smooth, weights: Array) -> tuple[Array, ...]:
    """What the pixels of one object tell by differing in their class and place weights: blocks (class-class, class-place, place-place).

    The last is what they tell by their place weights themselves, mean and difference: nodes are few, so no pixel need be grouped.
    info: (K, O, R, R) per pixel.  weights: (G, Y, X) of the nodes.
    """
    cc, cg, gg = side.temporal(info)
    apart, away = (
        objects.grouped(planes - objects.spread(mean)) for planes, mean in ((classes.weight, side.kinds), (weights, side.places))
    )
    kinds = jnp.einsum("ocd,koqr->kqcrd", objects.whole(jnp.einsum("cij,dij->icd", apart, apart)), cc)
    cross = jnp.einsum("ocg,koqr->kqcrg", objects.whole(jnp.einsum("cij,gij->icg", apart, away)), cg)
    rows = jnp.einsum("yg,yh->ghy", nodes.rows, nodes.rows)
    cols = jnp.einsum("xg,xh->ghx", nodes.cols, nodes.cols)

    def product(planes: Array) -> Array:
        half = jnp.einsum("ghy,qryx->ghqrx", rows, planes)
        full = jnp.einsum("ijx,ghqrx->qgirhj", cols, half)
        return full.reshape(full.shape[0] * full.shape[1] * full.shape[2], -1)

    return _square(kinds), _square(cross), jax.lax.map(product, objects.spread(jnp.moveaxis(gg, 1, -1)))


def _floored(factors: Factors) -> Array:
    """(K, R, R) the pixels' root, never so small beside the other levels' that I - X_0 would be rounding errors in their units."""
    own = factors.coefficient["pixel"]
    sizes = {name: jnp.sqrt((a**2).sum((1, 2)) / a.shape[1]) for name, a in factors.coefficient.items()}
    largest = jnp.stack(list(sizes.values())).max(0)
    return own * jnp.maximum(1.0, LEAST * largest / sizes["pixel"])[:, None, None]


def _parts(hierarchy: Hierarchy, factors: Factors, base: Array, scene: Array, pixel: Array) -> tuple[Array, Array]:
    """The scene's coefficients and offsets (T + offsets) as pixels' own coefficients (K, R, .), and what is left of them in each look (K, N, .).

    What looks say of the former is sum (I - X_0), as of all that pixels could do themselves; written look by look it is a difference of
    large numbers, p - p b^T X_0 b p, that float32 does not know.
    """
    inside = hierarchy.temporal[:, : base.shape[1]].T @ factors.scene
    spanned = solve_triangular(base, inside, lower=True)
    spanned = jnp.pad(spanned, ((0, 0), (0, 0), (0, scene.shape[2] - spanned.shape[2])))
    return spanned, scene - pixel @ spanned


def _factor(schur: Array) -> Array:
    """The inverse of the lower Cholesky factor of I + schur, of which only the upper half is looked at: by columns, as LAPACK reads, the lower.

    Where rounding errors exceed I, the diagonal is raised by as little of the sums of rows and columns as makes the matrix positive, which
    the last share must: the preconditioner only loses a few iterations.
    """
    schur = schur + 1.0001 * jnp.eye(len(schur))

    def factored(matrix: Array) -> Array:
        return jax.lax.linalg.cholesky(matrix.T, symmetrize_input=False)

    def spoiled(state: tuple[Array, Array]) -> Array:
        return (state[0] < len(RAISED)) & ~jnp.isfinite(state[1]).all()

    def raised(first: Array) -> Array:
        sums = jnp.abs(schur).sum(0) + jnp.abs(schur).sum(1)

        def once(state: tuple[Array, Array]) -> tuple[Array, Array]:
            return state[0] + 1, factored(schur + jnp.diag(jnp.asarray(RAISED)[state[0]] * sums))

        return jax.lax.while_loop(spoiled, once, (jnp.asarray(0), first))[1]

    first = factored(schur)
    return invert_lower(jax.lax.cond(jnp.isfinite(first).all(), lambda first: first, raised, first))  # else XLA takes the sums in any case


def build(
    hierarchy: Hierarchy, factors: Factors, series: Sequence[Looks], noise: Sequence[Noise], hyper: Hyper, weights: Sequence[Array | None],
    told_of: Sequence[bool],
) -> Preconditioner:
    """The preconditioner of a tile for one theta.  told_of: the series that pixels are told of (`told_to_pixels`)."""
    base = _floored(factors)
    width = base.shape[1]
    channels = [channel(s, hyper, w, lasting=not told) for s, w, told in zip(series, weights, told_of, strict=True)]
    counts = [int(s.days.shape[0]) for s in series]
    steps, rank, *shape = hierarchy.shape
    starts = [sum(counts[:i]) for i in range(len(counts))]
    total = max(sum(counts), 1)
    objects, classes, alive = hierarchy.spaces["object"], hierarchy.spaces["class"], hierarchy.liveliness
    nodes = dense(hierarchy.spaces["place"], (shape[0], shape[1]))

    def inside(name: str) -> Array:
        """(K, R, R_l) the coefficients of a level's units in units of the pixels'."""
        colouring = factors.coefficient[name]
        return solve_triangular(base, jnp.pad(colouring, ((0, 0), (0, width - colouring.shape[1]), (0, 0))), lower=True)

    def by_look(tau: Array) -> Array:
        """(K, n, R) what looks see of a pixel's coefficients."""
        return jnp.einsum("nr,krq->knq", tau @ hierarchy.temporal[:, :width], base)

    def scene_of(i: int) -> Array:
        """(K, n, T + total) what a series sees of the scene's coefficients and of all offsets."""
        offsets = jnp.sqrt(channels[i].offset)[:, None, None] * jax.nn.one_hot(starts[i] + jnp.arange(counts[i]), total)
        return jnp.concatenate([jnp.einsum("nt,kts->kns", mean_tau(series[i]), factors.scene), offsets], axis=2)

    fine = [i for i, told in enumerate(told_of) if told]
    if fine:
        ground = jnp.concatenate([latent_weight(series[i].footprint, channels[i].weight) for i in fine])
        lam = jnp.concatenate([jnp.broadcast_to(channels[i].lam, (counts[i], rank)) for i in fine])
        tau = jnp.concatenate([mean_tau(series[i]) for i in fine])
        scene = jnp.concatenate([scene_of(i) for i in fine], axis=1)
        seen = [jnp.broadcast_to(transfer(series[i])[:, None], (2, counts[i])) for i in fine]
        faint = [lam * g[:, None] for g in jnp.concatenate(seen, axis=1)]
    else:
        faint, ground, lam, tau = [], jnp.zeros((1, shape[0], shape[1])), jnp.zeros((1, rank)), jnp.zeros((1, steps))
        scene = jnp.zeros((rank, 1, steps + total))
    pixel, weight, still = by_look(tau), alive**2 * ground, 1.0 / alive
    kind, place, thing = (inside(name) for name in ("class", "place", "object"))
    inverse = pixel_inverse(pixel, lam, weight)
    blurred = _unsure(pixel, lam, faint, ground, alive**2)
    size = jnp.maximum(objects.gather(jnp.ones((shape[0], shape[1]))), 1.0)
    stillness, kinds, places = objects.gather(still), objects.gather(classes.weight) / size, objects.gather(nodes) / size
    known = jnp.eye(width)[:, :, None, None] - inverse
    told, calm = (jnp.moveaxis(objects.gather(planes), 3, 1) for planes in (known, still * known))
    crossed, twice, apart_looks = _with_scene(pixel, lam, weight, inverse, still, objects)
    spanned, left = _parts(hierarchy, factors, base, scene, pixel)
    by_scene = calm @ spanned[:, None] + crossed @ left[:, None]  # (K, O, R, T + offsets)

    gain = told @ thing[:, None]
    block = jnp.eye(thing.shape[2]) + jnp.swapaxes(thing, 1, 2)[:, None] @ gain
    object_inverse = last(lambda a: invert(a)[0], block)
    object_inverse = 0.5 * (object_inverse + jnp.swapaxes(object_inverse, 2, 3))
    pulled, seen_by = gain @ object_inverse, jnp.swapaxes(thing, 1, 2)[:, None] @ by_scene
    above, aside = told - pulled @ jnp.swapaxes(gain, 2, 3), by_scene - pulled @ seen_by
    both = twice @ left
    scenes = jnp.swapaxes(spanned, 1, 2) @ (jnp.einsum("kqryx,yx->kqr", known, still**2) @ spanned + both) + jnp.swapaxes(both, 1, 2) @ spanned
    scenes = scenes + jnp.swapaxes(left, 1, 2) @ apart_looks @ left
    scenes = scenes - jnp.einsum("koqn,koqm->knm", seen_by, object_inverse @ seen_by)

    side = _Side(kind, place, kinds, places)
    apart = _scatter(side, told / size[:, None, None], objects, classes, hierarchy.spaces["place"], nodes)
    together = side.inner(above, above - told)  # `apart` has the places' whole squares, not those about the object's mean alone
    inner = [a + b for a, b in zip(apart, together, strict=True)]
    normal = _assemble(scenes, side.outer(aside), inner)
    leave = jnp.eye(width) - told / size[:, None, None]
    held = leave @ thing[:, None]
    answer = held @ object_inverse @ jnp.swapaxes(thing, 1, 2)[:, None]
    lively = (size / jnp.where(stillness > 0, stillness, jnp.inf))[:, None, None]
    held = held * lively  # as cells see them: with liveliness
    gone = crossed * (lively / size[:, None, None]) + answer @ (crossed * lively)
    moved = held @ object_inverse @ jnp.swapaxes(held, 2, 3)
    coarse = []
    for i, s in enumerate(series):
        if not told_of[i]:
            design = by_look(mean_tau(s))
            of, precise = cells(
                s, channels[i], hyper, design, scene_of(i) - design @ spanned, shares(s, objects),
                (alive * classes.weight, alive * nodes), leave, moved,
            )
            normal = normal + _of_cells(of, precise, spanned, (kind, place), leave - answer @ told, (gone, scene))
            coarse.append(of)

    tops = zip(*(panels(_factor(normal[k])) for k in range(rank)), strict=True)  # one by one, not in a loop: its passes would run on one core
    top = tuple(jnp.stack(parts) for parts in tops)
    object_root = last(root, object_inverse)
    return Preconditioner(
        inverse, blurred, weight, still, lam, base, pixel, scene, still * weight, jnp.maximum(stillness, 1e-6), thing, kind, place, told, crossed,
        object_inverse, object_root, kinds, places, objects, classes, hierarchy.spaces["place"], top, tuple(coarse), spanned, held,
        *_scene_alone(factors, series, noise),
    )


def _of_cells(of: Cells, precise: Array, spanned: Array, sides: tuple[Array, Array], reach: Array, gone: tuple[Array, Array]) -> Array:
    """(K, U, U) what cells add to the top: of what objects and pixels leave of it.

    precise: (K, n, n). spanned: (K, R, T + offsets) the scene as a pixel's coefficients. sides: units of classes and places as pixels' coefficients.
    reach: (K, O, R, R) what is left of a change above. gone: (K, O, R, N) what has been taken of what fine looks see of the scene, and that
    (K, N, T + offsets).
    """
    left = jnp.einsum("po,koqr->kpqr", of.share, reach)
    scene = spanned[:, None] - jnp.einsum("po,korn->kprn", of.share, gone[0]) @ gone[1][:, None]
    others = of.half @ of.rest[:, None]
    crossed = jnp.einsum("kprt,kpru->ktu", scene, others)
    info = jnp.swapaxes(left, 2, 3) @ of.info @ left
    scenes = jnp.einsum("kprt,kpru->ktu", scene, of.info @ scene) + jnp.swapaxes(of.rest, 1, 2) @ precise @ of.rest
    side = _Side(*sides, of.kinds, of.places)
    outer = side.outer(jnp.swapaxes(left, 2, 3) @ (of.info @ scene + others))
    return _assemble(scenes + crossed + jnp.swapaxes(crossed, 1, 2), outer, side.inner(info))


def _scene_alone(factors: Factors, series: Sequence[Looks], noise: Sequence[Noise]) -> tuple[Array, Array]:
    """(inverse Cholesky factor (K T, K T) of Q's block of the scene, (K, T) variance that components leave each other in it, all else fixed)."""
    rank, steps, _ = factors.scene.shape
    total = jnp.zeros((rank * steps, rank * steps))
    for s, n in zip(series, noise, strict=True):
        seen = jnp.einsum("nt,kts->kns", mean_tau(s), factors.scene)
        told = jnp.einsum("bnm,bk,kms->kbns", n.of_means, s.colour, seen)
        total = total + jnp.einsum("bl,lnt,kbns->ltks", s.colour, seen, told).reshape(total.shape)
    lower = _factor(total)
    joint = jnp.einsum("uks,ukt->stk", *(lower.reshape(-1, rank, steps),) * 2)
    apart = invert(jnp.eye(steps)[..., None] + jnp.einsum("ksku->suk", total.reshape(rank, steps, rank, steps)))[0]
    return lower, jnp.maximum(jnp.einsum("kts,suk,ktu->kt", factors.scene, joint - apart, factors.scene), 0.0)
