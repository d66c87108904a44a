/* The engine: opens a model, plans its passes, loads its weights; see tessera.h.
 *
 * Owns everything that sessions share.  Order of opening: header, description, plans, budget check,
 * and only then memory and weights, so that what cannot fit is refused before anything is read. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe/base/machine.h"
#include "moe/load/identity.h"
#include "moe/run/depth_run.h"
#include "moe/run/informed.h"

enum { UBATCH_DEFAULT = 512, UBATCH_MAX = 16384, WHOLE_CTX = 2048 };

/* Page cache of code that nobody uses is given back below the first budget at once, and where the
 * plan leaves less than the second. */
static const uint64_t CODE_MATTERS = 64u << 20, CODE_SLACK = 16u << 20;

struct tessera_options tessera_defaults(void)
{
    return (struct tessera_options){.n_ubatch = UBATCH_DEFAULT, .n_sessions = 1,
                                    .n_logits = 1};
}

void engine_warn(void *arg, const char *text)
{
    struct tessera_engine *e = arg;
    char *mine = strdup(text);
    for (int i = 0; mine && i < WARNINGS_MAX; i++) {
        char *none = NULL; /* loaders warn, too */
        if (atomic_compare_exchange_strong(&e->warning[i], &none, mine)) return;
    }
    free(mine);
}

/* ---- opening, in order ---- */

/* Static and min need a table or a future that nobody has here. */
static enum status choose_policy(struct tessera_engine *e, enum policy_kind *kind, struct err *err)
{
    const char *name = e->opt.policy;
    if (name) *kind = policy_by_name(name);
    e->opt.policy = policy_name(*kind);
    if (*kind == POLICY_LRU || *kind == POLICY_LFU || *kind == POLICY_LRFU || *kind == POLICY_PLEC)
        return OK;
    return err_set(err, ERR_USAGE, "unknown policy '%s': lrfu, lru, lfu or plec", name);
}

/* The bank of an EXPERTS step: repeated layers share theirs. */
static int bank_of(const struct resid_bank *bank, int n, const struct op *op)
{
    int i = 0;
    while (i < n && bank[i].weight[0] != op->weight[0]) i++;
    return i;
}

static bool is_router(const struct op *op)
{
    return op->code == OP_ROUTE || op->code == OP_CHOOSE;
}

/* Numbers the layers with experts and lists what they and the other steps use, in order. */
static enum status open_residency(struct tessera_engine *e, struct err *err)
{
    const struct build *m = &e->model;
    struct resid_options o = {.n_experts = e->hp.n_expert, .policy = POLICY_LRFU};
    const size_t n_op = (size_t)m->n_op;
    struct resid_bank *bank = calloc(n_op + 1, sizeof *bank);
    int *lookup = calloc((size_t)e->weights.n + 1, sizeof *lookup);
    int *used = calloc(n_op * OP_IO + 1, sizeof *used), *first = calloc(n_op * OP_IO + 1, sizeof *first);
    int n_used = 0;
    enum status s = choose_policy(e, &o.policy, err);
    e->op_bank = calloc(n_op + 1, sizeof *e->op_bank);
    e->op_piece = calloc(n_op * OP_IO + 1, sizeof *e->op_piece);
    if (!s && (!bank || !lookup || !used || !first || !e->op_bank || !e->op_piece))
        s = err_set(err, ERR_MEMORY, "no memory for the list of weights");
    for (int i = 0; !s && i < m->n_op; i++) {
        const struct op *op = &m->op[i];
        e->op_bank[i] = o.n_banks;
        if (op->code == OP_EXPERTS) {
            const int b = bank_of(bank, o.n_banks, op);
            if (b == o.n_banks) memcpy(bank[o.n_banks++].weight, op->weight, sizeof bank->weight);
            e->op_bank[i] = b;
            for (int k = i; k > 0 && !is_router(&m->op[k]); k--) e->op_bank[k - 1] = b;
        } else if (op->code == OP_EMBED && e->weights.at[op->weight[0]].layout == WEIGHT_ROWS) {
            lookup[o.n_lookup++] = op->weight[0];
        } else if (op->code == OP_MATMUL || op->code == OP_HEAD_MATMUL) {
            for (int k = 0; k < OP_IO && op->weight[k] >= 0; k++) used[n_used++] = op->weight[k];
        }
    }
    o.bank = bank;
    o.lookup = lookup;
    stack_run_residency(e, &o);
    if (!s) s = resid_open(&e->resid, &e->weights, &o, err);
    if (!s) s = resid_sequence(&e->resid, used, n_used, first, err);
    for (int i = 0, n = 0; !s && i < m->n_op; i++) {
        const struct op *op = &m->op[i];
        if (op->code != OP_MATMUL && op->code != OP_HEAD_MATMUL) continue;
        for (int k = 0; k < OP_IO && op->weight[k] >= 0; k++)
            e->op_piece[i * OP_IO + k] = first[n++];
    }
    free(bank);
    free(lookup);
    free(used);
    free(first);
    return s;
}

