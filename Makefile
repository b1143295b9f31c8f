# The two commands of the README are `make demo` and `make test`; the rest serves whoever works
# on the code. Everything a target needs is installed by packaging/bootstrap, once.

BIN := .venv/bin
READY := .venv/.ready
SCRIPTS := .ci/run packaging/bootstrap packaging/try-in-bare-debian packaging/image/layout \
	$(wildcard packaging/image/root/usr/libexec/virtkit/*) \
	$(addprefix lab/guest_files/,initramfs/init root/etc/rc root/etc/dhcp root/sbin/control)

# The CNI program has to run on any Linux of this architecture, whatever is installed there.
CNI := build/virtkit-cni
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
CNI_FLAGS := -std=c17 -D_GNU_SOURCE \
	-Wall -Wextra -Werror -Wpedantic -Wshadow -Wconversion \
	-O2 -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong \
	$(if $(filter x86_64,$(shell uname -m)),-fcf-protection) \
	-fPIE -static-pie -Wl,-z,relro,-z,now,-z,noexecstack
# Tests build it with other paths and shorter times, see plugins/cni/config.h.
CNI_SETTINGS :=

.PHONY: demo test unit functional lint docs install clean

demo: $(READY) $(CNI)
	$(BIN)/python -m lab.demo $(if $(KEEP),--keep)

test: lint unit functional

unit: $(READY) $(CNI)
	$(BIN)/pytest tests/unit $(wildcard tests/golden) -q

functional: $(READY) $(CNI)
	$(BIN)/pytest tests/functional $(wildcard tests/e2e)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	shellcheck $(SCRIPTS)

docs: $(READY)
	$(BIN)/python docs/generate.py

install: $(READY) $(CNI)

$(CNI): $(wildcard plugins/cni/*.[ch]) pyproject.toml Makefile | $(READY)
	gcc $(CNI_FLAGS) -DVK_VERSION='"$(VERSION)"' $(CNI_SETTINGS) -o $@.new $(filter %.c,$^)
	mv $@.new $@

$(READY): pyproject.toml packaging/bootstrap packaging/debian-packages.txt
	packaging/bootstrap .venv
	touch $@

clean:
	rm -rf .venv build
