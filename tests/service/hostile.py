"""What a stranger may send: traps that no one may touch, addresses that name them, and damage to text and bytes.

"Touched" is asked of the kernel (inotify on files) and of a second server that no one may call, so that what GDAL and HDF5 do
counts as much as what Python does.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h5py
import numpy as np
import rasterio
from hypothesis import strategies as st


@dataclass
class Forbidden:
    """Files that the kernel watches, and a server that counts who calls."""

    folder: Path
    address: str = ""
    calls: list[str] = field(default_factory=list)
    watch: int = -1

    def touched(self) -> list[str]:
        """What was opened or called since the last time."""
        found = []
        try:
            data = os.read(self.watch, 1 << 16)
            while data:
                _, mask, _, size = struct.unpack_from("iIII", data)
                found.append(f"{data[16 : 16 + size].rstrip(bytes(1)).decode()} (event {mask:#x})")
                data = data[16 + size :]
        except BlockingIOError:
            pass  # nothing happened
        found += self.calls
        self.calls.clear()
        return found


@contextmanager
def watched(folder: Path) -> Iterator[Forbidden]:
    """Three secrets in a folder, and a server on another host of this machine, under watch."""
    made = Forbidden(folder)
    (folder / "secret.txt").write_text("secret")
    with rasterio.open(folder / "secret.tif", "w", driver="GTiff", width=8, height=8, count=1, dtype="uint16") as file:
        file.write(np.full((1, 8, 8), 77, np.uint16))
    with h5py.File(folder / "secret.h5", "w") as file:
        file["secret"] = np.full((8, 8), 77)

    class Spy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.calls.append(f"{self.command} {self.path} {dict(self.headers)}")
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.2", 0), Spy)  # another host of this machine
    made.address = f"http://127.0.0.2:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    libc = ctypes.CDLL(None, use_errno=True)
    made.watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(made.watch, bytes(folder), 0x1 | 0x20) > 0  # accessed, opened
    yield made
    os.close(made.watch)
    server.shutdown()
    server.server_close()
    thread.join()


def addresses(forbidden: Forbidden) -> list[str]:
    """Ways to name what may not be opened."""
    secrets = [str(forbidden.folder / name) for name in ("secret.txt", "secret.tif", "secret.h5")]
    out = [f"//{urlsplit(forbidden.address).netloc}/x.tif", "http://169.254.169.254/latest/meta-data"]
    for path in secrets:
        dots, coded = "../" * 12 + path, path.replace("/", "%2f")
        out += [
            path, dots, f"file://{path}", f"file://localhost{path}", f"FILE://{path}", f"file:{path}", coded, dots.replace(".", "%2e"),
            f"/vsicurl/file://{path}", f"/vsizip/{path}", f"/vsisubfile/0_10,{path}", f"/vsigzip/{path}", f"vrt://{path}", f"GTIFF_RAW:{path}",
            f"GTIFF_DIR:1:{path}", f'NETCDF:"{path}":x', f'HDF5:"{path}"://secret', f"zip+file://{path}!x", f".{path}", f"\\\\?{path}",
            f"<VRTDataset rasterXSize='8' rasterYSize='8'><VRTRasterBand dataType='UInt16' band='1'><SimpleSource>"
            f"<SourceFilename>{path}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>", "link.tif", "evil.vrt", "evil.h5",
            f"http://user:pass@{urlsplit(forbidden.address).netloc}/x", f"./link.tif?{path}", f"{path}\x00.tif",
        ]
    return out


LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from([1e308, -1e308, 2**80, -1, 0, float("inf"), float("nan"), "NaN", "1e400", "9999-99-99", "\x00", "EPSG:999999", "EPSG:4326"])
    | st.just("x" * 10_000)
)
TREE = st.recursive(LEAF, lambda t: st.lists(t, max_size=4) | st.dictionaries(st.text(max_size=8), t, max_size=4), max_leaves=8)
KEYS = ("proj:shape", "proj:transform", "proj:code", "proj:epsg", "proj:wkt2", "href", "bbox", "geometry", "raster:bands", "alternate", "links",
        "nodata", "raster:scale", "type", "datetime", "start_datetime", "platform", "collection", "stac_extensions", "__class__")


def mutated(document: Any, data: st.DataObject, pool: list[str]) -> None:
    """Replaces, drops or adds one node of a JSON tree; every third time a string becomes a forbidden address."""
    if isinstance(document, dict) and isinstance(document.get("assets"), dict) and document["assets"] and data.draw(st.integers(0, 2)) == 0:
        asset = document["assets"][data.draw(st.sampled_from(sorted(document["assets"], key=str)))]
        if isinstance(asset, dict):
            asset[data.draw(st.sampled_from(["href", "href", "href", "alternate", "title"]))] = data.draw(st.sampled_from(pool))
            return
    node, key, parent = document, None, None
    while isinstance(node, dict | list) and node and (parent is None or data.draw(st.integers(0, 3))):
        parent = node
        key = data.draw(st.sampled_from(sorted(node, key=str) if isinstance(node, dict) else range(len(node))))
        node = node[key]
    if parent is None:
        return
    action = data.draw(st.sampled_from(["replace", "replace", "drop", "add"]))
    value = data.draw(TREE | st.sampled_from(pool))
    if action == "drop":
        del parent[key]
    elif action == "replace" or isinstance(parent, list):
        parent[key] = value
    else:
        parent[data.draw(st.sampled_from(KEYS))] = value


def damaged(kept: bytes, data: st.DataObject) -> bytes:
    """The bytes with up to four stretches cut out or overwritten."""
    out = bytearray(kept)
    for _ in range(data.draw(st.integers(1, 4))):
        spot = data.draw(st.integers(0, max(0, len(out) - 1)))
        out[spot : spot + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=20))
    return bytes(out)
