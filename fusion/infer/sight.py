"""How the finest sensor sees the ground, and what its images say of how much the ground varies.

The spectral library says how the spectra of the world differ. One place holds less, or other, variety: a valley of fields may have a third of the
library's spread in one component and all of it in another, and components that the world's spectra have apart go together here. The
covariance of z that the hierarchy starts from is therefore the library's, moved along every direction towards what the fine images show, and
what they change, if they contradict it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.process.hierarchy import Hyper, canonical_mixing

Array = NDArray[np.float64]
PIXELS = 1000
"""clear pixels, alike as neighbours are, that count as much as the library's word"""
LEAST = 0.01
"""of the library's variance: no component vanishes"""
UNSEEN = 0.01
"""|a_k|^2 below which a component is one that no image shows"""
WITHIN = 2.0
"""what varies and changes over the dates and the ground that were seen says this much, as a factor of its variance, of what it may yet do"""
DOUBT = 2.0
"""times its stated sd a sensor's noise may have"""


@dataclass(frozen=True, eq=False)
class Spread:
    """How much what a sensor sees varies over the ground, and how much it was expected to."""

    pixels: int
    square: Array
    """(B, B) mean over them of y y^T, y without its expectation"""
    noise: Array
    """(B,) mean over them of the noise variance that is in it"""
    expected: float
    """variance of every x_k in it under the prior medians"""

    def root(self, sharp: Array, columns: Array) -> Array:
        """(K, K) R: the canonical components' covariance R R^T that nothing contradicts, the identity if their own does not.

        sharp: (B,) one over the noise sd. columns: (B, K) a = diag(sharp) H M.

        u_k = a_k^T y / |a_k|^2 is x_k with noise 1 / |a_k|^2, since the columns are orthogonal. So along every direction the variance of x is at most
        that of u, and at least that less the noise at DOUBT times its stated sd. Along the eigenvectors of the first it is cut to WITHIN times
        it, then along those of the second raised to one over WITHIN of it, by as much as the pixels count against PIXELS. Components that
        are not seen stay as they are.
        """
        strength = (columns**2).sum(0)
        seen = strength > UNSEEN
        unit = np.where(seen, sharp[:, None] * columns / np.maximum(strength, UNSEEN), 0.0)
        found, noise = (unit.T @ of @ unit / self.expected for of in (self.square, np.diag(self.noise)))
        power = 0.5 * self.pixels / (self.pixels + PIXELS)
        most, turn = np.linalg.eigh(found + np.diag(~seen))
        cut = turn * np.minimum(np.maximum(most, LEAST) * WITHIN, 1.0) ** power
        back = np.linalg.inv(cut)
        least, turn = np.linalg.eigh(back @ (found - DOUBT**2 * noise) @ back.T)
        return np.asarray(cut @ turn * np.maximum(least / WITHIN, 1.0) ** power)


@dataclass(frozen=True, eq=False)
class Sight:
    """How one sensor sees one tile."""

    looks: int
    """its fine looks; 0 of a coarse sensor"""
    sharp: Array
    """(B,) one over its noise sd"""
    colour: Array
    """(B, K) H"""
    pixels: int
    """clear pixels in its fine looks"""
    square: Array
    """(B, B) mean over them of y y^T, y the data without the spectral mean"""
    noise: Array
    """(B,) mean over them of the noise variance that is in it"""
    bands: tuple[str, ...] = ()
    """names of the rows of H; () in what an earlier version kept: nothing is known of its changes then"""

    @property
    def spread(self) -> Spread:
        """What its images show of the ground."""
        return Spread(self.pixels, self.square, self.noise, float((np.asarray(Hyper.default(1, ()).sd, np.float64) ** 2).sum()))

    @classmethod
    def of(cls, looks: Sequence[Any]) -> Sight:
        """Of a tile's looks of one sensor; those that see other bands than the first (pseudo-bands of another flight) only count."""
        first, fine = looks[0], [o for o in looks if not o.layer.footprint.coarse]
        colour = np.asarray(first.layer.colour, np.float64)
        alike = [o for o in fine if np.array_equal(o.layer.colour, colour)]
        return cls(len(fine), sharpness(first), colour, *_squares(alike, len(colour)), tuple(str(band) for band in first.bands))

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> Sight:
        """From plain numbers and lists by field."""
        arrays = {name: np.asarray(value, np.float64) for name, value in attrs.items() if isinstance(value, list) and name != "bands"}
        return cls(**{**attrs, **arrays, "bands": tuple(attrs.get("bands", ()))})


