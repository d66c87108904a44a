/* The executor: runs a plan's steps in order on the devices, exactly as planned.
 *
 * It is the only place where routing, offload and devices meet: it resolves weights to pointers,
 * lets the routers fill the control buffers, hands ops to a device, and writes down what was
 * observed.  What a second device takes of a step is sides.c's.  It decides nothing and allocates
 * nothing.  Executor thread only.
 *
 * DESIGN.  Where everything is in RAM a step is a few submissions.  What is not there is brought
 * step by step, and no result depends on it: experts run in the order in which they arrive, each
 * pair's output in a row of its own, summed in router-slot order at the end; a matrix that streams
 * is multiplied piece by piece, each output element being computed whole by one of them.  A step of more
 * rows than are computed at once goes through the model a layer at a time, in pieces of its rows.  After
 * opening, a step whose weights are on their way home waits for them. */
#include <string.h>

#include "moe/base/osfile.h"
#include "moe/run/chunk_run.h"
#include "moe/run/depth_run.h"
#include "moe/run/exec_int.h"
#include "moe/run/informed.h"
#include "moe/run/sides.h"
#include "quant/codec.h"
#include "quant/stack.h"
#include "routing/choice.h"
#include "routing/route.h"

static int set_rows(const struct exec *x, const struct op *op) { return x->e->set[op->rows].n; }

static void bind_buffers(struct exec *x)
{
    struct tessera_engine *e = x->e;
    for (int i = 1; i < e->model.n_buf; i++) {
        const struct buf *f = &e->model.buf[i];
        const uint64_t stride = x->plan->stride[i];
        const uint64_t before = stride * (uint64_t)(f->rows == ROWS_OUT ? x->out0 : x->row0);
        if (f->kind == BUF_LOGITS) e->buf[i].base = (char *)e->logits.base + before;
        else if (x->in_pieces && e->across_at[i] != UINT64_MAX)
            e->buf[i].base = (char *)e->across.base + e->across_at[i] + before;
        else e->buf[i].base = (char *)e->arena.base + x->plan->offset[i];
        e->buf[i].stride = (uint32_t)stride;
        e->buf[i].width = f->width;
        e->buf[i].rows = f->rows;
    }
}

/* ---- route: one task per few rows ---- */

enum { ROUTE_ROWS = 32, ROUTE_EXPERTS = 4096 };

static float *router_logits(const struct exec *x, int r)
{
    return dev_buf_floats(&x->e->buf[x->route_op->in[0]], r);
}

static const float *route_weight(const struct exec *x, int k)
{
    const int w = x->route_op->weight[k];
    return w < 0 ? NULL : x->e->weight[w].data;
}

/* A row chooses its experts. */
static void route_row(struct exec *x, int r)
{
    const struct route_params *p = &x->route_op->p.moe.route;
    const struct elem_kernels *el = elem_kernels(x->e->tier);
    const float *bias = route_weight(x, 0), *scale = route_weight(x, 1);
    float pick[ROUTE_EXPERTS], *l = router_logits(x, r), *w = x->ctl.w + r * x->route.n_used;
    int32_t *id = x->ctl.id + r * x->route.n_used;
    if (x->part && x->part->expert) {
        memcpy(id, x->part->expert + r * p->n_used, sizeof *id * (size_t)p->n_used);
        route_given(p, el, bias, scale, l, pick, id, w);
    } else {
        route_token_choice(p, el, bias, scale, l, pick, id, w);
    }
}

static void route_task(void *arg, int task, int worker)
{
    (void)worker;
    struct exec *x = arg;
    const int n = x->route.n_rows;
    const int end = (task + 1) * ROUTE_ROWS < n ? (task + 1) * ROUTE_ROWS : n;
    for (int r = task * ROUTE_ROWS; r < end; r++) route_row(x, r);
}

/* ---- choose: experts take rows ---- */

static void score_task(void *arg, int task, int worker)
{
    (void)worker;
    struct exec *x = arg;
    const struct route_params *p = &x->route_op->p.moe.route;
    const struct elem_kernels *el = elem_kernels(x->e->tier);
    const int n = x->route.n_rows;
    const int end = (task + 1) * ROUTE_ROWS < n ? (task + 1) * ROUTE_ROWS : n;
    float logit[ROUTE_EXPERTS], pick[ROUTE_EXPERTS];
    for (int r = task * ROUTE_ROWS; r < end; r++) {
        float *l = router_logits(x, r);
        const float *by = l;
        if (p->choice.prompts) { /* the logits are needed again */
            memcpy(logit, l, sizeof *l * (size_t)p->n_expert);
            route_compare(p, el, route_weight(x, 0), logit, pick);
            by = pick;
        } else {
            choice_scores(p, el, l);
        }
        for (int k = 0; k < p->n_expert; k++) x->ctl.score[(size_t)k * (size_t)n + (size_t)r] = by[k];
    }
}

