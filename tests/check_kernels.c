/* Checks the weight products and activation formats (quant/mm.h) of every tier against the
 * reference, bit by bit, on random inputs; with --bench measures them.
 *
 *     check_kernels [--bench] [--filter TEXT] [--seed N] [--list]
 *
 * Names look like "mm.q4_k.avx512" and "act.q8_32.avx2".  Exit code 1 when anything differs.
 * TESSERA_CPU limits the tiers. */
#include <ctype.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "quant/mm.h"
#include "tests/check_mm.h"

static const char *lower(const char *name, char *buf)
{
    size_t i = 0;
    for (; name[i] && i < 15; i++) buf[i] = (char)tolower((unsigned char)name[i]);
    buf[i] = 0;
    return buf;
}

static const char *const act_names[] = {"f32", "q8_32", "q8_256", "q8_64"};

/* ---- activations ------------------------------------------------------------------------ */

static void check_act(struct check_opts *o, enum cpu_tier tier, enum act_kind kind)
{
    char name[64], what[64];
    snprintf(name, sizeof name, "act.%s.%s", act_names[kind], cpu_tier_name(tier));
    if (!check_wanted(o, name)) return;
    static const int blocks[] = {1, 2, 3, 7, 31};
    struct rng r;
    rng_seed(&r, o->seed);
    static const int units[ACT_N] = {5, 32, 256, 64};
    const int unit = units[kind];
    for (size_t s = 0; s < sizeof blocks / sizeof blocks[0]; s++)
        for (int trial = 0; trial < 3 * CHECK_REGIME_N; trial++) {
            int n = blocks[s] * unit;
            size_t bytes = act_bytes(kind, n);
            float *x = need(malloc(4 * (size_t)n));
            fill_act(x, (size_t)n, trial, &r);
            struct check_buf a = check_canary_alloc(bytes), b = check_canary_alloc(bytes);
            mm_kernels(CPU_REF)->act[kind](n, x, a.data);
            mm_kernels(tier)->act[kind](n, x, b.data);
            snprintf(what, sizeof what, "n %d trial %d", n, trial);
            check_same_bytes(o, name, what, a.data, b.data, bytes);
            check_same_canary(o, name, what, &b);
            check_canary_free(&a);
            check_canary_free(&b);
            free(x);
        }
}

/* ---- products --------------------------------------------------------------------------- */

struct shape {
    int blocks, tiles, rows;
};

/* One comparison: the same prepared rows and tiles through the reference and the tier. */
static void check_mm_once(struct check_opts *o, enum cpu_tier tier, enum qtype type,
                          struct shape sh, int trial, const char *name, struct rng *r)
{
    enum { MAX_ROWS = 80 };
    const struct qtype_info *t = qtype_info((uint32_t)type);
    const struct mm_kernels *ref = mm_kernels(CPU_REF), *fast = mm_kernels(tier);
    enum weight_regime g = (enum weight_regime)(trial % W_REGIME_N);
    int n_cols = sh.blocks * t->block, n_out = sh.tiles * TILE_ROWS;
    size_t row = qtype_bytes(type, (uint64_t)n_cols), tile = tile_bytes(type, n_cols);
    size_t abytes = act_bytes(t->act, n_cols), ybytes = 4 * (size_t)n_out;

