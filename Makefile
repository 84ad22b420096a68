# make demo   train a small network on real images, then classify some (SEED=1: another seed)
# make test   run the tests
# make soak   kill a training run 45 times and compare it with an undisturbed one (30 minutes)
# make lint   check format, lint and types
# make docs   build the site of the documentation in dist/site
# Each sets up .venv first.
#
# make bench-gpu           time training and inference against PyTorch on an NVIDIA GPU
# make gpu-compile         compile every architecture and recipe for GPUs, without one (half an hour)
# make gpu-compile-short   the programs that a change is most likely to break (5 minutes)
# The last two set up .venv-gpu first (1.3 GB).

PYTHON ?= python3
VENV := .venv
COMPILE_VENV := .venv-gpu
BIN := $(VENV)/bin
DATA := runs/digits-data
RUN := runs/demo
SEED ?= 0

.PHONY: demo test soak lint docs clean bench-gpu gpu-compile gpu-compile-short compile-venv

demo: $(VENV)/.demo
	$(BIN)/python -m seresnext_jax.data.digits $(DATA)
	rm -rf $(RUN)
	$(BIN)/python train.py --config configs/digits.py --data.root $(DATA) --workspace $(RUN) \
	    --seed $(SEED)
	$(BIN)/python classify.py --weights $(RUN)/checkpoints/best --topk 3 \
	    $$(find $(DATA)/val -name '*.jpg' | sort | awk 'NR % 60 == 1')

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Takes MINUTES minutes. If PYTHON has JAX and PyTorch for its GPU, it is used; otherwise .venv is set
# up.
MINUTES ?= 8
HAS_GPU_PACKAGES := $(shell $(PYTHON) -c \
    'from importlib.util import find_spec as f; print(*["yes"] * all(map(f, ["jax_plugins", "torch", "tyro"])))')

bench-gpu: $(if $(HAS_GPU_PACKAGES),,$(VENV)/.gpu)
	mkdir -p runs
	$(if $(HAS_GPU_PACKAGES),$(PYTHON),$(BIN)/python) benchmark.py gpu --minutes $(MINUTES) \
	    --json runs/bench-gpu.json $(BENCH)

gpu-compile: compile-venv
	$(COMPILE_VENV)/bin/python -m benchmarks.gpu.matrix

gpu-compile-short: compile-venv
	$(COMPILE_VENV)/bin/python -m benchmarks.gpu.matrix --short

compile-venv:
	$(MAKE) VENV=$(COMPILE_VENV) $(COMPILE_VENV)/.compile

soak: $(VENV)/.test
	$(BIN)/python -m tests.soak --kills 30
	$(BIN)/python -m tests.soak --kills 15 --shards

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) $(COMPILE_VENV) runs
