/* One token of `tessera oracle`: the model as routing/oracle.h wants it, by parts of the pass
 * (moe/run/branch.h).  See oracle_job.h. */
#include <stdlib.h>
#include <string.h>

#include "cli/oracle_job.h"

/* ---- units ---- */

static bool is_free(const struct oracle_job *j, const struct branch_part *p)
{
    if (p->kind == BRANCH_FIXED) return false;
    if (j->what == ORACLE_EXPERTS) return p->n_expert > p->n_used;
    return strcmp(j->own.unit, "ffn") != 0 || p->kind != BRANCH_ATTENTION;
}

enum status oracle_units(struct oracle_job *j, struct err *err)
{
    const bool layers = j->what == ORACLE_ROUTES && !strcmp(j->own.unit, "layer");
    const struct branches *b = &j->b;
    j->unit = calloc((size_t)b->n_parts, sizeof *j->unit);
    j->fixed = calloc((size_t)b->n_parts, sizeof *j->fixed);
    j->free_unit = calloc((size_t)b->n_parts, sizeof *j->free_unit);
    if (!j->unit || !j->fixed || !j->free_unit)
        return err_set(err, ERR_MEMORY, "no memory for an oracle");
    for (int p = 0; p < b->n_parts; p++) {
        static const char *const names[] = {"attention", "feed-forward", "layer", "norm"};
        const struct oracle_unit *last = j->n_units ? &j->unit[j->n_units - 1] : NULL;
        if (layers && last && last->layer == b->part[p].layer && last->layer >= 0) {
            j->unit[j->n_units - 1].n++;
            continue;
        }
        j->fixed[j->n_units] = !is_free(j, &b->part[p]);
        if (!j->fixed[j->n_units]) j->free_unit[j->n_free++] = j->n_units;
        j->unit[j->n_units++] = (struct oracle_unit){
            p, 1, b->part[p].layer, layers && b->part[p].layer >= 0 ? "layer"
                                                                    : names[b->part[p].kind]};
    }
    if (!j->n_free)
        return err_set(err, ERR_MISSING, j->what == ORACLE_EXPERTS
                       ? "this model has no routers that choose experts: --what routes looks at its "
                         "layers" : "this model has no such part to pass by: another --unit?");
    return OK;
}

static enum status run_unit(void *arg, int unit, int n, const float *in, float *out, struct err *err)
{
    struct oracle_job *j = arg;
    return branches_run(&j->b, j->unit[unit].first, j->unit[unit].n, n, in, out, NULL, NULL, err);
}

static enum status end_loss(void *arg, int n, const float *in, double *loss, struct err *err)
{
    struct oracle_job *j = arg;
    return branches_loss(&j->b, n, in, j->target, loss, err);
}

/* Numbers for this token alone, so that it does not matter where a search began. */
static uint64_t seed_of(const struct oracle_job *j)
{
    uint64_t x = (uint64_t)j->own.seed * 0x9e3779b97f4a7c15u + (uint64_t)j->n_done;
    return rng_splitmix(&x);
}

/* ---- routes ---- */

static enum status routes(struct oracle_job *j, const float *x, struct err *err)
{
    const struct oracle_model m = {j->n_units, j->b.n_embd, j->fixed, run_unit, end_loss, j};
    const struct oracle_options o = {.skips = j->own.skips, .all = j->own.all, .beam = j->own.beam,
                                     .random = j->own.random, .seed = seed_of(j)};
    struct oracle_routes r;
    enum status s = oracle_routes(&m, x, &o, &r, &j->work, err);
    float *v = oracle_value(j, j->n_done);
    const int n = j->n_free + 1;
    for (int c = 0; c < n && !s; c++) {
        v[c] = (float)r.best[c];
        v[n + c] = (float)r.random[c];
        v[2 * n + c] = (float)r.mean[c];
        oracle_route(j, j->n_done)[c] = r.route[c];
    }
    return s;
}

/* ---- experts ---- */

/* One layer's sets, the layers behind it as their routers say. */
struct layer_sets {
    struct oracle_job *j;
    int unit, n_used;
    const float *x;   /* [n_embd] what the layer's feed-forward reads */
    float *rows;      /* [cap][n_embd] */
    int cap;
};

