# Every target sets up what it needs first; setup is quick when nothing changed. `make help` lists the targets.
#   LOCK=cpu|gpu   which lock to install (default: gpu if this machine has an NVIDIA GPU, else cpu)
#   PROFILE=NAME   the labs' profile (default: tiny)
#   ARGS="..."     more arguments for the command that a target runs
#   PYTHON=PATH    the Python 3.11 that makes the environment
#   CHROMIUM=none  leaves out the tests that need a browser

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
# Waiting threads give way: on a busy machine spinning ones slow everything down many times over (labkit/engine.py).
export OMP_WAIT_POLICY ?= PASSIVE

VENV := .venv
BIN := $(VENV)/bin
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
LOCK ?= $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo gpu || echo cpu)
ifeq ($(filter $(LOCK),cpu gpu),)
$(error LOCK is "$(LOCK)"; use LOCK=cpu or LOCK=gpu)
endif
LOCKS := $(if $(filter cpu,$(LOCK)),requirements/torch-cpu.txt) requirements/$(LOCK).txt

# The stamps are named by the contents that they stand for and written last, so that neither an interrupted setup nor an
# older one is ever taken for a finished one. Another lock (or folder: scripts in .venv hold its path) means a new
# environment; another pyproject.toml only labkit.
key = $(shell { pwd; cat $(1); } | sha256sum | cut -c1-16)
INSTALLED := $(VENV)/.installed-$(LOCK)-$(call key,$(LOCKS))
KFP := .venv-kfp
KFP_READY := $(KFP)/.ready-$(call key,requirements/kfp.txt)
READY := $(VENV)/.ready-$(call key,$(LOCKS) pyproject.toml)

# One of two workers runs all that starts engines, one after another (tests/conftest.py).
SIDE_BY_SIDE := -n 2 --dist loadgroup
# Not named BROWSER: make would hand it down to JupyterLab, which opens what that names.
LEFT_OUT := $(if $(filter none,$(CHROMIUM)),--ignore=tests/browser)

.PHONY: help setup kfp chromium labs lab test test-all test-browser faults lint lock bench bench-full figures clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS=$$'\t' read -r name what; do
	  printf '  make %-12s %s\n' "$$name" "$$what"
	done

setup: $(READY) ## make .venv from the lock, and put labkit into it
	@:

kfp: $(KFP_READY) ## make .venv-kfp, for the pipeline of lab 08, from its lock
	@:

chromium:
	@[ "$(CHROMIUM)" != none ] || exit 0
	! command -v chromium > /dev/null || exit 0
	echo "Installing Debian's chromium, for the tests in a browser"
	as_root=$$([ "$$(id -u)" = 0 ] || echo sudo -n)
	export DEBIAN_FRONTEND=noninteractive
	log=$$(mktemp)
	{ $$as_root apt-get update && $$as_root apt-get install -y --no-install-recommends chromium fonts-liberation; } \
	  < /dev/null &> "$$log" && rm "$$log" || {
	  tail -5 "$$log" >&2
	  echo "Chromium could not be installed ($$log). Install the package chromium, or leave its tests out: CHROMIUM=none" >&2
	  exit 1
	}

labs: $(READY) $(KFP_READY) ## run all labs, print the table and the path of the report
	@$(BIN)/labkit run $(if $(PROFILE),--profile $(PROFILE)) $(ARGS)

lab: $(READY) $(KFP_READY) ## open JupyterLab at the first lab
	@$(if $(PROFILE),LABKIT_PROFILE=$(PROFILE)) $(BIN)/jupyter lab $(ARGS) notebooks/00_start_here.ipynb

test: $(READY) $(KFP_READY) chromium ## run the tests of CI's tier
	@$(BIN)/python -m pytest -m "not long" $(SIDE_BY_SIDE) $(LEFT_OUT) $(ARGS)

test-all: $(READY) $(KFP_READY) chromium ## run all tests, the long tier too
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(LEFT_OUT) $(ARGS)

test-browser: $(READY) $(KFP_READY) chromium ## run those of CI's tier that need a browser
	@$(BIN)/python -m pytest -m "not long" tests/browser $(ARGS)

faults: $(READY) $(KFP_READY) chromium ## inject the faults of RELIABILITY.md, and count what was left or lost
	@$(BIN)/python -m pytest -m faults $(ARGS)

lint: $(READY) ## ruff (notebooks too), mypy, the floors, the labs' contract and the generated tables
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python -m tools.contract
	$(BIN)/python -m tools.tables --check

lock: $(READY) ## compile the locks from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(BIN)/python -m tools.lock --torch-index $(TORCH_CPU_INDEX) $(ARGS)

bench: $(READY) $(KFP_READY) ## measure speed and memory against what labkit replaces, as far as that takes minutes
	@$(BIN)/python -m benchmarks $(ARGS)

bench-full: $(READY) $(KFP_READY) ## measure all of it, and how cost grows, and write benchmarks/results.json
	@$(BIN)/python -m benchmarks --full --keep $(ARGS)

figures: $(READY) ## write the last run's times and figures into the notebooks' headers and the README
	@$(BIN)/python -m tools.navigation $(ARGS)
	$(BIN)/python -m tools.tables $(ARGS)

clean: ## remove .venv, .venv-kfp, workspace/, caches and build products
	@rm -rf $(VENV) $(KFP) workspace build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -type d '(' -name __pycache__ -o -name .ipynb_checkpoints ')' -prune -exec rm -rf '{}' +

$(INSTALLED):
	@[ "$$(uname -sm)" = "Linux x86_64" ] || {
	  echo "The locks are for Linux on x86-64, and this is $$(uname -sm): use WSL2 or a container (README, Troubleshooting)." >&2
	  exit 1
	}
	is311='import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))'
	found=
	for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3); do
	  if "$$python" -c "$$is311" 2>/dev/null; then found=$$python; break; fi
	done
	[ -n "$$found" ] || {
	  echo "No Python 3.11 with its venv module is on the PATH$(if $(PYTHON), (PYTHON=$(PYTHON))): the locks are compiled for it." >&2
	  echo "Install it (Debian and Ubuntu: apt install python3.11 python3.11-venv), or name one: make PYTHON=/path/to/python3.11 ..." >&2
	  exit 1
	}
	echo "Making $(VENV) with $$found from requirements/$(LOCK).txt (a minute or a few, once)"
	rm -f $(VENV)/.installed-* $(VENV)/.ready-*
	"$$found" -m venv --clear $(VENV)
	$(BIN)/python tools/install.py $(LOCKS) $(if $(filter cpu,$(LOCK)),--index $(TORCH_CPU_INDEX))
	touch $@

$(READY): $(INSTALLED)
	@echo "- labkit itself, editable"
	rm -f $(VENV)/.ready-*
	$(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	touch $@
	echo "Ready: $(VENV)"

$(KFP_READY): $(READY) requirements/kfp.txt
	@echo "Making $(KFP) from requirements/kfp.txt (half a minute, once)"
	rm -f $(KFP)/.ready-*
	$(BIN)/python -m venv --clear $(KFP)
	$(BIN)/python tools/install.py requirements/kfp.txt --python $(KFP)/bin/python
	touch $@
