# Targets that run the `sak` command; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
SAK := $(BIN)/sak
STAMP := .venv/.installed
LIGHT := .venv/.installed-light
# The tests make and remove 100,000 files: in memory, where there are 8 GB for them, and without waiting for a disk.
MEMORY = $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 8000000 { print "/dev/shm" }')

TEACHER ?=
DATASET ?= rooms
SPLIT ?= train
CODEC ?= fp16
GRID ?= native
OUT ?= features
WORKERS ?= 1
SHARE_READS ?= 1
# A value as one word of the shell, whatever is in it; a leading ~/ stays the home folder.
literal = '$(subst ','\'',$(1))'
quoted = $(if $(findstring ^~/,^$(1)),~/$(call literal,$(subst ^~/,,^$(1))),$(call literal,$(1)))
option = $(2) $(call quoted,$($(1)))
optional = $(if $($(1)),$(option))
given = $(if $($(1)),$(call quoted,$($(1))))
chosen = $(if $(filter file,$(origin DATASET)),,$(call option,DATASET,--dataset))

.PHONY: bench docs help install demo test test-slow torture lint check-data cache plan recipe distill finetune ablate report evaluate predict export reproduce clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(LIGHT): pyproject.toml constraints.txt
	$(call quoted,$(PYTHON)) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $(LIGHT)

$(STAMP): $(LIGHT)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,bench]'
	@touch $(STAMP)

install: $(STAMP)  ## .venv with the package and all its extras; training alone needs none of them

demo: $(LIGHT)  ## every step on rendered rooms, with a table and pictures
	$(SAK) demo

test: $(STAMP)  ## the test suite
	TMPDIR=$${TMPDIR:-$(MEMORY)} $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)  ## the slower tests, a shrunken demo among them
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

torture: $(STAMP)  ## the command killed, a store's bits flipped: minutes, with a table and JSON
	$(BIN)/python -m tests.torture

bench: $(STAMP)  ## every benchmark, one after the other [ARGS=--quick]
	$(BIN)/python -m benchmarks all $(ARGS)

docs: $(STAMP)  ## the pages of docs/ as a site in build/docs; a link that leads nowhere is an error
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

lint: $(STAMP)  ## ruff, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

cache plan: $(STAMP)
	$(SAK) $@ $(call option,TEACHER,--teacher) $(call option,DATASET,--dataset) $(call option,SPLIT,--split) \
	  $(call option,CODEC,--codec) $(call option,GRID,--grid) $(call option,OUT,--out) $(call optional,SIZE,--size) \
	  $(call optional,VIEWS,--views) $(call optional,LEVELS,--levels) $(call optional,LIMIT,--limit) \
	  $(call optional,ROOT,--root) $(call optional,WEIGHTS,--weights) $(ARGS)
check-data: $(STAMP)  ## ROOT= [DATASET=] what a data set holds and what is wrong with it, with a sheet
	$(SAK) data check $(if $(filter file,$(origin DATASET)),,$(call quoted,$(DATASET)) --root) $(call quoted,$(ROOT)) $(ARGS)

cache:  ## TEACHER= [DATASET= SPLIT= SIZE= VIEWS= CODEC= LEVELS= GRID= LIMIT= ROOT= WEIGHTS= OUT=]
plan:  ## the same variables: what `make cache` would write, hold and take

recipe: $(LIGHT)  ## [DATASET=] [TO=] a commented recipe for the caches that are there, to edit
	$(SAK) recipe $(chosen) $(call optional,TO,--to) $(call option,OUT,--out) $(ARGS)

distill: $(LIGHT)  ## [RECIPE=] [DATASET=] [DEVICES=1] [ROOT=] stage 1 from the caches that are there
	$(SAK) distill $(call given,RECIPE) $(chosen) $(call option,OUT,--out) $(call optional,ROOT,--root) \
	  $(call optional,DEVICES,--devices) $(ARGS)

finetune: $(LIGHT)  ## [RECIPE=] [DATASET=] [FROM=run] [DEVICES=1] [ROOT=] stage 2
	$(SAK) finetune $(call given,RECIPE) $(chosen) $(call option,OUT,--out) $(call optional,FROM,--from) \
	  $(call optional,ROOT,--root) $(call optional,DEVICES,--devices) $(ARGS)

ablate: $(LIGHT)  ## [STUDY=] [DATASET=] [WORKERS=1] [SHARE_READS=1] [DEVICES=1] arms, variations and seeds over the caches
	$(SAK) ablate $(call given,STUDY) $(chosen) $(call option,WORKERS,--workers) $(call option,SHARE_READS,--share-reads) \
	  $(call option,OUT,--out) $(call optional,DEVICES,--devices) $(ARGS)

report: $(LIGHT)  ## STUDY= [TO=report.html] one page: what won, by how much, what it cost, how it was made
	$(SAK) report $(call quoted,$(STUDY)) --out $(call quoted,$(if $(TO),$(TO),report.html)) \
	  $(call option,OUT,--features) $(ARGS)

evaluate: $(LIGHT)  ## RUN= [SPLIT=test] scores of a run
	$(SAK) evaluate $(call quoted,$(RUN)) --split $(call quoted,$(if $(filter file,$(origin SPLIT)),test,$(SPLIT))) \
	  $(call option,OUT,--out) $(ARGS)

predict: $(LIGHT)  ## SOURCE= MODEL= [TO=predictions] pictures of a student's predictions
	$(SAK) predict $(call quoted,$(SOURCE)) $(call option,MODEL,--model) \
	  --out $(call quoted,$(if $(TO),$(TO),predictions)) $(ARGS)

export: $(LIGHT)  ## RUN= [TO=exported] a trained student as a folder for others
	$(SAK) export $(call quoted,$(RUN)) $(call quoted,$(if $(TO),$(TO),exported)) $(ARGS)

reproduce: $(STAMP)  ## [STUDY=claim|parts|views|scale|...] [WORKERS=2] [SHARE_READS=1] the studies of docs/reproduction again, hours
	$(SAK) reproduce $(call given,STUDY) --workers $(if $(filter file,$(origin WORKERS)),2,$(WORKERS)) \
	  $(call option,SHARE_READS,--share-reads) $(ARGS)

clean:  ## remove the virtual environment and tools' caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
