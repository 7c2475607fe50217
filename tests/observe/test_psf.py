"""The point spread against its published sizes, and the Fourier masses against integrals done another way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from fusion.observe import psf as module
from fusion.observe.psf import PSF, aligned_mass, composite_growth, extent, mass, scan_growth

# view zenith, along-scan and along-track size of a 500 m MODIS pixel, metres: spherical Earth, 705 km
MODIS_GROWTH = [
    (0.0, 500, 500), (16.71, 543, 520), (33.7, 708, 588), (45.6, 972, 680), (51.8, 1214, 751), (58.3, 1620, 851),
    (65.5, 2417, 1003),
]


@pytest.mark.parametrize(("zenith", "along", "across"), MODIS_GROWTH)
def test_scanner_grows_as_the_published_geometry(zenith: float, along: float, across: float) -> None:
    scan, track = scan_growth(np.array([zenith]))
    assert 500 * scan[0] == pytest.approx(along, rel=0.004)
    assert 500 * track[0] == pytest.approx(across, rel=0.004)


def test_unknown_view_is_nadir_and_composites_lie_between_nadir_and_their_limit() -> None:
    assert [float(g[0]) for g in scan_growth(np.array([np.nan]))] == pytest.approx([1.0, 1.0])
    scan, track = composite_growth()
    assert 1.0 < track < scan < float(scan_growth(np.array([45.0]))[0][0])


@pytest.mark.parametrize(
    ("cell", "sd"), [(c, s) for c in (0.0, 20.0, 30.0, 210.0) for s in (0.0, 4.0, 17.0) if c or s]  # a point has no density
)
def test_aligned_mass_is_the_integral(cell: float, sd: float) -> None:
    pixel = 30.0

    def density(x: float) -> float:
        if sd == 0:
            return float(abs(x) < cell / 2) / cell
        if cell == 0:
            return float(norm.pdf(x, scale=sd))
        return float(norm.cdf((x + cell / 2) / sd) - norm.cdf((x - cell / 2) / sd)) / cell

    for offset in (0.0, 7.5, -31.0, 95.0):
        edges = (offset - pixel / 2, offset + pixel / 2)
        corners = [c for c in (-cell / 2, cell / 2) if edges[0] < c < edges[1]] or None
        expected = quad(density, *edges, epsabs=1e-12, points=corners)[0]
        assert aligned_mass(np.array([offset]), cell, pixel, sd)[0] == pytest.approx(expected, abs=1e-9)


KERNELS = {
    "landsat": ([[30, 0], [0, -30]], 11.0),
    "landsat, other zone": ([[29.9, 1.6], [1.6, -29.9]], 17.0),
    "no blur": ([[29.9, 1.6], [1.6, -29.9]], 6.0),
    "gaussian alone": ([], 17.0),
    "coarse gaussian": ([[463, 0], [552, -463]], 212.0),
    "modis nadir": ([[463, 0], [552, -463], [480, 130], [480, 130], [-130, 480]], 50.0),
    "modis edge": ([[463, 0], [552, -463], [2320, 670], [2320, 670], [-280, 960]], 50.0),
    "airborne": ([[3.2, 1.1], [1.1, -3.2]], 6.0),
}


def _mass(name: str, pixel: float = 30.0) -> np.ndarray:
    sides, sd = KERNELS[name]
    segments = np.array(sides, dtype=float).reshape(1, -1, 2)
    covariance = np.eye(2)[None] * sd**2
    half = np.ceil(extent(segments, covariance, pixel)[0] / pixel).astype(int)
    corner = np.array([[-half[0] * pixel + 4.0, half[1] * pixel - 9.0]])
    return mass(corner, segments, covariance, pixel, (2 * half[1] + 1, 2 * half[0] + 1))[0]


@pytest.mark.parametrize("name", KERNELS)
def test_series_agrees_with_one_ten_times_finer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the kept frequency area (a square root of ten per axis) and a longer period: the promised error is 1e-3."""
    coarse = _mass(name)
    monkeypatch.setattr(module, "CUT", module.CUT * np.sqrt(10))
    monkeypatch.setattr(module, "REACH_SD", 8.0)
    sides, sd = KERNELS[name]
    segments, covariance = np.array(sides, dtype=float).reshape(1, -1, 2), np.eye(2)[None] * sd**2
    high, wide = coarse.shape
    corner = np.array([[-(wide // 2) * 30.0 + 4.0, (high // 2) * 30.0 - 9.0]])
    fine = mass(corner, segments, covariance, 30.0, (high, wide))[0]
    assert np.abs(coarse - fine).sum() <= 1e-5 < 1e-3
    assert np.abs(coarse - fine).max() <= 1e-6 * fine.max()
    assert coarse.sum() == pytest.approx(1.0, abs=2e-6)


side = st.tuples(st.floats(-400, 400), st.floats(-400, 400))
phase = st.tuples(st.floats(-15, 15), st.floats(-15, 15))


@settings(max_examples=40, deadline=None)
@given(sides=st.lists(side, max_size=5), sd=st.floats(8, 120), shift=phase)
def test_mass_is_a_distribution_with_the_kernel_s_moments(
    sides: list[tuple[float, float]], sd: float, shift: tuple[float, float]
) -> None:
    """Sum 1, nothing negative beyond rounding, mean at the centre, covariance = Gaussian + sum d d' / 12 + latent pixel / 12."""
    pixel = 30.0
    segments, covariance = np.array(sides, dtype=float).reshape(1, -1, 2), np.eye(2)[None] * sd**2
    half = np.ceil(extent(segments, covariance, pixel)[0] / pixel).astype(int) + 1
    corner = np.array([[-half[0] * pixel + shift[0], half[1] * pixel + shift[1]]])
    w = mass(corner, segments, covariance, pixel, (2 * half[1] + 1, 2 * half[0] + 1))[0]
    x = corner[0, 0] + np.arange(w.shape[1]) * pixel
    y = corner[0, 1] - np.arange(w.shape[0]) * pixel
    assert w.sum() == pytest.approx(1.0, abs=3e-6)
    assert w.min() >= -1e-7 * w.max() - 1e-9
    points = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1).reshape(-1, 2)
    centre = w.ravel() @ points
    scale = np.sqrt(sd**2 + sum(np.hypot(*d) ** 2 for d in sides) / 12 + 75)
    # means of pixel centres equal the kernel's own up to aliasing, exp(-(2 pi sd / pixel)^2 / 2): small from sd = 20 on
    if sd > 20:
        np.testing.assert_allclose(centre, 0.0, atol=1e-3 * scale)
        spread = (points * w.ravel()[:, None]).T @ points
        uniform = sum((np.outer(d, d) for d in sides), np.eye(2) * pixel**2)
        expected = covariance[0] + uniform / 12
        np.testing.assert_allclose(spread, expected, atol=2e-3 * scale**2)


def test_reach_covers_the_kernel() -> None:
    assert PSF("gaussian", 23.548, cell=False).reach(30.0) == pytest.approx(30.0, rel=1e-3)
    assert PSF("scanner", 500.0, geolocation=50.0).reach(463.0) > 1000.0
