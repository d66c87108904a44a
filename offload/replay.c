/* See replay.h. */
#include "offload/replay.h"

#include <stdlib.h>
#include <string.h>

struct replay {
    const struct replay_record *r;
    const struct replay_options *o;
    struct replay_result *out;
    struct policy *p;
    int used;                /* slots */
    bool counting;           /* a decode step */
    uint8_t *state;          /* [n_items] SEEN, AHEAD */
    double *ready;           /* [n_items] when a speculative read ends */
    int32_t *expert;         /* [n_experts] */
    int32_t *absent;         /* [n_experts + 1] of the event */
    float *prob;             /* [n_experts] */
    int *n_guess;            /* [n_layers] of this step */
    int32_t *guesses;        /* [n_layers][n_experts] */
    struct policy_future future;
    uint32_t *future_first;
    double now, disk_free;
    int max_guess;           /* twice the largest decode event */
};

enum { SEEN = 1, AHEAD = 2 };

static uint64_t bytes_of(const struct replay *s, int32_t item)
{
    return s->r->expert_bytes[item / s->r->n_experts];
}

/* How many of an event's experts are routed at once. */
static uint32_t piece_size(const struct replay_record *r, int slots, int32_t event, bool prompt)
{
    const uint32_t n = r->first[event + 1] - r->first[event], most = (uint32_t)(slots / 4);
    return !prompt || n <= most ? n : most ? most : 1;
}

/* ---- reading ahead ---- */

static void evict(struct replay *s, int32_t victim)
{
    policy_removed(s->p, victim);
    if (s->state[victim] & AHEAD) s->out->wasted_bytes += bytes_of(s, victim);
    s->state[victim] &= (uint8_t)~AHEAD;
    s->used--;
}

/* Reads ahead while the drive is free before `until`; without a clock, while there is something. */
static void read_ahead(struct replay *s, double until)
{
    const bool clock = s->o->disk_rate > 0;
    while (s->o->prefetch && (!clock || s->disk_free < until)) {
        int room[256] = {s->o->slots - s->used};
        int32_t victim;
        const int32_t x = policy_prefetch(s->p, room, &victim);
        if (x < 0) break;
        if (victim >= 0) evict(s, victim);
        policy_added(s->p, x, true);
        s->used++;
        s->state[x] |= AHEAD;
        s->out->uploads++;
        s->out->ahead++;
        s->out->ahead_bytes += bytes_of(s, x);
        if (!clock) continue;
        s->disk_free = (s->disk_free > s->now ? s->disk_free : s->now) +
                       (double)bytes_of(s, x) / s->o->disk_rate;
        s->ready[x] = s->disk_free;
    }
}

/* ---- one event ---- */

/* How many of the first n guesses of the layer name one of these experts. */
static int named(const struct replay *s, int layer, int n, int32_t expert)
{
    const int32_t *g = s->guesses + (size_t)layer * (size_t)s->r->n_experts;
    for (int i = 0; i < n && i < s->n_guess[layer]; i++)
        if (g[i] == expert) return 1;
    return 0;
}

static void judge(struct replay *s, int layer, uint32_t n, int32_t expert, bool hit)
{
    if (!s->o->predictor.predict) return;
    const int once = named(s, layer, (int)n, expert), twice = named(s, layer, 2 * (int)n, expert);
    s->out->asked++;
    s->out->named += once;
    s->out->named_twice += twice;
    if (hit) return;
    s->out->missed++;
    s->out->missed_named += once;
    s->out->missed_named_twice += twice;
}

/* Brings a missed expert in, or lets it pass by; returns when it has been read. */
static double demand(struct replay *s, int32_t x, uint64_t bytes)
{
    if (s->counting) {
        s->out->reads++;
        s->out->read_bytes += bytes;
    } else {
        s->out->prompt_bytes += bytes;
    }
    if (s->used == s->o->slots) {
        const int32_t victim = policy_victim(s->p, -1);
        if (victim < 0 || !policy_admits(s->p, x, victim)) {
            s->out->bypassed += s->counting;
            return s->now;
        }
        evict(s, victim);
    }
    policy_added(s->p, x, false);
    s->used++;
    s->out->uploads += s->counting;
    if (!(s->o->disk_rate > 0)) return s->now;
    return s->disk_free = (s->disk_free > s->now ? s->disk_free : s->now) +
                          (double)bytes / s->o->disk_rate;
}

