# Every target sets up what it needs and is safe to repeat. As root on Debian 12, with git and Python 3.11.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: setup demo test heavy containerds lint bench fuzz clean locks

setup: $(VENV)/.ready

$(VENV)/.ready: locks/dev.txt pyproject.toml tools/setup.sh
	tools/setup.sh "$(PYTHON)" "$(VENV)"
	touch $@

demo: setup
	$(BIN)/python tools/demo.py

# Tests that start containers look at what they left on the whole machine, and run one after another; these share the cores.
TOGETHER := tests/unit tests/properties tests/integration/kbs tests/integration/resources

test: setup
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else
	$(BIN)/python -m pytest -n auto --dist loadfile $(TOGETHER)
	$(BIN)/python -m pytest $(addprefix --ignore=,$(TOGETHER))
endif

# What `make test` has in small numbers: pods on containerd under kill -9 (and the same tests on ordinary pods, which are a
# peer's), enclaves under 200, audit log and resources under 500 kills, 2,000 attestations to instances that end and die: an hour.
heavy: setup
	ENCLAVE_CC_PODS=50 ENCLAVE_CC_AT_ONCE=20 ENCLAVE_CC_KILLS=200 $(BIN)/python -m pytest -m "" tests/integration/containerd
	ENCLAVE_CC_KILLS=200 $(BIN)/python -m pytest -m "" tests/hostile/test_kill.py
	ENCLAVE_CC_KILLS=500 $(BIN)/python -m pytest -m "" tests/integration/kbs/test_audit_kill.py tests/integration/kbs/test_resource_kill.py
	ENCLAVE_CC_ATTESTATIONS=2000 ENCLAVE_CC_CLIENTS=64 $(BIN)/python -m pytest -m "" tests/integration/kbs/test_balancer.py

# The same suite, in its usual numbers, on containerd 1.7 and 2.x of later Debian releases, unpacked and not installed.
containerds: setup
	set -e; binaries=$$(tools/other_containerds.sh build/containerds); for binary in $$binaries; do \
		"$$binary" --version; \
		ENCLAVE_CC_CONTAINERD=$$binary $(BIN)/python -m pytest -m "" tests/integration/containerd; \
	done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/tcb.py --check
	$(BIN)/python tools/errors_page.py --check

bench: setup
	$(BIN)/python -m bench

fuzz: setup
	$(BIN)/python tools/fuzz.py

locks:
	tools/lock.sh "$(VENV)"

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
