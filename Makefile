# One habit a target; `make help` lists them. Everything runs inside .venv, which the first call makes.
SHELL := /bin/bash
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
PYTHON ?= python3
export BASE ?= smollm2

# An environment works where it was set up and with the Python it was set up with. In a moved, renamed or copied folder, and where that Python is gone, it is made anew.
TAG := $(VENV)/bin/python -ISc 'import sys; print(sys.implementation.cache_tag)'
ifneq ($(CURDIR) $(shell $(TAG) 2>/dev/null),$(shell cat $(VENV)/ready 2>/dev/null))
ELSEWHERE := elsewhere
endif

# a folder of wheels that `make wheels` filled, for a machine without a network
PACKAGES := $(if $(WHEELS),--no-index --find-links "$(abspath $(WHEELS))")

.DEFAULT_GOAL := help
.PHONY: help setup elsewhere wheels edge data base adopt run studies test test-slow check export new lab profile effects estimate scaling report papers bench serve

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## ?/  make \1\t/' | expand -t 18

setup: $(VENV)/ready  ## environment, hooks and notebooks' merge driver; WHEELS=folder takes packages from there, without a network
	@bash .githooks/setup

elsewhere:
	@test ! -e $(VENV)/ready || echo "$(VENV) was set up in another folder or for another Python; it is made anew"
	@rm -rf $(VENV)

$(VENV)/ready: requirements.lock pyproject.toml $(ELSEWHERE)
	@"$(PYTHON)" -c 'import sys; sys.exit(0 if (3, 11, 5) <= sys.version_info < (3, 14) else "error: Python 3.11.5 to 3.13 is needed, %s is %s; name another with `make run PYTHON=python3.11`" % (sys.executable, sys.version.split()[0]))'
	@echo "setting up $(VENV) (a few minutes, once)"
	@test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(PACKAGES) -r requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(PACKAGES) -e .
	@{ pwd -P && $(TAG); } > $@

wheels: PACKAGES :=
wheels: setup  ## a wheel of every package of the locks, for machines of this kind without a network; WHEELS=folder
	@python -m pip wheel --disable-pip-version-check --no-deps --wheel-dir "$(or $(WHEELS),wheels)" -r requirements.lock -r requirements-edge.lock
	@echo "$$(ls "$(or $(WHEELS),wheels)" | wc -l) files; carry the folder there, then: make setup WHEELS=folder"

edge: setup  ## the packages that write and replay the forms onnx and pte; WHEELS=folder takes them from there
	@python -m pip install --quiet --disable-pip-version-check --no-deps $(PACKAGES) -r requirements-edge.lock

data: setup  ## fetch and check the default data; FROM=folder takes a folder of yours
	@if [ -n "$$FROM" ]; then python -m forge_nb.data.own_data "$$FROM"; else python -m forge_nb.data.default_company; fi && python -m forge_nb.data.versions
	@[ -z "$$FROM" ] || python -m forge_nb.ops.check data

base: setup  ## fetch a base model, once: make base BASE=smollm2
	@python -m forge_nb.train.bases "$$BASE"

adopt: setup  ## accept data/ as it is now
	@python -m forge_nb.core.runner adopt && dvc add --quiet data && python -m forge_nb.data.versions

run: data  ## environment, data, the whole pipeline, behind a run that is under way; ends with the results
	@if python -c "import forge_nb.ops.watch" 2>/dev/null; then python -m forge_nb.ops.watch; else dvc repro; fi
	@python -m forge_nb.report.pages

search: setup  ## search a folder before any training: FROM=folder, and Q="words" to ask once
	@python -m forge_nb.ops.search "$$FROM" $${Q:+"$$Q"}

studies: data base  ## comparisons and extensions beside the pipeline, a DVC project of their own: studies/dvc.yaml
	@dvc repro sft && cd studies && dvc repro

test: data  ## the tests that CI runs, whole files at a time on as many cores as there are, four at most
	@OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: data  ## what is too slow for every commit, recorded in results/slow.csv
	@OMP_NUM_THREADS=1 python -m pytest -m slow -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: setup  ## quick checks: export fresh, notebooks clean, lint, lessons run
	@bash .githooks/pre-commit
	@OMP_NUM_THREADS=1 nbdev-test --n-workers 2

export: setup  ## write forge_nb/ from the notebooks, and clean them: no outputs of a run by hand
	@python -c "import forge_nb.core.tangle" 2>/dev/null || for b in core/00_project core/10_tangle; do python -c "from nbdev.export import nb_export; nb_export('nbs/$$b.ipynb', 'forge_nb')" 2>/dev/null || { echo "error: nbs/$$b.ipynb cannot be exported; \`nbdev-fix nbs/$$b.ipynb\` where a merge left its marks, or \`git checkout -- nbs/$$b.ipynb\`" >&2; exit 2; }; done
	@python -m forge_nb.core.tangle export

new: setup  ## a stage that runs and passes every test at once: make new STAGE=name
	@python -m forge_nb.ops.new_stage "$$STAGE" && python -m forge_nb.core.tangle export

# what a kernel reads when it starts; the rest is in nbs/core/60_lab.ipynb
lab: export PYTHONPATH := $(CURDIR)
lab: export PYTHONHASHSEED := 0
lab: export HF_HUB_OFFLINE := 1
lab: setup  ## JupyterLab on this machine only: the project, with the tour open
	@jupyter lab --ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/nbs/index.ipynb \
	  --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.extension_manager=readonly

profile: setup  ## write the fields of config/profiles/$(P).yaml into params.yaml
	@python -m forge_nb.core.runner profile $${P:+"$$P"} && { git --no-pager diff --stat -- params.yaml 2>/dev/null || true; }

effects: data  ## the chain over three seeds, or SEEDS="0 1 2 3 4 5", for releases; writes effects.csv, answers.csv and floors.csv in results/
	@python -m forge_nb.ops.seeds $${SEEDS:-0 1 2}
	@python -m forge_nb.report.pages readme

estimate: setup  ## what a run will take: every stage, memory, larger machines, serving, own or rent; ARGS="--cycles 2"
	@forge estimate $${ARGS}

scaling: data  ## the runs behind `forge estimate`'s best size; writes results/scaling.csv
	@dvc repro --quiet tokenizer && python -m forge_nb.train.scaling_law

report: setup  ## README.md and docs/RESULTS.md from their templates, and the report site, reports/html/index.html
	@python -m forge_nb.report.pages readme
	@python -m forge_nb.ops.site

serve: setup  ## the promoted release behind OpenAI's interface, on this machine; ARGS="--port 8000"
	@forge serve $${ARGS}

papers: setup  ## what an audit asks: cards, technical documentation, risks, changes, bill of materials; writes papers/
	@forge papers

bench: data  ## measure in a fresh clone, all or PART=chain|ci|data|readers|index|pretrain|tune|evaluate|lineage|release; writes docs/BENCH.md
	@python -m forge_nb.bench.bench $${PART:+"$$PART"}
