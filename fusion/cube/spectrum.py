"""WHICH COLOUR: spectral responses and the low-rank spectral basis of the latent field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import JobError

NODES = np.arange(400.0, 2501.0, 10.0)
"""(L,) latent wavelength nodes, nm: linear interpolation between 10 nm nodes adds at most .0016 to any band."""


@dataclass(frozen=True, eq=False)
class Response:
    """A relative spectral response; only its shape matters (bands are normalised to unit area)."""

    wavelengths: NDArray[np.float64]
    """(N,) nm, increasing"""
    values: NDArray[np.float64]
    """(N,) >= 0"""

    @classmethod
    def gaussian(cls, centre: float, fwhm: float) -> Response:
        """A Gaussian channel.  centre, fwhm: nm."""
        sd = fwhm / 2.354820045
        offsets = np.linspace(-3.5, 3.5, 57) * sd
        return cls(centre + offsets, np.exp(-0.5 * (offsets / sd) ** 2))

    @property
    def centroid(self) -> float:
        """Response-weighted mean wavelength, nm."""
        return float(np.trapezoid(self.values * self.wavelengths, self.wavelengths) / np.trapezoid(self.values, self.wavelengths))

    def on(self, nodes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(L,) weights h with band = sum_l h_l r(lambda_l): exact integral of response x piecewise-linear spectrum; sums to 1."""
        fine = np.union1d(np.arange(np.floor(self.wavelengths[0]), np.ceil(self.wavelengths[-1]) + 0.5, 0.5), self.wavelengths)
        weight = np.interp(fine, self.wavelengths, self.values, left=0.0, right=0.0)
        width = np.gradient(fine)
        clipped = np.clip(fine, nodes[0], nodes[-1])
        left = np.clip(np.searchsorted(nodes, clipped, side="right") - 1, 0, nodes.size - 2)
        share = (clipped - nodes[left]) / (nodes[left + 1] - nodes[left])
        out = np.zeros(nodes.size)
        np.add.at(out, left, weight * width * (1 - share))
        np.add.at(out, left + 1, weight * width * share)
        total = out.sum()
        if not total > 0:
            raise JobError(f"a response around {self.wavelengths.mean():.0f} nm has no area: give wavelengths in nm")
        return out / total


@dataclass(frozen=True, eq=False)
class SpectralBasis:
    """r(lambda) = mean(lambda) + sum_k components(lambda, k) z_k + residual, z ~ N(0, prior), residual ~ N(0, residual_var)."""

    wavelengths: NDArray[np.float64]
    """(L,) nm"""
    mean: NDArray[np.float64]
    """(L,) reflectance"""
    components: NDArray[np.float64]
    """(L, K)"""
    prior: NDArray[np.float64]
    """(K, K) covariance of z over the spectra of the world"""
    residual_var: NDArray[np.float64]
    """(L,) out-of-subspace variance, reflectance squared"""
    source: str = "user"

    @property
    def rank(self) -> int:
        """K."""
        return int(self.components.shape[1])

    def responses(self, responses: tuple[Response, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(H (B, K), mean (B,), residual variance (B,)) of bands with these responses: band = mean + H z + N(0, var)."""
        weights = np.stack([r.on(self.wavelengths) for r in responses])
        return weights @ self.components, weights @ self.mean, weights**2 @ self.residual_var

    def to_attrs(self) -> dict[str, Any]:
        """JSON-ready attributes; floats round-trip exactly."""
        return {
            **{name: getattr(self, name).tolist() for name in ("wavelengths", "mean", "components", "prior", "residual_var")},
            "source": self.source,
        }

    @classmethod
    def from_attrs(cls, attrs: dict[str, Any]) -> SpectralBasis:
        """The inverse of `to_attrs`."""
        arrays = {name: np.array(attrs[name], dtype=np.float64) for name in ("wavelengths", "mean", "components", "prior", "residual_var")}
        return cls(**arrays, source=attrs["source"])
