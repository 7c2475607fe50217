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
SHARE = {
    "canopy": 0.36, "library canopy": 0.14, "soil": 0.18, "litter": 0.11,
    "built": 0.14, "char": 0.04, "water": 0.04, "snow": 0.02,
}  # fmt: skip
"""how often each kind of surface enters a training pixel: land as an airborne or Landsat scene sees it, none absent"""
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
        raise JobError(f"{header.name}: not a little-endian float32 ENVI library with wavelengths (data type 4, byte order 0)")
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
    """Spectra at all NODES: unmeasured windows take their conditional mean in a Gaussian over `complete` and themselves."""
    have = np.array([np.abs(wavelengths - node).min() <= 7 for node in NODES])
    out = np.zeros((len(spectra), NODES.size))
    out[:, have] = np.stack([np.interp(NODES[have], wavelengths, s) for s in spectra])
    mean, covariance = complete.mean(0), np.cov(complete.T)
    for _ in range(rounds if (~have).any() else 0):
        gain = np.linalg.solve(covariance[np.ix_(have, have)] + 1e-6 * np.eye(have.sum()), covariance[np.ix_(have, ~have)]).T
        out[:, ~have] = np.maximum(mean[~have] + (out[:, have] - mean[have]) @ gain.T, 0.0)
        both = np.vstack([complete, out])
        mean, covariance = both.mean(0), np.cov(both.T)
    return out


def prosail(
    leaf: Mapping[str, float], lai: float, angle: float, soil: Array, sun: float, view: float, azimuth: float, hot: float
) -> Array:
    """(2101,) directional reflectance at 1 nm of a canopy over a soil (2101,); PROSPECT-D, 4SAIL (Feret 2017, Verhoef 2007)."""
    from prosail import run_prosail

    return np.asarray(run_prosail(
        leaf["n"], leaf["cab"], leaf["car"], leaf["brown"], leaf["cw"], leaf["cm"], lai, angle, hot, sun, view, azimuth,
        ant=leaf.get("ant", 0.0), prospect_version="D", rsoil0=soil,
    ), dtype=np.float64)  # fmt: skip


def canopies(rng: np.random.Generator, count: int, soils: Array, wavelengths: Array) -> Array:
    """(count, L) canopies from bare to dense, green to dry, over measured soils; ranges of Feret 2017 and Verhoef 2007."""
    out = np.zeros((count, NODES.size))
    for i in range(count):
        brown = 1.2 * rng.beta(0.6, 2.0)
        fresh = 1.0 - min(brown, 1.0)
        cab = min(rng.gamma(2.2, 13.0) * (0.1 + 0.9 * fresh), 90.0)
        leaf = {
            "n": rng.uniform(1.1, 3.2), "cab": cab, "car": cab * rng.uniform(0.12, 0.4) + rng.uniform(0, 4),
            "ant": rng.exponential(1.5), "brown": brown, "cw": rng.lognormal(np.log(0.012), 0.6) * (0.15 + 0.85 * fresh),
            "cm": rng.lognormal(np.log(0.007), 0.7),
        }  # fmt: skip
        soil = np.interp(FINE, wavelengths, soils[rng.integers(len(soils))]) * rng.uniform(0.4, 1.0)
        angles = rng.uniform(15, 65), rng.uniform(0, 25), rng.uniform(0, 180)
        out[i] = prosail(leaf, rng.gamma(1.3, 2.6), rng.uniform(15, 80), soil, *angles, rng.uniform(0.01, 0.5))[::10]
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


def pixels(
    rng: np.random.Generator, kinds: Mapping[str, Array], share: Mapping[str, float], count: int, shade: float = 0.4
) -> Array:
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


FINER: Array = np.arange(400.0, 2501.0, 5.0)
"""(M,) nm; the nodes of the surfaces for simulation, finer than the latent ones so that a world is not a cube"""
GROWTH = {  # leaf area, chlorophyll, brown pigment and leaf water at 8 stages (bare, emergence ... peak ... dry), peak = 1
    "lai": (0.01, 0.12, 0.45, 0.8, 1.0, 0.85, 0.6, 0.35), "cab": (1.0, 1.0, 1.0, 1.0, 1.0, 0.65, 0.25, 0.05),
    "brown": (0.0, 0.0, 0.0, 0.0, 0.02, 0.2, 0.6, 1.0), "cw": (1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.4, 0.15),
}  # fmt: skip
PLANTS = {  # at the peak: leaf layers n, chlorophyll ug/cm2, water cm, dry matter g/cm2, leaf area index, mean leaf angle, soil
    "winter crop": (1.5, 48.0, 0.015, 0.0045, 5.0, 57.0, 0), "summer crop": (1.4, 52.0, 0.018, 0.004, 4.2, 48.0, 1),
    "grass": (1.6, 36.0, 0.012, 0.006, 2.6, 63.0, 1), "broadleaf": (1.9, 42.0, 0.011, 0.009, 5.2, 42.0, 0),
    "needleleaf": (2.4, 55.0, 0.013, 0.018, 3.6, 58.0, 0), "shrub": (2.0, 30.0, 0.010, 0.012, 1.4, 50.0, 2),
}  # fmt: skip


