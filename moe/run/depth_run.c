/* Row sets that depend on data: who goes deeper, where each row is on its set's timeline, and what
 * came of it.  Executor thread only; allocates nothing.
 *
 * DESIGN.  Rows of all sessions in a step that are in recursion r are one row set, so the block's
 * weights are read once for each recursion that anybody is in, whatever the number of sessions.
 * The paper's queue (continuous depth-wise batching) also puts a new token's first pass together
 * with another's second: it reads the block as often as the mean token is deep, not the deepest of
 * a step, but what stands around the block more often.  For a single session both are the same.
 * With the published 360M shape it would save 3 to 14 % of the reads of 2 to 16 sessions
 * (bench/saved.c --sessions), which was not found worth its price: sessions whose last token is
 * half computed between two steps, in going back, in saving, and in the promise that a step gives
 * every session its logits. */
#include "moe/run/depth_run.h"

#include <string.h>

#include "moe/run/chunk_run.h"
#include "routing/choice.h"
#include "routing/depth.h"

/* The row of a buffer of any set that belongs to row `at` of the step. */
static float *row_for(const struct tessera_engine *e, int buf, int at)
{
    const struct dev_buf *f = &e->buf[buf];
    return dev_buf_floats(f, dev_row_in(&e->set[f->rows], at));
}

/* What a router decides for one row: fills out and says if it goes on. */
static bool decide(const struct tessera_engine *e, const struct op *op,
                    const struct elem_kernels *el, int at)
{
    const struct depth_params *p = &op->p.depth;
    const float *logit = row_for(e, op->in[0], at);
    float *out = op->out[0] < 0 ? NULL : row_for(e, op->out[0], at);
    switch (p->rule) {
    case DEPTH_SCORE:
        out[0] = depth_score(p->score, el, logit[0]);
        if (op->in[1] < 0) return out[0] >= p->at;
        return depth_score(p->score, el, row_for(e, op->in[1], at)[0]) >= p->at;
    case DEPTH_CHOOSE:
        depth_choose(p, el, op->weight[0] < 0 ? NULL : e->weight[op->weight[0]].data, logit, out);
        return true;
    case DEPTH_REACH: return logit[0] >= (float)p->step;
    case DEPTH_EXIT:
        depth_exit(p, el, logit[0], op->in[1] < 0 ? NULL : row_for(e, op->in[1], at), out);
        return out[1] < p->at;
    case DEPTH_BOUNDARY: break; /* chunk_run.c's */
    }
    return false;
}

/* The same, where an oracle has not decided already. */
static bool one_row(const struct tessera_engine *e, const struct op *op,
                    const struct elem_kernels *el, int at)
{
    const struct depth_params *p = &op->p.depth;
    const bool on = decide(e, op, el, at);
    if (e->forced_depth < 0) return on;
    if (p->rule == DEPTH_CHOOSE)
        depth_choose_given(p, e->forced_depth, row_for(e, op->out[0], at));
    return p->rule == DEPTH_EXIT ? e->forced_depth > p->step : e->forced_depth >= p->step;
}

/* Of each session's rows in the step the best ones, among those that are in the set at hand. */
static void keep_best(struct tessera_engine *e, const struct op *op, const struct dev_rows *from)
{
    for (int r = 0, end; r < from->n; r = end) {
        const int session = e->row[dev_row_at(from, r)].session;
        for (end = r; end < from->n; end++) {
            const int at = dev_row_at(from, end);
            if (e->row[at].session != session) break;
            e->logit[end] = row_for(e, op->in[0], at)[0];
        }
        const int n = end - r, k = depth_capacity(op->p.depth.share, e->input[session].n);
        choice_take(e->logit + r, n, k < n ? k : n, e->pass + r);
    }
}

/* The rows of `from` that pass become set s, each with its place on its session's timeline. */
static void fill_set(struct tessera_engine *e, const struct dev_rows *from, int s, int n_rows)
{
    struct set_rows *m = &e->rows_of[s];
    const int32_t *before = m->line < 0 ? NULL : e->kv_n + (size_t)m->line * (size_t)e->opt.n_batch;
    int n = 0, session = -1;
    int32_t pos = 0;
    for (int i = 0; i < n_rows; i++) m->where[i] = -1;
    for (int r = 0; r < from->n; r++) {
        const int at = dev_row_at(from, r);
        if (!e->pass[r]) continue;
        if (before && e->row[at].session != session) {
            session = e->row[at].session;
            pos = before[session];
        }
        m->pos[at] = pos++;
        m->where[at] = n;
        m->row[n++] = at;
    }
    e->set[s].n = n;
}

