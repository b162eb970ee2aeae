# Commands for a fresh machine with Python >= 3.10: `make demo` and `make test`. Everything goes into .venv.
# After a change of a node: `make nodes`. `make docs` builds the pages and the API reference into site/.
# `make test-minimum` runs the core's fast tests with the oldest versions that pyproject.toml allows (Python 3.10 to 3.12).
# `make test-host` tests the pack in a real ComfyUI, which goes into .cache; or in the one at COMFYUI_PATH, with COMFYUI_PYTHON.
PYTHON ?= python3
BIN := .venv/bin
HOST := .cache/host
MINIMUM := .cache/minimum
# the nodes' tests belong to the ComfyUI that is there; the pretended GPU replaces functions of today's torch
CORE_TESTS = $(filter-out $(wildcard tests/test_node*.py tests/test_native*.py tests/test_workflows.py tests/test_help.py), \
	$(wildcard tests/test_*.py))

.PHONY: demo test test-hostile hostile test-minimum types test-host nodes workflows pictures docs benchmark mutants clean

ifdef COMFYUI_PATH
HOST_READY := .venv/ready $(HOST)/node/ready
RUN_HOST := COMFYUI_PATH=$(abspath $(COMFYUI_PATH)) $(or $(COMFYUI_PYTHON),$(PYTHON))
else
HOST_READY := $(HOST)/ready $(HOST)/node/ready
RUN_HOST := COMFYUI_PATH=$(abspath $(HOST))/comfyui $(HOST)/venv/bin/python
endif

demo: .venv/ready
	$(BIN)/microdreamer image-to-3d samples/bird.png -o outputs/bird.glb --elevation 5 --keep-splat --report

test: .venv/ready
	$(BIN)/python -m pytest --ignore tests/hostile

# damaged files and random command lines, 1,000 examples a family, always the same
test-hostile: .venv/ready
	$(BIN)/python -m pytest tests/hostile

# the same with 10,000 examples and new seeds, and kills and interrupts of real runs: half an hour
hostile: .venv/ready
	MICRODREAMER_HOSTILE_EXAMPLES=10000 $(BIN)/python -m pytest -m "hostile or not hostile" tests/hostile

# the type checker, which reads [tool.pyright] of pyproject.toml
types: .venv/ready
	$(BIN)/basedpyright --pythonpath $(BIN)/python

test-minimum: $(MINIMUM)/ready
	$(MINIMUM)/venv/bin/python -m pytest -m "not slow" $(filter-out tests/test_pretended_gpu.py,$(CORE_TESTS))

test-host: $(HOST_READY)
	$(RUN_HOST) -m pytest tests/host -rs

# everything that repeats what the nodes' schemas say, and the drawing of the packages
nodes: $(HOST_READY)
	$(BIN)/python scripts/node_files.py
	$(BIN)/python scripts/architecture.py
	PYTHONPATH=tests $(RUN_HOST) tests/host/with_server.py scripts/workflows.py
	$(MAKE) workflows

# the API format of every workflow, as ComfyUI's own frontend exports it
workflows: $(HOST_READY)
	PYTHONPATH=tests $(RUN_HOST) tests/host/export_api.py

# pictures of the workflows and of the help pages, from real runs: minutes
pictures: $(HOST_READY)
	PYTHONPATH=tests:. $(RUN_HOST) tests/host/with_server.py scripts/thumbnails.py
	$(BIN)/python scripts/help_pictures.py

docs: .venv/docs-ready
	$(BIN)/python scripts/site_pages.py
	$(BIN)/mkdocs build --strict

benchmark: .venv/ready
	mkdir -p outputs
	$(BIN)/python benchmarks/renderer.py --json outputs/benchmark_renderer.json
	$(BIN)/python benchmarks/sir.py --json outputs/benchmark_sir.json
	$(BIN)/python benchmarks/job.py --json outputs/benchmark_job.json

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

.venv/docs-ready: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

$(MINIMUM)/ready: pyproject.toml scripts/minimum_versions.py
	$(PYTHON) -m venv $(MINIMUM)/venv
	$(PYTHON) scripts/minimum_versions.py > $(MINIMUM)/constraints.txt
	$(MINIMUM)/venv/bin/python -m pip install --quiet --upgrade pip
	$(MINIMUM)/venv/bin/python -m pip install --quiet -c $(MINIMUM)/constraints.txt -e '.[report]' 'pytest>=8'
	touch $@

$(HOST)/ready: .venv/ready requirements.txt tests/host/setup_host.py tests/host/constraints.txt tests/host/torchvision_operators.py
	PYTHONPATH=tests $(BIN)/python tests/host/setup_host.py server

$(HOST)/node/ready: tests/host/setup_host.py | .venv/ready
	PYTHONPATH=tests $(BIN)/python tests/host/setup_host.py browser

# how many changes of the mathematics the fast tests notice ([tool.mutmut] in pyproject.toml says which); half an hour on one core
mutants: .venv/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run --max-children 1
	$(BIN)/python scripts/mutation_score.py

clean:
	rm -rf .venv .cache mutants outputs site
