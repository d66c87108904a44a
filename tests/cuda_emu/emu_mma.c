/* The products of tensor cores, for kernels that run as loops: mma.m16n8k16 and mma.m16n8k32 of bytes, with
 * the elements where the PTX ISA says that threads hold them ("Matrix Fragments for mma.m16n8k16 with
 * integer type", "... for mma.m16n8k32").  From that text and nothing else: what kernels believe about it
 * is checked against this.  Owns nothing. */
#include "moe/compute/cuda/gpu.h"

enum { M = 16, N = 8, K = 32 };

static int element(const uint32_t *r, int i) { return (int)(r[i / 4] >> i % 4 * 8 & 255u); }

/* One warp: 32 of each array. */
static void warp(int k, int b_unsigned, struct gpu_c *d, const struct gpu_a *a, int a0, const struct gpu_b *b,
                 int b0, const struct gpu_c *c)
{
    int ma[M][K], mb[K][N], md[M][N];
    for (int lane = 0; lane < GPU_WARP; lane++) {
        const int group = lane >> 2, in_group = lane % 4;
        for (int i = 0; i < k / 2; i++) {
            const int row = i < 4 || (8 <= i && i < 12) ? group : group + 8;
            const int col = in_group * 4 + (i & 3) + (i < 8 ? 0 : 16);
            ma[row][col] = (int8_t)element(a[lane].r + a0, i);
        }
        for (int i = 0; i < k / 4; i++) {
            const int row = in_group * 4 + (i & 3) + (i < 4 ? 0 : 16), v = element(b[lane].r + b0, i);
            mb[row][group] = b_unsigned ? v : (int8_t)v;
        }
        for (int i = 0; i < 4; i++) md[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = c[lane].r[i];
    }
    for (int m = 0; m < M; m++)
        for (int i = 0; i < k; i++)
            for (int n = 0; n < N; n++)
                md[m][n] = (int32_t)((uint32_t)md[m][n] + (uint32_t)(ma[m][i] * mb[i][n])); /* wraps */
    for (int lane = 0; lane < GPU_WARP; lane++)
        for (int i = 0; i < 4; i++)
            d[lane].r[i] = md[(lane >> 2) + (i < 2 ? 0 : 8)][lane % 4 * 2 + (i & 1)];
}

void emu_mma(int k, int b_unsigned, struct gpu_c *d, const struct gpu_a *a, int a0, const struct gpu_b *b,
             int b0, const struct gpu_c *c)
{
    for (int t = 0; t < GPU_THREADS; t += GPU_WARP) warp(k, b_unsigned, d + t, a + t, a0, b + t, b0, c + t);
}
