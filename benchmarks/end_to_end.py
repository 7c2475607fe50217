"""From files to a scored cube: real pairs as COG and HDF5 behind a STAC API, fused by `fusion run`, judged on a hidden image.

    python -m benchmarks.end_to_end [--data ../shared/data] [--case cia_west 0] [--compare] [--picture docs/figures/real_pair.png]
    python -m benchmarks.end_to_end --case salton_north 4 --cells 9 18 --core 63 --compare

The protocol is the one of benchmarks/accuracy.py: the same instruments (installed as a sensor plug-in, as a stranger's would be),
the same given and hidden dates, latent times at the acquisitions. What differs is the whole service: files with quantised
reflectance, a search, tiles with halos, the spectral library as the basis, and the store. `--compare` fits the arrays
themselves twice: the looks that the job kept, on the job's basis, so that only files, tiles and store differ; and as the accuracy
benchmark does, every composite and the bands themselves as the basis. It fails where the first of them and the cube differ by
more than 5 %. Sources of the data: the README of the data folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import DRAWS, LEVELS, SETTING, Score, blurred, ours, score
from benchmarks.pairs import Case, Pair, cases, cut, latent_times, read, sensors
from benchmarks.peers import naive
from fusion.cube.calendar import DAY, Instant, Window
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.observe.scene import Scene
from fusion.observe.sensor import Pass, Sensor
from fusion.service.store import CubeStore
from sensors.hrefs import asset_of, local_file
from sensors.reading import Storage, as_plane, assemble, calibrate, instant, planes, reach_of
from sensors.writing import make_item, quantise, write_tif

ROOT = Path(__file__).resolve().parents[1]
STORAGE = Storage(1e-4, 0.0, fill=(-9999,), valid=(-2000, 16000), dtypes=("int16",))
"""of HLS: steps of 1e-4"""
PLACES = {"cia_west": (32755, 50.0, (401_000.0, 6_152_800.0)), "salton_north": (32611, 70.0, (649_980.0, 3_659_840.0))}
"""UTM zone, fine pixel and upper left corner"""
BANDS = {"cia_west": ("blue", "green", "red", "nir", "swir1", "swir2"), "salton_north": ("nir",)}
TOLERANCE = 0.05


# --- the instruments, as a plug-in ----------------------------------------------------------------------------------------


def instruments(name: str) -> tuple[Sensor, Sensor]:
    """(fine, coarse): the benchmark's own numbers, with readers of files."""
    none = np.zeros((0,))
    ratio = 10 if name == "cia_west" else 7
    window = name.startswith("salton")
    pair = Pair(name, BANDS[name], none, none.astype("M8[D]"), none, none.astype("M8[D]"), ratio, PLACES[name][1], window)
    fine, coarse = sensors(pair)
    short = name.split("_")[0]
    fine = replace(fine, name=f"{short}-fine", title=f"{name}, fine images", offset_sd=fine.offset_sd)
    coarse = replace(coarse, name=f"{short}-coarse", title=f"{name}, coarse series")
    fine = replace(fine, read=lambda item, grid, facts=fine: read_fine(facts, item, grid), revisit=_no_plan)
    return fine, replace(coarse, read=lambda item, grid, facts=coarse: read_coarse(facts, item, grid), revisit=_no_plan)


def _no_plan(lon: float, lat: float, first: date, last: date) -> list[Pass]:
    return []


def read_fine(facts: Sensor, item: pystac.Item, grid: Grid) -> Scene:
    """One COG per band."""
    where = f"{facts.name} scene {item.id}"
    found = planes(item, {b.name: (b.name,) for b in facts.bands}, grid, reach_of(facts.psf, facts.pixel), where)
    values = np.stack([calibrate(found[b.name], STORAGE, where)[0] for b in facts.bands])
    return assemble(facts.name, facts.bands, item, values, found[facts.bands[0].name].geobox, instant(item))


def read_coarse(facts: Sensor, item: pystac.Item, grid: Grid) -> Scene:
    """One HDF5 file with a dataset per band, read whole."""
    where = f"{facts.name} scene {item.id}"
    with h5py.File(local_file(item, asset_of(item, ("data",), where), where)) as file:
        box = GeoBox(tuple(map(int, file.attrs["shape"])), Affine(*file.attrs["transform"]), str(file.attrs["crs"]))
        found = [as_plane(file[b.name], box, grid, reach_of(facts.psf, facts.pixel), where, fill=-9999.0) for b in facts.bands]
    values = np.stack([calibrate(plane, STORAGE, where)[0] for plane in found])
    first, last = (item.properties.get(f"{edge}_datetime") for edge in ("start", "end"))
    when: Any = instant(item)
    if first is not None:
        start, end = (np.datetime64(t.removesuffix("Z"), "us") for t in (first, last))
        when = Window(start, end.astype("M8[D]").astype("M8[us]") + 12 * np.timedelta64(3600, "s"), start + 8 * DAY)
    return assemble(facts.name, facts.bands, item, values, found[0].geobox, when)


