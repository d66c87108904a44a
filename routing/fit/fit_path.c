/* See fit_path.h.
 *
 * DESIGN.  Adagrad on the mean binary cross entropy of all (layer, expert) pairs, in chunks of CHUNK
 * consecutive tokens of one session, shuffled anew in every pass.  A chunk's running means are warmed
 * up over the WARM tokens before it; the gradient through them stops at the chunk's start.  Nearly
 * all the work is the output matrix, [n_hidden][n_out]: its columns are cut into blocks, one task
 * each, that compute probabilities, differences, their part of the gradient and of what flows back;
 * the parts are summed in a fixed order, so the result does not depend on the threads. */
#include "routing/fit/fit_path.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe/base/rng.h"
#include "moe/base/thread.h"

enum { CHUNK = 32, WARM = 96, BLOCK = 256, DIM = 64, HIDDEN = 128, LANES = 16 };

static const float RATE = 0.05f, RATE_EMBED = 0.1f;

/* The wide loops in the widest form the machine has; results may differ in the last bit. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
#else
#define WIDE
#endif

struct chunk {
    int trace;
    int32_t row, n; /* rows row .. row + n */
};

struct fit {
    const struct trace *const *traces;
    int n_traces, n_out, n_blocks;
    struct predictor *p;
    float *w, *acc;       /* all parameters, and their sums of squared gradients */
    float *grad_out;      /* [n_hidden][n_out] */
    struct path_state state;
    struct chunk *chunk;
    int64_t n_chunks;
    struct pool *pool;

    /* the chunk at hand */
    const struct trace *t;
    int32_t row;
    int n;
    int32_t id[CHUNK + PATH_BACK]; /* id[PATH_BACK + i]: token i; before it the ones before */
    float *mix, *mean;    /* [CHUNK][n_dim], [CHUNK][PATH_SLOW][n_dim] */
    float *h, *d;         /* [CHUNK][n_hidden], [CHUNK][n_out] */
    float *back;          /* [n_blocks][CHUNK][n_hidden] */
    float *grad_bias, *grad_mix, *grad_mean; /* [n_out], [CHUNK][n_dim], [PATH_SLOW][n_dim] */
    float *grad_hidden;   /* [n_hidden][n_dim] */
    double *loss;         /* [n_blocks] */
};

/* ---- wide loops ---- */

/* y += a * x */
WIDE static void axpy(int n, float a, const float *restrict x, float *restrict y)
{
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) y[i + j] += a * x[i + j];
    for (; i < n; i++) y[i] += a * x[i];
}