/* What the options ask of a model that repeats layers. */
static enum status depth_options(struct tessera_engine *e, struct err *err)
{
    const struct tessera_options *o = &e->opt;
    struct loop_params *loop = &e->hp.loop;
    struct recursion_params *rec = &e->hp.rec;
    const char *name = e->arch->name;
    if (o->loops && !loop->n) return err_set(err, ERR_USAGE, "%s has no loops to leave", name);
    if (o->loops < 0 || (o->loops && o->loops > loop->n))
        return err_set(err, ERR_USAGE, "%s runs 1 to %d loops, not %d", name, loop->n, o->loops);
    const bool exits = o->exit_at != 0 || o->exit_weighted;
    if (exits && !loop->has_gate)
        return err_set(err, ERR_USAGE, "%s has no exit gate", name);
    if (o->exit_at < 0 || o->exit_at > 1 || (o->exit_at != 0 && o->exit_weighted))
        return err_set(err, ERR_USAGE, "an exit is a number above 0 and up to 1, or weighted");
    if (o->depth_exact && (rec->router != ROUTER_EXPERT || !rec->n))
        return err_set(err, ERR_USAGE, "%s has no recursions that choose tokens by capacity", name);
    if (o->loops) loop->n_run = o->loops;
    if (o->exit_at != 0) loop->exit_at = o->exit_at;
    loop->weighted = o->exit_weighted;
    rec->exact = o->depth_exact;
    return OK;
}

/* Experts that choose the rows of prompts, where rows choose theirs. */
static enum status choice_option(struct tessera_engine *e, struct err *err)
{
    struct route_params *p = &e->hp.route;
    const char *name = e->arch->name;
    if (!e->opt.expert_choice) return OK;
    if (!e->hp.n_expert) return err_set(err, ERR_USAGE, "%s has no experts that could choose", name);
    if (p->choice.k_max) return err_set(err, ERR_USAGE, "%s: its experts choose anyway", name);
    if (e->hp.denoise.sees || e->hp.concept.ratio > 0)
        return err_set(err, ERR_USAGE, "%s writes no text token by token behind a prompt: experts that "
                       "choose the prompt's are not for it", name);
    if (p->n_group > 1)
        return err_set(err, ERR_UNSUPPORTED, "%s chooses groups of experts first: experts that choose "
                       "would not keep to them", name);
    p->choice = (struct choice_params){.k_min = p->n_used, .k_max = p->n_used, .mask = -1,
                                       .prompts = true};
    return OK;
}

void tessera_own_routing(tessera_engine *e, bool on) { e->own_routing = on; }

static enum status open_model(struct tessera_engine *e, struct err *err)
{
    enum status s = gguf_open(e->path, NULL, &e->file, err);
    if (s) return s;
    if ((s = arch_find(e->file, &e->arch, err)) ||
        (s = e->arch->hparams(e->file, &e->hp, err)) || (s = depth_options(e, err)) ||
        (s = choice_option(e, err)))
        return s;
    struct gguf_str name;
    if (gguf_find(e->file, "general.name") && !gguf_get_str(e->file, "general.name", &name, NULL))
        (void)snprintf(e->name, sizeof e->name, "%.*s", (int)(name.n < 120 ? name.n : 120), name.s);
    if ((s = identity_of(e->file, &e->identity, err))) return s;
    weights_init(&e->weights, e->file);
    if ((s = stack_run_open(e, err))) return s;
    build_init(&e->model, &e->weights, err);
    e->arch->describe(&e->model, &e->hp);
    if (err->code) return err->code;
    if ((s = stack_run_bind(e, err))) return s;
    if ((s = weights_check_all_used(&e->weights, err)) || (s = open_residency(e, err)) ||
        (s = gates_open(&e->gates, &e->model, e->op_bank, e->resid.n_banks, err)))
        return s;
    return forecast_open(&e->forecast, e, e->opt.predictor, err);
}

static void open_tokenizer(struct tessera_engine *e)
{
    err_clear(&e->tok_err);
    if (tok_open(e->file, &e->tok, &e->tok_err)) {
        e->tok = NULL;
        return;
    }
    if (tok_n_vocab(e->tok) > e->model.n_vocab) {
        char text[200];
        (void)snprintf(text, sizeof text,
                       "%s: the tokenizer has %d tokens but the model only %d: some text will be "
                       "refused", e->path, tok_n_vocab(e->tok), e->model.n_vocab);
        engine_warn(e, text);
    }
}

static enum status layout_kv(struct tessera_engine *e, struct err *err)
{
    const struct build *m = &e->model;
    const enum kv_type type = e->opt.kv == TESSERA_KV_Q8_0 ? KV_Q8_0 : KV_F16;
    e->line[0].rows = ROWS_ALL;
    e->n_lines = 1;
    for (int s = 1; s < ROWS_MAX; s++) e->rows_of[s].line = -1;
    e->kv_offset = calloc((size_t)m->n_slot + 1, sizeof *e->kv_offset);
    if (!e->kv_offset) return err_set(err, ERR_MEMORY, "no memory for the KV layout");
    e->state_offset = calloc((size_t)m->n_slot + 1, sizeof *e->state_offset);
    if (!e->state_offset) return err_set(err, ERR_MEMORY, "no memory for the KV layout");
    for (int i = 0; i < m->n_slot; i++) {
        const struct kv_slot *k = &m->slot[i];
        if (k->type == KV_SLOT_RECURRENT) {
            uint64_t matrices;
            e->state_offset[i] = e->state_bytes;
            e->state_bytes += dev_state_bytes(k, &matrices);
            continue;
        }
        if (type == KV_Q8_0 && (k->dk % 32 || k->dv % 32))
            return err_set(err, ERR_UNSUPPORTED, "a q8_0 KV cache needs heads in steps of 32 "
                           "values, this model's have %d: use -ctk f16 -ctv f16", k->dk);
        struct set_rows *of = &e->rows_of[k->rows];
        if (of->line < 0) {
            of->line = e->n_lines;
            e->line[e->n_lines++].rows = k->rows;
        }
        e->kv_offset[i] = e->line[of->line].page_bytes;
        e->line[of->line].page_bytes += (uint64_t)k->n_heads *
                                        attn_head_bytes(type, k->dk, k->latent ? 0 : k->dv);
    }
    return OK;
}

