/* See forecast.h. */
#include "moe/run/forecast.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/osfile.h"
#include "moe/run/engine_int.h"

static const float FREQUENCY_KEEP = 0.957603f; /* half-life of 16 tokens */
static const float PRECISION_KEEP = 1.0f - 1.0f / 256;
enum { USED_MAX = 64 };

static const char *const kind_names[] = {
    [PREDICT_NONE] = "none", [PREDICT_GATE] = "gate", [PREDICT_PREVIOUS] = "previous",
    [PREDICT_FREQUENCY] = "frequency"};

/* ---- opening ---- */

static enum status check_shape(const struct forecast *g, const char *path, int n_layers,
                               int n_experts, uint64_t hash, uint64_t identity, struct err *err)
{
    if (n_layers == g->n_banks && n_experts == g->n_experts && (!hash || hash == identity))
        return OK;
    return err_set(err, ERR_SHAPE, "%s was made with another model (%d layers of %d experts)", path,
                   n_layers, n_experts);
}

/* A file: a learned predictor, or else a trace. */
static enum status open_file(struct forecast *g, const struct tessera_engine *e, const char *path,
                             struct err *err)
{
    struct err not_learned;
    err_clear(&not_learned);
    g->name = "learned";
    g->kind = PREDICT_PATH;
    enum status s = predictor_read(path, NULL, &g->learned, &not_learned);
    if (!s)
        return check_shape(g, path, g->learned.path.n_layers, g->learned.path.n_expert,
                           g->learned.model_hash, e->identity, err);
    if (s == ERR_IO || s == ERR_MEMORY) {
        *err = not_learned;
        return s;
    }
    g->name = "oracle";
    g->kind = PREDICT_ORACLE;
    s = trace_read(path, NULL, &g->record, err);
    return s ? s : check_shape(g, path, g->record->n_layers, g->record->n_experts,
                               g->record->model_hash, e->identity, err);
}

static enum status choose(struct forecast *g, const struct tessera_engine *e, const char *which,
                          struct err *err)
{
    static const char always[] = ",always";
    char name[4096];
    const size_t n = strlen(which), tail = sizeof always - 1;
    g->always = n > tail && !strcmp(which + n - tail, always);
    const size_t len = g->always ? n - tail : n;
    if (len >= sizeof name) return err_set(err, ERR_USAGE, "that name of a predictor is too long");
    memcpy(name, which, len);
    name[len] = 0;
    for (int k = PREDICT_NONE; k <= PREDICT_FREQUENCY; k++) {
        if (strcmp(name, kind_names[k])) continue;
        g->kind = (enum predict_kind)k;
        g->name = kind_names[k];
        return OK;
    }
    return open_file(g, e, name, err);
}

enum status forecast_open(struct forecast *g, const struct tessera_engine *e, const char *which,
                          struct err *err)
{
    memset(g, 0, sizeof *g);
    g->n_banks = e->resid.n_banks;
    g->n_experts = e->resid.n_experts;
    g->n_used = e->hp.n_expert_used < USED_MAX ? e->hp.n_expert_used : USED_MAX;
    g->trial_from = TRIAL_WARM;
    g->serial = -1;
    g->name = kind_names[PREDICT_NONE];
    if (!g->n_banks) return OK; /* a model without experts */
    enum status s = choose(g, e, which ? which : kind_names[PREDICT_GATE], err);
    if (s) return s;
    const struct path_model *m = &g->learned.path;
    const size_t banks = (size_t)g->n_banks, experts = (size_t)g->n_experts, n = banks * experts;
    g->rate = calloc(n, sizeof *g->rate);
    g->guess = calloc(n, sizeof *g->guess);
    g->rank = calloc(n, sizeof *g->rank);
    g->n_guess = calloc(banks, sizeof *g->n_guess);
    g->precision = calloc((size_t)g->n_used, sizeof *g->precision);
    g->score = calloc(experts, sizeof *g->score);
    g->pick = calloc(experts, sizeof *g->pick);
    g->prob = calloc(experts, sizeof *g->prob);
    g->p = calloc(m->n_dim ? n : 1, sizeof *g->p);
    g->mix = calloc((size_t)m->n_dim + 1, sizeof *g->mix);
    g->hidden = calloc((size_t)m->n_hidden + 1, sizeof *g->hidden);
    g->path.mean = calloc((size_t)m->n_dim * PATH_SLOW + 1, sizeof *g->path.mean);
    if (!g->rate || !g->guess || !g->rank || !g->n_guess || !g->precision || !g->score ||
        !g->pick || !g->prob || !g->p || !g->mix || !g->hidden || !g->path.mean)
        return err_set(err, ERR_MEMORY, "no memory for predictions");
    for (int k = 0; k < g->n_used; k++) g->precision[k] = 0.5f;
    return OK;
}

