"""Laws of what may be opened: addresses that catalogs name, tokens, servers that fail, granules fetched whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fusion.errors import SceneError
from sensors import hrefs
from sensors.reading import planes
from sensors.writing import write_tif
from tests.sensors.making import UTM, inside, item_of

WHERE = "camera scene X"


class Ranges(SimpleHTTPRequestHandler):
    """A file server that honours single byte ranges, as object stores do, and keeps what it was asked."""

    asked: list[str]

    def log_message(self, *args: object) -> None:
        self.asked.append(self.path)

    def do_GET(self) -> None:
        self.log_message()
        path = Path(self.directory) / self.path.split("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        span = self.headers.get("Range")
        end = len(data) - 1
        first, last = (0, end) if span is None else (int(v or end) for v in span.removeprefix("bytes=").split("-"))
        last = min(last, end)
        self.send_response(200 if span is None else 206)
        promised = last - first + 1 + (100 if "short" in self.path else 0)
        self.send_header("Content-Length", str(promised))
        self.send_header("Accept-Ranges", "bytes")
        if span is not None:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[first : last + 1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Ranges,), {"asked": asked})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_window_is_read_over_http_signed_when_opened_and_the_token_is_not_kept(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, asked = server
    values = np.arange(2000, dtype=np.int16).reshape(40, 50)
    write_tif(tmp_path / "red.tif", values, UTM)
    monkeypatch.setattr(hrefs, "signers", [lambda href: f"{href}?token=secret"])
    item = item_of({"red": "./red.tif"}, self_href=f"{root}/item.json")
    found = planes(item, {"red": ("red",)}, inside(UTM, 10), 0.0, WHERE)["red"]
    assert 0 < found.values.size < 1500
    assert any("token=secret" in path for path in asked)
    assert "secret" not in found.href + "".join(found.notes)


def test_what_is_gone_is_permanent_and_what_is_cut_short_is_said(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, _ = server
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    with pytest.raises(SceneError, match=r"404.*check the address"):
        planes(item_of({"red": f"{root}/none.tif"}, f"{root}/item.json"), {"red": ("red",)}, inside(UTM, 1), 0.0, WHERE)
    with pytest.raises(SceneError, match="No such file"):
        planes(item_of({"red": str(tmp_path / "none.tif")}), {"red": ("red",)}, inside(UTM, 1), 0.0, WHERE)
    write_tif(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 9999, (40, 50)).astype(np.int16), UTM)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:1500])
    with pytest.raises(SceneError, match="truncated"):
        planes(item_of({"red": str(tmp_path / "cut.tif")}), {"red": ("red",)}, inside(UTM, 1), 0.0, WHERE)
    (tmp_path / "page.tif").write_text("<html>please log in</html>")
    with pytest.raises(SceneError, match="not an image"):
        planes(item_of({"red": str(tmp_path / "page.tif")}), {"red": ("red",)}, inside(UTM, 1), 0.0, WHERE)


def test_a_server_that_does_not_answer_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    item = item_of({"red": "http://127.0.0.1:9/a.tif"}, "http://127.0.0.1:9/item.json")
    with pytest.raises(ConnectionError, match="again"):
        planes(item, {"red": ("red",)}, inside(UTM, 1), 0.0, WHERE)


def test_missing_assets_list_what_there_is() -> None:
    with pytest.raises(SceneError, match="asked for asset red or B04, the item has: green, nir"):
        planes(item_of({"green": "g.tif", "nir": "n.tif"}), {"red": ("red", "B04")}, inside(UTM, 1), 0.0, WHERE)


@pytest.mark.parametrize(
    "href",
    ["file:///etc/passwd", "/vsizip/a.zip", "vrt://a.tif", "<VRTDataset/>", "ftp://host/a.tif", "http://169.254.169.254/a",
     "http://10.0.0.8/a.tif"],
)  # fmt: skip
def test_a_remote_catalog_cannot_choose_what_is_opened_here(href: str) -> None:
    item = item_of({"red": href}, self_href="https://catalog.example.org/items/X.json")
    with pytest.raises(SceneError):
        hrefs.href_of(item, item.assets["red"], WHERE)


@pytest.mark.parametrize(
    ("href", "opened"),
    [("https://data.example.org/a.tif", "/vsicurl/https://data.example.org/a.tif"), ("s3://bucket/a.tif", "/vsis3/bucket/a.tif"),
     ("gs://bucket/a.tif", "/vsigs/bucket/a.tif"), ("../b/a.tif", "/vsicurl/https://catalog.example.org/b/a.tif"),
     ("/etc/passwd", "/vsicurl/https://catalog.example.org/etc/passwd")],
)  # fmt: skip
def test_what_a_remote_catalog_may_name(href: str, opened: str) -> None:
    item = item_of({"red": href}, self_href="https://catalog.example.org/items/X.json")
    assert hrefs.href_of(item, item.assets["red"], WHERE) == opened


def test_a_vrt_is_never_opened_as_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text('<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>')
    with pytest.raises(SceneError, match="not an image"):
        planes(item_of({"red": str(tmp_path / "a.tif")}), {"red": ("red",)}, inside(UTM, 1), 0.0, WHERE)


def test_granules_are_fetched_whole_once_or_not_at_all(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, asked = server
    cache = tmp_path / "cache"
    monkeypatch.setenv("FUSION_CACHE", str(cache))
    (tmp_path / "g.hdf").write_bytes(b"granule" * 1000)
    item = item_of({"data": f"{root}/g.hdf"}, f"{root}/item.json")
    first = hrefs.local_file(item, item.assets["data"], WHERE)
    assert first.read_bytes() == b"granule" * 1000
    assert hrefs.local_file(item, item.assets["data"], WHERE) == first
    assert len([a for a in asked if "g.hdf" in a and "code" not in a]) <= 2
    gone = item_of({"data": f"{root}/none.hdf"}, f"{root}/item.json")
    with pytest.raises(SceneError, match="404"):
        hrefs.local_file(gone, gone.assets["data"], WHERE)
    (tmp_path / "short.hdf").write_bytes(b"granule")
    short = item_of({"data": f"{root}/short.hdf"}, f"{root}/item.json")
    with pytest.raises(ConnectionError, match="again"):
        hrefs.local_file(short, short.assets["data"], WHERE)
    assert [p.name for p in cache.iterdir()] == [first.name]
    bucket = item_of({"data": "s3://bucket/g.hdf"}, f"{root}/item.json")
    with pytest.raises(SceneError, match="copy it"):
        hrefs.local_file(bucket, bucket.assets["data"], WHERE)
