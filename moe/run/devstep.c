/* See devstep.h. */
#include "moe/run/devstep.h"

#include <stdlib.h>
#include <string.h>

#include "moe/run/engine_int.h"

enum { ON_HOST = 1, ON_DEVICE = 2 };
enum { SUBMIT_OPS = 8 };              /* of a row of ops the device should begin with the first */
enum { LOGITS_ROWS = 16 };            /* more are multiplied by the host */
enum { WHOLE_ROWS = 8 };              /* a step of more rows is several submissions */
enum { CTX_GUESS = 8192 };            /* tokens, before a context has been chosen (fit.c) */

static uint64_t up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* ---- what it takes ---- */

/* Whether every row of every session is computed alike, and keys stay what they are once put. */
static bool is_plain(const struct tessera_engine *e)
{
    return e->model.n_sets == ROWS_FIRST && e->n_lines == 1 && !e->model.sees && !e->approx &&
           !e->stack.present && !e->hp.route.choice.k_max;
}

static struct dev_weight describe(const struct weight *w)
{
    return (struct dev_weight){.type = w->type, .tiles = w->layout == WEIGHT_TILES,
                               .n_cols = w->n_cols, .n_rows = w->n_rows};
}

/* Whether the device can run an op of the model, given its weights. */
static bool can_run(const struct tessera_engine *e, const struct dev_api *api, const struct dev *dev,
                    const struct dev_weight *weight, const struct op *op)
{
    switch (op->code) {
    case OP_EMBED:
    case OP_EXPERTS: return false; /* the host's, the tier's */
    default: return op->rows < e->model.n_sets && api->supports(dev, op, weight);
    }
}

static uint64_t weight_bytes(const struct weight *w)
{
    return up(w->mat_bytes * (uint64_t)w->n_mats, 256);
}

static bool is_weighted(const struct op *op)
{
    for (int k = 0; k < OP_WEIGHTS; k++)
        if (op->weight[k] >= 0) return true;
    return false;
}

/* The last product. */
static bool is_head(const struct tessera_engine *e, const struct op *op)
{
    return op->out[0] >= 0 && e->model.buf[op->out[0]].kind == BUF_LOGITS && is_weighted(op);
}

/* Whether a slot of the KV cache is filled by an op that runs. */
static bool is_put(const struct tessera_engine *e, const bool *runs, int slot)
{
    for (int i = 0; i < e->model.n_op; i++)
        if (runs[i] && e->model.op[i].code == OP_KV_PUT && e->model.op[i].kv_slot == slot) return true;
    return false;
}

/* Marks the ops that run, which are those of layers from p->first on and, if p->head says so, the last
 * product, and the weights that they want; returns its bytes.  Ops without weights of their own run where
 * their rows are, in all layers. */
static uint64_t wanted(const struct tessera_engine *e, const struct dev_api *api, const struct dev *dev,
                       const struct devstep_plan *p, struct dev_weight *weight, bool *runs, bool *want)
{
    uint64_t sum = 0;
    memset(want, 0, sizeof *want * (size_t)e->weights.n);
    for (int i = 0; i < e->weights.n; i++) weight[i] = describe(&e->weights.at[i]);
    for (int i = 0; i < e->model.n_op; i++) {
        const struct op *op = &e->model.op[i];
        const bool bound = is_weighted(op) || op->code == OP_KV_PUT;
        runs[i] = (is_head(e, op) ? p->head : !bound || op->layer >= p->first) &&
                  can_run(e, api, dev, weight, op);
    }
    for (int i = 0; i < e->model.n_op; i++) {
        const struct op *op = &e->model.op[i];
        if (op->code == OP_ATTENTION) runs[i] = runs[i] && is_put(e, runs, op->kv_slot);
        for (int k = 0; k < OP_WEIGHTS && runs[i]; k++) {
            const int w = op->weight[k];
            if (w < 0 || want[w]) continue;
            want[w] = true;
            sum += weight_bytes(&e->weights.at[w]);
        }
    }
    return sum;
}

static int n_pages(int32_t n) { return (n + KV_PAGE - 1) / KV_PAGE; }

/* Places for pages in `room` bytes: as many as sessions, a page for each at least, a whole context at most. */
static void size_pages(const struct tessera_engine *e, uint64_t room, struct devstep_plan *p)
{
    const int guess = e->hp.n_ctx_train < CTX_GUESS ? e->hp.n_ctx_train : CTX_GUESS;
    if (!p->page || room < p->page + 4096) return;
    p->n_pages = n_pages(e->opt.n_ctx ? e->opt.n_ctx : guess);
    p->n_kv = e->opt.n_sessions < DEV_SESSIONS ? e->opt.n_sessions : DEV_SESSIONS;
    while (room / (uint64_t)p->n_kv < up(p->page, 4096)) p->n_kv--;
    p->stride = up((uint64_t)p->n_pages * p->page, 4096);
    if (p->stride * (uint64_t)p->n_kv > room) p->stride = room / (uint64_t)p->n_kv / 4096 * 4096;
    p->kv = p->stride * (uint64_t)p->n_kv;
    if ((uint64_t)p->n_pages * p->page > p->kv) p->n_pages = (int)(p->kv / p->page);
}

