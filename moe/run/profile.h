/* Where the time of steps goes: seconds, bytes and multiply-accumulates by kind of step, summed over
 * layers and forward passes.  Off by default; on, every op is submitted and waited for on its own.
 * Bytes are those that had to be read at least once: weights (of the experts that were used) and
 * the keys and values that the rows see.  Executor thread only. */
#ifndef MOE_RUN_PROFILE_H
#define MOE_RUN_PROFILE_H

#include "moe/plan/plan.h"
#include "moe/tessera.h"

struct profile {
    int *kind_of;            /* [n_op] */
    struct tessera_step_kind *kind;
    int n_kinds;
};

enum status profile_open(const struct build *m, struct profile **out, struct err *e);
void profile_close(struct profile *p);

/* One op of a pass of n_rows rows, n_active experts (OP_EXPERTS) and kv_bytes of keys and values,
 * kv_macs products with them (OP_ATTENTION); level_bytes: of a stack's levels above its bases. */
struct profile_ran {
    int n_rows, n_active;
    uint64_t kv_bytes, kv_macs, level_bytes;
    double seconds;
};
void profile_add(struct profile *p, const struct build *m, int op, const struct profile_ran *r);

#endif
