# Makefile - Vitro's whole build. Plain GNU make; docs/decisions/0001-plain-make.md says why.
#
#   make            build/vitro, build/libvitro.a, the man page, and build/guests (guests/rules.mk)
#   make run        install what is missing, build, fetch the guest, boot it
#   make check      the same set-up, then every test        (check-fast: without boots)
#   make bench      benchmarks against native and QEMU      (bench/run)
#   make bench-pv   what guests gain from knowing that they are guests (bench/pv)
#   make asan       ASan+UBSan build in build-asan/         (check-asan: and its fast tests)
#   make tsan       ThreadSanitizer on devices and monitor, in build-tsan/   (check-tsan: unit tests and a boot)
#   make torture    -DTORTURE build in build-torture/       (check-torture: and its fast tests)
#   make fuzz       libFuzzer on tests/fuzz, FUZZ_SECONDS for each, in build-fuzz/   (check-fuzz: two seconds)
#   make install    PREFIX=/usr/local DESTDIR=
#
# V=1 shows the commands; CI=true makes warnings errors.

BUILD  ?= build
PREFIX ?= /usr/local
ifeq ($(origin CC),default) # make's own default is cc
CC := gcc
endif
ifeq ($(origin AR),default)
AR := ar
endif
CI     ?= false

VERSION := 0.1

