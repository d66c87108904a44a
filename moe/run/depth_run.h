/* Row sets of a step; see depth_run.c. */
#ifndef MOE_RUN_DEPTH_RUN_H
#define MOE_RUN_DEPTH_RUN_H

#include "moe/run/engine_int.h"

/* Before a step: the sets that are known, the others empty. */
void depth_bind(struct tessera_engine *e, int n_rows, int n_out);
/* A DEPTH op of a step of n_rows. */
void depth_run(struct tessera_engine *e, const struct op *op, int n_rows);
/* After a step has succeeded, before its sessions' n move: the sets' timelines grow, depths are
 * written down. */
void depth_commit(struct tessera_engine *e, int n_rows);

#endif
