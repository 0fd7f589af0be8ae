EXTENSION = durable
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" durable.control)
PARTS = $(addprefix sql/,$(shell grep -v '^\#' sql/INSTALL_ORDER))
BUILT = build/durable--$(EXTVERSION).sql
PLAIN = build/durable.sql
DATA_built = $(BUILT)
EXTRA_CLEAN = build

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

all: $(PLAIN)

$(BUILT): sql/extension_header.sql $(PARTS) sql/extension_footer.sql durable.control
	mkdir -p build
	cat sql/extension_header.sql $(PARTS) sql/extension_footer.sql | sed 's/@VERSION@/$(EXTVERSION)/' > $@

$(PLAIN): sql/plain_header.sql $(PARTS) durable.control
	mkdir -p build
	cat sql/plain_header.sql $(PARTS) | sed 's/@VERSION@/$(EXTVERSION)/' > $@

# `make test` works on a fresh machine: tests/prepare installs what is missing. Options: make test PYTEST="--pg 15 -k claim"
.PHONY: test
test:
	@tests/prepare
	@.venv/bin/python -m pytest tests $(PYTEST)
