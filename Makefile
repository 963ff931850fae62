# `make demo` and `make test` set up all they need on a fresh Debian machine with Python 3.11 or later.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEBIAN := libfuse3-dev fuse3 pkg-config gcc libc6-dev python3-dev iproute2
PEERS := nginx-light libnginx-mod-http-echo fio rclone s3fs
AZURITE := 3.37.0

.PHONY: demo test test-torch soak lint format bench simulate-cluster proto setup clean

demo: setup
	$(BIN)/python -m forebay.bench.demo

test: setup $(VENV)/.pyfuse3
	$(BIN)/python -m pytest -q --numprocesses 3 --dist loadfile

# PyTorch is large: `make test` does without it, and leaves out what needs it.
test-torch: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[torch]'
	$(BIN)/python -m pytest -q tests/training

soak: setup $(VENV)/.pyfuse3 $(VENV)/.azurite
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -q -m soak
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -q tests/model

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What cannot be installed is a blank column. Parts of it: make bench ARGS="--only small --quick"
bench: setup $(VENV)/.pyfuse3
	-@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		dpkg -s $(PEERS) >/dev/null 2>&1 || { apt-get update -qq; for package in $(PEERS); do \
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$package >/dev/null; done; }; \
	else \
		echo "the peers and the endpoint, where they are missing: apt-get install $(PEERS)"; \
	fi
	-@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m forebay.bench.bench --markdown $(ARGS)

# A thousand workers and ten thousand clients without hosts. Another seed: make simulate-cluster ARGS="--seed 7"
simulate-cluster: setup
	$(BIN)/python -m forebay.bench.cluster_simulation $(ARGS)

# protoc maps proto/ to the import path forebay.proto; the links of the editable install put the output back.
proto: setup
	$(BIN)/python -m grpc_tools.protoc -Iforebay/proto=proto \
		--python_out=.editable --pyi_out=.editable --grpc_python_out=.editable proto/*.proto

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Forebay needs Python 3.11 or later; set PYTHON=/path/to/it"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "a virtual environment cannot be made; install: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# The reference engine compiles against libfuse3. Only the tests need it; those on several hosts need root and `ip`.
$(VENV)/.pyfuse3: $(VENV)/.installed
	@{ pkg-config --exists fuse3 && { [ "$$(id -u)" != 0 ] || command -v ip; }; } >/dev/null 2>&1 || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(DEBIAN) >/dev/null; \
	else \
		echo "the tests of the pyfuse3 engine need: apt-get install $(DEBIAN)"; exit 1; \
	fi
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[pyfuse3]'
	@touch $@

# Azure's emulator: 361 MB, so it is not part of `make test`. Without it the tests of az:// are skipped and say so.
$(VENV)/.azurite: $(VENV)/.installed
	-@if command -v npm >/dev/null; then \
		npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@$(AZURITE) && touch $@; \
	else \
		echo "the tests of az:// need npm: apt-get install npm"; \
	fi

clean:
	rm -rf $(VENV) .editable .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
