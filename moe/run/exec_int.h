/* The inside of the executor, exec.c, for the file that runs a step's other side, sides.c. */
#ifndef MOE_RUN_EXEC_INT_H
#define MOE_RUN_EXEC_INT_H

#include "moe/run/exec_part.h"

struct exec {
    struct tessera_engine *e;
    const struct plan *plan;
    struct dev_bind bind;
    struct dev_route route;
    struct dev_route whole;       /* the same as the router left it */
    struct plan_route ctl;        /* the control buffer of the layer being run */
    const struct op *route_op;
    bool two_sides;               /* a device takes part in the layer being run */
    struct devstep *there;        /* NULL: the host does all but experts */
    const struct dev_row *row;    /* [n_rows] of the step, or of the piece of it that runs */
    const int32_t *serial;        /* [n_rows] session serial of each row */
    int n_rows;
    int row0, out0;               /* where the piece begins in the step */
    bool in_pieces;
    const struct exec_part *part; /* NULL: a whole pass */
    int observed, again;          /* layers; of them those that were before the device was lost */
    const struct op *put;         /* of a part: K and V that attention puts row by row */
};

/* On the host, at once. */
void exec_submit(struct exec *x, const struct op *op, int n);
/* Experts begin .. end - 1 of the lists; sum: they are the last ones. */
void exec_submit_experts(struct exec *x, const struct op *op, int begin, int end, bool sum);
/* Appends the n experts whose numbers are in ctl.ready to the lists of those that run. */
void exec_append(struct exec *x, int n, int *n_run);
/* Those lists are what the experts' op goes by. */
void exec_run_lists(struct exec *x);
/* Whether the op needs more than one submission; runs it, whatever it needs. */
bool exec_is_special(const struct exec *x, const struct op *op);
enum status exec_special(struct exec *x, const struct op *op, struct err *err);
/* Whether somebody has said stop; says so. */
bool exec_cancelled(struct exec *x, const struct op *op, struct err *err);
/* Writes down what the layer's router chose, where that was, and how long it was waited for. */
void exec_observe(struct exec *x, double waited);

#endif
