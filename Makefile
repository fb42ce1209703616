# The developer interface. `make serve` and `make test` set everything up by themselves:
#   make serve [ARGS="--port 8080"]    the server, with the bundled demo model unless told otherwise
#   make test  [ARGS="tests/unit"]     the Python tests
#                                      (those of the page need Debian's chromium and chromium-driver)
#   make soak                          what takes long, half an hour: whole corpora of hostile
#                                      pictures, overload, mixed load with faults
#   make ctest                         the C++ tests (needs cmake)
#   make check                         linters, types, import contracts, layout
#   make docs                          the documentation's site, into build/site
#   make bench [ARGS="--operators gelu"]  operators beside torch's
#
# PYTHON  the interpreter to build for; if it has torch 2.11 or newer, that torch is used
# TORCH   what is installed otherwise: arguments of `pip install`

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
GPU := $(wildcard /proc/driver/nvidia/version)$(shell command -v nvidia-smi)
TORCH ?= $(if $(GPU),torch,torch==2.13.0)

PIP := $(VENV)/bin/python -m pip
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: serve test soak ctest check docs bench clean

serve: $(VENV)/built
	$(VENV)/bin/python -m lightvl.api_server $(ARGS)

# A worker per core; each computes with one thread, so that they don't fight for the cores.
test: $(VENV)/built $(VENV)/tools
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest \
	    -n logical --maxprocesses 8 --dist loadfile $(ARGS)

# Alone on the machine: it holds the server to times.
soak: $(VENV)/built $(VENV)/tools .cache/corpus/done
	$(PIP) install --quiet matplotlib
	mkdir -p build/soak
	LIGHTVL_CORPUS=$(CURDIR)/.cache/corpus $(VENV)/bin/python -m pytest -m soak \
	    --junitxml build/soak/tests.xml $(ARGS)
	$(VENV)/bin/python -m benchmarks.serving.overload \
	    --out build/soak/overload.jsonl --plot build/soak/overload.svg
	$(VENV)/bin/python -m benchmarks.serving.soak \
	    --out build/soak/soak.jsonl --plot build/soak/soak.svg

# Pillow's own test pictures, and those of PngSuite, from the sources of releases.
.cache/corpus/done: $(VENV)/built
	mkdir -p .cache/corpus/pngsuite
	$(PIP) download --quiet --no-deps --no-binary :all: \
	    --dest .cache/corpus pillow==13.0.0 pypng==0.20220715.0
	tar xzf .cache/corpus/pillow-13.0.0.tar.gz -C .cache/corpus --wildcards '*/Tests/images'
	tar xzf .cache/corpus/pypng-0.20220715.0.tar.gz -C .cache --wildcards '*/code/pngsuite.py'
	cd .cache/pypng-*/code && $(abspath $(VENV))/bin/python -c 'import pathlib, pngsuite; \
	    [(pathlib.Path("../../corpus/pngsuite") / f"{name}.png").write_bytes(data) \
	    for name, data in pngsuite.png.items()]'
	rm -r .cache/corpus/*.tar.gz .cache/pypng-*
	touch $@

ctest:
	cmake -S . -B build/cmake
	cmake --build build/cmake --parallel $$(nproc)
	ctest --test-dir build/cmake --output-on-failure

check: $(VENV)/built $(VENV)/tools
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(VENV)/bin/python -m pytest -q tests/unit/test_layout.py tests/unit/test_docs.py

docs: $(VENV)/tools
	$(VENV)/bin/python -m mkdocs build --strict

bench: $(VENV)/built
	$(PIP) install --quiet tqdm
	$(VENV)/bin/python -m benchmarks.kernels $(ARGS)

clean:
	rm -rf build $(VENV) lightvl/_C*.so

# The environment, with torch: the one that $(PYTHON) has, made visible by a path file, or a new one.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) -c 'import re, torch; print(torch.__path__[0].removesuffix("torch")); \
	    exit([int(n) for n in re.findall(r"\d+", torch.__version__)[:2]] < [2, 11])' \
	    2>/dev/null >$(VENV)/found \
	  && cp $(VENV)/found "$$($(VENV)/bin/python -c \
	    'import sysconfig; print(sysconfig.get_path("purelib"))')/found_torch.pth" \
	  || $(PIP) install $(TORCH)
	touch $@

# The package itself is editable: only a change of the sources below needs a new build.
$(VENV)/built: $(VENV)/torch $(SOURCES)
	$(PIP) install --quiet 'setuptools>=77' ninja packaging
	$(PIP) install --no-build-isolation --editable .
	@$(VENV)/bin/python -c 'from lightvl import ops; \
	    print(f"lightvl: built; this processor runs {ops.cpu_isa()}")'
	touch $@

# What the project itself lists for tests and development; installing `.[dev]` would build again.
$(VENV)/tools: $(VENV)/built
	$(VENV)/bin/python -c 'import tomllib; \
	    extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	    print(*extras["test"], *(r for r in extras["dev"] if "[" not in r), sep="\n")' \
	  >$(VENV)/requirements.txt
	$(PIP) install --quiet --requirement $(VENV)/requirements.txt
	touch $@
