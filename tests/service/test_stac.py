"""The cube's own STAC item is valid and says where, when and what."""

from __future__ import annotations

from pathlib import Path

import pystac
import pytest

from fusion.service.stac import describe
from tests.service.test_store import create


def test_the_item_of_a_cube_is_valid_and_complete(tmp_path: Path) -> None:
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    store = create(tmp_path / "cube.zarr")
    document = describe(store)
    item = pystac.Item.from_dict(document)
    # the schemas of extensions lie on the network; the core schema comes with pystac
    JsonSchemaSTACValidator().validate_core(item.to_dict(), pystac.STACObjectType.ITEM, pystac.get_stac_version())
    cube = document["properties"]["cube:dimensions"]
    assert cube["x"]["extent"] == [store.cube.grid.bounds.left, store.cube.grid.bounds.right]
    assert len(cube["time"]["values"]) == len(store.cube.calendar)
    assert document["properties"]["cube:variables"]["mean"]["dimensions"] == ["time", "component", "y", "x"]
    west, south, east, north = document["bbox"]
    assert west == pytest.approx(-105.3, abs=0.01)
    assert south < 40.02 < north + 0.02
    assert west < east
    assert document["properties"]["proj:code"] == f"EPSG:{store.cube.grid.crs.epsg}"
