# Every target does the set-up that it needs: Python 3.11 with venv, and make, are enough to start.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := .venv/bin/
export UV_PYTHON_DOWNLOADS := never

help:  ## what can be made
	@grep -hE '^[a-z0-9-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 12

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
	$(RUN)python -m tests.e2e.binaries && $(RUN)pytest -o addopts= -ra -n 2 --dist loadgroup --durations 20 tests/e2e $(ARGS)

e2e-engine: setup  ## a real vLLM on the CPU, measured; 6 GB the first time, an hour
	PATH="$(abspath $(dir $(UV))):$$PATH" $(RUN)python -m tests.engine $(ARGS)

bench: setup  ## the figures, side by side, into build/bench.json
	$(RUN)python -m tests.bench $(ARGS)

SIMULATE = $(RUN)wva-adapter simulate --prior-error 2 --seeds 0-2 --jobs 2
OURS := demand demand-frugal demand-premium
STRONGEST := $(OURS) inflight-8 inflight-16 slo-aware knative clairvoyant
EVERYBODY := $(STRONGEST) tokens saturation queue-0 queue-300 guard pool-saturation inflight-24 inflight-64 \
	token-aware dynamo-throughput dynamo-latency apa hpa-cpu80 hpa-gpu80 hpa-q3kv60 \
	hpa-q3kv60-throttled wva-v1 wva-v2 static-peak
sim: setup  ## every scenario under the laws that people run: tables and pages under build/, 20 minutes on two cores
	mkdir -p build
	$(SIMULATE) S1 S1b S1c S2 S3 S4b S5 S6 $(EVERYBODY:%=--policy %) --json build/sim.json --html build/sim.html
	$(RUN)python -m tests.figures.headline build/sim.json build/headline.svg | tee build/headline.md
	$(SIMULATE) S2p S4 SA MIX SHIFT BLIND-gateway BLIND-engines TWO LOOP LEAD-7 LEAD-96 LEAD-158 LEAD-300 \
		NODE SPOT RESTART ZERO BATCH PREFIX 70B $(STRONGEST:%=--policy %) --json build/sim-more.json --html build/sim-more.html

paper: setup  ## the paper's figures 2 to 6 with our numbers and the authors' claims, as SVG under build/paper
	$(RUN)python -m tests.figures.paper

image: setup  ## the container image, or its steps in a clean folder where no engine runs
	$(RUN)python -m tests.image $(ARGS)

.venv/.ready: pyproject.toml uv.lock $(filter .uv/%,$(UV))
	$(UV) sync --locked --quiet --python "$$(command -v python3)" && touch $@

.uv/bin/uv:
	python3 -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.13,<0.14'

.PHONY: help setup demo serve fmt check test e2e e2e-engine bench sim paper image
