"""The hierarchy: what we believe of the field before looking.

    z(s, t, :) = M x(s, t, :)                                    M: mixing, M M^T = spectral prior covariance
    x_k(s, t)  = m_k(t) + a(s) sum_r Psi(t, r) c_kr(s)           k: canonical component, Psi: temporal basis
    m_k        = sd_scene,k   L_scene xi                         the scene mean, full rank in time
    c_k(s)     = sum_l sd_l,k L_l sum_i A_l(s, i) xi_lk(i)       l: class, object, place, pixel;  xi ~ N(0, 1)

A_l: soft land-cover memberships, segments, a smooth field at about the scale of a coarse cell, the identity.
a: liveliness, known beforehand, rms 1 over the ground: fields that are flooded and cut deviate more than dry hills (`landscape.Cover`).
L_l L_l^T is the level's temporal covariance (`kernels.mixture`) at its knots, in the functions Psi that go through them (`courses`). What these
leave out is the pixels' own (`Hierarchy.left_out`).
Every level is a zero-mean deviation from the ones above it: partial pooling, with one variance per level and component, so that a
pixel with few looks borrows from its object, class, place and scene, and one with many is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import register_dataclass
from numpy.typing import NDArray

from fusion.process import courses, kernels
from fusion.process.space import Objects, Pixels, Smooth, Weights

LEVELS = ("scene", *courses.LEVELS)
PARTS = ("static", "annual", "slow", "rough")
REACH = 3.0
"""no hyperparameter moves further than this many prior standard deviations (in log) from its median"""

PRIOR: dict[str, tuple[Any, Any]] = {
    # name: (median, standard deviation of the log); first axis = LEVELS, or sensors
    "sd": ((1.0, 0.7, 0.55, 0.35, 0.5), 0.5),  # of the spectral library's own sd: levels sum to about twice its variance
    "shares": (((0.5, 0.3, 1.0, 0.01), (0.25, 0.5, 0.6, 0.01), (0.5, 0.3, 0.5, 0.01), (0.25, 0.2, 1.0, 0.01), (1.0, 0.3, 0.5, 0.01)), 0.7),
    "length": ((20.0, 20.0, 27.0, 20.0, 40.0), 0.4),  # days: phenology turns in weeks (Zhang et al. 2003), single pixels slower
    "learned": ((0.1, 0.01, 0.05, 0.1, 0.2), 0.7),  # odds of the empirical temporal covariance against the anchor
    "noise": (1.0, 0.3),  # factor on the sensor's stated white noise
    "offset": (1.0, 0.6),  # factor on its stated acquisition effect
    "gain": (1.0, 0.5),  # factor on its stated gain error
    "discrepancy": (1.0, 0.6),  # factor on its stated discrepancy
    "discrepancy_days": (1.0, 0.4),  # factor on its stated correlation time
}
"""Weakly informative log-normal priors, push-forwards of white noise; sensors' own numbers are their instrument facts."""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Hyper:
    """The positive parameters theta.  Rows of the first five: LEVELS; of the last five: `sensors`, as factors on their stated facts."""

    sd: Array
    """(5, K) standard deviation of a level per canonical component, in units of the spectral library's"""
    shares: Array
    """(5, 4) relative variance of PARTS in time"""
    length: Array
    """(5,) days"""
    learned: Array
    """(5,) odds of the empirical temporal covariance against the anchor: weight = odds / (1 + odds)"""
    noise: Array
    """(G,)"""
    offset: Array
    gain: Array
    discrepancy: Array
    discrepancy_days: Array
    sensors: tuple[str, ...] = field(default=(), metadata={"static": True})

    @classmethod
    def default(cls, rank: int, sensors: tuple[str, ...]) -> Hyper:
        """The prior medians.  rank: K. sensors: G distinct names."""
        return cls.from_white(np.zeros(cls.size(rank, len(sensors))), rank, sensors)

    @staticmethod
    def size(rank: int, groups: int) -> int:
        """D, the number of parameters."""
        return 5 * rank + 5 * len(PARTS) + 10 + 5 * groups

    @staticmethod
    def _table(rank: int, groups: int) -> dict[str, tuple[NDArray[np.float32], float]]:
        """name -> (log median with the parameter's full shape, spread)."""
        out = {}
        for name, (median, spread) in PRIOR.items():
            value = np.log(np.asarray(median, dtype=np.float32))
            shape: tuple[int, ...] = {"sd": (5, rank), "shares": (5, 4), "length": (5,), "learned": (5,)}.get(name, (groups,))
            out[name] = (np.broadcast_to(value[:, None] if name == "sd" else value, shape), spread)
        return out

    @classmethod
    def from_white(cls, white: Any, rank: int, sensors: tuple[str, ...]) -> Hyper:
        """theta = median exp(spread REACH tanh(u / REACH)): u ~ N(0, I) is the prior, and theta is bounded.  white: u (D,)."""
        white, start, values = jnp.asarray(white, jnp.float32), 0, {}
        for name, (median, spread) in cls._table(rank, len(sensors)).items():
            u = white[start : start + median.size].reshape(median.shape)
            values[name] = jnp.exp(median + spread * REACH * jnp.tanh(u / REACH))
            start += median.size
        return cls(**values, sensors=tuple(sensors))

    def to_white(self) -> Array:
        """(D,) the inverse of `from_white`; values outside the bounds are moved just inside."""
        parts = []
        for name, (median, spread) in self._table(self.rank, len(self.sensors)).items():
            q = (jnp.log(getattr(self, name)) - median) / (spread * REACH)
            parts.append((REACH * jnp.arctanh(jnp.clip(q, -0.9999, 0.9999))).reshape(-1))
        return jnp.concatenate(parts)

    @property
    def rank(self) -> int:
        """K."""
        return int(self.sd.shape[1])

    def names(self) -> list[str]:
        """(D,) a readable name for each entry of the white vector: sd[class,3], noise[landsat-8] ..."""
        out = []
        for name, (median, _) in self._table(self.rank, len(self.sensors)).items():
            first = self.sensors if name not in ("sd", "shares", "length", "learned") else LEVELS
            for index in np.ndindex(*median.shape):
                rest = [PARTS[index[1]]] if name == "shares" else [str(i) for i in index[1:]]
                out.append(f"{name}[{','.join([first[index[0]], *rest])}]")
        return out

    def replace(self, **changes: Any) -> Hyper:
        """A copy with some parameters changed (arrays of the same shape, or scalars to fill them)."""
        shaped: dict[str, Any] = {n: jnp.broadcast_to(jnp.asarray(v, jnp.float32), getattr(self, n).shape) for n, v in changes.items()}
        return replace(self, **shaped)

    def to_attrs(self) -> dict[str, Any]:
        """JSON-ready attributes."""
        values = {f.name: np.asarray(getattr(self, f.name)).tolist() for f in fields(self) if f.name != "sensors"}
        return {**values, "sensors": list(self.sensors)}

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> Hyper:
        """The inverse of `to_attrs`."""
        values = {f.name: jnp.asarray(attrs[f.name], jnp.float32) for f in fields(cls) if f.name != "sensors"}
        return cls(**values, sensors=tuple(attrs["sensors"]))


