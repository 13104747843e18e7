# What `vitro bench pv` runs in the guest. Included by the top Makefile.

$(BUILD)/bench/pvguest: bench/pv/guest.c bench/pv/rules.mk
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 -O2 $(WARN) -static -pthread -o $@ $<

all: $(BUILD)/bench/pvguest
.PHONY: bench-pv
bench-pv: setup
	@$(MAKE) all guest $(BUILD)/bench/pvguest
	@$(BUILD)/vitro bench pv $(ARGS)
