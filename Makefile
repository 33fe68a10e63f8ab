# Each target installs what it misses (scripts/need), so that a fresh machine needs only git, make and
# a Rust toolchain.

CARGO ?= cargo
SEEDS ?= 1000000
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= wire_decode netlink_unwrap session_restore disk_log_resume server_requests
PREFIX ?= /usr/local
IMAGE ?= localhost/mirrord
BINARY ?= $(or $(CARGO_TARGET_DIR),target)/release/mirrord

.PHONY: all install image demo check test bench soak mutants fuzz clean

all:
	$(CARGO) build --release

# The program, manual pages, completions, systemd units and udev rules, under $(DESTDIR)$(PREFIX). Build first
# (`make`) where the one who installs has no toolchain.
install: $(BINARY)
	PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" BINARY="$(BINARY)" scripts/install

$(BINARY):
	$(CARGO) build --release

# A container image, IMAGE, by podman or docker: docs/containers.md.
image:
	scripts/need build container
	scripts/image $(IMAGE)

# The main job, end to end, on real files: shows what happens.
demo:
	scripts/need build fuse ext4 json
	scripts/demo

# For every commit: format, clippy, unit tests, the simulator, and the real program on this machine.
check:
	scripts/need build static fuse ext4 fio
	scripts/test --quick

# Every test that this machine can run, about an hour; what it cannot is said at the end.
test:
	scripts/need build static fuse ext4 fio
	scripts/test

# Side by side with peers in one run; `make bench ARGS="--quick"` for a glance.
bench:
	scripts/need build fuse fio qemu
	$(CARGO) build --release
	$(CARGO) run --release -p mirrord-bench -- $(ARGS)

# SEEDS random crash-and-recover runs of the simulator.
soak:
	scripts/need build
	MIRRORD_SOAK=$(SEEDS) $(CARGO) test --release -p mirrord-raid --test sim soak -- --ignored --nocapture

# Breaks each invariant in a scratch copy and shows that the simulator notices.
mutants:
	scripts/need build
	raid/tests/mutants/run

# FUZZ_SECONDS of bytes that nobody would send, for each of FUZZ_TARGETS.
fuzz:
	scripts/need build fuzz
	scripts/fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS)

clean:
	$(CARGO) clean
