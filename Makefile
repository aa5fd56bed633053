# Every target sets up what it needs: Python 3.11+ and the package registry are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  ?=
# Processes that run tests at once: one for each core, at most four, for each takes a gigabyte. 0: one after another.
WORKERS ?= logical
# Bytecode is kept, whatever the machine's own setting: the tests start hundreds of processes, and each would
# compile localoss again, for a third of a second.
export PYTHONDONTWRITEBYTECODE =

.PHONY: attack setup chat test lint type bench golden clients soak page screens test-time train train-smoke clean docs dist

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "localoss needs Python 3.11 or newer: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

chat: setup
	$(BIN)/localoss chat $(MODEL)

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile $(TIMES)

# The same, and then the processor time that each test file took.
test-time: TIMES = -p tests.support.processor_time
test-time: test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

bench: setup
	@test -n "$(MODEL)" || { echo "say which model: make bench MODEL=folder" >&2; exit 1; }
	$(BIN)/localoss bench $(MODEL)

# Pages of docs/ in out/site.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# A wheel and an sdist in dist/: pipx install dist/*.whl, or uv tool install dist/*.whl.
dist: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dist]'
	rm -rf dist
	$(BIN)/python -m build

golden: setup
	@$(BIN)/python -c 'import torch, transformers' 2>/dev/null || \
		{ echo "make golden needs the oracles: $(BIN)/pip install -e '.[oracle]'" >&2; exit 1; }
	$(BIN)/python tests/golden/make_golden.py

# Real clients from npm and PyPI, in a folder of their own; writes docs/clients-table.md.
clients: setup
	$(BIN)/python clients/run.py --folder out/clients

soak: setup
	LOCALOSS_SOAK=1 $(BIN)/python -m pytest -m soak

# Eight hostile clients on a server for ten minutes, beside two that ask what is asked every day.
attack: setup
	LOCALOSS_SOAK=1 $(BIN)/python -m pytest -s -m soak tests/test_attack.py

# The chat page in headless Chromium, and its pictures and the terminal's in docs/screens anew.
page: $(VENV)/.page
	LOCALOSS_SOAK=1 $(BIN)/python -m pytest tests/test_page_browser.py tests/test_page_hostile.py \
		tests/test_page_access.py tests/test_page_writers.py tests/test_page_calls.py

screens: $(VENV)/.page
	$(BIN)/python tools/screens.py

$(VENV)/.page: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[page]'
	@touch $@

# What torch frees is kept for the next step: glibc would give it back to the system and fetch it again.
MALLOC := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=8589934592

# The demo model: two to three hours on two cores. Stopped and given again, it goes on.
train: $(VENV)/.train
	$(MALLOC) $(BIN)/python -m tools.demo_training --weights localoss/demo/weights

train-smoke: $(VENV)/.train
	rm -rf out/demo-smoke
	$(BIN)/python -m tools.demo_training --small --folder out/demo-smoke --weights out/demo-smoke/weights

# The version is pinned: others come as gigabytes of CUDA.
$(VENV)/.train: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
