/* Weight formats, tiles, prepared activations and the reference product.  The tiers above the
 * reference are compared with it in tests/check_kernels.c; here one short pass keeps them honest
 * in `make test`.
 *
 * Golden files come from the shared folder (tests/shared.h); without them those tests say so and
 * pass. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/f16.h"
#include "moe/base/rng.h"
#include "quant/codec.h"
#include "quant/mm.h"
#include "tests/shared.h"

static const enum qtype all_types[] = {
    QTYPE_F32, QTYPE_F16, QTYPE_BF16, QTYPE_Q8_0, QTYPE_Q4_0, QTYPE_Q4_K, QTYPE_Q6_K, QTYPE_Q4_1,
    QTYPE_Q5_0, QTYPE_Q5_1, QTYPE_Q5_K, QTYPE_Q2_K, QTYPE_Q3_K, QTYPE_IQ4_NL, QTYPE_IQ4_XS,
    QTYPE_MXFP4, QTYPE_NVFP4, QTYPE_IQ3_S, QTYPE_IQ3_XXS, QTYPE_IQ2_S, QTYPE_IQ2_XS, QTYPE_IQ2_XXS,
    QTYPE_IQ1_S, QTYPE_IQ1_M,
};
enum { N_TYPES = sizeof all_types / sizeof all_types[0] };

static void *alloc(size_t n)
{
    void *p = aligned_alloc(64, (n + 63) / 64 * 64 + 64);
    assert_non_null(p);
    return p;
}

static void fill(float *x, int64_t n, uint64_t seed, float scale)
{
    struct rng r;
    rng_seed(&r, seed);
    for (int64_t i = 0; i < n; i++) /* roughly normal */
        x[i] = scale * (rng_range(&r, -1, 1) + rng_range(&r, -1, 1) + rng_range(&r, -1, 1));
}

static double nmse(const float *x, const float *y, int64_t n)
{
    double err = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        err += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        sum += (double)x[i] * x[i];
    }
    return err / sum;
}

static const struct qtype_info *info(enum qtype t) { return qtype_info((uint32_t)t); }

/* ---- golden files ----------------------------------------------------------------------- */

/* A whole file of the reference folder, NULL when it is not there. */
static void *golden(const char *name, const char *ending, size_t *n)
{
    char path[512], file[64], low[16];
    snprintf(low, sizeof low, "%s", name);
    for (char *c = low; *c; c++) /* Q8_0 is in q8_0.bin, but Q4_K in q4_K.bin */
        if (*c >= 'A' && *c <= 'Z' && *c != 'K') *c = (char)(*c + 32);
    snprintf(file, sizeof file, "reference/quants/%s.%s", low, ending);
    return shared_file(path, sizeof path, file) ? shared_slurp(path, n) : NULL;
}

static void test_golden_decode(void **state)
{
    (void)state;
    for (int i = 0; i < N_TYPES; i++) {
        enum qtype t = all_types[i];
        if (t == QTYPE_F32) continue;
        size_t n_bin, n_f32;
        void *bin = golden(info(t)->name, "bin", &n_bin), *f32 = NULL;
        if (!bin) return;
        f32 = golden(info(t)->name, "f32", &n_f32);
        assert_non_null(f32);
        int64_t n = (int64_t)n_f32 / 4;
        assert_int_equal(n_bin, qtype_bytes(t, (uint64_t)n));
        float *x = alloc(n_f32);
        codec_decode(t, bin, x, n);
        if (memcmp(x, f32, n_f32)) print_message("%s differs\n", info(t)->name);
        assert_memory_equal(x, f32, n_f32);
        free(x);
        free(bin);
        free(f32);
    }
}

/* Byte-equal where there is one way to encode; otherwise a smaller error than the file's.  Q3_K's may
 * be 1 % larger (it is 0.5 % here): smaller it is on rows like a model's, see test_beside_llama. */
