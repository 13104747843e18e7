/* bench.h - `vitro bench`. */
#pragma once

/* bench_run - become bench/NAME/run with the rest of the arguments. Comes back only with a status, having said why. */
int bench_run(int argc, char **argv);