/* Of a page what the ops that run put there, and what lies behind it. */
static void size_page(const struct tessera_engine *e, const bool *runs, struct devstep_plan *p)
{
    p->page_at = e->line[0].page_bytes;
    for (int i = 0; i < e->model.n_op; i++) {
        const struct op *op = &e->model.op[i];
        if (runs[i] && op->code == OP_KV_PUT && e->kv_offset[op->kv_slot] < p->page_at)
            p->page_at = e->kv_offset[op->kv_slot];
    }
    p->page = e->line[0].page_bytes - p->page_at;
}

/* K and V may be the same rows: V is the beginning of K then. */
static int n_kv_bufs(const struct op *op)
{
    if (op->code != OP_KV_PUT) return 0;
    return op->in[1] == op->in[0] ? 1 : 2;
}

/* Bytes of K and V that n rows put, all layers together. */
static uint64_t kept_bytes(const struct tessera_engine *e, int n)
{
    uint64_t sum = 0;
    for (int i = 0; i < e->model.n_op; i++)
        for (int k = 0; k < n_kv_bufs(&e->model.op[i]); k++)
            sum += e->plan[0].stride[e->model.op[i].in[k]];
    return sum * (uint64_t)n;
}

/* What the host begins a step with: neither of them reads what another op has made. */
static bool is_given(const struct op *op) { return op->code == OP_EMBED || op->code == OP_ROPE_TABLE; }

static uint64_t given_bytes(const struct tessera_engine *e, int n)
{
    uint64_t sum = 0;
    for (int i = 0; i < e->model.n_op; i++)
        if (is_given(&e->model.op[i])) sum += e->plan[0].stride[e->model.op[i].out[0]];
    return sum * (uint64_t)n;
}

static uint64_t table_bytes(const struct tessera_engine *e)
{
    return up(sizeof(void *) * OP_IO * (uint64_t)e->resid.n_experts, 256);
}

/* Room for the rows of the widest buffer, and for K and V of a few layers. */
static uint64_t stage_bytes(const struct tessera_engine *e)
{
    const struct plan *p = &e->plan[e->n_plans - 1];
    const uint64_t logits = (uint64_t)e->logits_stride * LOGITS_ROWS;
    uint64_t widest = 0;
    for (int i = 1; i < e->model.n_buf; i++) {
        const enum buf_kind kind = e->model.buf[i].kind;
        const uint64_t n = (uint64_t)p->stride[i] * (uint64_t)p->n_rows;
        if ((kind == BUF_F32 || kind == BUF_ACT) && n > widest) widest = n;
    }
    uint64_t most = 4 * widest;
    if (logits > most) most = logits;
    if (kept_bytes(e, WHOLE_ROWS) > most) most = kept_bytes(e, WHOLE_ROWS);
    if (given_bytes(e, WHOLE_ROWS) > most) most = given_bytes(e, WHOLE_ROWS);
    if (table_bytes(e) > most) most = table_bytes(e);
    return up(most, 4096);
}

/* Submissions of a token's ops that run one after another; whether those are all. */
static int n_submits(const struct tessera_engine *e, const bool *runs, bool *all)
{
    int n = 0, in_a_row = 0;
    *all = true;
    for (int i = 0; i < e->model.n_op; i++) {
        const struct op *op = &e->model.op[i];
        if (op->code == OP_ROUTE || !runs[i]) in_a_row = 0;
        else if (in_a_row++ % SUBMIT_OPS == 0 && is_weighted(op)) n++;
        *all &= runs[i] || is_given(op) || op->code == OP_EXPERTS;
    }
    return n;
}

/* What all of it takes, as p->first and p->head say. */
static void add_up(const struct tessera_engine *e, struct dev_weight *weight, bool *runs, bool *want,
                   struct devstep_plan *p)
{
    p->weights = wanted(e, e->opt.device, e->second, p, weight, runs, want);
    p->n_submits = n_submits(e, runs, &p->all);
    p->arena = up(fit_arena_bytes(e), 256);
    p->n_logits = !p->head ? 0 : e->opt.n_logits < LOGITS_ROWS ? e->opt.n_logits : LOGITS_ROWS;
    p->logits = up((uint64_t)e->logits_stride * (uint64_t)p->n_logits, 256);
    p->kept = p->all ? up(kept_bytes(e, WHOLE_ROWS), 256) : 0;
    p->given = p->all ? up(given_bytes(e, WHOLE_ROWS), 256) : 0;
    p->tables = p->all ? table_bytes(e) * (uint64_t)e->resid.n_banks : 0;
    p->bytes = p->weights + p->arena + p->logits + p->given + p->kept + p->tables;
    size_page(e, runs, p);
}

