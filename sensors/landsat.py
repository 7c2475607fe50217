"""Landsat 4-9 Collection 2 Level 2 surface reflectance: TM, ETM+, OLI and OLI-2 at 30 m."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import pystac
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid
from fusion.errors import SceneError
from fusion.observe.psf import PSF
from fusion.observe.scene import Scene
from fusion.observe.sensor import Band, Collection, Noise, Sensor
from sensors import revisit
from sensors.lattice import Utm
from sensors.reading import Flag, Plane, Storage, assemble, calibrate, instant, judge, planes, reach_of
from sensors.responses import responses, source
from sensors.writing import make_item, quantise, write_tif

STORAGE = Storage(2.75e-5, -0.2, fill=(0,), valid=(7273, 43636), dtypes=("uint16",))
TM = {"blue": "1", "green": "2", "red": "3", "nir08": "4", "swir16": "5", "swir22": "7"}
OLI = {"coastal": "1", "blue": "2", "green": "3", "red": "4", "nir08": "5", "swir16": "6", "swir22": "7"}
QA_PIXEL = tuple(Flag(bit, 1, (0,), why=why) for bit, why in ((0, "fill"), (1, "near cloud"), (3, "cloud"), (4, "cloud shadow")))
SNOW, CIRRUS = Flag(5, 1, (0,), inflate=2.0, why="snow is a look, but clouds pass for it"), Flag(2, 1, (0,), why="cirrus")
HAZY = 2.5  # the aerosol error of a hazy look against a clear one
AEROSOL = (Flag(6, 2, (0, 1, 2), inflate=HAZY, why="high aerosol"),)
CLOUD_QA = (Flag(1, 1, (0,), inflate=2.0, why="cloud in the older LEDAPS mask, a second opinion"),)
LAYERS = {"qa_pixel": "QA_PIXEL", "qa_radsat": "QA_RADSAT", "qa_aerosol": "SR_QA_AEROSOL",
          "atmos_opacity": "SR_ATMOS_OPACITY", "cloud_qa": "SR_CLOUD_QA"}  # fmt: skip
PSFS = {"oli": PSF("gaussian", 40.0, cell=False, geolocation=2.8), "tm": PSF("gaussian", 46.0, cell=False, geolocation=5.6)}


def read(name: str, labels: Mapping[str, str], item: pystac.Item, window: Grid) -> Scene:
    """One scene; coastal is read where the sensor has it, quality layers where the catalog lists them."""
    where, sensor = f"{name} scene {item.id}", SENSORS[name]
    platform = str(item.properties.get("platform") or item.properties.get("eo:platform") or name).lower().replace("_", "-")
    if platform != name:
        raise SceneError(f"{where}: the item is of {platform}: read it with that sensor, its bands differ")
    wanted = {b: (b, f"SR_B{n}", f"SR_B{n}.TIF") for b, n in labels.items()}
    wanted |= {key: (key, stem, f"{stem}.TIF") for key, stem in LAYERS.items()}
    found = planes(item, wanted, window, reach_of(sensor.psf, sensor.pixel), where, optional=tuple(LAYERS)[1:])
    radiometry = [calibrate(found[band], STORAGE, where) for band in labels]
    notes = [note for _, told in radiometry for note in told]
    keep, inflate = judge(found["qa_pixel"].values, (*QA_PIXEL, SNOW, *((CIRRUS,) if "coastal" in labels else ())))
    every = np.broadcast_to(keep, (len(labels), *keep.shape)).copy()
    if "qa_radsat" in found:
        every &= _unsaturated(found["qa_radsat"], labels)
    else:
        notes.append("no saturation layer: saturated pixels cannot be told")
    for key, flags in (("qa_aerosol", AEROSOL), ("cloud_qa", CLOUD_QA)):
        if key in found:
            inflate = inflate * judge(found[key].values, flags)[1]
    if "atmos_opacity" in found:
        inflate = np.where(found["atmos_opacity"].values > 300, HAZY * inflate, inflate)  # stored x 1000; above .3 is hazy
    rho = np.stack([values for values, _ in radiometry])
    return assemble(name, sensor.bands, item, rho, found["qa_pixel"].geobox, instant(item), keep=every, inflate=inflate, notes=notes)


def _unsaturated(radsat: Plane, labels: Mapping[str, str]) -> np.ndarray:
    """(B, H, W): bit n - 1 is the saturation of band n; for all bands, 9 a dropped pixel (TM, ETM+), 11 terrain occlusion (OLI)."""
    always = Flag(11, 1, (0,)) if "coastal" in labels else Flag(9, 1, (0,))
    return np.stack([judge(radsat.values, (Flag(int(n) - 1, 1, (0,)), always))[0] for n in labels.values()])


def write(labels: Mapping[str, str], scene: Scene, folder: Path) -> pystac.Item:
    """The files of one scene as the archive has them; a pixel without any look is fill, every other one clear."""
    clear = 21824 if "coastal" in labels else 5440  # land, all confidences low
    files = {}
    for band, rho in zip(scene.bands, scene.reflectance, strict=True):
        path = folder / f"{scene.id}_SR_B{labels[band]}.TIF"
        write_tif(path, quantise(rho, STORAGE, "uint16"), scene.geobox, fill=0)
        files[band] = (path, {"raster:bands": [{"nodata": 0, "scale": STORAGE.scale, "offset": STORAGE.offset}]})
    blank = ~np.isfinite(scene.reflectance).any(axis=0)
    for key, fill, value in (("qa_pixel", 1, clear), ("qa_radsat", 0, 0)):
        path = folder / f"{scene.id}_{LAYERS[key]}.TIF"
        write_tif(path, np.where(blank, fill, value).astype("uint16"), scene.geobox)
        files[key] = (path, {})
    return make_item(scene, folder, files, {"platform": scene.sensor, "gsd": 30})


def _sensor(number: int, lifetime: tuple[date, date | None]) -> Sensor:
    name, labels, kind = f"landsat-{number}", OLI if number > 7 else TM, "oli" if number > 7 else "tm"
    noise = Noise(0.002, 0.01) if kind == "oli" else Noise(0.004, 0.02)
    tables = responses(name)
    return Sensor(
        name=name, title=f"Landsat {number} {'TM' if number < 6 else 'ETM+' if number == 7 else 'OLI'} Collection 2 Level 2",
        bands=tuple(Band(b, tables[n], noise, (b, f"SR_B{n}", f"SR_B{n}.TIF")) for b, n in labels.items()),
        psf=PSFS[kind], pixel=30.0, read=partial(read, name, labels), write=partial(write, labels),
        native=Utm(30.0, 15.0, reach_of(PSFS[kind], 30.0), always_north=True), revisit=revisit.LANDSAT[number],
        offset_sd=0.008 if kind == "oli" else 0.012, lifetime=lifetime,
        collections=(
            Collection("https://planetarycomputer.microsoft.com/api/stac/v1", "landsat-c2-l2", {"platform": {"eq": name}}),
            Collection("https://earth-search.aws.element84.com/v1", "landsat-c2-l2", {"platform": {"eq": name}}),
            Collection("https://landsatlook.usgs.gov/stac-server", "landsat-c2l2-sr", {"platform": {"eq": name.upper().replace("-", "_")}}),
        ),
        sources=(source(name), *SOURCES),
    )


SOURCES = (
    "Storage, fill, valid range, quality bits: USGS Landsat Collection 2 Level-2 science product guides (LSDS-1618, LSDS-1619).",
    "PSF: Gaussian-equivalent FWHM of the whole response INCLUDING the 30 m cell (hence cell=False) and cubic resampling: 40 m OLI "
    "(modulation .33 at Nyquist), 46 m TM and ETM+ (measured 40.8-48.6 m, Schowengerdt et al. 1985, SPIE 549).",
    "Geolocation: 6 m CE90 against Sentinel-2 with the global reference, 12 m without; CE90 = 2.15 sd (Rengarajan et al. 2024, USGS 70254589).",
    "Noise: product error .005 + 5 % (Vermote et al. 2016, RSE 185:46; Claverie et al. 2015, RSE 169:390); its spatially common part is "
    "offset_sd and gain_sd, a fifth to a half of it white; TM and ETM+ quantise to 8 bits at a signal-to-noise ratio of 30-40.",
    "Haze: aerosol errors at optical depth .5 against .1 grow 2-2.7 fold (modis-sr.ltdri.org); opacity above .3 is hazy (LSDS-1618).",
)
LANDSAT_4 = _sensor(4, (date(1982, 8, 22), date(1993, 12, 14)))
LANDSAT_5 = _sensor(5, (date(1984, 3, 16), date(2012, 5, 5)))
LANDSAT_7 = _sensor(7, (date(1999, 5, 28), date(2024, 1, 19)))
LANDSAT_8 = _sensor(8, (date(2013, 3, 18), None))
LANDSAT_9 = _sensor(9, (date(2021, 10, 31), None))
SENSORS = {s.name: s for s in (LANDSAT_4, LANDSAT_5, LANDSAT_7, LANDSAT_8, LANDSAT_9)}