/* One piece of an event: look all up, then bring in what is missing. */
static void run_piece(struct replay *s, int32_t event, uint32_t from, uint32_t to)
{
    const struct replay_record *r = s->r;
    const int layer = r->layer[event];
    const uint64_t one = r->expert_bytes[layer];
    const uint32_t n = r->first[event + 1] - r->first[event];
    double arrived = s->now, work = 0, last = 0;
    const int32_t first = layer * r->n_experts;
    for (uint32_t u = from; u < to; u++) s->expert[u - from] = r->item[u] - first;
    policy_route(s->p, layer, s->expert, r->count + from, (int)(to - from));
    const int n_absent = policy_absent(s->p, s->absent);
    if (s->o->ram_rate > 0) {
        last = (double)one / s->o->ram_rate;
        work = (to - from) * last;
    }
    if (s->counting) {
        const int64_t hits = (int64_t)(to - from) - n_absent;
        s->out->uses += to - from;
        s->out->use_bytes += one * (to - from);
        s->out->hits += hits;
        s->out->hit_bytes += one * (uint64_t)hits;
        for (uint32_t u = from; u < to; u++) s->out->compulsory += !(s->state[r->item[u]] & SEEN);
        if (s->o->predictor.predict)
            for (uint32_t u = from; u < to; u++)
                judge(s, layer, n, r->item[u] - first, policy_resident(s->p, r->item[u]));
    }
    for (uint32_t u = from; u < to; u++) {
        const int32_t x = r->item[u];
        if (s->state[x] & AHEAD) { /* it is there, or on its way */
            s->out->useful++;
            if (s->ready[x] > arrived) arrived = s->ready[x];
        }
        s->state[x] = SEEN;
    }
    for (int i = 0; i < n_absent; i++) {
        const double t = demand(s, s->absent[i], one);
        if (t > arrived) arrived = t;
    }
    /* What is there runs first; what arrives last runs alone. */
    double end = s->now + work;
    if (arrived > s->now && arrived + last > end) end = arrived + last;
    if (s->counting) {
        s->out->stall += end - s->now - work;
        s->out->seconds += end - s->now;
    }
    read_ahead(s, end);
    s->now = end;
    policy_done(s->p);
    if (!(s->o->disk_rate > 0)) read_ahead(s, 0); /* what the layer has left free */
}

/* ---- the run ---- */

static void guess_step(struct replay *s, int32_t step)
{
    const struct replay_predictor *q = &s->o->predictor;
    for (int l = 0; l < s->r->n_layers; l++) {
        int32_t *g = s->guesses + (size_t)l * (size_t)s->r->n_experts;
        const int n = s->n_guess[l] = q->predict(q->arg, step, l, s->max_guess, g, s->prob);
        if (s->o->prefetch)
            policy_predict(s->p, l, g, s->prob, n < s->o->prefetch ? n : s->o->prefetch);
    }
    if (!(s->o->disk_rate > 0)) read_ahead(s, 0);
}

static void run_step(struct replay *s, int32_t i)
{
    const struct replay_record *r = s->r;
    const int n_rows = r->row[i + 1] - r->row[i];
    s->counting = !r->prompt[i];
    policy_step(s->p, n_rows);
    s->out->tokens += s->counting ? n_rows : 0;
    if (s->o->predictor.predict && s->counting) guess_step(s, i);
    for (int32_t ev = r->event[i]; ev < r->event[i + 1]; ev++) {
        const uint32_t piece = piece_size(r, s->o->slots, ev, r->prompt[i]);
        s->out->events += s->counting;
        for (uint32_t u = r->first[ev]; u < r->first[ev + 1]; u += piece)
            run_piece(s, ev, u, u + piece < r->first[ev + 1] ? u + piece : r->first[ev + 1]);
    }
}

