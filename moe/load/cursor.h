/* The bounds-checked little-endian cursor: every length, offset, count and type that comes from a
 * file is read through it.
 *
 * Owns nothing: it walks bytes [0, size) of which [0, have) are in memory; `more` may bring the
 * rest (base may move then, so callers keep positions, not pointers, until they are done).  The
 * first failure sticks: from then on every read gives 0 and does not move, and fail_pos and
 * fail_need say what was asked for.  So a caller checks `failed` once per entry, and always before
 * it believes a count.  Never reads outside [0, size), never allocates.  One thread. */
#ifndef MOE_LOAD_CURSOR_H
#define MOE_LOAD_CURSOR_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct cursor {
    const uint8_t *base;
    uint64_t have; /* readable bytes from base */
    uint64_t size; /* all there are; have <= size */
    uint64_t pos;  /* next byte; pos <= size */
    bool (*more)(struct cursor *c, uint64_t need); /* sees to have >= need, or NULL */
    void *arg;                                     /* of more */
    bool failed;
    uint64_t fail_pos, fail_need; /* the read that failed: so many bytes from there */
};

static inline void cursor_init(struct cursor *c, const void *base, uint64_t n)
{
    memset(c, 0, sizeof *c);
    c->base = base;
    c->have = c->size = n;
}

static inline uint64_t cursor_left(const struct cursor *c) { return c->size - c->pos; }

static inline bool cursor_fail(struct cursor *c, uint64_t n)
{
    if (!c->failed) {
        c->failed = true;
        c->fail_pos = c->pos;
        c->fail_need = n;
    }
    return false;
}

/* True when the next n bytes are in memory. */
static inline bool cursor_need(struct cursor *c, uint64_t n)
{
    if (c->failed || n > c->size - c->pos) return cursor_fail(c, n);
    if (n <= c->have - c->pos) return true;
    return c->more && c->more(c, c->pos + n) ? true : cursor_fail(c, n);
}

/* Steps over n bytes that are there; false (and no step) otherwise. */
static inline bool cursor_skip(struct cursor *c, uint64_t n)
{
    if (!cursor_need(c, n)) return false;
    c->pos += n;
    return true;
}

/* Little-endian value of 1..8 bytes at p. */
static inline uint64_t cursor_le(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes; i-- > 0;) v = v << 8 | p[i];
    return v;
}

static inline uint64_t cursor_uint(struct cursor *c, int bytes)
{
    if (!cursor_need(c, (uint64_t)bytes)) return 0;
    uint64_t v = cursor_le(c->base + c->pos, bytes);
    c->pos += (uint64_t)bytes;
    return v;
}

static inline uint8_t cursor_u8(struct cursor *c) { return (uint8_t)cursor_uint(c, 1); }
static inline uint16_t cursor_u16(struct cursor *c) { return (uint16_t)cursor_uint(c, 2); }
static inline uint32_t cursor_u32(struct cursor *c) { return (uint32_t)cursor_uint(c, 4); }
static inline uint64_t cursor_u64(struct cursor *c) { return cursor_uint(c, 8); }

#endif
