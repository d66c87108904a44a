/* Fitting a model into a budget: context, micro-batch and what of the weights is in RAM.
 *
 * DESIGN.  Every byte has an owner: the process itself (code, libraries, heap, page tables), KV
 * cache and recurrent states for the context that was asked for, activations, one row of logits,
 * staging, and weights.  If everything fits it is all in RAM, a default context giving way first.
 * Otherwise weights get what is left, and the rest of the process is kept small: a micro-batch
 * whose buffers stay within BESIDE_BYTES with the process and the staging and take an eighth of the
 * budget at most, a default context whose KV cache takes a quarter at most.  What of it is not filled
 * yet is lent to the weights, and taken back page by page (engine_commit).  If not even the least
 * placement fits, all of these shrink to their least, the buffers of reads too; if that is too much the
 * model is refused, with the number that works.
 *
 * Pure functions of the engine's description; no memory is taken here. */
#include "moe/run/engine_int.h"
#include "moe/run/informed.h"

enum { CTX_DEFAULT = 8192, CTX_MIN = 256, CTX_ALL_RAM = 1024, ROWS_MIN = 32 };
static const uint64_t BESIDE_BYTES = 64u << 20;
static const uint64_t SNAPSHOT_BYTES = 512u << 20; /* of recurrent states per session, at most */
/* Measured: code and libraries in use, and the heap of a model without a vocabulary; stack, arena
 * and ring of a thread; what starting takes beside the program's files. */
static const uint64_t CODE_BYTES = 7u << 20, THREAD_BYTES = 96u << 10, START_BYTES = 6u << 18;
static const uint64_t START_MOST = 14u << 20;
enum { REGION_PAGES = 16 };                         /* of weights and KV caches, which end on whole pages */
static const uint64_t PAGE_TABLE = 512;            /* 8 bytes for each page of 4096 */

uint64_t fit_arena_bytes(const struct tessera_engine *e)
{
    uint64_t max = 0;
    for (int i = 0; i < e->n_plans; i++)
        if (e->plan[i].arena_bytes > max) max = e->plan[i].arena_bytes;
    return max;
}

uint64_t fit_kv_bytes(const struct tessera_engine *e, int n_ctx)
{
    /* Every timeline may have a place for every token. */
    uint64_t page = 0;
    for (int l = 0; l < e->n_lines; l++) page += e->line[l].page_bytes;
    return (uint64_t)((n_ctx + KV_PAGE - 1) / KV_PAGE) * page +
           (uint64_t)(e->n_snapshots + 2) * e->state_bytes;
}

uint64_t fit_logits_bytes(const struct tessera_engine *e)
{
    const int rows = e->opt.n_logits < e->opt.n_ubatch ? e->opt.n_logits : e->opt.n_ubatch;
    return (uint64_t)e->logits_stride * (uint64_t)rows;
}

static uint64_t kv_all(const struct tessera_engine *e, int n_ctx)
{
    return (uint64_t)e->opt.n_sessions * fit_kv_bytes(e, n_ctx);
}

uint64_t fit_staging(const struct tessera_engine *e, const struct placement *p)
{
    return fetch_staging(&e->resid.parts, e->opt.n_threads, p->depth);
}

uint64_t fit_start_bytes(void)
{
    /* Where no file of the program is cached, the system may read each of them whole, and charges us; of
     * what a debugger needs, which lies at the end, ordinary drives read nothing. */
    const uint64_t sum = mem_code_bytes() + START_BYTES;
    return sum < START_MOST ? sum : START_MOST;
}

/* Bytes of a header: what comes before the first tensor's data, of all shards. */
static uint64_t header_bytes(const struct tessera_engine *e)
{
    uint64_t sum = 0;
    for (int s = 0; s < gguf_n_shards(e->file); s++) {
        uint64_t first = UINT64_MAX;
        for (uint64_t i = 0; i < gguf_n_tensors(e->file); i++) {
            const struct gguf_tensor *t = gguf_tensor_at(e->file, i);
            if (t->shard == s && t->offset < first) first = t->offset;
        }
        if (first != UINT64_MAX) sum += first;
    }
    return sum;
}

