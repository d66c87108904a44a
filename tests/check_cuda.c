/* Checks the kernels of the CUDA plugin against the CPU's, bit by bit, on random inputs.
 *
 *     check_cuda [--bench] [--filter TEXT] [--seed N] [--list]
 *
 * The same source runs on a GPU (`make cuda`: build/cuda/check_cuda) and, where CUDA's runtime and the
 * threads of the kernels are emulated, on any machine (tests/cuda_emu).  The first line says which.
 * Names look like "cuda.q4_k" and "cuda.glu.q8_32".  Exit code 1 when anything differs. */
#include <ctype.h>

#include "moe/compute/cuda/kernels.h"
#include "moe/compute/dev.h"
#include "tests/check_mm.h"

static cudaStream_t stream;

static void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "check_cuda: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

/* ---- memory of the device ---- */

static void *device_alloc(size_t n)
{
    void *p;
    must(cudaMalloc(&p, n), "cudaMalloc");
    return p;
}

static void move(void *to, const void *from, size_t n)
{
    must(cudaMemcpyAsync(to, from, n, cudaMemcpyDefault, stream), "a copy");
    must(cudaStreamSynchronize(stream), "a copy");
}

static void *sent(const void *from, size_t n)
{
    void *p = device_alloc(n);
    move(p, from, n);
    return p;
}

static void settle(void)
{
    must(cudaStreamSynchronize(stream), "a kernel");
}

/* ---- products ---- */

enum { PAIRS = 5, EXPERTS = 3 };

static const char *name_of(const char *before, const char *type, char *buf, size_t n)
{
    int at = snprintf(buf, n, "%s", before);
    for (; *type && at + 1 < (int)n; type++) buf[at++] = (char)tolower((unsigned char)*type);
    buf[at] = 0;
    return buf;
}

