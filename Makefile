# make demo   learn blood cells on this machine, evaluate, draw the results (six minutes on two
#             cores with instructions for bfloat16)
# make demo-pretrained   evaluate the model that comes with the package, draw what it finds
# make environment   only what all of these need: this package and torch, installed
# make test   the whole test suite
# make benchmark  repeat BENCHMARKS.md on this machine, which should do nothing else (forty minutes
#             on two cores with instructions for bfloat16)
# make wheel  a wheel with compiled kernels in dist, for any torch from 2.10 on
# make sanitize   the operator's tests with its CPU kernels under AddressSanitizer and UBSan
#
# The python is, in this order: PYTHON=... on the command line; the python3 of an active virtual
# or conda environment, or one that has detectron2; otherwise an environment of our own in .venv.
# Installation happens once, and only where the package is not installed yet.

HAS_HOME := import importlib.util as u, os, sys; \
  sys.exit(not (sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ \
  or getattr(u.find_spec("detectron2"), "origin", None)))
PYTHON ?= $(shell python3 -c '$(HAS_HOME)' && command -v python3 || echo .venv/bin/python)

CONFIG := configs/quick_start.yaml
OUTPUT := output/demo
PRETRAINED := --config-file $(CONFIG) --weights \
  package://detectron2_ddetr/model_zoo/weights/quick_start.pth OUTPUT_DIR $(OUTPUT)-pretrained

.PHONY: demo demo-pretrained test benchmark wheel sanitize environment pytest

# Two processes, which use two cores better than the threads of one; in bfloat16 where the processor
# multiplies it.
BFLOAT16 := $(shell grep -qsw avx512_bf16 /proc/cpuinfo && echo SOLVER.AMP.ENABLED True)
demo: environment
	rm -rf $(OUTPUT)
	$(PYTHON) train_net.py --config-file $(CONFIG) --num-gpus 2 OUTPUT_DIR $(OUTPUT) $(BFLOAT16)
	$(PYTHON) -m detectron2_ddetr.cli visualize $(OUTPUT)

demo-pretrained: environment
	$(PYTHON) -m detectron2_ddetr.cli eval $(PRETRAINED)
	$(PYTHON) -m detectron2_ddetr.cli visualize $(PRETRAINED)

# Two processes of one thread each: most tests are too small for threads to help.
test: pytest
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -rs -n 2 --dist worksteal tests

benchmark: environment
	$(PYTHON) tools/benchmark_page.py --output output/benchmark

wheel: environment
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

# A copy, so that the instrumented module does not replace the one in use. Python is not built with
# the sanitizers, so their libraries are loaded before it, and its own leaks are not reported.
SANITIZED := build/sanitized
FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
sanitize: pytest
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r detectron2_ddetr csrc tests setup.py README.md $(SANITIZED) && rm -f $(SANITIZED)/*/*.so
	cd $(SANITIZED) && DDETR_CUDA=0 CFLAGS="$(FLAGS)" LDFLAGS="$(FLAGS)" \
	  $(abspath $(PYTHON)) setup.py -q build_ext --inplace
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  $(abspath $(PYTHON)) -m pytest -q -rs -k "not process and not instruction_sets" \
	  tests/test_deform_attn_op.py tests/test_deform_attn_cpu.py tests/test_deform_attn_dtypes.py \
	  tests/test_deform_attn_nonfinite.py tests/test_deform_attn_hostile.py \
	  tests/test_ms_deform_attn.py tests/test_dropout.py tests/test_add_norm.py

# torch first: the kernels are compiled against the one that is there. Python compiles what it
# imports, the first time; pip would compile all of torch.
environment: $(filter .venv/bin/python,$(PYTHON))
	@$(PYTHON) -c 'import importlib.metadata as m; m.version("detectron2_ddetr")' 2>/dev/null || { \
	  $(PYTHON) -m pip install --no-compile 'torch>=2.10' torchvision \
	  && $(PYTHON) -m pip install --no-compile -e .; }

pytest: environment
	@$(PYTHON) -c 'import pytest, xdist' 2>/dev/null || \
	  $(PYTHON) -m pip install pytest pytest-xdist

.venv/bin/python:
	python3 -m venv .venv
