# Each target is one command that a person can also type; `make` alone lists them.
# All but the ones that say otherwise run in every module: wherever there is a go.mod.

SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# A go.work above this folder must not change what is tested.
export GOWORK := off

MODULES := $(shell find . -name '.?*' -prune -o -name node_modules -prune -o -name testdata -prune \
	-o -name go.mod -print | sed 's|/go\.mod$$||' | sort)

# The tools, pinned. They are built from source, outside the modules' own requirements.
GOLANGCI_LINT := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
export BENCHSTAT := go run golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
export APIDIFF := go run golang.org/x/exp/cmd/apidiff@v0.0.0-20260908205506-85c1c2202aba

# What a person may want to change: make test RACE= TESTFLAGS='-run TestResume -v'
RACE      ?= -race
TESTFLAGS ?=
RUNS      ?= 1000000
BENCH     ?= .
FUZZTIME  ?= 30s
REF       ?= main

# With PUSHLET_VERIFY=1 the library checks its own invariants after every step.
VERIFY := PUSHLET_VERIFY=1

# $(call each,command) runs the command in every module, and stops at the first that fails.
each = for module in $(MODULES); do \
	echo "cd $$module &&" '$(subst ','\'',$(1))'; \
	(cd $$module && $(1)) || exit 1; \
	done

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##### what CI runs

.PHONY: check
check: fmt-check tidy-check vet lint test ## all that CI runs: fmt-check, tidy-check, vet, lint, test

.PHONY: fmt-check
fmt-check: ## show what `make fmt` would change; fail if that is anything
	@echo '$(GOLANGCI_LINT) fmt --diff'; $(GOLANGCI_LINT) fmt --diff

.PHONY: tidy-check
tidy-check: ## show what `make tidy` would change; fail if that is anything
	@$(call each,go mod tidy -diff)

.PHONY: vet
vet: ## go vet
	@$(call each,go vet ./...)

.PHONY: lint
lint: ## golangci-lint, pinned, as .golangci.yml says
	@$(call each,$(GOLANGCI_LINT) run ./...)

# A test that needs Chromium or Redis skips without it, unless PUSHLET_REQUIRE_… is set: with the
# program there, a skip would hide a failure. Packages without tests are left out of the output.
.PHONY: test
test: test-tools test-js ## all tests, shuffled and with the race detector (TESTFLAGS=… RACE=)
	@set -o pipefail; export $(VERIFY); \
	if command -v chromium chromium-browser google-chrome >/dev/null; then export PUSHLET_REQUIRE_BROWSER=1; fi; \
	if command -v redis-server >/dev/null; then export PUSHLET_REQUIRE_REDIS=1; fi; \
	$(call each,go test $(RACE) -shuffle=on $$([ $$module != ./chaostest ] || echo -short) $(TESTFLAGS) ./...) | { grep -v '\[no test files]$$' || true; }

.PHONY: test-js
test-js: test-tools ## the tests of the client for browsers, in Node.js (js/)
	@if ! command -v npm >/dev/null; then echo 'test-js: skipped, there is no npm'; exit 0; fi; \
	set -x; cd js && npm ci --silent && npm test

.PHONY: chaos
chaos: COUNT ?= 1
chaos: test-tools ## the faults of distributed mode in full, five minutes or more (chaostest/; make test runs it short)
	cd chaostest && PUSHLET_REQUIRE_REDIS=1 go test $(RACE) -shuffle=on -count=$(COUNT) -timeout 60m $(TESTFLAGS) .

.PHONY: test-tools
test-tools: ## install what the tests need (as root on Debian), or say what is missing
	@scripts/test-tools

.PHONY: download
download: ## fetch what the modules and the linter are built from
	@$(call each,go mod download)
	if command -v npm >/dev/null; then for dir in js browsertest/testdata/frameworks; do (cd $$dir && npm ci --silent) || exit 1; done; fi
	$(GOLANGCI_LINT) version

.PHONY: js
js: ## make js/pushlet.min.js, which the library serves, from js/pushlet.js
	cd js && npm ci --silent && npm run build

##### mending

.PHONY: fmt
fmt: ## gofmt and goimports
	$(GOLANGCI_LINT) fmt

.PHONY: tidy
tidy: ## go mod tidy
	@$(call each,go mod tidy)

##### looking harder

.PHONY: stress
stress: COUNT ?= 50
stress: STRESS_FILES ?= broker_test.go client_test.go websocket_test.go
stress: ## the tests of broker, client and WebSocket, COUNT=50 times on 1, 2 and 4 CPUs (root module)
	@tests=$$(sed -n 's/^func \(Test[[:alnum:]_]*\)(.*/\1/p' $(STRESS_FILES) | paste -s -d '|' -); \
	test -n "$$tests" || { echo 'no tests in $(STRESS_FILES)'; exit 1; }; \
	set -x; $(VERIFY) go test -race -shuffle=on -count=$(COUNT) -cpu=1,2,4 -timeout 60m -run "^($$tests)$$" .

.PHONY: model
model: ## the model tests with RUNS=1000000 random runs each (root module)
	$(VERIFY) PUSHLET_MODEL_RUNS=$(RUNS) go test -run 'TestModel|TestSharedModel|TestStoreModel' -timeout 0 -v .

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME=30s each
	@export $(VERIFY) FUZZTIME=$(FUZZTIME); $(call each,$(CURDIR)/scripts/fuzz)

.PHONY: cover
cover: ## test coverage, written to cover.out (root module)
	$(VERIFY) go test -coverpkg=./... -coverprofile=cover.out ./...
	@go tool cover -func=cover.out | tail -n 1
	@echo 'by line: go tool cover -html=cover.out'

##### measuring

.PHONY: bench
bench: COUNT ?= 10
bench: ## Go benchmarks, COUNT=10 times each (BENCH=regexp)
	@$(call each,go test -run='^$$' -bench='$(BENCH)' -benchmem -count=$(COUNT) ./...)

.PHONY: bench-loop
bench-loop: ## the load program of bench/: ratios to a bare write loop (ARGS=…)
	cd bench && go run . $(ARGS)

.PHONY: bench-compare
bench-compare: COUNT ?= 10
bench-compare: ## Go benchmarks of this tree against REF=main, by benchstat (root module)
	@COUNT=$(COUNT) BENCH='$(BENCH)' scripts/bench-compare '$(REF)'

.PHONY: apidiff
apidiff: ## what changed in the exported API since the last tag (root module)
	@scripts/apidiff
