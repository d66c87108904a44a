/* What checkers of weight products share (check_kernels.c, check_cuda.c): activations and weights, as a
 * model might have them and as it never should.  Owns nothing; never used by the library. */
#ifndef TESTS_CHECK_MM_H
#define TESTS_CHECK_MM_H

#include "quant/codec.h"
#include "quant/mm.h"
#include "tests/check.h"

static inline void *need(void *p)
{
    if (!p) {
        fputs("check: no memory\n", stderr);
        exit(1);
    }
    return p;
}

/* Floats as a model might give them, and now and then what it never should. */
static inline void fill_act(float *x, size_t n, int trial, struct rng *r)
{
    check_fill((enum check_regime)(trial % CHECK_REGIME_N), x, n, r);
    static const float odd[] = {INFINITY,  -INFINITY,   NAN,    0x1p-149f,
                                0x1p-120f, 0x1.8p-121f, 3.4e38f};
    if (trial % 3 == 2)
        for (int i = 0; i < 1 + (int)(n / 600); i++)
            x[rng_below(r, (uint32_t)n)] = odd[rng_below(r, sizeof odd / sizeof odd[0])];
    if (trial % 7 == 3) /* halves between two codes */
        for (size_t i = 0; i < n; i++)
            x[i] = i % 32 ? ((float)rng_below(r, 254) - 126.5f) : 127.0f;
}

/* ---- weights ---------------------------------------------------------------------------- */

enum weight_regime {
    W_ENCODED, /* what an encoder makes of random floats */
    W_BYTES,   /* random integers, moderate scales */
    W_LOW,     /* every integer byte 0x00: -128 after Q8_0's flip is 0x80 in the file */
    W_HIGH,    /* every integer byte 0xff */
    W_MIN,     /* every integer byte 0x80 */
    W_EDGES,   /* bytes 00 7f 80 81 ff mixed, extreme half scales */
    W_ANY,     /* random bytes: infinite and NaN scales, too */
    W_REGIME_N,
};

static inline void put_half(uint8_t *p, uint16_t h) { memcpy(p, &h, 2); }

static inline uint16_t moderate_half(struct rng *r)
{
    return (uint16_t)(rng_below(r, 2) << 15 | (8 + rng_below(r, 12)) << 10 | rng_below(r, 1024));
}

static inline void fill_block(enum qtype type, enum weight_regime g, uint8_t *p, int bytes, struct rng *r)
{
    static const uint8_t edges[] = {0x00, 0x7f, 0x80, 0x81, 0xff};
    static const uint16_t halfs[] = {0x0000, 0x8000, 0x0001, 0x03ff, 0x7bff, 0xfbff, 0x3c00};
    for (int i = 0; i < bytes; i++) {
        uint8_t v = (uint8_t)rng_below(r, 256);
        if (g == W_LOW) v = 0x00;
        if (g == W_HIGH) v = 0xff;
        if (g == W_MIN) v = 0x80;
        if (g == W_EDGES) v = edges[rng_below(r, 5)];
        p[i] = v;
    }
    if (g == W_ANY) return;
    if (type == QTYPE_IQ1_M) { /* its scale's four nibbles lie in four bytes */
        uint16_t h = g == W_EDGES ? halfs[rng_below(r, 7)] : moderate_half(r);
        for (int i = 0; i < 4; i++)
            p[49 + 2 * i] = (uint8_t)((p[49 + 2 * i] & 15) | (h >> 4 * i & 15) << 4);
        return;
    }
    if (type == QTYPE_MXFP4 && g != W_EDGES) p[0] = (uint8_t)(110 + rng_below(r, 20));
    if (type == QTYPE_MXFP4 || type == QTYPE_NVFP4) return;
    int at[2] = {0, -1};
    if (type == QTYPE_Q6_K) at[0] = 208;
    if (type == QTYPE_Q3_K) at[0] = 108;
    if (type == QTYPE_Q2_K) at[0] = 80, at[1] = 82;
    if (type == QTYPE_Q4_K || type == QTYPE_Q5_K || type == QTYPE_Q4_1 || type == QTYPE_Q5_1)
        at[1] = 2;
    for (int i = 0; i < 2 && at[i] >= 0; i++)
        put_half(p + at[i], g == W_EDGES ? halfs[rng_below(r, 7)] : moderate_half(r));
}

/* n_rows GGUF rows. */
static inline void fill_weights(enum qtype type, enum weight_regime g, int trial, uint8_t *rows,
                         int n_rows, int n_cols, struct rng *r)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    size_t n = (size_t)n_rows * (size_t)n_cols;
    if (g == W_ENCODED && !codec_can_encode(type)) g = W_BYTES;
    if (g == W_ENCODED || (t->block == 1 && g != W_ANY)) {
        float *x = need(malloc(4 * n));
        check_fill((enum check_regime)(trial % CHECK_REGIME_N), x, n, r);
        codec_encode(cpu_tier_best(), type, x, NULL, rows, (int64_t)n);
        free(x);
        return;
    }
    for (size_t b = 0; b < n / (size_t)t->block; b++)
        fill_block(type, g, rows + b * (size_t)t->block_bytes, t->block_bytes, r);
}

#endif