def endmembers() -> dict[str, Array]:
    """The surfaces of simulated worlds at FINER nodes: plants as `name/stage`, soils dry and wet, water, char, snow, built.

    Wet soil is dry soil darkened by the factor .6 under a film of .012 cm of water (form of Bach & Mauser 1994).
    """
    spectra, wavelengths, _, level3 = measured()
    soil = spectra[level3 == "soil"]
    order = np.argsort(soil.mean(1))
    ground = [np.interp(FINE, wavelengths, soil[order[int(q * len(order))]]) for q in (0.15, 0.45, 0.8)]
    wet = [0.6 * g * np.exp(-2 * 0.012 * water_absorption(FINE)) for g in ground]
    found: dict[str, Array] = {}
    for name, (n, cab, cw, cm, lai, angle, under) in PLANTS.items():
        for stage in range(8):
            part = {key: values[stage] for key, values in GROWTH.items()}
            leaf = {"n": n + 0.5 * part["brown"], "cab": cab * part["cab"], "car": 0.2 * cab * part["cab"] + 3 * part["brown"],
                    "brown": part["brown"], "cw": cw * part["cw"], "cm": cm}  # fmt: skip
            found[f"{name}/{stage}"] = prosail(leaf, lai * part["lai"], angle, ground[under], 35.0, 0.0, 0.0, 0.1)
    for tone, dry_soil, wet_soil in zip(("dark", "brown", "bright"), ground, wet, strict=True):
        found |= {f"soil {tone}/dry": dry_soil, f"soil {tone}/wet": wet_soil}
    found["water/clear"] = water_spectrum(FINE, 1.5, 0.8, 0.2, 0.6, 0.004)
    found["water/turbid"] = water_spectrum(FINE, 6.0, 60.0, 0.6, 0.5, 0.006)
    found["snow"] = snow_spectrum(FINE, 0.04, 0.01, 0.95)
    for name, kinds in {
        "char": ("char",), "litter": ("litter", "npv"), "roof": ("comp_shingle",), "road": ("road", "asphalt"),
        "concrete": ("sidewalk",),
    }.items():  # fmt: skip
        found[name] = np.interp(FINE, wavelengths, np.median(spectra[np.isin(level3, kinds)], axis=0))
    return {name: np.clip(spectrum[::5], 0.0, 1.0) for name, spectrum in found.items()}


def provenance(kinds: Mapping[str, Array], share: Mapping[str, float]) -> dict[str, Any]:
    """What the shipped numbers were made from."""
    versions = {name: importlib.metadata.version(name) for name in ("earthlib", "prosail", "numpy")}
    licences = {"earthlib": "MIT", "prosail": "GPL-3.0-or-later (run only: the shipped numbers are its output)"}
    return {
        "made by": "python -m fusion.cube.learn_basis", "seed": SEED, "versions": versions, "licences": licences,
        "spectra": {name: len(pool) for name, pool in kinds.items()}, "share": dict(share), "pixels": DRAWS["pixels"],
        "nodes nm": [float(NODES[0]), float(NODES[-1]), 10.0], "components stored": KEPT,
        "surfaces": "endmembers.npz: plants at 8 stages, soils dry and wet, water, snow, char, litter, built; 5 nm, x 1e4",
    }


def main() -> None:
    """Learn and write the shipped files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envi", type=Path, nargs="*", default=[], help="headers of further ENVI spectral libraries")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    args = parser.parse_args()
    rng = np.random.default_rng(SEED)
    kinds = surfaces(rng, tuple(args.envi))
    share = SHARE | {path.stem: 0.1 for path in args.envi}
    basis = learned(pixels(rng, kinds, share, DRAWS["pixels"]))
    made = provenance(kinds, share)
    source = "library: " + ", ".join(f"{name} {version}" for name, version in made["versions"].items() if name != "numpy")
    args.out.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Any] = {"source": np.array(source)} | {name: array.astype(np.float32) for name, array in basis.items()}
    np.savez_compressed(args.out / "library.npz", **stored)
    made_of = endmembers()
    np.savez_compressed(
        args.out / "endmembers.npz", wavelengths=FINER, names=np.array(list(made_of)),
        source=np.array(source.replace("library", "surfaces")),
        spectra=np.round(1e4 * np.stack(list(made_of.values()))).astype(np.uint16),
    )  # fmt: skip
    (args.out / "provenance.json").write_text(json.dumps(made, indent=1) + "\n")
    for path in sorted(args.out.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
