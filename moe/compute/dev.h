/* The device interface: something that runs ops of a plan on buffers, weights and KV slots.
 *
 * Submitting is asynchronous: submit() and copy() may return before anything has happened, wait()
 * tells when a fence has passed.  Ops and copies of one device take effect in the order in which they
 * were submitted.  The CPU device runs them at once on a thread pool, so its fences have always
 * passed and it never fails.
 *
 * A device with memory of its own (own_memory) works on that only: buf, weight, route, scratch and
 * KV pages of a struct dev_bind then point to what its alloc() gave, while the structs, the op and the index
 * lists themselves are the host's and are read any time before the fence passes: the caller changes
 * nothing of them until then.  Host memory is touched by copies alone, and copies take host addresses
 * of alloc(DEV_HOST) only, so a device that was given up may be late as it likes: it writes where
 * nobody looks.
 *
 * Routing is the host's, unless a device with memory of its own supports OP_ROUTE: then a step whose
 * experts are all there needs nobody else.  OP_ROUTE leaves its choice in its control buffer (see
 * dev_choice()), and an OP_EXPERTS that is bound to no route takes it from there, the tiles from table[],
 * and sums up.
 *
 * Nothing fails but alloc() (NULL: no more) and wait().  A device that is LOST stays lost: every later
 * submission returns at once, every later wait() says so.
 *
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
#include "quant/stack.h"
#include "quant/tile.h"

enum { DEV_ABI = 6 };
enum { DEV_SESSIONS = 256 }; /* a step in which a device with memory of its own runs KV_PUT or ATTENTION
                                has so many sessions at most */
extern const char dev_build[]; /* what a plugin must have been built with: a digest of the sources that
                                  fix layouts and arithmetic (Makefile) */

/* A buffer of a plan as the device sees it. */
struct dev_buf {
    char *base;      /* row 0 */
    uint32_t stride; /* bytes from row to row, a multiple of 64 */
    int width;       /* floats, or elements of a prepared row */
    int rows;        /* row set */
};

static inline char *dev_buf_row(const struct dev_buf *b, int r)
{
    return b->base + (uint64_t)b->stride * (uint64_t)r;
}
static inline float *dev_buf_floats(const struct dev_buf *b, int r)
{
    return (float *)(void *)dev_buf_row(b, r);
}

/* A weight view resolved to pinned bytes. */
struct dev_weight {
    const void *data;     /* first matrix (tiles, rows or vector); NULL for expert banks; of a
                             stacked type a struct stacked (quant/stack.h), on devices with memory
                             of their own what dev_stacked_put() makes of it */
    enum qtype type;
    bool tiles;           /* else rows, or a vector of f32 */
    int n_cols, n_rows;
};

/* What a row of the step is. */
struct dev_row {
    int32_t id, pos;      /* token and its position on its timeline */
    int32_t session;      /* index into dev_rows.kv_base */
};

/* A row set, and the KV slots on its timeline. */
struct dev_rows {
    int n;
    const int32_t *row;   /* [n] rows of the step, rising; NULL = all of them */
    const int32_t *where; /* [n_rows] where a row of the step is in the set, -1 = nowhere; NULL for
                             ROWS_ALL, and for ROWS_OUT, from which nothing is selected */
    const int32_t *pos;   /* [n_rows] place on its session's timeline of this set, for rows that are
                             in it; NULL = the row's position */
    char *const *kv_base; /* per session: base of its KV pages */
    uint64_t kv_page_bytes; /* all slots of one page */
};

/* Which row of the step row r of a set is, and where row `at` of the step is in a set. */
static inline int dev_row_at(const struct dev_rows *set, int r)
{
    return set->row ? set->row[r] : r;
}
static inline int dev_row_in(const struct dev_rows *set, int at)
{
    return set->where ? set->where[at] : at;
}

/* Routed work, both ways: row r's slot s is pair r*n_used + s, and a row has n_of[r] of its n_used
 * slots (all where n_of is NULL); expert-major order lists, for every
 * expert that is used, its pairs.  Experts may be computed in several submissions, begin .. end - 1
 * of the list each, none twice; the last one sums up (and may name no more experts: begin == end). */
