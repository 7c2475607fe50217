"""Bands against the spectral basis, and the exact reduction of hundreds of channels to a few sufficient statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.cube.response import Response
from fusion.cube.spectrum import SpectralBasis

HAZE_LENGTH = 200.0
"""nm: correlation length of an acquisition's offset spectrum (aerosol and calibration errors are spectrally smooth)"""
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Channels:
    """Values of a look in B bands together with what the spectral basis says of those bands."""

    bands: tuple[str, ...]
    data: Array
    """(B, H, W), mean included; 0 where missing"""
    precision: Array
    """(B, H, W); 0 = missing"""
    colour: Array
    """(B, K)"""
    mean: Array
    """(B,)"""
    residual_var: Array
    """(B,)"""
    offset_sd: Array
    """(B,)"""
    gain_sd: Array
    """(B,) relative; 0 for pseudo-bands, whose noise and offset contain it"""


def reduce_channels(
    names: tuple[str, ...], data: Array, precision: Array, centres: Array, responses: tuple[Response, ...],
    basis: SpectralBasis, offset_sd: float, gain_sd: float = 0.0, moved: float = 0.0,
) -> Channels:
    """At most K pseudo-bands that carry all that B channels say of z: y' = c Q D^(-1) T y, T = G^(-1/2) H' N^(-1), G = H' N^(-1) H.

    N = diag(n + g^2 s^2) + R is one spectrum of noise: n the median variance of each channel, g its gain error and s the standard
    deviation of the ground in it, R the out-of-subspace covariance, which neighbouring channels share. Then T y = G^(1/2) z + white
    noise, and the likelihood of z is that of all B channels: exactly so where the variance of a pixel is s_p^2 N, otherwise s_p^2
    is its geometric mean over channels. What a displaced look adds, S = `misplaced`, lies along the colours of its edges, brightness
    first, and has no mean over the ground: within N it would make a look tell brightness by the shape of its spectra alone. So it
    is counted after the reduction: D D' = I + T S T'. c scales the noise back to that of a typical channel. A channel seen in under
    half of the seen pixels is dropped; a pixel that lacks one of the rest is missing.

    What all pixels share is a smooth offset spectrum, cov = sd^2 exp(-|lambda - lambda'| / HAZE_LENGTH), and the gain errors
    times the mean spectrum; the rotation Q makes its pseudo-bands independent, so that offset_sd says all of it.
    """
    seen = precision > 0
    clear = int(seen.any(axis=0).sum())
    kept = seen.sum(axis=(1, 2)) >= max(1, clear / 2)
    if not kept.any():
        kept[:] = True
    shape, window = seen.shape[1:], bounding(np.asarray(seen.any(axis=0)))
    data, precision, seen, centres = data[kept], precision[kept], seen[kept], centres[kept]
    weights = basis.weights([r for r, k in zip(responses, kept, strict=True) if k])
    colour, mean = weights @ basis.components, weights @ basis.mean
    residual = basis.residual(weights)
    distance = np.abs(centres[:, None] - centres)
    haze = offset_sd**2 * np.exp(-distance / HAZE_LENGTH)
    if len(colour) <= basis.rank:
        names = tuple(n for n, k in zip(names, kept, strict=True) if k)
        gains = np.full(len(names), gain_sd)
        return Channels(names, data, precision, colour, mean, np.diag(residual).copy(), np.sqrt(np.diag(haze)), gains)
    data, precision, seen = data[:, *window], precision[:, *window], seen[:, *window]
    whole = seen.all(axis=0)
    level, spread = (np.array([f(d[s]) if s.any() else 0.0 for d, s in zip(data, seen, strict=True)]) for f in (np.mean, np.std))
    haze = haze + np.diag((gain_sd * level) ** 2)
    typical = 1.0 / np.array([np.median(p[s]) if s.any() else 1.0 for p, s in zip(precision, seen, strict=True)])
    scale = float(np.sqrt(np.median(typical)))
    noise = np.diag(typical + (gain_sd * spread) ** 2) + residual
    solved = np.linalg.solve(noise, colour)
    value, vector = np.linalg.eigh(colour.T @ solved)
    use = value > 1e-10 * value[-1]
    turn = (vector[:, use] / np.sqrt(value[use])).T @ solved.T  # diag(value)^(-1/2) V' H' N^-1: white noise
    moving = np.linalg.cholesky(np.eye(len(turn)) + turn @ misplaced(data, whole, moved) @ turn.T)
    turn = scale * np.linalg.solve(moving, turn)
    shared, axes = np.linalg.eigh(turn @ haze @ turn.T)  # any rotation keeps it white: take the one with independent offsets
    turn = axes.T @ turn
    colour = turn @ colour
    log = np.zeros(whole.shape)
    for p, t in zip(precision, typical, strict=True):  # one channel at a time: the look may be large
        log += np.log(np.where(whole, p * t, 1.0), dtype=np.float64)
    weight = np.where(whole, np.exp(log / len(data)), 0.0) / scale**2
    count = int(use.sum())
    reduced, weights = (np.zeros((count, *shape)) for _ in range(2))
    reduced[:, *window], weights[:, *window] = np.einsum("cb,bhw->chw", turn, data, optimize=True) * whole, weight
    names = tuple(f"pseudo-{i + 1}" for i in range(count))
    common = np.sqrt(np.maximum(shared, 0.0))
    return Channels(names, reduced, weights, colour, turn @ mean, np.zeros(count), common, np.zeros(count))


def bounding(seen: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest rows and columns that hold all that is seen; everything where nothing is."""
    rows, cols = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)) if rows.size else (slice(None), slice(None))


def misplaced(data: Array, whole: NDArray[np.bool_], moved: float) -> Array:
    """(B, B) what a look displaced by `moved` pixels (sd, each axis) adds to the noise: moved^2 E[grad y grad y'], two axes.

    The gradient is the central difference between the pixels on both sides; where there are none, nothing is known of it.
    """
    total = np.zeros((len(data), len(data)))
    for far, near in ((np.s_[2:, :], np.s_[:-2, :]), (np.s_[:, 2:], np.s_[:, :-2])):
        both = whole[far] & whole[near]
        if both.any():
            slope = 0.5 * (data[:, *far][:, both] - data[:, *near][:, both])
            total += slope @ slope.T / slope.shape[1]
    return moved**2 * total
