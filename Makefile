# Set PYTHON to choose another interpreter: make test PYTHON=python3.12
PYTHON ?= python3.11
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test test-all test-xla test-slow lint docs notebooks clean

demo: $(VENV)/installed
	$(RUN) train.py --epochs=10 --teacher_epochs=10 --run_dir=runs/demo --overwrite
	$(RUN) benchmarks/few_images.py --run=runs/demo

# Unit tests: at most five minutes on two cores.
test: $(VENV)/installed-dev
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not process and not alone"

# All but the slow tests, including those that run the commands: at most twelve minutes.
test-all: $(VENV)/installed-dev
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not alone"
	$(RUN) -m pytest -m alone

# Tests that compile with XLA, as Keras does on a GPU: about five minutes.
test-xla: $(VENV)/installed-dev
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not alone" --as_on_gpu \
		tests/distillation tests/test_losses.py tests/teacher/test_recorded.py tests/training/test_execution.py \
		tests/test_train.py::test_a_run_writes_its_settings_history_scores_and_checkpoints \
		tests/test_train.py::test_two_logical_devices_train_a_student

# Tests that take hours or a lot of memory.
test-slow: $(VENV)/installed-dev
	$(RUN) -m pytest -m slow

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Builds the documentation in site/; warnings are errors.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

notebooks: $(VENV)/installed-dev
	$(RUN) docs/run_notebooks.py

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements.txt requirements-docs.txt requirements-dev.txt | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@
