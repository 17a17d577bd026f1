# "make" lists what there is. Every target installs what it needs.

# Any Go from 1.21 on fetches the version that go.mod names.
export GOTOOLCHAIN ?= auto
export CGO_ENABLED ?= 0

# What downloads are kept in between runs.
export PLATTER_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/platter-tests
# Where "make bench" keeps its disks (30 GiB).
export BENCH_DIR ?= $(PLATTER_CACHE)/bench

# One package's tests may take so long, the slowest being machines that boot.
TIMEOUT ?= 20m
# How long "make fuzz" and "make fuzz-long" try each decoder.
FUZZTIME ?= 10s
FUZZTIME_LONG ?= 10m
# Packages where goroutines share data.
RACE ?= ./internal/job/... ./block/... ./image/store/...
# The slowest packages begin first, so that no core waits for them in the end.
SLOW ?= ./internal/job ./vmtests ./cmd/platter
# Packages whose test repositories can cut xxhash64 to 8 bits.
NARROW ?= ./internal/job/... ./image/... ./catalog/...

TOOL = go tool -modfile=internal/tools/go.mod

.DEFAULT_GOAL := help
.PHONY: help build install deb deb-test first-hour demo test vet unit narrow race sweeps fuzz fuzz-long campaign vm vm-zfs drill matrix golden bench bench-agent bench-nights lint format format-check staticcheck vuln clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/platter, one static binary
	@.ci/setup build
	go build -trimpath -o bin/platter ./cmd/platter

install: build ## put it into /usr/local/bin
	install -D -m 755 bin/platter $(DESTDIR)/usr/local/bin/platter

deb: ## build bin/platter_VERSION_ARCH.deb, and the list of what is in it
	@.ci/setup deb
	@internal/package/build

deb-test: deb ## lintian, twice the same bytes, install, upgrade and remove in a clean Debian
	@.ci/setup deb
	@internal/package/test

first-hour: ## the package on a Debian with systemd, as docs/first-hour.md has it
	@.ci/setup first-hour
	PLATTER_TEST_VM=1 go test -count 1 -timeout 1h -v -run FirstHourInAGuest ./vmtests

demo: ## image, change, restore and boot a small disk, and show how it went
	@.ci/setup demo
	@go build -trimpath -o bin/platter ./cmd/platter
	@go run ./vmtests/demo -platter bin/platter

test: ## run all tests (under 15 minutes on two cores)
	@.ci/setup test
	@go test -count 1 -timeout 20m ./image/store/s3/s3test # builds the server for S3 once
	@$(MAKE) --no-print-directory --keep-going vet unit narrow race

vet:
	go vet ./...

unit: # the seeds of the fuzz tests and a few boots are among them
	go test -timeout $(TIMEOUT) $(SLOW) ./...

narrow: # blocks that share their xxhash64 must stay apart: make it 8 bits
	PLATTER_TEST_XXH8=1 go test -short -timeout $(TIMEOUT) $(NARROW)

race:
	CGO_ENABLED=1 go test -race -short -timeout $(TIMEOUT) $(RACE)

sweeps: ## restores, crashes and damage at every step of many (10 minutes)
	@.ci/setup test
	PLATTER_TEST_SWEEPS=1 go test -timeout $(TIMEOUT) ./internal/job

fuzz: ## try each decoder with made-up input for FUZZTIME (10s)
	@.ci/setup build
	@.ci/fuzz $(FUZZTIME)

fuzz-long: ## the same for FUZZTIME_LONG (10m)
	@.ci/setup build
	@.ci/fuzz $(FUZZTIME_LONG)

campaign: ## the crash, flip and kill suites at full length (hours)
	@.ci/setup test
	PLATTER_TEST_LONG=1 go test -count 1 -timeout 24h ./cbt/... ./image/... ./catalog/... ./internal/job/... ./cmd/... ./vmtests/...

vm: ## all rounds in guests: LVM, dm, power cuts (hours)
	@.ci/setup test
	PLATTER_TEST_VM=1 go test -count 1 -timeout 24h -v -run 'Guest' ./vmtests/...

vm-zfs: ## build ZFS for guests, as root: then "make vm" has its rounds too (10 minutes)
	@.ci/setup vm-zfs
	go run ./vmtests/zfs

drill: ## lose a machine with a database, and get it back from a bucket by the rescue medium
	@.ci/setup test
	PLATTER_TEST_DRILL=1 go test -count 1 -timeout 30m -v -run 'Drill' ./vmtests

matrix: ## restore systems of all kinds to disks of all kinds, as root, and start each (half an hour)
	@.ci/setup test
	PLATTER_TEST_MATRIX=1 PLATTER_TEST_ADAPT=1 go test -count 1 -timeout 3h -v -run 'Matrix|AdaptedSystem' ./vmtests

golden: ## check that today's code reads every repository of the past
	@.ci/setup build
	go test -count 1 -run 'Golden' ./image/... ./internal/job/...

bench: ## compare with borg, restic, qemu-img, lz4; writes docs/benchmarks.md
	@.ci/setup bench
	@go build -trimpath -o bin/platter ./cmd/platter
	@go build -modfile=internal/tools/go.mod -trimpath -o bin/versitygw github.com/versity/versitygw/cmd/versitygw
	go run ./internal/bench -platter bin/platter -dir $(BENCH_DIR) -write docs/benchmarks.md

bench-nights: ## nights by the tracer against full ones, and what the tracer costs writers
	@.ci/setup bench
	@go build -trimpath -o bin/platter ./cmd/platter
	@mkdir -p $(BENCH_DIR)
	go run ./internal/bench/nights -platter bin/platter -dir $(BENCH_DIR)

bench-agent: build ## the agent while nothing is due, its delay, and nights of 200 volumes
	@mkdir -p $(BENCH_DIR)
	go run ./internal/bench/agent -platter bin/platter -dir $(BENCH_DIR)

lint: ## go vet, gofumpt, staticcheck
	@.ci/setup lint
	@$(MAKE) --no-print-directory --keep-going vet format-check staticcheck

format: ## write all code as gofumpt wants it
	@.ci/setup lint
	$(TOOL) gofumpt -w .

format-check:
	@due=$$($(TOOL) gofumpt -l .) && if [ -n "$$due" ]; then echo "make format is due for:"; echo "$$due"; exit 1; fi

staticcheck:
	$(TOOL) staticcheck ./...

vuln: ## govulncheck; without its database it says so and skips
	@.ci/setup lint
	@.ci/vuln

clean: ## remove what was built (not the caches)
	rm -rf bin
	go clean -testcache
