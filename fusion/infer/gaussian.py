"""field | theta, data: exact posterior mean, draws and marginal variance of a linear-Gaussian hierarchy.

    Q = I + A(theta)^T N(theta)^-1 A(theta),     Q xi = A^T N^-1 y,     field = colouring of xi

over the white coefficients xi of all levels, by conjugate gradients preconditioned with `precondition` (float32, matrix-free).
A draw solves Q delta = A^T N^-1 e + eta with e ~ N(0, N), eta ~ N(0, I) (perturb and solve: Papandreou & Yuille 2010), and
serves twice, as mean + delta and mean - delta.  Random numbers are keyed to scene and GLOBAL pixel, so neighbouring tiles draw alike.

The marginal variance is the pixel block in closed form plus the variance over draws of what that block is given (Rao-Blackwell).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

from fusion.infer.blocks import invert, kept, times
from fusion.infer.channels import mean_tau, told_to_pixels
from fusion.infer.eliminate import build
from fusion.infer.looks import Looks
from fusion.infer.noise import Noise
from fusion.infer.precondition import Preconditioner, White
from fusion.process.hierarchy import Factors, Hierarchy, Hyper
from fusion.process.keyed import keyed_normal
from fusion.process.space import Objects, Smooth

Weights = tuple[Array | None, ...]
GROUP = 8
"""samples of the sd that are held together"""
BATCH = 6
"""right-hand sides that are solved together, but on CPUs: there they are solved sooner one by one (measured on 32 to 160 pixels)"""


@register_dataclass
@dataclass(frozen=True, eq=False)
class System:
    """Everything that one theta fixes: the operator Q, its right-hand sides and its preconditioner."""

    hierarchy: Hierarchy
    series: tuple[Looks, ...]
    hyper: Hyper
    weights: Weights
    factors: Factors
    noise: tuple[Noise, ...]
    preconditioner: Preconditioner

    @classmethod
    def of(
        cls, hierarchy: Hierarchy, series: tuple[Looks, ...], hyper: Hyper, weights: Weights | None = None, told: tuple[bool, ...] | None = None
    ) -> System:
        """weights: robust factors (n, B, H, W) on the white precision of each series, None = 1. told: see `told_to_pixels`, the default."""
        weights = weights or (None,) * len(series)
        factors = hierarchy.factors(hyper)
        noise = tuple(s.noise(hyper, w) for s, w in zip(series, weights, strict=True))
        told = told or told_to_pixels(series)
        return cls(hierarchy, series, hyper, weights, factors, noise, build(hierarchy, factors, series, noise, hyper, weights, told))

    def predict(self, white: White) -> tuple[Array, ...]:
        """A xi: what each series sees, (n, B, H, W)."""
        mean, planes = self.hierarchy.coefficients(white, self.factors)
        return tuple(s.forward(mean, planes, self.hierarchy.temporal) for s in self.series)

    def explain(self, values: Sequence[Array]) -> White:
        """A^T N^-1 values."""
        hierarchy = self.hierarchy
        each = [s.adjoint(n.apply(v), hierarchy.temporal) for s, n, v in zip(self.series, self.noise, values, strict=True)]
        mean = jnp.stack([m for m, _ in each]).sum(0)
        planes = kept(lambda: sum((c * hierarchy.liveliness for _, c in each), start=jnp.zeros(())), each[0][1])
        return hierarchy.gather(mean, planes, self.factors)

    def __call__(self, white: White) -> White:
        """Q xi."""
        return add(white, self.explain(self.predict(white)))

    def perturbation(self, key: Array) -> White:
        """A^T N^-1 e + eta: the right-hand side of one draw."""
        values = [s.draw_noise(key, self.hyper, w) for s, w in zip(self.series, self.weights, strict=True)]
        return add(white_noise(key, self.hierarchy), self.explain(values))


def add(a: White, b: White, scale: Array | float = 1.0) -> White:
    """a + scale b."""
    return {name: a[name] + scale * b[name] for name in a}


def dot(a: White, b: White) -> dict[str, Array]:
    """Inner product, level by level."""
    return {name: jnp.vdot(a[name], b[name]) for name in a}


def white_noise(key: Array, hierarchy: Hierarchy) -> White:
    """xi ~ N(0, I), keyed to the component, to nodes, objects and pixels by their place in the global grid."""
    shapes = hierarchy.white_shapes
    out = {}
    for name, shape in shapes.items():
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        if name in ("scene", "class"):
            out[name] = jax.random.normal(own, shape)
            continue
        space, width = hierarchy.spaces[name], shape[0] * shape[1]
        if isinstance(space, Objects):
            rows, cols = space.centre(hierarchy.rows, hierarchy.cols)
        elif isinstance(space, Smooth):
            rows, cols = space.node_rows[:, None], space.node_cols[None, :]
        else:
            rows, cols = hierarchy.rows[:, None], hierarchy.cols[None, :]
        out[name] = keyed_normal(own, rows, cols, width).reshape(shape)
    return out


@register_dataclass
@dataclass(frozen=True, eq=False)
class Solved:
    """A solution of Q xi = b and how it was reached."""

    white: White
    iterations: Array
    error: Array
    """() estimated error in posterior sd: the worst level's root mean square, the larger of the last two passes"""