void forecast_close(struct forecast *g)
{
    predictor_free(&g->learned);
    trace_free(g->record);
    free(g->rate);
    free(g->guess);
    free(g->rank);
    free(g->n_guess);
    free(g->precision);
    free(g->score);
    free(g->pick);
    free(g->prob);
    free(g->p);
    free(g->mix);
    free(g->hidden);
    free(g->path.mean);
    memset(g, 0, sizeof *g);
}

uint64_t forecast_bytes(const struct forecast *g)
{
    const struct trace *t = g->record;
    const uint64_t n = (uint64_t)g->n_banks * (uint64_t)g->n_experts;
    uint64_t sum = n * (sizeof *g->rate + sizeof *g->guess + sizeof *g->rank);
    if (g->learned.data) sum += sizeof(float) * (predictor_floats(&g->learned.path) + n);
    if (t) /* experts and, it may be, weights, tiers and waits */
        sum += (uint64_t)t->cap * (uint64_t)t->n_layers * ((uint64_t)t->n_used * 7 + 4);
    return sum;
}

/* ---- guessing ---- */

/* Takes the likeliest n_used of score[] as guesses of a bank, ranks in their order. */
static void guess_bank(struct forecast *g, struct tessera_engine *e, int bank, const float *score)
{
    int32_t *guess = g->guess + (size_t)bank * (size_t)g->n_experts;
    uint8_t *rank = g->rank + (size_t)bank * (size_t)g->n_experts;
    const int n = predict_top(score, g->n_experts, g->n_used, guess, g->prob);
    for (int i = 0; i < n; i++) {
        rank[i] = (uint8_t)i;
        g->prob[i] = g->precision[i];
    }
    g->n_guess[bank] = n;
    resid_predict(&e->resid, bank, guess, g->prob, n);
}

/* The row of the record with the token of the step's only row. */
static int32_t find_row(struct forecast *g, const struct dev_row *row)
{
    const struct trace *t = g->record;
    for (int32_t i = 0; i < t->n_rows; i++) {
        const int32_t r = (g->next_row + i) % t->n_rows;
        if (t->pos[r] != row->pos || t->token[r] != row->id) continue;
        g->next_row = r + 1;
        return r;
    }
    return -1;
}

/* Whether the layers of a bank are on that set; ROWS_ALL: on those that every step has, which are all
 * of them in models without boundaries. */
static bool is_of(const struct tessera_engine *e, int bank, int set)
{
    const struct op *route = e->gates.bank[bank].route;
    const int rows = !e->model.has_chances || route->rows < ROWS_FIRST ? ROWS_ALL : route->rows;
    return rows == set;
}

static void guess_oracle(struct forecast *g, struct tessera_engine *e, int set)
{
    const int32_t r = find_row(g, &e->row[0]);
    for (int b = 0; b < g->n_banks; b++) {
        if (!is_of(e, b, set)) continue;
        memset(g->score, 0, sizeof *g->score * (size_t)g->n_experts);
        if (r >= 0)
            predict_seen(g->score, g->n_experts, 0, trace_experts(g->record, r, b),
                         g->record->n_used);
        guess_bank(g, e, b, g->score);
    }
}

