# Bare test kernels: one tests/guest/*.c each, on tests/guest/lib.
# Included by the top Makefile; `make -f tests/guest/Makefile` builds these alone.

gt_dir   := tests/guest
gt_out   := $(BUILD)/tests/guest
gt_lib   := $(patsubst $(gt_dir)/%,$(gt_out)/obj/%.o,$(basename $(wildcard $(gt_dir)/lib/*.[cS])))
gt_names := $(basename $(notdir $(wildcard $(gt_dir)/*.c)))
gt_elf   := $(gt_names:%=$(gt_out)/%.elf)

# Freestanding, below 2 GiB, no vector registers (the fpu test has them in its asm only).
gt_flags := -std=gnu11 -O2 -g -ffreestanding -nostdlib -mno-red-zone -mgeneral-regs-only -mcmodel=small \
	-fno-pic -no-pie -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables \
	-fno-strict-aliasing -fno-jump-tables -fno-omit-frame-pointer -fno-delete-null-pointer-checks \
	-Wall -Wextra -Wno-unused-parameter -Wno-array-bounds -Wno-missing-field-initializers \
	-I$(gt_dir) -Iinclude $(if $(filter true,$(CI)),-Werror)

$(gt_out)/obj/%.o: $(gt_dir)/%.c $(gt_dir)/rules.mk
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(gt_flags) -MMD -MP -c -o $@ $<

$(gt_out)/obj/%.o: $(gt_dir)/%.S $(gt_dir)/rules.mk
	$(call say,AS,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(gt_flags) -MMD -MP -c -o $@ $<

$(gt_elf): $(gt_out)/%.elf: $(gt_out)/obj/%.o $(gt_lib) $(gt_dir)/lib/guest.ld
	$(call say,LD,$@)
	$(Q)$(CC) $(gt_flags) -static -Wl,--build-id=none,-z,noexecstack,--no-warn-rwx-segments \
		-T $(gt_dir)/lib/guest.ld -o $@ $(filter %.o,$^)

test_extra += $(gt_elf)

# Kernels of the other modes: tests/guest/legacy/*.c on tests/guest/legacy/lib. 32-bit code, linked as such and
# then wrapped as ELF64, which both machines load.
lt_dir   := $(gt_dir)/legacy
lt_lib   := $(patsubst $(gt_dir)/%,$(gt_out)/obj/%.o,$(basename $(wildcard $(lt_dir)/lib/*.[cS]))) \
	$(gt_out)/obj/legacy/lib/report.o
lt_names := $(basename $(notdir $(wildcard $(lt_dir)/*.c)))
lt_elf   := $(lt_names:%=$(gt_out)/%.elf)
lt_flags := -m32 $(filter-out -mno-red-zone -mcmodel=small,$(gt_flags))

$(gt_out)/obj/legacy/%.o: $(lt_dir)/%.c $(gt_dir)/rules.mk
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(lt_flags) -MMD -MP -c -o $@ $<

$(gt_out)/obj/legacy/%.o: $(lt_dir)/%.S $(gt_dir)/rules.mk
	$(call say,AS,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(lt_flags) -MMD -MP -c -o $@ $<

$(gt_out)/obj/legacy/lib/report.o: $(gt_dir)/lib/report.c $(gt_dir)/rules.mk
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(lt_flags) -w -MMD -MP -c -o $@ $<

$(lt_elf): $(gt_out)/%.elf: $(gt_out)/obj/legacy/%.o $(lt_lib) $(lt_dir)/lib/legacy.ld
	$(call say,LD,$@)
	$(Q)$(LD) -m elf_i386 -static -z noexecstack --no-warn-rwx-segments -T $(lt_dir)/lib/legacy.ld -o $@.32 $(filter %.o,$^)
	$(Q)$(OBJCOPY) -O elf64-x86-64 $@.32 $@

OBJCOPY ?= objcopy
test_extra += $(lt_elf)
.SECONDARY: $(lt_lib) $(lt_names:%=$(gt_out)/obj/legacy/%.o)
-include $(wildcard $(gt_out)/obj/legacy/*.d $(gt_out)/obj/legacy/lib/*.d)
.SECONDARY: $(gt_lib) $(gt_names:%=$(gt_out)/obj/%.o)
-include $(wildcard $(gt_out)/obj/*.d $(gt_out)/obj/lib/*.d)
