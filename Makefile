# amphi: `make` lists what there is to make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# Where rustup puts cargo; a login shell has it in PATH, a script often has not.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin

target := target/x86_64-unknown-linux-gnu
amphi := $(target)/release/amphi
lab := resources/lab/lab
# Where amphi keeps kernels: root in the lab would not look in another user's.
data_home := $(or $(XDG_DATA_HOME),$(if $(filter 0,$(shell id -u)),/var/lib,$(HOME)/.local/share))
step = @printf '\n==> %s\n' '$(1)' >&2

.PHONY: help setup build kernel demo test check unit integration stress debian posix fuzz fuzz-smoke licences bench ci clean

help: ## this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## install what is missing (apt-get), check the Rust toolchain
	$(call step,setup: tools and libraries)
	@resources/setup

build: setup ## the static release binary, linked here as ./amphi
	$(call step,build: release binary)
	cargo build --release --locked --bin amphi
	@ln -sf $(amphi) amphi && ls -lhL amphi

kernel: build ## a stock kernel and amphi's own, for guests (kept, so only the first time is long)
	$(call step,kernel: a package of the distribution)
	./amphi kernel install
	$(call step,kernel: the small kernel of amphi; some minutes the first time)
	./amphi kernel build

# Whether KVM runs kernels here is found out by running one.
demo: kernel ## both isolations side by side, measured; in an emulated machine where KVM is not usable
	$(call step,demo: amphi compare)
	@if timeout 60 ./amphi run --rm --isolation vm --memory 128M builtin </dev/null >/dev/null 2>&1; then \
	  ./amphi compare; \
	else \
	  echo 'demo: KVM runs no kernels here: comparing on an emulated machine (times are emulated)' >&2; \
	  $(lab) --timeout 1500 -e XDG_DATA_HOME=$(data_home) -- ./amphi compare; \
	fi

test: setup check unit integration ## format, lints, unit tests, documentation tests, integration suite

check:
	$(call step,check: format and lints)
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet

unit:
	$(call step,unit: unit and documentation tests)
	cargo test --workspace --lib --bins --examples --locked
	cargo test -p amphi-devices --test driver --locked
	cargo test --workspace --doc --locked

integration:
	$(call step,integration: the suite; on an emulated machine where KVM is not usable)
	cargo test --test integration --locked

stress: setup ## five minutes of load on a microVM and all its devices
	$(call step,stress: processors, memory, disk and network together)
	cargo test --test integration --locked -- --ignored stress

debian: setup ## a whole distribution as an image, in both isolations; some minutes
	$(call step,debian: debootstrap, three layers, every file compared)
	cargo test --test integration --locked -- --ignored debian

# Static, because it runs in a root of busybox.
posix: setup ## a suite for file systems on a volume, in both isolations
	$(call step,posix: building pjdfstest)
	RUSTFLAGS='-C target-feature=+crt-static' cargo install pjdfstest --version 0.2.2 --locked --target $(notdir $(target)) --root target/pjdfstest
	$(call step,posix: 398 cases in both isolations)
	cargo test --test integration --locked -- --ignored pjdfstest

fuzz: ## TARGET=... or every fuzz target, for SECONDS=60 of a processor each, JOBS=1 side by side
	@resources/fuzz $(or $(SECONDS),60) $(TARGET)

fuzz-smoke: ## every fuzz target for a few seconds
	$(call step,fuzz: a few seconds each)
	@JOBS=$$(nproc) resources/fuzz 5

licences: ## licences and double versions of the dependencies
	$(call step,licences: dependencies)
	@resources/licences

bench: kernel ## start-up, memory, disks, network and images, as in docs/benchmarks.md
	$(call step,bench)
	cargo bench --locked

ci: setup licences test fuzz-smoke ## what continuous integration runs

clean: ## remove what was built here (not the kernels, not the lab)
	cargo clean
	rm -rf amphi fuzz/target
