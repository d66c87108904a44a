/* See devtier.h. */
#include "offload/devtier.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double HALF_LIFE = 16, MARGIN = 1; /* offload/README.md, Admission */

/* Steps of more rows are bound by arithmetic, which rates of memory say nothing about. */
enum { SEND_ROWS = 4 };

static uint64_t up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }
static uint64_t page_up(uint64_t n) { return up(n, 4096); }

/* ---- sizes ---- */

/* Pairs whose rows land on the host at once. */
static int land_of(const struct devtier_options *o)
{
    const int all = o->n_rows * o->n_used;
    return all < DEVTIER_PAIRS ? all : DEVTIER_PAIRS > o->n_used ? DEVTIER_PAIRS : o->n_used;
}

static int pairs_of(const struct devtier_options *o)
{
    return o->whole ? o->n_rows * o->n_used : land_of(o);
}

static const struct weight *weight_of(const struct devtier_options *o, int bank, int k)
{
    return &o->weights->at[o->bank[bank].op->weight[k]];
}

/* Bytes of a matrix there, of a stack with so many levels. */
static uint64_t matrix_bytes(const struct weight *w, int depth)
{
    return qtype_is_stacked(w->type) ? dev_stacked_bytes(w->n_cols, w->n_rows, depth) : up(w->mat_bytes, 64);
}

/* Bytes of a slot there: as in RAM, but of stacks with all levels, because any resize may bring them. */
static uint64_t slot_bytes(const struct devtier_options *o, int c)
{
    uint64_t most = o->resid->sizes.slot[c];
    for (int b = 0; b < o->resid->n_banks; b++) {
        uint64_t sum = 0;
        for (int k = 0; k < OP_IO && o->resid->class_of[b] == c; k++) sum += matrix_bytes(weight_of(o, b, k), STACK_NESTED);
        if (page_up(sum) > most) most = page_up(sum);
    }
    return most;
}

/* Bytes of the biases that a bank's experts add, on the device. */
static uint64_t bias_bytes(const struct devtier_options *o, int bank)
{
    uint64_t sum = 0;
    for (int k = OP_IO; k < OP_WEIGHTS; k++)
        if (o->bank[bank].op->weight[k] >= 0) sum += up(weight_of(o, bank, k)->mat_bytes, 256);
    return sum;
}

static uint64_t bias_all(const struct devtier_options *o)
{
    uint64_t sum = 0;
    for (int b = 0; b < o->resid->n_banks; b++) sum += bias_bytes(o, b);
    return sum;
}

struct fixed {
    uint64_t x, rows, land, scratch, slot; /* bytes; land: rows on the host; slot: of the largest class */
};

static struct fixed fixed_of(const struct devtier_options *o)
{
    struct fixed f = {0};
    const int n = pairs_of(o);
    for (int b = 0; b < o->resid->n_banks; b++) {
        const struct weight *gate = weight_of(o, b, 0), *down = weight_of(o, b, 2);
        const uint64_t x = (uint64_t)o->bank[b].x_stride * (uint64_t)o->n_rows;
        const uint64_t rows = dev_experts_out_stride(gate->n_cols) * (uint64_t)n;
        const uint64_t scratch = dev_experts_scratch(n, n, gate->n_cols, gate->n_rows,
                                                     qtype_info(down->type)->act);
        if (x > f.x) f.x = x;
        if (rows > f.rows) f.rows = rows;
        f.land = f.rows / (uint64_t)n * (uint64_t)land_of(o);
        if (scratch > f.scratch) f.scratch = scratch;
    }
    for (int c = 0; c < o->resid->sizes.n_classes; c++)
        if (slot_bytes(o, c) > f.slot) f.slot = slot_bytes(o, c);
    return f;
}

/* Slots from the arena's end down, a slot of every class first, sizes mixed: so wherever the arena is
 * claimed, experts of all sizes give way.  How many lie behind what is shared; slot may be NULL. */
