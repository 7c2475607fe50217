"""NEON's HDF5 layout: attributes, flight days and angles in, a whole file out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pystac
from numpy.typing import NDArray

from fusion.cube.calendar import Instant, PixelDay, When, centre_of, instant_of
from fusion.errors import JobError, SceneError
from fusion.observe.scene import Scene, View
from sensors.channels import channels_of
from sensors.images import Image, WhenOf, affine_of_map_info, text_of
from sensors.reading import instant
from sensors.writing import make_item

SCALE, FILL = 10000.0, -9999
NOON = "T18:00:00"  # NEON flies within hours of solar noon over North America


def neon_image(file: h5py.File, path: Path, where: str) -> tuple[Image, h5py.Group, tuple[str, ...]]:
    """(image, the site's Reflectance group, notes).  The -100 of product .002 lies in water bands only, all dropped."""
    site = next((group for group in file.values() if isinstance(group, h5py.Group) and "Reflectance" in group), None)
    if site is None or "Reflectance_Data" not in site["Reflectance"]:
        raise SceneError(f"{where}: {path.name} has no <SITE>/Reflectance/Reflectance_Data: is it a NEON reflectance file?")
    group = site["Reflectance"]
    data, system, spectral = group["Reflectance_Data"], group["Metadata/Coordinate_System"], group["Metadata/Spectral_Data"]
    texts = [text_of(system[key][()]) for key in ("Coordinate_System_String", "EPSG Code", "Proj4") if key in system]
    usual, notes, found = {"Scale_Factor": SCALE, "Data_Ignore_Value": FILL}, [], {}
    for key, value in usual.items():
        found[key] = float(np.ravel(data.attrs.get(key, value))[0])
        if key not in data.attrs:
            notes.append(f"no {key} in the file: the product's documented {value:g} is used")
    image = Image(
        data.shape[:2], affine_of_map_info(text_of(system["Map_Info"][()]), where),
        next((f"EPSG:{t}" if t.isdigit() else t for t in texts if t), None), spectral["Wavelength"][()],
        spectral["FWHM"][()] if "FWHM" in spectral else None, "", lambda rows, cols: np.moveaxis(data[rows, cols, :], -1, 0),
        fill=found["Data_Ignore_Value"], scale=found["Scale_Factor"],
    )  # fmt: skip
    return image, group, tuple(notes)


def flight_time(group: h5py.Group, item: pystac.Item, path: Path, notes: tuple[str, ...], where: str) -> WhenOf:
    """(rows, cols) -> (when, notes): per pixel where a mosaic joins days; else the item's time, the file's day, or its name's."""
    layer = group.get("Metadata/Ancillary_Imagery/Acquisition_Date")

    def when(rows: slice, cols: slice) -> tuple[When, tuple[str, ...]]:
        days = _days(layer[rows, cols]) if isinstance(layer, h5py.Dataset) and layer.ndim == 2 else _days(np.zeros((1, 1)))
        known = np.unique(days[~np.isnat(days)])
        if known.size > 1:
            return PixelDay(days), notes
        if item.datetime is not None or item.properties.get("start_datetime"):
            told = instant(item)
            day = told.time.astype("datetime64[D]")
            if not known.size or abs(day - known[0]) <= np.timedelta64(1, "D"):  # UTC against local
                return told, notes
            return Instant(instant_of(f"{known[0]}{NOON}")), (*notes, f"the item says {day}, the file {known[0]}: used")
        if known.size:
            return Instant(instant_of(f"{known[0]}{NOON}")), notes
        return _named_time(path, where), (*notes, "dated by the file's name")

    return when


def _named_time(path: Path, where: str) -> Instant:
    """The time in a name such as ..._20190415_183012_reflectance.h5."""
    named = re.search(r"(?<!\d)(20\d\d)(\d\d)(\d\d)(?:[_T](\d\d)(\d\d)(\d\d))?(?!\d)", path.name)
    if named is None:
        raise SceneError(f"{where}: no Acquisition_Date in the file, no datetime in the item, no date in {path.name}: add one")
    year, month, day, *clock = named.groups()
    try:
        return Instant(instant_of(f"{year}-{month}-{day}" + ("T" + ":".join(clock) if clock[0] else NOON)))
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


def view_angles(group: h5py.Group) -> Callable[[slice, slice], View | None]:
    """(rows, cols) -> angles to the sensor, None where the file does not keep them."""
    layers = [group.get(f"Metadata/to-sensor_{name}_Angle") for name in ("Zenith", "Azimuth")]

    def view(rows: slice, cols: slice) -> View | None:
        if not all(isinstance(layer, h5py.Dataset) and layer.ndim == 2 for layer in layers):
            return None
        zenith, azimuth = (np.where(a == FILL, np.nan, a).astype(np.float32) for a in (layer[rows, cols] for layer in layers))
        return View(zenith, azimuth)

    return view


def write(scene: Scene, folder: Path) -> pystac.Item:
    """One HDF5 file in NEON's layout under the site code SIMU (the item says whether the scene is simulated)."""
    centres, fwhm = channels_of(scene)
    folder.mkdir(parents=True, exist_ok=True)
    path, box = folder / f"{scene.id}_reflectance.h5", scene.geobox
    a, b, x, _, e, y = box.transform[:6]
    if b or abs(a + e) > 1e-9 * a:
        raise SceneError(f"{scene.where}: NEON mosaics are north-up, got {tuple(box.transform)[:6]}: write it as `airborne`")
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
        cube = np.moveaxis(stored, 0, -1)
        data = group.create_dataset("Reflectance_Data", data=cube, chunks=True, compression="gzip", compression_opts=1)
        data.attrs["Scale_Factor"], data.attrs["Data_Ignore_Value"] = np.array([SCALE]), np.array([float(FILL)])
        for key, value in text.items():
            group[f"Metadata/Coordinate_System/{key}"] = value
        group["Metadata/Spectral_Data/Wavelength"], group["Metadata/Spectral_Data/FWHM"] = centres, fwhm
        day = int(str(centre_of(scene.when).astype("datetime64[D]")).replace("-", ""))
        group["Metadata/Ancillary_Imagery/Acquisition_Date"] = np.full(tuple(box.shape), day, dtype=np.int32)
    return make_item(scene, folder, {"reflectance": (path, {})})
