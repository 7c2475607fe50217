"""The `.fusion` accessor: any band, wavelength or index of a stored cube, with its posterior uncertainty."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geom import Geometry
from scipy.ndimage import uniform_filter
from scipy.special import ndtr, ndtri

from fusion.cube.cube import Cube
from fusion.cube.spectrum import DROPPED, Response
from fusion.errors import JobError, StoreError
from fusion.observe.scene import Scene
from fusion.observe.sensor import Sensor
from fusion.observe.sensor import sensor as sensor_of

DARKEST = 1e-4
"""reflectance: draws below it are raised to it before an index is computed; a ratio of values that may cross 0 has no mean"""
POOL = 5
"""pixels: the correlation between components is estimated from the stored draws pooled over POOL x POOL neighbours"""

STANDARD = {
    "A": "coastal", "B": "blue", "G": "green", "R": "red", "N": "nir08", "S1": "swir16", "S2": "swir22",
    "RE1": "rededge1", "RE2": "rededge2", "RE3": "rededge3", "N2": "nir08",
}  # fmt: skip
"""the band letters of the Awesome Spectral Indices catalogue (spyndex) as our band names"""


def open_cube(url: str, *, storage_options: dict[str, Any] | None = None) -> xr.Dataset:
    """The cube at a local path or s3://, gs://, az:// URL, lazily: a dask-backed Dataset with the `.fusion` accessor.

    Variables: mean, sd, canonical_sd (time, component, y, x); draws (draw, time, component, y, x) standardised, so that a draw of
    the field is mean + sd * draws; status per tile. Raises StoreError if there is no cube at the address.
    """
    try:
        with warnings.catch_warnings():  # a job that still runs has no consolidated metadata yet: slower to open, as good to read
            warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
            dataset = xr.open_zarr(url, storage_options=storage_options, chunks={})
    except (FileNotFoundError, KeyError, ValueError, OSError) as error:
        raise StoreError(
            f"no cube can be opened at {url}: {error}. Give the folder or bucket that `fusion run` wrote"
        ) from error
    if "fusion" not in dataset.attrs:
        raise StoreError(f"{url} is a Zarr store but not a fused cube: it has no `fusion` attributes")
    return dataset.assign_attrs(url=str(url))


def _smooth_ratio(of: NDArray[np.floating], to: NDArray[np.floating]) -> NDArray[np.floating]:
    """of / to, each summed over POOL x POOL neighbours of the last two axes; 1 where `to` is 0."""
    size = (*(1,) * (of.ndim - 2), POOL, POOL)
    top, bottom = (uniform_filter(np.asarray(a, np.float32), size, mode="nearest") for a in (of, to))
    return np.where(bottom > 0, np.maximum(top, 0) / np.where(bottom > 0, bottom, 1), 1.0).astype(np.float32)


def _pooled(independent: xr.DataArray, deviation: xr.DataArray | None) -> xr.DataArray:
    """Variance of independent components times the ratio that the draws give, pooled over neighbours; as it is without draws."""
    if deviation is None:
        return independent
    sampled = (deviation**2).mean("draw").transpose(*independent.dims)
    if not {"y", "x"} <= set(independent.dims):
        return independent * xr.where(independent > 0, sampled / independent, 1.0)
    ratio = xr.apply_ufunc(
        _smooth_ratio, sampled, independent, dask="parallelized", output_dtypes=[np.float32], input_core_dims=[["y", "x"]] * 2,
        output_core_dims=[["y", "x"]], dask_gufunc_kwargs={"allow_rechunk": True},
    )
    return independent * ratio


@xr.register_dataset_accessor("fusion")
class FusionAccessor:
    """What a fused cube says: bands, wavelengths, spectra, indices, changes, each with mean and sd."""

    def __init__(self, dataset: xr.Dataset) -> None:
        if "fusion" not in dataset.attrs:
            raise StoreError("this Dataset is not a fused cube: open it with fusion.open_cube(url)")
        self._data = dataset

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The store's own description: format, cube, job, provenance."""
        facts = self._data.attrs["fusion"]
        return json.loads(facts) if isinstance(facts, str) else dict(facts)

    @cached_property
    def cube(self) -> Cube:
        """The full address space of the store (the view may be a part of it)."""
        return Cube.from_attrs(self.facts["cube"])

    def provenance(self) -> dict[str, Any]:
        """Items, versions, job and seed from which the cube was made."""
        return {"job": self.facts.get("job"), **self.facts.get("provenance", {})}

    # ---- linear functionals of z: exact mean; sd exact where the store keeps independent components, else by draws ----

    def _responses(self, responses: Sequence[Response], names: Sequence[Any], dim: str) -> xr.Dataset:
        weights, mean, residual = self.cube.basis.responses(tuple(responses))
        z = self._data
        h = xr.DataArray(weights.astype(np.float32), dims=(dim, "component"), coords={dim: list(names), "component": z.component})
        level = xr.DataArray(mean.astype(np.float32), dims=dim, coords={dim: list(names)})
        floor = xr.DataArray(residual.astype(np.float32), dims=dim, coords={dim: list(names)})
        out = xr.Dataset({"mean": xr.dot(h, z["mean"], dim="component") + level})
        deviation = xr.dot(h, z["sd"] * z["draws"], dim="component") if "draws" in z else None
        if deviation is not None:
            out["draws"] = (out["mean"] + deviation).transpose("draw", ...)
        variance = self._exact(h)
        if variance is None:
            variance = _pooled(xr.dot(h**2, z["sd"] ** 2, dim="component"), deviation)
        out["sd"] = ((variance + floor) ** 0.5).transpose(*out["mean"].dims)
        for name in out.data_vars:
            out[name].attrs = {"units": "1", "long_name": f"surface reflectance, posterior {name}"}
        return out.assign_attrs(self._georeference())

    def _exact(self, h: xr.DataArray) -> xr.DataArray | None:
        """Variance of h z from the independent components x of each tile, z = mixing x; None where the store has no such account.

            var(pixel) = sum_c (h mixing_tile)_c^2 canonical_sd_c(pixel)^2
        """
        z = self._data
        if not {"canonical_sd", "mixing"} <= set(z.variables):
            return None
        grid, core = self.cube.grid, int(self.facts["tile"])
        tile_row = np.floor((grid.y[0] - z["y"]) / grid.resolution + 0.5).astype(int) // core
        tile_col = np.floor((z["x"] - grid.x[0]) / grid.resolution + 0.5).astype(int) // core
        turned = xr.dot(h, z["mixing"], dim="component").transpose("tile_y", "tile_x", "canonical", ...).compute()
        if not np.isfinite(turned.values[np.unique(tile_row)][:, np.unique(tile_col)]).all():
            return None  # the run has not ended, or its engine gave no account
        table, dim = turned.values.astype(np.float32) ** 2, h.dims[0]

        def of(sd: NDArray[np.floating], rows: NDArray[np.integer], cols: NDArray[np.integer]) -> NDArray[np.floating]:
            return np.einsum("...cl,...c->...l", table[rows, cols], sd**2, optimize=True)

        return xr.apply_ufunc(
            of, z["canonical_sd"], tile_row, tile_col, input_core_dims=[["component"], [], []], output_core_dims=[[dim]],
            dask="parallelized", output_dtypes=[np.float32], dask_gufunc_kwargs={"output_sizes": {dim: table.shape[-1]}},
        ).assign_coords({dim: h[dim]})  # fmt: skip

    def _georeference(self) -> dict[str, Any]:
        return {key: self._data.attrs[key] for key in ("url",) if key in self._data.attrs}

    def bands(self, sensor: str) -> xr.Dataset:
        """All bands of a sensor as it would see the cube without noise: mean, sd (and draws) over (band, time, y, x).

        An imaging spectrometer's channels come as (wavelength, time, y, x), nm.
        """
        facts = sensor_of(sensor)
        if not facts.bands:
            return self._channels(facts)
        return self._responses([b.response for b in facts.bands], [b.name for b in facts.bands], "band")

    def _channels(self, facts: Sensor) -> xr.Dataset:
        """The channels of a typical file of a spectrometer that the spectral basis covers, outside the water-vapour windows."""
        nodes = self.cube.basis.wavelengths
        inside = [
            (centre, width) for centre, width in facts.example_channels
            if nodes[0] <= centre - width and centre + width <= nodes[-1] and not any(a < centre < b for a, b in DROPPED)
        ]  # fmt: skip
        if not inside:
            raise JobError(f"{facts.name} names no channels in {nodes[0]:.0f}..{nodes[-1]:.0f} nm: use at(wavelength=[...])")
        return self._responses([Response.gaussian(*c) for c in inside], [c for c, _ in inside], "wavelength")

    def band(self, sensor: str, name: str) -> xr.Dataset:
        """One band of a sensor: mean, sd (and draws) over (time, y, x)."""
        return self._responses([sensor_of(sensor).band(name).response], [name], "band").isel(band=0)

    def at(self, wavelength: Sequence[float] | float, fwhm: float = 10.0) -> xr.Dataset:
        """Gaussian channels at these wavelengths (nm): mean, sd (and draws) over (wavelength, time, y, x)."""
        centres = np.atleast_1d(np.asarray(wavelength, dtype=float))
        low, high = self.cube.basis.wavelengths[[0, -1]]
        if centres.size == 0 or centres.min() < low or centres.max() > high:
            raise JobError(f"asked for {wavelength} nm; the cube spans {low:.0f}-{high:.0f} nm: give wavelengths in nanometres")
        return self._responses([Response.gaussian(c, fwhm) for c in centres], centres.tolist(), "wavelength")

    # ---- places ---------------------------------------------------------------------------------------------------------------

    def pixel(self, lon: float, lat: float) -> xr.Dataset:
        """The column of the cube at a longitude and latitude; JobError outside the area."""
        grid = self.cube.grid
        x, y = grid.to_crs("EPSG:4326").transform(lon, lat, direction="INVERSE")
        left, bottom, right, top = grid.bounds.bbox
        if not (left <= x <= right and bottom <= y <= top):
            west, south, east, north = grid.lonlat.boundingbox.bbox
            raise JobError(
                f"({lon}, {lat}) lies outside the cube, which spans longitude {west:.4f}..{east:.4f} "
                f"and latitude {south:.4f}..{north:.4f}"
            )
        return self._data.sel(x=x, y=y, method="nearest")

    def spectrum(self, lon: float, lat: float, time: Any) -> xr.Dataset:
        """The whole spectrum of a pixel at the latent time nearest to `time`: mean, sd over (wavelength)."""
        column = self.pixel(lon, lat).sel(time=np.datetime64(time), method="nearest")
        return column.fusion.at(self.cube.basis.wavelengths)

    def series(self, lon: float, lat: float, sensor: str = "landsat-8") -> xr.Dataset:
        """All bands of a sensor through time at a pixel: mean, sd over (band, time)."""
        return self.pixel(lon, lat).fusion.bands(sensor)

    def area(self, outline: Any, sensor: str = "landsat-8", crs: str = "EPSG:4326") -> xr.Dataset:
        """The mean of all bands over an outline (shapely, or a GeoJSON mapping, in `crs`): mean, sd, draws over (band, time).

        The sd is that of the average: errors that neighbours share do not average away, and independent ones do. It needs draws.
        """
        grid = self.cube.grid
        mapping = shapely.geometry.mapping(outline) if hasattr(outline, "geom_type") else dict(outline)
        shape = Geometry(mapping, crs).to_crs(grid.crs)
        axes = {"y": self._data.y, "x": self._data.x}
        inside = xr.DataArray(shapely.contains_xy(shape.geom, *np.meshgrid(axes["x"], axes["y"])), axes, ("y", "x"))
        if not bool(inside.any()):
            west, south, east, north = grid.lonlat.boundingbox.bbox
            raise JobError(
                f"no pixel centre lies inside the outline; the cube spans longitude {west:.4f}..{east:.4f} and latitude "
                f"{south:.4f}..{north:.4f} (an outline in another CRS? give crs=)"
            )
        if "draws" not in self._data:
            raise StoreError("the uncertainty of an average needs posterior draws and this store has none: run with draws >= 8")
        bands = self.bands(sensor)[["mean", "draws"]].where(inside).mean(("y", "x"))
        out = xr.Dataset({"mean": bands["mean"], "sd": bands["draws"].std("draw", ddof=1), "draws": bands["draws"]})
        return out.assign_attrs(pixels=int(inside.sum()), sensor=sensor)

    # ---- nonlinear functionals: expectation over draws ------------------------------------------------------------------------

    def expect(self, f: Callable[[xr.Dataset], xr.DataArray], sensor: str = "landsat-8") -> xr.Dataset:
        """E[f(bands)] over the posterior, with the plug-in f(E[bands]) beside it (their difference is the Jensen gap).

        f takes a Dataset with one variable per band name of `sensor` and returns a DataArray. Reflectance is not negative:
        draws are clipped at DARKEST, which keeps ratios over dark water finite.
        Returns mean, sd, plug_in and draws.
        """
        bands = self.bands(sensor)
        if "draws" not in bands:
            raise StoreError("a nonlinear quantity needs posterior draws and this store has none: run the job with draws >= 8")
        value = f(bands["draws"].clip(min=DARKEST).to_dataset("band"))
        out = xr.Dataset({"mean": value.mean("draw"), "sd": value.std("draw", ddof=1), "draws": value})
        out["plug_in"] = f(bands["mean"].clip(min=DARKEST).to_dataset("band"))
        return out

    def index(self, name: str, sensor: str = "landsat-8") -> xr.Dataset:
        """A spectral index by its catalogue name ("NDVI", "NBR", "MNDWI"...) or as an expression of band names.

        Names are looked up in the Awesome Spectral Indices catalogue through spyndex. Returns mean, sd, plug_in and draws.
        """
        formula, constants = _catalogue(name) if name.isidentifier() else (name, {})
        bands = {b.name for b in sensor_of(sensor).bands}

        def f(values: xr.Dataset) -> xr.DataArray:
            letters = {letter: values[band] for letter, band in STANDARD.items() if band in bands}
            result = values.assign({**letters, **constants}).eval(f"({formula})")
            assert isinstance(result, xr.DataArray)  # an expression, not an assignment: it is bracketed
            return result

        return self.expect(f, sensor).assign_attrs(index=name, formula=formula)

    def change(self, t0: Any, t1: Any, index: str = "NDVI", threshold: float = 0.1, sensor: str = "landsat-8") -> xr.Dataset:
        """Posterior of the change of an index between two times: mean, sd, and P(|change| > threshold).

        Draws are joint over time, so errors that both dates share cancel. The probability uses a Gaussian fitted to the draws.
        """
        two = self._data.sel(time=[np.datetime64(t0), np.datetime64(t1)], method="nearest")
        draws = two.fusion.index(index, sensor)["draws"]
        difference = draws.isel(time=1, drop=True) - draws.isel(time=0, drop=True)
        mean, sd = difference.mean("draw"), difference.std("draw", ddof=1)
        scale = sd.where(sd > 0, 1e-6)
        beyond = xr.apply_ufunc(ndtr, -(threshold - mean) / scale, dask="parallelized") + xr.apply_ufunc(
            ndtr, (-threshold - mean) / scale, dask="parallelized"
        )
        return xr.Dataset({"mean": mean, "sd": sd, "probability": beyond}, attrs={"index": index, "threshold": threshold})

    @staticmethod
    def interval(estimate: xr.Dataset, level: float = 0.9) -> xr.Dataset:
        """The central credible interval of a mean and sd under a Gaussian: lower, upper.  level: 0..1."""
        if not 0 < level < 1:
            raise JobError(f"asked for a credible level of {level}: give one between 0 and 1, such as 0.9")
        half = float(ndtri(0.5 + level / 2)) * estimate["sd"]
        return xr.Dataset({"lower": estimate["mean"] - half, "upper": estimate["mean"] + half})

    # ---- pictures and accounts ------------------------------------------------------------------------------------------------

    def rgb(self, time: Any, sensor: str = "landsat-8", bands: Sequence[str] = ("red", "green", "blue")) -> xr.DataArray:
        """A true- or false-colour image (y, x, channel) in 0..1, stretched to 2-98 % with a gamma that opens dark water."""
        view = self._data.sel(time=np.datetime64(time), method="nearest")
        image = view.fusion.bands(sensor)["mean"].sel(band=list(bands)).transpose("y", "x", "band").compute()
        low, high = np.nanpercentile(image, [2, 98])
        return (((image - low) / max(float(high - low), 0.02)).clip(0, 1) ** 0.8).assign_attrs(time=str(view.time.values)[:10])

    def residuals(self, sensor: str) -> xr.Dataset:
        """What a sensor saw minus what the cube says it should have seen, look by look; see `fusion.explore.seen.residuals`."""
        from fusion.explore.seen import residuals

        return residuals(self._data, sensor)

    def scenes(self, sensor: str) -> list[Scene]:
        """The scenes of a sensor from which the cube was made, read again; `plots.time_series` draws them over the estimate."""
        from fusion.explore.seen import scenes

        return scenes(self._data, sensor)

    def variance_decomposition(self) -> xr.DataArray:
        """Share of the field's variance per level of the hierarchy (level, component, y, x), as stored by the run."""
        if "decomposition" not in self._data:
            raise StoreError("this store keeps no variance decomposition: run the job again with a newer version")
        return self._data["decomposition"]


def _catalogue(name: str) -> tuple[str, dict[str, float]]:
    """Formula and default constants of a catalogued index; JobError with the nearest names."""
    try:
        import spyndex
    except ImportError as error:
        raise JobError(
            f"index {name!r} by name needs the package spyndex: pip install 'fusion-cube[notebooks]', or write the expression"
        ) from error
    if name not in spyndex.indices:
        from difflib import get_close_matches

        near = get_close_matches(name, list(spyndex.indices), 3)
        raise JobError(f"no index is called {name!r}" + (f": did you mean {' or '.join(near)}?" if near else ""))
    entry = spyndex.indices[name]
    constants = {b: float(spyndex.constants[b].default) for b in entry.bands if b in spyndex.constants}
    missing = [b for b in entry.bands if b not in STANDARD and b not in constants]
    if missing:
        raise JobError(f"index {name} needs {', '.join(missing)}, which is not a reflectance band: write the expression yourself")
    return entry.formula, constants
