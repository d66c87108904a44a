/* The part of a step that is not experts, on a device with memory of its own: norms, products, rotary
 * embedding, attention over a copy of the KV cache.
 *
 * DESIGN.  The device has the plan's arena once more, byte for byte laid out as the host's, and of every
 * buffer it is known on which side its rows are good.  An op runs where its weights are, or, if it has
 * none, where its rows are; what it reads from the other side is copied before.  So any model runs,
 * whatever the device cannot do, and the host does what only it can: looking up embeddings, routing,
 * experts that are not on the device.
 *
 * Where not all weights find room whole layers are there, from the last one backwards: so rows go over
 * once, where those layers begin, and of the last one come back as rows with logits only.  A byte of any of
 * them is read by every token; but layers see all rows of a prompt and the last product one of them, so that
 * comes behind all layers.
 *
 * The host's KV cache stays the truth: rows of K and V that the device puts into its pages land on the
 * host, too, which puts them into its own.  Sessions are cut, saved, spilled and loaded as ever, and the
 * device's copy is only told from where on it is out of date; the next step brings it up to date.
 *
 * A session's pages lie in a row in the tier's arena, from a place on that is its own; places are as far apart
 * as room allows, a whole context at most, and a session may grow up to the next place that somebody has.
 * Only pages that hold something are the session's, and those that the step at hand will fill; in the
 * rest lie experts (devtier_claim), which give way page by page as the session grows and come back when it
 * is cut or closed.  A byte of K and V is read by every token behind it, an expert's by a few in a hundred:
 * so pages come first, but for an expert of each size.  A session that finds no room to grow gives up its
 * place, and the attention of steps that it takes part in is the host's.
 *
 * Where all experts are on the device and it can route, a step of few rows needs the host twice: for
 * embeddings and rotary angles in the beginning, for logits in the end.  What goes over lies together
 * then, so do K and V of all layers until they land, and between the two copies is one submission, the
 * same for every token but for its rows and positions.
 *
 * A device that is lost takes rows with it, so the step begins again on the host alone; nothing of a
 * step is kept before it ends.
 *
 * Owns memory of the device and host memory for copies, both from the tier's device, which the tier
 * closes, and the lists that the device reads, which nobody changes before it has.  The arena is the tier's.
 * Executor thread only; allocates at open only. */
#ifndef MOE_RUN_DEVSTEP_H
#define MOE_RUN_DEVSTEP_H

#include "moe/plan/plan.h"
#include "offload/devtier.h"

struct tessera_engine;
struct tessera_session;

/* What it takes; all zeros: it is not used. */
struct devstep_plan {
    uint64_t weights, arena, logits; /* bytes on the device */
    uint64_t tables, given, kept; /* ditto: addresses of experts; of few rows what the host gives, K, V */
    uint64_t bytes;           /* all of them */
    uint64_t kv;              /* bytes of the tier's arena that pages may come to take */
    uint64_t page, page_at;   /* bytes of a page there, and where in the host's they begin */
    uint64_t host;            /* bytes of host memory */
    uint64_t stride;          /* ditto, from a place for pages to the next */
    int n_kv, n_pages;        /* places; pages of a session at most */
    int n_logits;             /* rows */
    int first;                /* layers from this one on are there; -1: and what comes before them */
    bool head;                /* the last product, too */
    bool all;                 /* nothing is left for the host but what a step begins with */
    int n_submits;            /* of a token, unless it is one */
};

enum { DEVSTEP_LANDINGS = 64 };

struct devstep {
    struct devtier *tier;     /* NULL: there is none */
    struct devstep_plan plan;
    char *arena, *logits, *tables, *given, *kept; /* on the device */
    struct dev_weight *weight; /* [n_weights] data: NULL = not there */
    bool *runs;               /* [n_op] it can be run there */
    const void **table;       /* [n_weights] as in struct dev_bind */
    uint64_t listed;          /* the tables are filled as of so many changes; UINT64_MAX = never */
    uint64_t *kv_offset;      /* [n_slot] as in struct dev_bind */
    struct op *ops[2];        /* all of the model's but what the host begins with; of them those of
                                 all rows.  NULL: others are the host's, too */
    int n_ops_of[2];
    bool charged;
    char *stage;              /* host side of copies */
    uint64_t stage_bytes, stage_at;
    dev_fence last, sent;     /* of all; of what was copied there */
    struct devstep_place {
        struct tessera_session *owner; /* NULL = nobody */
        uint64_t bytes;       /* of its pages */
    } *place;                 /* [n_kv] */
    uint64_t n_ops;           /* run there so far */

