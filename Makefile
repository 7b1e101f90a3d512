# The one door to the project. `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PROFILE := quick
CARGO := cargo
BIN := target/$(PROFILE)

.PHONY: help setup setup-kube build build-tests build-bench demo test test-unit test-e2e test-oracle test-kube test-images checks bars test-long features findings sbom lint fmt bench bench-l4 bench-l7 profile bench-micro interop mutants

help: ## List the targets
	@echo "Isobar: an ambient service mesh. Targets:"
	@echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "First time here?  make demo   (installs what is missing, builds, and tours the mesh in a lab on this machine)"

setup: ## Install what is missing to build, run and test (idempotent)
	@bash xtask/setup.sh

build: setup ## Build every program into target/quick
	$(CARGO) build --profile $(PROFILE) --workspace --bins

demo: build ## Tour the mesh: routing, encryption, policy; KEEP=1 leaves the lab up
	@$(BIN)/isobar-demo $(if $(KEEP),--keep)

# One selection of packages and targets for everything below, so that nothing is compiled twice.
build-tests: setup
	$(CARGO) build --profile $(PROFILE) --workspace --all-targets

test: build-tests ## Run every test, end to end in network namespaces included
	$(CARGO) test --profile $(PROFILE) --workspace

test-unit: setup ## Run the tests of each crate
	$(CARGO) test --profile $(PROFILE) --workspace --exclude isobar-tests

test-e2e: build-tests ## Run the end-to-end suites (needs network namespaces)
	$(CARGO) test --profile $(PROFILE) --workspace --test end_to_end

setup-kube: ## Build the API server and the Helm of the tests once, into .cache/kube (minutes; needs Go)
	@bash xtask/setup-kube.sh

test-kube: setup-kube build-tests ## Run the suites against a real API server
	$(CARGO) test --profile $(PROFILE) --workspace --test kubernetes

test-images: build-tests ## Build the images as docs/install.md has it, and start them (root, podman, debootstrap; half an hour)
	$(CARGO) test --profile $(PROFILE) --workspace --test images -- --nocapture

checks: setup ## Print the conformance list of the node proxy (OUTPUT=json for programs)
	@$(CARGO) run --quiet --profile $(PROFILE) -p xtask -- checks $(if $(OUTPUT),-o $(OUTPUT))

test-oracle: build-tests ## Compare the waypoint with the real Envoy; ONLY=part/of/a/name for some scenarios
	ISOBAR_ORACLE="$(ONLY)" $(CARGO) test --profile $(PROFILE) --workspace --test differential

bars: setup ## Print the reliability bars of the node proxy with their figures (OUTPUT=json)
	@$(CARGO) run --quiet --profile $(PROFILE) -p xtask -- bars $(if $(OUTPUT),-o $(OUTPUT))

test-long: build-tests ## The same with the long forms of the tests, and the images (about an hour)
	@$(CARGO) run --quiet --profile $(PROFILE) -p xtask -- bars --long $(if $(OUTPUT),-o $(OUTPUT))
	ISOBAR_TEST_LONG=1 $(CARGO) test --profile $(PROFILE) --workspace --test attacks -- --nocapture paired::
	ISOBAR_TEST_LONG=1 $(CARGO) test --profile $(PROFILE) --workspace --test differential
	ISOBAR_TEST_LONG=1 $(CARGO) test --profile $(PROFILE) --workspace --test mesh -- steady::
	$(MAKE) setup-kube
	ISOBAR_TEST_LONG=1 $(CARGO) test --profile $(PROFILE) --workspace --test kubernetes -- --nocapture scale:: outage::
	$(MAKE) test-images

features: setup ## Print the fields of traffic objects with their state, and write docs/features.md
	@$(CARGO) run --quiet --profile $(PROFILE) -p xtask -- features --write >/dev/null
	@$(CARGO) run --quiet --profile $(PROFILE) -p xtask -- features $(if $(OUTPUT),-o $(OUTPUT))

sbom: setup ## Write what each program is made of, as CycloneDX, to target/sbom
	@mkdir -p target/sbom
	@for program in isobar isobard isobar-cni isobar-cni-plugin ztunnel waypoint; do \
	  $(CARGO) run --quiet --profile $(PROFILE) -p xtask -- sbom $$program > target/sbom/$$program.cdx.json && echo target/sbom/$$program.cdx.json; done

findings: setup ## Write docs/findings.md from the table of codes
	@$(CARGO) run --quiet --profile $(PROFILE) -p xtask -- findings --write

lint: setup ## Format, clippy, and the checks of the house
	$(CARGO) fmt --all --check
	$(CARGO) clippy --profile $(PROFILE) --workspace --all-targets -- -D warnings
	$(CARGO) clippy --profile $(PROFILE) --workspace --test kubernetes --test images -- -D warnings
	$(CARGO) run --quiet --profile $(PROFILE) -p xtask -- check

