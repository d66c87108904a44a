/* See branch.h.
 *
 * DESIGN.  A cut between two ops is clean when one buffer alone is written before it, changed after
 * the head (embedding, rotary tables) and read behind it: the hidden state.  Cuts are looked for after
 * additions into it and between layers, so no architecture has to say anything.  A run computes the
 * head, which depends on token and position only, puts the caller's rows where the hidden state lies,
 * and runs the part's ops. */
#include "moe/run/branch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/run/engine_int.h"
#include "moe/run/exec_part.h"

/* ---- the parts ---- */

/* Where a buffer is written and read; -1 = nowhere. */
struct span {
    int first_write, last_write, last_read;
};

/* Ops that change what is in their output name it as an output alone. */
static bool in_place(enum op_code code)
{
    return code == OP_ADD || code == OP_ADD_BIAS || code == OP_SCALE || code == OP_GATE ||
           code == OP_MUL || code == OP_SOFTCAP || code == OP_SCATTER || code == OP_FILL;
}

static struct span *spans_of(const struct build *m)
{
    struct span *s = malloc(sizeof *s * (size_t)m->n_buf);
    for (int b = 0; s && b < m->n_buf; b++) s[b] = (struct span){-1, -1, -1};
    for (int i = 0; s && i < m->n_op; i++) {
        const struct op *op = &m->op[i];
        for (int k = 0; k < OP_IO; k++) {
            if (op->in[k] >= 0) s[op->in[k]].last_read = i;
            if (op->out[k] < 0) continue;
            struct span *b = &s[op->out[k]];
            if (b->first_write < 0) b->first_write = i;
            b->last_write = i;
            if (in_place(op->code)) b->last_read = i;
        }
    }
    return s;
}

/* The one buffer that crosses the cut before op `at`; -1 = there are several, or none. */
static int crosses(const struct build *m, const struct span *s, int head, int at)
{
    int found = -1;
    for (int b = 1; b < m->n_buf; b++) {
        if (s[b].first_write < 0 || s[b].first_write >= at || s[b].last_write < head ||
            s[b].last_read < at) continue;
        if (found >= 0) return -1;
        found = b;
    }
    return found;
}

static bool is_cut(const struct build *m, const struct span *s, int head, int i)
{
    return m->op[i - 1].layer != m->op[i].layer ||
           (m->op[i - 1].code == OP_ADD && crosses(m, s, head, i) == m->op[i - 1].out[0]);
}

static enum status no_parts(const struct tessera_engine *e, const char *why, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "%s: %s; such a pass cannot be taken apart", e->arch->name,
                   why);
}

/* Says what ops from .. to - 1 are. */
static enum status describe(const struct tessera_engine *e, struct branch_part *p, struct err *err)
{
    const struct build *m = &e->model;
    bool attends = false, feeds = false;
    p->layer = m->op[p->from].layer;
    for (int i = p->from; i < p->to; i++) {
        const struct op *op = &m->op[i];
        if (op->code == OP_ATTENTION) {
            if (op->p.attn.sees != SEES_BEFORE)
                return no_parts(e, "tokens see what follows them", err);
            bool own = false;
            for (int k = p->from; k < i; k++)
                own = own || (m->op[k].code == OP_KV_PUT && m->op[k].kv_slot == op->kv_slot);
            if (!own) return no_parts(e, "layers look at each other's K and V", err);
            attends = true;
        }
        if (op->code == OP_CHOOSE) return no_parts(e, "experts choose among all rows of a step", err);
        if (op->code == OP_ROUTE) {
            p->n_expert = op->p.moe.route.n_expert;
            p->n_used = op->p.moe.route.n_used;
        }
        feeds = feeds || op->code == OP_EXPERTS || op->code == OP_GLU;
    }
    p->kind = p->layer < 0 ? BRANCH_FIXED : attends && feeds ? BRANCH_LAYER
            : attends ? BRANCH_ATTENTION : BRANCH_FEED_FORWARD;
    return OK;
}

/* Does a part read what the head has left, beside the hidden state? */
static int needs_head(const struct build *m, const struct span *s, int head,
                      const struct branch_part *p)
{
    for (int i = p->from; i < p->to; i++)
        for (int k = 0; k < OP_IO; k++) {
            const int b = m->op[i].in[k];
            if (b >= 0 && b != p->in && s[b].first_write >= 0 && s[b].first_write < head) return head;
        }
    return 0;
}