PLUGIN = "from benchmarks.end_to_end import instruments\n\n" + "".join(
    f"{short.upper()}_FINE, {short.upper()}_COARSE = instruments({name!r})\n"
    for short, name in (("cia", "cia_west"), ("salton", "salton_north"))
)
ENTRIES = "[fusion.sensors]\n" + "".join(
    f"{short}-{kind} = pair_sensors:{short.upper()}_{kind.upper()}\n" for short in ("cia", "salton") for kind in ("fine", "coarse")
)


def installed(folder: Path) -> Path:
    """A distribution with one module and its entry points, as `pip install --target` would leave it."""
    about = folder / "pair_sensors-1.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (folder / "pair_sensors.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pair-sensors\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    return folder


# --- files and catalog ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a pair's pixels lie."""

    fine: GeoBox
    coarse: GeoBox

    @classmethod
    def of(cls, pair: Pair) -> Place:
        """The layout that a pair is given here: fine and coarse share their upper left corner."""
        zone, pixel, corner = PLACES[pair.name]
        place = Affine(pixel, 0, corner[0], 0, -pixel, corner[1])
        cells = place * Affine.scale(pair.ratio)
        return cls(GeoBox(pair.fine.shape[2:], place, f"EPSG:{zone}"), GeoBox(pair.coarse.shape[2:], cells, f"EPSG:{zone}"))


def archive(case: Case, folder: Path) -> Path:
    """The given images as files and an ItemCollection; the hidden image is not among them."""
    pair, place = case.pair, Place.of(case.pair)
    fine, coarse = instruments(pair.name)
    features = []
    latent = latent_times(pair).astype("M8[D]")
    for i in case.given:
        when = Instant(np.datetime64(pair.fine_dates[i], "us") + np.timedelta64(12, "h"))
        scene = _scene(fine, f"{fine.name}-{pair.fine_dates[i]}", pair.fine[i], place.fine, when)
        files = {b: write_tif(folder / f"{scene.id}_{b}.tif", quantise(v, STORAGE), place.fine, fill=-9999)
                 for b, v in zip(scene.bands, scene.reflectance, strict=True)}
        features.append(_listed(make_item(scene, folder, {b: (path, {}) for b, path in files.items()}), fine.name))
    for i, day in enumerate(pair.coarse_dates):
        if not np.isfinite(pair.coarse[i]).any() or (pair.window and day not in latent):
            continue  # daily composites of 16 days share 15 of them: one per latent time says as much
        noon = np.datetime64(day, "us") + np.timedelta64(12, "h")
        when = Window(noon - 8 * DAY, noon + 7 * DAY, noon) if pair.window else Instant(noon)
        scene = _scene(coarse, f"{coarse.name}-{day}", pair.coarse[i], place.coarse, when)
        path = folder / f"{scene.id}.h5"
        with h5py.File(path, "w") as file:
            file.attrs.update(shape=place.coarse.shape, transform=list(place.coarse.transform)[:6], crs=str(place.coarse.crs))
            for b, v in zip(scene.bands, scene.reflectance, strict=True):
                file.create_dataset(b, data=quantise(v, STORAGE), chunks=True, compression="gzip")
        features.append(_listed(make_item(scene, folder, {"data": (path, {})}), coarse.name))
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def _scene(facts: Sensor, name: str, values: NDArray[Any], box: GeoBox, when: Any) -> Scene:
    values = values.astype(np.float32)
    return Scene(facts.name, name, tuple(b.name for b in facts.bands), values, np.full_like(values, 0.01), box, when)


def _listed(item: pystac.Item, collection: str) -> dict[str, Any]:
    return item.to_dict(include_self_link=False) | {"collection": collection}