void devstep_size(const struct tessera_engine *e, uint64_t memory, uint64_t experts,
                  struct devstep_plan *p)
{
    struct dev_weight *weight = calloc((size_t)e->weights.n + 1, sizeof *weight);
    bool *runs = calloc((size_t)e->model.n_op + 1, sizeof *runs);
    bool *want = calloc((size_t)e->weights.n + 1, sizeof *want);
    memset(p, 0, sizeof *p);
    if (memory > experts && weight && runs && want && is_plain(e)) {
        const uint64_t room = memory - experts;
        p->head = true;
        p->first = -1;
        add_up(e, weight, runs, want, p);
        if (p->bytes > room) p->head = false;
        while (p->bytes > room && p->first < e->model.n_layer) {
            add_up(e, weight, runs, want, p);
            if (p->bytes > room) p->first++;
        }
        p->host = stage_bytes(e);
        if (!p->weights || p->bytes > room) memset(p, 0, sizeof *p);
        else size_pages(e, room - p->bytes, p);
    }
    free(weight);
    free(runs);
    free(want);
}

/* ---- copies ---- */

/* Ops in a row are one submission. */
static void submit(struct devstep *d, const struct op *op)
{
    if (d->n_next && !d->lost)
        d->last = d->tier->api->submit(d->tier->dev, op + d->first, d->n_next, &d->bind);
    d->n_next = 0;
}

/* Puts K and V that have landed at `at` into the host's pages. */
static void put_here(struct tessera_engine *e, const struct dev_bind *host, const struct landing *l)
{
    char *base[2];
    for (int k = 0; k < n_kv_bufs(l->put); k++) {
        base[k] = e->buf[l->put->in[k]].base;
        e->buf[l->put->in[k]].base = l->at[k];
    }
    (void)e->api->submit(e->dev, l->put, 1, host);
    for (int k = 0; k < n_kv_bufs(l->put); k++) e->buf[l->put->in[k]].base = base[k];
}

static uint64_t rows_bytes(const struct dev_bind *b, const struct dev_buf *f)
{
    return (uint64_t)f->stride * (uint64_t)b->set[f->rows].n;
}

/* Waits for all that was submitted, and takes what lands. */
static bool settle(struct devstep *d, struct tessera_engine *e)
{
    submit(d, e->model.op);
    /* Two streams may have them: that the later one has ended says nothing of the other. */
    if (d->lost || !devtier_passed(d->tier, d->last) || !devtier_passed(d->tier, d->sent)) {
        d->lost = true;
        return false;
    }
    for (int i = 0; i < d->n_landings; i++) {
        const struct landing *l = &d->landing[i];
        if (l->put) {
            put_here(e, d->host, l);
            continue;
        }
        memcpy(e->buf[l->buf].base, l->at[0], rows_bytes(d->host, &e->buf[l->buf]));
        d->good[l->buf] |= ON_HOST;
    }
    d->n_landings = 0;
    d->stage_at = 0;
    return true;
}

/* Host memory for a copy; NULL: the device is lost. */
static char *stage(struct devstep *d, struct tessera_engine *e, uint64_t bytes)
{
    bytes = up(bytes, 64);
    ASSERT(bytes <= d->stage_bytes);
    if (d->stage_at + bytes > d->stage_bytes && !settle(d, e)) return NULL;
    char *at = d->stage + d->stage_at;
    d->stage_at += bytes;
    return at;
}

static void copy(struct devstep *d, struct tessera_engine *e, void *to, const void *from, uint64_t bytes)
{
    submit(d, e->model.op);
    d->last = d->tier->api->copy(d->tier->dev, to, from, bytes);
    d->tier->count.bytes += bytes;
}

static void send(struct devstep *d, struct tessera_engine *e, int buf)
{
    if (d->good[buf] & ON_DEVICE || !(d->good[buf] & ON_HOST)) return;
    const uint64_t bytes = rows_bytes(d->host, &e->buf[buf]);
    d->good[buf] |= ON_DEVICE;
    if (!bytes) return;
    char *at = stage(d, e, bytes);
    if (!at) return;
    memcpy(at, e->buf[buf].base, bytes);
    copy(d, e, d->buf[buf].base, at, bytes);
    d->sent = d->last;
}

