# The programs that the boot tests run in the guest; `make guests` makes them with the kernels.
guests: build/guest/debian.cpio
build/guest/debian.cpio: tools/mk-debian
	$(call say,FETCH,$@)
	$(Q)tools/mk-debian build/guest
