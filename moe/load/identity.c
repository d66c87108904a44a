/* See identity.h. */
#include "moe/load/identity.h"

enum { SAMPLES = 32, SAMPLE_BYTES = 256 };

static uint64_t hash_bytes(uint64_t h, const void *p, size_t n)
{
    const unsigned char *b = p;
    for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * 0x100000001b3u; /* FNV-1a */
    return h;
}

static enum status hash_sample(const struct gguf *g, const struct gguf_tensor *t, uint64_t *h,
                               struct err *e)
{
    unsigned char data[SAMPLE_BYTES];
    struct osfile f;
    const size_t n = t->bytes < SAMPLE_BYTES ? (size_t)t->bytes : SAMPLE_BYTES;
    enum status s = osfile_open(&f, gguf_path(g, t->shard), OSFILE_RANDOM, NULL, e);
    if (s) return s;
    s = osfile_read(&f, data, n, t->offset + (t->bytes - n) / 2, e);
    osfile_close(&f);
    if (!s) *h = hash_bytes(*h, data, n);
    return s;
}

enum status identity_of(const struct gguf *g, uint64_t *out, struct err *e)
{
    const uint64_t n = gguf_n_tensors(g), size = gguf_file_bytes(g);
    uint64_t h = hash_bytes(0xcbf29ce484222325u, &size, sizeof size);
    enum status s = OK;
    for (uint64_t i = 0; i < n && !s; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        h = hash_bytes(h, t->name.s, t->name.n);
        h = hash_bytes(h, t->dim, sizeof t->dim);
        h = hash_bytes(h, &t->type, sizeof t->type);
        h = hash_bytes(h, &t->offset, sizeof t->offset);
        if (i * SAMPLES / n != (i + 1) * SAMPLES / n) s = hash_sample(g, t, &h, e); /* evenly, to the last */
    }
    *out = h;
    return s;
}
