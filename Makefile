# Ringway. `make` lists what there is; `make demo` and `make test` do all their set-up themselves.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BORINGTUN_VERSION := 0.7.1
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
BORINGTUN := $(TARGET)/tools/bin/boringtun-cli
export CLIPPY_CONF_DIR := .ci

.PHONY: help deps tools build release fmt lint check test demo figures bench-compare

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

deps: ## install the Debian packages that the tests and the demo need (root; only what is missing)
	@bench-scripts/deps

tools: $(BORINGTUN) ## build boringtun-cli, the peer to compare with, into target/tools (once)

$(BORINGTUN): | deps
	@echo "Building boringtun-cli $(BORINGTUN_VERSION) into $(TARGET)/tools (once)"
	cargo install boringtun-cli --version $(BORINGTUN_VERSION) --locked --root $(TARGET)/tools

build: ## build for development
	cargo build --locked --all-targets

release: ## build what `make demo` and `make figures` run
	cargo build --locked --release --bin ringway

fmt: ## check the formatting
	cargo fmt -- --check --config-path .ci/rustfmt.toml

lint: ## clippy, warnings are errors
	cargo clippy --locked --all-targets -- -D warnings

check: fmt lint ## formatting, clippy and the tests that need no root (minutes)
	tests/run --no-root

test: deps tools ## all tests: unit, tidy, namespaces, interoperation (root)
	tests/run

demo: deps ## real traffic from WireGuard clients through Ringway, in namespaces of its own (root, a minute)
	@bench-scripts/demo --check
	@echo "Building Ringway (release); the first time this takes a few minutes"
	cargo build --locked --release --bin ringway
	bench-scripts/demo

figures: deps tools release ## measure, and print the goals beside what was measured (root)
	bench-scripts/figures

bench-compare: deps tools release ## plain, boringtun-cli -t 1 and ringway in interleaved rounds (root)
	bench-scripts/compare --json $(TARGET)/compare.json
