/* The driver of vectorised attention: attn_avx2.c and attn_avx512.c each include it once, behind
 * their own inner kernels.  Private to the two.
 *
 * Owns no state; scratch is on the stack (about 75 KiB), whatever dk and dv are.  Never allocates.
 *
 * DESIGN.  Consecutive rows on the same pages are flattened into vectors (row, query head), TILE at
 * a time.  For every page: the scores of all active vectors, their softmax step, then the values.
 *   - Few vectors (decode): the inner kernels read the page as it is stored, once, and are bound
 *     by memory; while they read K they prefetch V, and with V the next page's K.
 *   - Many vectors (prefill): a piece of the page (64 x 64 values) is converted to float once and
 *     serves the whole tile from the first-level cache; the kernels are bound by multiply-adds.
 * The pieces cut dk and dv, never a sum's order: scores continue through memory from piece to
 * piece, and every output element of a vector only ever sees its own positions in rising order.  So
 * a row's result does not depend on its neighbours.  Positions outside a row's range are not
 * multiplied by zero but left out, as a page may hold anything there; vectors of one group whose
 * ranges differ (the last page of a prompt, the edge of a window) share the common part only.
 *   - Latent heads: K has the position as its lane, V needs the value there, so a piece of K is
 *     turned into a piece of V, once for all vectors.  There are many: every query head.
 *
 * The including file provides GROUP_F32 and GROUP_DIRECT, the largest nq of its kernels, and
 *   to_f32(kind, n, src, dst)                                   n a multiple of 16
 *   qk_group(kind, nq, q, k_piece, s)                           s[nq][64] (+)= q . k
 *   top_of(s, lo, hi, scale, m)                                 s[64] *= scale; max(max s, m)
 *   exp_diff(n, x, y)                                           y = exp(y - x), n padded to 16
 *   weigh(s, top)                                               s[64] -> e, returns their sum
 *   scale_by(x, w, y)                                           y[64] = x * w
 *   pv_group(kind, nq, e, c, lo, hi, v_piece, o)                o = o * c + e v, lo <= p <= hi
 *   finish(dv, o, l)                                            o /= l */
#ifndef MOE_COMPUTE_ATTN_BODY_H
#define MOE_COMPUTE_ATTN_BODY_H

#include <stdbool.h>

enum { TILE = 96, PIECE = 64, DIRECT_MAX = 8 };

struct tile {
    int n;                /* vectors */
    int32_t first[TILE];  /* positions each sees, inclusive */
    int32_t last[TILE];
    float m[TILE], l[TILE];
    const float *q[TILE]; /* [dk] */
    float *o[TILE];       /* [dv] */
};

/* The vectors that see a page, packed. */
struct active {
    int n;
    int at[TILE]; /* index in the tile */
    int lo[TILE]; /* positions of the page, inclusive */
    int hi[TILE];
    float c[TILE];
    const float *q[TILE];
    float *o[TILE];
};

static int min_int(int a, int b) { return a < b ? a : b; }
static int max_int(int a, int b) { return a > b ? a : b; }

static void collect(const struct tile *t, int32_t page, struct active *a)
{
    const int32_t base = page * KV_PAGE;
    a->n = 0;
    for (int i = 0; i < t->n; i++) {
        const int lo = max_int(t->first[i] - base, 0);
        const int hi = min_int(t->last[i] - base, KV_PAGE - 1);
        if (lo > hi) continue;
        a->at[a->n] = i;
        a->lo[a->n] = lo;
        a->hi[a->n] = hi;
        a->q[a->n] = t->q[i];
        a->o[a->n] = t->o[i];
        a->n++;
    }
}

/* How many vectors go together: as equal as the kernels allow. */
static int group_size(enum kind kind, int n)
{
    const int most = kind == SRC_F32 ? GROUP_F32 : GROUP_DIRECT;
    const int groups = (n + most - 1) / most;
    return (n + groups - 1) / groups;
}

/* One piece of K for all active vectors. */
static void qk_all(enum kind kind, const struct active *a, const struct k_piece *k, float *s)
{
    const int group = group_size(kind, a->n);
    for (int g = 0; g < a->n; g += group)
        qk_group(kind, min_int(group, a->n - g), a->q + g, k, s + g * KV_PAGE);
}

/* One piece of V for all active vectors. */
static void pv_all(enum kind kind, const struct active *a, const float *e,
                   const struct v_piece *v)
{
    static const float ones[DIRECT_MAX] = {1, 1, 1, 1, 1, 1, 1, 1};
    const int group = group_size(kind, a->n);
    for (int g = 0; g < a->n; g += group) {
        const int nq = min_int(group, a->n - g);
        int lo = a->lo[g], hi = a->hi[g], all_lo = lo, all_hi = hi;
        for (int i = g + 1; i < g + nq; i++) {
            lo = max_int(lo, a->lo[i]);
            hi = min_int(hi, a->hi[i]);
            all_lo = min_int(all_lo, a->lo[i]);
            all_hi = max_int(all_hi, a->hi[i]);
        }
        const float *eg = e + g * KV_PAGE;
        if (lo == all_lo && hi == all_hi) {
            pv_group(kind, nq, eg, a->c + g, lo, hi, v, a->o + g);
            continue;
        }
        /* Alone up to the common part (or all the way when there is none), together, alone. */
        if (lo > hi) lo = KV_PAGE, hi = KV_PAGE - 1;
        for (int i = 0; i < nq; i++)
            pv_group(kind, 1, eg + i * KV_PAGE, a->c + g + i, a->lo[g + i],
                     min_int(lo - 1, a->hi[g + i]), v, a->o + g + i);
        if (lo > hi) continue;
        pv_group(kind, nq, eg, ones, lo, hi, v, a->o + g);
        for (int i = 0; i < nq; i++)
            if (a->hi[g + i] > hi)
                pv_group(kind, 1, eg + i * KV_PAGE, ones, hi + 1, a->hi[g + i], v, a->o + g + i);
    }
}

