# Everything a fresh Debian-like machine with a Rust toolchain needs is installed on the way.

SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help build setup test simulate demo bench fmt lint doc deny

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

build: ## Build target/release/causeway
	cargo build --release -p cli

setup: ## Install the programs that tests and benchmarks use
	@tests/setup.sh test

test: setup build ## Run every test; needs root or sudo
	@tests/run.sh

simulate: ## Simulate random lives of meshes for SECONDS=60, or repeat one by SEED=N
	env SECONDS=$(or $(SECONDS),60) RANDOM_LIVES=1 cargo test --release -p tests --test simulation random -- --nocapture
	env LINK_DAYS=$(or $(LINK_DAYS),5) cargo test --release -p gateway --lib -- --nocapture link_days
	env LAN_LIVES=$(or $(LAN_LIVES),50) cargo test --release -p gateway --lib -- --nocapture agents::tests::lives

demo: ## See a mesh of three sites on this machine, and measure it; leaves nothing behind
	@tests/setup.sh demo
	cargo build --release -p cli
	@target/release/causeway demo

bench: setup ## Measure against other WireGuards; needs root
	cargo run --release -p bench -- site

fmt: ## Check the format
	cargo fmt --all -- --check

lint: ## Check the code with clippy; warnings are errors
	cargo clippy --workspace --all-targets -- -D warnings

# For those who work on it, so private items may be linked to.
doc: ## Check the documentation of the code
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items

deny: ## Check licences, sources and duplicates of what we depend on
	@command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny
	cargo deny check bans licenses sources
