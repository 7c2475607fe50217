"""A simulated or edited Scene written back as MODIS files: the inverse of `sensors.modis`, in the archive's own layout.

MCD43A4 and MOD09A1 as one COG per layer (sinusoidal, proj:wkt2, no nodata declared, as the Planetary Computer keeps them),
MOD09GA as an HDF-EOS2 granule with the 500 m and the 1 km grid.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import PixelDay, When, Window, centre_of
from fusion.errors import SceneError
from fusion.observe.scene import Scene
from sensors.hdfeos import Layer, sinusoidal, tile_name, write_hdf4
from sensors.modis_layers import NAMES, NBAR, SURFACE
from sensors.writing import make_item, quantise, write_tif

NUMBERS = {name: int(number) for number, name in NAMES.items()}
_SCALED = {"raster:bands": [{"data_type": "int16", "spatial_resolution": 500, "scale": 0.0001}]}


def _checked(scene: Scene) -> dict[str, NDArray[np.float32]]:
    """Band name -> (H, W); SceneError where the scene is not MODIS on its own grid."""
    unknown = [b for b in scene.bands if b not in NUMBERS]
    if unknown or scene.geobox.crs is None or scene.geobox.crs != sinusoidal():
        got = unknown or str(scene.geobox.crs)[:60]
        raise SceneError(f"{scene.where}: MODIS files hold {', '.join(NUMBERS)} on the sinusoidal grid, got {got}")
    return dict(zip(scene.bands, scene.reflectance, strict=True))


def sixteen_days(when: When) -> Window:
    """The 16-day window whose ninth day holds the acquisition."""
    day = centre_of(when).astype("datetime64[D]")
    first, last, centre = ((day + n).astype("datetime64[us]") for n in (-8, 7, 0))
    return Window(first, last, centre, when.decay_days if isinstance(when, Window) else np.inf)


def _tiles(scene: Scene, folder: Path, parts: dict[str, tuple[NDArray[Any], dict[str, Any]]], **properties: Any) -> pystac.Item:
    files = {key: write_tif(folder / f"{scene.id}_{key}.tif", values, scene.geobox) for key, (values, _) in parts.items()}
    assets = {key: (path, parts[key][1]) for key, path in files.items()}
    tile = tile_name(scene.geobox)
    place = {"modis:horizontal-tile": int(tile[1:3]), "modis:vertical-tile": int(tile[4:6])}
    return make_item(scene, folder, assets, {**place, "instruments": ["modis"], **properties})


def write_nbar(scene: Scene, folder: Path) -> pystac.Item:
    """MCD43A4 as COGs: a look is a full inversion (quality 0), no look is fill (32767, quality 255)."""
    scene, parts = replace(scene, when=sixteen_days(scene.when)), {}
    for band, rho in _checked(scene).items():
        parts[f"Nadir_Reflectance_Band{NUMBERS[band]}"] = (quantise(rho, NBAR), _SCALED)
        quality = np.where(np.isfinite(rho), 0, 255).astype(np.uint8)
        parts[f"BRDF_Albedo_Band_Mandatory_Quality_Band{NUMBERS[band]}"] = (quality, {})
    return _tiles(scene, folder, parts, platform="terra,aqua")


def _quality(bands: dict[str, NDArray[np.float32]]) -> NDArray[np.uint32]:
    """QC_500m: corrections done; bits 0-1 = 3 and band bits 15 where there is no look."""
    shape = next(iter(bands.values())).shape
    qc = np.full(shape, 3 << 30, dtype=np.uint32)
    for band, rho in bands.items():
        qc |= np.where(np.isfinite(rho), 0, 15 << (4 * NUMBERS[band] - 2)).astype(np.uint32)
    seen = np.any([np.isfinite(rho) for rho in bands.values()], axis=0)
    return qc | np.where(seen, 0, 3).astype(np.uint32)


def _state(seen: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """State bits: land, low aerosol; cloudy where nothing is seen."""
    return np.where(seen, 1 << 3 | 1 << 6, 1 << 3 | 1 << 6 | 1).astype(np.uint16)


def _zenith(scene: Scene, values: NDArray[Any] | None, fill: int) -> NDArray[np.int16]:
    angle = np.zeros(scene.geobox.shape) if values is None else values
    return np.where(np.isfinite(angle), np.round(np.nan_to_num(angle) * 100), fill).astype(np.int16)


def write_8day(scene: Scene, folder: Path) -> pystac.Item:
    """MOD09A1 as COGs, with the day of year and the view zenith of each pixel (one day for all, unless `when` is a PixelDay)."""
    bands, middle = _checked(scene), centre_of(scene.when)
    each = scene.when.days if isinstance(scene.when, PixelDay) else np.full(scene.geobox.shape, middle)
    days = each.astype("datetime64[D]")
    if np.isnat(middle):
        raise SceneError(f"{scene.where}: no pixel has a day: nothing to write")
    year = middle.astype("datetime64[Y]").astype("datetime64[D]")
    first = year + (middle.astype("datetime64[D]") - year).astype(int) // 8 * 8
    known = ~np.isnat(days)
    if (days[known] < first).any() or (days[known] > first + 7).any():
        span = f"{days[known].min()} to {days[known].max()}"
        raise SceneError(f"{scene.where}: its days run from {span}, outside the 8 days from {first}")
    seen = np.any([np.isfinite(rho) for rho in bands.values()], axis=0)
    angle = None if scene.view is None else scene.view.zenith
    ordinal = np.where(known, (days - year).astype(np.int64) + 1, 65535).astype(np.uint16)
    parts: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        f"sur_refl_b0{NUMBERS[band]}": (quantise(rho, SURFACE), _SCALED) for band, rho in bands.items()
    }
    parts |= {
        "sur_refl_qc_500m": (_quality(bands), {}), "sur_refl_state_500m": (_state(seen), {}),
        "sur_refl_day_of_year": (ordinal, {}), "sur_refl_vzen": (_zenith(scene, angle, 0), {}),
    }
    ends = {"start_datetime": f"{first}T00:00:00Z", "end_datetime": f"{first + 7}T23:59:59Z"}
    return _tiles(scene, folder, parts, platform="aqua" if "aqua" in scene.sensor else "terra", **ends)


def write_daily(scene: Scene, folder: Path) -> pystac.Item:
    """MOD09GA as one HDF-EOS2 granule; 1 km layers hold the first of each 2 x 2 cells, cloudy only where all four are unseen."""
    bands, (height, width) = _checked(scene), scene.geobox.shape
    if height % 2 or width % 2:
        raise SceneError(f"{scene.where}: MOD09GA pairs cells into 1 km, {height} x {width} is odd: use the sensor's native grid")
    fine, coarse = "MODIS_Grid_500m_2D", "MODIS_Grid_1km_2D"
    paired = GeoBox((height // 2, width // 2), scene.geobox.transform * Affine.scale(2), scene.geobox.crs)
    seen = np.any([np.isfinite(rho) for rho in bands.values()], axis=0)
    view = scene.view
    angles = {"SensorZenith_1": view.zenith if view else None, "SensorAzimuth_1": view.azimuth if view else None}
    any_seen = seen.reshape(height // 2, 2, width // 2, 2).any(axis=(1, 3))
    fields: dict[str, Layer] = {"state_1km_1": (coarse, _state(any_seen), {"_FillValue": 65535})}
    for name, angle in angles.items():
        degrees = {"_FillValue": -32767, "scale_factor": 0.01, "units": "degree"}
        fields[name] = (coarse, _zenith(scene, angle, -32767)[::2, ::2], degrees)
    numbers = {"valid_range": [-100, 16000], "scale_factor": 10000.0, "add_offset": 0.0}  # a divisor, as in genuine granules
    attrs = {"_FillValue": -28672, "units": "reflectance", **numbers}
    for band, rho in bands.items():
        fields[f"sur_refl_b0{NUMBERS[band]}_1"] = (fine, quantise(rho, SURFACE), attrs)
    fields["QC_500m_1"] = (fine, _quality(bands), {"_FillValue": 787410671})
    if view is not None and view.coverage is not None:
        share = np.where(np.isfinite(view.coverage), np.round(np.nan_to_num(view.coverage) * 100), -1)
        fields["obscov_500m_1"] = (fine, share.astype(np.int8), {"_FillValue": -1, "scale_factor": 0.01, "units": "percent"})
    granule = write_hdf4(folder / f"{scene.id}.hdf", {coarse: paired, fine: scene.geobox}, fields)
    day = centre_of(scene.when).astype("datetime64[D]")
    ends = {"start_datetime": f"{day}T00:00:00Z", "end_datetime": f"{day}T23:59:59Z"}
    return make_item(scene, folder, {"hdf": (granule, {})}, {**ends, "instruments": ["modis"]})
