/* See approx.h. */
#include "routing/approx.h"

#include <math.h>

long approx_floats(int n, int rank) { return 2L * rank * n + 2L * n; }

void approx_point(int n, int rank, float *data, struct approx_layer *out)
{
    out->n = n;
    out->rank = rank;
    out->down = data;
    out->up = data + (long)rank * n;
    out->bias = out->up + (long)rank * n;
    out->judge = out->bias + n;
}

float approx_scale(int n, const float *x)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return (float)(1 / sqrt(sum / n + 1e-12));
}

float approx_judge(const struct approx_layer *l, const float *x, float scale)
{
    float sum = 0;
    for (int i = 0; i < l->n; i++) sum += l->judge[i] * x[i];
    return sum * scale + l->judge_bias;
}

void approx_apply(const struct approx_layer *l, const float *x, float scale, float *out)
{
    float mid[APPROX_RANK_MAX];
    for (int k = 0; k < l->rank; k++) {
        const float *w = l->down + (long)k * l->n;
        float sum = 0;
        for (int i = 0; i < l->n; i++) sum += w[i] * x[i];
        mid[k] = sum * scale;
    }
    for (int i = 0; i < l->n; i++) out[i] = x[i] + l->bias[i];
    for (int k = 0; k < l->rank; k++) {
        const float *w = l->up + (long)k * l->n;
        for (int i = 0; i < l->n; i++) out[i] += w[i] * mid[k];
    }
}

int approx_leave(int n, int32_t *id, float *w, float least, int keep_sum)
{
    float all = 0, kept = 0;
    int top = 0, m = 0;
    for (int i = 1; i < n; i++) top = w[i] > w[top] ? i : top;
    for (int i = 0; i < n; i++) {
        all += w[i];
        if (w[i] < least && i != top) continue;
        kept += w[i];
        id[m] = id[i];
        w[m++] = w[i];
    }
    for (int i = 0; i < m && keep_sum && m < n && kept > 0; i++) w[i] *= all / kept;
    return m;
}
