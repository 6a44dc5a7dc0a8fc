# Every target sets up what it needs; PYTHON chooses the interpreter of a new .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_TESTS := -n 2 --dist worksteal

.PHONY: quickstart test test-all check bench docs clean

quickstart: .venv/run.stamp
	$(BIN)/hyprstream quickstart

test: check
	$(BIN)/python -m pytest $(TORCH_TESTS) -m "not slow"

test-all: check .venv/fuzz.stamp
	$(BIN)/python -m pytest $(TORCH_TESTS)

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.generate_reference --check

bench: .venv/bench.stamp
	$(BIN)/python -m benchmarks

docs: .venv/dev.stamp
	$(BIN)/python -m scripts.generate_reference

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv .venv

# What is compiled and installed; Python files are only linked to.
INSTALLED := pyproject.toml constraints.txt hatch_build.py $(wildcard src/hyprstream/kernels/*.cpp src/hyprstream/kernels/*.h)

.venv/run.stamp: .venv/bin/python $(INSTALLED)
	@echo "Installing into .venv; PyTorch makes it a minute or two."
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev.stamp: .venv/bin/python $(INSTALLED)
	@echo "Installing into .venv, with what the tests need."
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@ .venv/run.stamp

.venv/fuzz.stamp: .venv/dev.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable '.[fuzz]'
	touch $@

.venv/bench.stamp: .venv/dev.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
