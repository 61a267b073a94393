# Every target does the set-up that it needs: Python 3.11 with venv, and make, are enough to start.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := .venv/bin/
export UV_PYTHON_DOWNLOADS := never

help:  ## what can be made
	@grep -hE '^[a-z0-9]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 10

setup: .venv/.ready  ## the locked environment in .venv

demo: setup  ## the whole product on this machine, without Kubernetes, in under 3 minutes
	$(RUN)wva-adapter demo $(ARGS)

serve: setup  ## the adapter, with CONFIG=file
	$(RUN)wva-adapter serve --config $(or $(CONFIG),$(error want CONFIG=your.yaml; see wva-adapter config --print)) $(ARGS)

fmt: setup  ## format, and mend what can be mended
	$(RUN)ruff format . && $(RUN)ruff check --fix .

check: setup  ## format, lint, types, import contracts
	$(RUN)ruff format --check . && $(RUN)ruff check . && $(RUN)mypy && $(RUN)lint-imports

test: setup  ## the tests; COVERAGE=1 measures branch coverage, which takes twice as long
	$(RUN)$(if $(COVERAGE),coverage run -m )pytest -n 2 --dist worksteal $(ARGS)
	$(if $(COVERAGE),$(RUN)coverage combine -q && $(RUN)coverage report --skip-covered --skip-empty)

e2e: setup  ## a real control plane moves real pods; needs Go
	$(RUN)python -m tests.e2e.binaries && $(RUN)pytest -o addopts= -s -ra tests/e2e $(ARGS)

bench: setup  ## the figures, side by side, into build/bench.json
	$(RUN)python -m tests.bench $(ARGS)

image: setup  ## the container image, or its steps in a clean folder where no engine runs
	$(RUN)python -m tests.image $(ARGS)

.venv/.ready: pyproject.toml uv.lock $(filter .uv/%,$(UV))
	$(UV) sync --locked --quiet --python "$$(command -v python3)" && touch $@

.uv/bin/uv:
	python3 -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.13,<0.14'

.PHONY: help setup demo serve fmt check test e2e bench image