static enum status make_plans(struct tessera_engine *e, struct err *err)
{
    for (int n = 1;; n *= 2) {
        if (n > e->opt.n_ubatch) n = e->opt.n_ubatch;
        enum status s = plan_make(&e->plan[e->n_plans], &e->model, n, err);
        if (s) return s;
        e->n_plans++;
        if (n == e->opt.n_ubatch) return OK;
    }
}

/* Row sets from ROWS_FIRST on, and what their steps read and do. */
static enum status open_sets(struct tessera_engine *e, struct err *err)
{
    const size_t ub = (size_t)e->opt.n_ubatch;
    const struct build *m = &e->model;
    for (int s = ROWS_FIRST; s < m->n_sets; s++) {
        struct set_rows *r = &e->rows_of[s];
        r->row = calloc(3 * ub, sizeof *r->row);
        if (!r->row) return err_set(err, ERR_MEMORY, "no memory for the row sets");
        r->where = r->row + ub;
        r->pos = r->where + ub;
    }
    for (int i = 0; i < m->n_op; i++) {
        struct set_rows *r = &e->rows_of[m->op[i].rows];
        if (m->op[i].code == OP_KV_CARRY) r->carry = m->op[i].p.carry.step;
        r->weight_bytes += e->plan[0].step[i].weight_bytes_max;
        r->macs += e->plan[0].step[i].macs_row;
    }
    e->depth.n_max = m->n_depth;
    e->depth.concepts = m->has_chances;
    return OK;
}

/* What the gates of rows that so many experts have taken are multiplied by. */
static enum status open_choice(struct tessera_engine *e, struct err *err)
{
    const struct gguf_kv *kv = e->hp.choice_scale;
    if (!e->hp.route.choice.k_max) return OK;
    e->capacity = calloc((size_t)e->opt.n_batch, sizeof *e->capacity);
    e->choice_scale = kv ? calloc((size_t)kv->value.n, sizeof *e->choice_scale) : NULL;
    if (!e->capacity || (kv && !e->choice_scale))
        return err_set(err, ERR_MEMORY, "no memory for the router");
    for (uint64_t i = 0; kv && i < kv->value.n; i++)
        e->choice_scale[i] = (float)gguf_elem_f64(&kv->value, i);
    return OK;
}

static enum status open_step_arrays(struct tessera_engine *e, struct err *err)
{
    const size_t ub = (size_t)e->opt.n_batch, lines = (size_t)e->n_lines;
    e->buf = calloc((size_t)e->model.n_buf + GATE_OPS, sizeof *e->buf);
    e->weight = calloc((size_t)e->weights.n + 1, sizeof *e->weight);
    e->row = calloc(ub, sizeof *e->row);
    e->out_row = calloc(ub, sizeof *e->out_row);
    e->kv_base = calloc(lines * ub, sizeof *e->kv_base);
    e->kv_n = calloc(lines * ub, sizeof *e->kv_n);
    e->end = calloc(ub, sizeof *e->end);
    e->pass = calloc(ub, sizeof *e->pass);
    e->carry = calloc(ub, sizeof *e->carry);
    e->logit = calloc(ub, sizeof *e->logit);
    e->serials = calloc(ub, sizeof *e->serials);
    e->stepped = calloc(ub, sizeof *e->stepped);
    e->input = calloc(ub, sizeof *e->input);
    e->piece_out = calloc((size_t)e->opt.n_ubatch, sizeof *e->piece_out);
    e->across_at = calloc((size_t)e->model.n_buf, sizeof *e->across_at);
    e->in_ram = calloc(2 * (size_t)e->hp.n_expert + 1, 1);
    if (e->state_bytes) {
        e->segment = calloc(ub, sizeof *e->segment);
        e->segment_of = calloc(ub + 1, sizeof *e->segment_of);
        if (!e->segment || !e->segment_of)
            return err_set(err, ERR_MEMORY, "no memory for the step arrays");
    }
    if (!e->buf || !e->weight || !e->row || !e->out_row || !e->kv_base || !e->serials ||
        !e->input || !e->in_ram || !e->kv_n || !e->end || !e->pass || !e->carry || !e->logit ||
        !e->stepped || !e->piece_out || !e->across_at)
        return err_set(err, ERR_MEMORY, "no memory for the step arrays");
    enum status s = open_sets(e, err);
    if (s) return s;
    for (int i = 0; i < e->weights.n; i++) {
        const struct weight *w = &e->weights.at[i];
        e->weight[i] = (struct dev_weight){
            .type = w->type, .tiles = w->layout == WEIGHT_TILES,
            .n_cols = w->n_cols, .n_rows = w->n_rows,
        };
    }
    s = open_choice(e, err);
    return s ? s : obs_open(&e->obs, e->hp.n_expert ? route_slots(&e->hp.route) : 0, err);
}

