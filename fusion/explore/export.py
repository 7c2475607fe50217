"""Leave the cube for other tools: COG and CF NetCDF per band with uncertainty, a static STAC collection of COGs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rioxarray  # noqa: F401  the .rio accessor
import xarray as xr

from fusion.errors import JobError
from fusion.observe.sensor import sensor as sensor_of

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"


def to_cog(dataset: xr.Dataset, sensor: str, band: str, time: Any, path: str | Path) -> Path:
    """One band at one latent time as a Cloud-Optimised GeoTIFF with two layers: mean and sd, reflectance."""
    view = dataset.fusion.band(sensor, band).sel(time=np.datetime64(time), method="nearest")[["mean", "sd"]].compute()
    image = view.to_array("layer").transpose("layer", "y", "x").astype("float32")
    image = image.drop_vars("spatial_ref", errors="ignore").rio.write_crs(dataset.fusion.cube.grid.crs.to_wkt())
    image.attrs = {"long_name": (f"{band} mean", f"{band} standard deviation")}
    target = Path(path)
    if not target.parent.is_dir():
        raise JobError(f"cannot write {target}: the folder {target.parent} does not exist; make it first")
    tags = {"time": str(view.time.values), "sensor": sensor, "units": "reflectance"}
    image.rio.to_raster(target, driver="COG", compress="DEFLATE", predictor=3, tags=tags)
    return target


def to_netcdf(dataset: xr.Dataset, sensor: str, path: str | Path, bands: list[str] | None = None) -> Path:
    """Bands of a sensor with their standard deviations as one CF-1.8 NetCDF (time, y, x), variables `red`, `red_sd`, ..."""
    estimate = dataset.fusion.bands(sensor)
    out = xr.Dataset(attrs={"Conventions": "CF-1.8", "title": f"Fused surface reflectance as {sensor} would see it"})
    for band in bands or [str(b) for b in estimate.band.values]:
        for part, suffix in (("mean", ""), ("sd", "_sd")):
            name = "standard_error" if part == "sd" else "surface_bidirectional_reflectance"
            out[band + suffix] = estimate[part].sel(band=band, drop=True).assign_attrs(units="1", standard_name=name)
            out[band + suffix].attrs["grid_mapping"] = "spatial_ref"
        out[band].attrs["ancillary_variables"] = f"{band}_sd"
    out["sd_note"] = xr.DataArray(0, attrs={"long_name": "variables ending in _sd are posterior standard deviations"})
    out = out.rio.write_crs(dataset.fusion.cube.grid.crs.to_wkt())
    out.compute().to_netcdf(path, engine="h5netcdf")
    return Path(path)



def to_stac(
    dataset: xr.Dataset, sensor: str, folder: str | Path, bands: Sequence[str] | None = None, times: Sequence[Any] | None = None
) -> pystac.Collection:
    """Bands at latent times as COGs (mean, sd) in a new folder, with a self-contained STAC collection: one item per time.

    times: default every latent time of the view. Writes collection.json with relative links and returns the collection.
    """
    folder = Path(folder)
    if folder.exists():
        raise JobError(f"{folder} exists: a collection is written into a new folder, choose another name")
    facts, grid = sensor_of(sensor), dataset.fusion.cube.grid
    names = list(bands or [band.name for band in facts.bands])
    chosen = dataset.sel(time=[np.datetime64(t) for t in times], method="nearest") if times is not None else dataset
    name = str((dataset.fusion.provenance().get("job") or {}).get("name", "cube"))
    box = list(grid.lonlat.boundingbox.bbox)
    first, last = (datetime.fromisoformat(str(t)[:19]).replace(tzinfo=UTC) for t in chosen.time.values[[0, -1]])
    title = f"{name}: fused surface reflectance as {facts.title} would see it, posterior mean and standard deviation"
    collection = pystac.Collection(
        re.sub(r"[^a-z0-9]+", "-", f"{name} {sensor}".lower()), title, title=title, license="other",
        extent=pystac.Extent(pystac.SpatialExtent([box]), pystac.TemporalExtent([[first, last]])),
        stac_extensions=[PROJECTION],
    )
    folder.mkdir(parents=True)
    for time in chosen.time.values:
        day = str(time)[:10]
        place = folder / day
        place.mkdir()
        about = {
            "proj:code": f"EPSG:{grid.crs.epsg}" if grid.crs.epsg else None, "proj:wkt2": grid.crs.to_wkt(),
            "proj:shape": [int(dataset.sizes["y"]), int(dataset.sizes["x"])],
        }  # fmt: skip
        when = datetime.fromisoformat(str(time)[:19]).replace(tzinfo=UTC)
        item = pystac.Item(day, dict(grid.lonlat.json), box, when, about, stac_extensions=[PROJECTION])
        for band in names:
            path = to_cog(chosen, sensor, band, time, place / f"{band}.tif")
            layers = [{"name": f"{band} {part}", "data_type": "float32", "unit": "1"} for part in ("mean", "sd")]
            item.add_asset(band, pystac.Asset(str(path.resolve()), band, None, pystac.MediaType.COG, ["data"], {"bands": layers}))
        collection.add_item(item)
    collection.update_extent_from_items()
    collection.normalize_hrefs(str(folder.resolve()))
    collection.make_all_asset_hrefs_relative()
    collection.save(pystac.CatalogType.SELF_CONTAINED)
    return collection
