"""A cube described for catalogs: one STAC item with the datacube, projection, processing and raster extensions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import shapely

from fusion.service.store import CubeStore

EXTENSIONS = [
    "https://stac-extensions.github.io/datacube/v2.2.0/schema.json", "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json", "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
]


def describe(store: CubeStore) -> dict[str, Any]:
    """The STAC item of a cube, as JSON.  The asset is the Zarr group; its variables are in `cube:variables`."""
    cube, about = store.cube, store.about
    grid = cube.grid
    outline = grid.lonlat.geom
    code = f"EPSG:{grid.crs.epsg}" if grid.crs.epsg is not None else None
    box = grid.bounds
    spatial = {"type": "spatial", "reference_system": grid.crs.epsg or grid.crs.proj.to_json_dict()}
    times = [f"{np.datetime_as_string(t, 's')}Z" for t in cube.calendar.times]
    dimensions: dict[str, Any] = {
        "x": {**spatial, "axis": "x", "extent": [box.left, box.right], "step": grid.resolution},
        "y": {**spatial, "axis": "y", "extent": [box.bottom, box.top], "step": -grid.resolution},
        "time": {"type": "temporal", "extent": [times[0], times[-1]], "values": times},
        "component": {"type": "spectral-component", "values": list(range(cube.basis.rank))},
    }
    if store.layout.draws:
        dimensions["draw"] = {"type": "posterior-draw", "values": list(range(store.layout.draws))}
    variables = {
        name: {"dimensions": list(plan.dims), "type": "data", "description": plan.attrs.get("long_name", name)}
        for name, plan in store.layout.arrays().items() if "x" in plan.dims and set(plan.dims) <= set(dimensions)
    }
    versions = about["provenance"].get("versions") or {}
    return {
        "type": "Feature", "stac_version": "1.1.0", "stac_extensions": EXTENSIONS, "id": str(about["job"].get("name") or "cube"),
        "geometry": json.loads(shapely.to_geojson(outline)), "bbox": list(outline.bounds),
        "properties": {
            "datetime": None, "start_datetime": times[0], "end_datetime": times[-1], "gsd": grid.resolution,
            "instruments": list(store.layout.sensors),
            "proj:code": code, "proj:wkt2": None if code else grid.crs.to_wkt(), "proj:shape": list(grid.shape),
            "proj:transform": [float(v) for v in tuple(grid.transform)[:6]],
            "processing:software": {"fusion-cube": versions.get("fusion-cube", "unknown")},
            "processing:lineage": "hierarchical Bayesian fusion of " + ", ".join(store.layout.sensors),
            "cube:dimensions": dimensions, "cube:variables": variables,
        },
        "assets": {"cube": {
            "href": store.url, "type": "application/vnd.zarr; version=3", "roles": ["data"],
            "title": "posterior of the spectral components",
            "bands": [{"name": "mean", "data_type": "float32"}, {"name": "sd", "data_type": "float32"}],
        }},
        "links": [],
    }