static enum status load(struct tessera_engine *e, const struct placement *p, struct err *err)
{
    enum status s;
    const uint64_t arena = fit_arena_bytes(e);
    if (!ledger_take(&e->ledger, MEM_PROCESS, e->process))
        return err_set(err, ERR_BUDGET, "the process alone needs %llu bytes",
                       (unsigned long long)e->process);
    if ((s = region_reserve(&e->arena, &e->ledger, MEM_ACT, arena, err)) ||
        (s = region_commit(&e->arena, arena, err)) ||
        (s = region_reserve(&e->logits, &e->ledger, MEM_ACT,
                            (size_t)e->logits_stride * (size_t)e->opt.n_ubatch, err)) ||
        (s = region_commit(&e->logits, fit_logits_bytes(e), err)) ||
        (s = region_reserve(&e->across, &e->ledger, MEM_ACT,
                            fit_carry(e, e->opt.n_batch, e->across_at), err)) ||
        (s = gates_commit(&e->gates, &e->model, &e->ledger, e->buf, err)) ||
        (s = pool_open(e->opt.n_threads, &e->pool, err)) ||
        (s = dev_cpu_open(e->pool, e->tier, &e->dev, err)))
        return s;
    resid_prepare(&e->resid, &(struct resid_start){
        .ledger = &e->ledger, .n_threads = e->opt.n_threads, .ops = e->opt.files,
        .no_uring = e->opt.no_uring, .warn = engine_warn, .warn_arg = e,
    });
    if (fit_need(e, p) > e->opt.mem_budget - CODE_SLACK) mem_drop_code();
    /* A device copies what is at home while it is opened. */
    if (e->opt.background && !e->opt.device) return resid_begin(&e->resid, p, err);
    return resid_apply(&e->resid, p, e->opt.progress, e->opt.progress_arg, err);
}

/* Automatic budget: what is free now, in memory and in the control group, less a reserve for
 * everybody else of max(1 GiB, 6 %), and of half at most on small machines; *reserve: that. */
static uint64_t auto_budget(uint64_t *reserve)
{
    struct machine m;
    memset(&m, 0, sizeof m);
    machine_memory(&m, NULL);
    uint64_t room = m.ram_available;
    if (m.cgroup_headroom < room) room = m.cgroup_headroom;
    if (!room || room == MACHINE_NONE) return UINT64_MAX; /* no limit is more honest than a guess */
    *reserve = pressure_reserve(m.ram_bytes);
    if (*reserve > room / 2) *reserve = room / 2;
    return room - *reserve;
}

static enum status resolve(struct tessera_engine *e, const struct tessera_options *o,
                           struct err *err)
{
    e->opt = *o;
    if (!o->model_path) return err_set(err, ERR_USAGE, "no model file was named: use -m FILE");
    if (o->n_threads < 0 || o->n_ctx < 0 || o->n_ubatch < 1 || o->n_ubatch > UBATCH_MAX ||
        o->n_sessions < 1 || o->n_logits < 1)
        return err_set(err, ERR_USAGE, "threads, context, sessions, logits or micro-batch (1 to %d) are "
                       "out of range", UBATCH_MAX);
    if (o->n_batch > UBATCH_MAX)
        return err_set(err, ERR_USAGE, "a step takes %d rows at most", UBATCH_MAX);
    if (e->opt.n_batch < o->n_ubatch) e->opt.n_batch = o->n_ubatch;
    if (!o->n_threads) {
        long n = sysconf(_SC_NPROCESSORS_ONLN);
        e->opt.n_threads = n < 1 ? 1 : n > 256 ? 256 : (int)n;
    }
    uint64_t reserve = 0;
    if (!o->mem_budget) e->opt.mem_budget = auto_budget(&reserve);
    if (reserve && !o->header_only) pressure_open(&e->pressure, e->opt.mem_budget, reserve);
    e->path = strdup(o->model_path);
    if (!e->path) return err_set(err, ERR_MEMORY, "no memory to open the model");
    e->opt.model_path = e->path;
    return OK;
}

/* A text that is seen whole is one step: steps are made as large as the context, which may be
 * shortened to what fits (fit.c) when nobody asked for one. */
static enum status whole_texts(struct tessera_engine *e, struct err *err)
{
    struct tessera_options *o = &e->opt;
    if (o->n_ctx > UBATCH_MAX)
        return err_set(err, ERR_RANGE, "a context of %d tokens: %s sees a text as a whole, and a step "
                       "takes %d rows at most", o->n_ctx, e->arch->name, UBATCH_MAX);
    int rows = o->n_ctx ? o->n_ctx : e->hp.n_ctx_train;
    if (!o->n_ctx && rows > WHOLE_CTX) rows = WHOLE_CTX;
    if (o->n_ubatch < rows) o->n_ubatch = rows;
    o->n_batch = o->n_ubatch;
    return OK;
}

/* The token that hides others: the file names it, or its text does (LLaDA-8B). */
static int32_t mask_token(const struct tessera_engine *e)
{
    static const char *const texts[] = {"<|mdm_mask|>", "<|mask|>", "[MASK]"};
    int32_t id = e->hp.denoise.mask;
    for (size_t i = 0; e->tok && id < 0 && i < sizeof texts / sizeof *texts; i++)
        id = tok_find(e->tok, texts[i]);
    return e->hp.denoise.sees && id < e->model.n_vocab ? id : -1;
}

