/* Between the files of kernels: product.cu and kernels.cu.  Never include it elsewhere. */
#ifndef MOE_COMPUTE_CUDA_KERNELS_INT_H
#define MOE_COMPUTE_CUDA_KERNELS_INT_H

#include <string.h>

#include "moe/compute/cuda/gpu.h"
#include "moe/compute/cuda/kernels.h"

static inline struct gpu_launch gpu_launch(const void *kernel, int x, int y, int z)
{
    struct gpu_launch l;
    memset(&l, 0, sizeof l); /* launches are compared byte by byte */
    l.kernel = kernel;
    l.grid[0] = (unsigned)x;
    l.grid[1] = (unsigned)y;
    l.grid[2] = (unsigned)z;
    return l;
}

/* The kernels of products, as launches take them; how many: at most GPU_PRODUCTS. */
enum { GPU_PRODUCTS = 128 };
int gpu_product_entries(const void **all);

#endif