/* The model follows one timeline; where another, or a gap, comes between it begins anew. */
static void follow_path(struct forecast *g, struct tessera_engine *e)
{
    if (g->serial != e->serials[0] || g->next_pos != e->row[0].pos)
        path_reset(&g->learned.path, &g->path);
    g->serial = e->serials[0];
    g->next_pos = e->row[0].pos + 1;
    path_step(&g->learned.path, &g->path, e->row[0].id, g->mix, g->hidden,
              g->active ? g->p : NULL);
}

/* Those that need no hidden state, for the layers of a set (is_of). */
static void guess_set(struct forecast *g, struct tessera_engine *e, int set)
{
    const bool one = g->n_rows == 1;
    const float *score = g->kind == PREDICT_PATH && one ? g->p : NULL;
    if (!g->active) return;
    if (g->kind == PREDICT_ORACLE && one) guess_oracle(g, e, set);
    if (g->kind == PREDICT_PREVIOUS || g->kind == PREDICT_FREQUENCY) score = g->rate;
    for (int b = 0; b < g->n_banks && score; b++)
        if (is_of(e, b, set)) guess_bank(g, e, b, score + (size_t)b * (size_t)g->n_experts);
    resid_speculate(&e->resid);
}

void forecast_wake(struct forecast *g, struct tessera_engine *e, int set)
{
    if (e->model.has_chances && g->n_rows) guess_set(g, e, set);
}

void forecast_gate(struct forecast *g, struct tessera_engine *e, int bank, int n_rows,
                   float *logits, uint64_t stride)
{
    const struct op *route = e->gates.bank[bank].route;
    const struct route_params *p = &route->p.moe.route;
    const struct elem_kernels *el = elem_kernels(e->tier);
    const float *bias = route->weight[0] < 0 ? NULL : e->weight[route->weight[0]].data;
    int32_t *guess = g->guess + (size_t)bank * (size_t)g->n_experts;
    uint8_t *rank = g->rank + (size_t)bank * (size_t)g->n_experts;
    int n = 0;
    /* Several rows: an expert has the best of its ranks. */
    memset(g->score, 0, sizeof *g->score * (size_t)g->n_experts);
    for (int r = 0; r < n_rows; r++) {
        float *l = (float *)(void *)((char *)logits + stride * (uint64_t)r);
        const int k = predict_gate(p, el, bias, l, e->gates.pick, g->n_used, g->pick, g->prob);
        for (int i = 0; i < k; i++)
            if (g->score[g->pick[i]] < (float)(g->n_used - i))
                g->score[g->pick[i]] = (float)(g->n_used - i);
    }
    n = predict_top(g->score, g->n_experts, g->n_experts, guess, g->prob);
    for (int i = 0; i < n; i++) {
        rank[i] = (uint8_t)(g->n_used - (int)g->prob[i]);
        g->prob[i] = g->precision[rank[i]];
    }
    if (!g->active) {
        resid_expect(&e->resid, bank, guess, n);
        return;
    }
    g->n_guess[bank] = n;
    resid_predict(&e->resid, bank, guess, g->prob, n);
    resid_speculate(&e->resid);
}

/* ---- judging ---- */

static bool has(const int32_t *list, int n, int32_t x)
{
    for (int i = 0; i < n; i++)
        if (list[i] == x) return true;
    return false;
}

