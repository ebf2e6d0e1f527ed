# Every target works on a machine that has only Python 3.11 (or newer), pip and make: the first one that runs creates
# .venv and installs into it; it is done again only when pyproject.toml changes.

PYTHON ?= $(shell for python in python3.11 python3 python3.14 python3.13 python3.12; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# Any arguments of `pip install`. pyproject.toml asks only for torch>=2.6.
TORCH ?= torch==2.14.1 torchvision==0.29.1

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

KILLS ?= 200
SEED ?= 0
MINUTES ?= 120
ARGS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test check campaign bench clean

help:  ## print this list
	@echo 'steadyolo: YOLO training that survives. Targets:'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables:'
	@echo '  PYTHON=python3.12         the interpreter that .venv is made from (3.11 or newer)'
	@echo '  TORCH="torch torchvision" what is installed as torch: any arguments of pip install'
	@echo '  ARGS="-x -k kill"         more arguments for demo and test'
	@echo '  WORKERS=2                 processes that test at once; 0 tests in one, and can be debugged'
	@echo '  KILLS= SEED= MINUTES=     how many kills, from which seed, and for how long (campaign)'

demo: $(VENV)/installed  ## install, then train, kill, resume and detect on a built-in data set
	$(BIN)/steadyolo demo $(ARGS)

test: $(VENV)/installed-dev  ## install, then run the whole test suite (under 25 minutes on 2 cores)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

check: $(VENV)/installed-dev  ## format, lint, types, layers, style and unit tests (under 90 seconds)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet -n $(WORKERS) -m 'not campaign and not slow and not gpu' tests/style tests/unit

campaign: $(VENV)/installed-dev  ## the long fault campaigns: KILLS kills, from SEED, for at most MINUTES
	$(BIN)/python bench/resume_exact.py --kills $(KILLS) --seed $(SEED) --minutes $(MINUTES)
	STEADYOLO_CAMPAIGN_SEED=$(SEED) $(BIN)/python -m pytest -m campaign -o timeout=0 || [ $$? -eq 5 ]  # 5: there are none

bench: $(VENV)/installed-dev  ## every script in bench/, one after the other; all are run, then failures are named
	@failed=; for script in $(filter-out bench/side_by_side.py bench/store_server.py bench/serving.py,$(wildcard bench/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

clean:  ## remove .venv and the tools' caches; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .npm_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment -------------------------------------------------------------------------------------------------

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo 'No Python 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python3.11 …'; exit 1; }
	@echo 'Creating $(VENV) with $(PYTHON)'
	@# Debian's Python comes without ensurepip; its pip can fill the new environment instead.
	@$(PYTHON) -m venv $(VENV) >/dev/null || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
		&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
		|| { rm -rf $(VENV); echo 'Could not create $(VENV). Install the venv module, on Debian: apt-get install python3-venv'; exit 1; }

$(VENV)/torch: | $(BIN)/python
	@echo 'Installing $(TORCH) (on Linux this may be a CUDA build of several GB)'
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/installed: pyproject.toml $(VENV)/torch
	@echo 'Installing steadyolo'
	@$(PIP) --editable .
	@$(require-opencv)
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/torch
	@echo 'Installing steadyolo and its development tools'
	@$(PIP) --editable '.[dev]'
	@$(require-opencv)
	@$(offer-chromium)
	@touch $@ $(VENV)/installed

# One test looks at the page of a server in a browser; where there is none it is skipped, and says so.
define offer-chromium
command -v chromium >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || { \
	echo 'Installing Chromium for the test of the page (left out where that fails)'; \
	{ timeout 240 apt-get update -qq && timeout 240 apt-get install -qq -y --no-install-recommends chromium; } >/dev/null 2>&1 || true; \
}
endef

# OpenCV's wheel needs two system libraries that bare servers and containers lack.
define require-opencv
$(BIN)/python -c 'import cv2' 2>/dev/null || { \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo 'Installing the system libraries that OpenCV needs'; \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends libgl1 libglib2.0-0 >/dev/null; \
	fi; \
	$(BIN)/python -c 'import cv2' || { \
		echo 'OpenCV does not load. Install its system libraries, on Debian or Ubuntu:'; \
		echo '  sudo apt-get install libgl1 libglib2.0-0'; exit 1; }; \
}
endef
