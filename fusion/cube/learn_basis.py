"""Learn the shipped spectral data anew: `python -m fusion.cube.learn_basis [--envi FILE.hdr ...] [--out FOLDER]`.

Sources, by pip: `earthlib` (measured soils, built surfaces, litter, char and simulated canopies, 400-2450 nm outside the water
windows) and `prosail` (PROSPECT-D leaves + 4SAIL canopies; also the absorption of liquid water). Water and snow are computed
from the latter. Pixels are random mixtures of these surfaces under random illumination; the basis is the Gaussian with their
mean and covariance. Writes library.npz (the basis), endmembers.npz (surfaces for simulation) and provenance.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.cube.spectrum import NODES, leading
from fusion.errors import JobError

Array = NDArray[np.float64]
FINE: Array = np.arange(400.0, 2501.0)  # the 1 nm samples of PROSAIL
SEED = 20240601
SHARE = {"canopy": 0.40, "library canopy": 0.08, "soil": 0.20, "litter": 0.12, "built": 0.10, "char": 0.04, "water": 0.04, "snow": 0.02}
"""how often each kind of surface enters a pixel of the training set: land as an airborne or Landsat scene sees it, none absent"""
KEPT = 40  # components stored
DRAWS = {"canopies": 4000, "waters": 400, "snows": 400, "pixels": 20000}


def measured() -> tuple[Array, Array, NDArray[np.str_], NDArray[np.str_]]:
    """The `earthlib` library: spectra (N, W), wavelengths (W,) nm, its second and third level of class names (N,)."""
    import earthlib
    import pandas as pd

    folder = Path(earthlib.__file__).parent / "data"
    table = pd.read_csv(folder / "spectra.csv")
    spectra, wavelengths = envi_library(folder / "spectra.sli.hdr")
    return spectra, wavelengths, table["LEVEL_2"].to_numpy(str), table["LEVEL_3"].to_numpy(str)


def envi_library(header: Path) -> tuple[Array, Array]:
    """An ENVI spectral library of float32 (USGS, ECOSTRESS ...): spectra (N, W) and wavelengths (W,) in nm, increasing."""
    text = header.read_text()
    facts = dict(re.findall(r"^([a-z ]+?)\s*=\s*([^{\n]+)$", text, re.M))
    listed = re.search(r"^wavelength\s*=\s*\{([^}]*)\}", text, re.M)
    if listed is None or facts.get("data type", "").strip() != "4" or facts.get("byte order", "0").strip() != "0":
        raise JobError(f"{header.name}: not an ENVI library of little-endian float32 with wavelengths (data type 4, byte order 0)")
    wavelengths = np.array([float(v) for v in listed.group(1).split(",")])
    if np.median(wavelengths) < 100:
        wavelengths *= 1000.0
    data = next((p for p in (header.with_suffix(""), header.with_suffix(".sli")) if p.exists() and p != header), None)
    if data is None:
        raise JobError(f"{header.name}: its data file must lie beside it, named as the header without .hdr")
    values = np.fromfile(data, "<f4").astype(np.float64)
    if values.size % wavelengths.size:
        raise JobError(f"{data.name}: {values.size} numbers do not fill spectra of {wavelengths.size} channels")
    order = np.argsort(wavelengths, kind="stable")
    return values.reshape(-1, wavelengths.size)[:, order], wavelengths[order]


def completed(spectra: Array, wavelengths: Array, complete: Array, rounds: int = 8) -> Array:
    """Spectra at all NODES: the windows that were not measured take their conditional mean in a Gaussian over `complete` and themselves."""
    inside = (NODES >= wavelengths[0]) & (NODES <= wavelengths[-1])
    gap = np.array([np.abs(wavelengths - node).min() > 15 for node in NODES])
    have = inside & ~gap
    out = np.zeros((len(spectra), NODES.size))
    out[:, have] = np.stack([np.interp(NODES[have], wavelengths, s) for s in spectra])
    mean, covariance = complete.mean(0), np.cov(complete.T)
    for _ in range(rounds if (~have).any() else 0):
        gain = np.linalg.solve(covariance[np.ix_(have, have)] + 1e-6 * np.eye(have.sum()), covariance[np.ix_(have, ~have)]).T
        out[:, ~have] = np.maximum(mean[~have] + (out[:, have] - mean[have]) @ gain.T, 0.0)
        both = np.vstack([complete, out])
        mean, covariance = both.mean(0), np.cov(both.T)
    return out


def prosail(leaf: Mapping[str, float], lai: float, angle: float, sun: float, view: float, azimuth: float, hot: float, soil: Array) -> Array:
    """(2101,) directional reflectance at 1 nm of a canopy over a soil (2101,); PROSPECT-D (Feret 2017) and 4SAIL (Verhoef 2007)."""
    from prosail import run_prosail

    return np.asarray(run_prosail(
        leaf["n"], leaf["cab"], leaf["car"], leaf["brown"], leaf["cw"], leaf["cm"], lai, angle, hot, sun, view, azimuth,
        ant=leaf.get("ant", 0.0), prospect_version="D", rsoil0=soil,
    ), dtype=np.float64)  # fmt: skip


def canopies(rng: np.random.Generator, count: int, soils: Array, wavelengths: Array) -> Array:
    """(count, L) canopies from bare to dense, green to dry, over measured soils; parameter ranges of Feret 2017 and Verhoef 2007."""
    out = np.zeros((count, NODES.size))
    for i in range(count):
        brown = 1.2 * rng.beta(0.6, 2.0)
        fresh = 1.0 - min(brown, 1.0)
        cab = rng.gamma(3.0, 13.0) * (0.1 + 0.9 * fresh)
        leaf = {
            "n": rng.uniform(1.1, 2.8), "cab": min(cab, 90.0), "car": min(cab, 90.0) * rng.uniform(0.12, 0.4) + rng.uniform(0, 4),
            "ant": rng.exponential(1.5), "brown": brown, "cw": rng.lognormal(np.log(0.013), 0.5) * (0.15 + 0.85 * fresh),
            "cm": rng.lognormal(np.log(0.007), 0.55),
        }  # fmt: skip
        soil = np.interp(FINE, wavelengths, soils[rng.integers(len(soils))]) * rng.uniform(0.4, 1.0)
        angles = rng.uniform(15, 65), rng.uniform(0, 25), rng.uniform(0, 180)
        out[i] = prosail(leaf, rng.gamma(1.6, 1.9), rng.uniform(25, 75), *angles, rng.uniform(0.01, 0.5), soil)[::10]
    return out


def water_absorption(at: Array) -> Array:
    """Absorption of liquid water, 1/cm, as PROSPECT-D uses it."""
    from prosail.spectral_library import get_spectra

    return np.interp(at, FINE, get_spectra().prospectd.kw)


def water_spectrum(at: Array, chlorophyll: float, sediment: float, cdom: float, slope: float, glint: float) -> Array:
    """Reflectance of deep water: pi R_rs = pi 0.54 (0.0895 u + 0.1247 u^2), u = b_b / (a + b_b), plus glint.

    Gordon et al. 1988, coefficients of Lee et al. 2002 for optically deep water; sediment in g/m3, chlorophyll in mg/m3.
    Specific absorptions and backscattering are textbook magnitudes (Mobley 1994, ch. 3).
    """
    pigment = 0.04 * chlorophyll**0.6 * (np.exp(-0.5 * ((at - 440) / 45) ** 2) + 0.55 * np.exp(-0.5 * ((at - 675) / 14) ** 2))
    dissolved = cdom * np.exp(-0.016 * (at - 440)) + 0.03 * sediment * np.exp(-0.011 * (at - 440))
    back = 0.0006 * (at / 550) ** -4.3 + 0.009 * sediment * (at / 550) ** -slope
    u = back / (100 * water_absorption(at) + pigment + dissolved + back)
    return np.pi * 0.54 * (0.0895 * u + 0.1247 * u**2) + glint


def snow_spectrum(at: Array, path: float, soot: float, shade: float) -> Array:
    """Reflectance of snow, exp(-3.8 sqrt(alpha d)) less soot (form of Kokhanovsky & Zege 2004, Appl. Opt. 43).

    path: grain size d, cm. No ice table is available by pip: alpha is that of liquid water moved 55 nm to the red, where
    the near-infrared bands of ice sit, and a tenth of it in the visible.
    """
    alpha = np.interp(at - 55.0, at, water_absorption(at)) * np.where(at < 700, 0.1, 1.0)
    return np.exp(-3.8 * np.sqrt(alpha * path)) * (1 - soot * 400 / at) * shade


def surfaces(rng: np.random.Generator, extra: tuple[Path, ...] = ()) -> dict[str, Array]:
    """Spectra (N, L) of every kind of surface."""
    spectra, wavelengths, level2, level3 = measured()
    ground = np.isin(level3, ["soil", "sand", "gravel", "dirt"]) & (level2 == "bare")
    found = {"canopy": canopies(rng, DRAWS["canopies"], spectra[ground], wavelengths)}
    filled = completed(spectra, wavelengths, found["canopy"])
    found |= {
        "library canopy": filled[level3 == "canopy"], "soil": filled[ground], "litter": filled[level2 == "npv"],
        "built": filled[level2 == "built"], "char": filled[level3 == "char"],
        "water": np.stack([
            water_spectrum(NODES, rng.lognormal(np.log(4), 1.2), rng.lognormal(np.log(6), 1.5), rng.lognormal(np.log(0.4), 0.9),
                           rng.uniform(0.2, 1.2), rng.exponential(0.01))
            for _ in range(DRAWS["waters"])
        ]),
        "snow": np.stack([
            snow_spectrum(NODES, rng.lognormal(np.log(0.05), 0.7), rng.exponential(0.02), rng.uniform(0.8, 1.0))
            for _ in range(DRAWS["snows"])
        ]),
    }  # fmt: skip
    for path in extra:
        found[path.stem] = completed(*envi_library(path), found["canopy"])
    return found


def pixels(rng: np.random.Generator, kinds: Mapping[str, Array], share: Mapping[str, float], count: int, shade: float = 0.4) -> Array:
    """(count, L) mixtures of 1-3 surfaces with uniform (Dirichlet) fractions, times a log-normal illumination of sd `shade`."""
    names = list(share)
    chance = np.array([share[name] for name in names])
    out = np.zeros((count, NODES.size))
    for i in range(count):
        parts = 1 if rng.random() < 0.2 else rng.integers(2, 4)
        fractions = rng.dirichlet(np.ones(parts))
        for fraction, kind in zip(fractions, rng.choice(len(names), parts, p=chance / chance.sum()), strict=True):
            pool = kinds[names[kind]]
            out[i] += fraction * pool[rng.integers(len(pool))]
        out[i] *= np.exp(shade * rng.standard_normal() - 0.5 * shade**2)
    return out


def learned(spectra: Array, broad: float = 1.15) -> dict[str, Array]:
    """Mean, leading components, their variances and the total variance per wavelength of a set of spectra (N, L).

    broad: factor on all variances. The libraries are not the world: on scenes outside them intervals without it are too short.
    """
    covariance = broad * np.cov(spectra.T)
    components, variances = leading(covariance, KEPT)
    return {"mean": spectra.mean(0), "components": components, "variances": variances, "total_var": np.diag(covariance)}


def provenance(kinds: Mapping[str, Array], share: Mapping[str, float]) -> dict[str, Any]:
    """What the shipped numbers were made from."""
    versions = {name: importlib.metadata.version(name) for name in ("earthlib", "prosail", "numpy")}
    licences = {"earthlib": "MIT", "prosail": "GPL-3.0 (run, not copied: the shipped numbers are its output)"}
    return {
        "made by": "python -m fusion.cube.learn_basis", "seed": SEED, "versions": versions, "licences": licences,
        "spectra": {name: len(pool) for name, pool in kinds.items()}, "share": dict(share), "pixels": DRAWS["pixels"],
        "nodes nm": [float(NODES[0]), float(NODES[-1]), 10.0], "components stored": KEPT,
    }


def main() -> None:
    """Learn and write the shipped files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envi", type=Path, nargs="*", default=[], help="headers of further ENVI spectral libraries (USGS, ECOSTRESS)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    args = parser.parse_args()
    rng = np.random.default_rng(SEED)
    kinds = surfaces(rng, tuple(args.envi))
    share = SHARE | {path.stem: 0.1 for path in args.envi}
    basis = learned(pixels(rng, kinds, share, DRAWS["pixels"]))
    made = provenance(kinds, share)
    source = "library: " + ", ".join(f"{name} {version}" for name, version in made["versions"].items() if name != "numpy")
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / "library.npz", source=np.array(source), **{k: v.astype(np.float32) for k, v in basis.items()})
    (args.out / "provenance.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"{args.out / 'library.npz'}: {(args.out / 'library.npz').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