struct dev_route {
    int n_rows, n_used, n_active;   /* n_active: experts with at least one pair */
    int n_pairs, n_slots;           /* that scratch is laid out for: pairs, and slots of all rows */
    int begin, end;
    bool sum;                       /* every pair has its row now: out = sum over a row's slots */
    char *pair_out;                 /* where down's rows go, in the order of pair[], as far apart as
                                       in scratch; NULL: into scratch, where sum looks for them */
    const float *w;                 /* [n_rows][n_used] */
    const int32_t *n_of;            /* [n_rows], or NULL */
    const int32_t *expert;          /* [n_active] expert ids */
    const int32_t *first;           /* [n_active + 1] into pair[] */
    const int32_t *pair;            /* [n_rows * n_used] */
    const void *const *gate, *const *up, *const *down; /* [n_active] pinned tiles, or of a stacked
                                       type what dev_weight.data is */
};

/* What a session's tokens have left where, in models that rows leave early.  Slots of depth d have K
 * and V of positions up to from[d]; of later ones only where depth[pos], which is from 1, says so. */
struct dev_carry {
    const unsigned char *depth;       /* [end] */
    const int32_t *from;              /* [steps + 1] */
    int32_t end;                      /* positions, those of this step included */
};

/* Consecutive rows of one session between two recurrent states.  A step reads states and writes
 * others, never the one it came from: that is the session's until the step has succeeded. */
struct dev_segment {
    int first, n;                   /* rows */
    const char *from;               /* may be to: a state of zeros at the start of a timeline */
    char *to;
};

/* The last position that a row at `pos` sees of a timeline of `end`. */
static inline int32_t dev_last_seen(int sees, int32_t pos, int32_t end)
{
    if (sees == SEES_BEFORE) return pos;
    if (sees == SEES_ALL) return end - 1;
    const int32_t next = (pos / sees + 1) * sees;
    return (next < end ? next : end) - 1;
}

struct dev_bind {
    const struct dev_buf *buf;        /* by buffer index */
    const struct dev_weight *weight;  /* by weight index */
    const struct dev_row *row;        /* [n_rows] */
    const struct dev_rows *set;       /* [ROWS_MAX] */
    int n_rows;
    int n_ctx;                        /* tokens that a session may have */
    const uint64_t *kv_offset;        /* per slot: offset in a page of its timeline */
    enum kv_type kv_type;
    const struct dev_carry *carry;    /* [n_inputs] per session; NULL without KV_CARRY steps */
    int n_inputs;                     /* sessions in the step */
    const int32_t *end;               /* [n_inputs] positions of each, those of this step included */
    const struct dev_segment *segment; /* [n_segments], those of a session one after another */
    const int *segment_of;            /* [n_sessions + 1] first segment of each session */
    int n_sessions;                   /* sessions with segments; 0 without recurrent slots */
    const uint64_t *state_offset;     /* per recurrent slot: offset in a state */
    const struct dev_route *route;    /* of the layer being run; NULL: chosen on the device */
    const void *const *table;         /* then, by the weight index of gate matrices: where the device
                                         has [n_expert][OP_IO] addresses of tiles */
    char *scratch;                    /* the experts' scratch: dev_experts_scratch() bytes */
};

/* How OP_ROUTE leaves what it has chosen for rows 0 .. n_rows - 1. */
struct dev_choice {
    float *w;                         /* [n_rows][n_used] */
    int32_t *id;                      /* [n_rows][n_used] */
};
static inline struct dev_choice dev_choice(char *control, int n_rows, int n_used)
{
    const uint64_t bytes = sizeof(float) * (uint64_t)n_rows * (uint64_t)n_used;
    return (struct dev_choice){(float *)(void *)control,
                               (int32_t *)(void *)(control + ((bytes + 63) & ~(uint64_t)63))};
}

struct dev;
typedef uint64_t dev_fence;

enum dev_state { DEV_PASSED, DEV_PENDING, DEV_LOST };
enum dev_where { DEV_OWN, DEV_HOST }; /* its own memory; host memory that it can copy from and to */

struct dev_caps {
    uint64_t memory;          /* bytes that alloc(DEV_OWN) gives in all */
    double rate, rate_copy;   /* bytes per second: from its own memory; between it and the host */
    double latency;           /* seconds from a submission to its first effect */
    uint64_t host;            /* bytes of host memory that its driver took when it was opened */
    bool modelled;            /* these and clock() come from a model of time, not from a clock */
};

struct dev_api {
    uint32_t abi, size;       /* DEV_ABI, sizeof(struct dev_api) */
    const char *build;        /* dev_build */
    const char *name;
    bool own_memory;
    /* weight: as the op will be bound to, by the op's indices; data is not looked at. */
    bool (*supports)(const struct dev *d, const struct op *op, const struct dev_weight *weight);
    dev_fence (*submit)(struct dev *d, const struct op *ops, int n, const struct dev_bind *b);
    /* Waits for a fence, so many seconds at most; why it was lost is in e (may be NULL). */
    enum dev_state (*wait)(struct dev *d, dev_fence f, double seconds, struct err *e);
    void (*close)(struct dev *d); /* waits for what was submitted; frees what it gave */