/* What a stack takes: its tables, and on every thread what products unpack. */
static uint64_t stack_bytes(const struct tessera_engine *e)
{
    const uint64_t tables = (uint64_t)e->stack.n_units * (sizeof *e->stack.unit + sizeof *e->unit +
                                                          sizeof *e->level_end) +
                            (uint64_t)e->resid.parts.n_parts * sizeof(struct stacked);
    int n_cols = 0;
    for (int i = 0; i < e->stack.n_tensors; i++)
        if (e->stack.tensor[i].n_cols > n_cols) n_cols = e->stack.tensor[i].n_cols;
    if (!n_cols) return 0;
    return tables + (uint64_t)e->opt.n_threads * stack_scratch(e->stack.type, n_cols);
}

uint64_t fit_process_bytes(const struct tessera_engine *e)
{
    const uint64_t threads = 2 * (uint64_t)e->opt.n_threads;
    const uint64_t tables = (uint64_t)e->resid.n_groups * (sizeof(struct group) + 3 * sizeof(int)) +
                            (uint64_t)e->model.n_op * (sizeof(struct op) + 128);
    const uint64_t rows = (uint64_t)e->opt.n_batch * (uint64_t)(64 + 12 * e->model.n_sets);
    const uint64_t vocab = (uint64_t)e->model.n_vocab * 16;
    /* The header is kept, and a tokenizer's tables and index are about as large again. */
    return CODE_BYTES + threads * THREAD_BYTES + header_bytes(e) * 9 / 4 + tables + rows + vocab +
           stack_bytes(e) + forecast_bytes(&e->forecast) + (e->approx ? e->approx->bytes : 0);
}

static uint64_t whole_pages(uint64_t n)
{
    const uint64_t page = mem_page_size();
    return (n + page - 1) / page * page;
}

/* Everything but weights, KV cache and staging; what a device reads from the host is part of it. */
static uint64_t beside(const struct tessera_engine *e)
{
    return e->process + whole_pages(fit_arena_bytes(e)) + whole_pages(fit_logits_bytes(e)) +
           gates_bytes(&e->gates) + e->device_plan.host + REGION_PAGES * mem_page_size();
}

static uint64_t need(const struct tessera_engine *e, const struct placement *p, int n_ctx)
{
    const bool all = place_resident(&e->resid.sizes, p);
    /* A stack reads levels at any resize: then what fits must not depend on what came before. */
    const uint64_t st = e->resid.all_ram && all && !e->stack.present ? 0 : fit_staging(e, p);
    uint64_t sum = beside(e) + p->bytes + p->bytes / PAGE_TABLE + kv_all(e, n_ctx) + st;
    if (sum + MEM_HUGE_PAGE > MEM_HUGE_FROM && !all) sum += MEM_HUGE_PAGE;
    return sum > e->start ? sum : e->start;
}

double fit_mib(uint64_t bytes)
{
    const uint64_t mib = 1u << 20, parts = bytes < 64 * mib ? 10 : 1;
    return (double)((bytes * parts + mib) / mib) / (double)parts;
}

uint64_t fit_need(const struct tessera_engine *e, const struct placement *p)
{
    return need(e, p, e->opt.n_ctx);
}

/* The best placement, with so many reads per loader, beside `rest` bytes of a budget. */
static bool place_within(const struct tessera_engine *e, uint64_t budget, uint64_t rest, int depth,
                         struct placement *p)
{
    p->depth = depth;
    rest += fit_staging(e, p) + (budget >= MEM_HUGE_FROM ? MEM_HUGE_PAGE : 0);
    const uint64_t left = rest < budget ? budget - rest : 0;
    const bool fits = place_solve(&e->resid.sizes, left - left / (PAGE_TABLE + 1), p);
    p->depth = depth;
    return fits;
}

