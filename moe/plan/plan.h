/* The forward-pass planner: from a description to a plan that runs exactly as printed.
 *
 * A plan is a prepared statement for one description and one bucket of rows: straight-line steps
 * (the description's ops), the place of every buffer in one arena, and for each step the bytes it
 * reads and the multiply-accumulates it does.  The executor runs the steps in order and decides
 * nothing; whatever depends on data arrives in control buffers of fixed upper size.
 *
 * Plans are immutable; any thread.  They borrow the description. */
#ifndef MOE_PLAN_PLAN_H
#define MOE_PLAN_PLAN_H

#include <stdio.h>

#include "moe/plan/build.h"

struct plan_step {
    uint64_t weight_bytes; /* read, expected over routes where experts are chosen */
    uint64_t weight_bytes_max;
    uint64_t act_bytes;    /* activations read and written, KV aside */
    uint64_t macs;         /* expected */
    uint64_t macs_row;     /* of one row that is in the step's row set */
};

struct plan {
    const struct build *model;
    int n_rows;            /* rows at most */
    uint64_t *offset;      /* [n_buf] in the arena */
    uint32_t *stride;      /* [n_buf] bytes from row to row; 0 for control and scratch */
    uint64_t *bytes;       /* [n_buf] */
    struct plan_step *step; /* [n_op] */
    uint64_t arena_bytes;
};

/* ERR_MEMORY. */
enum status plan_make(struct plan *p, const struct build *model, int n_rows, struct err *e);
void plan_free(struct plan *p);

/* Sum over all steps. */
struct plan_step plan_total(const struct plan *p);

/* The control buffer of a ROUTE or CHOOSE step, laid out for n_rows rows. */
struct plan_route {
    float *w;              /* [n_rows][route_slots()] */
    int32_t *id;           /* [n_rows][route_slots()] */
    /* CHOOSE steps only: */
    int32_t *n_of;         /* [n_rows] experts of a row; else NULL */
    float *score;          /* [n_expert][n_rows] */
    unsigned char *taken;  /* [n_expert][n_rows] */
    int32_t *count;        /* [n_expert] */
    int32_t *expert;       /* [n_expert] */
    int32_t *first;        /* [n_expert + 1] */
    int32_t *pair;         /* [route_pairs()] */
    const void **gate, **up, **down; /* [n_expert] pinned tiles of the used experts */
    /* When some of them have to be read first: the same lists in the order in which they run. */
    int32_t *ready;        /* [n_expert] numbers of those that can run now */
    int32_t *run_expert, *run_first, *run_pair; /* as expert, first, pair */
};
uint64_t plan_route_layout(struct plan_route *r, char *base, int n_rows,
                           const struct route_params *p);

/* Where the weights are, and what a token of a decode costs for it. */
struct plan_tiers {
    bool all_ram, dense_home, tables_home;
    uint64_t home;            /* bytes: norms, and what of matrices and tables has a place of its own */
    uint64_t slots, experts;  /* bytes: expert slots; all experts */
    int n_slots, n_experts;
    uint64_t slot;            /* bytes of the largest */
    uint64_t ring;            /* bytes: slots that dense matrices stream through */
    int n_ring;
    uint64_t device, device_fixed; /* bytes on the second device: experts; rows and scratch */
    uint64_t device_dense, device_kv; /* ditto: all other weights; copies of KV caches when they are full */
    uint64_t device_bytes;    /* all of them, experts where no copy is yet */
    int n_device_kv;          /* sessions with a copy */
    int64_t device_kv_tokens; /* of all of them together */
    int n_device_sure;        /* experts that keep their places when the copies are full */
    int device_first;         /* layers from this one on are there but for experts; -1 = and all before */
    bool device_head;         /* the last product, too */
    uint64_t device_declined; /* bytes of dense weights that are not, experts being worth more */
    double device_found;      /* bytes of weights that a token finds there */
    uint64_t device_host;     /* bytes of host memory that it copies from and to */
    int n_device;             /* experts that it holds */
    const char *device_name;  /* NULL = there is none */
    bool device_modelled;
    uint64_t on_disk;         /* bytes that have no place in memory */
    double hit;               /* expected share of a token's experts in memory */
    const char *prior;        /* the routing that this assumes */
    uint64_t token_ram, token_disk; /* bytes read per token */
    double rate_ram, rate_disk;     /* bytes per second; 0 = not known */
    double seconds[3];              /* per token: perfect overlap, none, and what is likely */
    double more_hit, more_seconds[3]; /* the same with another GiB */
    uint64_t more_disk;
};

/* Bits per weight of the matrices of one kind in a stack, all layers together. */
struct plan_depth {
    char kind[24];            /* "ffn_up_exps" */
    double bits, least, most; /* of all its matrices; of the shallowest, the deepest one */
    uint64_t bytes;
};

enum { PLAN_DEPTHS = 24 };

/* What of a stack is loaded; n_units 0 = a plain file. */
struct plan_stack {
    int n_loaded, n_units;
    uint64_t bytes;           /* of the loaded levels */
    double ppl;               /* expected, 0 = not measured */
    char text[64];            /* on this text */
    int n_depths;
    struct plan_depth depth[PLAN_DEPTHS];
};

/* What EXPLAIN says about the process beside the steps. */
struct plan_summary {
    const char *arch, *name, *cpu;
    int n_threads, n_ctx, n_sessions, n_expert, n_expert_used;
    const char *kv_type;
    uint64_t weights, kv, activations, logits, staging, budget; /* bytes, planned; budget UINT64_MAX =
                                                                   no limit */
    double kv_share; /* of kv: what is expected to be filled when all positions are */
    uint64_t state; /* bytes of kv that are recurrent states; 0 = none */
    int n_snapshots; /* of them per session, beside the current one and the one being written */
    int n_parts;
    uint64_t process; /* bytes beside all others */
    struct plan_tiers tiers;
    struct plan_stack stack;
};

/* Prints the plan like a database's EXPLAIN; runs of layers with the same steps are printed once. */
void plan_text(FILE *to, const struct plan_summary *s, const struct plan *prefill,
               const struct plan *decode);
void plan_json(FILE *to, const struct plan_summary *s, const struct plan *prefill,
               const struct plan *decode);

#endif