def sharpness(obs: Any) -> Array:
    """(B,) one over the median noise sd: canonical components are those that the sensor tells apart independently."""
    seen = np.asarray(obs.precision) > 0
    noise = 1 / np.where(seen, obs.precision, 1.0) + np.asarray(obs.residual_var)[:, None, None]
    return np.array([1 / np.sqrt(max(float(np.median(n[s])), 1e-8)) if s.any() else 0.0 for n, s in zip(noise, seen, strict=True)])


def regression(prior: Array, colour: Array, noise: NDArray[np.floating]) -> Array:
    """(K, B) from a look's bands to the mean of z: prior H^T (H prior H^T + diag(noise))^-1.  colour: H (B, K). noise: (B,) variance."""
    return np.asarray(prior @ colour.T @ np.linalg.inv(colour @ prior @ colour.T + np.diag(noise)))


def _squares(looks: Sequence[Any], bands: int) -> tuple[int, Array, Array]:
    """(clear pixels, (B, B) mean of y y^T over them, (B,) mean noise variance) of looks of one colour."""
    count, total, noise = 0, np.zeros((bands, bands)), np.zeros(bands)
    for obs in looks:
        precision, data = np.asarray(obs.precision, np.float64), np.asarray(obs.data, np.float64)
        clear = ((precision > 0) & np.isfinite(data) & np.isfinite(precision)).all(axis=0)
        total += data[:, clear] @ data[:, clear].T
        noise += (1.0 / precision[:, clear]).sum(1) + clear.sum() * np.asarray(obs.residual_var)
        count += int(clear.sum())
    return count, total / max(count, 1), noise / max(count, 1)


def finest(tiles: Sequence[Mapping[str, Sight]]) -> tuple[str, Sight] | None:
    """(name, sight) of the sensor with most fine looks, over all tiles that see the same bands with it; None without any sight.

    tiles: the sights of each, by sensor.
    """
    sights: dict[str, list[Sight]] = {}
    for tile in tiles:
        for name, sight in tile.items():
            sights.setdefault(name, []).append(sight)
    if not sights:
        return None
    best = max(sorted(sights), key=lambda name: sum(one.looks for one in sights[name]))
    first = sights[best][0]
    alike = [one for one in sights[best] if one.colour.shape == first.colour.shape and np.allclose(one.colour, first.colour)]
    pixels = np.array([one.pixels for one in alike])
    weight = pixels / max(pixels.sum(), 1)
    square, noise = np.tensordot(weight, [one.square for one in alike], 1), weight @ np.array([one.noise for one in alike])
    sharp = np.median([one.sharp for one in alike], axis=0)
    return best, Sight(sum(one.looks for one in alike), sharp, first.colour, int(pixels.sum()), square, noise, first.bands)


def adapted(library: Array, sight: Sight | None, change: Spread | None = None) -> tuple[Array, Array]:
    """(H (B, K) of the finest sensor in units of its noise, (K, K) the covariance of z on this ground).

    library: (K, K). sight: of the finest sensor; None: the identity and the library's covariance. change: of its images from one to the next.

    The covariance is moved to where it contradicts neither what the images show nor, then, what they change: between looks it is the change
    that is foretold, and ground that varies much may change little. What the sensor does not tell apart stays as the library has it.
    """
    if sight is None:
        return np.eye(len(library)), library
    colour, prior = sight.sharp[:, None] * sight.colour, library
    for shown in (sight.spread, change):
        if shown is not None:
            mixing = canonical_mixing(prior, colour).astype(np.float64)
            root = mixing @ shown.root(sight.sharp, colour @ mixing)
            prior = root @ root.T
    return colour, prior
