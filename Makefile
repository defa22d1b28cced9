# The front door. `make help` lists the targets; each sets up what it needs, and recomputes only what is missing.

PYTHON   ?= python3
PIP_ARGS ?=
VENV     ?= .venv
PROFILE  ?= quick
JOBS     ?=

# A writable home for matplotlib's font cache, also where $HOME is read-only.
export MPLCONFIGDIR ?= $(CURDIR)/.cache/matplotlib

STAMP     := $(VENV)/.installed
VENV_PY   := "$(VENV)/bin/python"
OLDEST    := $(VENV)-oldest
DOCS      := $(VENV)/.installed-docs
GALLERY   := $(VENV)/.installed-gallery
TEST      := -m pytest -n 2 --dist worksteal -m "not slow and not gallery"
FDFA      := "$(VENV)/bin/fdfa"
JOBS_FLAG := $(if $(JOBS),--jobs $(JOBS))
# In order of worth, so that what an interrupted `make reproduce` leaves is what matters most.
PAPER     := $(addprefix experiments/paper/,$(addsuffix .toml,mnist_fc fashion_fc width depth released trajectory momentum cifar_fc \
             mnist_cnn cifar_cnn fashion_cnn pepita_published))

.DEFAULT_GOAL := help
# Targets share the runs and the processor, and the work inside each is parallel already: `make -j` runs them in turn.
.NOTPARALLEL:
.PHONY: help setup figures test test-oldest test-wheel test-gallery bench bench-check paper reproduce docs readme report verify audit matrix previews lint clean distclean

help: ## show this list
	@echo "usage: make TARGET [PYTHON=$(PYTHON)] [PIP_ARGS=...] [PROFILE=smoke|quick|paper] [JOBS=processes]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## create the virtual environment with the pinned versions

$(STAMP): pyproject.toml requirements.txt
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v[:2] >= (3, 11) or sys.exit("%s is version %d.%d" % (sys.executable, v[0], v[1]))' \
	    || { echo 'Python 3.11 or newer is needed; name one: make setup PYTHON=/path/to/python3.11' >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	$(VENV_PY) -m pip install $(PIP_ARGS) -r requirements.txt
	$(VENV_PY) -m pip install $(PIP_ARGS) --no-deps --editable .
	@touch "$(STAMP)"

figures: $(STAMP) ## train what is missing (recorded profiles are only drawn), analyse and draw, into figures/out/PROFILE/
	$(FDFA) figures --profile $(PROFILE) $(JOBS_FLAG)

# Two test processes of one thread each, for two that both take two threads stand in each other's way; who has none left takes the other's.
test: $(STAMP) ## run the tests
	OMP_NUM_THREADS=1 $(VENV_PY) $(TEST)

test-oldest: $(OLDEST)/.installed ## run the tests with the oldest versions that the package accepts
	OMP_NUM_THREADS=1 "$(OLDEST)/bin/python" $(TEST)

$(OLDEST)/.installed: pyproject.toml requirements-oldest.txt
	"$(PYTHON)" -m venv --clear "$(OLDEST)"
	"$(OLDEST)/bin/python" -m pip install $(PIP_ARGS) -r requirements-oldest.txt
	"$(OLDEST)/bin/python" -m pip install $(PIP_ARGS) --no-deps --editable .
	@touch "$@"

test-wheel: $(STAMP) ## build the wheel, install it without its source, and draw the smoke figures with it
	$(VENV_PY) -m pytest -m slow tests/house/test_wheel.py

test-gallery: $(GALLERY) ## install torchvision, timm, transformers and BackPACK, and test with them
	OMP_NUM_THREADS=1 $(VENV_PY) -m pytest tests/fdfa_core/networks/test_gallery.py tests/benchmarks

# The pins hold torch where it is: without them pip would take the newest torchvision, and the torch that it asks for.
$(GALLERY): $(STAMP)
	$(VENV_PY) -m pip install $(PIP_ARGS) --constraint requirements.txt --editable ".[gallery]"
	@touch "$@"

bench: $(STAMP) ## measure speed and memory: table and CSV
	$(VENV_PY) -m benchmarks

bench-check: $(STAMP) ## measure again what make bench recorded, and name what got worse (BENCHES=names: these alone)
	$(VENV_PY) -m benchmarks --check $(if $(BENCHES),--only $(BENCHES))

paper: $(STAMP) ## draw the paper-scale figures and tables from the recorded results
	$(FDFA) figures --profile paper --runs results/paper

reproduce: $(STAMP) ## compute the paper-scale runs anew, into runs/ (it says first what the recorded ones took)
	$(FDFA) cost --profile paper $(PAPER)
	$(FDFA) sweep $(PAPER) $(JOBS_FLAG)

# The variable silences an announcement of the theme's makers.
docs: $(DOCS) ## build the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(VENV_PY) -m mkdocs build --strict

$(DOCS): $(STAMP) requirements-docs.txt
	$(VENV_PY) -m pip install $(PIP_ARGS) -r requirements-docs.txt
	@touch "$@"

readme: $(STAMP) ## write the recorded results into the README and docs/reproducing.md
	$(FDFA) readme

report: $(STAMP) ## write the report: one HTML page with figures, tables and verdicts
	$(FDFA) report --profile $(PROFILE)

verify: $(STAMP) ## check the estimators against their closed-form theory
	$(FDFA) verify

audit: $(STAMP) ## make twelve recorded runs anew, and compare them bit by bit
	$(FDFA) audit --profile paper --sample 12 --longest 120 $(JOBS_FLAG)

matrix: $(STAMP) ## check which method serves which layer, and write docs/support.md
	$(VENV_PY) -m verification.support

previews: $(STAMP) figures ## redraw the small pictures of the README (docs/images) from the figures
	$(FDFA) previews --profile $(PROFILE)

lint: $(STAMP) ## check style
	$(VENV_PY) -m ruff check .

clean: ## remove what is generated, except runs and data
	rm -rf figures/out site build dist .cache .pytest_cache .ruff_cache .hypothesis .benchmarks *.egg-info
	find . -name __pycache__ -type d -not -path "./$(VENV)*/*" -prune -exec rm -rf {} +

distclean: clean ## remove the runs and the virtual environments too (data stays)
	rm -rf runs "$(VENV)" "$(OLDEST)"