def solve(system: System, right: White, tolerance: float, limit: int) -> Solved:
    """Preconditioned conjugate gradients.  Stops when the error, in posterior standard deviations, is under `tolerance`.

    e^T Q e is the error's energy in units of posterior sd; r^T M^-1 r estimates it. It is asked of every level apart, per
    coefficient, so that a level of few coefficients cannot hide behind a million pixels, and of two passes in a row, since it does not fall
    steadily: a single dip is no end.
    """
    x = {n: jnp.zeros_like(v) for n, v in right.items()}

    State = tuple[White, White, White, Array, Array, Array, Array]

    def unfinished(state: State) -> Array:
        return (state[5] > tolerance) & (state[4] < limit)

    def step(state: State) -> State:
        x, r, p, rho, count, _, before = state
        y = system.preconditioner.apply(r)  # Q and M stand once each in the program: they are what takes long to compile
        energy = dot(r, y)
        now = jnp.sqrt(jnp.max(jnp.stack([jnp.abs(v) / r[n].size for n, v in energy.items()])))
        error = jnp.maximum(now, before)
        fresh = jnp.asarray(sum(energy.values()))
        p = add(y, p, jnp.where(count > 0, fresh / jnp.maximum(rho, 1e-30), 0.0))
        q = jax.lax.cond(error > tolerance, system, lambda p: jax.tree.map(jnp.zeros_like, p), p)  # none after the last: no curvature, no step
        curvature = jnp.asarray(sum(dot(p, q).values()))
        alpha = jnp.where(curvature > 0, fresh / jnp.maximum(curvature, 1e-30), 0.0)  # never a step along a rounding error
        return add(x, p, alpha), add(r, q, -alpha), p, fresh, count + 1, error, now

    state = (x, right, x, jnp.zeros(()), jnp.asarray(0), jnp.asarray(jnp.inf), jnp.asarray(jnp.inf))
    x, _, _, _, count, error, _ = jax.lax.while_loop(unfinished, step, state)
    return Solved(x, count, error)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Field:
    """What `posterior` returns, on the device."""

    mean: Array
    """(T, K, Y, X) of z"""
    sd: Array
    """(T, K, Y, X)"""
    canonical_var: Array
    """(T, K, Y, X) of x, z = M x"""
    white: White
    """posterior mean of xi"""
    deviations: White
    """centred draws of xi with a leading axis of S/2: draws are white +- deviations"""
    iterations: Array
    error: Array
    chi_square: Array
    """(series,) posterior mean of the squared residual in noise sd, per value: about 1 where the data agree"""