enum status tessera_open(const struct tessera_options *o, tessera_engine **out, struct err *err)
{
    struct err local;
    if (!err) err = &local;
    err_clear(err);
    *out = NULL;
    struct tessera_engine *e = calloc(1, sizeof *e);
    if (!e) return err_set(err, ERR_MEMORY, "no memory to open the model");
    e->forced_depth = -1;
    e->tier = cpu_tier_best();
    e->api = dev_cpu_api();
    enum status s = resolve(e, o, err);
    if (!s && e->opt.mem_budget < CODE_MATTERS) mem_drop_code();
    if (!s) s = open_model(e, err);
    if (!s && e->hp.denoise.sees) s = whole_texts(e, err);
    if (!s) s = layout_kv(e, err);
    if (!s) s = make_plans(e, err);
    if (!s && o->forecasters) s = approx_open(e, o->forecasters, err);
    if (!s) {
        e->logits_stride = (uint32_t)(((uint64_t)e->model.n_vocab * sizeof(float) + 63) & ~63u);
        ledger_init(&e->ledger, e->opt.mem_budget);
        e->process = fit_process_bytes(e);
        e->start = fit_start_bytes();
        rates_of(&e->rates, o->machine);
        e->opt.machine = NULL; /* the caller's */
        s = prior_open(e, err);
        second_find(e);
        if (!s) s = fit_budget(e, &e->placement, err);
        if (!s) second_fit(e);
    }
    /* States, depths and what rows see ahead are those of a step. */
    if (!s && (e->state_bytes || e->model.n_sets > ROWS_FIRST || e->hp.denoise.sees))
        e->opt.n_batch = e->opt.n_ubatch;
    if (!s) s = open_step_arrays(e, err);
    if (!s && !o->header_only) s = load(e, &e->placement, err);
    if (!s) open_tokenizer(e); /* while weights arrive */
    if (!s) e->mask = mask_token(e);
    if (!s && !o->header_only) second_open(e);
    if (s) {
        tessera_close(e);
        return s;
    }
    if (e->approx) approx_set(e->approx, APPROX_JUDGE, (double)o->approximate);
    *out = e;
    return OK;
}

void tessera_close(tessera_engine *e)
{
    if (!e) return;
    ASSERT(e->n_sessions == 0);
    second_close(e);
    if (e->dev) e->api->close(e->dev);
    pool_close(e->pool);
    forecast_close(&e->forecast);
    gates_close(&e->gates);
    resid_close(&e->resid);
    prior_close(e->prior);
    stack_run_close(e);
    free(e->op_bank);
    free(e->op_piece);
    region_release(&e->arena);
    region_release(&e->logits);
    for (int i = 0; i < e->n_plans; i++) plan_free(&e->plan[i]);
    build_free(&e->model);
    weights_free(&e->weights);
    tok_close(e->tok);
    gguf_close(e->file);
    obs_close(&e->obs);
    watch_end(&e->watch);
    profile_close(e->profile);
    approx_close(e->approx);
    for (int i = 0; i < WARNINGS_MAX; i++) free(e->warning[i]);
    free(e->kv_offset);
    free(e->buf);
    free(e->weight);
    free(e->row);
    free(e->out_row);
    free(e->kv_base);
    free(e->kv_n);
    free(e->end);
    free(e->capacity);
    free(e->choice_scale);
    free(e->pass);
    free(e->carry);
    free(e->logit);
    for (int s = 0; s < ROWS_MAX; s++) free(e->rows_of[s].row);
    free(e->serials);
    free(e->in_ram);
    free(e->stepped);
    free(e->piece_out);
    free(e->across_at);
    region_release(&e->across);
    free(e->segment);
    free(e->segment_of);
    free(e->state_offset);
    free(e->input);
    free(e->path);
    free(e);
}

/* ---- questions ---- */

static const char *common_type(const struct tessera_engine *e)
{
    uint64_t bytes[QTYPE_ID_END] = {0};
    int best = 0;
    for (int i = 0; i < e->weights.n; i++) {
        const struct weight *w = &e->weights.at[i];
        if (w->type == QTYPE_BYTES) continue; /* levels above a stack's bases */
        bytes[w->type] += (uint64_t)w->n_mats * w->mat_file_bytes;
        if (bytes[w->type] > bytes[best]) best = (int)w->type;
    }
    return qtype_info((uint32_t)best)->name;
}

struct tessera_model tessera_model(const tessera_engine *e)
{
    struct tessera_model m = {
        .arch = e->arch->name, .name = e->name, .n_layer = e->hp.n_layer, .n_embd = e->hp.n_embd,
        .n_vocab = e->model.n_vocab, .n_ctx_train = e->hp.n_ctx_train, .n_expert = e->hp.n_expert,
        .n_expert_used = e->hp.n_expert_used,
        .n_expert_slots = e->hp.n_expert ? route_slots(&e->hp.route) : 0, .file_bytes = gguf_file_bytes(e->file),
        .weight_bytes = e->placement.bytes, .n_ctx = e->opt.n_ctx, .n_threads = e->opt.n_threads,
        .n_ubatch = e->opt.n_ubatch, .n_batch = fit_batch(e), .cpu = cpu_tier_name(e->tier),
        .device = second_used(e) ? e->opt.device->name : NULL,
        .type_label = common_type(e),
        .hash = e->identity, .sees_both = e->hp.denoise.sees != SEES_BEFORE,
        .block = e->hp.denoise.sees > 0 ? e->hp.denoise.sees : 0, .mask = e->mask,
        .shifted = e->hp.denoise.shift,
    };
    for (int i = 0; i < e->weights.n; i++) {
        const struct weight *w = &e->weights.at[i];
        if (w->type == QTYPE_BYTES) continue; /* of the same parameters */
        const uint64_t one = (uint64_t)w->n_cols * (uint64_t)w->n_rows;
        m.n_params += one * (uint64_t)w->n_mats;
        m.n_params_active += one * (uint64_t)(w->n_mats > 1 ? e->hp.n_expert_used : 1);
    }
    return m;
}

const struct tok *tessera_tok(const tessera_engine *e) { return e->tok; }
const char *tessera_tok_error(const tessera_engine *e) { return e->tok ? "" : e->tok_err.msg; }
const struct gguf *tessera_gguf(const tessera_engine *e) { return e->file; }

const char *tessera_warning(const tessera_engine *e, int i)
{
    return i >= 0 && i < WARNINGS_MAX ? e->warning[i] : NULL;
}

