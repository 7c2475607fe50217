"""What a coarse sensor really saw, learned from the fine looks of the same ground: blur, displacement, bias and discrepancy.

For every coarse look n near a fine one, the fine images at its times, seen through the coarse footprint, give x_n(p, b).

    R y_n(p) = R W(width, shift) x + bias + o_n + s(p) d_n(p),     d = white in time + Ornstein-Uhlenbeck on the cells

s: a cell errs by what its blur and place are wrong, so its error goes with the variety of the ground in it: s^2 = 1 - share + share v(p),
v the variance of the fine images within the cell in units of its mean, the share by maximum likelihood.

width and shift: least summed log residual variance over the bands, from the facts outwards. R: what the bands of such a sensor
get wrong they get wrong together (a displaced cell errs in all of them), so their residuals' covariance is diagonalised, and
the pseudo-bands are scaled to one lasting error. bias: mean over looks, shrunk. o: its scatter. d: lag products of the
residuals between dates, by moments. The result is the same observations, in pseudo-bands, with better facts; the engine's
own factors (`Hyper`) then vary around them. Only fine images that are given teach anything.

A sensor that states no discrepancy keeps its numbers and is given width and shift alone: what six fine bands do not foretell of a
spectrometer is ground that they cannot see, not its error.

A small place has few cells. Width and shift then stay as stated, and cells at its border teach too: what lies outside is
taken for what lies inside, which is an error of theirs on this ground. Stated sds count as some looks and cells more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fusion.cube.cube import Cube
from fusion.infer.discrepancy import errors, lasting_offset, rotation, share_of_variety, uneven
from fusion.infer.images import clear_image
from fusion.infer.registration import WHOLE, Pairs, registered, residuals, seen_through
from fusion.infer.sight import regression
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.operator import Footprint

NEAR_DAYS = 4.0
"""a coarse look further than this from every fine look teaches nothing of the sensor"""
LOOKS = 12
"""at most so many coarse looks are used for width and shift, spread over the period"""
CELLS = 24
"""least number of clear cells in all looks together that tell width and shift"""
PART = 0.5
"""share of a cell inside the grid from which on it tells bias and discrepancy where there are fewer"""
LEAST_VARIETY = 1e-8
"""reflectance squared: ground that varies by less varies in noise alone"""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Learned:
    """The facts of one coarse sensor on this ground."""

    sensor: str
    widen: float
    """factor on the blur of the stated PSF"""
    shift: tuple[float, float]
    """(north, east) metres by which its looks are displaced"""
    rotation: Array
    """(B, B) R, from bands to pseudo-bands of independent errors; the numbers below are of these"""
    bias: Array
    """(B,) coarse minus fine"""
    offset_sd: Array
    """(B,) scatter of a look's common error"""
    white_sd: Array
    """(B,) discrepancy that changes from look to look"""
    lasting_sd: Array
    """(B,) discrepancy that lasts"""
    days: float
    """correlation time of the lasting part"""
    looks: int
    """coarse looks that taught this"""
    cells: float
    """clear values of them"""
    variety: Array
    """(B,) mean variance of the ground within a cell, in the sensor's own bands"""
    share: float
    """of the discrepancy's variance, what goes with a cell's own variety"""


def pooled(records: Sequence[Learned]) -> tuple[Learned, ...]:
    """One record per sensor and number of bands, from what several tiles learned: blur, shift and bias by the mean, weighed by clear
    values, the rest from the tile with most of them (errors of different rotations have no common axes)."""
    groups: dict[tuple[str, int], list[Learned]] = {}
    for one in records:
        groups.setdefault((one.sensor, len(one.bias)), []).append(one)
    out = []
    for _, group in sorted(groups.items()):
        best = max(group, key=lambda one: (one.cells, one.looks, -one.widen, one.shift))
        if len(group) > 1:
            share = np.array([one.cells for one in group]) / sum(one.cells for one in group)
            shift = share @ np.array([one.shift for one in group])
            bias = share @ np.stack([np.linalg.solve(one.rotation, one.bias) for one in group])
            widen = float(np.exp(share @ np.log([one.widen for one in group])))
            best = replace(best, widen=widen, shift=(float(shift[0]), float(shift[1])), bias=best.rotation @ bias)
        out.append(best)
    return tuple(out)