def posterior(
    hierarchy: Hierarchy, series: tuple[Looks, ...], hyper: Hyper, key: Array, weights: Weights | None = None, *,
    pairs: int = 0, samples: int = 32, tolerance: float = 0.02, limit: int = 100, batch: int | None = None, exact: bool = False,
) -> Field:
    """Mean, standard deviation and `pairs` centred draws of the field for one theta.

    samples: draws of the approximate posterior for the part of the variance that has no closed form. exact: use the
    `pairs` exact draws for that part instead (unbiased; its Monte-Carlo error falls as 1 / sqrt(2 pairs)).
    batch: right-hand sides that are solved together, default BATCH, on CPUs 1.
    """
    if not series:
        return _prior(hierarchy, hyper, key, pairs=pairs)
    batch = batch or (1 if jax.default_backend() == "cpu" else BATCH)
    told = told_to_pixels(series)
    system = prepare(hierarchy, series, hyper, weights, told=told)
    found = _solve_all(system, key, tolerance, limit, pairs=pairs, batch=batch)
    white, deviations = jax.tree.map(lambda a: a[0], found.white), jax.tree.map(lambda a: a[1 : 1 + pairs], found.white)
    again = jax.random.fold_in(key, 2**20)
    mean, chi = _summary(system, white, again)  # here, while the system knows the cells that pixels hang on
    fine = tuple(not s.coarse for s in series)
    if told != fine:  # taking a coarse look for a fine one helps to solve, but is too sure
        del system  # both would need twice the memory
        system = prepare(hierarchy, series, hyper, weights, told=fine)
    canonical = _variance(system, again, samples=samples)
    square = _variance_exact(system, deviations) if exact else jnp.einsum("jk,tkyx->tjyx", hierarchy.mixing**2, canonical)
    return Field(mean, jnp.sqrt(square), canonical, white, deviations, found.iterations.max(), found.error.max(), chi)


prepare = jax.jit(System.of, static_argnames="told")


@partial(jax.jit, static_argnames="pairs")
def _prior(hierarchy: Hierarchy, hyper: Hyper, key: Array, *, pairs: int) -> Field:
    """`posterior` where nothing was seen: Q = I, so that the right-hand sides are the draws. Jobs have many such tiles, beside swaths and at sea."""
    white = {name: jnp.zeros(shape) for name, shape in hierarchy.white_shapes.items()}
    deviations = jax.lax.map(lambda i: white_noise(jax.random.fold_in(key, i), hierarchy), 1 + jnp.arange(pairs))
    canonical = jnp.broadcast_to(jnp.asarray(sum(hierarchy.level_variance(hyper).values())), hierarchy.shape)
    sd = jnp.sqrt(jnp.einsum("jk,tkyx->tjyx", hierarchy.mixing**2, canonical))
    return Field(jnp.zeros(hierarchy.shape), sd, canonical, white, deviations, jnp.asarray(0), jnp.zeros(()), jnp.zeros(0))


