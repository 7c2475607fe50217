# Two commands do everything a newcomer needs: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# large arrays in pages of 2 MB (docs/howto/tuning.md)
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test check lint types notebooks bench docs figures basis lock clean help
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r constraints.txt  # modules are compiled as they are imported: most never are
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $(READY)

demo: $(READY)  ## simulate three sensors, fuse them, leave a cube and pictures in ./demo
	$(BIN)/python -m fusion.demo demo

test: $(READY)  ## the test suite (long studies: make test ARGS=--slow)
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

check: $(READY)  ## lint, types, documentation built strictly, the demo and the notebooks executed on it
	$(MAKE) --no-print-directory --jobs=2 lint types docs notebooks

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

notebooks: $(READY)
	test -f demo/demo.png || $(MAKE) --no-print-directory demo
	$(BIN)/python -m pytest --numprocesses=2 --nbmake --nbmake-timeout=600 --timeout=900 notebooks

bench: $(READY)  ## every benchmark table (the real-data rows need FUSION_SHARED or ../shared)
	@for b in layers spectral_prior spectral_fusion speed accuracy limits scale; do echo "== $$b"; $(BIN)/python -m benchmarks.$$b || exit 1; done

docs: $(READY)  ## the documentation site in ./site, built strictly
	$(BIN)/mkdocs build --strict --quiet

figures: $(READY)  ## redraw the pictures of the documentation
	$(BIN)/python benchmarks/figures_sensors.py

basis: $(READY)  ## learn the shipped spectral basis anew
	$(BIN)/python -m fusion.cube.learn_basis

lock: $(READY)  ## renew constraints.txt after a change in pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra learn --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --output-file constraints.txt

clean:  ## remove the environment and everything generated
	rm -rf $(VENV) demo site .pytest_cache .hypothesis .mypy_cache .ruff_cache
