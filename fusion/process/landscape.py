"""What the fine images say of the ground's arrangement: soft land-cover classes and segments, no land-cover map needed.

A `Cover` is learned once, from whole images or from patches of them sampled all over an area, and turns any images of the same planes
into classes and segments, so that two windows that share a pixel see the same ground in it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from skimage.segmentation import watershed

from fusion.process import gaps, liveliness

Planes = NDArray[np.floating]
PARTS = 12
"""principal components that the landscape is read from"""
FADE = 0.5
"""squared distance over which memberships fade, in units of the median one between neighbouring centres: chosen on Coleambally and Salton"""
ALIKE = 30
"""differences of pixels of a class that count as much as the belief that it changes as much as the others"""
LIVELIEST, CALMEST = 4.0, 1 / 32
"""no class's and no pixel's variance is more than the one and less than the other, in units of the average"""


@dataclass(frozen=True, eq=False)
class Cover:
    """How N image planes become features, classes and segments."""

    mean: NDArray[np.float64]
    """(N,) of each plane, where it was seen"""
    loadings: NDArray[np.float64]
    """(F, N) features per plane, F <= PARTS; 0 for planes that count for nothing"""
    centres: NDArray[np.float64]
    """(C, F) of the classes among features; C = 0 or 1 where there is nothing to tell apart"""
    width: float
    """squared distance between features over which memberships fade"""
    slope: float
    """mean length of the features' gradient, per pixel"""
    factors: NDArray[np.float64]
    """(N, G) what each image shows of the ground's hidden factors, which fill its gaps (`gaps`); 0 for planes of a map and unseen ones"""
    rest: float
    """variance of an image that they leave"""
    lively: NDArray[np.float64]
    """(C or 1,) how much the pixels of a class change, as a variance in units of the average over the ground"""
    before: NDArray[np.int64]
    """(N,) the plane of the same band before it, -1 = none"""
    share: NDArray[np.float64]
    """(N,) 1 / bands of its sensor; 0 for planes of a land-cover map, which do not change"""
    weight: NDArray[np.float64]
    """(N,) share times what the change since the plane before tells of changes that nobody saw"""
    step: NDArray[np.float64]
    """(N,) mean over the ground of what changed since the plane before"""
    swing: NDArray[np.float64]
    """(N,) variance over the ground of it (`liveliness.usual`)"""

    @classmethod
    def learn(
        cls, patches: Planes, *, count: int = 64, seed: int = 0, before: NDArray[np.integer] | None = None, share: NDArray[np.floating] | None = None,
        weight: NDArray[np.floating] | None = None, change: Planes | None = None,
    ) -> Cover:
        """From patches (N, Q, h, w) of the planes, NaN = missing; Q = 1: a whole image.

        before, share, weight: (N,) as the cover has them, default no plane has one before it.  change: (Q, h, w) how much places change, any
        unit, for where no plane has one before it.

        Features are half-whitened principal components: each is divided by the root of its sd, so that weak contrasts count but noise
        does not. Classes are k-means centres of the features, their width half the median squared distance between neighbouring
        centres. Deterministic by seed.
        """
        planes, number, *shape = patches.shape
        since = np.full(planes, -1) if before is None else np.asarray(before, np.int64)
        parts = np.ones(planes) if share is None else np.asarray(share, np.float64)
        mean, factors, rest, loadings, found = _components(patches.reshape(planes, -1).astype(np.float64), parts, seed)
        steps = liveliness.differences(patches, since)
        usual = liveliness.usual(steps)
        told = parts if weight is None else np.asarray(weight, np.float64)
        bare = cls(mean, loadings, np.zeros((0, len(loadings))), 1.0, 1.0, factors, rest, np.ones(1), since, parts, told, *usual)
        found = found.reshape(-1, number, *shape)
        inner = _slope(found)[:, 1:-1, 1:-1] if number > 1 and min(shape) > 2 else _slope(found)
        centres, width = _centres(found.reshape(len(found), -1).T, count, seed)
        alike = replace(bare, centres=centres, width=width, slope=max(float(inner.mean()), 1e-12))
        kinds = alike.classes(found, max(len(centres), 1))
        own, number = liveliness.change(steps, *usual, told)
        if number.any():
            return replace(alike, lively=_lively(kinds, own, number))
        return alike if change is None else replace(alike, lively=_lively(kinds, change, np.isfinite(change).astype(np.float64)))

    def part(self, planes: list[int]) -> Cover:
        """The same for some of the planes, in this order."""
        place = {plane: i for i, plane in enumerate(planes)}
        some = {name: getattr(self, name)[planes] for name in ("mean", "factors", "share", "weight", "step", "swing")}
        before = np.array([place.get(int(self.before[plane]), -1) for plane in planes], np.int64)
        return replace(self, loadings=self.loadings[:, planes], before=before, **some)

    def features(self, stack: Planes) -> NDArray[np.float64]:
        """(F, Y, X) of a stack (N, Y, X) of the planes, NaN = missing.

        What an image did not see of a pixel is filled with what the others that saw it say; where none did, and in a map, with the plane's mean.
        """
        count, *shape = stack.shape
        used = np.abs(self.loadings).max(0) > 0
        if not used.any():
            return np.zeros((1, *shape))
        flat = stack.reshape(count, -1)[used].astype(np.float64)
        seen = np.isfinite(flat)
        flat = gaps.filled(np.where(seen, flat - self.mean[used][:, None], 0.0), seen, self.factors[used], self.rest)
        return (self.loadings[:, used] @ flat).reshape(-1, *shape)

    def classes(self, found: NDArray[np.float64], count: int = 64) -> NDArray[np.float32]:
        """(C, Y, X) soft memberships of features, sum of squares 1 at every pixel: Gaussians around the centres; classes beyond them are zero."""
        points = found.reshape(len(found), -1).T
        out = np.zeros((count, points.shape[0]), dtype=np.float32)
        if len(self.centres) < 2:
            out[0] = 1.0
            return out.reshape(count, *found.shape[1:])
        squared = (points**2).sum(1)[None] + (self.centres**2).sum(1)[:, None] - 2 * self.centres @ points.T
        weight = np.exp(-0.5 * (squared - squared.min(0)) / self.width)
        out[: len(self.centres)] = weight / np.sqrt((weight**2).sum(0))
        return out.reshape(count, *found.shape[1:])

    def liveliness(self, classes: Planes, stack: Planes) -> NDArray[np.float32]:
        """(Y, X) root of how much each pixel changes, as a variance in units of the average over the ground.

        classes: (C, Y, X) memberships. stack: (N, Y, X) of the planes.
        """
        group = np.tensordot(self.lively, classes[: len(self.lively)].astype(np.float64) ** 2, 1)
        own = liveliness.change(liveliness.differences(stack, self.before), self.step, self.swing, self.weight)
        return np.sqrt(np.clip(liveliness.shrunk(*own, group), CALMEST, LIVELIEST)).astype(np.float32)

    def segments(self, found: NDArray[np.float64], size: int = 8, origin: tuple[int, int] = (0, 0)) -> NDArray[np.int32]:
        """(Y, X) labels of compact segments of about size x size pixels whose borders follow the edges of the features.

        A compact watershed (Neubert & Protzel 2014) of the gradient, flooded from a lattice fixed in the GLOBAL grid, so that
        overlapping tiles find nearly the same segments.  origin: global (row, column) of the first pixel.
        """
        slope = _slope(found[:, None])[0] / self.slope
        rows, cols = (np.arange(n) + o for n, o in zip(slope.shape, origin, strict=True))
        seed = ((rows % size) == size // 2)[:, None] & ((cols % size) == size // 2)[None, :]
        if not seed.any():
            return np.zeros(slope.shape, np.int32)
        markers = np.zeros(slope.shape, np.int32)
        markers[seed] = 1 + np.arange(int(seed.sum()))
        return np.asarray(watershed(slope, markers, compactness=1.0 / size) - 1, dtype=np.int32)


def _components(flat: NDArray[np.float64], share: NDArray[np.float64], seed: int) -> tuple[Any, Any, float, Any, Any]:
    """(mean, factors, rest, loadings) as `Cover` has them, and the features (F, P) of values (N, P), NaN = missing.  share: (N,)."""
    seen = np.isfinite(flat)
    flat = np.where(seen, flat, 0.0)
    mean, factors, rest = flat.sum(1) / np.maximum(seen.sum(1), 1), np.zeros((len(flat), 0)), 1.0
    keep = seen.mean(1) > 0.05
    looks = keep & (share > 0)
    if looks.any():
        mean[looks], shown, rest = gaps.learn(flat[looks], seen[looks], seed)
        factors = np.zeros((len(flat), shown.shape[1]))
        factors[looks] = shown
    flat = np.where(seen, flat - mean[:, None], 0.0)
    if not (keep.any() and (np.abs(flat[keep]) > 1e-6).any()):
        return mean, factors, rest, np.zeros((1, len(flat))), np.zeros((1, flat.shape[1]))
    flat = gaps.filled(flat, seen, factors, rest)[keep]
    size = _sizes(flat, share[keep])
    values, vectors = np.linalg.eigh(size[:, None] * (flat @ flat.T) * size / flat.shape[1])
    order = np.argsort(values)[::-1][:PARTS]
    order = order[values[order] > 1e-6 * values.max()]
    loadings = np.zeros((len(order), len(seen)))
    loadings[:, keep] = vectors[:, order].T / values[order][:, None] ** 0.25 * size
    return mean, factors, rest, loadings, loadings[:, keep] @ flat


def _sizes(flat: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) factors by which the planes of a map vary together as much as one look on average; 1 for looks, and where there are none.

    flat: (N, P) deviations from each plane's mean. share: (N,) as of `Cover`.
    """
    power, looks = (flat**2).mean(1), share.sum()
    drawn = share == 0
    usual, own = power[~drawn].sum() / max(looks, 1e-12), power[drawn].sum()
    return np.where(drawn & (own > 0) & (usual > 0), np.sqrt(usual / max(own, 1e-30)), 1.0)


def _lively(classes: Planes, change: Planes, number: Planes) -> NDArray[np.float64]:
    """(C,) weighted mean change of each class, shrunk to the average, so that the average over the ground is 1.

    classes: (C, ...) memberships. change: (...) mean square change of each pixel, any unit, of `number` (...) differences, 0 = unknown.
    """
    share, told = classes.reshape(len(classes), -1).astype(np.float64) ** 2, number.ravel()
    value = np.where(told > 0, change.ravel(), 0.0)
    average = (told @ value) / max(told.sum(), 1e-12)
    if not average > 0:
        return np.ones(len(classes))
    found = (share @ (told * value) / average + ALIKE) / (share @ told + ALIKE)
    found = np.clip(found, CALMEST, LIVELIEST)
    return np.asarray(found / (found @ share).mean())


def _slope(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q, h, w) length of the gradient of features (F, Q, h, w)."""
    if min(found.shape[2:]) < 2:
        return np.zeros(found.shape[1:])
    return np.asarray(np.sqrt(sum(g**2 for f in found for g in np.gradient(f, axis=(1, 2)))))


def _centres(points: NDArray[np.float64], count: int, seed: int) -> tuple[NDArray[np.float64], float]:
    """((C, F) k-means centres of points (P, F) in a fixed order, the squared distance over which memberships fade)."""
    rng = np.random.default_rng(seed)
    wanted = min(count, len(np.unique(points.round(9), axis=0)))
    if wanted < 2:
        return np.zeros((0, points.shape[1])), 1.0
    sample = points[rng.choice(len(points), min(len(points), 4096), replace=False)]
    start = sample[rng.choice(len(sample), min(wanted, len(sample)), replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a centre that loses all its points stays where it was, which does no harm
        centres, _ = kmeans2(sample, start, iter=12, minit="matrix", missing="warn") if len(start) > 1 else (start, None)
    centres = centres[np.lexsort(centres.T[::-1])]
    apart = ((centres[:, None] - centres[None]) ** 2).sum(-1)
    return centres, max(FADE * float(np.median(np.sort(apart, axis=1)[:, 1])), 1e-12)


def soft_classes(stack: Planes, *, count: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """(C, Y, X) the memberships of a stack (N, Y, X) by what is learned from itself; C = count."""
    cover = Cover.learn(stack[:, None], count=count, seed=seed)
    return cover.classes(cover.features(stack), count)