@register_dataclass
@dataclass(frozen=True, eq=False)
class Factors:
    """The square roots that colour the white coefficients, all from theta."""

    scene: Array
    """(K, T, T) sd_k L"""
    coefficient: dict[str, Array]
    """level -> (K, R_l, R_l) sd_k L_l, for class, object, place, pixel"""


@register_dataclass
@dataclass(frozen=True, eq=False)
class Hierarchy:
    """The parts of the process model that do not depend on theta: coordinates, bases and spaces of one tile."""

    days: Array
    """(T,)"""
    mixing: Array
    """(K, K) M"""
    temporal: Array
    """(T, R) Psi, orthonormal columns"""
    knots: dict[str, Array]
    """level -> (R_l, T): from a course to the coefficients in Psi of what agrees with it at the level's knots"""
    empirical: Array
    """(T, T) temporal covariance that the data show, unit mean diagonal (the anchor where nothing was learned)"""
    spaces: dict[str, Any]
    """class: Weights, object: Objects, place: Smooth, pixel: Pixels"""
    liveliness: Array
    """(Y, X) a"""
    rows: Array
    """(Y,) global row of each pixel row: the key of random fields"""
    cols: Array
    """(X,)"""
    sudden: Array
    """() share of a change between looks that comes at one moment (`moment`)"""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, K, Y, X)."""
        return self.days.shape[0], self.mixing.shape[0], self.rows.shape[0], self.cols.shape[0]

    @property
    def ranks(self) -> dict[str, int]:
        """level -> R_l: a level lives in the first R_l functions of Psi."""
        return {name: len(self.knots[name]) for name in courses.LEVELS}

    @property
    def complete(self) -> bool:
        """Whether the functions of time leave nothing out."""
        return all(width == len(self.days) for width in self.ranks.values())

    @property
    def white_shapes(self) -> dict[str, tuple[int, ...]]:
        """level -> shape of its white coefficients: scene (K, T), others (K, R_l, m)."""
        steps, rank, _, _ = self.shape
        return {"scene": (rank, steps), **{name: (rank, width, self.spaces[name].size) for name, width in self.ranks.items()}}

    def covariance(self, hyper: Hyper, level: str) -> Array:
        """(T, T) `level_covariance` of this tile's times (before only its knots are kept)."""
        return level_covariance(self.days, hyper, level, self.empirical)

    def at_knots(self, hyper: Hyper, level: str) -> Array:
        """(R_l, R_l) the same of the coefficients of the level's functions."""
        at = self.knots[level]
        return at @ self.covariance(hyper, level) @ at.T

    def left_out(self, hyper: Hyper) -> Array:
        """(K, T, T) covariance of what the functions leave out of x, where liveliness is 1:  sum_l sd_l,k^2 (I - A_l) C_l (I - A_l)^T."""
        total = jnp.zeros((self.mixing.shape[0], len(self.days), len(self.days)))
        for name, width in () if self.complete else self.ranks.items():
            rest = jnp.eye(len(self.days)) - self.temporal[:, :width] @ self.knots[name]
            total = total + hyper.sd[LEVELS.index(name)][:, None, None] ** 2 * (rest @ self.covariance(hyper, name) @ rest.T)
        return total

    def factors(self, hyper: Hyper) -> Factors:
        """The square-root factors of every level; differentiable in theta."""

        def root(matrix: Array, sd: Array) -> Array:
            jitter = 1e-5 * jnp.trace(matrix) / matrix.shape[0]
            return sd[:, None, None] * jnp.linalg.cholesky(matrix + jitter * jnp.eye(matrix.shape[0]))[None]

        inside = {name: root(self.at_knots(hyper, name), hyper.sd[LEVELS.index(name)]) for name in self.ranks}
        return Factors(root(self.covariance(hyper, "scene"), hyper.sd[0]), inside)

    def coefficients(self, white: Mapping[str, Array], factors: Factors) -> tuple[Array, Array]:
        """(m (K, T), a c (K, R, Y, X)): the scene mean and the coefficient planes of all deviations."""
        mean = jnp.einsum("kts,ks->kt", factors.scene, white["scene"])
        levels = []
        for name, width in self.ranks.items():
            units = jnp.einsum("kqr,krm->kqm", factors.coefficient[name], white[name])
            levels.append(jnp.pad(self.spaces[name].spread(units), ((0, 0), (0, self.temporal.shape[1] - width), (0, 0), (0, 0))))
        return mean, sum(levels) * self.liveliness

    def transpose(self, mean: Array, planes: Array, factors: Factors) -> dict[str, Array]:
        """The transpose of `coefficients`: (K, T), (K, R, Y, X) -> white coefficients."""
        return self.gather(mean, planes * self.liveliness, factors)

    def gather(self, mean: Array, planes: Array, factors: Factors) -> dict[str, Array]:
        """`transpose` of planes that are times the liveliness already."""
        out = {"scene": jnp.einsum("kts,kt->ks", factors.scene, mean)}
        for name, width in self.ranks.items():
            out[name] = jnp.einsum("kqr,kqm->krm", factors.coefficient[name], self.spaces[name].gather(planes[:, :width]))
        return out

    def canonical(self, mean: Array, planes: Array) -> Array:
        """(T, K, Y, X) x of the module's equation."""
        return mean.T[:, :, None, None] + jnp.einsum("tr,kryx->tkyx", self.temporal, planes)

    def field(self, mean: Array, planes: Array, beside: Array | float = 0.0) -> Array:
        """(T, K, Y, X) z = M x.  beside: of x, what the levels do not have."""
        return jnp.einsum("jk,tkyx->tjyx", self.mixing, self.canonical(mean, planes) + beside)

    def level_variance(self, hyper: Hyper) -> dict[str, Array]:
        """level -> (T, K, Y, X) prior variance of x, broadcastable."""
        factors = self.factors(hyper)
        out = {"scene": jnp.einsum("kts,kts->tk", factors.scene, factors.scene)[:, :, None, None]}
        for name, width in self.ranks.items():
            time = jnp.einsum("tr,krq->tkq", self.temporal[:, :width], factors.coefficient[name])
            out[name] = (time**2).sum(-1)[:, :, None, None] * (self.liveliness**2 * square(self.spaces[name]))[None, None]
        return out

    def prior_variance(self, hyper: Hyper) -> Array:
        """(T, K, Y, X) prior variance of x, with what the functions of time leave out."""
        left = jnp.einsum("ktt->tk", self.left_out(hyper))[:, :, None, None] * self.liveliness**2
        return jnp.broadcast_to(left + jnp.asarray(sum(self.level_variance(hyper).values())), self.shape)

    def prior_sd(self, hyper: Hyper) -> Array:
        """(T, K, Y, X) prior standard deviation of z."""
        return jnp.sqrt(jnp.einsum("jk,tkyx->tjyx", self.mixing**2, self.prior_variance(hyper)))


