/* Fuzz target of moe/load/gguf.c: opens the input as a GGUF file and touches everything that open
 * then vouches for.
 *
 * Built with -DFUZZER and -fsanitize=fuzzer it is a libFuzzer target; otherwise fuzz_main.h replays
 * files.  An input that holds the line "\n--part--\n" is cut there into the parts of a split set.
 * Input is read from memory; every part is an allocation of its exact size so that a sanitizer sees
 * any overrun. */
#include <stdio.h>

#include "moe/load/gguf.h"
#include "tests/ggufblob.h"
#include "tests/memfile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static volatile uint64_t sink; /* keeps the walks */

enum { MAX_PARTS = 3 };
static const char separator[] = "\n--part--\n";

static void touch(const void *p, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) sink += ((const uint8_t *)p)[i];
}

static void check(int good)
{
    if (!good) abort();
}

static void walk_value(const struct gguf_value *v)
{
    uint64_t cursor = 0, n = 0;
    touch(v->data, v->bytes);
    for (uint64_t i = 0; i < v->n && v->elem != GGUF_STRING; i++) {
        sink += gguf_elem_u64(v, i) + (uint64_t)gguf_elem_i64(v, i);
        double d = gguf_elem_f64(v, i);
        sink += d > 0;
    }
    for (struct gguf_str s; (s = gguf_elem_next_str(v, &cursor)).s; n++) touch(s.s, s.n);
    check(v->type != GGUF_ARRAY || v->elem != GGUF_STRING || (n == v->n && cursor == v->bytes));
}

static void walk_getters(const struct gguf *g, const char *key)
{
    uint64_t u;
    float f;
    bool b;
    struct gguf_str s;
    sink += (uint64_t)gguf_get_u64(g, key, &u, NULL) + (uint64_t)gguf_get_f32(g, key, &f, NULL);
    if (!gguf_get_str(g, key, &s, NULL)) touch(s.s, s.n);
    sink += (uint64_t)gguf_get_u64_or(g, key, 1, &u, NULL);
    sink += (uint64_t)gguf_get_f32_or(g, key, 1, &f, NULL);
    sink += (uint64_t)gguf_get_bool_or(g, key, true, &b, NULL);
}

static char *terminated(struct gguf_str s)
{
    char *p = malloc((size_t)s.n + 1);
    check(p != NULL);
    memcpy(p, s.s, (size_t)s.n);
    p[s.n] = 0;
    return p;
}

static void walk_tensor(const struct gguf *g, const struct gguf_tensor *t)
{
    char *name = terminated(t->name);
    check(strlen(name) != t->name.n || gguf_find_tensor(g, name) == t);
    free(name);
    check(t->n_dims >= 1 && t->n_dims <= GGUF_DIMS && t->shard < gguf_n_shards(g));
    for (int i = 0; i < GGUF_DIMS; i++) check(t->dim[i] > 0 && (i < t->n_dims || t->dim[i] == 1));
    check(t->offset + t->bytes >= t->offset && t->offset + t->bytes <= gguf_file_bytes(g));
}

static void walk(const struct gguf *g)
{
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) {
        const struct gguf_kv *kv = gguf_kv_at(g, i);
        char *key = terminated(kv->key);
        check(strlen(key) != kv->key.n || gguf_find(g, key) == kv);
        walk_value(&kv->value);
        walk_getters(g, key);
        free(key);
    }
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) walk_tensor(g, gguf_tensor_at(g, i));
    for (int i = 0; i < gguf_n_shards(g); i++) check(gguf_path(g, i) != NULL);
}

/* Where the separator starts, or n. */
static size_t find_cut(const uint8_t *p, size_t n)
{
    size_t len = sizeof separator - 1;
    for (size_t i = 0; i + len <= n; i++)
        if (p[i] == '\n' && !memcmp(p + i, separator, len)) return i;
    return n;
}

static void add_parts(const uint8_t *data, size_t n, uint8_t **copy)
{
    static const char *const paths[MAX_PARTS] = {
        "f-00001-of-00003.gguf", "f-00002-of-00003.gguf", "f-00003-of-00003.gguf"};
    for (int i = 0; i < MAX_PARTS; i++) {
        size_t cut = i < MAX_PARTS - 1 ? find_cut(data, n) : n;
        copy[i] = malloc(cut ? cut : 1);
        check(copy[i] != NULL);
        if (cut) memcpy(copy[i], data, cut);
        memfile_add(paths[i], copy[i], cut, cut);
        if (cut == n) break;
        data += cut + sizeof separator - 1;
        n -= cut + sizeof separator - 1;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint8_t *copy[MAX_PARTS] = {NULL};
    struct gguf *g;
    struct err e;
    memfile_reset();
    err_clear(&e);
    add_parts(data, n, copy);
    enum status s = gguf_open(memfile_table[0].path, &memfile_ops, &g, &e);
    check((s == OK) == (g != NULL) && s == e.code && (s == OK || e.msg[0]));
    check(memfile_io.opened == memfile_io.closed);
    for (int i = 0; i < MAX_PARTS; i++) free(copy[i]); /* g must not need them */
    if (g) walk(g);
    gguf_close(g);
    return 0;
}

#include "tests/fuzz_main.h"
