/* See choice.h. */
#include "routing/choice.h"

#include <math.h>
#include <string.h>

static const double PI = 3.14159265358979323846, GAUSS_WIDTH = 0.22;

/* The bell of Gauss around one half, moved and stretched so that it goes from 0 to 1 and back. */
static double gauss(double r)
{
    const double at = (r - 0.5) / GAUSS_WIDTH, end = 0.5 / GAUSS_WIDTH, low = exp(-end * end / 2);
    return (exp(-at * at / 2) - low) / (1 - low);
}

double choice_schedule(enum choice_schedule s, double r)
{
    switch (s) {
    case CHOICE_STATIC: break;
    case CHOICE_LINEAR: return r;
    case CHOICE_LINEAR_REVERSE: return 1 - r;
    case CHOICE_COSINE: return (1 - cos(PI * r)) / 2;
    case CHOICE_COSINE_REVERSE: return (1 + cos(PI * r)) / 2;
    case CHOICE_BELL: return 1 - 4 * (r - 0.5) * (r - 0.5);
    case CHOICE_GAUSSIAN: return gauss(r);
    case CHOICE_GAUSSIAN_REVERSE: return 1 - gauss(r);
    }
    return 1;
}

int choice_k(const struct choice_params *p, double hidden)
{
    const double k = p->k_min + (p->k_max - p->k_min) * choice_schedule(p->schedule, hidden);
    const int n = (int)nearbyint(k);
    return n < p->k_min ? p->k_min : n > p->k_max ? p->k_max : n;
}

int choice_capacity(int n, int k, int n_expert)
{
    const int64_t c = (int64_t)n * k / n_expert;
    return c < 1 ? 1 : c > n ? n : (int)c;
}

/* Rises with the score; both zeros are equal, NaN is below everything. */
static uint32_t key_of(float x)
{
    uint32_t bits;
    if (isnan(x)) return 0;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* The c-th largest key, digit by digit; *above: how many are larger. */
static uint32_t nth_key(const float *score, int n, int c, int *above)
{
    uint32_t prefix = 0, mask = 0;
    *above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int count[256] = {0}, digit = 255;
        for (int i = 0; i < n; i++) {
            const uint32_t key = key_of(score[i]);
            if ((key & mask) == prefix) count[key >> shift & 255]++;
        }
        while (*above + count[digit] < c) *above += count[digit--];
        prefix |= (uint32_t)digit << shift;
        mask |= (uint32_t)255 << shift;
    }
    return prefix;
}

void choice_take(const float *score, int n, int c, unsigned char *taken)
{
    int above;
    const uint32_t last = nth_key(score, n, c, &above);
    int equal = c - above; /* of those with the last key that are taken */
    for (int i = 0; i < n; i++) {
        const uint32_t key = key_of(score[i]);
        taken[i] = key > last || (key == last && equal > 0);
        if (key == last) equal--;
    }
}

void choice_scores(const struct route_params *p, const struct elem_kernels *el, float *logits)
{
    if (p->score == ROUTE_SOFTMAX) el->softmax(p->n_expert, logits);
}

int choice_gates(const struct route_params *p, const struct elem_kernels *el, const float *scale,
                 const float *x, const unsigned char *taken, int stride, int32_t *id, float *w)
{
    int n = 0;
    for (int e = 0; e < p->n_expert; e++) {
        if (!taken[(size_t)e * (size_t)stride]) continue;
        id[n] = e;
        w[n++] = x[e];
    }
    if (!n) return 0;
    if (p->score == ROUTE_SOFTMAX_CHOSEN) el->softmax(n, w);
    if (p->score == ROUTE_SIGMOID) {
        float sum = 0;
        elem_sigmoid(el, n, w);
        for (int s = 0; s < n; s++) sum += w[s];
        for (int s = 0; s < n; s++) w[s] /= sum > 1e-20f ? sum : 1e-20f;
    }
    for (int s = 0; s < n; s++) {
        if (p->scale != 1.0f) w[s] *= p->scale;
        if (scale) w[s] *= scale[n];
    }
    return n;
}