static int layout(const struct place_sizes *s, const struct devtier_plan *p, uint64_t shared,
                  struct devtier_slot *slot)
{
    int n[PLACE_CLASSES] = {0}, n_sure = 0;
    uint64_t at = p->arena;
    for (int i = 0; i < p->n_all; i++) {
        int c = -1;
        for (int k = 0; k < s->n_classes; k++) {
            if (n[k] == p->n_slots[k]) continue;
            if (c < 0 || (uint64_t)n[k] * (uint64_t)p->n_slots[c] < (uint64_t)n[c] * (uint64_t)p->n_slots[k])
                c = k;
        }
        n[c]++;
        at -= p->slot[c];
        n_sure += at >= shared;
        if (slot) slot[i] = (struct devtier_slot){.at = at, .item = -1, .cls = (uint8_t)c};
    }
    return n_sure;
}

enum status devtier_size(const struct devtier_options *o, uint64_t memory, struct devtier_plan *p,
                         struct err *e)
{
    const struct place_sizes *s = &o->resid->sizes;
    const struct fixed f = fixed_of(o);
    uint64_t least = 0, all = 0;
    memset(p, 0, sizeof *p);
    p->fixed = page_up(f.x) + page_up(f.rows) + page_up(f.scratch) + page_up(bias_all(o));
    p->host = page_up(f.x) + page_up(f.land) + DEVTIER_RING * page_up(f.slot) +
              page_up(o->api->caps(o->dev).host);
    for (int c = 0; c < s->n_classes; c++) {
        least += slot_bytes(o, c);
        all += slot_bytes(o, c) * (uint64_t)s->n_groups[c];
    }
    p->least = p->fixed + least + o->elsewhere + o->shared;
    if (!s->n_classes && !o->elsewhere)
        return err_set(e, ERR_DEVICE, "the model has no experts, and there is no room for any of its layers");
    if (memory < p->least)
        return err_set(e, ERR_BUDGET, "%llu MiB are too little: rows, scratch and an expert of each "
                       "size take %lluM", (unsigned long long)(memory >> 20),
                       (unsigned long long)(up(p->least, 1u << 20) >> 20));
    uint64_t left = memory - p->fixed - o->elsewhere;
    uint64_t later = least; /* what the classes to come take at the least */
    const double share = (double)left / (double)all;
    for (int c = 0; c < s->n_classes; c++) {
        const uint64_t slot = p->slot[c] = slot_bytes(o, c);
        const int want = share >= 1 ? s->n_groups[c] : (int)(s->n_groups[c] * share);
        p->n_slots[c] = want > 1 ? want : 1;
        later -= slot;
        while (p->n_slots[c] > 1 && slot * (uint64_t)p->n_slots[c] > left - later) p->n_slots[c]--;
        left -= slot * (uint64_t)p->n_slots[c];
        p->n_all += p->n_slots[c];
        p->slots += slot * (uint64_t)p->n_slots[c];
    }
    /* Where not all experts fit the arena is theirs to the last slot. */
    p->arena = p->slots + (o->shared < left ? o->shared : left) / 4096 * 4096;
    p->n_sure = layout(s, p, o->shared, NULL);
    return OK;
}

int devtier_split(const struct dev_caps *c, double rate_ram, double bytes, int n, int m)
{
    int best = 0;
    double least = -1;
    if (!(rate_ram > 0)) return 0;
    for (int q = 0; q <= m; q++) {
        const double copy = q * bytes / c->rate_copy, run = q * bytes / c->rate;
        const double device = (n + q ? c->latency : 0) + n * bytes / c->rate +
                              (copy > run ? copy : run);
        const double cpu = (m - q) * bytes / rate_ram, time = device > cpu ? device : cpu;
        if (least >= 0 && time >= least) continue;
        least = time;
        best = q;
    }
    return best;
}

/* ---- slots ---- */