def level_covariance(days: Any, hyper: Hyper, level: str, empirical: Any = None) -> Array:
    """(T, T) a level's temporal covariance for unit sd.  days: (T,). empirical: (T, T), None = the anchor alone."""
    i = LEVELS.index(level)
    weight = hyper.learned[i] / (1.0 + hyper.learned[i])
    return kernels.mixture(days, hyper.shares[i], hyper.length[i], weight, empirical)


def square(space: Any) -> Array:
    """(Y, X) sum_i A(s, i)^2: the prior variance that a level of unit variance gives to each pixel."""
    if isinstance(space, Weights):
        return (space.weight**2).sum(0)
    if isinstance(space, Smooth):
        return (space.rows**2).sum(1)[:, None] * (space.cols**2).sum(1)[None, :]
    return jnp.ones(space.label.shape if isinstance(space, Objects) else space.like.shape, jnp.float32)


def canonical_mixing(prior: NDArray[np.floating], colour: NDArray[np.floating]) -> NDArray[np.float32]:
    """(K, K) M with M M^T = prior and M^T H^T H M diagonal, decreasing: components in the order in which the bands H see them.

    prior: (K, K) covariance of z. colour: (B, K) H of the fine sensor. Signs are fixed, so the result is deterministic.
    Source: simultaneous diagonalisation of two quadratic forms (Golub & Van Loan 2013, section 8.7).
    """
    prior = np.asarray(prior, np.float64)
    values, vectors = np.linalg.eigh((prior + prior.T) / 2)
    root = vectors * np.sqrt(np.maximum(values, 1e-10 * max(values.max(), 1e-30)))
    seen = colour.astype(np.float64) @ root
    _, rotation = np.linalg.eigh(seen.T @ seen)
    mixing = root @ rotation[:, ::-1]
    mixing *= np.where(mixing[np.abs(mixing).argmax(0), np.arange(mixing.shape[1])] < 0, -1.0, 1.0)
    return mixing.astype(np.float32)