    /* Those with memory of their own; NULL in others. */
    enum status (*open)(uint64_t memory, struct dev **out, struct err *e); /* may be less: caps */
    struct dev_caps (*caps)(const struct dev *d);
    void *(*alloc)(struct dev *d, enum dev_where where, uint64_t bytes); /* before the first
                                                                             submission */
    dev_fence (*copy)(struct dev *d, void *to, const void *from, uint64_t bytes);
    double (*clock)(struct dev *d); /* seconds of work since it was opened */
};

/* Bytes of a recurrent slot in a state, a multiple of 64; *matrices: where its matrices begin. */
static inline uint64_t dev_state_bytes(const struct kv_slot *s, uint64_t *matrices)
{
    const uint64_t window = sizeof(float) * (uint64_t)s->dim_v * (uint64_t)s->dim;
    const uint64_t matrix = sizeof(float) * (uint64_t)s->dk * (uint64_t)s->dv;
    *matrices = (window + 63) & ~(uint64_t)63;
    return (*matrices + (uint64_t)s->n_heads * matrix + 63) & ~(uint64_t)63;
}

/* A stacked matrix of the nested codec in memory of a device: a head of TNEST_HEAD bytes, which begins with
 * its depth, an int32_t, then base and levels 1 .. depth, each from a multiple of 64 bytes on.  There are no
 * addresses in it, so it may lie anywhere.  Where level l would begin: behind the last one, its end. */
static inline uint64_t dev_stacked_level(int n_cols, int n_rows, int l)
{
    const uint64_t blocks = (uint64_t)((n_rows + TILE_ROWS - 1) / TILE_ROWS) * (uint64_t)(n_cols / 64);
    return TNEST_HEAD + ((blocks * TNEST2_BYTES + 63) & ~(uint64_t)63) + (uint64_t)(l - 1) * blocks * TNEST_LEVEL;
}
static inline uint64_t dev_stacked_bytes(int n_cols, int n_rows, int depth)
{
    return dev_stacked_level(n_cols, n_rows, depth + 1);
}
/* Writes that many bytes; and a struct stacked of such bytes. */
void dev_stacked_put(const struct stacked *m, char *to);
struct stacked dev_stacked_view(int n_cols, int n_rows, const char *from);

/* Bytes of scratch that OP_EXPERTS needs for n_pairs routed pairs of rows with n_slots slots. */
uint64_t dev_experts_scratch(int n_pairs, int n_slots, int n_embd, int n_ff,
                             enum act_kind down_kind);

/* Bytes from row to row of pair_out. */
static inline uint64_t dev_experts_out_stride(int n_embd)
{
    return (sizeof(float) * (uint64_t)n_embd + 63) & ~(uint64_t)63;
}

/* Puts down's rows of pairs first .. first + n - 1 (of b->route->pair), which another device has
 * computed, where the sum looks for them. */
void dev_experts_put(const struct op *op, const struct dev_bind *b, int first, int n,
                     const char *rows);

/* When OP_EXPERTS has run, its scratch begins with what down was multiplied with: n_ff floats per
 * pair in expert-major order, so many bytes apart. */
static inline uint64_t dev_experts_hidden_stride(int n_ff)
{
    return (sizeof(float) * (uint64_t)n_ff + 63) & ~(uint64_t)63;
}

/* The CPU device: kernels of one tier on a pool that it borrows. */
enum status dev_cpu_open(struct pool *pool, enum cpu_tier tier, struct dev **out, struct err *e);
const struct dev_api *dev_cpu_api(void);

/* Device sim, which stands in for a GPU: computes with the CPU's kernels, on a thread of its own, in
 * memory whose addresses the host cannot read and that is filled with NaN until it is written; keeps
 * time on a virtual clock.  It runs OP_EXPERTS. */
const struct dev_api *dev_sim_api(void);

/* A device that is a plugin: tessera_NAME.so, with DEV_PLUGIN_ENTRY in it, from the folder that
 * TESSERA_PLUGINS names, or beside the program, or in ../lib/tessera from there.  Valid until the
 * process ends; NULL, and why in e: not found (ERR_MISSING), or no plugin (ERR_DEVICE).  Whether it is
 * of this build its caller asks. */
const struct dev_api *dev_plugin(const char *name, struct err *e);
#define DEV_PLUGIN_ENTRY "tessera_device" /* const struct dev_api *tessera_device(void) */

#endif
