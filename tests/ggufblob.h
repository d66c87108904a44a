/* Builds GGUF bytes by hand, malformed ones too, for the tests of the reader.
 *
 * Owns the bytes of a blob until blob_free.  Checks nothing on purpose; aborts without memory.
 * One thread. */
#ifndef TESTS_GGUFBLOB_H
#define TESTS_GGUFBLOB_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/gguf.h"

struct blob {
    uint8_t *p;
    size_t n, cap;
};

static inline void blob_free(struct blob *b)
{
    free(b->p);
    memset(b, 0, sizeof *b);
}

static inline void blob_put(struct blob *b, const void *data, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = (b->n + n) * 2 + 256;
        b->p = realloc(b->p, b->cap);
        if (!b->p) abort();
    }
    if (n) memcpy(b->p + b->n, data, n);
    b->n += n;
}

static inline void blob_le(struct blob *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        uint8_t c = (uint8_t)(v >> (8 * i));
        blob_put(b, &c, 1);
    }
}

static inline void blob_u32(struct blob *b, uint32_t v) { blob_le(b, v, 4); }
static inline void blob_u64(struct blob *b, uint64_t v) { blob_le(b, v, 8); }

static inline void blob_str(struct blob *b, const char *s)
{
    blob_u64(b, strlen(s));
    blob_put(b, s, strlen(s));
}

static inline void blob_zeros(struct blob *b, size_t n)
{
    for (size_t i = 0; i < n; i++) blob_put(b, "", 1);
}

static inline void blob_pad(struct blob *b, size_t to)
{
    while (b->n % to) blob_put(b, "", 1);
}

static inline void blob_head(struct blob *b, uint32_t version, uint64_t n_tensors, uint64_t n_kv)
{
    blob_put(b, "GGUF", 4);
    blob_u32(b, version);
    blob_u64(b, n_tensors);
    blob_u64(b, n_kv);
}

/* A key up to its value. */
static inline void blob_key(struct blob *b, const char *key, enum gguf_type type)
{
    blob_str(b, key);
    blob_u32(b, (uint32_t)type);
}

static inline void blob_kv_int(struct blob *b, const char *key, enum gguf_type type, uint64_t v)
{
    static const int bytes[GGUF_TYPE_N] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    blob_key(b, key, type);
    blob_le(b, v, bytes[type]);
}

static inline void blob_kv_str(struct blob *b, const char *key, const char *v)
{
    blob_key(b, key, GGUF_STRING);
    blob_str(b, v);
}

static inline void blob_array(struct blob *b, const char *key, enum gguf_type elem, uint64_t n)
{
    blob_key(b, key, GGUF_ARRAY);
    blob_u32(b, (uint32_t)elem);
    blob_u64(b, n);
}

/* One-dimensional tensor. */
static inline void blob_tensor(struct blob *b, const char *name, uint64_t cols, uint32_t type,
                               uint64_t offset)
{
    blob_str(b, name);
    blob_u32(b, 1);
    blob_u64(b, cols);
    blob_u32(b, type);
    blob_u64(b, offset);
}

/* A small good file: every scalar type, arrays of numbers, bools and strings, three tensors. */
static inline void blob_small(struct blob *b)
{
    blob_head(b, 3, 3, 15);
    blob_kv_str(b, "general.architecture", "llama");
    blob_kv_int(b, "t.u8", GGUF_U8, 200);
    blob_kv_int(b, "t.i8", GGUF_I8, 0xff);
    blob_kv_int(b, "t.u16", GGUF_U16, 60000);
    blob_kv_int(b, "t.i16", GGUF_I16, 0x8000);
    blob_kv_int(b, "t.u32", GGUF_U32, UINT32_MAX);
    blob_kv_int(b, "t.i32", GGUF_I32, 0xfffffffb);
    blob_kv_int(b, "t.f32", GGUF_F32, 0x3fc00000); /* 1.5 */
    blob_kv_int(b, "t.bool", GGUF_BOOL, 1);
    blob_kv_int(b, "t.u64", GGUF_U64, UINT64_MAX);
    blob_kv_int(b, "t.i64", GGUF_I64, (uint64_t)INT64_MIN);
    blob_kv_int(b, "t.f64", GGUF_F64, UINT64_C(0xc004000000000000)); /* -2.5 */
    blob_array(b, "t.strings", GGUF_STRING, 3);
    blob_str(b, "one");
    blob_str(b, "");
    blob_str(b, "three");
    blob_array(b, "t.shorts", GGUF_I16, 3);
    blob_le(b, 1, 2);
    blob_le(b, 0xffff, 2);
    blob_le(b, 300, 2);
    blob_array(b, "t.bools", GGUF_BOOL, 2);
    blob_le(b, 1, 2);
    blob_tensor(b, "a.weight", 8, 0, 0);
    blob_tensor(b, "b.weight", 32, 2, 32); /* Q4_0: 18 bytes */
    blob_tensor(b, "c.weight", 16, 1, 64);
    blob_pad(b, 32);
    for (int i = 0; i < 96; i++) blob_le(b, (uint64_t)i, 1);
}

#endif
