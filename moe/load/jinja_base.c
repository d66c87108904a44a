/* Jinja: arena, errors and limits; see jinja_int.h.  Owns the chunks of an arena until
 * jj_arena_free. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "moe/load/jinja_int.h"

/* ---- errors ---- */

static void position(const struct jj *x, int *line, int *column)
{
    *line = *column = 1;
    for (size_t i = 0; i < x->at && i < x->n_src; i++) {
        ++*column;
        if (x->src[i] != '\n') continue;
        ++*line;
        *column = 1;
    }
}

/* Messages may quote the template or a conversation: no control characters reach a terminal, and
 * a character that was cut is left out. */
static void tame(char *s)
{
    size_t n = strlen(s), i = 0;
    while (i < n) {
        int32_t cp;
        int len = u8_get(s + i, n - i, &cp);
        if (cp < 0 && i + 4 >= n) break;
        bool bad = cp < 0x20 || (cp >= 0x7f && cp < 0xa0);
        for (int k = 0; k < len && bad; k++) s[i + (size_t)k] = cp == '\n' ? ' ' : '?';
        i += (size_t)len;
    }
    s[i] = 0;
}

_Noreturn void jj_fail(struct jj *x, enum status code, const char *fmt, ...)
{
    char msg[360];
    int line, column;
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    tame(msg);
    x->code = code;
    if (x->src) {
        position(x, &line, &column);
        (void)err_set_at(x->e, code, x->at, "line %d, column %d: %s", line, column,
                         msg);
    } else {
        (void)err_set(x->e, code, "%s", msg);
    }
    longjmp(x->out, 1);
}

/* ---- arena ---- */

enum { CHUNK_MIN = 16 << 10, CHUNK_MAX = 1 << 20, ALIGN = 16 };

struct jchunk {
    struct jchunk *older;
    size_t bytes;
    _Alignas(ALIGN) char room[];
};

static void add_chunk(struct jj *x, size_t n)
{
    struct jarena *a = &x->a;
    size_t left = a->limit - a->bytes, want = a->bytes < CHUNK_MIN ? CHUNK_MIN : a->bytes;
    if (want > CHUNK_MAX) want = CHUNK_MAX;
    if (want > left) want = left;
    if (want < n) want = n;
    if (want > left || want + sizeof(struct jchunk) < want)
        jj_fail(x, ERR_RANGE, "it needs more than the %zu KiB of memory that a template may use",
                a->limit >> 10);
    struct jchunk *c = malloc(sizeof *c + want);
    if (!c) jj_fail(x, ERR_MEMORY, "no memory");
    c->older = a->chunk;
    c->bytes = want;
    a->chunk = c;
    a->used = 0;
    a->cap = want;
    a->bytes += want;
}

static void *take(struct jj *x, size_t n, size_t align)
{
    struct jarena *a = &x->a;
    size_t at = (a->used + align - 1) & ~(align - 1);
    if (!a->chunk || at > a->cap || a->cap - at < n) {
        add_chunk(x, n);
        at = 0;
    }
    a->used = at + n;
    return a->chunk->room + at;
}

void *jj_alloc(struct jj *x, size_t n)
{
    return memset(take(x, n, ALIGN), 0, n);
}

void *jj_bytes(struct jj *x, size_t n)
{
    return take(x, n, 1);
}

void *jj_array(struct jj *x, size_t n, size_t each)
{
    if (n > SIZE_MAX / 2 / each) jj_fail(x, ERR_RANGE, "an array of %zu items", n);
    return jj_alloc(x, n * each);
}

void *jj_grow(struct jj *x, void *old, size_t n, size_t *cap, size_t each)
{
    if (n < *cap) return old;
    *cap = *cap ? *cap * 2 : 4;
    void *more = jj_array(x, *cap, each);
    if (n) memcpy(more, old, n * each);
    return more;
}

void jj_arena_free(struct jarena *a)
{
    for (struct jchunk *c = a->chunk, *older; c; c = older) {
        older = c->older;
        free(c);
    }
    memset(a, 0, sizeof *a);
}

/* ---- limits ---- */

void jj_step(struct jj *x, uint64_t n)
{
    if (x->steps < n)
        jj_fail(x, ERR_RANGE, "it takes more steps than a template may; does it end?");
    x->steps -= n;
}

void jj_work(struct jj *x, size_t bytes)
{
    jj_step(x, bytes / 64);
}

void jj_down(struct jj *x)
{
    if (++x->depth > x->depth_max)
        jj_fail(x, ERR_RANGE, "nested or recursing more than %d deep", x->depth_max);
}
