# Every target prepares .venv and runs in it. Python 3.11 or newer, git and make are enough.

PYTHON ?= python3
FUZZ_SECONDS ?= 60
CRASH_ROUNDS ?= 200
BENCH ?= quick
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: setup demo test wine crash check format bench bench-corpus fuzz lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Lamella needs Python 3.11 or newer, but '$(PYTHON)' is older; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; some systems ship it as a separate package, such as python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(PY) -m compileall -q src
	@touch $@

demo: $(READY)
	$(PY) demo/demo.py

# In two processes, file by file; JOBS=0 runs one process, as a debugger needs.
test: $(READY)
	$(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# With Windows' CPython under Wine (Debian's packages wine and wine64); ARGS selects other tests.
wine: $(READY)
	$(PY) tests/wine/run.py $(ARGS)

# Each run kills at other moments; a failure prints the seed that repeats them.
crash: $(READY)
	LAMELLA_CRASH_ROUNDS=$(CRASH_ROUNDS) LAMELLA_CRASH_SEED=$${LAMELLA_CRASH_SEED:-$$(date +%s)} \
	  $(PY) -m pytest -q -o timeout=3600 tests/crash $(ARGS)

check: $(READY)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -q tests/architecture

format: $(READY)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

# containerd needs root. BENCH=full adds the growth series and more rounds.
bench: $(READY)
	$(PY) -m benchmarks.run --$(BENCH) $(ARGS)

bench-corpus: $(READY)
	$(PY) -m benchmarks.corpus $(ARGS)

fuzz: $(READY)
	$(PY) tests/fuzz/run.py --seconds $(FUZZ_SECONDS) $(ARGS)

# Resolve the dependencies again, for all supported systems and Python versions.
lock:
	printf 'editables\nhatchling\n' | uv pip compile pyproject.toml - --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --upgrade --custom-compile-command 'make lock' -o requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