def calibrated(
    observations: Sequence[Observation], cube: Cube, known: Sequence[Learned] | None = None
) -> tuple[tuple[Observation, ...], tuple[Learned, ...]]:
    """The observations with what their coarse sensors' data say of themselves, and a record of it, one per coarse raster.

    known: what was learned elsewhere (`pooled`), which then holds here; None = learned from these observations. Sensors are left as they
    are where no fine look is near in time, or no cell is clear. The fine looks never change.
    """
    fine = [o for o in observations if not o.layer.footprint.coarse and (o.precision > 0).mean() > 0.2]
    groups: dict[tuple[str, int], list[int]] = {}
    for i, obs in enumerate(observations):
        if obs.layer.footprint.coarse and np.ndim(obs.layer.tau) == 1:
            groups.setdefault((obs.sensor, id(obs.layer.footprint)), []).append(i)
    out, records = list(observations), []
    for members in groups.values():
        looks = [observations[i] for i in members]
        ground = _Ground.of(fine, looks[0], cube) if fine else None
        if known is None:
            learned = None if ground is None else _learn(looks, ground, cube)
        else:
            learned = next((k for k in known if (k.sensor, len(k.bias)) == (looks[0].sensor, len(looks[0].data))), None)
        if learned is not None:
            records.append(learned)
            days = [cube.calendar.day_of(observations[i].when) for i in members]
            offset = lasting_offset(learned.lasting_sd, learned.white_sd, learned.days, days) * learned.offset_sd
            foot = seen_through(looks[0], cube, learned.widen, learned.shift)
            variety = np.ones((1, 1, 1)) if ground is None else _variety(ground, foot) / learned.variety[:, None, None]
            scale = np.broadcast_to(uneven(learned.share, variety), foot.shape)
            for i in members:
                out[i] = _with(observations[i], replace(learned, offset_sd=offset), foot, scale)
    return tuple(out), tuple(records)


@dataclass(frozen=True)
class _Ground:
    """The fine images in a coarse sensor's bands, in order of time."""

    planes: Array
    """(n, B, Y, X) gaps filled (`_filled`)"""
    clear: Array
    """(n, Y, X) 1 where the look is clear"""
    times: Array
    """(n,) days"""

    @classmethod
    def of(cls, fine: Sequence[Observation], coarse: Observation, cube: Cube) -> _Ground:
        """z by least squares under the spectral prior, in the bands of a coarse look."""
        fine = sorted(fine, key=lambda o: cube.calendar.day_of(o.when))
        planes, clear = (np.stack(part) for part in zip(*(_backwards(o, coarse, cube) for o in fine), strict=True))
        return cls(_filled(planes, clear), clear, np.array([cube.calendar.day_of(o.when) for o in fine]))

    def at(self, tau: Array, days: Array) -> Array:
        """(B, Y, X) at the weights tau of the latent times, linear between the images."""
        weight = np.zeros(len(self.times))
        for t in np.flatnonzero(tau):
            right = int(np.searchsorted(self.times, days[t]))
            low, high = max(right - 1, 0), min(right, len(self.times) - 1)
            gap = self.times[high] - self.times[low]
            share = (days[t] - self.times[low]) / gap if gap > 0 else 0.0
            weight[low] += tau[t] * (1 - share)
            weight[high] += tau[t] * share
        return np.asarray(np.tensordot(weight / weight.sum(), self.planes, 1))


def _variety(ground: _Ground, foot: Footprint) -> Array:
    """(B, H, W) W x^2 - (W x)^2, variance of the ground within a cell, its mean over the images."""

    def seen(planes: Array) -> Array:
        return np.asarray(foot(jnp.asarray(planes, jnp.float32)), np.float64)

    level = ground.planes.mean(axis=(0, 2, 3))[:, None, None]
    return np.maximum(np.mean([seen((x - level) ** 2) - seen(x - level) ** 2 for x in ground.planes], axis=0), 0.0)


def _pictures(coarse: Sequence[Observation], ground: _Ground, cube: Cube) -> Pairs:
    """The ground at the times of those coarse looks that have a fine one near, LOOKS of them at most."""
    days = np.array([cube.calendar.day_of(o.when) for o in coarse])
    used = [i for i in np.argsort(days, kind="stable") if np.abs(ground.times - days[i]).min() <= NEAR_DAYS]
    used = [used[i] for i in np.unique(np.linspace(0, len(used) - 1, LOOKS).round().astype(int))] if len(used) > LOOKS else used
    planes = [ground.at(np.asarray(coarse[i].layer.tau, np.float64), cube.calendar.days) for i in used]
    nearest = np.array([np.abs(ground.times - days[i]).argmin() for i in used], int)
    empty = np.zeros((0, *ground.planes.shape[1:]))
    return Pairs([coarse[i] for i in used], np.stack(planes) if used else empty, ground.clear[nearest], days[used], nearest)


def _backwards(fine: Observation, coarse: Observation, cube: Cube) -> tuple[Array, Array]:
    """((B, Y, X) a fine look in the coarse sensor's bands, (Y, X) 1 where clear)."""
    back, clear = clear_image(fine)
    noise = np.median(1.0 / fine.precision[fine.precision > 0]) + np.asarray(fine.residual_var, np.float64)
    gain = regression(cube.basis.prior, np.asarray(fine.layer.colour, np.float64), noise)
    return np.einsum("bc,cyx->byx", np.asarray(coarse.layer.colour, np.float64) @ gain, back), clear.astype(float)


def _filled(stack: Array, there: Array) -> Array:
    """(n, B, Y, X) gaps filled from the pixel's nearest clear look, or the image mean."""
    out = stack.copy()
    for n in range(len(stack)):
        missing = there[n] == 0
        for other in sorted(range(len(stack)), key=lambda m: abs(m - n)):
            take = missing & (there[other] > 0)
            out[n][:, take] = stack[other][:, take]
            missing &= ~take
        if missing.any():
            out[n][:, missing] = out[n][:, ~missing].mean(axis=1, keepdims=True) if (~missing).any() else 0.0
    return out


