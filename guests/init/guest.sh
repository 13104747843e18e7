#!/bin/sh
# guest.sh - what the benchmark guest does after init.c. The kernel command
# line says which: "bench=WORDS scale=F" runs /bench/session.sh and powers
# off; "bench=shell", or nothing, leaves a shell on the console.

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp

bench=shell scale=1
for word in $(cat /proc/cmdline); do
	case $word in
	bench=*) bench=${word#bench=} ;;
	scale=*) scale=${word#scale=} ;;
	esac
done

if [ "$bench" = shell ]; then
	echo @shell
	exec setsid cttyhack sh
fi
/bin/sh /bench/session.sh "$bench" "$scale"
poweroff -f
