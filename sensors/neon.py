"""NEON AOP imaging spectrometer surface reflectance (DP3.30006 mosaics, DP1 flight lines) in its native HDF5."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Instant, PixelDay, When, centre_of, instant_of
from fusion.cube.grid import Grid
from fusion.errors import JobError, SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene, View
from fusion.observe.sensor import Noise, Sensor
from sensors import revisit
from sensors.channels import channels_of, in_nanometres, spectral_scene, spread, widths
from sensors.cubefile import affine_of_map_info, opened, text_of
from sensors.reading import asset_of, crs_of, instant, local_file, reach_of, window_of
from sensors.writing import make_item

KEYS = ("reflectance", "data", "h5")
SCALE, FILL = 10000.0, -9999
NOON = "T18:00:00"  # NEON flies within hours of solar noon over North America


def read(item: pystac.Item, window: Grid) -> Scene:
    """One mosaic tile's window; wavelengths, widths, scale and fill from the file."""
    where = f"neon-aop scene {item.id}"
    asset = asset_of(item, KEYS, where)
    path = local_file(item, asset, where)
    with opened(path, where) as file:
        site = next((group for group in file.values() if isinstance(group, h5py.Group) and "Reflectance" in group), None)
        if site is None or "Reflectance_Data" not in site["Reflectance"]:
            raise SceneError(f"{where}: {path.name} has no <SITE>/Reflectance/Reflectance_Data: is it a NEON reflectance file?")
        group = site["Reflectance"]
        data, system = group["Reflectance_Data"], group["Metadata/Coordinate_System"]
        spectral = group["Metadata/Spectral_Data"]
        told = [text_of(system[key][()]) for key in ("Coordinate_System_String", "EPSG Code", "Proj4") if key in system]
        crs = crs_of(item, asset, next((f"EPSG:{t}" if t.isdigit() else t for t in told if t), None), where)
        native = GeoBox(data.shape[:2], affine_of_map_info(text_of(system["Map_Info"][()]), where), crs)
        rows, cols = window_of(native, window, reach_of(NEON_PSF, 1.0), where)
        centres, notes = in_nanometres(spectral["Wavelength"][()], "wavelengths", where)
        fwhm, more = widths(spectral["FWHM"][()] if "FWHM" in spectral else None, centres, where)
        scale, last = _attribute(data, "Scale_Factor", SCALE)
        fill, extra = _attribute(data, "Data_Ignore_Value", FILL)
        stored = np.moveaxis(data[rows, cols, :], -1, 0)
        (when, dated), view = _when(group, rows, cols, item, path, where), _view(group, rows, cols)
    if stored.shape[0] != centres.size:
        raise SceneError(f"{where}: {stored.shape[0]} channels and {centres.size} wavelengths: the file is damaged")
    # the bidirectional product writes -100 over its water bands, all dropped by their wavelengths
    rho = np.where((stored == fill) | (stored == -100), np.nan, stored / scale).astype(np.float32)
    return spectral_scene(
        "neon-aop", NOISE, item, rho, centres, fwhm, native[rows, cols], when, view=view, notes=(*notes, *more, *last, *extra, *dated)
    )


def _attribute(data: h5py.Dataset, key: str, usual: float) -> tuple[float, tuple[str, ...]]:
    """(value, notes): an attribute of the reflectance array, else the product's documented number."""
    if key in data.attrs:
        return float(np.ravel(data.attrs[key])[0]), ()
    return usual, (f"no {key} in the file: the product's documented {usual:g} is used",)


def _when(group: h5py.Group, rows: slice, cols: slice, item: pystac.Item, path: Path, where: str) -> tuple[When, tuple[str, ...]]:
    """The flight's time: per pixel where a mosaic joins days; else the item's, the file's day, or a YYYYMMDD in the file's name."""
    layer = group.get("Metadata/Ancillary_Imagery/Acquisition_Date")
    days = _days(layer[rows, cols]) if isinstance(layer, h5py.Dataset) and layer.ndim == 2 else np.zeros(0, dtype="datetime64[D]")
    known = np.unique(days[~np.isnat(days)])
    if known.size > 1:
        return PixelDay(days), ()
    if item.datetime is not None or item.properties.get("start_datetime"):
        when = instant(item)
        if not known.size or abs(when.time.astype("datetime64[D]") - known[0]) <= np.timedelta64(1, "D"):  # UTC against local
            return when, ()
        return Instant(instant_of(f"{known[0]}{NOON}")), (f"the item says {when.time.astype('datetime64[D]')}, the file {known[0]}: used",)
    if known.size:
        return Instant(instant_of(f"{known[0]}{NOON}")), ()
    named = re.search(r"(?<!\d)(20\d\d)(\d\d)(\d\d)(?:[_T](\d\d)(\d\d)(\d\d))?(?!\d)", path.name)
    if named is None:
        raise SceneError(f"{where}: no Acquisition_Date in the file, no datetime in the item, no YYYYMMDD in {path.name}: add a datetime")
    year, month, day, *clock = named.groups()
    try:
        return Instant(instant_of(f"{year}-{month}-{day}" + ("T" + ":".join(clock) if clock[0] else NOON))), ("dated by the file's name",)
    except JobError as error:
        raise SceneError(f"{where}: {named.group()!r} in {path.name} is not a date: add a datetime to the item") from error