/* Rows start to come; settle() has them. */
static void land(struct devstep *d, struct tessera_engine *e, int buf)
{
    const uint64_t bytes = rows_bytes(d->host, &e->buf[buf]);
    if (d->lost || d->good[buf] != ON_DEVICE) return;
    if (!bytes) {
        d->good[buf] |= ON_HOST;
        return;
    }
    if (d->n_landings == DEVSTEP_LANDINGS && !settle(d, e)) return;
    char *at = stage(d, e, bytes);
    if (!at) return;
    copy(d, e, at, d->buf[buf].base, bytes);
    d->landing[d->n_landings++] = (struct landing){.buf = buf, .at = {at}};
}

static void land_kv(struct devstep *d, struct tessera_engine *e, const struct op *op)
{
    struct landing l = {.put = op};
    uint64_t bytes[2] = {0}, sum = 0;
    for (int k = 0; k < n_kv_bufs(op); k++)
        sum += up(bytes[k] = rows_bytes(d->host, &e->buf[op->in[k]]), 64);
    if (d->n_landings == DEVSTEP_LANDINGS && !settle(d, e)) return;
    char *at = stage(d, e, sum); /* both at once: the second must not move the first */
    if (!at) return;
    for (int k = 0; k < n_kv_bufs(op); k++, at += up(bytes[0], 64))
        copy(d, e, l.at[k] = at, d->buf[op->in[k]].base, bytes[k]);
    d->landing[d->n_landings++] = l;
}

bool devstep_fetch(struct devstep *d, struct tessera_engine *e, const int *bufs, int n)
{
    if (!d->on) return true;
    bool any = false;
    for (int i = 0; i < n; i++) {
        if (bufs[i] < 0 || d->good[bufs[i]] != ON_DEVICE) continue;
        land(d, e, bufs[i]);
        any = true;
    }
    return any ? settle(d, e) : !d->lost;
}

/* ---- weights, once ---- */

static enum status upload(struct devstep *d, struct tessera_engine *e, char *to, const char *from,
                          uint64_t bytes, struct err *err)
{
    struct devtier *t = d->tier;
    for (uint64_t at = 0, n; at < bytes; at += n) {
        n = bytes - at < d->stage_bytes ? bytes - at : d->stage_bytes;
        memcpy(d->stage, from + at, n);
        copy(d, e, to + at, d->stage, n);
        if (t->api->wait(t->dev, d->last, t->o.patience, err) != DEV_PASSED)
            return err_set(err, ERR_DEVICE, "it does not answer");
    }
    return OK;
}

static enum status send_weights(struct devstep *d, struct tessera_engine *e, char *to, const bool *want,
                                struct err *err)
{
    enum status s = OK;
    for (int i = 0; i < e->weights.n && !s; i++) {
        if (!want[i]) continue;
        const struct weight *w = &e->weights.at[i];
        const char *from = resid_home(&e->resid, i);
        if (!from)
            return err_set(err, ERR_BUDGET, "%s is not in memory as a whole: give --mem more", w->name);
        s = upload(d, e, to, from, w->mat_bytes * (uint64_t)w->n_mats, err);
        d->weight[i].data = to;
        to += weight_bytes(w);
    }
    return s;
}

/* The ops of a step that is one submission, if the device runs all but what it is given. */
static enum status list_ops(struct devstep *d, const struct tessera_engine *e, struct err *err)
{
    const struct build *m = &e->model;
    if (!d->plan.all) return OK;
    for (int k = 0; k < 2; k++) {
        d->ops[k] = calloc((size_t)m->n_op + 1, sizeof *d->ops[k]);
        if (!d->ops[k]) return err_set(err, ERR_MEMORY, "no memory for the list of what runs on it");
        for (int i = 0; i < m->n_op; i++)
            if (!is_given(&m->op[i]) && (!k || m->op[i].rows == ROWS_ALL))
                d->ops[k][d->n_ops_of[k]++] = m->op[i];
    }
    return OK;
}

/* Those the tier has already. */
static void expert_biases(struct devstep *d, const struct tessera_engine *e)
{
    for (int b = 0; b < e->resid.n_banks; b++)
        for (int k = OP_IO; k < OP_WEIGHTS; k++) {
            const int w = e->bank[b].op->weight[k];
            if (w >= 0) d->weight[w].data = e->devtier.weight[b * OP_WEIGHTS + k].data;
        }
}

