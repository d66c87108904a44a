/* See sampler.h. */
#include "moe/run/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct tessera_sampling tessera_sampling_defaults(void)
{
    return (struct tessera_sampling){0.8f, 40, 0.95f, 0.05f, 1.0f, 64, 0};
}

enum status sampler_open(struct sampler *s, const struct tessera_sampling *set, int n_vocab,
                         struct err *e)
{
    memset(s, 0, sizeof *s);
    s->set = *set;
    s->n_vocab = n_vocab;
    rng_seed(&s->rng, set->seed);
    s->cand = calloc((size_t)n_vocab, sizeof *s->cand);
    s->seen = calloc((size_t)n_vocab, 1);
    if (s->cand && s->seen) return OK;
    sampler_close(s);
    return err_set(e, ERR_MEMORY, "no memory for the sampler");
}

void sampler_close(struct sampler *s)
{
    free(s->cand);
    free(s->seen);
    s->cand = NULL;
    s->seen = NULL;
}

/* Does a come before b?  Total order, so that results do not depend on the sort. */
static int before(const struct sampler_cand *a, const struct sampler_cand *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static int compare(const void *a, const void *b)
{
    return before(a, b) ? -1 : before(b, a) ? 1 : 0;
}

/* Restores the heap whose worst candidate is at 0, from position i down. */
static void sift(struct sampler_cand *h, int n, int i)
{
    for (;;) {
        int worst = i, l = 2 * i + 1, r = l + 1;
        if (l < n && before(&h[worst], &h[l])) worst = l;
        if (r < n && before(&h[worst], &h[r])) worst = r;
        if (worst == i) return;
        struct sampler_cand t = h[i];
        h[i] = h[worst];
        h[worst] = t;
        i = worst;
    }
}

/* Leaves the k best, best first, in c[0 .. k). */
static void keep_best(struct sampler_cand *c, int n, int k)
{
    if (k < n) {
        for (int i = k / 2 - 1; i >= 0; i--) sift(c, k, i);
        for (int i = k; i < n; i++) {
            if (!before(&c[i], &c[0])) continue;
            c[0] = c[i];
            sift(c, k, 0);
        }
    }
    qsort(c, (size_t)k, sizeof *c, compare);
}

static void penalise(struct sampler *s, const int32_t *past, int n_past)
{
    const float r = s->set.repeat_penalty;
    int from = n_past - s->set.repeat_last_n;
    if (from < 0 || s->set.repeat_last_n < 0) from = 0;
    if (r == 1.0f || r <= 0) return;
    for (int i = from; i < n_past; i++) {
        struct sampler_cand *c = &s->cand[past[i]];
        if (s->seen[past[i]]) continue;
        s->seen[past[i]] = 1;
        c->logit = c->logit > 0 ? c->logit / r : c->logit * r;
    }
    for (int i = from; i < n_past; i++) s->seen[past[i]] = 0;
}

static void softmax(struct sampler_cand *c, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += c[i].p = exp((double)c[i].logit - (double)c[0].logit);
    for (int i = 0; i < n; i++) c[i].p /= sum;
}

/* How many of the sorted candidates pass top-p and min-p; at least one. */
static int filter(const struct tessera_sampling *set, const struct sampler_cand *c, int n)
{
    int keep = n;
    if (set->top_p < 1.0f) {
        double sum = 0;
        for (keep = 0; keep < n && sum < (double)set->top_p; keep++) sum += c[keep].p;
        if (keep < 1) keep = 1;
    }
    if (set->min_p > 0)
        while (keep > 1 && c[keep - 1].p < (double)set->min_p * c[0].p) keep--;
    return keep;
}

int32_t sampler_draw(struct sampler *s, const float *logits, const int32_t *past, int n_past)
{
    struct sampler_cand *c = s->cand;
    int n = s->n_vocab;
    for (int i = 0; i < n; i++) {
        c[i].id = i;
        c[i].logit = isnan(logits[i]) ? -INFINITY : logits[i];
    }
    penalise(s, past, n_past);
    if (s->set.temp <= 0) {
        int best = 0;
        for (int i = 1; i < n; i++)
            if (before(&c[i], &c[best])) best = i;
        return c[best].id;
    }
    const int k = s->set.top_k > 0 && s->set.top_k < n ? s->set.top_k : n;
    keep_best(c, n, k);
    if (isinf(c[0].logit) || isinf(c[0].logit / s->set.temp)) return c[0].id;
    softmax(c, k);
    n = filter(&s->set, c, k);
    for (int i = 0; i < n; i++) c[i].logit /= s->set.temp;
    softmax(c, n);
    while (n > 1 && !(c[n - 1].p > 0)) n--; /* what is impossible is not drawn by rounding either */
    double u = rng_f64(&s->rng);
    for (int i = 0; i < n - 1; i++) {
        if (u < c[i].p) return c[i].id;
        u -= c[i].p;
    }
    return c[n - 1].id;
}