def job_text(case: Case, api: str, store: Path, core: int, halo: int) -> str:
    """The job file."""
    pair, box = case.pair, Place.of(case.pair).fine.boundingbox
    times = latent_times(pair)
    edges = [str(t)[:10] for t in (times[0] - DAY, times[-1] + 2 * DAY)]
    short, rank = pair.name.split("_")[0], 8 if len(pair.bands) > 1 else 2
    settings = json.dumps(SETTING).replace(":", " =")
    blocks = [f'[[sensors]]\nname = "{short}-{kind}"\ncatalog = "{api}"\ncollection = "{short}-{kind}"\n' for kind in ("fine", "coarse")]
    return "\n".join([
        f'name = "{pair.name}"\n[area]\nbbox = [{box.left}, {box.bottom}, {box.right}, {box.top}]\ncrs = "{box.crs}"',
        f'[target]\ncrs = "{box.crs}"\nresolution = {pair.pixel}\nalign = {box.left % pair.pixel}',
        f'[period]\nstart = "{edges[0]}"\nend = "{edges[1]}"\ntimes = {json.dumps([str(t)[:19] + "Z" for t in times])}',
        *blocks, f"[spectrum]\nrank = {rank}\n[engine]\nname = \"gaussian\"\nsettings = {settings}",
        f"[tiles]\ncore = {core}\nhalo = {halo}\n[output]\nstore = \"{store}\"\ndraws = {DRAWS}\n[cluster]\nworkers = 1\n",
    ])


# --- the run and its judgement --------------------------------------------------------------------------------------------


def piped(case: Case, work: Path, core: int, halo: int) -> tuple[Score, dict[str, NDArray[Any]]]:
    """`fusion run` as a user calls it, and the score of its cube on the hidden image."""
    import fusion
    from fusion.testing import stac_api

    shutil.rmtree(work, ignore_errors=True)
    plugin = installed(work / "plugin")
    sys.path[:0] = [str(plugin)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(plugin), str(ROOT)]), "FUSION_CACHE": str(work / "downloads")}
    store = work / "cube.zarr"
    with stac_api(archive(case, _made(work / "archive"))) as api:
        (work / "job.toml").write_text(job_text(case, api.root, store, core, halo))
        begun = time.perf_counter()
        command = [str(Path(sys.executable).parent / "fusion"), "-v", "run", str(work / "job.toml")]
        subprocess.run(command, env=environment, check=True)
        seconds = time.perf_counter() - begun
    cube = fusion.open_cube(str(store))
    fine, _ = instruments(case.pair.name)
    when = np.datetime64(case.pair.fine_dates[case.target], "ns") + np.timedelta64(12, "h")
    seen = cube.sel(time=when).fusion.bands(fine.name)
    mean, sd = (seen[k].transpose("band", "y", "x").values.astype(np.float64) for k in ("mean", "sd"))
    mean, sd = blurred(fine, cube.fusion.cube.grid, mean, sd, seen["draws"].transpose("draw", "band", "y", "x").values.astype(np.float64))
    total = _observed_sd(store, fine, mean, sd, core)
    return score(mean, case.truth, total, seconds, float(seen["tail"].mean())), {"mean": mean, "sd": sd, "total": total}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def as_seen(case: Case, store: CubeStore) -> tuple[Case, SpectralBasis]:
    """(the case without the composites that the job left out, because their windows overlap; the job's basis)."""
    coarse = instruments(case.pair.name)[1].name
    kept = {item["id"] for item in store.items()[coarse]}
    seen = np.array([f"{coarse}-{day}" in kept for day in case.pair.coarse_dates])
    values = np.where(seen[:, None, None, None], case.pair.coarse, np.nan)
    return replace(case, pair=replace(case.pair, coarse=values)), store.cube.basis


def _observed_sd(store: Path, fine: Sensor, mean: NDArray[Any], sd: NDArray[Any], core: int) -> NDArray[np.float64]:
    """Posterior, the fine sensor's noise and its offset together, theta of each tile from its record."""
    opened, total = CubeStore.open(store, read_only=True), np.empty_like(sd)
    for index, record in opened.records().items():
        theta = record["theta"]
        place = theta["sensors"].index(fine.name)
        here = (..., slice(index[0] * core, (index[0] + 1) * core), slice(index[1] * core, (index[1] + 1) * core))
        facts = fine.bands[0].noise
        own = theta["noise"][place] * (facts.a + facts.b * np.abs(mean[here]))
        total[here] = np.sqrt(sd[here] ** 2 + own**2 + (theta["offset"][place] * fine.offset_sd) ** 2)
    return total


