"""The discrepancy of a coarse sensor by moments: which cells err most, which bands together, how much of it lasts, and for how long.

What a look gets wrong anew in one cell it gets wrong in others of the same land cover: view and sun, and what a composite misses of a
change, go with the ground (`by_class`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIXED = 60.0
"""values that the belief in independent bands is worth"""
WHOLE = 0.98
"""bands are combined where this share of the seen cells has all of them"""
PRIOR_LOOKS = 2.0
"""the stated facts weigh as much as two looks"""
PRIOR_VALUES = 6.0
"""... and the stated discrepancy as six values of cells"""
TINY = 1e-12
"""least variance, reflectance squared"""

TOGETHER = 0.6
"""of the variance of what a look gets wrong anew, what classes get wrong together (fusion/DESIGN.md)"""
PATTERNS = 8
"""patterns that stand for all classes, about nine tenths of what these do to cells (fusion/DESIGN.md)"""

SHARES = (0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.98)
"""tried shares of the error variance that go with the variety of the ground"""

Array = NDArray[np.float64]


def uneven(share: float, variety: Array) -> Array:
    """(H, W) variance of each cell's error in units of the average: what is displaced or blurred errs where the ground varies.

    variety: (B, H, W) variance of the ground within a cell, each band in units of its average.
    """
    return np.asarray(1 - share + share * variety.mean(axis=0))


def by_class(seen: NDArray[np.floating]) -> tuple[Array, Array]:
    """((J, H, W) patterns phi, (J, C) their directions among the classes, orthonormal) of what classes get wrong together.

    seen: (C, H, W) of each class in a cell, 0 in cells that are not there. Where a class errs by g_c ~ N(0, 1), a cell errs by
    sum_c g_c (seen_c - mean), as what all cells have in common is the look's offset. The leading principal components of that are phi_j ~
    sum_c loading_jc (seen_c - mean), scaled so that the sum of their squares is TOGETHER on average. All 0 where cells are alike.
    """
    count, *shape = seen.shape
    flat = seen.reshape(count, -1).astype(np.float64)
    there = flat.sum(axis=0) > 1e-6
    flat = np.where(there, flat - flat.sum(axis=1, keepdims=True) / max(int(there.sum()), 1), 0.0)
    left, size, right = np.linalg.svd(flat, full_matrices=False)
    kept = min(PATTERNS, len(size))
    phi, loadings = np.zeros((PATTERNS, flat.shape[1])), np.zeros((PATTERNS, count))
    power = float((size[:kept] ** 2).sum())
    if power > 1e-6 * there.sum():
        unit = np.sqrt(TOGETHER * there.sum() / power)
        phi[:kept], loadings[:kept] = unit * size[:kept, None] * right[:kept], left.T[:kept]
    return phi.reshape(PATTERNS, *shape), loadings


def share_of_variety(residual: Array, use: Array, variety: Array) -> float:
    """The share with the largest profile likelihood of Gaussian errors, each band with its own variance.  residual: (n, B, H, W)."""
    values = np.maximum(use.sum(axis=(0, 2, 3)), 1)

    def misfit(share: float) -> float:
        scale = uneven(share, variety)
        squares = (centred(residual, use / scale)[0] ** 2 * (use / scale)).sum(axis=(0, 2, 3)) / values
        return float((values * np.log(np.maximum(squares, 1e-12))).sum() + (use * np.log(scale)).sum())

    return min(SHARES, key=misfit)


def centred(residual: Array, weight: Array) -> tuple[Array, Array]:
    """(residual without each look's weighted mean, 0 where the weight is 0; the means (n, B))."""
    level = (residual * weight).sum(axis=(2, 3)) / np.maximum(weight.sum(axis=(2, 3)), 1e-12)
    return np.where(weight > 0, residual - level[:, :, None, None], 0.0), level


def rotation(residual: Array, use: Array, scale: Array, least: int) -> Array:
    """(B, B) rows: eigenvectors of the covariance of the bands' errors, signs fixed; the identity where bands miss apart.

    residual: (n, B, H, W), 0 where `use` is 0. scale: (H, W) relative variance of each cell. least: cells that are needed.
    """
    bands = residual.shape[1]
    whole = use.min(axis=1, keepdims=True)
    if bands == 1 or whole.sum() < WHOLE * use.sum() / bands or whole.sum() < least:
        return np.eye(bands)
    off = centred(residual, np.broadcast_to(whole / scale, residual.shape))[0] / np.sqrt(scale)
    product = np.einsum("nbhw,nchw->bc", off, off)
    size = 0.25 * float(whole.sum())  # neighbours overlap
    shrunk = (0.25 * product + MIXED * np.diag(np.diag(product)) / float(whole.sum())) / (size + MIXED)
    vectors = np.linalg.eigh(shrunk)[1].T
    return np.asarray(vectors * np.sign(vectors[np.arange(bands), np.abs(vectors).argmax(axis=1)])[:, None])


def errors(
    residual: Array, use: Array, scale: Array, days: Array, pictures: NDArray[np.integer], stated: Array, stated_discrepancy: Array, length: float
) -> tuple[Array, Array, Array, Array, float]:
    """(bias, offset sd, discrepancy variance, its lasting part, each (B,), and the days that it lasts).

    residual: (n, B, H, W). scale: (H, W) relative variance of each cell. days, pictures: (n,), which picture each look is compared with: those
    of one have its own offset in common, and count as one look. stated: (B,) variance of the offsets, and of the discrepancy, which counts as
    PRIOR_VALUES values, by logarithms, as some pseudo-bands err a tenth of it. length: stated days.
    """
    off, level = centred(residual, use / scale)
    seen = (use.sum(axis=(2, 3)) > 0).astype(float)
    looks = seen.sum(axis=0)
    own = seen / np.maximum((pictures[:, None] == pictures) @ seen, 1)
    bias = (level * own).sum(axis=0) / (own.sum(axis=0) + 0.25)
    scatter = ((level - bias) ** 2 * own).sum(axis=0)
    offset = np.sqrt((PRIOR_LOOKS * stated + scatter) / (PRIOR_LOOKS + own.sum(axis=0)))
    off = off / np.sqrt(scale)
    free = np.maximum(use.sum(axis=(0, 2, 3)) - looks, 0)
    found = np.maximum((off**2).sum(axis=(0, 2, 3)) / np.maximum(free, 1), TINY)
    belief = PRIOR_VALUES / (PRIOR_VALUES + free)
    total = stated_discrepancy**belief * found ** (1 - belief)
    lasting, lag = _persistence(off, use, days, total, length)
    return bias, offset, total, lasting, lag


def _persistence(residual: Array, use: Array, days: Array, total: Array, stated: float) -> tuple[Array, float]:
    """((B,) lasting variance, days): correlation of residuals at each lag, c = share exp(-lag / days), fitted over all bands."""
    lags, products, weights = [], [], []
    for i in range(len(days)):
        for j in range(i + 1, len(days)):
            both = use[i] * use[j]
            number = both.sum(axis=(1, 2))
            if number.min() > 0:
                lags.append(abs(days[j] - days[i]))
                products.append((residual[i] * residual[j] * both).sum(axis=(1, 2)) / number)
                weights.append(number.mean())
    if not lags or not (total > 0).all():
        return 0.5 * total, stated
    lag, product, weight = np.array(lags), np.array(products), np.array(weights)
    common = (product / total).mean(axis=1)
    tried = stated * 2.0 ** np.arange(-2, 4)
    # least squares of the common correlation; the share is linear, its prior 1/2 counts as one pair of looks
    shares = [np.clip(_share(common, weight, np.exp(-lag / d)), 0.0, 0.98) for d in tried]
    misfit = [float((weight * (common - s * np.exp(-lag / d)) ** 2).sum()) for s, d in zip(shares, tried, strict=True)]
    best = int(np.argmin(np.array(misfit) + 0.01 * weight.mean() * np.log(tried / stated) ** 2))
    shape = np.exp(-lag / tried[best])
    own = np.array([_share(product[:, b] / total[b], weight, shape, shares[best], 4.0) for b in range(len(total))])
    return np.clip(own, 0.0, 0.98) * total, float(tried[best])


def _share(value: Array, weight: Array, shape: Array, prior: float = 0.5, strength: float = 1.0) -> float:
    """Weighted least squares of value = share * shape, shrunk to a prior."""
    anchor = strength * weight.mean() * 0.1
    return float(((weight * shape * value).sum() + anchor * prior) / ((weight * shape**2).sum() + anchor))


def lasting_offset(lasting: Array, white: Array, length: float, days: Sequence[float]) -> float:
    """Factor on the offsets' sd, which the engine takes as independent: what lasts on the cells lasts on their mean, and n looks
    of one epoch tell no more of it than one. Root of the mean row sum of the looks' correlation.

    lasting, white: (B,) sd of the two parts of the discrepancy. length: days that the first lasts. days: of the looks.
    """
    lag = np.abs(np.subtract.outer(days, days))
    share = float((lasting**2).sum() / max(float((lasting**2 + white**2).sum()), 1e-12))
    return float(np.sqrt((share * np.exp(-lag / length) + (1 - share) * np.eye(len(lag))).sum(axis=1).mean()))
