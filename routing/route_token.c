/* Token choice: see route.h. */
#include <math.h>

#include "routing/route.h"

static void scores(const struct route_params *p, const struct elem_kernels *el, float *x)
{
    if (p->score == ROUTE_SOFTMAX) {
        el->softmax(p->n_expert, x);
        return;
    }
    for (int i = 0; i < p->n_expert; i++) x[i] = -x[i];
    el->exp(p->n_expert, x, x);
    for (int i = 0; i < p->n_expert; i++) x[i] = 1.0f / (1.0f + x[i]);
}

void route_token_choice(const struct route_params *p, const struct elem_kernels *el, float *x,
                        int32_t *id, float *w)
{
    scores(p, el, x);
    /* Insertion into a list of n_used: strict comparison keeps the lower id on ties, and a NaN
     * never beats anything, so that damaged logits still give n_used different experts. */
    for (int s = 0; s < p->n_used; s++) id[s] = -1;
    for (int i = 0; i < p->n_expert; i++) {
        int s = p->n_used;
        while (s > 0 && (id[s - 1] < 0 || x[i] > x[id[s - 1]])) s--;
        if (s == p->n_used) continue;
        for (int t = p->n_used - 1; t > s; t--) id[t] = id[t - 1];
        id[s] = i;
    }
    float sum = 0;
    for (int s = 0; s < p->n_used; s++) {
        w[s] = x[id[s]];
        sum += w[s];
    }
    for (int s = 0; s < p->n_used; s++) {
        if (p->normalise) w[s] /= sum;
        if (p->scale != 1.0f) w[s] *= p->scale;
    }
}

int route_group(const int32_t *id, int n_rows, int n_used, int n_expert, int32_t *count,
                int32_t *expert, int32_t *first, int32_t *pair)
{
    const int n = n_rows * n_used;
    for (int x = 0; x < n_expert; x++) count[x] = 0;
    for (int i = 0; i < n; i++) count[id[i]]++;
    int n_active = 0, at = 0;
    for (int x = 0; x < n_expert; x++) {
        if (!count[x]) continue;
        expert[n_active] = x;
        first[n_active++] = at;
        at += count[x];
        count[x] = at - count[x]; /* from here on: where its next pair goes */
    }
    first[n_active] = at;
    for (int i = 0; i < n; i++) pair[count[id[i]]++] = i;
    return n_active;
}
