# The verbs. `make dev` and `make test` set everything up by themselves: they need Python >= 3.11 with
# its headers and venv, gcc and make. What they install goes into $(VENV) and nowhere else.
#
#   VENV=path     another virtual environment        ARGS="..."   arguments for the command of the verb
#   PYTHON=path   the interpreter to build it with   BUILD=debug  release, debug, sanitize, trace
#   PACKAGE=path  what to install: a wheel instead of this checkout
#   WORKERS=n     processes that share the tests of `make test`; as many as there are processors, 4 at most

VENV ?= .venv
ARGS ?=
BUILD ?= release
PACKAGE ?= .
PYTHON ?= $(shell .ci/find-python)
WORKERS ?= $(shell nproc)
BIN := $(VENV)/bin
# A module is run by one worker: some start a cluster for all of their tests.
PYTEST_SHARED = $(BIN)/pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --retries 5 --timeout 60

# Everything that ends up in the package: a change of any of it installs again.
SOURCES := $(shell find kimberlite -type f ! -path '*/__pycache__/*' ! -name '*.so' ! -name '_native.c') \
	setup.py pyproject.toml

# Of these the compiled modules are made.
COMPILED := $(filter %.pyx %.pxd %.c %.h kimberlite/_sys/%.py setup.py,$(SOURCES))

.PHONY: dev test quick cases lint bench sim enumerate faults asan docs wheel clean
.DEFAULT_GOAL := test

# --- set-up -------------------------------------------------------------------------------------

$(VENV)/stamp-venv: .ci/check-python
	.ci/check-python "$(PYTHON)"
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) install 'pip>=25.1'
	touch $@

# Lists of dependencies come from pyproject.toml alone.
$(VENV)/stamp-test: $(VENV)/stamp-venv pyproject.toml
	$(PIP) install --group test
	touch $@

$(VENV)/stamp-lint: $(VENV)/stamp-venv pyproject.toml
	$(PIP) install --group lint
	touch $@

$(VENV)/stamp-package: $(VENV)/stamp-venv $(SOURCES) $(filter %.whl,$(PACKAGE))
	rm -rf build/lib* build/temp* build/bdist*  # no object of another mode, no module that is gone
	$(PIP) uninstall --yes kimberlite-vsr 2>/dev/null  # pip takes a wheel of the same version for the same wheel
	KIMBERLITE_BUILD=$(BUILD) $(PIP) install "$(PACKAGE)"
	touch $@

# The compiled modules in the checkout itself, with the dependencies from an installation of whatever age.
$(VENV)/stamp-inplace: $(VENV)/stamp-test $(COMPILED)
	test -e $(VENV)/stamp-package || $(MAKE) $(VENV)/stamp-package
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# --- verbs --------------------------------------------------------------------------------------

dev: $(VENV)/stamp-package
	@echo "In another terminal: . $(BIN)/activate; then kimberlite append FILE, read, status"
	$(BIN)/kimberlite dev $(ARGS)

# The tests run against the installed package: pytest itself does not put the checkout on its path.
test: $(VENV)/stamp-package $(VENV)/stamp-test
	$(PYTEST_SHARED) $(ARGS)

# After an edit of Python nothing is built: the unit tests of the control plane, against the checkout.
quick: $(VENV)/stamp-inplace
	printf 'tests/unit/%s\n' 'vsr tests/unit/net tests/unit/telemetry' node client | PYTHONPATH="$(CURDIR)" \
	xargs -P 3 -I {} sh -c '$(BIN)/pytest -q -m "not slow" -p no:cacheprovider $(ARGS) {}'

# Inputs that once broke a promise, on real processes. ARGS=--sample: the short form.
cases: $(VENV)/stamp-package $(VENV)/stamp-test
	$(BIN)/python tests/cases/run.py $(ARGS)

lint: $(VENV)/stamp-package $(VENV)/stamp-test $(VENV)/stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/stamp-package $(VENV)/stamp-test
	$(BIN)/pytest -o addopts=--import-mode=importlib --benchmark-only --benchmark-disable-gc benches $(ARGS)

sim: $(VENV)/stamp-package
	$(BIN)/kimberlite vopr run --seeds 0:1000 --jobs "$$(nproc)" $(ARGS)

# Every damage of a small disk: a million images. And every crash of a scripted run. And what `make test` takes a sample
# of: the tests marked `whole`.
enumerate: $(VENV)/stamp-package $(VENV)/stamp-test
	$(PYTEST_SHARED) --whole -m whole
	$(BIN)/kimberlite vopr enumerate corruption --jobs "$$(nproc)" $(ARGS)
	$(BIN)/kimberlite vopr enumerate crashes --jobs "$$(nproc)" $(ARGS)
	$(BIN)/kimberlite vopr enumerate conversions --jobs "$$(nproc)" $(ARGS)

# Real processes under real faults, every single one: kill -9 before each system call that writes the disk (hours), and
# a disk whose blocks fail (root; minutes). The tests run a sample of the first and all of the second.
faults: $(VENV)/stamp-package
	$(BIN)/python tests/rigs/block_errors.py $(ARGS)
	$(BIN)/python tests/rigs/kill_points.py --all $(ARGS)

# The compiled code under AddressSanitizer and UndefinedBehaviorSanitizer, in an environment of its own. pytest captures
# what Python prints and no more: a report of the sanitizers goes to the terminal. Too large an allocation fails, as it
# does without them. Freed memory is kept in quarantine, so the test of the resident size has nothing to say here.
asan:
	$(MAKE) VENV=$(VENV)-asan BUILD=sanitize $(VENV)-asan/stamp-package $(VENV)-asan/stamp-test
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	PYTHONMALLOC=malloc \
	$(VENV)-asan/bin/pytest --capture=sys \
	--deselect tests/fast/test_append.py::test_no_memory_is_lost tests/fast tests/unit/storage $(ARGS)

docs: $(VENV)/stamp-package
	$(BIN)/python docs/generate.py

# The source distribution, and the wheel that is made of it and nothing else.
wheel: $(VENV)/stamp-venv
	rm -rf dist build/lib* build/temp* build/bdist*
	$(PIP) install build
	$(BIN)/python -m build --outdir dist .
	.ci/check-sdist
	.ci/check-wheel "$(PYTHON)"

clean:
	rm -rf $(VENV) $(VENV)-asan build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find kimberlite tests benches examples -name __pycache__ -type d -exec rm -rf {} +
	rm -f kimberlite/_fast/*.so kimberlite/_sys/*.so kimberlite/_sys/_native.c