    uint8_t *rows = need(malloc(row * (size_t)n_out));
    fill_weights(type, g, trial, rows, n_out, n_cols, r);
    struct check_buf w[2], y[2][MAX_ROWS];
    for (int i = 0; i < 2; i++) {
        w[i] = check_canary_alloc(tile * (size_t)sh.tiles);
        for (int k = 0; k < sh.tiles; k++)
            tile_pack(i ? fast : ref, type, n_cols, TILE_ROWS, rows + row * (size_t)(TILE_ROWS * k),
                      row, (uint8_t *)w[i].data + tile * (size_t)k);
    }
    check_same_bytes(o, name, "packed", w[0].data, w[1].data, tile * (size_t)sh.tiles);
    float *x = need(malloc(4 * (size_t)n_cols));
    char *acts = need(aligned_alloc(64, abytes * (size_t)sh.rows));
    const void *xs[MAX_ROWS];
    float *ys[2][MAX_ROWS];
    for (int c = 0; c < sh.rows; c++) {
        int order = (c * 7 + trial) % sh.rows; /* rows of a batch need not lie in order */
        if (sh.rows % 7 == 0) order = c;
        xs[c] = acts + abytes * (size_t)order;
        fill_act(x, (size_t)n_cols, trial + c, r);
        if (trial % 5 == 4) /* the largest sums there can be */
            for (int k = 0; k < n_cols; k++) x[k] = c & 1 ? -1.0f : 1.0f;
        ref->act[t->act](n_cols, x, acts + abytes * (size_t)order);
        for (int i = 0; i < 2; i++) {
            y[i][c] = check_canary_alloc(ybytes + 16);
            ys[i][c] = (float *)y[i][c].data + c % 4; /* not aligned */
        }
    }
    ref->mm[type](n_cols, sh.tiles, w[0].data, sh.rows, xs, ys[0]);
    fast->mm[type](n_cols, sh.tiles, w[1].data, sh.rows, xs, ys[1]);

    char what[96];
    snprintf(what, sizeof what, "blocks %d tiles %d rows %d trial %d", sh.blocks, sh.tiles, sh.rows,
             trial);
    for (int c = 0; c < sh.rows; c++) {
        check_same_f32(o, name, what, ys[0][c], ys[1][c], (size_t)n_out);
        size_t before = 4 * (size_t)(c % 4);
        check_same_bytes(o, name, what, y[0][c].data, y[1][c].data, before);
        check_same_bytes(o, name, what, ys[0][c] + n_out, ys[1][c] + n_out, 16 - before);
        for (int i = 0; i < 2; i++) {
            check_same_canary(o, name, what, &y[i][c]);
            check_canary_free(&y[i][c]);
        }
    }
    check_same_bytes(o, name, what, w[0].data, w[1].data, tile * (size_t)sh.tiles);
    for (int i = 0; i < 2; i++) check_canary_free(&w[i]);
    free(acts);
    free(x);
    free(rows);
}

static void check_mm(struct check_opts *o, enum cpu_tier tier, enum qtype type)
{
    char name[64], low[16];
    snprintf(name, sizeof name, "mm.%s.%s", lower(qtype_info((uint32_t)type)->name, low),
             cpu_tier_name(tier));
    if (!mm_kernels(tier)->mm[type] || !check_wanted(o, name)) return;
    static const int rows[] = {1, 2, 3, 4, 5, 8, 13, 17, 33, 65};
    static const int blocks[] = {1, 3, 2, 8};
    struct rng r;
    rng_seed(&r, o->seed ^ (uint64_t)type << 32);
    int trial = 0, unit = qtype_info((uint32_t)type)->block;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (int tiles = 1; tiles <= 5; tiles++)
            for (int b = 0; b < 4; b++, trial++) {
                if ((trial + (int)type) % CHECK_ONE_IN) continue;
                int n = blocks[b];
                if (b == 3 && tiles == 2 && rows[i] < 10) n = 31;
                if (b == 3 && tiles == 2 && rows[i] > 32) n = unit == 32 ? 75 : 11; /* > 2048 */
                if (unit == 1) n *= 11;
                check_mm_once(o, tier, type, (struct shape){n, tiles, rows[i]}, trial, name, &r);
            }
}

/* ---- benchmarks ------------------------------------------------------------------------- */

struct mm_bench {
    void (*mm)(int, int, const void *, int, const void *const *, float *const *);
    int n_cols, n_tiles, n_rows;
    const char *w;
    size_t stride; /* bytes from one call's weights to the next call's, 0 = the same again */
    int n_calls, call;
    const void **x;
    float **y;
};

