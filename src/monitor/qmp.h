/*
 * qmp.h - one connection that speaks JSON in QMP's framing (QEMU's docs/interop/qmp-spec): JSON objects
 * one after the other, newlines between them allowed and sent. Both ends use it.
 * Threads: one at a time for each connection; the caller locks.
 */
#pragma once
#include "base/types.h"
#include <jansson.h>

#define QMP_IN_MAX 65536u          /* bytes of one message */
#define QMP_OUT_MAX (4u << 20)     /* bytes that wait for a reader before it is given up */

struct qmp_conn {
    int fd; /* nonblocking; -1: closed */
    char *in;
    size_t in_len, scanned; /* of the message at in[0]: what the scanner has seen */
    unsigned depth;         /* open brackets there */
    bool in_string, escaped;
    char *out;
    size_t out_len;
};

/* qmp_open - take over a descriptor. 0 or -ENOMEM. */
int qmp_open(struct qmp_conn *conn, int fd);
void qmp_close(struct qmp_conn *conn);
/* qmp_read - read what is there. 0, or -errno with the connection closed (-EPIPE at its end). */
int qmp_read(struct qmp_conn *conn);
/*
 * qmp_next - the next message. 1: *msg is an object, the caller's; 0: incomplete; -EBADMSG: not JSON, or no
 * object: skipped, err says what.
 */
int qmp_next(struct qmp_conn *conn, json_t **msg, char *err, size_t err_len);
/* qmp_send - queue and try to write; consumes msg. Closes the connection if nobody reads. */
void qmp_send(struct qmp_conn *conn, json_t *msg);
/* qmp_flush - write what the socket takes now. */
void qmp_flush(struct qmp_conn *conn);