    /* the step being run */
    bool on, attends, lost, in_pieces;
    bool whole;               /* the step is one submission */
    int first, n_next;        /* ops that are still to be submitted */
    const struct dev_bind *host; /* as the host sees the step */
    struct dev_bind bind;        /* as the device does */
    struct dev_buf *buf;      /* [n_buf] */
    unsigned char *good;      /* [n_buf] on which side */
    char *give;               /* host side of what the host gives */
    uint64_t n_given;         /* bytes of it so far */
    struct dev_row *row;      /* [n_ubatch] */
    int32_t *out_row;         /* [n_ubatch] */
    struct dev_rows set[ROWS_MAX];
    char *kv_base[DEV_SESSIONS];
    struct landing {          /* rows that land on the host: a buffer's, or K and V of an op */
        const struct op *put;
        int buf;
        char *at[2];
    } landing[DEVSTEP_LANDINGS];
    int n_landings;
};

/* For e->second, with that many bytes, of which experts want `experts` at least: all zeros if there is no
 * room, or nothing to run.  Its weights must be in memory when it is opened. */
void devstep_size(const struct tessera_engine *e, uint64_t memory, uint64_t experts,
                  struct devstep_plan *p);

/* ERR_MEMORY, ERR_BUDGET, ERR_DEVICE: to be closed behind the tier. */
enum status devstep_open(struct devstep *d, struct tessera_engine *e, const struct devstep_plan *p,
                         struct err *err);
void devstep_close(struct devstep *d, struct tessera_engine *e); /* d may be all zeros */

/* The session's tokens from n on have changed, or gone. */
void devstep_cut(struct tessera_session *s, int32_t n);
void devstep_forget(struct tessera_engine *e, const struct tessera_session *s);

/* ---- the executor's calls ---- */

/* A step of e's rows begins; on says whether the device takes part. */
void devstep_begin(struct devstep *d, struct tessera_engine *e, const struct dev_bind *host, bool on);
/* The rows of a piece are bound: buffers lie as the plan says.  in_pieces: those that go from layer to
 * layer are the host's. */
void devstep_piece(struct devstep *d, struct tessera_engine *e, const struct plan *p, bool in_pieces);
/* A step that is one submission: the host runs what it begins with, op by op (all that devstep_takes()
 * is false for), and gives it; then comes the rest at once. */
void devstep_give(struct devstep *d, const struct tessera_engine *e, int i);
void devstep_whole(struct devstep *d, struct tessera_engine *e);
/* Whether the device runs op number i now. */
bool devstep_takes(const struct devstep *d, const struct tessera_engine *e, int i);
/* Runs it there; later calls may still find that the device is lost. */
void devstep_run(struct devstep *d, struct tessera_engine *e, int i);
/* What op number i reads is brought to the host; false: the device is lost. */
bool devstep_to_host(struct devstep *d, struct tessera_engine *e, int i);
/* Buffers, -1 = none; the copies are made together. */
bool devstep_fetch(struct devstep *d, struct tessera_engine *e, const int *bufs, int n);
/* The host has run op number i: its rows are good there only. */
void devstep_ran_here(struct devstep *d, const struct tessera_engine *e, int i);
/* The device's rows of a buffer, brought there if need be. */
const struct dev_buf *devstep_there(struct devstep *d, struct tessera_engine *e, int buf);
/* Ditto, about to be written by the device. */
const struct dev_buf *devstep_writes(struct devstep *d, int buf);
/* The piece ends: what outlives it lands.  false: the device is lost. */
bool devstep_end(struct devstep *d, struct tessera_engine *e);
/* The step has succeeded. */
void devstep_done(struct devstep *d, struct tessera_engine *e);

#endif
