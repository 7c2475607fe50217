"""Responses integrate exactly, the basis is one consistent Gaussian at every rank, and it holds on scenes it never saw."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.cube.spectrum import DROPPED, NODES, Response, Spectra, SpectralBasis, within
from fusion.errors import JobError


def quadrature(value: object, low: float, high: float, spectrum: np.ndarray, nodes: np.ndarray) -> float:
    """The band value by 0.01 nm midpoint quadrature of response x spectrum, straight from the definition."""
    edges = np.linspace(low, high, int((high - low) / 0.01) + 2)
    fine = 0.5 * (edges[1:] + edges[:-1])
    weight = value(fine)  # type: ignore[operator]
    return float((weight * np.interp(fine, nodes, spectrum)).sum() / weight.sum())


@settings(deadline=None, max_examples=60)
@given(centre=st.floats(420, 2480), width=st.floats(2, 120), seed=st.integers(0, 1000))
def test_a_gaussian_channel_integrates_the_spectrum(centre: float, width: float, seed: float) -> None:
    spectrum = np.random.default_rng(seed).uniform(0, 1, NODES.size)
    sd = width / (2 * np.sqrt(2 * np.log(2)))
    weights = Response.gaussian(centre, width).on(NODES)
    span = centre - 3.5 * sd, centre + 3.5 * sd

    def bell(x: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((x - centre) / sd) ** 2)

    expected = quadrature(bell, *span, spectrum, NODES)
    assert np.isclose(weights.sum(), 1)
    assert abs(weights @ spectrum - expected) < 1e-3  # a rough random spectrum
    smooth = 0.3 + 0.2 * np.sin(NODES / 90)
    expected = quadrature(bell, *span, smooth, NODES)
    assert abs(weights @ smooth - expected) < 1e-4


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 30), step=st.floats(0.5, 40))
def test_a_table_is_integrated_exactly(seed: int, count: int, step: float) -> None:
    rng = np.random.default_rng(seed)
    table = 380 + np.cumsum(rng.uniform(0.2, 1.8, count)) * step
    values = rng.uniform(0.05, 1, count)
    spectrum = rng.uniform(0, 1, NODES.size)
    expected = quadrature(lambda x: np.interp(x, table, values), table[0], table[-1], spectrum, NODES)
    if table[-1] <= NODES[0]:
        with pytest.raises(JobError, match="outside"):
            Response(table, values).on(NODES)
        return
    assert abs(Response(table, values).on(NODES) @ spectrum - expected) < 2e-5


def test_a_boxcar_knows_its_centroid_and_how_much_of_it_is_inside() -> None:
    box = Response(np.array([380.0, 420.0]), np.array([1.0, 1.0]))
    assert np.isclose(box.centroid, 400)
    assert np.isclose(box.inside(NODES), 0.5)
    assert np.isclose(Response.gaussian(865, 30).inside(), 1)


@pytest.mark.parametrize(
    ("wavelengths", "values", "says"),
    [
        ([0.45, 0.5, 0.55], [0, 1, 0], "micrometres"),
        ([450, 440, 460], [0, 1, 0], "increase"),
        ([450, 460], [0, 0], "no area"),
        ([450, 460], [0, np.nan], "finite"),
        ([450], [1], "at least 2"),
    ],
)
def test_responses_that_make_no_sense_are_refused(wavelengths: list[float], values: list[float], says: str) -> None:
    with pytest.raises(JobError, match=says):
        Response(np.array(wavelengths), np.array(values))


def test_bands_far_from_any_latent_band_are_refused() -> None:
    basis = SpectralBasis.of_bands([482, 562, 655, 865], np.full(4, 0.2), 0.01 * np.eye(4))
    with pytest.raises(JobError, match="no latent band lies near 1610"):
        basis.responses((Response.gaussian(1610, 80),))
    with pytest.raises(JobError, match="outside"):
        SpectralBasis.library(3).responses((Response.gaussian(10900, 500),))


@pytest.mark.parametrize("rank", [1, 4, 12, 40])
def test_cutting_the_library_moves_variance_but_loses_none(rank: int) -> None:
    basis, whole = SpectralBasis.library(rank), SpectralBasis.library(40)
    assert basis.components.shape == (NODES.size, rank)
    assert np.allclose(basis.components.T @ basis.components, np.eye(rank), atol=1e-5)
    assert np.allclose(np.diag(basis.covariance), np.diag(whole.covariance), rtol=1e-3, atol=2e-7)
    assert (basis.components == whole.components[:, :rank]).all()
    if rank >= 28:  # the correlated part holds 12 components: nothing is lost at all
        assert np.allclose(basis.covariance, whole.covariance, atol=3e-7)
    bands = tuple(Response.gaussian(c, w) for c, w in ((482, 60), (655, 37), (865, 28), (1609, 85), (2201, 187)))
    colour, _, var = basis.responses(bands)
    weights = whole.weights(bands)
    total = np.diag(colour @ basis.prior @ colour.T) + var
    assert np.allclose(total, np.diag(weights @ whole.covariance @ weights.T), rtol=0.02)
    assert "earthlib" in basis.source
    with pytest.raises(JobError, match="1 to 40"):
        SpectralBasis.library(41)


def test_the_shipped_data_are_small_and_say_where_they_come_from() -> None:
    folder = files("fusion.cube").joinpath("data")
    told = json.loads(folder.joinpath("provenance.json").read_text())
    assert {"seed", "versions", "spectra", "share"} <= set(told)
    for name in ("library.npz", "endmembers.npz"):
        with folder.joinpath(name).open("rb") as stream:
            assert len(stream.read()) < 200_000


def test_bands_as_a_basis() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4))
    covariance = root @ root.T * 0.01
    centroids = np.array([482.0, 562.0, 655.0, 865.0])
    responses = tuple(Response.gaussian(c + 5, 50) for c in centroids)
    full = SpectralBasis.of_bands(centroids, np.full(4, 0.2), covariance)
    colour, mean, var = full.responses(responses)
    assert (colour == np.eye(4)).all()
    assert np.allclose(full.covariance, covariance, rtol=1e-5, atol=1e-8)
    assert (mean == 0.2).all()
    assert (var == 0).all()
    cut = SpectralBasis.of_bands(centroids, np.full(4, 0.2), covariance, rank=2)
    assert np.allclose(np.diag(cut.covariance), np.diag(covariance))
    assert cut.rank == 2
    assert np.allclose(cut.covariance, covariance)


def test_conditioning_is_that_of_the_dense_gaussian() -> None:
    basis = SpectralBasis.library(6)
    responses = [Response.gaussian(c, 40) for c in (480, 560, 660, 860, 1610, 2200)]
    weights = basis.weights(responses)
    rng = np.random.default_rng(1)
    values, variance = rng.uniform(0, 0.5, (5, 6)), rng.uniform(1e-5, 1e-4, 6)
    mean, covariance = basis.given(weights, values, variance)
    joint = basis.covariance  # the reference: condition r itself, then read the part of r inside the subspace
    precision = np.linalg.inv(weights @ joint @ weights.T + np.diag(variance))
    cross = basis.components @ basis.prior @ basis.components.T @ weights.T
    spectrum, sd = basis.spectrum(mean, covariance)
    assert np.allclose(spectrum, basis.mean + (values - weights @ basis.mean) @ (cross @ precision).T, atol=1e-9)
    inside = basis.components @ basis.prior @ basis.components.T - cross @ precision @ cross.T
    assert np.allclose(sd**2, np.diag(inside) + basis.residual_var, atol=1e-9)


def test_a_hybrid_basis_learns_new_ground_and_the_error_of_the_instrument() -> None:
    rng = np.random.default_rng(2)
    library = SpectralBasis.library(40)
    channels = np.arange(405.0, 2450.0, 5.0)
    feature = 0.05 * np.exp(-0.5 * ((NODES - 2260) / 40) ** 2)
    error = 0.02 * np.exp(-0.5 * ((NODES - 940) / 12) ** 2)
    z = rng.standard_normal((900, 40)) * np.sqrt(np.diag(library.prior)) * 0.7
    truth = library.mean + z @ library.components.T + rng.standard_normal((900, 1)) * feature
    measured = np.stack([np.interp(channels, NODES, s + error) for s in truth])
    measured += 0.002 * rng.standard_normal(measured.shape)
    measured[:, within(channels, DROPPED)] = np.nan
    measured[:3, 10] = np.nan
    basis = SpectralBasis.hybrid(library, [Spectra("flight-1", channels, measured)], rank=12, extra=4)
    clear = ~within(NODES, DROPPED) & (NODES > 405) & (NODES < 2445)
    assert basis.rank == 16
    assert np.allclose(basis.components.T @ basis.components, np.eye(16), atol=1e-8)
    left = feature - basis.components @ (basis.components.T @ feature)
    assert np.linalg.norm(left[clear]) < 0.35 * np.linalg.norm(feature[clear])
    plain = SpectralBasis.library(12).components
    assert np.linalg.norm((feature - plain @ (plain.T @ feature))[clear]) > 0.7 * np.linalg.norm(feature[clear])
    channel = (Response.gaussian(940, 6),)
    level = truth.mean(0) @ channel[0].on(NODES)
    gain, offset = basis.error("flight-1", channel)
    assert 0.5 * error.max() < gain * level + offset < 1.2 * error.max()
    assert abs(offset) < 0.1 * gain * level  # near water vapour an error is a factor
    assert all((e == 0).all() for e in basis.error("another", channel))
    assert SpectralBasis.from_attrs(json.loads(json.dumps(basis.to_attrs()))) == basis
    with pytest.raises(JobError, match="too few"):
        SpectralBasis.hybrid(library, [Spectra("dark", channels, np.full((9, channels.size), np.nan))])


def test_unseen_scene(shared: Path) -> None:
    """A genuine AVIRIS scene: 13 broad bands give the spectrum within 1.5 %, the subspace holds it, intervals are honest."""
    stored = np.load(shared / "data/hyperspectral/aviris_90x90x224.npz")
    order = np.argsort(stored["wavelength_nm"])
    wavelengths, cube = stored["wavelength_nm"][order], stored["cube"].reshape(-1, 224)[::9, order] * 1e-4
    keep = (cube != 0).any(0) & (wavelengths > 400) & (wavelengths < 2450) & ~within(wavelengths, DROPPED)
    keep &= np.diff(wavelengths, prepend=0) > 0
    wavelengths, cube = wavelengths[keep], cube[:, keep]
    basis = SpectralBasis.library(12)
    bands = [Response.gaussian(c, w) for c, w in (
        (482, 60), (562, 57), (655, 37), (865, 28), (1609, 85), (2201, 187),
        (645, 50), (857, 35), (466, 20), (554, 20), (1242, 20), (1629, 24), (2114, 50),
    )]  # fmt: skip
    rng = np.random.default_rng(0)
    seen = cube @ np.stack([b.on(wavelengths) for b in bands]).T + 0.005 * rng.standard_normal((len(cube), len(bands)))
    spectrum, sd = basis.spectrum(*basis.given(basis.weights(bands), seen, np.full(len(bands), 0.005**2)))
    predicted = np.stack([np.interp(wavelengths, NODES, s) for s in spectrum])
    spread = np.interp(wavelengths, NODES, sd)
    assert np.sqrt(((predicted - cube) ** 2).mean()) < 0.015
    assert 0.92 < (np.abs(predicted - cube) < 1.96 * spread).mean() < 0.98
    inside = np.stack([np.interp(wavelengths, NODES, c) for c in basis.components.T], 1)
    gap = cube - np.interp(wavelengths, NODES, basis.mean)
    gap -= gap @ np.linalg.pinv(inside).T @ inside.T
    assert np.sqrt(((gap - gap.mean(0)) ** 2).mean()) < 0.005  # with one offset spectrum for the acquisition


def test_a_basis_turned_to_the_bands_leaves_less_of_them_out_and_keeps_the_belief() -> None:
    """Components are A V with prior I, so the whole covariance is the library's, and bands are told apart better than by PCA."""
    bands = [Response.gaussian(c, w) for c, w in ((482, 60), (562, 57), (655, 37), (865, 28), (1610, 85), (2200, 187))]
    whole = SpectralBasis.library(40)
    for rank in (4, 8, 12):
        turned, plain = SpectralBasis.seen_by(bands, rank), SpectralBasis.library(rank)
        np.testing.assert_allclose(turned.covariance, whole.covariance, atol=2e-4)
        assert (np.linalg.eigvalsh(turned.covariance - turned.components @ turned.components.T) > -1e-9).all()
        left, usual = turned.responses(bands)[2], plain.responses(bands)[2]
        assert left.sum() < (0.5 if rank >= 8 else 1.0) * usual.sum()
    with pytest.raises(JobError, match="components"):
        SpectralBasis.seen_by(bands, 41)
