/* See depth.h. */
#include "routing/depth.h"

#include <math.h>

float depth_score(enum depth_score score, const struct elem_kernels *el, float logit)
{
    float y = 2.0f * logit;
    switch (score) {
    case DEPTH_TANH:
        el->exp(1, &y, &y);
        return 1.0f - 2.0f / (y + 1.0f);
    case DEPTH_IDENTITY: return logit;
    case DEPTH_SIGMOID:
    case DEPTH_SOFTMAX: break;
    }
    elem_sigmoid(el, 1, &logit);
    return logit;
}

void depth_choose(const struct depth_params *p, const struct elem_kernels *el, const float *bias,
                  const float *logit, float *out)
{
    const int n = p->n_steps;
    float *only = out + 1, *chance = out + 1 + n;
    for (int i = 0; i < n; i++) chance[i] = logit[i];
    if (p->score == DEPTH_SOFTMAX) el->softmax(n, chance);
    else elem_sigmoid(el, n, chance);
    int best = 0;
    for (int i = 0; i < n; i++) {
        chance[i] *= p->alpha;
        const float mine = chance[i] + (bias ? bias[i] : 0);
        if (mine > chance[best] + (bias ? bias[best] : 0)) best = i;
    }
    for (int i = 0; i < n; i++) only[i] = i == best ? chance[i] : 0;
    out[0] = (float)(best + 1);
}

void depth_choose_given(const struct depth_params *p, int depth, float *out)
{
    out[0] = (float)depth;
    for (int i = 0; i < p->n_steps; i++) out[1 + i] = i == depth - 1 ? out[1 + p->n_steps + i] : 0;
}

void depth_exit(const struct depth_params *p, const struct elem_kernels *el, float logit,
                const float *before, float *out)
{
    const float left = before ? before[0] : 1, sum = before ? before[1] : 0;
    const float stop = depth_score(DEPTH_SIGMOID, el, logit);
    const float chance = p->step == p->n_steps ? left : stop * left;
    out[0] = left * (1.0f - stop);
    out[1] = sum + chance;
    out[2] = chance;
}

int depth_capacity(float share, int n)
{
    const int k = (int)floor((double)share * n * (1 + 1e-6));
    return k < 1 ? 1 : k > n ? n : k;
}
