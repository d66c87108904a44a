/* See predict.h. */
#include "routing/predict.h"

#include <math.h>
#include <string.h>

#include "routing/route.h"

int predict_top(const float *score, int n, int max, int32_t *expert, float *prob)
{
    int k = 0;
    for (int i = 0; i < n; i++) {
        if (!(score[i] > 0) || (k == max && !(score[i] > prob[k - 1]))) continue;
        int at = k < max ? k++ : k - 1;
        for (; at > 0 && score[i] > prob[at - 1]; at--) {
            prob[at] = prob[at - 1];
            expert[at] = expert[at - 1];
        }
        prob[at] = score[i];
        expert[at] = i;
    }
    return k;
}

void predict_seen(float *rate, int n_expert, float keep, const uint16_t *expert, int n_used)
{
    for (int i = 0; i < n_expert; i++) rate[i] *= keep;
    for (int k = 0; k < n_used; k++)
        if (expert[k] < n_expert) rate[expert[k]] += 1 - keep;
}

int predict_gate(const struct route_params *p, const struct elem_kernels *el, const float *bias,
                 float *logits, float *pick, int max, int32_t *expert, float *prob)
{
    struct route_params wide = *p;
    wide.n_used = max < p->n_expert ? max : p->n_expert;
    wide.normalise = 0;
    wide.scale = 1;
    route_token_choice(&wide, el, bias, NULL, logits, pick, expert, prob);
    return wide.n_used;
}

/* ---- the learned routing path ---- */

float path_keep(int i) { return i ? 0.978572f : 0.840896f; } /* half-lives of 32 and 4 tokens */

void path_reset(const struct path_model *m, struct path_state *s)
{
    for (int j = 0; j < PATH_BACK; j++) s->back[j] = -1;
    memset(s->mean, 0, sizeof *s->mean * PATH_SLOW * (size_t)m->n_dim);
}

static const float *embedding(const struct path_model *m, int32_t id)
{
    return id < 0 || id >= m->n_vocab ? NULL : m->embed + (size_t)id * (size_t)m->n_dim;
}

static void add_product(int n, const float *a, const float *b, float *y)
{
    for (int i = 0; i < n; i++) y[i] += a[i] * b[i];
}

void path_step(const struct path_model *m, struct path_state *s, int32_t id, float *mix, float *h,
               float *p)
{
    const int n_dim = m->n_dim, n_out = m->n_layers * m->n_expert;
    const float *x = embedding(m, id);
    memmove(s->back + 1, s->back, sizeof *s->back * (PATH_BACK - 1));
    s->back[0] = id;
    memset(mix, 0, sizeof *mix * (size_t)n_dim);
    for (int i = 0; i < PATH_SLOW; i++) {
        float *mean = s->mean + i * n_dim;
        const float keep = path_keep(i);
        for (int k = 0; k < n_dim; k++) mean[k] = keep * mean[k] + (x ? (1 - keep) * x[k] : 0);
        if (p) add_product(n_dim, m->slow_tap + i * n_dim, mean, mix);
    }
    if (!p) return;
    for (int j = 0; j < PATH_BACK; j++) {
        const float *e = embedding(m, s->back[j]);
        if (e) add_product(n_dim, m->tap + j * n_dim, e, mix);
    }
    for (int i = 0; i < m->n_hidden; i++) {
        const float *w = m->hidden + (size_t)i * (size_t)n_dim;
        float sum = m->hidden_bias[i];
        for (int k = 0; k < n_dim; k++) sum += w[k] * mix[k];
        h[i] = sum > 0 ? sum : 0;
    }
    memcpy(p, m->out_bias, sizeof *p * (size_t)n_out);
    for (int i = 0; i < m->n_hidden; i++) {
        if (!(h[i] > 0)) continue;
        const float *w = m->out + (size_t)i * (size_t)n_out;
        for (int k = 0; k < n_out; k++) p[k] += h[i] * w[k];
    }
    for (int k = 0; k < n_out; k++) p[k] = 1 / (1 + expf(-p[k]));
}
