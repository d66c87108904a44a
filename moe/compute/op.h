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
    X(OP_ROPE, "rope", "rotates each head of in by the table out[0]")                              \
    X(OP_KV_PUT, "kv-put", "appends K = in[0], V = in[1] to the KV slot at each row's position")   \
    X(OP_ATTENTION, "attention", "out = softmax(Q K / sqrt(d)) V over the slot, Q = in[0]")        \
    X(OP_ADD, "add", "out += in")                                                                  \
    X(OP_ADD_BIAS, "add-bias", "out += weight vector")                                             \
    X(OP_SELECT, "select", "out = the rows of in that belong to the row set")                      \
    X(OP_SWIGLU, "swiglu", "out = silu(in[0]) * in[1]")                                            \
    X(OP_ROUTE, "route", "chooses experts and their weights from the router's logits in[0]")       \
    X(OP_EXPERTS, "experts", "out = sum over a row's experts of w * down(swiglu(gate, up))")

enum op_code {
#define X(code, name, doc) code,
    OP_LIST(X)
#undef X
    OP_CODE_N
};

const char *op_name(enum op_code code);

enum op_lane { LANE_CPU, LANE_DEVICE, LANE_COPY, LANE_DISK, LANE_N };

/* Which rows a step works on.  ROWS_ALL is the fast path; an empty ROWS_OUT means that its steps
 * and their weight reads do not happen. */
enum op_rows { ROWS_ALL, ROWS_OUT, ROWS_N };

/* Router rule (routing/route.h). */
enum route_score { ROUTE_SOFTMAX, ROUTE_SIGMOID };

struct route_params {
    int n_expert, n_used;
    enum route_score score;
    int normalise; /* divide the chosen weights by their sum */
    float scale;   /* multiply them by this */
};

struct rope_params {
    int n_rot;      /* values rotated per head */
    int neox;       /* pairs (i, i + n_rot/2), else (2i, 2i+1) */
    float base;     /* theta of pair i is base^(-2i/n_rot) */
    float scale;    /* positions are multiplied by this (linear scaling) */
};

enum { OP_IO = 3 };

struct op {
    enum op_code code;
    enum op_lane lane;
    enum op_rows rows;
    int layer;            /* logical layer, -1 outside the layers */
    char name[28];        /* "attn_q", for EXPLAIN and for comparing runs */
    int in[OP_IO];        /* buffers, -1 = none */
    int out[OP_IO];
    int weight[OP_IO];    /* weight views, -1 = none */
    int kv_slot;          /* -1 = none */
    union {
        struct { int n_heads, dim; float eps; } head;             /* RMS_NORM (eps), HEAD_NORM */
        struct { int n_heads, dim; struct rope_params rope; } rope; /* ROPE, ROPE_TABLE */
        struct { enum act_kind kind; } prepare;
        struct { int n_q_heads, n_kv_heads, dim, dk, dv; float scale; int window; } attn;
        struct { struct route_params route; int n_ff; } moe;      /* ROUTE, EXPERTS */
    } p;
};

/* A typed KV slot of the layer program.  Dense append is the type of causal attention. */
enum kv_slot_type { KV_SLOT_DENSE };

struct kv_slot {
    enum kv_slot_type type;
    int n_heads;
    int dim;    /* values of a K or V head as the model has it */
    int dk, dv; /* as stored: a multiple of 16, padded with zeros, which change no sum */
};

#endif
