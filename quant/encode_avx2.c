/* Encoders: AVX2, eight lanes; encode_body.h has everything. */
#define ENCODE encode_avx2
#include "quant/encode_body.h"
