/* See codec.h.  One decoder and one encoder per type, written from the format descriptions in
 * quant/README.md; scalar and clear, not the fast path (quant/mm_*.c read tiles directly). */
#include "quant/codec.h"

#include <math.h>
#include <string.h>

#include "moe/base/err.h"
#include "moe/base/f16.h"
#include "quant/parts_int.h"

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static float get_half(const uint8_t *p) { return f16_to_f32(get16(p)); }

/* v as an integer in lo..hi, halves to even; NaN gives lo.  No conversion can overflow. */
static int near_int(float v, int lo, int hi)
{
    if (!(v > (float)lo)) return lo;
    if (v >= (float)hi) return hi;
    return (int)rintf(v);
}

static float abs_max(const float *x, int n)
{
    float m = 0;
    for (int i = 0; i < n; i++) m = fmaxf(m, fabsf(x[i]));
    return m;
}

/* ---- F32, F16, BF16 --------------------------------------------------------------------- */

static void decode_f32(const uint8_t *p, float *x) { memcpy(x, p, 4); }
static void encode_f32(const float *x, uint8_t *p) { memcpy(p, x, 4); }
static void decode_f16(const uint8_t *p, float *x) { *x = get_half(p); }
static void encode_f16(const float *x, uint8_t *p) { put16(p, f16_from_f32(*x)); }
static void decode_bf16(const uint8_t *p, float *x) { *x = bf16_to_f32(get16(p)); }
static void encode_bf16(const float *x, uint8_t *p) { put16(p, bf16_from_f32(*x)); }

/* ---- Q8_0: half d, int8 q[32];  x = d q -------------------------------------------------- */

static void decode_q8_0(const uint8_t *p, float *x)
{
    float d = get_half(p);
    for (int i = 0; i < 32; i++) x[i] = d * (float)(int8_t)p[2 + i];
}

static void encode_q8_0(const float *x, uint8_t *p)
{
    float d = abs_max(x, 32) / 127.0f;
    float inv = d != 0 ? 1.0f / d : 0;
    put16(p, f16_from_f32(d));
    for (int i = 0; i < 32; i++) /* halves away from zero, as in existing files */
        p[2 + i] = (uint8_t)near_int(roundf(x[i] * inv), -127, 127);
}

/* ---- Q4_0: half d, 16 bytes of nibbles;  x = d (q - 8) ------------------------------------ */

static void decode_q4_0(const uint8_t *p, float *x)
{
    float d = get_half(p);
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)((p[2 + i] & 15) - 8);
        x[i + 16] = d * (float)((p[2 + i] >> 4) - 8);
    }
}

/* The code of v where the grid is 0..15 around 8: floor(v + 8.5), clamped. */
static int q4_0_code(float v) { return near_int(floorf(v + 8.5f), 0, 15); }

static void encode_q4_0(const float *x, uint8_t *p)
{
    float peak = 0; /* the value of largest magnitude, with its sign; it gets the code 0 */
    for (int i = 0; i < 32; i++)
        if (fabsf(x[i]) > fabsf(peak)) peak = x[i];
    float d = peak / -8.0f;
    float inv = d != 0 ? 1.0f / d : 0;
    put16(p, f16_from_f32(d));
    for (int i = 0; i < 16; i++)
        p[2 + i] = (uint8_t)(q4_0_code(x[i] * inv) | q4_0_code(x[i + 16] * inv) << 4);
}

/* ---- Q4_K: half d, dmin, 12 bytes of 6-bit scales and mins, 128 bytes of nibbles ---------
 * x = (d sc_s) q - (dmin m_s) in sub-blocks s of 32. */

static void q4_k_scale(const uint8_t *sc, int s, int *scale, int *min)
{
    if (s < 4) {
        *scale = sc[s] & 63;
        *min = sc[s + 4] & 63;
    } else {
        *scale = (sc[s + 4] & 15) | (sc[s - 4] >> 6) << 4;
        *min = sc[s + 4] >> 4 | (sc[s] >> 6) << 4;
    }
}