/* Rows that are chosen together: of one input, those of the piece that runs; or all.  False: none. */
static bool chosen_span(const struct exec *x, int i, int *row0, int *n)
{
    const struct step_input *in = &x->e->input[i];
    const int from = in->row0 > x->row0 ? in->row0 : x->row0, end = x->row0 + x->n_rows;
    *row0 = 0;
    *n = x->n_rows;
    if (x->route_op->p.moe.route.choice.whole_batch) return true;
    *row0 = from - x->row0;
    *n = (in->row0 + in->n < end ? in->row0 + in->n : end) - from;
    return *n > 0;
}

static int n_spans(const struct exec *x)
{
    return x->route_op->p.moe.route.choice.whole_batch ? 1 : x->e->n_inputs;
}

static void take_task(void *arg, int expert, int worker)
{
    (void)worker;
    struct exec *x = arg;
    const size_t n = (size_t)x->route.n_rows, at = (size_t)expert * n;
    for (int i = 0, row0, m; i < n_spans(x); i++)
        if (chosen_span(x, i, &row0, &m) && x->e->capacity[i])
            choice_take(x->ctl.score + at + (size_t)row0, m, x->e->capacity[i],
                        x->ctl.taken + at + (size_t)row0);
}

/* The weights that the router gives a row's experts, whoever chose them; their order, too. */
static int own_gates(const struct exec *x, int r, int32_t *id, float *w)
{
    struct route_params p = x->route_op->p.moe.route;
    const unsigned char *taken = x->ctl.taken + r;
    float pick[ROUTE_EXPERTS];
    p.n_used = 0;
    for (int k = 0; k < p.n_expert; k++)
        if (taken[(size_t)k * (size_t)x->route.n_rows]) id[p.n_used++] = k;
    route_given(&p, elem_kernels(x->e->tier), route_weight(x, 0), route_weight(x, 1),
                router_logits(x, r), pick, id, w);
    return p.n_used;
}

static void gates_task(void *arg, int task, int worker)
{
    (void)worker;
    struct exec *x = arg;
    const int n = x->route.n_rows, slots = x->route.n_used;
    const struct route_params *p = &x->route_op->p.moe.route;
    const int end = (task + 1) * ROUTE_ROWS < n ? (task + 1) * ROUTE_ROWS : n;
    for (int r = task * ROUTE_ROWS; r < end; r++) {
        int32_t *id = x->ctl.id + (size_t)r * (size_t)slots;
        float *w = x->ctl.w + (size_t)r * (size_t)slots;
        if (!p->choice.prompts)
            x->ctl.n_of[r] = choice_gates(p, elem_kernels(x->e->tier), x->e->choice_scale,
                                          router_logits(x, r), x->ctl.taken + r, n, id, w);
        else if (x->ctl.n_of[r]) /* it has chosen */
            route_row(x, r);
        else
            x->ctl.n_of[r] = own_gates(x, r, id, w);
    }
}

static int mean_k(const struct exec *x, double masked)
{
    return x->e->forced_k ? x->e->forced_k : choice_k(&x->route_op->p.moe.route.choice, masked);
}

/* How many rows of each span an expert takes: by the share of masked tokens among them.  0: its rows
 * choose, and have their n_of already.  Whether any are taken. */
static bool set_capacity(struct exec *x)
{
    bool any = false;
    struct tessera_engine *e = x->e;
    const struct route_params *p = &x->route_op->p.moe.route;
    /* Rows of which not all are here, and rows that stand for the same place, are no text. */
    const bool own = p->choice.prompts &&
                     (e->own_routing || x->part || x->route_op->rows != ROWS_ALL);
    if (p->choice.prompts)
        for (int r = 0; r < x->route.n_rows; r++) x->ctl.n_of[r] = p->n_used;
    for (int i = 0, row0, n; i < n_spans(x); i++) {
        e->capacity[i] = 0;
        if (own || !chosen_span(x, i, &row0, &n)) continue;
        if (p->choice.prompts && (int64_t)n * p->n_used < p->n_expert) continue;
        int masked = 0;
        for (int r = row0; r < row0 + n; r++) {
            masked += x->row[r].id == p->choice.mask;
            if (p->choice.prompts) x->ctl.n_of[r] = 0;
        }
        e->capacity[i] = choice_capacity(n, mean_k(x, (double)masked / n), p->n_expert);
        any = true;
    }
    return any;
}

static void choose(struct exec *x)
{
    const int tasks = (x->route.n_rows + ROUTE_ROWS - 1) / ROUTE_ROWS;
    if (set_capacity(x)) {
        pool_run(x->e->pool, score_task, x, tasks);
        pool_run(x->e->pool, take_task, x, x->route_op->p.moe.route.n_expert);
    }
    pool_run(x->e->pool, gates_task, x, tasks);
}

