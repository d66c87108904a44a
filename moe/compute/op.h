/* The op vocabulary: what a step of a plan can be.
 *
 * One row per op: code, name in EXPLAIN, what it does.  An op is fixed-size, straight-line and free
 * of pointers: it names buffers, weights, KV slots and row sets by index, and devices resolve those
 * through a struct dev_bind at run time.  Data-dependent work (routed experts, rows that need
 * logits) arrives in control buffers of fixed upper size. */
#ifndef MOE_COMPUTE_OP_H
#define MOE_COMPUTE_OP_H

#include <stdint.h>

#include "quant/qtype.h"

/*      code        name         meaning */
#define OP_LIST(X)                                                                                 \
    X(OP_EMBED, "embed", "out[r] = row ids[r] of the weight, as f32")                              \
    X(OP_ROPE_TABLE, "rope-table", "out[r] = cos and sin of the rotary angles at position of r")   \
    X(OP_RMS_NORM, "rms-norm", "out = in / rms(in) * weight, whole rows")                          \
    X(OP_HEAD_NORM, "head-norm", "the same over each head of width p.head.dim, in place")          \
    X(OP_PREPARE, "prepare", "out = in as the weight type's activation format (quant/mm.h)")       \
    X(OP_MATMUL, "matmul", "out[i] = weight[i] * in, up to three weights that share their input")  \
    X(OP_HEAD_PREPARE, "head-prepare", "the same, but each head's first p.prepare.dim values")     \
    X(OP_HEAD_MATMUL, "head-matmul", "head h of out = matrix h of the weight * head h of in")      \
    X(OP_COPY_HEADS, "copy-heads", "a piece of each head of out = a piece of each head of in")     \
    X(OP_ROPE, "rope", "rotates each head of in by the table out[0]")                              \
    X(OP_KV_PUT, "kv-put", "appends K = in[0], V = in[1] to the KV slot at each row's position")   \
    X(OP_ATTENTION, "attention", "out = softmax(Q K / sqrt(d)) V over the slot, Q = in[0]")        \
    X(OP_ADD, "add", "out += in")                                                                  \
    X(OP_ADD_BIAS, "add-bias", "out += weight vector, from its element p.bias.at on")              \
    X(OP_FILL, "fill", "values of out from p.bias.at on = weight vector")                           \
    X(OP_SCALE, "scale", "out *= p.scale.by, times the weight's only value where it has one")      \
    X(OP_GATE, "gate", "out *= sigmoid(in[0]), element by element or, if in is one wide, by row")  \
    X(OP_SOFTCAP, "softcap", "out = cap * tanh(out / cap)")                                        \
    X(OP_MUL, "mul", "out *= in")                                                                  \
    X(OP_L2_NORM, "l2-norm", "each head of width p.head.dim / its length, at least eps, in place") \
    X(OP_CONV, "conv", "out = causal convolution per channel of out; its past is in the KV slot")  \
    X(OP_DELTA_GATES, "delta-gates", "out[0] = exp(w[1] softplus(out[0] + w[0])), out[1] sigmoid") \
    X(OP_DELTA, "delta", "gated delta rule on the KV slot: in = q k v, decay, beta (recur.h)")     \
    X(OP_SELECT, "select", "out = the rows of in, which may be of another row set")                \
    X(OP_SCATTER, "scatter", "rows of out, which may be of another set, += by * in[1] * in[0]")    \
    X(OP_DEPTH, "depth", "how deep each row goes, and with that the next row set")                 \
    X(OP_SPAN, "span", "out = sum of in since the row behind the last one that is in p.span.set")  \
    X(OP_SMOOTH, "smooth", "out = what the last row in in[0]'s set gave, smoothed by in[1]")       \
    X(OP_KV_CARRY, "kv-carry", "K and V of positions that went less deep come from where they did") \
    X(OP_FORESEE, "foresee", "in = the rows that go into the layers behind: reads can begin")      \
    X(OP_GLU, "glu", "out = act(in[0]) * in[1], act as in p.glu")                                  \
    X(OP_ROUTE, "route", "chooses experts and their weights from the router's logits in[0]")       \
    X(OP_CHOOSE, "choose", "experts choose their rows, of each session, by the logits in[0]")      \
    X(OP_EXPERTS, "experts", "out = sum over a row's experts of w * down(glu(gate, up))")

enum op_code {
#define X(code, name, doc) code,
    OP_LIST(X)
#undef X
    OP_CODE_N
};