struct tessera_memory tessera_memory(const tessera_engine *e)
{
    return (struct tessera_memory){
        .weights = atomic_load(&e->ledger.used[MEM_WEIGHTS]),
        .kv = atomic_load(&e->ledger.used[MEM_KV]),
        .activations = atomic_load(&e->ledger.used[MEM_ACT]),
        .staging = atomic_load(&e->ledger.used[MEM_STAGING]),
        .process = atomic_load(&e->ledger.used[MEM_PROCESS]),
        .total = atomic_load(&e->ledger.total),
        .peak = atomic_load(&e->ledger.peak),
        .budget = e->ledger.budget,
    };
}

struct tessera_traffic tessera_traffic(const tessera_engine *e)
{
    const struct resid_counts *c = &e->resid.count;
    const struct devtier *d = &e->devtier;
    const struct forecast *g = &e->forecast;
    struct plan_tiers t;
    promise((struct tessera_engine *)(uintptr_t)e, &e->placement, &t); /* it remembers answers */
    return (struct tessera_traffic){
        .device_ran = d->count.ran, .device_sent = d->count.sent, .device_filled = d->count.uploads,
        .device_displaced = d->count.displaced, .device_bytes = d->count.bytes,
        .device_seconds = devtier_on(d) ? d->api->clock(d->dev) : 0,
        .device_modelled = e->device_modelled,
        .steps = e->n_steps, .hits = c->hits, .misses = c->misses, .bytes_read = c->bytes_read,
        .shrunk = e->pressure.shrunk, .grown = e->pressure.grown, .spilled = e->pressure.spilled,
        .evictions = c->evictions, .waited = c->waited, .reading = 1e-9 * (double)c->reading,
        .policy = e->resid.policy ? e->opt.policy : "",
        .predictor = g->name, .ahead = g->kind != PREDICT_NONE && (g->always || g->on),
        .trials = g->n_trials, .trials_won = g->n_on,
        .seconds_of = {g->seconds[0], g->seconds[1]},
        .waited_of = {g->waited_of[0], g->waited_of[1]},
        .guessed = c->guessed, .useful = c->useful, .late = c->late, .cancelled = c->cancelled,
        .guess_bytes = c->guess_bytes, .useful_bytes = c->useful_bytes,
        .wasted_bytes = c->wasted_bytes, .asked = g->asked, .named = g->named, .missed = g->missed,
        .missed_named = g->missed_named, .hit_expected = t.hit, .token_disk_expected = t.token_disk,
        .seconds_expected = {t.seconds[0], t.seconds[1], t.seconds[2]},
    };
}

struct tessera_approx tessera_approx(const tessera_engine *e)
{
    const struct approx *a = e->approx;
    if (!a || a->mode == APPROX_OFF) return (struct tessera_approx){.share = 0};
    return (struct tessera_approx){a->share, a->rows, a->rows_on, a->skipped,
                                   forecasters_price(&a->f, a->share)};
}

struct tessera_depth tessera_depth(const tessera_engine *e) { return e->depth; }

/* Of the pages of all timelines, what rows are expected to fill. */
static double kv_share(const struct tessera_engine *e)
{
    double all = 0, filled = 0;
    for (int l = 0; l < e->n_lines; l++) {
        all += (double)e->line[l].page_bytes;
        filled += (double)e->line[l].page_bytes * e->model.set[e->line[l].rows].share;
    }
    return all > 0 ? filled / all : 1;
}

enum status tessera_explain(const tessera_engine *e, FILE *to, bool json, struct err *err)
{
    struct plan_summary s = {
        .arch = e->arch->name, .name = e->name, .cpu = cpu_tier_name(e->tier),
        .n_threads = e->opt.n_threads, .n_ctx = e->opt.n_ctx, .n_sessions = e->opt.n_sessions,
        .n_expert = e->hp.n_expert, .n_expert_used = e->hp.n_expert_used,
        .kv_type = e->opt.kv == TESSERA_KV_Q8_0 ? "q8_0" : "f16",
        .weights = e->placement.bytes,
        .kv = (uint64_t)e->opt.n_sessions * fit_kv_bytes(e, e->opt.n_ctx),
        .kv_share = kv_share(e),
        .state = (uint64_t)e->opt.n_sessions * (uint64_t)(e->n_snapshots + 2) * e->state_bytes,
        .n_snapshots = e->n_snapshots,
        .activations = fit_arena_bytes(e) + gates_bytes(&e->gates), .logits = fit_logits_bytes(e),
        .staging = fit_staging(e, &e->placement),
        .budget = e->opt.mem_budget, .n_parts = e->resid.parts.n_parts, .process = e->process,
    };
    promise((struct tessera_engine *)(uintptr_t)e, &e->placement, &s.tiers);
    promise_stack(e, &e->placement, &s.stack);
    const struct plan *prefill = &e->plan[e->n_plans - 1], *decode = &e->plan[0];
    (json ? plan_json : plan_text)(to, &s, prefill, decode);
    if (ferror(to)) return err_set(err, ERR_IO, "cannot write the plan");
    return OK;
}

enum status tessera_profile(tessera_engine *e, bool on, struct err *err)
{
    profile_close(e->profile);
    e->profile = NULL;
    return on ? profile_open(&e->model, &e->profile, err) : OK;
}

bool tessera_profile_at(const tessera_engine *e, int i, struct tessera_step_kind *kind)
{
    if (!e->profile || i < 0 || i >= e->profile->n_kinds) return false;
    *kind = e->profile->kind[i];
    return true;
}

/* ---- resizing ---- */

