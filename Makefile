# `make demo` and `make test` need nothing but Python >= 3.11 with venv.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# The tests install libtpu to compile for TPUs; without one it only complains at start.
export JAX_PLATFORMS ?= cpu

.PHONY: help install demo test test-slow reliability benchmark results clean

help:
	@echo "make demo         install, run the main job (noisy verifier), print its tables"
	@echo "make test         install, run the test suite"
	@echo "make test-slow    install, run the long reproductions"
	@echo "make reliability  install, run the fault-injection suite"
	@echo "make benchmark    install, measure speed"
	@echo "make results      rewrite the results tables from $(RUNS)/"

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: install
	$(PY) -m experiments.rlvr --config=configs/noise_corrected_grpo.py --workdir=$(RUNS)/noise_corrected_grpo
	$(PY) -m experiments.rlvr --config=configs/noisy_verifier.py --workdir=$(RUNS)/noisy_verifier
	$(PY) -m experiments.results_table $(RUNS)

test: install
	$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: install
	$(PY) -m pytest -n auto --dist loadfile -m slow

reliability: install
	$(PY) -m experiments.reliability --workdir=$(RUNS)/reliability

benchmark: install
	$(PY) -m experiments.benchmark all --workdir=$(RUNS)/benchmark

results: install
	$(PY) -m experiments.results_table $(RUNS) --readme=README.md --table=experiments/results/claims.md \
		--store=experiments/results

clean:
	rm -rf $(VENV) $(RUNS) *.egg-info build
