/* See watch.h.
 *
 * DESIGN.  Products read activations in the format of their weights, and the floats those were made
 * from may be gone by then.  So a PREPARE step's input is copied, into a slot that is free again
 * when the prepared buffer is dead; slots are assigned once, when watching begins.  The input of
 * down is inside the experts' macro-step: the device leaves it in its scratch (dev.h). */
#include "moe/run/watch.h"

#include <stdlib.h>
#include <string.h>

#include "moe/run/engine_int.h"

static bool is_prepare(const struct op *op)
{
    return op->code == OP_PREPARE || op->code == OP_HEAD_PREPARE;
}

/* Floats of a row of a PREPARE step's input. */
static uint64_t floats_of(const struct tessera_engine *e, const struct op *op)
{
    if (op->code == OP_PREPARE) return (uint64_t)e->model.buf[op->in[0]].width;
    return (uint64_t)op->p.prepare.n_heads * (uint64_t)op->p.prepare.dim;
}

/* The first slot that no buffer holds whose content is still needed at op i. */
static int free_slot(const struct tessera_engine *e, const struct watch *w, int i)
{
    for (int s = 0;; s++) {
        bool taken = false;
        for (int b = 0; b < e->model.n_buf; b++)
            taken |= w->slot[b] == s && e->model.buf[b].last >= i;
        if (!taken) return s;
    }
}

/* Gives every prepared buffer a slot; the number of slots. */
static int assign_slots(const struct tessera_engine *e, struct watch *w)
{
    const struct build *m = &e->model;
    int n = 0;
    for (int b = 0; b < m->n_buf; b++) w->slot[b] = -1;
    for (int i = 0; i < m->n_op; i++) {
        if (!is_prepare(&m->op[i])) continue;
        const int s = free_slot(e, w, i);
        w->slot[m->op[i].out[0]] = s;
        n = s + 1 > n ? s + 1 : n;
        if (floats_of(e, &m->op[i]) > w->stride) w->stride = floats_of(e, &m->op[i]);
    }
    return n;
}

enum status tessera_watch(tessera_engine *e, tessera_watch_fn *fn, void *arg, struct err *err)
{
    struct watch *w = &e->watch;
    const size_t ub = (size_t)e->opt.n_ubatch;
    watch_end(w);
    if (!fn) return OK;
    w->slot = malloc(sizeof *w->slot * (size_t)e->model.n_buf);
    w->row = malloc(sizeof *w->row * ub);
    if (!w->slot || !w->row) {
        watch_end(w);
        return err_set(err, ERR_MEMORY, "no memory to watch");
    }
    const size_t slots = (size_t)assign_slots(e, w);
    const size_t bytes = sizeof(float) * slots * ub * (size_t)w->stride;
    enum status s = bytes ? region_reserve(&w->copies, &e->ledger, MEM_ACT, bytes, err) : OK;
    if (!s && bytes) s = region_commit(&w->copies, bytes, err);
    if (s) {
        watch_end(w);
        return s;
    }
    w->fn = fn;
    w->arg = arg;
    return OK;
}

void watch_end(struct watch *w)
{
    region_release(&w->copies);
    free(w->slot);
    free(w->row);
    memset(w, 0, sizeof *w);
}

/* Row r of the copy behind a prepared buffer, or of the buffer where it is floats itself. */
static float *row_of(const struct tessera_engine *e, int buf, int r)
{
    const struct watch *w = &e->watch;
    if (w->slot[buf] < 0)
        return dev_buf_floats(&e->buf[buf], r);
    const uint64_t at = (uint64_t)w->slot[buf] * (uint64_t)e->opt.n_ubatch + (uint64_t)r;
    return (float *)w->copies.base + at * w->stride;
}

static void copy_rows(struct tessera_engine *e, const struct op *op, int n_rows)
{
    const struct dev_buf *in = &e->buf[op->in[0]];
    const int n_heads = op->code == OP_PREPARE ? 1 : op->p.prepare.n_heads;
    const size_t n = (size_t)floats_of(e, op) / (size_t)n_heads;
    for (int r = 0; r < n_rows; r++) {
        const float *from = dev_buf_floats(in, r);
        float *to = row_of(e, op->out[0], r);
        for (int h = 0; h < n_heads; h++)
            memcpy(to + (size_t)h * n,
                   from + (op->code == OP_PREPARE ? 0 : h * op->p.prepare.stride), sizeof *to * n);
    }
}

/* Rows w->row[n_rows] meet matrix m of a weight.  Views of one tensor's other rows meet the same
 * activations: the first stands for them. */
static void call(struct tessera_engine *e, int weight, int m, int n_mats, int n_rows)
{
    const struct weight *w = &e->weights.at[weight];
    const bool split = w->n_src > 1;
    const struct gguf_str name = w->src[split ? m : 0]->name;
    char tensor[256];
    if (w->row0 || !n_rows) return;
    (void)snprintf(tensor, sizeof tensor, "%.*s", (int)(name.n < 255 ? name.n : 255), name.s);
    e->watch.fn(e->watch.arg, &(struct tessera_watched){
        .tensor = tensor, .matrix = split ? 0 : m, .n_matrices = split ? 1 : n_mats,
        .n_cols = w->n_cols, .n_rows = n_rows, .row = e->watch.row});
}

void watch_op(struct tessera_engine *e, const struct op *op, int n_rows)
{
    if (is_prepare(op)) copy_rows(e, op, n_rows);
    if (op->code == OP_RMS_NORM && op->weight[0] >= 0) {
        for (int r = 0; r < n_rows; r++) e->watch.row[r] = row_of(e, op->in[0], r);
        call(e, op->weight[0], 0, 0, n_rows);
    }
    if (op->code == OP_MATMUL) {
        for (int r = 0; r < n_rows; r++) e->watch.row[r] = row_of(e, op->in[0], r);
        for (int k = 0; k < OP_IO && op->weight[k] >= 0; k++)
            call(e, op->weight[k], 0, 1, n_rows);
    }
    if (op->code == OP_HEAD_MATMUL) {
        const int n = op->p.heads.n_heads, dim = e->weights.at[op->weight[0]].n_cols;
        for (int h = 0; h < n; h++) {
            for (int r = 0; r < n_rows; r++)
                e->watch.row[r] = row_of(e, op->in[0], r) + h * dim;
            call(e, op->weight[0], h, n, n_rows);
        }
    }
}

void watch_experts(struct tessera_engine *e, const struct op *op, const struct dev_route *route)
{
    const struct weight *gate = &e->weights.at[op->weight[0]];
    const char *hidden = e->buf[op->in[2]].base;
    const uint64_t stride = dev_experts_hidden_stride(gate->n_rows);
    for (int a = 0; a < route->n_active; a++) {
        const int first = route->first[a], n = route->first[a + 1] - first;
        for (int i = 0; i < n; i++)
            e->watch.row[i] = row_of(e, op->in[0], route->pair[first + i] / route->n_used);
        call(e, op->weight[0], route->expert[a], gate->n_mats, n);
        call(e, op->weight[1], route->expert[a], gate->n_mats, n);
        for (int i = 0; i < n; i++)
            e->watch.row[i] = (const float *)(const void *)(hidden +
                                                            stride * (uint64_t)(first + i));
        call(e, op->weight[2], route->expert[a], gate->n_mats, n);
    }
}
