# make demo: install, paint a demo scan, screen it, print where the report is.
# make test: install, then everything that guards the project.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
DEMO := demo-out

.PHONY: demo test install clean

demo: $(STAMP)
	$(BIN)/slidescreen demo $(DEMO)/demo.tif
	$(BIN)/slidescreen run $(DEMO)/demo.tif --out $(DEMO)/results
	@echo "Report: $$(ls -t $(CURDIR)/$(DEMO)/results/demo-*/report.html | head -n 1)"

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("slidescreen needs Python 3.11 or newer: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf .venv $(DEMO) slidescreen-out
