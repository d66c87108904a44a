/* Token choice: see route.h. */
#include <math.h>

#include "routing/route.h"

enum { GROUPS_MAX = 64 };

static void scores(const struct route_params *p, const struct elem_kernels *el, float *x)
{
    if (p->score == ROUTE_SOFTMAX) el->softmax(p->n_expert, x);
    if (p->score == ROUTE_SIGMOID) elem_sigmoid(el, p->n_expert, x);
}

/* A strict order, so that the lower id stays before on ties; a NaN comes after every number. */
static int beats(float a, float b) { return a > b || (isnan(b) && !isnan(a)); }

/* The n best of x[m] in id[n], best first.  Damaged logits still give n different ids. */
static void best(const float *x, int m, int n, int32_t *id)
{
    for (int s = 0; s < n; s++) id[s] = -1;
    for (int i = 0; i < m; i++) {
        int s = n;
        while (s > 0 && (id[s - 1] < 0 || beats(x[i], x[id[s - 1]]))) s--;
        if (s == n) continue;
        for (int t = n - 1; t > s; t--) id[t] = id[t - 1];
        id[s] = i;
    }
}

/* Leaves only the experts of the best groups in the running. */
static void keep_groups(const struct route_params *p, float *pick)
{
    float sum[GROUPS_MAX] = {0};
    int32_t top[GROUPS_MAX];
    const int n = p->n_expert / p->n_group;
    for (int g = 0; g < p->n_group; g++) {
        int32_t two[2];
        best(pick + g * n, n, n < 2 ? n : 2, two);
        sum[g] = pick[g * n + two[0]] + (n < 2 ? 0 : pick[g * n + two[1]]);
    }
    best(sum, p->n_group, p->n_group_used, top);
    for (int g = 0; g < p->n_group; g++) {
        int in = 0;
        for (int i = 0; i < p->n_group_used; i++) in |= top[i] == g;
        for (int i = 0; !in && i < n; i++) pick[g * n + i] = -INFINITY;
    }
}

void route_compare(const struct route_params *p, const struct elem_kernels *el, const float *bias,
                   float *x, float *pick)
{
    scores(p, el, x);
    for (int i = 0; i < p->n_expert; i++) pick[i] = bias ? x[i] + bias[i] : x[i];
}

static void weigh(const struct route_params *p, const struct elem_kernels *el, const float *scale,
                  const float *x, const int32_t *id, float *w)
{
    float sum = 0;
    for (int s = 0; s < p->n_used; s++) w[s] = x[id[s]];
    if (p->score == ROUTE_SOFTMAX_CHOSEN) el->softmax(p->n_used, w);
    for (int s = 0; s < p->n_used; s++) sum += w[s];
    if (sum < 0x1p-14f) sum = 0x1p-14f;
    for (int s = 0; s < p->n_used; s++) {
        if (p->normalise) w[s] /= sum;
        if (p->scale != 1.0f) w[s] *= p->scale;
        if (scale) w[s] *= scale[id[s]];
    }
}

void route_token_choice(const struct route_params *p, const struct elem_kernels *el,
                        const float *bias, const float *scale, float *x, float *pick, int32_t *id,
                        float *w)
{
    route_compare(p, el, bias, x, pick);
    if (p->n_group > 1 && p->n_group_used < p->n_group) keep_groups(p, pick);
    best(pick, p->n_expert, p->n_used, id);
    weigh(p, el, scale, x, id, w);
}

void route_given(const struct route_params *p, const struct elem_kernels *el, const float *bias,
                 const float *scale, float *x, float *pick, int32_t *id, float *w)
{
    route_compare(p, el, bias, x, pick);
    for (int i = 1; i < p->n_used; i++) {
        const int32_t one = id[i];
        int at = i;
        for (; at > 0 && (beats(pick[one], pick[id[at - 1]]) ||
                          (!beats(pick[id[at - 1]], pick[one]) && one < id[at - 1])); at--)
            id[at] = id[at - 1];
        id[at] = one;
    }
    weigh(p, el, scale, x, id, w);
}

int route_group(const int32_t *id, const int32_t *n_of, int n_rows, int n_used, int n_expert,
                int32_t *count, int32_t *expert, int32_t *first, int32_t *pair)
{
    for (int x = 0; x < n_expert; x++) count[x] = 0;
    for (int r = 0; r < n_rows; r++)
        for (int s = 0; s < (n_of ? n_of[r] : n_used); s++) count[id[r * n_used + s]]++;
    int n_active = 0, at = 0;
    for (int x = 0; x < n_expert; x++) {
        if (!count[x]) continue;
        expert[n_active] = x;
        first[n_active++] = at;
        at += count[x];
        count[x] = at - count[x]; /* from here on: where its next pair goes */
    }
    first[n_active] = at;
    for (int r = 0; r < n_rows; r++)
        for (int s = 0; s < (n_of ? n_of[r] : n_used); s++)
            pair[count[id[r * n_used + s]]++] = r * n_used + s;
    return n_active;
}
