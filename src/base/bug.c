#include "base/types.h"
#include <stdio.h>
#include <stdlib.h>

void bug(const char *what, const char *file, int line)
{
    fprintf(stderr, "vitro: bug: %s at %s:%d; please report it\n", what, file,
            line);
    abort();
}
