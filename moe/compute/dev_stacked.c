/* Stacked matrices in memory of a device; see dev.h.  Owns nothing. */
#include <string.h>

#include "moe/compute/dev.h"

void dev_stacked_put(const struct stacked *m, char *to)
{
    const int32_t depth = m->depth;
    const size_t base = tile_bytes(m->type, m->n_cols) * (size_t)((m->n_rows + TILE_ROWS - 1) / TILE_ROWS);
    memset(to, 0, TNEST_HEAD);
    memcpy(to, &depth, sizeof depth);
    memcpy(to + TNEST_HEAD, m->base, base);
    for (int l = 1; l <= depth; l++)
        memcpy(to + dev_stacked_level(m->n_cols, m->n_rows, l), m->level[l],
               stack_level_bytes(m->type, 0, m->n_cols, m->n_rows, l));
}

struct stacked dev_stacked_view(int n_cols, int n_rows, const char *from)
{
    struct stacked m = {.type = QTYPE_NEST2, .n_cols = n_cols, .n_rows = n_rows, .base = from + TNEST_HEAD};
    int32_t depth;
    memcpy(&depth, from, sizeof depth);
    for (m.depth = 0; m.depth < depth && m.depth < STACK_NESTED;) {
        m.depth++;
        m.level[m.depth] = from + dev_stacked_level(n_cols, n_rows, m.depth);
    }
    return m;
}