/* The online softmax step of all active vectors: s becomes e. */
static void soften_all(struct tile *t, struct active *a, float scale, float *s)
{
    _Alignas(64) float top[TILE];
    const int n = a->n;
    for (int i = 0; i < n; i++) {
        a->c[i] = t->m[a->at[i]];
        top[i] = top_of(s + i * KV_PAGE, a->lo[i], a->hi[i], scale, a->c[i]);
    }
    for (int i = n; i % 16; i++) a->c[i] = top[i] = 0.0f;
    exp_diff(n, top, a->c);
    for (int i = 0; i < n; i++) {
        const int at = a->at[i];
        /* Masked positions hold -inf, so their e is 0 unless top is -inf and l NaN anyway. */
        const float sum = weigh(s + i * KV_PAGE, top[i]);
        t->m[at] = top[i];
        t->l[at] = fmaf(t->l[at], a->c[i], sum);
    }
}

/* Eight values from element i of src. */
static inline __m256 eight_of(enum kind kind, const void *src, size_t i)
{
    if (kind == SRC_F16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)src + i)));
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)((const int8_t *)src + i))));
}

/* Eight rows of eight: row i of r becomes column i. */
static inline void turn8(__m256 r[8])
{
    __m256 a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

/* k [n_d][64] as stored becomes v [64][ld] in float; n_d a multiple of 8. */
static void turn(enum kind kind, int n_d, const void *k, size_t ld, float *v)
{
    for (size_t d = 0; d < (size_t)n_d; d += 8) {
        for (size_t p = 0; p < KV_PAGE; p += 8) {
            __m256 r[8];
            for (size_t i = 0; i < 8; i++) r[i] = eight_of(kind, k, (d + i) * KV_PAGE + p);
            turn8(r);
            for (size_t i = 0; i < 8; i++) _mm256_storeu_ps(v + (p + i) * ld + d, r[i]);
        }
    }
}

/* `next` is the distance to the page after this one, for the prefetch. */
static void page_f16(bool latent, int dk, int dv, float scale, const char *page, ptrdiff_t next,
                     struct tile *t, struct active *a)
{
    _Alignas(64) float s[TILE * KV_PAGE];
    _Alignas(64) float piece[PIECE * KV_PAGE];
    const uint16_t *k = (const uint16_t *)page;             /* [dk][64] */
    const uint16_t *v = k + (size_t)dk * KV_PAGE;           /* [64][dv] */
    const ptrdiff_t k_to_v = (ptrdiff_t)attn_head_bytes(KV_F16, dk, 0);
    if (a->n <= DIRECT_MAX && latent) {
        const struct k_piece kp = {k, next, NULL, 0, dk};
        qk_all(SRC_F16, a, &kp, s);
    } else if (a->n <= DIRECT_MAX) {
        const struct k_piece kp = {k, k_to_v, NULL, 0, dk};
        const struct v_piece vp = {v, next - k_to_v, (size_t)dv, 0, dv};
        qk_all(SRC_F16, a, &kp, s);
        soften_all(t, a, scale, s);
        pv_all(SRC_F16, a, s, &vp);
        return;
    }
    for (int d0 = 0; d0 < dk && a->n > DIRECT_MAX; d0 += PIECE) {
        const struct k_piece kp = {piece, 0, NULL, d0, min_int(PIECE, dk - d0)};
        to_f32(SRC_F16, kp.n_d * KV_PAGE, k + (size_t)d0 * KV_PAGE, piece);
        qk_all(SRC_F32, a, &kp, s);
    }
    soften_all(t, a, scale, s);
    for (int c0 = 0; c0 < dv; c0 += PIECE) {
        const struct v_piece vp = {piece, 0, PIECE, c0, min_int(PIECE, dv - c0)};
        if (latent) turn(SRC_F16, vp.n_col, k + (size_t)c0 * KV_PAGE, PIECE, piece);
        for (size_t p = 0; p < KV_PAGE && !latent; p++)
            to_f32(SRC_F16, vp.n_col, v + p * (size_t)dv + (size_t)c0, piece + p * PIECE);
        pv_all(SRC_F32, a, s, &vp);
    }
}

static void page_q8(bool latent, int dk, int dv, float scale, const char *page, ptrdiff_t next,
                    struct tile *t, struct active *a)
{
    _Alignas(64) float s[TILE * KV_PAGE];
    _Alignas(64) float w[TILE * KV_PAGE]; /* e * d of a block */
    _Alignas(64) float piece[Q8_BLOCK * KV_PAGE];
    _Alignas(64) uint16_t half[KV_PAGE];
    _Alignas(64) float d[KV_PAGE];
    const size_t kb = (size_t)dk / Q8_BLOCK, vb = (size_t)dv / Q8_BLOCK;
    const uint16_t *kd = (const uint16_t *)page;                       /* [dk/32][64] */
    const int8_t *k = (const int8_t *)(kd + kb * KV_PAGE);             /* [dk][64] */
    const uint16_t *vd = (const uint16_t *)(k + (size_t)dk * KV_PAGE); /* [64][dv/32] */
    const int8_t *v = latent ? k : (const int8_t *)(vd + vb * KV_PAGE); /* [64][dv] */
    const ptrdiff_t k_to_v = (ptrdiff_t)attn_head_bytes(KV_Q8_0, dk, 0);
    const int direct = a->n <= DIRECT_MAX, direct_v = direct && !latent;
    for (size_t b = 0; b < kb; b++) {
        struct k_piece kp = {k + b * Q8_BLOCK * KV_PAGE, latent ? next : k_to_v, kd + b * KV_PAGE,
                             (int)b * Q8_BLOCK, Q8_BLOCK};
        if (!direct) {
            to_f32(SRC_I8, Q8_BLOCK * KV_PAGE, kp.k, piece);
            kp.k = piece;
        }
        qk_all(direct ? SRC_I8 : SRC_F32, a, &kp, s);
    }
    soften_all(t, a, scale, s);
    for (size_t b = 0; b < vb; b++) {
        for (size_t p = 0; p < KV_PAGE; p++)
            half[p] = latent ? kd[b * KV_PAGE + p] : vd[p * vb + b];
        to_f32(SRC_F16, KV_PAGE, half, d);
        for (int i = 0; i < a->n; i++) scale_by(s + i * KV_PAGE, d, w + i * KV_PAGE);
        const int8_t *vb8 = v + b * Q8_BLOCK;
        struct v_piece vp = {vb8, next - k_to_v, (size_t)dv, (int)b * Q8_BLOCK, Q8_BLOCK};
        if (!direct_v) {
            if (latent) turn(SRC_I8, Q8_BLOCK, k + b * Q8_BLOCK * KV_PAGE, Q8_BLOCK, piece);
            for (size_t p = 0; p < KV_PAGE && !latent; p++)
                to_f32(SRC_I8, Q8_BLOCK, vb8 + p * (size_t)dv, piece + p * Q8_BLOCK);
            vp.v = piece;
            vp.ld = Q8_BLOCK;
        }
        pv_all(direct_v ? SRC_I8 : SRC_F32, a, w, &vp);
    }
}

static void run_tile(enum kv_type type, bool latent, int dk, int dv, float scale, const char *kv,
                     size_t page_stride, struct tile *t)
{
    int32_t first = t->first[0], last = t->last[0];
    for (int i = 0; i < t->n; i++) {
        first = min_int(first, t->first[i]);
        last = max_int(last, t->last[i]);
        for (int d = 0; d < dv; d++) t->o[i][d] = 0.0f;
    }
    for (int32_t page = first / KV_PAGE; page <= last / KV_PAGE; page++) {
        struct active a;
        collect(t, page, &a);
        if (!a.n) continue;
        const char *p = kv + (size_t)page * page_stride;
        const ptrdiff_t next = page < last / KV_PAGE ? (ptrdiff_t)page_stride : 0;
        if (type == KV_F16)
            page_f16(latent, dk, dv, scale, p, next, t, &a);
        else
            page_q8(latent, dk, dv, scale, p, next, t, &a);
    }
    for (int i = 0; i < t->n; i++) finish(dv, t->o[i], t->l[i]);
}

static void attn_rows(enum kv_type type, bool latent, int dk, int dv, int n_q, float scale,
                      int n_rows, const struct attn_row *rows)
{
    struct tile t;
    for (int r = 0; r < n_rows;) {
        const char *kv = rows[r].kv;
        const size_t stride = rows[r].page_stride;
        t.n = 0;
        for (; r < n_rows && rows[r].kv == kv && rows[r].page_stride == stride; r++) {
            for (size_t h = 0; h < (size_t)n_q; h++) {
                if (t.n == TILE) {
                    run_tile(type, latent, dk, dv, scale, kv, stride, &t);
                    t.n = 0;
                }
                t.q[t.n] = rows[r].q + h * (size_t)dk;
                t.o[t.n] = rows[r].out + h * (size_t)dv;
                t.first[t.n] = rows[r].first;
                t.last[t.n] = rows[r].last;
                t.m[t.n] = rows[r].sink ? rows[r].sink[h] : -INFINITY;
                t.l[t.n] = rows[r].sink ? 1.0f : 0.0f;
                t.n++;
            }
        }
        if (t.n) run_tile(type, latent, dk, dv, scale, kv, stride, &t);
    }
}

#endif
