# `make` builds the release library, `make install` installs it with headers, sft.pc and the CMake package:
# PREFIX, LIBDIR and DESTDIR as in bindings/c/Makefile.

export LIBRARIES ?= $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/release

.PHONY: all install
all:
	cargo build --locked --release --lib

install:
	$(MAKE) -C bindings/c install
