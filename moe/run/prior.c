/* The routing that promises assume, and what the engine's policy makes of it.
 *
 * With a trace of the model (tessera_options.routes) its decode steps are replayed through the policy
 * with as many slots as the placement has.  Without, the share of hits is what the policy reaches on
 * three published traces of real models with 128 experts a layer (README, "Which experts"), or, for
 * models with few experts a layer, whose routers spread evenly, the share of slots; the waiting is
 * then that of even routing at that share.  Owns the record; allocates when first asked. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/rng.h"
#include "moe/load/trace.h"
#include "moe/run/engine_int.h"
#include "offload/replay.h"

enum { STEPS = 64, MANY_EXPERTS = 64, MEMO = 8 };

struct prior {
    struct trace *trace;
    struct trace_events events;
    struct replay_record record;
    uint64_t *bytes;   /* [n_banks] of an expert in the file */
    int32_t *row, *event, *layer, *item, *count; /* of even routing */
    uint32_t *first;
    uint8_t *prompt;
    struct { int slots; double hit, stall; } memo[MEMO];
    int n_memo;
};

/* Share of slots and of hits: the mean of three traces, decayed frequency. */
static const double curve[][2] = {{0, 0}, {0.01, 0.134}, {0.05, 0.405}, {0.10, 0.578},
                                  {0.20, 0.765}, {0.40, 0.916}, {1, 1}};

static double curve_at(double share)
{
    size_t i = 1;
    while (i + 1 < sizeof curve / sizeof *curve && curve[i][0] < share) i++;
    const double t = (share - curve[i - 1][0]) / (curve[i][0] - curve[i - 1][0]);
    return curve[i - 1][1] + t * (curve[i][1] - curve[i - 1][1]);
}

void prior_close(struct prior *p)
{
    if (!p) return;
    if (p->trace) trace_events_free(&p->events);
    trace_free(p->trace);
    free(p->bytes);
    free(p->row);
    free(p->event);
    free(p->layer);
    free(p->item);
    free(p->count);
    free(p->first);
    free(p->prompt);
    free(p);
}

/* One pass over everything, then tokens that choose any of the experts. */
static bool make_even(struct tessera_engine *e, struct prior *p)
{
    const int nl = e->resid.n_banks, ne = e->hp.n_expert, k = e->hp.n_expert_used;
    const int n_events = nl * (STEPS + 1);
    const size_t n_items = (size_t)nl * (size_t)ne + (size_t)(nl * STEPS) * (size_t)k;
    struct rng r;
    rng_seed(&r, 1);
    p->row = calloc(STEPS + 2, sizeof *p->row);
    p->event = calloc(STEPS + 2, sizeof *p->event);
    p->prompt = calloc(STEPS + 1, 1);
    p->layer = calloc((size_t)n_events, sizeof *p->layer);
    p->first = calloc((size_t)n_events + 1, sizeof *p->first);
    p->item = calloc(n_items, sizeof *p->item);
    p->count = calloc(n_items, sizeof *p->count);
    char *used = calloc((size_t)ne, 1);
    const bool ok = p->row && p->event && p->prompt && p->layer && p->first && p->item && p->count &&
                    used;
    uint32_t n = 0;
    for (int s = 0, ev = 0; ok && s <= STEPS; s++) {
        p->row[s + 1] = p->row[s] + (s ? 1 : ne);
        p->prompt[s] = s == 0;
        for (int l = 0; l < nl; l++, ev++) {
            p->layer[ev] = l;
            memset(used, s == 0, (size_t)ne);
            for (int i = 0; s && i < k;) {
                const uint32_t x = rng_below(&r, (uint32_t)ne);
                i += !used[x];
                used[x] = 1;
            }
            for (int x = 0; x < ne; x++) {
                if (!used[x]) continue;
                p->item[n] = l * ne + x;
                p->count[n++] = 1;
            }
            p->first[ev + 1] = n;
        }
        p->event[s + 1] = ev;
    }
    free(used);
    p->record = (struct replay_record){
        .n_layers = nl, .n_experts = ne, .expert_bytes = p->bytes, .n_steps = STEPS + 1,
        .n_events = n_events, .row = p->row, .event = p->event, .prompt = p->prompt,
        .layer = p->layer, .first = p->first, .item = p->item, .count = p->count};
    return ok;
}

static enum status read_routes(struct tessera_engine *e, struct prior *p, struct err *err)
{
    const char *path = e->opt.routes;
    enum status s = trace_read(path, NULL, &p->trace, err);
    if (s) return s;
    const struct trace *t = p->trace;
    if (t->n_layers != e->resid.n_banks || t->n_experts != e->hp.n_expert ||
        (t->model_hash && t->model_hash != e->identity))
        return err_set(err, ERR_SHAPE, "%s was recorded from another model than %s", path, e->path);
    if ((s = trace_events_make(t, &p->events, err))) return s;
    const struct trace_events *v = &p->events;
    p->record = (struct replay_record){
        .n_layers = t->n_layers, .n_experts = t->n_experts, .expert_bytes = p->bytes,
        .n_steps = v->n_steps, .n_events = v->n_events, .row = v->row, .event = v->event,
        .prompt = v->prompt, .layer = v->layer, .first = v->first, .item = v->item,
        .count = v->count};
    return OK;
}

