# Two commands for everything: `make demo` and `make test`. Both install into .venv first.

PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
INSTALLED := .venv/.installed-$(EXTRA)
NAME ?= demo

.PHONY: demo test check install clean

demo: $(INSTALLED)
	@$(BIN)/iris-ray run recipes/demo.yaml --set run.name=$(NAME)

test: $(INSTALLED) check
	@$(BIN)/python -m pytest

check: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml cluster/install.sh
	@bash cluster/install.sh $(PYTHON) $(EXTRA)
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