static void q4_k_set_scale(uint8_t *sc, int s, int scale, int min)
{
    if (s < 4) {
        sc[s] = (uint8_t)(sc[s] | scale);
        sc[s + 4] = (uint8_t)(sc[s + 4] | min);
    } else {
        sc[s + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
        sc[s - 4] = (uint8_t)(sc[s - 4] | (scale >> 4) << 6);
        sc[s] = (uint8_t)(sc[s] | (min >> 4) << 6);
    }
}

static void decode_q4_k(const uint8_t *p, float *x)
{
    float d = get_half(p), dmin = get_half(p + 2);
    for (int s = 0; s < 8; s++) {
        int scale, min;
        q4_k_scale(p + 4, s, &scale, &min);
        float ds = d * (float)scale, dm = dmin * (float)min;
        const uint8_t *q = p + 16 + s / 2 * 32;
        for (int i = 0; i < 32; i++)
            x[32 * s + i] = ds * (float)(s & 1 ? q[i] >> 4 : q[i] & 15) - dm;
    }
}

/* DESIGN of the K encoders: each sub-block first gets its own real scale (and offset) by trying a
 * few roundings of the grid and solving least squares for each; the super-block then rounds those
 * scales to its small integers, and every sub-block takes, among the neighbouring integers, the
 * ones whose rounded weights have the smallest squared error. */

/* Least-squares x ~ scale q - min, q in 0..15, min >= 0; returns the squared error. */
static float fit_affine(const float *x, float inv, float lo, float *scale, float *min)
{
    float sq = 0, sqq = 0, sx = 0, sxq = 0;
    int q[32];
    for (int i = 0; i < 32; i++) {
        q[i] = near_int((x[i] - lo) * inv, 0, 15);
        sq += (float)q[i];
        sqq += (float)(q[i] * q[i]);
        sx += x[i];
        sxq += x[i] * (float)q[i];
    }
    float det = 32 * sqq - sq * sq;
    if (!(sqq > 0)) return INFINITY;
    *scale = det > 0 ? (32 * sxq - sq * sx) / det : 0;
    *min = det > 0 ? (sq * sxq - sqq * sx) / det : -1;
    if (*min < 0) { /* the constraint binds, or all codes are equal */
        *min = 0;
        *scale = sxq / sqq;
    }
    float err = 0;
    for (int i = 0; i < 32; i++) {
        float e = *scale * (float)q[i] - *min - x[i];
        err += e * e;
    }
    return err;
}

static void search_affine(const float *x, float *scale, float *min)
{
    float lo = fminf(x[0], 0), hi = x[0];
    for (int i = 1; i < 32; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    *min = -lo;
    *scale = (hi - lo) / 15.0f;
    if (!(hi > lo)) return;
    float best = INFINITY;
    for (int k = -12; k <= 24; k++) {
        float s = 0, m = 0;
        float err = fit_affine(x, (15.0f + 0.15f * (float)k) / (hi - lo), lo, &s, &m);
        if (!(err < best) || !(s >= 0)) continue;
        best = err;
        *scale = s;
        *min = m;
    }
}

static float q4_k_round(const float *x, float ds, float dm, uint8_t *q)
{
    float err = 0, inv = ds > 0 ? 1.0f / ds : 0;
    for (int i = 0; i < 32; i++) {
        q[i] = (uint8_t)near_int((x[i] + dm) * inv, 0, 15);
        float e = ds * (float)q[i] - dm - x[i];
        err += e * e;
    }
    return err;
}

/* Picks the integers of one sub-block near its real scale and min; q gets the codes. */
static void q4_k_sub(const float *x, float d, float dmin, float scale, float min, int *sc, int *m,
                     uint8_t *q)
{
    int sc0 = d > 0 ? near_int(scale / d, 0, 63) : 0;
    int m0 = dmin > 0 ? near_int(min / dmin, 0, 63) : 0;
    float best = INFINITY;
    uint8_t trial[32];
    *sc = sc0, *m = m0;
    memset(q, 0, 32);
    for (int i = -1; i <= 1; i++)
        for (int j = -1; j <= 1; j++) {
            int s = sc0 + i, n = m0 + j;
            if (s < 0 || s > 63 || n < 0 || n > 63) continue;
            float err = q4_k_round(x, d * (float)s, dmin * (float)n, trial);
            if (!(err < best)) continue;
            best = err;
            *sc = s, *m = n;
            memcpy(q, trial, 32);
        }
}

static void encode_q4_k(const float *x, uint8_t *p)
{
    float scale[8], min[8];
    for (int s = 0; s < 8; s++) search_affine(x + 32 * s, &scale[s], &min[s]);
    memset(p, 0, 16);
    put16(p, f16_from_f32(abs_max(scale, 8) / 63.0f));
    put16(p + 2, f16_from_f32(abs_max(min, 8) / 63.0f));
    float d = get_half(p), dmin = get_half(p + 2);
    uint8_t q[8][32];
    for (int s = 0; s < 8; s++) {
        int sc, m;
        q4_k_sub(x + 32 * s, d, dmin, scale[s], min[s], &sc, &m, q[s]);
        q4_k_set_scale(p + 4, s, sc, m);
    }
    for (int i = 0; i < 128; i++)
        p[16 + i] = (uint8_t)(q[i / 32 * 2][i % 32] | q[i / 32 * 2 + 1][i % 32] << 4);
}

/* ---- Q6_K: ql[128], qh[64], int8 scales[16], half d;  x = (d sc_s)(q - 32), s per 16 ------
 * In each half of 128 weights, weight i of quarter t has its low nibble in ql[(t&1)*32 + i],
 * shifted by 4 (t>>1), and its high two bits in qh[i], shifted by 2 t. */

static void decode_q6_k(const uint8_t *p, float *x)
{
    float d = get_half(p + 208);
    for (int k = 0; k < 256; k++) {
        int half = k >> 7, t = k >> 5 & 3, i = k & 31;
        int lo = p[half * 64 + (t & 1) * 32 + i] >> (t >> 1) * 4 & 15;
        int hi = p[128 + half * 32 + i] >> 2 * t & 3;
        x[k] = d * (float)(int8_t)p[192 + k / 16] * (float)((lo | hi << 4) - 32);
    }
}

/* The real scale (of either sign) for 16 weights with codes -32..31. */
static float search_scale(const float *x)
{
    float peak = 0;
    for (int i = 0; i < 16; i++)
        if (fabsf(x[i]) > fabsf(peak)) peak = x[i];
    if (!(fabsf(peak) > 1e-30f)) return 0;
    float best = -1, scale = 0;
    for (int k = -12; k <= 12; k++) {
        float inv = -(32.0f + 0.12f * (float)k) / peak, sxq = 0, sqq = 0;
        for (int i = 0; i < 16; i++) {
            float q = (float)near_int(x[i] * inv, -32, 31);
            sxq += x[i] * q;
            sqq += q * q;
        }
        if (!(sqq > 0) || !(sxq * sxq > best * sqq)) continue;
        best = sxq * sxq / sqq;
        scale = sxq / sqq;
    }
    return scale;
}

static float q6_k_round(const float *x, float ds, uint8_t *q)
{
    float err = 0, inv = ds != 0 ? 1.0f / ds : 0;
    for (int i = 0; i < 16; i++) {
        int v = near_int(x[i] * inv, -32, 31);
        q[i] = (uint8_t)(v + 32);
        float e = ds * (float)v - x[i];
        err += e * e;
    }
    return err;
}

static int q6_k_sub(const float *x, float d, float scale, uint8_t *q)
{
    int mid = d != 0 ? near_int(scale / d, -128, 127) : 0, sc = mid;
    float best = INFINITY;
    uint8_t trial[16];
    memset(q, 32, 16);
    for (int s = mid - 1; s <= mid + 1; s++) {
        if (s < -128 || s > 127) continue;
        float err = q6_k_round(x, d * (float)s, trial);
        if (!(err < best)) continue;
        best = err;
        sc = s;
        memcpy(q, trial, 16);
    }
    return sc;
}

static void encode_q6_k(const float *x, uint8_t *p)
{
    float scale[16], peak = 0;
    for (int s = 0; s < 16; s++) {
        scale[s] = search_scale(x + 16 * s);
        if (fabsf(scale[s]) > fabsf(peak)) peak = scale[s];
    }
    memset(p, 0, 210);
    put16(p + 208, f16_from_f32(peak / -128.0f));
    float d = get_half(p + 208);
    uint8_t q[256];
    for (int s = 0; s < 16; s++)
        p[192 + s] = (uint8_t)q6_k_sub(x + 16 * s, d, scale[s], q + 16 * s);
    for (int k = 0; k < 256; k++) {
        int half = k >> 7, t = k >> 5 & 3, i = k & 31;
        uint8_t *lo = p + half * 64 + (t & 1) * 32 + i, *hi = p + 128 + half * 32 + i;
        *lo = (uint8_t)(*lo | (q[k] & 15) << (t >> 1) * 4);
        *hi = (uint8_t)(*hi | (q[k] >> 4) << 2 * t);
    }
}

/* ---- the table -------------------------------------------------------------------------- */

static const struct {
    void (*decode)(const uint8_t *p, float *x);
    void (*encode)(const float *x, uint8_t *p);
} codecs[QTYPE_ID_END] = {
    [QTYPE_F32] = {decode_f32, encode_f32},    [QTYPE_F16] = {decode_f16, encode_f16},
    [QTYPE_BF16] = {decode_bf16, encode_bf16}, [QTYPE_Q8_0] = {decode_q8_0, encode_q8_0},
    [QTYPE_Q4_0] = {decode_q4_0, encode_q4_0}, [QTYPE_Q4_K] = {decode_q4_k, encode_q4_k},
    [QTYPE_Q6_K] = {decode_q6_k, encode_q6_k},
};

static void decode_parts(enum qtype type, const uint8_t *b, float *x, int n)
{
    struct parts p;
    parts_of(type, b, &p);
    for (int k = 0; k < n; k++) {
        const int s = k / 16;
        if (type == QTYPE_NVFP4) x[k] = p.d16[s] * (float)p.q[k];
        else x[k] = p.d * (float)p.scale[s] * (float)p.q[k];
        if (parts_has_min(type)) x[k] += p.m * (float)p.min[s];
    }
}

void codec_decode(enum qtype type, const void *blocks, float *x, int64_t n)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    ASSERT(t && (codecs[type].decode || parts_has(type)) && n % t->block == 0);
    const uint8_t *p = blocks;
    for (int64_t i = 0; i < n; i += t->block, p += t->block_bytes) {
        if (codecs[type].decode) codecs[type].decode(p, x + i);
        else decode_parts(type, p, x + i, t->block);
    }
}

bool codec_can_encode(enum qtype type)
{
    return codecs[type].encode || parts_can_encode(type);
}

void codec_encode(enum qtype type, const float *x, void *blocks, int64_t n)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    ASSERT(t && codec_can_encode(type) && n % t->block == 0);
    uint8_t *p = blocks;
    for (int64_t i = 0; i < n; i += t->block, p += t->block_bytes) {
        if (codecs[type].encode) codecs[type].encode(x + i, p);
        else parts_encode(type, x + i, p);
    }
}
