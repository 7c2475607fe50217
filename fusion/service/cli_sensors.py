"""`fusion sensors`, `fusion revisit`, `fusion check-sensor`: what the instruments are, when they pass, whether they conform."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated

import numpy as np
import pystac
import typer
from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fusion.cube.grid import Grid
from fusion.cube.spectrum import Response
from fusion.errors import FusionError, JobError, SensorError
from fusion.observe.sensor import Noise, Pass, Sensor, sensor, sensors
from fusion.testing import check_sensor

BARS = " ▁▂▃▄▅▆▇█"


@contextmanager
def reported() -> Iterator[None]:
    """A FusionError becomes its message on stderr and exit code 2."""
    try:
        yield
    except FusionError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def register(app: typer.Typer) -> None:
    """Adds the three commands to the program."""
    app.command("sensors")(list_sensors)
    app.command("revisit")(revisit)
    app.command("check-sensor")(check)


def list_sensors(
    name: Annotated[str | None, typer.Argument(help="a sensor: shows its bands, responses, footprint, noise, sources")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the spectral responses into this .png, .svg or .pdf file")] = None,
) -> None:
    """List the installed sensors, or describe one:  fusion sensors landsat-8 --plot oli.png"""
    with reported():
        if name is None and plot is not None:
            raise SensorError("--plot draws one sensor: name it, as in `fusion sensors landsat-8 --plot oli.png`")
        if name is None:
            Console().print(_overview(sensors()))
            return
        one = sensor(name)
        _describe(one, Console())
        if plot is not None:
            draw(one, plot)
            typer.echo(f"responses drawn into {plot}")


def _overview(found: dict[str, Sensor]) -> Table:
    table = Table(title=f"{len(found)} installed sensors", title_justify="left")
    for column in ("name", "instrument and product", "bands", "pixel", "lifetime"):
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "pixel"))
    for one in found.values():
        bands = str(len(one.bands)) if one.bands else f"~{len(one.example_channels)} channels"
        table.add_row(one.name, one.title, bands, f"{one.pixel:.4g} m", _life(one))
    return table


def _life(one: Sensor) -> str:
    first, last = one.lifetime
    return f"{first.year} to {last.year if last else 'today'}" if first.year > 1970 else "any"


def width_of(response: Response) -> float:
    """Full width at half maximum, nm: distance of the outermost half-maximum crossings."""
    w, v = response.wavelengths, response.values / response.values.max()
    above = np.flatnonzero(v >= 0.5)
    low, high = above[0], above[-1]
    left = w[low] if low == 0 else float(np.interp(0.5, [v[low - 1], v[low]], [w[low - 1], w[low]]))
    right = w[high] if high == w.size - 1 else float(np.interp(-0.5, [-v[high], -v[high + 1]], [w[high], w[high + 1]]))
    return float(right - left)


def sparkline(response: Response, low: float, high: float, columns: int = 24) -> str:
    """The response between two wavelengths as a line of block characters, each the largest value in its column."""
    edges = np.linspace(low, high, columns + 1)
    fine = np.interp(np.linspace(low, high, 40 * columns + 1), response.wavelengths, response.values, left=0.0, right=0.0)
    fine = fine / response.values.max()
    tops = [fine[40 * i : 40 * i + 41].max() for i in range(edges.size - 1)]
    return "".join(BARS[0 if top <= 0.01 else max(1, round(top * 8))] for top in tops)


def _describe(one: Sensor, console: Console) -> None:
    """Bands with their responses, then the facts that set footprint, noise and revisit, then where they come from."""
    console.print(f"[bold]{one.name}[/bold]  {one.title}", highlight=False)
    if one.bands:
        table = Table()
        for column in ("band", "centre nm", "width nm", "response", "σ at ρ .3"):
            table.add_column(column, no_wrap=True)
        for b in one.bands:
            low, high = b.response.wavelengths[0], b.response.wavelengths[-1]
            table.add_row(
                b.name, f"{b.response.centroid:.1f}", f"{width_of(b.response):.1f}", sparkline(b.response, low, high),
                f"{b.noise.a + 0.3 * b.noise.b:.4f}",
            )  # fmt: skip
        console.print(table)
    else:
        centres, widths = np.array(one.example_channels).T
        span = f"{centres.min():.1f} to {centres.max():.1f} nm, {widths.min():.1f} to {widths.max():.1f} nm wide"
        console.print(f"  {centres.size} channels, {span}, in a typical file (each file brings its own)", highlight=False)
    for label, fact in _facts(one).items():
        console.print(f"  [bold]{label:<12}[/bold]{escape(fact)}", highlight=False, soft_wrap=True)
    for source in one.sources:
        console.print(f"  · {escape(source)}", highlight=False, soft_wrap=True)


def _facts(one: Sensor) -> dict[str, str]:
    noises = list(dict.fromkeys(b.noise for b in one.bands)) or [one.channel_noise or Noise(0.0, 0.0)]
    white = " or ".join(f"{n.a:g} + {n.b:g} ρ" for n in noises)
    common = f"{one.offset_sd:g}" + (f" + {one.offset_relative:g} ρ" if one.offset_relative else "")
    errors = f"white σ = {white} per value; common to a look {common}, gain {one.gain_sd:.0%}"
    if one.discrepancy_sd:
        errors += f"; slow, on its own cells, {one.discrepancy_sd:g} over {one.discrepancy_days:g} days"
    spread = {one.psf, *(b.psf for b in one.bands if b.psf)}
    widths = " / ".join(f"{w:g}" for w in sorted(p.fwhm for p in spread))
    shape = "triangle along scan, rectangle along track" if one.psf.kind == "scanner" else "Gaussian"
    cell = ", on the native cell" if one.psf.cell else ""
    return {
        "footprint": f"{shape}, {widths} m{cell}, geolocation {one.psf.geolocation:g} m; pixel {one.pixel:.4g} m",
        "errors": errors, "lifetime": _life(one), "revisit": _rhythm(one),
        "assets": ", ".join(b.assets[0] for b in one.bands if b.assets) or "the file itself",
        "catalogs": "; ".join(f"{c.catalog} ({c.id})" for c in one.collections) or "none: name the files in the job",
    }  # fmt: skip


def _rhythm(one: Sensor) -> str:
    """How often it passes one place at 45 N in its last full year, from its own revisit."""
    year = min(date.today().year - 1, (one.lifetime[1] or date.max).year - 1)
    passes = one.revisit(10.0, 45.0, date(year, 1, 1), date(year, 12, 31))
    if not passes:
        return "not predictable: it flies on request"
    return f"{len(passes)} passes in {year} at 10 E 45 N; `fusion revisit --sensor {one.name}` for another place"


def _hue(wavelength: float) -> tuple[float, float, float, float]:
    """The colour of the light where there is one (400-700 nm), dark to pale beyond."""
    if wavelength < 700:
        return colormaps["turbo"]((wavelength - 380) / 340)
    return colormaps["copper"](0.3 + (wavelength - 700) / 2600)


def draw(one: Sensor, path: Path) -> None:
    """The responses (of a spectrometer: the channel widths) over wavelength, as a figure file."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    if one.bands:
        for b in one.bands:
            curve = b.response.values / b.response.values.max()
            axes.fill_between(b.response.wavelengths, curve, color=_hue(b.response.centroid), lw=0, alpha=0.6, label=b.name)
        axes.legend(ncols=min(len(one.bands), 7), fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2))
        axes.set(ylabel="relative response", ylim=(0, 1.05))
    else:
        axes.plot(*np.array(one.example_channels).T, ".", markersize=3)
        axes.set(ylabel="channel width (nm)")
    axes.set(xlabel="wavelength (nm)", title=one.title)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SensorError(f"cannot draw into {path}: {error}") from error


