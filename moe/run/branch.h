/* Branches: parts of the pass run on hidden states of the caller's, for the token that would come next
 * on a timeline.  What an oracle is made of (routing/oracle.h): many ways through the layers for one
 * token, each layer computed once for all that share their way up to it.
 *
 * The pass is a chain of parts that hand on one hidden state per row and nothing else: attention, then
 * feed-forward, of each layer.  All rows of a run stand for the same token at the same place: each sees
 * the session's timeline and itself, none sees another.  The timeline is left as it is (frozen): what
 * lies behind its end is scratch until a step comes.  Results are the bits that a step gives.
 *
 * Models that all fit in memory, without a second device, recurrent layers, row sets or layers that
 * look at each other's K and V; everything else is ERR_UNSUPPORTED.  Executor thread only. */
#ifndef MOE_RUN_BRANCH_H
#define MOE_RUN_BRANCH_H

#include "moe/compute/op.h"
#include "moe/tessera.h"

enum branch_kind {
    BRANCH_ATTENTION, BRANCH_FEED_FORWARD,
    BRANCH_LAYER, /* both, where they cannot be told apart */
    BRANCH_FIXED  /* belongs to no layer: never left out */
};

struct branch_part {
    enum branch_kind kind;
    int layer;               /* -1 of BRANCH_FIXED */
    int n_expert, n_used;    /* of its router; 0 = it has none */
    int head;                /* ops of the head that it needs: all, or none */
    int from, to;            /* ops */
    int in, out;             /* buffers of the hidden state before and behind it */
};

struct branches {
    tessera_engine *e;
    struct branch_part *part; /* [n_parts] in order */
    int n_parts, head, n_embd, n_vocab, most; /* ops before the first part; rows per run */
    struct branch_part end;  /* what comes behind the last one: norm and logits */
    float *keep;             /* [most][] K and V of a run's rows */
    tessera_session *session;
    int32_t id;
};

/* ERR_UNSUPPORTED, ERR_BUDGET, ERR_MEMORY. */
enum status branches_open(tessera_engine *e, struct branches *b, struct err *err);
void branches_close(struct branches *b);
/* The parts alone, of any model that has them, wherever its weights are; *part is the caller's to free. */
enum status branches_parts(tessera_engine *e, struct branch_part **part, int *n, struct err *err);

/* Takes that many bytes of the budget for what the caller will hold beside, for as long as the engine is
 * open; weights give way.  ERR_BUDGET: they cannot, or, with `whole`, the model is not in memory as a
 * whole then. */
enum status branches_hold(tessera_engine *e, uint64_t bytes, bool whole, struct err *err);

/* What follows is about token id behind the end of the session's timeline; x [n_embd] becomes its
 * embedding.  Anew after every step. */
enum status branches_token(struct branches *b, tessera_session *s, int32_t id, float *x,
                           struct err *err);
/* Runs n_parts parts from `part` on, on n >= 1 rows.  in, out: [n][n_embd], may be the same.  Of a single
 * part: expert [n][n_used]: takes these
 * instead of the router's choice, in any order, with the weights that the router gives them; NULL: the
 * router chooses.  chosen [n][n_used] learns what was taken, best first; may be NULL. */
enum status branches_run(struct branches *b, int part, int n_parts, int n, const float *in, float *out,
                         const int32_t *expert, int32_t *chosen, struct err *err);
/* Minus the log of the probability of token `target` behind each row that has come through all parts. */
enum status branches_loss(struct branches *b, int n, const float *in, int32_t target, double *loss,
                          struct err *err);
/* The same of logits [n]. */
double branches_loss_of(const float *logit, int n, int32_t target);

/* Sends every row so deep, whatever the router says, until it is told otherwise; -1: as the router
 * says.  ERR_UNSUPPORTED where depth does not depend on the row; ERR_RANGE. */
enum status branches_depth(tessera_engine *e, int depth, struct err *err);
/* The least depth there is; the largest is tessera_depth().n_max. */
int branches_least_depth(const tessera_engine *e);

/* How experts choose their rows; k_max 0: they do not. */
struct choice_params branches_choice(const tessera_engine *e);
/* Models whose experts choose their rows: so many experts per row on average, 1 to k_max, whatever the
 * schedule says, until it is told otherwise; 0: as it says.  ERR_UNSUPPORTED, ERR_RANGE. */
enum status branches_capacity(tessera_engine *e, int k, struct err *err);

#endif