def picture(case: Case, got: dict[str, NDArray[Any]], path: Path) -> None:
    """Inputs above, the fused image, its sd and the hidden image with the error below."""
    from matplotlib.figure import Figure

    pair = case.pair
    shown = [pair.bands.index(b) for b in (("nir", "red", "green") if "red" in pair.bands else ("nir",) * 3)]
    high = np.nanpercentile(case.truth[shown], 99, axis=(1, 2))

    def colour(values: NDArray[Any]) -> NDArray[Any]:
        return np.clip(np.nan_to_num(np.moveaxis(values[shown] / high[:, None, None], 0, -1)), 0, 1)

    day = pair.fine_dates[case.target]
    coarse = pair.coarse[int(np.abs(pair.coarse_dates - day).argmin())]
    error, nir = got["mean"] - case.truth, pair.bands.index("nir")
    figure = Figure(figsize=(11.5, 9.5), layout="constrained")
    axes = figure.subplots(2, 4)
    before, after = case.around
    pictures = (
        (colour(pair.fine[before]), f"given: fine, {pair.fine_dates[before]}"), (colour(coarse), f"given: coarse, {day}"),
        (colour(pair.fine[after]), f"given: fine, {pair.fine_dates[after]}"), (colour(case.truth), f"hidden: fine, {day}"),
        (colour(got["mean"]), f"fused: {day}"),
    )
    for axis, (values, title) in zip(axes.flat, pictures, strict=False):
        axis.imshow(values, interpolation="nearest")
        axis.set(title=title, xticks=[], yticks=[])
    limit = float(np.nanpercentile(np.abs(error[nir]), 99))
    rest = ((got["sd"][nir], "sd of nir", "viridis", 0.0, float(np.nanpercentile(got["sd"][nir], 99))),
            (error[nir], "error of nir (fused - hidden)", "RdBu_r", -limit, limit))
    for axis, (values, title, colours, low, top) in zip(axes.flat[5:], rest, strict=False):
        drawn = axis.imshow(values, cmap=colours, vmin=low, vmax=top, interpolation="nearest")
        axis.set(title=title, xticks=[], yticks=[])
        figure.colorbar(drawn, ax=axis, shrink=0.75, label="reflectance")
    last = axes.flat[7]
    z = (error[nir] / got["total"][nir]).ravel()
    last.hist(z[np.isfinite(z)], np.linspace(-4, 4, 41), density=True, color="#4c72b0")
    line = np.linspace(-4, 4, 200)
    last.plot(line, np.exp(-(line**2) / 2) / np.sqrt(2 * np.pi), color="0.3", lw=1.5)
    last.set(title="error / stated sd, nir", yticks=[], xlabel="line: standard normal", box_aspect=1.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("FUSION_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data")
    parser.add_argument("--case", nargs=2, default=("cia_west", "0"), metavar=("FILE", "N"), help="file and number of its case")
    parser.add_argument("--cells", nargs=2, type=int, metavar=("DOWN", "ACROSS"), help="only the upper left corner, in coarse cells")
    parser.add_argument("--core", type=int, default=128)
    parser.add_argument("--halo", type=int, default=16)
    parser.add_argument("--work", type=Path, default=ROOT / "demo" / "end_to_end", help="files, catalog and cube are made here")
    parser.add_argument("--compare", action="store_true", help="fit the arrays themselves too, and fail if the errors differ")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    case = list(cases(read(options.data, options.case[0])))[int(options.case[1])]
    case = cut(case, options.cells) if options.cells else case
    work = options.work.resolve()
    through, got = piped(case, work, options.core, options.halo)
    scores = {"fusion run": through}
    if options.compare:
        seen, basis = as_seen(case, CubeStore.open(work / "cube.zarr", read_only=True))
        scores["arrays, its looks and basis"] = ours(seen, "gaussian", SETTING, basis)
        scores["arrays, all looks, bands as basis"] = ours(case, "gaussian", SETTING)
    for method, mean in naive.predictions(case).items():
        scores[method] = score(mean, case.truth)
    Console(width=150).print(_table(case, scores))
    if options.picture:
        picture(case, got, options.picture)
    if options.compare:
        a, b = (float(s.rmse.mean()) for s in list(scores.values())[:2])
        sys.exit(f"the errors differ by {abs(a / b - 1):.1%}, at most {TOLERANCE:.0%} is allowed") if abs(a / b - 1) > TOLERANCE else None


def _table(case: Case, scores: dict[str, Score]) -> Table:
    given = ", ".join(str(case.pair.fine_dates[i]) for i in case.given)
    out = Table(title=f"{case.pair.name}: {case.pair.fine_dates[case.target]} hidden, given {given}")
    for column in ("", "rmse", *case.pair.bands, *(f"cover {level:.0%}" for level in LEVELS), "CRPS", "s"):
        out.add_column(column, justify="right")
    for name, s in scores.items():
        cells = (*(f"{v:.4f}" for v in s.rmse), *("" if np.isnan(v) else f"{v:.0%}" for v in s.cover))
        out.add_row(name, f"{s.rmse.mean():.4f}", *cells, f"{s.crps:.4f}", "" if np.isnan(s.seconds) else f"{s.seconds:.0f}")
    return out


if __name__ == "__main__":
    main()
