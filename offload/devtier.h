/* The device tier: which experts a device with memory of its own holds, and the two sides of a step.
 *
 * Experts that are there run there, the others run on the CPU meanwhile, and of those that lie in RAM
 * some may be sent over to run there, too, when the rates say that both sides end earlier so
 * (devtier_split).  What the CPU has run may come in for good: if there is room, or when it is at
 * least twice as hot as what it displaces (decayed frequency, margin 1).  Nothing comes back from
 * the device but rows.
 *
 * The RAM tier is not asked for what the device runs, so its policy forgets those experts and their
 * slots in RAM go to others: the tiers become exclusive where memory is short, without a rule.
 *
 * A stack's experts go over with the levels that the host has. When a resize has changed them, what is there is
 * forgotten the next time that a router chooses it, and comes in again as a newcomer.
 *
 * DESIGN.  Slots lie one below the other in one block, the arena, from its end down, sizes mixed, and none
 * ever moves.  The arena's beginning may belong to others, who need rows of bytes that grow and shrink in
 * place (copies of KV caches: moe/run/devstep.h): they claim them, and give them back.  The invariant: a slot
 * holds an expert only while no claimed byte lies in it, and a slot of every size lies behind all that can be
 * claimed.  What lay in a claimed slot moves into a free one, or into that of the least worth, which is
 * forgotten; slots that are free again are filled as ever.  Nobody waits: the device does all of it in the
 * order in which it is told, so what still reads an expert there reads it before anything else comes in.
 *
 * A device that fails, or is late by more than DEVTIER_PATIENCE, is given up for good: one warning,
 * and what it had not delivered is computed by the CPU.  Results never depend on any of this.
 *
 * Owns the device, its slots, and the host memory that the device copies from and to, which the
 * ledger knows as staging.  Executor thread only; allocates at open only. */
#ifndef OFFLOAD_DEVTIER_H
#define OFFLOAD_DEVTIER_H

#include "moe/base/mem.h"
#include "moe/compute/dev.h"
#include "offload/place.h"
#include "offload/policy.h"
#include "offload/residency.h"

enum { DEVTIER_RING = 4, DEVTIER_PAIRS = 512 };
#define DEVTIER_PATIENCE 10.0 /* seconds */

/* An expert layer as the device sees it. */
struct devtier_bank {
    const struct op *op;      /* OP_EXPERTS; its weight indices are those of `weights` */
    uint32_t x_stride;        /* bytes of a row of in[0] */
};

struct devtier_options {
    const struct dev_api *api;
    struct dev *dev;          /* open; the tier closes it, whatever happens */
    const struct weights *weights;
    struct resid *resid; /* banks, classes and sizes of experts */
    const struct devtier_bank *bank; /* [resid->n_banks], borrowed */
    int n_rows, n_used;       /* of a step, at most */
    struct ledger *ledger;
    double rate_ram;          /* bytes per second that the CPU reads experts at; 0 = not known */
    bool whole;               /* the device has room for the pairs of all rows at once */
    uint64_t elsewhere;       /* bytes of the device that are for other things than experts */
    uint64_t shared;          /* bytes of the arena, from its beginning, that can be claimed */
    double patience;          /* seconds; 0 = DEVTIER_PATIENCE */
    void (*warn)(void *arg, const char *text);
    void *warn_arg;
};

/* What a device would hold: n_slots [classes], bytes of each kind. */
struct devtier_plan {
    int n_slots[PLACE_CLASSES], n_all;
    uint64_t slot[PLACE_CLASSES]; /* bytes of one */
    int n_sure;               /* slots that nobody can claim */
    uint64_t slots, fixed;    /* bytes on the device: experts; rows, scratch, biases */
    uint64_t arena;           /* ditto: slots, and what is shared beside them */
    uint64_t host;            /* bytes of host memory, the driver's included */
    uint64_t least;           /* bytes that it needs on the device at least */
};

struct devtier_counts {
    uint64_t ran, sent, uploads, bytes; /* experts run there; of them sent for it; filled; moved */
    uint64_t refused;         /* newcomers that were not hot enough */
    uint64_t displaced, moved; /* experts whose slots were claimed: forgotten; in another slot now */
};

struct devtier {
    const struct dev_api *api;
    struct dev *dev;          /* NULL: there is none, or it was given up */
    struct dev_caps caps;
    struct devtier_options o;
    struct devtier_plan plan;
    struct policy *policy;
    struct devtier_counts count;
    bool charged;             /* the ledger knows of plan.host */
    bool fell;                /* it was given up: closed at the end only, as it may still write */

