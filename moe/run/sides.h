/* The two sides of a step: which of its ops and experts the second device runs, and which the host does
 * beside it.
 *
 * Owns nothing: the step is the executor's (exec.c), what is on the device is the tier's
 * (offload/devtier.h), and which rows are good where is devstep's.  It never chooses what lies where, and no
 * result depends on who ran what.  Executor thread only. */
#ifndef MOE_RUN_SIDES_H
#define MOE_RUN_SIDES_H

#include "moe/run/exec_int.h"

/* Before the step begins: matrices of ops that the device runs are not read ahead. */
void sides_expect(struct exec *x);
/* The experts that a router has chosen, on both sides. */
enum status sides_experts(struct exec *x, const struct op *op, struct err *err);
/* The op at *i, or a route and what comes between it and its experts; *i moves on, to `to` at most. */
enum status sides_next(struct exec *x, int *i, int to, struct err *err);
/* A step that is one submission: the host begins, the device does all the rest. */
enum status sides_whole(struct exec *x, struct err *err);
/* The device took rows of the step with it: ERR_DEVICE, and there->lost. */
enum status sides_lost(struct exec *x, struct err *err);

#endif
