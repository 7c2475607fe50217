"""Leave the cube for other tools: COG and CF NetCDF per band with uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rioxarray  # noqa: F401  the .rio accessor
import xarray as xr

from fusion.errors import JobError


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

