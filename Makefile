# make demo: see it work · make test: what CI runs · make help: the rest
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
SHELL := /bin/bash
DIGITS := $(wildcard ../shared/data/spoken-digits)
ifneq ($(DIGITS),)
export SPOKEN_DIGITS_DIR ?= $(abspath $(DIGITS))
endif

# images often set it: then every start of every command compiles the project anew, 10 to 15 % of what the tests cost
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check env system slow e2e chaos curves same-bits bench image image-push image-run docs clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: env system ## train a tiny Whisper on synthetic speech, here, from nothing to a WER
	$(VENV)/bin/podctl train --config configs/demo.yaml --local --yes

test: env system check ## what CI runs: format, lint, types, import contracts, the quick tests
	$(PY) -m pytest -n 4 -m "not slow and not gpu"

check: env ## format, lint, strict types, import contracts
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

slow: env system ## the long tests: every kill point, two processes, the whole data
	$(PY) -m pytest -m "slow"

e2e: env system ## the whole way through the command line
	$(PY) -m pytest -m "e2e"

chaos: env system ## kill -9 at every boundary of a save, and at random moments
	$(PY) -m pytest -m "slow" tests/trainer/test_kill.py

curves: env ## write the loss curves again that tests/trainer/test_curves.py meets
	$(PY) tests/trainer/write_curves.py

BASE ?= origin/main
same-bits: env ## does the working tree train as another commit does, bit for bit: make same-bits BASE=origin/main
	$(PY) tools/same_bits.py $(BASE)

# wire.py needs root, data.py rows 4 GB of disk, gpu.py a GPU: those are run by hand
BENCHES := cli_start.py features.py manifest.py transducer.py data.py+audio training.py+short training.py+long training.py+wer evaluation.py
bench: env ## the speeds that we claim, measured on this machine: an hour or two, and nothing else should run
	@set -e; for f in $(BENCHES); do echo "== $$f"; PYTHONPATH=. $(PY) benchmarks/$${f//+/ }; done

env: $(VENV)/.installed ## the virtual environment
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is `$(PYTHON) -V 2>&1` → make PYTHON=python3.12 …" >&2; exit 9; }
	@PYTHON=$(PYTHON) tools/system-packages.sh
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	touch $@

system: ## tmux, rsync, OpenSSH, espeak-ng, by the system's package manager
	@PYTHON=$(PYTHON) tools/system-packages.sh

IMAGE ?= podctl:dev
image: ## the container image of a pod (Docker or Podman): make image IMAGE=registry/me/podctl:1
	@image/engine.sh build $(IMAGE)

image-push: ## send it to its registry
	@image/engine.sh push $(IMAGE)

image-run: ## try it here, ssh on port 2222
	@image/engine.sh run $(IMAGE)

docs: env ## the pages that are generated from the code: docs/reference
	PYTHONPATH=. $(PY) tools/reference.py

clean: ## remove what the tools left, not the runs
	rm -rf .pytest_cache .mypy_cache .ruff_cache *.egg-info
