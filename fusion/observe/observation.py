"""A look made ready for inference: data, precision and the layer that explains them, from (scene, sensor, cube)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Instant, PixelDay, centre_of
from fusion.cube.cube import Cube
from fusion.cube.response import Response, within
from fusion.errors import SceneError, SensorError
from fusion.observe.aggregate import FINER, aggregate, pixel_on, precisions
from fusion.observe.footprint import footprint
from fusion.observe.geometry import window
from fusion.observe.layer import Layer
from fusion.observe.operator import COARSE
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Band, Sensor
from fusion.observe.spectral import Channels, reduce_channels

INSIDE = 0.95
"""least share of a channel's response within the wavelengths of the basis"""


@dataclass(frozen=True, eq=False)
class Observation:
    """One look: y = layer(z) + offset + noise, on the canonical native window of its raster. Precision 0 = missing."""

    sensor: str
    scene_id: str
    bands: tuple[str, ...]
    """B names; "pseudo-1".. where channels were reduced to sufficient statistics"""
    data: NDArray[np.float32]
    """(B, H, W) reflectance minus the basis' mean; 0 where missing"""
    precision: NDArray[np.float32]
    """(B, H, W) one over the variance of the white noise; 0 = missing"""
    layer: Layer
    offset_sd: NDArray[np.float32]
    """(B,) prior sd of this acquisition's common error"""
    gain_sd: NDArray[np.float32]
    """(B,) prior sd of the sensor's relative gain error; 0 for pseudo-bands, whose noise and offset contain it"""
    residual_var: NDArray[np.float32]
    """(B,) out-of-subspace variance of the spectral basis in these bands, to be added to the noise; 0 for pseudo-bands, whose
    noise contains it"""
    discrepancy_sd: NDArray[np.float32]
    """(H, W) sd of the temporally correlated error on the sensor's own cells; 0 = none"""
    discrepancy_days: float
    when: np.datetime64
    """representative instant, UTC"""
    geobox: GeoBox
    """(H, W) the native pixels; the latent grid itself where a finer sensor was averaged onto it"""
    psf: PSF
    view: View | None
    """what the footprint was made from, so that an engine may vary width and shift (`footprint`, `tangents`)"""
    notes: tuple[str, ...] = ()
    simulated: bool = False
    fleeting_sd: NDArray[np.float32] | None = None
    """(B,) sd of what each look of a coarse sensor gets wrong anew in its cells, part of the white noise in `precision`; None = not known"""

    @property
    def seen(self) -> float:
        """Fraction of values with a positive precision."""
        return float((self.precision > 0).mean())

    def rank_one(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(weight (H, W), per_band (B,)): precision ~ per_band x weight in the geometric mean; weight 0 where nothing is seen.

        Exact where a look's noise is one spectrum times one map (pseudo-bands; constant noise).
        """
        seen = self.precision > 0
        log = np.log(np.where(seen, self.precision, 1.0), dtype=np.float64)
        band = log.sum(axis=(1, 2)) / np.maximum(seen.sum(axis=(1, 2)), 1)
        left = np.where(seen, log - band[:, None, None], 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        return np.where(seen.any(axis=0), np.exp(left), 0.0).astype(np.float32), np.exp(band).astype(np.float32)


def looks(scene: Scene, sensor: Sensor, cube: Cube) -> tuple[Observation, ...]:
    """The observations of a scene: one for each point-spread function among its bands (Sentinel-2 has three) and, where its pixels are
    not coarse and have days of their own (MOD09A1), one for each day: so that every look has one weighting of the latent times, and
    each overpass its own offset.
    """
    if isinstance(scene.when, PixelDay) and pixel_on(scene.geobox, cube.grid) ** 2 < COARSE * cube.grid.resolution**2:
        days = [day for day in _days(scene) if np.asarray(cube.calendar.weights(day.when)).any()]
        if days:
            return tuple(look for day in days for look in looks(day, sensor, cube))
    if not sensor.bands or scene.centres is not None:
        return (observe(scene, sensor, cube),)
    groups: dict[PSF, list[int]] = {}
    for i, name in enumerate(scene.bands):
        groups.setdefault(_band(sensor, scene, name).psf or sensor.psf, []).append(i)
    return tuple(observe(scene.select(np.isin(np.arange(len(scene.bands)), pick)), sensor, cube) for pick in groups.values())


def observe(scene: Scene, sensor: Sensor, cube: Cube) -> Observation:
    """What a scene says of a cube.

    Data are cropped (padded with "missing") to the canonical native window, so all looks on one raster share shape and
    footprint. A sensor whose pixel is at most a third of the latent one is first averaged to latent pixels (`aggregate`);
    channels of an imaging spectrometer become at most K sufficient statistics (`reduce_channels`). Where a pixel lies partly
    outside the grid its variance grows by the square of the unseen share times the prior variance of its bands. A scene
    without one clear pixel gives an observation of precision zero. Raises SensorError for an unknown band; SceneError
    where the scene misses the calendar or the grid.
    """
    tau = np.asarray(cube.calendar.weights(scene.when))
    days = scene.when.days if isinstance(scene.when, PixelDay) else None
    if not tau.any() and (days is None or not np.isnat(days).all()):
        first, last = cube.calendar.times[[0, -1]].astype("datetime64[D]")
        raise SceneError(
            f"{scene.where}: taken {np.datetime_as_string(centre_of(scene.when), 'D')}, outside the calendar {first} .. {last}: "
            "leave it out or widen the period"
        )
    psf, notes = _psf(scene, sensor)
    finer = FINER * pixel_on(scene.geobox, cube.grid) <= cube.grid.resolution
    scene, view, tau = _crop(scene, cube, tau, pad=not finer)
    weight = np.ones(tuple(map(int, scene.geobox.shape)))
    if tau.ndim == 3:
        weight *= tau.any(axis=-1)
    if scene.view is not None and scene.view.coverage is not None:
        weight *= np.clip(np.nan_to_num(scene.view.coverage, nan=1.0), 0.0, 1.0)
    if not np.isfinite(scene.reflectance[:, weight > 0]).any():
        notes += ("no clear pixel reaches the grid: every precision is zero",)
    geobox = scene.geobox
    if finer:
        values, precision, psf = aggregate(scene.reflectance, scene.sigma, weight, geobox, psf, cube.grid)
        if tau.ndim == 3:
            tau = np.asarray(cube.calendar.weights(Instant(centre_of(scene.when))))
        geobox, view = cube.grid.geobox, None
        notes += ("averaged to latent pixels",)
    else:
        values, precision = precisions(scene.reflectance, scene.sigma, weight)
    channels = _channels(scene, sensor, cube, values, precision, cube.grid.resolution if finer else sensor.pixel)
    view = view if psf.kind == "scanner" else None
    foot = footprint(geobox, psf, cube.grid, view=view)
    share = np.asarray(foot.seen, dtype=np.float64)
    precision = _partial(channels, share, np.einsum("bk,kl,bl->b", channels.colour, cube.basis.prior, channels.colour))
    data = np.where(precision > 0, channels.data - channels.mean[:, None, None], 0.0)
    return Observation(
        sensor=sensor.name, scene_id=scene.id, bands=channels.bands,
        data=data.astype(np.float32), precision=precision.astype(np.float32),
        layer=Layer.of(foot, channels.colour, channels.mean, tau),
        offset_sd=channels.offset_sd.astype(np.float32),
        gain_sd=channels.gain_sd.astype(np.float32),
        residual_var=channels.residual_var.astype(np.float32),
        discrepancy_sd=np.full(data.shape[1:], sensor.discrepancy_sd, np.float32), discrepancy_days=sensor.discrepancy_days,
        when=centre_of(scene.when),
        geobox=geobox, psf=psf, view=view, notes=scene.notes + notes, simulated=scene.simulated,
    )


def _days(scene: Scene) -> list[Scene]:
    """A composite's pixels of each day, as the look of one noon with a name of its own: it is another overpass."""
    assert isinstance(scene.when, PixelDay)
    seen = np.where(np.isfinite(scene.reflectance).any(axis=0), scene.when.days, np.datetime64("NaT"))
    out = []
    for day in np.unique(seen[~np.isnat(seen)]):
        values = np.where(seen == day, scene.reflectance, np.nan).astype(np.float32)
        noon = Instant(day.astype("datetime64[us]") + np.timedelta64(12, "h"))
        out.append(replace(scene, id=f"{scene.id} of {day}", reflectance=values, when=noon))
    return out


def _band(sensor: Sensor, scene: Scene, name: str) -> Band:
    try:
        return sensor.band(name)
    except SensorError as error:
        raise SensorError(f"{scene.where}: {error}") from None


def _psf(scene: Scene, sensor: Sensor) -> tuple[PSF, tuple[str, ...]]:
    """The look's PSF: the one of its bands, or their median with a note where they differ (then `looks` is exact)."""
    if scene.centres is not None or not sensor.bands:
        return sensor.psf, ()
    each = [_band(sensor, scene, name).psf or sensor.psf for name in scene.bands]
    if len(set(each)) <= 1:
        return each[0] if each else sensor.psf, ()
    middle = sorted(each, key=lambda p: p.fwhm)[len(each) // 2]
    return middle, ("bands of different sharpness were given the median point spread",)


def _crop(scene: Scene, cube: Cube, tau: NDArray[np.float64], *, pad: bool) -> tuple[Scene, View | None, NDArray[np.float64]]:
    """Scene, view and days per pixel on the canonical window, outside the scene missing; unpadded: on what it covers of it."""
    target = window(scene.geobox, cube.grid)
    col, row = (round(v) for v in ~scene.geobox.transform * (target.transform * (0, 0)))
    high, wide = int(target.shape[0]), int(target.shape[1])
    height, width = int(scene.geobox.shape[0]), int(scene.geobox.shape[1])
    source = (slice(max(0, row), min(height, row + high)), slice(max(0, col), min(width, col + wide)))
    if source[0].start >= source[0].stop or source[1].start >= source[1].stop:
        raise SceneError(
            f"{scene.where}: covers {_where(scene.geobox)} and misses the grid at {_where(cube.grid.geobox)}: "
            "search with the grid's own outline"
        )
    if not pad:
        row, col = source[0].start, source[1].start
        high, wide = source[0].stop - row, source[1].stop - col
        target = GeoBox((high, wide), scene.geobox.transform * Affine.translation(col, row), scene.geobox.crs)
    here = (slice(source[0].start - row, source[0].stop - row), slice(source[1].start - col, source[1].stop - col))

    def put(array: NDArray[np.float32], axes: tuple[int, int] = (-2, -1)) -> NDArray[np.float32]:
        moved = np.moveaxis(array, axes, (-2, -1))
        out = np.full((*moved.shape[:-2], high, wide), np.nan, dtype=array.dtype)
        out[(..., *here)] = moved[(..., *source)]
        return np.moveaxis(out, (-2, -1), axes)

    view = scene.view
    if view is not None:
        view = View(put(view.zenith), put(view.azimuth), None if view.coverage is None else put(view.coverage))
    if tau.ndim == 3:
        tau = np.nan_to_num(put(tau.astype(np.float32), (0, 1)).astype(np.float64))
    when = scene.when
    if isinstance(when, PixelDay):
        days = np.full((high, wide), np.datetime64("NaT"), dtype=when.days.dtype)
        days[here] = when.days[source]
        when = PixelDay(days)
    cropped = replace(
        scene, reflectance=put(scene.reflectance), sigma=put(scene.sigma), geobox=_snap(target), view=view, when=when
    )
    return cropped, view, tau


def _snap(geobox: GeoBox) -> GeoBox:
    """Corner to a thousandth of a pixel, so that the same raster written by two products is one raster."""
    a, b, c, d, e, f = geobox.transform[:6]
    unit = 1e-3 * float(np.sqrt(abs(geobox.transform.determinant)))
    return GeoBox(geobox.shape, Affine(a, b, round(c / unit) * unit, d, e, round(f / unit) * unit), geobox.crs)


def _where(geobox: GeoBox) -> str:
    west, south, east, north = geobox.extent.to_crs("EPSG:4326").boundingbox.bbox
    return f"{west:.3f}..{east:.3f} E, {south:.3f}..{north:.3f} N"


def _channels(
    scene: Scene, sensor: Sensor, cube: Cube, values: NDArray[np.float64], precision: NDArray[np.float64], pixel: float
) -> Channels:
    """Bands or channels with their responses on the basis; a spectrometer's channels reduced to sufficient statistics.

    pixel: metres between the values.
    """
    basis, where = cube.basis, scene.where
    if scene.centres is None:
        if not sensor.bands:
            raise SceneError(f"{where}: {sensor.name} is an imaging spectrometer: the scene must give centres and fwhm in nm")
        responses = tuple(_band(sensor, scene, name).response for name in scene.bands)
        colour, mean, residual = basis.responses(responses)
        seen = precision > 0
        bright = np.where(seen, values, 0.0).sum((1, 2)) / np.maximum(seen.sum((1, 2)), 1)
        offset, gain = sensor.offset_of(bright), np.full(len(mean), sensor.gain_sd)
        return Channels(scene.bands, values, precision, colour, mean, residual, offset, gain)
    if scene.fwhm is None:
        raise SceneError(f"{where}: channel centres without widths: give fwhm in nm")
    if np.max(scene.centres) < 100:
        raise SceneError(f"{where}: channel centres reach only {np.max(scene.centres):.3g}: are they micrometres? give nm")
    responses = tuple(Response.gaussian(c, f) for c, f in zip(scene.centres, scene.fwhm, strict=True))
    use = ~within(scene.centres, sensor.opaque)
    if not basis.discrete:
        use &= np.array([r.inside(basis.wavelengths) >= INSIDE for r in responses])
    if not use.any():
        low, high = basis.wavelengths[[0, -1]]
        raise SceneError(f"{where}: no channel between {low:.0f} and {high:.0f} nm outside the windows where air is opaque")
    responses = tuple(r for r, keep in zip(responses, use, strict=True) if keep)
    gain, offset = (e[:, None, None] for e in basis.error(scene.id, responses))  # what the basis learned of this acquisition
    names = tuple(name for name, keep in zip(scene.bands, use, strict=True) if keep)
    values, precision = values[use], precision[use]
    if scene.id in basis.offsets:
        values, precision = (values - offset) / (1 + gain), precision * (1 + gain) ** 2
    moved = sensor.psf.geolocation / pixel
    return reduce_channels(names, values, precision, scene.centres[use], responses, basis, sensor.offset_sd, sensor.gain_sd, moved)


def _partial(channels: Channels, share: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Precision lowered where part of the footprint lies outside the grid.

    The unseen share u of a pixel is an unknown colour with the prior variance v of the band: sigma^2 + u^2 v. One factor
    per pixel, the mean over bands, keeps the noise of a look separable.
    """
    precision = channels.precision
    unseen = np.where(share > 1 - 1e-4, 0.0, 1 - share) ** 2
    seen = precision > 0
    growth = np.where(seen, 1 + unseen * spread[:, None, None] * precision, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    return np.where(seen & (share > 0), precision / np.maximum(growth, 1.0), 0.0)