static void test_golden_encode(void **state)
{
    (void)state;
    size_t n_src, n_bin;
    float *src = golden("source", "f32", &n_src);
    if (!src) return;
    int64_t n = (int64_t)n_src / 4;
    float *x = alloc(n_src), *y = alloc(n_src);
    for (int i = 0; i < N_TYPES; i++) {
        enum qtype t = all_types[i];
        if (t == QTYPE_F32 || !codec_can_encode(t)) continue;
        void *bin = golden(info(t)->name, "bin", &n_bin), *ours = alloc(n_bin);
        assert_non_null(bin);
        codec_encode(CPU_REF, t, src, NULL, ours, n);
        if (t == QTYPE_F16 || t == QTYPE_BF16 || t == QTYPE_Q8_0) {
            assert_memory_equal(ours, bin, n_bin);
        } else {
            codec_decode(t, bin, x, n);
            codec_decode(t, ours, y, n);
            double theirs = nmse(src, x, n), mine = nmse(src, y, n);
            print_message("%s: nmse %.4e, file %.4e\n", info(t)->name, mine, theirs);
            assert_true(mine < theirs * (t == QTYPE_Q3_K ? 1.01 : 1));
        }
        free(bin);
        free(ours);
    }
    free(src);
    free(x);
    free(y);
}

/* ---- beside llama-quantize -------------------------------------------------------------- */

/* The rows and weights of tests/encode/make.py. */
enum { MADE_ROWS = 96, MADE_COLS = 512 };

static double made_uniform(uint32_t *s)
{
    *s = (1103515245u * *s + 12345u) & 0x7fffffffu;
    return *s / 0x1p31;
}

static double made_sum(uint32_t *s)
{
    double z = -2;
    for (int i = 0; i < 4; i++) z += made_uniform(s);
    return z;
}

static void made_rows(float *x, float *w)
{
    uint32_t s = 7, t = 11;
    double mean = 0;
    for (int i = 0; i < MADE_ROWS * MADE_COLS; i++)
        x[i] = (float)(made_sum(&s) * 0.02 * (i % 53 ? 1 : 6));
    for (int k = 0; k < MADE_COLS; k++) {
        w[k] = (float)exp(2 * made_sum(&t));
        mean += w[k] / (double)MADE_COLS;
    }
    for (int k = 0; k < MADE_COLS; k++) w[k] = (float)(w[k] / mean);
}

/* The error, weighted where w says so, of rows encoded with `how`. */
static double made_error(enum cpu_tier tier, enum qtype t, const float *x, const float *how,
                         const float *w, uint8_t *blocks)
{
    float y[MADE_COLS];
    double sum = 0;
    const size_t row = qtype_bytes(t, MADE_COLS);
    for (int r = 0; r < MADE_ROWS; r++, x += MADE_COLS, blocks += row) {
        codec_encode(tier, t, x, how, blocks, MADE_COLS);
        codec_decode(t, blocks, y, MADE_COLS);
        for (int k = 0; k < MADE_COLS; k++) {
            const double d = (double)x[k] - y[k];
            sum += (w ? (double)w[k] : 1) * d * d;
        }
    }
    return sum;
}

/* No type's error is larger than llama-quantize's, with importance or without; importance helps where it
 * says; all tiers write the same bytes. */
static void test_beside_llama(void **state)
{
    (void)state;
    FILE *f = fopen("tests/encode/errors.txt", "r");
    float *x = alloc(sizeof(float) * MADE_ROWS * MADE_COLS), w[MADE_COLS];
    uint8_t *a = alloc(4 * MADE_ROWS * MADE_COLS), *b = alloc(4 * MADE_ROWS * MADE_COLS);
    char line[160], name[16];
    int n = 0;
    assert_non_null(f);
    made_rows(x, w);
    while (fgets(line, sizeof line, f)) {
        double plain, weighted;
        if (sscanf(line, "%15s %lf %lf", name, &plain, &weighted) != 3) continue;
        const enum qtype t = qtype_by_name(name)->id;
        const size_t bytes = qtype_bytes(t, MADE_ROWS * MADE_COLS);
        const double p = made_error(cpu_tier_best(), t, x, NULL, NULL, b);
        const double blind = made_error(CPU_REF, t, x, NULL, w, a);
        assert_memory_equal(a, b, bytes);
        const double q = made_error(CPU_REF, t, x, w, w, a);
        print_message("%s: %.4f of llama-quantize's error, with importance %.4f (without %.4f)\n",
                      name, p / plain, q / weighted, blind / weighted);
        assert_true(p <= plain && q <= weighted && q < blind);
        for (int tier = CPU_REF + 1; tier <= (int)cpu_tier_best(); tier++) {
            (void)made_error((enum cpu_tier)tier, t, x, w, w, b);
            assert_memory_equal(a, b, bytes);
        }
        n++;
    }
    assert_int_equal(n, 12);
    (void)fclose(f);
    free(x);
    free(a);
    free(b);
}

