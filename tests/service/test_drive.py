"""The driver's window of tasks where Python itself gets in the way."""

from __future__ import annotations

import signal
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster

from fusion.service import run as running
from fusion.service.drive import Drive
from tests.service.test_run import on
from tests.service.worlds import quick_fit, small_job


class Node:
    """Something that a weak reference can point to."""


def test_ctrl_c_is_heard_where_python_drops_its_exception(
    catalog: Path, tmp_path: Path, workers: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, take = 0, Drive._take
    dropped: list[Any] = []

    def struck(*given: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == 1:
            node = Node()
            watch = weakref.ref(node, lambda _: signal.raise_signal(signal.SIGINT))
            del node  # the callback runs here, and no exception leaves it
            assert watch() is None
        take(*given)

    monkeypatch.setattr(Drive, "_take", struck)
    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(what.exc_type))
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        summary = running.run(small_job(catalog, tmp_path / "cube.zarr", cluster=on(workers)), fit=quick_fit, progress="none")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, usual)
    assert dropped == [KeyboardInterrupt]
    assert summary.cancelled
    assert summary.left > 0
