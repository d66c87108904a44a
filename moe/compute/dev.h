/* The device interface: something that runs ops of a plan on buffers, weights and KV slots.
 *
 * Submitting is asynchronous: submit() may return before the ops have run, wait() returns when the
 * fence has passed.  Ops of one device run in submission order.  The CPU device runs them at once
 * on a thread pool, so its fences have always passed; a device with its own memory does not.
 *
 * All pointers in a struct dev_bind stay valid until the fence of the last op that uses them.
 * Called by the executor thread only. */
#ifndef MOE_COMPUTE_DEV_H
#define MOE_COMPUTE_DEV_H

#include <stdbool.h>
#include <stdint.h>

#include "moe/base/err.h"
#include "moe/base/thread.h"
#include "moe/compute/elem.h"
#include "moe/compute/op.h"
#include "quant/mm.h"

enum { DEV_ABI = 1 };

/* A buffer of a plan as the device sees it. */
struct dev_buf {
    char *base;      /* row 0 */
    uint32_t stride; /* bytes from row to row, a multiple of 64 */
    int width;       /* floats, or elements of a prepared row */
};

/* A weight view resolved to pinned bytes. */
struct dev_weight {
    const void *data;     /* first matrix (tiles, rows or vector); NULL for expert banks */
    enum qtype type;
    bool tiles;           /* else rows, or a vector of f32 */
    int n_cols, n_rows;
};

/* What a row of the step is. */
struct dev_row {
    int32_t id, pos;      /* token and its position on its timeline */
    int32_t session;      /* index into dev_bind.kv_base */
};

/* Routed work, both ways: row r's slot s is pair r*n_used + s; expert-major order lists, for every
 * expert that is used, its pairs.  Experts may be computed in several submissions, begin .. end - 1
 * of the list each, in order; the one with the last of them sums up. */
struct dev_route {
    int n_rows, n_used, n_active;   /* n_active: experts with at least one pair */
    int begin, end;
    const float *w;                 /* [n_rows][n_used] */
    const int32_t *expert;          /* [n_active] expert ids */
    const int32_t *first;           /* [n_active + 1] into pair[] */
    const int32_t *pair;            /* [n_rows * n_used] */
    const void *const *gate, *const *up, *const *down; /* [n_active] pinned tiles */
};

/* Consecutive rows of one session between two recurrent states.  A step reads states and writes
 * others, never the one it came from: that is the session's until the step has succeeded. */
struct dev_segment {
    int first, n;                   /* rows */
    const char *from;               /* may be to: a state of zeros at the start of a timeline */
    char *to;
};

struct dev_bind {
    const struct dev_buf *buf;        /* by buffer index */
    const struct dev_weight *weight;  /* by weight index */
    const struct dev_row *row;        /* [n_rows] */
    const int32_t *out_row;           /* [n_out] rows that belong to ROWS_OUT */
    int n_rows, n_out;
    int n_ctx;                        /* tokens that a session may have */
    char *const *kv_base;             /* per session: base of its KV pages */
    const uint64_t *kv_offset;        /* per slot: offset in a page */
    uint64_t kv_page_bytes;           /* all slots of one page */
    enum kv_type kv_type;
    const struct dev_segment *segment; /* [n_segments], those of a session one after another */
    const int *segment_of;            /* [n_sessions + 1] first segment of each session */
    int n_sessions;                   /* sessions with segments; 0 without recurrent slots */
    const uint64_t *state_offset;     /* per recurrent slot: offset in a state */
    const struct dev_route *route;    /* of the layer being run */
    char *scratch;                    /* the experts' scratch: dev_experts_scratch() bytes */
};

struct dev;
typedef uint64_t dev_fence;

struct dev_api {
    uint32_t abi, size;               /* DEV_ABI, sizeof(struct dev_api) */
    const char *name;
    bool own_memory;                  /* weights and buffers must be copied to it first */
    bool (*supports)(const struct dev *d, const struct op *op);
    dev_fence (*submit)(struct dev *d, const struct op *ops, int n, const struct dev_bind *b);
    void (*wait)(struct dev *d, dev_fence f);
    void (*close)(struct dev *d);
};

/* Bytes of a recurrent slot in a state, a multiple of 64; *matrices: where its matrices begin. */
static inline uint64_t dev_state_bytes(const struct kv_slot *s, uint64_t *matrices)
{
    const uint64_t window = sizeof(float) * (uint64_t)s->dim_v * (uint64_t)s->dim;
    const uint64_t matrix = sizeof(float) * (uint64_t)s->dk * (uint64_t)s->dv;
    *matrices = (window + 63) & ~(uint64_t)63;
    return (*matrices + (uint64_t)s->n_heads * matrix + 63) & ~(uint64_t)63;
}

/* Bytes of scratch that OP_EXPERTS needs for n_pairs routed pairs. */
uint64_t dev_experts_scratch(int n_pairs, int n_embd, int n_ff, enum act_kind down_kind);

/* When OP_EXPERTS has run, its scratch begins with what down was multiplied with: n_ff floats per
 * pair in expert-major order, so many bytes apart. */
static inline uint64_t dev_experts_hidden_stride(int n_ff)
{
    return (sizeof(float) * (uint64_t)n_ff + 63) & ~(uint64_t)63;
}

/* The CPU device: kernels of one tier on a pool that it borrows. */
enum status dev_cpu_open(struct pool *pool, enum cpu_tier tier, struct dev **out, struct err *e);
const struct dev_api *dev_cpu_api(void);

#endif
