"""A Ceph cluster of one: monitor, manager, one OSD in memory, and the S3 gateway (RGW), in a folder that is removed afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.service.servers import _answers, _start, _stop, free_port

BINARIES = ("ceph", "ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "radosgw-admin", "ceph-authtool", "monmaptool")
KEY, SECRET = "testkey", "testsecret"


@dataclass(frozen=True)
class Ceph:
    """The folder and the ports."""

    home: Path
    fsid: str
    ports: tuple[int, int, int]

    def configure(self) -> None:
        """ceph.conf: one copy of everything, keys required (the gateway hangs without)."""
        v2, v1, _ = self.ports
        lines = {
            "fsid": self.fsid, "mon initial members": "a", "mon host": f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]", "public addr": "127.0.0.1",
            "auth cluster required": "cephx", "auth service required": "cephx", "auth client required": "cephx", "ms bind ipv6": "false",
            "run dir": self.home, "admin socket": f"{self.home}/$cluster-$name.asok", "log file": f"{self.home}/$name.log",
            "pid file": f"{self.home}/$name.pid", "mon data": f"{self.home}/mon", "mgr data": f"{self.home}/mgr", "osd data": f"{self.home}/osd",
            "rgw data": f"{self.home}/rgw", "keyring": f"{self.home}/$name.keyring", "crash dir": f"{self.home}/crash",
            "osd objectstore": "memstore", "memstore device bytes": 2 << 30, "osd pool default size": 1, "osd pool default min size": 1,
            "osd pool default pg num": 4, "mon allow pool size one": "true", "osd crush chooseleaf type": 0, "osd max pg per osd hard ratio": 20,
            "mon max pg per osd": 1000, "mon allow pool delete": "true", "mon osd full ratio": 0.99, "auth allow insecure global id reclaim": "false",
            "rgw dns name": "127.0.0.1", "osd pool default pg autoscale mode": "off",
        }
        (self.home / "ceph.conf").write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in lines.items()))
        for folder in ("mon", "mgr", "osd", "rgw", "crash"):
            (self.home / folder).mkdir()

    def tell(self, *command: str, patience: float = 60) -> str:
        """Runs one of Ceph's tools; tries again until it succeeds or time is up."""
        end = time.monotonic() + patience
        while True:
            done = subprocess.run([command[0], "-c", f"{self.home}/ceph.conf", *command[1:]], capture_output=True, text=True, timeout=120)
            if done.returncode == 0:
                return done.stdout
            assert time.monotonic() < end, f"{' '.join(command)}: {done.stderr[-1500:]}"
            time.sleep(0.5)

    def keyring(self, name: str, *caps: str) -> None:
        """A key for a daemon, where it looks for it."""
        (self.home / f"{name}.keyring").write_text(self.tell("ceph", "--connect-timeout", "5", "auth", "get-or-create", name, *caps))

    def daemon(self, stack: ExitStack, *command: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Starts a daemon in the foreground; it ends with the stack."""
        log = self.home / f"{command[0]}.out"
        process = _start([command[0], "-f", "-c", f"{self.home}/ceph.conf", *command[1:]], log)
        stack.callback(_stop, process)
        return process, log


@contextmanager
def rgw() -> Iterator[str]:
    """The address of an S3 gateway with the user KEY, SECRET."""
    gone = [b for b in BINARIES if shutil.which(b) is None]
    assert not gone, f"{', '.join(gone)}: apt-get install radosgw ceph-mon ceph-osd ceph-mgr ceph-common"
    home = Path(tempfile.mkdtemp(prefix="ceph-"))
    made = Ceph(home, str(uuid.uuid4()), (free_port(), free_port(), free_port()))
    v2, v1, s3 = made.ports
    try:
        with ExitStack() as stack:
            made.configure()
            allowed = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *", "--cap", "mds", "allow *"]
            monitor, admin = str(home / "mon.a.keyring"), str(home / "client.admin.keyring")
            for command in (
                ["ceph-authtool", "--create-keyring", monitor, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"],
                ["ceph-authtool", "--create-keyring", admin, "--gen-key", "-n", "client.admin", *allowed],
                ["ceph-authtool", monitor, "--import-keyring", admin],
                ["monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]", "--fsid", made.fsid, str(home / "monmap")],
                ["ceph-mon", "-c", f"{home}/ceph.conf", "--mkfs", "-i", "a", "--monmap", str(home / "monmap"), "--keyring", monitor],
            ):
                done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CEPH_CONF": f"{home}/ceph.conf"})
                assert done.returncode == 0, f"{command}: {done.stderr[-1500:]}"
            made.daemon(stack, "ceph-mon", "-i", "a")
            made.keyring("mgr.x", "mon", "allow profile mgr", "osd", "allow *", "mds", "allow *")
            made.daemon(stack, "ceph-mgr", "-i", "x")
            made.tell("ceph", "osd", "new", device := str(uuid.uuid4()), "0")
            made.keyring("osd.0", "mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *")
            made.tell("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", device)
            made.daemon(stack, "ceph-osd", "-i", "0")
            made.keyring("client.rgw.a", "mon", "allow rwx", "osd", "allow rwx", "mgr", "allow rw")
            gateway, log = made.daemon(stack, "radosgw", "-n", "client.rgw.a", f"--rgw-frontends=beast endpoint=127.0.0.1:{s3}")
            _answers(f"http://127.0.0.1:{s3}/", gateway, log, seconds=180)
            user = ("--uid", "tester", "--display-name", "tester", "--access-key", KEY, "--secret-key", SECRET)
            made.tell("radosgw-admin", "user", "create", *user)
            yield f"http://127.0.0.1:{s3}"
    finally:
        shutil.rmtree(home, ignore_errors=True)
