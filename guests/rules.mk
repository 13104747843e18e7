# Guests written for Vitro's own ABI: guests/NAME/*.c on guests/sdk makes BUILD/guests/NAME, a kernel for
# `vitro run --kernel`. Included by the top Makefile. To build one of your own elsewhere, see guests/README.md.

sdk_out   := $(BUILD)/guests
sdk_names := $(filter-out sdk init,$(notdir $(patsubst %/,%,$(wildcard guests/*/))))
sdk_bin   := $(sdk_names:%=$(sdk_out)/%)
sdk_obj   := $(patsubst guests/%,$(sdk_out)/obj/%.o,$(basename $(wildcard guests/sdk/*.[cS])))

# A guest with a guest.ld of its own stands alone: it is given the SDK's print() and nothing else.
sdk_for = $(if $(wildcard guests/$(1)/guest.ld),$(sdk_out)/obj/sdk/console.o guests/$(1)/guest.ld,$(sdk_obj) guests/sdk/guest.ld)

# Freestanding, below 2 GiB, no vector registers: interrupt handlers need not save them.
sdk_flags := -std=gnu11 -O2 -g -ffreestanding -nostdlib -mno-red-zone -mgeneral-regs-only -mcmodel=small -fno-pic \
	-no-pie -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -fno-strict-aliasing \
	-Wall -Wextra -Wshadow -Wstrict-prototypes -Iguests -Iinclude $(if $(filter true,$(CI)),-Werror)

$(sdk_out)/obj/%.o: guests/%.c guests/rules.mk
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(sdk_flags) -MMD -MP -c -o $@ $<

$(sdk_out)/obj/%.o: guests/%.S guests/rules.mk
	$(call say,AS,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(sdk_flags) -MMD -MP -c -o $@ $<

define sdk_guest
$(sdk_out)/$(1): $(patsubst guests/%,$(sdk_out)/obj/%.o,$(basename $(wildcard guests/$(1)/*.[cS]))) $(call sdk_for,$(1))
	$$(call say,LD,$$@)
	$$(Q)$$(CC) $$(sdk_flags) -static -Wl,--build-id=none,-z,noexecstack,--no-warn-rwx-segments \
		-T $$(filter %.ld,$$^) -o $$@ $$(filter %.o,$$^)
endef
$(foreach name,$(sdk_names),$(eval $(call sdk_guest,$(name))))

.PHONY: sdk-guests
sdk-guests: $(sdk_bin)
.SECONDARY: $(sdk_obj) $(foreach n,$(sdk_names),$(patsubst guests/%,$(sdk_out)/obj/%.o,$(basename $(wildcard guests/$(n)/*.[cS]))))
-include $(wildcard $(sdk_out)/obj/*/*.d)
