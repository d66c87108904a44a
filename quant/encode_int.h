/* Private to quant/: the encoders that search, one function per tier, all with the same result. */
#ifndef QUANT_ENCODE_INT_H
#define QUANT_ENCODE_INT_H

#include <stdint.h>

#include "quant/qtype.h"

/* One block; w says how much each weight matters. */
typedef void encode_fn(enum qtype type, const float *x, const float *w, uint8_t *block);

encode_fn encode_ref, encode_avx2, encode_avx512;

#endif
