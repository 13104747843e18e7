# The Perl benchmark: prog.pl N does N rounds and prints what it computed.
use strict;
use warnings;

# Word counts by regular expression over generated prose.
sub words {
    my ($lines) = @_;
    my ($seed, %count) = (42);
    my @vocabulary = map { "word$_" } 0 .. 99;
    for my $line (1 .. $lines) {
        my $text = join ' ', map {
            $seed = ($seed * 1103515245 + 12345) % 2147483648;
            $vocabulary[$seed % 100]
        } 1 .. 12;
        $count{$1}++ while $text =~ /\b(word\d*[13579])\b/g;
        (my $copy = $text) =~ s/word(\d)/$1-/g;
        $count{length $copy}++;
    }
    return join ',', map {"$_=$count{$_}"} sort keys %count;
}

# Life on a torus, cells in a hash.
sub life {
    my ($turns) = @_;
    my %alive = map { ("$_,$_" => 1, ($_ * 7 % 32) . ",$_" => 1) } 0 .. 31;
    for (1 .. $turns) {
        my %near;
        for my $cell (keys %alive) {
            my ($x, $y) = split /,/, $cell;
            for my $dx (-1, 0, 1) {
                for my $dy (-1, 0, 1) {
                    next unless $dx || $dy;
                    $near{ (($x + $dx) % 32) . ',' . (($y + $dy) % 32) }++;
                }
            }
        }
        %alive = map { $_ => 1 }
            grep { $near{$_} == 3 || ($near{$_} == 2 && $alive{$_}) } keys %near;
    }
    return scalar keys %alive;
}

sub ack {
    no warnings 'recursion';
    my ($m, $n) = @_;
    return $n + 1 if !$m;
    return ack($m - 1, 1) if !$n;
    return ack($m - 1, ack($m, $n - 1));
}

sub sorted {
    my ($n) = @_;
    my $x = 7;
    my @v = map { $x = ($x * 16807) % 2147483647 } 1 .. $n;
    my @s = sort { $a <=> $b } @v;
    my @t = sort map { sprintf '%08x', $_ } @v;
    return unpack '%32C*', join '', @s[0 .. 99], @t[0 .. 99];
}

for my $round (1 .. $ARGV[0]) {
    print "$round ", words(400 + $round), ' ', life(30), ' ', ack(2, 60), ' ',
        sorted(8000), "\n";
}