enum status engine_resize(struct tessera_engine *e, uint64_t budget, struct err *err)
{
    struct placement p;
    region_trim(&e->logits, fit_logits_bytes(e));
    region_trim(&e->across, 0);
    if (!fit_weights(e, budget, &p))
        return err_set(err, ERR_BUDGET, "%llu MiB are too little for what is open now: it needs "
                       "%.10gM or more", (unsigned long long)(budget >> 20), fit_mib(fit_least(e)));
    const bool grow = budget > e->opt.mem_budget;
    if (grow) ledger_set_budget(&e->ledger, budget);
    enum status s = resid_apply(&e->resid, &p, NULL, NULL, err);
    if (grow || atomic_load(&e->ledger.total) <= budget) {
        ledger_set_budget(&e->ledger, budget);
        e->opt.mem_budget = budget;
    }
    e->placement = e->resid.now;
    if (!s) return OK;
    const struct err why = *err;
    err_clear(err);
    return err_set_at(err, s, why.pos, e->resid.broken.code
                          ? "%s; no step can be run until another resize succeeds"
                          : "%s; what could not be read stays on disk, and steps go on with less: "
                            "resize again to try again", why.msg);
}

enum status tessera_resize(tessera_engine *e, uint64_t budget, struct err *err)
{
    struct err local;
    uint64_t reserve = 0;
    if (!err) err = &local;
    err_clear(err);
    if (e->opt.header_only)
        return err_set(err, ERR_USAGE, "the model was opened for planning only");
    const bool watched = !budget;
    if (!budget) { /* what is taken already is not free, but ours */
        budget = auto_budget(&reserve);
        if (budget != UINT64_MAX) budget += atomic_load(&e->ledger.total);
    }
    enum status s = engine_resize(e, budget, err);
    if (s) return s;
    e->pressure.on = false;
    if (watched && reserve) pressure_open(&e->pressure, budget, reserve);
    return OK;
}

enum status engine_commit(struct tessera_engine *e, struct region *r, uint64_t bytes,
                          struct err *err)
{
    struct placement p;
    struct err first;
    err_clear(&first);
    if (region_commit(r, bytes, &first) != ERR_BUDGET || !fit_room(e, bytes - r->committed, &p)) {
        if (first.code) *err = first;
        return first.code;
    }
    /* What is on its way after opening still is: only steps wait for it. */
    enum status s = e->resid.filling ? resid_begin(&e->resid, &p, err)
                                     : resid_apply(&e->resid, &p, NULL, NULL, err);
    e->placement = e->resid.now;
    return s ? s : region_commit(r, bytes, err);
}

void tessera_cancel(tessera_engine *e) { atomic_store(&e->cancel, 1); }

/* ---- step ---- */

static enum status check_inputs(const struct tessera_engine *e, const struct tessera_input *in,
                                int n_in, int *n_rows, struct err *err)
{
    if (e->opt.header_only)
        return err_set(err, ERR_USAGE, "the model was opened for planning only");
    const struct route_params *p = &e->hp.route;
    int64_t pairs = 0;
    *n_rows = 0;
    for (int i = 0; i < n_in; i++) {
        const struct tessera_session *s = in[i].session;
        if (in[i].n < 1 || in[i].n > e->opt.n_batch - *n_rows)
            return err_set(err, ERR_RANGE, "a step takes 1 to %d tokens in all", e->opt.n_batch);
        *n_rows += in[i].n;
        if (in[i].rewrite && !e->hp.denoise.sees)
            return err_set(err, ERR_USAGE, "%s sees only what is before a token: nothing on its "
                           "timeline can be rewritten", e->arch->name);
        if (in[i].rewrite && (in[i].at < 0 || in[i].n > s->n - in[i].at))
            return err_set(err, ERR_RANGE, "tokens %d to %d are to be rewritten on a timeline of %d",
                           in[i].at, in[i].at + in[i].n - 1, s->n);
        if (!in[i].rewrite && in[i].n > s->n_ctx - s->n)
            return err_set(err, ERR_FULL, "the context is full: %d of %d tokens are used and %d "
                           "more were asked for", s->n, s->n_ctx, in[i].n);
        if (e->opt.depth_exact && s->n)
            return err_set(err, ERR_USAGE, "by capacity a recursion chooses among all tokens of a "
                           "text: they must come in one step (-ub)");
        for (int k = 0; k < i; k++)
            if (in[k].session == s) return err_set(err, ERR_USAGE, "a session twice in one step");
        for (int t = 0; t < in[i].n; t++)
            if (in[i].ids[t] < 0 || in[i].ids[t] >= e->model.n_vocab)
                return err_set(err, ERR_RANGE, "token id %d is outside the vocabulary (0 to %d)",
                               in[i].ids[t], e->model.n_vocab - 1);
    }
    for (int i = 0; p->choice.k_max && !p->choice.prompts && i < n_in; i++) {
        const int64_t mine = (int64_t)in[i].n * p->choice.k_max;
        pairs += mine > p->n_expert ? mine : p->n_expert;
    }
    if (pairs > route_pairs(p, *n_rows))
        return err_set(err, ERR_RANGE, "%d texts of so few tokens in one step: each of %d experts "
                       "takes a token of each", n_in, p->n_expert);
    return OK;
}

/* Where each input's rows take their recurrent state from and put it. */
static enum status bind_states(struct tessera_engine *e, const struct tessera_input *in, int n_in,
                               struct err *err)
{
    if (!e->state_bytes) return OK;
    int n = 0, row = 0;
    for (int i = 0; i < n_in; row += in[i++].n) {
        e->segment_of[i] = n;
        enum status s = state_begin(in[i].session, in[i].n, row, &n, err);
        if (s) return s;
    }
    e->segment_of[n_in] = n;
    return OK;
}

