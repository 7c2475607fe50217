"""The laws themselves: each returns what it found, or raises `Broken` with what was found and what to do."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import DAY, Calendar, Instant, centre_of
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import NODES, Response, SpectralBasis
from fusion.observe.footprint import footprint
from fusion.observe.observation import looks
from fusion.observe.scene import Scene
from fusion.observe.sensor import Noise, Sensor

PLACE = (-105.2, 40.0)
"""Longitude and latitude of the default test window: a MODIS cell leans 50 degrees there."""
QUANTUM = 1e-3
"""Largest rounding error that a product's integers may cause, reflectance."""


Law = tuple[str, Callable[[], str]]


class Broken(Exception):
    """A law does not hold: (what was found, what to do)."""


def _need(holds: object, got: str, todo: str) -> None:
    if not holds:
        raise Broken(got, todo)


def default_window(one: Sensor) -> Grid:
    """A dozen native pixels at `PLACE`, latent pixels a quarter of their size (at least a quarter metre)."""
    pixel = min(max(float(one.pixel), 0.25), 5000.0)  # a nonsensical one fails its own law, not the others
    edge = 12 * pixel
    lon, lat = PLACE
    half = (edge / 2 / (111_320 * np.cos(np.radians(lat))), edge / 2 / 111_320)
    return Grid.from_bbox((lon - half[0], lat - half[1], lon + half[0], lat + half[1]), resolution=max(pixel / 4, 0.25))


def every_law(one: Sensor, item: pystac.Item | None, grid: Grid) -> Iterator[Law]:
    """(name, test) of every law that applies."""
    yield "name is lower case, hyphenated", lambda: _name(one)
    yield "bands or channels, named once", lambda: _bands(one)
    yield "wavelengths are nanometres, responses not negative", lambda: _responses(one)
    yield "a constant spectrum is seen as that constant", lambda: _constant_spectrum(one)
    yield "noise and error scales are positive reflectances", lambda: _noise(one)
    yield "pixel and point spread are metres", lambda: _spread(one)
    yield "facts have sources", lambda: _sources(one)
    yield "revisit is sorted, inside the period and the lifetime", lambda: _revisit(one)
    yield "native pixels cover the window", lambda: _covers(native_of(one, grid), grid)
    yield "footprint: rows sum to one, adjoint agrees", lambda: _footprint(one, grid)
    yield "the model sees a constant cube as that constant", lambda: _model(one, grid)
    if one.write is not None:
        yield "what is written is read back", lambda: _round_trip(one, grid)
    if item is not None:
        yield f"reads {item.id}", lambda: _real(one, item, grid)


def _name(one: Sensor) -> str:
    _need(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one.name), repr(one.name), "use lower-case letters, digits and single hyphens")
    _need(one.title.strip(), "an empty title", "name instrument and product in the title")
    return one.name


def _channels(one: Sensor) -> dict[str, Response]:
    """Responses by band, or of the example channels of a spectrometer."""
    if one.bands:
        return {b.name: b.response for b in one.bands}
    return {f"{c:.1f} nm": Response.gaussian(c, w) for c, w in one.example_channels}


def _bands(one: Sensor) -> str:
    if not one.bands:
        _need(one.channel_noise is not None, "neither bands nor channel_noise", "give bands, or channel_noise for a spectrometer")
        _need(one.example_channels, "no example_channels", "give (centre, fwhm) in nm of a typical file")
        return f"{len(one.example_channels)} example channels"
    names = [b.name for b in one.bands]
    _need(len(set(names)) == len(names), f"{', '.join(names)}", "give every band its own name")
    _need(all(n == n.lower() and n.strip() for n in names), ", ".join(names), "write band names in lower case")
    if one.collections:
        bare = [b.name for b in one.bands if not b.assets]
        _need(not bare, f"no asset keys for {', '.join(bare)}", "list the asset keys that catalogs use for it")
    return ", ".join(names)


def _responses(one: Sensor) -> str:
    centroids = []
    for name, response in _channels(one).items():
        w, v = np.asarray(response.wavelengths, dtype=float), np.asarray(response.values, dtype=float)
        _need(
            w.shape == v.shape and w.ndim == 1 and w.size > 2,
            f"{name}: shapes {w.shape} and {v.shape}",
            "give two equal 1-D arrays",
        )
        _need(np.isfinite(w).all() and np.isfinite(v).all(), f"{name}: not finite", "leave out missing samples")
        _need((np.diff(w) > 0).all(), f"{name}: wavelengths do not increase", "sort them and drop repeats")
        _need((v >= 0).all() and v.max() > 0, f"{name}: from {v.min():g} to {v.max():g}", "clip negative responses to zero")
        centre = response.centroid
        _need(not 0.3 <= centre <= 2.6, f"{name}: centroid {centre:.3f}", "micrometres? multiply wavelengths by 1000")
        _need(350 <= centre <= 2600, f"{name}: centroid {centre:.1f} nm", "the cube covers 400-2500 nm: leave it out")
        centroids.append(centre)
    for low, high in one.opaque:
        _need(100 < low < high, f"an opaque window {low:g} to {high:g}", "give windows of opaque air as (low, high) in nm")
    return f"centroids {min(centroids):.0f}-{max(centroids):.0f} nm"


