# Every target sets up .venv by itself; a second run does nothing twice.
#   make demo     the story of FCN on digit scenes, and the quick throughput table, in less than five minutes
#   make story    its long version: three seeds, goals, figures and results for the README (tens of minutes)
#   make test     the test suite, several tests at once
#   make integrations   the tests with other people's libraries, which it installs
#   make fuzz     1000 drawn calls of every operator against the reference, always others
#   make fuzz-arguments  wrong arguments of every function, steered by libFuzzer, for ten minutes; part of make fuzz
#   make fuzz-triton     1000 drawn calls of every operator in Triton's interpreter, several tests at once (an hour)
#   make valgrind the AVX2 kernels under valgrind; part of make sanitize
#   make sanitize the kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (an hour)
#   make compat   one wheel with several versions of torch, which it installs (gigabytes), and without kernels
#   make coverage line coverage of the Python part and of csrc/cpu by all tests, make integrations included (half an hour)
#   make bench    the main job in full, every workload with its goal (about ten minutes)
#   make bench-check    whether ratios to the rivals are still those recorded for this processor (a minute)
#   make results  measures again what is committed in benchmarks/results (hours; a quiet machine), then make report
#   make report   tables and pictures of README.md and docs/ from the committed results
#   make suites   the pytest-benchmark suites
#   make codegen  what Triton's compiler makes of every kernel for four GPUs, without one (about an hour)
#   make lint     ruff and clang-format
#   make format   what ruff and clang-format can mend
#   make cuda     compile the CUDA part too (needs nvcc, not a GPU), and write what became of every kernel to CODE
#   make clean    remove what was built, but not .venv
# ARGS adds options: make bench ARGS=--list, make test ARGS="-k argmax".
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
EXTRAS := demo,bench,test,triton,lint
# A GPU that is visible gets its kernels; elsewhere the CPU part alone keeps the build short.
BUILD := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo auto || echo cpu)
# Several processes share the tests; one that has finished takes half of what another has left. Threads of OpenMP that wait
# leave their core to the others: by default they spin.
SHARED := -n logical --maxprocesses 4 --dist worksteal
PARALLEL := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(SHARED)

CODE ?= benchmarks/results/cuda-machine-code.json