void exec_observe(struct exec *x, double waited)
{
    const struct route_params *p = &x->route_op->p.moe.route;
    if (x->part) {
        if (x->part->chosen)
            memcpy(x->part->chosen, x->ctl.id,
                   sizeof *x->ctl.id * (size_t)(x->route.n_rows * p->n_used));
        return;
    }
    if (x->observed++ < x->again) return;
    uint8_t *in_ram = x->e->in_ram + p->n_expert;
    for (int r = 0; r < x->route.n_rows; r++) {
        const int at = dev_row_at(&x->e->set[x->route_op->rows], r);
        const int n = x->route.n_of ? x->route.n_of[r] : p->n_used;
        const int32_t *id = x->ctl.id + r * x->route.n_used;
        for (int k = 0; k < n; k++) in_ram[k] = x->e->in_ram[id[k]];
        obs_put(&x->e->obs, &(struct obs){
            .step = x->e->n_steps, .layer = x->route_op->layer, .session = x->serial[at],
            .pos = x->row[at].pos, .token = x->row[at].id,
            .n_used = n, .expert = id, .weight = x->ctl.w + r * x->route.n_used,
            .in_ram = in_ram, .wait_us = (uint32_t)(1e6 * waited),
        });
    }
}

/* A layer's router on what lies in buffer `from`, rows of a set, while absent experts are on their
 * way. */
static void foresee(struct exec *x, int bank, int from, int set)
{
    struct tessera_engine *e = x->e;
    struct forecast *g = &e->forecast;
    uint64_t stride;
    const bool scan = e->resid.streaming && !e->resid.all_ram && !e->resid.more;
    const int n = e->set[set].n < GATE_ROWS ? e->set[set].n : GATE_ROWS;
    if (g->kind == PREDICT_NONE || bank >= e->resid.n_banks ||
        !(scan || (g->active && g->kind == PREDICT_GATE))) return;
    float *logits = gates_run(&e->gates, bank, from, n, e->api, e->dev, &x->bind, &stride);
    if (logits) forecast_gate(g, e, bank, n, logits, stride);
}

/* The next layer's, on what this one's has seen.  Where rates change it sees something else, if it
 * runs at all: build_foresee() says when that is known. */
static void foresee_next(struct exec *x, const struct op *op, int bank)
{
    const struct gates *g = &x->e->gates;
    if (bank + 1 >= g->n_banks || !g->bank[bank].n) return;
    const int next = g->bank[bank + 1].route->rows;
    const bool same = next == op->rows || (next < ROWS_FIRST && op->rows < ROWS_FIRST);
    if (same || !x->e->model.has_chances) foresee(x, bank + 1, g->bank[bank].hidden, op->rows);
}

static void run_route(struct exec *x, const struct op *op)
{
    const struct route_params *p = &op->p.moe.route;
    const int n = set_rows(x, op);
    x->route_op = op;
    plan_route_layout(&x->ctl, x->e->buf[op->out[0]].base, x->plan->n_rows, p);
    x->route.n_rows = n;
    x->route.n_used = route_slots(p);
    x->route.n_of = x->ctl.n_of;
    if (!n) return;
    if (op->code == OP_CHOOSE) choose(x);
    else pool_run(x->e->pool, route_task, x, (n + ROUTE_ROWS - 1) / ROUTE_ROWS);
    if (x->e->approx && !x->part && op->code == OP_ROUTE)
        x->route.n_of = x->ctl.n_of = approx_routed(x->e, p, n, x->ctl.id, x->ctl.w);
    x->route.n_active = route_group(x->ctl.id, x->ctl.n_of, n, x->route.n_used, p->n_expert,
                                    x->ctl.count, x->ctl.expert, x->ctl.first, x->ctl.pair);
    x->route.w = x->ctl.w;
    x->route.gate = x->ctl.gate;
    x->route.up = x->ctl.up;
    x->route.down = x->ctl.down;
    /* Absent experts are asked for now: what comes before the experts runs meanwhile. */
    for (int a = 0; a < x->route.n_active; a++)
        x->ctl.ready[a] = x->ctl.first[a + 1] - x->ctl.first[a];
    const int bank = x->e->op_bank[op - x->e->model.op];
    x->route.expert = x->ctl.expert;
    x->route.first = x->ctl.first;
    x->route.pair = x->ctl.pair;
    x->route.n_pairs = route_pairs(p, x->plan->n_rows);
    x->route.n_slots = x->plan->n_rows * x->route.n_used;
    x->whole = x->route;
    struct devtier *t = &x->e->devtier;
    x->two_sides = devtier_on(t) && !x->e->watch.fn; /* watchers look into the CPU's scratch */
    const int32_t *wanted = x->ctl.expert; /* of the memory */
    const int *rows = x->ctl.ready;
    int n_wanted = x->route.n_active;
    for (int a = 0; a < n_wanted; a++) x->e->in_ram[wanted[a]] = true;
    if (x->two_sides) {
        devtier_route(t, bank, &x->whole, x->ctl.ready);
        wanted = t->rest_expert;
        rows = t->rest_count;
        n_wanted = t->n_rest;
    }
    resid_route(&x->e->resid, bank, wanted, rows, n_wanted);
    for (int i = 0; i < n_wanted; i++) {
        const enum resid_was was = resid_was(&x->e->resid, i);
        x->e->in_ram[wanted[i]] = was == RESID_IN_RAM || was == RESID_GUESSED;
    }
    forecast_routed(&x->e->forecast, x->e, bank, wanted, n_wanted);
    foresee_next(x, op, bank);
}