static enum status sets_loss(void *arg, int n, const int32_t *set, double *loss, struct err *err)
{
    struct layer_sets *l = arg;
    struct oracle_job *j = l->j;
    const size_t row = (size_t)j->b.n_embd;
    enum status s = OK;
    for (int at = 0, m; at < n && !s; at += m) {
        m = n - at < l->cap ? n - at : l->cap;
        for (int r = 0; r < m; r++) memcpy(l->rows + (size_t)r * row, l->x, row * sizeof *l->rows);
        s = branches_run(&j->b, j->unit[l->unit].first, 1, m, l->rows, l->rows,
                         set + (size_t)at * (size_t)l->n_used, NULL, err);
        for (int u = l->unit + 1; u < j->n_units && !s; u++)
            s = run_unit(j, u, m, l->rows, l->rows, err);
        if (!s) s = end_loss(j, m, l->rows, loss + at, err);
    }
    j->work.run += (uint64_t)n * (uint64_t)(j->n_units - l->unit);
    j->work.alone += (uint64_t)n * (uint64_t)j->n_units;
    j->work.routes += (uint64_t)n;
    return s;
}

static enum status one_layer(struct oracle_job *j, struct layer_sets *l, int k, struct err *err)
{
    const struct branch_part *p = &j->b.part[j->unit[l->unit].first];
    enum { USED_MAX = 1024 };
    int32_t router[USED_MAX], set[USED_MAX];
    struct oracle_set out;
    float *v = oracle_value(j, j->n_done) + 4 * k;
    if (p->n_used > USED_MAX) return err_set(err, ERR_RANGE, "too many experts per token");
    l->n_used = p->n_used;
    enum status s = branches_run(&j->b, j->unit[l->unit].first, 1, 1, l->x, l->rows, NULL, router, err);
    if (s) return s;
    memcpy(set, router, sizeof *set * (size_t)p->n_used);
    const struct oracle_sets o = {
        .n_expert = p->n_expert, .n_used = p->n_used, .loss = sets_loss, .arg = l,
        .all = j->own.all, .rounds = j->own.rounds, .random = j->own.random,
        .seed = seed_of(j) + (uint64_t)k};
    if ((s = oracle_experts(&o, set, &out, err))) return s;
    int kept = 0;
    for (int a = 0; a < p->n_used; a++)
        for (int b = 0; b < p->n_used; b++) kept += set[a] == router[b];
    v[0] = (float)out.start;
    v[1] = (float)out.best;
    v[2] = (float)out.random;
    v[3] = (float)kept;
    return OK;
}

static enum status experts(struct oracle_job *j, float *x, struct err *err)
{
    enum { ROWS = 256 };
    struct layer_sets l = {.j = j, .x = x, .cap = ROWS};
    l.rows = malloc(sizeof *l.rows * ROWS * (size_t)j->b.n_embd);
    if (!l.rows) return err_set(err, ERR_MEMORY, "no memory for an oracle");
    enum status s = OK;
    for (int k = 0; l.unit < j->n_units && !s; l.unit++) {
        if (!j->fixed[l.unit]) s = one_layer(j, &l, k++, err);
        if (!s) s = run_unit(j, l.unit, 1, x, x, err);
    }
    free(l.rows);
    return s;
}

/* ---- depth ---- */

/* The token at every depth, each on the timeline as the router has left it. */
static enum status depths(struct oracle_job *j, int32_t id, struct err *err)
{
    const struct tessera_mark before = tessera_session_mark(j->session);
    const struct tessera_input in = {.session = j->session, .ids = &id, .n = 1,
                                     .logits = TESSERA_LOGITS_LAST};
    float *v = oracle_value(j, j->n_done);
    enum status s = OK;
    for (int d = 0; d < j->n_depths && !s; d++) {
        if ((s = branches_depth(j->e, j->least_depth + d, err))) break;
        s = tessera_step(j->e, &in, 1, err);
        if (!s)
            v[1 + d] = (float)branches_loss_of(tessera_logits(j->e, 0, 0),
                                               tessera_model(j->e).n_vocab, j->target);
        if (!s) s = tessera_session_rollback(j->session, before, err);
        j->work.routes++;
    }
    (void)branches_depth(j->e, -1, err);
    return s;
}

enum status oracle_token(struct oracle_job *j, int32_t id, struct err *err)
{
    enum status s = OK;
    if (j->what == ORACLE_DEPTH) {
        s = depths(j, id, err);
    } else {
        float *x = malloc(sizeof *x * (size_t)j->b.n_embd);
        if (!x) return err_set(err, ERR_MEMORY, "no memory for an oracle");
        s = branches_token(&j->b, j->session, id, x, err);
        if (!s) s = j->what == ORACLE_ROUTES ? routes(j, x, err) : experts(j, x, err);
        free(x);
    }
    const struct tessera_input in = {.session = j->session, .ids = &id, .n = 1};
    if (!s) s = tessera_step(j->e, &in, 1, err);
    if (!s && j->what == ORACLE_DEPTH)
        oracle_value(j, j->n_done)[0] =
            (float)tessera_session_depths(j->session)[tessera_session_n(j->session) - 1];
    if (!s) j->n_done++;
    return s;
}
