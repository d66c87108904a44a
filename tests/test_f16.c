/* f16.h: halves and brain floats against their definition, and against the CPU's F16C instructions
 * where it has them.  All 65,536 halves; all floats on a stride and around every rounding edge. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "moe/base/cpu.h"
#include "moe/base/f16.h"

/* The value of a half by its definition, in double: exact. */
static double half_value(uint16_t h)
{
    const int exp = (h >> 10) & 31;
    const int man = h & 1023;
    const double v = exp ? ldexp(1024 + man, exp - 25) : ldexp(man, -24);
    return h & 0x8000 ? -v : v;
}

static int is_nan16(uint16_t h) { return (h & 0x7fff) > 0x7c00; }

static void all_halves_widen(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        const uint16_t h = (uint16_t)i;
        const float f = f16_to_f32(h);
        if (is_nan16(h)) {
            assert_true(f != f);
        } else if ((h & 0x7fff) == 0x7c00) {
            assert_true(isinf(f));
        } else {
            assert_true((double)f == half_value(h));
        }
        assert_int_equal(f32_bits(f) >> 31, h >> 15);
    }
}

static void all_halves_round_trip(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        const uint16_t h = (uint16_t)i;
        /* A signalling NaN comes back quiet. */
        const uint16_t want = is_nan16(h) ? (uint16_t)(h | 0x200) : h;
        assert_int_equal(f16_from_f32(f16_to_f32(h)), want);
    }
}

/* Between two neighbouring halves: the nearer one, at the middle the even one. */
static void rounding_edges(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 0x7bff; i++) {
        const uint16_t lo = (uint16_t)i;
        const uint16_t hi = (uint16_t)(i + 1);
        const float mid = (float)((half_value(lo) + half_value(hi)) / 2); /* exact in float */
        const uint16_t even = i & 1 ? hi : lo;
        assert_int_equal(f16_from_f32(mid), even);
        assert_int_equal(f16_from_f32(nextafterf(mid, 0.0f)), lo);
        assert_int_equal(f16_from_f32(nextafterf(mid, INFINITY)), hi);
        assert_int_equal(f16_from_f32(-mid), even | 0x8000);
    }
    assert_int_equal(f16_from_f32(65504.0f), 0x7bff);
    assert_int_equal(f16_from_f32(nextafterf(65520.0f, 0.0f)), 0x7bff);
    assert_int_equal(f16_from_f32(65520.0f), 0x7c00);
    assert_int_equal(f16_from_f32(3e38f), 0x7c00);
    assert_int_equal(f16_from_f32(-INFINITY), 0xfc00);
    assert_int_equal(f16_from_f32(0x1p-25f), 0);
    assert_int_equal(f16_from_f32(nextafterf(0x1p-25f, 1.0f)), 1);
    assert_int_equal(f16_from_f32(-0x1p-149f), 0x8000);
    assert_int_equal(f16_from_f32(-0.0f), 0x8000);
    assert_true(is_nan16(f16_from_f32(NAN)));
    assert_true(is_nan16(f16_from_f32(f32_from_bits(0x7f800001u)))); /* payload below half's bits */
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("f16c"))) static float cpu_widen(uint16_t h)
{
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}

__attribute__((target("f16c"))) static uint16_t cpu_narrow(float f)
{
    const __m128i h = _mm_cvtps_ph(_mm_set_ss(f), _MM_FROUND_TO_NEAREST_INT);
    return (uint16_t)_mm_extract_epi16(h, 0);
}

static void same_as_cpu(void **state)
{
    (void)state;
    if (!__builtin_cpu_supports("f16c")) skip();
    for (uint32_t i = 0; i < 65536; i++) {
        const uint16_t h = (uint16_t)i;
        assert_int_equal(f32_bits(f16_to_f32(h)), f32_bits(cpu_widen(h)));
    }
    /* A stride that is odd reaches every residue; 2.1 million floats of all kinds. */
    for (uint64_t u = 0; u < 0x100000000u; u += 2047) {
        const float f = f32_from_bits((uint32_t)u);
        if (f16_from_f32(f) != cpu_narrow(f)) {
            print_error("float %08x\n", (unsigned)u);
            assert_int_equal(f16_from_f32(f), cpu_narrow(f));
        }
    }
    for (uint32_t i = 0; i < 65536; i++) {
        const uint32_t u = f32_bits(f16_to_f32((uint16_t)i));
        for (uint32_t d = 0; d < 5; d++) { /* around the halves and the middles between them */
            const float near = f32_from_bits(u + d - 2);
            const float mid = f32_from_bits(u + 0x1000u + d - 2);
            assert_int_equal(f16_from_f32(near), cpu_narrow(near));
            assert_int_equal(f16_from_f32(mid), cpu_narrow(mid));
        }
    }
}
#else
static void same_as_cpu(void **state)
{
    (void)state;
    skip();
}
#endif

static void bf16_edges(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        const uint16_t h = (uint16_t)i;
        const float f = bf16_to_f32(h);
        const int nan = (h & 0x7fff) > 0x7f80;
        assert_int_equal(f32_bits(f), i << 16);
        assert_int_equal(bf16_from_f32(f), nan ? (uint16_t)(h | 64) : h);
        if (nan || (h & 0x7fff) == 0x7f80) continue;
        const uint16_t up = (uint16_t)(i + 1);
        assert_int_equal(bf16_from_f32(f32_from_bits((i << 16) + 0x7fff)), h);
        assert_int_equal(bf16_from_f32(f32_from_bits((i << 16) + 0x8000)), i & 1 ? up : h);
        assert_int_equal(bf16_from_f32(f32_from_bits((i << 16) + 0x8001)), up);
    }
    assert_int_equal(bf16_from_f32(3.4028235e38f), 0x7f80); /* FLT_MAX rounds to infinity */
    /* A NaN whose upper half looks like infinity stays a NaN. */
    assert_int_equal(bf16_from_f32(f32_from_bits(0x7f800001u)), 0x7fc0);
    assert_int_equal(bf16_from_f32(f32_from_bits(0xff800001u)), 0xffc0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_halves_widen), cmocka_unit_test(all_halves_round_trip),
        cmocka_unit_test(rounding_edges),   cmocka_unit_test(same_as_cpu),
        cmocka_unit_test(bf16_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
