# The commands of the README. The first run of any of them makes the virtual environment .venv.

PYTHON ?= $(shell command -v python3.11 || echo python3)
HOST ?= 127.0.0.1
PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin

SHARED_DATA ?= ../shared
DATA ?= $(wildcard $(SHARED_DATA)/data/wikitext-2)

.PHONY: predict chat kernel test test-fast coverage serve train speedrun sprint lint types docs clean

predict: $(VENV)/run.stamp
ifeq ($(origin PROMPT),command line)
	@PROMPT='$(subst ','"'"',$(value PROMPT))' && $(BIN)/python -m transformer predict $(ARGS) -- "$$PROMPT"
else
	@$(BIN)/python -m transformer predict $(ARGS)
endif

chat: $(VENV)/run.stamp
	@$(BIN)/python -m transformer chat $(ARGS)

# The C backend for every set of instructions of this architecture, in transformer/inference/native/built: what is
# installed, packed or copied with it there needs no compiler.
kernel: $(VENV)/run.stamp
	$(BIN)/python -m transformer.cli.build_kernel

# For example: make train ARGS="--data my.txt --max-minutes 10"
train: $(VENV)/dev.stamp
	$(BIN)/python train.py $(ARGS)

# As low a loss on WikiText-2 as two cores reach in 30 minutes, or in 3. DATA: a local copy instead of the Hub's.
# The run is in output/speedrun or output/sprint, where what follows it looks: ARGS may not name another output.
TEXT := $(if $(DATA),--data $(DATA),--data Salesforce/wikitext --data-config wikitext-2-v1)
speedrun sprint: $(VENV)/dev.stamp
	$(BIN)/python train.py --config $@ $(if $(DATA),--data-config None) $(TEXT) $(ARGS)
	$(BIN)/python -m benchmarks.speedrun output/$@
	$(BIN)/python -m transformer evaluate --model output/$@ $(TEXT)

WORKERS := -n auto --dist loadfile --no-loadscope-reorder  # the order is that of tests/conftest.py
test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(WORKERS)

# The edit loop: of the files that take long one test in twenty, and all of the others.
test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(WORKERS) --fast

coverage: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(WORKERS) --fast --cov=transformer --cov-report=term

# A static site in site/.
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

# The real Cog HTTP server, without Docker. MODE=train for POST /trainings. The schema is that of the mode alone: of one
# with both, Cog's playground shows only the training.
serve: $(VENV)/dev.stamp
	$(BIN)/python -m tools.cog_schema --mode $(or $(MODE),predict)
	PATH="$(CURDIR)/$(BIN):$$PATH" PORT=$(PORT) LOG_FORMAT=console COG_STREAM_HISTORY_CAPACITY=8192 \
	COG_PREDICT_TYPE_STUB=predict.py:Predictor COG_TRAIN_TYPE_STUB=train.py:train \
	$(BIN)/python -m cog.server.http --host $(HOST) $(if $(MODE),--x-mode=$(MODE))

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

clean:
	rm -rf transformer/inference/native/built $(VENV) .cog .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@echo "Setting up $(VENV) (once; this takes a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: $(BIN)/python requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -c "from transformer.inference.native import load_kernel; load_kernel()"  # two seconds of the compiler
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
