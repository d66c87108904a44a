/* The inside of an engine and of a session; private to moe/run and its tests. */
#ifndef MOE_RUN_ENGINE_INT_H
#define MOE_RUN_ENGINE_INT_H

#include <stdatomic.h>

#include "models/arch.h"
#include "moe/base/mem.h"
#include "moe/compute/dev.h"
#include "moe/load/tok.h"
#include "moe/plan/plan.h"
#include "moe/run/obs.h"
#include "moe/tessera.h"
#include "offload/part.h"

enum { WARNINGS_MAX = 16, BUCKETS_MAX = 20 };

struct tessera_engine {
    struct tessera_options opt;      /* as resolved: no zero left that means "choose" */
    char *path;
    struct gguf *file;
    const struct arch *arch;
    struct hparams hp;
    struct weights weights;
    struct build model;
    struct plan plan[BUCKETS_MAX];   /* rising buckets of rows; the last one is n_ubatch */
    int n_plans;
    struct part_store parts;
    struct ledger ledger;
    struct pool *pool;
    enum cpu_tier tier;
    const struct dev_api *api;
    struct dev *dev;
    struct region arena, logits;
    struct tok *tok;
    struct err tok_err;
    char name[128];
    char *warning[WARNINGS_MAX];
    int n_warnings;
    uint64_t identity;               /* hash of the header: ties sessions to their model */

    /* KV layout, the same in every session: page -> slot -> head */
    uint64_t *kv_offset;             /* [n_slot] */
    uint64_t kv_page_bytes;
    int n_sessions;
    int32_t serial;

    /* the step being run, all sized by n_ubatch at open */
    struct dev_buf *buf;             /* [n_buf] */
    struct dev_weight *weight;       /* [n weights] */
    struct dev_row *row;             /* [n_ubatch] */
    int32_t *out_row;                /* [n_ubatch] */
    char **kv_base;                  /* [n_ubatch] */
    int32_t *serials;                /* [n_ubatch] session serial of each row */
    struct step_input {
        int32_t n, out0;             /* rows; first row of the logits buffer, -1 = none */
        enum tessera_logits_of logits;
    } *input;                        /* [n_ubatch] of the last step */
    int n_inputs;
    uint32_t logits_stride;
    uint64_t n_steps;
    struct obs_ring obs;
    atomic_int cancel;
};

struct tessera_session {
    struct tessera_engine *engine;
    struct region kv;
    int32_t *ids;                    /* [n_ctx] */
    int32_t n, n_ctx, serial;
};

/* Makes the pages that hold n positions usable. */
enum status session_commit(struct tessera_session *s, int32_t n, struct err *e);

/* Runs one plan on the rows in e->row; see exec.c. */
enum status exec_run(struct tessera_engine *e, const struct plan *p, int n_rows, int n_out,
                     const int32_t *serial, struct err *err);

#endif
