/* The kernels of the CUDA plugin (kernels.h) but for products, in the words of gpu.h: C and CUDA at once.
 * Owns nothing.
 *
 * DESIGN.  Attention.  A block makes one query head of one row, four pages a round.  The online softmax has
 * an order from page to page, but scores have none among each other, and the greatest so far is exact: so a
 * round scores all its positions at once, a thread each, and then sums all values of the output at once,
 * a thread each from page to page.
 *
 * Nothing here has been measured on a GPU yet (moe/compute/cuda/README.md). */
#include "moe/compute/cuda/kernels_int.h"

#include "moe/compute/elem.h"
#include "moe/compute/elem_exp.h"
#include "moe/compute/op.h"
#include "quant/tile.h"

enum { LANES = 16, CHUNK = GPU_THREADS };

/* ---- rows of floats ------------------------------------------------------------------------ */

DEV float exp1(float x)
{
    if (x != x) return FLOAT(EXP_NAN);
    if (x > EXP_HI) return FLOAT(0x7f800000u);
    if (x < EXP_LO) return 0.0f;
    const float t = FMA(x, EXP_LOG2E, EXP_MAGIC);
    const float n = ADD(t, -EXP_MAGIC);
    float r = FMA(-n, EXP_LN2_HI, x);
    r = FMA(-n, EXP_LN2_LO, r);
    float p = EXP_C6;
    p = FMA(p, r, EXP_C5);
    p = FMA(p, r, EXP_C4);
    p = FMA(p, r, EXP_C3);
    p = FMA(p, r, EXP_C2);
    p = FMA(p, r, 1.0f);
    p = FMA(p, r, 1.0f);
    return FLOAT(BITS(p) + (BITS(t) << 23));
}

/* As the CPU device has it, operation by operation. */
DEV float glu_of(int act, float g, float u)
{
    if (act == GLU_RELU) return MUL(g > 0 ? g : 0.0f, u);
    if (act == GLU_SILU) return MUL(DIV(g, ADD(1.0f, exp1(-g))), u);
    if (act == GLU_GELU) {
        const float z = MUL(MUL(0.79788456080286535588f, g),
                            ADD(1.0f, MUL(MUL(0.044715f, g), g)));
        return MUL(DIV(g, ADD(1.0f, exp1(MUL(-2.0f, z)))), u);
    }
    const float x = g < 7.0f ? g : 7.0f, v = u > 7.0f ? 7.0f : u < -7.0f ? -7.0f : u;
    return MUL(DIV(x, ADD(1.0f, exp1(MUL(-1.702f, x)))), ADD(v, 1.0f));
}

/* 1.5 * 2^23 leaves the integer in the low bits. */
DEV int round_even(float v)
{
    return (int)(int8_t)(int32_t)(BITS(ADD(v, EXP_MAGIC)) - BITS(EXP_MAGIC));
}

/* most[t] = the greatest of most[] in t's group of neighbours, for the first of them. */
DEV void group_max(uint32_t *most, int group)
{
    for (int w = group / 2; w; w /= 2) {
        EACH_THREAD(t) {
            if (t % group < w && most[t + w] > most[t]) most[t] = most[t + w];
        } SYNC
    }
}

DEV const float *floats(const char *base, uint64_t stride, int r)
{
    return (const float *)(const void *)(base + stride * (uint64_t)r);
}

