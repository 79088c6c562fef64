# datamon: two commands, `make quickstart` and `make test`. `make help` lists the rest.
# One cargo profile for both (docs/adr/0001): a second one builds rocksdb's C++ again.

PREFIX ?= /usr/local
SBINDIR ?= /sbin
CARGO ?= cargo

.PHONY: help deps build quickstart test bench install uninstall clean

help:
	@echo "make quickstart   build, and see the main job on a local store"
	@echo "make test         run all tests"
	@echo "make bench        measure the main job beside the local disk (release build)"
	@echo "make install      install datamon and its mount helpers (PREFIX=$(PREFIX), SBINDIR=$(SBINDIR))"
	@echo "make uninstall    remove what install installed"
	@echo "make clean        remove what was built"

deps:
	@packaging/install-deps.sh

build: deps
	$(CARGO) build --workspace

quickstart: build
	@scripts/quickstart.sh target/debug/datamon

test: deps
	@tests/tools.sh
	$(CARGO) test --workspace

bench: deps
	$(CARGO) bench --bench main_job

install: deps
	DATAMON_BINARY=$(PREFIX)/bin/datamon $(CARGO) build --release --workspace
	install -D -m 0755 target/release/datamon $(DESTDIR)$(PREFIX)/bin/datamon
	install -D -m 0755 target/release/datamon-mount-helper $(DESTDIR)$(SBINDIR)/mount.datamon
	for name in umount.datamon mount.fuse.datamon umount.fuse.datamon; do \
	    ln -sf mount.datamon $(DESTDIR)$(SBINDIR)/$$name; \
	done

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/datamon
	for name in mount.datamon umount.datamon mount.fuse.datamon umount.fuse.datamon; do \
	    rm -f $(DESTDIR)$(SBINDIR)/$$name; \
	done

clean:
	$(CARGO) clean
