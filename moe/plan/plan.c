/* See plan.h.
 *
 * DESIGN.  Buffers get their place by lifetime: the largest first, each at the lowest offset where
 * it meets no placed buffer that is alive at the same time.  Invariant: two buffers share a byte
 * only if no step touches both.  Cost: quadratic in the number of buffers, once per bucket. */
#include "moe/plan/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/compute/dev.h"

static uint64_t round64(uint64_t n) { return (n + 63) & ~(uint64_t)63; }

uint64_t plan_route_layout(struct plan_route *r, char *base, int n_rows,
                           const struct route_params *p)
{
    const uint64_t ne = (uint64_t)p->n_expert, pairs = (uint64_t)route_pairs(p, n_rows);
    const uint64_t rows = (uint64_t)n_rows, slots = rows * (uint64_t)route_slots(p);
    uint64_t at = 0;
    if (base) *r = (struct plan_route){.w = NULL};
#define TAKE(field, type, n)                                                                       \
    do {                                                                                           \
        if (base) r->field = (type *)(void *)(base + at);                                          \
        at += round64(sizeof(type) * (n));                                                         \
    } while (0)
    TAKE(w, float, slots);
    TAKE(id, int32_t, slots);
    if (p->choice.k_max) {
        TAKE(n_of, int32_t, rows);
        TAKE(score, float, rows * ne);
        TAKE(taken, unsigned char, rows * ne);
    }
    TAKE(count, int32_t, ne);
    TAKE(expert, int32_t, ne);
    TAKE(first, int32_t, ne + 1);
    TAKE(pair, int32_t, pairs);
    TAKE(gate, const void *, ne);
    TAKE(up, const void *, ne);
    TAKE(down, const void *, ne);
    TAKE(ready, int32_t, ne);
    TAKE(run_expert, int32_t, ne);
    TAKE(run_first, int32_t, ne + 1);
    TAKE(run_pair, int32_t, pairs);
#undef TAKE
    return at;
}

static void size_buf(const struct plan *p, int i)
{
    const struct buf *f = &p->model->buf[i];
    const uint64_t rows = (uint64_t)p->n_rows;
    p->stride[i] = 0;
    switch (f->kind) {
    case BUF_F32:
    case BUF_LOGITS:
        p->stride[i] = (uint32_t)round64(sizeof(float) * (uint64_t)f->width);
        p->bytes[i] = rows * p->stride[i];
        break;
    case BUF_ACT:
        p->stride[i] = (uint32_t)round64(act_bytes(f->act, f->width));
        if (f->n_heads) p->stride[i] *= (uint32_t)f->n_heads;
        p->bytes[i] = rows * p->stride[i];
        break;
    case BUF_ROUTE:
        p->bytes[i] = plan_route_layout(NULL, NULL, p->n_rows, &f->route);
        break;
    case BUF_SCRATCH:
        p->bytes[i] = dev_experts_scratch(route_pairs(&f->route, p->n_rows),
                                          p->n_rows * route_slots(&f->route), f->width, f->n_ff,
                                          f->down);
        break;
    }
}

