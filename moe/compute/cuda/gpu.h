/* The words that kernels are written in.  nvcc makes GPU code of them; a C compiler makes loops, so that
 * the same source runs, and is checked bit by bit, where there is no GPU (tests/check_cuda.c).
 *
 * DESIGN.  A kernel is a function of one block of GPU_THREADS threads, made of phases:
 *
 *     EACH_THREAD(t) { ... } SYNC
 *
 * Nothing lives from phase to phase but what is SHARED, and in a phase no thread reads what another one
 * writes in it; so a phase may as well be a loop, forwards or backwards (the emulation does both).  A
 * TABLE is constant data of the device, which threads read at places of their own.  All
 * float arithmetic is spelt out by the names below: one rounding each, to nearest, never contracted.
 *
 * Tensor cores belong to warps: 32 neighbouring threads hold a matrix between them, and multiply
 * together.  So what they hold lives from phase to phase, in registers: an array of OWN, of which thread t
 * has number ME(t), and a product stands between phases, as SYNC does.  Phases that touch nothing but
 * such arrays, and SHARED as it is, need no SYNC.  Who holds what is the hardware's (PTX ISA, fragments of
 * mma.m16n8k16 and mma.m16n8k32); the emulation has it from there, by itself (tests/cuda_emu/emu_mma.c). */
#ifndef MOE_COMPUTE_CUDA_GPU_H
#define MOE_COMPUTE_CUDA_GPU_H

#include <stdint.h>

#include <cuda_runtime_api.h>

enum { GPU_THREADS = 256, GPU_WARP = 32 };

/* What a thread holds of signed bytes A (16 outputs, 32 columns) and B (32 columns, 8 rows), and of the
 * sums C (16 outputs, 8 rows).  With g = thread of the warp / 4, u = thread % 4: r[0] and r[1] of A are
 * columns 4 u .. of outputs g and g + 8, r[2] and r[3] their columns 16 + 4 u ..; r[0] and r[1] of B are
 * these columns of row g; of C they are rows 2 u, 2 u + 1 of output g, then of g + 8. */
struct gpu_a { uint32_t r[4]; };
struct __attribute__((aligned(8))) gpu_b { uint32_t r[2]; };
struct gpu_c { int32_t r[4]; };

#ifdef __CUDACC__

#include <cuda_fp16.h>

#define DEV static __device__ __forceinline__
#define SHARED __shared__
#define TABLE static __device__ const
#define EACH_THREAD(t) for (int t = (int)threadIdx.x, once_ = 1; once_; once_ = 0)
#define SYNC __syncthreads();
#define FMA(a, b, c) __fmaf_rn(a, b, c)
#define MUL(a, b) __fmul_rn(a, b)
#define ADD(a, b) __fadd_rn(a, b)
#define DIV(a, b) __fdiv_rn(a, b)
#define SQRT(a) __fsqrt_rn(a)
#define BITS(f) __float_as_uint(f)
#define FLOAT(u) __uint_as_float(u)
DEV float gpu_half(uint16_t h) { return __half2float(__ushort_as_half(h)); }
/* As f16_from_f32() has it, which NaN a NaN becomes included. */
DEV uint16_t gpu_to_half(float f)
{
    const uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16 & 0x8000u) | 0x7e00u | (u >> 13 & 0x3ffu));
    return __half_as_ushort(__float2half_rn(f));
}
DEV int gpu_dot4(uint32_t a, uint32_t b, int sum) { return __dp4a((int)a, (int)b, sum); }
DEV uint32_t gpu_load(const void *p) { return __ldg((const uint32_t *)p); }
/* Byte i of the result is byte (pick >> 4 i & 7) of b:a. */
DEV uint32_t gpu_pick(uint32_t a, uint32_t b, uint32_t pick) { return __byte_perm(a, b, pick); }
/* It will be read soon: from device memory to the cache. */
DEV void gpu_ahead(const void *p) { asm volatile("prefetch.global.L2 [%0];" : : "l"(p)); }

#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
enum { OWN = 1 };
#define ME(t) ((t) & 0)

/* One half of A's columns times that of B: 16 of them.  Cards of 7.5 have half the outputs at once. */
#if __CUDA_ARCH__ >= 800
#define MMA16(B_TYPE)                                                                              \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8." B_TYPE ".s32 {%0, %1, %2, %3}, "      \
                 "{%4, %5}, {%6}, {%7, %8, %9, %10};"                                              \
                 : "=r"(d->r[0]), "=r"(d->r[1]), "=r"(d->r[2]), "=r"(d->r[3])                      \
                 : "r"(a->r[2 * half]), "r"(a->r[2 * half + 1]), "r"(b->r[half]), "r"(c->r[0]),    \
                   "r"(c->r[1]), "r"(c->r[2]), "r"(c->r[3]))
#else
#define MMA16(B_TYPE)                                                                              \
    UNROLL for (int i = 0; i < 2; i++)                                                             \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8." B_TYPE ".s32 {%0, %1}, {%2}, {%3}, "   \
                 "{%4, %5};"                                                                       \
                 : "=r"(d->r[2 * i]), "=r"(d->r[2 * i + 1])                                        \
                 : "r"(a->r[2 * half + i]), "r"(b->r[half]), "r"(c->r[2 * i]), "r"(c->r[2 * i + 1]))