/* Lists the slots that an expert can come into; the first in the arena, which are claimed first, last. */
static void list_idle(struct devtier *t)
{
    for (int c = 0; c < PLACE_CLASSES; c++) t->cls[c].n_idle = 0;
    for (int i = t->plan.n_all - 1; i >= 0; i--) {
        const struct devtier_slot *k = &t->slot[i];
        if (k->item < 0 && !k->claimed) t->cls[k->cls].idle[t->cls[k->cls].n_idle++] = i;
    }
}

/* Nothing of it is kept; its slot is nobody's. */
static int forget(struct devtier *t, int32_t item)
{
    const int slot = t->slot_of[item];
    policy_removed(t->policy, item);
    t->slot[slot].item = t->slot_of[item] = -1;
    t->n_there--;
    t->n_changes++;
    return slot;
}

static char *slot_base(const struct devtier *t, int slot) { return t->arena + t->slot[slot].at; }

/* Its expert goes elsewhere, in the place of the least worth of that size if there is no other. */
static void vacate(struct devtier *t, int slot)
{
    const struct devtier_slot *k = &t->slot[slot];
    const int c = k->cls;
    while (k->item >= 0 && !t->cls[c].n_idle) {
        const int32_t v = policy_victim(t->policy, c);
        const int its = forget(t, v >= 0 ? v : k->item);
        if (!t->slot[its].claimed) t->cls[c].idle[t->cls[c].n_idle++] = its;
        t->count.displaced++;
    }
    if (k->item < 0) return;
    const int to = t->cls[c].idle[--t->cls[c].n_idle];
    const uint64_t bytes = t->plan.slot[c];
    (void)t->api->copy(t->dev, slot_base(t, to), slot_base(t, slot), bytes);
    t->slot_of[k->item] = to;
    t->slot[to].item = k->item;
    t->slot[slot].item = -1;
    t->n_changes++;
    t->count.moved++;
}

void devtier_claim(struct devtier *t, int i, uint64_t from, uint64_t to)
{
    if (!devtier_on(t) || (t->claim[i].from == from && t->claim[i].to == to)) return;
    ASSERT(i < DEV_SESSIONS && to <= t->o.shared && from <= to);
    if (i >= t->n_claims) t->n_claims = i + 1;
    t->claim[i].from = from;
    t->claim[i].to = to;
    for (int k = 0; k < t->plan.n_all; k++) {
        struct devtier_slot *s = &t->slot[k];
        const uint64_t end = s->at + t->plan.slot[s->cls];
        s->claimed = false;
        for (int n = 0; n < t->n_claims && s->at < t->o.shared && !s->claimed; n++)
            s->claimed = t->claim[n].from < t->claim[n].to && t->claim[n].from < end &&
                         s->at < t->claim[n].to;
    }
    list_idle(t);
    for (int k = 0; k < t->plan.n_all; k++)
        if (t->slot[k].claimed && t->slot[k].item >= 0) vacate(t, k);
}

/* ---- opening ---- */

#define LESS "it gave less memory than it said it has"

static enum status open_memory(struct devtier *t, struct err *e)
{
    const struct place_sizes *s = &t->o.resid->sizes;
    const struct fixed f = fixed_of(&t->o);
    bool ok = !t->plan.arena || (t->arena = t->api->alloc(t->dev, DEV_OWN, t->plan.arena));
    if (!s->n_classes) return ok ? OK : err_set(e, ERR_DEVICE, LESS);
    ok = ok && (t->x_dev = t->api->alloc(t->dev, DEV_OWN, f.x)) &&
              (t->rows_dev = t->api->alloc(t->dev, DEV_OWN, f.rows)) &&
              (t->scratch_dev = t->api->alloc(t->dev, DEV_OWN, f.scratch)) &&
              (t->x_host = t->api->alloc(t->dev, DEV_HOST, f.x)) &&
              (t->rows_host = t->api->alloc(t->dev, DEV_HOST, f.land));
    for (int i = 0; ok && i < DEVTIER_RING; i++)
        ok = (t->ring[i] = t->api->alloc(t->dev, DEV_HOST, f.slot));
    return ok ? OK : err_set(e, ERR_DEVICE, LESS);
}

