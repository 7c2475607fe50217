"""The script behind the shipped spectra: its parts on made-up libraries, and the whole against what is shipped."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from fusion.cube import learn_basis
from fusion.cube.spectrum import NODES
from fusion.errors import JobError


def family(count: int, seed: int) -> np.ndarray:
    """Spectra of three smooth components."""
    rng = np.random.default_rng(seed)
    shapes = np.stack([np.ones(NODES.size), np.sin(NODES / 300), np.cos(NODES / 170)])
    return np.asarray(0.4 + rng.standard_normal((count, 3)) @ shapes * 0.05)


def test_unmeasured_windows_are_completed_from_complete_spectra() -> None:
    complete, truth = family(300, 0), family(40, 1)
    measured = ((NODES < 1350) | (NODES > 1450)) & (NODES < 2450)
    filled = learn_basis.completed(truth[:, measured], NODES[measured], complete)
    assert np.allclose(filled[:, measured], truth[:, measured])
    assert np.abs(filled - truth).max() < 2e-3


def test_mixtures_stay_inside_their_surfaces() -> None:
    kinds = {"dark": np.full((5, NODES.size), 0.1), "bright": np.full((5, NODES.size), 0.6)}
    drawn = learn_basis.pixels(np.random.default_rng(0), kinds, {"dark": 0.7, "bright": 0.3}, 2000, shade=0.0)
    assert drawn.min() >= 0.1 - 1e-12
    assert drawn.max() <= 0.6 + 1e-12
    assert drawn.mean() == pytest.approx(0.7 * 0.1 + 0.3 * 0.6, abs=0.02)
    assert ((drawn > 0.15) & (drawn < 0.55)).any()


def test_the_learned_gaussian_keeps_every_variance() -> None:
    spectra = family(500, 2) + 0.01 * np.random.default_rng(3).standard_normal((500, NODES.size))
    basis = learn_basis.learned(spectra, broad=1.0)
    assert np.allclose(basis["total_var"], spectra.var(0, ddof=1))
    assert (np.diff(basis["variances"]) <= 0).all()
    kept = basis["components"] * np.sqrt(basis["variances"])
    assert np.allclose(kept[:, :3] @ kept[:, :3].T, np.cov(spectra.T), atol=1.5e-4)


def test_an_envi_library_is_read_in_nanometres_or_refused(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    (tmp_path / "library").write_bytes(values.tobytes())
    header = tmp_path / "library.hdr"
    header.write_text("ENVI\nsamples = 3\ndata type = 4\nbyte order = 0\nwavelength = { 0.5 , 0.4 , 0.6 }\n")
    spectra, wavelengths = learn_basis.envi_library(header)
    assert wavelengths.tolist() == [400.0, 500.0, 600.0]
    assert spectra.tolist() == [[1, 0, 2], [4, 3, 5]]
    header.write_text("ENVI\ndata type = 5\nwavelength = { 0.5 , 0.4 , 0.6 }\n")
    with pytest.raises(JobError, match="float32"):
        learn_basis.envi_library(header)


@pytest.mark.slow
def test_the_shipped_files_are_what_the_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["learn_basis", "--out", str(tmp_path)])
    learn_basis.main()
    for name in ("library.npz", "endmembers.npz"):
        with files("fusion.cube").joinpath("data", name).open("rb") as stream:
            shipped = np.load(stream)
            made = np.load(tmp_path / name)
            for key in shipped:
                if shipped[key].dtype.kind == "U":
                    assert (shipped[key] == made[key]).all()
                else:
                    assert np.allclose(shipped[key].astype(float), made[key].astype(float), atol=2e-4), key
