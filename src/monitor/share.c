/* share.c - parses --share. See share.h. */
#include "monitor/share.h"
#include "monitor/config.h"
#include <string.h>

int share_parse(struct share *share, const char *option, const char *text)
{
    char piece[64];
    int r = -1;

    *share = (struct share){ .readonly = false };
    const char *s = option_piece(text, share->dir, sizeof(share->dir));
    while (s && *s && r < 0) {
        const char *at = s;
        s = option_piece(s, piece, sizeof(piece));
        if (s && !strncmp(piece, "tag=", 4) && piece[4] && strlen(piece + 4) < sizeof(share->tag)) {
            strcpy(share->tag, piece + 4);
        } else if (s && !strncmp(piece, "readonly=", 9)) {
            r = option_switch(option, "readonly", piece + 9, &share->readonly);
        } else {
            say("--%s: '%s' is not understood; after the directory there may be: tag=NAME (up to 31 bytes), readonly=on",
                option, s ? piece : at);
            return STATUS_USAGE;
        }
    }
    if (r < 0 && (!s || !share->dir[0] || !share->tag[0])) {
        say("--%s: write --share DIR,tag=NAME; the guest mounts it by that name", option);
        return STATUS_USAGE;
    }
    return r;
}