/* Some pairs, some of one expert, with two matrices at a time as gate and up have, or one as down. */
static void check_product_once(struct check_opts *o, enum qtype type, int blocks, int n_out, int trial,
                               const char *name, struct rng *r)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    const int n_cols = blocks * t->block, tiles = (n_out + TILE_ROWS - 1) / TILE_ROWS;
    const int n_mats = 1 + trial % 2;
    const bool by_pair = trial % 3 == 0, with_bias = trial % 4 < 2;
    const size_t row = qtype_bytes(type, (uint64_t)n_cols), tile = tile_bytes(type, n_cols);
    const size_t bytes = tile * (size_t)tiles, xbytes = act_bytes(t->act, n_cols);
    const size_t stride = (4 * (size_t)n_out + 63) / 64 * 64;
    uint8_t *rows = need(malloc(row * (size_t)n_out));
    uint8_t *w[EXPERTS][2];
    void *dev_w[EXPERTS][2];
    float *bias = need(malloc(sizeof *bias * (size_t)(EXPERTS * n_out)));
    float *x = need(malloc(sizeof *x * (size_t)n_cols));
    char *acts = need(aligned_alloc(64, xbytes * PAIRS));
    check_fill(CHECK_UNIFORM, bias, (size_t)(EXPERTS * n_out), r);
    for (int e = 0; e < EXPERTS; e++)
        for (int m = 0; m < 2; m++) {
            fill_weights(type, (enum weight_regime)(trial % W_REGIME_N), trial, rows, n_out, n_cols, r);
            w[e][m] = need(aligned_alloc(64, (bytes + 63) / 64 * 64));
            for (int k = 0; k < tiles; k++) {
                const int left = n_out - TILE_ROWS * k;
                tile_pack(mm_kernels(CPU_REF), type, n_cols, left < TILE_ROWS ? left : TILE_ROWS,
                          rows + row * (size_t)(TILE_ROWS * k), row, w[e][m] + tile * (size_t)k);
            }
            dev_w[e][m] = sent(w[e][m], bytes);
        }
    for (int p = 0; p < PAIRS; p++) {
        fill_act(x, (size_t)n_cols, trial + p, r);
        if (trial % 5 == 4) /* the largest sums there can be */
            for (int k = 0; k < n_cols; k++) x[k] = p & 1 ? -1.0f : 1.0f;
        mm_kernels(CPU_REF)->act[t->act](n_cols, x, acts + xbytes * (size_t)p);
    }
    struct gpu_pair pair[PAIRS];
    for (int p = 0; p < PAIRS; p++) {
        const int e = p * 2 % EXPERTS;
        pair[p] = (struct gpu_pair){.w = {dev_w[e][0], dev_w[e][1], NULL}, .row = (p * 3 + 1) % PAIRS,
                                    .expert = e};
    }
    char *out[2], *got = need(malloc(stride * PAIRS));
    void *dev_pair = sent(pair, sizeof pair), *dev_x = sent(acts, xbytes * PAIRS);
    void *dev_bias = sent(bias, sizeof *bias * (size_t)(EXPERTS * n_out));
    memset(got, 0x5a, stride * PAIRS);
    for (int m = 0; m < 2; m++) out[m] = sent(got, stride * PAIRS);
    const struct gpu_product a = {
        .pair = dev_pair, .n_pairs = PAIRS, .first = trial % 7 == 0 && n_mats == 1, .n_mats = n_mats,
        .n_cols = n_cols, .n_rows = n_out, .tile_bytes = tile, .x = dev_x, .x_stride = xbytes,
        .x_by_pair = by_pair, .bias = {with_bias ? dev_bias : NULL, NULL}, .out = {out[0], out[1]},
        .out_stride = stride,
    };
    must(gpu_product(stream, type, &a), name);
    settle();

    float *want = need(malloc(sizeof *want * (size_t)(tiles * TILE_ROWS)));
    char what[96];
    snprintf(what, sizeof what, "blocks %d rows %d trial %d", blocks, n_out, trial);
    for (int m = 0; m < n_mats; m++) {
        move(got, out[m], stride * PAIRS);
        for (int p = 0; p < PAIRS; p++) {
            const void *in = acts + xbytes * (size_t)(by_pair ? p : pair[p].row);
            const float *have = (const float *)(const void *)(got + stride * (size_t)p);
            mm_kernels(CPU_REF)->mm[type](n_cols, tiles, w[pair[p].expert][a.first + m], 1, &in, &want);
            for (int i = 0; m == 0 && with_bias && i < n_out; i++)
                want[i] += bias[pair[p].expert * n_out + i];
            check_same_f32(o, name, what, want, have, (size_t)n_out);
            for (size_t i = 4 * (size_t)n_out; i < stride; i++)
                if (got[stride * (size_t)p + i] != 0x5a) {
                    check_fail(o, name, what, "wrote outside its output");
                    break;
                }
        }
    }
    for (int e = 0; e < EXPERTS; e++)
        for (int m = 0; m < 2; m++) {
            free(w[e][m]);
            must(cudaFree(dev_w[e][m]), "cudaFree");
        }
    void *dev[] = {dev_pair, dev_x, dev_bias, out[0], out[1]};
    for (size_t i = 0; i < sizeof dev / sizeof dev[0]; i++) must(cudaFree(dev[i]), "cudaFree");
    free(rows);
    free(bias);
    free(x);
    free(acts);
    free(got);
    free(want);
}

static void check_product(struct check_opts *o, enum qtype type)
{
    static const int outs[] = {1, 15, 16, 17, 48, 100};
    static const int blocks[] = {1, 2, 3, 8, 17};
    char name[64];
    struct rng r;
    if (!check_wanted(o, name_of("cuda.", qtype_info((uint32_t)type)->name, name, sizeof name))) return;
    rng_seed(&r, o->seed ^ (uint64_t)type << 32);
    const int unit = qtype_info((uint32_t)type)->block;
    for (int i = 0, trial = 0; i < 6; i++)
        for (int b = 0; b < 5; b++, trial++) {
            if ((trial + (int)type) % CHECK_ONE_IN) continue;
            int n = blocks[b];
            if (unit <= 64 && b == 4) n = 75; /* more pieces than shared memory holds at once */
            if (unit == 1) n = n * 11 + 1;
            check_product_once(o, type, n, outs[i], trial, name, &r);
        }
}

/* ---- between the products ---- */

static struct dev *cpu;

/* act(gate) * up by the CPU device. */
static void cpu_glu(enum glu_act act, int n, float *gate, float *up, float *out)
{
    struct op op = {.code = OP_GLU, .in = {0, 1, -1}, .out = {2, -1, -1}};
    const struct dev_buf buf[] = {{(char *)gate, 0, n, 0}, {(char *)up, 0, n, 0}, {(char *)out, 0, n, 0}};
    const struct dev_rows set = {.n = 1};
    const struct dev_bind b = {.buf = buf, .set = &set, .n_rows = 1};
    op.p.glu.act = act;
    (void)dev_cpu_api()->submit(cpu, &op, 1, &b);
}

