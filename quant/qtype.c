/* See qtype.h. */
#include "quant/qtype.h"

#include <strings.h>

static const struct qtype_info table[] = {
    {QTYPE_F32, "F32", 1, 4, ACT_F32},        {QTYPE_F16, "F16", 1, 2, ACT_F32},
    {QTYPE_Q4_0, "Q4_0", 32, 18, ACT_Q8_32},  {QTYPE_Q8_0, "Q8_0", 32, 34, ACT_Q8_32},
    {QTYPE_Q4_K, "Q4_K", 256, 144, ACT_Q8_256}, {QTYPE_Q6_K, "Q6_K", 256, 210, ACT_Q8_256},
    {QTYPE_BF16, "BF16", 1, 2, ACT_F32},
    {QTYPE_Q4_1, "Q4_1", 32, 20, ACT_Q8_32},
    {QTYPE_Q5_0, "Q5_0", 32, 22, ACT_Q8_32},
    {QTYPE_Q5_1, "Q5_1", 32, 24, ACT_Q8_32},
    {QTYPE_Q2_K, "Q2_K", 256, 84, ACT_Q8_256},
    {QTYPE_Q3_K, "Q3_K", 256, 110, ACT_Q8_256},
    {QTYPE_Q5_K, "Q5_K", 256, 176, ACT_Q8_256},
    {QTYPE_IQ4_NL, "IQ4_NL", 32, 18, ACT_Q8_32},
    {QTYPE_IQ4_XS, "IQ4_XS", 256, 136, ACT_Q8_256},
    {QTYPE_MXFP4, "MXFP4", 32, 17, ACT_Q8_32},
    {QTYPE_NVFP4, "NVFP4", 64, 36, ACT_Q8_32},
    {QTYPE_IQ3_S, "IQ3_S", 256, 110, ACT_Q8_256},
    {QTYPE_IQ3_XXS, "IQ3_XXS", 256, 98, ACT_Q8_256},
    {QTYPE_IQ2_S, "IQ2_S", 256, 82, ACT_Q8_256},
    {QTYPE_IQ2_XS, "IQ2_XS", 256, 74, ACT_Q8_256},
    {QTYPE_IQ2_XXS, "IQ2_XXS", 256, 66, ACT_Q8_256},
    {QTYPE_IQ1_S, "IQ1_S", 256, 50, ACT_Q8_256},
    {QTYPE_IQ1_M, "IQ1_M", 256, 56, ACT_Q8_256},
};

static const struct qtype_info own[] = {
    {QTYPE_BYTES, "BYTES", 1, 1, ACT_F32},
    {QTYPE_NEST2, "NEST2", 64, 17, ACT_Q8_64},
    {QTYPE_SIGN1, "SIGN1", 32, 4, ACT_F32},
};

enum { N_TYPES = sizeof table / sizeof table[0], N_OWN = sizeof own / sizeof own[0] };

const struct qtype_info *qtype_in_files(uint32_t id)
{
    for (int i = 0; i < N_TYPES; i++)
        if ((uint32_t)table[i].id == id) return &table[i];
    return NULL;
}

const struct qtype_info *qtype_info(uint32_t id)
{
    for (int i = 0; i < N_OWN; i++)
        if ((uint32_t)own[i].id == id) return &own[i];
    return qtype_in_files(id);
}

const struct qtype_info *qtype_by_name(const char *name)
{
    for (int i = 0; i < N_TYPES; i++)
        if (!strcasecmp(table[i].name, name)) return &table[i];
    return NULL;
}

const struct qtype_info *qtype_at(int i) { return i >= 0 && i < N_TYPES ? &table[i] : NULL; }

size_t qtype_bytes(enum qtype type, uint64_t n)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    return t ? (size_t)(n / (unsigned)t->block * (unsigned)t->block_bytes) : 0;
}