def _learn(coarse: Sequence[Observation], ground: _Ground, cube: Cube) -> Learned | None:
    """What one coarse raster's looks teach, or None."""
    pairs = _pictures(coarse, ground, cube)
    if not pairs.coarse:
        return None
    first = pairs.coarse[0]
    stated = bool(first.discrepancy_sd.any())
    enough = residuals(pairs, first.layer.footprint, pairs.pictures)[1][:, 0].sum() >= CELLS
    if not (enough or stated):
        return None
    cell = float(np.sqrt(abs(first.geobox.transform.determinant)))
    widen, shift = registered(pairs, cube, cell) if enough else (1.0, (0.0, 0.0))
    foot = seen_through(first, cube, widen, shift)
    residual, use = residuals(pairs, foot, pairs.pictures, WHOLE if enough else PART)
    if not use.any():
        return None
    variety = _variety(ground, foot)
    seen = use.any(axis=(0, 1))
    average = np.maximum(variety[:, seen].mean(axis=1), LEAST_VARIETY)
    if not stated:
        none = np.zeros(len(average))
        return Learned(
            first.sensor, widen, shift, np.eye(len(none)), bias=none, offset_sd=np.asarray(first.offset_sd, np.float64), white_sd=none,
            lasting_sd=none, days=first.discrepancy_days, looks=len(pairs.coarse), cells=float(use.sum()), variety=average, share=0.0,
        )
    share = share_of_variety(residual, use, variety / average[:, None, None])
    scale = uneven(share, variety / average[:, None, None])
    turn = rotation(residual, use, scale, least=CELLS)
    if (turn != np.eye(len(turn))).any():
        use = np.broadcast_to(use.min(axis=1, keepdims=True), use.shape)
    residual = np.einsum("cb,nbhw->nchw", turn, residual)
    bias, offset, total, lasting, days = errors(
        residual, use, scale, pairs.days, pairs.nearest, turn**2 @ np.asarray(first.offset_sd, np.float64) ** 2,
        np.full(len(average), float(np.mean(first.discrepancy_sd**2))), first.discrepancy_days,
    )
    unit = np.sqrt(lasting.mean() / np.maximum(lasting, 1e-4 * lasting.mean() + 1e-12))
    white = np.sqrt(np.maximum(total - lasting, 0.0))
    return Learned(
        first.sensor, widen, shift, unit[:, None] * turn, unit * bias, unit * offset, unit * white, unit * np.sqrt(lasting),
        days, len(pairs.coarse), float(use.sum()), average, share,
    )


def _with(obs: Observation, learned: Learned, foot: Footprint, scale: Array) -> Observation:
    """The observation with the learned facts in place of the stated ones.  scale: (H, W) relative variance of each cell's discrepancy."""
    layer = obs.layer
    seen, turn = (obs.precision > 0) & (np.asarray(foot.seen) > 0), learned.rotation
    pseudo = bool((turn != np.diag(np.diag(turn))).any())
    seen = np.broadcast_to(seen.all(axis=0), seen.shape) if pseudo else seen

    def turned(values: NDArray[np.floating], by: Array = turn) -> Array:
        return np.einsum("cb,b...->c...", by, np.asarray(values, np.float64))

    variance = turned(1.0 / np.where(seen, obs.precision, 1.0), turn**2) + learned.white_sd[:, None, None] ** 2 * scale
    precision = np.where(seen, 1.0 / variance, 0.0).astype(np.float32)
    data = np.where(seen, turned(np.where(seen, obs.data, 0.0)) - learned.bias[:, None, None], 0.0).astype(np.float32)
    colour, mean, tau = (np.asarray(a) for a in (layer.colour, layer.mean, layer.tau))
    common = (obs.gain_sd * (mean + obs.data.mean(axis=(1, 2)))) ** 2 if pseudo else np.zeros(len(turn))
    offset = np.sqrt(learned.offset_sd**2 + turned(common, turn**2))
    lasting = float(np.sqrt(np.mean(learned.lasting_sd**2)))
    told = f"discrepancy {lasting:.4f} over {learned.days:.0f} days" if lasting else "no discrepancy stated"
    north, east = learned.shift
    note = f"learned on {learned.looks} looks: blur x {learned.widen:g}, shift {north:.0f} m north {east:.0f} m east, {told}"
    return replace(
        obs, data=data, precision=precision, offset_sd=offset.astype(np.float32), layer=Layer.of(foot, turned(colour), turned(mean), tau),
        bands=tuple(f"pseudo-{i + 1}" for i in range(len(turn))) if pseudo else obs.bands,
        gain_sd=np.zeros_like(obs.gain_sd) if pseudo else obs.gain_sd,
        residual_var=turned(obs.residual_var, turn**2).astype(np.float32), fleeting_sd=learned.white_sd.astype(np.float32) if lasting else None,
        discrepancy_sd=(lasting * np.sqrt(scale)).astype(np.float32), discrepancy_days=learned.days, notes=(*obs.notes, note),
    )
