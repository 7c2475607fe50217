"""Full spectra from broad bands, on real scenes that the shipped basis never saw: `python benchmarks/spectral_prior.py`.

Landsat 8 (6 bands) and MODIS (7 bands) at noise .005 predict every wavelength of an airborne spectrometer. Scored outside the
opaque water windows, with and without the shoulders of the absorption bands, where the truth itself is uncertain.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fusion.cube.spectrum import DROPPED, NODES, SHOULDERS, Spectra, SpectralBasis, within
from fusion.observe.sensor import sensor

Array = NDArray[np.float64]
SIGMA = 0.005
PATCH = 0.07  # of the area
PEERS = "peers and earlier prototypes on the same data: linear interpolation 2.2-2.8 %, library prior 1.1-1.5 % covering .91-.98"


def scenes(folder: Path) -> Iterator[tuple[str, Array, Array, tuple[int, int] | None]]:
    """(name, wavelengths (W,), spectra (N, W), image shape or None)."""
    air = np.load(folder / "hyperspectral/aviris_90x90x224.npz")
    yield "AVIRIS", *usable(air["wavelength_nm"], air["cube"].reshape(-1, 224) * 1e-4), (90, 90)
    jasper = np.load(folder / "hyperspectral/jasper_ridge_100x100x198.npz")
    channels = air["wavelength_nm"][jasper["band_1based"].astype(int) - 1]
    yield "Jasper Ridge (counts)", *usable(channels, jasper["cube"].reshape(-1, 198) * 1e-4), (100, 100)
    with h5py.File(folder / "hyperspectral/neon_sjer_30x30x426.h5") as file:
        found = file["SJER/Reflectance"]
        cube = found["Reflectance_Data"][:].reshape(-1, 426) * 1e-4
        yield "NEON SJER", *usable(found["Metadata/Spectral_Data/Wavelength"][:], cube, 410.0), (30, 30)
    header = folder / "spectra/isofit_ecostress_library_with_mixtures.hdr"
    listed = re.search(r"wavelength = \{([^}]*)\}", header.read_text())
    assert listed is not None
    wavelengths = np.array([float(v) for v in listed.group(1).split(",")])
    library = np.fromfile(header.with_suffix(""), "<f4").reshape(-1, wavelengths.size)
    yield "ECOSTRESS library", *usable(wavelengths, library.astype(np.float64)), None


def usable(wavelengths: Array, spectra: Array, low: float = 400.0) -> tuple[Array, Array]:
    """Channels in order, without overlaps, opaque windows and channels that are coded zero."""
    order = np.argsort(wavelengths, kind="stable")
    wavelengths, spectra = wavelengths[order], spectra[:, order]
    keep = (wavelengths >= low) & (wavelengths <= 2450) & ~within(wavelengths, DROPPED) & ((spectra == 0).mean(0) < 0.5)
    wavelengths, spectra = wavelengths[keep], spectra[:, keep]
    apart = np.diff(wavelengths, prepend=0) > 1.0
    return wavelengths[apart], spectra[:, apart]


def hat(wavelengths: Array) -> Array:
    """(W, L) linear interpolation from the latent nodes."""
    return np.stack([np.interp(wavelengths, NODES, unit) for unit in np.eye(NODES.size)], axis=1)


def scored(error: Array, spread: Array, pick: NDArray[np.bool_]) -> list[str]:
    """Rms error in % and coverage of 95 % intervals."""
    part = error[:, pick]
    covered = (np.abs(part) < 1.96 * spread[pick]).mean()
    return [f"{100 * np.sqrt((part**2).mean()):.2f}", f"{covered:.3f}" if spread.any() else ""]


def rows(name: str, wavelengths: Array, spectra: Array, shape: tuple[int, int] | None) -> Iterator[list[str]]:
    """The table rows of one scene."""
    bands = [b.response for b in sensor("landsat-8").bands if b.name != "coastal"]
    bands += [b.response for b in sensor("modis-mcd43a4").bands]
    seen = spectra @ np.stack([b.on(wavelengths) for b in bands]).T
    seen = seen + SIGMA * np.random.default_rng(0).standard_normal(seen.shape)
    everything, clear = np.ones(wavelengths.size, bool), ~within(wavelengths, SHOULDERS)
    on, none = hat(wavelengths), np.zeros(wavelengths.size)

    def row(method: str, error: Array, spread: Array, left: str, where: NDArray[np.bool_]) -> list[str]:
        error = error[where]
        return [name, method, left, *scored(error, spread, everything), *scored(error, spread, clear)]

    whole = np.ones(len(spectra), bool)
    centres = np.array([b.centroid for b in bands])
    order = np.argsort(centres)
    linear = np.stack([np.interp(wavelengths, centres[order], s[order]) for s in seen])
    yield row("linear interpolation", linear - spectra, none, "", whole)
    library = SpectralBasis.library(12)
    yield row("library, K = 12", *predicted(library, bands, seen, spectra, on, none), whole)
    if shape is None:
        return
    edge = [round(n * np.sqrt(PATCH)) for n in shape]
    inside = np.zeros(shape, bool)
    inside[shape[0] // 5 : shape[0] // 5 + edge[0], shape[1] // 5 : shape[1] // 5 + edge[1]] = True
    patch = inside.ravel()
    hybrid = SpectralBasis.hybrid(SpectralBasis.library(40), [Spectra("patch", wavelengths, spectra[patch])])
    told = on @ hybrid.offsets["patch"]
    yield row(f"hybrid, K = 16, patch {patch.mean():.0%}", *predicted(hybrid, bands, seen, spectra, on, told), ~patch)


def predicted(
    basis: SpectralBasis, bands: list, seen: Array, spectra: Array, on: Array, offset: Array
) -> tuple[Array, Array, str]:
    """(errors (N, W), standard deviation (W,), rms % that the components and one offset spectrum leave over)."""
    mean, sd = basis.spectrum(*basis.given(basis.weights(bands), seen, np.full(len(bands), SIGMA**2)))
    gap = spectra - on @ basis.mean
    inside = on @ basis.components
    gap = gap - gap @ np.linalg.pinv(inside).T @ inside.T
    gap = gap - gap.mean(0)
    return mean @ on.T + offset - spectra, on @ sd, f"{100 * np.sqrt((gap**2).mean()):.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FUSION_SHARED", "../shared"), "data"))
    folder = parser.parse_args().data
    if not folder.is_dir():
        raise SystemExit(f"no folder {folder}: give the one with hyperspectral/ and spectra/ by --data")
    table = Table(title="Spectrum from Landsat 6 + MODIS 7 bands at sigma .005", title_justify="left")
    for heading in ("scene", "method", "left by basis + offset %", "rmse %", "covers .95", "rmse % clear", "covers .95 clear"):
        table.add_column(heading)
    for scene in scenes(folder):
        for line in rows(*scene):
            table.add_row(*line)
        table.add_section()
    console = Console(width=130)
    console.print(table)
    console.print(PEERS)
    console.print("targets: <= .5 % left over; <= 1.5 % library only; <= .8 % with a patch on 6-8 % of the area; covers .92-.98")


if __name__ == "__main__":
    main()
