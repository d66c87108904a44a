/* The ops of recurrent layers on a thread pool: which rows, channels, heads and columns a task
 * takes, which never changes a result.  Owns nothing, allocates nothing.
 *
 * DESIGN.  The rows of a session are cut into segments at the positions where its state is to be
 * kept (dev_segment): the state at the end of one is the one before the next.  A task takes some
 * channels, or some columns of one head, through all segments of one session, in order; sessions,
 * heads and columns are independent. */
#include <math.h>

#include "moe/base/thread.h"
#include "moe/compute/dev.h"
#include "moe/compute/recur.h"

enum { ROWS = 8, CHANNELS = 256, COLUMNS = 64 };

struct recur_job {
    const struct recur_kernels *k;
    const struct op *op;
    const struct dev_bind *b;
    int n_rows, n_pieces; /* pieces of a session: channel blocks, or heads x column blocks */
};

static int ceil_div(int a, int b) { return (a + b - 1) / b; }
static int least(int a, int b) { return a < b ? a : b; }

static float *frow(const struct dev_bind *b, int buf, int row)
{
    return dev_buf_floats(&b->buf[buf], row);
}

static size_t stride_of(const struct dev_bind *b, int buf)
{
    return b->buf[buf].stride / sizeof(float);
}

/* ---- row by row ---- */

static float sigmoid(double x) { return (float)(1.0 / (1.0 + exp(-x))); }

/* exp(a * softplus(x)), a < 0; like the rotary angles in double and once per step and head. */
static float decay(double a, double x) { return (float)exp(a * (x > 20 ? x : log1p(exp(x)))); }

static void row_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct recur_job *j = arg;
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    for (int r = task * ROWS; r < least(j->n_rows, (task + 1) * ROWS); r++) {
        float *x = frow(b, op->out[0], r);
        if (op->code == OP_L2_NORM) {
            for (int h = 0; h < op->p.head.n_heads; h++)
                j->k->l2_norm(op->p.head.dim, op->p.head.eps, x + h * op->p.head.dim);
            continue;
        }
        const float *dt = b->weight[op->weight[0]].data, *a = b->weight[op->weight[1]].data;
        float *beta = frow(b, op->out[1], r);
        for (int h = 0; h < b->buf[op->out[0]].width; h++) {
            x[h] = decay((double)a[h], (double)x[h] + (double)dt[h]);
            beta[h] = sigmoid((double)beta[h]);
        }
    }
}

/* ---- along a session's timeline ---- */

static void conv_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct recur_job *j = arg;
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    const int s = task / j->n_pieces, c0 = task % j->n_pieces * CHANNELS;
    const int width = b->buf[op->out[0]].width;
    const uint64_t at = b->state_offset[op->kv_slot];
    for (int i = b->segment_of[s]; i < b->segment_of[s + 1]; i++) {
        const struct dev_segment *g = &b->segment[i];
        j->k->conv(&(struct recur_conv){
            .n = least(CHANNELS, width - c0), .taps = op->p.conv.taps, .silu = op->p.conv.silu,
            .w = (const float *)b->weight[op->weight[0]].data + (size_t)c0 *
                                                                    (size_t)op->p.conv.taps,
            .from = (const float *)(const void *)(g->from + at) + c0,
            .to = (float *)(void *)(g->to + at) + c0, .ld = (size_t)width,
            .x = frow(b, op->out[0], g->first) + c0, .stride = stride_of(b, op->out[0]),
            .n_rows = g->n,
        });
    }
}

static void delta_task(void *arg, int task, int worker)
{
    (void)worker;
    const struct recur_job *j = arg;
    const struct op *op = j->op;
    const struct dev_bind *b = j->b;
    const int dk = op->p.delta.dk, dv = op->p.delta.dv, n_k = op->p.delta.n_k;
    const int n_v = op->p.delta.n_v, blocks = ceil_div(dv, COLUMNS);
    const int s = task / j->n_pieces, h = task % j->n_pieces / blocks;
    const int c0 = task % blocks * COLUMNS;
    const int hk = op->p.delta.tiled ? h % n_k : h / (n_v / n_k);
    const uint64_t at = b->state_offset[op->kv_slot] + op->p.delta.at +
                        sizeof(float) * ((uint64_t)h * (uint64_t)dk * (uint64_t)dv + (uint64_t)c0);
    for (int i = b->segment_of[s]; i < b->segment_of[s + 1]; i++) {
        const struct dev_segment *g = &b->segment[i];
        const float *x = frow(b, op->in[0], g->first);
        j->k->delta(&(struct recur_delta){
            .dk = dk, .n = least(COLUMNS, dv - c0), .n_rows = g->n,
            .q = x + hk * dk, .k = x + (n_k + hk) * dk, .v = x + 2 * n_k * dk + h * dv + c0,
            .stride = stride_of(b, op->in[0]),
            .decay = frow(b, op->in[1], g->first) + h, .beta = frow(b, op->in[2], g->first) + h,
            .stride_gate = stride_of(b, op->in[1]),
            .out = frow(b, op->out[0], g->first) + h * dv + c0,
            .stride_out = stride_of(b, op->out[0]),
            .from = (const float *)(const void *)(g->from + at),
            .to = (float *)(void *)(g->to + at), .ld = (size_t)dv,
            .scale = 1.0f / sqrtf((float)dk),
        });
    }
}

void recur_run(struct pool *pool, const struct recur_kernels *k, const struct op *op,
               const struct dev_bind *b)
{
    struct recur_job j = {.k = k, .op = op, .b = b};
    j.n_rows = b->set[op->rows].n;
    if (op->code == OP_CONV) {
        j.n_pieces = ceil_div(b->buf[op->out[0]].width, CHANNELS);
        pool_run(pool, conv_task, &j, b->n_sessions * j.n_pieces);
    } else if (op->code == OP_DELTA) {
        j.n_pieces = op->p.delta.n_v * ceil_div(op->p.delta.dv, COLUMNS);
        pool_run(pool, delta_task, &j, b->n_sessions * j.n_pieces);
    } else {
        pool_run(pool, row_task, &j, ceil_div(j.n_rows, ROWS));
    }
}
