/* See qtype.h. */
#include "quant/qtype.h"

#include <strings.h>

static const struct qtype_info table[] = {
    {QTYPE_F32, "F32", 1, 4, ACT_F32},        {QTYPE_F16, "F16", 1, 2, ACT_F32},
    {QTYPE_Q4_0, "Q4_0", 32, 18, ACT_Q8_32},  {QTYPE_Q8_0, "Q8_0", 32, 34, ACT_Q8_32},
    {QTYPE_Q4_K, "Q4_K", 256, 144, ACT_Q8_256}, {QTYPE_Q6_K, "Q6_K", 256, 210, ACT_Q8_256},
    {QTYPE_BF16, "BF16", 1, 2, ACT_F32},
};

enum { N_TYPES = sizeof table / sizeof table[0] };

const struct qtype_info *qtype_info(uint32_t id)
{
    for (int i = 0; i < N_TYPES; i++)
        if ((uint32_t)table[i].id == id) return &table[i];
    return NULL;
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
