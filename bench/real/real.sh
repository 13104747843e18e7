#!/bin/sh
# real.sh NAME PERMILLE - one real program with PERMILLE / 1000 of its usual
# work. What it prints must depend on nothing but NAME and PERMILLE: it is the
# checksum. "prepare" makes the inputs, and is not timed.

set -e
export LC_ALL=C PYTHONHASHSEED=0 PERL_HASH_SEED=0 PATH=/usr/bin:/usr/sbin
permille=$2

# amount BASE: BASE scaled, at least 1
amount() {
	n=$(($1 * permille / 1000))
	[ "$n" -gt 0 ] || n=1
	echo "$n"
}

prepare() {
	mkdir -p /tmp/work
	find /usr/include -name '*.h' | sort | xargs cat >/tmp/work/all
	head -c "$(amount 4000000)" /tmp/work/all >/tmp/work/text
	rm /tmp/work/all
}

run_python() { python3 /bench/prog.py "$(amount 30)"; }

run_perl() { perl /bench/prog.pl "$(amount 30)"; }

# Compile vbench's own sources, link, list what the result holds.
run_gcc() {
	i=$(amount 5)
	for c in kernel integer control memory fp; do
		[ "$i" -gt 0 ] || break
		gcc -O2 -c -o /tmp/work/$c.o /bench/src/$c.c
		sha256sum </tmp/work/$c.o
		i=$((i - 1))
	done
	echo 'int main(void) { return 0; }' >/tmp/work/one.c
	gcc -O2 -o /tmp/work/one /tmp/work/one.c
	/tmp/work/one
}

run_sqlite() {
	n=$(amount 150000)
	sqlite3 :memory: <<-EOF
	create table item (id integer primary key, k integer, name text, v real);
	create table kind (k integer primary key, label text);
	with recursive c(i) as (select 1 union all select i + 1 from c where i < $n)
	insert into item select i, i * 7919 % 1009,
	  'item ' || (i * 104729 % 1000003), i * 0.25 from c;
	with recursive c(i) as (select 0 union all select i + 1 from c where i < 1008)
	insert into kind select i, 'kind ' || i from c;
	create index by_k on item(k);
	create index by_name on item(name);
	select label, count(*), sum(v) from item join kind using (k)
	  group by label order by 3 desc, 1 limit 20;
	select count(*) from item where name like 'item 99%';
	select sum(a.id) from item a join item b on b.id = a.k where b.k < 300;
	update item set v = v * 2 where k % 3 = 0;
	delete from item where k between 100 and 400;
	select count(*), sum(v), max(name) from item;
	EOF
}

run_openssl() {
	i=$(amount 6)
	while [ "$i" -gt 0 ]; do
		openssl dgst -sha256 /tmp/work/text
		openssl dgst -sha3-512 /tmp/work/text
		openssl enc -aes-256-cbc -K 00112233 -iv 00 -in /tmp/work/text \
			-out /tmp/work/aes 2>/dev/null
		openssl enc -d -aes-256-cbc -K 00112233 -iv 00 \
			-in /tmp/work/aes 2>/dev/null | cmp - /tmp/work/text
		openssl enc -chacha20 -K 0011 -iv 00 -in /tmp/work/text 2>/dev/null |
			openssl dgst -md5
		for k in 1 2 3 4; do
			openssl dgst -sha256 -sign /bench/rsa.pem \
				-out /tmp/work/sig$k /bench/prog.py
			openssl dgst -sha256 -prverify /bench/rsa.pem \
				-signature /tmp/work/sig$k /bench/prog.py
		done
		openssl dgst -sha256 </tmp/work/sig1
		i=$((i - 1))
	done
}

run_xz() {
	xz -T1 -3 -c /tmp/work/text >/tmp/work/text.xz
	sha256sum </tmp/work/text.xz
	for i in 1 2 3 4; do
		xz -dc /tmp/work/text.xz | cmp - /tmp/work/text
	done
}

run_tar() {
	i=$(amount 4)
	while [ "$i" -gt 0 ]; do
		tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner \
			--format=ustar -cf /tmp/work/tar -C /usr include
		sha1sum </tmp/work/tar
		rm -rf /tmp/work/tree
		mkdir /tmp/work/tree
		tar -xf /tmp/work/tar -C /tmp/work/tree
		find /tmp/work/tree -type f | wc -l
		i=$((i - 1))
	done
}

run_shell_fork() {
	n=$(amount 600) i=0
	while [ "$i" -lt "$n" ]; do
		/usr/bin/true
		i=$((i + 1))
	done
	echo "$i"
}

run_shell_pipe() {
	n=$(amount 150) i=0
	while [ "$i" -lt "$n" ]; do
		x=$(echo "line $i" | sed s/line/row/ | cat | tr a-z A-Z)
		i=$((i + 1))
	done
	echo "$x $i"
}

case $1 in
prepare) prepare ;;
*) run_$1 ;;
esac
