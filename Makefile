# signalmesh: make setup | up | check | test | test-slow | test-matrix | test-docker | lint | types | mutation | bench | bench-peers | check-supply | fuzz | schema | reference | pictures | docs | lock | clean
#   make up ARGS="--port 0"        arguments for the command
#   make test ARGS="-k outbox"     arguments for pytest
#   make setup VENV=dir            another environment than .venv (a directory; it is created)
#   make setup PYTHON=python3.12   another interpreter (3.11 or newer)

VENV ?= .venv
PYTHON ?=
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
PARALLEL := $(PYTEST) -n 2 --dist worksteal
# Whole swarms wait more than they compute: more of them at a time than there are cores.
SWARMS := $(PYTEST) -n 3 --dist worksteal
UV_COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-config --quiet

.DEFAULT_GOAL := help
.PHONY: help setup up test test-slow test-matrix test-docker lint types check mutation bench bench-peers check-supply fuzz schema reference pictures docs lock clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,5p'

setup: $(STAMP)

# Everything of the lock files, each file checked against its hash, and the project itself in editable form. One dependency
# has no wheel: what builds it is installed first, since pip checks no hash of what it fetches for an isolated build.
# The lock directory keeps two makes at once from installing into one environment; the second then finds it done.
$(STAMP): requirements-dev.lock requirements-install.lock pyproject.toml
	@set -eu; \
	usable() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	mkdir -p "$(VENV)"; \
	waited=0; \
	until mkdir "$(VENV)/.installing" 2>/dev/null; do \
		owner=$$(cat "$(VENV)/.installing/pid" 2>/dev/null || true); \
		if { [ -n "$$owner" ] && ! kill -0 "$$owner" 2>/dev/null; } || [ $$waited -ge 900 ]; then \
			rm -rf "$(VENV)/.installing"; continue; \
		fi; \
		[ $$waited -gt 0 ] || echo "another make is installing into $(VENV): waiting for it"; \
		waited=$$((waited + 1)); sleep 1; \
	done; \
	echo $$$$ >"$(VENV)/.installing/pid"; \
	trap 'rm -rf "$(VENV)/.installing"' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
	if [ -e "$@" ] && [ -z "$$(find $^ -newer "$@")" ]; then exit 0; fi; \
	if ! usable "$(BIN)/python"; then \
		found=; wanted="$(or $(PYTHON),python3.13 python3.12 python3.11 python3)"; \
		for candidate in $$wanted; do \
			if usable "$$candidate"; then found=$$candidate; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "signalmesh needs Python 3.11 or newer; there is none by the name of: $$wanted" >&2; \
			echo "Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
		fi; \
		if ! "$$found" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
			echo "$$found has no venv module (Debian and Ubuntu: apt install python3-venv); install it," >&2; \
			echo "or name another interpreter: make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
		fi; \
		echo "creating $(VENV) with $$("$$found" --version)"; \
		"$$found" -m venv "$(VENV)"; \
	fi; \
	echo "installing the locked requirements into $(VENV)"; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_REQUIRE_VIRTUALENV=0; \
	"$(BIN)/python" -m pip install --quiet --require-hashes -r requirements-install.lock; \
	"$(BIN)/python" -m pip install --quiet --require-hashes --no-build-isolation -r requirements-dev.lock; \
	"$(BIN)/python" -m pip install --quiet --no-deps --no-build-isolation -e .; \
	touch "$@"

up: setup
	@exec $(BIN)/signalmesh up $(ARGS)

test: setup
	$(PARALLEL) -m "not slow and not docker and not matrix and not e2b" $(ARGS)

# Three tests at a time, then those that measure times or limits, one at a time. ARGS may leave one of the two runs without
# a test: pytest then ends with 5.
test-slow: setup
	$(SWARMS) -m "slow and not matrix and not serial" $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -m "slow and not matrix and serial" $(ARGS) || [ $$? -eq 5 ]

