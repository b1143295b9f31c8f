# The two commands of the README are `make demo` and `make test`; the rest serves whoever works
# on the code. Everything a target needs is installed by packaging/bootstrap, once.

BIN := .venv/bin
READY := .venv/.ready
SCRIPTS := .ci/run packaging/bootstrap packaging/try-in-bare-debian packaging/image/layout \
	$(wildcard packaging/image/root/usr/libexec/virtkit/*) \
	$(addprefix lab/guest_files/,initramfs/init root/etc/rc root/etc/dhcp root/sbin/control)

# The CNI program runs on any Linux of this architecture, whatever is installed there; and it is
# started for every verb, so its C library is the one that starts fastest
# (docs/decisions/0008). musl-gcc does not know -static-pie, so that is spelt out.
CNI := build/virtkit-cni
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
MUSL := /usr/lib/$(shell uname -m)-linux-musl
CNI_CC := musl-gcc
CNI_FLAGS := -std=c17 -D_GNU_SOURCE -O2 \
	-Wall -Wextra -Werror -Wpedantic -Wshadow -Wconversion -fstack-protector-strong \
	$(if $(filter x86_64,$(shell uname -m)),-fcf-protection) \
	-fPIE -static -nostartfiles -Wl,-pie,--no-dynamic-linker,-z,text \
	-Wl,-z,relro,-z,now,-z,noexecstack
CNI_START := $(MUSL)/rcrt1.o $(MUSL)/crti.o
CNI_END := $(MUSL)/crtn.o
# Tests build it with other paths and shorter times, see plugins/cni/config.h.
CNI_SETTINGS :=

# The block server of golden images is a plugin of nbdkit, which loads it, so it is linked with what
# Debian's nbdkit and Ceph are.
GOLDEN := build/nbdkit-virtkit-golden-plugin.so
GOLDEN_FLAGS := -std=c17 -D_GNU_SOURCE -O2 -g -D_FORTIFY_SOURCE=2 \
	-Wall -Wextra -Werror -Wpedantic -Wshadow -Wconversion -fstack-protector-strong \
	$(if $(filter x86_64,$(shell uname -m)),-fcf-protection) \
	-fPIC -shared -fvisibility=hidden -Wl,-z,relro,-z,now,-z,noexecstack
# Tests build it with sanitizers too.
GOLDEN_SETTINGS :=

.PHONY: demo test unit functional lint bench docs install clean

demo: $(READY) $(CNI) $(GOLDEN)
	$(BIN)/python -m lab.demo $(if $(KEEP),--keep)

test: lint unit functional

unit: $(READY) $(CNI) $(GOLDEN)
	$(BIN)/pytest tests/unit $(wildcard tests/golden) -q

functional: $(READY) $(CNI) $(GOLDEN)
	$(BIN)/pytest tests/functional $(wildcard tests/e2e)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	shellcheck $(SCRIPTS)

bench: $(READY) $(CNI) $(GOLDEN)
	@test -f benchmarks/$(BENCH).py || { echo "Say which: make bench BENCH=cni" >&2; exit 2; }
	$(BIN)/python -m benchmarks.$(BENCH)

docs: $(READY)
	$(BIN)/python docs/generate.py

install: $(READY) $(CNI) $(GOLDEN)

$(CNI): $(wildcard plugins/cni/*.[ch]) pyproject.toml Makefile | $(READY)
	$(CNI_CC) $(CNI_FLAGS) -DVK_VERSION='"$(VERSION)"' $(CNI_SETTINGS) \
		-o $@.$$$$ $(CNI_START) $(filter %.c,$^) $(CNI_END) && mv $@.$$$$ $@

$(GOLDEN): $(wildcard plugins/golden/*.[ch]) pyproject.toml Makefile | $(READY)
	gcc $(GOLDEN_FLAGS) -DVK_VERSION='"$(VERSION)"' $(GOLDEN_SETTINGS) \
		-o $@.$$$$ $(filter %.c,$^) -lrbd -lrados -lcrypto && mv $@.$$$$ $@

$(READY): pyproject.toml packaging/bootstrap packaging/debian-packages.txt
	packaging/bootstrap .venv
	touch $@

clean:
	rm -rf .venv build