def _constant_spectrum(one: Sensor) -> str:
    inside = {n: r for n, r in _channels(one).items() if NODES[0] <= r.centroid <= NODES[-1]}
    seen = np.array([r.on(NODES) @ np.full(NODES.size, 0.3) for r in inside.values()])
    worst = float(np.abs(seen - 0.3).max()) if seen.size else 0.0
    _need(worst < 1e-9, f"off by {worst:.2g}", "the response must have area: check its wavelengths and values")
    return f"to {worst:.0e}"


def _noise(one: Sensor) -> str:
    found: dict[str, Noise | None] = {b.name: b.noise for b in one.bands} or {"channels": one.channel_noise}
    for name, noise in found.items():
        _need(noise is not None and 0 < noise.a <= 0.1 and 0 <= noise.b <= 0.5, f"{name}: {noise}",
                 "sigma = a + b rho with 0 < a <= .1 and 0 <= b <= .5, in reflectance")  # fmt: skip
    _need(0 < one.offset_sd <= 0.2, f"offset_sd {one.offset_sd}", "give the sd of an acquisition's common error, 0 to .2")
    _need(0 <= one.offset_relative <= 0.5, f"offset_relative {one.offset_relative}", "give a share of the brightness, 0 to .5")
    _need(0 <= one.gain_sd <= 0.5, f"gain_sd {one.gain_sd}", "give a relative error, 0 to .5")
    _need(0 <= one.discrepancy_sd <= 0.2, f"discrepancy_sd {one.discrepancy_sd}", "give a reflectance, 0 for none")
    _need(one.discrepancy_days > 0, f"discrepancy_days {one.discrepancy_days}", "give a positive number of days")
    return f"a {min(n.a for n in found.values() if n):g}, offset {one.offset_sd:g}"


def _spread(one: Sensor) -> str:
    _need(0.05 <= one.pixel <= 5000, f"pixel {one.pixel}", "give the nominal native pixel in metres")
    for name, psf in {"sensor": one.psf, **{b.name: b.psf for b in one.bands if b.psf}}.items():
        width = psf.fwhm / one.pixel
        _need(0.02 <= width <= 20, f"{name}: fwhm {psf.fwhm:g} m on a pixel of {one.pixel:g} m", "give the width in metres")
        _need(0 <= psf.geolocation <= 5 * one.pixel, f"{name}: geolocation {psf.geolocation:g} m", "give one sigma in metres")
    return f"pixel {one.pixel:g} m, {one.psf.kind} {one.psf.fwhm:g} m"


def _sources(one: Sensor) -> str:
    _need(one.sources and all(s.strip() for s in one.sources), f"{len(one.sources)} sources", "say where each fact comes from")
    return f"{len(one.sources)} sources"


def _day(one: Sensor) -> date:
    """A day of the sensor's life, a year after its start where it lived that long."""
    first, last = one.lifetime
    return min(first + timedelta(366), last or date.max)


def _revisit(one: Sensor) -> str:
    first, last = one.lifetime
    _need(last is None or first <= last, f"lifetime {first} to {last}", "swap the two dates")
    start = _day(one)
    end = start + timedelta(48)
    found = one.revisit(*PLACE, start, end)
    days = [p.day for p in found]
    _need(days == sorted(set(days)), f"{days[:4]}", "sort the passes, one per day")
    _need(
        all(start <= d <= end for d in days), f"{days[0] if days else ''} outside {start}..{end}", "keep to the period asked for"
    )
    before = one.revisit(*PLACE, first - timedelta(400), first - timedelta(370))
    _need(not before, f"{len(before)} passes a year before the first light", "keep to the lifetime")
    zeniths = [p.view_zenith for p in found if not np.isnan(p.view_zenith)]
    _need(all(0 <= z < 90 for z in zeniths), f"view zeniths {zeniths[:4]}", "give degrees from the vertical, NaN if unknown")
    return f"{len(found)} passes in 48 days" if found else "not predictable"


