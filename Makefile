# Ringway. `make` lists what there is; `make demo` and `make test` do all their set-up themselves.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BORINGTUN_VERSION := 0.7.1
GOTATUN_VERSION := 0.10.2
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
BORINGTUN := $(TARGET)/tools/bin/boringtun-cli
GOTATUN := $(TARGET)/tools/bin/gotatun
export CLIPPY_CONF_DIR := .ci

.PHONY: help deps tools bench-deps bench-tools build release null fmt lint check test instructions demo figures bench \
    bench-quick budget report bench-compare bench-clients

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

deps: ## install the Debian packages that the tests and the demo need (root; only what is missing)
	@bench-scripts/deps

tools: $(BORINGTUN) ## build boringtun-cli, the peer to compare with, into target/tools (once)

$(BORINGTUN): | deps
	@echo "Building boringtun-cli $(BORINGTUN_VERSION) into $(TARGET)/tools (once)"
	cargo install boringtun-cli --version $(BORINGTUN_VERSION) --locked --root $(TARGET)/tools

bench-deps: deps
	@bench-scripts/deps bench

bench-tools: bench-deps tools $(GOTATUN) null ## bring everything to compare with into target/tools (once, some minutes)

$(GOTATUN): | deps
	@echo "Building gotatun-cli $(GOTATUN_VERSION) into $(TARGET)/tools (once, about five minutes on two cores)"
	cargo install gotatun-cli --version $(GOTATUN_VERSION) --locked --root $(TARGET)/tools

# Ringway with nothing in the cipher's place, beside the release build and not instead of it.
null:
	cargo build --locked --release --features null-cipher --bin ringway-null

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

instructions: deps ## count the instructions of each stage of a packet's way, and compare with what they were (valgrind)
	bench-scripts/instructions

demo: deps ## real traffic from WireGuard clients through Ringway, in namespaces of its own (root, a minute)
	@bench-scripts/demo --check
	@echo "Building Ringway (release); the first time this takes a few minutes"
	cargo build --locked --release --bin ringway
	bench-scripts/demo

bench: bench-tools release ## compare with every peer over every link, and make plots (root, 25 minutes)
	bench-scripts/bench
	bench-scripts/report --into $(TARGET)/performance $(TARGET)/bench.json

bench-quick: bench-tools release ## the same, shortened (root, 4 minutes)
	bench-scripts/bench --preset quick
	bench-scripts/report --into $(TARGET)/performance $(TARGET)/bench.json

budget: bench-tools release ## where each nanosecond of a packet goes, by perf's samples (root, 3 minutes)
	bench-scripts/budget

report: ## make docs/performance.md and its plots from the last `make bench`, `bench-clients` and `budget`
	bench-scripts/report $(TARGET)/bench.json $(wildcard $(TARGET)/clients.json $(TARGET)/budget.json)

figures: deps tools null release ## measure, and print the goals beside what was measured (root)
	bench-scripts/figures

bench-compare: deps tools release ## plain, boringtun-cli -t 1 and ringway in interleaved rounds (root)
	bench-scripts/compare --json $(TARGET)/compare.json

bench-clients: deps release ## many clients, handshakes, a flood, memory, and the goals beside them (root)
	bench-scripts/clients
