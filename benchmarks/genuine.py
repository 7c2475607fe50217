"""The archives' own files through the whole service: a catalog on a local STAC API, `fusion run`, and the cube beside the files.

    python -m benchmarks.genuine [--data ../shared/data] [--only landsat-8 neon-aop] [--picture docs/figures/genuine.png]

Four jobs, because no two of these places are the same: a Landsat 8 scene in Colombia with its own STAC item (the file was decimated
to 450 m by its source), an 8-day MOD09A1 granule of the Alps (HDF-EOS2), MOD09GA of three days near Pamplona (GeoTIFF with angles and
coverage), and a NEON flight over California (HDF5, 426 channels). Near Pamplona the middle day is hidden from the job and judged
against the mean of its neighbours; elsewhere the cube is judged on the files that it was made of, which shows that nothing
was shifted, scaled or lost on the way, and not how well it predicts. Sources of the files: the README of the data folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import box
from rich.console import Console
from rich.table import Table
from shapely.geometry import mapping

import fusion
from fusion.cube.grid import Grid
from fusion.observe.scene import Scene
from fusion.observe.sensor import sensor
from fusion.service.store import CubeStore
from fusion.testing import stac_api

ROOT = Path(__file__).resolve().parents[1]
BBox = tuple[float, float, float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """One job: which files, where, when."""

    sensor: str
    title: str
    bbox: BBox
    """of the job, in `crs`"""
    crs: str
    resolution: float
    times: tuple[str, ...]
    """latent times"""
    items: Callable[[Path, Path], list[pystac.Item]]
    """(data folder, where to put the files) -> items, in time order"""
    hidden: int | None = None
    """which item the job does not see"""
    shown: tuple[Any, Any, Any] = ("red", "green", "blue")
    """bands, or wavelengths in nm, of the picture"""


# --- the files, as a catalog lists them -----------------------------------------------------------------------------------


def landsat(data: Path, folder: Path) -> list[pystac.Item]:
    """The scene's own item as the agency wrote it, its addresses pointed to the files beside it."""
    home = data / "landsat_native" / "LC08_008059_20191201"
    item = pystac.Item.from_dict(json.loads(next(home.glob("*_SR_stac.json")).read_text()))
    item.clear_links()
    item.assets = {key: asset for key, asset in item.assets.items() if list(home.glob(f"*_{key}"))}
    for key, asset in item.assets.items():
        asset.href = shutil.copy(next(home.glob(f"*_{key}")), folder)
    return [item]


def mod09a1(data: Path, folder: Path) -> list[pystac.Item]:
    """The granule, out of its zip."""
    with zipfile.ZipFile(next((data / "modis_native").glob("MOD09A1*.zip"))) as archive:
        archive.extractall(folder)
    return [listed("MOD09A1.A2017193.h18v04.006", "2017-07-12", {"hdf": next(folder.glob("MOD09A1*.hdf"))}, (9.4, 45.8, 10.2, 46.3))]


def mod09ga(data: Path, folder: Path) -> list[pystac.Item]:
    """Three days, a GeoTIFF per layer."""
    items = []
    for day in (222, 223, 224):
        own = folder / str(day)
        with zipfile.ZipFile(data / "modis_native" / f"MOD09GA_Pamplona_2021{day}.zip") as archive:
            archive.extractall(own)
        files = {path.stem.split("2D_")[1]: path for path in own.rglob("*.tif")}
        items.append(listed(f"MOD09GA.A2021{day}.h17v04.006", f"2021-08-{day - 212}", files, (-2.0, 42.6, -1.3, 43.0)))
    return items


def neon(data: Path, folder: Path) -> list[pystac.Item]:
    """The flight's file; the crop keeps no date, so one is given here."""
    path = shutil.copy(data / "hyperspectral" / "neon_sjer_30x30x426.h5", folder)
    outline = box(257_000, 4_111_970, 257_030, 4_112_000, "EPSG:32611").to_crs("EPSG:4326").boundingbox.bbox
    return [listed("NEON_D17_SJER_DP3_257000_4112000_reflectance", "2019-03-28", {"data": Path(path)}, outline)]


