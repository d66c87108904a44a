/* Encoders: AVX-512, sixteen lanes; encode_body.h has everything. */
#define ENCODE encode_avx512
#include "quant/encode_body.h"
