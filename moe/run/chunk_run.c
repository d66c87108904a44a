/* The ops between two rates of rows (routing/chunk.h): each walks along the timelines of the step's
 * sessions and keeps a vector in their states (state.c) from one step to the next.  One thread: a row
 * costs a few passes over one vector.  Executor thread only; allocates nothing. */
#include "moe/run/chunk_run.h"

#include <string.h>

#include "routing/chunk.h"

static float *row(const struct tessera_engine *e, int buf, int r)
{
    return dev_buf_floats(&e->buf[buf], r);
}

/* A walk over the rows of an op's set, segment by segment. */
struct walk {
    struct tessera_engine *e;
    const struct op *op;
    int n;                /* floats of the state */
    const float *before;  /* the state: what the segment begins with, then what the rows make of it */
    float *state;         /* what it ends with */
};

typedef void walk_fun(struct walk *w, int r, int at);

static void walk(struct tessera_engine *e, const struct op *op, walk_fun *fun)
{
    struct walk w = {.e = e, .op = op, .n = e->model.slot[op->kv_slot].dim};
    const uint64_t off = e->state_offset[op->kv_slot];
    const size_t bytes = sizeof(float) * (size_t)w.n;
    for (int i = 0; i < e->segment_of[e->n_inputs]; i++) {
        const struct dev_segment *g = &e->segment[i];
        w.state = (float *)(void *)(g->to + off);
        if (g->from != g->to) memcpy(w.state, g->from + off, bytes);
        w.before = w.state;
        for (int at = g->first; at < g->first + g->n; at++) {
            const int r = dev_row_in(&e->set[op->rows], at);
            if (r >= 0) fun(&w, r, at);
        }
        if (w.before != w.state) memcpy(w.state, w.before, bytes);
    }
}

/* Whether row `at` is the first one on its timeline of the set. */
static bool is_first(const struct tessera_engine *e, int set, int at)
{
    return (e->set[set].pos ? e->set[set].pos[at] : e->row[at].pos) == 0;
}

static void boundary(struct walk *w, int r, int at)
{
    struct tessera_engine *e = w->e;
    const struct op *op = w->op;
    const float p = is_first(e, op->rows, at) ? 1
                                              : chunk_chance(w->n, row(e, op->in[0], r), w->before);
    w->before = row(e, op->in[1], r);
    row(e, op->out[0], r)[0] = p;
    e->pass[r] = p >= op->p.depth.at;
    if (op->rows == ROWS_ALL) e->stepped[e->row[at].session]->chance[e->row[at].pos] = p;
}

/* A row in the set ends its span. */
static void span(struct walk *w, int r, int at)
{
    struct tessera_engine *e = w->e;
    const float *x = row(e, w->op->in[0], r);
    for (int i = 0; i < w->n; i++) w->state[i] += x[i];
    memcpy(row(e, w->op->out[0], r), w->state, sizeof(float) * (size_t)w->n);
    if (e->set[w->op->p.span.set].where[at] >= 0) memset(w->state, 0, sizeof(float) * (size_t)w->n);
}

static void smooth(struct walk *w, int r, int at)
{
    struct tessera_engine *e = w->e;
    const struct op *op = w->op;
    const int c = e->set[e->buf[op->in[0]].rows].where[at];
    if (c >= 0)
        chunk_smooth(w->n, row(e, op->in[1], r)[0], op->p.smooth.margin, row(e, op->in[0], c),
                     w->state);
    memcpy(row(e, op->out[0], r), w->state, sizeof(float) * (size_t)w->n);
}

void chunk_boundaries(struct tessera_engine *e, const struct op *op) { walk(e, op, boundary); }

void chunk_run(struct tessera_engine *e, const struct op *op)
{
    walk(e, op, op->code == OP_SPAN ? span : smooth);
}
