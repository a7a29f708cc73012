# What users and contributors run. Everything lives in .venv, which is made when needed and need not be activated.
# Variables: PYTHON (which Python makes .venv), ARGS (more arguments, e.g. make test ARGS="-k tokenizer").
PYTHON ?= python3
BIN := .venv/bin
INSTALLED_FROM := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/tallow/kernels/*/*.cpp src/tallow/kernels/*/*.h)

# The pins hold for the package and, in pip before and after 25.3, for the tools that build it.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test sanitize check docs bench clean help
help:
	@echo 'make quickstart  train, tune, compress and try a small language model (about eight minutes)'
	@echo 'make test        run the tests'
	@echo 'make sanitize    run the tests of the text kernels with sanitizers of memory and undefined behaviour'
	@echo 'make check       formatting, lint, types, layers'
	@echo 'make docs        build the manual into site/'
	@echo 'make bench       measure speed on this machine'
	@echo 'make clean       remove what builds and checks leave behind (runs/ and the packages in .venv* stay)'

quickstart: .venv/.installed
	$(BIN)/tallow run recipes/quickstart.yaml $(ARGS)

test: .venv/.installed-dev .venv-clients/.installed
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

# The extension is built apart, and takes the place of the installed one for these tests only. Tests that measure
# time or memory are left out: under sanitizers everything takes several times as much.
SANITIZED := build/sanitized
sanitize: .venv/.installed-dev
	$(BIN)/pip install --quiet cmake ninja nanobind
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(BIN)/ninja" \
	    -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" -Dnanobind_DIR="$$($(BIN)/python -m nanobind --cmake_dir)" \
	    -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined \
	    -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS"
	$(BIN)/cmake --build $(SANITIZED) --target _text
	TALLOW_TEXT_KERNELS="$(CURDIR)/$(SANITIZED)" ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    $(BIN)/pytest -p no:cacheprovider tests/kernels/text -k 'not time and not memory' $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/.installed-dev
	for script in benchmarks/*.py; do $(BIN)/python "$$script" || exit; done

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache .venv/.installed*
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# Installing again rebuilds the C++ kernels; edits of Python files need no installing.
.venv/.installed: $(INSTALLED_FROM) | $(BIN)/pip
	$(BIN)/pip install --editable .
	@touch $@

.venv/.installed-dev: $(INSTALLED_FROM) | $(BIN)/pip
	$(BIN)/pip install --editable '.[dev,docs]'
	@touch $@ .venv/.installed

# Other people's clients, whose pins exclude ours: the tests of the server run them in processes of their own.
# All that they need is listed, so nothing needs resolving.
.venv-clients/.installed: tests/serve/clients.txt
	$(PYTHON) -m venv --clear .venv-clients
	env -u PIP_CONSTRAINT .venv-clients/bin/pip install --quiet --no-deps --no-compile --requirement $<
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'tallow needs Python 3.11 or newer; name one: make PYTHON=python3.12 …' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv .venv
