# `make demo` renders a small job end to end; `make test` passes the tests. Both install what they need into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
INSTALLED := $(VENV)/.installed
TEST_PROCESSES ?= 2

.PHONY: help install demo test chaos chaos-s3 lint format benchmark clean

help: ## Show what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(INSTALLED) ## Install into .venv, every package pinned

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## Render jobs/quickstart with a small built-in model and two workers
	$(VENV)/bin/ovi-ray weights tiny demo/ckpts
	$(VENV)/bin/ovi-ray render jobs/quickstart/job.yaml --ckpt-dir demo/ckpts --out demo/out --workers 2

test: install ## Run the tests
	$(VENV)/bin/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

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
