"""Compiled programs: many shapes in one process do not use up its memory mappings."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fusion import infer

MAPS = Path("/proc/self/maps")


def held() -> int:
    return MAPS.read_bytes().count(b"\n")


def compiled(factor: int) -> Any:
    """A program of some kernels that has run once."""
    program = jax.jit(lambda x: jnp.linalg.cholesky(jnp.cumsum(jnp.sin(factor * x) @ x, 0) + 1e3 * jnp.eye(8)))
    jax.block_until_ready(program(jnp.ones((8, 8))))
    return program


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A /proc that allows so many mappings; engines that fit nothing."""
    (tmp_path / "self").mkdir()
    (tmp_path / "sys/vm").mkdir(parents=True)

    def allows(mappings: int) -> None:
        (tmp_path / "sys/vm/max_map_count").write_text(f"{mappings}\n")
        (tmp_path / "self/maps").write_text("7f00-7f01 r--p\n" * 100)
        monkeypatch.setattr(infer, "PROC", tmp_path)
        monkeypatch.setattr(infer, "import_module", lambda name: SimpleNamespace(fit=lambda *args, **settings: name))

    return allows


def test_a_fit_lets_go_of_programs_that_hold_half_of_the_mappings(process: Any, caplog: pytest.LogCaptureFixture) -> None:
    program = compiled(1)
    process(201)
    assert infer.fit([], None) == infer.ENGINES["variational"]  # type: ignore[arg-type,comparison-overlap]
    assert program._cache_size() == 1
    process(199)
    with caplog.at_level("INFO", "fusion"):
        infer.fit([], None)  # type: ignore[arg-type]
    assert program._cache_size() == 0
    assert "100 of the 199 memory mappings" in caplog.text
    jax.block_until_ready(program(jnp.ones((8, 8))))
    assert program._cache_size() == 1


def test_without_proc_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled(2)
    monkeypatch.setattr(infer, "PROC", tmp_path / "none")
    infer.spare_mappings()
    assert program._cache_size() == 1


@pytest.mark.skipif(not MAPS.exists(), reason="mappings are counted in /proc")
def test_what_is_let_go_of_gives_its_mappings_back() -> None:
    jax.clear_caches()
    gc.collect()
    before = held()
    programs = [compiled(factor) for factor in range(3, 13)]
    full = held()
    assert full >= before + len(programs)
    jax.clear_caches()
    gc.collect()
    assert held() - before < 0.3 * (full - before)