bool exec_cancelled(struct exec *x, const struct op *op, struct err *err)
{
    if (!atomic_exchange(&x->e->cancel, 0)) return false;
    err_set(err, ERR_CANCELLED, "interrupted in layer %d", op->layer);
    return true;
}

void exec_submit(struct exec *x, const struct op *op, int n)
{
    const struct dev_api *api = x->e->api;
    (void)api->wait(x->e->dev, api->submit(x->e->dev, op, n, &x->bind), 0, NULL);
}

void exec_append(struct exec *x, int n, int *n_run)
{
    struct plan_route *c = &x->ctl;
    for (int i = 0; i < n; i++) {
        const int a = c->ready[i], from = c->first[a], count = c->first[a + 1] - from;
        const int at = *n_run ? c->run_first[*n_run] : 0;
        c->run_expert[*n_run] = c->expert[a];
        c->run_first[*n_run] = at;
        memcpy(c->run_pair + at, c->pair + from, sizeof *c->pair * (size_t)count);
        c->run_first[++*n_run] = at + count;
    }
}

void exec_run_lists(struct exec *x)
{
    x->route.expert = x->ctl.run_expert;
    x->route.first = x->ctl.run_first;
    x->route.pair = x->ctl.run_pair;
}

void exec_submit_experts(struct exec *x, const struct op *op, int begin, int end, bool sum)
{
    x->route.begin = begin;
    x->route.end = end;
    x->route.sum = sum;
    exec_submit(x, op, 1);
}

static enum status run_experts(struct exec *x, const struct op *op, struct err *err)
{
    struct resid *r = &x->e->resid;
    struct plan_route *c = &x->ctl;
    const void **table[OP_IO] = {c->gate, c->up, c->down};
    const double waited = r->count.waited;
    x->bind.scratch = x->e->buf[op->in[2]].base;
    for (int n_run = 0; n_run < x->route.n_active;) {
        const int n = resid_take(r, c->ready, err), before = n_run;
        if (n < 0) return err->code;
        ASSERT(n > 0);
        for (int i = 0; i < n; i++)
            for (int k = 0; k < OP_IO; k++)
                table[k][before + i] = resid_expert(r, c->ready[i], k);
        if (n == x->route.n_active) {
            n_run = n;
        } else {
            exec_append(x, n, &n_run);
            exec_run_lists(x);
        }
        exec_submit_experts(x, op, before, n_run, n_run == x->route.n_active);
        resid_ran(r);
        if (exec_cancelled(x, op, err)) return err->code;
    }
    exec_observe(x, r->count.waited - waited);
    return OK;
}

/* ---- what streams ---- */

/* The piece's rows as weight w: a matrix of its own, whose outputs begin at row0. */
static void run_piece(struct exec *x, const struct op *op, int w, const struct resid_piece *p)
{
    struct dev_weight *dw = &x->e->weight[w], whole = *dw;
    struct dev_buf *out = &x->e->buf[op->out[0]], *in = &x->e->buf[op->in[0]];
    const struct dev_buf out_whole = *out, in_whole = *in;
    const struct stacked base = {.type = whole.type, .n_cols = whole.n_cols,
                                 .n_rows = p->n_rows, .base = p->data};
    struct op one = *op;
    if (op->code == OP_MATMUL) {
        dw->data = qtype_is_stacked(whole.type) ? (const void *)&base : p->data;
        dw->n_rows = p->n_rows;
        out->base += sizeof(float) * (size_t)p->row0;
        exec_submit(x, &one, 1);
    } else {
        /* Matrices of heads, one after another: the piece may begin and end inside of one. */
        const int per_head = whole.n_rows / op->p.heads.n_heads;
        const size_t row = act_bytes(qtype_info(whole.type)->act, whole.n_cols);
        one.p.heads.n_heads = 1;
        for (int at = p->row0, end = p->row0 + p->n_rows; at < end;) {
            const int h = at / per_head, to = (h + 1) * per_head < end ? (h + 1) * per_head : end;
            dw->data = (const char *)p->data +
                       (size_t)((at - p->row0) / TILE_ROWS) * tile_bytes(whole.type, whole.n_cols);
            dw->n_rows = to - at;
            in->base = in_whole.base + (size_t)h * row;
            out->base = out_whole.base +
                        sizeof(float) * (size_t)(h * op->p.heads.stride + at - h * per_head);
            exec_submit(x, &one, 1);
            at = to;
        }
    }
    *dw = whole;
    *out = out_whole;
    *in = in_whole;
}

