/* Copies a GGUF model with something changed: keys, tensors left out, filled, swapped, fused,
 * split.  For tests that prove that they can fail, and that two ways to lay out weights mean the
 * same.
 *
 * A copy is a list of tensors that borrow their bytes, in pieces, from the file in memory.  Reports
 * failures through cmocka; one thread. */
#ifndef TESTS_REWRITE_H
#define TESTS_REWRITE_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/gguf.h"
#include "tests/shared.h"

enum { RW_NAME = 64, RW_TENSORS = 512, RW_PIECES = 32, RW_KEYS = 8 };

struct rw_piece {
    const char *data;
    uint64_t bytes;
};

struct rw_tensor {
    char name[RW_NAME];
    uint32_t type;
    int n_dims;
    uint64_t dim[GGUF_DIMS];
    int n_pieces;
    struct rw_piece piece[RW_PIECES];
};

/* A key that is set or, with type 0, left out: 'u' 32 bits, 'f' float, 'b' bool, 's' text, 'a' a list
 * of floats as text. */
struct rw_key {
    char key[96];
    char type;
    double number;
    const char *text;
};

struct rw {
    struct gguf *g;
    char *file; /* all its bytes */
    int n;
    struct rw_tensor *t; /* [RW_TENSORS] */
    int n_keys;
    struct rw_key key[RW_KEYS];
};

static inline struct rw_tensor *rw_add(struct rw *r, const char *name, uint32_t type)
{
    assert_true(r->n < RW_TENSORS);
    struct rw_tensor *t = &r->t[r->n++];
    memset(t, 0, sizeof *t);
    (void)snprintf(t->name, sizeof t->name, "%s", name);
    t->type = type;
    for (int i = 0; i < GGUF_DIMS; i++) t->dim[i] = 1;
    return t;
}

static inline void rw_piece(struct rw_tensor *t, const char *data, uint64_t bytes)
{
    assert_true(t->n_pieces < RW_PIECES);
    t->piece[t->n_pieces++] = (struct rw_piece){data, bytes};
}

static inline void rw_open(struct rw *r, const char *path)
{
    struct err e;
    size_t n = 0;
    memset(r, 0, sizeof *r);
    r->file = shared_slurp(path, &n);
    assert_non_null(r->file);
    if (gguf_open(path, NULL, &r->g, &e)) fail_msg("%s", e.msg);
    r->t = calloc(RW_TENSORS, sizeof *r->t);
    assert_non_null(r->t);
    for (uint64_t i = 0; i < gguf_n_tensors(r->g); i++) {
        const struct gguf_tensor *s = gguf_tensor_at(r->g, i);
        char name[RW_NAME];
        (void)snprintf(name, sizeof name, "%.*s", (int)s->name.n, s->name.s);
        struct rw_tensor *t = rw_add(r, name, s->type);
        t->n_dims = s->n_dims;
        memcpy(t->dim, s->dim, sizeof t->dim);
        rw_piece(t, r->file + s->offset, s->bytes);
    }
}

static inline void rw_close(struct rw *r)
{
    gguf_close(r->g);
    free(r->file);
    free(r->t);
    memset(r, 0, sizeof *r);
}

/* NULL when the copy has none of that name. */
static inline struct rw_tensor *rw_find(const struct rw *r, const char *name)
{
    for (int i = 0; i < r->n; i++)
        if (!strcmp(r->t[i].name, name)) return &r->t[i];
    return NULL;
}

static inline void rw_drop(struct rw *r, struct rw_tensor *t)
{
    const int i = (int)(t - r->t);
    memmove(t, t + 1, sizeof *t * (size_t)(r->n - i - 1));
    r->n--;
}

/* The arch's key: "rope.freq_base" becomes "llama.rope.freq_base". */
static inline void rw_set(struct rw *r, const char *key, char type, double number, const char *text)
{
    struct gguf_str arch;
    struct err e;
    assert_true(r->n_keys < RW_KEYS);
    if (gguf_get_str(r->g, "general.architecture", &arch, &e)) fail_msg("%s", e.msg);
    struct rw_key *k = &r->key[r->n_keys++];
    *k = (struct rw_key){.type = type, .number = number, .text = text};
    (void)snprintf(k->key, sizeof k->key, "%.*s.%s", (int)arch.n, arch.s, key);
}

static inline double rw_number(const struct rw *r, const char *key)
{
    struct gguf_str arch;
    struct err e;
    char full[96];
    if (gguf_get_str(r->g, "general.architecture", &arch, &e)) fail_msg("%s", e.msg);
    (void)snprintf(full, sizeof full, "%.*s.%s", (int)arch.n, arch.s, key);
    const struct gguf_kv *kv = gguf_find(r->g, full);
    if (!kv) return 0;
    return gguf_elem_f64(&kv->value, 0);
}

static inline void rw_put_list(struct gguf_writer *w, const struct rw_key *k)
{
    float list[64];
    int n = 0;
    char *end;
    for (const char *p = k->text; n < 64; p = end) {
        list[n] = strtof(p, &end);
        if (end == p) break;
        n++;
    }
    gguf_put_array(w, k->key, GGUF_F32, list, (uint64_t)n);
}

static inline void rw_put_key(struct gguf_writer *w, const struct rw_key *k)
{
    switch (k->type) {
    case 'u': gguf_put_u32(w, k->key, (uint32_t)k->number); break;
    case 'f': gguf_put_f32(w, k->key, (float)k->number); break;
    case 'b': gguf_put_bool(w, k->key, k->number != 0); break;
    case 's': gguf_put_str(w, k->key, k->text); break;
    case 'a': rw_put_list(w, k); break;
    default: break;
    }
}

static inline bool rw_changes(const struct rw *r, struct gguf_str key)
{
    for (int i = 0; i < r->n_keys; i++)
        if (strlen(r->key[i].key) == key.n && !memcmp(r->key[i].key, key.s, key.n)) return true;
    return false;
}

static inline void rw_write(const struct rw *r, const char *path)
{
    struct err e;
    struct gguf_writer *w = gguf_writer_new();
    assert_non_null(w);
    for (uint64_t i = 0; i < gguf_n_kv(r->g); i++)
        if (!rw_changes(r, gguf_kv_at(r->g, i)->key)) gguf_put_kv(w, gguf_kv_at(r->g, i));
    for (int i = 0; i < r->n_keys; i++) rw_put_key(w, &r->key[i]);
    for (int i = 0; i < r->n; i++) {
        uint64_t bytes = 0;
        for (int k = 0; k < r->t[i].n_pieces; k++) bytes += r->t[i].piece[k].bytes;
        gguf_put_tensor(w, r->t[i].name, r->t[i].type, r->t[i].n_dims, r->t[i].dim, bytes);
    }
    if (gguf_writer_begin(w, path, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < r->n; i++)
        for (int k = 0; k < r->t[i].n_pieces; k++)
            if (gguf_writer_data(w, r->t[i].piece[k].data, r->t[i].piece[k].bytes, &e))
                fail_msg("%s", e.msg);
    if (gguf_writer_end(w, &e)) fail_msg("%s", e.msg);
    gguf_writer_close(w);
}

#endif
