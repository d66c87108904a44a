/* Small deterministic random numbers: splitmix64 to seed, xoshiro256** to draw (Blackman and
 * Vigna, public domain algorithms).  Owns nothing; the state is the caller's; any thread. */
#ifndef MOE_BASE_RNG_H
#define MOE_BASE_RNG_H

#include <stdint.h>

struct rng {
    uint64_t s[4];
};

static inline uint64_t rng_splitmix(uint64_t *x)
{
    uint64_t z = (*x += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline void rng_seed(struct rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) r->s[i] = rng_splitmix(&seed);
}

static inline uint64_t rng_u64(struct rng *r)
{
    uint64_t *s = r->s;
    uint64_t x = s[1] * 5;
    uint64_t result = ((x << 7) | (x >> 57)) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return result;
}

/* Uniform in [0, 1). */
static inline double rng_f64(struct rng *r) { return (double)(rng_u64(r) >> 11) * 0x1p-53; }

/* Uniform in [lo, hi). */
static inline float rng_range(struct rng *r, float lo, float hi)
{
    return lo + (hi - lo) * (float)rng_f64(r);
}

/* Uniform in 0 .. n-1; n > 0. */
static inline uint32_t rng_below(struct rng *r, uint32_t n)
{
    return (uint32_t)(((rng_u64(r) >> 32) * n) >> 32);
}

#endif