enum status prior_open(struct tessera_engine *e, struct err *err)
{
    const struct resid *r = &e->resid;
    struct prior *p = calloc(1, sizeof *p);
    if (p) p->bytes = calloc((size_t)r->n_banks + 1, sizeof *p->bytes);
    e->prior = p;
    if (!p || !p->bytes) return err_set(err, ERR_MEMORY, "no memory for what promises rest on");
    for (int b = 0; b < r->n_banks; b++)
        for (int k = 0; k < 3; k++)
            p->bytes[b] += e->weights.at[r->bank[b].weight[k]].mat_file_bytes;
    return e->opt.routes && r->n_banks ? read_routes(e, p, err) : OK;
}

const char *prior_name(const struct tessera_engine *e)
{
    if (e->prior && e->prior->trace) return "the routes of a trace of this model";
    return e->hp.n_expert >= MANY_EXPERTS ? "the routing of three other models" : "even routing";
}

/* Seconds per file byte of an expert in memory, as the CPU multiplies it. */
static double expert_rate(const struct tessera_engine *e)
{
    const struct resid *r = &e->resid;
    double seconds = 0, bytes = 0;
    for (int b = 0; b < r->n_banks; b++)
        for (int k = 0; k < 3; k++) {
            const struct weight *w = &e->weights.at[r->bank[b].weight[k]];
            const double rate = e->rates.type[w->type] > 0 ? e->rates.type[w->type] : e->rates.ram;
            seconds += (double)w->mat_bytes / rate;
            bytes += (double)w->mat_file_bytes;
        }
    return bytes / seconds;
}

/* Bytes per second of reading experts: a matrix is read in pieces of PART_PIECE at most. */
double prior_disk(const struct tessera_engine *e)
{
    const struct resid *r = &e->resid;
    double reads = 0, bytes = 0;
    for (int b = 0; b < r->n_banks; b++)
        for (int k = 0; k < 3; k++) {
            const double n = (double)e->weights.at[r->bank[b].weight[k]].mat_file_bytes;
            reads += n > PART_PIECE ? n / PART_PIECE : 1;
            bytes += n;
        }
    return rates_disk(&e->rates, reads > 0 ? bytes / reads : 0);
}

/* The policy over the record with so many slots. */
static bool ask(struct tessera_engine *e, struct prior *p, int slots, double *hit, double *stall)
{
    struct replay_options o = {.policy.kind = POLICY_LRFU, .slots = slots, .filled = true};
    struct replay_result out;
    if (o.slots < e->hp.n_expert_used) o.slots = e->hp.n_expert_used;
    if (e->rates.disk > 0 && e->rates.ram > 0) {
        o.disk_rate = prior_disk(e);
        o.ram_rate = expert_rate(e);
    }
    if (replay_run(&p->record, &o, &out, NULL) || !out.uses) return false;
    *hit = (double)out.hits / (double)out.uses;
    /* A layer that misses waits for a first read before the drive is at full speed. */
    const double misses = 1 - pow(*hit, e->hp.n_expert_used);
    *stall = out.stall / (double)out.tokens + misses * e->resid.n_banks * e->rates.wait;
    return true;
}

bool prior_ask(struct tessera_engine *e, int slots, double *hit, double *stall)
{
    struct prior *p = e->prior;
    const int all = e->resid.n_banks * e->hp.n_expert;
    *hit = 1;
    *stall = 0;
    if (!all || slots >= all) return true;
    if (!p) return false;
    for (int i = 0; i < p->n_memo; i++)
        if (p->memo[i].slots == slots) {
            *hit = p->memo[i].hit;
            *stall = p->memo[i].stall;
            return true;
        }
    bool ok;
    if (p->trace) {
        ok = ask(e, p, slots, hit, stall);
    } else {
        double ignored;
        const double share = (double)slots / all;
        *hit = e->hp.n_expert >= MANY_EXPERTS ? curve_at(share) : share;
        ok = !(e->rates.disk > 0) || ((p->item || make_even(e, p)) &&
                                      ask(e, p, (int)(*hit * all + 0.5), &ignored, stall));
    }
    if (!ok) return false;
    const int at = p->n_memo < MEMO ? p->n_memo++ : MEMO - 1;
    p->memo[at].slots = slots;
    p->memo[at].hit = *hit;
    p->memo[at].stall = *stall;
    return true;
}
