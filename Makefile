# The two commands of the README are `make demo` and `make test`; the rest serves whoever works
# on the code. Everything a target needs is installed by packaging/bootstrap, once.

BIN := .venv/bin
READY := .venv/.ready
SCRIPTS := .ci/run packaging/bootstrap packaging/try-in-bare-debian \
	$(addprefix lab/guest_files/,initramfs/init root/etc/rc root/etc/dhcp root/sbin/control)

.PHONY: demo test unit functional lint docs install clean

demo: $(READY)
	$(BIN)/python -m lab.demo $(if $(KEEP),--keep)

test: lint unit functional

unit: $(READY)
	$(BIN)/pytest tests/unit $(wildcard tests/golden) -q

functional: $(READY)
	$(BIN)/pytest tests/functional $(wildcard tests/e2e)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	shellcheck $(SCRIPTS)

docs: $(READY)
	$(BIN)/python docs/generate.py

install: $(READY)

$(READY): pyproject.toml packaging/bootstrap packaging/debian-packages.txt
	packaging/bootstrap .venv
	touch $@

clean:
	rm -rf .venv build
