/* AVX-512 products of Q2_K and Q3_K, as mm_avx512_int.h describes them. */
#include "quant/mm_avx512_int.h"

MM_PARTS(Q2_K, ACT_Q8_256)
MM_PARTS(Q3_K, ACT_Q8_256)