    /* slots, of all classes */
    char *arena;              /* [plan.arena] on the device */
    struct devtier_slot {
        uint64_t at;          /* in the arena; falling */
        int32_t item;         /* -1 = none */
        uint8_t cls;
        bool claimed;
    } *slot;                  /* [plan.n_all] */
    struct { int32_t *idle; int n_idle; } cls[PLACE_CLASSES]; /* slots without an expert that can have one */
    struct { uint64_t from, to; } claim[DEV_SESSIONS];
    int n_claims;             /* the last one that was ever made, plus one */
    int32_t *slot_of;         /* [n_items] -1 = not there */
    struct { uint32_t at[OP_IO]; uint8_t depth[OP_IO]; } *lies; /* [n_items] in its slot: its matrices, and levels
                                                                   of stacks */
    int n_there;              /* items that are */
    uint64_t n_changes;       /* of slot_of */
    /* host side of copies, and what is in flight */
    char *ring[DEVTIER_RING], *x_host, *rows_host;
    dev_fence ring_fence[DEVTIER_RING];
    int ring_next;
    char *x_dev, *rows_dev, *scratch_dev;
    dev_fence last;           /* of the macro-step being run, or the one before */
    struct dev_weight *weight; /* [n_banks * OP_WEIGHTS] as the device sees them */

    /* the macro-step being run: lists that the device reads until its fence has passed */
    int at_bank, n;           /* experts on the device */
    int n_pairs, n_land;      /* pairs that it takes, and that land at once */
    struct dev_buf io[2];     /* x, and what the sum goes to */
    struct devtier_launch {
        struct op op;
        struct dev_bind bind;
        struct dev_rows rows;
        struct dev_route route;
    } launch[2];              /* of what was there; of what was sent */
    int32_t *number;          /* [n_experts] which of the step's experts the i-th is */
    int32_t *expert, *first, *pair; /* as in struct dev_route */
    float *w;                 /* [n_pairs] ditto, of a sum */
    const void **table[OP_IO];
    /* what is left for the CPU: numbers, ids, rows */
    int n_rest;
    int32_t *rest, *rest_expert, *rest_count; /* [n_experts] */
};

/* Pure: for a device of that many bytes, less those for other things.  The error names the least. */
enum status devtier_size(const struct devtier_options *o, uint64_t memory, struct devtier_plan *p,
                         struct err *e);

/* ERR_BUDGET, ERR_MEMORY, ERR_DEVICE; t is closed then, and as if there were no device. */
enum status devtier_open(struct devtier *t, const struct devtier_options *o, struct err *e);
void devtier_close(struct devtier *t); /* t may be all zeros */

static inline bool devtier_on(const struct devtier *t) { return t->dev && !t->fell; }

/* Whether the fence has passed in time; if not, the device is given up. */
bool devtier_passed(struct devtier *t, dev_fence f);

/* Whether every expert is there; and where: fills to[n_experts][OP_IO] of a bank. */
static inline bool devtier_complete(const struct devtier *t)
{
    return t->o.resid && t->n_there == t->o.resid->n_banks * t->o.resid->n_experts;
}
/* Whether all that was sent has come; if not in time, the device is given up. */
bool devtier_settled(struct devtier *t);
void devtier_addresses(const struct devtier *t, int bank, const void **to);
/* Brings over what lies in RAM, as long as there is room.  ERR_DEVICE. */
enum status devtier_preload(struct devtier *t, struct err *e);
/* If all experts lie in RAM and there is room for those that are not there: brings a few of them. */
void devtier_refill(struct devtier *t);

/* From now on number i's bytes of what is shared are from .. to - 1, no others (from = to: none), and what
 * the device is told to do there comes after all that it was told before.  Between steps. */
void devtier_claim(struct devtier *t, int i, uint64_t from, uint64_t to);

/* How many of m experts of `bytes` each that lie in RAM the device should run beside n that it has,
 * so that both sides end as early as can be. */
int devtier_split(const struct dev_caps *c, double rate_ram, double bytes, int n, int m);

/* ---- the executor's calls, in this order; r is the whole route, host side ---- */

void devtier_step(struct devtier *t, int n_rows);
/* The router has chosen, count[a] rows for expert number a: lists what the device has (n) and what is
 * left for the CPU (n_rest). */
void devtier_route(struct devtier *t, int bank, const struct dev_route *r, const int32_t *count);
/* Starts what it has; x: rows of in[0] on the host. */
void devtier_run(struct devtier *t, const struct dev_route *r, const struct dev_buf *x);
/* The same with rows that lie on the device.  With out, also there, it has everything that the router
 * chose, and sums up: there is nothing else to do for this layer but devtier_done(). */
void devtier_run_there(struct devtier *t, const struct dev_route *r, const struct dev_buf *x,
                       const struct dev_buf *out);
/* Sends the first few of experts numbers[n], whose matrices are m[k][i], over and starts them; how
 * many: those the CPU need not run. */
int devtier_send(struct devtier *t, const struct dev_route *r, const int32_t *numbers, int n,
                 const void *const *const m[OP_IO]);
/* The CPU has run expert number a; its matrices are still there. */
void devtier_offer(struct devtier *t, const struct dev_route *r, int a, const void *const m[OP_IO]);
/* Waits for the rows of experts begin .. *end - 1 on the device, as many as land at once: those of the
 * i-th (its number: t->number[i]) begin at row t->first[i] - t->first[begin] of what is returned.
 * NULL: it was given up, they have not arrived. */
const char *devtier_land(struct devtier *t, int begin, int *end);
/* The layer has run. */
void devtier_done(struct devtier *t);

#endif
