/* Residency: where each piece of the weights is now, and bringing it where it is needed.
 *
 * What moves together is a GROUP: an expert's gate, up and down; a dense matrix at home; a piece of
 * a dense matrix that streams.  Each is in one of three states:
 *
 *                 asked for, a slot found             last piece packed
 *        DISK ------------------------------> LOADING ------------------> RAM
 *         ^                                      |                         |
 *         |       cancelled, or a read failed    |    evicted (unpinned)   |
 *         +--------------------------------------+-------------------------+
 *
 * Nothing is written back: eviction forgets.  Homes and slots are pages of regions of the ledger;
 * a slot belongs to a size class and is handed from expert to expert without being unmapped.  The
 * sizes are place.h's decision, whom to evict is policy.h's, how bytes arrive is fetch.h's.
 *
 * Placement and timing never change what is computed, only when: the executor asks for what its
 * step needs and gets exactly that, or an error.
 *
 * DESIGN.  A model opens at once.  resid_begin() takes the pages and lists all that has a place in
 * RAM and is not there, and the loaders go through the list while the executor runs: a step waits
 * for the matrices that it uses, an expert that a router chose overtakes all the others.  Until the
 * first step has ended only what it asks for is read, so that the first token comes early.  A stack
 * is waited for: what a step computes follows from how many of its levels are there.
 *
 * One thread, the executor's, makes all the calls; the loaders only report.  Allocates at open and
 * in resid_begin() and resid_apply(), never between. */
#ifndef OFFLOAD_RESIDENCY_H
#define OFFLOAD_RESIDENCY_H

#include "offload/fetch.h"
#include "offload/place.h"
#include "offload/policy.h"
#include "quant/stack.h"

/* The expert matrices of one layer: weight indices of gate, up, down. */
struct resid_bank {
    int weight[3];
};

/* One level of one part of a stack (quant/stack.h), in the order in which they are loaded. */
struct resid_unit {
    int32_t part, level;
};

struct resid_options {
    const struct resid_bank *bank; /* [n_banks], layers in the order of execution; copied */
    int n_banks, n_experts;
    const int *lookup;             /* [n_lookup] weights of which only rows are looked up */
    int n_lookup;
    enum policy_kind policy;       /* lru, lfu, lrfu or plec */
    /* A stack: the weight that holds the levels, the bytes of them up to each unit's end (from the
     * tensor's start), where the first unit begins, and what the units are; no units = none.
     * Borrowed. */
    int levels;
    const uint64_t *level_end; /* [n_units] */
    const struct resid_unit *unit;
    int n_units, n_floor, level_head, rank;
};

enum { RESID_ROW_MAX = 64 << 10 }; /* bytes of a looked-up row; tables of longer ones stay home */

enum group_state { GROUP_DISK, GROUP_LOADING, GROUP_RAM };

/* Why something is read before anybody needs it. */
enum group_ahead {
    AHEAD_NOT,
    AHEAD_KNOWN, /* its turn is certain, or nearly: the ring, a scan */
    AHEAD_GUESS, /* a predictor named it */
    AHEAD_FILL,  /* it has a place; told to expert_start() only */
};

struct group {
    enum group_state state;
    int part[3], n_parts;
    int row0, n_rows;        /* of part[0], when it is a piece of a matrix */
    uint32_t at[3];          /* of the parts in the slot */
    char *base;              /* where it lies or is being put; NULL on disk, unless at home */
    int slot;                /* -1 = none: at home, or on disk */
    int pins;
    int next_piece, n_pieces, left; /* handed out; in all; not yet back */
    enum group_ahead ahead;  /* asked for before anybody needed it, and not needed yet */
    uint64_t guessed;        /* bytes read while it was a guess */
    bool checked;            /* looked at for NaN once */
    bool failed;             /* a read failed, or it was taken back */
    bool passed;             /* is in resid.passed */
    bool held;               /* the block at hand has used it: policy holds it pinned once more */
    uint64_t used;           /* resid.pass when it was wanted last */
};

struct slot_class {
    struct region mem;
    uint64_t slot_bytes;
    int32_t *owner;          /* [n_max] group, or SLOT_... */
    int32_t *idle;           /* [n_max] stack of the free ones */
    int n_max, n_slots, n_idle;
    int top;                 /* where the next expert that overtakes a fill looks for a slot */
};

/* What happened, since open. */
struct resid_counts {
    uint64_t hits, misses;            /* experts of macro-steps that were in RAM, or not */
    _Atomic uint64_t bytes_read;
    uint64_t pieces_read;             /* of streamed dense matrices */
    uint64_t guessed;                 /* experts that were asked for as guesses */
    uint64_t useful, late;            /* guesses that were used; of them still on their way then */
    uint64_t cancelled;               /* guesses taken back before they had been read */
    uint64_t guess_bytes, useful_bytes, wasted_bytes; /* read as guesses; of them used, or not */
    uint64_t evictions;
    double waited;                    /* seconds the executor had nothing to do */
    _Atomic uint64_t reading;         /* nanoseconds in which something was being read */
};

