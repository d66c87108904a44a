/* Forecasts: which experts to read before their router can name them, and whether that pays.
 *
 * A forecast holds a predictor, hands its guesses to residency, judges them by what the routers then
 * choose, and keeps reading ahead only while that makes tokens faster in this very run.  It decides
 * nothing about results: a wrong guess costs time.
 *
 * DESIGN.  A guess's probability is not what a predictor says but what guesses of its rank have
 * proved to be (decayed over some hundred layers), so that every predictor is comparable with the
 * policy's rates of use.  Proof is by windows of TRIAL_STEPS decode steps with and without reading
 * ahead, in the order on off off on ..., so that drift hits both alike; after TRIAL_ROUNDS of each
 * the medians decide, and it stays so for HOLD_STEPS.  Until the first verdict it is off.
 *
 * Steps of up to GATE_ROWS rows; longer ones scan all layers and know what comes.  Allocates at open.
 * Executor thread only. */
#ifndef MOE_RUN_FORECAST_H
#define MOE_RUN_FORECAST_H

#include "moe/load/trace.h"
#include "moe/run/gate.h"
#include "moe/run/predictor.h"
#include "offload/residency.h"

enum predict_kind {
    PREDICT_NONE,
    PREDICT_GATE,      /* the next layer's router on this layer's hidden state: the default */
    PREDICT_PREVIOUS,  /* what the layer used for the token before */
    PREDICT_FREQUENCY, /* what it uses most, decayed */
    PREDICT_PATH,      /* learned from token ids, all layers at once: a file */
    PREDICT_ORACLE,    /* a recorded trace of the same text: a file */
};

enum { TRIAL_STEPS = 4, TRIAL_ROUNDS = 8, TRIAL_WARM = 16, HOLD_STEPS = 512 };

struct forecast {
    enum predict_kind kind;
    bool always;              /* needs no proof */
    const char *name;         /* of the predictor; static */
    int n_banks, n_experts, n_used;
    struct predictor learned;
    struct path_state path;
    float *p, *mix, *hidden;  /* of the path model */
    struct trace *record;     /* the oracle's */
    int32_t next_row;         /* of it */
    float *rate;              /* [n_banks][n_experts] decayed use */
    int32_t serial, next_pos; /* of the timeline that the path model follows */

    /* guesses of the step being run */
    int32_t *guess;           /* [n_banks][n_experts] likeliest first */
    uint8_t *rank;            /* the same shape: among one row's guesses */
    int *n_guess;             /* [n_banks] */
    float *precision;         /* [n_used] by rank */
    float *score;             /* [n_experts] scratch */
    int32_t *pick;            /* [n_experts] scratch */
    float *prob;              /* [n_experts] scratch */

    bool active;              /* this step reads ahead */
    int n_rows;
    double start, waited;     /* at its begin */

    /* the trial */
    int64_t steps;            /* decode steps seen */
    int64_t trial_from;       /* step at which the trial begins or began */
    bool on;                  /* the verdict */
    int n_trials, n_on;
    struct arm {
        double seconds[TRIAL_ROUNDS], waited[TRIAL_ROUNDS]; /* per step of each window */
    } arm[2];                 /* off, on */
    double seconds[2], waited_of[2]; /* medians of the last trial, per step */

    /* how good the guesses were, over all steps that had some */
    uint64_t asked, named;    /* experts wanted; of them guessed */
    uint64_t missed, missed_named; /* of those that nothing but a guess would have had in RAM */
};

struct tessera_engine;

/* which: "gate", "previous", "frequency", "none", or a file of `tessera trace` or
 * `tessera trace --train`; with ",always" behind it no proof is asked for.  NULL = "gate".  Needs the
 * engine's description and residency.  ERR_IO, ERR_FORMAT, ERR_SHAPE, ERR_MEMORY. */
enum status forecast_open(struct forecast *g, const struct tessera_engine *e, const char *which,
                          struct err *err);
void forecast_close(struct forecast *g);
/* Bytes of heap that it took. */
uint64_t forecast_bytes(const struct forecast *g);

/* A step begins, a layer's router has chosen (after resid_route), a step has succeeded.  Without a
 * pool to read into they do nothing. */
void forecast_step(struct forecast *g, struct tessera_engine *e, int n_rows);
/* A row set that depends on data has got its first row: the layers on it are guessed, too. */
void forecast_wake(struct forecast *g, struct tessera_engine *e, int set);
void forecast_routed(struct forecast *g, struct tessera_engine *e, int bank, const int32_t *expert,
                     int n);
/* logits [n_rows] of the next bank's gate, as gates_run() gives them.  Of a pass that scans all
 * layers some of its rows: together they name what the layer will most likely want. */
void forecast_gate(struct forecast *g, struct tessera_engine *e, int bank, int n_rows,
                   float *logits, uint64_t stride);
void forecast_done(struct forecast *g, struct tessera_engine *e);

#endif
