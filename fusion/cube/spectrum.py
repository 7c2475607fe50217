"""WHICH COLOUR: the low-rank spectral basis of the latent field (responses: `fusion.cube.response`, importable from here too)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from fusion.cube.response import DROPPED, NODES, SHOULDERS, Array, Response, within
from fusion.errors import JobError

__all__ = ["DROPPED", "NODES", "SHOULDERS", "Response", "Spectra", "SpectralBasis", "leading", "within"]

ARRAYS = ("wavelengths", "mean", "components", "prior", "residual_var", "correlated")
KEPT = 12  # columns of the correlated residual
DARK = 0.05  # reflectance; on darker ground a relative error cannot be told from an additive one


@dataclass(frozen=True, eq=False)
class Spectra:
    """Some spectra of one hyperspectral acquisition, as they were measured."""

    id: str
    """the scene's id"""
    wavelengths: Array
    """(W,) channel centres, nm"""
    values: Array
    """(N, W) reflectance; NaN = not seen"""
    fwhm: Array | None = None
    """(W,) channel widths, nm; None = narrow against the nodes"""
    noise: float = 0.003
    """standard deviation of one value, reflectance; 7 times that near absorption bands"""

    def completed(self, basis: SpectralBasis) -> tuple[Array, Array, Array]:
        """Spectra (N, L) at the basis' nodes, their common error covariance (L, L) and the mean misfit (L,) of the data to them.

        E[r | y] and Var[r | y] under the basis, and the mean of y - W E[r | y], linear between the channels and 0 outside.
        Channels in the water windows or seen by less than half of the spectra are left out, then spectra with gaps.
        """
        nodes, values = basis.wavelengths, np.asarray(self.values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != np.size(self.wavelengths):
            raise JobError(f"scene {self.id}: values {values.shape} for {np.size(self.wavelengths)} channels")
        centres = np.asarray(self.wavelengths, dtype=np.float64)
        usable = (np.isfinite(values).mean(0) > 0.5) & (centres >= nodes[0]) & (centres <= nodes[-1]) & ~within(centres, DROPPED)
        values = values[:, usable]
        values = values[np.isfinite(values).all(1)]
        if usable.sum() < 20 or len(values) < 2:
            raise JobError(f"scene {self.id}: {usable.sum()} usable channels, {len(values)} complete spectra: too few")
        narrow = nodes[1] - nodes[0]
        widths = np.full(centres.size, 0.1 * narrow) if self.fwhm is None else np.asarray(self.fwhm, dtype=np.float64)
        weights = basis.weights([Response.gaussian(c, f) for c, f in zip(centres[usable], widths[usable], strict=True)])
        noise = self.noise * np.where(within(centres[usable], SHOULDERS), 7.0, 1.0)
        covariance = basis.covariance
        seen = covariance @ weights.T
        gain = np.linalg.solve(weights @ seen + np.diag(noise**2), seen.T).T
        complete = basis.mean + (values - weights @ basis.mean) @ gain.T
        order = np.argsort(centres[usable], kind="stable")
        misfit = (values - complete @ weights.T).mean(0)[order]
        misfit = np.interp(nodes, centres[usable][order], misfit, left=0.0, right=0.0)
        return complete, covariance - gain @ seen.T, np.where(within(nodes, DROPPED), 0.0, misfit)


@dataclass(frozen=True, eq=False)
class SpectralBasis:
    """One Gaussian belief over all spectra of the world, low-rank plus diagonal.

    r(lambda) = mean(lambda) + sum_k components(lambda, k) z_k + residual(lambda),  z ~ N(0, prior),
    residual ~ N(0, F F^T + D), D diagonal. What the components leave out is smooth in wavelength: taken as independent between
    nodes it would average out within a band, which real spectra do not. Between nodes a spectrum is linear in wavelength.
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
    """(L,) out-of-subspace variance, reflectance squared: the diagonal of F F^T + D"""
    source: str = "user"
    """where it was learned, for provenance"""
    offsets: Mapping[str, Array] = field(default_factory=dict)
    """scene id -> (L,) systematic error of that hyperspectral acquisition, reflectance: part of the data, never of the field"""
    gains: Mapping[str, Array] = field(default_factory=dict)
    """scene id -> (L,) its relative error near absorption bands, where what is left of the atmosphere is a factor"""
    discrete: bool = False
    """the nodes are bands, not samples of a spectrum: a response reads the one node nearest to its centroid"""
    correlated: Array = field(default_factory=lambda: np.zeros((0, 0)))
    """(L, R) F, the part of the residual that is correlated between wavelengths; empty = there is none"""

    def __post_init__(self) -> None:
        if np.size(self.correlated) == 0:
            object.__setattr__(self, "correlated", np.zeros((np.size(self.wavelengths), 0)))
        for name in ARRAYS:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        for name in ("offsets", "gains"):
            told = {str(k): np.asarray(v, dtype=np.float64) for k, v in getattr(self, name).items()}
            object.__setattr__(self, name, told)
        nodes = self.wavelengths.size
        rank = self.components.shape[-1]
        wanted = dict.fromkeys(ARRAYS, (nodes,)) | {
            "components": (nodes, rank), "prior": (rank, rank), "correlated": (nodes, self.correlated.shape[-1]),
        }  # fmt: skip
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape or not np.isfinite(getattr(self, name)).all():
                raise JobError(f"spectral basis: {name} has shape {getattr(self, name).shape}, must be {shape} and finite")
        if (np.diff(self.wavelengths) <= 0).any() or (self.residual_var < 0).any():
            raise JobError("spectral basis: wavelengths must increase and residual variances must not be negative")
        if not np.allclose(self.prior, self.prior.T, rtol=1e-8, atol=1e-12) or np.linalg.eigvalsh(self.prior)[0] <= 0:
            raise JobError("spectral basis: the prior covariance must be symmetric and positive definite")
        for name, error in (*self.offsets.items(), *self.gains.items()):
            if error.shape != (nodes,):
                raise JobError(f"spectral basis: the error of scene {name!r} has shape {error.shape}, must be {(nodes,)}")

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
        return np.asarray(self.components @ self.prior @ self.components.T + self.residual(np.eye(self.mean.size)))

    def residual(self, weights: Array) -> Array:
        """(B, B) out-of-subspace covariance of bands with these weights (B, L) on the nodes."""
        shared = weights @ self.correlated
        own = np.maximum(self.residual_var - (self.correlated**2).sum(1), 0.0)
        return np.asarray(shared @ shared.T + (weights * own) @ weights.T)

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
        left = np.maximum(stored["total_var"] - components**2 @ variances, 1e-7)
        rest = slice(rank, rank + KEPT)
        correlated = stored["components"][:, rest] * np.sqrt(stored["variances"][rest])
        return cls(NODES, stored["mean"], components, np.diag(variances), left, str(stored["source"]), correlated=correlated)

    @classmethod
    def seen_by(
        cls, responses: Sequence[Response], rank: int = 8, *, library: SpectralBasis | None = None, elsewhere: float = 0.03,
    ) -> SpectralBasis:
        """The K directions of the library that a job's own bands tell apart best, so that little of any band is left out.

        With the library's covariance C = A A^T and bands W, the leading right singular vectors V of [W A / .005; A / elsewhere]
        give components A V with prior I. The rest, A (I - V V^T) A^T, is uncorrelated with them: between bands the residual
        variance is the honest one of a spectrum given its bands. Principal components of the library leave .012 of
        Landsat's near infrared out at K = 8. elsewhere: noise, reflectance, that weighs the wavelengths nobody sees.
        """
        library = cls.library(_shipped()["components"].shape[1]) if library is None else library
        if not 1 <= rank <= library.rank:
            raise JobError(f"asked for {rank} spectral components: the library has 1 to {library.rank}")
        root = library.components @ np.linalg.cholesky(library.prior)
        wanted = np.concatenate([library.weights(responses) @ root / 0.005, root / elsewhere]) if responses else root
        chosen = np.linalg.svd(wanted, full_matrices=False)[2][:rank].T
        components = root @ chosen
        components *= np.sign(components[np.abs(components).argmax(axis=0), np.arange(rank)])
        left = library.covariance - components @ components.T
        correlated, size = leading(left, KEPT)
        residual = np.maximum(np.diag(left), 1e-7)
        source, shared = f"{library.source}, turned to {len(responses)} bands", correlated * np.sqrt(size)
        errors = library.offsets, library.gains
        return cls(library.wavelengths, library.mean, components, np.eye(rank), residual, source, *errors, correlated=shared)

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
            raise JobError(f"{nodes.size} bands with a covariance {covariance.shape}: it must be square, one row per band")
        if rank is None:
            floor = 1e-9 * np.trace(covariance) / nodes.size + 1e-12
            unit = np.eye(nodes.size)
            return cls(nodes, np.asarray(mean), unit, covariance + floor * unit, np.zeros(nodes.size), source, discrete=True)
        if not 1 <= rank <= nodes.size:
            raise JobError(f"asked for {rank} components of {nodes.size} bands")
        axes, variances = leading(covariance, nodes.size)
        prior, rest = np.diag(variances[:rank]), axes[:, rank:] * np.sqrt(variances[rank:])
        return cls(nodes, np.asarray(mean), axes[:, :rank], prior, (rest**2).sum(1), source, discrete=True, correlated=rest)

    @classmethod
    def hybrid(cls, library: SpectralBasis, looks: Sequence[Spectra], rank: int = 12, extra: int = 4) -> SpectralBasis:
        """K = rank + extra components: the library's first ones, then those that the job's own hyperspectral looks add.

        library: as much of it as there is, `SpectralBasis.library(40)`. Each look's spectra are first completed at the nodes
        it does not see by their conditional mean under the library. Then, for the covariance C and mean m over pixels,

            C = (1-w) C_library + w C_looks + w (1-w) (m_looks - m_library)(m_looks - m_library)^T,   w = .8 n / (n + 20)

        which is the mixture of both beliefs as one Gaussian: a few spectra of a patch narrow the library, never replace it.
        The part of a look's mean that no library component explains is split between the ground and an error of that
        acquisition by their prior variances (residual_var against .01^2, .03^2 near absorption bands). Near absorption bands the
        error is that of a transmittance, hence relative to the ground (`gains`; additive where the ground is darker than
        DARK); elsewhere it is additive (`offsets`). A single Gaussian stays honest on unseen ground, a mixture of several does not.
        """
        if not looks or not 1 <= rank <= library.rank or extra < 0:
            raise JobError(
                f"a hybrid basis of {rank} + {extra} components from {len(looks)} looks: "
                f"give at least one look and 1 to {library.rank} components"
            )
        base = library.components[:, :rank]
        outside = np.eye(library.wavelengths.size) - base @ base.T
        unexplained = np.diag(outside @ library.covariance @ outside)
        vapour = within(library.wavelengths, SHOULDERS + DROPPED)
        error_var = np.where(vapour, 0.03, 0.01) ** 2
        ground, offsets, gains, spread = [], {}, {}, np.zeros_like(library.covariance)
        for look in looks:
            complete, left, misfit = look.completed(library)
            offset = outside @ (complete.mean(0) - library.mean) * error_var / (error_var + unexplained)
            level = np.maximum(complete.mean(0) - offset, 0.0)
            relative = np.where(vapour, level / (level**2 + DARK**2), 0.0)
            ground.append((complete - offset * (1 - relative * level)) / (1 + relative * offset))
            gains[look.id] = relative * (offset + misfit)
            offsets[look.id] = offset + misfit - gains[look.id] * level
            spread += left * len(complete)
        spectra = np.concatenate(ground)
        count = len(spectra)
        share = 0.8 * count / (count + 20)
        step = spectra.mean(0) - library.mean
        scatter = (spectra - spectra.mean(0)).T @ (spectra - spectra.mean(0)) / count + spread / count
        covariance = (1 - share) * library.covariance + share * scatter + share * (1 - share) * np.outer(step, step)
        new, _ = leading(outside @ scatter @ outside, extra)
        components = np.linalg.qr(np.concatenate([base, new], axis=1))[0]
        prior = components.T @ covariance @ components
        left_out = np.eye(len(covariance)) - components @ components.T
        left_out = left_out @ covariance @ left_out
        correlated, size = leading(left_out, KEPT)
        residual = np.diag(left_out)
        source = f"{library.source} + {extra} components of {', '.join(look.id for look in looks)} ({count} spectra)"
        mean, residual = library.mean + share * step, np.maximum(residual, 1e-7)
        prior = 0.5 * (prior + prior.T)
        return cls(library.wavelengths, mean, components, prior, residual, source, offsets, gains, correlated=correlated * np.sqrt(size))

    def weights(self, responses: Sequence[Response]) -> Array:
        """(B, L) how bands with these responses weigh the nodes."""
        if not self.discrete:
            return np.stack([response.on(self.wavelengths) for response in responses])
        centroids = np.array([response.centroid for response in responses])
        nearest = np.abs(centroids[:, None] - self.wavelengths).argmin(axis=1)
        far = np.abs(self.wavelengths[nearest] - centroids) > 0.08 * centroids
        if far.any():
            raise JobError(
                f"no latent band lies near {centroids[far][0]:.0f} nm, only {', '.join(f'{w:.0f}' for w in self.wavelengths)}: "
                "drop that band, or use SpectralBasis.library()"
            )
        return np.asarray(np.eye(self.wavelengths.size)[nearest])

    def responses(self, responses: Sequence[Response]) -> tuple[Array, Array, Array]:
        """(H (B, K), mean (B,), residual variance (B,)) of bands with these responses: band = mean + H z + N(0, var)."""
        weights = self.weights(responses)
        return weights @ self.components, weights @ self.mean, np.diag(self.residual(weights))

    def error(self, scene_id: str, responses: Sequence[Response]) -> tuple[Array, Array]:
        """(gain (B,), offset (B,)) of one acquisition in these channels, y = (1 + gain) r + offset; 0 if unknown."""
        if scene_id not in self.offsets:
            return np.zeros(len(responses)), np.zeros(len(responses))
        weights = self.weights(responses)
        return weights @ self.gains.get(scene_id, 0 * self.mean), weights @ self.offsets[scene_id]

    def given(self, weights: Array, values: Array, variance: Array) -> tuple[Array, Array]:
        """z given band values y = weights r + N(0, variance): (mean (N, K), covariance (K, K)).

        weights: (B, L); values: (N, B) finite; variance: (B,).
        """
        design = weights @ self.components
        noise = self.residual(weights) + np.diag(variance)
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
            **{name: getattr(self, name).tolist() for name in ARRAYS},
            "source": self.source, "discrete": self.discrete,
            "offsets": {name: offset.tolist() for name, offset in self.offsets.items()},
            "gains": {name: gain.tolist() for name, gain in self.gains.items()},
        }

    @classmethod
    def from_attrs(cls, attrs: dict[str, Any]) -> SpectralBasis:
        """The inverse of `to_attrs`."""
        arrays = {name: np.array(attrs[name], dtype=np.float64) for name in ARRAYS}
        rank = arrays["prior"].shape[0]
        nodes = arrays["wavelengths"].size
        arrays |= {"components": arrays["components"].reshape(nodes, rank), "correlated": arrays["correlated"].reshape(nodes, -1)}
        offsets, gains = (attrs.get(name, {}) for name in ("offsets", "gains"))
        return cls(**arrays, source=attrs["source"], offsets=offsets, gains=gains, discrete=attrs["discrete"])


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
        return {name: stored[name].item() if name == "source" else stored[name].astype(np.float64) for name in stored}
