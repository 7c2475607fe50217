"""sensors/README.md is executed: the plug-in it describes is installed into a temporary place, found, and passes its check."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "sensors" / "README.md"
PROGRAM = """
import json, sys, warnings
import typer
from typer.testing import CliRunner
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    from fusion.service.cli_sensors import register
    from fusion.observe.sensor import sensors
    sensors()
app = typer.Typer()
register(app)
runs = [CliRunner().invoke(app, words.split()) for words in sys.argv[2:]]
done = {"runs": [[r.exit_code, r.output] for r in runs], "warnings": [str(w.message) for w in told]}
exec(sys.argv[1])
print("RESULT" + json.dumps(done))
"""


def block(first_line: str) -> str:
    """The fenced block of the README that begins with this comment."""
    found = re.findall(rf"```\w+\n({re.escape(first_line)}\n.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    assert len(found) == 1, first_line
    return str(found[0])


def install(folder: Path, module: str, name: str = "mycamera") -> None:
    """The plug-in as an installer leaves it: the module, and metadata from the README's pyproject.toml."""
    project = tomllib.loads(block("# pyproject.toml of your package").replace("mycamera", name))["project"]
    (folder / f"{name}.py").write_text(module, encoding="utf-8")
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))


def use(folder: Path, test: str, *commands: str) -> tuple[list[tuple[int, str]], list[str]]:
    """((exit code, output) of each command, warnings) of a fresh interpreter that sees the folder's plug-ins."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "160", "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", PROGRAM, test, *commands]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rsplit("RESULT", 1)[1])
    return [(code, output) for code, output in found["runs"]], found["warnings"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """The README's plug-in: listed, described, checked; its own test runs as well (it would raise)."""
    folder = tmp_path_factory.mktemp("plugin")
    install(folder, block("# mycamera.py"))
    runs, warnings = use(folder, block("# test_mycamera.py"), "sensors", "sensors mycamera", "check-sensor mycamera")
    assert not any("mycamera" in w for w in warnings)
    return runs


def test_the_plug_in_is_listed_beside_the_built_in_sensors(good: list[tuple[int, str]]) -> None:
    (code, listed), (_, described), _ = good
    assert code == 0
    assert "mycamera" in listed
    assert "landsat-8" in listed
    assert "camera data sheet" in described


def test_the_plug_in_passes_its_check(good: list[tuple[int, str]]) -> None:
    code, shown = good[2]
    assert code == 0
    assert "12 of 12 laws hold" in shown


def test_a_wrong_plug_in_fails_and_a_broken_one_is_left_out_with_a_warning(tmp_path: Path) -> None:
    install(tmp_path, block("# mycamera.py").replace("quantise(rho, STORAGE)", "quantise(rho * 2, STORAGE)"))
    install(tmp_path, "raise RuntimeError('no licence')", name="othercamera")
    ((code, shown), (listing, listed)), warnings = use(tmp_path, "", "check-sensor mycamera", "sensors")
    assert code == 1
    assert "FAIL" in shown
    assert "check scale" in shown
    assert listing == 0
    assert "mycamera" in listed
    assert "landsat-8" in listed
    assert "othercamera" not in listed
    assert any("othercamera" in w and "no licence" in w for w in warnings)