static bool alive_together(const struct buf *a, const struct buf *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* The lowest offset at which buffer i meets no placed buffer. */
static uint64_t find_place(const struct plan *p, int i, const int *order, int n_placed)
{
    uint64_t at = 0;
    for (int moved = 1; moved;) {
        moved = 0;
        for (int k = 0; k < n_placed; k++) {
            const int j = order[k];
            if (!alive_together(&p->model->buf[i], &p->model->buf[j])) continue;
            if (at < p->offset[j] + p->bytes[j] && p->offset[j] < at + p->bytes[i]) {
                at = p->offset[j] + p->bytes[j];
                moved = 1;
            }
        }
    }
    return at;
}

static enum status place_bufs(struct plan *p, struct err *e)
{
    const int n = p->model->n_buf;
    int *order = calloc((size_t)n, sizeof *order);
    if (!order) return err_set(e, ERR_MEMORY, "no memory for the plan");
    int n_order = 0;
    for (int i = 1; i < n; i++) {
        if (p->model->buf[i].kind == BUF_LOGITS) continue;
        int k = n_order++;
        while (k > 0 && p->bytes[order[k - 1]] < p->bytes[i]) {
            order[k] = order[k - 1];
            k--;
        }
        order[k] = i;
    }
    for (int k = 0; k < n_order; k++) {
        const int i = order[k];
        p->offset[i] = find_place(p, i, order, k);
        if (p->offset[i] + p->bytes[i] > p->arena_bytes)
            p->arena_bytes = p->offset[i] + p->bytes[i];
    }
    free(order);
    return OK;
}

/* Distinct experts that a share of n rows uses when every expert is as likely as any other. */
static double expected_experts(const struct route_params *r, int n_rows, double share)
{
    const bool rows_choose = r->choice.prompts && (int64_t)n_rows * r->n_used < r->n_expert;
    if (r->choice.k_max && !rows_choose) return r->n_expert; /* every one takes a row at least */
    return r->n_expert * (1.0 - pow(1.0 - share * r->n_used / r->n_expert, n_rows));
}

/* The chance that a row set of a pass of n_rows has any row. */
static double any_row(const struct row_set *s, int n_rows)
{
    return 1.0 - pow(1.0 - s->share, n_rows);
}

static uint64_t buf_traffic(const struct plan *p, int i)
{
    return i > 0 && p->model->buf[i].kind != BUF_SCRATCH ? p->bytes[i] : 0;
}

static void cost_step(struct plan *p, int i)
{
    const struct op *op = &p->model->op[i];
    struct plan_step *s = &p->step[i];
    const struct row_set *set = &p->model->set[op->rows];
    const uint64_t rows = (uint64_t)p->n_rows;
    for (int k = 0; k < OP_IO; k++) s->act_bytes += buf_traffic(p, op->in[k]) +
                                                   buf_traffic(p, op->out[k]);
    if (op->code == OP_EXPERTS) {
        const double n = expected_experts(&op->p.moe.route, p->n_rows, set->share);
        const uint64_t pairs = rows * (uint64_t)op->p.moe.route.n_used;
        for (int k = 0; k < OP_IO; k++) {
            const struct weight *w = &p->model->ws->at[op->weight[k]];
            const uint64_t max = pairs < (uint64_t)w->n_mats ? pairs : (uint64_t)w->n_mats;
            s->weight_bytes += (uint64_t)(n * (double)w->mat_bytes + 0.5);
            s->weight_bytes_max += max * w->mat_bytes;
            s->macs += (uint64_t)(set->share * (double)pairs + 0.5) * (uint64_t)w->n_cols *
                       (uint64_t)w->n_rows;
            s->macs_row += (uint64_t)op->p.moe.route.n_used * (uint64_t)w->n_cols *
                           (uint64_t)w->n_rows;
        }
        return;
    }
    for (int k = 0; k < OP_WEIGHTS; k++) {
        if (op->weight[k] < 0) continue;
        const struct weight *w = &p->model->ws->at[op->weight[k]];
        if (op->code == OP_EMBED) {
            s->weight_bytes += rows * qtype_bytes(w->type, (uint64_t)w->n_cols);
        } else {
            s->weight_bytes += w->mat_bytes;
            if (op->code == OP_MATMUL || op->code == OP_HEAD_MATMUL)
                s->macs += rows * (uint64_t)w->n_cols * (uint64_t)w->n_rows;
        }
    }
    if (op->code == OP_DELTA)
        s->macs = rows * 3 * (uint64_t)op->p.delta.n_v * (uint64_t)op->p.delta.dk *
                  (uint64_t)op->p.delta.dv;
    s->weight_bytes_max = s->weight_bytes;
    s->macs_row = s->macs / rows;
    if (set->share < 1) {
        s->weight_bytes = (uint64_t)(any_row(set, p->n_rows) * (double)s->weight_bytes + 0.5);
        s->act_bytes = (uint64_t)(set->share * (double)s->act_bytes + 0.5);
        s->macs = (uint64_t)(set->share * (double)s->macs + 0.5);
    }
}

enum status plan_make(struct plan *p, const struct build *model, int n_rows, struct err *e)
{
    memset(p, 0, sizeof *p);
    p->model = model;
    p->n_rows = n_rows;
    p->offset = calloc((size_t)model->n_buf, sizeof *p->offset);
    p->stride = calloc((size_t)model->n_buf, sizeof *p->stride);
    p->bytes = calloc((size_t)model->n_buf, sizeof *p->bytes);
    p->step = calloc((size_t)model->n_op + 1, sizeof *p->step);
    enum status s = OK;
    if (!p->offset || !p->stride || !p->bytes || !p->step)
        s = err_set(e, ERR_MEMORY, "no memory for the plan");
    for (int i = 1; !s && i < model->n_buf; i++) size_buf(p, i);
    if (!s) s = place_bufs(p, e);
    for (int i = 0; !s && i < model->n_op; i++) cost_step(p, i);
    if (s) plan_free(p);
    return s;
}

void plan_free(struct plan *p)
{
    free(p->offset);
    free(p->stride);
    free(p->bytes);
    free(p->step);
    memset(p, 0, sizeof *p);
}

struct plan_step plan_total(const struct plan *p)
{
    struct plan_step t = {0};
    for (int i = 0; i < p->model->n_op; i++) {
        t.weight_bytes += p->step[i].weight_bytes;
        t.weight_bytes_max += p->step[i].weight_bytes_max;
        t.act_bytes += p->step[i].act_bytes;
        t.macs += p->step[i].macs;
    }
    return t;
}
