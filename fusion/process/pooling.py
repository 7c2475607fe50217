"""Partial pooling of hyperparameters: tile summaries -> regional population -> the shrunken prior of each tile.

Every parameter d is a normal-normal hierarchy in its unconstrained space (log of a variance, of a length):

    y_j | theta_j ~ N(theta_j, s_j^2)         what tile j says, its own prior divided out (precision 0 = says nothing)
    theta_j       ~ N(M_g(j), within^2)       tiles of one group (a land-cover class, an ecoregion)
    M_g           ~ N(M, between^2)           groups of the region
    M             ~ N(prior),   within, between ~ half-normal(scale)

Given the two spreads everything is Gaussian and closed; the spreads are integrated over a grid, so that the answer is the
full posterior (their uncertainty included) and deterministic. Parameters are pooled one by one: the correlation of
parameters inside a tile is not used. Source: Gelman et al., Bayesian Data Analysis, 3rd ed., section 5.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.errors import JobError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Summary:
    """What one tile sends: the likelihood of its unconstrained parameters as a normal, its own prior divided out."""

    tile: str
    mean: Array
    """(D,)"""
    precision: Array
    """(D,) 1 / s^2; 0 = the tile's data say nothing"""
    group: str = ""

    @classmethod
    def of(cls, tile: str, mean: Array, sd: Array, prior_mean: Array, prior_sd: Array, group: str = "") -> Summary:
        """From a tile's posterior N(mean, sd^2) under the prior N(prior_mean, prior_sd^2): precisions subtract.

        A parameter whose posterior is as wide as its prior, or not finite, says nothing: precision 0, never an error.
        """
        mean, sd, prior_mean, prior_sd = (np.asarray(v, np.float64) for v in (mean, sd, prior_mean, prior_sd))
        with np.errstate(all="ignore"):
            own = 1 / sd**2 - 1 / prior_sd**2
            told = np.isfinite(mean) & np.isfinite(own) & (own > 1e-6 / prior_sd**2)
            value = (mean / sd**2 - prior_mean / prior_sd**2) / own
        return cls(tile, np.where(told, value, prior_mean), np.where(told, own, 0.0), group)


@dataclass(frozen=True, eq=False)
class Population:
    """The regional population and what it means for each of its tiles (J tiles, G groups, D parameters)."""

    tiles: tuple[str, ...]
    groups: tuple[str, ...]
    group_of: NDArray[np.intp]
    """(J,) index into `groups`"""
    centre: Array
    """(2, D) mean and sd of M"""
    within: Array
    """(D,) posterior mean of the sd of tiles inside a group"""
    between: Array
    """(D,) posterior mean of the sd of groups"""
    estimate: Array
    """(2, J, D) mean and sd of theta_j given every tile"""
    tile_prior: Array
    """(2, J, D) mean and sd of theta_j given every tile but j: the prior of j's final fit, its data used once"""
    group_prior: Array
    """(2, G + 1, D) mean and sd for a tile not seen yet, in each group; the last row: in a new group"""
    weight: Array
    """(J, D) share of the tile's own data in its estimate given its group: 0 = population alone, 1 = own data alone"""
    group_weight: Array
    """(G, D) share of the group's own tiles in its mean: 0 = region alone, 1 = the group alone"""
    effective_tiles: Array
    """(G, D) sum of the weights: the number of fully informative tiles that the group's mean rests on"""

    @property
    def effective_size(self) -> Array:
        """(J, D) within^2 / s_j^2: the tile's own information, in units of what its group's prior is worth."""
        return self.weight / np.maximum(1 - self.weight, 1e-12)

    def prior(self, tile: str, group: str = "") -> tuple[Array, Array]:
        """(mean, sd), each (D,): for a tile of the population without its own data, for another tile of its group's."""
        if tile in self.tiles:
            mean, sd = self.tile_prior[:, self.tiles.index(tile)]
        else:
            row = self.groups.index(group) if group in self.groups else len(self.groups)
            mean, sd = self.group_prior[:, row]
        return mean, sd


