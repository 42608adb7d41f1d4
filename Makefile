# One entry for every habit. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Where `hearth up` keeps everything; another one runs beside it.
DATA_DIR ?= /var/lib/hearth

.PHONY: help up down build test verify fix bench sim fuzz

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | column -t -s $$'\t'

up: ## build, start a region and a device here, install the example, print its address
	@scripts/deps.sh build run
	@$(MAKE) --no-print-directory build
	@target/release/hearth up --detach --data-dir $(DATA_DIR)

down: ## stop all of it; nothing is lost
	@target/release/hearth down --data-dir $(DATA_DIR)

build: ## target/release/hearth and the example's image beside it
	cargo build --release --locked -p hearth
	@scripts/example-image.sh release

test: ## every test, those with real containers included
	@scripts/deps.sh build run test
	cargo nextest run --locked --workspace --no-run
	@scripts/example-image.sh debug
	@scripts/hostile.sh
	cargo nextest run --locked --workspace $(TESTS)
	cargo test --locked -q --workspace --features hearth-runtime/unprotected --test hostile
	cargo nextest run --locked --workspace --features hearth-sim/sabotage --test bugs

verify: ## what CI holds every change to: format, clippy, licences, the house's arrows
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check bans licenses sources; \
	 else echo "cargo deny is not installed: licences and sources were not checked"; fi
	cargo test --locked -q -p hearth-house

fix: ## format, and mend what clippy can mend
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

bench: ## figures beside a peer's; NAME=... for one, NAME=reach PART=dns for a part of it
	@scripts/deps.sh build run bench
	@$(MAKE) --no-print-directory build
	cargo build --release --locked -p hearth-client --example load
	cargo build --release --locked -p hearth-e2e --bins
	cargo run --release --locked -p hearth-e2e --bin bench -- $(NAME) $(PART)

fuzz: ## fuzz a decoder: TARGET=... SECONDS=60; without a target, lists them
	@scripts/deps.sh build fuzz
	@scripts/fuzz.sh $(TARGET) $(SECONDS)

# The runs of `make sim`, and the seed to begin with.
RUNS ?= 300
FIRST ?= 0

sim: ## simulated groups of servers in virtual time; SEED=... for one with its trace, RUNS=... for many
	cargo run --locked -q -p hearth-sim -- $(if $(SEED),seed $(SEED),runs $(RUNS) $(FIRST))