def _days(stamps: NDArray[Any]) -> NDArray[np.datetime64]:
    """(H, W) dates from YYYYMMDD integers; NaT where there is none."""
    out = np.full(stamps.shape, np.datetime64("NaT"), dtype="datetime64[D]")
    for stamp in np.unique(stamps):
        if 20000101 <= stamp <= 21001231:
            text = str(int(stamp))
            out[stamps == stamp] = np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:]}", "D")
    return out


def _view(group: h5py.Group, rows: slice, cols: slice) -> View | None:
    """Per-pixel angles to the sensor, where the file keeps them."""
    layers = [group.get(f"Metadata/to-sensor_{name}_Angle") for name in ("Zenith", "Azimuth")]
    if not all(isinstance(layer, h5py.Dataset) and layer.ndim == 2 for layer in layers):
        return None
    zenith, azimuth = (np.where(a == FILL, np.nan, a).astype(np.float32) for a in (layer[rows, cols] for layer in layers))
    return View(zenith, azimuth)


def write(scene: Scene, folder: Path) -> pystac.Item:
    """One HDF5 file in NEON's layout under the site code SIMU (the item says whether the scene is simulated)."""
    centres, fwhm = channels_of(scene)
    folder.mkdir(parents=True, exist_ok=True)
    path, box = folder / f"{scene.id}_reflectance.h5", scene.geobox
    a, b, x, _, e, y = box.transform[:6]
    if b or abs(a + e) > 1e-9 * a:
        raise SceneError(f"{scene.where}: NEON mosaics are square and north-up, got {tuple(box.transform)[:6]}: write it as `airborne`")
    epsg = box.crs.epsg if box.crs else None
    if epsg is None or epsg // 100 not in (326, 327):
        raise SceneError(f"{scene.where}: NEON mosaics are in WGS 84 / UTM, got {box.crs}: write it as `airborne`")
    hemisphere = "North" if epsg // 100 == 326 else "South"
    stored = np.where(np.isfinite(scene.reflectance), np.round(np.nan_to_num(scene.reflectance) * SCALE), FILL).astype(np.int16)
    text: dict[str, Any] = {
        "Map_Info": f"UTM, 1.000, 1.000, {x!r}, {y!r}, {a!r}, {a!r}, {epsg % 100}, {hemisphere}, WGS-84, units=Meters, 0",
        "EPSG Code": str(epsg), "Coordinate_System_String": box.crs.to_wkt() if box.crs else "",
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        group = file.create_group("SIMU/Reflectance")
        data = group.create_dataset("Reflectance_Data", data=np.moveaxis(stored, 0, -1), chunks=True, compression="gzip", compression_opts=1)
        data.attrs["Scale_Factor"], data.attrs["Data_Ignore_Value"] = np.array([SCALE]), np.array([float(FILL)])
        for key, value in text.items():
            group[f"Metadata/Coordinate_System/{key}"] = value
        group["Metadata/Spectral_Data/Wavelength"], group["Metadata/Spectral_Data/FWHM"] = centres, fwhm
        day = int(str(centre_of(scene.when).astype("datetime64[D]")).replace("-", ""))
        group["Metadata/Ancillary_Imagery/Acquisition_Date"] = np.full(tuple(box.shape), day, dtype=np.int32)
    return make_item(scene, folder, {"reflectance": (path, {})})


NOISE = Noise(0.002, 0.02)
NEON_PSF = PSF("gaussian", 0.68, geolocation=0.5)
NEON_AOP = Sensor(
    name="neon-aop", title="NEON AOP imaging spectrometer, 1 m surface reflectance (HDF5)", bands=(), psf=NEON_PSF, pixel=1.0,
    read=read, write=write, revisit=revisit.never, offset_sd=0.015, gain_sd=0.03, channel_noise=NOISE, lifetime=(date(2013, 1, 1), None),
    example_channels=spread(383.534, 2511.895, 426, 5.85),
    sources=(
        "Layout, scale 10000, fill -9999, bad bands 1340-1445 and 1790-1955 nm: NEON.DOC.001288 (DP3.30006 algorithm theoretical basis).",
        "PSF: 1 mrad from 1000 m is the 1 m cell; nearest-neighbour orthorectification adds a second box of one pixel, by its variance 1/12 m2.",
        "Geolocation: half a pixel (NEON geolocation ATBD).  Offset: BRDF at 17 degrees from nadir 8-10 %, mosaics keep the nadir-most pixel.",
        "Noise: 30-35 dB against the mean spectrum; shoulders of water vapour tripled.  Example channels: 5.008 nm steps, FWHM 5.85 nm.",
    ),
)
