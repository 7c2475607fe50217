"""Leave-one-acquisition-out: is what the posterior says of a look that it never saw as right, and as uncertain, as it claims?

Each acquisition in turn is predicted from all the others and compared with what was measured. The predictive variance is that
of the field, seen through the look's own footprint, plus its noise, offset, gain, discrepancy and out-of-subspace variance.
theta is learned once, from everything: about a hundred numbers against the millions of values that a look is compared in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.table import Table
from scipy.special import ndtr, ndtri

from fusion.cube.cube import Cube
from fusion.infer import fit
from fusion.infer.landscape import images
from fusion.infer.posterior import Posterior
from fusion.process import tails
from fusion.process.hierarchy import Hyper
from fusion.process.landscape import soft_classes

GAPS = (0.0, 8.0, 16.0, 32.0, 64.0, np.inf)
"""days between the looks of the same sensor before and after"""
LEVELS = (0.5, 0.9, 0.95)
BY = ("sensor", "band", "class", "gap")
MOST_PIXELS = 4000
"""per look and band, drawn at random"""


def validate(
    observations: Sequence[Any], cube: Cube, *, most: int = 24, draws: int = 32, seed: int = 0, hyper: Hyper | None = None, tail: float | None = None,
    origin: tuple[int, int] = (0, 0), learn: str = "variational", classes: int = 4, **settings: Any,
) -> pd.DataFrame:
    """One row per compared value: sensor, scene, band, class, gap (days), measured, predicted, sd, tail, linear.

    most: acquisitions left out, spread evenly over all with at least 2 % clear values. hyper: theta, else learned by the engine
    `learn`. tail: index of the law of errors (`fusion.process.tails`), learned like theta. classes: of land cover, from the fine looks.
    linear: the naive prediction, straight between the same sensor's looks before and after at that pixel (NaN where there are none).
    settings: those of `problem.pose`. Feed the result to `score` and `render`.
    """
    usable = [i for i, obs in enumerate(observations) if np.mean(np.asarray(obs.precision) > 0) >= 0.02]
    if len(usable) > most:
        usable = [usable[i] for i in np.unique(np.linspace(0, len(usable) - 1, most).round().astype(int))]
    if hyper is None:
        begun = fit(observations, cube, engine=learn, draws=0, seed=seed, origin=origin, **settings)
        hyper, tail = begun.hyper, begun.tail if tail is None else tail
    cover = _cover(observations, cube, classes, seed)
    rng = np.random.default_rng(seed)
    rows = []
    for i in usable:
        rest = [obs for j, obs in enumerate(observations) if j != i and not _twin(obs, observations[i])]
        found = fit(rest, cube, engine="gaussian", hyper=hyper, tail=tail, draws=draws, seed=seed, origin=origin, **settings)
        rows.append(_compare(observations[i], rest, found, cover, hyper, rng))
    columns = ["sensor", "scene", "band", "class", "gap", "measured", "predicted", "sd", "tail", "linear"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame({name: [] for name in columns})


def _twin(one: Any, other: Any) -> bool:
    """Parts of one acquisition (bands of different sharpness, or a duplicate): they leave together."""
    return bool(one.sensor == other.sensor and one.scene_id == other.scene_id)


def _cover(observations: Sequence[Any], cube: Cube, classes: int, seed: int) -> NDArray[np.float32]:
    """(C, Y, X) one-hot land cover from the looks that are as fine as the grid."""
    fine = [o for o in observations if not o.layer.footprint.coarse]
    soft = soft_classes(images(fine, cube)[1], count=classes, seed=seed)
    return (soft.argmax(0)[None] == np.arange(len(soft))[:, None, None]).astype(np.float32)


def predictive(obs: Any, found: Posterior, hyper: Hyper) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean, sd), each (B, H, W), of what a look would measure minus the spectral mean, its own errors included.

    Where a look is as fine as the grid its variance is that of the pixels below it; a coarse one averages correlated pixels, so
    its variance is taken over draws, and steadied with the mean over the look.
    """
    layer = obs.layer
    colour = np.asarray(layer.colour, np.float64)
    tau = np.asarray(layer.tau, np.float64)

    def see(planes: Any, colour: Any) -> NDArray[np.float64]:
        """(T, J, Y, X) through footprint, time and colour: (B, H, W)."""
        if tau.ndim == 1:
            at = np.einsum("t,tjyx->jyx", tau, planes)
            return np.einsum("bj,jhw->bhw", colour, np.asarray(layer.footprint(jnp.asarray(at, jnp.float32)), np.float64))
        seen = np.stack([np.asarray(layer.footprint(jnp.asarray(p, jnp.float32)), np.float64) for p in planes])
        return np.einsum("hwt,bj,tjhw->bhw", tau, colour, seen, optimize=True)

    mean = see(found.mean, colour)
    if 3 * np.prod(obs.data.shape[1:]) > np.prod(found.mean.shape[2:]) or len(found.draws) < 4:
        variance = np.maximum(see(found.canonical_var, (colour @ np.asarray(found.mixing, np.float64)) ** 2), 0.0)
    else:
        spread = np.mean([(see(draw, colour) - mean) ** 2 for draw in found.draws], axis=0)
        variance = 0.5 * (spread + spread.mean((1, 2), keepdims=True))
    at = hyper.sensors.index(obs.sensor)
    one = {name: float(np.asarray(getattr(hyper, name))[at]) for name in ("noise", "offset", "gain", "discrepancy")}
    precision = np.asarray(obs.precision, np.float64)
    white = np.where(precision > 0, one["noise"] ** 2 / np.where(precision > 0, precision, 1.0), np.nan)
    level = mean + np.asarray(layer.mean, np.float64)[:, None, None]
    own = (one["offset"] * np.asarray(obs.offset_sd, np.float64)) ** 2 + np.asarray(obs.residual_var, np.float64)
    gain = (one["gain"] * np.asarray(obs.gain_sd, np.float64)[:, None, None] * level) ** 2
    lasting = (one["discrepancy"] * np.asarray(obs.discrepancy_sd, np.float64)) ** 2
    return mean, np.sqrt(variance + white + own[:, None, None] + gain + lasting)


