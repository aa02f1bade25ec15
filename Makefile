# Targets that run the `sak` command; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
SAK := $(BIN)/sak
STAMP := .venv/.installed

TEACHER ?=
DATASET ?= rooms
SPLIT ?= train
CODEC ?= fp16
GRID ?= native
OUT ?= features
RECIPE ?= demo
STUDY ?= demo
WORKERS ?= 1
SHARE_READS ?= 1
optional = $(if $($(1)),$(2) $($(1)))

.PHONY: bench help install demo test test-slow torture lint check-data cache plan distill finetune ablate evaluate predict export clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,bench]'
	@touch $(STAMP)

install: $(STAMP)  ## .venv with the package and all its extras

demo: $(STAMP)  ## the whole line on rendered rooms, with a table and pictures
	$(SAK) demo

test: $(STAMP)  ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)  ## the slower tests, a shrunken demo among them
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

torture: $(STAMP)  ## the command killed, a store's bits flipped: minutes, with a table and JSON
	$(BIN)/python -m tests.torture

bench: $(STAMP)  ## every benchmark, one after the other [ARGS=--quick]
	$(BIN)/python -m benchmarks all $(ARGS)

lint: $(STAMP)  ## ruff, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

cache plan: $(STAMP)
	$(SAK) $@ --teacher "$(TEACHER)" --dataset $(DATASET) --split $(SPLIT) --codec $(CODEC) --grid $(GRID) \
	  --out $(OUT) $(call optional,SIZE,--size) $(call optional,VIEWS,--views) $(call optional,LEVELS,--levels) \
	  $(call optional,LIMIT,--limit) $(call optional,ROOT,--root) $(call optional,WEIGHTS,--weights) $(ARGS)
check-data: $(STAMP)  ## ROOT= [DATASET=] what a data set holds and what is wrong with it, with a sheet
	$(SAK) data check $(if $(filter file,$(origin DATASET)),"$(ROOT)","$(DATASET)" --root "$(ROOT)") $(ARGS)

cache:  ## TEACHER= [DATASET= SPLIT= SIZE= VIEWS= CODEC= LEVELS= GRID= LIMIT= ROOT= WEIGHTS= OUT=]
plan:  ## the same variables: what `make cache` would write, hold and take

distill: $(STAMP)  ## [RECIPE=demo] [DEVICES=1] [ROOT=] stage 1 from the caches
	$(SAK) distill $(RECIPE) --out $(OUT) $(call optional,ROOT,--root) $(call optional,DEVICES,--devices) $(ARGS)

finetune: $(STAMP)  ## [RECIPE=demo] [FROM=run] [DEVICES=1] [ROOT=] stage 2 from the caches
	$(SAK) finetune $(RECIPE) --out $(OUT) $(call optional,FROM,--from) $(call optional,ROOT,--root) \
	  $(call optional,DEVICES,--devices) $(ARGS)

ablate: $(STAMP)  ## [STUDY=demo] [WORKERS=1] [SHARE_READS=1] [DEVICES=1] arms, variations and seeds over the caches
	$(SAK) ablate $(STUDY) --workers $(WORKERS) --share-reads $(SHARE_READS) --out $(OUT) $(call optional,DEVICES,--devices) $(ARGS)

evaluate: $(STAMP)  ## RUN= [SPLIT=test] scores of a run
	$(SAK) evaluate $(RUN) --split $(if $(filter file,$(origin SPLIT)),test,$(SPLIT)) --out $(OUT) $(ARGS)

predict: $(STAMP)  ## SOURCE= MODEL= [TO=predictions] pictures of a student's predictions
	$(SAK) predict $(SOURCE) --model $(MODEL) --out $(if $(TO),$(TO),predictions) $(ARGS)

export: $(STAMP)  ## RUN= [TO=exported] a trained student as a folder for others
	$(SAK) export $(RUN) $(if $(TO),$(TO),exported) $(ARGS)

clean:  ## remove the virtual environment and tools' caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
