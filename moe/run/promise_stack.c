/* What a stack's placement promises: how deep each kind of matrix is, the perplexity to expect, and what
 * its levels add to a token's reads.  Pure functions. */
#include <stdlib.h>
#include <string.h>

#include "moe/run/engine_int.h"

/* Bytes of a stack's levels that a token reads: experts' with the share of tokens that use them. */
double promise_level_bytes(const struct tessera_engine *e, const struct placement *p)
{
    double sum = 0;
    for (int i = 0; i < p->n_units; i++) {
        const struct weight *w = &e->weights.at[e->resid.parts.part[e->unit[i].part].weight];
        sum += (double)(stackfile_end(&e->stack, i + 1) - stackfile_end(&e->stack, i)) *
               (w->n_mats > 1 ? (double)e->hp.n_expert_used / w->n_mats : 1);
    }
    return sum;
}

/* "ffn_up_exps" of "blk.3.ffn_up_exps.weight", "output" of "output.weight". */
static void kind_of(const char *name, char *to, size_t cap)
{
    if (!strncmp(name, "blk.", 4) && strchr(name + 4, '.')) name = strchr(name + 4, '.') + 1;
    const char *end = strrchr(name, '.');
    const int n = end ? (int)(end - name) : (int)strlen(name);
    (void)snprintf(to, cap, "  %.*s", n < (int)cap - 3 ? n : (int)cap - 3, name);
}

static struct plan_depth *depth_of(struct plan_stack *k, const char *name)
{
    char kind[sizeof k->depth->kind];
    int i = 0;
    kind_of(name, kind, sizeof kind);
    while (i < k->n_depths && strcmp(k->depth[i].kind, kind)) i++;
    if (i == PLAN_DEPTHS) return NULL;
    if (i == k->n_depths) {
        k->depth[k->n_depths++] = (struct plan_depth){.least = 1e9};
        memcpy(k->depth[i].kind, kind, sizeof kind);
    }
    return &k->depth[i];
}

void promise_stack(const struct tessera_engine *e, const struct placement *p, struct plan_stack *k)
{
    const struct stackfile *s = &e->stack;
    uint64_t *bytes = s->present ? calloc((size_t)e->resid.parts.n_parts + 1, sizeof *bytes) : NULL;
    *k = (struct plan_stack){.n_units = 0};
    if (!bytes) return;
    k->n_loaded = p->n_units;
    k->n_units = s->n_units + s->n_cut;
    k->bytes = place_level_bytes(&e->resid.sizes, p->n_units);
    k->ppl = stackfile_ppl(s, p->n_units);
    (void)snprintf(k->text, sizeof k->text, "%.*s", (int)(s->curve_text.n < 60 ? s->curve_text.n : 60),
                   s->curve_text.n ? s->curve_text.s : "");
    for (int i = 0; i < p->n_units; i++)
        bytes[e->unit[i].part] += stackfile_end(s, i + 1) - stackfile_end(s, i);
    double weights[PLAN_DEPTHS] = {0};
    for (int i = 0; i < e->weights.n; i++) {
        const struct weight *w = &e->weights.at[i];
        struct plan_depth *d = qtype_is_stacked(w->type) ? depth_of(k, w->name) : NULL;
        for (int m = 0; d && m < w->n_mats; m++) {
            const double n = (double)w->n_cols * w->n_rows;
            const uint64_t b = w->mat_file_bytes + bytes[w->first_part + m];
            const double bits = 8 * (double)b / n;
            if (bits < d->least) d->least = bits;
            if (bits > d->most) d->most = bits;
            d->bytes += b;
            weights[d - k->depth] += n;
        }
    }
    for (int i = 0; i < k->n_depths; i++)
        k->depth[i].bits = 8 * (double)k->depth[i].bytes / weights[i];
    free(bytes);
}
