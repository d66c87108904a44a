/* The executor: runs a plan's steps in order on the devices, exactly as planned.
 *
 * It is the only place where routing, offload and devices meet: it resolves part handles to
 * pointers (pin), lets the routers fill the control buffers, hands ops to a device, and writes down
 * what was observed.  It decides nothing and allocates nothing.  Executor thread only. */
#include <string.h>

#include "moe/base/osfile.h"
#include "moe/run/engine_int.h"
#include "routing/route.h"

struct exec {
    struct tessera_engine *e;
    const struct plan *plan;
    struct dev_bind bind;
    struct dev_route route;
    struct plan_route ctl;        /* the control buffer of the layer being run */
    const struct op *route_op;
    const int32_t *serial;        /* [n_rows] session serial of each row */
    int n_rows, n_out;
};

static void bind_buffers(struct exec *x)
{
    struct tessera_engine *e = x->e;
    for (int i = 1; i < e->model.n_buf; i++) {
        const struct buf *f = &e->model.buf[i];
        char *base = f->kind == BUF_LOGITS ? e->logits.base : e->arena.base;
        e->buf[i].base = base + (f->kind == BUF_LOGITS ? 0 : x->plan->offset[i]);
        e->buf[i].stride = x->plan->stride[i];
        e->buf[i].width = f->width;
    }
}

static void pin_dense(struct exec *x, bool pin)
{
    struct tessera_engine *e = x->e;
    for (int i = 0; i < e->weights.n; i++) {
        const struct weight *w = &e->weights.at[i];
        if (w->n_mats != 1) continue;
        if (pin) e->weight[i].data = part_pin(&e->parts, w->first_part);
        else part_unpin(&e->parts, w->first_part);
    }
}

/* ---- route: one task per few rows ---- */

enum { ROUTE_ROWS = 32, ROUTE_EXPERTS = 4096 };

static void route_task(void *arg, int task, int worker)
{
    (void)worker;
    struct exec *x = arg;
    const struct route_params *p = &x->route_op->p.moe.route;
    const struct dev_buf *logits = &x->e->buf[x->route_op->in[0]];
    const struct elem_kernels *el = elem_kernels(x->e->tier);
    const int n = x->route.n_rows;
    const int end = (task + 1) * ROUTE_ROWS < n ? (task + 1) * ROUTE_ROWS : n;
    const int *w = x->route_op->weight;
    const float *bias = w[0] < 0 ? NULL : x->e->weight[w[0]].data;
    const float *scale = w[1] < 0 ? NULL : x->e->weight[w[1]].data;
    float pick[ROUTE_EXPERTS];
    for (int r = task * ROUTE_ROWS; r < end; r++) {
        float *l = (float *)(void *)(logits->base + (size_t)logits->stride * (size_t)r);
        route_token_choice(p, el, bias, scale, l, pick, x->ctl.id + r * p->n_used,
                           x->ctl.w + r * p->n_used);
    }
}

static void observe(struct exec *x)
{
    const struct route_params *p = &x->route_op->p.moe.route;
    for (int r = 0; r < x->route.n_rows; r++) {
        const int at = x->route_op->rows == ROWS_OUT ? x->e->out_row[r] : r;
        obs_put(&x->e->obs, &(struct obs){
            .step = x->e->n_steps, .layer = x->route_op->layer, .session = x->serial[at],
            .pos = x->e->row[at].pos, .token = x->e->row[at].id,
            .expert = x->ctl.id + r * p->n_used,
        });
    }
}

static void run_route(struct exec *x, const struct op *op)
{
    const struct route_params *p = &op->p.moe.route;
    const int n = op->rows == ROWS_OUT ? x->n_out : x->n_rows;
    x->route_op = op;
    plan_route_layout(&x->ctl, x->e->buf[op->out[0]].base, x->plan->n_rows, p->n_used,
                      p->n_expert);
    x->route.n_rows = n;
    x->route.n_used = p->n_used;
    if (!n) return;
    pool_run(x->e->pool, route_task, x, (n + ROUTE_ROWS - 1) / ROUTE_ROWS);
    x->route.n_active = route_group(x->ctl.id, n, p->n_used, p->n_expert, x->ctl.count,
                                    x->ctl.expert, x->ctl.first, x->ctl.pair);
    x->route.w = x->ctl.w;
    x->route.expert = x->ctl.expert;
    x->route.first = x->ctl.first;
    x->route.pair = x->ctl.pair;
    x->route.gate = x->ctl.gate;
    x->route.up = x->ctl.up;
    x->route.down = x->ctl.down;
    observe(x);
}

/* ---- experts: pin the parts that the route names, run the macro-step, unpin ---- */

