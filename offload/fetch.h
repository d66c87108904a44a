/* Fetch: the only way of weights into memory.
 *
 * A few loader threads take pieces (some whole tiles of one part) from whoever owns the order,
 * read them past the page cache (or copy what it happens to hold), pack them for the kernels and
 * report them done.  What to read next
 * is asked for each time a buffer is free, so that a demand overtakes everything that has not been
 * submitted, and cancelling is not handing out.
 *
 * All of it happens under one lock, which the owner shares: `next` and `done` are called with it
 * held; reading and packing are not.  Owns the files, the staging buffers and the threads.
 * Allocates at start only. */
#ifndef OFFLOAD_FETCH_H
#define OFFLOAD_FETCH_H

#include <pthread.h>

#include "moe/base/aio.h"
#include "moe/base/mem.h"
#include "offload/part.h"

enum { FETCH_THREADS_MAX = 8, FETCH_DEPTH = 4 };

struct fetch_piece {
    int part, row0, n_rows; /* rows of the part, row0 a tile's first; or one row of a raw read */
    char *dst;              /* where row 0 of the part would lie; of a raw read, the row */
    bool raw;               /* as it is in the file */
    bool check;             /* look for NaN */
    int tag;                /* the owner's, as is: */
    bool guess;
};

struct fetch_how {
    struct ledger *ledger;
    int n_threads;
    int depth;                    /* buffers of a loader, 1 to FETCH_DEPTH */
    const struct osfile_ops *ops; /* NULL = the system's */
    bool no_uring;                /* plain reads */
    void *arg;
    /* The next piece to read, false when there is none now. */
    bool (*next)(void *arg, struct fetch_piece *p);
    /* It has been read and placed, or e says why not; nan: it holds one. */
    void (*done)(void *arg, const struct fetch_piece *p, uint64_t bytes, bool nan,
                 const struct err *e);
};

struct fetch {
    const struct part_table *parts;
    struct fetch_how how;
    struct osfile *file; /* [n_files] */
    struct osfile *cache; /* [n_files] the same through the page cache, to peek; path NULL: not open */
    int n_files;
    struct region staging;
    uint64_t buf_bytes;
    struct loader *loader; /* [n_loaders] */
    int n_loaders, n_started, depth;
    bool stop;
    pthread_mutex_t lock;
    pthread_cond_t work, ready; /* there are pieces; some have been placed */
    char note[160];             /* "" or what had to be done without, one line */
};

/* Bytes of staging that so many threads with so many buffers each take. */
uint64_t fetch_staging(const struct part_table *parts, int n_threads, int depth);

/* Opens files and ring, starts the threads.  ERR_IO, ERR_BUDGET, ERR_MEMORY.  On failure f is
 * closed. */
enum status fetch_start(struct fetch *f, const struct part_table *parts, const struct fetch_how *how,
                        struct err *e);
/* Other numbers of buffers, while nothing is to be read.  On failure f is closed. */
enum status fetch_deepen(struct fetch *f, int depth, struct err *e);
/* Waits for what has been submitted.  f may be all zeros. */
void fetch_stop(struct fetch *f);

/* ERR_IO when a file was written to since it was opened. */
enum status fetch_unchanged(const struct fetch *f, struct err *e);

#endif
