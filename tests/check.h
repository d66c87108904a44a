/* Shared parts of the kernel checkers (tests/check_*.c): options, random regimes, guarded buffers,
 * bit-exact comparison, timing.
 *
 * A checker runs every kernel of every tier above the reference on random inputs and compares bit
 * by bit.  A run is fully described by its --seed; the first line printed is that seed.
 *
 *     struct check_opts o;
 *     if (!check_parse(&o, argc, argv)) return 2;
 *     ... check_wanted(&o, name) ... check_same_f32(...) ...
 *     return check_finish(&o);
 *
 * Owns nothing but its buffers; never used by the library.  One thread. */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "moe/base/cpu.h"
#include "moe/base/f16.h"
#include "moe/base/rng.h"

#define CHECK_UNUSED __attribute__((unused))

/* How many of the cases run.  A sanitizer makes them ten times slower; bad accesses depend on the shape,
 * so there each kernel runs on a third of the shapes, and the types that share them take turns. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { CHECK_ONE_IN = 3 };
#else
enum { CHECK_ONE_IN = 1 };
#endif

struct check_opts {
    int bench, list;
    const char *filter; /* substring of the kernel's name, NULL = all */
    uint64_t seed;
    int n_run, n_failed; /* comparisons made, comparisons failed */
};

/* Reads the command line; 0 after a message when it is wrong (exit with 2 then). */
static inline int check_parse(struct check_opts *o, int argc, char **argv)
{
    *o = (struct check_opts){.seed = 1};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bench")) o->bench = 1;
        else if (!strcmp(argv[i], "--list")) o->list = 1;
        else if (!strcmp(argv[i], "--filter") && i + 1 < argc) o->filter = argv[++i];
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc) o->seed = strtoull(argv[++i], NULL, 0);
        else {
            fprintf(stderr, "usage: %s [--bench] [--filter TEXT] [--seed N] [--list]\n", argv[0]);
            return 0;
        }
    }
    if (!o->list)
        printf("seed %" PRIu64 ", best tier %s\n", o->seed, cpu_tier_name(cpu_tier_best()));
    return 1;
}

/* Whether --filter lets this kernel run.  With --list it prints the name and says no. */
static inline int check_wanted(const struct check_opts *o, const char *name)
{
    if (o->filter && !strstr(name, o->filter)) return 0;
    if (o->list) puts(name);
    return !o->list;
}

/* ---- random inputs ---------------------------------------------------------------------- */

enum check_regime {
    CHECK_UNIFORM, /* -1 .. 1 */
    CHECK_TINY,    /* around 1e-30, some subnormal */
    CHECK_HUGE,    /* around 1e30: products overflow to infinity in places */
    CHECK_LARGE,   /* around 1e4 */
    CHECK_ZEROS,   /* +0 and -0 */
    CHECK_EQUAL,   /* one value everywhere */
    CHECK_POW2,    /* signed powers of two, 2^-8 .. 2^8 */
    CHECK_SPIKES,  /* nearly zero with rare large outliers */
    CHECK_REGIME_N,
};

static inline const char *check_regime_name(enum check_regime g)
{
    static const char *const names[CHECK_REGIME_N] = {"uniform", "tiny",  "huge", "large",
                                                      "zeros",   "equal", "pow2", "spikes"};
    return names[g];
}

CHECK_UNUSED static void check_fill(enum check_regime g, float *x, size_t n, struct rng *r)
{
    float same = rng_range(r, -4.0f, 4.0f);
    for (size_t i = 0; i < n; i++) {
        float u = rng_range(r, -1.0f, 1.0f);
        switch (g) {
        case CHECK_TINY: x[i] = u * (rng_below(r, 8) ? 1e-30f : 1e-40f); break;
        case CHECK_HUGE: x[i] = u * 1e30f; break;
        case CHECK_LARGE: x[i] = u * 1e4f; break;
        case CHECK_ZEROS: x[i] = u < 0 ? -0.0f : 0.0f; break;
        case CHECK_EQUAL: x[i] = same; break;
        case CHECK_POW2: x[i] = ldexpf(u < 0 ? -1.0f : 1.0f, (int)rng_below(r, 17) - 8); break;
        case CHECK_SPIKES: x[i] = rng_below(r, 97) ? u * 1e-3f : u * 1e3f; break;
        default: x[i] = u; break;
        }
    }
}

CHECK_UNUSED static void check_fill_bytes(void *p, size_t n, struct rng *r)
{
    unsigned char *b = p;
    for (size_t i = 0; i < n; i++) b[i] = (unsigned char)(rng_u64(r) >> 56);
}

/* ---- guarded buffers -------------------------------------------------------------------- */

enum { CHECK_GUARD = 256 }; /* bytes before and after, a multiple of 64 */

/* data is 64-byte aligned and filled with 0xA5; guards hold a pattern of their own. */
struct check_buf {
    unsigned char *base;
    void *data;
    size_t bytes;
};

CHECK_UNUSED static struct check_buf check_canary_alloc(size_t bytes)
{
    struct check_buf b = {.bytes = bytes};
    size_t total = (bytes + 2 * CHECK_GUARD + 63) / 64 * 64;
    b.base = aligned_alloc(64, total);
    if (!b.base) {
        fputs("check: no memory\n", stderr);
        exit(1);
    }
    memset(b.base, 0x5C, total);
    b.data = b.base + CHECK_GUARD;
    memset(b.data, 0xA5, bytes);
    return b;
}

