/* Between the two halves of the CUDA device: cuda_run.c says what an op is on the card, launches and the
 * lists that they read; dev_cuda.c has the card: memory, streams, fences.  Never include it elsewhere. */
#ifndef MOE_COMPUTE_CUDA_CUDA_INT_H
#define MOE_COMPUTE_CUDA_CUDA_INT_H

#include "moe/compute/cuda/kernels.h"
#include "moe/compute/dev.h"

/* LIST_BYTES holds the places of ROWS_MOST rows, of several kinds. */
enum { BATCH_LAUNCHES = 64, BATCH_READS = 2048, BATCH_PLACES = 8, LIST_BYTES = 256 << 10,
       ROWS_MOST = 4096 };

/* Matrices that experts are made of: what an upload to them has to wait for. */
struct cuda_read {
    const char *at;
    uint64_t bytes;
};

/* What goes to the card at once: lists in one copy, then launches.  `rows` and `kv_rows` tell places
 * that are the same from others, with what their rows see. */
struct batch {
    struct gpu_launch launch[BATCH_LAUNCHES];
    int n_launches;
    char *host, *own;        /* the lists, here, and there when the launches run: LIST_BYTES each */
    uint64_t used;
    struct cuda_read read[BATCH_READS];
    int n_reads;
    struct batch_places {
        int rows, kv_rows, window, sees, first;
        uint64_t at;
    } places[BATCH_PLACES];
    int n_places;
};

/* ---- cuda_run.c ---- */

bool cuda_can(const struct op *op, const struct dev_weight *weight);
void cuda_run(struct dev *d, const struct op *op, const struct dev_bind *b);

/* ---- dev_cuda.c ---- */

/* A batch with room for that much more, each within the limits above: the one that is being filled, or
 * that is on its way and this is the next.  NULL: the device is lost. */
struct batch *batch_room(struct dev *d, int launches, int reads, uint64_t bytes);

/* The batch being filled reads or writes these bytes, which are no expert's; `read`: matrices that are. */
void batch_touches(struct dev *d, const void *at, uint64_t bytes);
void batch_reads(struct dev *d, struct batch *b, const void *at, uint64_t bytes);

#endif
