"""Servers that tests start and stop: a small STAC API with files, and the real ones (pgstac, nginx) where their binaries are."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fusion.testing.api import Handler, StacApi, stac_api

Document = dict[str, Any]
STAC_API = ("stac-fastapi-pgstac==7.2.0", "pypgstac[psycopg]==0.10.0", "uvicorn>=0.30")
"""the server that the long tests search; it lives in an environment of its own"""


@dataclass
class Traffic:
    """What a `Recording` server saw, and what it is told to do wrong."""

    searches: list[Document] = field(default_factory=list)
    when: list[float] = field(default_factory=list)
    """seconds, of every request that met an ordered fault or a search"""
    answers: Counter[int] = field(default_factory=Counter)
    """HTTP statuses given"""
    sent: int = 0
    """bytes of bodies"""
    orders: dict[str, list[Any]] = field(default_factory=dict)
    """path -> what happens to the next requests for it: a status, "hang", "half", an address to go to, bytes to give instead;
    the last "hang", "half", address or bytes stays"""


class Recording(Handler):
    """The product's own small API, which counts, and misbehaves as ordered."""

    traffic: Traffic

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.traffic.answers[status] += 1
        self.traffic.sent += len(body) if self.command != "HEAD" else 0
        super().answer(status, body, **headers)

    def do_GET(self) -> None:
        if not self.spoiled():
            super().do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.traffic.when.append(time.monotonic())
        if not self.spoiled():
            super().do_POST()

    def searched(self, asked: Document) -> None:
        self.traffic.searches.append(asked)
        super().searched(asked)

    def spoiled(self) -> bool:
        """Whether the request met one of the faults that were ordered for its path."""
        path = urlsplit(self.path).path
        orders = self.traffic.orders.get(path)
        if not orders:
            return False
        fault = orders[0] if len(orders) == 1 and not isinstance(orders[0], int) else orders.pop(0)
        if isinstance(fault, bytes):
            self.send(fault)
        elif fault == "half":
            whole = (self.api.folder / path.removeprefix(self.api.prefix)).read_bytes()
            self.send(whole[: len(whole) // 2])
        elif fault == "hang":
            self.traffic.answers[0] += 1
            time.sleep(4)
            self.close_connection = True
        elif isinstance(fault, str):
            self.answer(302, Location=fault)
        else:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.answer(int(fault), b"no")
        return True


@contextmanager
def recording(catalog: Path, **settings: Any) -> Iterator[tuple[StacApi, Traffic]]:
    """The small API over a static catalog, with what it saw."""
    traffic = Traffic()
    told = type("Told", (Recording,), {"traffic": traffic})
    with stac_api(catalog, handler=told, **settings) as api:
        yield api, traffic


# --- the real ones ------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def needed(*binaries: str) -> None:
    """An assertion that names the Debian packages of what is missing."""
    gone = [b for b in binaries if shutil.which(b) is None]
    told = "apt-get install nginx-light postgresql-15-postgis-3 (and put PostgreSQL's bin folder on PATH)"
    assert not gone, f"the long tests of real servers need {', '.join(gone)}: {told}"


def _start(command: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | environment)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 (an address of ours)
                return
        except OSError:
            assert process.poll() is None, f"it ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < end, f"no answer from {url}: {log.read_text()[-2000:]}"
            time.sleep(0.1)


@contextmanager
def nginx(folder: Path, work: Path) -> Iterator[tuple[str, Path]]:
    """nginx serving a folder with range requests: (address, its log of "status range" lines)."""
    needed("nginx")
    port, log = free_port(), work / "access.log"
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    temporary = "".join(f"{k}_temp_path {work}/{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (work / "nginx.conf").write_text(
        f"{user} daemon off; pid {work}/nginx.pid; error_log {work}/error.log; events {{}}\n"
        f'http {{ {temporary} log_format ranges "$status $http_range"; access_log {log} ranges;\n'
        f"  server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    (folder / "ready").write_text("yes")
    process = _start(["nginx", "-e", f"{work}/error.log", "-c", f"{work}/nginx.conf"], work / "nginx.out")
    try:
        _answers(f"http://127.0.0.1:{port}/ready", process, work / "nginx.out")
        yield f"http://127.0.0.1:{port}", log
    finally:
        _stop(process)


def stac_python() -> Path:
    """The interpreter that has stac-fastapi-pgstac: FUSION_STAC_PYTHON, else an environment made once in the user's cache."""
    if given := os.environ.get("FUSION_STAC_PYTHON"):
        return Path(given)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusion" / "stac-api"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *STAC_API], check=True)
        (home / "ready").write_text("yes")
    return python


@contextmanager
def postgres() -> Iterator[dict[str, str]]:
    """An empty PostgreSQL cluster with a database `pgstac`; yields what its clients need in their environment."""
    needed("initdb", "postgres", "createdb")
    home = Path(tempfile.mkdtemp(prefix="pg-"))  # not pytest's folder: the server refuses to run as root, so another user must enter
    root = os.geteuid() == 0
    as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if root else []
    if root:
        shutil.chown(home, "postgres", "postgres")
    client = {"PGUSER": "postgres", "PGPASSWORD": "x", "PGHOST": "127.0.0.1", "PGPORT": str(free_port()), "PGDATABASE": "pgstac"}
    log = Path(tempfile.mkstemp(prefix="pg-log-")[1])
    quick = [f"-c{k}={v}" for k, v in {"fsync": "off", "listen_addresses": "127.0.0.1", "port": client["PGPORT"]}.items()]
    try:
        made = [*as_owner, "initdb", "-D", str(home / "data"), "-U", "postgres", "--auth=trust", "-E", "UTF8"]
        subprocess.run(made, check=True, capture_output=True, cwd="/")
        server = subprocess.Popen(
            [*as_owner, "postgres", "-D", str(home / "data"), "-k", str(home), *quick], cwd="/", stdout=log.open("wb"), stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + 60
            while subprocess.run(["createdb", "pgstac"], env=os.environ | client | {"PGDATABASE": "postgres"}, capture_output=True).returncode:
                assert server.poll() is None and time.monotonic() < end, log.read_text()[-2000:]  # noqa: PT018
                time.sleep(0.2)
            yield client
        finally:
            _stop(server)
    finally:
        shutil.rmtree(home, ignore_errors=True)
        log.unlink(missing_ok=True)


@contextmanager
def pgstac(collections: Sequence[Document], items: Sequence[Document], work: Path) -> Iterator[str]:
    """stac-fastapi-pgstac on PostgreSQL and PostGIS, loaded; its address."""
    python = stac_python()
    with ExitStack() as stack:
        client = stack.enter_context(postgres())
        tool = [str(python.parent / "pypgstac")]
        for kind, documents in (("", ()), ("collections", collections), ("items", items)):
            file = work / f"{kind}.ndjson"
            file.write_text("\n".join(map(json.dumps, documents)))
            command = [*tool, "load", kind, str(file), "--method", "upsert"] if kind else [*tool, "migrate"]
            done = subprocess.run(command, env=os.environ | client, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
        port, log = free_port(), work / "api.log"
        api = _start(
            [str(python), "-m", "uvicorn", "--factory", "stac_fastapi.pgstac.app:create_app", "--host", "127.0.0.1", "--port", str(port)],
            log, **client,
        )
        stack.callback(_stop, api)
        _answers(f"http://127.0.0.1:{port}/_mgmt/ping", api, log)
        yield f"http://127.0.0.1:{port}"


if __name__ == "__main__":  # a look at the real server from a terminal
    with pgstac([], [], Path(tempfile.mkdtemp())) as address:
        sys.stdout.write(address + "\n")
        time.sleep(600)
