# `make demo` renders a small job end to end; `make test` runs the tests. Both install what they need into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
INSTALLED := $(VENV)/.installed
TEST_PROCESSES ?= 3
APT := apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20
PYTEST := $(VENV)/bin/python -m pytest
NOT_PURE := ovi workers devices cli export test_retry.py
PARALLEL = --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test-fast test test-cluster test-browser gpu chaos chaos-s3 lint format benchmark clean

help: ## Show what there is to make
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED) ## Install into .venv, every package pinned

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## Render jobs/quickstart with a small built-in model and two workers
	$(VENV)/bin/ovi-ray weights tiny demo/ckpts
	$(VENV)/bin/ovi-ray render jobs/quickstart/job.yaml --ckpt-dir demo/ckpts --out demo/out --workers 2

test-fast: install ## Run the pure unit tests: no model, Ray or S3 server; under a minute
	$(PYTEST) $(PARALLEL) tests/unit $(addprefix --ignore=tests/unit/,$(NOT_PURE)) -m "not ray and not s3 and not slow"

test: install ## Run every test that needs no GPU; about ten minutes
	$(PYTEST) $(PARALLEL) -m "not gpu and not cluster and not browser"

# Each process has a Ray cluster of its own.
test-cluster: TEST_PROCESSES := 2
test-cluster: install ## Run the tests on a real Slurm, a real Ray head and of images, which it installs (as root); about fourteen minutes
	@{ command -v slurmctld && command -v ip && command -v pgrep; } >/dev/null || { [ "$$(id -u)" -eq 0 ] && $(APT) update && \
		$(APT) install -y --no-install-recommends slurmctld slurmd slurm-client iproute2 procps; } || \
		echo "Slurm, ip and pgrep cannot all be installed here: the tests that need them are skipped"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,cluster]' || \
		echo "ray[default] cannot be installed here: the tests that need it are skipped"
	$(PYTEST) $(PARALLEL) -rs tests/cluster

test-browser: install ## Run the tests of the report in a real Chromium, which it installs (as root); a minute
	@command -v chromium >/dev/null || { [ "$$(id -u)" -eq 0 ] && $(APT) update && \
		$(APT) install -y --no-install-recommends chromium; } || echo "Chromium cannot be installed here: its tests are skipped"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,browser]' || \
		echo "Playwright cannot be installed here: the browser's tests are skipped"
	$(PYTEST) -s -rs tests/browser

gpu: install ## Run the tests that need a GPU, and measure the model at full size; without a GPU, only say so
	@$(PYTEST) tests/gpu; status=$$?; [ $$status -eq 5 ] || [ $$status -eq 0 ] || exit $$status # 5: no tests were left
	@$(VENV)/bin/python benchmarks/gpu.py

chaos: install ## Kill a long job 200 times and see that nothing is lost
	$(VENV)/bin/python -m tests.chaos.nightly

chaos-s3: install ## The same, written to a real S3 server
	$(VENV)/bin/python -m tests.chaos.nightly --store

lint: install ## Run the linters
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache --no-logo

format: install ## Format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## Remove what the targets made
	rm -rf $(VENV) demo
