/* Floats to blocks for the types of parts_int.h.  Pure functions.
 *
 * DESIGN: a block, or a sub-block of a super-block, first gets a real scale (and offset) by trying
 * roundings of the grid and solving least squares for each.  A super-block then rounds these to its
 * small integers, and every sub-block takes, among the neighbouring integers, those whose rounded
 * weights have the smallest squared error. */
#include <math.h>
#include <string.h>

#include "moe/base/f16.h"
#include "quant/parts_int.h"

static void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* Stores v as a half and returns what was stored. */
static float put_half(uint8_t *p, float v)
{
    uint16_t h = f16_from_f32(v);
    put16(p, h);
    return f16_to_f32(h);
}

/* v as an integer in lo..hi, halves to even; NaN gives lo. */
static int near_int(float v, int lo, int hi)
{
    if (!(v > (float)lo)) return lo;
    if (v >= (float)hi) return hi;
    return (int)rintf(v);
}

static float inverse(float d) { return d != 0 ? 1.0f / d : 0; }

static float largest(const float *x, int n)
{
    float peak = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(peak)) peak = x[i];
    return peak;
}

/* ---- grids: what codes stand for, before the scale ------------------------------------------ */

struct grid {
    int lo, hi;          /* codes lo..hi stand for themselves ... */
    const int8_t *table; /* ... unless there is a table of 16 rising values */
};

static const struct grid grid_q5 = {-16, 15, 0}, grid_q3 = {-4, 3, 0};
static const struct grid grid_iq4 = {0, 15, table_iq4};

/* The value nearest to v; its code in *code. */
static int nearest(const struct grid *g, float v, int *code)
{
    if (!g->table) return *code = near_int(v, g->lo, g->hi);
    int i = 0;
    for (int k = 0; k < 15; k++) i += v > 0.5f * (float)(g->table[k] + g->table[k + 1]);
    *code = i;
    return g->table[i];
}

/* The squared error of n weights under scale d; their codes in q. */
static float round_grid(const struct grid *g, const float *x, int n, float d, int *q)
{
    float err = 0, inv = inverse(d);
    for (int i = 0; i < n; i++) {
        float e = d * (float)nearest(g, x[i] * inv, &q[i]) - x[i];
        err += e * e;
    }
    return err;
}

/* The least-squares scale, of either sign, for n weights. */
static float search_scale(const struct grid *g, const float *x, int n)
{
    const float peak = largest(x, n);
    if (!(fabsf(peak) > 1e-30f)) return 0;
    const float lo = g->table ? g->table[0] : (float)g->lo;
    const float hi = g->table ? g->table[15] : (float)g->hi;
    float best = -1, scale = 0;
    for (int k = 0; k < 64; k++) {
        float top = (k & 1 ? hi : lo) * (0.7f + 0.02f * (float)(k / 2));
        float inv = top / peak, sxq = 0, sqq = 0;
        for (int i = 0; i < n; i++) {
            int code;
            float q = (float)nearest(g, x[i] * inv, &code);
            sxq += x[i] * q;
            sqq += q * q;
        }
        if (!(sqq > 0) || !(sxq * sxq > best * sqq)) continue;
        best = sxq * sxq / sqq;
        scale = sxq / sqq;
    }
    return scale;
}

/* One scale for 32 weights, stored as a half. */
static void encode_grid_32(const struct grid *g, const float *x, uint8_t *d, int *q)
{
    round_grid(g, x, 32, put_half(d, search_scale(g, x, 32)), q);
}

/* Integer scales lo..hi for the n weights of each sub-block; returns nothing, fills sc and q. */
static void encode_grid_super(const struct grid *g, const float *x, int n, uint8_t *half, int *sc,
                              int *q)
{
    float scale[16] = {0};
    for (int s = 0; s < 256 / n; s++) scale[s] = search_scale(g, x + n * s, n);
    const float d = put_half(half, largest(scale, 256 / n) / -32.0f);
    for (int s = 0; s < 256 / n; s++) {
        const int mid = d != 0 ? near_int(scale[s] / d, -32, 31) : 0;
        float best = INFINITY;
        sc[s] = mid;
        round_grid(g, x + n * s, n, d * (float)mid, q + n * s);
        for (int v = mid - 2; v <= mid + 2; v++) {
            int trial[32];
            if (v < -32 || v > 31) continue;
            float err = round_grid(g, x + n * s, n, d * (float)v, trial);
            if (!(err < best)) continue;
            best = err;
            sc[s] = v;
            memcpy(q + n * s, trial, (size_t)n * sizeof *q);
        }
    }
}

