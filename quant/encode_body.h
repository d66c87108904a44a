/* Floats to blocks: the search for scales and codes; encode_*.c each include it once, compiled for
 * their tier.  Private to them.  Owns no state, never allocates.
 *
 * DESIGN.  What is minimised is the sum over a block of w (x - x')^2, x' being what the stored bytes
 * decode to and w how much the column matters (all 1 without an importance matrix); in Q2_K and Q3_K
 * the weight's size counts as well.
 *
 *   1. Every sub-block gets the real scale (and offset) that suits it best.  Rounding to the grid
 *      and least squares are done in turns from many starting points at once: a SIMD lane is a
 *      starting point, and sums run over the weights in order.  So every tier gets the same bits,
 *      and the reference is this file with one lane less or more.
 *   2. A super-block then stores these as small integers times one or two halfs.  In turns: every
 *      sub-block takes the best of sixteen integers (or pairs) near its own, a lane each, by the
 *      true error; then least squares over the whole super-block moves the halfs.
 *
 * The including file defines ENCODE, the name of the one function that is seen outside. */
#ifndef QUANT_ENCODE_BODY_H
#define QUANT_ENCODE_BODY_H

#include <math.h>
#include <string.h>

#include "moe/base/f16.h"
#include "quant/encode_int.h"
#include "quant/parts_int.h"

#define INLINE static inline __attribute__((always_inline))

/* ---- vectors: GCC's, of the tier's width; comparisons give masks -------------------------- */

#if defined __AVX512F__
enum { LANES = 16 };
#elif defined __AVX2__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_at __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));

enum { STARTS = 16 }; /* starting points are counted in these: whole vectors in every tier */

INLINE vec splat(float x) { return (vec){0} + x; }
INLINE vec load(const float *p) { return *(const vec_at *)(const void *)p; }
INLINE void store(float *p, vec v) { *(vec_at *)(void *)p = v; }
INLINE vec both(mask m, vec v) { return (vec)(m & (mask)v); }
INLINE vec blend(mask m, vec a, vec b) { return (vec)((m & (mask)a) | (~m & (mask)b)); }

