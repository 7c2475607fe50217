"""Imports point down, no cycles, heavy libraries stay in their homes, and fusion never imports sensors."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEVEL = {
    "errors": 0, "cube": 1, "observe": 2, "process": 2, "infer": 3, "simulate": 3, "testing": 3, "service": 4, "explore": 5,
    "demo": 6,
}  # fmt: skip
HOME = {
    "numpyro": {"infer"}, "jax": {"observe", "process", "infer"},
    "dask": {"service", "explore"}, "distributed": {"service"}, "zarr": {"service", "explore"},
    "fsspec": {"service", "explore"}, "pystac_client": {"service"},
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    """The part of fusion that a file belongs to."""
    relative = path.relative_to(ROOT / "fusion")
    return relative.parts[0].removesuffix(".py")


FILES = sorted((ROOT / "fusion").rglob("*.py"))
SENSORS = sorted((ROOT / "sensors").rglob("*.py"))


def test_imports_point_down() -> None:
    for path in FILES:
        mine = part(path)
        if mine == "__init__":
            continue
        for name in imports(path):
            if name.startswith("fusion.") and (other := name.split(".")[1]) in LEVEL and other != mine:
                assert LEVEL[other] < LEVEL[mine], f"{path}: {mine} (level {LEVEL[mine]}) imports {name}"


def test_sensors_know_only_cube_and_observe_and_fusion_does_not_know_them() -> None:
    for path in SENSORS:
        parts = {name.split(".")[1] for name in imports(path) if name.startswith("fusion.")}
        assert parts <= {"cube", "observe", "errors"}, f"{path} imports {parts}"
    for path in FILES:
        assert not any(name.split(".")[0] == "sensors" for name in imports(path)), path


def test_heavy_libraries_have_one_home() -> None:
    for path in FILES:
        for name in imports(path):
            home = HOME.get(name.split(".")[0])
            assert home is None or part(path) in home, f"{path} imports {name}; its home is {sorted(home or ())}"


def test_there_are_no_import_cycles() -> None:
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES + SENSORS}
    graph = {
        name: {other for other in imports(path) if other in modules and other != name and path.name != "__init__.py"}
        for name, path in modules.items()
    }
    TopologicalSorter(graph).prepare()


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in FILES + SENSORS if (n := len(p.read_text().splitlines())) > 350}
    assert not long, f"beyond 350 lines, ask what they want to become: {long}"
