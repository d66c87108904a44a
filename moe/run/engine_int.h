/* The inside of an engine and of a session; private to moe/run and its tests. */
#ifndef MOE_RUN_ENGINE_INT_H
#define MOE_RUN_ENGINE_INT_H

#include <stdatomic.h>

#include "models/arch.h"
#include "moe/base/mem.h"
#include "moe/compute/dev.h"
#include "moe/load/stackfile.h"
#include "moe/load/tok.h"
#include "moe/plan/plan.h"
#include "moe/run/devstep.h"
#include "moe/run/pressure.h"
#include "moe/run/forecast.h"
#include "moe/run/obs.h"
#include "moe/run/watch.h"
#include "moe/run/profile.h"
#include "moe/tessera.h"
#include "offload/devtier.h"
#include "offload/residency.h"

enum { WARNINGS_MAX = 16, BUCKETS_MAX = 20, SNAPSHOTS_MAX = 8 };

/* What is known of the machine's speed, bytes per second; 0 = not known. */
struct rates {
    double ram, disk;          /* disk: pieces of 1 MiB at random places */
    double per_read, per_byte; /* seconds of a read beside many others: of any; of each byte */
    double wait;               /* seconds of a read alone */
    double type[QTYPE_ID_END]; /* products of one row with weights in memory */
    double region;             /* seconds of starting and ending a parallel region */
};

struct tessera_engine {
    struct tessera_options opt;      /* as resolved: no zero left that means "choose" */
    char *path;
    struct gguf *file;
    struct stackfile stack;          /* not present in plain files */
    struct resid_unit *unit;         /* [stack.n_units] */
    uint64_t *level_end;             /* [stack.n_units] */
    int levels;                      /* the weight that holds them */
    const struct arch *arch;
    struct hparams hp;
    struct weights weights;
    struct build model;
    struct plan plan[BUCKETS_MAX];   /* rising buckets of rows; the last one is n_ubatch */
    int n_plans;
    struct resid resid;
    struct gates gates;              /* routers that can be run early */
    struct forecast forecast;
    int *op_bank;                    /* [n_op] ROUTE: number of its layer among those with experts */
    int *op_piece;                   /* [n_op][OP_IO] place of a matmul's weights in the ring */
    uint64_t process;                /* bytes of the process beside weights, KV and buffers */
    uint64_t start;                  /* what starting it may be charged, before the model is opened */
    struct placement placement;      /* of the weights, as planned */
    struct rates rates;
    struct prior *prior;             /* what promises rest on */
    struct ledger ledger;
    struct pool *pool;
    enum cpu_tier tier;
    const struct dev_api *api;
    struct dev *dev;
    struct devtier devtier;          /* the second device, where there is one */
    struct dev *second;              /* the same until the tier has it */
    struct devtier_bank *bank;       /* [resid.n_banks] its experts' ops */
    struct devtier_plan device_plan; /* all zeros without a device */
    struct devstep devstep;          /* what of a step runs there beside experts */
    struct devstep_plan devstep_plan;
    double device_found;             /* bytes that a token finds there */
    uint64_t dense_declined;         /* bytes of dense weights that would find room, but are worth less than
                                        experts in their place */
    bool device_modelled;
    struct region arena, logits;
    struct region across;            /* what goes from layer to layer, of steps that go in pieces */
    uint64_t *across_at;             /* [n_buf] its place there; UINT64_MAX = it does not */
    struct tok *tok;
    int32_t mask;                    /* the token that hides others, -1 = none */
    struct err tok_err;
    char name[128];
    char *_Atomic warning[WARNINGS_MAX]; /* grows while weights arrive */
    uint64_t identity;               /* moe/load/identity.h */

    /* KV layout, the same in every session: timeline -> page -> slot -> head.  Line 0 is the
     * session's own; the others are those of row sets, with a place for each row that was in the set */
    uint64_t *kv_offset;             /* [n_slot] in a page */
    struct kv_line {
        int rows;                    /* the set */
        uint64_t page_bytes;         /* 0 = no slots */
    } line[ROWS_MAX];
    int n_lines;
    uint64_t *state_offset;          /* [n_slot] of a recurrent slot in a state */
    uint64_t state_bytes;            /* of one state; 0 = no recurrent layers */
    int n_snapshots;                 /* states that a session may keep */
    struct tessera_session *session; /* the open ones, a list */
    int n_sessions;
    int32_t serial;
    struct pressure pressure;