static enum status stream_matmul(struct exec *x, const struct op *op, struct err *err)
{
    struct tessera_engine *e = x->e;
    const int *piece = &e->op_piece[(op - e->model.op) * OP_IO];
    if (!set_rows(x, op)) return OK;
    for (int k = 0; k < OP_IO && op->weight[k] >= 0; k++) {
        struct op one = *op;
        for (int i = 0; i < OP_IO; i++) one.weight[i] = one.out[i] = -1;
        one.weight[0] = op->weight[k];
        one.out[0] = op->out[k];
        if (e->weight[op->weight[k]].data) {
            exec_submit(x, &one, 1);
            continue;
        }
        struct resid_piece p = {.last = false};
        for (int at = piece[k]; !p.last; at++) {
            if (resid_piece(&e->resid, at, &p, err)) return err->code;
            run_piece(x, &one, op->weight[k], &p);
            if (exec_cancelled(x, op, err)) return err->code;
        }
    }
    return OK;
}

enum { EMBED_ROWS = 64, EMBED_TASK = 8 };

struct embed {
    struct exec *x;
    const struct weight *w;
    char *base;
    uint64_t stride;
    int n;
};

/* In place: the row as it is in the file lies where its floats will. */
static void embed_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct embed *j = arg;
    _Alignas(64) char raw[RESID_ROW_MAX];
    const size_t bytes = part_row_bytes(j->w);
    const int end = (task + 1) * EMBED_TASK < j->n ? (task + 1) * EMBED_TASK : j->n;
    for (int r = task * EMBED_TASK; r < end; r++) {
        char *row = j->base + j->stride * (uint64_t)r;
        memcpy(raw, row, bytes);
        codec_decode(j->w->type, raw, (float *)(void *)row, j->w->n_cols);
    }
}

static enum status stream_embed(struct exec *x, const struct op *op, struct err *err)
{
    struct tessera_engine *e = x->e;
    const struct dev_buf *out = &e->buf[op->out[0]];
    struct embed j = {.x = x, .w = &e->weights.at[op->weight[0]], .stride = out->stride};
    int32_t ids[EMBED_ROWS];
    for (int r = 0; r < x->n_rows; r += j.n) {
        j.n = x->n_rows - r < EMBED_ROWS ? x->n_rows - r : EMBED_ROWS;
        j.base = out->base + j.stride * (uint64_t)r;
        for (int i = 0; i < j.n; i++) ids[i] = x->row[r + i].id;
        if (resid_rows(&e->resid, op->weight[0], ids, j.n, j.base, j.stride, err))
            return err->code;
        pool_run(e->pool, embed_task, &j, (j.n + EMBED_TASK - 1) / EMBED_TASK);
    }
    return OK;
}

/* ---- parts of a pass ---- */

/* K and V of a part's rows wait for attention: what they lie in may be something else by then. */
static void keep_kv(struct exec *x, const struct op *op)
{
    const struct exec_part *p = x->part;
    size_t at = 0;
    for (int k = 0; k < 2; k++) {
        const struct dev_buf *b = &x->e->buf[op->in[k]];
        for (int r = 0; r < x->n_rows; r++, at += (size_t)b->width)
            memcpy(p->keep + at, dev_buf_row(b, r), sizeof(float) * (size_t)b->width);
    }
    x->put = op;
}

/* Rows that stand for the same place of a timeline: each puts its K and V there and looks at them, one
 * after the other. */
static void run_branches(struct exec *x, const struct op *op)
{
    struct tessera_engine *e = x->e;
    const struct op *const ops[2] = {x->put, op};
    const int n = x->n_rows, at[4] = {x->put->in[0], x->put->in[1], op->in[0], op->out[0]};
    struct dev_buf whole[4];
    for (int k = 0; k < 4; k++) whole[k] = e->buf[at[k]];
    const size_t dk = (size_t)whole[0].width, dv = (size_t)whole[1].width;
    e->set[ROWS_ALL].n = e->set[ROWS_OUT].n = 1;
    for (int r = 0; r < n; r++) {
        e->buf[at[0]].base = (char *)(x->part->keep + (size_t)r * dk);
        e->buf[at[1]].base = (char *)(x->part->keep + (size_t)n * dk + (size_t)r * dv);
        exec_submit(x, ops[0], 1);
        for (int k = 2; k < 4; k++)
            e->buf[at[k]].base = dev_buf_row(&whole[k], r);
        exec_submit(x, ops[1], 1);
        for (int k = 0; k < 4; k++) e->buf[at[k]] = whole[k];
    }
    e->set[ROWS_ALL].n = e->set[ROWS_OUT].n = n;
}

/* Whether matrices that are multiplied with a set's rows are read ahead. */
static void expect_pieces(struct exec *x, int set, bool on)
{
    const struct tessera_engine *e = x->e;
    if (e->resid.all_ram || e->resid.now.dense_home) return;
    for (int i = 0; i < e->model.n_op; i++)
        for (int k = 0; k < OP_IO && e->model.op[i].rows == set; k++)
            if ((e->model.op[i].code == OP_MATMUL || e->model.op[i].code == OP_HEAD_MATMUL) &&
                e->model.op[i].weight[k] >= 0 && e->op_piece[i * OP_IO + k] >= 0)
                resid_expect_piece(&x->e->resid, e->op_piece[i * OP_IO + k], on);
}