static void run_experts(struct exec *x, const struct op *op)
{
    if (!x->route.n_rows) return;
    struct tessera_engine *e = x->e;
    const void **table[OP_IO] = {x->ctl.gate, x->ctl.up, x->ctl.down};
    for (int k = 0; k < OP_IO; k++)
        for (int a = 0; a < x->route.n_active; a++)
            table[k][a] = part_pin(&e->parts, e->weights.at[op->weight[k]].first_part +
                                                  x->route.expert[a]);
    x->route.begin = 0;
    x->route.end = x->route.n_active;
    x->bind.scratch = e->buf[op->in[2]].base;
    e->api->wait(e->dev, e->api->submit(e->dev, op, 1, &x->bind));
    for (int k = 0; k < OP_IO; k++)
        for (int a = 0; a < x->route.n_active; a++)
            part_unpin(&e->parts, e->weights.at[op->weight[k]].first_part + x->route.expert[a]);
}

/* ---- timing, when it is switched on ---- */

/* What attention reads at least once: the keys and values that the last row of each session sees. */
static void attention_work(const struct exec *x, const struct op *op, struct profile_ran *r)
{
    const int dk = op->p.attn.dk, dv = op->p.attn.dv, stored = op->p.attn.latent ? 0 : dv;
    const uint64_t page = attn_head_bytes(x->bind.kv_type, dk, stored);
    const struct dev_row *row = x->e->row;
    for (int i = 0; i < r->n_rows; i++) {
        const int at = op->rows == ROWS_OUT ? x->e->out_row[i] : i;
        const int next = op->rows == ROWS_OUT ? x->e->out_row[i + 1 < r->n_rows ? i + 1 : i] : i + 1;
        uint64_t seen = (uint64_t)row[at].pos + 1;
        if (op->p.attn.window > 0 && seen > (uint64_t)op->p.attn.window)
            seen = (uint64_t)op->p.attn.window;
        r->kv_macs += seen * (uint64_t)op->p.attn.n_q_heads * (uint64_t)(dk + dv);
        if (i + 1 == r->n_rows || row[next].session != row[at].session)
            r->kv_bytes += seen * page / KV_PAGE * (uint64_t)op->p.attn.n_kv_heads;
    }
}

static void profile_op(const struct exec *x, int i, double start)
{
    const struct op *op = &x->e->model.op[i];
    struct profile_ran r = {.n_rows = op->rows == ROWS_OUT ? x->n_out : x->n_rows,
                            .n_active = x->route.n_active, .seconds = os_seconds() - start};
    if (!r.n_rows) return;
    if (op->code == OP_ATTENTION) attention_work(x, op, &r);
    profile_add(x->e->profile, &x->e->model, i, &r);
}

static enum status run_steps(struct exec *x, struct err *err)
{
    struct tessera_engine *e = x->e;
    const struct build *m = &e->model;
    for (int i = 0; i < m->n_op;) {
        const struct op *op = &m->op[i];
        const int first = i;
        const double start = e->profile ? os_seconds() : 0;
        if (atomic_exchange(&e->cancel, 0))
            return err_set(err, ERR_CANCELLED, "interrupted in layer %d", op->layer);
        const bool watched = e->watch.fn != NULL;
        if (watched) watch_op(e, op, op->rows == ROWS_OUT ? x->n_out : x->n_rows);
        if (op->code == OP_ROUTE) {
            run_route(x, op);
            i++;
        } else if (op->code == OP_EXPERTS) {
            run_experts(x, op);
            if (watched && x->route.n_rows) watch_experts(e, op, &x->route);
            i++;
        } else {
            /* Everything up to the next control point is one submission. */
            int n = 1;
            while (!watched && !e->profile && i + n < m->n_op &&
                   m->op[i + n].code != OP_ROUTE && m->op[i + n].code != OP_EXPERTS)
                n++;
            dev_fence f = e->api->submit(e->dev, op, n, &x->bind);
            e->api->wait(e->dev, f);
            i += n;
        }
        if (e->profile) profile_op(x, first, start);
    }
    return OK;
}

enum status exec_run(struct tessera_engine *e, const struct plan *p, int n_rows, int n_out,
                     const int32_t *serial, struct err *err)
{
    struct exec x = {.e = e, .plan = p, .serial = serial, .n_rows = n_rows, .n_out = n_out};
    bind_buffers(&x);
    pin_dense(&x, true);
    x.bind = (struct dev_bind){
        .buf = e->buf, .weight = e->weight, .row = e->row, .out_row = e->out_row,
        .n_rows = n_rows, .n_out = n_out, .n_ctx = e->opt.n_ctx, .kv_base = e->kv_base,
        .kv_offset = e->kv_offset,
        .kv_page_bytes = e->kv_page_bytes,
        .kv_type = e->opt.kv == TESSERA_KV_Q8_0 ? KV_Q8_0 : KV_F16,
        .segment = e->segment, .segment_of = e->segment_of, .state_offset = e->state_offset,
        .n_sessions = e->state_bytes ? e->n_inputs : 0, .route = &x.route,
    };
    enum status s = run_steps(&x, err);
    pin_dense(&x, false);
    if (!s) e->n_steps++;
    return s;
}