/* What the experts' matrices and biases are, before any of them is there. */
static void describe_weights(struct devtier *t)
{
    for (int b = 0; b < t->o.resid->n_banks; b++)
        for (int k = 0; k < OP_WEIGHTS; k++) {
            if (t->o.bank[b].op->weight[k] < 0) continue;
            const struct weight *w = weight_of(&t->o, b, k);
            t->weight[b * OP_WEIGHTS + k] = (struct dev_weight){
                .type = w->type, .tiles = w->layout == WEIGHT_TILES, .n_cols = w->n_cols,
                .n_rows = w->n_rows,
            };
        }
}

static enum status open_lists(struct devtier *t, struct err *e)
{
    const size_t ne = (size_t)t->o.resid->n_experts, nb = (size_t)t->o.resid->n_banks;
    const struct policy_options p = {
        .kind = POLICY_LRFU, .n_layers = (int)nb, .n_experts = (int)ne,
        .slot_class = t->o.resid->class_of, .half_life = HALF_LIFE, .selective = true,
        .margin = MARGIN,
    };
    t->slot_of = calloc(ne * nb + 1, sizeof *t->slot_of);
    t->slot = calloc((size_t)t->plan.n_all + 1, sizeof *t->slot);
    t->lies = calloc(ne * nb + 1, sizeof *t->lies);
    t->weight = calloc(nb * OP_WEIGHTS + 1, sizeof *t->weight);
    t->number = calloc(ne + 1, sizeof *t->number);
    t->expert = calloc(ne + 1, sizeof *t->expert);
    t->first = calloc(ne + 2, sizeof *t->first);
    t->pair = calloc((size_t)t->n_pairs + 1, sizeof *t->pair);
    t->w = calloc((size_t)t->n_pairs + 1, sizeof *t->w);
    t->rest = calloc(ne + 1, sizeof *t->rest);
    t->rest_expert = calloc(ne + 1, sizeof *t->rest_expert);
    t->rest_count = calloc(ne + 1, sizeof *t->rest_count);
    bool ok = t->slot_of && t->slot && t->lies && t->weight && t->number && t->expert && t->first && t->pair && t->w && t->rest &&
              t->rest_expert && t->rest_count;
    for (int k = 0; k < OP_IO; k++) {
        t->table[k] = calloc(ne + 1, sizeof **t->table);
        ok = ok && t->table[k];
    }
    for (int c = 0; c < PLACE_CLASSES; c++) {
        t->cls[c].idle = calloc((size_t)t->plan.n_slots[c] + 1, sizeof *t->cls[c].idle);
        ok = ok && t->cls[c].idle;
    }
    if (!ok) return err_set(e, ERR_MEMORY, "no memory for the list of what is on it");
    for (size_t i = 0; i < ne * nb; i++) t->slot_of[i] = -1;
    (void)layout(&t->o.resid->sizes, &t->plan, t->o.shared, t->slot);
    list_idle(t);
    describe_weights(t);
    return nb ? policy_open(&p, &t->policy, e) : OK;
}

