"""WHICH COLOUR: spectral responses and the low-rank spectral basis of the latent field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import JobError

Array = NDArray[np.float64]

NODES: Array = np.arange(400.0, 2501.0, 10.0)
"""(L,) latent wavelength nodes, nm: linear interpolation between 10 nm nodes adds at most .0016 to any band."""
NODES.setflags(write=False)

DROPPED = ((1325.0, 1465.0), (1770.0, 1975.0))
"""nm; water vapour is opaque here and no surface reflectance can be retrieved from air or space"""
SHOULDERS = ((900.0, 1000.0), (1100.0, 1180.0), (1260.0, 1325.0), (1465.0, 1500.0), (1975.0, 2080.0))
"""nm; retrievals here carry errors of water vapour, oxygen and carbon dioxide: their noise is inflated"""


def within(wavelengths: Array, windows: Sequence[tuple[float, float]]) -> NDArray[np.bool_]:
    """(L,) True where a wavelength lies inside one of the windows, nm."""
    return np.any([(wavelengths >= low) & (wavelengths <= high) for low, high in windows], axis=0)


@dataclass(frozen=True, eq=False)
class Response:
    """A relative spectral response, linear between its samples; only its shape matters (bands have unit area)."""

    wavelengths: Array
    """(N,) nm, increasing"""
    values: Array
    """(N,) >= 0"""

    def __post_init__(self) -> None:
        wavelengths, values = (np.asarray(a, dtype=np.float64) for a in (self.wavelengths, self.values))
        if wavelengths.ndim != 1 or wavelengths.shape != values.shape or wavelengths.size < 2:
            raise JobError(f"a response needs two equally long lists of at least 2, got {wavelengths.shape} and {values.shape}")
        if not (np.isfinite(wavelengths).all() and (np.diff(wavelengths) > 0).all()):
            raise JobError("the wavelengths of a response must increase strictly: sort them and drop repeats")
        if not np.isfinite(values).all() or not np.trapezoid(values, wavelengths) > 0:
            raise JobError(f"a response around {wavelengths.mean():.4g} nm has no area, or values that are not finite")
        if wavelengths[-1] < 100:
            raise JobError(f"a response ends at {wavelengths[-1]:.4g} nm: the wavelengths look like micrometres, multiply them by 1000")
        object.__setattr__(self, "wavelengths", wavelengths)
        object.__setattr__(self, "values", values)

    @classmethod
    def gaussian(cls, centre: float, fwhm: float) -> Response:
        """A Gaussian channel, cut at 3.5 standard deviations.  centre, fwhm: nm."""
        if not (np.isfinite(centre) and np.isfinite(fwhm) and fwhm > 0):
            raise JobError(f"a Gaussian channel at {centre} nm with full width {fwhm} nm: both must be finite, the width positive")
        sd = fwhm / 2.354820045
        offsets = np.linspace(-3.5, 3.5, 57) * sd
        return cls(centre + offsets, np.exp(-0.5 * (offsets / sd) ** 2))

    @property
    def centroid(self) -> float:
        """Response-weighted mean wavelength, nm."""
        return float(np.trapezoid(self.values * self.wavelengths, self.wavelengths) / np.trapezoid(self.values, self.wavelengths))

    def on(self, nodes: Array) -> Array:
        """(L,) weights h with band = sum_l h_l r(lambda_l); they sum to 1.

        The exact integral of response x spectrum over both piecewise-linear functions; beyond the first and last node
        the spectrum is constant. `inside` says how much of the response that concerns. JobError if it is all of it.
        """
        knots = np.union1d(self.wavelengths, nodes[(nodes > self.wavelengths[0]) & (nodes < self.wavelengths[-1])])
        value = np.interp(knots, self.wavelengths, self.values)
        if knots[0] >= nodes[-1] or knots[-1] <= nodes[0]:
            raise JobError(
                f"a response at {knots[0]:.0f}-{knots[-1]:.0f} nm lies outside the latent wavelengths "
                f"{nodes[0]:.0f}-{nodes[-1]:.0f} nm: drop this band"
            )
        place = np.interp(knots, nodes, np.arange(nodes.size, dtype=np.float64))
        left = np.minimum(np.floor(0.5 * (place[1:] + place[:-1])).astype(int), nodes.size - 2)
        near, far = place[:-1] - left, place[1:] - left  # share of the right-hand node at both ends of each interval
        a, b, width = value[:-1], value[1:], np.diff(knots)
        right = width / 6 * (2 * a * near + a * far + b * near + 2 * b * far)  # product of two linear functions, exactly
        total = width / 2 * (a + b)
        weights = np.bincount(left, total - right, nodes.size) + np.bincount(left + 1, right, nodes.size)
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    def inside(self, nodes: Array = NODES) -> float:
        """The fraction of the response's area that lies between the first and the last node."""
        knots = np.union1d(self.wavelengths, nodes[[0, -1]])
        value = np.interp(knots, self.wavelengths, self.values, left=0.0, right=0.0)
        pick = (knots >= nodes[0]) & (knots <= nodes[-1])
        return float(np.trapezoid(value[pick], knots[pick]) / np.trapezoid(self.values, self.wavelengths))