struct index_queue {
    int32_t *item; /* [cap] */
    int cap, head, n;
};

struct resid {
    struct part_table parts;
    struct place_sizes sizes;
    struct placement now;    /* what is in force */
    bool all_ram;            /* nothing can be missing: the executor need not ask */
    struct group *group;     /* homes by weight, then experts by bank, then pieces of the ring */
    int n_groups, first_expert, first_piece;
    struct resid_bank *bank;
    int n_banks, n_experts;
    int32_t *home_of;        /* [n weights] group at home, -1 = experts */
    uint8_t *kind, *warned;  /* [n weights] */
    int32_t *piece_of;       /* [n weights] first group of the ring, -1 = never streams */
    uint8_t *class_of;       /* [n_banks] */
    uint64_t *home_at;       /* [n weights] in the home region */
    struct region home;
    struct slot_class cls[PLACE_CLASSES + 1]; /* the last one is the ring */
    struct policy *policy;
    struct fetch fetch;
    bool fetching;
    struct fetch_how how;    /* how to start it again */
    struct index_queue demand, ahead, fill; /* taken in this order */
    struct { int weight; const int32_t *ids; int n, next, left; char *dst; uint64_t stride; } rows;
    /* The stack's levels: one region that holds a prefix of the file's tensor as it is. */
    struct {
        int weight;              /* -1 = none */
        struct region mem;
        const struct resid_unit *unit;
        const uint64_t *end;
        int head, rank;
        int64_t row, rows_end, left; /* rows being read: next, end; pieces not yet back */
        struct stacked *mat;     /* [n_parts] what kernels see */
    } stack;
    int n_loading;           /* groups in that state */
    int n_flight;            /* pieces that loaders have, */
    double flight_from;      /* and since when so many */
    struct err err;          /* the first failure of a read, until it is collected */
    struct err broken;       /* why no step can be run until a resize succeeds */
    struct resid_counts count;
    void (*warn)(void *arg, const char *text);
    void *warn_arg;
    uint64_t load_total, load_done;
    bool filling;            /* what has a place is being loaded */
    bool unfilled;           /* it was taken back half way: the next step asks again */
    bool fill_experts;       /* experts are part of it */
    bool hold;               /* under the lock: the first step runs, nothing is taken from fill */
    bool stepped;            /* there was one */

    /* the ring: pieces in the order of use, set by the engine */
    int32_t *seq;            /* [n_seq] groups */
    int32_t *seq_at;         /* [n pieces] place of each in seq */
    bool *off;               /* [n_seq] it is not known that the step needs it */
    int n_seq;

    int pinned_piece;        /* group, -1 = none */

    /* the forward pass and the macro-step being run */
    uint64_t pass;           /* counted; some are left out */
    uint64_t named, block;   /* whose steps are repeated, see resid_block(); the same, or 0 where nothing is
                                held */
    bool streaming;          /* many rows: what is read now will not be needed soon */
    uint64_t read_before;
    int layer, n_want;
    int32_t *want;           /* [n_experts] groups */
    uint8_t *stage;          /* [n_experts] WANT_... */
    uint8_t *was;            /* [n_experts] enum resid_was */
    int next_ask;            /* misses before this one have been asked for */
    int n_open;              /* misses asked for and not yet run */
    int32_t *expect;         /* [n_expect] experts of the next layer that a scan will want */
    int n_expect, next_ahead; /* those before this one have been asked for */
    struct index_queue passed; /* read and run in this forward pass: the first to go */
    struct index_queue held; /* the same, but more rows of the layer come */
    bool more;               /* they do */
    int32_t *guess;          /* [n_guess] groups on their way, unasked: policy holds them pinned */
    int n_guess;
    int guess_flight;        /* pieces of guesses that the drive is reading */
};

/* Builds the tables; reads nothing.  ERR_MEMORY, ERR_UNSUPPORTED. */
enum status resid_open(struct resid *r, const struct weights *ws, const struct resid_options *o,
                       struct err *e);
void resid_close(struct resid *r);

/* The order in which matrices are used: weights [n], once per step that reads them.  first [n] is
 * filled with the place of each one's first piece, -1 for those that never stream. */
enum status resid_sequence(struct resid *r, const int *weight, int n, int *first, struct err *e);

