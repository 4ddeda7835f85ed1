# Mortar. `make help` says what there is.
#
# Each target installs what it needs itself (tests/prepare), says what it is doing, and works from a bare checkout.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
.PHONY: help demo test check deny test-unit test-guest soak fuzz forget-notes reliability breakages bench api doc build static man install deb reproducible clean root

# rustup puts cargo there, and not every shell knows.
export PATH := $(PATH):$(HOME)/.cargo/bin

# `make build PROFILE=dev` is quicker and slower: to build, and to run.
PROFILE ?= release
OUT := $(or $(CARGO_TARGET_DIR),target)
PROGRAMS := $(OUT)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
PAGES := $(OUT)/man
# For packages: everything is put below it.
DESTDIR ?=

say = @printf '\n== %s\n' "$(1)"

help: ## list the targets
	@echo "Mortar: attaches storage to hosts, and manages volumes that exist"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "demo and test need root and apt, and build a test guest on their first run."
	@echo "One test of the guest alone: tests/guest/test NAME. What else there is: README.md."

demo: root ## watch it work: in a guest with real LVM and iSCSI, then with a file on this machine
	$(call say,installing what the demo needs)
	@tests/prepare demo
	@demo/run

test: root check forget-notes test-unit test-guest reliability ## everything below that checks something; what CI runs

# What the tests find out for docs/reliability.md; a guest notes it beside the file that is named.
NOTES := $(OUT)/reliability
NOTE := MORTAR_RELIABILITY=$(abspath $(NOTES))/tests.jsonl

forget-notes:
	@rm -rf $(NOTES)
	@mkdir -p $(NOTES)

