#include "monitor/qmp.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int qmp_open(struct qmp_conn *conn, int fd)
{
    *conn = (struct qmp_conn){ .fd = fd, .in = malloc(QMP_IN_MAX) };
    if (!conn->in) {
        conn->fd = -1;
        return -ENOMEM;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return 0;
}

void qmp_close(struct qmp_conn *conn)
{
    if (conn->fd >= 0)
        close(conn->fd);
    free(conn->in);
    free(conn->out);
    *conn = (struct qmp_conn){ .fd = -1 };
}

/* -- In ------------------------------------------------------------------------------------------- */

int qmp_read(struct qmp_conn *conn)
{
    if (conn->in_len == QMP_IN_MAX)
        return 0; /* qmp_next() has to make room */
    ssize_t n = read(conn->fd, conn->in + conn->in_len, QMP_IN_MAX - conn->in_len);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        int r = n ? -errno : -EPIPE;
        qmp_close(conn);
        return r;
    }
    conn->in_len += (size_t)n;
    return 0;
}

/* Forget the first n bytes, and what the scanner thinks of the rest. */
static void consume(struct qmp_conn *conn, size_t n)
{
    conn->in_len -= n;
    memmove(conn->in, conn->in + n, conn->in_len);
    conn->scanned = conn->depth = 0;
    conn->in_string = conn->escaped = false;
}

/* Look at one more byte: true if it ends the message. The library judges; this only finds the end. */
static bool scan(struct qmp_conn *conn, char c)
{
    if (conn->in_string) {
        if (conn->escaped)
            conn->escaped = false;
        else if (c == '\\')
            conn->escaped = true;
        else if (c == '"')
            conn->in_string = false;
        return false;
    }
    switch (c) {
    case '"':
        conn->in_string = true;
        return false;
    case '{':
    case '[':
        conn->depth++;
        return false;
    case '}':
    case ']':
        return conn->depth <= 1 || !--conn->depth;
    case '\n':
        return !conn->depth; /* a word or number outside brackets: refused as a line */
    default:
        return false;
    }
}

int qmp_next(struct qmp_conn *conn, json_t **msg, char *err, size_t err_len)
{
    json_error_t why;
    size_t space = 0;

    while (conn->scanned == 0 && space < conn->in_len && isspace((unsigned char)conn->in[space]))
        space++;
    if (space)
        consume(conn, space);
    while (conn->scanned < conn->in_len) {
        if (!scan(conn, conn->in[conn->scanned++]))
            continue;
        *msg = json_loadb(conn->in, conn->scanned, JSON_REJECT_DUPLICATES, &why);
        consume(conn, conn->scanned);
        if (json_is_object(*msg))
            return 1;
        snprintf(err, err_len, "%s", *msg ? "a message must be an object" : why.text);
        json_decref(*msg);
        return -EBADMSG;
    }
    if (conn->in_len == QMP_IN_MAX) {
        consume(conn, conn->in_len);
        snprintf(err, err_len, "a message is longer than %u bytes", QMP_IN_MAX);
        return -EBADMSG;
    }
    return 0;
}

/* -- Out ------------------------------------------------------------------------------------------- */

void qmp_flush(struct qmp_conn *conn)
{
    while (conn->fd >= 0 && conn->out_len) {
        ssize_t n = send(conn->fd, conn->out, conn->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) {
            qmp_close(conn);
            return;
        }
        conn->out_len -= (size_t)n;
        memmove(conn->out, conn->out + n, conn->out_len);
    }
}

void qmp_send(struct qmp_conn *conn, json_t *msg)
{
    char *text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
    size_t len = text ? strlen(text) : 0;

    json_decref(msg);
    if (conn->fd < 0 || !text || conn->out_len + len + 2 > QMP_OUT_MAX) {
        free(text);
        if (conn->fd >= 0)
            qmp_close(conn);
        return;
    }
    char *out = realloc(conn->out, conn->out_len + len + 2);
    if (!out) {
        free(text);
        qmp_close(conn);
        return;
    }
    conn->out = out;
    memcpy(out + conn->out_len, text, len);
    memcpy(out + conn->out_len + len, "\r\n", 2);
    conn->out_len += len + 2;
    free(text);
    qmp_flush(conn);
}
