# Every target works alone on a fresh Debian 12 machine: it prepares what it needs.
.DEFAULT_GOAL := help
.PHONY: help demo lab test test-vm lint bench fuzz setup clean

PYTHON := .venv/bin/python
SOURCES := protocol kernel parent_gateway encryption infra

help: ## Show this list
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.ready ## From an encrypted package to a notebook's result, in demo-output/
	@$(PYTHON) examples/ocr/demo.py

lab: .venv/.ready ## The same, with the notebook open in JupyterLab; Ctrl-C ends it
	@$(PYTHON) examples/ocr/demo.py --lab

test: .venv/.ready ## Run the test suite, two tests at a time; PYTEST="-k name -x -n 0" passes options on
	@$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

test-vm: .venv/.ready ## Run the tests in a virtual machine: a real image, real vsock (QEMU, no KVM)
	@.ci/image-tools && .ci/vm-tools
	@$(PYTHON) -m pytest -m vm --timeout 900 tests/vm $(PYTEST)

lint: .venv/.ready ## Check style, types and the import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy $(SOURCES) tests benchmarks
	.venv/bin/lint-imports

bench: .venv/.ready ## Measure against the stock kernel, openssl, rsync, RPyC, multiprocessing
	@command -v openssl >/dev/null || .ci/apt-install openssl
	@command -v rsync >/dev/null || .ci/apt-install rsync
	@$(PYTHON) -c 'import rpyc' 2>/dev/null || \
		$(PYTHON) -m pip install --quiet --quiet -e '.[bench]'
	@.ci/image-tools && .ci/vm-tools
	@missed=0; for name in kernel package_crypto vault_call release relay proxy sync sync_live vm; do \
		$(PYTHON) -m benchmarks.$$name || missed=1; \
	done; exit $$missed

fuzz: .venv/.ready ## Fuzz what strangers' bytes reach, FUZZ_SECONDS=60 in all; FUZZ="value cms" picks
	@$(PYTHON) -c 'import atheris' 2>/dev/null || \
		$(PYTHON) -m pip install --quiet --quiet --only-binary atheris -e '.[fuzz]' || \
		{ echo "atheris has no wheel for this Python: fuzz with another, see setup.cfg" >&2; exit 1; }
	@$(PYTHON) -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),60) $(FUZZ)

setup: .venv/.ready ## Make or refresh .venv, nothing else

.venv/.ready: setup.cfg pyproject.toml
	@.ci/setup

clean: ## Remove everything the other targets made
	rm -rf .venv .cache build demo-output *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
