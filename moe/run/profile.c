/* See profile.h. */
#include "moe/run/profile.h"

#include <stdlib.h>
#include <string.h>

enum status profile_open(const struct build *m, struct profile **out, struct err *e)
{
    struct profile *p = calloc(1, sizeof *p);
    *out = p;
    if (p) {
        p->kind_of = calloc((size_t)m->n_op + 1, sizeof *p->kind_of);
        p->kind = calloc((size_t)m->n_op + 1, sizeof *p->kind);
    }
    if (!p || !p->kind_of || !p->kind) {
        profile_close(p);
        *out = NULL;
        return err_set(e, ERR_MEMORY, "no memory to time the steps");
    }
    for (int i = 0; i < m->n_op; i++) {
        const char *step = op_name(m->op[i].code), *name = m->op[i].name;
        int k = 0;
        while (k < p->n_kinds && (p->kind[k].step != step || strcmp(p->kind[k].name, name))) k++;
        if (k == p->n_kinds) {
            p->kind[k].step = step;
            p->kind[k].name = name;
            p->n_kinds++;
        }
        p->kind_of[i] = k;
    }
    return OK;
}

void profile_close(struct profile *p)
{
    if (!p) return;
    free(p->kind_of);
    free(p->kind);
    free(p);
}

void profile_add(struct profile *p, const struct build *m, int i, const struct profile_ran *r)
{
    const struct op *op = &m->op[i];
    struct tessera_step_kind *k = &p->kind[p->kind_of[i]];
    k->n_runs++;
    k->seconds += r->seconds;
    k->bytes += r->kv_bytes + r->level_bytes;
    k->macs += r->kv_macs;
    for (int w = 0; w < OP_WEIGHTS; w++) {
        if (op->weight[w] < 0 || (op->code == OP_EXPERTS && w >= OP_IO)) continue;
        const struct weight *v = &m->ws->at[op->weight[w]];
        const uint64_t product = (uint64_t)r->n_rows * (uint64_t)v->n_cols * (uint64_t)v->n_rows;
        if (op->code == OP_EMBED) {
            k->bytes += (uint64_t)r->n_rows * qtype_bytes(v->type, (uint64_t)v->n_cols);
        } else if (op->code == OP_EXPERTS) {
            k->bytes += (uint64_t)r->n_active * v->mat_bytes;
            k->macs += (uint64_t)op->p.moe.route.n_used * product;
        } else {
            k->bytes += v->mat_bytes;
            if (op->code == OP_MATMUL || op->code == OP_HEAD_MATMUL) k->macs += product;
        }
    }
}
