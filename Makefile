# make demo   learn blood cells on this machine, evaluate, draw the results (about 10 minutes)
# make test   the whole test suite
#
# The python is, in this order: PYTHON=... on the command line; the python3 of an active virtual
# or conda environment, or one that has detectron2; otherwise an environment of our own in .venv.
# Installation happens once, and only where the package is not installed yet.

HAS_HOME := import importlib.util as u, os, sys; \
  sys.exit(not (sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ \
  or getattr(u.find_spec("detectron2"), "origin", None)))
PYTHON ?= $(shell python3 -c '$(HAS_HOME)' && command -v python3 || echo .venv/bin/python)

CONFIG := configs/quick_start.yaml
OUTPUT := output/quick_start

.PHONY: demo test environment

demo: environment
	$(PYTHON) train_net.py --config-file $(CONFIG) OUTPUT_DIR $(OUTPUT)
	$(PYTHON) -m detectron2_ddetr.visualize --config-file $(CONFIG) OUTPUT_DIR $(OUTPUT)

test: environment
	$(PYTHON) -m pytest -q -rs tests

environment: $(filter .venv/bin/python,$(PYTHON))
	@$(PYTHON) -c 'import importlib.metadata as m; m.version("detectron2_ddetr"), m.version("pytest")' \
	  2>/dev/null || $(PYTHON) -m pip install -e '.[test]'

.venv/bin/python:
	python3 -m venv .venv
