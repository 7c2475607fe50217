"""Documentation that cannot rot: code blocks run, references equal what the program says, links and names exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest
from typer.main import get_command

from fusion.service.cli import app
from fusion.service.job import Job
from tests.explore.worlds import demo

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "sensors/README.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.S | re.M)


def reference() -> Any:
    """The script that writes the reference pages."""
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "docs/write_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the one where a user ran `make demo`: a small archive of its own, and a cube that holds the truth."""
    folder = tmp_path_factory.mktemp("docs")
    demo(folder)
    return folder


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/tutorial.md"], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks(page, "python")
    assert found
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    for block in found:
        exec(compile(block, str(page), "exec"), names)  # noqa: S102  our own documentation
    printed = capsys.readouterr().out
    assert "nan" not in printed
    assert "demo (simulated)" in printed
    plt.close("all")


@pytest.mark.parametrize("page", [ROOT / "docs/howto/explore.md", ROOT / "docs/howto/sensors.md"], ids=lambda p: p.name)
def test_blocks_of_how_to_pages_run(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, str(page), "exec"), names)  # noqa: S102  our own documentation
    plt.close("all")


def test_python_blocks_of_the_first_page_name_what_exists() -> None:
    import fusion
    from fusion.explore import FusionAccessor

    text = "\n".join(blocks(ROOT / "docs/index.md", "python"))
    compile(text, "index.md", "exec")
    for name in re.findall(r"\bfusion\.(\w+)\(", text.replace("cube.fusion.", "accessor.")):
        assert hasattr(fusion, name), name
    for name in re.findall(r"cube\.fusion\.(\w+)\(", text):
        assert hasattr(FusionAccessor, name), name


def test_reference_pages_are_what_the_program_says() -> None:
    pages = reference()
    for name, text in (("cli.md", pages.cli_page()), ("job.md", pages.job_page())):
        written = (ROOT / "docs/reference" / name).read_text()
        assert written == text, f"docs/reference/{name} is out of date: run `python docs/write_reference.py`"


def test_every_command_that_is_mentioned_exists() -> None:
    command: Any = get_command(app)
    known = set(command.commands) | {f"job {sub}" for sub in command.commands["job"].commands}
    for page in [*PAGES, *NOTEBOOKS]:
        for name in re.findall(r"(?:^|`)fusion ((?:job )?[a-z][a-z-]+)", page.read_text(), re.M):
            assert name in known, f"{page.name} mentions `fusion {name}`; there is {', '.join(sorted(known))}"


def test_every_make_target_that_is_mentioned_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for name in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.M):
            assert name in targets, f"{page.name} mentions `make {name}`"


def test_job_blocks_are_valid_toml_with_known_keys() -> None:
    import tomllib

    for page in PAGES:
        for block in blocks(page, "toml"):
            document = tomllib.loads(block)
            if "sensors" in document and isinstance(document["sensors"], list):
                period = {"start": "2024-01-01", "end": "2024-02-01"}
                rest = {"area": {"bbox": [0, 0, 1, 1]}, "period": period, "output": {"store": "a"}}
                Job.of(rest | document, page.name)


def test_api_page_documents_every_public_name_and_nothing_else() -> None:
    import fusion

    text = (ROOT / "docs/reference/api.md").read_text()
    listed = re.findall(r"^::: (\S+)$", text, re.M)
    for path in listed:
        try:
            import_module(path)
        except ModuleNotFoundError:
            module, _, name = path.rpartition(".")
            assert hasattr(import_module(module), name), path
    documented = {path.rpartition(".")[2] for path in listed} | {name for name in fusion.__all__ if name.endswith("Error")}
    assert set(fusion.__all__) <= documented, f"not in api.md: {sorted(set(fusion.__all__) - documented)}"


def test_links_inside_the_repository_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stored_clean(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], f"{path.name} holds outputs: clear them before committing"
            assert cell["execution_count"] is None


def test_there_are_notebooks() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == [f"0{n}" for n in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 5


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    build(config)
    assert "posterior" in (tmp_path / "site/explain/uncertainty/index.html").read_text()
    assert "FusionAccessor" in (tmp_path / "site/reference/api/index.html").read_text()
    shutil.rmtree(tmp_path / "site")