/* Calls walk through the weights, so that each finds its own in DRAM and is still short enough to
 * fall between two interruptions by the machine's other work. */
static void run_mm(void *arg)
{
    struct mm_bench *b = arg;
    const char *w = b->w + b->stride * (size_t)b->call;
    if (++b->call >= b->n_calls) b->call = 0;
    b->mm(b->n_cols, b->n_tiles, w, b->n_rows, b->x, b->y);
}

enum { BENCH_COLS = 2048, BENCH_ROWS = 512, MAX_TILES = 1000 };
static const size_t bench_weights = (size_t)192 << 20;

/* Prepared rows and outputs for up to BENCH_ROWS rows and MAX_TILES tiles. */
static void bench_rows(struct mm_bench *b, enum qtype type)
{
    const size_t y_row = TILE_ROWS * MAX_TILES + 80; /* rows in different cache sets */
    const struct qtype_info *t = qtype_info((uint32_t)type);
    size_t abytes = act_bytes(t->act, b->n_cols);
    float *x = need(malloc(4 * (size_t)b->n_cols));
    char *acts = check_huge_alloc(abytes * BENCH_ROWS);
    float *out = check_huge_alloc(4 * y_row * BENCH_ROWS);
    struct rng r;
    rng_seed(&r, 1);
    b->x = need(malloc(BENCH_ROWS * sizeof *b->x));
    b->y = need(malloc(BENCH_ROWS * sizeof *b->y));
    for (int c = 0; c < BENCH_ROWS; c++) {
        check_fill(CHECK_UNIFORM, x, (size_t)b->n_cols, &r);
        mm_kernels(CPU_REF)->act[t->act](b->n_cols, x, acts + abytes * (size_t)c);
        b->x[c] = acts + abytes * (size_t)c;
        b->y[c] = out + (size_t)c * y_row;
    }
    free(x);
}

/* One packed tile, repeated; numbers of any value cost the same. */
static void *bench_tiles(enum qtype type, int n_cols, int n_tiles)
{
    size_t row = qtype_bytes(type, (uint64_t)n_cols), tile = tile_bytes(type, n_cols);
    uint8_t *w = check_huge_alloc(tile * (size_t)n_tiles), *rows = need(malloc(TILE_ROWS * row));
    struct rng r;
    rng_seed(&r, 2);
    fill_weights(type, W_ENCODED, CHECK_UNIFORM, rows, TILE_ROWS, n_cols, &r);
    tile_pack(mm_kernels(CPU_REF), type, n_cols, TILE_ROWS, rows, row, w);
    for (int t = 1; t < n_tiles; t++) memcpy(w + tile * (size_t)t, w, tile);
    free(rows);
    return w;
}

/* A line of the table; ns is per call, ref the reference's nanoseconds per multiplication. */
static void bench_line(const char *name, const struct mm_bench *b, enum qtype type, double ns,
                       double ref)
{
    double macs = (double)b->n_cols * TILE_ROWS * b->n_tiles * b->n_rows;
    double bytes = (double)tile_bytes(type, b->n_cols) * b->n_tiles;
    printf("%-20s %5d %6d %5d %12.0f %8.1f %9.1f %8.1f\n", name, b->n_cols, b->n_tiles, b->n_rows,
           ns, bytes / ns, macs / ns, ref * macs / ns);
}

