# Commands for a fresh machine with Python >= 3.10: `make demo` and `make test`. Everything goes into .venv.
# `make test-minimum` runs the core's fast tests with the oldest versions that pyproject.toml allows (Python 3.10 to 3.12).
# `make test-host` tests the pack in a real ComfyUI, which goes into .cache; or in the one at COMFYUI_PATH, with COMFYUI_PYTHON.
PYTHON ?= python3
BIN := .venv/bin
HOST := .cache/host
MINIMUM := .cache/minimum
# the nodes' tests belong to the ComfyUI that is there
CORE_TESTS = $(filter-out $(wildcard tests/test_node*.py tests/test_native*.py tests/test_workflows.py tests/test_help.py), \
	$(wildcard tests/test_*.py))

.PHONY: demo test test-minimum test-host workflows benchmark clean

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
	$(BIN)/python -m pytest

test-minimum: $(MINIMUM)/ready
	$(MINIMUM)/venv/bin/python -m pytest -m "not slow" $(CORE_TESTS)

test-host: $(HOST_READY)
	$(RUN_HOST) -m pytest tests/host -rs

# the API format of every workflow, as ComfyUI's own frontend exports it
workflows: $(HOST_READY)
	$(RUN_HOST) tests/host/export_api.py

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

$(MINIMUM)/ready: pyproject.toml scripts/minimum_versions.py
	$(PYTHON) -m venv $(MINIMUM)/venv
	$(PYTHON) scripts/minimum_versions.py > $(MINIMUM)/constraints.txt
	$(MINIMUM)/venv/bin/python -m pip install --quiet --upgrade pip
	$(MINIMUM)/venv/bin/python -m pip install --quiet -c $(MINIMUM)/constraints.txt -e '.[report]' 'pytest>=8'
	touch $@

$(HOST)/ready: .venv/ready requirements.txt tests/host/setup_host.py tests/host/constraints.txt tests/host/torchvision_operators.py
	$(BIN)/python tests/host/setup_host.py server

$(HOST)/node/ready: tests/host/setup_host.py | .venv/ready
	$(BIN)/python tests/host/setup_host.py browser

clean:
	rm -rf .venv .cache outputs