@dataclass(frozen=True, eq=False)
class SpectralBasis:
    """One Gaussian belief over all spectra of the world, low-rank plus diagonal.

    r(lambda) = mean(lambda) + sum_k components(lambda, k) z_k + residual(lambda),  z ~ N(0, prior),
    residual ~ N(0, diag(residual_var)). Between nodes a spectrum is linear in wavelength.
    """

    wavelengths: Array
    """(L,) nm, increasing"""
    mean: Array
    """(L,) reflectance"""
    components: Array
    """(L, K)"""
    prior: Array
    """(K, K) covariance of z over the spectra of the world"""
    residual_var: Array
    """(L,) out-of-subspace variance, reflectance squared"""
    source: str = "user"
    """where it was learned, for provenance"""
    offsets: Mapping[str, Array] = field(default_factory=dict)
    """scene id -> (L,) systematic error of that hyperspectral acquisition, reflectance: part of the data, never of the field"""
    discrete: bool = False
    """the nodes are bands, not samples of a spectrum: a response reads the one node nearest to its centroid"""

    def __post_init__(self) -> None:
        for name in ("wavelengths", "mean", "components", "prior", "residual_var"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "offsets", {str(k): np.asarray(v, dtype=np.float64) for k, v in self.offsets.items()})
        nodes = self.wavelengths.size
        rank = self.components.shape[-1]
        wanted = {"wavelengths": (nodes,), "mean": (nodes,), "components": (nodes, rank), "prior": (rank, rank), "residual_var": (nodes,)}
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape or not np.isfinite(getattr(self, name)).all():
                raise JobError(f"spectral basis: {name} has shape {getattr(self, name).shape}, must be {shape} and finite")
        if (np.diff(self.wavelengths) <= 0).any() or (self.residual_var < 0).any():
            raise JobError("spectral basis: wavelengths must increase and residual variances must not be negative")
        if not np.allclose(self.prior, self.prior.T, rtol=1e-8, atol=1e-12) or np.linalg.eigvalsh(self.prior)[0] <= 0:
            raise JobError("spectral basis: the prior covariance must be symmetric and positive definite")
        for name, offset in self.offsets.items():
            if offset.shape != (nodes,):
                raise JobError(f"spectral basis: the offset of scene {name!r} has shape {offset.shape}, must be {(nodes,)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpectralBasis) and self.to_attrs() == other.to_attrs()

    def __hash__(self) -> int:
        return hash((self.source, self.mean.tobytes(), self.components.tobytes(), self.prior.tobytes()))

    @property
    def rank(self) -> int:
        """K."""
        return int(self.components.shape[1])

    @property
    def covariance(self) -> Array:
        """(L, L) covariance of a spectrum before looking."""
        return np.asarray(self.components @ self.prior @ self.components.T + np.diag(self.residual_var))

    @classmethod
    def library(cls, rank: int = 12) -> SpectralBasis:
        """The shipped basis of the world's land and water surfaces, cut to its first `rank` components.

        What the cut leaves out goes to `residual_var`, so that the variance of every wavelength stays the same.
        """
        stored = _shipped()
        most = stored["components"].shape[1]
        if not 1 <= rank <= most:
            raise JobError(f"asked for {rank} spectral components: the shipped library has 1 to {most}")
        components, variances = stored["components"][:, :rank], stored["variances"][:rank]
        left = stored["total_var"] - components**2 @ variances
        return cls(NODES, stored["mean"], components, np.diag(variances), np.maximum(left, 1e-7), str(stored["source"]))

    @classmethod
    def of_bands(
        cls, wavelengths: Sequence[float] | Array, mean: Sequence[float] | Array, covariance: Array, rank: int | None = None, *,
        source: str = "bands",
    ) -> SpectralBasis:
        """A basis whose nodes are bands themselves, for fusing instruments with matching bands and no spectra in between.

        wavelengths: (L,) band centroids, nm, increasing. mean (L,), covariance (L, L): of the reflectances.
        rank: None = one component per band (components = identity); else the leading principal components.
        """
        nodes, covariance = np.asarray(wavelengths, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
        if covariance.shape != (nodes.size, nodes.size):
            raise JobError(f"{nodes.size} bands with a covariance of shape {covariance.shape}: it must be square, one row per band")
        if rank is None:
            floor = 1e-9 * np.trace(covariance) / nodes.size + 1e-12
            return cls(
                nodes, np.asarray(mean), np.eye(nodes.size), covariance + floor * np.eye(nodes.size), np.zeros(nodes.size), source,
                discrete=True,
            )
        if not 1 <= rank <= nodes.size:
            raise JobError(f"asked for {rank} components of {nodes.size} bands")
        components, variances = leading(covariance, rank)
        left = np.maximum(np.diag(covariance) - components**2 @ variances, 0.0)
        return cls(nodes, np.asarray(mean), components, np.diag(variances), left, source, discrete=True)

    def weights(self, responses: Sequence[Response]) -> Array:
        """(B, L) how bands with these responses weigh the nodes."""
        if not self.discrete:
            return np.stack([response.on(self.wavelengths) for response in responses])
        centroids = np.array([response.centroid for response in responses])
        nearest = np.abs(centroids[:, None] - self.wavelengths).argmin(axis=1)
        far = np.abs(self.wavelengths[nearest] - centroids) > 0.08 * centroids
        if far.any():
            raise JobError(
                f"no latent band lies near {centroids[far][0]:.0f} nm; there are {', '.join(f'{w:.0f}' for w in self.wavelengths)} nm: "
                "drop that band, or use SpectralBasis.library()"
            )
        return np.asarray(np.eye(self.wavelengths.size)[nearest])

    def responses(self, responses: Sequence[Response]) -> tuple[Array, Array, Array]:
        """(H (B, K), mean (B,), residual variance (B,)) of bands with these responses: band = mean + H z + N(0, var)."""
        weights = self.weights(responses)
        return weights @ self.components, weights @ self.mean, weights**2 @ self.residual_var

    def offset(self, scene_id: str, responses: Sequence[Response]) -> Array:
        """(B,) the systematic error of one hyperspectral acquisition in these channels, to be taken off its data; 0 if unknown."""
        if scene_id not in self.offsets:
            return np.zeros(len(responses))
        return np.asarray(self.weights(responses) @ self.offsets[scene_id])

    def given(self, weights: Array, values: Array, variance: Array) -> tuple[Array, Array]:
        """z given band values y = weights r + N(0, variance): (mean (N, K), covariance (K, K)).

        weights: (B, L); values: (N, B) finite; variance: (B,).
        """
        design = weights @ self.components
        noise = (weights * self.residual_var) @ weights.T + np.diag(variance)
        gain = np.linalg.solve(design @ self.prior @ design.T + noise, design @ self.prior).T
        return (values - weights @ self.mean) @ gain.T, self.prior - gain @ design @ self.prior

    def spectrum(self, z: Array, covariance: Array | None = None) -> tuple[Array, Array]:
        """Spectra at the nodes and their standard deviation: (..., K), (K, K) or None -> (..., L), (L,)."""
        spread = np.zeros_like(self.prior) if covariance is None else covariance
        variance = np.einsum("lk,km,lm->l", self.components, spread, self.components) + self.residual_var
        return self.mean + np.asarray(z) @ self.components.T, np.sqrt(variance)

    def to_attrs(self) -> dict[str, Any]:
        """JSON-ready attributes; floats round-trip exactly."""
        return {
            **{name: getattr(self, name).tolist() for name in ("wavelengths", "mean", "components", "prior", "residual_var")},
            "source": self.source, "discrete": self.discrete,
            "offsets": {name: offset.tolist() for name, offset in self.offsets.items()},
        }

    @classmethod
    def from_attrs(cls, attrs: dict[str, Any]) -> SpectralBasis:
        """The inverse of `to_attrs`."""
        arrays = {name: np.array(attrs[name], dtype=np.float64) for name in ("wavelengths", "mean", "components", "prior", "residual_var")}
        rank = arrays["prior"].shape[0]
        arrays["components"] = arrays["components"].reshape(-1, rank)
        return cls(**arrays, source=attrs["source"], offsets=attrs.get("offsets", {}), discrete=bool(attrs.get("discrete", False)))


def leading(covariance: Array, rank: int) -> tuple[Array, Array]:
    """The `rank` leading principal components of a covariance and their variances: (L, K), (K,), largest first."""
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(values)[::-1][:rank]
    chosen = vectors[:, order]
    signs = np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(chosen.shape[1])])
    return chosen * signs, np.maximum(values[order], 1e-12)


@cache
def _shipped() -> dict[str, Any]:
    with files("fusion.cube").joinpath("data", "library.npz").open("rb") as stream:
        stored = np.load(stream, allow_pickle=False)
        return {name: stored[name].astype(np.float64) if stored[name].dtype.kind == "f" else stored[name].item() for name in stored}