/* Block (256 values, row, head). */
DEV void prepare(int kind, const struct gpu_prepare *a, int chunk, int row, int head)
{
    SHARED float h[CHUNK];
    SHARED uint32_t most[CHUNK];
    SHARED int q[CHUNK];
    const int n = a->n, from = chunk * CHUNK, group = kind == ACT_Q8_256 ? 256 : kind == ACT_Q8_64 ? 64 : 32;
    const float *x = floats(a->x, a->x_stride, row) + (size_t)head * (size_t)a->x_head + from;
    const float *up = a->up ? floats(a->up, a->up_stride, row) + from : 0;
    char *out = a->out + a->out_stride * (uint64_t)row + a->out_head * (uint64_t)head;
    EACH_THREAD(t) {
        h[t] = from + t >= n ? 0 : up ? glu_of(a->act, x[t], up[t]) : x[t];
        most[t] = BITS(h[t]) & 0x7fffffffu;
        if (kind == ACT_F32 && from + t < n) ((float *)(void *)out)[from + t] = h[t];
    } SYNC
    if (kind == ACT_F32) return;
    group_max(most, group);
    EACH_THREAD(t) {
        const uint32_t bits = most[t / group * group];
        const float amax = FLOAT(bits);
        const int bad = bits >= 0x7f800000u, none = bad || amax < ACT_AMAX_MIN;
        q[t] = none ? 0 : round_even(MUL(h[t], DIV(127.0f, amax)));
        if (from + t < n) {
            ((int8_t *)(void *)out)[from + t] = (int8_t)q[t];
            if (t % group == 0)
                *(float *)(void *)(out + n + (from + t) / group * 4) =
                    bad ? FLOAT(ACT_BAD_SCALE) : none ? 0.0f : DIV(amax, 127.0f);
        }
    } SYNC
    EACH_THREAD(t) {
        const int narrow = kind == ACT_Q8_256 ? 16 : group, wide = narrow > 16 || t % 32 ? narrow : 32;
        int s16 = 0, sum = 0;
        if (t % narrow == 0 && from + t < n)
            for (int i = 0; i < wide; i++) {
                if (i < 16) s16 += q[t + i];
                sum += q[t + i];
            }
        char *sums = out + n + n / group * 4;
        const int at = from + t;
        if (t % 16 == 0 && at < n && kind == ACT_Q8_256)
            *(int16_t *)(void *)(sums + at / 16 * 2) = (int16_t)s16;
        if (t % 32 == 0 && at < n && kind == ACT_Q8_256)
            *(int16_t *)(void *)(sums + n / 16 * 2 + at / 32 * 2) = (int16_t)sum;
        if (t % group == 0 && at < n && kind != ACT_Q8_256)
            *(int32_t *)(void *)(sums + at / group * 4) = sum;
    } SYNC
}