/* ---- codecs ----------------------------------------------------------------------------- */

static void test_table(void **state)
{
    (void)state;
    assert_null(qtype_in_files(QTYPE_NEST2)); /* ours, no type of a file */
    assert_non_null(qtype_info(QTYPE_NEST2));
    assert_null(qtype_info(60));
    assert_null(qtype_info(0xffffffffu));
    assert_null(qtype_by_name("Q9"));
    assert_null(qtype_at(-1));
    assert_ptr_equal(qtype_by_name("q4_k"), info(QTYPE_Q4_K));
    int n = 0;
    for (; qtype_at(n); n++) {
        const struct qtype_info *t = qtype_at(n);
        assert_ptr_equal(qtype_info((uint32_t)t->id), t);
        assert_true(t->id < QTYPE_ID_END);
        assert_int_equal(qtype_bytes(t->id, 3 * (uint64_t)t->block), 3 * t->block_bytes);
        assert_non_null(mm_kernels(CPU_REF)->mm[t->id]);
    }
    assert_int_equal(n, N_TYPES);
}

/* The error of a round trip, per type, on smooth data; and encoding what was decoded loses
 * nothing further where scales are exact. */
static void test_round_trip(void **state)
{
    (void)state;
    static const double bound[] = {0,    1e-7,   5e-6,   1e-4, 1.5e-2, 6e-3, 6e-4,   9e-3,
                                   4e-3, 2.5e-3, 1.5e-3, 9e-2, 3.5e-2, 9e-3, 9.5e-3, 2e-2};
    enum { N = 4096 };
    float *x = alloc(4 * N), *y = alloc(4 * N), *z = alloc(4 * N);
    void *p = alloc(4 * N);
    fill(x, N, 7, 0.02f);
    for (int i = 0; i < N_TYPES; i++) {
        if (!codec_can_encode(all_types[i])) continue;
        codec_encode(CPU_REF, all_types[i], x, NULL, p, N);
        codec_decode(all_types[i], p, y, N);
        double e = nmse(x, y, N);
        if (e > bound[i]) print_message("%s nmse %g\n", info(all_types[i])->name, e);
        assert_true(e <= bound[i]);
        codec_encode(CPU_REF, all_types[i], y, NULL, p, N);
        codec_decode(all_types[i], p, z, N);
        assert_true(nmse(y, z, N) <= bound[i]);
    }
    free(x);
    free(y);
    free(z);
    free(p);
}

/* Zeros stay zeros; constants, one-sided blocks, tiny and non-finite values do no harm. */
static void test_encode_edges(void **state)
{
    (void)state;
    enum { N = 512 };
    float x[N], y[N], w[N];
    uint8_t p[4 * N], q[4 * N];
    for (int i = 0; i < N_TYPES; i++) {
        enum qtype t = all_types[i];
        if (!codec_can_encode(t)) continue;
        memset(x, 0, sizeof x);
        codec_encode(CPU_REF, t, x, NULL, p, N);
        codec_decode(t, p, y, N);
        for (int k = 0; k < N; k++) assert_true(y[k] == 0);

        for (int k = 0; k < N; k++) x[k] = 0.25f;
        codec_encode(CPU_REF, t, x, NULL, p, N);
        codec_decode(t, p, y, N);
        assert_true(nmse(x, y, N) < 1e-4);

        for (int k = 0; k < N; k++) x[k] = 1.0f + (float)(k % 16) / 16;
        codec_encode(CPU_REF, t, x, NULL, p, N);
        codec_decode(t, p, y, N);
        const bool coarse = info(t)->block_bytes * 8 < 9 * info(t)->block / 2;
        assert_true(nmse(x, y, N) < (coarse ? 5e-2 : 1e-2));

        static const float odd[] = {INFINITY, -INFINITY, NAN, 1e-44f, -1e-38f, 3e38f, -3e38f, 1};
        for (int k = 0; k < N; k++) x[k] = odd[(k * 5 + k / 8) % 8];
        for (int k = 0; k < N; k++) w[k] = k % 9 ? 1e-5f : 9;
        for (int tier = CPU_REF; tier <= (int)cpu_tier_best(); tier++) {
            /* any value is right, a crash is not */
            codec_encode((enum cpu_tier)tier, t, x, NULL, tier ? q : p, N);
            assert_memory_equal(p, tier ? q : p, qtype_bytes(t, N));
        }
        codec_encode(cpu_tier_best(), t, x, w, p, N);
        for (int k = 0; k < N; k++) x[k] = 1e-42f * (float)(k % 7);
        codec_encode(CPU_REF, t, x, NULL, p, N);
        codec_decode(t, p, y, N);
        for (int k = 0; k < N; k++) assert_true(fabsf(y[k]) < 1e-6f);
    }
}