#endif
/* d = a * b + c, columns 16 half .. of both. */
DEV void gpu_mma16(struct gpu_c *d, const struct gpu_a *a, const struct gpu_b *b, int half,
                   const struct gpu_c *c)
{
    MMA16("s8");
}
/* The same with unsigned bytes in b. */
DEV void gpu_mma16u(struct gpu_c *d, const struct gpu_a *a, const struct gpu_b *b, int half,
                    const struct gpu_c *c)
{
    MMA16("u8");
}
/* d = a * b + c, all 32 columns. */
DEV void gpu_mma32(struct gpu_c *d, const struct gpu_a *a, const struct gpu_b *b, const struct gpu_c *c)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=r"(d->r[0]), "=r"(d->r[1]), "=r"(d->r[2]), "=r"(d->r[3])
                 : "r"(a->r[0]), "r"(a->r[1]), "r"(a->r[2]), "r"(a->r[3]), "r"(b->r[0]), "r"(b->r[1]),
                   "r"(c->r[0]), "r"(c->r[1]), "r"(c->r[2]), "r"(c->r[3]));
#else
    gpu_mma16(d, a, b, 0, c);
    gpu_mma16(d, a, b, 1, d);
#endif
}

/* Makes a kernel of body(args, x, y, z); KERNEL_ENTRY is what a launch takes. */
#define KERNEL(name, args_type, body)                                                              \
    static __global__ void __launch_bounds__(GPU_THREADS)                                          \
        kernel_##name(const __grid_constant__ args_type a)                                         \
    {                                                                                              \
        body(&a, (int)blockIdx.x, (int)blockIdx.y, (int)blockIdx.z);                               \
    }
#define KERNEL_ENTRY(name) ((const void *)kernel_##name)

#else

#include <math.h>
#include <string.h>

#include "moe/base/f16.h"

#define DEV static inline
#define SHARED
#define TABLE static const
#define EACH_THREAD(t)                                                                             \
    for (int i_ = 0, t = emu_first(); i_ < GPU_THREADS; i_++, t += emu_backwards ? -1 : 1)
#define SYNC
#define FMA(a, b, c) fmaf(a, b, c)
#define MUL(a, b) ((a) * (b))
#define ADD(a, b) ((a) + (b))
#define DIV(a, b) ((a) / (b))
#define SQRT(a) sqrtf(a)
#define BITS(f) f32_bits(f)
#define FLOAT(u) f32_from_bits(u)
extern int emu_backwards; /* of the emulation: threads of a phase run from the last to the first */
DEV int emu_first(void) { return emu_backwards ? GPU_THREADS - 1 : 0; }
DEV float gpu_half(uint16_t h) { return f16_to_f32(h); }
DEV uint16_t gpu_to_half(float f) { return f16_from_f32(f); }
DEV int gpu_dot4(uint32_t a, uint32_t b, int sum)
{
    for (int i = 0; i < 32; i += 8) sum += (int8_t)(a >> i) * (int8_t)(b >> i);
    return sum;
}
DEV uint32_t gpu_load(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
DEV uint32_t gpu_pick(uint32_t a, uint32_t b, uint32_t pick)
{
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t k = pick >> 4 * i & 7;
        out |= ((k < 4 ? a : b) >> 8 * (k & 3) & 255u) << 8 * i;
    }
    return out;
}
DEV void gpu_ahead(const void *p) { (void)p; }

#define UNROLL
#define ROLLED
enum { OWN = GPU_THREADS };
#define ME(t) (t)

/* All warps, of which each of these arrays has the threads: k columns, the first of which are in the
 * registers a0 .. of a and b0 .. of b. */
void emu_mma(int k, int b_unsigned, struct gpu_c *d, const struct gpu_a *a, int a0, const struct gpu_b *b,
             int b0, const struct gpu_c *c);
DEV void gpu_mma16(struct gpu_c *d, const struct gpu_a *a, const struct gpu_b *b, int half,
                   const struct gpu_c *c)
{
    emu_mma(16, 0, d, a, 2 * half, b, half, c);
}
DEV void gpu_mma16u(struct gpu_c *d, const struct gpu_a *a, const struct gpu_b *b, int half,
                    const struct gpu_c *c)
{
    emu_mma(16, 1, d, a, 2 * half, b, half, c);
}
DEV void gpu_mma32(struct gpu_c *d, const struct gpu_a *a, const struct gpu_b *b, const struct gpu_c *c)
{
    emu_mma(32, 0, d, a, 0, b, 0, c);
}

#define KERNEL(name, args_type, body)                                                              \
    enum { args_##name = sizeof(args_type) };                                                      \
    static void kernel_##name(const void *args, int x, int y, int z)                               \
    {                                                                                              \
        args_type a;                                                                               \
        memcpy(&a, args, sizeof a);                                                                \
        body(&a, x, y, z);                                                                         \
    }
#define KERNEL_ENTRY(name) emu_kernel(kernel_##name, args_##name)

#endif

#endif