const char *op_name(enum op_code code);

enum op_lane { LANE_CPU, LANE_DEVICE, LANE_COPY, LANE_DISK, LANE_N };

/* Row sets: which rows a step works on.  Every buffer has the rows of one set, without gaps, and an
 * empty set means that its steps and their weight reads do not happen.  ROWS_ALL is the fast path;
 * ROWS_OUT are those that need logits; sets from ROWS_FIRST on are filled by DEPTH steps.  KV slots
 * belong to a set, too: its rows, and no others, have a place on the slot's timeline. */
enum { ROWS_ALL, ROWS_OUT, ROWS_FIRST, ROWS_MAX = 16 };

/* What a row's attention sees of its timeline: itself and what is before it; everything; or, n > 0,
 * everything up to the end of its block of n positions. */
enum { SEES_BEFORE = 0, SEES_ALL = -1 };

/* Router rule (routing/route.h). */
enum route_score {
    ROUTE_SOFTMAX,
    ROUTE_SIGMOID,
    ROUTE_SOFTMAX_CHOSEN /* the logits choose; softmax over the chosen ones alone */
};

/* Experts that choose their rows (routing/choice.h): how many, by the share of masked tokens. */
enum choice_schedule {
    CHOICE_STATIC, CHOICE_LINEAR, CHOICE_LINEAR_REVERSE, CHOICE_COSINE, CHOICE_COSINE_REVERSE,
    CHOICE_BELL, CHOICE_GAUSSIAN, CHOICE_GAUSSIAN_REVERSE
};

struct choice_params {
    int k_min, k_max;   /* experts per row on average; k_max 0 = rows choose their experts */
    enum choice_schedule schedule;
    int whole_batch;    /* among all rows of a step, not of one session */
    int32_t mask;       /* the token that counts as masked */
    bool prompts;       /* a lossy switch: rows choose, but for those of a text that are enough for every
                           expert to take one (k_min = k_max = n_used); weights are the router's own */
};

struct route_params {
    int n_expert, n_used; /* experts of a row; where experts choose: on average, about */
    enum route_score score;
    int normalise; /* divide the chosen weights by their sum */
    float scale;   /* multiply them by this */
    int n_group, n_group_used; /* experts come from the groups whose two best sum highest; 0 = all */
    struct choice_params choice;
};

/* The most experts that a row can have, and pairs of a row and an expert that n rows can. */
static inline int route_slots(const struct route_params *p)
{
    return p->choice.k_max ? p->n_expert : p->n_used;
}
static inline int route_pairs(const struct route_params *p, int n)
{
    const int64_t all = (int64_t)n * route_slots(p);
    const int64_t most = (int64_t)n * p->choice.k_max + p->n_expert;
    return (int)(p->choice.k_max && most < all ? most : all);
}

/* Depth rules (routing/depth.h).  Each sees a row's router logits; all but CHOOSE fill a row set. */
enum depth_rule {
    DEPTH_SCORE,  /* out = score(logit); on go rows with a score of `at` or more, or the best */
    DEPTH_CHOOSE, /* a row chooses its depth among n_steps at once: out as in depth.h */
    DEPTH_REACH,  /* on go rows that have chosen `step` or more */
    DEPTH_EXIT,   /* the logit is of the chance to stop here; on go rows whose sum of chances is
                     below `at` */
    DEPTH_BOUNDARY, /* out = the chance that a row begins anew, from in[0] and the row before's in[1]
                       (routing/chunk.h); on go rows with a chance of `at` or more */
};

enum depth_score { DEPTH_SIGMOID, DEPTH_TANH, DEPTH_IDENTITY, DEPTH_SOFTMAX };

struct depth_params {
    enum depth_rule rule;
    enum depth_score score;
    int set;        /* that this step fills; 0 = none */
    int step, n_steps; /* counted from 1 */
    float at;
    float share;    /* not 0: of each session's rows in the step that share goes on, the best ones */
    float alpha;    /* CHOOSE: chances are multiplied by it */
};

/* Gated units: out = act(gate) * up. */
enum glu_act {
    GLU_SILU,
    GLU_GELU,     /* tanh approximation */
    GLU_RELU,
    GLU_SILU_OAI  /* gpt-oss: gate <= 7, |up| <= 7, gate * sigmoid(1.702 gate) * (up + 1) */
};