/* KV_CARRY asks for the depths of this step's rows, too. */
static void tell_depths(struct tessera_engine *e, const struct depth_params *p,
                        const struct dev_rows *from)
{
    const int stay = p->rule == DEPTH_EXIT ? p->step : p->step - 1;
    for (int r = 0; r < from->n; r++) {
        const struct dev_row *row = &e->row[dev_row_at(from, r)];
        e->stepped[row->session]->depth[row->pos] = (unsigned char)(stay + (e->pass[r] ? 1 : 0));
    }
}

void depth_run(struct tessera_engine *e, const struct op *op, int n_rows)
{
    const struct depth_params *p = &op->p.depth;
    const struct dev_rows *from = &e->set[op->rows];
    const struct elem_kernels *el = elem_kernels(e->tier);
    if (p->rule == DEPTH_BOUNDARY) chunk_boundaries(e, op);
    for (int r = 0; r < from->n && p->rule != DEPTH_BOUNDARY; r++) {
        const int at = dev_row_at(from, r);
        e->pass[r] = one_row(e, op, el, at);
    }
    if (p->share > 0) keep_best(e, op, from);
    if (p->set) tell_depths(e, p, from);
    if (p->set) fill_set(e, from, p->set, n_rows);
}

void depth_bind(struct tessera_engine *e, int n_rows, int n_out)
{
    for (int i = 0; i < e->n_inputs; i++)
        e->carry[i] = (struct dev_carry){
            .depth = e->stepped[i]->depth, .from = e->stepped[i]->carried,
            .end = e->end[i],
        };
    const size_t ub = (size_t)e->opt.n_batch;
    for (int s = 0; s < e->model.n_sets; s++) {
        const struct set_rows *m = &e->rows_of[s];
        e->set[s] = (struct dev_rows){.row = m->row, .where = m->where, .pos = m->pos};
        if (m->line < 0) continue;
        e->set[s].kv_base = e->kv_base + (size_t)m->line * ub;
        e->set[s].kv_page_bytes = e->line[m->line].page_bytes;
    }
    e->set[ROWS_ALL].n = n_rows;
    e->set[ROWS_OUT].n = n_out;
    e->set[ROWS_OUT].row = e->out_row;
}

/* Depth of row `at` of the step that has run. */
static int depth_of(const struct tessera_engine *e, int at)
{
    int d = e->model.depth_first;
    for (int s = ROWS_FIRST; s < e->model.n_sets; s++) d += e->set[s].where[at] >= 0;
    return d;
}

static void count_work(struct tessera_engine *e, int n_rows)
{
    struct tessera_depth *d = &e->depth;
    for (int s = 0; s < e->model.n_sets; s++) {
        const struct set_rows *m = &e->rows_of[s];
        const uint64_t n = (uint64_t)e->set[s].n;
        if (n) d->bytes += m->weight_bytes;
        else if (s >= ROWS_FIRST) d->bytes_saved += m->weight_bytes;
        d->macs += n * m->macs;
        if (s >= ROWS_FIRST) d->macs_saved += ((uint64_t)n_rows - n) * m->macs;
    }
}

void depth_commit(struct tessera_engine *e, int n_rows)
{
    struct tessera_session *const *session = e->stepped;
    for (int s = ROWS_FIRST; s < e->model.n_sets; s++) {
        const int line = e->rows_of[s].line, carry = e->rows_of[s].carry;
        for (int r = 0; carry && r < e->set[s].n; r++) {
            const int i = e->row[e->set[s].row[r]].session;
            session[i]->carried[carry] = e->carry[i].end;
        }
        for (int r = 0; line >= 0 && r < e->set[s].n; r++) {
            const struct dev_row *row = &e->row[e->set[s].row[r]];
            struct session_line *l = &session[row->session]->line[line];
            l->pos[l->n++] = row->pos;
        }
    }
    if (!e->model.n_depth) return;
    for (int at = 0; at < n_rows; at++) {
        const int d = depth_of(e, at);
        session[e->row[at].session]->depth[e->row[at].pos] = (unsigned char)d;
        e->depth.rows_at[d]++;
    }
    e->depth.rows += (uint64_t)n_rows;
    count_work(e, n_rows);
}
