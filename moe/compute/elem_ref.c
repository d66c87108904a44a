/* Reference of elem.h in plain C, and the choice of a tier's table.
 *
 * Owns the definition of every result: the other tiers must agree with this file bit for bit
 * (tests/check_elem.c).  Clear before fast; one row, one head, one position at a time.  fmaf is
 * libm's, so that it runs without FMA instructions too.  Never allocates. */
#include <math.h>
#include <string.h>

#include "moe/base/f16.h"
#include "moe/compute/elem_int.h"

enum { LANES = 16 };

/* What maxps does: b when the two are equal or one is NaN. */
static float max2(float a, float b) { return a > b ? a : b; }

static float exp1(float x)
{
    if (x != x) return f32_from_bits(EXP_NAN);
    if (x > EXP_HI) return INFINITY;
    if (x < EXP_LO) return 0.0f;
    float t = fmaf(x, EXP_LOG2E, EXP_MAGIC);
    float n = t - EXP_MAGIC;
    float r = fmaf(-n, EXP_LN2_HI, x);
    r = fmaf(-n, EXP_LN2_LO, r);
    float p = EXP_C6;
    p = fmaf(p, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return f32_from_bits(f32_bits(p) + (f32_bits(t) << 23));
}

/* Folds sixteen lanes by 8, 4, 2, 1; a is overwritten. */
static float fold_add(float a[LANES])
{
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) a[j] += a[j + half];
    return a[0];
}

static float fold_max(float a[LANES])
{
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) a[j] = max2(a[j], a[j + half]);
    return a[0];
}

static float lanes_max(int n, const float *x)
{
    float a[LANES];
    for (int j = 0; j < LANES; j++) a[j] = -INFINITY;
    for (int i = 0; i < n; i++) a[i % LANES] = max2(x[i], a[i % LANES]);
    return fold_max(a);
}

static float lanes_sum(int n, const float *x)
{
    float a[LANES] = {0};
    for (int i = 0; i < n; i++) a[i % LANES] += x[i];
    return fold_add(a);
}

