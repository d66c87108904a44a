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
 * float arithmetic is spelt out by the names below: one rounding each, to nearest, never contracted. */
#ifndef MOE_COMPUTE_CUDA_GPU_H
#define MOE_COMPUTE_CUDA_GPU_H

#include <stdint.h>

#include <cuda_runtime_api.h>

enum { GPU_THREADS = 256 };

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