def _compare(
    obs: Any, rest: Sequence[Any], found: Posterior, cover: NDArray[np.float32], hyper: Hyper, rng: np.random.Generator
) -> pd.DataFrame:
    mean, sd = predictive(obs, found, hyper)
    linear, gap = _between(obs, rest)
    kind = np.asarray(obs.layer.footprint(jnp.asarray(cover))).argmax(0)
    level = np.asarray(obs.layer.mean, np.float64)
    parts = []
    for b, band in enumerate(obs.bands):
        picked = np.flatnonzero((np.asarray(obs.precision[b]) > 0) & np.isfinite(sd[b]))
        if picked.size > MOST_PIXELS:
            picked = rng.choice(picked, MOST_PIXELS, replace=False)
        told = {"measured": np.asarray(obs.data[b], np.float64), "predicted": mean[b], "linear": linear[b]}
        parts.append(pd.DataFrame({
            "sensor": obs.sensor, "scene": obs.scene_id, "band": band, "class": kind.ravel()[picked], "gap": gap.ravel()[picked],
            "sd": sd[b].ravel()[picked], "tail": found.tail, **{name: value.ravel()[picked] + level[b] for name, value in told.items()},
        }))
    return pd.concat(parts, ignore_index=True)


def _between(obs: Any, rest: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(linear interpolation (B, H, W), days between the two looks (H, W)) on the same sensor's raster; NaN, inf without both."""
    same = [o for o in rest if o.sensor == obs.sensor and o.layer.footprint is obs.layer.footprint and o.bands == obs.bands]
    shape = np.shape(obs.data)
    ends = {side: (np.full(shape, np.nan), np.full(shape[1:], np.inf)) for side in ("before", "after")}
    for other in same:
        days = float((other.when - obs.when) / np.timedelta64(1, "D"))
        value, distance = ends["before" if days <= 0 else "after"]
        closer = (np.asarray(other.precision) > 0).all(0) & (abs(days) < distance)
        value[:, closer] = np.asarray(other.data, np.float64)[:, closer]
        distance[closer] = abs(days)
    (before, left), (after, right) = ends.values()
    with np.errstate(invalid="ignore"):
        share = np.where(left + right > 0, left / np.where(left + right > 0, left + right, 1.0), 0.0)
        return (1 - share) * before + share * after, left + right


def score(values: pd.DataFrame, by: Sequence[str] = ("sensor", "band")) -> pd.DataFrame:
    """One row per group: values, looks, rmse, rmse_there and linear (ours and its, where both exist), bias, crps, cover50,
    cover90, cover95, rms_z, pit.

    by: any of sensor, band, class, gap (binned at GAPS, days). crps, cover, pit: of the predictive law, sd and tail index together. pit: shares of
    the probability integral transform in ten equal bins, flat where calibrated. rms_z: 1 where calibrated.
    """
    table = values.assign(gap=pd.cut(values["gap"], list(GAPS), include_lowest=True).astype(str))
    rows = []
    for key, group in table.groupby(list(by), sort=True, observed=True):
        error = (group["predicted"] - group["measured"]).to_numpy()
        sd, naive = group["sd"].to_numpy(), (group["linear"] - group["measured"]).to_numpy()
        both, tail = np.isfinite(naive), group["tail"].to_numpy()
        normal = normal_scores(group)
        crps = np.concatenate([tails.crps(error[tail == one], sd[tail == one], one) for one in np.unique(tail)])
        pit = np.histogram(ndtr(normal), bins=10, range=(0, 1))[0] / len(normal)
        rows.append({
            **dict(zip(by, key, strict=True)), "values": len(error), "looks": group["scene"].nunique(), "rmse": _rms(error),
            "rmse_there": _rms(error[both]), "linear": _rms(naive[both]), "bias": float(error.mean()), "crps": float(crps.mean()),
            **{f"cover{100 * p:.0f}": float((abs(normal) < ndtri(0.5 + p / 2)).mean()) for p in LEVELS},
            "rms_z": _rms(error / sd), "pit": tuple(np.round(pit, 4).tolist()),
        })
    return pd.DataFrame(rows)


def normal_scores(values: pd.DataFrame) -> NDArray[np.float64]:
    """Errors (measured - predicted) on a scale on which their law is standard normal, whatever its tails."""
    return tails.normal_score((values["measured"] - values["predicted"]) / values["sd"], values["tail"])


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else float("nan")


def render(values: pd.DataFrame, by: Sequence[str] = ("sensor", "band"), title: str = "Leave one acquisition out") -> Table:
    """The scores as a table for a terminal; linear is shown beside the rmse on the same values."""
    scores = score(values, by)
    shown = [*by, "values", "looks", "rmse", "rmse_there", "linear", "bias", "crps", "cover50", "cover90", "cover95", "rms_z"]
    table = Table(title=title)
    for name in shown:
        table.add_column(name, justify="left" if name in by else "right")
    for _, row in scores.iterrows():
        table.add_row(*(f"{row[n]:.4f}" if n in ("rmse", "rmse_there", "linear", "bias", "crps") else
                        f"{row[n]:.3f}" if isinstance(row[n], float) else str(row[n]) for n in shown))
    return table
