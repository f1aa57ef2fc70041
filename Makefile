# `make help` lists the targets. All of them work in .venv, which `make env` creates and the others reuse.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help doctor env torch book serve zip pdf site lab notebooks test lint clean

PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3,\
	$(if $(shell $(p) -c 'import sys; assert (3,11) <= sys.version_info[:2] <= (3,12); print(1)' 2>/dev/null),$(p))))
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
TORCH := $(VENV)/torch
PAGES := _build/html
SOURCES := $(shell find book vla_teach -type f -not -name '*.pyc' -not -path '*/.ipynb_checkpoints/*') _config.yml _toc.yml

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

doctor:  ## say what this machine can run of the book, and what is missing
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON) python3) -m vla_teach.doctor || true

env: $(READY)  ## create .venv with all that the book and its tests need

$(READY): requirements.txt constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found. Install one, or say which: make env PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

torch: $(TORCH)  ## add PyTorch, for the layers and the experiments (large)

$(TORCH): $(READY) requirements-torch.txt constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-torch.txt
	@touch $@

book: $(PAGES)/.built  ## build the HTML into _build/html
	@echo "The book is built. Open $(PAGES)/index.html in a browser, or run: make serve"

$(PAGES)/.built: $(READY) $(SOURCES)
	@rm -f $@
	$(BIN)/jupyter-book build . --all -W -n --keep-going --quiet
	@touch $@

serve: book  ## serve the built book on 127.0.0.1 (PORT=8000)
	@echo "http://127.0.0.1:$(PORT)/ (stop with Ctrl-C)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(PAGES) $(PORT)

zip: book  ## pack the built book into one archive that needs no network
	@$(BIN)/python -m vla_teach.site.offline zip

pdf: book  ## print the whole book into one PDF, with a Chromium
	@$(BIN)/python -m vla_teach.site.offline pdf

site: zip  ## put together what is published, in _build/site
	@rm -rf _build/site
	@cp -r $(PAGES) _build/site
	@cp _build/vla-book.zip _build/site/
	@touch _build/site/.nojekyll
	$(BIN)/python -m vla_teach.site.launch _build/site/colab

lab: $(READY)  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab book

notebooks: $(TORCH)  ## run the chapters again and store their outputs (ONLY="book/a.ipynb ..." for some)
	$(BIN)/python -m vla_teach.site.notebooks $(ONLY)

test: $(TORCH) book lint  ## run every test, every chapter included
	$(BIN)/python -m pytest tests -n 2 --dist loadfile -k "not quick" --ignore tests/test_pages.py
	$(BIN)/python -m pytest tests/test_pages.py -n 2 -k "not quick"
	$(BIN)/python -m pytest tests -k quick  # times, for which nothing else may run
	VLA_STATIC=1 $(BIN)/python -m pytest --nbval -n 2 --dist loadfile -p no:cacheprovider book

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and _build
	rm -rf $(VENV) _build
