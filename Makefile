# `make demo` and `make test` need Python 3.11+ and nothing else; both make .venv when it is missing or stale.
PYTHON ?= python3
BIN := .venv/bin

# The other Celery that pyproject.toml allows; constraints.txt names the one that is installed.
OTHER_CELERY := 5.7.0

# Four at a time, for most tests wait for processes. Those of a file stay together: they share servers, and some
# look for marked processes. One of the four that dies is not replaced: the rest would wait for it for ever (xdist 3.8).
AT_ONCE := -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

, := ,
# By uv, which is fast; by pip where the index is one that only pip is told of.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python -e '$(1)' -c constraints.txt 2>/dev/null \
	|| $(BIN)/pip install --quiet --disable-pip-version-check -e '$(1)' -c constraints.txt

.PHONY: demo test test-other-celery attacks storm check format docs lock clean

demo: .venv/bare
	@rm -rf .demo
	PTC_SANDBOX=local $(BIN)/ptc-enqueue --local --replay deploy/demo --output .demo deploy/demo/plan.json

test: .venv/ready
	$(BIN)/pytest $(AT_ONCE)

test-other-celery: .venv/other-celery/ready
	.venv/other-celery/bin/pytest $(AT_ONCE) tests/integration/test_transport.py tests/integration/test_workers.py tests/faults

attacks: .venv/ready
	PTC_TEST_ALL_WAYS=1 $(BIN)/pytest $(AT_ONCE) tests/sandbox

storm: .venv/ready
	$(BIN)/python tests/faults/storm.py --shape both
	$(BIN)/python tests/faults/storm.py --shape split

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# What the demo needs: a worker, and nothing of the tests.
.venv/bare: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("PTC needs Python 3.11 or newer: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	@echo "Installing into .venv …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check uv -c constraints.txt
	@$(call install,.[worker$(,)node$(,)local])
	@touch $@

.venv/ready: .venv/bare
	@echo "Installing what the tests need …"
	@$(call install,.[dev])
	@touch $@

.venv/other-celery/ready: .venv/ready
	@grep -Ev '^(celery|python-dateutil)==' constraints.txt > .venv/other-constraints.txt
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/other-celery
	@$(BIN)/uv pip install --quiet --python .venv/other-celery/bin/python -e '.[dev]' celery==$(OTHER_CELERY) -c .venv/other-constraints.txt
	@touch $@

docs: .venv/ready
	$(BIN)/python tests/readme.py

lock:
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --upgrade --no-emit-index-url --no-header --no-annotate -o constraints.txt

clean:
	rm -rf .venv .demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
