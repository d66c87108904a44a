/* See collect.h. */
#include "cli/collect.h"

#include <math.h>
#include <string.h>

void collect(void *arg, const struct tessera_watched *w)
{
    struct collector *c = arg;
    const uint64_t cols = (uint64_t)w->n_cols;
    if (strncmp(w->tensor, "blk.", 4) && !(c->output && !strcmp(w->tensor, "output.weight")))
        return;
    if (c->err.code || !w->n_matrices) return;
    struct imatrix_entry *x =
        imatrix_want(&c->m, w->tensor, (uint64_t)w->n_matrices, cols, &c->err);
    if (!x) return;
    double *sum = x->sum + (uint64_t)w->matrix * cols, bad = 0;
    for (int r = 0; r < w->n_rows; r++)
        for (int k = 0; k < w->n_cols; k++) sum[k] += (double)w->row[r][k] * (double)w->row[r][k];
    for (int k = 0; k < w->n_cols; k++) bad += isfinite(sum[k]) ? 0 : 1;
    if (bad > 0)
        err_set(&c->err, ERR_RANGE, "%s meets activations that are not finite: the model is "
                "broken", w->tensor);
    x->count[w->matrix] += w->n_rows;
}
