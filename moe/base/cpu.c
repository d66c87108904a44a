/* See cpu.h. */
#include "moe/base/cpu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static unsigned long long xcr0(void)
{
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((unsigned long long)hi << 32) | lo;
}

/* Tile registers are saved (XCR0), and the system lets this process use them: Linux wants to be
 * asked, once; asking again changes nothing. */
static int may_use_tiles(unsigned edx, unsigned long long saved)
{
    const unsigned need = (1u << 24) | (1u << 25); /* AMX-TILE, AMX-INT8 */
    if ((edx & need) != need || (saved & 0x60000) != 0x60000) return 0;
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

static enum cpu_tier detect(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return CPU_REF;
    const unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if ((c & (fma | osxsave | avx | f16c)) != (fma | osxsave | avx | f16c)) return CPU_REF;
    const unsigned long long saved = xcr0();
    if ((saved & 0x6) != 0x6) return CPU_REF; /* the system does not save ymm */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return CPU_REF;
    if (!(b & (1u << 5))) return CPU_REF; /* AVX2 */
    /* F, DQ, BW, VL in ebx; VBMI, VNNI in ecx; opmask and zmm state in XCR0. */
    const unsigned need_b = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
    const unsigned need_c = (1u << 1) | (1u << 11);
    if ((b & need_b) == need_b && (c & need_c) == need_c && (saved & 0xe6) == 0xe6)
        return may_use_tiles(d, saved) ? CPU_AMX : CPU_AVX512;
    return CPU_AVX2;
}
#else
static enum cpu_tier detect(void) { return CPU_REF; }
#endif

const char *cpu_tier_name(enum cpu_tier tier)
{
    static const char *const names[CPU_TIER_N] = {"ref", "avx2", "avx512", "amx"};
    return tier >= 0 && tier < CPU_TIER_N ? names[tier] : "?";
}

enum cpu_tier cpu_tier_best(void)
{
    enum cpu_tier best = detect();
    const char *mask = getenv("TESSERA_CPU");
    for (int t = 0; mask && t < (int)best; t++)
        if (!strcmp(mask, cpu_tier_name((enum cpu_tier)t))) return (enum cpu_tier)t;
    return best;
}
