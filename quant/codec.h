/* GGUF blocks to floats and back, one clear scalar function per type; formats are documented in
 * quant/README.md.  Decoding agrees with ggml bit for bit; encoding is our own (Q8_0, Q4_0: the
 * same bytes as ggml's reference encoder; the others: error within a few per cent of it).
 * Pure functions; any thread. */
#ifndef QUANT_CODEC_H
#define QUANT_CODEC_H

#include <stdbool.h>

#include "quant/qtype.h"

/* n is a multiple of the type's block. */
void codec_decode(enum qtype type, const void *blocks, float *x, int64_t n);
void codec_encode(enum qtype type, const float *x, void *blocks, int64_t n);

/* False for types that can be read and not written. */
bool codec_can_encode(enum qtype type);

#endif
