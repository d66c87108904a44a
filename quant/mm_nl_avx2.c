/* AVX2 products of the types whose nibbles go through a table: IQ4_NL, MXFP4, IQ4_XS,
 * as mm_avx2_int.h describes them. */
#include "quant/mm_avx2_int.h"

MM_PARTS(IQ4_NL, ACT_Q8_32)
MM_PARTS(MXFP4, ACT_Q8_32)
MM_PARTS(IQ4_XS, ACT_Q8_256)