/* ---- affine grids: x = scale q - min, q in 0..top ------------------------------------------- */

/* Least squares after rounding with inv from lo; returns the squared error.  A min below 0 is
 * allowed only where `any`. */
static float fit_affine(const float *x, int n, int top, bool any, float inv, float lo,
                        float *scale, float *min)
{
    float sq = 0, sqq = 0, sx = 0, sxq = 0, err = 0;
    int q[32];
    for (int i = 0; i < n; i++) {
        q[i] = near_int((x[i] - lo) * inv, 0, top);
        sq += (float)q[i];
        sqq += (float)(q[i] * q[i]);
        sx += x[i];
        sxq += x[i] * (float)q[i];
    }
    const float det = (float)n * sqq - sq * sq;
    if (!(sqq > 0)) return INFINITY;
    *scale = det > 0 ? ((float)n * sxq - sq * sx) / det : 0;
    *min = det > 0 ? (sq * sxq - sqq * sx) / det : any ? -sx / (float)n : -1;
    if (*min < 0 && !any) {
        *min = 0;
        *scale = sxq / sqq;
    }
    for (int i = 0; i < n; i++) {
        float e = *scale * (float)q[i] - *min - x[i];
        err += e * e;
    }
    return err;
}

static void search_affine(const float *x, int n, int top, bool any, float *scale, float *min)
{
    float lo = x[0], hi = x[0];
    for (int i = 1; i < n; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    if (!any) lo = fminf(lo, 0);
    *min = -lo;
    *scale = (hi - lo) / (float)top;
    if (!(hi > lo)) return;
    float best = INFINITY;
    for (int k = -12; k <= 24; k++)
        for (int j = 0; j < 3; j++) {
            float s = 0, m = 0, from = lo + (hi - lo) * 0.04f * (float)j;
            float inv = (float)top * (1.0f + 0.01f * (float)k) / (hi - lo);
            if (top < 8) inv = (float)top * (1.0f + 0.04f * (float)k) / (hi - lo);
            float err = fit_affine(x, n, top, any, inv, from, &s, &m);
            if (!(err < best) || !(s >= 0)) continue;
            best = err;
            *scale = s;
            *min = m;
        }
}

static float round_affine(const float *x, int n, int top, float ds, float dm, int *q)
{
    float err = 0, inv = ds > 0 ? 1.0f / ds : 0;
    for (int i = 0; i < n; i++) {
        q[i] = near_int((x[i] + dm) * inv, 0, top);
        float e = ds * (float)q[i] - dm - x[i];
        err += e * e;
    }
    return err;
}

static void encode_affine_32(const float *x, int top, uint8_t *block, int *q)
{
    float scale, min;
    search_affine(x, 32, top, true, &scale, &min);
    const float d = put_half(block, scale), m = put_half(block + 2, -min);
    round_affine(x, 32, top, d, -m, q);
}

/* All sub-blocks of n weights with integers 0..most, for given d and dmin; the squared error. */
static float affine_integers(const float *x, int n, int top, int most, float d, float dmin,
                             const float *scale, const float *min, int *sc, int *m, int *q)
{
    float sum = 0;
    for (int s = 0; s < 256 / n; s++) {
        const int sc0 = d > 0 ? near_int(scale[s] / d, 0, most) : 0;
        const int m0 = dmin > 0 ? near_int(min[s] / dmin, 0, most) : 0;
        float best = INFINITY;
        sc[s] = sc0, m[s] = m0;
        memset(q + n * s, 0, (size_t)n * sizeof *q);
        for (int i = -1; i <= 1; i++)
            for (int j = -1; j <= 1; j++) {
                const int a = sc0 + i, b = m0 + j;
                int trial[32];
                if (a < 0 || a > most || b < 0 || b > most) continue;
                float err = round_affine(x + n * s, n, top, d * (float)a, dmin * (float)b, trial);
                if (!(err < best)) continue;
                best = err;
                sc[s] = a, m[s] = b;
                memcpy(q + n * s, trial, (size_t)n * sizeof *q);
            }
        sum += best;
    }
    return sum;
}

/* The halves go to d and dmin; sc, m and q are filled. */
static void encode_affine_super(const float *x, int n, int top, int most, uint8_t *d, uint8_t *dmin,
                                int *sc, int *m, int *q)
{
    float scale[16], min[16], best = INFINITY;
    for (int s = 0; s < 256 / n; s++)
        search_affine(x + n * s, n, top, false, &scale[s], &min[s]);
    const float hi_s = fabsf(largest(scale, 256 / n)), hi_m = fabsf(largest(min, 256 / n));
    /* Few steps: it pays to let the largest ones be cut off. */
    const int tries = most < 32 ? 5 : 1;
    for (int t = 0; t < tries * tries; t++) {
        int sc1[16], m1[16], q1[256];
        uint8_t h[4];
        const float f = 1.0f - 0.05f * (float)(t % tries), g = 1.0f - 0.05f * (float)(t / tries);
        const float ds = put_half(h, f * hi_s / (float)most);
        const float dm = put_half(h + 2, g * hi_m / (float)most);
        float err = affine_integers(x, n, top, most, ds, dm, scale, min, sc1, m1, q1);
        if (t && !(err < best)) continue;
        best = err;
        memcpy(d, h, 2);
        memcpy(dmin, h + 2, 2);
        memcpy(sc, sc1, sizeof sc1);
        memcpy(m, m1, sizeof m1);
        memcpy(q, q1, sizeof q1);
    }
}

/* ---- the types ---------------------------------------------------------------------------- */

/* Nibbles as all blocks of 32 have them, and the fifth bits. */
static void put_nibbles(const int *q, uint8_t *n, uint8_t *fifth)
{
    uint32_t h = 0;
    for (int i = 0; i < 16; i++) n[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
    for (int i = 0; i < 32; i++) h |= (uint32_t)(q[i] >> 4 & 1) << i;
    for (int i = 0; fifth && i < 4; i++) fifth[i] = (uint8_t)(h >> 8 * i);
}

static void encode_q5_0(const float *x, uint8_t *b)
{
    int q[32];
    encode_grid_32(&grid_q5, x, b, q);
    for (int i = 0; i < 32; i++) q[i] += 16;
    put_nibbles(q, b + 6, b + 2);
}

static void encode_q45_1(enum qtype type, const float *x, uint8_t *b)
{
    int q[32];
    encode_affine_32(x, type == QTYPE_Q4_1 ? 15 : 31, b, q);
    if (type == QTYPE_Q4_1) put_nibbles(q, b + 4, NULL);
    else put_nibbles(q, b + 8, b + 4);
}

static void encode_iq4_nl(const float *x, uint8_t *b)
{
    int q[32];
    encode_grid_32(&grid_iq4, x, b, q);
    put_nibbles(q, b + 2, NULL);
}

static void encode_mxfp4(const float *x, uint8_t *b)
{
    const float peak = fabsf(largest(x, 32));
    int exp = 0, best_q[32] = {0}, best_e = 0;
    float best = INFINITY;
    if (peak > 0 && isfinite(peak)) (void)frexpf(peak, &exp); /* peak is 2^(exp-1) to 2^exp */
    for (int e = exp + 123; peak > 0 && e <= exp + 126; e++) {
        if (e < 0 || e > 254) continue;
        const float d = scale_e8m0((uint8_t)e), inv = 1.0f / d;
        float err = 0;
        int q[32];
        for (int i = 0; i < 32; i++) {
            const float v = fabsf(x[i]) * inv;
            int c = 0;
            for (int k = 0; k < 7; k++) c += v > 0.5f * (float)(table_fp4[k] + table_fp4[k + 1]);
            q[i] = x[i] < 0 ? c | 8 : c;
            const float f = d * (float)table_fp4[c] - fabsf(x[i]);
            err += f * f;
        }
        if (!(err < best)) continue;
        best = err;
        best_e = e;
        memcpy(best_q, q, sizeof q);
    }
    b[0] = (uint8_t)best_e;
    put_nibbles(best_q, b + 1, NULL);
}

static void encode_q2_k(const float *x, uint8_t *b)
{
    int sc[16], m[16], q[256];
    memset(b, 0, 84);
    encode_affine_super(x, 16, 3, 15, b + 80, b + 82, sc, m, q);
    for (int s = 0; s < 16; s++) b[s] = (uint8_t)(sc[s] | m[s] << 4);
    for (int k = 0; k < 256; k++) {
        uint8_t *p = b + 16 + (k >> 7) * 32 + (k & 31);
        *p = (uint8_t)(*p | q[k] << 2 * (k >> 5 & 3));
    }
}

static void encode_q3_k(const float *x, uint8_t *b)
{
    int sc[16], q[256];
    memset(b, 0, 110);
    encode_grid_super(&grid_q3, x, 16, b + 108, sc, q);
    for (int s = 0; s < 16; s++) {
        const int v = sc[s] + 32;
        uint8_t *lo = b + 96 + s % 8, *hi = b + 104 + s % 4;
        *lo = (uint8_t)(*lo | (v & 15) << (s < 8 ? 0 : 4));
        *hi = (uint8_t)(*hi | v >> 4 << s / 4 * 2);
    }
    for (int k = 0; k < 256; k++) {
        const int v = q[k] + 4;
        uint8_t *lo = b + 32 + (k >> 7) * 32 + (k & 31), *hi = b + (k & 31);
        *lo = (uint8_t)(*lo | (v & 3) << 2 * (k >> 5 & 3));
        *hi = (uint8_t)(*hi | v >> 2 << (k >> 5));
    }
}

static void encode_q5_k(const float *x, uint8_t *b)
{
    int sc[16], m[16], q[256];
    memset(b, 0, 176);
    encode_affine_super(x, 32, 31, 63, b, b + 2, sc, m, q);
    for (int s = 0; s < 4; s++) {
        b[4 + s] = (uint8_t)(sc[s] | sc[s + 4] >> 4 << 6);
        b[8 + s] = (uint8_t)(m[s] | m[s + 4] >> 4 << 6);
        b[12 + s] = (uint8_t)((sc[s + 4] & 15) | (m[s + 4] & 15) << 4);
    }
    for (int k = 0; k < 256; k++) {
        const int s = k >> 5, i = k & 31;
        uint8_t *lo = b + 48 + (s >> 1) * 32 + i;
        *lo = (uint8_t)(*lo | (q[k] & 15) << 4 * (s & 1));
        b[16 + i] = (uint8_t)(b[16 + i] | q[k] >> 4 << s);
    }
}

static void encode_iq4_xs(const float *x, uint8_t *b)
{
    int sc[16], q[256];
    unsigned high = 0;
    memset(b, 0, 136);
    encode_grid_super(&grid_iq4, x, 32, b, sc, q);
    for (int s = 0; s < 8; s++) {
        const int v = sc[s] + 32;
        b[4 + s / 2] = (uint8_t)(b[4 + s / 2] | (v & 15) << 4 * (s & 1));
        high |= (unsigned)(v >> 4) << 2 * s;
        put_nibbles(q + 32 * s, b + 8 + 16 * s, NULL);
    }
    put16(b + 2, (uint16_t)high);
}

bool parts_can_encode(enum qtype type)
{
    switch (type) {
    case QTYPE_Q4_1:
    case QTYPE_Q5_0:
    case QTYPE_Q5_1:
    case QTYPE_Q2_K:
    case QTYPE_Q3_K:
    case QTYPE_Q5_K:
    case QTYPE_IQ4_NL:
    case QTYPE_IQ4_XS:
    case QTYPE_MXFP4: return true;
    default: return false;
    }
}

void parts_encode(enum qtype type, const float *x, uint8_t *block)
{
    switch (type) {
    case QTYPE_Q4_1:
    case QTYPE_Q5_1: encode_q45_1(type, x, block); break;
    case QTYPE_Q5_0: encode_q5_0(x, block); break;
    case QTYPE_Q2_K: encode_q2_k(x, block); break;
    case QTYPE_Q3_K: encode_q3_k(x, block); break;
    case QTYPE_Q5_K: encode_q5_k(x, block); break;
    case QTYPE_IQ4_NL: encode_iq4_nl(x, block); break;
    case QTYPE_IQ4_XS: encode_iq4_xs(x, block); break;
    case QTYPE_MXFP4: encode_mxfp4(x, block); break;
    default: break;
    }
}