/* A set has rows: what its steps read is wanted. */
static void wake(struct exec *x, int set)
{
    expect_pieces(x, set, true);
    forecast_wake(&x->e->forecast, x->e, set);
}

/* ---- steps ---- */

/* Whether something that the op names is not in RAM: it streams, or is on its way. */
static bool is_missing(const struct exec *x, const struct op *op)
{
    for (int k = 0; k < OP_WEIGHTS; k++)
        if (op->weight[k] >= 0 && !x->e->weight[op->weight[k]].data) return true;
    return false;
}

bool exec_is_special(const struct exec *x, const struct op *op)
{
    switch (op->code) {
    case OP_ROUTE:
    case OP_CHOOSE:
    case OP_DEPTH:
    case OP_SPAN:
    case OP_SMOOTH:
    case OP_FORESEE:
    case OP_EXPERTS: return true;
    case OP_KV_PUT:
    case OP_ATTENTION: return x->part || is_missing(x, op);
    default: return is_missing(x, op);
    }
}

/* Waits for what is on its way home. */
static enum status bring(struct exec *x, const struct op *op, struct err *err)
{
    if (op->rows == ROWS_OUT && !set_rows(x, op)) return OK; /* nothing will be read */
    for (int k = 0; k < OP_WEIGHTS; k++) {
        const int w = op->weight[k];
        if (w < 0 || x->e->weight[w].data) continue;
        enum status s = resid_await(&x->e->resid, w, &x->e->weight[w].data, err);
        if (s) return s;
    }
    return OK;
}

enum status exec_special(struct exec *x, const struct op *op, struct err *err)
{
    if (is_missing(x, op) && bring(x, op, err)) return err->code;
    switch (op->code) {
    case OP_ROUTE:
    case OP_CHOOSE: run_route(x, op); return OK;
    case OP_DEPTH:
        depth_run(x->e, op, x->n_rows);
        if (op->p.depth.set && x->e->set[op->p.depth.set].n) wake(x, op->p.depth.set);
        return OK;
    case OP_FORESEE:
        foresee(x, x->e->op_bank[op - x->e->model.op], op->in[0], op->rows);
        return OK;
    case OP_SPAN:
    case OP_SMOOTH: chunk_run(x->e, op); return OK;
    case OP_KV_PUT:
    case OP_ATTENTION:
        if (!x->part) break;
        if (op->code == OP_KV_PUT) keep_kv(x, op);
        else run_branches(x, op);
        return OK;
    case OP_EXPERTS:
        if (!x->route.n_rows) return OK;
        return x->two_sides ? sides_experts(x, op, err) : run_experts(x, op, err);
    case OP_EMBED: if (is_missing(x, op)) return stream_embed(x, op, err); break;
    case OP_MATMUL:
    case OP_HEAD_MATMUL: if (is_missing(x, op)) return stream_matmul(x, op, err); break;
    default: break;
    }
    exec_submit(x, op, 1);
    return OK;
}

/* ---- timing, when it is switched on ---- */

/* What attention reads at least once: the keys and values that the last row of each session sees. */
static void attention_work(const struct exec *x, const struct op *op, struct profile_ran *r)
{
    const int dk = op->p.attn.dk, dv = op->p.attn.dv, stored = op->p.attn.latent ? 0 : dv;
    const uint64_t page = attn_head_bytes(x->bind.kv_type, dk, stored);
    const struct dev_row *row = x->row;
    const struct dev_rows *set = &x->e->set[op->rows];
    for (int i = 0; i < r->n_rows; i++) {
        const int at = dev_row_at(set, i), next = dev_row_at(set, i + 1 < r->n_rows ? i + 1 : i);
        const int32_t *pos = x->e->set[op->kv_rows].pos;
        uint64_t seen = (uint64_t)(pos ? pos[at] : row[at].pos) + 1;
        if (op->p.attn.sees)
            seen = (uint64_t)dev_last_seen(op->p.attn.sees, row[at].pos,
                                           x->bind.end[row[at].session]) + 1;
        if (op->p.attn.window > 0 && seen > (uint64_t)op->p.attn.window)
            seen = (uint64_t)op->p.attn.window;
        r->kv_macs += seen * (uint64_t)op->p.attn.n_q_heads * (uint64_t)(dk + dv);
        if (i + 1 == r->n_rows || row[next].session != row[at].session)
            r->kv_bytes += seen * page / KV_PAGE * (uint64_t)op->p.attn.n_kv_heads;
    }
}

/* Bytes of the levels above a stack's bases that an op's products read; of experts, the share of those
 * that are used of all that there are. */
static uint64_t level_bytes(const struct exec *x, const struct op *op)
{
    double sum = 0;
    for (int i = 0; i < OP_IO && op->code != OP_EMBED; i++) {
        const struct weight *w = op->weight[i] < 0 ? NULL : &x->e->weights.at[op->weight[i]];
        if (!w || !qtype_is_stacked(w->type)) continue;
        const double share = op->code == OP_EXPERTS ? (double)x->route.n_active / w->n_mats : 1;
        for (int m = 0; m < w->n_mats; m++) {
            const struct stacked *k = &x->e->resid.stack.mat[w->first_part + m];
            for (int l = 0; l <= k->depth; l++)
                sum += share * (double)stack_level_bytes(k->type, k->rank, k->n_cols, k->n_rows, l);
        }
    }
    return (uint64_t)sum;
}

