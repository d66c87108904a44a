/* Parts: the smallest pieces of weights that move, and the store that holds them.
 *
 * A part is {tensor, row range, level range, file extents}.  Plans and layers hold part handles
 * (their index), never raw pointers: a handle becomes a pointer between part_pin() and part_unpin(),
 * and which bytes it resolves to (which tier, how many levels) is decided at pin time.
 *
 * This store keeps every part in RAM, in one region, laid out for the kernels: a file's rows are
 * read in pieces, packed into their tiles on arrival (tile_pack) and never touched again.
 *
 * Pins may come from any thread; loading is done by one caller with a thread pool before the first
 * pin.  Borrows the weight views; owns the region and the open files. */
#ifndef OFFLOAD_PART_H
#define OFFLOAD_PART_H

#include <stdbool.h>

#include "moe/base/mem.h"
#include "moe/base/osfile.h"
#include "moe/base/thread.h"
#include "moe/load/weights.h"

enum { PART_EXTENTS = 4 };

struct part_extent {
    int shard;
    uint64_t offset, bytes;
};

struct part {
    int weight;              /* index into the weight views */
    int mat;                 /* which of its matrices */
    int row0, n_rows;        /* rows of that matrix */
    int level0, n_levels;    /* levels of a stack; 0 and 1 for plain weights */
    int n_extents;
    struct part_extent extent[PART_EXTENTS];
    uint64_t bytes;          /* in memory */
    uint64_t offset;         /* in the store's region */
};

struct part_store {
    const struct weights *weights;
    struct part *part; /* [n_parts], handle = index */
    int n_parts;
    struct osfile *file; /* [n_files] */
    int n_files;
    uint64_t bytes;      /* of all parts, with alignment */
    struct region region;
    bool loaded;
};

/* Builds the table; reads nothing.  ERR_MEMORY. */
enum status part_store_open(struct part_store *s, const struct weights *ws, struct err *e);
void part_store_close(struct part_store *s);

/* Bytes of staging that one loading thread needs. */
uint64_t part_store_staging(const struct part_store *s);

struct part_load {
    struct ledger *ledger;
    struct pool *pool;
    const struct osfile_ops *ops;                               /* NULL = the system's */
    bool (*progress)(void *arg, uint64_t done, uint64_t total); /* false cancels; may be NULL */
    void *progress_arg;
    void (*warn)(void *arg, const char *text); /* NaN weights, one call per tensor; may be NULL */
    void *warn_arg;
};

/* Reads every part into place.  ERR_IO, ERR_BUDGET, ERR_MEMORY, ERR_CANCELLED. */
enum status part_store_load(struct part_store *s, const struct part_load *how, struct err *e);

/* The part's bytes, 64-byte aligned, valid until the matching unpin. */
const void *part_pin(struct part_store *s, int part);
void part_unpin(struct part_store *s, int part);

#endif