    /* the step being run, all sized by n_ubatch at open */
    struct dev_buf *buf;             /* [n_buf + GATE_OPS] */
    struct dev_weight *weight;       /* [n weights] */
    struct dev_row *row;             /* [n_batch] */
    int32_t *out_row;                /* [n_batch] */
    int32_t *piece_out;              /* [n_ubatch] those of a piece */
    struct dev_rows set[ROWS_MAX];
    struct set_rows {                /* of the sets from ROWS_FIRST on, each [n_ubatch] */
        int32_t *row, *where, *pos;
        uint64_t weight_bytes, macs; /* of the steps on the set, all weights; of one row */
        int line;                    /* its timeline, -1 = none */
        int carry;                   /* step of its KV_CARRY, 0 = none */
    } rows_of[ROWS_MAX];
    char **kv_base;                  /* [n_lines][n_batch] */
    int32_t *kv_n;                   /* [n_lines][n_batch] length of each input's lines before */
    int32_t *end;                    /* [n_batch] tokens of each input's session with this step's */
    struct dev_carry *carry;         /* [n_ubatch] */
    unsigned char *pass;             /* [n_ubatch] */
    float *logit;                    /* [n_ubatch] */
    struct tessera_depth depth;
    int32_t *capacity;               /* [n_batch] rows that an expert takes of each input; CHOOSE only */
    uint64_t block;                  /* what the inputs' blocks make, see resid_block() */
    bool own_routing;                /* rows choose, whatever opt.expert_choice says */
    float *choice_scale;             /* [n_expert + 1], see routing/choice.h; NULL = 1 */
    struct approx *approx;           /* informed routing; NULL = none (informed.h) */
    int forced_k;                    /* experts per row where experts choose; 0 = by the schedule */
    int forced_depth;                /* of every row instead of the router's choice; -1 = none */
    int32_t *serials;                /* [n_batch] session serial of each row */
    uint8_t *in_ram;                 /* [2][n_expert] of the layer being run, by expert; of a row */
    struct tessera_session **stepped; /* [n_ubatch] sessions of the inputs */
    struct dev_segment *segment;     /* [n_ubatch] NULL without recurrent layers */
    int *segment_of;                 /* [n_ubatch + 1] first segment of each input */
    struct step_input {
        int32_t row0, n;             /* its first row in the step, rows */
    } *input;                        /* [n_batch] of the last step */
    int n_inputs, n_out;             /* n_out: entries of out_row */
    uint32_t logits_stride;
    uint64_t n_steps;
    struct obs_ring obs;
    struct watch watch;
    struct profile *profile;         /* NULL = steps are not timed */
    atomic_int cancel;
};

/* Recurrent states of a session; see state.c. */
enum state_kept { STATE_FREE, STATE_PERIODIC, STATE_ASKED }; /* in the order of their worth */

struct state_pool {
    struct region mem;               /* n buffers of state_bytes */
    struct state_buf {
        int32_t pos;                 /* tokens that this state has seen */
        enum state_kept kept;
        bool busy;                   /* written by the step being run */
    } buf[SNAPSHOTS_MAX + 2];
    int n, current, next;            /* current: -1 = nothing seen yet */
    int32_t asked;                   /* the position that is to be kept when it is reached */
};

struct tessera_session {
    struct tessera_engine *engine;
    struct session_line {
        struct region kv;
        int32_t *pos;                /* [n_ctx] position of each entry, rising; NULL on line 0 */
        int32_t n;                   /* entries; line 0: not used */
        uint64_t spilled;            /* bytes of it in the file */
    } *line;                         /* [n_lines] */
    unsigned char *depth;            /* [n_ctx] of each token; NULL where there is no such thing */
    float *chance;                   /* [n_ctx] of a boundary at each token; NULL: no such thing */
    int32_t carried[ROWS_MAX];       /* per step of KV_CARRY: positions that its slots have all of */
    struct state_pool state;
    int32_t *ids;                    /* [n_ctx] */
    int32_t n, n_ctx, serial;
    int32_t on_device;               /* positions that the second device's pages hold, too */
    int spill_fd;                    /* the file that holds the KV cache; -1: it is in memory */
    struct tessera_session *next;
};

/* Bytes of the pages of a timeline that hold n entries. */
uint64_t session_bytes(const struct tessera_session *s, int line, int32_t n);
/* Bytes of K and V that are in memory. */
uint64_t session_committed(const struct tessera_session *s);
/* Entries of a timeline at or before the first n positions. */
int32_t session_entries(const struct tessera_session *s, int line, int32_t n);
/* Cuts all timelines to n positions; see tessera.h for where recurrent ones end. */
void session_cut(struct tessera_session *s, int32_t n);

/* Puts the KV cache (not the recurrent states) into a file without a name, and back: exactly.
 * ERR_IO: it is where it was. */
enum status session_spill(struct tessera_session *s, struct err *e);
enum status session_unspill(struct tessera_session *s, struct err *e);

/* Moves the budget; see tessera_resize. */
enum status engine_resize(struct tessera_engine *e, uint64_t budget, struct err *err);
/* Commits pages of r, taking memory from the weights when the plan had none for them. */
enum status engine_commit(struct tessera_engine *e, struct region *r, uint64_t bytes,
                          struct err *err);

/* All of these do nothing for models without recurrent layers.
 *   begin     cuts the next n tokens, rows first.. of the step, into segments, which are appended
 *             to e->segment
 *   commit    the step has succeeded (before s->n moves)
 *   ask       the state at pos is to be kept, now or when it is reached
 *   rollback  the nearest state at or before pos becomes the current one; returns its position
 *   restore   forgets everything; *at = the buffer for a saved state, NULL = none */