static bool solve(const struct tessera_engine *e, uint64_t budget, int n_ctx, struct placement *p)
{
    *p = place_all(&e->resid.sizes);
    for (p->depth = FETCH_DEPTH; p->depth; p->depth /= 2)
        if (need(e, p, n_ctx) <= budget) return true;
    /* Levels rise with the budget; they are not given away for more reads at a time. */
    for (int depth = e->stack.present ? 1 : FETCH_DEPTH; depth && budget >= e->start; depth /= 2) {
        const uint64_t rest = beside(e) + kv_all(e, n_ctx);
        if (place_within(e, budget, rest, depth, p) &&
            (!place_resident(&e->resid.sizes, p) || need(e, p, n_ctx) <= budget)) return true;
    }
    return false;
}

/* KV bytes that are there whatever the contexts hold: recurrent states, and pages that are filled. */
static uint64_t kv_now(const struct tessera_engine *e)
{
    uint64_t sum = (uint64_t)e->opt.n_sessions * (uint64_t)(e->n_snapshots + 2) * e->state_bytes;
    for (const struct tessera_session *s = e->session; s; s = s->next)
        sum += session_committed(s);
    return sum;
}

bool fit_weights(const struct tessera_engine *e, uint64_t budget, struct placement *p)
{
    if (!solve(e, budget, e->opt.n_ctx, p)) return false;
    if (p->bytes == place_all(&e->resid.sizes).bytes) return true;
    if (e->stack.present) return true; /* its depths must not follow from what a cache holds */
    /* What the KV caches have not filled yet works for the weights until they do. */
    struct placement more;
    if (place_within(e, budget, beside(e) + kv_now(e), p->depth, &more) && more.bytes > p->bytes)
        *p = more;
    return true;
}

uint64_t fit_least(const struct tessera_engine *e)
{
    const struct placement p = place_least(&e->resid.sizes);
    return need(e, &p, e->opt.n_ctx);
}

bool fit_room(const struct tessera_engine *e, uint64_t bytes, struct placement *p)
{
    const struct ledger *l = &e->ledger;
    const struct placement *now = &e->resid.now;
    /* What nobody has is room, too: slots are coarse, and weights that gave way earlier gave more than
     * was asked for. */
    const uint64_t mine = now->bytes + (e->resid.all_ram ? 0 : fit_staging(e, now)), total = l->total;
    const uint64_t other = total > mine ? total - mine : 0;
    for (int depth = now->depth; depth; depth /= 2)
        if (place_within(e, l->budget, other + bytes, depth, p)) return true;
    return false;
}

/* Whether a layer's end lies between the first and the last step that touch a buffer. */
static bool is_carried(const struct build *m, const struct buf *f)
{
    if (f->kind != BUF_F32 && f->kind != BUF_ACT) return false;
    for (int i = f->first; i < f->last; i++)
        if (m->op[i].layer != m->op[i + 1].layer) return true;
    return false;
}

uint64_t fit_carry(const struct tessera_engine *e, int n_rows, uint64_t *at)
{
    const struct plan *p = &e->plan[e->n_plans - 1];
    uint64_t sum = 0;
    for (int b = 1; b < e->model.n_buf; b++) {
        const struct buf *f = &e->model.buf[b];
        const bool carried = is_carried(&e->model, f);
        if (at) at[b] = carried ? sum : UINT64_MAX;
        if (!carried) continue;
        /* Rows with logits are n_ubatch at most. */
        const int n = f->rows == ROWS_OUT && n_rows > e->opt.n_ubatch ? e->opt.n_ubatch : n_rows;
        sum += (uint64_t)p->stride[b] * (uint64_t)n;
    }
    return sum;
}

int fit_batch(const struct tessera_engine *e)
{
    const struct resid *r = &e->resid;
    const struct placement least = place_least(&r->sizes);
    int n = e->opt.n_batch;
    if (place_resident(&r->sizes, &r->now) || !r->now.dense_home || !r->n_banks)
        return e->opt.n_ubatch;
    for (; n > e->opt.n_ubatch; n /= 2) {
        const uint64_t carry = fit_carry(e, n, NULL);
        if (carry <= e->opt.mem_budget / 32 &&
            r->now.bytes - least.bytes + e->across.committed >= 2 * (carry + fit_staging(e, &r->now))) break;
    }
    return n > e->opt.n_ubatch ? n : e->opt.n_ubatch;
}

