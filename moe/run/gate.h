/* A layer's router, run early: the steps between a layer's hidden state and its router's logits
 * (norm, preparation, product, bias), on the hidden state of the layer before it.
 *
 * The steps are those of the description, on buffers of their own, so that nothing of the pass is
 * touched; what comes out is a guess of what the layer will choose.  Where a description has
 * anything else on the way to a router, or its matrix is not in memory, there is no guess.
 * Executor thread only; allocates at open. */
#ifndef MOE_RUN_GATE_H
#define MOE_RUN_GATE_H

#include "moe/base/mem.h"
#include "moe/compute/dev.h"
#include "moe/plan/plan.h"

enum { GATE_OPS = 6, GATE_ROWS = 8 };

struct gate {
    int n;                  /* 0 = cannot be run early */
    struct op op[GATE_OPS]; /* the first one's input is the hidden state */
    int hidden;             /* the buffer where this layer's own hidden state lies */
    int width[GATE_OPS];    /* of the buffers that the steps write */
    int logits;             /* number of the one with what comes out */
    const struct op *route;
};

struct gates {
    struct gate *bank;      /* [n_banks] */
    int n_banks;
    struct region mem;
    uint64_t stride[GATE_OPS]; /* of a row of each buffer; [n_rows <= GATE_ROWS] */
    struct dev_buf *buf;    /* [GATE_OPS], behind those of the pass */
    float *pick;            /* [n_expert] */
};

/* op_bank as in struct tessera_engine.  Takes no memory for buffers yet.  ERR_MEMORY. */
enum status gates_open(struct gates *g, const struct build *m, const int *op_bank, int n_banks,
                       struct err *e);
void gates_close(struct gates *g);

/* Bytes of the buffers, and taking them: buf [n_buf + GATE_OPS], the last ones are filled in. */
uint64_t gates_bytes(const struct gates *g);
enum status gates_commit(struct gates *g, const struct build *m, struct ledger *l,
                         struct dev_buf *buf, struct err *e);

/* The guess of a bank from a hidden state, the first n_rows rows of buffer `from` (which is as wide as
 * the bank's own): logits [n_expert], one row a stride after the other; NULL = none. */
float *gates_run(struct gates *g, int bank, int from, int n_rows, const struct dev_api *api,
                 struct dev *dev, const struct dev_bind *b, uint64_t *stride);

#endif
