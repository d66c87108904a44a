/* Describing a forward pass: what an architecture file calls.
 *
 * A description is the list of ops of one pass over symbolic rows, with the weights they use, the
 * buffers between them and the KV slots they append to.  It says nothing about row counts, memory
 * or devices: the planner (plan.h) does.  Errors stick: after the first one every call is harmless
 * and returns 0, and the caller checks b->err once at the end.
 *
 * One thread.  The description owns its lists; it borrows the weight views it adds to. */
#ifndef MOE_PLAN_BUILD_H
#define MOE_PLAN_BUILD_H

#include "moe/base/err.h"
#include "moe/compute/op.h"
#include "moe/load/weights.h"

enum buf_kind {
    BUF_F32,     /* [rows][width] floats */
    BUF_ACT,     /* [rows] prepared activation rows of width elements */
    BUF_ROUTE,   /* control: routes of all rows, both ways, and pinned pointers */
    BUF_SCRATCH, /* the inside of the experts' macro-step */
    BUF_LOGITS,  /* [rows][width] floats outside the arena: they outlive the step */
};

struct buf {
    char name[20];
    enum buf_kind kind;
    int rows;            /* row set */
    enum act_kind act;   /* BUF_ACT */
    int width;
    int n_heads;         /* BUF_ACT: this many rows of width elements; 0 = one */
    struct route_params route;  /* BUF_ROUTE, BUF_SCRATCH */
    int n_ff;                   /* BUF_SCRATCH */
    enum act_kind down;         /* BUF_SCRATCH */
    int first, last;     /* ops that touch it */
    int prepared[ACT_N]; /* BUF_F32: its BUF_ACT per activation format, 0 = not yet */
};

/* A row set (op.h). */
struct row_set {
    char name[12];
    double share;        /* of all rows, expected; 1 = nothing is known */
};

struct build {
    struct weights *ws;
    struct op *op;
    int n_op, cap_op;
    struct buf *buf; /* index 0 is never used: 0 means none */
    int n_buf, cap_buf;
    struct kv_slot *slot;
    int n_slot, cap_slot;
    int n_layer;
    int rows;          /* set of the ops that come next */
    struct row_set set[ROWS_MAX];
    int n_sets;
    /* Depth: a row's is depth_first and one for each set that it is in; n_depth 0 = no such thing. */
    int depth_first, n_depth;
    bool has_chances;  /* of a boundary at each token */
    bool approximate;  /* rows that stop early leave K and V that stand for later ones */
    int sees;          /* of attention (op.h), the same in all layers */
    int at_layer;
    int n_vocab;
    struct err *err;
    struct op ignored; /* where ops go after an error; never read */
};

void build_init(struct build *b, struct weights *ws, struct err *e);
void build_free(struct build *b);

/* Binds a tensor: shape as columns x rows (x experts).  The name may hold one %d for the layer. */
int build_tiles(struct build *b, const char *name, int layer, int n_cols, int n_rows, int n_mats);
int build_rows(struct build *b, const char *name, int n_cols, int n_rows);
int build_vector(struct build *b, const char *name, int layer, int n);
int build_vectors(struct build *b, const char *name, int layer, int n, int n_rows);
/* Rows row0 .. row0 + n_rows - 1 of every matrix of a tensor of n_all rows. */
int build_tiles_part(struct build *b, const char *name, int layer, int n_cols, int n_all, int row0,
                     int n_rows, int n_mats);
/* A 3-D tensor with a matrix of n_rows for every head, bound as one matrix of n_heads * n_rows. */
int build_head_tiles(struct build *b, const char *name, int layer, int n_cols, int n_rows,
                     int n_heads);
bool build_has(const struct build *b, const char *name, int layer);

/* A part of the rows at hand, which the next DEPTH step with p.set of that number fills; share is
 * what is expected to be in it, of all rows. */
int build_row_set(struct build *b, const char *name, double share);

/* Opens the next logical layer; ops that follow belong to it. */
void build_layer(struct build *b);
int build_kv_slot(struct build *b, struct kv_slot slot);

/* Each returns the buffer that holds the result. */
int build_embed(struct build *b, const char *name, const char *out_name, int weight);
/* Of the places on the timeline of the rows at hand.  divisor: vector of n_rot/2 that divide the
 * angles, -1 = none. */
int build_rope_table(struct build *b, struct rope_params p, int divisor);
/* The same with other divisors where the context is longer than p.n_ctx_orig. */
int build_rope_table_by_ctx(struct build *b, struct rope_params p, int divisor, int divisor_long);
int build_norm(struct build *b, const char *name, int in, int weight, float eps);
int build_linear(struct build *b, const char *name, int in, int weight);
/* The product with a matrix of n rows that decides: it must not be quantised. */
int build_router(struct build *b, const char *step, const char *name, int n, int in);
/* Up to three products of the same input in one step; out[n] are buffers with the given names.
 * Weights whose activation formats differ become steps of their own. */
void build_linears(struct build *b, const char *name, int in, int n, const int *weight,
                   const char *const *out_name, int *out);
