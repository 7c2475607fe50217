"""What the fine images say of the ground's arrangement: soft land-cover classes and segments, no land-cover map needed."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from skimage.segmentation import watershed

Planes = NDArray[np.floating]
PARTS = 8
"""principal components that the landscape is read from"""


def features(stack: Planes) -> NDArray[np.float64]:
    """(F, Y, X) half-whitened principal components of a stack of images, F <= PARTS.

    stack: (N, Y, X) reflectance of every look and band, NaN = missing (taken as the image's mean; components of pixels that few
    images saw are scaled up to what they would be). Each component is divided by the root of its sd, so that weak
    contrasts count but noise does not.
    """
    count, *shape = stack.shape
    flat = stack.reshape(count, -1).astype(np.float64)
    seen = np.isfinite(flat)
    total = np.maximum(seen.sum(1), 1)
    flat = np.where(seen, flat, 0.0)
    flat = np.where(seen, flat - (flat.sum(1) / total)[:, None], 0.0)
    keep = seen.mean(1) > 0.05
    if not keep.any() or not (np.abs(flat[keep]) > 1e-6).any():
        return np.zeros((1, *shape))
    flat, seen = flat[keep], seen[keep]
    flat = flat / np.maximum(seen.mean(0), 0.2)
    values, vectors = np.linalg.eigh(flat @ flat.T / flat.shape[1])
    order = np.argsort(values)[::-1][:PARTS]
    order = order[values[order] > 1e-6 * values.max()]
    scores = vectors[:, order].T @ flat
    return (scores / values[order][:, None] ** 0.25).reshape(-1, *shape)


def soft_classes(stack: Planes, *, count: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """(C, Y, X) soft memberships, sum of squares 1 at every pixel: Gaussians around k-means centres of the `features`.

    Their width is the median distance between neighbouring centres. Deterministic by seed.  C = count, classes without a pixel are zero.
    """
    found = features(stack)
    shape = found.shape[1:]
    points = found.reshape(len(found), -1).T
    out = np.zeros((count, points.shape[0]), dtype=np.float32)
    rng = np.random.default_rng(seed)
    unique = np.unique(points.round(9), axis=0)
    wanted = min(count, len(unique))
    if wanted < 2:
        out[0] = 1.0
        return out.reshape(count, *shape)
    sample = points[rng.choice(len(points), min(len(points), 4096), replace=False)]
    start = sample[rng.choice(len(sample), min(wanted, len(sample)), replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a centre that loses all its points stays where it was, which does no harm
        centres, _ = kmeans2(sample, start, iter=12, minit="matrix", missing="warn") if len(start) > 1 else (start, None)
    centres = centres[np.lexsort(centres.T[::-1])]
    apart = ((centres[:, None] - centres[None]) ** 2).sum(-1)
    width = max(float(np.median(np.sort(apart, axis=1)[:, 1])), 1e-12)
    squared = ((points**2).sum(1)[None] + (centres**2).sum(1)[:, None] - 2 * centres @ points.T) / width
    weight = np.exp(-0.5 * (squared - squared.min(0)))
    out[: len(centres)] = weight / np.sqrt((weight**2).sum(0))
    return out.reshape(count, *shape)


def segments(stack: Planes, size: int = 8, origin: tuple[int, int] = (0, 0)) -> NDArray[np.int32]:
    """(Y, X) labels of compact segments of about size x size pixels whose borders follow the edges of the images.

    A compact watershed (Neubert & Protzel 2014) of the gradient, flooded from a lattice fixed in the GLOBAL grid, so that
    overlapping tiles find nearly the same segments.  origin: global (row, column) of the first pixel.
    """
    found = features(stack)
    slope = np.sqrt(sum(g**2 for f in found for g in np.gradient(f))) if min(found.shape[1:]) > 1 else np.zeros(found.shape[1:])
    slope = slope / max(float(slope.mean()), 1e-12)
    rows, cols = (np.arange(n) + o for n, o in zip(slope.shape, origin, strict=True))
    seed = ((rows % size) == size // 2)[:, None] & ((cols % size) == size // 2)[None, :]
    if not seed.any():
        return np.zeros(slope.shape, np.int32)
    markers = np.zeros(slope.shape, np.int32)
    markers[seed] = 1 + np.arange(int(seed.sum()))
    return np.asarray(watershed(slope, markers, compactness=1.0 / size) - 1, dtype=np.int32)
