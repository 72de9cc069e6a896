# Two commands: `make demo` and `make test`. Both make the environment they need.
PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
BACKENDS ?= torch jax tensorflow
# Test processes side by side; compiling, most of a test's time, uses one core each.
WORKERS ?= 2
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Everything runs on CPU here; this keeps JAX from looking for more.
export JAX_PLATFORMS ?= cpu
# Threads that wait must not hold the cores that others need.
export OMP_WAIT_POLICY ?= passive
# Conformance vectors, where the machine has them.
VECTORS ?= ../shared/vectors
KERAS_BACKEND ?= torch

.PHONY: demo test lint conformance docs benchmarks clean

## demo: pretrain with SimCLR for a few minutes, show what it learned
demo: $(VENV)/.demo
	KERAS_BACKEND=$(KERAS_BACKEND) $(PY) examples/demo.py --output demo

## test: the whole suite, one process per backend
test: $(VENV)/.test
	@status=0; for backend in $(BACKENDS); do \
	  echo "== $$backend"; KERAS_BACKEND=$$backend $(PY) -m pytest tests -n $(WORKERS) --dist loadfile || status=1; \
	done; exit $$status

## lint: formatting and linting
lint: $(VENV)/.lint
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

## conformance: the official codes' reference vectors on every backend
conformance: $(VENV)/.test
	@status=0; for backend in $(BACKENDS); do \
	  $(PY) tests/conformance.py --vectors $(VECTORS) --backend $$backend || status=1; \
	done; exit $$status

## docs: the pages and the API reference as a site, in build/site
docs: $(VENV)/.docs
	$(VENV)/bin/mkdocs build --quiet
	@echo "Open build/site/index.html"

## benchmarks: ratios to the peers, measured in one run
benchmarks: $(VENV)/.bench
	$(PY) benchmarks/run.py

# torch first and alone: with it in place no other requirement can draw a larger build.
$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet torch==2.13.0
	@touch $@

$(VENV)/.demo: $(VENV)/.base
	$(PY) -m pip install --quiet -e ".[plot,jax]"
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PY) -m pip install --quiet -e ".[test]"
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PY) -m pip install --quiet -e ".[test,bench]"
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PY) -m pip install --quiet mkdocs "mkdocstrings[python]"
	@touch $@

$(VENV)/.lint: $(VENV)/.base
	$(PY) -m pip install --quiet ruff==0.17.6
	@touch $@

clean:
	rm -rf $(VENV) demo build dist