/* Biases go over once, through the ring. */
static enum status send_biases(struct devtier *t, struct err *e)
{
    const uint64_t all = bias_all(&t->o), ring = fixed_of(&t->o).slot;
    char *at = all ? t->api->alloc(t->dev, DEV_OWN, all) : NULL;
    if (all && !at) return err_set(e, ERR_DEVICE, LESS);
    for (int b = 0; b < t->o.resid->n_banks; b++)
        for (int k = OP_IO; k < OP_WEIGHTS; k++) {
            const int i = t->o.bank[b].op->weight[k];
            if (i < 0) continue;
            const struct weight *w = &t->o.weights->at[i];
            const char *from = resid_home(t->o.resid, i);
            t->weight[b * OP_WEIGHTS + k].data = at;
            for (uint64_t done = 0, n; done < w->mat_bytes; done += n) {
                n = w->mat_bytes - done < ring ? w->mat_bytes - done : ring;
                memcpy(t->ring[0], from + done, n);
                const dev_fence f = t->api->copy(t->dev, at + done, t->ring[0], n);
                if (t->api->wait(t->dev, f, t->o.patience, e) != DEV_PASSED)
                    return err_set(e, ERR_DEVICE, "it does not answer");
            }
            at += up(w->mat_bytes, 256);
        }
    return OK;
}

/* The op of a bank, with the indices that its weights have on the device. */
static struct op device_op(const struct devtier *t, int bank)
{
    struct op op = *t->o.bank[bank].op;
    op.in[0] = 0;
    op.out[0] = 1;
    op.rows = ROWS_ALL; /* those that were sent */
    for (int k = 0; k < OP_WEIGHTS; k++) op.weight[k] = op.weight[k] < 0 ? -1 : k;
    return op;
}

static enum status check_banks(const struct devtier *t, struct err *e)
{
    for (int b = 0; b < t->o.resid->n_banks; b++) {
        const struct op op = device_op(t, b);
        const struct dev_weight *w = t->weight + b * OP_WEIGHTS;
        if (t->api->supports(t->dev, &op, w)) continue;
        return err_set(e, ERR_DEVICE, "it cannot run the experts of this model (%s: gate %s, up %s, "
                       "down %s)", op.name, qtype_info(w[0].type)->name, qtype_info(w[1].type)->name,
                       qtype_info(w[2].type)->name);
    }
    return OK;
}

enum status devtier_open(struct devtier *t, const struct devtier_options *o, struct err *e)
{
    struct err local;
    if (!e) e = &local;
    err_clear(e);
    memset(t, 0, sizeof *t);
    t->o = *o;
    t->api = o->api;
    t->dev = o->dev;
    if (!(t->o.patience > 0)) t->o.patience = DEVTIER_PATIENCE;
    t->caps = t->api->caps(t->dev);
    t->n_pairs = pairs_of(o);
    t->n_land = land_of(o);
    enum status s = devtier_size(&t->o, t->caps.memory, &t->plan, e);
    if (!s && !(t->charged = ledger_take(o->ledger, MEM_STAGING, t->plan.host)))
        s = err_set(e, ERR_BUDGET, "the memory budget has no room for its host side");
    if (!s) s = open_lists(t, e);
    if (!s) s = check_banks(t, e);
    if (!s) s = open_memory(t, e);
    if (!s) s = send_biases(t, e);
    if (s) devtier_close(t);
    return s;
}

void devtier_close(struct devtier *t)
{
    if (t->dev) t->api->close(t->dev);
    if (t->charged) ledger_give(t->o.ledger, MEM_STAGING, t->plan.host);
    policy_close(t->policy);
    for (int c = 0; c < PLACE_CLASSES; c++) free(t->cls[c].idle);
    for (int k = 0; k < OP_IO; k++) free(t->table[k]);
    free(t->slot_of);
    free(t->slot);
    free(t->lies);
    free(t->weight);
    free(t->number);
    free(t->expert);
    free(t->first);
    free(t->pair);
    free(t->w);
    free(t->rest);
    free(t->rest_expert);
    free(t->rest_count);
    memset(t, 0, sizeof *t);
}

/* ---- giving up ---- */

static void give_up(struct devtier *t, const char *why)
{
    char text[700];
    if (t->fell) return;
    t->fell = true;
    (void)snprintf(text, sizeof text, "device %s is given up: %s; the CPU goes on alone",
                   t->api->name, why);
    if (t->o.warn) t->o.warn(t->o.warn_arg, text);
}

