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
from scipy.ndimage import map_coordinates

from fusion.cube.cube import Cube
from fusion.cube.spectrum import Response
from fusion.errors import JobError, StoreError
from fusion.explore import export, moments
from fusion.explore.indices import expectation, index_of
from fusion.explore.regrid import regrid
from fusion.observe.scene import Scene
from fusion.observe.sensor import Sensor
from fusion.observe.sensor import sensor as sensor_of
from fusion.process.tails import cdf
from fusion.service.pictures import stretch


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
            variance = moments.pooled(xr.dot(h**2, z["sd"] ** 2, dim="component"), deviation)
        out["sd"] = ((variance + floor) ** 0.5).transpose(*out["mean"].dims)
        for name in out.data_vars:
            out[name].attrs = {"units": "1", "long_name": f"surface reflectance, posterior {name}"}
        out = out.assign_coords(basis_sd=floor**0.5)
        out["basis_sd"].attrs = {"units": "1", "long_name": "part of sd that the spectral basis cannot express; not in draws"}
        if "tail" in z:
            out = out.assign_coords(tail=self._tail)
        return out.assign_attrs(self._georeference())

    def _exact(self, h: xr.DataArray) -> xr.DataArray | None:
        """Variance of h z from the independent components x of each tile, z = mixing x; None where the store has no such account.

            var(pixel) = sum_c (h mixing_tile)_c^2 canonical_sd_c(pixel)^2
        """
        z = self._data
        if not {"canonical_sd", "mixing"} <= set(z.variables):
            return None
        tile_row, tile_col = (np.floor(at).astype(int) for at in self._at)
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

    @cached_property
    def _at(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Where the view's pixel centres lie, down and across, in tiles from the cube's first corner."""
        z, grid, core = self._data, self.cube.grid, int(self.facts["tile"])
        return ((grid.y[0] - z["y"]) / grid.resolution + 0.5) / core, ((z["x"] - grid.x[0]) / grid.resolution + 0.5) / core

    @cached_property
    def _tail(self) -> xr.DataArray:
        """Tail index of the law of errors (y, x): the tiles' own in their middle, linear between them, so that intervals show no seam."""
        table = self._data["tail"].values.astype(np.float64)

        def of(rows: NDArray[np.floating], cols: NDArray[np.floating]) -> NDArray[np.floating]:
            places = np.stack(np.broadcast_arrays(rows - 0.5, cols - 0.5))
            return np.asarray(map_coordinates(table, places.reshape(2, -1), order=1, mode="nearest"), np.float32).reshape(places.shape[1:])

        chunks = {dim: size[0] for dim, size in self._data["mean"].chunksizes.items() if dim in ("y", "x")}
        rows, cols = (at.chunk({dim: n for dim, n in chunks.items() if dim in at.dims}) for at in self._at)
        found = xr.apply_ufunc(of, rows, cols, dask="parallelized", output_dtypes=[np.float32])
        return found.assign_attrs(units="1", long_name="tail index of the law of errors, 0 = normal")

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
        """The channels of a typical file of a spectrometer that the spectral basis covers, outside its windows of opaque air."""
        nodes = self.cube.basis.wavelengths
        inside = [
            (centre, width) for centre, width in facts.example_channels
            if nodes[0] <= centre - width and centre + width <= nodes[-1] and not any(a < centre < b for a, b in facts.opaque)
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
        spread = (bands["draws"].var("draw", ddof=1) + bands["basis_sd"] ** 2) ** 0.5  # a material's own error is not averaged away
        out = xr.Dataset({"mean": bands["mean"], "sd": spread, "draws": bands["draws"]})
        return out.assign_attrs(pixels=int(inside.sum()), sensor=sensor)

    # ---- nonlinear functionals: expectation over draws ------------------------------------------------------------------------

    def expect(
        self, f: Callable[[xr.Dataset], xr.DataArray], sensor: str = "landsat-8", bands: Sequence[str] | None = None
    ) -> xr.Dataset:
        """E[f(bands)] over the posterior, with the plug-in f(E[bands]) beside it (their difference is the Jensen gap).

        f takes a Dataset with one variable per band name of `sensor` (or of `bands` alone) and returns a DataArray; see
        `fusion.explore.indices.expectation` for the equations. Reflectance is not negative: draws are clipped at 1e-4, which keeps
        ratios over dark water finite. Returns mean, sd, plug_in and draws.
        """
        facts = sensor_of(sensor)
        names = list(bands) if bands is not None else [b.name for b in facts.bands]
        if not names:
            raise JobError(f"{sensor} has channels and no named bands: give the sensor whose bands the index is made for")
        responses = [facts.band(name).response for name in names]
        estimate = self._responses(responses, names, "band")
        if "draws" not in estimate:
            raise StoreError("a nonlinear quantity needs posterior draws and this store has none: run the job with draws >= 8")
        basis = self.cube.basis
        return expectation(f, estimate, basis.residual(basis.weights(responses)))

    def index(self, name: str, sensor: str = "landsat-8") -> xr.Dataset:
        """A spectral index by its catalogue name ("NDVI", "NBR", "MNDWI"...) or as an expression of band names.

        Names are looked up in the Awesome Spectral Indices catalogue through spyndex. Returns mean, sd, plug_in and draws.
        """
        wanted = index_of(name, [b.name for b in sensor_of(sensor).bands], sensor)
        return self.expect(wanted, sensor, wanted.bands).assign_attrs(index=name, formula=wanted.formula, sensor=sensor)

    def change(self, t0: Any, t1: Any, index: str = "NDVI", threshold: float = 0.1, sensor: str = "landsat-8") -> xr.Dataset:
        """Posterior of the change of an index between two times: mean, sd, and P(|change| > threshold).

        Draws are joint over time, so errors that both dates share cancel. The probability uses the law of errors with that mean and sd.
        """
        two = self._data.sel(time=[np.datetime64(t0), np.datetime64(t1)], method="nearest")
        found = two.fusion.index(index, sensor)
        difference = found["draws"].isel(time=1, drop=True) - found["draws"].isel(time=0, drop=True)
        mean = difference.mean("draw")
        each = (found["sd"] ** 2).sum("time", skipna=False).transpose(*mean.dims)
        sd = moments.pooled(each, difference - mean) ** 0.5
        scale = sd.where(~(sd <= 0), 1e-6)
        law = found.coords.get("tail", xr.DataArray(0.0))
        beyond = sum(xr.apply_ufunc(cdf, (side * mean - threshold) / scale, law, dask="parallelized") for side in (1, -1))
        days = [str(t)[:10] for t in two.time.values]
        return xr.Dataset(
            {"mean": mean, "sd": sd, "probability": beyond, "draws": difference},
            attrs={"index": index, "threshold": threshold, "from": days[0], "to": days[1]},
        )

    interval = staticmethod(moments.interval)
    quantiles = staticmethod(moments.quantiles)
    normal_errors = staticmethod(moments.normal_errors)
    regrid = staticmethod(regrid)

    # ---- pictures and accounts ------------------------------------------------------------------------------------------------

    def rgb(self, time: Any, sensor: str = "landsat-8", bands: Sequence[str] = ("red", "green", "blue")) -> xr.DataArray:
        """A true- or false-colour image (y, x, band) in 0..1, at the latent time nearest to `time`; dark water keeps its structure.

        See `fusion.service.pictures.stretch` for the equation.
        """
        view = self._data.sel(time=np.datetime64(time), method="nearest")
        image = view.fusion.bands(sensor)["mean"].sel(band=list(bands)).transpose("y", "x", "band").compute()
        about = {"units": "1", "long_name": "stretched reflectance", "time": str(view.time.values)[:10]}
        return image.copy(data=stretch(image.values)).assign_attrs(about)

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

    # ---- for other tools ------------------------------------------------------------------------------------------------------

    def to_cog(self, sensor: str, band: str, time: Any, path: Any, **grid: Any) -> Any:
        """A band at a time as a Cloud-Optimised GeoTIFF; see `fusion.explore.export.to_cog`."""
        return export.to_cog(self._data, sensor, band, time, path, **grid)

    def to_netcdf(self, sensor: str, path: Any, bands: list[str] | None = None, **grid: Any) -> Any:
        """Bands with their standard deviations as CF NetCDF; see `fusion.explore.export.to_netcdf`."""
        return export.to_netcdf(self._data, sensor, path, bands, **grid)

    def to_stac(self, sensor: str, folder: Any, bands: Any = None, times: Any = None, **grid: Any) -> Any:
        """Bands and dates as COGs with a static STAC collection; see `fusion.explore.export.to_stac`."""
        return export.to_stac(self._data, sensor, folder, bands, times, **grid)