/* 1 when nothing was written outside data. */
CHECK_UNUSED static int check_canary_verify(const struct check_buf *b)
{
    for (size_t i = 0; i < CHECK_GUARD; i++)
        if (b->base[i] != 0x5C || b->base[CHECK_GUARD + b->bytes + i] != 0x5C) return 0;
    return 1;
}

CHECK_UNUSED static void check_canary_free(struct check_buf *b)
{
    free(b->base);
    *b = (struct check_buf){0};
}

/* ---- comparison ------------------------------------------------------------------------- */

/* Bit-equal, or both NaN: which NaN comes out of an operation is not part of the arithmetic. */
static inline int check_bits_equal(float a, float b)
{
    return f32_bits(a) == f32_bits(b) || (a != a && b != b);
}

/* Counts a comparison and prints its failure; `what` describes tier, shape and regime. */
CHECK_UNUSED static void check_fail(struct check_opts *o, const char *name, const char *what,
                                    const char *why)
{
    o->n_failed++;
    if (o->n_failed <= 20)
        printf("FAIL %s [%s] seed %" PRIu64 ": %s\n", name, what, o->seed, why);
}

/* Compares n floats bit by bit; prints the number of differences and the worst one. */
CHECK_UNUSED static int check_same_f32(struct check_opts *o, const char *name, const char *what,
                                       const float *ref, const float *got, size_t n)
{
    size_t n_bad = 0, worst = 0;
    double worst_d = -1;
    for (size_t i = 0; i < n; i++) {
        if (check_bits_equal(ref[i], got[i])) continue;
        double d = fabs((double)ref[i] - (double)got[i]);
        if (!(d <= worst_d)) worst = i, worst_d = d;
        n_bad++;
    }
    o->n_run++;
    if (!n_bad) return 1;
    char why[160];
    snprintf(why, sizeof why, "%zu of %zu differ, worst at %zu: ref %a (%g), got %a (%g)", n_bad, n,
             worst, (double)ref[worst], (double)ref[worst], (double)got[worst], (double)got[worst]);
    check_fail(o, name, what, why);
    return 0;
}

CHECK_UNUSED static int check_same_bytes(struct check_opts *o, const char *name, const char *what,
                                         const void *ref, const void *got, size_t n)
{
    const unsigned char *a = ref, *b = got;
    o->n_run++;
    for (size_t i = 0; i < n; i++) {
        if (a[i] == b[i]) continue;
        char why[96];
        snprintf(why, sizeof why, "byte %zu of %zu: ref %02x, got %02x", i, n, a[i], b[i]);
        check_fail(o, name, what, why);
        return 0;
    }
    return 1;
}

CHECK_UNUSED static int check_same_canary(struct check_opts *o, const char *name, const char *what,
                                          const struct check_buf *b)
{
    o->n_run++;
    if (check_canary_verify(b)) return 1;
    check_fail(o, name, what, "wrote outside its output");
    return 0;
}

/* Prints the summary; the exit code of main. */
CHECK_UNUSED static int check_finish(const struct check_opts *o)
{
    if (!o->list && !o->bench) printf("%d comparisons, %d failed\n", o->n_run, o->n_failed);
    return o->n_failed ? 1 : 0;
}

/* ---- timing ----------------------------------------------------------------------------- */

static inline double check_clock(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds that passed. */
static inline double check_now(void) { return check_clock(CLOCK_MONOTONIC); }

/* Nanoseconds of one call: the best of many, for about `seconds` and at least five calls.  Calls
 * shorter than 20 microseconds are timed in groups.  Calls of more than a millisecond rarely get by
 * without losing the processor to another job, so those are timed by the thread's own clock (which
 * is too coarse for short ones). */
CHECK_UNUSED static double check_bench(void (*fn)(void *arg), void *arg, double seconds)
{
    fn(arg);
    double t0 = check_now(), once, best = 1e30, end = t0 + seconds;
    fn(arg);
    once = check_now() - t0;
    int group = once < 20e-6 ? (int)(20e-6 / (once > 1e-8 ? once : 1e-8)) + 1 : 1;
    clockid_t id = once < 1e-3 ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID;
    for (int i = 0; i < 5 || check_now() < end; i++) {
        t0 = check_clock(id);
        for (int k = 0; k < group; k++) fn(arg);
        double t = (check_clock(id) - t0) / group;
        if (t < best) best = t;
    }
    return best * 1e9;
}

/* Zeroed memory on huge pages where the system has them; size rounded up to 2 MiB.  For benches. */
CHECK_UNUSED static void *check_huge_alloc(size_t bytes)
{
    const size_t huge = (size_t)2 << 20;
    size_t n = (bytes + huge - 1) / huge * huge;
    char *p = mmap(NULL, n + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        fputs("check: no memory\n", stderr);
        exit(1);
    }
    p = (char *)(((uintptr_t)p + huge - 1) & ~(uintptr_t)(huge - 1));
    madvise(p, n, MADV_HUGEPAGE);
    memset(p, 0, n);
    return p; /* unmapped when the checker ends */
}

#endif