bool devtier_passed(struct devtier *t, dev_fence f)
{
    struct err e;
    err_clear(&e);
    switch (t->api->wait(t->dev, f, t->o.patience, &e)) {
    case DEV_PASSED: return true;
    case DEV_PENDING: give_up(t, "it has not answered in time"); return false;
    case DEV_LOST: break;
    }
    give_up(t, e.msg[0] ? e.msg : "it was lost");
    return false;
}

/* ---- a step ---- */

void devtier_step(struct devtier *t, int n_rows)
{
    if (devtier_on(t) && t->policy) policy_step(t->policy, n_rows);
}

static int item_of(const struct devtier *t, int bank, int expert)
{
    return bank * t->o.resid->n_experts + expert;
}

static char *expert_at(const struct devtier *t, int item, int k)
{
    return slot_base(t, t->slot_of[item]) + t->lies[item].at[k];
}

/* Levels of an expert's matrix that the host has; 0 where it is no stack. */
static int depth_of(const struct devtier *t, int item, int k)
{
    const struct resid *r = t->o.resid;
    return r->stack.mat ? r->stack.mat[r->group[r->first_expert + item].part[k]].depth : 0;
}

/* An expert of other levels than the host has now is none that is there. */
static void forget_outdated(struct devtier *t, int item)
{
    const int c = t->o.resid->class_of[item / t->o.resid->n_experts];
    bool same = true;
    for (int k = 0; k < OP_IO; k++) same = same && t->lies[item].depth[k] == depth_of(t, item, k);
    if (t->slot_of[item] >= 0 && !same) t->cls[c].idle[t->cls[c].n_idle++] = forget(t, item);
}

/* Appends expert number a of the step to the device's list; false when its rows do not fit. */
static bool append(struct devtier *t, const struct dev_route *r, int a)
{
    const int n = r->first[a + 1] - r->first[a], at = t->n ? t->first[t->n] : 0;
    const int bank = t->at_bank, item = item_of(t, bank, r->expert[a]);
    if (at + n > t->n_pairs || n > t->n_land) return false;
    for (int k = 0; k < OP_IO; k++) t->table[k][t->n] = expert_at(t, item, k);
    t->number[t->n] = a;
    t->expert[t->n] = r->expert[a];
    t->first[t->n] = at;
    memcpy(t->pair + at, r->pair + r->first[a], sizeof *t->pair * (size_t)n);
    t->first[++t->n] = at + n;
    return true;
}

void devtier_route(struct devtier *t, int bank, const struct dev_route *r, const int32_t *count)
{
    /* The lists are the device's until it has read them; it reads nothing after it was given up. */
    const bool on = devtier_on(t) && devtier_passed(t, t->last);
    t->at_bank = bank;
    t->n = t->n_rest = 0;
    for (int a = 0; on && a < r->n_active; a++) forget_outdated(t, item_of(t, bank, r->expert[a]));
    if (on) policy_route(t->policy, bank, r->expert, count, r->n_active);
    for (int a = 0; a < r->n_active; a++) {
        if (on && t->slot_of[item_of(t, bank, r->expert[a])] >= 0 && append(t, r, a)) continue;
        t->rest[t->n_rest] = a;
        t->rest_expert[t->n_rest] = r->expert[a];
        t->rest_count[t->n_rest++] = count[a];
    }
}

/* Submits experts begin .. end - 1 of the list; sum: they are all that there are. */
static void submit(struct devtier *t, const struct dev_route *r, int part, int begin, int end, bool sum)
{
    struct devtier_launch *l = &t->launch[part];
    l->route = (struct dev_route){
        .n_rows = r->n_rows, .n_used = r->n_used, .n_active = end, .n_pairs = t->n_pairs,
        .n_slots = t->n_pairs,
        .begin = begin, .end = end, .sum = sum, .pair_out = sum ? NULL : t->rows_dev,
        .w = t->w, .expert = t->expert,
        .first = t->first, .pair = t->pair, .gate = t->table[0], .up = t->table[1],
        .down = t->table[2],
    };
    l->op = device_op(t, t->at_bank);
    l->rows = (struct dev_rows){.n = r->n_rows};
    l->bind = (struct dev_bind){
        .buf = t->io, .weight = t->weight + t->at_bank * OP_WEIGHTS, .n_rows = r->n_rows,
        .set = &l->rows, .route = &l->route, .scratch = t->scratch_dev,
    };
    t->last = t->api->submit(t->dev, &l->op, 1, &l->bind);
    t->count.ran += (uint64_t)(end - begin);
}