# One job per CPU unless the user says otherwise.
ifeq ($(MAKELEVEL)$(filter -j% --jobserver%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

ifeq ($(V),1)
Q :=
say = @:
else
Q := @
say = @printf '  %-7s %s\n' $(1) $(2)
endif

# -- Configuration: what the compiler and the host have ------------------------

# Goals that need no compiler. setup installs it, so nothing may be probed before that.
no_config := clean format setup run bench-pv check check-fast check-asan check-tsan check-torture check-fuzz bench asan tsan torture fuzz \
	guest guests install
ifneq ($(filter-out $(no_config),$(or $(MAKECMDGOALS),all)),)
-include $(BUILD)/config.mk
endif

# $(call try,flags,program) - "y" if the program compiles and links with the flags; \n ends its lines
try = $(if $(filter ok,$(shell printf '%b\n' '$(2)' | \
	$(CC) -x c -o /dev/null - -x none $(1) >/dev/null 2>&1 && echo ok)),y)
main := int main(void) { return 0; }

# Probed again when the package data base changes (a library may have been installed).
$(BUILD)/config.mk: Makefile $(wildcard /var/lib/dpkg/status)
	$(call say,CONFIG,$@)
	@mkdir -p $(@D)
	@command -v $(firstword $(CC)) >/dev/null || { \
		echo "vitro: no C compiler; 'make setup' installs what the build needs" >&2; exit 1; }
	@{ echo 'HAVE_ZYDIS := $(call try,-Werror -lZydis,#include <Zydis/Zydis.h>\n int main(void) { return !ZydisGetVersion(); })'; \
	echo 'HAVE_CF_PROTECTION := $(call try,-Werror -fcf-protection=none,$(main))'; \
	echo 'HAVE_URING := $(call try,-Werror -luring,#include <liburing.h>\n int main(void) { struct io_uring r; return io_uring_queue_init(8, &r, 0); })'; \
	echo 'HAVE_SLIRP := $(call try,-Werror -lslirp,#include <slirp/libslirp.h>\n int main(void) { return !slirp_version_string(); })'; \
	echo 'HAVE_VNC := $(call try,-Werror -lneatvnc -laml -lpixman-1 -I/usr/include/pixman-1,#include <aml.h>\n#include <neatvnc.h>\n#include <pixman.h>\n int main(void) { return !aml_new() || !nvnc_open_unix(""); })'; \
	echo 'HAVE_ZLIB := $(call try,-Werror -lz,#include <zlib.h>\n int main(void) { return !zlibVersion(); })'; \
	echo 'HAVE_LZMA := $(call try,-Werror -llzma,#include <lzma.h>\n int main(void) { return !lzma_version_number(); })'; \
	echo 'HAVE_ZSTD := $(call try,-Werror -lzstd,#include <zstd.h>\n int main(void) { return !ZSTD_versionNumber(); })'; \
	echo 'HAVE_LZ4 := $(call try,-Werror -llz4,#include <lz4.h>\n int main(void) { return !LZ4_versionNumber(); })'; \
	echo 'HAVE_ASAN := $(call try,-Werror -fsanitize=address -fsanitize=undefined,$(main))'; \
	} > $@

# -- Flags --------------------------------------------------------------------

WARN := -Wall -Wextra -Wshadow -Wundef -Wvla -Wstrict-prototypes -Wmissing-prototypes \
	-Wwrite-strings -Wno-unused-parameter
ifeq ($(CI),true)
WARN += -Werror
endif

CFLAGS  ?= -O2 -g
# Hidden: no function of ours takes the place of one of the same name in a library (libaml has an aml_ref() too).
cflags   = -std=gnu11 -fvisibility=hidden -D_GNU_SOURCE= -DVITRO_VERSION='"$(VERSION)"' -Isrc -Iinclude \
	   $(if $(HAVE_CF_PROTECTION),-fcf-protection=none) $(WARN) $(extra) $(CFLAGS)
# Libraries; liburing, libslirp, neatvnc and those that decompress are used where they are there.
libs     = -ljansson -lpng -lxxhash $(if $(HAVE_URING),-luring) $(if $(HAVE_SLIRP),-lslirp) $(if $(HAVE_ZLIB),-lz) \
	   $(if $(HAVE_LZMA),-llzma) $(if $(HAVE_ZSTD),-lzstd) $(if $(HAVE_LZ4),-llz4) \
	   $(if $(HAVE_VNC),-lneatvnc -laml -lpixman-1)
lib_defs = $(if $(HAVE_URING),-DHAVE_URING=1) $(if $(HAVE_SLIRP),-DHAVE_SLIRP=1) \
	   $(if $(HAVE_ZLIB),-DHAVE_ZLIB=1) $(if $(HAVE_LZMA),-DHAVE_LZMA=1) $(if $(HAVE_ZSTD),-DHAVE_ZSTD=1) \
	   $(if $(HAVE_LZ4),-DHAVE_LZ4=1) $(if $(HAVE_VNC),-DHAVE_VNC=1 -I/usr/include/pixman-1)
ldflags  = -pthread $(extra) $(LDFLAGS)
# Engine code runs while the guest's vector registers are live: it must not touch them.
# libvitro.a's other folders run outside translated code and are compiled like anything else.
engine_cflags := -mgeneral-regs-only -fno-stack-protector -minline-all-stringops -fno-tree-loop-distribute-patterns \
	-mmemcpy-strategy=unrolled_loop:256:noalign,rep_8byte:-1:noalign \
	-mmemset-strategy=unrolled_loop:256:noalign,rep_8byte:-1:noalign

extra :=
ifeq ($(SAN),1)
extra += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
# Checks in the engine are inline; the calls that this option would add lose the guest's vector registers.
engine_cflags += -fno-sanitize-address-use-after-scope
endif
ifeq ($(TORTURE),1)
extra += -DTORTURE=1
endif
# ThreadSanitizer is for devices, bus and monitor: its calls would lose the guest's vector registers in the engine.
ifeq ($(TSAN),1)
extra += -fsanitize=thread
WARN += -Wno-tsan # it takes a fence for less than it is: virtio's rings, whose other side is not instrumented anyway
engine_cflags += -fno-sanitize=thread
endif
# FUZZ is for the harnesses in tests/fuzz, with clang's libFuzzer; the engine is linked, and not run.
ifeq ($(FUZZ),1)
extra += -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -DLIBFUZZER=1
engine_cflags := -fno-sanitize=all
endif

# -- Sources: by wildcard, nothing to list --------------------------------------

lib_src   := $(wildcard src/base/*.c src/x86/*.c src/mem/*.c src/engine/*.c src/engine/*.S)
board_src := $(wildcard src/storage/*.c src/net/*.c src/virtio/*.c src/machine/*.c src/machine/chips/*.c src/paravirt/*.c src/paravirt/xen/*.c src/boot/*.c src/monitor/*.c)
test_src  := $(wildcard tests/*/test_*.c)
tlib_src  := $(wildcard tests/lib/*.c)

obj = $(patsubst %,$(BUILD)/obj/%.o,$(basename $(1)))
lib_obj   := $(call obj,$(lib_src))
board_obj := $(call obj,$(board_src))
tlib_obj  := $(call obj,$(tlib_src))
test_obj  := $(call obj,$(test_src))
main_obj  := $(call obj,src/main.c)
test_bin  := $(patsubst %.c,$(BUILD)/%,$(test_src))

# A group of tests may add targets of its own: it appends to `test_extra`.
test_extra :=
-include $(wildcard tests/*/rules.mk)
include guests/rules.mk
include bench/pv/rules.mk

# -- Build ----------------------------------------------------------------------

.PHONY: all tests
all: $(BUILD)/vitro $(BUILD)/libvitro.a $(BUILD)/vitro.1 sdk-guests
tests: all $(test_bin) $(test_extra)

$(BUILD)/vitro: $(main_obj) $(board_obj) $(BUILD)/libvitro.a
	$(call say,LD,$@)
	$(Q)$(CC) -o $@ $(main_obj) $(board_obj) $(BUILD)/libvitro.a $(libs) $(ldflags)

$(BUILD)/libvitro.a: $(lib_obj)
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $(lib_obj)

# Everything but main.c, for tests. Not installed.
$(BUILD)/libboard.a: $(board_obj)
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $(board_obj)

$(BUILD)/vitro.1: docs/man/vitro.1
	$(call say,MAN,$@)
	@mkdir -p $(@D)
	$(Q)sed 's/@VERSION@/$(VERSION)/' $< > $@

# Objects are rebuilt when the flags change, and only then.
flags_now = $(CC) $(cflags) $(engine_cflags) $(HAVE_ZYDIS) $(lib_defs)
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(flags_now))' | cmp -s - $@ || \
		printf '%s\n' '$(subst ','\'',$(flags_now))' > $@
.PHONY: FORCE
FORCE:

ifeq ($(TSAN),1)
$(BUILD)/obj/src/mem/%.o $(BUILD)/obj/src/base/%.o: cflags += -fno-sanitize=thread
endif
$(BUILD)/obj/src/engine/%.o: src/engine/%.c $(BUILD)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(engine_cflags) -MMD -MP -c -o $@ $<

# What such calls call.
$(BUILD)/obj/src/machine/clock.o: src/machine/clock.c $(BUILD)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(engine_cflags) -MMD -MP -c -o $@ $<

# What struct vitro_outer calls.
$(patsubst %,$(BUILD)/obj/src/paravirt/xen/%.o,calls cpu mmu mmuext ports spaces): $(BUILD)/obj/%.o: %.c $(BUILD)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(engine_cflags) -MMD -MP -c -o $@ $<

# Hypercalls that are answered with the vector registers in place (hypercall_fast in libvitro.h).
$(BUILD)/obj/src/paravirt/%_fast.o: src/paravirt/%_fast.c $(BUILD)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(engine_cflags) -MMD -MP -c -o $@ $<

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(if $(filter tests/%,$<),-I.) $(if $(HAVE_ZYDIS),-DHAVE_ZYDIS=1) $(lib_defs) \
		-MMD -MP -c -o $@ $<

$(BUILD)/obj/%.o: %.S $(BUILD)/flags
	$(call say,AS,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) -D__ASSEMBLY__ -Isrc $(extra) -g -MMD -MP -c -o $@ $<

# tests/lib is an archive too: a test that replaces parts of the engine must not get all of it.
$(BUILD)/libtest.a: $(tlib_obj)
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $(tlib_obj)

$(test_bin): $(BUILD)/%: $(BUILD)/obj/%.o $(BUILD)/libtest.a $(BUILD)/libboard.a $(BUILD)/libvitro.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -o $@ $< $(BUILD)/libtest.a $(BUILD)/libboard.a $(BUILD)/libvitro.a \
		$(if $(HAVE_ZYDIS),-lZydis) $(libs) $(if $(FUZZ),$(if $(filter tests/fuzz/%,$*),-fsanitize=fuzzer)) $(ldflags)

.PHONY: fuzzers
fuzzers: $(filter $(BUILD)/tests/fuzz/%,$(test_bin))

.SECONDARY: $(test_obj) $(tlib_obj)

-include $(patsubst %.o,%.d,$(lib_obj) $(board_obj) $(main_obj) $(test_obj) $(tlib_obj))

# -- Guest files ------------------------------------------------------------------

GUEST := build/guest

.PHONY: setup guest guests
setup:
	@tools/setup-packages

guest: $(GUEST)/vmlinuz $(GUEST)/initrd.img
guests: guest $(GUEST)/vmlinuz-generic $(GUEST)/vmlinuz-rt $(GUEST)/initrd-i386.img $(GUEST)/xen.gz

# Again when fetch-guest changes: it also leaves the modules that the initramfs takes.
$(GUEST)/vmlinuz: tools/fetch-guest
	$(call say,FETCH,$@)
	$(Q)tools/fetch-guest cloud $(GUEST)
$(GUEST)/vmlinuz-generic: tools/fetch-guest | $(GUEST)/vmlinuz
	$(call say,FETCH,$@)
	$(Q)tools/fetch-guest generic $(GUEST)
$(GUEST)/vmlinuz-rt: | $(GUEST)/vmlinuz-generic
	$(call say,FETCH,$@)
	$(Q)tools/fetch-guest rt $(GUEST)
$(GUEST)/vmlinuz-i386: | $(GUEST)/vmlinuz-rt
	$(call say,FETCH,$@)
	$(Q)tools/fetch-guest i386 $(GUEST)
$(GUEST)/xen.gz: tools/fetch-guest | $(GUEST)/vmlinuz-i386
	$(call say,FETCH,$@)
	$(Q)tools/fetch-guest payloads $(GUEST)
$(GUEST)/initrd-i386.img: tools/mk-initrd | $(GUEST)/vmlinuz-i386
	$(call say,INITRD,$@)
	$(Q)tools/mk-initrd $@ --busybox $(GUEST)/busybox-i386 --modules $(GUEST)/modules/$$(cat $(GUEST)/version-i386)
$(GUEST)/initrd.img: tools/mk-initrd $(GUEST)/vmlinuz
	$(call say,INITRD,$@)
	$(Q)tools/mk-initrd $@

# -- Running, testing ---------------------------------------------------------------

# The sub-make starts after setup, so that it sees the compiler setup installed.
.PHONY: run check check-fast check-asan check-tsan check-torture check-fuzz bench asan tsan torture fuzz
run: setup
	@$(MAKE) all guest
	@$(BUILD)/vitro run $(ARGS)

check: setup
	@$(MAKE) CI=$(CI) tests guests
	@tests/run-all --build $(BUILD)

check-fast: setup
	@$(MAKE) CI=$(CI) tests
	@tests/run-all --build $(BUILD) --fast

bench: setup
	@$(MAKE) all guest
	@bench/mk-userland
	@[ -x build/bench/qemu2/qemu-system-x86_64 ] || bench/get-qemu2 || echo "bench: without a second QEMU"
	@bench/run

tsan:
	@$(MAKE) BUILD=build-tsan TSAN=1 all tests

asan:
	@$(MAKE) BUILD=build-asan SAN=1 all tests

torture:
	@$(MAKE) BUILD=build-torture TORTURE=1 all tests

# Each harness of tests/fuzz for FUZZ_SECONDS with clang's libFuzzer; docs/devices.md, "Fuzzing". check-fuzz: a short run of each.
FUZZ_SECONDS ?= 20
fuzz: setup
	@$(MAKE) BUILD=build-fuzz CC=clang FUZZ=1 CFLAGS="-O1 -gline-tables-only" fuzzers
	@tools/fuzz $(FUZZ_SECONDS) $(FUZZ_FILTER)

check-fuzz: setup
	@if echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | clang -fsanitize=fuzzer,address -x c -o /dev/null - 2>/dev/null; then \
		$(MAKE) FUZZ_SECONDS=2 fuzz; \
	else echo "check-fuzz: skipped: no clang with libFuzzer here"; echo "0 passed, 0 failed"; fi

check-asan: setup
	@$(MAKE) asan
	@ASAN_OPTIONS=handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0 tests/run-all --build build-asan --fast

# The board's threads under unit tests (test_native scribbles over guest memory on purpose) and under guests of several vCPUs,
# without seccomp's filters: to report a race ThreadSanitizer opens /proc/self/maps.
tsan_tests  := machine paravirt disk ide fdc firmware
tsan_guests := smp templates_smp pv_smp extents_smp mwait
check-tsan: setup
	@$(MAKE) BUILD=build-tsan TSAN=1 build-tsan/vitro $(tsan_tests:%=build-tsan/tests/unit/test_%) \
		$(patsubst %,build-tsan/tests/guest/%.elf,smp templates pv_smp extents mwait)
	@{ for t in $(tsan_tests); do build-tsan/tests/unit/test_$$t; done; \
	tests/guest/run --build build-tsan --extra=--sandbox --extra=off $(tsan_guests); } 2>&1 | awk '{ print } \
		/ passed, .* failed/ { for (i = 2; i <= NF; i++) { if ($$i == "passed,") p += $$(i - 1); if ($$i == "failed") f += $$(i - 1) } } \
		/WARNING: ThreadSanitizer/ { f++ } \
		END { print p + 0 " passed, " f + 0 " failed"; exit f > 0 }'

# Kernels on code caches of 128 KiB, boots on 1 MiB: with less, a Linux's timer interrupt takes longer than its tick.
check-torture: setup
	@$(MAKE) torture
	@TIME_SCALE=10 RUN_ARGS="--code-cache 1M" tests/run-all --build build-torture --fast --and tests/boot/test_payloads.py --and tests/boot/test_firmware.py \
		--and tests/boot/test_screen.py --and tests/boot/test_xen.py

# -- The rest -------------------------------------------------------------------------

.PHONY: install clean format
install:
	@$(MAKE) all
	$(call say,INSTALL,$(DESTDIR)$(PREFIX))
	$(Q)install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/include \
		$(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/vitro
	$(Q)install -m 755 $(BUILD)/vitro $(DESTDIR)$(PREFIX)/bin/vitro
	$(Q)install -m 644 $(BUILD)/libvitro.a $(DESTDIR)$(PREFIX)/lib/libvitro.a
	$(Q)install -m 644 $(wildcard include/*.h) $(DESTDIR)$(PREFIX)/include/
	$(Q)install -d $(DESTDIR)$(PREFIX)/include/vitro
	$(Q)install -m 644 $(wildcard include/vitro/*) $(DESTDIR)$(PREFIX)/include/vitro/
	$(Q)install -m 755 tools/image-debian $(DESTDIR)$(PREFIX)/share/vitro/image-debian
	$(Q)install -d $(DESTDIR)$(PREFIX)/share/vitro/sdk
	$(Q)install -m 644 $(wildcard guests/sdk/*) $(DESTDIR)$(PREFIX)/share/vitro/sdk/
	$(Q)install -m 644 $(BUILD)/vitro.1 $(DESTDIR)$(PREFIX)/share/man/man1/vitro.1
	$(Q)install -d $(DESTDIR)$(PREFIX)/share/vitro/bench/pv
	$(Q)install -m 755 bench/pv/run $(BUILD)/bench/pvguest $(BUILD)/guests/gain $(DESTDIR)$(PREFIX)/share/vitro/bench/pv/
	$(Q)for f in vmlinuz System.map initrd.img; do if [ -f $(GUEST)/$$f ]; then \
		install -m 644 $(GUEST)/$$f $(DESTDIR)$(PREFIX)/share/vitro/$$f; fi; done

clean:
	$(call say,CLEAN,build build-asan build-tsan build-torture build-fuzz)
	$(Q)rm -rf build build-asan build-tsan build-torture build-fuzz

format:
	$(Q)clang-format -i $(wildcard src/*/*.[ch] src/*/*/*.[ch] src/*.c include/*.h tests/*/*.[ch])