def _day(text: str, option: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise JobError(f"{option} {text!r} is not a date: write it as 2024-06-01") from error


def revisit(
    which: Annotated[list[str], typer.Option("--sensor", help="a sensor; repeat the option for several")],
    lon: Annotated[float, typer.Option(help="longitude, degrees east")],
    lat: Annotated[float, typer.Option(help="latitude, degrees north")],
    first: Annotated[str, typer.Option("--from", help="first day, 2024-06-01")],
    last: Annotated[str, typer.Option("--to", help="last day, 2024-06-30")],
    as_json: Annotated[bool, typer.Option("--json", help="print the passes as JSON")] = False,
) -> None:
    """Print the planned passes of sensors over a place, computed from their orbits without any network."""
    with reported():
        start, end = _day(first, "--from"), _day(last, "--to")
        if end < start:
            raise JobError(f"--from {start} comes after --to {end}: swap the two dates")
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            raise JobError(f"--lon {lon:g} --lat {lat:g} is not on Earth: give degrees, lon -180..180 and lat -90..90")
        if (end - start).days > 3660:
            raise JobError(f"{start} to {end} is more than ten years: ask for a shorter period")
        chosen = [sensor(name) for name in dict.fromkeys(which)]
        passes = [(p, one) for one in chosen for p in one.revisit(lon, lat, start, end)]
    passes.sort(key=lambda pair: (pair[0].day, pair[1].name))
    if as_json:
        typer.echo(json.dumps([_plain(p, one) for p, one in passes], indent=1))
        return
    counts = {one.name: sum(other is one for _, other in passes) for one in chosen}
    told = ", ".join(f"{n} of {name}" if n else f"none of {name} (not predictable, or not flying)" for name, n in counts.items())
    table = Table(title=f"{start} to {end} at {lon:g} E {lat:g} N: {told}", title_justify="left")
    for column in ("day", "", "sensor", "view zenith", "note"):
        table.add_column(column, no_wrap=column == "day")
    for p, one in passes:
        zenith = "" if math.isnan(p.view_zenith) else f"{p.view_zenith:.0f}°"
        table.add_row(p.day.isoformat(), p.day.strftime("%a"), one.name, zenith, p.note)
    Console().print(table)


def _plain(p: Pass, one: Sensor) -> dict[str, object]:
    zenith = None if math.isnan(p.view_zenith) else round(p.view_zenith, 2)
    return {"day": p.day.isoformat(), "sensor": one.name, "view_zenith": zenith, "note": p.note}


def check(
    name: Annotated[str, typer.Argument(help="an installed sensor, yours included")],
    item: Annotated[Path | None, typer.Option(help="a STAC item (.json) of a real scene, to be read as well")] = None,
    area: Annotated[
        tuple[float, float, float, float] | None, typer.Option(help="west south east north of the reading test, degrees")
    ] = None,
) -> None:
    """Check a sensor against every law that it must satisfy to be fused; exit code 1 if one fails."""
    with reported():
        one = sensor(name)
        window = None if area is None else Grid.from_bbox(area, resolution=max(one.pixel / 4, 0.25))
        example = None
        if item is not None:
            try:
                example = pystac.Item.from_file(str(item))
            except Exception as error:  # pystac raises many families for bad JSON
                raise SensorError(f"--item {item} is not a STAC item: {error}") from error
        if example is not None and area is None:
            raise SensorError("--item needs --area west south east north, a small place inside the scene")
        checks = check_sensor(one, item=example, window=window, show=True)
    if not all(c.passed for c in checks):
        raise typer.Exit(1)
