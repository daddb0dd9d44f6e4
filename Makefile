# Counterfoil. `make` lists the targets. Python 3.11+ and make are all that must be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# SDK versions the tests call beside the locked one; each lies alone in a directory of its own.
SDK_VERSIONS := 1.14.0 1.20.0 1.33.0
SDKS := $(SDK_VERSIONS:%=.sdk/%/.ready)
COMPILED := $(VENV)/.compiled

.DEFAULT_GOAL := help
.PHONY: damage help run test search check docs format demo bench crash powercut diskfaults backfill-campaign fuzz overload audit-dependencies conformance lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

run: $(READY) ## Set everything up and start the gateway with embedded defaults
	@test -e counterfoil.toml || $(BIN)/counterfoil init
	@exec $(BIN)/counterfoil serve

test: $(COMPILED) $(SDKS) ## Set everything up and pass the tests
	@tests/install-components
	@$(BIN)/python -m compileall -q src tests
	@$(BIN)/pytest -n auto --dist worksteal $(ARGS)

search: $(COMPILED) ## Try the tests of properties with new random examples
	@$(BIN)/pytest -n auto --dist worksteal -m hypothesis --hypothesis-profile=search $(ARGS)

check: $(READY) ## Lint, types, import rules and links of the docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m docs._tools check

docs: $(READY) ## Make the pages of docs/ that are made from the code
	@$(BIN)/python -m docs._tools write

format: $(READY) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

demo: $(READY) ## Send the CDNOW purchases through the official SDK, then by backfill; compare the sums
	@$(BIN)/python examples/cdnow/demo.py
	@$(BIN)/python examples/cdnow/backfill_demo.py

bench: $(READY) ## Measure the speed, with the floors beside it
	@$(BIN)/python -m bench $(ARGS)

damage: $(READY) ## Damage files of a server that stands still; it must live with it: ARGS=--rounds=20
	@$(BIN)/python -m tests.e2e.damage $(ARGS)

crash: $(READY) ## Kill and freeze every process and destination while clients send: ARGS="--minutes 60"
	@$(BIN)/python -m tests.e2e.crash $(ARGS)

powercut: $(READY) ## Cut the power of the whole server while clients send: ARGS="--rounds 20", "--minutes 60 --lives 500"
	@$(BIN)/python -m tests.e2e.powercut $(ARGS)

diskfaults: $(READY) ## Let the server's disk fail, fill up and be slow while clients send: ARGS="--minutes 30"
	@$(BIN)/python -m tests.e2e.powercut --faults $(ARGS)

backfill-campaign: $(READY) ## Backfill through a dropping proxy, sender and server killed: ARGS="--rows 10000000"
	@$(BIN)/python -m tests.e2e.backfill_campaign $(ARGS)

fuzz: $(READY) ## Fuzz the HTTP port of a whole server for half an hour: ARGS="--minutes 5"
	@$(BIN)/python -m tests.e2e.fuzz $(ARGS)

overload: $(READY) ## Send more than a server can take, beside slow and broken connections: ARGS="--minutes 5"
	@$(BIN)/python -m tests.e2e.overload $(ARGS)

audit-dependencies: $(READY) ## Look for known faults in what is locked, by pip-audit and its database
	@$(BIN)/uv tool run --quiet pip-audit --version >/dev/null || { echo "pip-audit can't be had from the package index"; exit 1; }
	@$(BIN)/uv tool run --quiet pip-audit --strict --requirement requirements.lock --require-hashes --disable-pip --progress-spinner off $(ARGS)

conformance: $(READY) ## Test a server of our own with the conformance kit: ARGS="--slow --junit conformance.xml"
	@$(BIN)/python -m tests.conformance_kit.own $(ARGS)

lock: $(READY) ## Resolve the dependencies anew into requirements.lock
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --group dev --override requirements.overrides pyproject.toml -o requirements.lock

clean: ## Remove what make set up
	rm -rf $(VENV) .sdk .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Counterfoil needs Python 3.11 or newer; $(PYTHON) is older. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "This Python comes without venv: install the package python3-venv, then run make again."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(READY): requirements.lock pyproject.toml | $(VENV)/bin/python
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

# The tests start hundreds of processes; where PYTHONDONTWRITEBYTECODE is set each would compile every module anew.
# Its status does not count: packages ship files that are no Python of this version.
$(COMPILED): $(READY)
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@

.sdk/%/.ready: $(READY)
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --target .sdk/$* oursprivacy-client==$*
	@touch $@
