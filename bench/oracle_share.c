/* What sharing prefixes saves an oracle: every route through a model's layers for the first tokens of a
 * text, as a trie, and the same routes without sharing: each from the embedding on, all of a token as
 * rows of one step, on the same frozen timeline.
 *
 *     build/release/bench/oracle_share MODEL [TOKENS] [layer|part]
 *
 * Prints seconds of both, of the output head alone, and how much of what sharing permits was saved:
 * (alone - shared) over (alone less head) times the share of rows that need not run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/osfile.h"
#include "moe/run/branch.h"
#include "moe/tessera.h"
#include "routing/oracle.h"

enum { TIMED_ROWS = 4096 };

struct bench {
    struct branches b;
    bool layers;
    double head;
    double seconds[TIMED_ROWS + 1]; /* of units on so many rows */
    int times[TIMED_ROWS + 1];
};

static enum status run(void *arg, int unit, int n, const float *in, float *out, struct err *e)
{
    struct bench *b = arg;
    return b->layers ? branches_run(&b->b, 2 * unit, 2, n, in, out, NULL, NULL, e)
                     : branches_run(&b->b, unit, 1, n, in, out, NULL, NULL, e);
}

/* The same, timed by rows. */
static enum status timed(void *arg, int unit, int n, const float *in, float *out, struct err *e)
{
    struct bench *b = arg;
    const double start = os_seconds();
    enum status s = run(arg, unit, n, in, out, e);
    b->seconds[n] += os_seconds() - start;
    b->times[n]++;
    return s;
}

static enum status loss(void *arg, int n, const float *in, double *to, struct err *e)
{
    struct bench *b = arg;
    const double start = os_seconds();
    enum status s = branches_loss(&b->b, n, in, 5, to, e);
    b->head += os_seconds() - start;
    return s;
}

/* Every route's row through every unit that it goes through: nothing shared. */
static enum status alone(const struct oracle_model *m, const float *x, int n, float *rows, float *some,
                         double *to, struct err *e)
{
    const size_t d = (size_t)m->n_embd;
    enum status s = OK;
    for (int i = 0; i < n; i++) memcpy(rows + (size_t)i * d, x, d * sizeof *x);
    for (int u = 0; u < m->n_units && !s; u++) {
        int k = 0;
        for (int i = 0; i < n; i++)
            if (i >> u & 1) memcpy(some + (size_t)k++ * d, rows + (size_t)i * d, d * sizeof *x);
        s = m->run(m->arg, u, k, some, some, e);
        k = 0;
        for (int i = 0; i < n; i++)
            if (i >> u & 1) memcpy(rows + (size_t)i * d, some + (size_t)k++ * d, d * sizeof *x);
    }
    return s ? s : m->loss(m->arg, n, rows, to, e);
}

int main(int argc, char **argv)
{
    struct tessera_options o = tessera_defaults();
    static struct bench b;
    b = (struct bench){.layers = argc < 4 || !strcmp(argv[3], "layer")};
    tessera_engine *e = NULL;
    tessera_session *s = NULL;
    struct err err;
    const int tokens = argc > 2 ? atoi(argv[2]) : 200;
    err_clear(&err);
    o.model_path = argc > 1 ? argv[1] : "models/zoo/story-q8_0.gguf";
    o.n_logits = 64;
    if (tessera_open(&o, &e, &err) || tessera_session_open(e, 0, &s, &err) ||
        branches_open(e, &b.b, &err)) {
        fprintf(stderr, "oracle_share: %s\n", err.msg);
        return 1;
    }
    const int units = b.layers ? b.b.n_parts / 2 : b.b.n_parts, n = units < 12 ? 1 << units : 0;
    const bool fixed[64] = {false};
    const struct oracle_model m = {units, b.b.n_embd, fixed, timed, loss, &b};
    float *x = calloc((size_t)b.b.n_embd, sizeof *x);
    float *rows = calloc((size_t)n * (size_t)b.b.n_embd, sizeof *rows);
    float *some = calloc((size_t)n * (size_t)b.b.n_embd, sizeof *some);
    double *one = calloc((size_t)n, sizeof *one), *two = calloc((size_t)n, sizeof *two);
    uint64_t *route = calloc((size_t)n, sizeof *route);
    struct oracle_work w = {0};
    double time[2] = {0}, head[2] = {0};
    if (!n || !x || !rows || !some || !one || !two || !route) return 1;
    for (int i = 0; i < n; i++) route[i] = (uint64_t)i;
    for (int t = 0; t < tokens && t < tessera_session_n_ctx(s) - 1; t++) {
        const int32_t id = 3 + t * 7919 % (tessera_model(e).n_vocab - 3);
        const struct tessera_input in = {.session = s, .ids = &id, .n = 1};
        for (int k = 0; k < 2; k++) { /* in turn, so that nothing favours one */
            const int which = (t + k) % 2;
            if (branches_token(&b.b, s, id, x, &err)) break;
            b.head = 0;
            const double start = os_seconds();
            if (which ? alone(&m, x, n, rows, some, two, &err)
                      : oracle_evaluate(&m, x, n, route, one, &w, &err)) break;
            time[which] += os_seconds() - start;
            head[which] += b.head;
        }
        if (err.code || memcmp(one, two, sizeof *one * (size_t)n) || tessera_step(e, &in, 1, &err)) {
            fprintf(stderr, "oracle_share: %s\n", err.code ? err.msg : "other losses");
            return 1;
        }
    }
    const double spared = 1 - (double)w.run / (double)w.alone;
    const double possible = (time[1] - head[1]) * spared;
    printf("%d routes of each of %d tokens: %.3f s shared, %.3f s alone (head %.3f and %.3f s); %.1f %% of "
           "the rows need not run; saved %.3f of %.3f s: %.0f %%\n", n, tokens, time[0], time[1], head[0],
           head[1], 100 * spared, time[1] - time[0], possible, 100 * (time[1] - time[0]) / possible);
    printf("a unit takes, by rows:");
    for (int i = 1; i <= TIMED_ROWS; i++)
        if (b.times[i]) printf(" %d: %.0f us", i, 1e6 * b.seconds[i] / b.times[i]);
    printf("; units alone %.3f s\n", time[1] - head[1]);
    return 0;
}