# Every fault of docs/fault-matrix.md. One of them: make test-matrix ARGS='-k "stop and host and load"'
test-matrix: setup
	$(PARALLEL) -m "matrix and not serial" $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -m "matrix and serial" $(ARGS) || [ $$? -eq 5 ]

# docker compose up, for real: needs a Docker engine with Compose v2, and root.
test-docker: setup
	$(PYTEST) -m docker $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: setup
	$(BIN)/mypy --cache-dir $(VENV)/.mypy_cache

check: lint types test

# Mutants in a copy of the checkout, judged by the quick tests: build/mutation/results.md. For example:
# make mutation ARGS="--sample 50 --seed 2 bus/durable"; after new tests, for the survivors: make mutation ARGS=--again
mutation: setup
	$(BIN)/python -m tests.mutation $(ARGS)

bench: setup
	$(BIN)/python -m benchmarks $(ARGS)

# The swarm beside other software: an environment for each in build/peers, then all of them in turn; about a quarter of an hour.
bench-peers: setup
	$(BIN)/python -m benchmarks.peers.environments
	$(BIN)/python -m benchmarks peers $(ARGS)

# Known vulnerabilities of the locked requirements, and build/sbom.cdx.json (CycloneDX). Its tools have an environment of
# their own. For example: make check-supply ARGS="--ignore-vuln CVE-2020-28493"
SUPPLY := build/supply
$(SUPPLY)/.installed: requirements-supply.lock | setup
	$(BIN)/python -m venv --clear $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-supply.lock
	@touch $@

check-supply: $(SUPPLY)/.installed
	@$(SUPPLY)/bin/python -m tests.supply $(ARGS)

# Every parser of foreign bytes, by coverage: build/fuzz/results.md. Atheris has a directory of its own, and packages for some
# interpreters only. For example: make fuzz ARGS="--seconds 600 payload snapshot"
FUZZ := build/fuzz
$(FUZZ)/.installed: requirements-fuzz.lock | setup
	@mkdir -p $(FUZZ)
	@rm -rf $(FUZZ)/atheris
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
		--target $(FUZZ)/atheris -r requirements-fuzz.lock || echo "atheris cannot be installed here" >&2
	@touch $@

fuzz: $(FUZZ)/.installed
	@PYTHONPATH=$(FUZZ)/atheris $(BIN)/python -m tests.fuzz $(ARGS)

schema: setup
	$(BIN)/python -m coordinator.cli.json_schema

# docs/reference, from the code.
reference: setup
	$(BIN)/python -m docs.generate

# The pictures of docs/assets, of a swarm that this runs for a minute.
pictures: setup
	$(BIN)/python -m docs.generate.pictures

# The documentation site, into build/docs; a broken link ends it with an error.
docs: setup reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/docs $(ARGS)

# The lock files hold versions and hashes only, no address, for every platform and Python >= 3.11.
# Kept versions stay; make lock ARGS=--upgrade takes the newest.
lock: setup
	$(UV_COMPILE) $(ARGS) pyproject.toml -o requirements.lock
	$(UV_COMPILE) $(ARGS) pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock
	$(UV_COMPILE) $(ARGS) --group build -c requirements-dev.lock -o requirements-build.lock
	$(UV_COMPILE) $(ARGS) --group install -c requirements-dev.lock -o requirements-install.lock
	$(UV_COMPILE) $(ARGS) --group wss -c requirements-dev.lock -o requirements-wss.lock
	$(UV_COMPILE) $(ARGS) --group supply -c requirements-dev.lock -o requirements-supply.lock
	$(UV_COMPILE) $(ARGS) --group fuzz -o requirements-fuzz.lock
	for peer in nats-py faststream autogen-core ray; do \
		$(UV_COMPILE) $(ARGS) --group peer-$$peer -o benchmarks/peers/$$peer.lock || exit 1; \
	done

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find agents bus coordinator tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
