"""Worlds with known truth, seen by any installed sensor through its own geometry, responses, calendar and files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.sparse import csr_matrix

from fusion.cube.calendar import Instant, PixelDay, When, Window, instant_of
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import Response
from fusion.errors import JobError
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Compositing, Pass, Sensor, sensor
from fusion.simulate import weather
from fusion.simulate.ground import Array, Ground, random
from fusion.simulate.optics import blocks, shares
from fusion.simulate.weather import Nuisances

MORNING = 10.5
"""local solar hour of every look"""
MOST = 30_000_000
"""world pixels"""


@dataclass(frozen=True, eq=False)
class World:
    """A ground whose every pixel is known at every moment, on pixels `finer` times smaller than the grid's, and its weather."""

    grid: Grid
    ground: Ground
    period: tuple[np.datetime64, np.datetime64]
    seed: int
    finer: int
    margin: int
    """world pixels around the grid, so that coarse footprints have ground under them"""
    nuisances: Nuisances

    @property
    def pixels(self) -> GeoBox:
        """The world's own pixels: the grid's, split `finer` times, and the margin."""
        return pixels_of(self.grid, self.finer, self.margin)

    # -- what sensors see ------------------------------------------------------------------------------------------------------

    def see(
        self, which: Sensor | str, when: Pass | date | str | np.datetime64, *, window: Grid | None = None,
        pixel: float | None = None,
    ) -> Scene:
        """One look of one sensor.

        when: a planned pass or any day. window: the area that the file covers, default the grid. pixel: metres, for sensors
        without a grid of their own (aircraft); default the sensor's. Aircraft fly under a clear sky. The scene's sigma is
        a + b rho of what was measured.
        """
        one = sensor(which) if isinstance(which, str) else which
        planned = when if isinstance(when, Pass) else Pass(instant_of(when).astype("datetime64[D]").item(), float("nan"))
        geobox = self._native(one, window or self.grid, pixel)
        channels = self._channels(one)
        responses = tuple(band.response for band in one.bands) or tuple(Response.gaussian(*c) for c in channels)
        day = np.datetime64(planned.day, "D")
        rng = random(self.seed, "look", one.name, day)
        north, east = self.nuisances.shift * one.psf.geolocation * rng.standard_normal(2)
        view = self._view(one, planned, geobox.shape)
        clean, flagged, moment = self._exposed(one, responses, geobox, view, (north, east), day)
        centroids = np.array([r.centroid for r in responses])
        size = (len(responses), *map(int, geobox.shape))
        n = self.nuisances
        value = clean * (1 + n.gain * (weather.gains(self.seed, one, len(responses)) - 1))[:, None]
        value = value + n.offset * weather.offsets(self.seed, one, day, centroids)[:, None] * one.offset_of(clean)
        if n.discrepancy and one.discrepancy_sd:
            value = value + n.discrepancy * weather.discrepancy(self.seed, one, day, *value.shape)
        facts = weather.noise_of(one, len(channels))
        a, b = np.array([f.a for f in facts])[:, None], np.array([f.b for f in facts])[:, None]
        value = value + n.noise * (a + b * np.maximum(clean, 0)) * rng.standard_normal(value.shape)
        if one.blind is not None and n.faults:
            flagged = flagged | one.blind(geobox, planned).ravel()
        value[:, flagged] = np.nan
        sigma = a + b * np.maximum(np.nan_to_num(value), 0)
        names = tuple(band.name for band in one.bands) or tuple(f"{c:.2f}nm" for c, _ in channels)
        return Scene(
            one.name, f"SIMULATED_{one.name}_{planned.day:%Y%m%d}", names, value.reshape(size).astype(np.float32),
            sigma.reshape(size).astype(np.float32), geobox, moment, view,
            centres=np.array([c for c, _ in channels]) if channels else None,
            fwhm=np.array([w for _, w in channels]) if channels else None,
            notes=(f"simulated: {self.ground.title}, seed {self.seed}",), simulated=True,
            attrs={"shift_north_m": float(north), "shift_east_m": float(east)},
        )  # fmt: skip

    def passes(self, which: Sensor | str) -> list[Pass]:
        """The planned acquisitions of a sensor over the grid's centre in the world's period."""
        one = sensor(which) if isinstance(which, str) else which
        lon, lat = self.grid.lonlat.centroid.coords[0]
        first, last = (t.astype("datetime64[D]").item() for t in self.period)
        return one.revisit(lon, lat, first, last)

    def looks(self, which: Sensor | str, **settings: Any) -> list[Scene]:
        """All planned looks of a sensor; `settings` as in `see`."""
        return [self.see(which, planned, **settings) for planned in self.passes(which)]

    def archive(
        self, folder: Path | str, sensors: Sequence[Sensor | str], *,
        flights: Iterable[tuple[Sensor | str, date | str, Grid | None]] = (), pixel: float | None = None,
    ) -> pystac.Catalog:
        """Files and a static STAC catalog (catalog.json, relative links) of all planned looks, as the real archives hold them.

        flights: (sensor, day, window or None) of aircraft and others that no calendar plans; pixel: their pixel, metres.
        """
        folder = Path(folder)
        title = f"SIMULATED: {self.ground.title}, seed {self.seed}"
        catalog = pystac.Catalog("simulated", title, title)
        plan = [(sensor(s) if isinstance(s, str) else s, p, None) for s in sensors for p in self.passes(s)]
        plan += [(sensor(s) if isinstance(s, str) else s, day, window) for s, day, window in flights]  # type: ignore[misc]
        if not plan:
            raise JobError(f"no pass of any of {len(sensors)} sensors in {self.period[0]} .. {self.period[1]}: list flights")
        mute = sorted({one.name for one, _, _ in plan if one.write is None})
        if mute:
            raise JobError(f"{', '.join(mute)} cannot write files (Sensor.write is None): simulate them with World.see instead")
        groups: dict[str, list[pystac.Item]] = {}
        for one, when, window in plan:
            scene = self.see(one, when, window=window, pixel=pixel)
            assert one.write is not None
            item = one.write(scene, folder / one.name / scene.id)
            item.properties |= {"title": f"SIMULATED {one.title}", "fusion:simulated": True, "fusion:ground": title}
            groups.setdefault(one.name, []).append(item)
        for name, items in groups.items():
            catalog.add_child(_collection(name, title, items))
        catalog.normalize_hrefs(str(folder.resolve()))
        catalog.make_all_asset_hrefs_relative()
        catalog.save(pystac.CatalogType.SELF_CONTAINED, dest_href=str(folder.resolve()))
        return catalog

    # -- the truth -------------------------------------------------------------------------------------------------------------

    def truth(self, cube: Cube) -> NDArray[np.float32]:
        """z (T, K, Y, X): the true spectra of the cube's pixels at its times, projected on its basis by least squares.

        What the basis cannot hold is the out-of-subspace part; `reflectance` has the whole truth.
        """
        back = np.linalg.pinv(cube.basis.components)
        spectra = self._spectra(cube.calendar.times, cube.basis.wavelengths, cube.grid)
        return np.stack([back @ (r - cube.basis.mean[:, None]) for r in spectra]).reshape(cube.shape).astype(np.float32)

    def reflectance(
        self, times: Iterable[Any], what: Sequence[float] | Array | Sequence[Response], grid: Grid | None = None
    ) -> NDArray[np.float32]:
        """(T, L, Y, X) true mean reflectance of the pixels of the grid (or of a part of it) at any moments.

        what: wavelengths in nm, or responses of bands.
        """
        grid = grid or self.grid
        moments = [instant_of(t) for t in times]
        values = list(self._spectra(moments, what, grid))
        return np.stack(values).reshape(len(moments), -1, *grid.shape).astype(np.float32)

    def picture(self, time: Any, bands: tuple[float, float, float] = (660.0, 560.0, 480.0), bright: float = 4.0) -> Array:
        """(Y, X, 3) 0..1 for `imshow`: true reflectance at three wavelengths, nm, times `bright`, on the world's own pixels."""
        spectra = np.stack([np.interp(bands, self.ground.wavelengths, s) for s in self.ground.spectra])
        image = np.asarray(self.ground.at(instant_of(time)) @ spectra).reshape(*map(int, self.pixels.shape), 3)
        inner = slice(self.margin, -self.margin or None)
        return np.clip(bright * image[inner, inner], 0, 1)

    # -- inside ----------------------------------------------------------------------------------------------------------------

    def _spectra(self, times: Iterable[np.datetime64], what: Any, grid: Grid) -> Iterable[Array]:
        """(L, Y*X) for each time."""
        top, left = self.grid.offset_of(grid)
        rows, cols = grid.shape
        if top < 0 or left < 0 or top + rows > self.grid.shape[0] or left + cols > self.grid.shape[1]:
            raise JobError(f"the truth is known on the world's grid only: {grid.bounds} reaches beyond {self.grid.bounds}")
        if len(what) and isinstance(what[0], Response):
            weights = np.stack([r.on(self.ground.wavelengths) for r in what])
            table = weights @ self.ground.spectra.T
        else:
            wavelengths = np.asarray(what, dtype=np.float64)
            table = np.stack([np.interp(wavelengths, self.ground.wavelengths, s) for s in self.ground.spectra], axis=1)
        pick = (np.arange(top, top + rows)[:, None] * self.grid.shape[1] + np.arange(left, left + cols)).ravel()
        mean = blocks(self.grid.shape, self.finer, self.margin)[pick]
        for time in times:
            yield table @ _dense(mean @ self.ground.at(time)).T

    def _native(self, one: Sensor, window: Grid, pixel: float | None) -> GeoBox:
        if one.native is not None:
            return one.native(window)
        edge = pixel or one.pixel
        left, bottom, right, top = window.bounds.bbox
        shape = max(1, round((top - bottom) / edge)), max(1, round((right - left) / edge))
        if shape[0] * shape[1] * max(len(one.example_channels), 1) > 2_000_000_000:
            raise JobError(
                f"{one.name} at {edge} m over {window.bounds.bbox} m: {shape} pixels are too many: give a smaller window"
            )
        return GeoBox(shape, Affine(edge, 0, left, 0, -edge, top), window.crs)

    def _channels(self, one: Sensor) -> tuple[tuple[float, float], ...]:
        """Centres and widths of a spectrometer's typical channels that the ground has a spectrum for; none for other sensors."""
        first, last = self.ground.wavelengths[[0, -1]]
        kept = tuple((c, w) for c, w in one.example_channels if first <= c <= last)
        if not one.bands and not kept:
            raise JobError(f"{one.name} has neither bands nor example_channels in {first:.0f}-{last:.0f} nm: nothing to simulate")
        return () if one.bands else kept

    @staticmethod
    def _view(one: Sensor, planned: Pass, shape: Any) -> View | None:
        """The same angles for all pixels; None for composites and for what is always seen from above."""
        if one.psf.kind != "scanner" or (one.compositing is not None and not one.compositing.one_day):
            return None
        zenith = planned.view_zenith if np.isfinite(planned.view_zenith) else 25.0
        angles = (np.full((int(shape[0]), int(shape[1])), v, np.float32) for v in (zenith, 98.0))
        return View(*angles)

    def _exposed(
        self, one: Sensor, responses: tuple[Response, ...], geobox: GeoBox, view: View | None, shift: tuple[float, float],
        day: np.datetime64,
    ) -> tuple[Array, NDArray[np.bool_], When]:
        """What reaches the sensor: (reflectance (B, H*W) before calibration and noise, flagged (H*W,), its time)."""
        psfs = [band.psf or one.psf for band in one.bands] or [one.psf] * len(responses)
        cells = int(np.prod(geobox.shape))
        clean, flagged = np.zeros((len(responses), cells)), np.zeros(cells, bool)
        moment: When = Instant(self._instant(day))
        for psf in dict.fromkeys(psfs):
            chosen = [i for i, p in enumerate(psfs) if p == psf]
            table = np.stack([responses[i].on(self.ground.wavelengths) for i in chosen]) @ self.ground.spectra.T
            rows = shares(geobox, psf, self.pixels, view=view, shift=shift)
            mixture, hidden, when = self._through(rows, one.compositing, day, geobox, clear=one.native is None)
            clean[chosen], flagged, moment = table @ mixture.T, flagged | hidden, when
        return clean, flagged, moment

    def _through(
        self, rows: csr_matrix, rule: Compositing | None, day: np.datetime64, geobox: GeoBox, clear: bool
    ) -> tuple[Array, NDArray[np.bool_], When]:
        """Footprint sums of one day or of a composite's days: (shares (H*W, E), no look (H*W,), when)."""
        if rule is None:
            value, cover = self._day(rows, day, clear)
            return value, cover > weather.FLAGGED, Instant(self._instant(day))
        days = day + np.arange(rule.first, rule.last + 1)
        weights = np.exp(-np.abs(np.arange(rule.first, rule.last + 1)) / rule.decay_days)
        pick = random(self.seed, "best day", day).uniform(size=(days.size, rows.shape[0]))
        total, mass, best = 0.0, np.zeros(rows.shape[0]), np.zeros((days.size, rows.shape[0]))
        sums: list[Array] = []
        for i, each in enumerate(days):
            value, cover = self._day(rows, each, clear)
            bare = cover <= weather.FLAGGED
            best[i] = np.where(bare, pick[i], -1.0)
            if rule.one_day:
                sums.append(value)
            total = total + (weights[i] * bare)[:, None] * value
            mass += weights[i] * bare
        hidden = mass == 0
        if not rule.one_day:
            ends = days[[0, -1]].astype("datetime64[us]")
            window = Window(ends[0], ends[1], day.astype("datetime64[us]"), rule.decay_days)
            return np.asarray(total / np.maximum(mass, 1e-12)[:, None]), hidden, window
        chosen = best.argmax(axis=0)
        dates = np.where(hidden, np.datetime64("NaT"), days[chosen]).reshape(tuple(map(int, geobox.shape)))
        return np.stack(sums)[chosen, np.arange(chosen.size)], hidden, PixelDay(dates)

    def _day(self, rows: csr_matrix, day: np.datetime64, clear: bool) -> tuple[Array, Array]:
        """(shares (H*W, E) under thin remains of cloud, cloud or shadow share (H*W,)) on one day."""
        ground = _dense(rows @ self.ground.at(self._instant(day)))
        if clear or self.nuisances.clouds == 0:
            return ground, np.zeros(rows.shape[0])
        box = self.pixels
        shape = int(box.shape[0]), int(box.shape[1])
        cloud, shadow = weather.sky(self.seed, day, shape, abs(box.transform.a), self.nuisances.clouds)
        hidden = rows @ (cloud | shadow).astype(np.float64)
        return ground * (1 - 0.5 * hidden)[:, None], hidden

    def _instant(self, day: np.datetime64) -> np.datetime64:
        lon = self.grid.lonlat.centroid.coords[0][0]
        return day.astype("datetime64[us]") + np.timedelta64(round(((MORNING - lon / 15) % 24) * 3600), "s")


def pixels_of(grid: Grid, finer: int, margin: int) -> GeoBox:
    """The world's pixels around a grid."""
    edge = grid.resolution / finer
    shape = grid.shape[0] * finer + 2 * margin, grid.shape[1] * finer + 2 * margin
    if shape[0] * shape[1] > MOST:
        raise JobError(f"a world of {shape[0]} x {shape[1]} pixels does not fit: choose a smaller grid, or finer=1")
    left, top = grid.transform.c - margin * edge, grid.transform.f + margin * edge
    return GeoBox(shape, Affine(edge, 0, left, 0, -edge, top), grid.crs)


def _dense(product: Any) -> Array:
    return np.asarray(product.toarray() if hasattr(product, "toarray") else product)


def _collection(name: str, title: str, items: list[pystac.Item]) -> pystac.Collection:
    """All items of one sensor."""
    collection = pystac.Collection(name, title, pystac.Extent.from_items(items), title=f"SIMULATED {name}", license="CC0-1.0")
    collection.extra_fields["fusion:simulated"] = True
    collection.add_items(items)
    return collection
