# The commands of a fresh clone: they need git, make and Python 3.10 or later with venv, and install the rest into .venv.
# README.md has the same lines for who has no make.

PYTHON ?= python3
VENV ?= .venv
# The releases that were tested; `make constraints` renews the file. Empty: the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
# PyTorch's index of builds without CUDA. Where it cannot be reached, or is empty, pip takes the torch it finds itself.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_PACKAGES ?= torch
# Extras of pyproject.toml: dev tests the core, ci everything (Ray, KServe, OpenCV; 2 GB more), contracts what
# tests/contracts compares with.
EXTRAS ?= dev
# For example: make test PYTEST_ARGS="tests/quant -x"
PYTEST_ARGS ?=

python := $(abspath $(VENV))/bin/python
constrained := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
pip_install := $(python) -m pip install --disable-pip-version-check --quiet $(constrained)

.PHONY: demo first three test quick lint types constraints newest clean

## demo: first a number from a small network, then the three commands on wide_resnet50_2
demo: first three

FIRST := torchvision_resnet18-int8-percentile-3_224_224-vacc
first: $(VENV)/installed
	$(python) -m pipeline build torchvision_resnet18.yaml --set backend.quantize.weight_rounding=nearest --set evaluation.num=100
	$(python) -m pipeline bench -m $(FIRST) -b 4 -i 2 --duration 3 --path_output output_first
	$(python) -m pipeline eval --result_path output_first

three: $(VENV)/installed
	$(python) -m pipeline build timm_wideres.yaml
	$(python) -m pipeline bench -b 22 -i 8
	$(python) -m pipeline eval --result_path output

## test: the tests; those of extras that are not installed skip
test: $(VENV)/installed-$(EXTRAS)
	$(python) -m pytest $(PYTEST_ARGS)

## quick: those that take less than about a second each, in two processes; the tests of a file in one of them
quick: $(VENV)/installed-$(EXTRAS)
	$(python) -m pytest -m "not slow" --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

## lint, types: what CI checks before the tests
lint: $(VENV)/installed-$(EXTRAS)
	$(python) -m ruff format --check .
	$(python) -m ruff check .

types: $(VENV)/installed-$(EXTRAS)
	$(python) -m mypy

## constraints: renew constraints.txt with the newest releases that pyproject.toml allows
constraints:
	rm -rf $(VENV)-new
	$(MAKE) VENV=$(VENV)-new EXTRAS=ci CONSTRAINTS= $(VENV)-new/installed-ci
	$(VENV)-new/bin/python -m pip freeze --exclude-editable > $(VENV)-new/freeze
	sed -n '/^#/p' constraints.txt > $(VENV)-new/constraints.txt
	sed -E 's/(\+cpu)?$$/; python_version >= "3.11"/' $(VENV)-new/freeze >> $(VENV)-new/constraints.txt
	cp $(VENV)-new/constraints.txt constraints.txt

## newest: what we rely on in other libraries, tried with the newest releases of everything; prints what failed, what
## was not compared, and which releases are others than the pinned ones
newest:
	rm -rf $(VENV)-new
	$(MAKE) VENV=$(VENV)-new EXTRAS=contracts CONSTRAINTS= TORCH_PACKAGES="torch torchvision" $(VENV)-new/installed-contracts
	$(VENV)-new/bin/python -m pytest tests/contracts --tb=line -rfEs $(PYTEST_ARGS); result=$$?; \
	$(VENV)-new/bin/python tests/contracts/compare_releases.py constraints.txt; exit $$result

clean:
	rm -rf $(VENV) $(VENV)-new

# torch comes first and alone: an index that does not answer is then asked once, not once for each package.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	$(pip_install) --no-deps --timeout 15 --retries 1 --index-url $(TORCH_INDEX) $(TORCH_PACKAGES) || echo "no torch from $(TORCH_INDEX): taking what pip finds"
endif
	$(pip_install) --editable .
	touch $@

$(VENV)/installed-$(EXTRAS): $(VENV)/installed
	$(pip_install) --editable '.[$(EXTRAS)]'
	touch $@