def build(
    days: NDArray[np.floating], prior: NDArray[np.floating], colour: NDArray[np.floating], memberships: NDArray[np.floating],
    labels: NDArray[np.integer], *, origin: tuple[int, int] = (0, 0), spacing: float = 16.0, ranks: Mapping[str, int] | None = None,
    empirical: NDArray[np.floating] | None = None, liveliness: NDArray[np.floating] | None = None, capacity: int = 0,
    sudden: float = 0.0, looked: Sequence[int] = (),
) -> Hierarchy:
    """The hierarchy of one tile.

    days: (T,). prior: (K, K). colour: (B, K) of the fine sensor. memberships: (C, Y, X) summing to 1 over C. labels: (Y, X) segments.
    origin: global (row, column) of the first pixel. spacing: pixels between nodes of the place level (about one coarse cell).
    ranks: number of temporal functions per level, as `temporal_functions` has them. empirical: (T, T) learned temporal covariance.
    liveliness: (Y, X), default 1. capacity: objects to make room for. sudden: share of changes that come at one moment.
    looked: the times when fine looks saw the ground, which knots are taken from first.
    """
    shape = labels.shape
    days = np.asarray(days, np.float32)
    medians = Hyper.default(1, ())
    anchor = np.mean([level_covariance(days, medians, level) for level in LEVELS[1:]], axis=0)
    learned = np.asarray(anchor if empirical is None else empirical, np.float32)
    widths = courses.temporal_functions(days.size, ranks)
    psi, knots = courses.functions(0.5 * anchor.astype(np.float64) + 0.5 * learned, widths, looked)
    spaces = {
        "class": Weights(jnp.asarray(memberships, jnp.float32)),
        "object": Objects.from_label(labels, capacity),
        "place": Smooth.lattice(shape, origin, spacing),
        "pixel": Pixels(jnp.zeros(shape, jnp.float32)),
    }
    return Hierarchy(
        jnp.asarray(days), jnp.asarray(canonical_mixing(prior, colour)), jnp.asarray(psi, jnp.float32),
        {name: jnp.asarray(a, jnp.float32) for name, a in knots.items()}, jnp.asarray(learned),
        spaces, jnp.ones(shape) if liveliness is None else jnp.asarray(liveliness, jnp.float32),
        jnp.asarray(origin[0] + np.arange(shape[0]), jnp.int32), jnp.asarray(origin[1] + np.arange(shape[1]), jnp.int32),
        jnp.asarray(sudden, jnp.float32),
    )
