# Two commands set up everything they need in .venv: `make demo` and `make test`.
#   TORCH_INDEX   where to take PyTorch from; on Linux without a GPU, https://download.pytorch.org/whl/cpu saves gigabytes
#   PYTHON, VENV  which Python (3.11 or later) builds the environment, and where
#   NNUNET_VENV   the environment of `make check-nnunet`, which tries preparing and exports in nnU-Net itself
#   NNUNET_ARGS   what it is told, e.g. NNUNET_ARGS="--decathlon Task04_Hippocampus --json check.json" for real scans
#   ENVIRONMENTS  where `make check-packaging` keeps its environments; without it they are not kept
#   OUT           where the demo writes
#   MINUTES       how long `make gpu-figures` may measure; GPU_FIGURES, e.g. "--acdc FOLDER", is handed on to it
#   PYTEST_ARGS   what pytest is told, e.g. PYTEST_ARGS="tests/test_metrics.py -x"
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
NNUNET_VENV ?= .venv-nnunet
NNUNET_ARGS ?=
ENVIRONMENTS ?=
OUT ?= demo
TORCH_INDEX ?=
MINUTES ?= 60
GPU_FIGURES ?=
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist worksteal
BIN := $(VENV)/bin

.PHONY: demo test check check-nnunet check-packaging gpu-figures docs clean
.SECONDARY:

demo: $(VENV)/.demo-ready
	$(BIN)/macl demo --out $(OUT)

test: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_ARGS)

check: $(VENV)/.dev-ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

gpu-figures: $(VENV)/.dev-ready
	$(BIN)/python benchmarks/gpu_figures.py --minutes $(MINUTES) $(GPU_FIGURES)

docs: $(VENV)/.docs-ready
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "The site: build/docs/index.html"

check-nnunet: $(NNUNET_VENV)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(NNUNET_VENV)/bin/python tests/nnunet/check.py $(NNUNET_ARGS)

check-packaging: $(VENV)/.dev-ready
	$(BIN)/python tests/packaging/check_packaging.py $(if $(ENVIRONMENTS),--environments $(ENVIRONMENTS)) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

$(NNUNET_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(NNUNET_VENV)
	$(NNUNET_VENV)/bin/python -m pip install torch==2.14.1 torchvision==0.29.1 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(NNUNET_VENV)/bin/python -m pip install -e . nnunetv2==2.8.1
	touch $@

$(VENV)/.%-ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -c constraints.txt -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) $(NNUNET_VENV)