def native_of(one: Sensor, grid: Grid) -> GeoBox:
    """The sensor's own pixels over a window: its `native`, else north-up pixels in the window's CRS."""
    if one.native is not None:
        return one.native(grid)
    left, bottom, right, top = grid.bounds
    shape = (int(np.ceil((top - bottom) / one.pixel)), int(np.ceil((right - left) / one.pixel)))
    return GeoBox(shape, Affine(one.pixel, 0, left, 0, -one.pixel, top), grid.crs)


def _covers(box: GeoBox, grid: Grid) -> str:
    if box.crs is None:
        raise Broken("no CRS", "return a GeoBox with a CRS")
    outline = grid.geobox.extent.to_crs(box.crs, resolution=grid.resolution)
    missing = outline.difference(box.extent.buffer(1e-6 * abs(box.transform.a))).area / outline.area
    _need(missing < 1e-6, f"{missing:.2%} of the window lies outside", "return native pixels that cover the whole window")
    return f"{box.shape[0]} x {box.shape[1]} pixels"


def _footprint(one: Sensor, grid: Grid) -> str:
    box = native_of(one, grid)
    worst_sum = worst_dot = 0.0
    rng = np.random.default_rng(0)
    for psf in {one.psf, *(b.psf for b in one.bands if b.psf)}:
        operator: Any = footprint(box, psf, grid)
        ones = np.asarray(operator(np.ones(grid.shape, dtype=np.float32)), dtype=np.float64)
        kept = ones > 0.5
        _need(kept.any(), "no footprint lies inside the window", "compare the PSF's width with the pixel")
        worst_sum = max(worst_sum, float(np.abs(ones[kept] - 1).max()), float(np.abs(ones[~kept]).max(initial=0.0)))
        z, y = (rng.standard_normal(shape).astype(np.float32) for shape in (grid.shape, tuple(box.shape)))
        forward, back = (np.asarray(v, dtype=np.float64) for v in (operator(z), operator.adjoint(y)))
        gap = abs(float(np.vdot(forward, y) - np.vdot(z, back)))
        worst_dot = max(worst_dot, gap / float(np.linalg.norm(forward) * np.linalg.norm(y)))
    _need(worst_sum < 1e-5, f"row sums off by {worst_sum:.1e}", "report it: operators derive from PSF and native pixels")
    _need(worst_dot < 1e-5, f"<Wz, y> and <z, W'y> differ by {worst_dot:.1e}", "report it: not linear in float32")
    return f"sums to {worst_sum:.0e}, adjoint to {worst_dot:.0e}"


def _model(one: Sensor, grid: Grid) -> str:
    scene = example_scene(one, grid)
    days = Calendar.regular(centre_of(scene.when) - 32 * DAY, centre_of(scene.when) + 32 * DAY, 8)
    basis = SpectralBasis.library(rank=4)
    z = np.linspace(-1.0, 1.0, basis.rank, dtype=np.float32) * np.sqrt(np.diag(basis.prior)).astype(np.float32)
    found = looks(scene, one, Cube(grid, days, basis))
    worst = 0.0
    for look in found:
        layer: Any = look.layer
        seen = look.precision > 0
        _need(seen.any(), "no value has a positive precision", "compare the PSF's width and the noise with the window")
        _need(np.isfinite(look.data).all() and np.isfinite(look.precision).all(), "data or precision not finite", "report it")
        responses = tuple(one.band(b).response for b in look.bands) if one.bands else ()
        colour = basis.responses(responses)[0] if responses else np.asarray(layer.colour)  # channels are reduced to K numbers
        cube = np.broadcast_to(z[None, :, None, None], (len(days), basis.rank, *grid.shape))
        gap = np.abs(np.asarray(layer(cube.copy())) - (colour @ z)[:, None, None])[seen] / np.abs(colour @ z).max()
        worst = max(worst, float(gap.max()))
    _need(worst < 1e-4, f"off by {worst:.1e}", "bands of one PSF must be seen alike: check responses, PSF and when")
    return f"{len(found)} observation{'s' if len(found) > 1 else ''}, to {worst:.0e}"


