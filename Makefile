# `make demo` and `make test` do all their own set-up on a machine with Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test quick lint install clean

install: $(STAMP)

# Whichever build of torch the index has: one for CPUs is enough for the toy world.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || command -v $(PYTHON) >/dev/null || \
		{ echo "no $(PYTHON) on the PATH; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/worldr1 demo $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Ruff, mypy and import-linter run as tests (tests/test_repository.py).
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not cluster and not hand and not gpu" $(ARGS)
	$(BIN)/python -m pytest -m "cluster and not hand and not gpu" $(ARGS)

# What a person runs while working: no Ray, nothing slow.
quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not cluster and not hand and not gpu" $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info