static void profile_op(const struct exec *x, int i, double start)
{
    const struct op *op = &x->e->model.op[i];
    struct profile_ran r = {.n_rows = set_rows(x, op),
                            .n_active = x->route.n_active, .seconds = os_seconds() - start};
    if (!r.n_rows) return;
    if (op->code == OP_ATTENTION) attention_work(x, op, &r);
    r.level_bytes = level_bytes(x, op);
    profile_add(x->e->profile, &x->e->model, i, &r);
}

static enum status run_steps(struct exec *x, int from, int to, struct err *err)
{
    struct tessera_engine *e = x->e;
    const struct build *m = &e->model;
    const bool watched = e->watch.fn != NULL, one_by_one = watched || e->profile;
    const struct approx *a = x->part ? NULL : e->approx;
    for (int i = from; i < to;) {
        const struct op *op = &m->op[i];
        const int first = i, next = a ? approx_at(e, i) : i;
        if (next > i) { /* a forecaster has stood in */
            i = next;
            continue;
        }
        const double start = e->profile ? os_seconds() : 0;
        if (exec_cancelled(x, op, err)) return err->code;
        if (x->there) {
            enum status s = sides_next(x, &i, to, err);
            if (s) return s;
            if (e->profile) profile_op(x, first, start);
            continue;
        }
        if (watched) watch_op(e, op, set_rows(x, op));
        if (exec_is_special(x, op)) {
            if (exec_special(x, op, err)) return err->code;
            if (watched && op->code == OP_EXPERTS && x->route.n_rows)
                watch_experts(e, op, &x->route);
            i++;
        } else {
            /* Everything up to the next control point is one submission. */
            int n = 1;
            while (!one_by_one && i + n < to && !exec_is_special(x, &m->op[i + n]) &&
                   !(a && (a->begins[i + n] >= 0 || a->ends[i + n] >= 0))) n++;
            exec_submit(x, op, n);
            i += n;
        }
        if (e->profile) profile_op(x, first, start);
    }
    if (a) approx_end(e, to);
    return OK;
}

/* Rows row0 .. row0 + n - 1 of the step are the ones that run. */
static void take_piece(struct exec *x, int row0, int n, int n_out)
{
    struct tessera_engine *e = x->e;
    x->row0 = row0;
    x->n_rows = n;
    x->row = e->row + row0;
    x->serial = e->serials + row0;
    x->out0 = 0;
    int n_here = 0;
    for (int i = 0; i < n_out; i++) {
        if (e->out_row[i] < row0) x->out0++;
        else if (e->out_row[i] < row0 + n) e->piece_out[n_here++] = e->out_row[i] - row0;
    }
    e->set[ROWS_ALL].n = n;
    e->set[ROWS_OUT].n = n_here;
    e->set[ROWS_OUT].row = e->piece_out;
    x->bind.row = x->row;
    x->bind.n_rows = n;
    bind_buffers(x);
    if (x->there) devstep_piece(x->there, e, x->plan, true);
}

/* More rows than are computed at once: all of them through a layer before the next one, so that what
 * its experts need is read once.  What rows take from layer to layer lies in e->across. */
static enum status run_layers(struct exec *x, int n_rows, int n_out, struct err *err)
{
    const struct build *m = &x->e->model;
    const int most = x->e->opt.n_ubatch;
    x->in_pieces = true;
    for (int i = 0, to; i < m->n_op; i = to) {
        for (to = i + 1; to < m->n_op && m->op[to].layer == m->op[i].layer;) to++;
        for (int r = 0; r < n_rows; r += most) {
            take_piece(x, r, n_rows - r < most ? n_rows - r : most, n_out);
            resid_more(&x->e->resid, r + x->n_rows < n_rows);
            if (run_steps(x, i, to, err)) return err->code;
            if (x->there && !devstep_end(x->there, x->e)) return sides_lost(x, err);
        }
    }
    depth_bind(x->e, n_rows, n_out); /* the sets are the step's again */
    return OK;
}

static void bind_step(struct exec *x, int n_out)
{
    struct tessera_engine *e = x->e;
    bind_buffers(x);
    depth_bind(e, x->n_rows, n_out);
    x->bind = (struct dev_bind){
        .buf = e->buf, .weight = e->weight, .row = e->row, .set = e->set,
        .carry = e->carry, .n_inputs = e->n_inputs, .end = e->end,
        .n_rows = x->n_rows, .n_ctx = e->opt.n_ctx, .kv_offset = e->kv_offset,
        .kv_type = e->opt.kv == TESSERA_KV_Q8_0 ? KV_Q8_0 : KV_F16,
        .segment = e->segment, .segment_of = e->segment_of, .state_offset = e->state_offset,
        .n_sessions = e->state_bytes ? e->n_inputs : 0, .route = &x->route,
    };
}