def _spreads(scale: Array, points: int, fixed: bool) -> tuple[Array, Array]:
    """Grid of spreads (points, D) and log prior weights: half-normal(scale), even in sd from 0 to 4 scales."""
    if fixed:
        return np.zeros((1, scale.size)), np.zeros((1, scale.size))
    unit = 4 * ((np.arange(points) + 0.5) / points) ** 2  # finer near zero, where complete pooling lives
    jacobian = np.sqrt(unit)
    return unit[:, None] * scale, (np.log(jacobian) - unit**2 / 2)[:, None] * np.ones_like(scale)


def _log_normal(value: Array, variance: Array) -> Array:
    return -0.5 * (value**2 / variance + np.log(variance))


def _mix(weight: Array, mean: Array, variance: Array) -> Array:
    """Law of total variance over the leading (grid) axis: (2, ...) mean and sd; weight broadcasts."""
    centre = (weight * mean).sum(0)
    spread = (weight * (variance + (mean - centre) ** 2)).sum(0)
    return np.stack([centre, np.sqrt(spread)])


def _softmax(log: Array) -> Array:
    share = np.exp(log - log.max(0))
    return share / share.sum(0)


def pool(
    summaries: Sequence[Summary], prior_mean: Array, prior_sd: Array, *, scale: float | Array = 0.5, points: int = 40
) -> Population:
    """The population behind tile summaries.

    prior_mean, prior_sd: (D,) of the region's centre M. scale: of the half-normal priors of both spreads, in
    unconstrained units (0.5 of a log sd = tiles within a factor 1.6 of each other). points: of the grid per spread.
    Raises JobError where the summaries do not speak of the same parameters.
    """
    prior_mean, prior_sd = np.atleast_1d(np.asarray(prior_mean, np.float64)), np.atleast_1d(np.asarray(prior_sd, np.float64))
    size = prior_mean.size
    for summary in summaries:
        if np.shape(summary.mean) != (size,) or np.shape(summary.precision) != (size,):
            raise JobError(
                f"pooling: tile {summary.tile!r} sent {np.shape(summary.mean)} parameters, the population has {size}: "
                "pool only tiles fitted with one model"
            )
    names = tuple(s.tile for s in summaries)
    if len(set(names)) < len(names):
        raise JobError("pooling: two summaries carry the same tile name: keep the newest of each tile")
    groups = tuple(sorted({s.group for s in summaries})) or ("",)
    group_of = np.array([groups.index(s.group) for s in summaries], dtype=np.intp)
    scales = np.broadcast_to(np.asarray(scale, np.float64), (size,))
    said = np.array([s.mean for s in summaries], np.float64).reshape(len(names), size)
    precision = np.array([s.precision for s in summaries], np.float64).reshape(len(names), size)
    heard = np.isfinite(said) & np.isfinite(precision) & (precision > 0)
    said, precision = np.where(heard, said, 0.0), np.where(heard, precision, 0.0)
    member = (group_of[None, :] == np.arange(len(groups))[:, None]).astype(np.float64)  # (G, J)
    parts = [
        _pool_one(said[:, d], precision[:, d], member, group_of, (prior_mean[d], prior_sd[d]), scales[d : d + 1], points)
        for d in range(size)
    ]
    fields = {name: np.stack([part[name] for part in parts], axis=-1) for name in parts[0]}
    return Population(names, groups, group_of, **fields)