/* Snapshots of recurrent states that a session may keep when memory is no object. */
static int most_snapshots(const struct tessera_engine *e)
{
    if (!e->state_bytes) return 0;
    const uint64_t n = SNAPSHOT_BYTES / e->state_bytes;
    return n > SNAPSHOTS_MAX ? SNAPSHOTS_MAX : n < 1 ? 1 : (int)n;
}

/* Drops the plan of the largest bucket of rows; false when it is the last one. */
static bool smaller_batch(struct tessera_engine *e, int least)
{
    if (e->n_plans < 2 || e->plan[e->n_plans - 2].n_rows < least) return false;
    plan_free(&e->plan[--e->n_plans]);
    e->opt.n_ubatch = e->plan[e->n_plans - 1].n_rows;
    return true;
}

static int less_context(int n_ctx, int least)
{
    return n_ctx - KV_PAGE > least ? n_ctx - KV_PAGE : least;
}

/* Everything in RAM, with a context of at least `least`. */
static bool fit_all(struct tessera_engine *e, int want, int least, struct placement *p)
{
    *p = place_all(&e->resid.sizes);
    e->n_snapshots = most_snapshots(e);
    while (e->n_snapshots > 1 && need(e, p, want) > e->opt.mem_budget) e->n_snapshots--;
    while (want > least && need(e, p, want) > e->opt.mem_budget) want = less_context(want, least);
    e->opt.n_ctx = want;
    return need(e, p, want) <= e->opt.mem_budget;
}

enum status fit_budget(struct tessera_engine *e, struct placement *p, struct err *err)
{
    const uint64_t budget = e->opt.mem_budget;
    int want = e->opt.n_ctx;
    const bool chosen = want > 0;
    if (chosen && want > e->hp.n_ctx_train)
        return err_set(err, ERR_RANGE, "a context of %d tokens is larger than the %d that the "
                       "model was made for: use -c %d or less", want, e->hp.n_ctx_train,
                       e->hp.n_ctx_train);
    if (!chosen) want = e->hp.n_ctx_train < CTX_DEFAULT ? e->hp.n_ctx_train : CTX_DEFAULT;
    const int least = chosen || want < CTX_MIN ? want : CTX_MIN;
    /* A text that is seen whole is one step. */
    const bool whole = e->hp.denoise.sees != SEES_BEFORE;
    if (whole && want > e->opt.n_ubatch) want = e->opt.n_ubatch;
    if (fit_all(e, want, least > CTX_ALL_RAM || want < CTX_ALL_RAM ? least : CTX_ALL_RAM, p))
        return OK;
    e->n_snapshots = e->state_bytes ? 1 : 0;
    while (want > least && kv_all(e, want) > budget / 4) want = less_context(want, least);
    while ((beside(e) + fit_staging(e, p) > BESIDE_BYTES || fit_arena_bytes(e) > budget / 8) &&
           smaller_batch(e, whole ? least : ROWS_MIN)) {}
    while (!solve(e, budget, want, p)) {
        if (smaller_batch(e, whole ? least : e->opt.n_sessions)) continue;
        if (want > least) {
            want = less_context(want, least);
        } else if (e->n_snapshots) {
            e->n_snapshots = 0;
        } else {
            const struct placement least_there = place_least(&e->resid.sizes);
            return err_set(err, ERR_BUDGET, "the model does not fit %.10g MiB: with a context of %d "
                           "tokens and all weights but the largest step's on disk it needs --mem "
                           "%.10gM or more", (double)((budget * 10 + (1u << 19)) >> 20) / 10, want,
                           fit_mib(need(e, &least_there, want)));
        }
    }
    e->opt.n_ctx = whole && want > e->opt.n_ubatch ? e->opt.n_ubatch : want;
    return fit_weights(e, budget, p) ? OK : err_set(err, ERR_BUDGET, "the plan does not fit");
}