INSTALLED := $(VENV)/.installed-$(BUILD)
SOURCES := $(wildcard csrc/* csrc/cpu/* csrc/cuda/*) setup.py build_kernels.py pyproject.toml

.PHONY: demo story test fuzz fuzz-arguments fuzz-triton valgrind sanitize compat coverage integrations bench bench-check results report suites codegen lint format cuda clean

demo: $(INSTALLED)
	$(BIN)/fcn-kernels demo --out build/demo $(ARGS)

story: $(INSTALLED)
	$(BIN)/fcn-kernels demo --long --seeds 0 1 2 --no-bench --out build/story $(ARGS)
	cp build/story/results.json benchmarks/results/story.json
	cp build/story/labels.png docs/story-labels.png
	cp build/story/heatmap.png docs/story-heatmap.png

test: $(INSTALLED)
	$(PARALLEL) $(ARGS)

fuzz: $(INSTALLED) fuzz-arguments
	$(BIN)/python -m pytest tests/test_differential.py tests/test_metamorphic.py -k cpu --hypothesis-profile=fuzz -q $(ARGS)
	$(BIN)/python -m pytest tests/test_guard_pages.py --hypothesis-profile=fuzz -q $(ARGS)

fuzz-arguments: $(INSTALLED)
	$(PIP) atheris
	mkdir -p build/fuzz
	$(BIN)/python tests/fuzz_arguments.py -max_total_time=600 -max_len=96 -timeout=120 -artifact_prefix=build/fuzz/ $(ARGS)

fuzz-triton: $(INSTALLED)
	TRITON_INTERPRET=1 $(PARALLEL) tests/test_differential.py -k triton --hypothesis-profile=fuzz -q $(ARGS)

valgrind: $(INSTALLED)
	$(BIN)/python tests/instrumented.py valgrind

sanitize: $(INSTALLED) valgrind
	$(BIN)/python tests/instrumented.py address -q $(ARGS)
	$(BIN)/python tests/instrumented.py thread -q $(ARGS)

compat:
	mkdir -p build
	$(PYTHON) tests/compat.py $(PYTHON) 2.13.0 2.11.0 newest

# One process: those that share tests are killed before they have written what they ran.
coverage: $(VENV)/.libraries $(VENV)/.engines
	$(PIP) "coverage>=7.10"
	$(BIN)/python tests/instrumented.py coverage -q $(ARGS)

integrations: $(VENV)/.libraries
	$(PARALLEL) tests/test_fusion.py tests/test_integration_*.py $(ARGS)

bench: $(INSTALLED)
	$(BIN)/fcn-kernels bench $(ARGS)

bench-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.check $(ARGS)

results: RESULTS := benchmarks/results
results: AVX2 := --instruction-set avx2
results: $(VENV)/.engines $(VENV)/.libraries
	$(BIN)/fcn-kernels bench $(AVX2) --max-autotune --json $(RESULTS)/cpu-avx2.json
	$(BIN)/fcn-kernels bench $(AVX2) --max-autotune --only 'score_*' --json $(RESULTS)/cpu-avx2-scores.json
	$(BIN)/fcn-kernels bench $(AVX2) --only 'grid-*' --json $(RESULTS)/cpu-avx2-grid.json
	$(BIN)/fcn-kernels bench $(AVX2) --threads 1 --no-compile --json $(RESULTS)/cpu-avx2-1thread.json
	$(BIN)/fcn-kernels bench --instruction-set avx512 --json $(RESULTS)/cpu-avx512.json
	$(BIN)/fcn-kernels bench --instruction-set avx512 --only 'score_*' --json $(RESULTS)/cpu-avx512-scores.json
	$(BIN)/python -m benchmarks.sweep $(AVX2) --json $(RESULTS)/sweep-avx2.json
	$(BIN)/python -m benchmarks.crossings $(AVX2) --json $(RESULTS)/crossings-avx2.json
	$(BIN)/python -m benchmarks.scaling $(AVX2) --json $(RESULTS)/scaling.json
	$(BIN)/python -m benchmarks.bench_overhead --json $(RESULTS)/overhead.json
	$(BIN)/python -m benchmarks.end_to_end --json $(RESULTS)/end-to-end.json
	$(BIN)/python -m benchmarks.low_precision --json $(RESULTS)/low-precision.json
	$(BIN)/python -m benchmarks.fcn8s --json $(RESULTS)/fcn8s.json
	$(BIN)/python -m benchmarks.drop_in --json $(RESULTS)/drop-in.json
	$(BIN)/python -m benchmarks.check --record
	$(BIN)/python -m benchmarks.report

report: $(INSTALLED)
	$(BIN)/python -m benchmarks.report

suites: $(INSTALLED)
	$(BIN)/python -m pytest benchmarks --peak-memory $(ARGS)

codegen: $(INSTALLED)
	$(BIN)/python -m fcn_kernels.benchmarking.codegen --json benchmarks/results/triton-codegen.json --markdown docs/triton-codegen.md $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp')

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.cpp')

cuda: $(VENV)/.tools
	FCN_KERNELS_BUILD=cuda $(PIP) --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $(INSTALLED)
	$(BIN)/fcn-kernels info
	$(BIN)/python -m fcn_kernels.benchmarking.machine_code --json $(CODE)

clean:
	rm -rf build dist *.egg-info fcn_kernels/_C*.so $(VENV)/.installed-* $(VENV)/.libraries $(VENV)/.engines

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and on its own: nothing that comes later chooses another one.
$(VENV)/.tools: | $(BIN)/python
	$(PIP) "$(TORCH)"
	$(PIP) "setuptools>=77" wheel ninja "pybind11>=2.12" build
	@touch $@

# --no-deps: torchvision asks for a torch of its own. The versions are those that the integrations name as tested.
$(VENV)/.libraries: $(INSTALLED)
	$(PIP) "transformers==5.23.*" accelerate pillow
	$(PIP) --no-deps "torchvision==0.29.*" "segmentation-models-pytorch==0.6.*" timm torchmetrics lightning-utilities
	$(PIP) onnx onnxscript onnxruntime
	@touch $@

$(VENV)/.engines: $(INSTALLED)
	$(PIP) onnx onnxruntime openvino
	@touch $@

$(INSTALLED): $(VENV)/.tools $(SOURCES)
	FCN_KERNELS_BUILD=$(BUILD) $(PIP) --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@