def example_scene(one: Sensor, grid: Grid) -> Scene:
    """A scene of smooth ramps, different in every band, with a hole: anything flipped, shifted or mixed up changes it."""
    box = native_of(one, grid)
    names = tuple(_channels(one))
    rows, cols = np.meshgrid(np.linspace(0, 1, box.shape[0]), np.linspace(0, 1, box.shape[1]), indexing="ij")
    tilt = np.linspace(0.05, 0.3, len(names))[:, None, None]
    rho = (tilt + 0.1 * rows + 0.05 * cols).astype(np.float32)
    hole = max(2, min(box.shape) // 4)
    rho[:, -hole:, :hole] = np.nan
    noise = [b.noise for b in one.bands] or [one.channel_noise or Noise(0.01, 0.0)] * len(names)
    sigma = np.stack([n.a + n.b * r for n, r in zip(noise, rho, strict=True)]).astype(np.float32)
    example = np.array(one.example_channels, dtype=np.float64) if not one.bands else None
    noon = np.datetime64(_day(one)).astype("datetime64[us]") + np.timedelta64(12, "h")
    return Scene(
        one.name,
        f"{one.name}-check",
        names,
        rho,
        sigma,
        box,
        Instant(noon),
        simulated=True,
        centres=None if example is None else example[:, 0],
        fwhm=None if example is None else example[:, 1],
    )


def _paired(wrote: Scene, back: Scene) -> NDArray[np.intp]:
    """For each band read back, its index in the written scene: by name, or by centre wavelength."""
    if wrote.centres is None or back.centres is None:
        lost = [b for b in back.bands if b not in wrote.bands]
        _need(not lost, f"unknown bands {', '.join(lost)}", "name the bands of a Scene as the Sensor names them")
        return np.array([wrote.bands.index(b) for b in back.bands])
    gap = np.abs(back.centres[:, None] - wrote.centres[None, :])
    _need(gap.min(axis=1).max() < 0.5, f"a channel is {gap.min(axis=1).max():.2f} nm off", "keep centres in nm")
    return gap.argmin(axis=1)


def _round_trip(one: Sensor, grid: Grid) -> str:
    assert one.write is not None
    wrote = example_scene(one, grid)
    with tempfile.TemporaryDirectory() as folder:
        item = one.write(wrote, Path(folder))
        _need(isinstance(item, pystac.Item), f"write returned {type(item).__name__}", "return the scene's pystac.Item")
        back = one.read(item, grid)
    _need(back.sensor == one.name and back.id == wrote.id, f"{back.sensor} {back.id}", "keep the sensor's name and the item's id")
    _need(back.simulated, "simulated is False", "carry the item property fusion:simulated into the Scene")
    gap = abs(centre_of(back.when) - centre_of(wrote.when)) / np.timedelta64(1, "D")
    _need(gap <= 1.0, f"the time moved by {gap:.1f} days", "the representative time must be the item's")
    _need(back.geobox.crs == wrote.geobox.crs, f"CRS {str(back.geobox.crs)[:40]}", "read the file's own CRS, never reproject")
    step = ~wrote.geobox.transform * back.geobox.transform
    col, row = round(step.c), round(step.f)
    moved = max(abs(step.c - col), abs(step.f - row), abs(step.a - 1), abs(step.e - 1), abs(step.b), abs(step.d))
    _need(moved < 1e-3, f"pixels moved by {moved:.3f} of a pixel", "use the affine of pixel corners; crop in whole pixels")
    rows, cols = np.arange(back.geobox.shape[0]) + row, np.arange(back.geobox.shape[1]) + col
    inside = (slice(max(0, -row), max(0, wrote.geobox.shape[0] - row)), slice(max(0, -col), max(0, wrote.geobox.shape[1] - col)))
    truth = wrote.reflectance[_paired(wrote, back)][:, rows[inside[0]]][:, :, cols[inside[1]]]
    return _same(truth, back.reflectance[:, inside[0], inside[1]])


def _same(truth: NDArray[np.float32], found: NDArray[np.float32]) -> str:
    invented = np.isfinite(found) & ~np.isfinite(truth)
    _need(not invented.any(), f"{int(invented.sum())} missing looks came back as values", "NaN = no look: mask the fill value")
    both = np.isfinite(found) & np.isfinite(truth)
    share = float(both.any(axis=0).sum() / max(1, np.isfinite(truth).any(axis=0).sum()))
    _need(share > 0.5, f"only {share:.0%} of the pixels came back", "quality bits or valid range reject good pixels")
    worst = float(np.abs(found - truth)[both].max())
    _need(worst <= QUANTUM, f"values off by {worst:.3g}", "check scale, offset, band order, row 0 north")
    return f"to {worst:.0e}, {share:.0%} of the pixels"


def _real(one: Sensor, item: pystac.Item, grid: Grid) -> str:
    scene = one.read(item, grid)
    _need(scene.sensor == one.name, scene.sensor, "set Scene.sensor to the sensor's name")
    names = [b.name for b in one.bands]
    _need(not names or list(scene.bands) == names, ", ".join(scene.bands), "return the sensor's bands in its order")
    _need(bool(names) or (scene.centres is not None and scene.fwhm is not None), "no centres or fwhm", "give both in nm")
    _need(np.isfinite(scene.reflectance).any(), "every pixel is no look", "all cloud, or quality bits reject everything")
    return f"{len(scene.bands)} bands of {scene.geobox.shape[0]} x {scene.geobox.shape[1]}, {scene.seen:.0%} seen"
