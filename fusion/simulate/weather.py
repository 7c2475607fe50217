"""What comes between the ground and the numbers: clouds, aerosol, calibration, coarse discrepancy, noise, of known sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.observe.sensor import Noise, Sensor
from fusion.simulate.ground import Array, random, smooth

CLOUD, FLAGGED = 0.6, 0.02
"""reflectance of a cloud; share of a footprint under cloud or shadow from which on the quality layer says so"""
BLOCK, SHADOW = 200.0, 600.0
"""metres: edge of the blocks that clouds are made of; how far to the north-west their morning shadow falls"""


@dataclass(frozen=True)
class Nuisances:
    """Factors on what every sensor's facts state; 0 switches an effect off."""

    noise: float = 1.0
    """on the white noise a + b rho"""
    offset: float = 1.0
    """on the acquisition's error per band (aerosol, BRDF)"""
    gain: float = 1.0
    """on the sensor's gain error per band, the same in all its looks"""
    discrepancy: float = 1.0
    """on the temporally correlated error of coarse cells"""
    shift: float = 1.0
    """on the geolocation error of a look"""
    clouds: float = 0.45
    """mean share of the sky"""
    faults: float = 1.0
    """0 = instruments are whole (Landsat 7 has its scan-line corrector)"""

    @classmethod
    def none(cls) -> Nuisances:
        """A perfect instrument under a clear sky."""
        return cls(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def sky(
    seed: int, day: np.datetime64, shape: tuple[int, int], pixel: float, mean: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) cloud and (N,) shadow of a day, in blocks; days are mostly clear or mostly covered (Beta(mean, 1 - mean))."""
    rng = random(seed, "sky", day)
    cover = float(rng.beta(mean, 1 - mean)) if 0 < mean < 1 else mean
    edge = max(1, round(BLOCK / pixel))
    coarse = tuple(int(np.ceil(n / edge)) + 8 for n in shape)
    field = smooth(rng, (coarse[0], coarse[1]), 6.0)
    mask = field >= np.quantile(field, 1 - cover) if 0 < cover < 1 else np.full(coarse, cover >= 1)
    away = max(1, round(SHADOW / (np.sqrt(2) * edge * pixel)))

    def fine(top: int, left: int) -> NDArray[np.bool_]:
        part = mask[top:, left:].repeat(edge, axis=0).repeat(edge, axis=1)
        return np.ascontiguousarray(part[: shape[0], : shape[1]]).ravel()

    cloud = fine(0, 0)
    return cloud, fine(min(away, 8), min(away, 8)) & ~cloud


def offsets(seed: int, sensor: Sensor, key: object, centroids: Array) -> Array:
    """(B,) error of one acquisition in units of its sd in every band: sqrt(.6) haze, other in the blue than in the red, + sqrt(.4) of its own."""
    rng = random(seed, "offset", sensor.name, key)
    tilt, own = rng.standard_normal(2), rng.standard_normal(centroids.size)
    angle = np.clip((centroids - 450.0) / 1100.0, 0, 1) * np.pi / 3
    return np.asarray(np.sqrt(0.6) * (np.cos(angle) * tilt[0] + np.sin(angle) * tilt[1]) + np.sqrt(0.4) * own)


def gains(seed: int, sensor: Sensor, count: int) -> Array:
    """(B,) 1 + relative calibration error, the same in all looks of a sensor."""
    return 1.0 + sensor.gain_sd * random(seed, "gain", sensor.name).standard_normal(count)


def discrepancy(seed: int, sensor: Sensor, day: np.datetime64, bands: int, cells: int) -> Array:
    """(B, H*W) Ornstein-Uhlenbeck in time, white in space, half of the variance common to all bands.

    x(d) = sqrt(1 - phi^2) sum_j phi^j e(d - j), phi = exp(-1 / discrepancy_days): sd `discrepancy_sd` at any day.
    """
    if sensor.discrepancy_sd == 0:
        return np.zeros((bands, cells))
    phi = np.exp(-1.0 / sensor.discrepancy_days)
    lags = np.arange(int(np.ceil(4.0 * sensor.discrepancy_days)))
    weight = phi**lags / np.sqrt((phi ** (2 * lags)).sum())
    state = np.zeros((bands + 1, cells))
    for lag, share in zip(lags, weight, strict=True):
        state += share * random(seed, "discrepancy", sensor.name, day - lag).standard_normal((bands + 1, cells))
    return sensor.discrepancy_sd * (state[:1] + state[1:]) / np.sqrt(2.0)


def noise_of(sensor: Sensor, count: int) -> tuple[Noise, ...]:
    """Noise of every band, or of `count` channels."""
    return tuple(band.noise for band in sensor.bands) or (sensor.channel_noise or Noise(0.002, 0.02),) * count
