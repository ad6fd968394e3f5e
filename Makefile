# Thin: each target sets up what it needs and calls one program. PYTHON may name another interpreter (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check bench asan setup clean

run: setup
	@tools/enter $(BIN)/python -m tools.demo

test: setup
	@tools/enter $(BIN)/python -m pytest tests -n 2 --dist loadgroup

check: setup
	@$(BIN)/python -m pytest tests/repo

bench:
	@PYTHON=$(PYTHON) tools/setup bench
	@tools/enter $(BIN)/python -m pytest benchmarks --benchmark-only

asan: setup
	@tools/asan

setup:
	@PYTHON=$(PYTHON) tools/setup

clean:
	rm -rf .venv build .run *.egg-info zlayer_driver/_fastpath/*.c zlayer_driver/_fastpath/*.so