@partial(jax.jit, static_argnames=("pairs", "batch"))
def _solve_all(system: System, key: Array, tolerance: float, limit: int, *, pairs: int, batch: int) -> Solved:
    """The mean (first) and `pairs` centred draws."""

    def one(i: Array) -> Solved:
        right = system.explain([s.data for s in system.series])
        if pairs:
            drawn = system.perturbation(jax.random.fold_in(key, i))
            right = jax.tree.map(lambda a, b: jnp.where(i == 0, a, b), right, drawn)
        return solve(system, right, tolerance, limit)

    if batch == 1:
        return jax.lax.map(one, jnp.arange(1 + pairs))
    groups = -(-(1 + pairs) // batch)
    each = -(-(1 + pairs) // groups)  # equal groups: a rest would be compiled apart, and compiling costs more than a spare draw
    out = jax.lax.map(jax.vmap(one), jnp.arange(groups * each).reshape(groups, each))
    return jax.tree.map(lambda a: a.reshape(groups * each, *a.shape[2:]), out)


@jax.jit
def _summary(system: System, white: White, key: Array) -> tuple[Array, Array]:
    """(mean field z, chi-square per series): E[(y - A xi)^T N^-1 (y - A xi)] / count, its variance part from one draw of M^-1."""
    mean = system.hierarchy.field(*system.hierarchy.coefficients(white, system.factors))
    spread = system.predict(system.preconditioner.draw(key, len(system.hierarchy.days)))
    chi = []
    for looks, noise, fitted, moved in zip(system.series, system.noise, system.predict(white), spread, strict=True):
        r = jnp.where(noise.white > 0, looks.data - fitted, 0.0)
        total = (r * noise.apply(r)).sum() + (moved * noise.apply(moved)).sum()
        chi.append(total / jnp.maximum((noise.white > 0).sum(), 1))
    return mean, jnp.stack(chi)


def _own_variance(system: System, inverse: Array) -> Array:
    """(T, K, Y, X) variance of x from pixel blocks: inverse (K, R, R, Y, X) of their precision."""
    root, hierarchy = system.factors.coefficient["pixel"], system.hierarchy
    design = jnp.einsum("tr,krq->ktq", hierarchy.temporal[:, : root.shape[1]], root)
    pairs = jnp.einsum("ktq,ktr->ktqr", design, design)
    each = [jnp.einsum("tqr,qryx->tyx", *of) for of in zip(pairs, inverse, strict=True)]  # together CPUs would copy the blocks
    return jnp.stack(each, axis=1) * hierarchy.liveliness**2


@partial(jax.jit, static_argnames="samples")
def _variance(system: System, key: Array, *, samples: int) -> Array:
    """(T, K, Y, X) of x: the pixel blocks of M in closed form + that of draws of what they are given, from M^-1.

    The scene m errs alike in all pixels, so draws would make the sd of a whole tile too large or small by 1 / sqrt(2 S). Its own variance
    is known, so that a draw x counts by its share b of it (a regression estimator: Cochran 1977, Sampling Techniques, chapter 7):
    sum x^2 / S + b^2 (Var m - sum m^2 / S),    b = sum x m / (sum m^2 + Var m), which one draw more bounds where there are few.
    """
    hierarchy, (steps, rank, height, width) = system.hierarchy, system.hierarchy.shape
    groups = -(-max(samples, 1) // GROUP)
    each = -(-max(samples, 1) // groups)

    def one(i: Array) -> tuple[Array, Array]:
        scene, planes = system.preconditioner.draw_given(jax.random.fold_in(key, i), len(hierarchy.days))
        return jnp.einsum("kts,ks->kt", system.factors.scene, scene), planes * hierarchy.liveliness

    def add_group(total: tuple[Array, Array, Array], first: Array) -> tuple[tuple[Array, Array, Array], None]:
        mean, planes = jax.lax.map(one, first * each + jnp.arange(each))
        scene = jnp.transpose(mean, (2, 0, 1))[..., None]  # (T, S, K, 1)

        def row(planes: Array) -> tuple[Array, Array]:
            """Twice (T, K, X) of (S, K, R, X): few pixels at a time, so that nothing of the size of all draws at all times is written."""
            x = jnp.einsum("tr,skrx->tskx", hierarchy.temporal, planes) + scene
            drawn = [(x[:, s], scene[:, s]) for s in range(each)]  # open sums fuse into one loop
            return jnp.asarray(sum(a * a for a, _ in drawn)), jnp.asarray(sum(a * b for a, b in drawn))

        return jax.tree.map(jnp.add, total, (*jax.lax.map(row, jnp.moveaxis(planes, 3, 0)), (scene**2).sum(1))), None

    empty = jnp.zeros((height, steps, rank, width))
    (square, along, scene), _ = jax.lax.scan(add_group, (empty, empty, jnp.zeros((steps, rank, 1))), jnp.arange(groups))
    known = system.preconditioner.scene_variance(system.factors.scene).T[..., None]
    share = along / jnp.maximum(scene + known, 1e-30)
    above = square / (groups * each) + share**2 * (known - scene / (groups * each))
    own = _own_variance(system, system.preconditioner.variance) + system.preconditioner.excess.T[:, :, None, None]
    return own + jnp.moveaxis(above, 0, 2) * min(samples, 1)


@jax.jit
def _variance_exact(system: System, deviations: White) -> Array:
    """(T, K, Y, X) of z: blocks of Q itself in closed form + the mean square of E[draw | all but the block] = delta - B^-1 (Q delta)."""
    hierarchy, rank = system.hierarchy, system.hierarchy.shape[1]
    inverse = jax.lax.map(lambda a: invert(a)[0], jnp.moveaxis(_blocks(system), (3, 0), (0, 3)))  # row by row: (Y, R, R, K, X)
    inverse = jnp.transpose(inverse, (3, 1, 2, 0, 4))

    def add_one(total: Array, white: White) -> tuple[Array, None]:
        force = system(white)["pixel"].reshape(rank, -1, *hierarchy.shape[2:])
        step = times(inverse, force).reshape(white["pixel"].shape)
        given = {**white, "pixel": white["pixel"] - step}
        return total + hierarchy.field(*hierarchy.coefficients(given, system.factors)) ** 2, None

    above, _ = jax.lax.scan(add_one, jnp.zeros(hierarchy.shape), deviations)
    own = jnp.einsum("jk,tkyx->tjyx", hierarchy.mixing**2, _own_variance(system, inverse))
    return own + above / max(len(deviations["scene"]), 1)


def _blocks(system: System) -> Array:
    """(K, R, R, Y, X) the diagonal pixel blocks of Q (the rank-one terms of offsets and gains, shared by a whole look, left out)."""
    root, hierarchy = system.factors.coefficient["pixel"], system.hierarchy
    width = root.shape[1]
    total = jnp.zeros((hierarchy.shape[1], width, width, *hierarchy.shape[2:])) + jnp.eye(width)[:, :, None, None]
    for looks, noise in zip(system.series, system.noise, strict=True):
        phi = mean_tau(looks) @ hierarchy.temporal[:, :width]
        squared = jax.tree.map(lambda a: a * a if jnp.issubdtype(a.dtype, jnp.floating) else a, looks.footprint)
        precision = noise.white if noise.cell is None else noise.cell
        terms = "nq,nr,nbhw,bk->kqrhw" if noise.cell is None else "nq,mr,bhwnm,bk->kqrhw"
        inner = jnp.einsum(terms, phi, phi, precision, looks.colour**2, optimize=True)
        total = total + jnp.einsum("kqa,kqrhw,krb->kabhw", root, hierarchy.liveliness**2 * squared.adjoint(inner), root, optimize=True)
    return total


def log_likelihood(white: White, hierarchy: Hierarchy, series: tuple[Looks, ...], hyper: Hyper, weights: Weights | None = None) -> Array:
    """log N(y; A(theta) xi, N(theta)) up to a constant; differentiable in theta and xi.

    As xi ~ N(0, I) does not depend on theta, Fisher's identity makes its mean gradient over posterior draws of xi the exact
    gradient of the marginal likelihood: grad log p(y | theta) = E[grad log p(y | xi, theta) | y, theta].
    """
    factors = hierarchy.factors(hyper)
    mean, planes = hierarchy.coefficients(white, factors)
    total = jnp.zeros(())
    for s, w in zip(series, weights or (None,) * len(series), strict=True):
        noise = s.noise(hyper, w)
        r = jnp.where(s.precision > 0, s.data - s.forward(mean, planes, hierarchy.temporal), 0.0)
        total = total + 0.5 * (noise.log_det - (r * noise.apply(r)).sum())
    return total
