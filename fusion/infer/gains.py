"""Gain errors of fine sensors, learned from a spectrometer that saw the same ground within a day.

A spectrometer's look y_c tells the spectrum of a cell, z = prior H_c^T (H_c prior H_c^T + noise)^-1 y_c, and so what a band of the fine
sensor should see there. Per band, over the clear cells,

    1 + g = sum of seen / sum of told,      g ~ N(0, gain_sd^2),     error of the ratio: scatter over cells and the spectrometer's common error,

a ratio of sums, since a regression of cells would take a displacement for a gain. The model itself has a gain error as one number per band, the
error of its mean level; what it does to the contrast of an image is taken out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fusion.cube.cube import Cube
from fusion.infer.images import clear_image
from fusion.infer.sight import regression
from fusion.observe.observation import Observation

SAME_DAYS = 1.0
"""days apart at most: ground and sun are then the same"""
TOLD = 0.01
"""of a band's mean reflectance: the spectral uncertainty up to which a look tells the band"""
CELLS = 24
"""least number of clear cells"""
ALIKE = 4.0
"""cells whose errors count as one, as neighbours overlap"""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Ratio:
    """seen / told - 1 of each band of a fine look, and its variance; infinite where nothing tells it."""

    value: Array
    variance: Array


def regained(observations: Sequence[Observation], cube: Cube) -> tuple[Observation, ...]:
    """The observations, gain errors of fine sensors taken out and their sd reduced to what is left, where a spectrometer tells them."""
    coarse = [o for o in observations if o.layer.footprint.coarse and np.ndim(o.layer.tau) == 1 and o.bands[0].startswith("pseudo")]
    groups: dict[tuple[str, bytes], list[int]] = {}
    for i, obs in enumerate(observations):
        if not obs.layer.footprint.coarse and (obs.gain_sd > 0).any():
            groups.setdefault((obs.sensor, np.asarray(obs.layer.colour).tobytes()), []).append(i)
    out = list(observations)
    for members in groups.values():
        days = [cube.calendar.day_of(observations[i].when) for i in members]
        ratios = [
            _ratio(observations[i], c, cube) for i, day in zip(members, days, strict=True) for c in coarse
            if abs(cube.calendar.day_of(c.when) - day) <= SAME_DAYS
        ]
        if ratios:
            weight = np.array([1.0 / r.variance for r in ratios])
            told = weight.max(0)  # one look's: what a spectrometer gets wrong it gets wrong in all
            mean = (weight * [r.value for r in ratios]).sum(0) / np.maximum(weight.sum(0), 1e-30)
            for i in members:
                out[i] = _with(observations[i], mean, told)
    return tuple(out)


def _ratio(fine: Observation, coarse: Observation, cube: Cube) -> _Ratio:
    prior = cube.basis.prior
    own, far = (np.asarray(o.layer.colour, np.float64) for o in (fine, coarse))
    clear = (coarse.precision > 0).all(0)
    nothing = _Ratio(np.zeros(len(own)), np.full(len(own), np.inf))
    if not clear.any():
        return nothing
    white = 1.0 / np.median(coarse.precision[:, clear], axis=1) + np.asarray(coarse.residual_var, np.float64)
    gain = regression(prior, far, white)
    level = np.asarray(fine.layer.mean, np.float64)
    unsure = np.einsum("bk,kj,bj->b", own, prior - gain @ far @ prior, own) + np.asarray(fine.residual_var, np.float64)

    through = coarse.layer.footprint
    image, there = clear_image(fine)
    *cells, share = np.asarray(through(jnp.asarray(np.concatenate([image, there[None]]), jnp.float32)), np.float64)
    use = clear & (share > 0.99) & (np.asarray(through.seen) > 0.9)
    count = int(use.sum())
    if count < CELLS:
        return nothing
    told = np.einsum("bk,kp->bp", own @ gain, np.asarray(coarse.data, np.float64)[:, use]) + level[:, None]
    found = np.stack(cells)[:, use] / share[use] + level[:, None]
    average = np.maximum(told.mean(1), 1e-6)
    common = ((own @ gain) ** 2) @ np.asarray(coarse.offset_sd, np.float64) ** 2
    variance = ((found - told).var(1) * ALIKE / count + common) / average**2
    return _Ratio(found.mean(1) / average - 1.0, np.where((unsure <= (TOLD * average) ** 2) & (told.mean(1) > 0), variance, np.inf))


def _with(obs: Observation, ratio: Array, told: Array) -> Observation:
    """The observation without the posterior mean of its gain errors.  told: (B,) precision of the ratio."""
    prior = 1.0 / np.maximum(np.asarray(obs.gain_sd, np.float64), 1e-9) ** 2
    error = ratio * told / (prior + told)
    level = np.asarray(obs.layer.mean, np.float64)[:, None, None]
    data = np.where(obs.precision > 0, (obs.data + level) / (1.0 + error)[:, None, None] - level, 0.0).astype(np.float32)
    note = "gain learned from a spectrometer: " + " ".join(f"{100 * e:+.1f} %" for e in error)
    return replace(obs, data=data, gain_sd=(1.0 / np.sqrt(prior + told)).astype(np.float32), notes=(*obs.notes, note))