struct rope_params {
    int n_rot;      /* values rotated per head */
    int neox;       /* pairs (i, i + n_rot/2), else (2i, 2i+1) */
    float base;     /* theta of pair i is base^(-2i/n_rot) */
    float scale;    /* positions are multiplied by this (linear scaling) */
    /* YaRN (arXiv 2309.00071): pairs that turn less than beta_slow times in n_ctx_orig positions
     * are interpolated by scale, those above beta_fast are not, between them a ramp. */
    int yarn, n_ctx_orig;
    float beta_fast, beta_slow;
    float magnitude; /* cos and sin are multiplied by this */
};

/* Heads in a row of floats are a stride apart; stride_in 0 = all get the same. */
struct copy_heads {
    int n_heads, dim; /* values copied per head */
    int at_in, stride_in, at_out, stride_out;
};

enum { OP_IO = 3, OP_WEIGHTS = 6 };

struct op {
    enum op_code code;
    enum op_lane lane;
    int rows;             /* row set */
    int layer;            /* logical layer, -1 outside the layers */
    char name[28];        /* "attn_q", for EXPLAIN and for comparing runs */
    int in[OP_IO];        /* buffers, -1 = none */
    int out[OP_IO];
    int weight[OP_WEIGHTS]; /* weight views, -1 = none; EXPERTS: gate, up, down, their biases;
                               ATTENTION: sinks; ROUTE: what is added to the scores to choose,
                               what the experts' weights are multiplied by; SCALE: the factor;
                               ROPE_TABLE: divisors of the angles, and those of long contexts */
    int kv_slot;          /* -1 = none */
    int kv_rows;          /* row set of the slot */
    union {
        struct { int n_heads, dim; float eps; } head;             /* RMS_NORM (eps), HEAD_NORM */
        /* ROPE, ROPE_TABLE; the rotated values begin at value `at` of each head */
        struct { int n_heads, dim, at; struct rope_params rope; } rope;
        /* HEAD_PREPARE: heads are stride apart in in; out holds prepared rows one after another */
        struct { enum act_kind kind; int n_heads, dim, stride; } prepare;
        struct { int n_heads, stride; } heads;  /* HEAD_MATMUL: heads are stride apart in out */
        struct copy_heads copy;                 /* COPY_HEADS */
        struct {
            int n_q_heads, n_kv_heads, dim, dim_v, dk, dv, latent, window;
            int sees;   /* how far ahead, see SEES_BEFORE */
            float scale;
        } attn;
        struct { struct route_params route; int n_ff; enum glu_act act; } moe; /* ROUTE, CHOOSE,
                                                                                  EXPERTS */
        struct { enum glu_act act; } glu;                         /* GLU */
        struct { int at; } bias;                                  /* ADD_BIAS, FILL */
        struct { float by; } scale;                               /* SCALE, SOFTCAP */
        struct { int taps, silu; } conv;                          /* CONV */
        struct depth_params depth;                                /* DEPTH */
        struct { int set; } span;                                 /* SPAN */
        struct { float margin; } smooth;                          /* SMOOTH */
        /* SCATTER: of the row of in[1], which may be -1, value `column`; put: = instead of += */
        struct { float by; int column, put; } scatter;
        /* KV_CARRY: the n slots of depth d are kv_slot + (d - 1) * n on; those of depth `step` get
         * what is missing there from depth `from`, 0 = each position's own; heads as in attn */
        struct { int n_kv_heads, dk, dv, n, step, from; } carry;
        /* DELTA: heads of q, k and of v; head h of v meets that of k numbered h / (n_v / n_k), or,
         * tiled, h % n_k; the matrices begin at byte `at` of the slot's state */
        struct { int n_k, n_v, dk, dv, tiled; unsigned at; } delta;
    } p;
};

/* A typed KV slot of the layer program.  Dense append is the type of causal attention.  A recurrent
 * slot is one state per session that every row changes: the last dim_v inputs of a convolution of
 * dim channels, then n_heads matrices of dk x dv floats. */
enum kv_slot_type { KV_SLOT_DENSE, KV_SLOT_RECURRENT };

struct kv_slot {
    enum kv_slot_type type;
    int n_heads;
    int dim;    /* values of a K head as the model has it, and of a V head unless dim_v is set */
    int dk, dv; /* as stored: a multiple of 16, padded with zeros, which change no sum */
    int dim_v;
    int latent; /* V is the beginning of K and not stored (elem.h) */
    int rows;   /* row set whose rows are on its timeline */
};

#endif