static void rms_norm_ref(int n, const float *x, const float *w, float eps, float *y)
{
    float a[LANES] = {0};
    for (int i = 0; i < n; i++) a[i % LANES] = fmaf(x[i], x[i], a[i % LANES]);
    const float r = 1.0f / sqrtf(fold_add(a) / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = w ? (x[i] * r) * w[i] : x[i] * r;
}

static void add_ref(int n, const float *x, float *y)
{
    for (int i = 0; i < n; i++) y[i] += x[i];
}

static void swiglu_ref(int n, const float *gate, const float *up, float *y)
{
    for (int i = 0; i < n; i++) y[i] = gate[i] / (1.0f + exp1(-gate[i])) * up[i];
}

static void softmax_ref(int n, float *x)
{
    const float m = lanes_max(n, x);
    for (int i = 0; i < n; i++) x[i] = exp1(x[i] - m);
    const float sum = lanes_sum(n, x);
    for (int i = 0; i < n; i++) x[i] /= sum;
}

static void combine_ref(int n, int n_slots, const float *w, const float *const *x, float *y)
{
    for (int i = 0; i < n; i++) {
        float acc = 0.0f;
        for (int s = 0; s < n_slots; s++) acc = fmaf(w[s], x[s][i], acc);
        y[i] = acc;
    }
}

static void rotate(float *pa, float *pb, float c, float s)
{
    const float a = *pa;
    const float b = *pb;
    *pa = fmaf(a, c, -(b * s));
    *pb = fmaf(b, c, a * s);
}

static void rope_neox_ref(int n_rot, const float *cs, float *x)
{
    const int h = n_rot / 2;
    for (int i = 0; i < h; i++) rotate(x + i, x + h + i, cs[i], cs[h + i]);
}

static void rope_norm_ref(int n_rot, const float *cs, float *x)
{
    const int h = n_rot / 2;
    for (int i = 0; i < h; i++) rotate(x + 2 * i, x + 2 * i + 1, cs[i], cs[h + i]);
}

static void exp_ref(int n, const float *x, float *y)
{
    for (int i = 0; i < n; i++) y[i] = exp1(x[i]);
}

/* --- KV pages --- */

static void kv_put_f16_ref(int dk, int dv, const float *k, const float *v, char *kv, int pos)
{
    uint16_t *kp = (uint16_t *)kv;                /* [dk][64] */
    uint16_t *vp = kp + (size_t)dk * KV_PAGE;     /* [64][dv] */
    for (int d = 0; d < dk; d++) kp[(size_t)d * KV_PAGE + (size_t)pos] = f16_from_f32(k[d]);
    for (int d = 0; d < dv; d++) vp[(size_t)pos * (size_t)dv + (size_t)d] = f16_from_f32(v[d]);
}

/* 32 values to q[32] and the half scale, which is returned.  The largest magnitude is taken on the
 * bit patterns, where infinity is above every number and NaN above infinity: such a block gets a
 * scale that is not finite, and so stays visibly broken. */
static uint16_t quant_q8(const float *x, int8_t *q)
{
    uint32_t top = 0;
    for (int i = 0; i < Q8_BLOCK; i++) {
        const uint32_t a = f32_bits(x[i]) & 0x7fffffffu;
        if (a > top) top = a;
    }
    const float amax = f32_from_bits(top);
    const uint16_t d = f16_from_f32(amax / 127.0f);
    const int good = d != 0 && d < 0x7c00u;
    const float inv = good ? 127.0f / amax : 0.0f;
    for (int i = 0; i < Q8_BLOCK; i++) {
        /* Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits. */
        const float t = good ? x[i] * inv + EXP_MAGIC : EXP_MAGIC;
        q[i] = (int8_t)(uint8_t)f32_bits(t);
    }
    return d;
}

static void kv_put_q8_ref(int dk, int dv, const float *k, const float *v, char *kv, int pos)
{
    const size_t kb = (size_t)dk / Q8_BLOCK;
    const size_t vb = (size_t)dv / Q8_BLOCK;
    const size_t p = (size_t)pos;
    int8_t q[Q8_BLOCK];
    uint16_t *kd = (uint16_t *)kv;                           /* [dk/32][64] */
    int8_t *kq = (int8_t *)(kd + kb * KV_PAGE);              /* [dk][64] */
    uint16_t *vd = (uint16_t *)(kq + (size_t)dk * KV_PAGE);  /* [64][dv/32] */
    int8_t *vq = (int8_t *)(vd + vb * KV_PAGE);              /* [64][dv] */
    for (size_t b = 0; b < kb; b++) {
        kd[b * KV_PAGE + p] = quant_q8(k + b * Q8_BLOCK, q);
        for (size_t i = 0; i < Q8_BLOCK; i++) kq[(b * Q8_BLOCK + i) * KV_PAGE + p] = q[i];
    }
    for (size_t b = 0; b < vb; b++)
        vd[p * vb + b] = quant_q8(v + b * Q8_BLOCK, vq + p * (size_t)dv + b * Q8_BLOCK);
}

/* --- attention --- */

/* Unscaled q.k of all 64 positions of a page. */
typedef void score_fn(int dk, const float *q, const char *page, float s[KV_PAGE]);
/* o[dv] = fma(e, v, o) with position p of a page. */
typedef void value_fn(int dk, int dv, float e, const char *page, size_t p, float *o);

static void score_f16(int dk, const float *q, const char *page, float s[KV_PAGE])
{
    const uint16_t *k = (const uint16_t *)page;
    for (size_t p = 0; p < KV_PAGE; p++) {
        float acc = 0.0f;
        for (size_t d = 0; d < (size_t)dk; d++)
            acc = fmaf(q[d], f16_to_f32(k[d * KV_PAGE + p]), acc);
        s[p] = acc;
    }
}

static void value_f16(int dk, int dv, float e, const char *page, size_t p, float *o)
{
    const uint16_t *v = (const uint16_t *)page + (size_t)dk * KV_PAGE + p * (size_t)dv;
    for (int d = 0; d < dv; d++) o[d] = fmaf(e, f16_to_f32(v[d]), o[d]);
}

static void score_q8(int dk, const float *q, const char *page, float s[KV_PAGE])
{
    const size_t blocks = (size_t)dk / Q8_BLOCK;
    const uint16_t *kd = (const uint16_t *)page;
    const int8_t *k = (const int8_t *)(kd + blocks * KV_PAGE);
    for (size_t p = 0; p < KV_PAGE; p++) {
        float acc = 0.0f;
        for (size_t b = 0; b < blocks; b++) {
            float t = 0.0f;
            for (size_t d = b * Q8_BLOCK; d < (b + 1) * Q8_BLOCK; d++)
                t = fmaf(q[d], (float)k[d * KV_PAGE + p], t);
            acc = fmaf(t, f16_to_f32(kd[b * KV_PAGE + p]), acc);
        }
        s[p] = acc;
    }
}

static void value_q8(int dk, int dv, float e, const char *page, size_t p, float *o)
{
    const size_t blocks = (size_t)dv / Q8_BLOCK;
    const uint16_t *vd = (const uint16_t *)(page + attn_head_bytes(KV_Q8_0, dk, 0));
    const int8_t *v = (const int8_t *)(vd + blocks * KV_PAGE) + p * (size_t)dv;
    for (size_t b = 0; b < blocks; b++) {
        const float w = e * f16_to_f32(vd[p * blocks + b]);
        for (size_t d = b * Q8_BLOCK; d < (b + 1) * Q8_BLOCK; d++)
            o[d] = fmaf(w, (float)v[d], o[d]);
    }
}

/* The same where V is the beginning of K. */
static void value_latent_f16(int dk, int dv, float e, const char *page, size_t p, float *o)
{
    (void)dk;
    const uint16_t *k = (const uint16_t *)page;
    for (int d = 0; d < dv; d++) o[d] = fmaf(e, f16_to_f32(k[(size_t)d * KV_PAGE + p]), o[d]);
}

static void value_latent_q8(int dk, int dv, float e, const char *page, size_t p, float *o)
{
    const uint16_t *kd = (const uint16_t *)page;
    const int8_t *k = (const int8_t *)(kd + (size_t)dk / Q8_BLOCK * KV_PAGE);
    for (size_t b = 0; b < (size_t)dv / Q8_BLOCK; b++) {
        const float w = e * f16_to_f32(kd[b * KV_PAGE + p]);
        for (size_t d = b * Q8_BLOCK; d < (b + 1) * Q8_BLOCK; d++)
            o[d] = fmaf(w, (float)k[d * KV_PAGE + p], o[d]);
    }
}

/* One query head q[dk] of a row, out[dv].  The comment of elem.h in code. */
static void attn_head(int dk, int dv, float scale, const struct attn_row *row, const float *q,
                      const float *sink, float *out, score_fn *score, value_fn *value)
{
    float m = sink ? *sink : -INFINITY;
    float l = sink ? 1.0f : 0.0f;
    float s[KV_PAGE];
    for (int d = 0; d < dv; d++) out[d] = 0.0f;
    for (int32_t page = row->first / KV_PAGE; page <= row->last / KV_PAGE; page++) {
        const char *kv = row->kv + (size_t)page * row->page_stride;
        const int32_t base = page * KV_PAGE;
        const int lo = row->first > base ? row->first - base : 0;
        const int hi = row->last < base + KV_PAGE - 1 ? row->last - base : KV_PAGE - 1;
        score(dk, q, kv, s);
        for (int p = 0; p < KV_PAGE; p++) s[p] = p < lo || p > hi ? -INFINITY : s[p] * scale;
        const float top = max2(lanes_max(KV_PAGE, s), m);
        const float c = exp1(m - top);
        for (int p = 0; p < KV_PAGE; p++) s[p] = p < lo || p > hi ? 0.0f : exp1(s[p] - top);
        l = fmaf(l, c, lanes_sum(KV_PAGE, s));
        m = top;
        for (int d = 0; d < dv; d++) out[d] *= c;
        for (int p = lo; p <= hi; p++) value(dk, dv, s[p], kv, (size_t)p, out);
    }
    for (int d = 0; d < dv; d++) out[d] /= l;
}

static void attn_f16_ref(int dk, int dv, int n_q, float scale, int n_rows,
                         const struct attn_row *rows)
{
    for (int r = 0; r < n_rows; r++)
        for (size_t h = 0; h < (size_t)n_q; h++)
            attn_head(dk, dv, scale, rows + r, rows[r].q + h * (size_t)dk,
                      rows[r].sink ? rows[r].sink + h : NULL, rows[r].out + h * (size_t)dv, score_f16, value_f16);
}

static void attn_q8_ref(int dk, int dv, int n_q, float scale, int n_rows,
                        const struct attn_row *rows)
{
    for (int r = 0; r < n_rows; r++)
        for (size_t h = 0; h < (size_t)n_q; h++)
            attn_head(dk, dv, scale, rows + r, rows[r].q + h * (size_t)dk,
                      rows[r].sink ? rows[r].sink + h : NULL, rows[r].out + h * (size_t)dv, score_q8, value_q8);
}

static void attn_latent_f16_ref(int dk, int dv, int n_q, float scale, int n_rows,
                                const struct attn_row *rows)
{
    for (int r = 0; r < n_rows; r++)
        for (size_t h = 0; h < (size_t)n_q; h++)
            attn_head(dk, dv, scale, rows + r, rows[r].q + h * (size_t)dk,
                      rows[r].sink ? rows[r].sink + h : NULL, rows[r].out + h * (size_t)dv,
                      score_f16, value_latent_f16);
}

static void attn_latent_q8_ref(int dk, int dv, int n_q, float scale, int n_rows,
                               const struct attn_row *rows)
{
    for (int r = 0; r < n_rows; r++)
        for (size_t h = 0; h < (size_t)n_q; h++)
            attn_head(dk, dv, scale, rows + r, rows[r].q + h * (size_t)dk,
                      rows[r].sink ? rows[r].sink + h : NULL, rows[r].out + h * (size_t)dv,
                      score_q8, value_latent_q8);
}

static const struct elem_kernels table_ref = {
    .rms_norm = rms_norm_ref,
    .add = add_ref,
    .swiglu = swiglu_ref,
    .softmax = softmax_ref,
    .combine = combine_ref,
    .rope_neox = rope_neox_ref,
    .rope_norm = rope_norm_ref,
    .kv_put = {kv_put_f16_ref, kv_put_q8_ref},
    .attn = {attn_f16_ref, attn_q8_ref},
    .attn_latent = {attn_latent_f16_ref, attn_latent_q8_ref},
    .exp = exp_ref,
};

const struct elem_kernels *elem_kernels(enum cpu_tier tier)
{
#if defined(__x86_64__)
    if (tier >= CPU_AVX512) return &elem_table_avx512;
    if (tier == CPU_AVX2) return &elem_table_avx2;
#endif
    (void)tier;
    return &table_ref;
}
