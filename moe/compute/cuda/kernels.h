/* The kernels of the CUDA plugin: what they take, and how they are started.  The results are those of
 * quant/mm.h and moe/compute/elem.h, bit for bit: the same tiles, prepared rows and order of sums.
 *
 * A launch is a value: made by one of the functions below, it can wait until gpu_start() puts it on a
 * stream, which returns 0 or an error of CUDA's.  All pointers in the structs are addresses of the device;
 * strides are in bytes unless they say otherwise, and rows are rows of a buffer that are that far apart. */
#ifndef MOE_COMPUTE_CUDA_KERNELS_H
#define MOE_COMPUTE_CUDA_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#include "quant/qtype.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    GPU_ROWS = 8,   /* rows that share a block of a product, */
    GPU_MANY = 64,  /* where tensor cores make it */
    GPU_MATS = 3,
    GPU_HEAD = 576, /* values of a head in attention at most */
    GPU_EXPERTS = 1024, GPU_USED = 32, GPU_GROUPS = 64, /* of a router at most */
};

/* Rows that meet one expert: `first` counts them in their list. */
struct gpu_group {
    const void *w[GPU_MATS]; /* gate, up, down: tiles */
    int32_t expert, first, n;
};

struct gpu_mat {
    const void *w;        /* tiles, or a stack (moe/compute/dev.h); of groups: theirs */
    const float *bias;    /* of groups, [n_expert][n_rows]; NULL = none */
    char *out;            /* rows of floats */
    uint64_t out_stride;
    int32_t n_rows, n_tiles;
};

/* out[m][i] = w[m] * x[row[i]] (+ bias), for matrices of one type and n_cols. */
struct gpu_product {
    const struct gpu_group *group; /* NULL: all rows meet mat[].w */
    const int32_t *row;   /* NULL: row i is i */
    const int32_t *id;    /* or, what gpu_route() has chosen: pair i meets table[id[i]][first + m], */
    const void *const *table; /* [n_expert][GPU_MATS] */
    const char *x;        /* prepared rows */
    uint64_t x_stride, tile_bytes;
    uint64_t x_head, out_head;     /* head h: n_tiles on in w, so far on in a row of x and of out */
    int32_t n_rows, n_groups, n_heads; /* n_rows: without groups; of id: pairs */
    int32_t n_used;       /* of id: pair i is of row i / n_used; 0: of row i */
    int32_t first;        /* mat[m] is matrix first + m of a group */
    int32_t n_mats, n_cols;
    int32_t share;        /* rows that share a block, as many as a group may have: 1, GPU_ROWS, GPU_MANY */
    int32_t slices;       /* set by gpu_product() */
    struct gpu_mat mat[GPU_MATS];
};

/* out = x, or act(x) * up, as a prepared row; act is an enum glu_act. */
struct gpu_prepare {
    const char *x, *up;   /* rows of floats; up: NULL = none */
    uint64_t x_stride, up_stride;
    char *out;
    uint64_t out_stride, out_head;
    int32_t x_head;       /* floats from head to head */
    int32_t n_rows, n_heads, n, act;
};

/* y = x / rms(x) * w for each head of n values; y may be x; w NULL = ones. */
struct gpu_norm {
    const char *x;
    char *y;
    uint64_t x_stride, y_stride;
    const float *w;
    int32_t n_rows, n_heads, n;
    float eps;
};

/* y = f(x, y), element by element.  SCALE: by, times w's value; SOFTCAP: by * tanh(y / by). */
enum gpu_code { GPU_COPY, GPU_ADD, GPU_MUL, GPU_GATE, GPU_SCALE, GPU_SOFTCAP };
struct gpu_map {
    const char *x;        /* NULL = none */
    char *y;
    uint64_t x_stride, y_stride;
    const int32_t *x_row; /* NULL: row i is i */
    const float *w;       /* NULL = none */
    int32_t x_head, y_head; /* floats from head to head */
    int32_t n_rows, n_heads, n, one; /* one: x has one value a row */
    int32_t code;
    float by;
};

struct gpu_rope {
    const char *cs;       /* cos then sin */
    char *x;
    uint64_t cs_stride, x_stride;
    int32_t n_rows, n_heads, dim, at, n_rot, neox;
};

/* out = sum over a row's slots of w * x[pair]; pair -1 ends a row's slots. */
struct gpu_slot {
    int32_t pair;
    float w;
};
struct gpu_combine {
    const struct gpu_slot *slot; /* [n_rows][n_used]; NULL: slot s of row r is pair r * n_used + s, */
    const float *w;       /* [n_rows][n_used] */
    const char *x;
    char *out;
    uint64_t x_stride, out_stride;
    int32_t n_rows, n_used, n;
};

/* Token choice as in routing/route.h; struct route_params has what the numbers are. */
struct gpu_route {
    const char *x;        /* rows of [n_expert] logits */
    uint64_t x_stride;
    const float *bias, *scale; /* [n_expert], NULL = none */
    float *w;             /* [n_rows][n_used] */
    int32_t *id;          /* ditto */
    int32_t n_rows, n_expert, n_used, score, normalise, n_group, n_group_used;
    float by;
};

/* A row and the KV pages of its session: it is at `last`, or sees positions first .. last. */
struct gpu_place {
    char *kv;
    int32_t first, last;
};

/* KV slots begin kv_at bytes behind gpu_place.kv. */
struct gpu_kv_put {
    const struct gpu_place *place; /* [n_rows] */
    const char *k, *v;    /* v: NULL for latent heads */
    uint64_t k_stride, v_stride, kv_at, page_bytes, head_bytes;
    int32_t n_rows, n_kv, dim, dim_v, dk, dv; /* dv 0 for latent heads */
    int32_t q8;
};

struct gpu_attention {
    const struct gpu_place *place; /* [n_rows] */
    const char *q;
    char *out;
    const float *sink;    /* [n_q], NULL = none */
    uint64_t q_stride, out_stride, kv_at, page_bytes, head_bytes;
    int32_t n_rows, n_q, n_kv, dim, dim_v, dk, dv;
    int32_t q8, latent;
    float scale;
};

struct gpu_launch {
    const void *kernel;
    uint32_t grid[3];
    union {
        struct gpu_product product;
        struct gpu_prepare prepare;
        struct gpu_norm norm;
        struct gpu_map map;
        struct gpu_rope rope;
        struct gpu_combine combine;
        struct gpu_route route;
        struct gpu_kv_put kv_put;
        struct gpu_attention attention;
    } a;
};

bool gpu_has_product(enum qtype type);
/* How many of n rows should share a block. */
int gpu_share(enum qtype type, int n_rows);
struct gpu_launch gpu_product(enum qtype type, const struct gpu_product *a);
struct gpu_launch gpu_prepare(enum act_kind kind, const struct gpu_prepare *a);
struct gpu_launch gpu_norm(const struct gpu_norm *a);
struct gpu_launch gpu_map(const struct gpu_map *a);
struct gpu_launch gpu_rope(const struct gpu_rope *a);
struct gpu_launch gpu_combine(const struct gpu_combine *a);
struct gpu_launch gpu_route(const struct gpu_route *a);
struct gpu_launch gpu_kv_put(const struct gpu_kv_put *a);
struct gpu_launch gpu_attention(const struct gpu_attention *a);
cudaError_t gpu_start(cudaStream_t s, const struct gpu_launch *l);

/* Brings every kernel to the device, so that nothing is loaded later. */
cudaError_t gpu_load_all(void);

#ifdef __cplusplus
}
#endif
#endif
