/* The kernels of the CUDA plugin: what they take, and how they are started.  The results are those of
 * quant/mm.h and moe/compute/elem.h, bit for bit: the same tiles, prepared rows and order of sums.
 *
 * Launches are asynchronous on a stream; they return 0 or an error of CUDA's.  All pointers in the
 * structs are addresses of the device; the structs themselves are copied. */
#ifndef MOE_COMPUTE_CUDA_KERNELS_H
#define MOE_COMPUTE_CUDA_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#include "quant/qtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A row that meets an expert. */
struct gpu_pair {
    const void *w[3]; /* gate, up, down: tiles */
    int32_t row, expert;
};

/* out[m][pair][0 .. n_rows) = w[first + m] * x (+ bias), m < n_mats matrices of one shape and type. */
struct gpu_product {
    const struct gpu_pair *pair; /* [n_pairs] */
    int n_pairs, first, n_mats;
    int n_cols, n_rows;
    uint64_t tile_bytes;
    const char *x;               /* prepared rows, that many bytes apart */
    uint64_t x_stride;
    bool x_by_pair;              /* row i is pair i's, else pair[i].row */
    const float *bias[2];        /* [n_expert][n_rows]; NULL = none */
    char *out[2];                /* rows of floats, that many bytes apart */
    uint64_t out_stride;
};
bool gpu_has_product(enum qtype type);
cudaError_t gpu_product(cudaStream_t s, enum qtype type, const struct gpu_product *a);

/* out = act(gate) * up as a prepared row; act is an enum glu_act. */
struct gpu_glu {
    int n_pairs, n, act;
    const char *gate, *up;       /* rows of floats */
    uint64_t stride;
    char *out;
    uint64_t out_stride;
};
cudaError_t gpu_glu(cudaStream_t s, enum act_kind kind, const struct gpu_glu *a);

/* Brings every kernel to the device, so that nothing is loaded later. */
cudaError_t gpu_load_all(void);

#ifdef __cplusplus
}
#endif
#endif
