# `make run` and `make test` work on a fresh Debian or Ubuntu with rustup, as root or with sudo.
# They say what they do, install or name what is missing, and are quick the second time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build run install uninstall models test lint unit e2e deny bench clean

JOBS ?= $(shell n=$$(nproc); echo $$(( n < 2 ? n : (n > 8 ? 8 : n) )))
CARGO := cargo
PLUGINS := cuda echo llama onnx remote translation vector vision
# Plugins to copy: built, so that they stay right, and not delivered.
EXAMPLES := metered-echo
# What `make install` takes, and where it puts it.
BUILT ?= target/release
PREFIX ?= /usr/local
COMPLETIONS = $(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions/backplane \
	zsh/site-functions/_backplane fish/vendor_completions.d/backplane.fish)
CACHE := $(CURDIR)/.cache
# Models that tests use, kept between runs; a fresh clone fetches them (800 MB).
TEST_STATE := $(CACHE)/state
TEST_MODELS := smollm2 qwen2.5-coder:0.5b minilm magika lid.176 pp-ocr pp-ocr:v6 yolov3-tiny efficientnet-lite0 mtcnn onnxruntime nvrtc
VENV := $(CACHE)/venv
# `-p e2e` would choose other features of what the workspace shares, and cargo would build all of it again.
E2E := $(shell sed -n '/^\[\[test\]\]/,/^path/s/^name = "\(.*\)"/--test \1/p' tests/Cargo.toml)
QUESTION := What is the capital of France? Answer in one sentence.

say = printf '\033[1m==> %s\033[0m\n' "$(1)"

help: ## Says what there is.
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 11

setup: ## Installs, or names, what a build needs: cmake, clang, libclang, python3 with venv.
	@tests/setup.sh

build: setup ## Builds the program and its plugins, optimised.
	@$(call say,building (the first time llama.cpp takes some minutes))
	@$(CARGO) build --release -j $(JOBS) -p backplane-cli -p backplane-worker $(addprefix -p backplane-,$(PLUGINS) $(EXAMPLES))
	@mkdir -p target/release/plugins
	@for plugin in $(PLUGINS); do cp -u --remove-destination target/release/libbackplane_$$plugin.so target/release/plugins/; done

run: ## Builds, fetches a model, serves, asks it one question, and keeps serving.
	@tests/free-port.sh
	@$(MAKE) --no-print-directory build
	@$(call say,fetching a starter model and ONNX Runtime (once))
	@target/release/backplane pull --yes onnxruntime minilm smollm2
	@tests/offer.sh target/release/backplane task-models $(CACHE)/offered
	@$(call say,serving; stop with Ctrl+C)
	@tests/serve-and-ask.sh target/release/backplane smollm2 "$(QUESTION)"

# Not `install: build`: with sudo, cargo would be root's, and what it builds too.
install: ## Installs what was built below PREFIX (/usr/local): program, worker, plugins, completions.
	@test -x $(BUILT)/backplane || { echo 'nothing is built yet: `make build`, then `make install`' >&2; exit 1; }
	@install -D -t $(DESTDIR)$(PREFIX)/bin $(BUILT)/backplane
	@install -D -t $(DESTDIR)$(PREFIX)/lib/backplane $(BUILT)/backplane-worker
	@install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/backplane/plugins $(PLUGINS:%=$(BUILT)/libbackplane_%.so)
	@mkdir -p $(dir $(COMPLETIONS))
	@$(BUILT)/backplane completions bash > $(word 1,$(COMPLETIONS))
	@$(BUILT)/backplane completions zsh > $(word 2,$(COMPLETIONS))
	@$(BUILT)/backplane completions fish > $(word 3,$(COMPLETIONS))
	@echo 'installed: $(PREFIX)/bin/backplane'

uninstall: ## Removes what `make install` put there; models and keys stay in the state directory.
	@rm -rf $(DESTDIR)$(PREFIX)/lib/backplane
	@rm -f $(DESTDIR)$(PREFIX)/bin/backplane $(COMPLETIONS)

models: ## Fetches the models that tests use.
	@$(call say,fetching test models (once))
	@$(CARGO) build -j $(JOBS) --quiet --workspace --bin backplane
	@BACKPLANE_STATE=$(TEST_STATE) target/debug/backplane pull --yes $(TEST_MODELS)

$(VENV)/ready: tests/clients/requirements.txt
	@$(call say,installing the client packages that tests drive the server with)
	@python3 -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	@$(VENV)/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary=openai \
		--dest $(CACHE)/sdist $$(grep -o '^openai.*' $< | sed 's/\[.*\]//')
# RapidOCR asks for an OpenCV with windows; of scikit-image, a few pictures are wanted.
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps rapidocr-onnxruntime==1.4.4 rapidocr==3.10.0
	@$(VENV)/bin/pip download --quiet --disable-pip-version-check --no-deps --dest $(CACHE)/sdist scikit-image==0.26.0
	@touch $@

test: setup lint unit e2e ## Everything CI runs.

lint: ## Formatting and lints.
	@$(call say,formatting)
	@$(CARGO) fmt --all --check
	@$(call say,lints)
	@$(CARGO) clippy -j $(JOBS) --quiet --workspace --all-targets -- -D warnings

# Tests make plugins panic; where one should not, `RUST_BACKTRACE=1 cargo test` tells more.
unit e2e: export RUST_BACKTRACE := 0
unit: setup models $(VENV)/ready ## Tests of every crate but the end-to-end ones.
	@$(call say,tests of every crate but the end-to-end ones)
	@BACKPLANE_TEST_MODELS=$(TEST_STATE) BACKPLANE_TEST_PYTHON=$(VENV)/bin/python \
		$(CARGO) test -j $(JOBS) --quiet --no-fail-fast --workspace --exclude e2e

e2e: setup models $(VENV)/ready ## The real program, real plugins, real models, real clients.
	@$(call say,end-to-end tests)
	@BACKPLANE_TEST_MODELS=$(TEST_STATE) BACKPLANE_TEST_PYTHON=$(VENV)/bin/python \
		$(CARGO) test -j $(JOBS) --quiet --no-fail-fast --workspace $(E2E) -- --test-threads=1

deny: ## Licences and sources of what we depend on (installs cargo-deny if need be).
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny --version 0.20.2
	@$(CARGO) deny check licenses bans sources

bench: build $(VENV)/ready ## Prints the ladder of measurements (docs/benchmarks.md).
	@BACKPLANE_STATE=$(TEST_STATE) target/release/backplane pull --yes $(TEST_MODELS)
# What searches on a GPU are held against: gigabytes, and of no use without one.
	@[ ! -e /proc/driver/nvidia/version ] || $(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/bench/cublas.txt
	@BACKPLANE_TEST_MODELS=$(TEST_STATE) BACKPLANE_TEST_PYTHON=$(VENV)/bin/python $(CARGO) bench -j $(JOBS) -p e2e

clean: ## Removes what was built and fetched.
	@rm -rf target $(CACHE)