/* ---- tiles ------------------------------------------------------------------------------ */

static void pack_and_compare(enum qtype t, int n_cols, int n_rows, size_t gap)
{
    size_t row = qtype_bytes(t, (uint64_t)n_cols), stride = row + gap;
    uint8_t *rows = alloc(stride * TILE_ROWS), *tile = alloc(tile_bytes(t, n_cols));
    float *a = alloc(4 * (size_t)n_cols), *b = alloc(4 * (size_t)n_cols);
    struct rng r;
    rng_seed(&r, (uint64_t)n_cols * 31 + (uint64_t)n_rows);
    for (size_t i = 0; i < stride * TILE_ROWS; i++) rows[i] = (uint8_t)rng_below(&r, 256);
    memset(tile, 0xEE, tile_bytes(t, n_cols));
    assert_int_equal(tile_bytes(t, n_cols), TILE_ROWS * row);
    /* Missing rows may not be touched: the source ends where the last row ends. */
    uint8_t *exact = alloc(stride * TILE_ROWS);
    size_t used = n_rows ? stride * (size_t)(n_rows - 1) + row : 0;
    memcpy(exact, rows, used);
    tile_pack(mm_kernels(cpu_tier_best()), t, n_cols, n_rows, exact, stride, tile);
    for (int k = 0; k < TILE_ROWS; k++) {
        memset(rows + stride * (size_t)k, k < n_rows ? rows[stride * (size_t)k] : 0, 1);
        if (k >= n_rows) memset(rows + stride * (size_t)k, 0, row);
        codec_decode(t, rows + stride * (size_t)k, a, n_cols);
        tile_row_f32(t, n_cols, tile, k, b);
        assert_memory_equal(a, b, 4 * (size_t)n_cols);
    }
    free(rows);
    free(tile);
    free(exact);
    free(a);
    free(b);
}

static void test_tiles(void **state)
{
    (void)state;
    static const int blocks[] = {1, 2, 3, 5, 17};
    for (int i = 0; i < N_TYPES; i++)
        for (int b = 0; b < 5; b++) {
            int unit = info(all_types[i])->block, n = blocks[b] * (unit == 1 ? 41 : unit);
            pack_and_compare(all_types[i], n, TILE_ROWS, 0);
            pack_and_compare(all_types[i], n, 1 + 4 * b % 15, (size_t)(6 * b));
            pack_and_compare(all_types[i], n, 0, 0);
        }
}

/* ---- activations ------------------------------------------------------------------------ */

