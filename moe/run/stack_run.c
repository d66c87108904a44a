/* What the engine does for a stack (quant/stack.h): it finds the levels above the weights' bases, tells
 * residency which matrix each of them belongs to, and answers what is asked of depths.
 *
 * Owns e->stack and the tables of its units.  It reads no level and chooses none: that is residency's and the
 * placement's. */
#include <stdlib.h>
#include <string.h>

#include "moe/run/engine_int.h"

static void say_cut(struct tessera_engine *e)
{
    char text[256];
    if (!e->stack.n_cut) return;
    (void)snprintf(text, sizeof text, "%s: the stack was cut: %d of its %d units are there", e->path,
                   e->stack.n_units, e->stack.n_units + e->stack.n_cut);
    engine_warn(e, text);
}

enum status stack_run_open(struct tessera_engine *e, struct err *err)
{
    const enum status s = stackfile_open(&e->stack, e->file, err);
    if (s) return s;
    say_cut(e);
    e->weights.base = e->stack.type;
    return OK;
}

/* The part of every matrix of the stack: parts [first of tensor + matrix], -1 = not used. */
static int *parts_of_stack(const struct tessera_engine *e, int *first)
{
    int n = 0;
    for (int i = 0; i < e->stack.n_tensors; n += e->stack.tensor[i++].n_mats) first[i] = n;
    int *part = malloc(((size_t)n + 1) * sizeof *part);
    for (int i = 0; part && i < n; i++) part[i] = -1;
    for (int k = 0; part && k < e->weights.n; k++) {
        const struct weight *w = &e->weights.at[k];
        if (!qtype_is_stacked(w->type)) continue;
        for (int i = 0; i < e->stack.n_tensors; i++)
            for (int m = 0; m < w->n_mats; m++)
                if (w->src[w->n_src == 1 ? 0 : m] == e->stack.tensor[i].base)
                    part[first[i] + (w->n_src == 1 ? m : 0)] = w->first_part + m;
    }
    return part;
}

enum status stack_run_bind(struct tessera_engine *e, struct err *err)
{
    const struct stackfile *s = &e->stack;
    if (!s->present) return OK;
    if (s->n_rows > INT32_MAX)
        return err_set(err, ERR_UNSUPPORTED, "%s: a stack of more than 128 GiB", e->path);
    e->levels = weights_bind_bytes(&e->weights, "tessera.stack.levels", STACK_ROW, (int)s->n_rows,
                                   err);
    int *first = calloc((size_t)s->n_tensors + 1, sizeof *first), *part = NULL;
    e->unit = calloc((size_t)s->n_units + 1, sizeof *e->unit);
    e->level_end = calloc((size_t)s->n_units + 1, sizeof *e->level_end);
    if (first) part = parts_of_stack(e, first);
    enum status st = e->levels < 0 ? err->code : OK;
    if (!st && (!first || !part || !e->unit || !e->level_end))
        st = err_set(err, ERR_MEMORY, "no memory for the stack");
    for (int i = 0; !st && i < s->n_units; i++) {
        const struct stack_unit *u = &s->unit[i];
        const struct gguf_str name = s->tensor[u->tensor].base->name;
        e->unit[i] = (struct resid_unit){part[first[u->tensor] + u->mat], u->level};
        e->level_end[i] = u->end;
        if (e->unit[i].part < 0)
            st = err_set(err, ERR_FORMAT, "%s: the stack has levels for %.*s, which the model does "
                         "not use: they are another model's", e->path, (int)name.n, name.s);
    }
    free(first);
    free(part);
    return st;
}

void stack_run_residency(const struct tessera_engine *e, struct resid_options *o)
{
    o->levels = e->levels;
    o->level_end = e->level_end;
    o->unit = e->unit;
    o->n_units = e->stack.n_units;
    o->n_floor = e->stack.n_floor;
    o->level_head = STACK_HEAD;
    o->rank = e->stack.rank;
}

void stack_run_close(struct tessera_engine *e)
{
    stackfile_close(&e->stack);
    free(e->unit);
    free(e->level_end);
}

enum status tessera_stack_limit(tessera_engine *e, const char *tensor, int matrix, int depth,
                                struct err *err)
{
    int n = 0;
    for (int i = 0; i < e->weights.n && !e->opt.header_only; i++) {
        const struct weight *w = &e->weights.at[i];
        if (!qtype_is_stacked(w->type) || (tensor && strcmp(tensor, w->name))) continue;
        for (int m = 0; m < w->n_mats; m++) {
            if (matrix >= 0 && m != matrix) continue;
            resid_limit_levels(&e->resid, w->first_part + m, depth < 0 ? 0 : depth);
            n++;
        }
    }
    return n ? OK : err_set(err, ERR_RANGE, "%s is not in the stack", tensor ? tensor : "nothing");
}

int tessera_stack_depth(const tessera_engine *e, const char *tensor, int matrix)
{
    for (int i = 0; i < e->weights.n && !e->opt.header_only; i++) {
        const struct weight *w = &e->weights.at[i];
        if (!qtype_is_stacked(w->type) || strcmp(tensor, w->name)) continue;
        return matrix >= 0 && matrix < w->n_mats ? e->resid.stack.mat[w->first_part + matrix].depth : -1;
    }
    return -1;
}

struct tessera_stack tessera_stack(const tessera_engine *e)
{
    const int n = e->placement.n_units;
    return (struct tessera_stack){n, e->stack.n_units + e->stack.n_cut,
                                  stackfile_ppl(&e->stack, n)};
}