/* After the step has begun: what is on its way may arrive until then. */
static void bind_weights(struct tessera_engine *e)
{
    for (int i = 0; i < e->weights.n; i++) e->weight[i].data = resid_home(&e->resid, i);
}

/* *observed: layers whose routes have been written down already, and that are now. */
static enum status run_step(struct tessera_engine *e, const struct plan *p, int n_rows, int n_out,
                            int *observed, struct err *err)
{
    struct exec x = {.e = e, .plan = p, .row = e->row, .serial = e->serials, .n_rows = n_rows,
                     .again = *observed};
    bind_step(&x, n_out);
    devtier_step(&e->devtier, n_rows);
    devstep_begin(&e->devstep, e, &x.bind, !e->watch.fn); /* watchers look into the host's buffers */
    if (e->devstep.on) x.there = &e->devstep;
    sides_expect(&x);
    for (int i = ROWS_FIRST; i < e->model.n_sets; i++) expect_pieces(&x, i, false);
    resid_block(&e->resid, e->block);
    enum status s = resid_step(&e->resid, n_rows, err);
    if (!s) {
        bind_weights(e);
        forecast_step(&e->forecast, e, n_rows);
        const bool pieces = n_rows > e->opt.n_ubatch;
        if (x.there && !pieces) devstep_piece(x.there, e, p, false);
        s = pieces ? run_layers(&x, n_rows, n_out, err)
                   : x.there && x.there->whole ? sides_whole(&x, err)
                                               : run_steps(&x, 0, e->model.n_op, err);
        if (!s && x.there && !pieces && !devstep_end(x.there, e)) s = sides_lost(&x, err);
        s = resid_step_end(&e->resid, s, err);
    }
    *observed = x.observed;
    if (s) return s;
    devstep_done(&e->devstep, e);
    forecast_done(&e->forecast, e);
    e->n_steps++;
    return OK;
}

/* A device that is lost in the middle of a step leaves no trace of it: the host begins again. */
enum status exec_run(struct tessera_engine *e, const struct plan *p, int n_rows, int n_out,
                     struct err *err)
{
    int observed = 0;
    enum status s = run_step(e, p, n_rows, n_out, &observed, err);
    if (s != ERR_DEVICE || !e->devstep.lost) return s;
    err_clear(err);
    return run_step(e, p, n_rows, n_out, &observed, err);
}

/* The row table of a part: n times the same token. */
static enum status bind_part(struct tessera_engine *e, const struct exec_part *p, struct err *err)
{
    tessera_session *s = p->session;
    if (!e->resid.all_ram)
        return err_set(err, ERR_BUDGET, "the model is not in memory as a whole any more: others need "
                       "it; use --mem");
    enum status st = session_unspill(s, err);
    if (!st) st = engine_commit(e, &s->line[0].kv, session_bytes(s, 0, s->n + 1), err);
    if (!st) st = engine_commit(e, &e->logits, (size_t)e->logits_stride * (size_t)p->n, err);
    if (st) return st;
    e->kv_base[0] = s->line[0].kv.base;
    e->kv_n[0] = s->n;
    e->stepped[0] = s;
    e->input[0] = (struct step_input){0, p->n};
    e->end[0] = s->n + 1;
    e->n_inputs = 1;
    e->n_out = p->n;
    for (int r = 0; r < p->n; r++) {
        e->row[r] = (struct dev_row){p->id, s->n, 0};
        e->serials[r] = s->serial;
        e->out_row[r] = r;
    }
    return OK;
}

static void copy_rows(const struct exec_part *p, const struct dev_buf *b, const float *in, float *out)
{
    const size_t bytes = sizeof(float) * (size_t)p->width;
    for (int r = 0; r < p->n; r++) {
        char *row = dev_buf_row(b, r);
        if (in) memcpy(row, in + (size_t)r * (size_t)p->width, bytes);
        else memcpy(out + (size_t)r * (size_t)p->width, row, bytes);
    }
}

enum status exec_part(struct tessera_engine *e, const struct exec_part *p, struct err *err)
{
    enum status s = bind_part(e, p, err);
    if (s) return s;
    struct exec x = {.e = e, .plan = plan_for(e, p->n), .row = e->row, .serial = e->serials,
                     .n_rows = p->n, .part = p};
    bind_step(&x, p->n);
    devstep_begin(&e->devstep, e, &x.bind, false);
    resid_block(&e->resid, 0);
    s = resid_step(&e->resid, p->n, err);
    if (!s) bind_weights(e);
    if (!s) s = run_steps(&x, 0, p->head, err);
    if (!s && p->in_buf >= 0) copy_rows(p, &e->buf[p->in_buf], p->in, NULL);
    if (!s) s = run_steps(&x, p->from, p->to, err);
    if (!s && p->out_buf >= 0) copy_rows(p, &e->buf[p->out_buf], NULL, p->out);
    s = resid_step_end(&e->resid, s, err);
    e->n_inputs = 0; /* there are no logits of a step */
    return s;
}
