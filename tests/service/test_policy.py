"""Which items enter a job: genuine ones do, hostile ones never, and no document crashes the gate."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pystac
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.service.policy import Origin, Refused, admit, interval, safe_href

PC = Origin("https://planetarycomputer.microsoft.com/api/stac/v1")


def genuine_documents(shared: Path) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path in sorted((shared / "data" / "stac").rglob("*json")):
        document = json.loads(path.read_text())
        features = document["features"] if document.get("type") == "FeatureCollection" else [document]
        found += [(path.name, f) for f in features if f.get("type") == "Feature"]
    return found


def test_genuine_items_get_in_and_parse(shared: Path) -> None:
    documents = genuine_documents(shared)
    assert len(documents) >= 60
    refused = {}
    for name, document in documents:
        try:
            item, _ = admit(document, Origin(f"https://example.com/{name}"))
            parsed = pystac.Item.from_dict(item)
            assert parsed.assets
            first, last = interval(item)
            assert first <= last
        except Refused as reason:
            refused[f"{name} {document.get('id')}"] = str(reason)
    # two of the files are test cases of another library, without assets or without a place on purpose
    assert len(refused) <= 3, refused


def test_signatures_are_cut_and_never_kept() -> None:
    signed = "https://account.blob.core.windows.net/c/a.tif?st=2024&se=2025&sp=r&sig=SECRET%3D&x=1"
    assert safe_href(signed, PC) == "https://account.blob.core.windows.net/c/a.tif?x=1"
    amazon = "https://b.s3.amazonaws.com/a.tif?X-Amz-Signature=SECRET&X-Amz-Credential=KEY&AWSAccessKeyId=KEY"
    assert safe_href(amazon, PC) == "https://b.s3.amazonaws.com/a.tif"


@pytest.mark.parametrize("href", [
    "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "//evil.example/x", "/vsicurl/http://x/y", "vrt://x", "ftp://x/y",
    "http://169.254.169.254/latest/meta-data", "https://169.254.169.254/x", "https://localhost/x", "https://127.0.0.1/x",
    "https://2130706433/x", "https://0x7f000001/x", "https://127.1/x", "https://[::1]/x", "https://10.0.0.8/x",
    "https://a.internal/x", "https://user:pass@host/x", "javascript:alert(1)", "https://host/a/../../x", "https://host/%2e%2e/x",
    "https://host/a|b", "", "x" * 9000, "https://host:99999/x",
    "https://[bad/x", "data:text/plain,x", "https://host/a\nb", "http://plain.example/x", "s3://", None, 7, ["x"],
])
def test_hostile_addresses_from_a_remote_catalog_are_refused(href: Any) -> None:
    try:
        found = safe_href(href, PC)
    except Refused:
        return
    # a relative address stays on the catalog's own host
    assert found.startswith("https://planetarycomputer.microsoft.com/"), found


def test_a_local_catalog_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").write_text("x")
    (tmp_path / "secret.txt").write_text("s")
    os.symlink(tmp_path / "secret.txt", tmp_path / "in" / "link.tif")
    origin = Origin(str(tmp_path / "in" / "items.json"))
    assert safe_href("a.tif", origin) == str((tmp_path / "in" / "a.tif").resolve())
    assert safe_href(f"file://{tmp_path}/in/a.tif", origin) == str((tmp_path / "in" / "a.tif").resolve())
    for href in ("../secret.txt", str(tmp_path / "secret.txt"), "link.tif", "/vsizip/a.zip", f"file://{tmp_path}/secret.txt"):
        with pytest.raises(Refused):
            safe_href(href, origin)


GOOD = {
    "type": "Feature", "stac_version": "1.0.0", "id": "scene-1", "collection": "c", "bbox": [-105.4, 39.9, -105.2, 40.1],
    "geometry": {
        "type": "Polygon", "coordinates": [[[-105.4, 39.9], [-105.2, 39.9], [-105.2, 40.1], [-105.4, 40.1], [-105.4, 39.9]]],
    },
    "properties": {"datetime": "2024-05-05T17:30:00Z", "platform": "landsat-8", "eo:cloud_cover": 10, "proj:epsg": 32613},
    "assets": {
        "red": {"href": "https://data.example.com/red.tif", "proj:shape": [100, 100], "proj:transform": [30, 0, 0, 0, -30, 0]},
    },
    "links": [],
}

LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["file:///etc/passwd", "../../x", "/etc/shadow", "1e400", "NaN", "9999-99-99", "\x00"])
    | st.sampled_from(["http://169.254.169.254/", "https://user:pass@host/x"])
    | st.sampled_from([1e308, -1e308, 2**80, -1, float("inf"), float("nan")])
)
TREE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=10
)


def mutate(document: Any, data: st.DataObject) -> Any:
    """Replaces, drops or adds one node anywhere in a JSON tree."""
    node, path = document, []
    while isinstance(node, dict | list) and node and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        path.append((node, key))
        node = node[key]
    if not path:
        return data.draw(TREE)
    parent, key = path[-1]
    action = data.draw(st.sampled_from(["replace", "drop", "add"]))
    if action == "drop":
        del parent[key]
    elif action == "replace" or isinstance(parent, list):
        parent[key] = data.draw(TREE)
    else:
        parent[data.draw(st.sampled_from(["proj:shape", "proj:transform", "href", "bbox", "x", "geometry"]))] = data.draw(TREE)
    return document


def never_crashes(data: st.DataObject, folder: Path) -> None:
    """The law: an item is refused with a reason, or everything it still names is allowed, finite and parses."""
    document = copy.deepcopy(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        document = mutate(document, data)
    origin = data.draw(st.sampled_from([PC, Origin(str(folder / "items.json"))]))
    try:
        item, _ = admit(document, origin)
    except Refused:
        return
    json.dumps(item, allow_nan=True)
    interval(item)
    west, south, _, north = item["bbox"]
    assert -360.1 <= west <= 360.1
    assert -90.1 <= south <= north <= 90.1
    for asset in item["assets"].values():
        href = asset["href"]
        if href.startswith("/"):
            assert origin.local
            assert os.path.commonpath([os.path.realpath(href), str(folder)]) == str(folder)
        else:
            assert urlsplit(href).scheme in ("https", "http", "s3", "gs", "az", "abfs", "abfss")
            assert "169.254" not in href or origin.local


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_hostile_items(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    never_crashes(data, tmp_path_factory.getbasetemp().resolve())


@pytest.mark.slow
@settings(max_examples=12_000, deadline=None)
@given(data=st.data())
def test_hostile_items_many(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    never_crashes(data, tmp_path_factory.getbasetemp().resolve())


def test_absurd_items_are_refused() -> None:
    for change in (
        {"assets": {str(n): {"href": "https://a.example/x"} for n in range(501)}}, {"assets": {}}, {"bbox": [float("nan")] * 4},
        {"geometry": {"type": "Point", "coordinates": [float("nan"), 1]}}, {"geometry": None, "bbox": None},
        {"id": "../../x"},
        {"properties": {"datetime": "0001-01-01T00:00:00Z"}}, {"properties": {"datetime": None}}, {"properties": None},
        {"assets": {"red": {"href": "https://a.example/x", "proj:shape": [10**9, 10**9]}}}, {"type": "Catalog"},
        {"assets": {"red": {"href": "https://a.example/x", "proj:transform": [0, 0, 0, 0, 0, 0]}}}, {"x": "y" * 5_000_000},
    ):
        with pytest.raises(Refused):
            admit({**GOOD, **change}, PC)


def test_lost_places_are_recovered() -> None:
    item, _ = admit({**GOOD, "geometry": None}, PC)
    assert item["geometry"]["type"] == "Polygon"
    item, _ = admit({k: v for k, v in GOOD.items() if k != "bbox"}, PC)
    assert item["bbox"] == pytest.approx(GOOD["bbox"])
