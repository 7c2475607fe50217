"""A tiny world and its exact posterior in dense float64, from the equations alone; what the functions of time leave out is noise.

    Cov(x_k(s,t), x_k(s',t')) = sd_scene,k^2 C_scene(t,t') + a(s) a(s') sum_l sd_lk^2 (A_l A_l^T)(s,s') (P_l C_l P_l)(t,t'),   z = M x
    y = D z + e,    e ~ N(0, N)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

from fusion.infer.looks import stack
from fusion.observe.footprint import Dense, Separable
from fusion.process.hierarchy import LEVELS, Hierarchy, Hyper, build

T, K, Y, X = 6, 3, 12, 10
DAYS = np.arange(T) * 8.0


@cache
def identity(shape: tuple[int, int] = (Y, X)) -> Separable:
    y, x = shape
    ones = jnp.ones(shape)
    return Separable(ones, shape, shape, ones, jnp.eye(y), jnp.eye(x))


@cache
def blur(shape: tuple[int, int] = (Y, X), side: float = 0.25) -> Separable:
    def band(n: int) -> Any:
        m = np.eye(n) + side * (np.eye(n, k=1) + np.eye(n, k=-1))
        return jnp.asarray(m / m.sum(1, keepdims=True), jnp.float32)

    ones = jnp.ones(shape)
    return Separable(ones, shape, shape, ones, band(shape[0]), band(shape[1]))


@cache
def boxes(size: int, shape: tuple[int, int] = (Y, X)) -> Dense:
    """Averages of size x size pixels."""
    h, w = shape[0] // size, shape[1] // size
    matrix = np.zeros((h, w, *shape), np.float32)
    for i in range(h):
        for j in range(w):
            matrix[i, j, i * size : (i + 1) * size, j * size : (j + 1) * size] = 1 / size**2
    count = h * w
    return Dense(jnp.ones((h, w)), (h, w), shape, jnp.asarray(matrix.reshape(count, -1)), jnp.arange(count), jnp.arange(count))


def look(
    sensor: str, number: int, footprint: Any, colour: Any, tau: Any, sigma: Any, *, offset: float = 0.01, gain: float = 0.0,
    discrepancy: float = 0.0, residual: float = 0.0,
) -> SimpleNamespace:
    """An observation record with no data yet.  sigma: (B, H, W), inf = missing."""
    bands = len(colour)
    tau = np.asarray(tau, np.float32)
    day = float((tau.reshape(-1, tau.shape[-1]) @ DAYS[: tau.shape[-1]]).mean())
    layer = SimpleNamespace(footprint=footprint, colour=np.asarray(colour), mean=np.linspace(0.1, 0.3, bands), tau=tau)
    precision = (1 / np.asarray(sigma) ** 2).astype(np.float32)
    return SimpleNamespace(
        sensor=sensor, scene_id=f"{sensor}-{number}", bands=tuple(map(str, range(bands))),
        data=np.zeros(precision.shape, np.float32), precision=precision, layer=layer,
        offset_sd=np.full(bands, offset), gain_sd=np.full(bands, gain), residual_var=np.full(bands, residual),
        discrepancy_sd=discrepancy * _uneven(footprint), discrepancy_days=10.0, when=day, fleeting_sd=None,
    )


def _uneven(footprint: Any) -> np.ndarray:
    """(H, W) factors on the discrepancy of each cell, some cells erring three times as much as others."""
    return np.random.default_rng(5).uniform(0.5, 1.5, footprint.shape).astype(np.float32)


def instant(index: float) -> Any:
    tau = np.maximum(1 - np.abs(np.arange(T) - index), 0)
    return tau / tau.sum()


@dataclass
class World:
    hierarchy: Hierarchy
    hyper: Hyper
    observations: list[Any]
    memberships: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)

    @property
    def series(self) -> Any:
        return stack(self.observations, self.hierarchy, self.hyper.sensors, float)

    def temporal(self, name: str, hyper: Hyper) -> np.ndarray:
        """(T, T) covariance of a level's courses for unit sd."""
        i = LEVELS.index(name)
        lag = np.abs(DAYS[:, None] - DAYS[None, :])
        share = np.asarray(hyper.shares[i], np.float64)
        share /= share.sum()
        length, odds = float(hyper.length[i]), float(hyper.learned[i])
        scaled = np.sqrt(3) * lag / length
        slow = 0.2 * (1 + scaled) * np.exp(-scaled) + 0.8 * np.exp(-lag / (3 * length))
        c = share[0] + share[1] * np.cos(2 * np.pi * lag / 365.25) + share[2] * slow + share[3] * np.exp(-lag / 4)
        return (c + odds * np.asarray(self.hierarchy.empirical, np.float64)) / (1 + odds)

    def followed(self, name: str) -> np.ndarray:
        """(T, T) a level's course as its functions follow it: what its values at knots say."""
        part = np.asarray(self.hierarchy.temporal, np.float64)[:, : self.hierarchy.ranks[name]]
        at = np.flatnonzero(np.abs(np.asarray(self.hierarchy.knots[name])).max(0) > 1e-5)
        return part @ np.linalg.inv(part[at]) @ np.eye(T)[at]

    def remainder(self, hyper: Hyper) -> np.ndarray:
        """(K, T, T) covariance of what the functions leave out of a pixel of liveliness 1."""
        total = np.zeros((K, T, T))
        for i, name in enumerate(LEVELS[1:], 1):
            rest = np.eye(T) - self.followed(name)
            total += np.asarray(hyper.sd[i], np.float64)[:, None, None] ** 2 * (rest @ self.temporal(name, hyper) @ rest.T)
        return total

    def left_out(self, obs: Any) -> np.ndarray:
        """(B,) its variance at the time of a fine look, at the prior medians: noise to whoever has the functions alone."""
        if obs.layer.footprint.coarse:
            return np.zeros(len(obs.offset_sd))
        tau, colour = np.asarray(obs.layer.tau, np.float64), np.asarray(obs.layer.colour) @ np.asarray(self.hierarchy.mixing, np.float64)
        return colour**2 @ np.einsum("t,kts,s->k", tau, self.remainder(Hyper.default(K, ())), tau)

    def level_covariance(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """level -> (space (S, S), time (T, T)), unit sd."""
        alive = np.asarray(self.hierarchy.liveliness, np.float64).reshape(-1)
        space = {
            "scene": np.ones((1, Y * X)), "class": self.memberships.reshape(len(self.memberships), -1),
            "object": (self.labels.reshape(1, -1) == np.unique(self.labels)[:, None]).astype(float),
            "place": np.einsum("yg,xh->ghyx", *(np.asarray(a, np.float64) for a in (
                self.hierarchy.spaces["place"].rows, self.hierarchy.spaces["place"].cols))).reshape(-1, Y * X),
            "pixel": np.eye(Y * X),
        }
        out = {}
        for name in LEVELS:
            c = self.temporal(name, self.hyper)
            if name != "scene":
                space[name] = space[name] * alive
                c = self.followed(name) @ c @ self.followed(name).T
            out[name] = (space[name].T @ space[name], c)
        return out

    def prior(self) -> np.ndarray:
        """(T K S, T K S) covariance of z."""
        mixing = np.asarray(self.hierarchy.mixing, np.float64)
        total = np.zeros((T, K, Y * X, T, K, Y * X))
        for i, (space, time) in enumerate(self.level_covariance().values()):
            colour = mixing @ np.diag(np.asarray(self.hyper.sd[i], np.float64) ** 2) @ mixing.T
            total += np.einsum("tu,kl,sr->tksulr", time, colour, space)
        return total.reshape(T * K * Y * X, -1)

    def design(self, obs: Any) -> np.ndarray:
        """(B H W, T K S)."""
        w = obs.layer.footprint.dense()
        tau = np.asarray(obs.layer.tau, np.float64)
        tau = np.broadcast_to(tau, (w.shape[0], T)) if tau.ndim == 1 else tau.reshape(-1, T)
        return np.einsum("pt,bk,ps->bptks", tau, obs.layer.colour, w).reshape(-1, T * K * Y * X)

    def level(self, obs: Any) -> np.ndarray:
        """(B,) mean reflectance of all that the sensor saw: what a gain error multiplies."""
        same = [o for o in self.observations if o.sensor == obs.sensor]
        total, count = (sum(v.astype(np.float64).sum((1, 2)) for v in a) for a in ([o.data for o in same], [o.precision > 0 for o in same]))
        return np.asarray(obs.layer.mean) + total / np.maximum(count, 1)

    def system(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(D, N, y) of the values that are there, all observations in order."""
        rows, data, keep, info = [], [], [], []
        for obs in self.observations:
            index = self.hyper.sensors.index(obs.sensor)
            factor = {n: float(getattr(self.hyper, n)[index]) for n in ("noise", "offset", "gain", "discrepancy", "discrepancy_days")}
            bands, high, wide = obs.data.shape
            band, cell = np.indices((bands, high * wide)).reshape(2, -1)
            rows.append(self.design(obs))
            data.append(obs.data.astype(np.float64).reshape(-1))
            keep.append(obs.precision.reshape(-1) > 0)
            a = self.level(obs)[band]
            info.append([(obs, factor, int(b), int(c), float(v)) for b, c, v in zip(band, cell, a, strict=True)])
        keep_all = np.concatenate(keep)
        design, y = np.concatenate(rows)[keep_all], np.concatenate(data)[keep_all]
        flat = [item for part in info for item in part]
        flat = [item for item, k in zip(flat, keep_all, strict=True) if k]
        beside = {o.scene_id: o.residual_var + self.left_out(o) for o in self.observations}
        column = {n: np.array(v) for n, v in {
            "sensor": [self.hyper.sensors.index(o.sensor) for o, *_ in flat], "scene": [hash(o.scene_id) for o, *_ in flat],
            "band": [b for _, _, b, _, _ in flat], "cell": [c for *_, c, _ in flat], "day": [o.when for o, *_ in flat],
            "white": [f["noise"] ** 2 / o.precision[b].reshape(-1)[c] + beside[o.scene_id][b] for o, f, b, c, _ in flat],
            "offset": [f["offset"] * o.offset_sd[b] for o, f, b, _, _ in flat],
            "gain": [f["gain"] * o.gain_sd[b] * a for o, f, b, _, a in flat],
            "d": [f["discrepancy"] * o.discrepancy_sd.reshape(-1)[c] for o, f, _, c, _ in flat],
            "days": [f["discrepancy_days"] * o.discrepancy_days for o, f, *_ in flat],
        }.items()}
        same = {n: column[n][:, None] == column[n][None, :] for n in ("sensor", "scene", "band", "cell")}
        lag = np.abs(column["day"][:, None] - column["day"][None, :])
        noise = np.diag(column["white"]) + np.outer(column["offset"], column["offset"]) * (same["scene"] & same["band"])
        noise += np.outer(column["gain"], column["gain"]) * (same["sensor"] & same["band"])
        noise += np.outer(column["d"], column["d"]) * np.exp(-lag / column["days"]) * (same["sensor"] & same["band"] & same["cell"])
        return design, noise, y

    def simulate(self, seed: int) -> np.ndarray:
        """Draw z from the prior and data from the model (white noise and offsets only); returns z."""
        rng = np.random.default_rng(seed)
        prior = self.prior()
        values, vectors = np.linalg.eigh(prior)
        z = vectors @ (np.sqrt(np.maximum(values, 0)) * rng.normal(size=len(values)))
        for obs in self.observations:
            there = obs.precision > 0
            sigma = np.where(there, 1 / np.sqrt(np.where(there, obs.precision, 1)), 0)
            y = (self.design(obs) @ z).reshape(obs.data.shape) + rng.normal(size=obs.data.shape) * sigma
            y += obs.offset_sd[:, None, None] * rng.normal(size=(len(obs.offset_sd), 1, 1))
            obs.data = np.where(there, y, 0).astype(np.float32)
        return z.reshape(T, K, Y, X)

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean (T, K, Y, X), covariance (T K S, T K S))."""
        prior = self.prior()
        design, noise, y = self.system()
        gain = np.linalg.solve(design @ prior @ design.T + noise, design @ prior).T
        return (gain @ y).reshape(T, K, Y, X), prior - gain @ design @ prior

    def log_evidence(self) -> float:
        """log p(y | theta)."""
        design, noise, y = self.system()
        total = design @ self.prior() @ design.T + noise
        return float(-0.5 * (y @ np.linalg.solve(total, y) + np.linalg.slogdet(total)[1] + len(y) * np.log(2 * np.pi)))


def world(kind: str = "plain", seed: int = 0, *, complete: bool = False) -> World:
    """plain: one fine sensor without blur + coarse boxes; also: blurred, coarse, fine, cloudy, empty, window.

    complete: functions of time leave nothing out.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(Y)[:, None] // 4 * 5 + np.arange(X)[None] // 2
    memberships = rng.dirichlet(np.ones(3), size=(Y, X)).transpose(2, 0, 1)
    root = rng.normal(size=(K, K)) * 0.1
    fine, coarse = rng.normal(size=(4, K)), rng.normal(size=(3, K))
    empirical = np.cov(rng.normal(size=(T, 40)).cumsum(0))
    empirical /= np.trace(empirical) / T
    hierarchy = build(
        DAYS, root @ root.T, fine, memberships, labels, spacing=4.0, empirical=empirical, origin=(24, 31),
        ranks=dict.fromkeys(LEVELS[1:], T) if complete else {"class": 5, "object": 4, "place": 3, "pixel": 4},
        liveliness=np.random.default_rng(seed + 99).uniform(0.5, 1.5, (Y, X)),
    )
    observations: list[Any] = []
    if kind != "coarse" and kind != "empty":
        for i, index in enumerate((0, 1.4, 3, 5)):
            sigma = np.full((4, Y, X), 0.02)
            sigma[1:] *= 1.0 if kind == "plain" else 1.5
            hole = (slice(i, i + 7), slice(2 * i, 2 * i + (9 if kind == "cloudy" else 3)))
            sigma[(slice(None), *hole)] = np.inf
            observations.append(look("fine", i, blur() if kind == "blurred" else identity(), fine, instant(index), sigma, gain=0.02, residual=1e-5))
    if kind != "fine" and kind != "empty":
        for i in range(T):
            sigma = np.full((3, Y // 2, X // 2), 0.01)
            sigma[:, : 2 * (i == 2)] = np.inf
            tau = np.ones(T) / T if kind == "window" and i == 3 else instant(i)
            observations.append(look("coarse", i, boxes(2), coarse, tau, sigma, discrepancy=0.02, offset=0.005))
    hyper = Hyper.default(K, ("fine", "coarse")).replace(offset=jnp.array([1.0, 0.7]), noise=jnp.array([1.0, 1.2]))
    return World(hierarchy, hyper, observations, memberships, labels)