enum status devstep_open(struct devstep *d, struct tessera_engine *e, const struct devstep_plan *p,
                         struct err *err)
{
    struct devtier *t = &e->devtier;
    memset(d, 0, sizeof *d);
    if (!p->bytes || !devtier_on(t)) return OK;
    d->plan = *p;
    d->listed = UINT64_MAX;
    d->weight = calloc((size_t)e->weights.n + 1, sizeof *d->weight);
    d->runs = calloc((size_t)e->model.n_op + 1, sizeof *d->runs);
    d->table = calloc((size_t)e->weights.n + 1, sizeof(*d->table));
    d->place = calloc((size_t)p->n_kv + 1, sizeof *d->place);
    d->kv_offset = calloc((size_t)e->model.n_slot + 1, sizeof *d->kv_offset);
    d->buf = calloc((size_t)e->model.n_buf + 1, sizeof *d->buf);
    d->good = calloc((size_t)e->model.n_buf + 1, sizeof *d->good);
    d->row = calloc((size_t)e->opt.n_ubatch, sizeof *d->row);
    d->out_row = calloc((size_t)e->opt.n_ubatch, sizeof *d->out_row);
    bool *want = calloc((size_t)e->weights.n + 1, sizeof *want);
    enum status s = OK;
    if (!d->weight || !d->runs || !d->table || !d->place || !d->kv_offset || !d->buf || !d->good ||
        !d->row || !d->out_row || !want)
        s = err_set(err, ERR_MEMORY, "no memory for the list of what runs on it");
    if (!s && !(d->charged = ledger_take(&e->ledger, MEM_STAGING, p->host)))
        s = err_set(err, ERR_BUDGET, "the memory budget has no room for its host side");
    d->tier = t;
    d->stage_bytes = p->host;
    char *all = s ? NULL : t->api->alloc(t->dev, DEV_OWN, p->bytes);
    if (!s) d->stage = t->api->alloc(t->dev, DEV_HOST, p->host);
    if (!s && (!all || !d->stage))
        s = err_set(err, ERR_DEVICE, "it gave less memory than it said it has");
    if (!s) {
        (void)wanted(e, t->api, t->dev, p, d->weight, d->runs, want);
        for (int i = 0; i < e->model.n_slot; i++) /* those before page_at are not looked at */
            d->kv_offset[i] = e->kv_offset[i] - p->page_at;
        d->arena = all + p->weights;
        d->logits = d->arena + p->arena;
        d->given = d->logits + p->logits;
        d->kept = d->given + p->given;
        d->tables = d->kept + p->kept;
        expert_biases(d, e);
        s = list_ops(d, e, err);
    }
    if (!s) s = send_weights(d, e, all, want, err);
    if (s) d->plan.n_kv = 0;
    free(want);
    return s;
}

void devstep_close(struct devstep *d, struct tessera_engine *e)
{
    if (d->charged) ledger_give(&e->ledger, MEM_STAGING, d->plan.host);
    free(d->weight);
    free(d->runs);
    free(d->table);
    free(d->ops[0]);
    free(d->ops[1]);
    free(d->place);
    free(d->kv_offset);
    free(d->buf);
    free(d->good);
    free(d->row);
    free(d->out_row);
    memset(d, 0, sizeof *d);
}

/* ---- KV pages ---- */

void devstep_cut(struct tessera_session *s, int32_t n)
{
    if (s->on_device > n) s->on_device = n;
}

void devstep_forget(struct tessera_engine *e, const struct tessera_session *s)
{
    for (int i = 0; i < e->devstep.plan.n_kv; i++) {
        if (e->devstep.place[i].owner != s) continue;
        e->devstep.place[i].owner = NULL;
        e->devstep.place[i].bytes = 0;
        devtier_claim(&e->devtier, i, 0, 0);
    }
}

static int place_of(const struct devstep *d, const struct tessera_session *s)
{
    int i = d->plan.n_kv - 1;
    while (i >= 0 && d->place[i].owner != s) i--;
    return i;
}

/* Bytes from place i up to the next one that somebody has. */
static uint64_t reach(const struct devstep *d, int i)
{
    int next = i + 1;
    while (next < d->plan.n_kv && !d->place[next].owner) next++;
    return d->plan.stride * (uint64_t)(next - i);
}

/* Nobody's place with so many bytes, of those the one that leaves most to itself and to whom it follows; -1. */
static int free_place(const struct devstep *d, uint64_t bytes)
{
    uint64_t from = 0, to = 0, most = 0; /* of who is before */
    bool any = false;
    int best = -1;
    for (int i = 0; i < d->plan.n_kv; i++) {
        const uint64_t at = d->plan.stride * (uint64_t)i, mine = reach(d, i);
        if (d->place[i].owner) {
            any = true;
            from = at;
            to = at + d->place[i].bytes;
            continue;
        }
        const uint64_t least = any && at - from < mine ? at - from : mine;
        if (at < to || mine < bytes || least <= most) continue;
        best = i;
        most = least;
    }
    return best;
}

static uint64_t bytes_of(const struct devstep *d, int32_t n) { return (uint64_t)n_pages(n) * d->plan.page; }

