/* Asynchronous reads of one thread: io_uring where the system allows it, plain reads elsewhere.
 *
 * A struct aio is a small queue that belongs to one thread: it submits reads, and takes the ended
 * ones back in any order.  Where io_uring is denied (seccomp, an old kernel, another system), and
 * for files that a test replaces, the same calls do one read after another, so that a caller needs
 * no second way; several threads with a queue each then keep a drive busy.
 *
 * Owns the ring.  Allocates at open only.  Never opens, closes or caches a file. */
#ifndef MOE_BASE_AIO_H
#define MOE_BASE_AIO_H

#include <stdbool.h>

#include "moe/base/err.h"
#include "moe/base/osfile.h"

enum { AIO_DEPTH_MAX = 32 };

/* One read: the caller's memory from submit until wait gives it back. */
struct aio_read {
    const struct osfile *file;
    char *buf;
    uint64_t offset;
    size_t n;         /* bytes asked for; with file->direct all three in steps of OSFILE_ALIGN */
    size_t need;      /* the read is complete with this many: a file may end inside the last block */
    size_t done;      /* bytes read so far */
    int error;        /* 0, or an errno; a file that ends too early is 0 with done < need */
    void *arg;        /* the caller's */
};

struct aio;

/* depth reads at once at most.  Without io_uring, or if it is not wanted, it falls back and
 * *why says why ("" = it did not; borrowed, static).  ERR_MEMORY. */
enum status aio_open(int depth, bool want_uring, struct aio **out, const char **why, struct err *e);
void aio_close(struct aio *a); /* nothing may be in flight */

void aio_submit(struct aio *a, struct aio_read *r); /* fewer than depth are in flight */
int aio_in_flight(const struct aio *a);

/* Waits for one to end; at least one is in flight. */
struct aio_read *aio_wait(struct aio *a);

/* The message for a read that failed. */
enum status aio_error(const struct aio_read *r, struct err *e);

#endif
