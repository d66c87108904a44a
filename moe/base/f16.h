/* Half and brain floats to float and back, exact and branch-light; round to nearest even.
 * Owns nothing; any thread.  The vector tiers use the CPU's own conversions, which agree bit for
 * bit (tests/test_f16.c walks all 65,536 halves and the rounding edges). */
#ifndef MOE_BASE_F16_H
#define MOE_BASE_F16_H

#include <stdint.h>
#include <string.h>

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exp = (h >> 10) & 0x1fu;
    uint32_t man = h & 0x3ffu;
    if (exp == 31) return f32_from_bits(sign | 0x7f800000u | (man ? 0x400000u : 0u) | (man << 13));
    if (exp) return f32_from_bits(sign | ((exp + 112) << 23) | (man << 13));
    /* Subnormal: man * 2^-24 is exact in float. */
    float v = (float)man * 0x1p-24f;
    return sign ? -v : v;
}

static inline uint16_t f16_from_f32(float f)
{
    uint32_t u = f32_bits(f);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (a < 0x38800000u) {                                   /* below 2^-14: a half subnormal */
        /* Adding 0.5 leaves the rounded multiple of 2^-24 in the low mantissa bits. */
        float v = f32_from_bits(a) + 0.5f;
        return (uint16_t)(sign | (f32_bits(v) - 0x3f000000u));
    }
    uint32_t odd = (a >> 13) & 1u;
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + odd) >> 13));
}

static inline float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }

static inline uint16_t bf16_from_f32(float f)
{
    uint32_t u = f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 64u); /* keep NaN a NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

#endif
