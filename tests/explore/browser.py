"""A headless Chromium driven over the W3C WebDriver protocol: just enough to open a page, ask it things and take its picture."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
MODELS = "const all = Bokeh.documents.flatMap(d => [...d._all_models.values()]);"
"""JavaScript: every Bokeh model of the page"""

CANVASES = """
const canvases = [];
const look = root => { for (const e of root.querySelectorAll('*')) {
  if (e.tagName === 'CANVAS') canvases.push(e);
  if (e.shadowRoot) look(e.shadowRoot); } };
look(document);
const painted = c => { if (c.width < 100 || c.height < 60) return false;
  const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  for (let i = 3; i < data.length; i += 40) if (data[i] > 0) return true;
  return false; };
"""
"""JavaScript: the canvases of the page, and whether one has anything on it"""


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int, seconds: float = 60.0) -> None:
    """Waits until somebody listens on a local port."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


class Browser:
    """One window; use it in a `with` block."""

    def __init__(self, profile: Path, width: int = 1150, height: int = 900) -> None:
        driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
        if driver is None or chromium is None:
            raise RuntimeError("this study needs Chromium: apt-get install chromium chromium-driver")
        self._port = free_port()
        self._driver = subprocess.Popen([driver, f"--port={self._port}", "--silent"])
        arguments = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        options = {"binary": chromium, "args": arguments}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._session = ""
        self._session = "/session/" + self._ask("POST", "/session", {"capabilities": wanted}, patience=60.0)["sessionId"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(20)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, patience: float = 0.0) -> Any:
        url = f"http://127.0.0.1:{self._port}{self._session}{path}"
        data = None if body is None else json.dumps(body).encode()
        end = time.monotonic() + patience
        while True:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
            try:
                with DIRECT.open(request, timeout=180) as reply:
                    return json.load(reply)["value"]
            except urllib.error.HTTPError as error:
                raise RuntimeError(f"{method} {path}: {error.read().decode()[:1000]}") from error
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def open(self, url: str) -> None:
        """Loads a page."""
        self._ask("POST", "/url", {"url": url})

    def ask(self, script: str) -> Any:
        """The value that a JavaScript function body returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def wait(self, script: str, seconds: float = 60.0) -> Any:
        """Asks until the answer is true."""
        end = time.monotonic() + seconds
        while not (answer := self.ask(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"the page did not come to {script!r} within {seconds:g} s: {self.complaints()}")
            time.sleep(0.3)
        return answer

    def rendered(self, figures: int = 1) -> None:
        """Waits until so many Bokeh figures are painted: their canvases, in whatever shadow root, are neither empty nor hidden."""
        self.wait(CANVASES + f"return canvases.filter(painted).length >= {figures}")
        time.sleep(0.5)  # the frame is painted after the canvas has its size

    def click(self, x: int, y: int) -> None:
        """Presses and releases the left button at a point of the window (CSS pixels)."""
        moves = [
            {"type": "pointerMove", "duration": 50, "x": x, "y": y}, {"type": "pointerDown", "button": 0},
            {"type": "pause", "duration": 60}, {"type": "pointerUp", "button": 0},
        ]  # fmt: skip
        self._ask("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last question."""
        return [f"{e['level']}: {e['message']}" for e in self._ask("POST", "/se/log", {"type": "browser"}) if e["level"] == "SEVERE"]

    def picture(self, path: Path | None = None) -> NDArray[np.uint8]:
        """What the window shows, (rows, columns, 3); also written to a file."""
        png = base64.b64decode(self._ask("GET", "/screenshot"))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
