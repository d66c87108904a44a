/* See aio.h. */
#include "moe/base/aio.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

struct aio {
    struct io_uring ring;
    bool uring;
    int depth, in_flight;
    struct aio_read *queue[AIO_DEPTH_MAX]; /* without io_uring: oldest first, a ring */
    int head, n_queued;
};

enum status aio_open(int depth, bool want_uring, struct aio **out, const char **why, struct err *e)
{
    ASSERT(depth > 0 && depth <= AIO_DEPTH_MAX);
    struct aio *a = calloc(1, sizeof *a);
    *out = a;
    *why = "";
    if (!a) return err_set(e, ERR_MEMORY, "no memory for the queue of reads");
    a->depth = depth;
    if (!want_uring) return OK;
    int code = io_uring_queue_init((unsigned)depth, &a->ring, 0);
    a->uring = code == 0;
    if (code) *why = strerror(-code);
    return OK;
}

void aio_close(struct aio *a)
{
    if (!a) return;
    ASSERT(a->in_flight == 0);
    if (a->uring) io_uring_queue_exit(&a->ring);
    free(a);
}

int aio_in_flight(const struct aio *a) { return a->in_flight; }

/* Only files of the real system have descriptors that a ring understands. */
static bool by_ring(const struct aio *a, const struct aio_read *r)
{
    return a->uring && r->file->ops == &osfile_system;
}

static void queue_put(struct aio *a, struct aio_read *r)
{
    ASSERT(a->n_queued < a->depth);
    a->queue[(a->head + a->n_queued++) % a->depth] = r;
}

/* Hands what is left of a read to the ring; false when the ring refuses. */
static bool ring_put(struct aio *a, struct aio_read *r)
{
    struct io_uring_sqe *s = io_uring_get_sqe(&a->ring);
    if (!s) return false;
    io_uring_prep_read(s, r->file->fd, r->buf + r->done, (unsigned)(r->n - r->done),
                       r->offset + r->done);
    io_uring_sqe_set_data(s, r);
    int code;
    do code = io_uring_submit(&a->ring);
    while (code == -EINTR || code == -EAGAIN);
    if (code >= 0) return true;
    io_uring_prep_nop(s); /* it goes with the next submission, and means nothing then */
    io_uring_sqe_set_data(s, NULL);
    return false;
}

void aio_submit(struct aio *a, struct aio_read *r)
{
    ASSERT(a->in_flight < a->depth);
    r->done = 0;
    r->error = 0;
    a->in_flight++;
    if (!by_ring(a, r) || !ring_put(a, r)) queue_put(a, r);
}

/* Takes note of what one system call read; true when the read has ended. */
static bool ended(struct aio_read *r, int64_t got)
{
    if (got == -EINTR || got == -EAGAIN) return false;
    if (got < 0) {
        r->error = (int)-got;
        return true;
    }
    r->done += (size_t)got;
    /* Past the page cache only a file's end leaves half a block. */
    return got == 0 || r->done >= r->need || (r->file->direct && r->done % OSFILE_ALIGN);
}

static struct aio_read *wait_queue(struct aio *a)
{
    struct aio_read *r = a->queue[a->head];
    a->head = (a->head + 1) % a->depth;
    a->n_queued--;
    while (!ended(r, r->file->ops->pread(r->file->fd, r->buf + r->done, r->n - r->done,
                                         r->offset + r->done))) {}
    return r;
}

static struct aio_read *wait_ring(struct aio *a)
{
    for (;;) {
        struct io_uring_cqe *c;
        int code = io_uring_wait_cqe(&a->ring, &c);
        if (code == -EINTR || code == -EAGAIN) continue;
        ASSERT(code == 0); /* the ring itself is broken: nothing in flight can be given back */
        struct aio_read *r = io_uring_cqe_get_data(c);
        const int64_t got = c->res;
        io_uring_cqe_seen(&a->ring, c);
        if (!r) continue;
        if (ended(r, got)) return r;
        if (!ring_put(a, r)) {
            r->error = EIO;
            return r;
        }
    }
}

struct aio_read *aio_wait(struct aio *a)
{
    ASSERT(a->in_flight > 0);
    struct aio_read *r = a->n_queued ? wait_queue(a) : wait_ring(a);
    a->in_flight--;
    return r;
}

enum status aio_error(const struct aio_read *r, struct err *e)
{
    const unsigned long long at = r->offset + r->done;
    if (r->error)
        return err_set_at(e, ERR_IO, at, "cannot read %s at byte %llu: %s", r->file->path, at,
                          strerror(r->error));
    return err_set_at(e, ERR_IO, at, "%s ends at byte %llu where more was promised: the file was "
                      "truncated or changed", r->file->path, at);
}
