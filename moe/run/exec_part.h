/* Part of a pass on hidden states from outside (branch.h): the executor's side of it, exec.c. */
#ifndef MOE_RUN_EXEC_PART_H
#define MOE_RUN_EXEC_PART_H

#include "moe/run/engine_int.h"

struct exec_part {
    tessera_session *session;
    int32_t id;              /* the token that all rows stand for, behind the timeline's end */
    int head;                /* so many ops from the beginning are run first */
    int from, to;            /* then these */
    int n;                   /* rows, at most n_ubatch */
    int in_buf, out_buf;     /* where in goes between the two, and out comes from; -1 = nowhere */
    int width;
    const float *in;         /* [n][width] */
    float *out;              /* [n][width] */
    float *keep;             /* room for K and V of the rows */
    const int32_t *expert;   /* [n][n_used] instead of the router's choice, or NULL */
    int32_t *chosen;         /* [n][n_used] what was chosen, or NULL */
};

/* Logits, if the part gives any, lie in e->logits.  Nothing is observed, nothing moves on. */
enum status exec_part(struct tessera_engine *e, const struct exec_part *p, struct err *err);

#endif