#define DEFINE_PREPARE(T)                                                                          \
    DEV void prepare_##T(const struct gpu_prepare *a, int x, int y, int z)                         \
    {                                                                                              \
        prepare(ACT_##T, a, x, y, z);                                                              \
    }                                                                                              \
    KERNEL(prepare_##T, struct gpu_prepare, prepare_##T)
DEFINE_PREPARE(F32)
DEFINE_PREPARE(Q8_32)
DEFINE_PREPARE(Q8_256)
DEFINE_PREPARE(Q8_64)

/* Sixteen lanes, folded by 8, 4, 2, 1. */
DEV float fold_add(const float *lane)
{
    float a[LANES / 2];
    for (int j = 0; j < LANES / 2; j++) a[j] = ADD(lane[j], lane[j + LANES / 2]);
    for (int half = LANES / 4; half; half /= 2)
        for (int j = 0; j < half; j++) a[j] = ADD(a[j], a[j + half]);
    return a[0];
}

DEV float max2(float a, float b) { return a > b ? a : b; }

DEV float fold_max(const float *lane)
{
    float a[LANES / 2];
    for (int j = 0; j < LANES / 2; j++) a[j] = max2(lane[j], lane[j + LANES / 2]);
    for (int half = LANES / 4; half; half /= 2)
        for (int j = 0; j < half; j++) a[j] = max2(a[j], a[j + half]);
    return a[0];
}

/* Block (row, head, 0). */
DEV void norm(const struct gpu_norm *a, int row, int head, int unused)
{
    enum { MOST = 8 * CHUNK };
    SHARED float v[MOST], lane[LANES];
    const int n = a->n;
    const float *x = floats(a->x, a->x_stride, row) + (size_t)head * (size_t)n;
    float *y = (float *)(void *)(a->y + a->y_stride * (uint64_t)row) + (size_t)head * (size_t)n;
    (void)unused;
    EACH_THREAD(t) {
        if (t < LANES) lane[t] = 0;
    } SYNC
    for (int at = 0; at < n; at += MOST) {
        const int m = n - at < MOST ? n - at : MOST;
        EACH_THREAD(t) {
            for (int i = t; i < m; i += GPU_THREADS) v[i] = x[at + i];
        } SYNC
        EACH_THREAD(t) {
            float sum = t < LANES ? lane[t] : 0;
            for (int i = t; t < LANES && i < m; i += LANES) sum = FMA(v[i], v[i], sum);
            if (t < LANES) lane[t] = sum;
        } SYNC
    }
    EACH_THREAD(t) {
        const float r = DIV(1.0f, SQRT(ADD(DIV(fold_add(lane), (float)n), a->eps)));
        for (int i = t; i < n; i += GPU_THREADS)
            y[i] = a->w ? MUL(MUL(x[i], r), a->w[i]) : MUL(x[i], r);
    } SYNC
}
KERNEL(norm, struct gpu_norm, norm)

DEV float sigmoid(float x) { return DIV(1.0f, ADD(1.0f, exp1(-x))); }

DEV float map_of(const struct gpu_map *a, float x, float y)
{
    switch (a->code) {
    case GPU_ADD: return ADD(y, x);
    case GPU_MUL: return MUL(y, x);
    case GPU_GATE: return MUL(y, sigmoid(x));
    case GPU_SCALE: return MUL(y, a->w ? MUL(a->by, a->w[0]) : a->by);
    case GPU_SOFTCAP: {
        const float t = exp1(MUL(2.0f, DIV(y, a->by)));
        return MUL(a->by, ADD(1.0f, -DIV(2.0f, ADD(t, 1.0f))));
    }
    default: return x; /* GPU_COPY */
    }
}

/* Block (256 values, row, head). */
DEV void map(const struct gpu_map *a, int chunk, int row, int head)
{
    const int x_row = a->x_row ? a->x_row[row] : row;
    const float *x = a->x ? floats(a->x, a->x_stride, x_row) + (size_t)head * (size_t)a->x_head : 0;
    float *y = (float *)(void *)(a->y + a->y_stride * (uint64_t)row) +
               (size_t)head * (size_t)a->y_head;
    EACH_THREAD(t) {
        const int i = chunk * CHUNK + t;
        if (i < a->n) y[i] = map_of(a, x ? x[a->one ? 0 : i] : 0, a->code == GPU_COPY ? 0 : y[i]);
    } SYNC
}
KERNEL(map, struct gpu_map, map)

/* Block (256 pairs of all heads, row, 0). */
DEV void rope(const struct gpu_rope *a, int chunk, int row, int unused)
{
    const int half = a->n_rot / 2;
    const float *cs = floats(a->cs, a->cs_stride, row);
    float *x = (float *)(void *)(a->x + a->x_stride * (uint64_t)row);
    (void)unused;
    EACH_THREAD(t) {
        const int k = chunk * CHUNK + t, h = k / half, i = k % half;
        if (h < a->n_heads) {
            float *pa = x + (size_t)h * (size_t)a->dim + a->at + (a->neox ? i : 2 * i);
            float *pb = pa + (a->neox ? half : 1);
            const float va = *pa, vb = *pb, c = cs[i], s = cs[half + i];
            *pa = FMA(va, c, -MUL(vb, s));
            *pb = FMA(vb, c, MUL(va, s));
        }
    } SYNC
}
KERNEL(rope, struct gpu_rope, rope)

/* Block (256 values, row, 0). */
DEV void combine(const struct gpu_combine *a, int chunk, int row, int unused)
{
    const int first = row * a->n_used;
    float *y = (float *)(void *)(a->out + a->out_stride * (uint64_t)row);
    (void)unused;
    EACH_THREAD(t) {
        const int i = chunk * CHUNK + t;
        float acc = 0;
        for (int s = first; i < a->n && s < first + a->n_used; s++) {
            const int pair = a->slot ? a->slot[s].pair : s;
            if (pair < 0) break;
            acc = FMA(a->slot ? a->slot[s].w : a->w[s], floats(a->x, a->x_stride, pair)[i], acc);
        }
        if (i < a->n) y[i] = acc;
    } SYNC
}
KERNEL(combine, struct gpu_combine, combine)

/* ---- routing -------------------------------------------------------------------------------- */

/* A strict order, so that the lower number stays before on ties; a NaN comes after every number. */
DEV int beats(float a, float b) { return a > b || (b != b && a == a); }

/* How many of x[n] come before number i. */
DEV int rank_of(const float *x, int n, int i)
{
    int rank = 0;
    for (int j = 0; j < n; j++) rank += beats(x[j], x[i]) || (j < i && !beats(x[i], x[j]));
    return rank;
}

/* Of n values by one thread; lanes as everywhere. */
DEV void softmax_few(float *x, int n)
{
    float lane[LANES], top, sum;
    for (int j = 0; j < LANES; j++) lane[j] = FLOAT(0xff800000u);
    for (int i = 0; i < n; i++) lane[i % LANES] = max2(x[i], lane[i % LANES]);
    top = fold_max(lane);
    for (int j = 0; j < LANES; j++) lane[j] = 0;
    for (int i = 0; i < n; i++) {
        x[i] = exp1(ADD(x[i], -top));
        lane[i % LANES] = ADD(lane[i % LANES], x[i]);
    }
    sum = fold_add(lane);
    for (int i = 0; i < n; i++) x[i] = DIV(x[i], sum);
}

/* The sum of the two best of x[n]. */
DEV float best_two(const float *x, int n)
{
    int a = 0, b = -1;
    for (int i = 1; i < n; i++) {
        if (beats(x[i], x[a])) b = a, a = i;
        else if (b < 0 || beats(x[i], x[b])) b = i;
    }
    return ADD(x[a], b < 0 ? 0.0f : x[b]);
}

/* Block (row, 0, 0). */
DEV void route(const struct gpu_route *a, int row, int unused, int neither)
{
    SHARED float v[GPU_EXPERTS], pick[GPU_EXPERTS], lane[LANES], group[GPU_GROUPS], w[GPU_USED];
    SHARED int32_t id[GPU_USED], in[GPU_GROUPS];
    const int n = a->n_expert, k = a->n_used, groups = a->n_group > 1 && a->n_group_used < a->n_group;
    const int per = groups ? n / a->n_group : 1;
    const float *x = floats(a->x, a->x_stride, row);
    (void)unused;
    (void)neither;
    EACH_THREAD(t) {
        for (int i = t; i < n; i += GPU_THREADS)
            v[i] = a->score == ROUTE_SIGMOID ? sigmoid(x[i]) : x[i];
    } SYNC
    if (a->score == ROUTE_SOFTMAX) {
        EACH_THREAD(t) {
            float top = FLOAT(0xff800000u);
            for (int i = t; t < LANES && i < n; i += LANES) top = max2(v[i], top);
            if (t < LANES) lane[t] = top;
        } SYNC
        EACH_THREAD(t) {
            const float top = fold_max(lane);
            for (int i = t; i < n; i += GPU_THREADS) v[i] = exp1(ADD(v[i], -top));
        } SYNC
        EACH_THREAD(t) {
            float sum = 0;
            for (int i = t; t < LANES && i < n; i += LANES) sum = ADD(sum, v[i]);
            if (t < LANES) lane[t] = sum;
        } SYNC
        EACH_THREAD(t) {
            const float sum = fold_add(lane);
            for (int i = t; i < n; i += GPU_THREADS) v[i] = DIV(v[i], sum);
        } SYNC
    }
    EACH_THREAD(t) {
        for (int i = t; i < n; i += GPU_THREADS) pick[i] = a->bias ? ADD(v[i], a->bias[i]) : v[i];
    } SYNC
    if (groups) {
        EACH_THREAD(t) {
            if (t < a->n_group) group[t] = best_two(pick + t * per, per);
        } SYNC
        EACH_THREAD(t) {
            if (t < a->n_group) in[t] = rank_of(group, a->n_group, t) < a->n_group_used;
        } SYNC
        EACH_THREAD(t) {
            for (int i = t; i < per * a->n_group; i += GPU_THREADS)
                if (!in[i / per]) pick[i] = FLOAT(0xff800000u);
        } SYNC
    }
    EACH_THREAD(t) {
        for (int i = t; i < n; i += GPU_THREADS) {
            const int at = rank_of(pick, n, i);
            if (at < k) id[at] = i;
        }
    } SYNC
    EACH_THREAD(t) {
        if (t < k) w[t] = v[id[t]];
    } SYNC
    EACH_THREAD(t) {
        if (t == 0) {
            float sum = 0;
            if (a->score == ROUTE_SOFTMAX_CHOSEN) softmax_few(w, k);
            for (int s = 0; s < k; s++) sum = ADD(sum, w[s]);
            if (sum < FLOAT(0x38800000u)) sum = FLOAT(0x38800000u); /* 2^-14 */
            for (int s = 0; s < k; s++) {
                if (a->normalise) w[s] = DIV(w[s], sum);
                if (a->by != 1.0f) w[s] = MUL(w[s], a->by);
                if (a->scale) w[s] = MUL(w[s], a->scale[id[s]]);
            }
        }
    } SYNC
    EACH_THREAD(t) {
        if (t < k) {
            a->w[(size_t)row * (size_t)k + t] = w[t];
            a->id[(size_t)row * (size_t)k + t] = id[t];
        }
    } SYNC
}
KERNEL(route, struct gpu_route, route)

/* ---- keys and values ------------------------------------------------------------------------ */

enum { Q8_BLOCK = 32 };

/* Block (256 values of K and V, KV head, row): how they lie in a page is in elem.h. */
DEV void kv_put(const struct gpu_kv_put *a, int chunk, int head, int row)
{
    SHARED float h[CHUNK];
    SHARED uint32_t most[CHUNK];
    const struct gpu_place *at = &a->place[row];
    const int pos = at->last % KV_PAGE, dk = a->dk, dv = a->dv, from = chunk * CHUNK;
    const float *k = floats(a->k, a->k_stride, row) + (size_t)head * (size_t)a->dim;
    const float *v = a->v ? floats(a->v, a->v_stride, row) + (size_t)head * (size_t)a->dim_v : 0;
    char *page = at->kv + a->kv_at + a->page_bytes * (uint64_t)(at->last / KV_PAGE) +
                 a->head_bytes * (uint64_t)head;
    EACH_THREAD(t) {
        const int i = from + t, j = i - dk;
        h[t] = i < dk ? (i < a->dim ? k[i] : 0) : v && j < dv && j < a->dim_v ? v[j] : 0;
        most[t] = BITS(h[t]) & 0x7fffffffu;
    } SYNC
    if (!a->q8) {
        EACH_THREAD(t) {
            const int i = from + t, j = i - dk;
            uint16_t *to = (uint16_t *)(void *)page;
            if (i < dk) to[(size_t)i * KV_PAGE + pos] = gpu_to_half(h[t]);
            else if (j < dv) to[(size_t)dk * KV_PAGE + (size_t)pos * dv + j] = gpu_to_half(h[t]);
        } SYNC
        return;
    }
    group_max(most, Q8_BLOCK);
    EACH_THREAD(t) {
        const int i = from + t, j = i - dk, kb = dk / Q8_BLOCK, vb = dv / Q8_BLOCK;
        const float amax = FLOAT(most[t / Q8_BLOCK * Q8_BLOCK]);
        const uint16_t d = gpu_to_half(DIV(amax, 127.0f));
        const int good = d != 0 && d < 0x7c00u;
        const int8_t q = good ? (int8_t)(uint8_t)BITS(ADD(MUL(h[t], DIV(127.0f, amax)), EXP_MAGIC)) : 0;
        char *kq = page + 2 * (size_t)kb * KV_PAGE, *vd = kq + (size_t)dk * KV_PAGE;
        char *vq = vd + 2 * (size_t)vb * KV_PAGE;
        if (i < dk) {
            kq[(size_t)i * KV_PAGE + pos] = (char)q;
            if (i % Q8_BLOCK == 0) ((uint16_t *)(void *)page)[i / Q8_BLOCK * KV_PAGE + pos] = d;
        } else if (j < dv) {
            vq[(size_t)pos * dv + j] = (char)q;
            if (j % Q8_BLOCK == 0) ((uint16_t *)(void *)vd)[pos * vb + j / Q8_BLOCK] = d;
        }
    } SYNC
}
KERNEL(kv_put, struct gpu_kv_put, kv_put)

/* q * k of one position. */
DEV float score(int q8, int dk, const float *q, const char *page, int p)
{
    const uint16_t *k = (const uint16_t *)(const void *)page;
    float acc = 0;
    if (!q8) {
        for (int d = 0; d < dk; d++) acc = FMA(q[d], gpu_half(k[d * KV_PAGE + p]), acc);
        return acc;
    }
    const int8_t *kq = (const int8_t *)(const void *)(k + dk / Q8_BLOCK * KV_PAGE);
    for (int b = 0; b < dk / Q8_BLOCK; b++) {
        float t = 0;
        for (int d = b * Q8_BLOCK; d < (b + 1) * Q8_BLOCK; d++)
            t = FMA(q[d], (float)kq[d * KV_PAGE + p], t);
        acc = FMA(t, gpu_half(k[b * KV_PAGE + p]), acc);
    }
    return acc;
}

/* Value d of positions lo .. hi onto acc, e[p] of each. */
DEV float values(int q8, int latent, int dk, int dv, const float *e, const char *page, int d, int lo,
                 int hi, float acc)
{
    const uint16_t *k = (const uint16_t *)(const void *)page;
    const int kb = dk / Q8_BLOCK, b = d / Q8_BLOCK, vb = dv / Q8_BLOCK;
    const int8_t *kq = (const int8_t *)(const void *)(k + kb * KV_PAGE);
    const uint16_t *vd = (const uint16_t *)(const void *)(kq + dk * KV_PAGE);
    const int8_t *vq = (const int8_t *)(const void *)(vd + vb * KV_PAGE);
    for (int p = lo; p <= hi; p++) {
        if (q8) {
            const float scale = gpu_half(latent ? k[b * KV_PAGE + p] : vd[p * vb + b]);
            const int8_t v = latent ? kq[d * KV_PAGE + p] : vq[p * dv + d];
            acc = FMA(MUL(e[p], scale), (float)v, acc);
        } else {
            acc = FMA(e[p], gpu_half(latent ? k[d * KV_PAGE + p] : k[dk * KV_PAGE + p * dv + d]), acc);
        }
    }
    return acc;
}

/* Positions of a page that a row sees. */
DEV int first_in(const struct gpu_place *at, int page)
{
    const int lo = at->first - page * KV_PAGE;
    return lo > 0 ? lo : 0;
}
DEV int last_in(const struct gpu_place *at, int page)
{
    const int hi = at->last - page * KV_PAGE;
    return hi < KV_PAGE ? hi : KV_PAGE - 1;
}

/* Block (query head, row, 0). */
DEV void attention(int q8, int latent, const struct gpu_attention *a, int h, int row, int unused)
{
    enum { ROUND = GPU_THREADS / KV_PAGE };
    SHARED float q[GPU_HEAD], o[GPU_HEAD], e[ROUND][KV_PAGE], part[ROUND][LANES];
    SHARED float most[ROUND], c[ROUND], far[2]; /* so far: the greatest, the sum */
    const int dk = a->dk, dv = a->dv;
    const struct gpu_place *at = &a->place[row];
    const char *kv = at->kv + a->kv_at + a->head_bytes * (uint64_t)(h / (a->n_q / a->n_kv));
    const float *in = floats(a->q, a->q_stride, row) + (size_t)h * (size_t)a->dim;
    float *out = (float *)(void *)(a->out + a->out_stride * (uint64_t)row) + (size_t)h * (size_t)a->dim_v;
    (void)unused;
    EACH_THREAD(t) {
        for (int d = t; d < dk; d += GPU_THREADS) q[d] = d < a->dim ? in[d] : 0;
        for (int d = t; d < dv; d += GPU_THREADS) o[d] = 0;
        if (t < 2) far[t] = t ? (a->sink ? 1.0f : 0.0f) : a->sink ? a->sink[h] : FLOAT(0xff800000u);
    } SYNC
    for (int base = at->first / KV_PAGE; base <= at->last / KV_PAGE; base += ROUND) {
        const int left = at->last / KV_PAGE - base + 1, n = left < ROUND ? left : ROUND;
        EACH_THREAD(t) {
            const int k = t / KV_PAGE, p = t % KV_PAGE, page = base + k;
            if (k < n)
                e[k][p] = p < first_in(at, page) || p > last_in(at, page)
                              ? FLOAT(0xff800000u)
                              : MUL(score(q8, dk, q, kv + a->page_bytes * (uint64_t)page, p), a->scale);
        } SYNC
        EACH_THREAD(t) {
            const int k = t / LANES, j = t % LANES;
            float top = FLOAT(0xff800000u);
            for (int i = j; k < n && i < KV_PAGE; i += LANES) top = max2(e[k][i], top);
            if (k < n) part[k][j] = top;
        } SYNC
        EACH_THREAD(t) {
            if (t < n) most[t] = fold_max(part[t]);
        } SYNC
        EACH_THREAD(t) {
            const int k = t / KV_PAGE, p = t % KV_PAGE, page = base + k;
            float before = far[0], top = far[0];
            for (int i = 0; i <= k && k < n; i++) {
                before = top;
                top = max2(most[i], top);
            }
            if (k < n) {
                e[k][p] = p < first_in(at, page) || p > last_in(at, page) ? 0.0f : exp1(ADD(e[k][p], -top));
                if (p == 0) c[k] = exp1(ADD(before, -top));
            }
        } SYNC
        EACH_THREAD(t) {
            const int k = t / LANES, j = t % LANES;
            float sum = 0;
            for (int i = j; k < n && i < KV_PAGE; i += LANES) sum = ADD(sum, e[k][i]);
            if (k < n) part[k][j] = sum;
            for (int i = 0; t == 0 && i < n; i++) far[0] = max2(most[i], far[0]);
        } SYNC
        EACH_THREAD(t) {
            for (int d = t; d < dv; d += GPU_THREADS) {
                float acc = o[d];
                for (int k = 0; k < n; k++)
                    acc = values(q8, latent, dk, dv, e[k], kv + a->page_bytes * (uint64_t)(base + k), d,
                                 first_in(at, base + k), last_in(at, base + k), MUL(acc, c[k]));
                o[d] = acc;
            }
            for (int k = 0; t == GPU_THREADS - 1 && k < n; k++) far[1] = FMA(far[1], c[k], fold_add(part[k]));
        } SYNC
    }
    EACH_THREAD(t) {
        for (int d = t; d < dv && d < a->dim_v; d += GPU_THREADS) out[d] = DIV(o[d], far[1]);
    } SYNC
}

#define DEFINE_ATTENTION(NAME, Q8, LATENT)                                                         \
    DEV void NAME(const struct gpu_attention *a, int x, int y, int z)                              \
    {                                                                                              \
        attention(Q8, LATENT, a, x, y, z);                                                         \
    }                                                                                              \
    KERNEL(NAME, struct gpu_attention, NAME)
DEFINE_ATTENTION(attention_f16, 0, 0)
DEFINE_ATTENTION(attention_q8, 1, 0)
DEFINE_ATTENTION(latent_f16, 0, 1)
DEFINE_ATTENTION(latent_q8, 1, 1)

/* ---- launches ----------------------------------------------------------------------------- */

static const void *prepare_entry(enum act_kind kind)
{
    switch ((int)kind) {
    case ACT_Q8_32: return KERNEL_ENTRY(prepare_Q8_32);
    case ACT_Q8_64: return KERNEL_ENTRY(prepare_Q8_64);
    case ACT_Q8_256: return KERNEL_ENTRY(prepare_Q8_256);
    default: return KERNEL_ENTRY(prepare_F32);
    }
}

static const void *attention_entry(int q8, int latent)
{
    if (latent) return q8 ? KERNEL_ENTRY(latent_q8) : KERNEL_ENTRY(latent_f16);
    return q8 ? KERNEL_ENTRY(attention_q8) : KERNEL_ENTRY(attention_f16);
}

static int chunks(int n) { return (n + CHUNK - 1) / CHUNK; }

struct gpu_launch gpu_prepare(enum act_kind kind, const struct gpu_prepare *a)
{
    struct gpu_launch l = gpu_launch(prepare_entry(kind), chunks(a->n), a->n_rows, a->n_heads);
    l.a.prepare = *a;
    return l;
}

struct gpu_launch gpu_norm(const struct gpu_norm *a)
{
    struct gpu_launch l = gpu_launch(KERNEL_ENTRY(norm), a->n_rows, a->n_heads, 1);
    l.a.norm = *a;
    return l;
}

struct gpu_launch gpu_map(const struct gpu_map *a)
{
    struct gpu_launch l = gpu_launch(KERNEL_ENTRY(map), chunks(a->n), a->n_rows, a->n_heads);
    l.a.map = *a;
    return l;
}

struct gpu_launch gpu_rope(const struct gpu_rope *a)
{
    struct gpu_launch l = gpu_launch(KERNEL_ENTRY(rope), chunks(a->n_heads * (a->n_rot / 2)), a->n_rows, 1);
    l.a.rope = *a;
    return l;
}

struct gpu_launch gpu_combine(const struct gpu_combine *a)
{
    struct gpu_launch l = gpu_launch(KERNEL_ENTRY(combine), chunks(a->n), a->n_rows, 1);
    l.a.combine = *a;
    return l;
}

struct gpu_launch gpu_route(const struct gpu_route *a)
{
    struct gpu_launch l = gpu_launch(KERNEL_ENTRY(route), a->n_rows, 1, 1);
    l.a.route = *a;
    return l;
}

struct gpu_launch gpu_kv_put(const struct gpu_kv_put *a)
{
    struct gpu_launch l = gpu_launch(KERNEL_ENTRY(kv_put), chunks(a->dk + a->dv), a->n_kv, a->n_rows);
    l.a.kv_put = *a;
    return l;
}

struct gpu_launch gpu_attention(const struct gpu_attention *a)
{
    struct gpu_launch l = gpu_launch(attention_entry(a->q8, a->latent), a->n_q, a->n_rows, 1);
    l.a.attention = *a;
    return l;
}

cudaError_t gpu_start(cudaStream_t s, const struct gpu_launch *l)
{
    struct gpu_launch copy = *l;
    void *args[1];
    dim3 grid = {copy.grid[0], copy.grid[1], copy.grid[2]}, block = {GPU_THREADS, 1, 1};
    args[0] = &copy.a;
    return cudaLaunchKernel(copy.kernel, grid, block, args, 0, s);
}

cudaError_t gpu_load_all(void)
{
    const void *all[GPU_PRODUCTS + 16];
    struct cudaFuncAttributes f;
    cudaError_t e = cudaSuccess;
    int n = gpu_product_entries(all);
    for (int k = 0; k < ACT_N; k++) all[n++] = prepare_entry((enum act_kind)k);
    for (int k = 0; k < 4; k++) all[n++] = attention_entry(k & 1, k >> 1);
    all[n++] = KERNEL_ENTRY(norm);
    all[n++] = KERNEL_ENTRY(map);
    all[n++] = KERNEL_ENTRY(rope);
    all[n++] = KERNEL_ENTRY(combine);
    all[n++] = KERNEL_ENTRY(route);
    all[n++] = KERNEL_ENTRY(kv_put);
    for (int i = 0; e == cudaSuccess && i < n; i++) e = cudaFuncGetAttributes(&f, all[i]);
    return e;
}
