/*
 * tree.h - the tree of names and values behind xenstore (store.c). Paths are absolute: each step is '/' and a name.
 * Source: Xen's docs/misc/xenstore.txt.
 */
#pragma once
#include "base/types.h"

#define HOME "/local/domain/1"
#define GUEST 1            /* its domain; ours is 0 */
#define NODES_MAX 1000     /* of the guest's own */
#define PATH_MAX_ABS 3072
#define PERMS_MAX 8

struct perm { char what; u16 dom; }; /* n r w b */
struct node {
    struct node *next;      /* in the list of its parent's children, by name */
    struct node *child;
    char *name;
    u8 *value;
    u32 len;
    struct perm perm[PERMS_MAX]; /* [0]: owner, and what everybody else may */
    unsigned nr_perms;
};

/* node_free - and those beside it, and below. NULL is allowed. */
void node_free(struct node *n);
struct node *node_make(const char *name, size_t len);
/* node_copy - a copy of a node and those beside it. False: no memory, and *out is what there is. */
bool node_copy(const struct node *n, struct node **out);
/* child_at - where the child called name[0..len) hangs, or would. */
struct node **child_at(struct node *n, const char *name, size_t len);
struct node *node_find(struct node *root, const char *path);
/*
 * node_create - with everything above it; new ones belong to who owns the nearest that was there.
 * @count: of the guest's nodes, kept and held to NODES_MAX; NULL: not
 * NULL: too many, or no memory.
 */
struct node *node_create(struct node *root, unsigned *count, const char *path);
/* node_count - how many of them, of those beside and of those below are the guest's. */
unsigned node_count(const struct node *n);
/* may - the guest do that: 'r' or 'w'. may_create - by the permissions of the nearest node there is. */
bool may(const struct node *n, char what);
bool may_create(struct node *root, const char *path);
bool set_value(struct node *n, const void *value, size_t len);
