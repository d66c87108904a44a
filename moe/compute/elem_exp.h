/* The constants of exp, for the kernels of every tier and device.  Owns nothing.
 *
 * exp.  n = round(x / ln 2) by adding 1.5 * 2^23, whose low mantissa bits then are n;
 * r = x - n ln 2 in two fused steps, the first of which is exact; p = 1 + r + r^2 (...), degree 6,
 * relative error 3.2e-9 before rounding; the result is p with n added to its exponent field.
 * p * 2^n is a normal number wherever it is used, so that addition rounds nothing and every tier
 * agrees.
 *   x > EXP_HI            +inf      (exp would pass FLT_MAX)
 *   x < EXP_LO            +0        (exp would be subnormal: always flushed)
 *   NaN                   the quiet NaN 0x7fc00000 */
#ifndef MOE_COMPUTE_ELEM_EXP_H
#define MOE_COMPUTE_ELEM_EXP_H

#define EXP_HI 0x1.62e42ep+6f
#define EXP_LO -0x1.5d589ep+6f
#define EXP_LOG2E 0x1.715476p+0f
#define EXP_MAGIC 0x1.8p+23f
#define EXP_LN2_HI 0x1.62e43p-1f
#define EXP_LN2_LO -0x1.05c61p-29f
#define EXP_C2 0x1.fffffcp-2f
#define EXP_C3 0x1.555492p-3f
#define EXP_C4 0x1.5558bp-5f
#define EXP_C5 0x1.12398ep-7f
#define EXP_C6 0x1.6a4d6p-10f
#define EXP_NAN 0x7fc00000u

#endif
