/* share.h - what --share asks for. */
#pragma once
#include "base/types.h"

#define SHARES_MAX 8

struct share {
    char dir[4096], tag[32];
    bool readonly;
};

/* share_parse - DIR,tag=NAME[,readonly=on]. -1: done, else the exit status, with the mistake explained. */
int share_parse(struct share *share, const char *option, const char *text);