static void test_act_layout(void **state)
{
    (void)state;
    enum { N = 512 };
    float x[N];
    fill(x, N, 3, 2.0f);
    int8_t *p = alloc(act_bytes(ACT_Q8_32, N));
    mm_kernels(CPU_REF)->act[ACT_Q8_32](N, x, p);
    const float *d = (const float *)(const void *)(p + N);
    const int32_t *s = (const int32_t *)(const void *)(p + N + N / 32 * 4);
    for (int b = 0; b < N / 32; b++) {
        int sum = 0;
        for (int k = 32 * b; k < 32 * b + 32; k++) {
            assert_true(p[k] >= -127);
            assert_true(fabsf(x[k] - d[b] * (float)p[k]) <= 0.501f * d[b]);
            sum += p[k];
        }
        assert_int_equal(sum, s[b]);
    }
    free(p);
    p = alloc(act_bytes(ACT_Q8_256, N));
    mm_kernels(CPU_REF)->act[ACT_Q8_256](N, x, p);
    d = (const float *)(const void *)(p + N);
    const int16_t *s16 = (const int16_t *)(const void *)(p + N + N / 256 * 4), *s32 = s16 + N / 16;
    for (int k = 0; k < N; k++)
        assert_true(fabsf(x[k] - d[k / 256] * (float)p[k]) <= 0.501f * d[k / 256]);
    for (int b = 0; b < N / 16; b++) {
        int sum = 0;
        for (int k = 0; k < 16; k++) sum += p[16 * b + k];
        assert_int_equal(sum, s16[b]);
        if (b & 1) assert_int_equal(s16[b] + s16[b - 1], s32[b / 2]);
    }
    free(p);
}

static void test_act_edges(void **state)
{
    (void)state;
    static const float odd[] = {INFINITY, -INFINITY, NAN};
    for (int tier = CPU_REF; tier <= (int)cpu_tier_best(); tier++) {
        const struct mm_kernels *k = mm_kernels((enum cpu_tier)tier);
        float x[64] = {0};
        int8_t *p = alloc(act_bytes(ACT_Q8_32, 64));
        const float *d = (const float *)(const void *)(p + 64);
        k->act[ACT_Q8_32](64, x, p);
        assert_true(d[0] == 0 && d[1] == 0);
        x[3] = -0x1p-121f; /* too small: 127 / amax would not be finite */
        x[33] = 0x1p-120f; /* just large enough */
        k->act[ACT_Q8_32](64, x, p);
        assert_true(d[0] == 0 && p[3] == 0);
        assert_true(d[1] > 0 && p[33] == 127);
        x[3] = 127.0f; /* halves go to the even code */
        x[4] = 2.5f;
        x[5] = 3.5f;
        x[6] = -0.5f;
        k->act[ACT_Q8_32](64, x, p);
        assert_true(p[3] == 127 && p[4] == 2 && p[5] == 4 && p[6] == 0);
        x[7] = 3.4028235e38f;
        k->act[ACT_Q8_32](64, x, p);
        assert_true(p[7] == 127 && isfinite(d[0]));
        for (int i = 0; i < 3; i++) { /* a bad value spoils its block, and only its block */
            x[8] = odd[i];
            k->act[ACT_Q8_32](64, x, p);
            assert_int_equal(f32_bits(d[0]), 0x7fc00000u);
            assert_true(p[3] == 0 && p[8] == 0 && d[1] > 0);
        }
        free(p);
    }
}

/* Random rows: encoded, or random bytes with harmless float scales where there is no encoder. */
static void random_rows(enum qtype t, const float *src, int64_t n, uint8_t *rows)
{
    if (codec_can_encode(t)) {
        codec_encode(CPU_REF, t, src, NULL, rows, n);
        return;
    }
    struct rng r;
    rng_seed(&r, 5 + (uint64_t)t);
    const int bytes = info(t)->block_bytes;
    for (int64_t b = 0; b < n / info(t)->block; b++, rows += bytes) {
        for (int i = 0; i < bytes; i++) rows[i] = (uint8_t)rng_below(&r, 256);
        const int at = t == QTYPE_Q2_K ? 80 : t == QTYPE_Q3_K ? 108 : 0;
        if (t == QTYPE_IQ1_M) rows[55] = (uint8_t)((rows[55] & 15) | 0x20);
        else if (t == QTYPE_MXFP4) rows[0] = (uint8_t)(120 + rows[0] % 8);
        else if (t != QTYPE_NVFP4) rows[at + 1] = (uint8_t)(0x20 | (rows[at + 1] & 15));
        if (t == QTYPE_Q2_K) rows[83] = 0x21;
        if (t == QTYPE_Q4_1 || t == QTYPE_Q5_1 || t == QTYPE_Q5_K) rows[3] = 0x21;
    }
}

/* ---- products --------------------------------------------------------------------------- */

