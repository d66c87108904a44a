/* Between the parts of the CUDA device: cuda_run.c says what an op is on the card, launches and the
 * lists that they read; cuda_graph.c starts launches; dev_cuda.c has the card: memory, streams, fences.  Never include it elsewhere. */
#ifndef MOE_COMPUTE_CUDA_CUDA_INT_H
#define MOE_COMPUTE_CUDA_CUDA_INT_H

#include "moe/compute/cuda/kernels.h"
#include "moe/compute/dev.h"

/* LIST_BYTES holds the places of ROWS_MOST rows, of several kinds. */
enum { BATCH_LAUNCHES = 64, WHOLE_LAUNCHES = 4096, BATCH_READS = 2048, BATCH_PLACES = 8, LIST_BYTES = 256 << 10,
       ROWS_MOST = 4096 };

/* Matrices that experts are made of: what an upload to them has to wait for. */
struct cuda_read {
    const char *at;
    uint64_t bytes;
};

/* What goes to the card at once: lists in one copy, then launches.  `rows` and `kv_rows` tell places
 * that are the same from others, with what their rows see. */
struct batch {
    struct gpu_launch *launch;
    int n_launches, most_launches;
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

/* ---- cuda_graph.c ---- */

enum { GRAPHS = 3 };

/* Launches that were started before, and the graph that they became when they came again. */
struct graphs {
    struct seen {
        struct gpu_launch *launch;
        int n;
        cudaGraphExec_t exec;    /* NULL: seen once */
        uint64_t last;           /* when */
    } seen[GRAPHS];
    uint64_t n_starts;
    bool off;                    /* the driver makes none */
};

/* Starts launches on a stream, one by one or as the graph of them; 0 or an error of CUDA's. */
cudaError_t graphs_start(struct graphs *g, cudaStream_t s, const struct gpu_launch *l, int n);
void graphs_close(struct graphs *g);

/* ---- dev_cuda.c ---- */

/* A batch with room for that much more, each within the limits above: the one that is being filled, or
 * that is on its way and this is the next.  NULL: the device is lost. */
struct batch *batch_room(struct dev *d, int launches, int reads, uint64_t bytes);

/* The batch being filled reads or writes these bytes, which are no expert's; `read`: matrices that are. */
void batch_touches(struct dev *d, const void *at, uint64_t bytes);
void batch_reads(struct dev *d, struct batch *b, const void *at, uint64_t bytes);

#endif
