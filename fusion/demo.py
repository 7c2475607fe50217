"""The demonstration: a simulated three-sensor world on disk, fused by the real pipeline, scored against its known truth.

    python -m fusion.demo FOLDER

leaves FOLDER/archive (COG and ENVI files with a static STAC catalog), job.toml, cube.zarr, report.html and demo.png.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console

from fusion.cube.grid import Grid

BBOX = (-105.300, 40.000, -105.2805, 40.0151)
"""a simulated 1.7 km square, placed near Boulder because a MODIS cell leans by 50 degrees there"""
PERIOD = ("2024-05-03", "2024-07-06")
"""eight-day steps from the first look of Landsat 8: latent times on, or a day beside, the days when Landsat passes"""
SENSORS = ("modis-mcd43a4", "landsat-8", "airborne")
FLIGHT, FLOWN = "2024-06-05", 5.0
"""one flight of an imaging spectrometer over the middle quarter of the area, at so many metres"""

JOB = """\
# Written by the demonstration; `fusion run` accepts it again.
name = "demo (simulated)"

[area]
bbox = [{bbox}]

[target]
resolution = 30.0
align = 15.0            # USGS Landsat pixel edges

[period]
start = {start}
end = {end}
step_days = 8.0

{sensors}
[spectrum]
rank = 8

[engine]
name = "gaussian"       # exact, hyperparameters at their prior medians; "variational" and "mcmc" learn them
settings = {{ calibrate = false, tolerance = 0.1 }}

[tiles]
core = 60

[output]
store = "cube.zarr"
draws = 8

[cluster]
workers = 1
memory = "8GiB"
"""


def simulated_archive(folder: Path) -> tuple[Grid, object]:
    """The world and its archive: real file formats, a static STAC catalog, every item marked as simulated."""
    from fusion.simulate import world

    grid = Grid.from_bbox(BBOX, "EPSG:32613", 30.0, align=15.0)
    made = world(grid, *PERIOD, seed=7, finer=2)
    high, wide = grid.shape
    patch = grid.crop(slice(high // 4, high // 4 + high // 2), slice(wide // 4, wide // 4 + wide // 2))
    made.archive(folder, SENSORS, flights=[("airborne", FLIGHT, patch)], pixel=FLOWN)
    return grid, made


def write_job(folder: Path) -> Path:
    """The job file of the demonstration."""
    sensors = "\n".join(f'[[sensors]]\nname = "{name}"\ncatalog = "archive/catalog.json"\n' for name in SENSORS)
    path = folder / "job.toml"
    path.write_text(JOB.format(bbox=", ".join(map(str, BBOX)), start=PERIOD[0], end=PERIOD[1], sensors=sensors))
    return path


def main(folder: str = "demo") -> int:
    """Simulate, fuse, score, draw; returns a process exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    matplotlib.use("Agg")
    from fusion.service.job import Job
    from fusion.service.report import write_report
    from fusion.service.run import run

    out, place, begun = Console(), Path(folder), time.monotonic()
    if place.exists():
        if not (place / "job.toml").is_file():
            out.print(f"[red]{place} exists and is not a demo of ours: give another folder")
            return 2
        shutil.rmtree(place)
    place.mkdir(parents=True)
    out.rule("1/3  simulate: MODIS, Landsat 8 and an imaging spectrometer look at a world with known truth")
    _, made = simulated_archive(place / "archive")
    job = Job.load(write_job(place))
    out.rule("2/3  fuse: catalog -> tile -> Zarr cube")
    summary = run(job)
    if summary.left or summary.failed:
        out.print(f"[red]{summary.left} tiles are not fused: {summary.failed}")
        return 1
    report = write_report(summary.url)
    out.rule("3/3  score against the truth, draw")
    scores = picture(summary.url, made, place / "demo.png")
    for line in scores:
        out.print(line, highlight=False)
    out.print(f"\n[bold]Done in {time.monotonic() - begun:.0f} s.[/] Everything here is simulated.\nLook next at")
    for path, why in (
        (place / "demo.png", "inputs, fused cube, uncertainty, error"), (report, "the job's report"),
        (place / "cube.zarr", f'import fusion; fusion.open_cube("{place}/cube.zarr").fusion.index("NDVI")'),
        (place / "job.toml", "edit it for a place of your own: fusion plan, fusion run"),
    ):
        out.print(f"  {path}   {why}", highlight=False, soft_wrap=True)
    return 0


