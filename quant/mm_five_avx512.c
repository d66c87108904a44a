/* AVX-512 products of Q4_1, Q5_0 and Q5_1, as mm_avx512_int.h describes them. */
#include "quant/mm_avx512_int.h"

MM_PARTS(Q4_1, ACT_Q8_32)
MM_PARTS(Q5_0, ACT_Q8_32)
MM_PARTS(Q5_1, ACT_Q8_32)
