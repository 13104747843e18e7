# A Xen PV guest that tests the interface from inside (tests/xen/run): tests/xen on guests/xen/start.S.
xt_out := $(BUILD)/tests/xen
xt_obj := $(patsubst tests/xen/%,$(xt_out)/%.o,$(basename $(wildcard tests/xen/*.[cS]))) \
	$(BUILD)/guests/obj/xen/start.o $(BUILD)/guests/obj/sdk/console.o

$(xt_out)/%.o: tests/xen/%.c tests/xen/rules.mk guests/rules.mk
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(sdk_flags) -I. -MMD -MP -c -o $@ $<

$(xt_out)/%.o: tests/xen/%.S tests/xen/rules.mk guests/rules.mk
	$(call say,AS,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(sdk_flags) -MMD -MP -c -o $@ $<

$(xt_out)/guest.elf: $(xt_obj) guests/xen/guest.ld
	$(call say,LD,$@)
	$(Q)$(CC) $(sdk_flags) -static -Wl,--build-id=none,-z,noexecstack,--no-warn-rwx-segments -T guests/xen/guest.ld -o $@ $(filter %.o,$^)

test_extra += $(xt_out)/guest.elf
-include $(wildcard $(xt_out)/*.d)
