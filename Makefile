# Every target sets itself up in .venv: a fresh clone needs nothing but Python 3.11 or newer, with its venv module (from
# 3.13 on a C++ compiler and Python's headers, too: fastText has no wheel there).
PYTHON ?= python3
BIN := .venv/bin
BUDGET := $(if $(filter 1,$(SMOKE)),smoke,demo)
QUICK := not slow and not slurm and not gpu and not soak

# Without it pytest rewrites every test again in each of its processes, and each rank compiles our modules: seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check soak lint docs generate gpu-check help

help:
	@echo "make demo    plan, train, audit on this machine: minutes on two cores (SMOKE=1: a shorter one, for tests)"
	@echo "make check   format, lint, types, the quick tests"
	@echo "make test    format, lint, types, every test but the soak"
	@echo "make soak    what is random, exhaustive or long"
	@echo "make gpu-check  a node's first hour: doctor, kernels, parity over its GPUs, kill and resume, MFU; one file of results"
	@echo "make docs    the documentation, into site/; python3 -m http.server -d site shows it, search included"
	@echo "make generate  JSON Schemas, reference pages, the page of commands and the laws' gradients, from their sources"

# A forecast that is missed (status 1) is a result of the demo; whatever else goes wrong is a failure.
demo: .venv/.set-up
	@status=0; $(BIN)/run specs/$(BUDGET).yaml || status=$$?; \
	ls -1 $(CURDIR)/plans/$(BUDGET)/*.html 2>/dev/null | sed 's/^/report: /'; [ $$status -eq 1 ] || exit $$status

# Five processes on two cores, since the four whose tests are SLURM's mostly wait.
test: lint
	$(BIN)/pytest -n 5 -m "not soak"

check: lint
	$(BIN)/pytest -n 2 -m "$(QUICK)"

soak: .venv/.set-up
	$(BIN)/pytest -n 2 -m soak

gpu-check: .venv/.set-up
	$(BIN)/python -m bench.gpu_check

lint: .venv/.set-up
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

docs: .venv/.docs
	$(BIN)/zensical build --strict --clean

generate: .venv/.set-up
	$(BIN)/python -m specs.document.schemas
	$(BIN)/python -m specs.document.reference
	$(BIN)/python -m tests.support.commands_page
	$(BIN)/python -m tests.support.derived_laws

.venv/.docs: .venv/.set-up
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

# A .venv that is whole is kept and brought up to date; one that is absent, cut off or of a vanished Python is made anew.
.venv/.set-up: pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
			{ echo "isoplan needs Python 3.11 or newer, and $(PYTHON) is not; name one that is: make PYTHON=python3.11"; exit 1; }; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
			{ echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }; \
		$(PYTHON) -m venv --clear .venv; } >&2
	@echo "setting up .venv: about 3 GB, a few minutes the first time"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
