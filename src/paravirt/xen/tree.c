/* tree.c - the tree of names and values behind xenstore, and who may do what in it. See tree.h. */
#include "paravirt/xen/tree.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void node_free(struct node *n)
{
    while (n) {
        struct node *next = n->next;
        node_free(n->child);
        free(n->name);
        free(n->value);
        free(n);
        n = next;
    }
}

struct node *node_make(const char *name, size_t len)
{
    struct node *n = calloc(1, sizeof(*n));

    if (n)
        n->name = strndup(name, len);
    if (!n || !n->name) {
        free(n);
        return NULL;
    }
    return n;
}

bool node_copy(const struct node *n, struct node **out)
{
    for (*out = NULL; n; n = n->next, out = &(*out)->next) {
        *out = node_make(n->name, strlen(n->name));
        if (!*out)
            return false;
        memcpy((*out)->perm, n->perm, sizeof(n->perm));
        (*out)->nr_perms = n->nr_perms;
        if (n->len) {
            (*out)->value = malloc(n->len);
            if (!(*out)->value)
                return false;
            memcpy((*out)->value, n->value, n->len);
            (*out)->len = n->len;
        }
        if (!node_copy(n->child, &(*out)->child))
            return false;
    }
    return true;
}

struct node **child_at(struct node *n, const char *name, size_t len)
{
    struct node **at = &n->child;

    while (*at && (strlen((*at)->name) != len || memcmp((*at)->name, name, len)))
        at = &(*at)->next;
    return at;
}

struct node *node_find(struct node *root, const char *path)
{
    struct node *n = root;

    while (n && *path) {
        size_t len;
        path += *path == '/';
        len = strcspn(path, "/");
        if (len)
            n = *child_at(n, path, len);
        path += len;
    }
    return n;
}

struct node *node_create(struct node *root, unsigned *count, const char *path)
{
    struct node *n = root;

    while (*path) {
        path += *path == '/';
        size_t len = strcspn(path, "/");
        struct node **at = len ? child_at(n, path, len) : &n;
        if (!*at) {
            bool counts = count && n->perm[0].dom == GUEST;
            if ((counts && *count >= NODES_MAX) || !(*at = node_make(path, len)))
                return NULL;
            if (counts)
                ++*count;
            memcpy((*at)->perm, n->perm, sizeof(n->perm));
            (*at)->nr_perms = n->nr_perms;
        }
        n = *at;
        path += len;
    }
    return n;
}

unsigned node_count(const struct node *n)
{
    unsigned count = 0;
    for (; n; n = n->next)
        count += (n->perm[0].dom == GUEST) + node_count(n->child);
    return count;
}

bool may(const struct node *n, char what)
{
    char others = n->perm[0].what;

    if (n->perm[0].dom == GUEST)
        return true;
    for (unsigned i = 1; i < n->nr_perms; i++)
        if (n->perm[i].dom == GUEST)
            others = n->perm[i].what;
    return others == what || others == 'b';
}

bool may_create(struct node *root, const char *path)
{
    char up[PATH_MAX_ABS + 1];

    snprintf(up, sizeof(up), "%s", path);
    while (!node_find(root, up)) {
        char *slash = strrchr(up, '/');
        if (!slash)
            return false;
        *slash = 0;
    }
    return may(node_find(root, up), 'w');
}

bool set_value(struct node *n, const void *value, size_t len)
{
    u8 *copy = NULL;

    if (len && !(copy = malloc(len)))
        return false;
    if (len)
        memcpy(copy, value, len);
    free(n->value);
    n->value = copy;
    n->len = (u32)len;
    return true;
}
