# Two commands for a fresh machine with Python >= 3.10: `make demo` and `make test`. Everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test benchmark clean

demo: .venv/ready
	$(BIN)/microdreamer image-to-3d examples/bird.png -o outputs/bird.glb --elevation 5 --keep-splat --report

test: .venv/ready
	$(BIN)/python -m pytest

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

clean:
	rm -rf .venv outputs