def listed(name: str, day: str, files: dict[str, Path], outline: BBox) -> pystac.Item:
    """An item with nothing but what a poor catalog gives: outline, day, addresses."""
    when = datetime.fromisoformat(day).replace(tzinfo=timezone.utc)
    item = pystac.Item(name, mapping(box(*outline, "EPSG:4326").geom), list(outline), when, {})
    for key, path in files.items():
        item.add_asset(key, pystac.Asset(str(path.resolve())))
    return item


PLACES = (
    Place("landsat-8", "Landsat 8, Colombia", (499_500.0, 174_150.0, 520_200.0, 194_850.0), "EPSG:32618", 450.0,
          ("2019-12-01T15:00:00Z",), landsat, shown=("swir16", "nir08", "red")),
    Place("modis-terra-mod09a1", "MOD09A1, Alps", (9.8, 46.0, 9.98, 46.12), "EPSG:32632", 450.0,
          ("2017-07-12T12:00:00Z", "2017-07-19T12:00:00Z"), mod09a1, shown=("swir16", "nir08", "red")),
    Place("modis-terra-mod09ga", "MOD09GA, Pamplona", (-1.78, 42.72, -1.6, 42.84), "EPSG:32630", 450.0,
          ("2021-08-10T11:00:00Z", "2021-08-11T11:00:00Z", "2021-08-12T11:00:00Z"), mod09ga, hidden=1, shown=("swir16", "nir08", "red")),
    Place("neon-aop", "NEON, San Joaquin", (257_003.0, 4_111_973.0, 257_027.0, 4_111_997.0), "EPSG:32611", 1.0,
          ("2019-03-28T18:00:00Z",), neon, shown=(850.0, 660.0, 560.0)),
)


# --- the run and its judgement --------------------------------------------------------------------------------------------


def job_text(place: Place, api: str, store: Path) -> str:
    """The job file."""
    crs = place.crs if place.bbox[0] > 180 else "EPSG:4326"
    days = [place.times[0][:10], str(np.datetime64(place.times[-1][:10]) + 1)]
    rank = 12 if place.sensor == "neon-aop" else 8
    return "\n".join([
        f'name = "{place.sensor}"\n[area]\nbbox = {list(place.bbox)}\ncrs = "{crs}"',
        f'[target]\ncrs = "{place.crs}"\nresolution = {place.resolution}',
        f'[period]\nstart = "{days[0]}"\nend = "{days[1]}"\ntimes = {json.dumps(place.times)}',
        f'[[sensors]]\nname = "{place.sensor}"\ncatalog = "{api}"\ncollection = "{place.sensor}"',
        f'[spectrum]\nrank = {rank}\n[engine]\nname = "gaussian"\n[tiles]\ncore = 64\nhalo = 2',
        f'[output]\nstore = "{store}"\ndraws = 0\n[cluster]\nworkers = 1\n',
    ])


@dataclass(frozen=True)
class Judged:
    """A cube beside one scene."""

    values: int
    rmse: float
    bias: float
    inside: float
    """share of the differences within 1.96 sd, posterior and the scene's own noise together"""
    peer: float
    """rmse of the mean of the neighbours in time, where the scene was hidden"""