struct resid_start {
    struct ledger *ledger;
    int n_threads;
    const struct osfile_ops *ops;
    bool no_uring;
    void (*warn)(void *arg, const char *text); /* NaN weights, fallbacks; may be NULL */
    void *warn_arg;
};
/* Says how to read; nothing is opened before the first resid_apply(). */
void resid_prepare(struct resid *r, const struct resid_start *how);

/* Makes a placement real: first gives back what it has no room for, then takes and reads what it
 * adds.  Nothing may be pinned.  When something cannot be read it stays on disk, r->now says what
 * there is, within the larger of both sizes, and steps go on with that; only when nothing can be
 * read at all, or the file has changed, are they refused, until a call succeeds.
 * ERR_IO, ERR_BUDGET, ERR_MEMORY, ERR_CANCELLED. */
enum status resid_apply(struct resid *r, const struct placement *p,
                        bool (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                        struct err *e);
/* The same without waiting for what it adds: steps wait for what they need.  What cannot be read is
 * their error then.  A stack is waited for. */
enum status resid_begin(struct resid *r, const struct placement *p, struct err *e);

/* A stacked part at no more than so many of its loaded levels, until the next resid_apply(). */
void resid_limit_levels(struct resid *r, int part, int depth);

/* ---- the executor's calls ---- */

/* The passes that follow compute the rows of one block again and again, until another one is named (0:
 * none is).  What they use is held against eviction meanwhile; where the slots are not enough for all of
 * it, what was used last gives way, so that the most of it is found again in the next pass; where there
 * are only a few, nothing is held. */
void resid_block(struct resid *r, uint64_t block);
/* A forward pass over n_rows tokens begins; an error when no more can. */
enum status resid_step(struct resid *r, int n_rows, struct err *e);
/* It has ended: reports files that changed under it.  After a failure or a cancel everything that
 * was asked for is dropped and unpinned. */
enum status resid_step_end(struct resid *r, enum status so_far, struct err *e);

/* The bytes of a matrix at home, 64-byte aligned; NULL when it streams, or has not come yet.  Of a
 * stacked one: its struct stacked, with the levels that are there; so do the other calls. */
const void *resid_home(struct resid *r, int weight);
/* Waits for it; NULL when it streams, and for tables on their way: their rows can be had. */
enum status resid_await(struct resid *r, int weight, const void **data, struct err *e);

/* Of a pass that goes through each layer in several pieces of its rows: whether more of the layer
 * come after the one that is routed next. */
void resid_more(struct resid *r, bool more);

/* Matrix k of an expert, whose group is in RAM. */
const void *resid_matrix(const struct resid *r, int group, int k);

/* An expert macro-step: the router chose experts [n] of a bank, count[i] tokens each.  take() waits
 * until some of them are in RAM that were not given before, pins them, puts their numbers
 * 0 .. n-1 in list and returns how many; 0: all have been given; -1: error.  ran() says that those
 * given so far have been computed: their slots may go. */
void resid_route(struct resid *r, int bank, const int32_t *expert, const int32_t *count, int n);
int resid_take(struct resid *r, int32_t *list, struct err *e);
void resid_ran(struct resid *r);
/* Where the i-th expert was when the router named it. */
enum resid_was {
    RESID_ABSENT,
    RESID_IN_RAM,
    RESID_GUESSED, /* in RAM because a guess had been read */
    RESID_LATE,    /* the guess was on its way */
};
enum resid_was resid_was(const struct resid *r, int i);
/* Matrix k (gate, up, down) of the i-th expert, while it is pinned. */
const void *resid_expert(const struct resid *r, int i, int k);

/* A predictor names experts of a bank, likeliest first, with probabilities of use.  speculate()
 * reads ahead what the policy finds worth its victim, behind everything that is needed, and within
 * bounds; what its router does not name is taken back.  Passes that scan ignore both. */
void resid_predict(struct resid *r, int bank, const int32_t *expert, const float *prob, int n);
void resid_speculate(struct resid *r);
/* Of a pass that scans: the next bank will most likely want these [n], distinct.  Where nearly all
 * of a layer's experts are wanted nobody has to say so. */
void resid_expect(struct resid *r, int bank, const int32_t *expert, int n);

/* Whether the matrix whose pieces begin at place `at` is read ahead: at first, yes. */
void resid_expect_piece(struct resid *r, int at, bool on);

/* A piece of a streamed matrix, by its place in the sequence; pinned until the next call. */
struct resid_piece {
    const void *data;        /* of a stacked matrix its base's tiles: it has no levels then */
    int row0, n_rows;
    bool last;               /* of its matrix */
};
enum status resid_piece(struct resid *r, int at, struct resid_piece *p, struct err *e);

/* Rows of a table as they are in the file, stride bytes apart. */
enum status resid_rows(struct resid *r, int weight, const int32_t *ids, int n, char *dst,
                       uint64_t stride, struct err *e);

#endif
