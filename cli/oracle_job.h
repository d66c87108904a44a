/* `tessera oracle`: what its files share.
 *
 *   cmd_oracle.c     the command line, the text, token after token
 *   oracle_search.c  one token: the model as routing/oracle.h wants it
 *   oracle_file.c    results as they grow, so that an interrupted search goes on
 *   oracle_schedule.c  schedules of denoisers: their passes instead of tokens, their tables
 *   oracle_report.c  tables
 *   oracle_page.c    the page
 *
 * A result is a row of floats per token, the same whether it was computed now or read, so a report does
 * not depend on where the search was interrupted. */
#ifndef CLI_ORACLE_JOB_H
#define CLI_ORACLE_JOB_H

#include "cli/cli.h"
#include "moe/run/branch.h"
#include "routing/oracle.h"

enum oracle_what { ORACLE_ROUTES, ORACLE_EXPERTS, ORACLE_DEPTH, ORACLE_SCHEDULE };

struct oracle_args {
    const char *what, *unit, *ids, *html;
    int tokens, beam, all, skips, random, rounds, steps;
    int64_t seed;
    float exit_at;
    bool special, fresh;
};

/* A unit of the search: one or more parts of the pass. */
struct oracle_unit {
    int first, n;     /* parts */
    int layer;        /* -1: belongs to none */
    const char *name; /* "layer", "attention", "feed-forward" */
};

struct oracle_job {
    const struct cli_args *a;
    struct oracle_args own;
    enum oracle_what what;
    tessera_engine *e;
    tessera_session *session;
    struct branches b;
    struct oracle_unit *unit; /* [n_units] */
    bool *fixed;              /* [n_units] */
    int n_units, n_free;      /* all; those that may be passed by */
    int *free_unit;           /* [n_free] */
    int least_depth, n_depths;
    int32_t *ids;             /* [n_ids] the text */
    int n_ids, bos;
    int32_t target;           /* of the token at hand */
    struct oracle_work work;

    /* Results: for each token of the text that has another behind it, in order.
     *   routes   [3][n_free + 1] best, random, mean by number of units gone through
     *   experts  [n_free][4] router, best, random, experts that both chose
     *   depth    [1 + n_depths] the router's depth, the loss at each
     *   schedule [1 + k_max] hidden tokens, their mean loss with 1 .. k_max experts per row; instead of
     *            tokens the passes of a window, `steps` of them, then those of the next window */
    int n_values, n_routes;   /* routes of routes: [n_free + 1] */
    int n_done, n_all;        /* tokens */
    float *value;             /* [n_all][n_values] */
    uint64_t *route;          /* [n_all][n_routes] */
    int32_t *at;              /* [n_all] of each token: its index in the text */
    char settings[256];       /* all that results depend on beside model and text */
    bool all_tried;           /* no beam, no swaps */
};

/* ---- oracle_search.c ---- */

enum status oracle_units(struct oracle_job *j, struct err *err);
/* The token behind the timeline's end; its result to row n_done. */
enum status oracle_token(struct oracle_job *j, int32_t id, struct err *err);

/* ---- oracle_schedule.c ---- */

/* Lists the passes: at [n_all] is where the window of each begins. */
enum status oracle_passes(struct oracle_job *j, struct err *err);
/* The next pass with every number of experts; its result to row n_done. */
enum status oracle_pass(struct oracle_job *j, struct err *err);
/* Experts per row of a pass as the model's own schedule has it. */
int oracle_own_k(const struct oracle_job *j, int pass);
/* Mean loss [steps][k_max] of windows from, from + by, .. */
double *oracle_step_losses(const struct oracle_job *j, int from, int by);
/* The best schedule [steps], in experts per row, at the total of the model's own. */
enum status oracle_best_schedule(const struct oracle_job *j, const double *loss, int total, int *k,
                                 struct err *err);
enum status oracle_report_schedule(const struct oracle_job *j, struct err *err);
void oracle_json_schedule(const struct oracle_job *j);

/* ---- oracle_file.c ---- */

enum status oracle_write(const struct oracle_job *j, const char *path, struct err *err);
/* Takes over what is there of the same search; OK with n_done 0 when there is no file, or with --fresh one of
 * any search.  What else is there is left alone: ERR_FORMAT. */
enum status oracle_read(struct oracle_job *j, const char *path, struct err *err);

/* ---- oracle_report.c ---- */

enum status oracle_report(const struct oracle_job *j, struct err *err);
void oracle_report_json(const struct oracle_job *j);
/* Losses of n levels from value first_value on, of every token, spent so that their mean level is at most
 * `level`; INFINITY when that is not enough.  used [n]: tokens at each level, or NULL. */
double oracle_shared_out(const struct oracle_job *j, int first_value, int n, double level, int *used);
/* Loss of token t as the model is. */
double oracle_loss_as_is(const struct oracle_job *j, int t);
/* The least that the search found for it, whatever it costs. */
double oracle_loss_best(const struct oracle_job *j, int t);
/* Mean of one of them over all tokens. */
double oracle_mean_loss(const struct oracle_job *j, double (*loss)(const struct oracle_job *, int));
/* Mean of value i over tokens from .. to - 1; NaN when there are none. */
double oracle_mean(const struct oracle_job *j, int i, int from, int to);
/* Of the best routes through c units, the share that goes through the unit that is u-th of the free ones. */
double oracle_share_through(const struct oracle_job *j, int c, int u);

/* ---- oracle_page.c ---- */

enum status oracle_page(struct oracle_job *j, const char *path, struct err *err);

static inline float *oracle_value(const struct oracle_job *j, int t)
{
    return j->value + (size_t)t * (size_t)j->n_values;
}
static inline uint64_t *oracle_route(const struct oracle_job *j, int t)
{
    return j->route + (size_t)t * (size_t)j->n_routes;
}

#endif
