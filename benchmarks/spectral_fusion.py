"""Hyperspectral x multispectral fusion by the Wald protocol on Jasper Ridge: `python benchmarks/spectral_fusion.py [--inject]`.

The scene itself is the truth. A spectrometer sees it at a quarter of the resolution (Gaussian point spread as wide as the ratio, 35 dB below
1000 nm and 30 dB above), Landsat 8's six bands see it sharply at 40 dB; both are handed to the ordinary engine as scenes of one day. The basis
is learned from the coarse spectra alone.

--inject: the same with what real pairs have. Every band of the camera is wrong by a factor drawn with an sd of 3 %, the spectrometer's image lies
half of its pixel off, and both; beside it what becomes of them if nothing is estimated (no gain in the model, the place taken as stated).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rich.console import Console
from rich.table import Table

import fusion
from fusion.cube.calendar import Calendar, Instant
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import KEPT, SpectralBasis, leading
from fusion.observe.footprint import footprint
from fusion.observe.observation import observe
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Noise, Sensor, sensor

Array = NDArray[np.float64]
RATIO, PIXEL, DAY = 4, 10.0, np.datetime64("2024-06-01T18:00", "us")
BLUR, SHARP = PSF("gaussian", RATIO * PIXEL, cell=False, geolocation=0.0), PSF("gaussian", 0.0, geolocation=0.0)
GAIN_SD, SHIFT = 0.03, (0.5 * RATIO * PIXEL, -0.5 * RATIO * PIXEL)
"""of the camera's bands; (north, east) metres that the spectrometer's image is displaced by: half of its pixel down both axes"""
PEERS = (("HySure", 40.4, 1.54), ("CNMF", 40.3, 1.55), ("FUSE, with the true weights", 40.6, 1.47), ("target", 41.0, 1.45))


def jasper(folder: Path) -> tuple[Array, Array]:
    """(wavelengths (L,) nm, reflectance-like counts (L, Y, X))."""
    stored = np.load(folder / "hyperspectral/jasper_ridge_100x100x198.npz")
    centres = np.load(folder / "hyperspectral/aviris_90x90x224.npz")["wavelength_nm"][stored["band_1based"].astype(int) - 1]
    order = np.argsort(centres, kind="stable")
    keep = order[np.diff(centres[order], prepend=0.0) > 1.0]
    return centres[keep], np.moveaxis(stored["cube"][..., keep], -1, 0) * 1e-4


def decibel(clean: Array, level: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """(noisy values (B, H, W), their sigma (B,)) at a signal-to-noise ratio per band."""
    sigma = np.sqrt((clean**2).mean(axis=(1, 2)) * 10 ** (-level / 10))
    return clean + sigma[:, None, None] * rng.standard_normal(clean.shape), sigma


def basis_of(wavelengths: Array, coarse: Array, sigma: Array, rank: int) -> SpectralBasis:
    """Principal components of the coarse spectra in units of their noise.

    Their variance is the pattern's alone, widened by 1.5 for what the blur took; of the hierarchy's unit variance .6 is pattern.
    """
    spectra = coarse.reshape(len(coarse), -1)
    axes, size = leading(np.cov(spectra / sigma[:, None]), rank + KEPT)
    axes, size, mean = sigma[:, None] * axes, np.maximum(size - 1.0, 1e-3), spectra.mean(axis=1)
    rest = axes[:, rank:] * np.sqrt(size[rank:])
    left = (rest**2).sum(axis=1) + 1e-8
    nodes = np.concatenate([wavelengths[:1] - 5.0, wavelengths, wavelengths[-1:] + 5.0])  # room for the first and the last channel
    mean, axes, left, rest = (np.pad(a, [(1, 1)] + [(0, 0)] * (a.ndim - 1), mode="edge") for a in (mean, axes, left, rest))
    return SpectralBasis(nodes, mean, axes[:, :rank], np.diag(1.5 / 0.6 * size[:rank]), left, "coarse spectra", correlated=rest)


def instrument(name: str, psf: PSF, pixel: float, bands: tuple[Band, ...], gain: float = 1e-5) -> Sensor:
    """A sensor without offsets, whose channels are all as good as stated, those near water vapour too; gain: sd of its gain errors."""
    def never(*_: object) -> list[object]:
        return []

    return Sensor(
        name, name, bands, psf, pixel, read=never, revisit=never, offset_sd=1e-5, gain_sd=gain,  # type: ignore[arg-type]
        channel_noise=None if bands else Noise(0.001, 0.0), opaque=(),
    )


def looks(wavelengths: Array, truth: Array, rank: int, gains: bool = False, shifted: bool = False, known: bool = True) -> tuple[Cube, list[object]]:
    """The cube and the two observations.  gains, shifted: what is injected. known: whether the camera's gain errors are stated."""
    rng = np.random.default_rng(0)
    high, wide = (n // RATIO * RATIO for n in truth.shape[1:])
    truth = truth[:, :high, :wide]
    grid = Grid(GeoBox((high, wide), Affine(PIXEL, 0, 500000, 0, -PIXEL, 4400000), "EPSG:32610"))
    coarse = GeoBox((high // RATIO, wide // RATIO), grid.transform * Affine.scale(RATIO), grid.crs)
    weights = footprint(coarse, BLUR, grid, shift=SHIFT if shifted else (0.0, 0.0), dtype=np.float64).dense()
    blurred = (truth.reshape(len(truth), -1) @ weights.T).reshape(len(truth), *coarse.shape)
    seen, sigma = decibel(blurred, np.where(wavelengths < 1000, 35.0, 30.0), rng)
    six = [b for b in sensor("landsat-8").bands if b.name != "coastal"]
    sharp, fine = decibel(np.tensordot(np.stack([b.response.on(wavelengths) for b in six]), truth, 1), np.full(6, 40.0), rng)
    if gains:
        sharp *= 1.0 + GAIN_SD * rng.standard_normal((6, 1, 1))
    cube = Cube(grid, Calendar(np.array([DAY])), basis_of(wavelengths, seen, sigma, rank))

    def scene(name: str, values: Array, sd: Array, box: GeoBox, **extra: object) -> Scene:
        bands = tuple(b.name for b in six) if name == "ms" else tuple(f"{c:.1f}" for c in wavelengths)
        both = values.astype(np.float32), np.broadcast_to(sd[:, None, None], values.shape).astype(np.float32)
        return Scene(name, name, bands, *both, box, Instant(DAY), simulated=True, **extra)  # type: ignore[arg-type]

    widths = np.full(wavelengths.size, 1.0)
    spectrometer = observe(scene("hs", seen, sigma, coarse, centres=wavelengths, fwhm=widths), instrument("hs", BLUR, RATIO * PIXEL, ()), cube)
    camera = observe(scene("ms", sharp, fine, grid.geobox), instrument("ms", SHARP, PIXEL, tuple(six), GAIN_SD if gains and known else 1e-5), cube)
    return cube, [spectrometer, camera]


def scored(estimate: Array, truth: Array) -> tuple[float, float]:
    """(PSNR, mean over bands, dB; ERGAS)."""
    error = ((estimate - truth) ** 2).mean(axis=(1, 2))
    psnr = float((10 * np.log10(truth.max(axis=(1, 2)) ** 2 / error)).mean())
    return psnr, float(100 / RATIO * np.sqrt((error / truth.mean(axis=(1, 2)) ** 2).mean()))


def fused(wavelengths: Array, truth: Array, rank: int, engine: str, estimated: bool, **injected: bool) -> tuple[tuple[str, ...], str]:
    """(a row of the table, what the engine says of itself).  estimated: whether blur, place and gain are."""
    cube, observations = looks(wavelengths, truth, rank, known=estimated, **injected)
    truth = truth[:, : cube.grid.shape[0], : cube.grid.shape[1]]
    start = time.perf_counter()
    found = fusion.fit(observations, cube, engine=engine, draws=0, calibrate=estimated)
    spent = time.perf_counter() - start
    mean, components, rest = (a[1:-1] for a in (cube.basis.mean, cube.basis.components, cube.basis.residual_var))
    estimate = mean[:, None, None] + np.tensordot(components, np.asarray(found.mean[0], np.float64), 1)
    spread = np.sqrt(np.tensordot(components**2, np.asarray(found.sd[0], np.float64) ** 2, 1) + rest[:, None, None])
    psnr, ergas = scored(estimate, truth)
    rmse, covered = np.sqrt(((estimate - truth) ** 2).mean()), (abs(estimate - truth) < 1.96 * spread).mean()
    return (f"{psnr:.2f}", f"{ergas:.2f}", f"{rmse:.4f}", f"{covered:.3f}", f"{spent:.0f}"), f"{found.status.name}: {found.message}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FUSION_SHARED", "../shared"), "data"))
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--engine", default="gaussian")
    parser.add_argument("--inject", action="store_true", help="gain errors and a displacement too")
    args = parser.parse_args()
    wavelengths, truth = jasper(args.data)
    console, notes = Console(width=140), []
    table = Table(title="Jasper Ridge, Wald protocol, ratio 4: 198 channels at 1/4 resolution + six OLI bands", title_justify="left")
    for name in ("method", "PSNR dB", "ERGAS", "rmse", "covers .95", "seconds"):
        table.add_column(name)
    for name, psnr, ergas in PEERS:
        table.add_row(name, f"{psnr:.1f}", f"{ergas:.2f}")
    rows: list[tuple[str, dict[str, bool]]] = [("", {})]
    if args.inject:
        rows += [("gains off by 3 %", {"gains": True}), ("half a pixel off", {"shifted": True}), ("both", {"gains": True, "shifted": True})]
    for name, injected in rows:
        for estimated in (True, False) if args.inject else (True,):
            label = name if name else f"this project, {args.engine}, K = {args.rank}"
            row, note = fused(wavelengths, truth, args.rank, args.engine, estimated, **injected)
            table.add_row(label if estimated else f"{label}, nothing estimated", *row)
            notes.append(note)
    console.print(table)
    for note in dict.fromkeys(notes):
        console.print(note)


if __name__ == "__main__":
    main()