/* What a prepared row stands for. */
static void act_floats(enum act_kind kind, int n, const void *prepared, float *x)
{
    const int8_t *q = prepared;
    int block = kind == ACT_Q8_32 ? 32 : 256;
    for (int k = 0; k < n; k++) {
        if (kind == ACT_F32) {
            x[k] = ((const float *)prepared)[k];
            continue;
        }
        float d;
        memcpy(&d, q + n + k / block * 4, 4);
        x[k] = d * (float)q[k];
    }
}

/* Every tier against a double-precision dot product of decoded weights and dequantised
 * activations; padding rows give zeros; the tiers agree bit for bit. */
static void test_product(void **state)
{
    (void)state;
    enum { N = 768, TILES = 3, OUT = 39, ROWS = 5 };
    for (int i = 0; i < N_TYPES; i++) {
        enum qtype t = all_types[i];
        enum act_kind kind = info(t)->act;
        size_t row = qtype_bytes(t, N), abytes = act_bytes(kind, N), tile = tile_bytes(t, N);
        float *src = alloc(4 * N * OUT), *x = alloc(4 * N), *wf = alloc(4 * N), *xf = alloc(4 * N);
        uint8_t *rows = alloc(row * OUT), *tiles = alloc(tile * TILES);
        uint8_t *acts = alloc(abytes * ROWS);
        fill(src, N * OUT, 11 + (uint64_t)t, 0.05f);
        random_rows(t, src, N * OUT, rows);
        for (int k = 0; k < TILES; k++) {
            int n = OUT - TILE_ROWS * k < TILE_ROWS ? OUT - TILE_ROWS * k : TILE_ROWS;
            tile_pack(mm_kernels(CPU_REF), t, N, n, rows + row * (size_t)(TILE_ROWS * k), row,
                      tiles + tile * (size_t)k);
        }
        const void *xs[ROWS];
        float y[CPU_TIER_N][ROWS][TILES * TILE_ROWS], *ys[ROWS];
        for (int r = 0; r < ROWS; r++) {
            fill(x, N, 100 + (uint64_t)r, 1.0f);
            mm_kernels(CPU_REF)->act[kind](N, x, acts + abytes * (size_t)r);
            xs[r] = acts + abytes * (size_t)r;
        }
        for (int tier = CPU_REF; tier <= (int)cpu_tier_best(); tier++) {
            for (int r = 0; r < ROWS; r++) ys[r] = y[tier][r];
            if (!mm_kernels((enum cpu_tier)tier)->mm[t]) {
                print_message("%s: no kernel in tier %d\n", info(t)->name, tier);
                continue;
            }
            mm_kernels((enum cpu_tier)tier)->mm[t](N, TILES, tiles, ROWS, xs, ys);
            assert_memory_equal(y[tier], y[CPU_REF], sizeof y[CPU_REF]);
            ys[0] = y[tier][0]; /* one row alone gives the same bits */
            mm_kernels((enum cpu_tier)tier)->mm[t](N, TILES, tiles, 1, xs, ys);
            assert_memory_equal(y[tier][0], y[CPU_REF][0], sizeof y[CPU_REF][0]);
        }
        for (int r = 0; r < ROWS; r++) {
            act_floats(kind, N, xs[r], xf);
            for (int o = 0; o < TILES * TILE_ROWS; o++) {
                double sum = 0, size = 0;
                if (o < OUT) codec_decode(t, rows + row * (size_t)o, wf, N);
                for (int k = 0; k < N && o < OUT; k++) {
                    sum += (double)wf[k] * xf[k];
                    size += fabs((double)wf[k] * xf[k]);
                }
                if (!(fabs(y[CPU_REF][r][o] - sum) <= 2e-6 * size))
                    print_message("%s: %g for %g\n", info(t)->name, y[CPU_REF][r][o], sum);
                assert_true(fabs(y[CPU_REF][r][o] - sum) <= 2e-6 * size);
            }
        }
        free(src);
        free(x);
        free(wf);
        free(xf);
        free(rows);
        free(tiles);
        free(acts);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),       cmocka_unit_test(test_golden_decode),
        cmocka_unit_test(test_golden_encode), cmocka_unit_test(test_beside_llama),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_encode_edges), cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_act_layout),  cmocka_unit_test(test_act_edges),
        cmocka_unit_test(test_product),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
