# Each target is enough on a fresh machine: it makes the virtual environment it needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.installed
READY_ALL := $(VENV)/.installed-all
# Each file's tests stay in one process, where they share what they have made; tests/conftest.py puts the
# files that take longest first, so that no process ends with one of them alone.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-groups test-slurm test-all lint format clean help

help:
	@echo "make demo      install, render the embedded dataset, run every method, print the table"
	@echo "make test      install and run the tests (make test-all: the slow ones too)"
	@echo "make test-groups  the slow tests of process groups in which a rank raises, hangs, is stopped or fills memory"
	@echo "make test-slurm   the tests that start a real Slurm here (Debian, root; installs its packages)"
	@echo "make lint      ruff and mypy"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# DeepSpeed too, which the tests of ZeRO need; they say so where it or a compiler is missing.
$(READY_ALL): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,deepspeed]'
	@touch $@

demo: $(READY)
	$(BIN)/python benchmarks/run.py --grid demo

test: $(READY_ALL)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not slurm"

# Slow, but CI runs them: what happens to a group when one of its processes gets into trouble.
test-groups: $(READY_ALL)
	$(BIN)/python -m pytest -m slow tests/launch/test_groups.py -k "trouble or told_with_its_rank or hangs_alone or told_to_stop or torchrun"

# Clusters without accounting exist: everything has to work there too. Late and doubtful answers, folders with odd
# names, what a launch copies, the scripts for sbatch, runs on two nodes and launches at once are the same there.
ACCOUNTED = test_doubt test_odd_paths test_owned
SAME = the_sbatch_scripts or two_nodes_train or two_launches_at_once or a_plan_says
test-slurm: $(READY_ALL)
	$(BIN)/python -m pytest -m "slurm and not slow" tests/slurm
	SSMLL_SLURM_ACCOUNTING=off $(BIN)/python -m pytest -m "slurm and not slow" -k "not ($(SAME))" tests/slurm $(ACCOUNTED:%=--ignore tests/slurm/%.py)

test-all: $(READY_ALL)
	$(BIN)/python -m pytest
	SSMLL_SLURM_ACCOUNTING=off $(BIN)/python -m pytest -m slurm tests/slurm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info
