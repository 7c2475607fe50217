"""What the images that saw a pixel say of those that did not: probabilistic principal components of planes with gaps.

    x_n(s) = mean_n + loading_n . f(s) + e_n(s),     f(s) ~ N(0, I),     e_n(s) ~ N(0, rest)

mean, loadings and rest by expectation-maximisation over what was seen (Tipping & Bishop 1999, Journal of the Royal Statistical Society B 61;
with missing values: Ilin & Raiko 2010, Journal of Machine Learning Research 11). A gap is filled with its expectation. Filled with the mean
of its plane instead, a pixel under a cloud looks like no pixel that was seen: whatever is drawn from such images follows the cloud's border.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
FACTORS = 12
"""at most"""
SAMPLE = 2048
"""at most so many pixels are learned from"""
ROUNDS = 12
"""of expectation-maximisation, from the covariance of pairs of planes where both were seen"""
DOUBT = 8.0
"""pixels that count as much as the belief that a plane shows nothing of a factor"""
LEAST = 1e-3
"""of the planes' mean variance that factors leave at least: noise"""
CHUNK = 16384
"""pixels that are filled at a time"""


def learn(flat: Floats, seen: Mask, seed: int = 0) -> tuple[Floats, Floats, float]:
    """(mean (N,), loadings (N, F), rest) of planes (N, P), whose values count where seen (N, P).  Deterministic by seed."""
    told = np.flatnonzero(seen.any(0))
    if len(told) > SAMPLE and not seen.all():
        told = np.sort(np.random.default_rng([seed, 23]).choice(told, SAMPLE, replace=False))
    seen = seen[:, told]
    x = np.where(seen, flat[:, told], 0.0)
    mean = x.sum(1) / np.maximum(seen.sum(1), 1)
    loadings, rest = _begun(np.where(seen, x - mean[:, None], 0.0), seen)
    if seen.all() or not loadings.size:
        return mean, loadings, rest
    weight = seen.astype(np.float64)
    for _ in range(ROUNDS):
        factors, spread = _expected(np.where(seen, x - mean[:, None], 0.0), seen, loadings, rest)
        mean, loadings, rest = _maximal(x, weight, factors, spread, rest)
    return mean, loadings, rest


def filled(flat: Floats, seen: Mask, loadings: Floats, rest: float) -> Floats:
    """(N, P) deviations from the mean, expected ones where they were not seen.  loadings: (N, F)."""
    out = np.where(seen, flat, 0.0)
    gaps = np.flatnonzero(~seen.all(0) & seen.any(0)) if loadings.size else np.zeros(0, np.intp)
    for i in range(0, len(gaps), CHUNK):
        part = gaps[i : i + CHUNK]
        there = seen[:, part]
        precision, told = _normal(out[:, part], there, loadings, rest)
        out[:, part] = np.where(there, out[:, part], loadings @ np.linalg.solve(precision, told[:, :, None])[:, :, 0].T)
    return out


def _begun(deviation: Floats, seen: Mask) -> tuple[Floats, float]:
    """Loadings (N, F) and rest of the covariance over pairs of planes; where nothing is missing, those of greatest likelihood."""
    count = seen.astype(np.float64) @ seen.T
    values, vectors = np.linalg.eigh(deviation @ deviation.T / np.maximum(count, 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    width = min(FACTORS, len(values) - 1)
    least = LEAST * max(float(values.sum()), 0.0) / len(values)
    rest = max(float(values[width:].mean()), least)
    loadings = vectors[:, :width] * np.sqrt(np.maximum(values[:width] - rest, 0.0))
    return loadings[:, np.abs(loadings).max(0) > 0] if rest > 0 else np.zeros((len(values), 0)), rest


def _expected(deviation: Floats, seen: Mask, loadings: Floats, rest: float) -> tuple[Floats, Floats]:
    """((P, F) mean, (P, F, F) covariance) of the factors of pixels, given their deviations (N, P), 0 where not seen."""
    precision, told = _normal(deviation, seen, loadings, rest)
    spread: Floats = np.asarray(np.linalg.inv(precision), np.float64)
    return np.einsum("pfg,pg->pf", spread, told), spread


def _normal(deviation: Floats, seen: Mask, loadings: Floats, rest: float) -> tuple[Floats, Floats]:
    """((P, F, F) precision, (P, F) precision times mean) of the factors."""
    width = loadings.shape[1]
    pairs = (loadings[:, :, None] * loadings[:, None]).reshape(len(loadings), -1)
    return (seen.T.astype(np.float64) @ pairs).reshape(-1, width, width) / rest + np.eye(width), deviation.T @ loadings / rest


def _maximal(x: Floats, weight: Floats, factors: Floats, spread: Floats, rest: float) -> tuple[Floats, Floats, float]:
    """Mean, loadings and rest from the factors of pixels: one regression per plane over those that saw it.  x, weight: (N, P), 0 where not seen."""
    pixels, width = factors.shape
    known = np.concatenate([factors, np.ones((pixels, 1))], axis=1)
    square = known[:, :, None] * known[:, None]
    square[:, :width, :width] += spread
    normal = (weight @ square.reshape(pixels, -1)).reshape(-1, width + 1, width + 1)
    doubted = normal + np.diag([DOUBT] * width + [1e-9])
    both = np.linalg.solve(doubted, (x @ known)[:, :, None])[:, :, 0]
    left = (x**2).sum(1) - 2 * (both * (x @ known)).sum(1) + np.einsum("ni,nij,nj->n", both, normal, both)
    least = LEAST * float((x**2).sum() / weight.sum())
    return both[:, width], both[:, :width], max(float(left.sum() / weight.sum()), least, 1e-3 * rest)