enum status state_open(struct tessera_session *s, struct err *e);
void state_close(struct tessera_session *s);
char *state_at(const struct tessera_session *s, int i);
enum status state_begin(struct tessera_session *s, int32_t n, int first, int *n_segments,
                        struct err *e);
void state_commit(struct tessera_session *s);
void state_ask(struct tessera_session *s, int32_t pos);
int32_t state_rollback(struct tessera_session *s, int32_t pos);
enum status state_restore(struct tessera_session *s, int32_t pos, char **at, struct err *e);

/* Chooses context, micro-batch and placement for e->opt.mem_budget; see fit.c.  ERR_BUDGET names the
 * smallest budget that works. */
enum status fit_budget(struct tessera_engine *e, struct placement *p, struct err *err);
uint64_t fit_kv_bytes(const struct tessera_engine *e, int n_ctx);
uint64_t fit_arena_bytes(const struct tessera_engine *e);
/* Bytes of the buffers that live from layer to layer, for steps of n_rows rows, and where each lies in
 * e->across, if at is not NULL. */
uint64_t fit_carry(const struct tessera_engine *e, int n_rows, uint64_t *at);
/* Rows that a step is best given with the weights placed as they are: more than n_ubatch where experts
 * are read, and there is room for what such a step carries. */
int fit_batch(const struct tessera_engine *e);
/* What the process takes beside regions: code, libraries, heap, stacks; an estimate from above that
 * depends on the model and the options only. */
uint64_t fit_process_bytes(const struct tessera_engine *e);
uint64_t fit_start_bytes(void);
/* Of the buffers that a placement's reads go through. */
uint64_t fit_staging(const struct tessera_engine *e, const struct placement *p);
/* A number for --mem, never less: in tenths of a MiB below 64 MiB, in whole ones from there on. */
double fit_mib(uint64_t bytes);
uint64_t fit_logits_bytes(const struct tessera_engine *e);
/* Bytes that the whole process needs with a placement, and at the least, as opened. */
uint64_t fit_need(const struct tessera_engine *e, const struct placement *p);
uint64_t fit_least(const struct tessera_engine *e);
/* A placement for another budget, everything but weights staying as it is; false: too small. */
bool fit_weights(const struct tessera_engine *e, uint64_t budget, struct placement *p);
/* A placement that leaves `bytes` to something else. */
bool fit_room(const struct tessera_engine *e, uint64_t bytes, struct placement *p);

/* The second device: opens e->opt.device, if it can be used, and plans what it will hold; plans again, when
 * context, micro-batch and placement have been chosen; takes the experts to it.  What cannot be used is
 * a warning and a run without it.  See second.c. */
void second_find(struct tessera_engine *e);
void second_fit(struct tessera_engine *e);
void second_open(struct tessera_engine *e);
void second_close(struct tessera_engine *e);
bool second_used(const struct tessera_engine *e); /* it is planned with, or at work */
void engine_warn(void *arg, const char *text);

void rates_of(struct rates *r, const struct machine *m);
/* Bytes per second of reads of that many bytes. */
double rates_disk(const struct rates *r, double bytes);

/* Routes that promises assume, as replay wants them; see prior.c.  Built when first asked for. */
struct prior;
/* Share of hits and seconds of waiting per decoded token with so many slots for all experts together;
 * false: not known (no experts, no memory). */
bool prior_ask(struct tessera_engine *e, int slots, double *hit, double *stall);
double prior_disk(const struct tessera_engine *e);
const char *prior_name(const struct tessera_engine *e);
enum status prior_open(struct tessera_engine *e, struct err *err);
void prior_close(struct prior *p);

/* What a placement promises; see promise.c. */
void promise(struct tessera_engine *e, const struct placement *p, struct plan_tiers *t);

/* What the file has of a stack; its levels bound, once the model has been described; what residency is told
 * of them.  All of them do nothing where there is none.  See stack_run.c. */
enum status stack_run_open(struct tessera_engine *e, struct err *err);
enum status stack_run_bind(struct tessera_engine *e, struct err *err);
void stack_run_residency(const struct tessera_engine *e, struct resid_options *o);
void stack_run_close(struct tessera_engine *e);

/* What of the stack a placement loads, kind by kind; bytes of levels that a token reads; see
 * promise_stack.c. */
double promise_level_bytes(const struct tessera_engine *e, const struct placement *p);
void promise_stack(const struct tessera_engine *e, const struct placement *p, struct plan_stack *k);

/* The plan for a step of so many rows. */
const struct plan *plan_for(const struct tessera_engine *e, int n_rows);

/* Runs one plan on the rows in e->row; see exec.c. */
enum status exec_run(struct tessera_engine *e, const struct plan *p, int n_rows, int n_out,
                     struct err *err);

#endif