def picture(url: str, made: object, path: Path) -> list[str]:
    """Draws what went in beside what came out, and returns the scores as lines."""
    import matplotlib.pyplot as plt

    import fusion
    from fusion.cube.calendar import centre_of
    from fusion.observe.sensor import sensor

    cube = fusion.open_cube(url)
    address = cube.fusion.cube
    facts = sensor("landsat-8")
    names = [b.name for b in facts.bands]
    actual = made.reflectance(address.calendar.times, [b.response for b in facts.bands], address.grid)  # type: ignore[attr-defined]
    actual = actual.swapaxes(0, 1)
    bands = cube.fusion.bands("landsat-8")[["mean", "sd"]].transpose("band", "time", "y", "x").compute()
    error, span = bands["mean"].values - actual, cube.fusion.interval(bands, 0.9)
    looks = {n: made.looks(n) for n in ("landsat-8", "modis-mcd43a4")}  # type: ignore[attr-defined]
    flown = [centre_of(s.when) for s in looks["landsat-8"] if s.seen > 0.3]
    gap = [min(abs((t - f) / np.timedelta64(1, "D")) for f in flown) for t in address.calendar.times]
    worst = int(np.argmax(gap))
    lines = [
        f"rmse of all {len(names)} Landsat bands, all dates: {np.sqrt((error**2).mean()):.4f} reflectance",
        f"share of truth inside the 90 % interval: {((span['lower'].values < actual) & (actual < span['upper'].values)).mean():.1%}",
        f"rmse on {str(address.calendar.times[worst])[:10]}, {gap[worst]:.0f} days from the nearest clear Landsat look: "
        f"{np.sqrt((error[:, worst] ** 2).mean()):.4f}",
    ]
    day = address.calendar.times[worst]
    nearest = {n: min(s, key=lambda v: abs(centre_of(v.when) - day)) for n, s in looks.items() if s}
    fine = min((s for s in looks["landsat-8"] if s.seen > 0.3), key=lambda v: abs(centre_of(v.when) - day))
    nir = names.index("nir08")
    panels = [
        (_band(nearest["modis-mcd43a4"]), f"MODIS, {str(centre_of(nearest['modis-mcd43a4'].when))[:10]}", "viridis"),
        (_band(fine), f"nearest clear Landsat, {str(centre_of(fine.when))[:10]}", "viridis"),
        (bands["mean"].values[nir, worst], f"fused mean, {str(day)[:10]}", "viridis"),
        (actual[nir, worst], "truth (simulated)", "viridis"),
        (bands["sd"].values[nir, worst], "fused sd", "magma"), (abs(error[nir, worst]), "absolute error", "magma"),
    ]
    low, high = np.percentile(actual[nir, worst], [2, 98])
    top = float(np.percentile(abs(error[nir, worst]), 98))
    figure, axes = plt.subplots(2, 3, figsize=(12, 7.6), layout="constrained")
    for ax, (image, title, cmap) in zip(axes.flat, panels, strict=True):
        span = {"vmin": low, "vmax": high} if cmap == "viridis" else {"vmin": 0, "vmax": top}
        shown = ax.imshow(image, cmap=cmap, interpolation="nearest", **span)
        ax.set(title=title, xticks=[], yticks=[])
        figure.colorbar(shown, ax=ax, shrink=0.85, label="reflectance")
    figure.suptitle(f"Near infrared of a simulated world, {gap[worst]:.0f} days from the nearest clear Landsat look")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return lines


def _band(scene: object, name: str = "nir08") -> np.ndarray:
    return np.asarray(scene.reflectance[scene.bands.index(name)])  # type: ignore[attr-defined]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="demo", help="where to leave it all")
    sys.exit(main(parser.parse_args().folder))