fmt: ## Format the code
	$(CARGO) fmt --all

# What is measured is what is shipped (manifests/containers): one static program with its libraries, same
# functions kept once, relocations packed.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
LEAN = target/$(HOST)/lean
LEAN_LINK := -C target-feature=+crt-static -C link-arg=-Wl,--icf=all -C link-arg=-Wl,-z,pack-relative-relocs
# How often the proxies run each of their functions under the loads of `make bench-l4` and `make bench-l7`; the
# compiler lays them out by it. A function that has changed since is compiled as without; `make profile` renews it.
PROFILE_DATA = benches/profile/proxies.profdata
LEAN_FLAGS = $(LEAN_LINK) -C profile-use=$(CURDIR)/$(PROFILE_DATA) -C llvm-args=-no-pgo-warn-mismatch

# The programs a benchmark runs, and no other: whole-program optimisation takes minutes for each.
build-bench: setup
	RUSTFLAGS="$(LEAN_FLAGS)" $(CARGO) build --profile lean --target $(HOST) --workspace $(addprefix --bin ,isobar isobard isobar-cni isobar-samples ztunnel waypoint isobar-benches)

bench: build-bench ## Run the benchmarks in a lab and write a table to target/bench
	$(LEAN)/isobar-benches --out target/bench

bench-l4: build-bench ## Compare the node proxy with no mesh, a TLS relay and PEER=/path/to/a/ztunnel
	$(LEAN)/isobar-benches l4 --out target/bench $(if $(PEER),--peer $(PEER)) $(BENCH_ARGS)

bench-l7: build-bench ## Compare the waypoint with a real Envoy, as a plain hop and between tunnels
	$(LEAN)/isobar-benches l7 --out target/bench $(BENCH_ARGS)

# Counts of functions are written as a program ends. The programs that count are not static: a library's unused
# functions, which counting keeps, want the C library's shared form.
COUNTING = $(CURDIR)/target/profile
LLVM_PROFDATA = $(firstword $(wildcard $(shell rustc --print sysroot)/lib/rustlib/$(HOST)/bin/llvm-profdata) $(shell command -v llvm-profdata-22 llvm-profdata))
profile: build-bench ## Count under load what the proxies run, for the compiler: renews benches/profile
	@test -n "$(LLVM_PROFDATA)" || { echo "llvm-profdata is missing: rustup component add llvm-tools" >&2; exit 2; }
	RUSTFLAGS="-C profile-generate=$(COUNTING)/counts" $(CARGO) build --profile lean --target $(HOST) --target-dir $(COUNTING) --workspace --bin ztunnel --bin waypoint
	rm -rf $(COUNTING)/counts $(COUNTING)/bin && mkdir -p $(COUNTING)/counts $(COUNTING)/bin
	cp $(addprefix $(LEAN)/,isobar isobard isobar-cni isobar-samples isobar-benches) $(addprefix $(COUNTING)/$(HOST)/lean/,ztunnel waypoint) $(COUNTING)/bin
	$(COUNTING)/bin/isobar-benches l7 --only loads,policies,hbone --rounds 1 --seconds 1 --out $(COUNTING)/out
	$(COUNTING)/bin/isobar-benches l4 --only loads --rounds 1 --seconds 2 --out $(COUNTING)/out
	@mkdir -p $(dir $(PROFILE_DATA))
	$(LLVM_PROFDATA) merge --sparse -o $(PROFILE_DATA) $(COUNTING)/counts/*.profraw
	@# Cargo looks at the file's name only.
	$(CARGO) clean --quiet --profile lean --target $(HOST)

bench-micro: setup ## What one decision costs, and how that grows with the mesh (BENCH_ARGS=filter)
	$(CARGO) bench --workspace --bench micro $(if $(BENCH_ARGS),-- $(BENCH_ARGS))

interop: setup ## Another ztunnel in a mesh of ours: PEER=/path/to/it [PEER_COMMIT=...]; writes docs/interop
	@test -n "$(PEER)" || { echo "pass the other node proxy: make interop PEER=/path/to/ztunnel [PEER_COMMIT=its commit]" >&2; exit 2; }
	$(CARGO) build --profile $(PROFILE) --workspace --bins
	PEER_COMMIT="$(PEER_COMMIT)" $(BIN)/isobar-interop --peer $(PEER) --out docs/interop $(INTEROP_ARGS)

mutants: setup ## Break decisions and protocol code in every small way and see the tests fail; hours (MUTANTS_ARGS="--shard 1/20")
	@$(CARGO) mutants --version >/dev/null 2>&1 || { echo "cargo-mutants is missing: cargo install --locked cargo-mutants" >&2; exit 2; }
	$(CARGO) mutants --output target/mutants $(MUTANTS_ARGS)