/* What sessions have there is theirs, no more. */
static void keep_places(struct devstep *d)
{
    for (int i = 0; i < d->plan.n_kv; i++)
        if (d->place[i].owner) d->place[i].bytes = bytes_of(d, d->place[i].owner->on_device);
}

/* Places with room for the step's rows, too; false: not all of its sessions have one.  Those that have
 * one come first: the others find what is free behind them. */
static bool find_places(struct devstep *d, struct tessera_engine *e)
{
    bool all = e->n_inputs <= d->plan.n_kv;
    keep_places(d);
    for (int k = 0; k < e->n_inputs && all; k++) {
        const int i = place_of(d, e->stepped[k]);
        if (i < 0) continue;
        if (bytes_of(d, e->end[k]) <= reach(d, i)) d->place[i].bytes = bytes_of(d, e->end[k]);
        else devstep_forget(e, e->stepped[k]);
    }
    for (int k = 0; k < e->n_inputs && all; k++) {
        const uint64_t bytes = bytes_of(d, e->end[k]);
        int i = place_of(d, e->stepped[k]);
        if (i < 0 && (i = free_place(d, bytes)) >= 0) {
            d->place[i] = (struct devstep_place){e->stepped[k], bytes};
            e->stepped[k]->on_device = 0;
        }
        all = i >= 0;
        d->kv_base[k] = d->tier->arena + d->plan.stride * (uint64_t)i;
    }
    if (!all) keep_places(d);
    return all;
}

/* Everybody's pages are there, and hold what comes before the rows of the step. */
static bool bring_pages(struct devstep *d, struct tessera_engine *e)
{
    const uint64_t page = d->plan.page;
    const bool all = find_places(d, e);
    for (int i = 0; i < d->plan.n_kv; i++) {
        const uint64_t at = d->plan.stride * (uint64_t)i, bytes = d->place[i].bytes;
        devtier_claim(d->tier, i, bytes ? at : 0, bytes ? at + bytes : 0);
    }
    if (!all) return false;
    for (int i = 0; i < e->n_inputs; i++) {
        struct tessera_session *s = e->stepped[i];
        const int32_t first = e->row[e->input[i].row0].pos;
        for (int32_t p = s->on_device / KV_PAGE; s->on_device < first && p * KV_PAGE < first; p++)
            for (uint64_t at = 0, n; at < page; at += n) {
                n = page - at < d->stage_bytes ? page - at : d->stage_bytes;
                char *from = stage(d, e, n);
                if (!from) return false;
                memcpy(from, (const char *)s->line[0].kv.base + (uint64_t)p * e->line[0].page_bytes +
                             d->plan.page_at + at, n);
                copy(d, e, d->kv_base[i] + (uint64_t)p * page + at, from, n);
                d->sent = d->last;
            }
        s->on_device = first;
    }
    return true;
}

/* ---- all of it there ---- */

/* Where the experts are, if any has moved since that was written down. */
static bool list_experts(struct devstep *d, struct tessera_engine *e)
{
    const uint64_t bytes = table_bytes(e);
    const bool listed = d->listed == d->tier->n_changes;
    if (!listed && !devtier_settled(d->tier)) return false;
    for (int b = 0; b < e->resid.n_banks && !listed; b++) {
        char *at = stage(d, e, bytes);
        if (!at) return false;
        memset(at, 0, bytes);
        devtier_addresses(d->tier, b, (const void **)(void *)at);
        copy(d, e, d->tables + bytes * (uint64_t)b, at, bytes);
        d->sent = d->last;
        d->table[e->bank[b].op->weight[0]] = d->tables + bytes * (uint64_t)b;
    }
    d->listed = d->tier->n_changes;
    return true;
}

/* Few rows, which share hardly an expert: nobody has to sort them.  Whoever looks at routes wants them
 * on the host. */
static bool all_there(const struct devstep *d, const struct tessera_engine *e, int n_rows, int n_out)
{
    return d->attends && d->ops[0] && devtier_complete(d->tier) && !e->obs.sink && !e->profile &&
           n_rows <= WHOLE_ROWS && n_rows <= e->opt.n_ubatch &&
           n_rows * e->hp.n_expert_used <= d->tier->n_pairs && n_out <= d->plan.n_logits;
}

/* What the host gives, and every layer's K and V, have places of their own. */
static void place_apart(struct devstep *d, const struct tessera_engine *e)
{
    char *given = d->given, *kept = d->kept;
    for (int i = 0; i < e->model.n_op; i++) {
        const struct op *op = &e->model.op[i];
        if (is_given(op)) {
            d->buf[op->out[0]].base = given;
            given += rows_bytes(d->host, &d->buf[op->out[0]]);
        }
        for (int k = 0; k < n_kv_bufs(op); k++) {
            d->buf[op->in[k]].base = kept;
            kept += rows_bytes(d->host, &d->buf[op->in[k]]);
        }
    }
}

