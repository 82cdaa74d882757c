# Every target creates .venv and installs what it needs; only Python 3.11 or later must be there.
PYTHON ?= python3
BIN := .venv/bin
TESTS ?= -n 2 --dist worksteal
# The extra for the card's driver: cuda13 or cuda12.
CUDA ?= cuda13
RESULTS := benchmarks/results

.PHONY: help demo test lint bench gpu docs clean

help:
	@echo "make demo   install, denoise simulated particles and a micrograph, write emdask-demo/report.html"
	@echo "make test   install, run every gate and test"
	@echo "make lint   the gates alone: style, types, imports"
	@echo "make bench  measure the methods, the engine and the store beside their peers (where installed)"
	@echo "make gpu    on a machine with an NVIDIA card: its tests and its figures (CUDA=cuda12 for CUDA 12)"
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

# Tests that run side by side share the cores: a thread each.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS)

bench: .venv/installed-dev
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/bm3d.py
	$(BIN)/python benchmarks/ksvd.py
	$(BIN)/python benchmarks/ddtf.py
	$(BIN)/python benchmarks/filters.py
	$(BIN)/python benchmarks/deconvolution.py
	$(BIN)/python benchmarks/projection.py
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/reconstruction.py
	$(BIN)/python benchmarks/cwf.py --tables errors times
	$(BIN)/python benchmarks/classify.py --tables screen states mixed
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python benchmarks/pipeline.py --device cpu

# Peers are optional: one that cannot be installed is left out of the table. Figures are written
# whatever becomes of the tests.
gpu: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,$(CUDA)]'
	-$(BIN)/python -m pip install --quiet 'bm3d-triton[cuda]'
	-$(BIN)/python -m pip install --quiet bm3d-cupy
	-$(BIN)/python -m pip install --quiet 'vapoursynth==76' vapoursynth-bm3dcuda
	tests=0; figures=0; \
	$(BIN)/python -m pytest -m gpu || tests=$$?; \
	$(BIN)/python benchmarks/bm3d_gpu.py --out $(RESULTS)/bm3d_gpu.md || figures=$$?; \
	$(BIN)/python benchmarks/ksvd_gpu.py --out $(RESULTS)/ksvd_gpu.md || figures=$$?; \
	$(BIN)/python benchmarks/projection_gpu.py --out $(RESULTS)/projection_gpu.md || figures=$$?; \
	$(BIN)/python benchmarks/cwf.py --device cuda --tables times --out $(RESULTS)/cwf_gpu.md || figures=$$?; \
	$(BIN)/python benchmarks/pipeline.py --device cuda --out $(RESULTS)/pipeline_gpu.md || figures=$$?; \
	$(BIN)/python benchmarks/pipeline.py --device cuda --method copy --out $(RESULTS)/pipeline_gpu_copy.md || figures=$$?; \
	$(BIN)/python benchmarks/codecs.py --out $(RESULTS)/codecs_gpu_machine.md || figures=$$?; \
	exit $$((tests ? tests : figures))

docs: .venv/installed-dev
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build
	@echo "docs/_build/index.html"

clean:
	rm -rf .venv emdask-demo docs/_build
