/* See fetch.h.
 *
 * DESIGN.  Every loader has a queue of reads of its own (aio.h) with up to FETCH_DEPTH buffers: it
 * fills them while there are pieces, waits for one to arrive, packs it, and goes on.  A drive sees
 * n_loaders * depth requests, and packing runs on as many threads as read.  Where reads
 * cannot be asynchronous the same buffers are spread over more threads with one each.
 *
 * Direct reads begin and end on 4096-byte blocks, so a piece is read with what shares its first and
 * last block.  Through the page cache, what was read is dropped at once.
 *
 * A piece that the page cache holds already, because somebody else read it, is copied from there:
 * that is several times faster than a drive, and adds no page to the cache. */
#include "offload/fetch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/thread.h"

struct slot {
    struct fetch_piece piece;
    struct aio_read read;
    uint64_t skip, bytes; /* the piece in the buffer */
    struct slot *next;    /* of the free ones */
};

struct loader {
    struct fetch *fetch;
    pthread_t thread;
    struct aio *aio;
    struct slot slot[FETCH_DEPTH], *free;
};

static uint64_t down(uint64_t n) { return n & ~(uint64_t)(OSFILE_ALIGN - 1); }
static uint64_t up(uint64_t n) { return down(n + OSFILE_ALIGN - 1); }

static int n_threads_of(int n)
{
    return n < 2 ? 2 : n > FETCH_THREADS_MAX ? FETCH_THREADS_MAX : n;
}

/* One buffer: the largest piece, or row, and the blocks at its ends. */
static uint64_t buf_bytes(const struct part_table *t)
{
    uint64_t max = 0;
    for (int i = 0; i < t->n_parts; i++) {
        const struct weight *w = &t->weights->at[t->part[i].weight];
        const uint64_t bytes = (uint64_t)part_piece_rows(w) * part_row_bytes(w);
        if (bytes > max) max = bytes;
    }
    return up(max) + 2 * OSFILE_ALIGN;
}

uint64_t fetch_staging(const struct part_table *t, int n_threads, int depth)
{
    return buf_bytes(t) * (uint64_t)depth * (uint64_t)n_threads_of(n_threads);
}

/* ---- a loader ---- */

static void submit(struct loader *l, struct slot *s)
{
    struct fetch *f = l->fetch;
    const struct part *p = &f->parts->part[s->piece.part];
    const struct weight *w = &f->parts->weights->at[p->weight];
    const uint64_t row = part_row_bytes(w);
    const uint64_t from = p->extent.offset + (uint64_t)s->piece.row0 * row;
    s->bytes = (uint64_t)s->piece.n_rows * row;
    s->read.file = &f->file[p->extent.shard];
    s->read.offset = s->read.file->direct ? down(from) : from;
    s->skip = from - s->read.offset;
    s->read.need = s->skip + s->bytes;
    s->read.n = s->read.file->direct ? up(s->read.need) : s->read.need;
    s->read.arg = s;
    aio_submit(l->aio, &s->read);
}

/* Packs what arrived; true when it holds a NaN that was asked about. */
static bool unpack(struct fetch *f, const struct slot *s)
{
    const struct weight *w = &f->parts->weights->at[f->parts->part[s->piece.part].weight];
    const char *rows = s->read.buf + s->skip;
    if (s->piece.raw) memcpy(s->piece.dst, rows, s->bytes);
    else part_pack(f->parts, w, s->piece.row0, s->piece.n_rows, rows, s->piece.dst);
    return s->piece.check && part_has_nan(w->type, rows, s->bytes);
}

static void finish(struct loader *l, struct slot *s)
{
    struct fetch *f = l->fetch;
    struct err e;
    bool nan = false;
    err_clear(&e);
    if (s->read.error || s->read.done < s->read.need) (void)aio_error(&s->read, &e);
    else nan = unpack(f, s);
    if (!s->read.file->direct && s->read.file->ops->drop)
        s->read.file->ops->drop(s->read.file->fd, down(s->read.offset),
                                up(s->read.offset + s->read.n) - down(s->read.offset));
    pthread_mutex_lock(&f->lock);
    f->how.done(f->how.arg, &s->piece, s->bytes, nan, &e);
    s->next = l->free;
    l->free = s;
}