const struct plan *plan_for(const struct tessera_engine *e, int n_rows)
{
    for (int i = 0; i < e->n_plans; i++)
        if (e->plan[i].n_rows >= n_rows) return &e->plan[i];
    return &e->plan[e->n_plans - 1]; /* it runs several times per layer */
}

/* One number for the blocks of all inputs; 0 where one of them is none. */
static uint64_t block_of(const struct tessera_input *in, int n_in)
{
    uint64_t b = 1;
    for (int i = 0; i < n_in; i++) {
        if (!in[i].block) return 0;
        b = b * 0x9e3779b97f4a7c15 + ((uint64_t)in[i].session->serial << 32 | (uint32_t)in[i].block);
    }
    return b ? b : 1;
}

/* Fills the row table and returns how many rows want logits. */
static int bind_rows(struct tessera_engine *e, const struct tessera_input *in, int n_in)
{
    int r = 0, n_out = 0;
    for (int i = 0; i < n_in; i++) {
        struct tessera_session *s = in[i].session;
        const int32_t at = in[i].rewrite ? in[i].at : s->n;
        for (int l = 0; l < e->n_lines; l++) {
            e->kv_base[l * e->opt.n_batch + i] = s->line[l].kv.base;
            e->kv_n[l * e->opt.n_batch + i] = s->line[l].n;
        }
        e->stepped[i] = in[i].session;
        e->end[i] = in[i].rewrite ? s->n : s->n + in[i].n;
        e->input[i] = (struct step_input){r, in[i].n};
        for (int t = 0; t < in[i].n; t++, r++) {
            e->row[r] = (struct dev_row){in[i].ids[t], at + t, i};
            e->serials[r] = s->serial;
            const bool out = in[i].logits == TESSERA_LOGITS_ALL ||
                             (in[i].logits == TESSERA_LOGITS_LAST && t == in[i].n - 1) ||
                             (in[i].logits == TESSERA_LOGITS_SOME && in[i].some[t]);
            if (out) e->out_row[n_out++] = r;
        }
    }
    e->n_inputs = n_in;
    e->n_out = n_out;
    return n_out;
}

/* Pages for all rows of a step on every timeline; how many of them a set has is known later only. */
static enum status commit_lines(struct tessera_engine *e, const struct tessera_input *in,
                                struct err *err)
{
    struct tessera_session *s = in->session;
    for (int l = 0; l < e->n_lines && !in->rewrite; l++) {
        const int32_t n = (l ? s->line[l].n : s->n) + in->n;
        enum status st = engine_commit(e, &s->line[l].kv, session_bytes(s, l, n), err);
        if (st) return st;
    }
    return OK;
}

/* Gives back the pages that no entry has come to. */
static void trim_lines(struct tessera_session *s)
{
    for (int l = 1; l < s->engine->n_lines; l++)
        region_trim(&s->line[l].kv, session_bytes(s, l, s->line[l].n));
}

enum status tessera_step(tessera_engine *e, const struct tessera_input *in, int n_in,
                         struct err *err)
{
    struct err local;
    if (!err) err = &local;
    err_clear(err);
    int n_rows = 0;
    e->n_inputs = 0;
    enum status s = check_inputs(e, in, n_in, &n_rows, err);
    if (s || !n_rows) return s;
    if ((s = pressure_step(e, in, n_in, err))) return s;
    for (int i = 0; i < n_in; i++)
        if ((s = session_unspill(in[i].session, err)) || (s = commit_lines(e, &in[i], err)))
            return s;
    if ((s = bind_states(e, in, n_in, err))) return s;
    const int n_out = bind_rows(e, in, n_in);
    e->block = block_of(in, n_in);
    if (n_rows > e->opt.n_ubatch) {
        if (n_out > e->opt.n_ubatch)
            s = err_set(err, ERR_RANGE, "a step has logits of at most %d tokens", e->opt.n_ubatch);
        if (!s) s = engine_commit(e, &e->across, fit_carry(e, n_rows, e->across_at), err);
        if (s) {
            e->n_inputs = 0;
            return s;
        }
    }
    if ((s = engine_commit(e, &e->logits, (size_t)e->logits_stride * (size_t)(n_out ? n_out : 1),
                    err)) ||
        (s = exec_run(e, plan_for(e, n_rows), n_rows, n_out, err))) {
        e->n_inputs = 0;
        for (int i = 0; i < n_in; i++)
            if (in[i].rewrite) session_cut(in[i].session, in[i].at);
        return s;
    }
    depth_commit(e, n_rows);
    for (int i = 0; i < n_in; i++) {
        struct tessera_session *t = in[i].session;
        trim_lines(t);
        state_commit(t);
        memcpy(t->ids + (in[i].rewrite ? in[i].at : t->n), in[i].ids,
               sizeof *t->ids * (size_t)in[i].n);
        t->n = e->end[i];
    }
    return OK;
}

const float *tessera_logits(const tessera_engine *e, int i_in, int32_t row)
{
    if (i_in < 0 || i_in >= e->n_inputs) return NULL;
    const struct step_input *in = &e->input[i_in];
    if (row < 0 || row >= in->n) return NULL;
    row += in->row0;
    int at = 0, end = e->n_out; /* out_row rises */
    while (at < end) {
        const int mid = at + (end - at) / 2;
        if (e->out_row[mid] < row) at = mid + 1;
        else end = mid;
    }
    if (at == e->n_out || e->out_row[at] != row) return NULL;
    return (const float *)(const void *)((const char *)e->logits.base +
                                         (size_t)e->logits_stride * (size_t)at);
}