static void send_rows(struct devtier *t, const struct dev_route *r, const struct dev_buf *x)
{
    const uint64_t bytes = (uint64_t)x->stride * (uint64_t)r->n_rows;
    memcpy(t->x_host, x->base, bytes);
    t->io[0] = (struct dev_buf){.base = t->x_dev, .stride = x->stride, .width = x->width};
    (void)t->api->copy(t->dev, t->x_dev, t->x_host, bytes);
    t->count.bytes += bytes;
}

void devtier_run(struct devtier *t, const struct dev_route *r, const struct dev_buf *x)
{
    if (!devtier_on(t)) return;
    if (!t->n && r->n_rows > SEND_ROWS) return; /* nothing can be sent later either */
    send_rows(t, r, x);
    if (t->n) submit(t, r, 0, 0, t->n, false);
}

void devtier_run_there(struct devtier *t, const struct dev_route *r, const struct dev_buf *x,
                       const struct dev_buf *out)
{
    if (!devtier_on(t)) return;
    t->io[0] = *x;
    if (out) {
        t->io[1] = *out;
        memcpy(t->w, r->w, sizeof *t->w * (size_t)(r->n_rows * r->n_used));
    }
    t->io[0].rows = t->io[1].rows = ROWS_ALL; /* the only set that a submission knows */
    if (t->n) submit(t, r, 0, 0, t->n, out != NULL);
}

/* Puts an expert into a slot of the device; false: no buffer is free, or it is not hot enough. */
static bool fill(struct devtier *t, int item, const void *const m[OP_IO])
{
    const struct resid *r = t->o.resid;
    const int bank = item / r->n_experts, c = r->class_of[bank];
    char *to = t->ring[t->ring_next];
    uint64_t at = 0;
    int slot;
    if (t->api->wait(t->dev, t->ring_fence[t->ring_next], 0, NULL) != DEV_PASSED) return false;
    if (t->cls[c].n_idle) {
        slot = t->cls[c].idle[--t->cls[c].n_idle];
    } else {
        const int32_t v = policy_victim(t->policy, c);
        if (v < 0 || !policy_admits(t->policy, item, v)) {
            t->count.refused += v >= 0;
            return false;
        }
        slot = forget(t, v);
    }
    for (int k = 0; k < OP_IO; k++) {
        const struct weight *w = weight_of(&t->o, bank, k);
        const int depth = depth_of(t, item, k);
        t->lies[item].at[k] = (uint32_t)at;
        t->lies[item].depth[k] = (uint8_t)depth;
        if (qtype_is_stacked(w->type)) dev_stacked_put(m[k], to + at);
        else memcpy(to + at, m[k], w->mat_bytes);
        at += matrix_bytes(w, depth);
    }
    t->slot[slot].item = item;
    t->slot_of[item] = slot;
    t->n_there++;
    t->n_changes++;
    policy_added(t->policy, item, false);
    t->ring_fence[t->ring_next] = t->api->copy(t->dev, slot_base(t, slot), to, at);
    t->ring_next = (t->ring_next + 1) % DEVTIER_RING;
    t->count.uploads++;
    t->count.bytes += at;
    return true;
}