static enum status find_parts(struct branches *b, const struct span *spans, struct err *err)
{
    const struct tessera_engine *e = b->e;
    const struct build *m = &e->model;
    int end = m->n_op;
    while (b->head < m->n_op && m->op[b->head].layer < 0) b->head++;
    while (end > b->head && m->op[end - 1].layer < 0) end--;
    for (int from = b->head, to; from < end; from = to) {
        struct branch_part *p = &b->part[b->n_parts++];
        for (to = from + 1; to < end && !is_cut(m, spans, b->head, to);) to++;
        *p = (struct branch_part){.from = from, .to = to, .in = crosses(m, spans, b->head, from),
                                  .out = crosses(m, spans, b->head, to)};
        if (from == b->head) /* nothing has changed it yet */
            for (int i = 0; i < from; i++)
                if (m->op[i].code == OP_EMBED && p->in < 0) p->in = m->op[i].out[0];
        if (p->in < 0 || p->out < 0)
            return no_parts(e, "its layers hand on more than a hidden state", err);
        p->head = needs_head(m, spans, b->head, p);
        if (describe(e, p, err)) return err->code;
    }
    if (!b->n_parts) return no_parts(e, "it has no layers", err);
    b->end = (struct branch_part){.kind = BRANCH_FIXED, .layer = -1, .from = end, .to = m->n_op,
                                  .in = b->part[b->n_parts - 1].out, .out = -1};
    b->end.head = needs_head(m, spans, b->head, &b->end);
    return OK;
}

/* Fills part, n_parts, head and end. */
static enum status open_parts(struct branches *b, struct err *err)
{
    const struct tessera_engine *e = b->e;
    if (e->model.n_sets > ROWS_FIRST) return no_parts(e, "not all rows go through its layers", err);
    if (e->state_bytes) return no_parts(e, "it has recurrent layers", err);
    struct span *spans = spans_of(&e->model);
    b->part = calloc((size_t)e->model.n_op + 1, sizeof *b->part);
    enum status s = spans && b->part ? find_parts(b, spans, err)
                                     : err_set(err, ERR_MEMORY, "no memory for the parts of a model");
    free(spans);
    return s;
}

enum status branches_parts(tessera_engine *e, struct branch_part **part, int *n, struct err *err)
{
    struct branches b = {.e = e};
    enum status s = open_parts(&b, err);
    if (s) free(b.part);
    *part = s ? NULL : b.part;
    *n = b.n_parts;
    return s;
}

static enum status not_whole(struct err *err)
{
    return err_set(err, ERR_BUDGET, "an oracle needs the whole model in memory: use a larger --mem");
}

enum status branches_hold(tessera_engine *e, uint64_t bytes, bool whole, struct err *err)
{
    e->process += bytes;
    enum status s = engine_resize(e, e->opt.mem_budget, err);
    if (!s && !ledger_take(&e->ledger, MEM_PROCESS, bytes))
        s = err_set(err, ERR_BUDGET, "no room for the search: use a larger --mem");
    if (s) e->process -= bytes;
    return !s && whole && !e->resid.all_ram ? not_whole(err) : s;
}

enum status branches_open(tessera_engine *e, struct branches *b, struct err *err)
{
    memset(b, 0, sizeof *b);
    b->e = e;
    enum status s = open_parts(b, err);
    if (!s && (!e->resid.all_ram || e->opt.header_only)) s = not_whole(err);
    if (!s && devtier_on(&e->devtier))
        s = err_set(err, ERR_UNSUPPORTED, "an oracle runs on the CPU alone: leave -dev out");
    b->n_embd = e->hp.n_embd;
    b->n_vocab = e->model.n_vocab;
    b->most = e->opt.n_ubatch < e->opt.n_logits ? e->opt.n_ubatch : e->opt.n_logits;
    int width = 1;
    for (int i = 0; i < e->model.n_op; i++) {
        const struct op *op = &e->model.op[i];
        if (op->code != OP_KV_PUT) continue;
        const int w = e->model.buf[op->in[0]].width + e->model.buf[op->in[1]].width;
        width = w > width ? w : width;
    }
    if (!s && !(b->keep = calloc((size_t)b->most, sizeof *b->keep * (size_t)width)))
        s = err_set(err, ERR_MEMORY, "no memory for the parts of a model");
    if (s) branches_close(b);
    return s;
}

void branches_close(struct branches *b)
{
    free(b->part);
    free(b->keep);
    b->part = NULL;
    b->keep = NULL;
}

/* ---- running ---- */

