# `make help` lists what there is.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
BIN := .venv/bin
C_FILES := $(wildcard bpf/*.c bpf/*.h)

.PHONY: help demo test check format docs bench setup clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: ## set up what is missing, then watch a leaky server
	@scripts/setup
	@$(SUDO) $(BIN)/python -m tcptrace.lab.demo

test: ## set up what is missing, then run all tests (live ones need root)
	@scripts/setup dev
	@$(SUDO) env TCPTRACE_LIVE=$(TCPTRACE_LIVE) $(BIN)/python -m pytest

check: ## what must hold for every commit: style, types, layers, unit tests; no root
	@scripts/setup dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(BIN)/python -m pytest -q tests/unit

format: ## put Python and C into shape
	$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .
	$(BIN)/clang-format -i $(C_FILES)

docs: ## write the generated parts of docs/
	$(BIN)/python -m tests.generate_docs

bench: ## measure what it costs (a few minutes, root)
	@scripts/setup dev
	@$(SUDO) $(BIN)/python -m bench.cost

setup: ## only set up, with the tools for developers
	@scripts/setup dev

clean: ## remove the virtual environment and caches
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