#if defined __AVX512F__
#include <immintrin.h>
INLINE vec least(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec most(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined __AVX2__
#include <immintrin.h>
INLINE vec least(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vec most(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
#else /* the same, NaN included: a NaN in a gives b */
INLINE vec least(vec a, vec b) { return blend(a < b, a, b); }
INLINE vec most(vec a, vec b) { return blend(a > b, a, b); }
#endif

/* v, which is in lo..hi after it was clamped there, to the nearest integer, halves to even. */
INLINE vec round_in(vec v, float lo, float hi)
{
    v = least(most(v, splat(lo)), splat(hi));
    return (v + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23 */
}

/* ---- small things ------------------------------------------------------------------------- */

static void put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* v as a half, and back. */
static float half(float v) { return f16_to_f32(f16_from_f32(v)); }

static void put_half(uint8_t *p, float v) { put16(p, f16_from_f32(v)); }

/* v as an integer in lo..hi, halves to even; NaN gives lo. */
INLINE int near_int(float v, int lo, int hi)
{
    if (!(v > (float)lo)) return lo;
    if (v >= (float)hi) return hi;
    v = (v + 12582912.0f) - 12582912.0f;
    return (int)v;
}

static float inverse(float d) { return d != 0 ? 1.0f / d : 0; }

static float largest(const float *x, int n)
{
    float peak = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(peak)) peak = x[i];
    return peak;
}

/* ---- grids: what codes stand for, before the scale ----------------------------------------- */

struct grid {
    int lo, hi;          /* codes lo..hi stand for themselves ... */
    const int8_t *table; /* ... unless there is a table of so many rising values */
    int n;
};

static const struct grid grid_q4 = {-8, 7, 0, 0}, grid_q5 = {-16, 15, 0, 0};
static const struct grid grid_q3 = {-4, 3, 0, 0}, grid_q6 = {-32, 31, 0, 0};
static const struct grid grid_iq4 = {0, 15, table_iq4, 16};
static const int8_t table_fp4_all[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
static const struct grid grid_fp4 = {0, 14, table_fp4_all, 15};

static float grid_lowest(const struct grid *g) { return g->table ? g->table[0] : (float)g->lo; }

static float grid_highest(const struct grid *g)
{
    return g->table ? g->table[g->n - 1] : (float)g->hi;
}

/* at[i] for i = 0..15 in every lane; from memory where there is no instruction for it (or no name
 * for the instruction: clang, which only the fuzz targets use). */
INLINE vec lookup(const float *at, mask i)
{
#if defined __AVX512F__ && !defined __clang__
    return __builtin_shuffle(load(at), i);
#elif defined __AVX2__ && !defined __clang__
    return __builtin_shuffle(load(at), load(at + LANES), i);
#else
    vec y;
    for (int k = 0; k < LANES; k++) y[k] = at[i[k]];
    return y;
#endif
}

/* A table's values and the middles between them, in rising order; room for LANES more. */
struct steps {
    float value[16], middle[16];
};

static void steps_of(const struct grid *g, struct steps *s)
{
    if (!g->table) return;
    for (int i = 0; i < 16; i++) s->value[i] = g->table[i < g->n ? i : g->n - 1];
    for (int i = 0; i < 16; i++)
        s->middle[i] = i + 1 < g->n ? 0.5f * (s->value[i] + s->value[i + 1]) : INFINITY;
}

INLINE vec nearest(const struct grid *g, const struct steps *s, vec v)
{
    if (!g->table) return round_in(v, (float)g->lo, (float)g->hi);
    mask i = (mask){0}; /* how many middles lie below v: halving 16 places */
    for (int by = 8; by; by /= 2) i -= (v > lookup(s->middle, i + (by - 1))) * by;
    return lookup(s->value, i);
}

/* The code of the value nearest to v. */
static int nearest_code(const struct grid *g, float v)
{
    if (!g->table) return near_int(v, g->lo, g->hi);
    int i = 0;
    for (int k = 1; k < g->n; k++) i += v > 0.5f * (float)(g->table[k - 1] + g->table[k]);
    return i;
}

static void grid_codes(const struct grid *g, int n, const float *x, float d, int *q)
{
    const float inv = inverse(d);
    for (int i = 0; i < n; i++) q[i] = nearest_code(g, x[i] * inv);
}

/* ---- one scale: x ~ d q --------------------------------------------------------------------- */

struct fit {
    float err[STARTS], sxq[STARTS], sqq[STARTS];
};

/* For STARTS scales d: the error, and the sums of w x q and w q q. */
INLINE void grid_errors(const struct grid *g, int n, const float *x, const float *w,
                        const float *d, struct fit *f)
{
    struct steps steps;
    steps_of(g, &steps);
    for (int c = 0; c < STARTS; c += LANES) {
        const vec s = load(d + c), i = both(s != splat(0), 1.0f / s);
        vec e = splat(0), a = splat(0), b = splat(0);
        for (int k = 0; k < n; k++) {
            const vec q = nearest(g, &steps, x[k] * i), wq = w[k] * q, miss = s * q - x[k];
            e += w[k] * (miss * miss);
            a += x[k] * wq;
            b += q * wq;
        }
        store(f->err + c, e);
        store(f->sxq + c, a);
        store(f->sqq + c, b);
    }
}

/* The best real scale, of either sign, for n weights; 0 when they are all next to nothing.
 * first..last: how far the extreme of the grid lies beyond the largest weight, at most. */
INLINE float search_scale(const struct grid *g, int n, const float *x, const float *w, float first,
                          float last)
{
    enum { TURNS = 3 };
    const float peak = largest(x, n), ends[2] = {grid_lowest(g), grid_highest(g)};
    float start[2 * STARTS], gain[2 * STARTS], scale[2 * STARTS];
    struct steps steps;
    int best = 0;
    steps_of(g, &steps);
    if (!(fabsf(peak) > 1e-30f) || !(fabsf(peak) < 1e30f)) return 0;
    for (int c = 0; c < 2 * STARTS; c++)
        start[c] = ends[c / STARTS] / peak *
                   (first + (last - first) / (STARTS - 1) * (float)(c % STARTS));
    for (int c = 0; c < 2 * STARTS; c += LANES) {
        vec inv = load(start + c), top = splat(0), at = splat(0);
        for (int turn = 0; turn < TURNS; turn++) {
            vec sxq = splat(0), sqq = splat(0);
            for (int k = 0; k < n; k++) {
                const vec q = nearest(g, &steps, x[k] * inv), wq = w[k] * q;
                sxq += x[k] * wq;
                sqq += q * wq;
            }
            /* With these codes the error is least at this scale, and less by this much than at 0. */
            const vec d = sxq / sqq, less = sxq * d;
            const mask better = less > top;
            top = blend(better, less, top);
            at = blend(better, d, at);
            inv = blend(better, 1.0f / d, inv);
        }
        store(gain + c, top);
        store(scale + c, at);
    }
    for (int c = 1; c < 2 * STARTS; c++) best = gain[c] > gain[best] ? c : best;
    return scale[best];
}

/* Blocks of 32 with one half. */
INLINE void encode_grid_32(const struct grid *g, const float *x, const float *w, uint8_t *d, int *q)
{
    const float scale = half(search_scale(g, 32, x, w, 0.7f, 1.8f));
    put_half(d, scale);
    grid_codes(g, 32, x, scale, q);
}

/* Super-blocks with sub-blocks of n weights, their integers lo..hi, and one half, which is
 * returned. */
INLINE float encode_grid_super(const struct grid *g, int n, int lo, int hi, const float *x,
                               const float *w, float first, float last, int *sc, int *q)
{
    enum { TURNS = 4 };
    const int n_sub = 256 / n;
    float scale[16] = {0}, best = INFINITY, best_d = 0;
    int trial[16] = {0};
    for (int s = 0; s < n_sub; s++)
        scale[s] = search_scale(g, n, x + n * s, w + n * s, first, last);
    float d = half(largest(scale, n_sub) / (float)lo);
    for (int s = 0; s < n_sub; s++) trial[s] = d != 0 ? near_int(scale[s] / d, lo, hi) : 0;
    memset(sc, 0, 16 * sizeof *sc);
    for (int turn = 0; turn < TURNS; turn++) {
        float sum = 0, saa = 0, sxa = 0;
        for (int s = 0; s < n_sub; s++) {
            float ds[STARTS];
            int at[STARTS], k = 0;
            struct fit f;
            for (int c = 0; c < STARTS; c++) {
                const int v = trial[s] - STARTS / 2 + c;
                at[c] = v < lo ? lo : v > hi ? hi : v;
                ds[c] = d * (float)at[c];
            }
            grid_errors(g, n, x + n * s, w + n * s, ds, &f);
            for (int c = 1; c < STARTS; c++) k = f.err[c] < f.err[k] ? c : k;
            const float a = (float)at[k];
            trial[s] = at[k];
            sum += f.err[k];
            sxa += a * f.sxq[k];
            saa += a * a * f.sqq[k];
        }
        if (!(sum < best)) break;
        best = sum;
        best_d = d;
        memcpy(sc, trial, sizeof trial);
        d = half(saa > 0 ? sxa / saa : 0);
        if (d == best_d) break;
    }
    for (int s = 0; s < n_sub; s++)
        grid_codes(g, n, x + n * s, best_d * (float)sc[s], q + n * s);
    return best_d;
}

/* ---- scale and offset: x ~ d q - m, q in 0..top -------------------------------------------- */

/* Weighted sums of n weights. */
struct sums {
    float w, x, xx;
};

static struct sums sums_of(int n, const float *x, const float *w)
{
    struct sums s = {0};
    for (int k = 0; k < n; k++) {
        s.w += w[k];
        s.x += w[k] * x[k];
        s.xx += w[k] * x[k] * x[k];
    }
    return s;
}

/* One turn: codes from (x - *lo) *inv, then the best scale and min for these codes, where that is
 * less than *err; *lo and *inv follow.  A min below 0 only where `any`. */
INLINE void affine_turn(int n, const float *x, const float *w, const struct sums *s, int top,
                        bool any, vec *lo, vec *inv, vec *err, vec *scale, vec *min)
{
    const vec zero = splat(0);
    vec sq = zero, sqq = zero, sxq = zero;
    for (int k = 0; k < n; k++) {
        const vec q = round_in((x[k] - *lo) * *inv, 0, (float)top), wq = w[k] * q;
        sq += wq;
        sqq += q * wq;
        sxq += x[k] * wq;
    }
    const vec det = s->w * sqq - sq * sq, per = 1.0f / det;
    vec d = (s->w * sxq - s->x * sq) * per, m = (sq * sxq - s->x * sqq) * per;
    if (!any) {
        const mask below = m < zero;
        m = both(~below, m);
        d = blend(below, sxq / sqq, d);
    }
    const vec e = s->xx + (d * d * sqq + m * m * s->w) + 2.0f * (m * s->x - d * (sxq + m * sq));
    const mask better = (det > zero) & (d > zero) & (e < *err);
    *err = blend(better, e, *err);
    *scale = blend(better, d, *scale);
    *min = blend(better, m, *min);
    *lo = blend(better, -m, *lo);
    *inv = blend(better, 1.0f / d, *inv);
}

/* The best real scale and min for n weights. */
INLINE void search_affine(int n, const float *x, const float *w, int top, bool any, float *scale,
                          float *min)
{
    enum { TURNS = 3, N = 2 * STARTS };
    const struct sums s = sums_of(n, x, w);
    float lo = x[0], hi = x[0], from[N], inv[N], err[N], d[N], m[N];
    int best = 0;
    for (int i = 1; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    if (!any && !(lo < 0)) lo = 0;
    *min = -lo;
    *scale = (hi - lo) / (float)top;
    if (!(hi - lo > 1e-30f) || !(hi - lo < 1e30f)) return;
    for (int c = 0; c < N; c++) { /* cut off a part of the range at either end */
        const float a = 0.08f * (float)(c % 4), b = 0.08f * (float)(c / 4 % 4);
        const bool inner = c / STARTS;
        from[c] = lo + (hi - lo) * (inner ? a : 0.5f * a - 0.025f);
        inv[c] = (float)top / ((hi - lo) * (inner ? 1.0f - a - b : 1.05f - 0.5f * (a + b)));
    }
    for (int c = 0; c < N; c += LANES) {
        vec l = load(from + c), i = load(inv + c), e = splat(INFINITY), p = splat(0), o = splat(0);
        for (int turn = 0; turn < TURNS; turn++)
            affine_turn(n, x, w, &s, top, any, &l, &i, &e, &p, &o);
        store(err + c, e);
        store(d + c, p);
        store(m + c, o);
    }
    for (int c = 1; c < N; c++) best = err[c] < err[best] ? c : best;
    if (!(err[best] < INFINITY)) return;
    *scale = d[best];
    *min = m[best];
}

static void affine_codes(int n, const float *x, int top, float d, float m, int *q)
{
    const float inv = inverse(d);
    for (int i = 0; i < n; i++) q[i] = near_int((x[i] + m) * inv, 0, top);
}

/* Blocks of 32 with two halfs. */
INLINE void encode_affine_32(const float *x, const float *w, int top, uint8_t *block, int *q)
{
    float scale, min;
    search_affine(32, x, w, top, true, &scale, &min);
    put_half(block, scale);
    put_half(block + 2, -min);
    affine_codes(32, x, top, half(scale), -half(-min), q);
}

struct affine_fit {
    float err[STARTS], sq[STARTS], sqq[STARTS], sxq[STARTS];
};

/* For STARTS pairs of scale and min: the error and the sums of w q, w q q, w x q. */
INLINE void affine_errors(int n, const float *x, const float *w, int top, const float *d,
                          const float *m, struct affine_fit *f)
{
    for (int c = 0; c < STARTS; c += LANES) {
        const vec s = load(d + c), o = load(m + c), i = both(s > splat(0), 1.0f / s);
        vec e = splat(0), sq = splat(0), sqq = splat(0), sxq = splat(0);
        for (int k = 0; k < n; k++) {
            const vec q = round_in((x[k] + o) * i, 0, (float)top), wq = w[k] * q;
            const vec miss = (s * q - o) - x[k];
            e += w[k] * (miss * miss);
            sq += wq;
            sqq += q * wq;
            sxq += x[k] * wq;
        }
        store(f->err + c, e);
        store(f->sq + c, sq);
        store(f->sqq + c, sqq);
        store(f->sxq + c, sxq);
    }
}

/* The sums of a super-block, A = sc q and M = m: what least squares for the two halfs needs. */
struct moments {
    float aa, am, mm, xa, xm;
};

static void best_halfs(const struct moments *s, float *d, float *dmin)
{
    const float det = s->aa * s->mm - s->am * s->am;
    float a = 0, b = -1;
    if (det > 1e-6f * s->aa * s->mm) {
        a = (s->xa * s->mm - s->xm * s->am) / det;
        b = (s->xa * s->am - s->xm * s->aa) / det;
    }
    if (b < 0) {
        b = 0;
        a = s->aa > 0 ? s->xa / s->aa : 0;
    }
    *d = half(a);
    *dmin = half(b);
}

struct sub { /* of an affine super-block */
    float scale, min; /* real ones */
    struct sums sums;
};

/* The best pair of integers near (*sc, *m) for sub-block b of n weights, for given halfs; returns
 * its error and adds to the moments. */
INLINE float affine_pick(int n, int top, int range, const float *x, const float *w,
                         const struct sums *b, float d, float dmin, int back, int *sc, int *m,
                         struct moments *z)
{
    float ds[STARTS], dm[STARTS];
    int p[STARTS], o[STARTS], k = 0;
    struct affine_fit f;
    for (int c = 0; c < STARTS; c++) {
        p[c] = *sc + c % 4 - back;
        o[c] = *m + c / 4 - back;
        p[c] = p[c] < 0 ? 0 : p[c] > range ? range : p[c];
        o[c] = o[c] < 0 ? 0 : o[c] > range ? range : o[c];
        ds[c] = d * (float)p[c];
        dm[c] = dmin * (float)o[c];
    }
    affine_errors(n, x, w, top, ds, dm, &f);
    for (int c = 1; c < STARTS; c++) k = f.err[c] < f.err[k] ? c : k;
    const float a = (float)(*sc = p[k]), c = (float)(*m = o[k]);
    z->aa += a * a * f.sqq[k];
    z->am += a * c * f.sq[k];
    z->mm += c * c * b->w;
    z->xa += a * f.sxq[k];
    z->xm += c * b->x;
    return f.err[k];
}

/* Super-blocks with sub-blocks of n weights, integers 0..range for scales and mins, two halfs. */
INLINE void encode_affine_super(int n, int top, int range, const float *x, const float *w,
                                uint8_t *half_d, uint8_t *half_m, int *sc, int *m, int *q)
{
    enum { TURNS = 4 };
    const int n_sub = 256 / n;
    struct sums sums[16];
    int sc1[16] = {0}, m1[16] = {0};
    float scale[16], min[16], best = INFINITY, best_d = 0, best_m = 0;
    for (int s = 0; s < n_sub; s++) {
        search_affine(n, x + n * s, w + n * s, top, false, &scale[s], &min[s]);
        sums[s] = sums_of(n, x + n * s, w + n * s);
    }
    float d = half(fabsf(largest(scale, n_sub)) / (float)range);
    float dmin = half(fabsf(largest(min, n_sub)) / (float)range);
    for (int s = 0; s < n_sub; s++) {
        sc1[s] = d > 0 ? near_int(scale[s] / d, 0, range) : 0;
        m1[s] = dmin > 0 ? near_int(min[s] / dmin, 0, range) : 0;
    }
    memset(sc, 0, 16 * sizeof *sc);
    memset(m, 0, 16 * sizeof *m);
    for (int turn = 0; turn < TURNS; turn++) {
        struct moments z = {0};
        float sum = 0;
        for (int s = 0; s < n_sub; s++) /* from one below to two above, then the other way */
            sum += affine_pick(n, top, range, x + n * s, w + n * s, &sums[s], d, dmin,
                               1 + (turn & 1), &sc1[s], &m1[s], &z);
        if (!(sum < best)) break;
        best = sum;
        best_d = d;
        best_m = dmin;
        memcpy(sc, sc1, sizeof sc1);
        memcpy(m, m1, sizeof m1);
        best_halfs(&z, &d, &dmin);
    }
    put_half(half_d, best_d);
    put_half(half_m, best_m);
    for (int s = 0; s < n_sub; s++)
        affine_codes(n, x + n * s, top, best_d * (float)sc[s], best_m * (float)m[s], q + n * s);
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

static void encode_q4_0(const float *x, const float *w, uint8_t *b)
{
    int q[32];
    encode_grid_32(&grid_q4, x, w, b, q);
    for (int i = 0; i < 32; i++) q[i] += 8;
    put_nibbles(q, b + 2, NULL);
}

static void encode_q5_0(const float *x, const float *w, uint8_t *b)
{
    int q[32];
    encode_grid_32(&grid_q5, x, w, b, q);
    for (int i = 0; i < 32; i++) q[i] += 16;
    put_nibbles(q, b + 6, b + 2);
}

static void encode_q4_1(const float *x, const float *w, uint8_t *b)
{
    int q[32];
    encode_affine_32(x, w, 15, b, q);
    put_nibbles(q, b + 4, NULL);
}

static void encode_q5_1(const float *x, const float *w, uint8_t *b)
{
    int q[32];
    encode_affine_32(x, w, 31, b, q);
    put_nibbles(q, b + 8, b + 4);
}

static void encode_iq4_nl(const float *x, const float *w, uint8_t *b)
{
    int q[32];
    encode_grid_32(&grid_iq4, x, w, b, q);
    put_nibbles(q, b + 2, NULL);
}

/* The scale is a power of two: the one at which the largest weight is about at the grid's end, and
 * its neighbours, are all there is to try. */
static void encode_mxfp4(const float *x, const float *w, uint8_t *b)
{
    const float peak = fabsf(largest(x, 32));
    float d[STARTS] = {0};
    int exp = 0, code[STARTS] = {0}, q[32] = {0}, k = 0;
    struct fit f;
    b[0] = 0;
    if (peak > 0 && peak < INFINITY) {
        (void)frexpf(peak, &exp); /* peak is 2^(exp-1) to 2^exp */
        for (int c = 0; c < STARTS; c++) {
            code[c] = exp + 121 + c / 2; /* twice each: more would never be right */
            code[c] = code[c] < 0 ? 0 : code[c] > 254 ? 254 : code[c];
            d[c] = scale_e8m0((uint8_t)code[c]);
        }
        grid_errors(&grid_fp4, 32, x, w, d, &f);
        for (int c = 1; c < STARTS; c++) k = f.err[c] < f.err[k] ? c : k;
        grid_codes(&grid_fp4, 32, x, d[k], q);
        for (int i = 0; i < 32; i++) { /* the table's values to a sign and three bits */
            const int v = table_fp4_all[q[i]];
            int c = 0;
            while (table_fp4[c] != (v < 0 ? -v : v)) c++;
            q[i] = v < 0 ? c | 8 : c;
        }
        b[0] = (uint8_t)code[k];
    }
    put_nibbles(q, b + 1, NULL);
}

/* Where a grid has a few values only, least squares shrinks the large weights, and with them what a
 * layer says.  So at two and three bits they count more: sqrt(1 + x^2 / mean x^2) times. */
static void weigh_by_size(const float *x, const float *w, float *out)
{
    float mean = 0;
    for (int k = 0; k < 256; k++) mean += x[k] * x[k] / 256;
    const bool usable = mean > 1e-30f && mean < 1e30f;
    for (int k = 0; k < 256; k++) out[k] = usable ? w[k] * sqrtf(1 + x[k] * x[k] / mean) : w[k];
}

static void encode_q2_k(const float *x, const float *w, uint8_t *b)
{
    int sc[16], m[16], q[256];
    float by_size[256];
    weigh_by_size(x, w, by_size);
    memset(b, 0, 84);
    encode_affine_super(16, 3, 15, x, by_size, b + 80, b + 82, sc, m, q);
    for (int s = 0; s < 16; s++) b[s] = (uint8_t)(sc[s] | m[s] << 4);
    for (int k = 0; k < 256; k++) {
        uint8_t *p = b + 16 + (k >> 7) * 32 + (k & 31);
        *p = (uint8_t)(*p | q[k] << 2 * (k >> 5 & 3));
    }
}

static void encode_q3_k(const float *x, const float *w, uint8_t *b)
{
    int sc[16], q[256];
    float by_size[256];
    weigh_by_size(x, w, by_size);
    memset(b, 0, 110);
    put_half(b + 108, encode_grid_super(&grid_q3, 16, -32, 31, x, by_size, 0.7f, 1.8f, sc, q));
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

/* The twelve bytes of Q4_K and Q5_K. */
static void put_scales(const int *sc, const int *m, uint8_t *b)
{
    for (int s = 0; s < 4; s++) {
        b[s] = (uint8_t)(sc[s] | sc[s + 4] >> 4 << 6);
        b[4 + s] = (uint8_t)(m[s] | m[s + 4] >> 4 << 6);
        b[8 + s] = (uint8_t)((sc[s + 4] & 15) | (m[s + 4] & 15) << 4);
    }
}

static void encode_q4_k(const float *x, const float *w, uint8_t *b)
{
    int sc[16], m[16], q[256];
    encode_affine_super(32, 15, 63, x, w, b, b + 2, sc, m, q);
    put_scales(sc, m, b + 4);
    for (int i = 0; i < 128; i++)
        b[16 + i] = (uint8_t)(q[i / 32 * 64 + i % 32] | q[i / 32 * 64 + 32 + i % 32] << 4);
}

static void encode_q5_k(const float *x, const float *w, uint8_t *b)
{
    int sc[16], m[16], q[256];
    memset(b, 0, 176);
    encode_affine_super(32, 31, 63, x, w, b, b + 2, sc, m, q);
    put_scales(sc, m, b + 4);
    for (int k = 0; k < 256; k++) {
        const int s = k >> 5, i = k & 31;
        uint8_t *lo = b + 48 + (s >> 1) * 32 + i;
        *lo = (uint8_t)(*lo | (q[k] & 15) << 4 * (s & 1));
        b[16 + i] = (uint8_t)(b[16 + i] | q[k] >> 4 << s);
    }
}

static void encode_q6_k(const float *x, const float *w, uint8_t *b)
{
    int sc[16], q[256];
    memset(b, 0, 210);
    put_half(b + 208, encode_grid_super(&grid_q6, 16, -128, 127, x, w, 0.9f, 1.3f, sc, q));
    for (int s = 0; s < 16; s++) b[192 + s] = (uint8_t)sc[s];
    for (int k = 0; k < 256; k++) {
        const int part = k >> 7, t = k >> 5 & 3, i = k & 31, v = q[k] + 32;
        uint8_t *lo = b + part * 64 + (t & 1) * 32 + i, *hi = b + 128 + part * 32 + i;
        *lo = (uint8_t)(*lo | (v & 15) << (t >> 1) * 4);
        *hi = (uint8_t)(*hi | (v >> 4) << 2 * t);
    }
}

static void encode_iq4_xs(const float *x, const float *w, uint8_t *b)
{
    int sc[16], q[256];
    unsigned high = 0;
    memset(b, 0, 136);
    put_half(b, encode_grid_super(&grid_iq4, 32, -32, 31, x, w, 0.7f, 1.8f, sc, q));
    for (int s = 0; s < 8; s++) {
        const int v = sc[s] + 32;
        b[4 + s / 2] = (uint8_t)(b[4 + s / 2] | (v & 15) << 4 * (s & 1));
        high |= (unsigned)(v >> 4) << 2 * s;
        put_nibbles(q + 32 * s, b + 8 + 16 * s, NULL);
    }
    put16(b + 2, (uint16_t)high);
}

void ENCODE(enum qtype type, const float *x, const float *w, uint8_t *block)
{
    switch (type) {
    case QTYPE_Q4_0: encode_q4_0(x, w, block); break;
    case QTYPE_Q4_1: encode_q4_1(x, w, block); break;
    case QTYPE_Q5_0: encode_q5_0(x, w, block); break;
    case QTYPE_Q5_1: encode_q5_1(x, w, block); break;
    case QTYPE_Q2_K: encode_q2_k(x, w, block); break;
    case QTYPE_Q3_K: encode_q3_k(x, w, block); break;
    case QTYPE_Q4_K: encode_q4_k(x, w, block); break;
    case QTYPE_Q5_K: encode_q5_k(x, w, block); break;
    case QTYPE_Q6_K: encode_q6_k(x, w, block); break;
    case QTYPE_IQ4_NL: encode_iq4_nl(x, w, block); break;
    case QTYPE_IQ4_XS: encode_iq4_xs(x, w, block); break;
    case QTYPE_MXFP4: encode_mxfp4(x, w, block); break;
    default: break;
    }
}

#endif