static void bench_mm(struct check_opts *o, enum cpu_tier tier, enum qtype type)
{
    char name[64], low[16];
    snprintf(name, sizeof name, "mm.%s.%s", lower(qtype_info((uint32_t)type)->name, low),
             cpu_tier_name(tier));
    if (!mm_kernels(tier)->mm[type] || !check_wanted(o, name)) return;
    static const int rows[] = {1, 2, 3, 4, 6, 8, 16, 32, 64, 512};
    size_t tile = tile_bytes(type, BENCH_COLS);
    int all = (int)(bench_weights / tile), cached = (int)(((size_t)512 << 10) / tile / 4 * 4);
    struct mm_bench b = {.n_cols = BENCH_COLS, .w = bench_tiles(type, BENCH_COLS, all)};
    bench_rows(&b, type);
    b.mm = mm_kernels(CPU_REF)->mm[type];
    b.n_tiles = b.n_rows = 1;
    double ref = check_bench(run_mm, &b, 0.02) / (BENCH_COLS * TILE_ROWS);
    b.mm = mm_kernels(tier)->mm[type];
    b.n_tiles = cached < 4 ? 4 : cached;
    bench_line(name, &b, type, check_bench(run_mm, &b, 0.1), ref);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        b.n_rows = rows[i];
        b.n_tiles = rows[i] <= 16 ? MAX_TILES : 48;
        if ((size_t)b.n_tiles * tile > 8 << 20) b.n_tiles = (int)((8 << 20) / tile / 4 * 4);
        b.n_calls = all / b.n_tiles;
        b.stride = tile * (size_t)b.n_tiles;
        bench_line(name, &b, type, check_bench(run_mm, &b, 0.3), ref);
        b.call = 0;
    }
    munmap((void *)(uintptr_t)b.w, tile * (size_t)all);
    free(b.x);
    free(b.y);
}

/* ---- what the fixed order costs ----------------------------------------------------------- */

/* Rivals of the one-row kernels that may sum as they like: several float accumulators over the
 * blocks (or weights) of one tile, added up at the end.  Everything else is as in mm_avx512.c.
 * They live only here. */
#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")))
enum { N_ACC = 4 };

AVX512 static void free_q8_0(int n_cols, int n_tiles, const void *w, int n_rows,
                             const void *const *x, float *const *y)
{
    const char *p = w, *a = x[0], *da = a + n_cols, *s32 = da + n_cols / 32 * 4;
    (void)n_rows;
    for (int t = 0; t < n_tiles; t++) {
        __m512 acc[N_ACC];
        for (int i = 0; i < N_ACC; i++) acc[i] = _mm512_setzero_ps();
        for (int b = 0; b < n_cols / 32; b += N_ACC)
            for (int i = 0; i < N_ACC; i++, p += 544) {
                int32_t off, q[8];
                float d;
                memcpy(&off, s32 + 4 * (b + i), 4);
                memcpy(&d, da + 4 * (b + i), 4);
                memcpy(q, a + 32 * (b + i), 32);
                __m512i s = _mm512_set1_epi32(-128 * off);
#pragma GCC unroll 9
                for (int k = 0; k < 9; k++)
                    _mm_prefetch((const char *)p + 8192 + 64 * k, _MM_HINT_T0);
#pragma GCC unroll 8
                for (int k = 0; k < 8; k++)
                    s = _mm512_dpbusd_epi32(s, _mm512_loadu_si512(p + 32 + 64 * k),
                                            _mm512_set1_epi32(q[k]));
                __m512 dw = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
                acc[i] = _mm512_fmadd_ps(_mm512_mul_ps(dw, _mm512_set1_ps(d)),
                                         _mm512_cvtepi32_ps(s), acc[i]);
            }
        _mm512_storeu_ps(y[0] + TILE_ROWS * t, _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]),
                                                             _mm512_add_ps(acc[2], acc[3])));
    }
}

