# payrelay: `make help` lists what can be done here. Each command does all of its own set-up.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check format unit faults bench howto lock json clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: setup ## set up, start the local stack, pay some orders end to end, print the proof, leave nothing running
	@$(RUN)/payrelay demo --orders 300

test: setup check ## set up, then every check and test that belongs in CI
	@$(RUN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25

check: $(READY) ## format, lint, types, import contracts: seconds
	@$(RUN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(RUN)/ruff check --quiet .
	@$(RUN)/mypy --no-error-summary
	@$(RUN)/lint-imports >.import_linter.log 2>&1 || { cat .import_linter.log; exit 1; }; tail -3 .import_linter.log; rm -f .import_linter.log

format: $(READY) ## rewrite the code to the house format
	@$(RUN)/ruff format --quiet . && $(RUN)/ruff check --quiet --fix .

unit: $(READY) ## the tests that need no stack
	@$(RUN)/python -m pytest tests/unit tests/contract -q

faults: setup ## the fault tests alone, and what stock Faust loses; SEEDS=10: ten random two-minute runs instead
	@$(RUN)/python -m pytest -s -m '' --seeds $(or $(SEEDS),0) tests/faults$(if $(SEEDS),/test_random_faults.py -k long)

bench: setup ## every benchmark, written to docs/performance.md
	@$(RUN)/python -m benchmarks.report

howto: setup ## run the tutorial and the recovery how-tos, and write what their commands print into them
	@$(RUN)/python -m pytest tests/e2e/test_recovery.py tests/e2e/test_tutorial.py --write-pages

json: $(READY) ## write the JSON Schema of the events again
	@$(RUN)/python -m schemas.export

lock: $(READY) ## resolve the Python packages again, with hashes and without addresses
	@$(RUN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --quiet --upgrade -o requirements.lock

setup: $(READY) ## .venv with the locked packages, and the stack's programs (checked by sha256)
	@$(RUN)/payrelay setup
.PHONY: setup

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "python3 (3.11 or newer) is not on the PATH; set PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) (once; about 120 MB)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN)/python -m pip install --disable-pip-version-check --require-hashes --no-deps -r requirements.lock 2>&1 | grep --line-buffered -E '^(Collecting|ERROR|Installing|Successfully)' | cut -c1-100; exit $${PIPESTATUS[0]}
	@$(RUN)/python -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps --editable .
	@touch $@

clean: ## stop the local stack and remove everything that set-up and runs have made
	@-[ -x $(RUN)/payrelay ] && $(RUN)/payrelay down --wipe
	@rm -rf $(VENV) .payrelay .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