/* True when the piece was in the page cache; it is in the buffer then, as if it had been read. */
static bool peek(struct loader *l, struct slot *s)
{
    const struct part *p = &l->fetch->parts->part[s->piece.part];
    const struct weight *w = &l->fetch->parts->weights->at[p->weight];
    const struct osfile *cache = &l->fetch->cache[p->extent.shard];
    const uint64_t row = part_row_bytes(w), n = (uint64_t)s->piece.n_rows * row;
    const uint64_t from = p->extent.offset + (uint64_t)s->piece.row0 * row;
    if (!cache->path || cache->ops->peek(cache->fd, s->read.buf, n, from) != (int64_t)n) return false;
    s->skip = 0;
    s->bytes = n;
    s->read = (struct aio_read){.file = &l->fetch->file[p->extent.shard], .buf = s->read.buf,
                                .offset = from, .n = n, .need = n, .done = n, .arg = s};
    return true;
}

static void *loader_main(void *arg)
{
    struct loader *l = arg;
    struct fetch *f = l->fetch;
    thread_wake_first(); /* a free buffer keeps the drive waiting */
    pthread_mutex_lock(&f->lock);
    for (;;) {
        /* The lock is held here. */
        struct slot *s = l->free;
        if (s && !f->stop && f->how.next(f->how.arg, &s->piece)) {
            l->free = s->next;
            pthread_mutex_unlock(&f->lock);
            if (peek(l, s)) {
                finish(l, s);
            } else {
                submit(l, s);
                pthread_mutex_lock(&f->lock);
            }
        } else if (aio_in_flight(l->aio)) {
            pthread_mutex_unlock(&f->lock);
            finish(l, aio_wait(l->aio)->arg);
        } else if (f->stop) {
            break;
        } else {
            pthread_cond_wait(&f->work, &f->lock);
        }
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

/* ---- start and stop ---- */

/* Opens a file past the page cache, if reading it that way works: some systems refuse only then. */
static enum status open_one(struct fetch *f, int i, const char *path, struct err *e)
{
    struct osfile *file = &f->file[i];
    enum status s = osfile_open(file, path, OSFILE_DIRECT, f->how.ops, e);
    if (s) return s;
    f->n_files++;
    if (!file->direct || !file->size) return OK;
    int64_t got;
    do got = file->ops->pread(file->fd, f->staging.base, OSFILE_ALIGN, 0);
    while (got == -EINTR);
    if (got != -EINVAL) return OK;
    osfile_close(file);
    f->n_files--;
    s = osfile_open(file, path, OSFILE_RANDOM, f->how.ops, e);
    if (!s) f->n_files++;
    return s;
}

static enum status open_files(struct fetch *f, struct err *e)
{
    const int n = gguf_n_shards(f->parts->weights->file);
    f->file = calloc((size_t)n, sizeof *f->file);
    f->cache = calloc((size_t)n, sizeof *f->cache);
    if (!f->file || !f->cache) return err_set(e, ERR_MEMORY, "no memory for %d files", n);
    for (int i = 0; i < n; i++) {
        const char *path = gguf_path(f->parts->weights->file, i);
        enum status s = open_one(f, i, path, e);
        if (s) return s;
        if (f->file[i].direct && f->file[i].ops->peek)
            (void)osfile_open(&f->cache[i], path, OSFILE_RANDOM, f->how.ops, NULL);
        if (!f->file[i].direct && !f->note[0] && f->file[i].ops == &osfile_system)
            (void)snprintf(f->note, sizeof f->note, "its file system has no direct reads: the "
                           "page cache is used and given back");
    }
    return OK;
}

static enum status open_loaders(struct fetch *f, struct err *e)
{
    const int n = n_threads_of(f->how.n_threads), depth = f->how.depth;
    bool want = !f->how.no_uring && (!f->how.ops || f->how.ops == &osfile_system);
    f->n_loaders = n;
    f->depth = depth;
    f->n_started = 0;
    f->loader = calloc((size_t)(n * depth), sizeof *f->loader);
    if (!f->loader) return err_set(e, ERR_MEMORY, "no memory for the loading threads");
    for (int i = 0; i < f->n_loaders; i++) {
        struct loader *l = &f->loader[i];
        const char *why;
        l->fetch = f;
        if (aio_open(f->how.depth, want, &l->aio, &why, e)) return e->code;
        if (i == 0 && (*why || !want)) {
            want = false;
            f->depth = 1;
            f->n_loaders = n * depth > FETCH_THREADS_MAX ? FETCH_THREADS_MAX : n * depth;
            if (*why) (void)snprintf(f->note, sizeof f->note, "io_uring cannot be used (%s): %d "
                                     "threads read instead", why, f->n_loaders);
        }
        for (int k = 0; k < f->depth; k++) {
            struct slot *s = &l->slot[k];
            s->read.buf = (char *)f->staging.base + (uint64_t)(i * f->depth + k) * f->buf_bytes;
            s->next = l->free;
            l->free = s;
        }
    }
    for (int i = 0; i < f->n_loaders; i++) {
        if (pthread_create(&f->loader[i].thread, NULL, loader_main, &f->loader[i]))
            return err_set(e, ERR_MEMORY, "the system started only %d of %d loading threads", i,
                           f->n_loaders);
        f->n_started++;
    }
    return OK;
}

/* The buffers that the loaders are to have, no more and no less. */
static enum status open_staging(struct fetch *f, struct err *e)
{
    const uint64_t bytes = fetch_staging(f->parts, f->how.n_threads, f->how.depth);
    region_trim(&f->staging, bytes);
    return region_commit(&f->staging, bytes, e);
}

enum status fetch_start(struct fetch *f, const struct part_table *parts, const struct fetch_how *how,
                        struct err *e)
{
    struct err local;
    if (!e) e = &local;
    err_clear(e);
    memset(f, 0, sizeof *f);
    f->parts = parts;
    f->how = *how;
    f->buf_bytes = buf_bytes(parts);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->work, NULL);
    pthread_cond_init(&f->ready, NULL);
    enum status s = region_reserve(&f->staging, how->ledger, MEM_STAGING,
                                   fetch_staging(parts, how->n_threads, FETCH_DEPTH), e);
    if (!s) s = open_staging(f, e);
    if (!s) s = open_files(f, e);
    if (!s) s = open_loaders(f, e);
    if (s) fetch_stop(f);
    return s;
}

static void stop_loaders(struct fetch *f)
{
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    pthread_cond_broadcast(&f->work);
    pthread_mutex_unlock(&f->lock);
    for (int i = 0; i < f->n_started; i++) pthread_join(f->loader[i].thread, NULL);
    for (int i = 0; i < f->n_loaders && f->loader; i++) aio_close(f->loader[i].aio);
    free(f->loader);
    f->loader = NULL;
    f->n_loaders = f->n_started = 0;
    f->stop = false;
}

enum status fetch_deepen(struct fetch *f, int depth, struct err *e)
{
    stop_loaders(f);
    f->how.depth = depth;
    enum status s = open_staging(f, e);
    if (!s) s = open_loaders(f, e);
    if (s) fetch_stop(f);
    return s;
}

void fetch_stop(struct fetch *f)
{
    if (!f->parts) return;
    stop_loaders(f);
    for (int i = 0; i < f->n_files; i++) {
        osfile_close(&f->file[i]);
        osfile_close(&f->cache[i]);
    }
    free(f->file);
    free(f->cache);
    region_release(&f->staging);
    pthread_cond_destroy(&f->work);
    pthread_cond_destroy(&f->ready);
    pthread_mutex_destroy(&f->lock);
    memset(f, 0, sizeof *f);
}

enum status fetch_unchanged(const struct fetch *f, struct err *e)
{
    for (int i = 0; i < f->n_files; i++) {
        enum status s = osfile_unchanged(&f->file[i], e);
        if (s) return s;
    }
    return OK;
}
