/* Which instruction tier the kernels may use.
 *
 * A tier is a set of features that is there as a whole or not at all: what cpuid reports, what the
 * operating system saves (XCR0), and what the mask allows.  The mask comes from the environment
 * variable TESSERA_CPU (ref, avx2, avx512, amx), read once, so that every tier runs on any machine. */
#ifndef MOE_BASE_CPU_H
#define MOE_BASE_CPU_H

enum cpu_tier {
    CPU_REF = 0, /* plain C */
    CPU_AVX2,    /* AVX2, FMA, F16C */
    CPU_AVX512,  /* F, BW, VL, DQ, VBMI and VNNI */
    CPU_AMX,     /* these, AMX-TILE and AMX-INT8 */
    CPU_TIER_N,
};

/* The best tier of this machine, lowered by TESSERA_CPU.  Any thread. */
enum cpu_tier cpu_tier_best(void);

/* "ref", "avx2", "avx512", "amx". */
const char *cpu_tier_name(enum cpu_tier tier);

#endif