AVX512 static void free_f16(int n_cols, int n_tiles, const void *w, int n_rows,
                            const void *const *x, float *const *y)
{
    const char *p = w;
    const float *a = x[0];
    (void)n_rows;
    for (int t = 0; t < n_tiles; t++) {
        __m512 acc[8];
        for (int i = 0; i < 8; i++) acc[i] = _mm512_setzero_ps();
        for (int k = 0; k < n_cols; k += 8)
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++, p += 32) {
                if (!(i & 1)) _mm_prefetch(p + 8192, _MM_HINT_T0);
                __m512 v = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
                acc[i] = _mm512_fmadd_ps(v, _mm512_set1_ps(a[k + i]), acc[i]);
            }
        for (int i = 0; i < 4; i++) acc[i] = _mm512_add_ps(acc[i], acc[i + 4]);
        _mm512_storeu_ps(y[0] + TILE_ROWS * t, _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]),
                                                             _mm512_add_ps(acc[2], acc[3])));
    }
}

static void bench_free_one(struct check_opts *o, const char *name, enum qtype type,
                           void (*rival)(int, int, const void *, int, const void *const *,
                                         float *const *))
{
    if (!check_wanted(o, name)) return;
    size_t tile = tile_bytes(type, BENCH_COLS);
    int all = (int)(bench_weights / tile);
    struct mm_bench b = {.n_cols = BENCH_COLS, .n_rows = 1};
    b.w = bench_tiles(type, BENCH_COLS, all);
    bench_rows(&b, type);
    for (int cached = 1; cached >= 0; cached--) {
        b.n_tiles = (int)(((size_t)(cached ? 512 << 10 : 8 << 20)) / tile / 4 * 4);
        b.n_calls = cached ? 1 : all / b.n_tiles;
        b.stride = cached ? 0 : tile * (size_t)b.n_tiles;
        double ns[2];
        for (int i = 0; i < 2; i++) {
            b.mm = i ? rival : mm_kernels(CPU_AVX512)->mm[type];
            b.call = 0;
            ns[i] = check_bench(run_mm, &b, 0.5);
        }
        double bytes = (double)tile * b.n_tiles;
        printf("%-20s one row, %s: fixed order %.1f GB/s, free order %.1f GB/s\n", name,
               cached ? "L2" : "DRAM", bytes / ns[0], bytes / ns[1]);
    }
    munmap((void *)(uintptr_t)b.w, tile * (size_t)all);
    free(b.x);
    free(b.y);
}

static void bench_free(struct check_opts *o)
{
    if (cpu_tier_best() < CPU_AVX512) return;
    bench_free_one(o, "free.q8_0", QTYPE_Q8_0, free_q8_0);
    bench_free_one(o, "free.f16", QTYPE_F16, free_f16);
}
#else
static void bench_free(struct check_opts *o) { (void)o; }
#endif

/* ---- preparing and packing ---------------------------------------------------------------- */

struct act_bench {
    void (*act)(int, const float *, void *);
    float *x;
    void *out;
};

static void run_act(void *arg)
{
    const struct act_bench *b = arg;
    b->act(BENCH_COLS, b->x, b->out);
}

static void bench_act(struct check_opts *o, enum cpu_tier tier, enum act_kind kind)
{
    char name[64];
    snprintf(name, sizeof name, "act.%s.%s", act_names[kind], cpu_tier_name(tier));
    if (!check_wanted(o, name)) return;
    struct act_bench b = {.x = need(aligned_alloc(64, 4 * BENCH_COLS)),
                          .out = need(aligned_alloc(64, act_bytes(kind, BENCH_COLS)))};
    struct rng r;
    rng_seed(&r, 1);
    check_fill(CHECK_UNIFORM, b.x, BENCH_COLS, &r);
    b.act = mm_kernels(CPU_REF)->act[kind];
    double ref = check_bench(run_act, &b, 0.05);
    b.act = mm_kernels(tier)->act[kind];
    double ns = check_bench(run_act, &b, 0.05);
    printf("%-20s %5d columns: %.0f ns, %.2f values/ns, %.1f x ref\n", name, BENCH_COLS, ns,
           BENCH_COLS / ns, ref / ns);
    free(b.x);
    free(b.out);
}

struct pack_bench {
    const struct mm_kernels *kernels;
    enum qtype type;
    size_t row;
    char *rows, *tiles;
    int n, at; /* tiles in memory, next one */
};

