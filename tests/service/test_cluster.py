"""How a worker is set up before its first tile."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusion.service.cluster import Prepared
from fusion.service.job import Cluster


def test_compiled_programs_are_kept_apart_by_the_cores_that_compiled_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker: Any = SimpleNamespace(address="tcp://here")
    for cores in (1, 2):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
        for _ in range(2):  # a second job on the same workers sets them up again
            Prepared(Cluster()).setup(worker)
            assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / f"{cores}-cores")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["1-cores", "2-cores"]
