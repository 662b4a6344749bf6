# What developers do. `make` by itself lists it.
# Recipes work from any folder (make -C) and with spaces in its path.

HERE := $(CURDIR)
TARGET := $(or $(CARGO_TARGET_DIR),$(HERE)/target)
CARGO ?= cargo
DIR := $(HERE)/var

.PHONY: help setup build up down test check faults webhook-reference mail-reference examples manifests fuzz schemathesis dashboard bench performance

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile

setup: ## install what is missing (RabbitMQ; needs root or sudo only then)
	@scripts/setup

build: setup
	$(CARGO) build --release --workspace --bins --features server

up: build ## build, start broker, HTTP front and workers, and run a first job
	@"$(TARGET)/release/hopline" up --detach --dir "$(DIR)"
	@echo
	@echo 'A first job, image.thumbnail of workers/media/pictures/sample.jpg:'
	@scripts/first-job "$(TARGET)/release/hopline"

down: ## end all that `make up` started
	@if [ -x "$(TARGET)/release/hopline" ]; then "$(TARGET)/release/hopline" down --dir "$(DIR)"; else echo 'Nothing is up: nothing is built.'; fi

test: setup ## all tests, with a broker of their own
	$(CARGO) build --workspace --bins --all-features
	scripts/with-broker "$(TARGET)/debug/hopline" $(CARGO) test --workspace --all-features

check: setup ## what CI runs: format, lints, docs, advisories, a worker outside the workspace, all tests
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --all-features --no-deps
	@if $(CARGO) deny --version > /dev/null 2>&1; then $(CARGO) deny --workspace check; else echo 'skipped: cargo deny (cargo install cargo-deny)'; fi
	$(CARGO) build --workspace --bins --all-features
	CARGO="$(CARGO)" scripts/outside-worker "$(TARGET)/debug/hopline" "$(TARGET)/outside-worker"
	@$(MAKE) test

faults: setup ## every fault under 20,000 jobs each, for an hour or more; writes docs/faults.md
	$(CARGO) build --release --workspace --bins --features server
	$(CARGO) test --release --features server --test faults -- --full --write "$(HERE)/docs/faults.md"

webhook-reference: setup ## have the reference library of Standard Webhooks (Python, from PyPI) verify a callback
	$(CARGO) build --workspace --bins --all-features
	CARGO="$(CARGO)" CARGO_TARGET_DIR="$(TARGET)" scripts/webhook-reference "$(TARGET)/debug/hopline"

mail-reference: setup ## have aiosmtpd (Python, from PyPI) take mail from the mail worker, and Python's parser read it
	$(CARGO) build --workspace --bins --all-features
	CARGO_TARGET_DIR="$(TARGET)" scripts/with-broker "$(TARGET)/debug/hopline" scripts/mail-reference "$(TARGET)/debug/hopline" "$(TARGET)/debug/hopline-worker-mail"

examples: setup ## run the examples in Python and Node.js (from PyPI and npm) against a real Hopline, and check their jobs
	$(CARGO) build --workspace --bins --all-features
	CARGO_TARGET_DIR="$(TARGET)" scripts/with-broker "$(TARGET)/debug/hopline" scripts/examples "$(TARGET)/debug/hopline" "$(TARGET)/debug/hopline-worker-demo"

manifests: ## check compose file, Kubernetes manifests, alerts, dashboard and definitions against their schemas (PyPI, npm)
	CARGO_TARGET_DIR="$(TARGET)" scripts/manifests

dashboard: setup ## look at every page of the dashboard in Chromium, with RECORDS=3000 jobs; IMAGES=docs/images takes the pictures (npm)
	$(CARGO) build --workspace --bins --all-features
	CARGO_TARGET_DIR="$(TARGET)" scripts/with-broker "$(TARGET)/debug/hopline" scripts/dashboard "$(TARGET)/debug/hopline" "$(TARGET)/debug/hopline-worker-demo" "$(or $(RECORDS),3000)" $(IMAGES)

fuzz: ## fuzz each parser of what comes from outside for TIME=60 seconds, JOBS=1 at a time; MERGE=N keeps the best new inputs
	scripts/fuzz $(TARGETS)

schemathesis: setup ## test the HTTP interface against its own description (needs Python), on a broker of its own
	$(CARGO) build --release --workspace --bins --features server
	scripts/with-broker "$(TARGET)/release/hopline" scripts/schemathesis "$(TARGET)/release/hopline" "$(TARGET)/release/hopline-worker-demo"

bench: setup ## compare Hopline with the bare broker, on a broker of its own; ARGS='--only drain' and the like
	$(CARGO) build --release --workspace --bins --features server
	scripts/with-broker "$(TARGET)/release/hopline" sh -c 'HOPLINE_AMQP_URL=$$HOPLINE_TEST_AMQP_URL exec "$$0" bench "$$@"' "$(TARGET)/release/hopline" $(ARGS)

performance: setup ## measure all, Celery, FastAPI, Dramatiq, TaskIQ (PyPI) and Apalis (crates.io) beside it, and write docs/performance.md: an hour
	$(CARGO) build --release --workspace --bins --features server
	CARGO_TARGET_DIR="$(TARGET)" scripts/with-broker "$(TARGET)/release/hopline" sh -c 'HOPLINE_AMQP_URL=$$HOPLINE_TEST_AMQP_URL exec "$$0" bench --large 1000000 --peers "$$@"' "$(TARGET)/release/hopline" "$(HERE)/bench/peers/run" --docs "$(HERE)/docs" $(ARGS)