static void run_pack(void *arg)
{
    struct pack_bench *b = arg;
    for (int i = 0; i < 8; i++, b->at = (b->at + 1) % b->n) {
        size_t tile = TILE_ROWS * b->row, from = tile * (size_t)b->at;
        tile_pack(b->kernels, b->type, BENCH_COLS, TILE_ROWS, b->rows + from, b->row,
                  b->tiles + from);
    }
}

static void bench_pack(struct check_opts *o, enum cpu_tier tier, enum qtype type)
{
    char name[64], low[16];
    snprintf(name, sizeof name, "pack.%s.%s", lower(qtype_info((uint32_t)type)->name, low),
             cpu_tier_name(tier));
    if (!check_wanted(o, name)) return;
    struct pack_bench b = {.kernels = mm_kernels(tier), .type = type, .row = qtype_bytes(type, BENCH_COLS)};
    b.n = (int)(((size_t)64 << 20) / (TILE_ROWS * b.row));
    size_t bytes = TILE_ROWS * b.row * (size_t)b.n;
    b.rows = check_huge_alloc(bytes);
    b.tiles = check_huge_alloc(bytes);
    double ns = check_bench(run_pack, &b, 0.2);
    printf("%-20s %.1f GB/s\n", name, 8.0 * TILE_ROWS * (double)b.row / ns);
    munmap(b.rows, bytes);
    munmap(b.tiles, bytes);
}

/* ---- what the machine gives ------------------------------------------------------------- */

struct read_bench {
    const char *p;
    size_t bytes, at;
    uint64_t sum;
};

static void run_read(void *arg)
{
    struct read_bench *b = arg;
    const size_t n = (size_t)4 << 20;
    const uint64_t *p = (const uint64_t *)(const void *)(b->p + b->at);
    uint64_t s[4] = {0};
    for (size_t i = 0; i < n / 8; i += 8) {
        __builtin_prefetch(p + i + 512);
        for (size_t k = 0; k < 4; k++) s[k] += p[i + 2 * k];
    }
    b->sum += s[0] + s[1] + s[2] + s[3];
    b->at = (b->at + n) % b->bytes;
}

static void bench_read(struct check_opts *o)
{
    if (!check_wanted(o, "read")) return;
    struct read_bench b = {.p = check_huge_alloc(bench_weights), .bytes = bench_weights};
    double ns = check_bench(run_read, &b, 0.3);
    printf("one core reads %.1f GB/s\n", (double)((size_t)4 << 20) / ns);
}

/* ---- main ------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    struct check_opts o;
    if (!check_parse(&o, argc, argv)) return 2;
    for (int t = CPU_REF; o.bench && t <= (int)cpu_tier_best(); t++)
        for (int i = 0; t != CPU_AMX && qtype_at(i); i++) /* AMX packs like AVX-512 */
            bench_pack(&o, (enum cpu_tier)t, qtype_at(i)->id);
    if (o.bench) {
        bench_read(&o);
        bench_free(&o);
    }
    if (o.bench && !o.list)
        printf("%-20s %5s %6s %5s %12s %8s %9s %8s\n", "kernel", "cols", "tiles", "rows", "ns",
               "GB/s", "GMAC/s", "x ref");
    for (int t = CPU_REF + 1; t <= (int)cpu_tier_best(); t++) {
        enum cpu_tier tier = (enum cpu_tier)t;
        for (int k = 0; k < ACT_N; k++) {
            if (o.bench) bench_act(&o, tier, (enum act_kind)k);
            else check_act(&o, tier, (enum act_kind)k);
        }
        for (int i = 0; qtype_at(i); i++) {
            if (o.bench) bench_mm(&o, tier, qtype_at(i)->id);
            else check_mm(&o, tier, qtype_at(i)->id);
        }
    }
    return check_finish(&o);
}
