/* AVX-512 products of Q5_K, as mm_avx512_int.h describes them. */
#include "quant/mm_avx512_int.h"

MM_PARTS(Q5_K, ACT_Q8_256)