/* Fills free slots, as long as a buffer of the ring is free within so many seconds. */
static enum dev_state bring(struct devtier *t, double seconds, struct err *e)
{
    const struct resid *r = t->o.resid;
    enum dev_state s = DEV_PASSED;
    for (int item = 0; item < r->n_banks * r->n_experts; item++) {
        const struct group *g = &r->group[r->first_expert + item];
        const int c = r->class_of[item / r->n_experts], at = t->ring_next;
        if (g->state != GROUP_RAM || t->slot_of[item] >= 0 || !t->cls[c].n_idle) continue;
        s = t->api->wait(t->dev, t->ring_fence[at], seconds, e);
        if (s != DEV_PASSED) break;
        const void *m[OP_IO];
        for (int k = 0; k < OP_IO; k++) m[k] = resid_matrix(r, r->first_expert + item, k);
        (void)fill(t, item, m);
    }
    return s;
}

enum status devtier_preload(struct devtier *t, struct err *e)
{
    if (bring(t, t->o.patience, e) == DEV_PASSED) return OK;
    return err_set(e, ERR_DEVICE, "it does not answer");
}

void devtier_refill(struct devtier *t)
{
    int n = t->n_there;
    if (!devtier_on(t) || !t->o.resid->all_ram || devtier_complete(t)) return;
    for (int c = 0; c < PLACE_CLASSES; c++) n += t->cls[c].n_idle;
    if (n == t->o.resid->n_banks * t->o.resid->n_experts) (void)bring(t, 0, NULL);
}

bool devtier_settled(struct devtier *t)
{
    bool all = true;
    for (int i = 0; i < DEVTIER_RING; i++) all = all && devtier_passed(t, t->ring_fence[i]);
    return all;
}

void devtier_addresses(const struct devtier *t, int bank, const void **to)
{
    for (int x = 0; x < t->o.resid->n_experts; x++)
        for (int k = 0; k < OP_IO; k++) to[x * OP_IO + k] = expert_at(t, item_of(t, bank, x), k);
}

int devtier_send(struct devtier *t, const struct dev_route *r, const int32_t *numbers, int n,
                 const void *const *const m[OP_IO])
{
    if (!devtier_on(t) || r->n_rows > SEND_ROWS) return 0;
    const int had = t->n, c = t->o.resid->class_of[t->at_bank];
    const int most = devtier_split(&t->caps, t->o.rate_ram, (double)t->plan.slot[c], had, n);
    int sent = 0;
    for (; sent < most; sent++) {
        const int a = numbers[sent];
        const void *const one[OP_IO] = {m[0][sent], m[1][sent], m[2][sent]};
        if (t->first[t->n] + r->first[a + 1] - r->first[a] > t->n_pairs) break;
        if (!fill(t, item_of(t, t->at_bank, r->expert[a]), one)) break;
        (void)append(t, r, a);
    }
    if (sent) submit(t, r, 1, had, t->n, false);
    t->count.sent += (uint64_t)sent;
    return sent;
}

void devtier_offer(struct devtier *t, const struct dev_route *r, int a, const void *const m[OP_IO])
{
    if (devtier_on(t)) (void)fill(t, item_of(t, t->at_bank, r->expert[a]), m);
}

const char *devtier_land(struct devtier *t, int begin, int *end)
{
    if (!devtier_on(t)) return NULL;
    for (*end = begin + 1; *end < t->n && t->first[*end + 1] - t->first[begin] <= t->n_land;) ++*end;
    const uint64_t stride = dev_experts_out_stride(t->weight[t->at_bank * OP_WEIGHTS].n_cols);
    const uint64_t bytes = stride * (uint64_t)(t->first[*end] - t->first[begin]);
    t->last = t->api->copy(t->dev, t->rows_host, t->rows_dev + stride * (uint64_t)t->first[begin], bytes);
    t->count.bytes += bytes;
    return devtier_passed(t, t->last) ? t->rows_host : NULL;
}

void devtier_done(struct devtier *t)
{
    if (devtier_on(t)) policy_done(t->policy);
}
