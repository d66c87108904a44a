/* See codec.h.  One decoder per type, written from the format descriptions in quant/README.md;
 * scalar and clear, not the fast path (quant/mm_*.c read tiles directly).  Encoders that have
 * something to search for are in encode_body.h. */
#include "quant/codec.h"

#include <math.h>
#include <string.h>

#include "moe/base/err.h"
#include "moe/base/f16.h"
#include "quant/encode_int.h"
#include "quant/parts_int.h"
#include "quant/stack.h"

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

/* ---- NEST2, SIGN1: what a stacked matrix is without its levels (quant/stack.h) -------------- */

static void decode_nest2(const uint8_t *p, float *x)
{
    for (int i = 0; i < 64; i++)
        x[i] = nest_value(p[0], (uint8_t)((p[1 + i / 16 * 4 + i % 4] >> 2 * (i / 4 % 4) & 3) << 4),
                          0);
}

static void decode_sign1(const uint8_t *p, float *x)
{
    for (int i = 0; i < 32; i++) x[i] = p[i / 8] >> i % 8 & 1 ? 1.0f : -1.0f;
}

/* ---- the table -------------------------------------------------------------------------- */

/* Plain encoders: there is one way to do it.  The others search (encode_body.h). */
static const struct {
    void (*decode)(const uint8_t *p, float *x);
    void (*encode)(const float *x, uint8_t *p);
} codecs[QTYPE_ID_END] = {
    [QTYPE_F32] = {decode_f32, encode_f32},    [QTYPE_F16] = {decode_f16, encode_f16},
    [QTYPE_BF16] = {decode_bf16, encode_bf16}, [QTYPE_Q8_0] = {decode_q8_0, encode_q8_0},
    [QTYPE_Q4_0] = {decode_q4_0, NULL},        [QTYPE_Q4_K] = {decode_q4_k, NULL},
    [QTYPE_Q6_K] = {decode_q6_k, NULL},        [QTYPE_NEST2] = {decode_nest2, NULL},
    [QTYPE_SIGN1] = {decode_sign1, NULL},
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

static bool is_searched(enum qtype type)
{
    switch (type) {
    case QTYPE_Q4_0:
    case QTYPE_Q4_1:
    case QTYPE_Q5_0:
    case QTYPE_Q5_1:
    case QTYPE_Q2_K:
    case QTYPE_Q3_K:
    case QTYPE_Q4_K:
    case QTYPE_Q5_K:
    case QTYPE_Q6_K:
    case QTYPE_IQ4_NL:
    case QTYPE_IQ4_XS:
    case QTYPE_MXFP4: return true;
    default: return false;
    }
}

bool codec_can_encode(enum qtype type) { return codecs[type].encode || is_searched(type); }

static encode_fn *searcher(enum cpu_tier tier)
{
#if defined __x86_64__
    if (tier >= CPU_AVX512) return encode_avx512;
    if (tier == CPU_AVX2) return encode_avx2;
#endif
    (void)tier;
    return encode_ref;
}

void codec_encode(enum cpu_tier tier, enum qtype type, const float *x, const float *weight,
                  void *blocks, int64_t n)
{
    static const float alike[256] = {[0 ... 255] = 1.0f};
    const struct qtype_info *t = qtype_info((uint32_t)type);
    ASSERT(t && codec_can_encode(type) && n % t->block == 0);
    encode_fn *search = searcher(tier);
    uint8_t *p = blocks;
    for (int64_t i = 0; i < n; i += t->block, p += t->block_bytes) {
        if (codecs[type].encode) codecs[type].encode(x + i, p);
        else search(type, x + i, weight ? weight + i : alike, p);
    }
}