def fuse(place: Place, items: list[pystac.Item], work: Path) -> tuple[xr.Dataset, dict[str, Any], float]:
    """`fusion run` as a user calls it: (cube, record of its tile, seconds)."""
    features = [i.to_dict(include_self_link=False) | {"collection": place.sensor} for i in items]
    (work / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    begun = time.perf_counter()
    with stac_api(work / "items.json") as api:
        (work / "job.toml").write_text(job_text(place, api.root, work / "cube.zarr"))
        command = [str(Path(sys.executable).parent / "fusion"), "-v", "run", str(work / "job.toml")]
        subprocess.run(command, env=os.environ | {"FUSION_CACHE": str(work / "downloads")}, check=True)
    (record,) = CubeStore.open(work / "cube.zarr", read_only=True).records().values()
    return fusion.open_cube(str(work / "cube.zarr")), record, time.perf_counter() - begun


def judged(cube: xr.Dataset, scene: Scene, others: list[Scene]) -> Judged:
    """The cube against a scene's clear pixels: each native pixel against the cube interpolated at its centre and its day.

    The interval is for the observed value: posterior, the scene's noise and its sensor's offset from day to day together.
    """
    tau, seen = cube.fusion.cube.calendar.weights(scene.when), _seen(cube, scene)
    mean, sd = (sum(tau[..., t] * _at(seen[part].isel(time=t), scene.geobox) for t in range(seen.sizes["time"])) for part in ("mean", "sd"))
    error = mean - scene.reflectance
    clear = np.isfinite(error)
    spread = np.sqrt(sd**2 + scene.sigma.astype(float) ** 2 + sensor(scene.sensor).offset_of(mean) ** 2)
    peer = np.mean([_on(o, scene) for o in others], axis=0) - scene.reflectance if others else np.full(error.shape, np.nan)
    both = clear & np.isfinite(peer)
    return Judged(
        int(clear.sum()), float(np.sqrt((error[clear] ** 2).mean())), float(error[clear].mean()),
        float((np.abs(error[clear]) < 1.96 * spread[clear]).mean()), float(np.sqrt((peer[both] ** 2).mean())) if both.any() else np.nan,
    )


def _seen(cube: xr.Dataset, scene: Scene) -> xr.Dataset:
    """The cube in the scene's own channels, (band or wavelength, time, y, x)."""
    if scene.centres is None:
        return cube.fusion.bands(scene.sensor)
    assert scene.fwhm is not None
    return cube.fusion.at(scene.centres.tolist(), fwhm=float(np.median(scene.fwhm)))


def _at(field: xr.DataArray, geobox: GeoBox) -> Floats:
    """(B, H, W): bilinear at the centres of the native pixels; NaN outside."""
    from pyproj import Transformer

    cols, rows = np.meshgrid(np.arange(geobox.shape[1]) + 0.5, np.arange(geobox.shape[0]) + 0.5)
    x, y = geobox.transform * (cols, rows)
    x, y = Transformer.from_crs(geobox.crs.proj, field.odc.crs.proj, always_xy=True).transform(x, y)
    where = {"x": (("h", "w"), x), "y": (("h", "w"), y)}
    found = field.compute().interp({k: xr.DataArray(v, dims=d) for k, (d, v) in where.items()})
    return np.asarray(found.transpose(field.dims[0], "h", "w").values, dtype=float)


def _on(other: Scene, scene: Scene) -> Floats:
    """Another scene's values on this scene's pixels: the archives keep one lattice."""
    col, row = (round(v) for v in ~other.geobox.transform * (scene.geobox.transform.c, scene.geobox.transform.f))
    out = np.full(scene.reflectance.shape, np.nan)
    for r, c in np.ndindex(*out.shape[1:]):
        if 0 <= r + row < other.geobox.shape[0] and 0 <= c + col < other.geobox.shape[1]:
            out[:, r, c] = other.reflectance[:, r + row, c + col]
    return out


@dataclass(frozen=True)
class Result:
    """A job that was run."""

    place: Place
    cube: xr.Dataset
    scenes: list[Scene]
    record: dict[str, Any]
    judged: Judged
    seconds: float

    @property
    def told(self) -> int:
        """The scene that is judged and shown."""
        return self.place.hidden or 0


def result(place: Place, data: Path, work: Path) -> Result:
    """Files, job, judgement of one place."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "files").mkdir(parents=True)
    items = place.items(data, work / "files")
    cube, record, seconds = fuse(place, [i for n, i in enumerate(items) if n != place.hidden], work)
    grid: Grid = cube.fusion.cube.grid
    scenes = [sensor(place.sensor).read(item, grid) for item in items]
    told = place.hidden or 0
    others = [s for n, s in enumerate(scenes) if n != place.hidden] if place.hidden is not None else []
    return Result(place, cube, scenes, record, judged(cube, scenes[told], others), seconds)


def table(results: list[Result]) -> Table:
    """What came out."""
    out = Table(title="genuine files through `fusion run`: the cube against a scene's clear pixels, all bands")
    for column in ("job", "judged on", "status", "chi-square", "values", "rmse", "bias", "inside 95 %", "neighbours' mean", "s"):
        out.add_column(column, justify="left" if column in ("job", "judged on") else "right")
    for r in results:
        j = r.judged
        chi = ", ".join(f"{v:.2f}" for v in r.record["chi_square"].values())
        out.add_row(
            r.place.title, "what it was made of" if r.place.hidden is None else "a hidden day", r.record["status"], chi, str(j.values),
            f"{j.rmse:.4f}", f"{j.bias:+.4f}", f"{j.inside:.0%}", "" if np.isnan(j.peer) else f"{j.peer:.4f}", f"{r.seconds:.0f}",
        )
    return out


def picture(results: list[Result], path: Path) -> None:
    """A row per job: the scene as it was read, the cube, the cube's sd."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.1 * len(results)), layout="constrained")
    for axes, r in zip(np.atleast_2d(figure.subplots(len(results), 3)), results, strict=True):
        scene, calendar = r.scenes[r.told], r.cube.fusion.cube.calendar
        at = int(np.argmax(calendar.weights(scene.when).reshape(-1, len(calendar)).sum(axis=0)))
        seen, day = _seen(r.cube, scene).isel(time=at), r.place.times[at][:10]
        if scene.centres is None:
            pick = [scene.bands.index(b) for b in r.place.shown]
        else:
            pick = [int(np.abs(scene.centres - nm).argmin()) for nm in r.place.shown]
        values, sd = scene.reflectance[pick], seen["sd"].isel({seen["sd"].dims[0]: pick[1]})
        low, high = np.nanpercentile(values, 1, axis=(1, 2)), np.nanpercentile(values, 99, axis=(1, 2))
        fused = np.asarray(seen["mean"].isel({seen["mean"].dims[0]: pick}).values)
        for axis, image, what in ((axes[0], values, "the file" if r.place.hidden is None else "the hidden file"), (axes[1], fused, "the cube")):
            shown = np.clip((np.moveaxis(image, 0, -1) - low) / (high - low), 0, 1)
            axis.imshow(np.where(np.isfinite(shown), shown, 1.0), interpolation="nearest")
            axis.set_title(f"{r.place.title}, {day}: {what}", fontsize=7.5)
        drawn = axes[2].imshow(np.asarray(sd.values), cmap="viridis", interpolation="nearest")
        axes[2].set_title(f"sd of {r.place.shown[1]}" + (" nm" if scene.centres is not None else ""), fontsize=7.5)
        figure.colorbar(drawn, ax=axes[2], shrink=0.8, label="reflectance")
        for axis in axes:
            axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Run, judge, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("FUSION_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data")
    parser.add_argument("--only", nargs="+", choices=[p.sensor for p in PLACES], default=[p.sensor for p in PLACES])
    parser.add_argument("--work", type=Path, default=ROOT / "demo" / "genuine", help="files, catalog and cubes are made here")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    results = []
    for place in PLACES:
        if place.sensor in options.only:
            results.append(result(place, options.data, options.work.resolve() / place.sensor))
            Console(width=160).print(table(results[-1:]))
    if len(results) > 1:
        Console(width=160).print(table(results))
    if options.picture:
        picture(results, options.picture)


if __name__ == "__main__":
    main()