enum status branches_token(struct branches *b, tessera_session *s, int32_t id, float *x,
                           struct err *err)
{
    if (id < 0 || id >= b->n_vocab)
        return err_set(err, ERR_RANGE, "token id %d is outside the vocabulary", id);
    if (s->n >= s->n_ctx) return err_set(err, ERR_FULL, "the context is full");
    b->session = s;
    b->id = id;
    return exec_part(b->e, &(struct exec_part){
        .session = s, .id = id, .head = b->head, .from = b->head, .to = b->head, .n = 1,
        .in_buf = -1, .out_buf = b->part[0].in, .width = b->n_embd, .out = x}, err);
}

enum status branches_run(struct branches *b, int part, int n_parts, int n, const float *in, float *out,
                         const int32_t *expert, int32_t *chosen, struct err *err)
{
    const struct branch_part *p = &b->part[part], *last = p + n_parts - 1;
    int head = 0;
    enum status s = OK;
    for (int i = part; i < part + n_parts; i++) head = b->part[i].head ? b->part[i].head : head;
    for (int at = 0, m; at < n && !s; at += m) {
        m = n - at < b->most ? n - at : b->most;
        const size_t x = (size_t)at * (size_t)b->n_embd, k = (size_t)at * (size_t)p->n_used;
        s = exec_part(b->e, &(struct exec_part){
            .session = b->session, .id = b->id, .head = head, .from = p->from, .to = last->to,
            .n = m, .in_buf = p->in, .out_buf = last->out, .width = b->n_embd, .in = in + x,
            .out = out + x, .keep = b->keep, .expert = expert ? expert + k : NULL,
            .chosen = chosen ? chosen + k : NULL}, err);
    }
    return s;
}

double branches_loss_of(const float *logit, int n, int32_t target)
{
    float most = logit[0];
    double sum = 0;
    for (int i = 1; i < n; i++) most = logit[i] > most ? logit[i] : most;
    for (int i = 0; i < n; i++) sum += (double)expf(logit[i] - most);
    return log(sum) - (double)(logit[target] - most);
}

struct losses {
    const struct branches *b;
    int32_t target;
    double *loss;
};

static void loss_task(void *arg, int row, int worker)
{
    (void)worker;
    const struct losses *l = arg;
    const struct tessera_engine *e = l->b->e;
    l->loss[row] = branches_loss_of((const float *)(const void *)((const char *)e->logits.base +
                                    (size_t)e->logits_stride * (size_t)row), l->b->n_vocab, l->target);
}

enum status branches_loss(struct branches *b, int n, const float *in, int32_t target, double *loss,
                          struct err *err)
{
    const struct branch_part *p = &b->end;
    enum status s = OK;
    if (target < 0 || target >= b->n_vocab)
        return err_set(err, ERR_RANGE, "token id %d is outside the vocabulary", target);
    for (int at = 0, k; at < n && !s; at += k) {
        k = n - at < b->most ? n - at : b->most;
        s = exec_part(b->e, &(struct exec_part){
            .session = b->session, .id = b->id, .head = p->head, .from = p->from, .to = p->to,
            .n = k, .in_buf = p->in, .out_buf = -1, .width = b->n_embd,
            .in = in + (size_t)at * (size_t)b->n_embd}, err);
        struct losses l = {b, target, loss + at};
        if (!s) pool_run(b->e->pool, loss_task, &l, k);
    }
    return s;
}

/* ---- depth ---- */

int branches_least_depth(const tessera_engine *e) { return e->model.depth_first; }

enum status branches_depth(tessera_engine *e, int depth, struct err *err)
{
    if (!e->model.n_depth || e->opt.depth_exact)
        return err_set(err, ERR_UNSUPPORTED, "%s: %s", e->arch->name, e->opt.depth_exact ?
                       "how deep a token goes does not depend on it alone: leave --depth-exact out" :
                       "all tokens go equally deep (looped models need --exit)");
    if (depth >= 0 && (depth < e->model.depth_first || depth > e->model.n_depth))
        return err_set(err, ERR_RANGE, "depth %d; this model has %d to %d", depth,
                       e->model.depth_first, e->model.n_depth);
    e->forced_depth = depth;
    return OK;
}

/* ---- capacity ---- */

struct choice_params branches_choice(const tessera_engine *e) { return e->hp.route.choice; }

enum status branches_capacity(tessera_engine *e, int k, struct err *err)
{
    const int most = e->hp.route.choice.prompts ? 0 : e->hp.route.choice.k_max;
    if (!most)
        return err_set(err, ERR_UNSUPPORTED, "%s: experts do not choose their tokens, so they have no "
                       "capacity", e->arch->name);
    if (k < 0 || k > most)
        return err_set(err, ERR_RANGE, "%d experts per token; this model has 1 to %d", k, most);
    e->forced_k = k;
    return OK;
}