def _pool_one(
    said: Array, precision: Array, member: Array, group_of: NDArray[np.intp],
    prior: tuple[float, float], scale: Array, points: int,
) -> dict[str, Array]:
    """One parameter: exact Gaussian algebra on every grid point (Q) of (within, between), then the mixture over the grid."""
    centre0, variance0 = prior[0], prior[1] ** 2
    said = said - centre0
    inner, inner_log = _spreads(scale, points, False)
    outer, outer_log = _spreads(scale, points, member.shape[0] == 1)  # one group alone is the region
    within2 = np.repeat(inner[:, 0], len(outer))[:, None] ** 2  # (Q, 1)
    between2 = np.tile(outer[:, 0], len(inner))[:, None] ** 2
    log_prior = np.repeat(inner_log[:, 0], len(outer)) + np.tile(outer_log[:, 0], len(inner))

    told = precision / (1 + precision * within2)  # (Q, J) 1 / (within^2 + s_j^2)
    log_tile = np.where(precision > 0, 0.5 * np.log(np.where(precision > 0, told, 1.0)) - 0.5 * told * said**2, 0.0)

    def group_evidence(mass: Array, pull: Array) -> tuple[Array, Array, Array]:
        """Of groups whose tiles weigh `mass` and pull to pull / mass: precision and pull on M, log p(tiles | M = 0) residue."""
        shrink = 1 / (1 + mass * between2)
        return mass * shrink, pull * shrink, 0.5 * between2 * pull**2 * shrink + 0.5 * np.log(shrink)

    mass, pull = told @ member.T, (told * said) @ member.T  # (Q, G)
    on_m, pull_m, log_group = group_evidence(mass, pull)

    def centre(on: Array, pulled: Array) -> tuple[Array, Array, Array]:
        """Mean and variance of M, and the log of the integral over it."""
        variance = 1 / (1 / variance0 + on)
        return pulled * variance, variance, 0.5 * pulled**2 * variance + 0.5 * np.log(variance)

    m_mean, m_var, log_m = centre(on_m.sum(1, keepdims=True), pull_m.sum(1, keepdims=True))
    log_all = log_prior[:, None] + log_tile.sum(1, keepdims=True) + log_group.sum(1, keepdims=True) + log_m
    weight = _softmax(log_all)  # (Q, 1)

    def group_mean(mass_g: Array, pull_g: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Mean and variance of M_g from its own tiles and from M given the OTHER groups (mean, variance)."""
        wide = variance + between2
        part = 1 / (1 + mass_g * wide)
        return (mean + pull_g * wide) * part, wide * part

    others_mean, others_var, _ = centre(on_m.sum(1, keepdims=True) - on_m, pull_m.sum(1, keepdims=True) - pull_m)  # (Q, G)
    g_mean, g_var = group_mean(mass, pull, others_mean, others_var)

    # Tile j left out: only its own group's sums change.
    rest, rest_pull = mass[:, group_of] - told, pull[:, group_of] - told * said  # (Q, J)
    rest = np.maximum(rest, 0.0)
    on_rest, pull_rest, log_rest = group_evidence(rest, rest_pull)
    total_on, total_pull = on_m.sum(1, keepdims=True), pull_m.sum(1, keepdims=True)
    _, _, log_m_rest = centre(total_on - on_m[:, group_of] + on_rest, total_pull - pull_m[:, group_of] + pull_rest)
    log_without = log_all - log_tile - log_group[:, group_of] + log_rest - log_m + log_m_rest
    c_mean, c_var = group_mean(rest, rest_pull, others_mean[:, group_of], others_var[:, group_of])
    c_var = c_var + within2
    own = 1 / (1 + precision * c_var)
    e_mean, e_var = (c_mean + precision * said * c_var) * own, c_var * own

    shift = np.array([centre0, 0.0])
    new = np.concatenate([g_mean, m_mean], 1), np.concatenate([g_var + within2, m_var + between2 + within2], 1)
    shares = within2 * told  # (Q, J)
    return {
        "centre": _mix(weight, m_mean, m_var)[:, 0] + shift,
        "within": (weight * np.sqrt(within2)).sum(),
        "between": (weight * np.sqrt(between2)).sum(),
        "estimate": _mix(weight, e_mean, e_var) + shift[:, None],
        "tile_prior": _mix(_softmax(log_without), c_mean, c_var) + shift[:, None],
        "group_prior": _mix(weight, *new) + shift[:, None],
        "weight": (weight * shares).sum(0),
        "group_weight": (weight * mass * between2 / (1 + mass * between2)).sum(0),
        "effective_tiles": (weight * (shares @ member.T)).sum(0),
    }