void devstep_give(struct devstep *d, const struct tessera_engine *e, int i)
{
    const struct dev_buf *f = &e->buf[e->model.op[i].out[0]];
    memcpy(d->give + d->n_given, f->base, rows_bytes(d->host, f));
    d->n_given += rows_bytes(d->host, f);
}

void devstep_whole(struct devstep *d, struct tessera_engine *e)
{
    const struct build *m = &e->model;
    const int k = d->set[ROWS_OUT].n ? 0 : 1;
    copy(d, e, d->given, d->give, d->n_given);
    d->sent = d->last;
    d->last = d->tier->api->submit(d->tier->dev, d->ops[k], d->n_ops_of[k], &d->bind);
    for (int i = 1; i < m->n_buf; i++)
        if (m->buf[i].kind == BUF_LOGITS) d->good[i] = ON_DEVICE;
    for (int i = 0; i < d->n_ops_of[k]; i++)
        if (d->ops[k][i].code == OP_EXPERTS)
            d->tier->count.ran += (uint64_t)(d->set[d->ops[k][i].rows].n * d->ops[k][i].p.moe.route.n_used);
    d->n_ops += (uint64_t)d->n_ops_of[k];
}

/* The step has run: K and V of all layers land. */
static bool land_kept(struct devstep *d, struct tessera_engine *e)
{
    const uint64_t bytes = kept_bytes(e, d->set[ROWS_ALL].n);
    char *at = stage(d, e, bytes);
    if (!at) return false;
    copy(d, e, at, d->kept, bytes);
    if (!settle(d, e)) return false;
    for (int i = 0; i < e->model.n_op; i++) {
        const struct op *op = &e->model.op[i];
        struct landing l = {.put = op};
        for (int k = 0; k < n_kv_bufs(op); k++) {
            l.at[k] = at;
            at += rows_bytes(d->host, &e->buf[op->in[k]]);
        }
        if (l.at[0]) put_here(e, d->host, &l);
    }
    return true;
}

/* ---- a step ---- */

void devstep_begin(struct devstep *d, struct tessera_engine *e, const struct dev_bind *host, bool on)
{
    d->on = d->attends = d->lost = d->whole = false;
    for (int i = 0; i < e->n_inputs; i++) /* whoever writes them: only what is before is sure */
        devstep_cut(e->stepped[i], e->row[e->input[i].row0].pos);
    if (!on || !d->tier || !devtier_on(d->tier)) return;
    /* A step that was interrupted may have left something there. */
    if (!devtier_passed(d->tier, d->last) || !devtier_passed(d->tier, d->sent)) return;
    d->on = true;
    d->host = host;
    d->n_landings = d->n_next = 0;
    d->stage_at = 0;
    memset(d->good, 0, (size_t)e->model.n_buf);
    bool has_pages = false;
    for (int i = 0; i < e->model.n_op; i++)
        has_pages |= d->runs[i] && e->model.op[i].code == OP_ATTENTION;
    d->attends = has_pages && bring_pages(d, e);
    devtier_refill(d->tier);
    const int n_rows = host->n_rows, n_out = host->set[ROWS_OUT].n;
    d->whole = all_there(d, e, n_rows, n_out) && list_experts(d, e);
    d->on = !d->lost;
}

static bool outlives(const struct devstep *d, const struct tessera_engine *e, int i)
{
    return e->model.buf[i].kind == BUF_LOGITS || (d->in_pieces && e->across_at[i] != UINT64_MAX);
}

void devstep_piece(struct devstep *d, struct tessera_engine *e, const struct plan *p, bool in_pieces)
{
    if (!d->on) return;
    d->in_pieces = in_pieces;
    for (int i = 1; i < e->model.n_buf; i++) {
        d->buf[i] = e->buf[i];
        d->buf[i].base = e->model.buf[i].kind == BUF_LOGITS ? d->logits : d->arena + p->offset[i];
        if (in_pieces) d->good[i] = outlives(d, e, i) ? ON_HOST : 0;
    }
    memcpy(d->set, d->host->set, sizeof d->set);
    memcpy(d->row, d->host->row, sizeof *d->row * (size_t)d->set[ROWS_ALL].n);
    memcpy(d->out_row, d->set[ROWS_OUT].row, sizeof *d->out_row * (size_t)d->set[ROWS_OUT].n);
    d->set[ROWS_OUT].row = d->out_row;
    d->set[ROWS_ALL].kv_base = d->kv_base;
    d->set[ROWS_ALL].kv_page_bytes = d->plan.page;
    d->bind = *d->host;
    d->bind.row = d->row;
    d->bind.buf = d->buf;
    d->bind.weight = d->weight;
    d->bind.set = d->set;
    d->bind.kv_offset = d->kv_offset;
    d->bind.table = d->table;
    d->bind.route = NULL;
    d->bind.scratch = d->tier->scratch_dev;
    d->n_given = 0;
    d->whole = d->whole && (d->give = stage(d, e, given_bytes(e, d->set[ROWS_ALL].n)));
    if (d->whole) place_apart(d, e);
}

