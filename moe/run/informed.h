/* Informed routing in the executor: feed-forwards that a forecaster stands in for (routing/approx.h).
 *
 * Rows decide one by one, from their own hidden state alone, so a row gets the same in any step.  Where
 * all rows of a step are approximated, as in generating one token, the layer's feed-forward does not
 * run and its experts are not read; where some are not, it runs for all and the others' results are
 * put in its place.
 *
 * The side file is a GGUF container (general.type "tessera.forecasters"; keys tessera.model.{hash,name},
 * tessera.forecasters.{n_embd,rank,parts,judge_bias,quantiles,share,kl}; tensor "layers", F32, the arrays of
 * approx.h of every part).  Executor thread only. */
#ifndef MOE_RUN_INFORMED_H
#define MOE_RUN_INFORMED_H

#include "moe/compute/op.h"
#include "moe/run/branch.h"
#include "routing/approx.h"

/* What stands in, and who decides. */
enum approx_mode {
    APPROX_OFF, APPROX_JUDGE,
    APPROX_RANDOM, /* the share drawn by lot, nothing added: for comparison */
    APPROX_RANDOM_FORECAST,
    APPROX_GATE    /* no feed-forward, but experts: that share of them, of the least gate weight */
};

enum { APPROX_PRICES = 8 };

struct forecasters {
    uint64_t model_hash;
    int n_embd, rank, n_parts;
    int32_t *op;                 /* [n_parts] first op of the part that each stands in for */
    struct approx_layer *layer;  /* [n_parts] */
    float *data;                 /* theirs */
    float quantile[101];         /* of what the judges said of the tokens that were fitted */
    int n_prices;                /* KL in nats that was measured on text held out, by share */
    float share[APPROX_PRICES], kl[APPROX_PRICES];
};

void forecasters_free(struct forecasters *f);
enum status forecasters_write(const struct forecasters *f, const char *model_name, const char *path,
                              struct err *e);
enum status forecasters_read(struct forecasters *f, const char *path, struct err *e);
/* The price of a share by what was measured; NaN when nothing was near. */
double forecasters_price(const struct forecasters *f, double share);

struct approx {
    struct forecasters f;
    struct branch_part *part;    /* [n_parts] of the pass */
    int n_parts;
    int *begins, *ends;          /* [n_op + 1] part that begins, ends before this op; -1 = none */
    int *of;                     /* [n_parts] its forecaster, -1 = none */
    int open;                    /* part that is being run, -1 = none */
    enum approx_mode mode;
    double share;
    float threshold;
    float gate[101];             /* APPROX_GATE: quantiles of gate weights, approx_gates() */
    int32_t *n_of;               /* [rows] experts that stay */
    float *x, *z;                /* [rows][n_embd] before; in the place of what comes out */
    unsigned char *on;           /* [rows] approximated; rows: n_ubatch as it was asked for */
    uint64_t bytes;              /* of memory for all of this */
    uint64_t rows, rows_on, skipped; /* rows times parts; of those, approximated; parts not run;
                                        APPROX_GATE: experts chosen; of those, left out */
    /* Collecting, to fit: sees hidden states before and behind a part; NULL = nobody does. */
    void (*see)(void *arg, int part, int n, const float *x, const float *z);
    void (*see_gates)(void *arg, int n, const float *w); /* of n experts */
    void *see_arg;
};

/* For an engine that is open, without a path: nothing stands in yet, rows can be collected.  With one
 * it is called before the budget is shared out (fit.c).  ERR_SHAPE: of another model.  The engine owns
 * it from then on. */
enum status approx_open(struct tessera_engine *e, const char *path, struct err *err);
void approx_close(struct approx *a);
struct approx *approx_of(tessera_engine *e); /* NULL = none */
/* share in [0, 1]. */
void approx_set(struct approx *a, enum approx_mode mode, double share);
/* What approx_set(APPROX_GATE) goes by: gate weights of a text [n], which are sorted. */
void approx_gates(struct approx *a, float *w, long n);
/* Takes over what f holds. */
void approx_take(struct approx *a, struct forecasters *f);

/* Before op i of a step: the op to go on with. */
int approx_at(struct tessera_engine *e, int i);
/* What a router has chosen for n rows: how many experts of each stay; NULL = all. */
int32_t *approx_routed(struct tessera_engine *e, const struct route_params *p, int n, int32_t *id,
                       float *w);
/* When a stretch of ops that ends before op i has run. */
void approx_end(struct tessera_engine *e, int i);

#endif
