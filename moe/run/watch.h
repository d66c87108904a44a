/* Watching what weights are multiplied with (tessera_watch): copies of the float rows behind
 * prepared activations, and the calls.
 *
 * Owns its copies, which the ledger knows.  Executor thread only; costs nothing while nobody
 * watches. */
#ifndef MOE_RUN_WATCH_H
#define MOE_RUN_WATCH_H

#include "moe/base/mem.h"
#include "moe/compute/dev.h"
#include "moe/tessera.h"

struct watch {
    tessera_watch_fn *fn; /* NULL = nobody */
    void *arg;
    int *slot;            /* [n_buf] where the copy behind a prepared buffer is, -1 = nowhere */
    struct region copies; /* [slots][n_ubatch] rows of `stride` floats */
    uint64_t stride;
    const float **row;    /* [n_ubatch] for one call: no expert meets a row twice */
};

/* Before an op runs; n_rows is of its row set. */
void watch_op(struct tessera_engine *e, const struct op *op, int n_rows);
/* When all experts of a layer have run: route says which row went where. */
void watch_experts(struct tessera_engine *e, const struct op *op, const struct dev_route *route);
void watch_end(struct watch *w);

#endif
