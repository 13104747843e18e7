#!/bin/sh
# session.sh WORDS SCALE - run benchmarks and real programs, in a guest or in
# a chroot on the host. WORDS is a comma-separated list of names and groups of
# vbench, plus "real" and names of real programs.
#
# @begin and @end carry the clock of whoever runs this, so that the runner can
# check it against its own.

words=$1 scale=$2
permille=$(awk "BEGIN { printf \"%d\", $scale * 1000 }")
real="python perl gcc sqlite openssl xz tar shell_fork shell_pipe"

now() { cut -d' ' -f1 /proc/uptime; }

chosen=
for name in $real; do
	case ,$words, in
	*,real,* | *,$name,*) chosen="$chosen $name" ;;
	esac
done

if [ -n "$chosen" ]; then
	/bin/sh /bench/real.sh prepare "$permille" || echo "@failed prepare"
fi
echo "@begin $(now)"
/bench/vbench --only "$words" --scale "$scale" || echo "@failed vbench"
for name in $chosen; do
	/bench/vbench --time "$name" /bin/sh /bench/real.sh "$name" "$permille"
done
echo "@end $(now)"
