/* GGUF blocks to floats and back, one clear scalar function per type; formats are documented in
 * quant/README.md.  Decoding agrees with ggml bit for bit; encoding is our own (F16, BF16, Q8_0: the
 * same bytes as ggml's; the others search for the smallest error).  Pure functions; any thread. */
#ifndef QUANT_CODEC_H
#define QUANT_CODEC_H

#include <stdbool.h>

#include "moe/base/cpu.h"
#include "quant/qtype.h"

/* n is a multiple of the type's block. */
void codec_decode(enum qtype type, const void *blocks, float *x, int64_t n);

/* Minimises the sum of weight (x - x')^2: weight[n] says how much each of the n values matters,
 * finite, positive and about 1 in the mean; NULL = all alike.  Every tier gives the same bytes. */
void codec_encode(enum cpu_tier tier, enum qtype type, const float *x, const float *weight,
                  void *blocks, int64_t n);

/* False for types that can be read and not written. */
bool codec_can_encode(enum qtype type);

#endif
