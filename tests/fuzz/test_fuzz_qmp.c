/* test_fuzz_qmp.c - bytes from a client of the control socket, in pieces: only whole objects come out. */
#include "monitor/qmp.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Random bytes seldom are JSON: half of the time they pick from what is. */
static const char *const words[] = { "{", "}", "[", "]", "\"", "\\", "\"execute\"", ":", ",", "\"a\"", "1", "null", "\n",
                                     "{}", "{\"a\":1}", "\r\n", "\xff", "-", "\\u0000", "{\"execute\":\"x\"}" };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qmp_conn conn;
    int fd[2];
    char err[64];
    json_t *msg;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fd)) /* what is too much for the socket is lost */
        return 0;
    bug_on(qmp_open(&conn, fd[0]));
    for (size_t at = 0; at < size && conn.fd >= 0; at++) {
        const char *word = words[data[at] % ARRAY_SIZE(words)];
        ssize_t n = size & 1 ? write(fd[1], word, strlen(word)) : write(fd[1], data + at, 1);
        (void)n;
        if (data[at] & 1)
            qmp_read(&conn);
        for (int r; conn.fd >= 0 && (r = qmp_next(&conn, &msg, err, sizeof(err)));) {
            bug_on(r > 0 && !json_is_object(msg));
            bug_on(r < 0 && !err[0]);
            if (r > 0)
                json_decref(msg);
        }
        bug_on(conn.in_len > QMP_IN_MAX || conn.scanned > conn.in_len);
    }
    qmp_close(&conn);
    close(fd[1]);
    return 0;
}

FUZZ_MAIN("fuzz/qmp", 3000, 2000)