/* The record as Belady sees it: cut into the same pieces. */
static enum status make_future(struct replay *s, struct err *e)
{
    const struct replay_record *r = s->r;
    const uint32_t n_uses = r->first[r->n_events];
    uint32_t n = 0;
    s->future_first = calloc((size_t)n_uses + 1, sizeof *s->future_first);
    if (!s->future_first) return err_set(e, ERR_MEMORY, "no memory to replay a trace");
    for (int32_t i = 0; i < r->n_steps; i++)
        for (int32_t ev = r->event[i]; ev < r->event[i + 1]; ev++) {
            const uint32_t piece = piece_size(r, s->o->slots, ev, r->prompt[i]);
            for (uint32_t u = r->first[ev]; u < r->first[ev + 1]; u += piece)
                s->future_first[n++] = u;
        }
    s->future_first[n] = n_uses;
    s->future = (struct policy_future){r->item, s->future_first, n};
    return OK;
}

static enum status check_record(struct replay *s, struct err *e)
{
    const struct replay_record *r = s->r;
    const int slots = s->o->slots;
    uint32_t most = 0;
    bool decodes = false;
    for (int32_t i = 0; i < r->n_steps; i++) {
        if (r->prompt[i]) continue;
        decodes = true;
        for (int32_t ev = r->event[i]; ev < r->event[i + 1]; ev++)
            if (r->first[ev + 1] - r->first[ev] > most) most = r->first[ev + 1] - r->first[ev];
    }
    if (!decodes) return err_set(e, ERR_RANGE, "the trace has no decoded tokens to replay");
    if (slots < 1 || (uint32_t)slots < most)
        return err_set(e, ERR_RANGE, "%d slots are too few: one layer uses up to %u experts at once",
                       slots, (unsigned)most);
    s->max_guess = 2 * most < (uint32_t)r->n_experts ? 2 * (int)most : r->n_experts;
    if (s->o->prefetch > s->max_guess) s->max_guess = s->o->prefetch;
    if (s->max_guess > r->n_experts) s->max_guess = r->n_experts;
    return OK;
}

static enum status open_replay(struct replay *s, struct err *e)
{
    const struct replay_record *r = s->r;
    const size_t n_experts = (size_t)r->n_experts, n = (size_t)r->n_layers * n_experts;
    enum status st = check_record(s, e);
    if (st) return st;
    s->state = calloc(n, sizeof *s->state);
    s->ready = calloc(n, sizeof *s->ready);
    s->expert = calloc(n_experts, sizeof *s->expert);
    s->absent = calloc(n_experts + 1, sizeof *s->absent);
    s->prob = calloc(n_experts, sizeof *s->prob);
    s->n_guess = calloc((size_t)r->n_layers, sizeof *s->n_guess);
    s->guesses = calloc(n, sizeof *s->guesses);
    if (!s->state || !s->ready || !s->expert || !s->absent || !s->prob || !s->n_guess || !s->guesses)
        return err_set(e, ERR_MEMORY, "no memory to replay a trace");
    struct policy_options po = s->o->policy;
    if (po.kind == POLICY_MIN && (st = make_future(s, e))) return st;
    po.n_layers = r->n_layers;
    po.n_experts = r->n_experts;
    po.slot_class = NULL;
    po.future = s->future;
    return policy_open(&po, &s->p, e);
}

static void fill(struct replay *s)
{
    for (int32_t e = 0; e < s->r->n_experts; e++)
        for (int32_t l = 0; l < s->r->n_layers; l++) {
            if (s->used == s->o->slots) return;
            policy_added(s->p, l * s->r->n_experts + e, false);
            s->used++;
        }
}

enum status replay_run(const struct replay_record *r, const struct replay_options *o,
                       struct replay_result *out, struct err *e)
{
    struct replay s = {.r = r, .o = o, .out = out};
    memset(out, 0, sizeof *out);
    enum status st = open_replay(&s, e);
    if (!st && o->filled) fill(&s);
    for (int32_t i = 0; i < r->n_steps && !st; i++) run_step(&s, i);
    for (int32_t x = 0; !st && x < r->n_layers * r->n_experts; x++)
        if (s.state[x] & AHEAD) out->wasted_bytes += bytes_of(&s, x);
    policy_close(s.p);
    free(s.state);
    free(s.ready);
    free(s.expert);
    free(s.absent);
    free(s.prob);
    free(s.n_guess);
    free(s.guesses);
    free(s.future_first);
    return st;
}
