/* Private to quant/: a block of weights taken apart into small integers and its float scales, the
 * one description of the newer formats that the codec, the reference kernels and the tiers' slow
 * paths share.  Formats are documented in quant/README.md.  Pure functions; any thread. */
#ifndef QUANT_PARTS_INT_H
#define QUANT_PARTS_INT_H

#include <stdbool.h>
#include <stdint.h>

#include "quant/qtype.h"

/* Weight k of the block is (d scale[s]) q[k], plus (m min[s]) where the type has a second term,
 * s = k / 16.  Each product and the sum are rounded.  NVFP4 has a float per 16 weights instead:
 * its weight is d16[s] q[k]. */
struct parts {
    float d, m;
    float d16[4];
    int16_t scale[16], min[16];
    int8_t q[256];
};

/* True for the types described here. */
bool parts_has(enum qtype type);

/* True where weights have a second term. */
bool parts_has_min(enum qtype type);

/* Takes one GGUF block apart. */
void parts_of(enum qtype type, const uint8_t *block, struct parts *p);

/* The 16 values that a nibble of IQ4_NL and IQ4_XS stands for, and those of MXFP4 and NVFP4. */
extern const int8_t table_iq4[16], table_fp4[16];

/* What a scale byte of MXFP4 and NVFP4 stands for, half of it because the table is
 * doubled. */
float scale_e8m0(uint8_t e);
float scale_ue4m3(uint8_t e);

/* Points of the grids as codes of two or three bits per coordinate; one more at the end, because
 * vector code reads two at a time. */
extern const uint16_t grid_iq2_xxs[256 + 1], grid_iq2_xs[512 + 1], grid_iq2_s[1024 + 1];
extern const uint16_t grid_iq3_xxs[256 + 1], grid_iq3_s[512 + 1], grid_iq1[2048 + 1];

#endif
