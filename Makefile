# Two commands for everything: `make demo` and `make test`. Both install into .venv first, as does
# `make study`, which plays the method study again (an hour and a half on two cores) and draws its figures,
# and `make bench`, which measures the learner beside TRL's.

PYTHON ?= python3
# cpu or gpu: what is installed, else cpu
EXTRA ?= $(if $(wildcard .venv/.installed-gpu),gpu,cpu)
BIN := .venv/bin
INSTALLED := .venv/.installed-$(EXTRA)
NAME ?= demo
SET ?=

.PHONY: demo test check study bench install clean

demo: $(INSTALLED)
	@$(BIN)/iris-ray run recipes/demo.yaml --set run.name=$(NAME) $(foreach setting,$(SET),--set $(setting))

test: $(INSTALLED) check
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

study: $(INSTALLED)
	@$(BIN)/python -m benchmarks.method

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks.learner

install: $(INSTALLED)

$(INSTALLED): pyproject.toml cluster/install.sh
	@bash cluster/install.sh $(PYTHON) $(EXTRA)
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
