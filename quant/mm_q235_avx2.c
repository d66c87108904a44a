/* AVX2 products of Q2_K, Q3_K and Q5_K, as mm_avx2_int.h describes them. */
#include "quant/mm_avx2_int.h"

MM_PARTS(Q2_K, ACT_Q8_256)
MM_PARTS(Q3_K, ACT_Q8_256)
MM_PARTS(Q5_K, ACT_Q8_256)