reliability: ## docs/reliability.md, from what the last run of the tests has noted
	$(call say,docs/reliability.md)
	@cargo run --quiet -p tests --bin reliability -- docs/reliability.md $(wildcard $(NOTES)/*)

check: ## formatting, lints with warnings as errors, licences and banned crates, the API's reference, scripts, manual pages
	$(call say,installing what the checks need)
	@tests/prepare check
	$(call say,cargo fmt)
	@cargo fmt --all --check
	$(call say,cargo clippy)
	@cargo clippy --workspace --all-targets -- -D warnings
	@cargo clippy -p tests --test guest --test bench -- -D warnings
	$(call say,deny.toml)
	@cargo run --quiet -p tests --bin deny -- deny.toml
	$(call say,docs/api.md)
	@cargo run --quiet -p tests --bin api-reference -- --check docs/api.md
	$(call say,shellcheck)
	@grep -rlE '^(#!/bin/(ba)?sh|# shellcheck shell)' .ci demo packaging tests | xargs shellcheck --external-sources
	$(call say,mandoc)
	@mandoc -T lint -W warning man/*

deny: ## the same of licences and crates by cargo-deny, which is installed once, in some minutes, and tells more
	@tests/prepare build
	@cargo fetch --locked
	@"$$(tests/cargo-tool cargo-deny)/cargo-deny" --offline check licenses bans sources

test-unit: ## tests beside the code, and the whole agent on the simulated machine; no root
	$(call say,installing what the tests need)
	@tests/prepare unit
	$(call say,cargo test)
	@mkdir -p $(NOTES)
	@$(NOTE) cargo test --workspace --no-fail-fast
	$(call say,traces to a collector)
	@cargo test -p agent --features otlp --test otlp

test-guest: root ## the whole agent in a guest: a real kernel, LVM, open-iscsi, systemd
	$(call say,installing what the guest needs)
	@tests/prepare guest
	$(call say,the tests in the guest)
	@mkdir -p $(NOTES)
	@$(NOTE) tests/guest/test
	$(call say,an LV of one guest on another)
	@tests/guest/pair
	$(call say,a power cut)
	@tests/guest/reboot
	$(call say,the package in a guest)
	@tests/guest/package

# Ends at the count or the time, and is the same again with the same seed.
COUNT ?= 2000
SECONDS ?= 900
SEED ?= 1
soak: root ## random work with kills, on every driver: make soak COUNT=2000 SECONDS=900 SEED=1
	$(call say,installing what the guest needs)
	@tests/prepare guest
	$(call say,at most $(COUNT) cycles in $(SECONDS) seconds)
	@tests/guest/soak "$(COUNT)" "$(SECONDS)" "$(SEED)"

# Not part of make test. One parser alone: make fuzz TARGET=locators. What is found is kept in fuzz/artifacts.
TARGET ?= $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs)))
fuzz: SECONDS = 60
fuzz: ## each parser under a fuzzer: make fuzz SECONDS=60; it takes SECONDS for each
	$(call say,installing what the fuzzer needs)
	@tests/prepare fuzz
	@cd fuzz && cargo fuzz build --sanitizer none
	@for target in $(TARGET); do \
	  printf '\n== %s\n' "$$target"; \
	  (cd fuzz && cargo fuzz run --sanitizer none "$$target" -- \
	    -max_total_time=$(SECONDS) -rss_limit_mb=2048 -timeout=10 -print_final_stats=1); \
	done

breakages: ## leave out parts of the recovery, one at a time: each time a test has to fail; half an hour
	@tests/prepare build
	@mkdir -p $(NOTES)
	@rm -f $(NOTES)/breakages.jsonl
	@MORTAR_RELIABILITY=$(abspath $(NOTES))/breakages.jsonl tests/breakages/run
	@$(MAKE) reliability

# Some works only: make bench WORK="iscsi lvm". They are: iscsi multipath rbd images lvm crowd.
bench: root ## beside the kernel's floor and os-brick, into docs/benchmarks.md; a good quarter of an hour
	$(call say,installing what the guest needs)
	@tests/prepare guest
	$(call say,the benchmark in the guest)
	@tests/bench/run $(WORK)

api: ## docs/api.md, the reference of the gRPC API, from the proto
	@tests/prepare build
	@cargo run --quiet -p tests --bin api-reference -- docs/api.md

doc: ## the documentation of the code, private items too, with warnings as errors
	@tests/prepare build
	@RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --workspace --no-deps --document-private-items

build: ## mortard, mortar and mortar-rbd, optimised
	@tests/prepare build
	@cargo build --profile $(PROFILE) -p agent -p cli -p host

static: ## mortard and mortar for any Linux of this kind of machine, without libvirt, in target/static; no RBD listings
	@tests/prepare build
	@# mortar-rbd opens Ceph's libraries at run time, so it cannot be one.
	@RUSTFLAGS='-C target-feature=+crt-static' cargo build --profile $(PROFILE) --no-default-features -p agent -p cli \
	  --target-dir $(OUT)/static --target "$$(rustc --version --verbose | sed -n 's/^host: //p')"

man: build ## the manual pages of mortar and its commands, beside those of man/
	@mkdir -p $(PAGES)
	@rm -f $(PAGES)/*
	@$(PROGRAMS)/mortar man $(PAGES)
	@cp man/* $(PAGES)/
	@echo "the manual pages are in $(PAGES)"

install: man ## put it all where a package would: make install DESTDIR=/tmp/root
	install -D -m 755 $(PROGRAMS)/mortard $(DESTDIR)/usr/sbin/mortard
	install -D -m 755 $(PROGRAMS)/mortar $(DESTDIR)/usr/bin/mortar
	install -D -m 755 $(PROGRAMS)/mortar-rbd $(DESTDIR)/usr/libexec/mortar/mortar-rbd
	install -D -m 644 systemd/mortard.service $(DESTDIR)/usr/lib/systemd/system/mortard.service
	install -D -m 644 systemd/mortard.socket $(DESTDIR)/usr/lib/systemd/system/mortard.socket
	install -D -m 644 systemd/mortar.sysusers $(DESTDIR)/usr/lib/sysusers.d/mortar.conf
	install -D -m 644 systemd/mortar.tmpfiles $(DESTDIR)/usr/lib/tmpfiles.d/mortar.conf
	mkdir -p $(DESTDIR)/usr/lib/udev/rules.d
	install -m 644 systemd/*.rules $(DESTDIR)/usr/lib/udev/rules.d/
	@# An operator's own config stays.
	test -e $(DESTDIR)/etc/mortar/mortard.toml || install -D -m 644 systemd/mortard.toml $(DESTDIR)/etc/mortar/mortard.toml
	for page in $(PAGES)/*; do install -D -m 644 "$$page" "$(DESTDIR)/usr/share/man/man$${page##*.}/$${page##*/}"; done
	mkdir -p $(DESTDIR)/usr/share/bash-completion/completions $(DESTDIR)/usr/share/zsh/vendor-completions $(DESTDIR)/usr/share/fish/vendor_completions.d
	$(PROGRAMS)/mortar completions bash >$(DESTDIR)/usr/share/bash-completion/completions/mortar
	$(PROGRAMS)/mortar completions zsh >$(DESTDIR)/usr/share/zsh/vendor-completions/_mortar
	$(PROGRAMS)/mortar completions fish >$(DESTDIR)/usr/share/fish/vendor_completions.d/mortar.fish
	mkdir -p $(DESTDIR)/usr/share/doc/mortar/examples
	install -m 644 README.md CHANGELOG.md docs/api.md docs/operating.md docs/controllers.md $(DESTDIR)/usr/share/doc/mortar/
	install -m 644 docs/examples/* docs/monitoring/* client/examples/* $(DESTDIR)/usr/share/doc/mortar/examples/
	@[[ -n "$(DESTDIR)" ]] || echo "to begin: systemd-sysusers && systemd-tmpfiles --create && udevadm control --reload && systemctl daemon-reload && systemctl enable --now mortard.socket mortard"

deb: ## a Debian package in target/debian, with its SBOM; the same commit gives the same bytes
	@tests/prepare deb
	@packaging/deb $(OUT)/debian

reproducible: ## builds the package twice, in two places, and compares; a long while
	@tests/prepare deb
	@tests/reproducible

clean: ## remove what was built, the test guest too
	rm -rf $(OUT)

root:
	@((EUID == 0)) || { echo "make: $(or $(MAKECMDGOALS),this) needs root: it installs packages, builds the guest's root file system, and binds loop devices" >&2; exit 1; }
