/* See chunk.h. */
#include "routing/chunk.h"

enum { LANES = 16 };

float chunk_chance(int n, const float *mine, const float *before)
{
    float lane[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += mine[i + j] * before[i + j];
    for (int j = 0; i < n; i++, j++) lane[j] += mine[i] * before[i];
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    const float p = (1.0f - lane[0]) / 2.0f;
    return p < 0 ? 0 : p > 1 ? 1 : p;
}

void chunk_smooth(int n, float p, float margin, const float *c, float *y)
{
    if (p < margin) p = margin;
    if (p > 1.0f - margin) p = 1.0f - margin;
    for (int i = 0; i < n; i++) y[i] = p * c[i] + (1.0f - p) * y[i];
}
