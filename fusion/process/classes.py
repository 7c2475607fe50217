"""Soft land-cover classes of a tile, found in its own fine images: the memberships pi_c(s) of the population level.

    pi_c(s) proportional to exp(-|x(s) - mu_c|^2 / 2 l^2),     sum_c pi_c(s)^2 = 1,

x(s): the pixel's values in all fine images (date x band), mu_c: centres found by k-means, l: the median distance between
neighbouring centres. Pixels that looked alike at every date are then believed to change alike: sum_c pi_c(s) pi_c(s') is close to
a Gaussian kernel of the distance between x(s) and x(s'). The scale of x is half-whitened: every principal component is divided by the square root
of its standard deviation, between raw reflectance (where bare soil against crop is all) and whitening (where noise counts as much).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from fusion.errors import JobError

COUNT = 64
"""classes; on real pairs 32 to 128 differ by less than 1 % in the error of prediction, 4 are 3-4 % worse"""
SAMPLE = 6000
"""pixels that the centres are found from"""
ROUNDS = 15
"""k-means iterations"""


def soft_classes(
    stack: NDArray[np.floating], *, count: int = COUNT, width: float = 1.0, seed: int = 0
) -> NDArray[np.float32]:
    """(C, Y, X) memberships, squares summing to one over C at every pixel.

    stack: (N, Y, X) every band of every fine look, or any other feature; NaN = no look. Gaps take the pixel's mean anomaly over
    the layers that are there. count: C, fewer where there are few pixels. width: l in median distances of neighbouring centres.
    Raises JobError for a stack without one finite value.
    """
    layers, *shape = stack.shape
    x = half_whitened(_completed(np.asarray(stack, np.float64).reshape(layers, -1)).T)
    count = max(1, min(count, len(x) // 8))
    if count == 1 or not np.ptp(x, axis=0).any():
        return np.ones((1, *shape), np.float32)
    random = np.random.default_rng(seed)
    chosen = x[random.choice(len(x), min(SAMPLE, len(x)), replace=False)]
    centres, _ = kmeans2(chosen, count, iter=ROUNDS, minit="++", missing="warn", seed=random)
    centres = np.unique(centres, axis=0)
    apart = _squares(centres, centres)
    np.fill_diagonal(apart, np.inf)
    scale = width**2 * max(float(np.median(apart.min(axis=1))), 1e-12) if len(centres) > 1 else 1.0
    distance = _squares(x, centres)
    weight = np.exp(-0.5 * (distance - distance.min(axis=1, keepdims=True)) / scale)
    weight /= np.sqrt((weight**2).sum(axis=1, keepdims=True))
    return np.asarray(weight.T.reshape(-1, *shape), np.float32)


def half_whitened(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, R) principal components of the rows of `values` (P, N), each over the root of its sd; mean square length one."""
    centred = values - values.mean(axis=0)
    variance, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    keep = variance > 1e-12 * max(variance.max(), 1e-30)
    if not keep.any():
        return np.zeros((len(values), 1))
    scores = centred @ axes[:, keep][:, ::-1] / variance[keep][::-1] ** 0.25
    return np.asarray(scores / np.sqrt((scores**2).sum(axis=1).mean()))


def _completed(layers: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, P) with gaps filled: the layer's mean plus the pixel's standardised anomaly over the layers where it is seen."""
    there = np.isfinite(layers)
    if not there.any():
        raise JobError("no finite value in the stack that classes are to be found in: give at least one clear fine look")
    layers, there = layers[there.any(axis=1)], there[there.any(axis=1)]
    seen = np.maximum(there.sum(axis=1, keepdims=True), 1)
    mean = np.where(there, layers, 0.0).sum(axis=1, keepdims=True) / seen
    sd = np.sqrt(np.where(there, (layers - mean) ** 2, 0.0).sum(axis=1, keepdims=True) / seen)
    anomaly = np.where(there, (layers - mean) / np.maximum(sd, 1e-9), 0.0)
    typical = anomaly.sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return np.asarray(np.where(there, layers, mean + sd * typical))


def _squares(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, C) squared distances between the rows of a and b."""
    return np.asarray(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0))