void forecast_routed(struct forecast *g, struct tessera_engine *e, int bank, const int32_t *expert,
                     int n)
{
    const int32_t *guess = g->guess + (size_t)bank * (size_t)g->n_experts;
    const uint8_t *rank = g->rank + (size_t)bank * (size_t)g->n_experts;
    const int n_guess = g->n_guess[bank];
    if (!g->n_rows) return;
    for (int i = 0; i < n && n_guess; i++) {
        const bool named = has(guess, n_guess, expert[i]);
        const bool absent = resid_was(&e->resid, i) != RESID_IN_RAM;
        g->asked++;
        g->named += named;
        g->missed += absent;
        g->missed_named += absent && named;
    }
    for (int i = 0; i < n_guess; i++) {
        float *p = &g->precision[rank[i]];
        *p = *p * PRECISION_KEEP + (has(expert, n, guess[i]) ? 1 - PRECISION_KEEP : 0);
    }
    g->n_guess[bank] = 0;
    if (g->kind != PREDICT_PREVIOUS && g->kind != PREDICT_FREQUENCY) return;
    float *rate = g->rate + (size_t)bank * (size_t)g->n_experts;
    const float keep = g->kind == PREDICT_PREVIOUS ? 0 : FREQUENCY_KEEP;
    for (int x = 0; x < g->n_experts; x++) rate[x] *= keep;
    for (int i = 0; i < n; i++) rate[expert[i]] += 1 - keep;
}

/* ---- proof ---- */

/* Windows of the trial: on off off on on off off on ... */
static int arm_of(int window) { return ((window ^ (window >> 1)) & 1) ^ 1; }

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *v)
{
    double copy[TRIAL_ROUNDS];
    memcpy(copy, v, sizeof copy);
    qsort(copy, TRIAL_ROUNDS, sizeof *copy, by_value);
    return (copy[(TRIAL_ROUNDS - 1) / 2] + copy[TRIAL_ROUNDS / 2]) / 2;
}

enum { TRIAL_LENGTH = 2 * TRIAL_ROUNDS * TRIAL_STEPS };

static bool on_trial(const struct forecast *g)
{
    return !g->always && g->steps >= g->trial_from && g->steps < g->trial_from + TRIAL_LENGTH;
}

static bool reads_ahead(const struct forecast *g)
{
    if (g->kind == PREDICT_NONE) return false;
    if (g->always) return true;
    return on_trial(g) ? arm_of((int)(g->steps - g->trial_from) / TRIAL_STEPS) : g->on;
}

void forecast_step(struct forecast *g, struct tessera_engine *e, int n_rows)
{
    g->active = false;
    g->n_rows = 0;
    if (g->kind == PREDICT_NONE || e->resid.all_ram || n_rows > GATE_ROWS) return;
    g->n_rows = n_rows;
    g->active = reads_ahead(g);
    g->start = os_seconds();
    g->waited = e->resid.count.waited;
    memset(g->n_guess, 0, sizeof *g->n_guess * (size_t)g->n_banks);
    if (g->kind == PREDICT_PATH && n_rows == 1) follow_path(g, e); /* every token */
    guess_set(g, e, ROWS_ALL);
}

static void verdict(struct forecast *g)
{
    for (int k = 0; k < 2; k++) {
        g->seconds[k] = median(g->arm[k].seconds);
        g->waited_of[k] = median(g->arm[k].waited);
    }
    g->on = g->seconds[1] < 0.99 * g->seconds[0]; /* less is no gain, but noise */
    g->n_trials++;
    g->n_on += g->on;
    g->trial_from = g->steps + HOLD_STEPS;
    memset(g->arm, 0, sizeof g->arm);
}

void forecast_done(struct forecast *g, struct tessera_engine *e)
{
    if (!g->n_rows) return;
    if (on_trial(g)) {
        const int window = (int)(g->steps - g->trial_from) / TRIAL_STEPS;
        struct arm *a = &g->arm[arm_of(window)];
        a->seconds[window / 2] += (os_seconds() - g->start) / TRIAL_STEPS;
        a->waited[window / 2] += (e->resid.count.waited - g->waited) / TRIAL_STEPS;
    }
    g->steps++;
    if (!g->always && g->steps == g->trial_from + TRIAL_LENGTH) verdict(g);
}
