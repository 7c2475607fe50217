"""Leave the cube for other tools: COG and CF NetCDF per band with uncertainty, a static STAC collection of COGs.

`**grid` of every function (like, crs, resolution) goes to `fusion.explore.regrid.regrid`: without it the cube's own pixels are kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import odc.geo.xr
import pystac
import rioxarray
import xarray as xr

from fusion.errors import JobError, StoreError
from fusion.explore.regrid import regrid
from fusion.observe.sensor import sensor as sensor_of

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
SPREAD = {"mean": "posterior mean", "sd": "posterior standard deviation"}


def _on(estimate: xr.Dataset, crs: Any, grid: dict[str, Any]) -> xr.Dataset:
    """mean and sd of an estimate, on the grid that was asked for, with its CRS."""
    moved = regrid(estimate, **grid) if grid else estimate
    plain = moved[["mean", "sd"]].drop_vars([c for c in ("spatial_ref", "basis_sd") if c in moved.coords]).compute()
    wanted = moved["mean"].odc.crs if grid else crs
    return odc.geo.xr.assign_crs(plain, wanted)


def _parent(path: str | Path) -> Path:
    target = Path(path)
    if not target.parent.is_dir():
        raise JobError(f"cannot write {target}: the folder {target.parent} does not exist; make it first")
    return target


def to_cog(dataset: xr.Dataset, sensor: str, band: str, time: Any, path: str | Path, **grid: Any) -> Path:
    """One band at one latent time as a Cloud-Optimised GeoTIFF with two layers: mean and sd, reflectance; NaN = no data."""
    target = _parent(path)
    view = dataset.sel(time=np.datetime64(time), method="nearest")
    estimate = _on(view.fusion.band(sensor, band), dataset.fusion.cube.grid.crs, grid)
    crs = estimate["mean"].odc.crs
    space = estimate["mean"].odc.spatial_dims
    image = estimate.to_array("layer").transpose("layer", *space).astype("float32").rename(dict(zip(space, "yx", strict=True)))
    image = image.drop_vars("spatial_ref", errors="ignore").rio.write_crs(crs.to_wkt()).rio.write_nodata(np.nan)
    image.attrs |= {"long_name": tuple(f"{band} {words}" for words in SPREAD.values()), "units": "1"}
    tags = {"time": str(view.time.values), "sensor": sensor, "units": "reflectance"}
    try:
        image.rio.to_raster(target, driver="COG", compress="DEFLATE", predictor=3, tags=tags)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error}") from error
    return target


def to_netcdf(dataset: xr.Dataset, sensor: str, path: str | Path, bands: list[str] | None = None, **grid: Any) -> Path:
    """Bands of a sensor with their standard deviations as one CF-1.8 NetCDF (time, y, x), variables `red`, `red_sd`, ..."""
    target = _parent(path)
    facts = sensor_of(sensor)
    out = xr.Dataset(attrs={
        "Conventions": "CF-1.8", "title": f"Fused surface reflectance as {facts.title} would see it, with its uncertainty",
        "source": "hierarchical Bayesian fusion; posterior of a latent reflectance field",
        "history": f"written by fusion-cube from {dataset.attrs.get('url', 'a cube')}",
    })  # fmt: skip
    for band in bands or [b.name for b in facts.bands]:
        estimate = _on(dataset.fusion.band(sensor, band), dataset.fusion.cube.grid.crs, grid).drop_vars("band", errors="ignore")
        for part, suffix in (("mean", ""), ("sd", "_sd")):
            standard = "surface_bidirectional_reflectance" + (" standard_error" if part == "sd" else "")
            about = {"units": "1", "standard_name": standard, "long_name": f"{band} reflectance, {SPREAD[part]}"}
            out[band + suffix] = estimate[part].astype("float32").assign_attrs(about)
            out[band + suffix].attrs["grid_mapping"] = "spatial_ref"
            out[band + suffix].encoding = {"zlib": True, "complevel": 4, "_FillValue": np.float32(np.nan)}
        out[band].attrs |= {"ancillary_variables": f"{band}_sd", "wavelength_nm": facts.band(band).response.centroid}
    out["time"].attrs |= {"standard_name": "time", "axis": "T"}
    try:
        out.to_netcdf(target, engine="h5netcdf")
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error}") from error
    return target


def to_stac(
    dataset: xr.Dataset, sensor: str, folder: str | Path, bands: Sequence[str] | None = None, times: Sequence[Any] | None = None,
    **grid: Any,
) -> pystac.Collection:
    """Bands at latent times as COGs (mean, sd) in a new folder, with a self-contained STAC collection: one item per time.

    times: default every latent time of the view. Writes collection.json with relative links and returns the collection.
    """
    folder = Path(folder)
    if folder.exists():
        raise JobError(f"{folder} exists: a collection is written into a new folder, choose another name")
    facts = sensor_of(sensor)
    names = list(bands or [band.name for band in facts.bands])
    for band in names:
        facts.band(band)  # refused before anything is written
    chosen = dataset.sel(time=[np.datetime64(t) for t in times], method="nearest") if times is not None else dataset
    name = str((dataset.fusion.provenance().get("job") or {}).get("name", "cube"))
    title = f"{name}: fused surface reflectance as {facts.title} would see it, posterior mean and standard deviation"
    folder.mkdir(parents=True)
    items = [_item(chosen, sensor, names, time, folder, grid) for time in chosen.time.values]
    collection = pystac.Collection(
        re.sub(r"[^a-z0-9]+", "-", f"{name} {sensor}".lower()), title, title=title, license="other",
        extent=pystac.Extent.from_items(items), stac_extensions=[PROJECTION],
    )
    collection.add_items(items)
    collection.normalize_hrefs(str(folder.resolve()))
    collection.make_all_asset_hrefs_relative()
    collection.save(pystac.CatalogType.SELF_CONTAINED)
    return collection


def _item(view: xr.Dataset, sensor: str, bands: Sequence[str], time: Any, folder: Path, grid: dict[str, Any]) -> pystac.Item:
    """The item of one latent time; its images are written beside it."""
    place = folder / str(time)[:10]
    place.mkdir()
    paths = {band: to_cog(view, sensor, band, time, place / f"{band}.tif", **grid) for band in bands}
    with rioxarray.open_rasterio(next(iter(paths.values()))) as image:  # type: ignore[union-attr]  # one raster, one DataArray
        box = image.odc.geobox
    epsg = box.crs.to_epsg()
    about = {
        "proj:code": f"EPSG:{epsg}" if epsg else None, "proj:wkt2": box.crs.to_wkt(), "proj:shape": list(box.shape),
        "proj:transform": [float(v) for v in tuple(box.transform)[:6]], "gsd": abs(float(box.resolution.x)),
    }  # fmt: skip
    outline = box.geographic_extent
    when = datetime.fromisoformat(str(time)[:19]).replace(tzinfo=UTC)
    item = pystac.Item(place.name, dict(outline.json), list(outline.boundingbox.bbox), when, about, stac_extensions=[PROJECTION])
    for band, path in paths.items():
        layers = [
            {"name": f"{band} {part}", "description": words, "data_type": "float32", "unit": "1", "nodata": "nan"}
            for part, words in SPREAD.items()
        ]
        item.add_asset(band, pystac.Asset(str(path.resolve()), band, None, pystac.MediaType.COG, ["data"], {"bands": layers}))
    return item