WIDE static float dot(int n, const float *restrict x, const float *restrict y)
{
    float lane[LANES] = {0}, sum = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += x[i + j] * y[i + j];
    for (; i < n; i++) sum += x[i] * y[i];
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

/* Adagrad: w -= rate * g / sqrt(sum of g^2); g is left zero. */
WIDE static void update(int n, float rate, float *restrict g, float *restrict acc,
                        float *restrict w)
{
    for (int i = 0; i < n; i++) {
        acc[i] += g[i] * g[i];
        w[i] -= rate * g[i] / (sqrtf(acc[i]) + 1e-8f);
        g[i] = 0;
    }
}

/* ---- one chunk ---- */

/* The parameters are const in a path_model; here they are ours. */
static float *mine(const struct fit *f, const float *array) { return f->w + (array - f->w); }
static float *acc_of(const struct fit *f, const float *array) { return f->acc + (array - f->w); }

static const float *embedding(const struct fit *f, int32_t id)
{
    const struct path_model *m = &f->p->path;
    return id < 0 || id >= m->n_vocab ? NULL : m->embed + (size_t)id * (size_t)m->n_dim;
}

/* Ids before the chunk, and the running means at its start. */
static void warm_up(struct fit *f, const struct chunk *c)
{
    const struct path_model *m = &f->p->path;
    f->t = f->traces[c->trace];
    f->row = c->row;
    f->n = c->n;
    for (int i = -PATH_BACK; i < c->n; i++) {
        const int32_t r = c->row + i;
        const bool inside = r >= 0 && f->t->session[r] == f->t->session[c->row];
        f->id[PATH_BACK + i] = inside ? f->t->token[r] : -1;
    }
    path_reset(m, &f->state);
    for (int32_t r = c->row > WARM ? c->row - WARM : 0; r < c->row; r++) {
        const float *x = embedding(f, f->t->token[r]);
        if (f->t->session[r] != f->t->session[c->row]) continue;
        for (int i = 0; i < PATH_SLOW; i++) {
            float *mean = f->state.mean + i * m->n_dim;
            for (int k = 0; k < m->n_dim; k++)
                mean[k] = path_keep(i) * mean[k] + (x ? (1 - path_keep(i)) * x[k] : 0);
        }
    }
}

/* As path_step, but keeping what the gradient needs. */
static void forward(struct fit *f)
{
    const struct path_model *m = &f->p->path;
    const int n_dim = m->n_dim;
    for (int b = 0; b < f->n; b++) {
        float *mix = f->mix + (size_t)b * (size_t)n_dim, *h = f->h + (size_t)b * (size_t)m->n_hidden;
        const float *x = embedding(f, f->id[PATH_BACK + b]);
        memset(mix, 0, sizeof *mix * (size_t)n_dim);
        for (int i = 0; i < PATH_SLOW; i++) {
            float *run = f->state.mean + i * n_dim;
            for (int k = 0; k < n_dim; k++) {
                run[k] = path_keep(i) * run[k] + (x ? (1 - path_keep(i)) * x[k] : 0);
                mix[k] += m->slow_tap[i * n_dim + k] * run[k];
            }
            memcpy(f->mean + ((size_t)b * PATH_SLOW + (size_t)i) * (size_t)n_dim, run,
                   sizeof *run * (size_t)n_dim);
        }
        for (int j = 0; j < PATH_BACK; j++) {
            const float *e = embedding(f, f->id[PATH_BACK + b - j]);
            for (int k = 0; e && k < n_dim; k++) mix[k] += m->tap[j * n_dim + k] * e[k];
        }
        for (int i = 0; i < m->n_hidden; i++) {
            const float sum = m->hidden_bias[i] + dot(n_dim, m->hidden + (size_t)i * (size_t)n_dim,
                                                      mix);
            h[i] = sum > 0 ? sum : 0;
        }
    }
}

/* A block of columns: probabilities, loss, d = p - label, its gradient, what flows back to h. */
static void output_block(void *arg, int block, int worker)
{
    (void)worker;
    struct fit *f = arg;
    const struct path_model *m = &f->p->path;
    const int from = block * BLOCK, n = f->n_out - from < BLOCK ? f->n_out - from : BLOCK;
    double loss = 0;
    for (int b = 0; b < f->n; b++) {
        float *d = f->d + (size_t)b * (size_t)f->n_out + from;
        const float *h = f->h + (size_t)b * (size_t)m->n_hidden;
        float p[BLOCK];
        memcpy(p, m->out_bias + from, sizeof *p * (size_t)n);
        for (int i = 0; i < m->n_hidden; i++)
            if (h[i] > 0) axpy(n, h[i], m->out + (size_t)i * (size_t)f->n_out + from, p);
        for (int k = 0; k < n; k++) {
            if (d[k] < 0) { /* the layer did not route this row: nothing to learn */
                d[k] = 0;
                continue;
            }
            const float q = 1 / (1 + expf(-p[k]));
            loss -= log((double)(d[k] > 0 ? q : 1 - q) + 1e-12);
            d[k] = q - d[k];
        }
        float *back = f->back + ((size_t)block * CHUNK + (size_t)b) * (size_t)m->n_hidden;
        for (int i = 0; i < m->n_hidden; i++) {
            const size_t at = (size_t)i * (size_t)f->n_out + (size_t)from;
            back[i] = 0;
            if (!(h[i] > 0)) continue;
            back[i] = dot(n, d, m->out + at);
            axpy(n, h[i], d, f->grad_out + at);
        }
    }
    f->loss[block] = loss;
}

/* d: 1 where an expert was used, 0 where not, -1 where the layer did not route the row. */
static void labels(struct fit *f)
{
    const struct path_model *m = &f->p->path;
    for (int b = 0; b < f->n; b++) {
        for (int l = 0; l < m->n_layers; l++) {
            float *d = f->d + (size_t)b * (size_t)f->n_out + (size_t)l * (size_t)m->n_expert;
            const uint16_t *x = trace_experts(f->t, f->row + b, l);
            for (int k = 0; k < m->n_expert; k++) d[k] = x[0] == TRACE_NONE ? -1.0f : 0.0f;
            for (int k = 0; k < f->t->n_used; k++)
                if (x[k] != TRACE_NONE) d[x[k]] = 1;
        }
    }
}

static void add_embed(struct fit *f, int32_t id, const float *g)
{
    const struct path_model *m = &f->p->path;
    const float *x = embedding(f, id);
    float copy[4096];
    if (!x) return;
    memcpy(copy, g, sizeof *g * (size_t)m->n_dim);
    update(m->n_dim, RATE_EMBED, copy, acc_of(f, x), mine(f, x));
}

/* From the gradient of h to everything before it. */
static void backward(struct fit *f)
{
    const struct path_model *m = &f->p->path;
    const int n_dim = m->n_dim;
    float g[4096], taps[PATH_BACK * 4096], slow[PATH_SLOW * 4096], bias[4096];
    memset(f->grad_mean, 0, sizeof *f->grad_mean * PATH_SLOW * (size_t)n_dim);
    memset(taps, 0, sizeof *taps * (size_t)(PATH_BACK * n_dim));
    memset(slow, 0, sizeof *slow * (size_t)(PATH_SLOW * n_dim));
    memset(bias, 0, sizeof *bias * (size_t)m->n_hidden);
    for (int b = f->n - 1; b >= 0; b--) {
        const float *mix = f->mix + (size_t)b * (size_t)n_dim;
        float *gm = f->grad_mix + (size_t)b * (size_t)n_dim;
        memset(gm, 0, sizeof *gm * (size_t)n_dim);
        for (int i = 0; i < m->n_hidden; i++) {
            float gh = 0;
            for (int k = 0; k < f->n_blocks; k++)
                gh += f->back[((size_t)k * CHUNK + (size_t)b) * (size_t)m->n_hidden + (size_t)i];
            if (!(f->h[(size_t)b * (size_t)m->n_hidden + (size_t)i] > 0)) continue;
            bias[i] += gh;
            axpy(n_dim, gh, m->hidden + (size_t)i * (size_t)n_dim, gm);
            axpy(n_dim, gh, mix, f->grad_hidden + (size_t)i * (size_t)n_dim);
        }
        for (int i = 0; i < PATH_SLOW; i++) {
            const float *mean = f->mean + ((size_t)b * PATH_SLOW + (size_t)i) * (size_t)n_dim;
            float *run = f->grad_mean + i * n_dim;
            for (int k = 0; k < n_dim; k++) {
                slow[i * n_dim + k] += gm[k] * mean[k];
                run[k] = path_keep(i) * run[k] + gm[k] * m->slow_tap[i * n_dim + k];
                g[k] = (1 - path_keep(i)) * run[k];
            }
            add_embed(f, f->id[PATH_BACK + b], g);
        }
    }
    for (int b = 0; b < f->n; b++) {
        const float *gm = f->grad_mix + (size_t)b * (size_t)n_dim;
        for (int j = 0; j < PATH_BACK; j++) {
            const float *e = embedding(f, f->id[PATH_BACK + b - j]);
            for (int k = 0; e && k < n_dim; k++) {
                taps[j * n_dim + k] += gm[k] * e[k];
                g[k] = gm[k] * m->tap[j * n_dim + k];
            }
            if (e) add_embed(f, f->id[PATH_BACK + b - j], g);
        }
    }
    update(PATH_BACK * n_dim, RATE, taps, acc_of(f, m->tap), mine(f, m->tap));
    update(PATH_SLOW * n_dim, RATE, slow, acc_of(f, m->slow_tap), mine(f, m->slow_tap));
    update(m->n_hidden, RATE, bias, acc_of(f, m->hidden_bias), mine(f, m->hidden_bias));
    update(m->n_hidden * n_dim, RATE, f->grad_hidden, acc_of(f, m->hidden), mine(f, m->hidden));
}

/* Experts among the n_used likeliest, of a chunk whose d still holds p - label. */
static void count_recall(const struct fit *f, int64_t *used, int64_t *found)
{
    const struct path_model *m = &f->p->path;
    int32_t top[TRACE_USED];
    float score[4096], prob[TRACE_USED];
    for (int l = 0; l < m->n_layers; l++) {
        const uint16_t *x = trace_experts(f->t, f->row, l);
        const float *d = f->d + (size_t)l * (size_t)m->n_expert;
        for (int k = 0; k < m->n_expert; k++) score[k] = d[k] < 0 ? d[k] + 1 : d[k];
        const int n = predict_top(score, m->n_expert, f->t->n_used, top, prob);
        for (int k = 0; k < f->t->n_used; k++) {
            if (x[k] == TRACE_NONE) continue;
            ++*used;
            for (int i = 0; i < n; i++) *found += top[i] == x[k];
        }
    }
}

static void learn(struct fit *f, const struct chunk *c, double *loss, int64_t *used, int64_t *found)
{
    const struct path_model *m = &f->p->path;
    warm_up(f, c);
    forward(f);
    labels(f);
    pool_run(f->pool, output_block, f, f->n_blocks);
    for (int k = 0; k < f->n_blocks; k++) *loss += f->loss[k];
    count_recall(f, used, found); /* of the chunk's first row: a sample */
    float *bias = f->grad_bias;
    for (int b = 0; b < f->n; b++) axpy(f->n_out, 1, f->d + (size_t)b * (size_t)f->n_out, bias);
    backward(f);
    update(f->n_out, RATE, bias, acc_of(f, m->out_bias), mine(f, m->out_bias));
    update(m->n_hidden * f->n_out, RATE, f->grad_out, acc_of(f, m->out), mine(f, m->out));
}

/* ---- setting up ---- */

static enum status check_traces(const struct trace *const *t, int n, struct err *e)
{
    for (int i = 0; i < n; i++) {
        if (t[i]->n_layers != t[0]->n_layers || t[i]->n_experts != t[0]->n_experts ||
            t[i]->n_used != t[0]->n_used || t[i]->n_vocab != t[0]->n_vocab ||
            t[i]->model_hash != t[0]->model_hash)
            return err_set(e, ERR_SHAPE, "trace %d is of another model than the first", i + 1);
        for (int32_t r = 0; r < t[i]->n_rows; r++)
            if (t[i]->token[r] < 0)
                return err_set(e, ERR_MISSING, "trace %d has no token ids to learn from", i + 1);
    }
    if (n < 1 || !t[0]->n_vocab)
        return err_set(e, ERR_MISSING, "there is no trace that says how large the vocabulary is");
    if (t[0]->n_experts > 4096 || (int64_t)t[0]->n_layers * t[0]->n_experts > 1 << 20)
        return err_set(e, ERR_RANGE, "too many experts to fit a predictor to");
    return OK;
}

static enum status list_chunks(struct fit *f, struct err *e)
{
    for (int pass = 0; pass < 2; pass++) {
        f->n_chunks = 0;
        for (int i = 0; i < f->n_traces; i++) {
            const struct trace *t = f->traces[i];
            for (int32_t r = 0, n; r < t->n_rows; r += n) {
                for (n = 1; n < CHUNK && r + n < t->n_rows; n++)
                    if (t->session[r + n] != t->session[r]) break;
                if (f->chunk) f->chunk[f->n_chunks] = (struct chunk){i, r, n};
                f->n_chunks++;
            }
        }
        if (!f->chunk) f->chunk = calloc((size_t)f->n_chunks, sizeof *f->chunk);
        if (!f->chunk) return err_set(e, ERR_MEMORY, "no memory to fit a predictor");
    }
    return OK;
}

/* Small random weights; the biases start from the frequencies, the newest token's tap from 1. */
static void initialise(struct fit *f, uint64_t seed)
{
    struct path_model *m = &f->p->path;
    float *freq = mine(f, f->p->frequency);
    struct rng g;
    double rows = 0;
    rng_seed(&g, seed);
    for (float *w = mine(f, m->embed); w < mine(f, m->tap); w++) *w = rng_range(&g, -0.5f, 0.5f);
    for (int k = 0; k < m->n_dim; k++) {
        mine(f, m->tap)[k] = 1;
        for (int i = 0; i < PATH_SLOW; i++) mine(f, m->slow_tap)[i * m->n_dim + k] = 0.5f;
        for (int j = 1; j < PATH_BACK; j++) mine(f, m->tap)[j * m->n_dim + k] = 0.3f;
    }
    const float spread = 1.5f / sqrtf((float)m->n_dim);
    for (int i = 0; i < m->n_hidden * m->n_dim; i++)
        mine(f, m->hidden)[i] = rng_range(&g, -spread, spread);
    for (int i = 0; i < m->n_hidden * f->n_out; i++)
        mine(f, m->out)[i] = rng_range(&g, -0.05f, 0.05f);
    for (int i = 0; i < f->n_traces; i++) {
        const struct trace *t = f->traces[i];
        rows += t->n_rows;
        for (int32_t r = 0; r < t->n_rows; r++)
            for (int l = 0; l < t->n_layers; l++)
                for (int k = 0; k < t->n_used; k++) {
                    const uint16_t x = trace_experts(t, r, l)[k];
                    if (x != TRACE_NONE) freq[l * t->n_experts + x]++;
                }
    }
    for (int i = 0; i < f->n_out; i++) {
        freq[i] = (float)((double)freq[i] / rows);
        const float q = freq[i] < 1e-4f ? 1e-4f : freq[i] > 0.9999f ? 0.9999f : freq[i];
        mine(f, m->out_bias)[i] = logf(q / (1 - q));
    }
}

static enum status open_fit(struct fit *f, const struct fit_path_options *o, struct err *e)
{
    struct path_model *m = &f->p->path;
    const struct trace *t = f->traces[0];
    *m = (struct path_model){
        .n_vocab = t->n_vocab, .n_dim = o->n_dim ? o->n_dim : DIM,
        .n_hidden = o->n_hidden ? o->n_hidden : HIDDEN, .n_layers = t->n_layers,
        .n_expert = t->n_experts, .n_used = t->n_used};
    if (m->n_dim > 4096 || m->n_hidden > 4096)
        return err_set(e, ERR_RANGE, "a predictor is at most 4096 wide");
    f->p->model_hash = t->model_hash;
    f->n_out = m->n_layers * m->n_expert;
    f->n_blocks = (f->n_out + BLOCK - 1) / BLOCK;
    const size_t n = predictor_floats(m), dim = (size_t)m->n_dim, hidden = (size_t)m->n_hidden;
    const size_t out = (size_t)f->n_out;
    f->w = calloc(n, sizeof *f->w);
    f->acc = calloc(n, sizeof *f->acc);
    f->grad_out = calloc(hidden * out, sizeof *f->grad_out);
    f->state.mean = calloc(PATH_SLOW * dim, sizeof(float));
    f->mix = calloc(CHUNK * dim, sizeof *f->mix);
    f->mean = calloc(CHUNK * PATH_SLOW * dim, sizeof *f->mean);
    f->h = calloc(CHUNK * hidden, sizeof *f->h);
    f->d = calloc(CHUNK * out, sizeof *f->d);
    f->back = calloc((size_t)f->n_blocks * CHUNK * hidden, sizeof *f->back);
    f->grad_bias = calloc(out, sizeof *f->grad_bias);
    f->grad_mix = calloc(CHUNK * dim, sizeof *f->grad_mix);
    f->grad_mean = calloc(PATH_SLOW * dim, sizeof *f->grad_mean);
    f->grad_hidden = calloc(hidden * dim, sizeof *f->grad_hidden);
    f->loss = calloc((size_t)f->n_blocks, sizeof *f->loss);
    if (!f->w || !f->acc || !f->grad_out || !f->state.mean || !f->mix || !f->mean || !f->h ||
        !f->d || !f->back || !f->grad_bias || !f->grad_mix || !f->grad_mean || !f->grad_hidden ||
        !f->loss)
        return err_set(e, ERR_MEMORY, "no memory to fit a predictor");
    predictor_place(f->p, f->w);
    initialise(f, o->seed);
    enum status s = list_chunks(f, e);
    if (s) return s;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return pool_open(cores < 1 ? 1 : cores > 64 ? 64 : (int)cores, &f->pool, e);
}

static void close_fit(struct fit *f)
{
    pool_close(f->pool);
    free(f->acc);
    free(f->grad_out);
    free(f->state.mean);
    free(f->chunk);
    free(f->mix);
    free(f->mean);
    free(f->h);
    free(f->d);
    free(f->back);
    free(f->grad_bias);
    free(f->grad_mix);
    free(f->grad_mean);
    free(f->grad_hidden);
    free(f->loss);
}

enum status fit_path(const struct trace *const *traces, int n, const struct fit_path_options *o,
                     struct predictor *out, struct err *e)
{
    struct fit f = {.traces = traces, .n_traces = n, .p = out};
    struct rng g;
    memset(out, 0, sizeof *out);
    rng_seed(&g, o->seed + 1);
    enum status s = check_traces(traces, n, e);
    if (!s) s = open_fit(&f, o, e);
    for (int pass = 0; pass < o->passes && !s; pass++) {
        double loss = 0, rows = 0;
        int64_t used = 0, found = 0;
        for (int64_t i = f.n_chunks - 1; i > 0; i--) {
            const int64_t k = (int64_t)rng_below(&g, (uint32_t)(i + 1));
            const struct chunk c = f.chunk[i];
            f.chunk[i] = f.chunk[k];
            f.chunk[k] = c;
        }
        for (int64_t i = 0; i < f.n_chunks; i++) {
            learn(&f, &f.chunk[i], &loss, &used, &found);
            rows += f.chunk[i].n;
        }
        if (o->progress && !o->progress(o->arg, pass, loss / (rows * f.n_out),
                                        used ? (double)found / (double)used : 0))
            s = err_set(e, ERR_CANCELLED, "interrupted");
    }
    close_fit(&f);
    if (s) {
        free(f.w);
        memset(out, 0, sizeof *out);
    }
    return s;
}