static size_t prepared_bytes(enum act_kind kind, int n) /* without what rounds them up */
{
    if (kind == ACT_F32) return 4 * (size_t)n;
    return (size_t)n + (kind == ACT_Q8_32 ? (size_t)n / 32 * 8
                                          : (size_t)n / 256 * 4 + (size_t)n / 16 * 2 + (size_t)n / 32 * 2);
}

static void check_glu(struct check_opts *o, enum act_kind kind)
{
    static const char *const kinds[] = {"f32", "q8_32", "q8_256"};
    static const int blocks[] = {1, 2, 3, 8, 9, 24};
    const int unit = kind == ACT_Q8_256 ? 256 : kind == ACT_Q8_32 ? 32 : 5;
    char name[64], what[96];
    struct rng r;
    if (!check_wanted(o, name_of("cuda.glu.", kinds[kind], name, sizeof name))) return;
    rng_seed(&r, o->seed + 77);
    for (int b = 0; b < 6; b++)
        for (int trial = 0; trial < 3 * CHECK_REGIME_N; trial++) {
            const int n = blocks[b] * unit, act = trial % 4;
            const size_t stride = (4 * (size_t)n + 63) / 64 * 64, to = act_bytes(kind, n);
            char *gate = need(aligned_alloc(64, stride * PAIRS));
            char *up = need(aligned_alloc(64, stride * PAIRS));
            char *got = need(malloc(to * PAIRS)), *want = need(aligned_alloc(64, to));
            float *h = need(aligned_alloc(64, stride));
            for (int p = 0; p < PAIRS; p++) {
                fill_act((float *)(void *)(gate + stride * (size_t)p), (size_t)n, trial + p, &r);
                fill_act((float *)(void *)(up + stride * (size_t)p), (size_t)n, trial / 2 + p, &r);
            }
            memset(got, 0x5a, to * PAIRS);
            char *dg = sent(gate, stride * PAIRS), *du = sent(up, stride * PAIRS);
            char *dout = sent(got, to * PAIRS);
            const struct gpu_glu a = {.n_pairs = PAIRS, .n = n, .act = act, .gate = dg, .up = du,
                                      .stride = stride, .out = dout, .out_stride = to};
            must(gpu_glu(stream, kind, &a), name);
            settle();
            move(got, dout, to * PAIRS);
            snprintf(what, sizeof what, "n %d act %d trial %d", n, act, trial);
            for (int p = 0; p < PAIRS; p++) {
                const char *have = got + to * (size_t)p;
                cpu_glu((enum glu_act)act, n, (float *)(void *)(gate + stride * (size_t)p),
                        (float *)(void *)(up + stride * (size_t)p), h);
                mm_kernels(CPU_REF)->act[kind](n, h, want);
                if (kind == ACT_F32)
                    check_same_f32(o, name, what, (float *)(void *)want, (const float *)(const void *)have,
                                   (size_t)n);
                else check_same_bytes(o, name, what, want, have, prepared_bytes(kind, n));
                for (size_t i = prepared_bytes(kind, n); i < to; i++)
                    if (have[i] != 0x5a) {
                        check_fail(o, name, what, "wrote outside its output");
                        break;
                    }
            }
            must(cudaFree(dg), "cudaFree");
            must(cudaFree(du), "cudaFree");
            must(cudaFree(dout), "cudaFree");
            free(gate);
            free(up);
            free(got);
            free(want);
            free(h);
        }
}

/* ---- benchmarks: on a GPU only, the emulation has no clock ---- */

enum { B_PAIRS = 8, B_RUNS = 40, B_COLS = 2048, B_FF = 768 };
static const size_t B_BYTES = (size_t)512 << 20; /* of weights: many times any cache */

static double seconds_of(cudaEvent_t from, cudaEvent_t to)
{
    float ms = 0;
    settle();
    must(cudaEventElapsedTime(&ms, from, to), "the clock");
    return ms * 1e-3;
}

