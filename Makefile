# `make help` lists the targets. All of them set up $(VENV) on first use; later ones start at once.
PYTHON ?= python3
# Where ROS 2 is sourced it is used, in an environment of its own beside the one without ROS.
VENV ?= .venv$(addprefix -,$(ROS_DISTRO))

TASK ?=
EPISODES ?= 10
SEED ?= 0
CHECKPOINT ?=
MODE ?= lockstep
VIDEO ?= 1
BAGS ?=
# Tests side by side.
WORKERS ?= 2

# The stamp is named after what was installed, so that another lock file installs again.
LOCK := lock/constraints.txt lock/numpy1.txt setup.py .ci/setup.sh
STAMP := $(VENV)/.set-up-$(shell cat $(LOCK) | sha256sum | cut -c1-16)
RUN := $(VENV)/bin/python
# Where ROS looks for the package's nodes and share/.
export AMENT_PREFIX_PATH := $(abspath $(VENV))$(addprefix :,$(AMENT_PREFIX_PATH))
SOURCES := diffusion_policy_ros launch lock setup.py test training

.DEFAULT_GOAL := help
.PHONY: help setup sim record test test-slow lint checkpoint lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20
	@echo 'Variables of make sim: CHECKPOINT=$(CHECKPOINT) TASK=$(TASK) EPISODES=$(EPISODES) SEED=$(SEED)' \
	  'MODE=lockstep|realtime VIDEO=1|0'

setup: $(STAMP) ## make the virtual environment (what the other targets do by themselves)

$(STAMP):
	@PYTHON='$(PYTHON)' .ci/setup.sh '$(VENV)'
	@rm -f $(VENV)/.set-up-* && touch $@

sim: $(STAMP) ## run the policy on MetaWorld's arm over ROS 2 topics, count successes, write a video
	@$(VENV)/bin/metaworld_sim $(if $(TASK),--task '$(TASK)') --episodes '$(EPISODES)' --seed '$(SEED)' \
	  --mode '$(MODE)' $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)') \
	  $(if $(filter 0 no false,$(VIDEO)),--no-video,--video)

record: $(STAMP) ## record demonstrations of TASK as rosbags, one an episode
	@$(VENV)/bin/record_demos $(if $(TASK),--task '$(TASK)') --episodes '$(EPISODES)' \
	  $(if $(filter-out 0,$(SEED)),--seed '$(SEED)') $(if $(BAGS),--folder '$(BAGS)')

test: $(STAMP) ## run the tests, but for the slow ones
	@$(RUN) -m pytest -m 'not slow' -n $(WORKERS) --dist loadfile

test-slow: $(STAMP) ## run the slow tests
	@$(RUN) -m pytest -m slow

lint: $(STAMP) ## check the style: ruff, and flake8 as ament sets it
	@$(RUN) -m ruff check $(SOURCES)
	@$(RUN) -m flake8 $(SOURCES)

checkpoint: $(STAMP) ## remake the default checkpoint: demonstrations, training, evaluation
	$(RUN) training/collect_demos.py --task drawer-open-v3 --episodes 110 --cameras arm wrist \
	  -o data_sets/drawer_open.zarr
	$(RUN) training/train.py config/training/drawer_open.yaml -d data_sets/drawer_open.zarr \
	  -o out/training/drawer_open
	$(RUN) training/evaluate.py out/training/drawer_open/checkpoint --episodes 100 \
	  -o out/training/drawer_open/evaluation.json
	$(RUN) training/model_card.py out/training/drawer_open \
	  -e out/training/drawer_open/evaluation.json -v results/drawer_open \
	  -o config/checkpoints/drawer_open

lock: ## resolve every pinned version anew (needs Python 3.10 to 3.13)
	@$(PYTHON) lock/lock.py

clean: ## remove what was built, but for the virtual environments and out/
	@rm -rf build install log .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find diffusion_policy_ros launch test training -name __pycache__ -prune -exec rm -rf {} +
