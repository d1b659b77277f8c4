# The two commands a newcomer needs are `make demo` and `make test`; `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
comma := ,

# Installs the project with the extras named in $(1); shows one line per package that has to be fetched, and
# all of pip's output if it fails.
define install
	@echo "Installing caspl-serve[$(1)] into $(VENV) (the first time fetches torch: several minutes, 6 GB on disk)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
	    --constraint constraints.txt --editable ".[$(1)]" 2>&1 | tee $(LOG) \
	    | sed -un -E -e 's!^(Collecting|Processing) ([^ ]*/)?([^ ]*).*!  \3!p' -e 's/^Installing collected packages.*/  unpacking .../p' \
	    || { tail -n 25 $(LOG); echo "Installation failed; the whole log is $(LOG)"; exit 1; }
endef

# The lock file $(1) of the extras $(2): the versions of constraints.txt for every platform, with the hashes of their files.
define lock
	@UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml $(addprefix --extra ,$(2)) -c constraints.txt \
	    --generate-hashes --universal --python-version 3.11.5 --quiet --output-file $(1)
	@echo "wrote $(1)"
endef

.PHONY: help demo test test-all lint format docs fuzz crash mutants soak image lock audit sbom licences demo-train clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(VENV)/.installed-serve ## set up, serve two demo domains, measure them plain, boosted and fitted, swap under load
	@$(BIN)/python -P -m benchmarks.demo.run

test: $(VENV)/.installed-dev ## run the tests but the slow ones (CPU; GPU tests run on a simulated device)
	$(BIN)/python -P -m pytest -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev ## run the slow tests as well: kills, restarts under load, training runs
	$(BIN)/python -P -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## check style, types, import contracts, spelling and the links of docs/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/zensical build --strict

format: $(VENV)/.installed-dev ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev ## rewrite docs/reference/ and the frozen OpenAPI document from the code, build the site in site/
	$(BIN)/python -P -m tests.service.http.test_openapi
	$(BIN)/python -P -m tests.documentation.reference
	$(BIN)/zensical build --strict

fuzz: $(VENV)/.installed-fuzz ## send all hostile input to parsers and a server, fuzz for SECONDS=300 (results in build/fuzz)
	$(BIN)/python -P -m tests.hostile.fuzz --seconds $(or $(SECONDS),300) $(if $(OUT),--out $(OUT))

crash: $(VENV)/.installed-dev ## interrupt everything that writes for SECONDS=300 (needs strace; results in build/crash)
	$(BIN)/python -P -m tests.crash.run --seconds $(or $(SECONDS),300) $(if $(OUT),--out $(OUT))

mutants: $(VENV)/.installed-dev ## remove one safeguard at a time and show which test fails (minutes; results in build/mutants)
	$(BIN)/python -P -m tests.crash.mutants $(if $(OUT),--out $(OUT))

soak: $(VENV)/.installed-dev ## serve load, invalid images and swaps for MINUTES=5 (results in build/soak)
	$(BIN)/python -P -m tests.hostile.soak --minutes $(or $(MINUTES),5) $(if $(OUT),--out $(OUT))

image: $(VENV)/.installed-dev ## build the container image without a daemon, check its files, run it read-only (ARGS=--help)
	$(BIN)/python -P -m tests.deploy.build_image $(ARGS)

lock: $(VENV)/.installed-supply-chain ## write requirements*.lock: the versions of constraints.txt, with hashes
	$(call lock,requirements.lock,serve)
	$(call lock,requirements-dev.lock,dev gpu-decode supply-chain)

audit: $(VENV)/.installed-supply-chain ## look up all locked packages in an advisory database
	@$(BIN)/python -P .ci/audit.py requirements.lock requirements-dev.lock

sbom: $(VENV)/.installed-supply-chain ## write build/sbom.cdx.json: the service, its packages with hashes, and their dependencies, CycloneDX 1.6
	@$(BIN)/python -P .ci/sbom.py requirements.lock build/sbom.cdx.json

licences: $(VENV)/.installed-supply-chain ## list the licences of the packages that the service needs
	@$(BIN)/pip-licenses --python $(BIN)/python --from mixed --format markdown --with-urls \
	    --packages $$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p' requirements.lock)

demo-train: $(VENV)/.installed-dev ## rebuild the demo's student, teacher, bundles and numbers (more than an hour on two cores)
	$(BIN)/python -P -m training.demo all

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist site .cache *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: name a Python >= 3.11, as in: make PYTHON=python3 demo"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than 3.11: name another, as in: make PYTHON=python3.12 demo"; exit 1; }
	@# Without ensurepip venv fails half way, and the Python it leaves behind would pass for an environment next time.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# A stamp newer than pyproject.toml and constraints.txt means: installed, nothing to do.
$(VENV)/.installed-serve: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,serve)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,dev)
	@touch $@ $(VENV)/.installed-serve

$(VENV)/.installed-fuzz: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,fuzz)
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed-serve

$(VENV)/.installed-supply-chain: $(VENV)/.installed-serve
	$(call install,serve$(comma)supply-chain)
	@touch $@
