# Every target creates .venv and installs what it needs; only Python 3.11 or later must be there.
PYTHON ?= python3
BIN := .venv/bin
TESTS ?= -n 2 --dist worksteal

.PHONY: help demo test lint bench docs clean

help:
	@echo "make demo   install, denoise simulated particles and a micrograph, write emdask-demo/report.html"
	@echo "make test   install, run every gate and test"
	@echo "make lint   the gates alone: style, types, imports"
	@echo "make bench  measure BM3D and the engine beside their peers (PyPI bm3d, if installed)"
	@echo "make docs   build docs/_build/index.html"

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/emdask demo

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest $(TESTS)

bench: .venv/installed-dev
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/bm3d.py

docs: .venv/installed-dev
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build
	@echo "docs/_build/index.html"

clean:
	rm -rf .venv emdask-demo docs/_build