/* A decode step's launch again and again, each with weights of its own. */
static void bench_product(enum qtype type, int n_cols, int n_out, int n_mats, const char *what,
                          const char *weights, cudaEvent_t from, cudaEvent_t to)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    const size_t tile = tile_bytes(type, n_cols), one = tile * (size_t)(n_out / TILE_ROWS);
    const size_t n = B_BYTES / one;
    static struct gpu_pair pair[B_RUNS * B_PAIRS];
    const size_t xbytes = act_bytes(t->act, n_cols), stride = 4 * (size_t)n_out;
    size_t at = 0;
    for (int i = 0; i < B_RUNS * B_PAIRS; i++) {
        pair[i] = (struct gpu_pair){.row = i % B_PAIRS};
        for (int m = 0; m < n_mats; m++) pair[i].w[m] = weights + one * (at++ % n);
    }
    void *dev_pair = sent(pair, sizeof pair);
    char *zeros = need(calloc(B_PAIRS, xbytes)), *x = sent(zeros, xbytes * B_PAIRS);
    char *out[2] = {device_alloc(stride * B_PAIRS), device_alloc(stride * B_PAIRS)};
    for (int i = -3; i < B_RUNS; i++) {
        const struct gpu_product a = {
            .pair = (struct gpu_pair *)dev_pair + B_PAIRS * (i < 0 ? 0 : i), .n_pairs = B_PAIRS,
            .n_mats = n_mats, .n_cols = n_cols, .n_rows = n_out, .tile_bytes = tile, .x = x,
            .x_stride = xbytes, .out = {out[0], out[1]}, .out_stride = stride,
        };
        if (i == 0) must(cudaEventRecord(from, stream), "an event");
        must(gpu_product(stream, type, &a), "a product");
    }
    must(cudaEventRecord(to, stream), "an event");
    const double s = seconds_of(from, to) / B_RUNS;
    printf("bench cuda.%s.%s %d pairs: %.1f us, %.0f GB/s\n", t->name, what, B_PAIRS, 1e6 * s,
           1e-9 * (double)one * B_PAIRS * n_mats / s);
    must(cudaFree(dev_pair), "cudaFree");
    must(cudaFree(x), "cudaFree");
    for (int m = 0; m < 2; m++) must(cudaFree(out[m]), "cudaFree");
    free(zeros);
}

static void bench(const struct check_opts *o)
{
    cudaEvent_t from, to;
    must(cudaEventCreateWithFlags(&from, cudaEventDefault), "an event");
    must(cudaEventCreateWithFlags(&to, cudaEventDefault), "an event");
    char *weights = device_alloc(B_BYTES);
    for (int i = -1; i < 8; i++) {
        if (i == 0) must(cudaEventRecord(from, stream), "an event");
        must(cudaMemcpyAsync(weights, weights + B_BYTES / 2, B_BYTES / 2, cudaMemcpyDefault, stream),
             "a copy");
    }
    must(cudaEventRecord(to, stream), "an event");
    printf("bench device copy: %.0f GB/s read and written\n",
           1e-9 * (double)B_BYTES * 8 / seconds_of(from, to));
    for (int i = 0; qtype_at(i); i++) {
        const enum qtype type = qtype_at(i)->id;
        char name[64];
        if (!gpu_has_product(type) || !check_wanted(o, name_of("cuda.", qtype_at(i)->name, name, 64)))
            continue;
        bench_product(type, B_COLS, B_FF, 2, "up", weights, from, to);
        bench_product(type, B_FF, B_COLS, 1, "down", weights, from, to);
    }
    must(cudaFree(weights), "cudaFree");
}

int main(int argc, char **argv)
{
    struct check_opts o;
    struct pool *pool;
    if (!check_parse(&o, argc, argv)) return 2;
    int n = 0;
    must(cudaGetDeviceCount(&n), "looking for a GPU");
    must(cudaSetDevice(0), "the GPU");
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    if (!o.list) printf("kernels run on %s\n", CHECK_CUDA_ON);
    if (o.bench) {
        if (CHECK_CUDA_CLOCK) bench(&o);
        else puts("no GPU, no numbers");
        return 0;
    }
    if (pool_open(1, &pool, NULL) || dev_cpu_open(pool, CPU_REF, &cpu, NULL)) return 1;
    for (int i = 0; qtype_at(i); i++)
        if (gpu_has_product(qtype_at(i)->id)) check_product(&o, qtype_at(i)->id);
    for (int k = 0; k < 3; k++) check_glu(&o, (enum act_kind)k);
    dev_cpu_api()->close(cpu);
    pool_close(pool);
    must(cudaStreamDestroy(stream), "a stream");
    return check_finish(&o);
}