/* Whether an op changes what is in out[0], instead of writing it. */
static bool changes(const struct op *op)
{
    switch (op->code) {
    case OP_HEAD_NORM:
    case OP_ROPE:
    case OP_ADD:
    case OP_ADD_BIAS:
    case OP_FILL:
    case OP_SCALE:
    case OP_GATE:
    case OP_SOFTCAP:
    case OP_MUL:
    case OP_L2_NORM:
    case OP_CONV:
    case OP_DELTA_GATES:
    case OP_COPY_HEADS:
    case OP_SCATTER: return true;
    default: return false;
    }
}

/* Buffers that an op reads, -1 = none. */
enum { READS = 2 * OP_IO };

static void reads(const struct tessera_engine *e, const struct op *op, int at[READS])
{
    for (int k = 0; k < OP_IO; k++) {
        at[k] = op->in[k];
        at[OP_IO + k] = changes(op) ? op->out[k] : -1;
    }
    for (int k = 0; k < READS; k++) {
        if (at[k] < 0) continue;
        const enum buf_kind kind = e->model.buf[at[k]].kind;
        if (kind == BUF_ROUTE || kind == BUF_SCRATCH) at[k] = -1;
    }
}

bool devstep_takes(const struct devstep *d, const struct tessera_engine *e, int i)
{
    const struct op *op = &e->model.op[i];
    int at[READS];
    if (!d->on) return false;
    if (d->whole) return !is_given(op);
    if (!d->runs[i] || op->code == OP_ROUTE) return false;
    if (op->code == OP_KV_PUT || op->code == OP_ATTENTION) return d->attends;
    if (op->out[0] >= 0 && e->model.buf[op->out[0]].kind == BUF_LOGITS)
        return d->host->set[op->rows].n <= d->plan.n_logits;
    if (is_weighted(op)) return true;
    reads(e, op, at);
    for (int k = 0; k < READS; k++)
        if (at[k] >= 0 && d->good[at[k]] == ON_DEVICE) return true;
    return false;
}

void devstep_run(struct devstep *d, struct tessera_engine *e, int i)
{
    const struct op *op = &e->model.op[i];
    int at[READS];
    reads(e, op, at);
    for (int k = 0; k < READS; k++)
        if (at[k] >= 0) send(d, e, at[k]);
    if (d->lost) return;
    if (d->n_next && (d->first + d->n_next != i || d->n_next == SUBMIT_OPS)) submit(d, e->model.op);
    if (d->set[op->rows].n) {
        if (!d->n_next++) d->first = i;
    }
    for (int k = 0; k < OP_IO; k++)
        if (op->out[k] >= 0) d->good[op->out[k]] = ON_DEVICE;
    if (op->code == OP_KV_PUT) land_kv(d, e, op);
    d->n_ops++;
}

bool devstep_to_host(struct devstep *d, struct tessera_engine *e, int i)
{
    int at[READS];
    if (!d->on) return true;
    reads(e, &e->model.op[i], at);
    return devstep_fetch(d, e, at, READS);
}

void devstep_ran_here(struct devstep *d, const struct tessera_engine *e, int i)
{
    const struct op *op = &e->model.op[i];
    for (int k = 0; d->on && k < OP_IO; k++)
        if (op->out[k] >= 0) d->good[op->out[k]] = ON_HOST;
}

const struct dev_buf *devstep_there(struct devstep *d, struct tessera_engine *e, int buf)
{
    send(d, e, buf);
    submit(d, e->model.op);
    return &d->buf[buf];
}

const struct dev_buf *devstep_writes(struct devstep *d, int buf)
{
    d->good[buf] = ON_DEVICE;
    return &d->buf[buf];
}

bool devstep_end(struct devstep *d, struct tessera_engine *e)
{
    if (!d->on) return true;
    for (int i = 1; i < e->model.n_buf; i++)
        if (d->good[i] == ON_DEVICE && outlives(d, e, i)) land(d, e, i);
    return d->whole ? land_kept(d, e) : settle(d, e);
}

void devstep_done(struct devstep *d, struct tessera_engine *e)
{
    for (int i = 0; d->on && d->attends && i < e->n_inputs; i++) e->stepped[i]->on_device = e->end[i];
}