/* window 0 = all rows on the slot's timeline, else the last ones; sinks: vector of n_q_heads, -1 = none. */
int build_attention(struct build *b, int q, int kv_slot, int n_q_heads, float scale, int window,
                    int sinks);
/* The rows at hand of a buffer with more of them. */
int build_select(struct build *b, const char *name, int in);
/* The rows at hand of `into` += their rows of `in`, times `by` and, unless gate is -1, times value
 * `column` of their rows of gate.  build_put: they become that instead. */
void build_scatter(struct build *b, const char *name, int in, int into, int gate, int column,
                   float by);
void build_put(struct build *b, const char *name, int in, int into, int gate, int column);
/* Router logits of the rows at hand -> a buffer of so many values, and the set p.set.  values: of an
 * earlier step that this one goes on from, 0 = none; width 0: nothing is given back. */
int build_depth(struct build *b, const char *name, int logits, int values, int width,
                struct depth_params p);
/* Concepts (routing/chunk.h): each is on the rows at hand, whose order is a timeline of its own, and
 * keeps a vector in a KV_SLOT_RECURRENT slot of that width between steps.
 *   boundary  the rows that begin anew become p.set; returns their chances
 *   span      the running sums of in since the last row in `set`
 *   smooth    of the rows in `in` (a set of them), for every row: what the last one gave, smoothed */
int build_boundary(struct build *b, const char *name, int mine, int before, struct depth_params p);
int build_span(struct build *b, const char *name, int in, int set);
int build_smooth(struct build *b, const char *name, int in, int chance, float margin);
/* x goes into the layers that are described next: their experts can be foreseen and read from here on,
 * where the layer before them was on other rows. */
void build_foresee(struct build *b, int x);
/* Before the rows at hand go through layers whose slots are first + (step - 1) n .. + n - 1: positions
 * that are not in these get what they have in the slots of step `from`, first + (from - 1) n; from 0:
 * of their own depth. */
void build_kv_carry(struct build *b, int first, int n, int step, int from);
int build_glu(struct build *b, enum glu_act act, int gate, int up);
/* Rows of that width, the vector at `at` in each; the rest is room for the next ops. */
int build_fill(struct build *b, const char *name, int width, int at, int weight);
/* Room for heads that the next ops fill piece by piece. */
int build_heads(struct build *b, const char *name, int n_heads, int dim);

struct build_moe {
    struct route_params route;
    enum glu_act act;
    int gate, up, down;    /* tiles, n_expert of each */
    int bias[3];           /* their vectors, n_expert rows of each, -1 = none */
    int choose_bias;       /* added to the scores for choosing only, -1 = none */
    int scale;             /* vector of n_expert: times each one's weight, -1 = none */
};
int build_experts(struct build *b, int in, int logits, const struct build_moe *m);
int build_logits(struct build *b, int in, int weight);
/* In place. */
void build_head_norm(struct build *b, const char *name, int x, int weight, int n_heads, int dim,
                     float eps);
void build_rope(struct build *b, const char *name, int x, int table, int n_heads, int dim,
                struct rope_params p);
/* The same for rotated values that begin at value `at` of heads of dim values. */
void build_rope_at(struct build *b, const char *name, int x, int table, int n_heads, int dim,
                   int at, struct rope_params p);
/* Head h of out = matrix h of weight (build_head_tiles) * the first values of head h of in; heads
 * are stride_in and stride_out values apart. */
void build_head_linear(struct build *b, const char *name, int in, int stride_in, int weight,
                       int n_heads, int out, int stride_out);
void build_copy_heads(struct build *b, const char *name, int in, int out, struct copy_heads p);
void build_kv_put(struct build *b, int k, int v, int kv_slot);
void build_add(struct build *b, const char *name, int in, int into);
void build_bias(struct build *b, const char *name, int into, int weight);
/* Adds the part of the vector that begins at `at`. */
void build_bias_at(struct build *b, const char *name, int into, int weight, int at);
void build_scale(struct build *b, const char *name, int into, float by);
/* By the only value of a vector. */
void build_scale_by(struct build *b, const char *name, int into, int weight);
void build_gate(struct build *b, const char *name, int gate, int into);
void build_softcap(struct build *b, int into, float cap);
void build_mul(struct build *b, const char *name, int in, int into);
void build_l2_norm(struct build *b, const char *name, int x, int n_heads, int dim, float eps);

/* Recurrent layers; kv_slot is a KV_SLOT_RECURRENT one and the rows are ROWS_ALL.  The kernel is a
 * vector of `taps` values per channel; x is convolved in place. */
void build_conv(struct build *b, int x, int kernel, int taps, bool silu, int kv_slot);
/* decay = exp(a softplus(decay + dt)), beta = sigmoid(beta). */
void build_delta_gates(struct build *b, int decay, int beta, int dt, int a);
/* qkv holds n_k heads of q, n_k of k, n_v of v; tiled: head h of v meets head h % n_k of k, else
 * head h / (n_v / n_k). */
int build_delta(struct build *b, int qkv, int decay, int beta, int n_k, bool tiled, int kv_slot);

#endif
