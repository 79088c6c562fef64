# datamon: two commands, `make quickstart` and `make test`. `make help` lists the rest.
# One cargo profile for both (docs/adr/0001): a second one builds rocksdb's C++ again.

PREFIX ?= /usr/local
SBINDIR ?= /sbin
MANDIR ?= $(PREFIX)/share/man
CRASH_ROUNDS ?= 300
CARGO ?= cargo
TARGET = $(or $(CARGO_TARGET_DIR),target)

.PHONY: help deps build quickstart test crash fstests acceptance bench scale install install-built uninstall clean

help:
	@echo "make quickstart   build, and see the main job on a local store"
	@echo "make test         run all tests"
	@echo "make fstests      file system suites and real programs on a staging tree, the long form (root)"
	@echo "make crash        power cuts, kills and failing disks under load, for an hour or so (root)"
	@echo "make acceptance   large real trees through the main job, over a directory and S3; prints a table (root)"
	@echo "make bench        measure the main job beside the local disk (release build)"
	@echo "make scale        what grows with the number of files, up to a million (release build)"
	@echo "make install      install datamon, its mount helpers and its manual (PREFIX=$(PREFIX), SBINDIR=$(SBINDIR))"
	@echo "make uninstall    remove what install installed"
	@echo "make clean        remove what was built"

test crash fstests acceptance bench scale: DEPS = --tests
deps:
	@packaging/install-deps.sh $(DEPS)
	@command -v $(CARGO) >/dev/null || { echo "make: $(CARGO): not found (https://rustup.rs, then: . ~/.cargo/env)" >&2; exit 1; }

build: deps
	$(CARGO) build --workspace

# What cannot work is said before a quarter of an hour of building, not after.
quickstart: deps
	@scripts/quickstart.sh --check
	@$(MAKE) --no-print-directory build
	@scripts/quickstart.sh "$(TARGET)/debug/datamon"

# The tests that let mount(8) call the helper want it built. By itself: a build of all without the tests' crates would
# compile the library a second time.
test: deps
	@tests/tools.sh
	$(CARGO) build -q -p datamon-mount-helper
	$(CARGO) test --workspace

fstests: build
	@tests/tools.sh
	@FSTESTS_FSX=$${FSTESTS_FSX:-1000000} tests/fstests/run.sh "$(TARGET)/debug/datamon" "$(TARGET)/test-tools"

# The same tests as in `make test`, longer; DATAMON_CRASH_SEED=N repeats a run's choices.
crash: deps
	@tests/tools.sh
	DATAMON_CRASH_ROUNDS=$(CRASH_ROUNDS) DATAMON_TEST_LIMIT=7200 $(CARGO) test --test main -- power:: disk:: --nocapture --test-threads=1

acceptance: build
	@tests/tools.sh
	@scripts/acceptance.sh "$(TARGET)/debug/datamon" "$(TARGET)/test-tools"

bench: deps
	$(CARGO) bench --bench main_job

scale: deps
	$(CARGO) bench --bench scale

install: deps
	DATAMON_BINARY="$(PREFIX)/bin/datamon" $(CARGO) build --release --workspace
	@$(MAKE) --no-print-directory install-built BUILT="$(TARGET)/release"

# What was built for this PREFIX, put in its places; for all to read, whatever root's umask.
install-built:
	install -D -m 0755 "$(BUILT)/datamon" "$(DESTDIR)$(PREFIX)/bin/datamon"
	install -D -m 0755 "$(BUILT)/datamon-mount-helper" "$(DESTDIR)$(SBINDIR)/mount.datamon"
	for name in umount.datamon mount.fuse.datamon umount.fuse.datamon; do \
	    ln -sf mount.datamon "$(DESTDIR)$(SBINDIR)/$$name"; \
	done
	umask 022 && "$(BUILT)/datamon" man-pages "$(DESTDIR)$(MANDIR)"
	umask 022 && mkdir -p "$(DESTDIR)$(PREFIX)/share/bash-completion/completions" && \
	    "$(BUILT)/datamon" completions bash > "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/datamon"

uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/bin/datamon" "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/datamon"
	rm -f "$(DESTDIR)$(MANDIR)/man1/datamon.1" "$(DESTDIR)$(MANDIR)/man1/datamon-context.1"
	rm -f "$(DESTDIR)$(MANDIR)/man8/mount.datamon.8"
	for name in mount.datamon umount.datamon mount.fuse.datamon umount.fuse.datamon; do \
	    rm -f "$(DESTDIR)$(SBINDIR)/$$name"; \
	done

clean:
	$(CARGO) clean
