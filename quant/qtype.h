/* The table of weight types: what a GGUF tensor type is called, how it is cut into blocks, which
 * activation format its product uses.  Ids are GGUF's.  Constant data; any thread.
 *
 * Only types with a row here can be opened; only those with `mm` kernels (quant/mm.h) can be
 * multiplied, and the bases of stacked weights with their levels (quant/stack.h). */
#ifndef QUANT_QTYPE_H
#define QUANT_QTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum qtype {
    QTYPE_F32 = 0,
    QTYPE_F16 = 1,
    QTYPE_Q4_0 = 2,
    QTYPE_Q4_1 = 3,
    QTYPE_Q5_0 = 6,
    QTYPE_Q5_1 = 7,
    QTYPE_Q8_0 = 8,
    QTYPE_Q2_K = 10,
    QTYPE_Q3_K = 11,
    QTYPE_Q4_K = 12,
    QTYPE_Q5_K = 13,
    QTYPE_Q6_K = 14,
    QTYPE_IQ2_XXS = 16,
    QTYPE_IQ2_XS = 17,
    QTYPE_IQ3_XXS = 18,
    QTYPE_IQ1_S = 19,
    QTYPE_IQ4_NL = 20,
    QTYPE_IQ3_S = 21,
    QTYPE_IQ2_S = 22,
    QTYPE_IQ4_XS = 23,
    QTYPE_IQ1_M = 29,
    QTYPE_BF16 = 30,
    QTYPE_MXFP4 = 39,
    QTYPE_NVFP4 = 40,
    /* Ours, no GGUF ids: in files they are bytes.  Levels of a stack, and its bases (quant/stack.h). */
    QTYPE_BYTES = 61,
    QTYPE_NEST2 = 62,
    QTYPE_SIGN1 = 63,
    QTYPE_ID_END = 64, /* ids are below this */
};

/* How a row of activations is prepared before it meets a weight (quant/README.md). */
enum act_kind {
    ACT_F32,   /* as it is */
    ACT_Q8_32,  /* int8 with one f32 scale per 32 */
    ACT_Q8_256, /* int8 with one f32 scale per 256, sums per 16 and per 32 */
    ACT_Q8_64,  /* int8 with one f32 scale per 64, for stacked weights */
    ACT_N
};

struct qtype_info {
    enum qtype id;
    const char *name;    /* "Q4_K", as GGUF tools spell it */
    int block;           /* weights per block */
    int block_bytes;     /* bytes per block */
    enum act_kind act;
};

/* The base of a stacked matrix: multiplied by stack_mm() with its levels, not by mm[]. */
static inline bool qtype_is_stacked(enum qtype t) { return t == QTYPE_NEST2 || t == QTYPE_SIGN1; }

/* NULL when the id is not known.  File readers ask qtype_in_files(), which knows GGUF's only. */
const struct qtype_info *qtype_info(uint32_t id);
const struct qtype_info *qtype_in_files(uint32_t id);

/* NULL when no type of GGUF's has that name (case is ignored). */
const struct qtype_info *qtype_by_name(const char *name);

/* The i-th row of GGUF's types, NULL past their end. */
const struct qtype_info *qtype_at(int i);

/* Bytes of n weights; n is a multiple of the block. */
size_t qtype_bytes(enum qtype type, uint64_t n);

#endif
