/* See residency.h: tables, homes and slots, and changing their sizes.  The executor's calls are in
 * residency_step.c, the loaders' in residency_load.c. */
#include "offload/residency_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, SMALL = PART_PIECE / 4 };

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* ---- queues ---- */

static bool queue_open(struct index_queue *q, int cap)
{
    q->item = calloc((size_t)cap + 1, sizeof *q->item);
    q->cap = cap + 1;
    return q->item;
}

void queue_push(struct index_queue *q, int32_t x)
{
    ASSERT(q->n < q->cap);
    q->item[(q->head + q->n++) % q->cap] = x;
}

int32_t queue_front(const struct index_queue *q) { return q->item[q->head]; }

void queue_pop(struct index_queue *q)
{
    ASSERT(q->n > 0);
    q->head = (q->head + 1) % q->cap;
    q->n--;
}

bool queue_remove(struct index_queue *q, int32_t x)
{
    int i = 0;
    while (i < q->n && q->item[(q->head + i) % q->cap] != x) i++;
    if (i == q->n) return false;
    for (; i + 1 < q->n; i++)
        q->item[(q->head + i) % q->cap] = q->item[(q->head + i + 1) % q->cap];
    q->n--;
    return true;
}

/* ---- tables ---- */

/* Reads that bring a group. */
static int count_pieces(const struct resid *r, const struct group *g)
{
    int n = 0;
    for (int k = 0; k < g->n_parts; k++) {
        const struct weight *w = &r->parts.weights->at[r->parts.part[g->part[k]].weight];
        const int rows = g->n_parts == 1 ? g->n_rows : w->n_rows, step = part_piece_rows(w);
        n += (rows + step - 1) / step;
    }
    return n;
}

static bool sort_weights(struct resid *r, const struct resid_options *o)
{
    const struct weights *ws = r->parts.weights;
    r->kind = calloc((size_t)ws->n + 1, 1);
    r->warned = calloc((size_t)ws->n + 1, 1);
    r->home_of = calloc((size_t)ws->n + 1, sizeof *r->home_of);
    r->piece_of = calloc((size_t)ws->n + 1, sizeof *r->piece_of);
    r->home_at = calloc((size_t)ws->n + 1, sizeof *r->home_at);
    if (!r->kind || !r->warned || !r->home_of || !r->piece_of || !r->home_at) return false;
    for (int i = 0; i < ws->n; i++) {
        const struct weight *w = &ws->at[i];
        r->kind[i] = w->layout != WEIGHT_TILES || w->mat_bytes < SMALL ? KIND_SMALL : KIND_DENSE;
        if (o->unit && i == o->levels) r->kind[i] = KIND_LEVELS;
    }
    for (int i = 0; i < o->n_lookup; i++)
        if (ws->at[o->lookup[i]].mat_bytes >= SMALL &&
            part_row_bytes(&ws->at[o->lookup[i]]) <= RESID_ROW_MAX)
            r->kind[o->lookup[i]] = KIND_TABLE;
    for (int b = 0; b < o->n_banks; b++)
        for (int k = 0; k < 3; k++) r->kind[o->bank[b].weight[k]] = KIND_EXPERT;
    return true;
}

/* Places in the home region: the little ones side by side, the others on pages of their own, kind
 * by kind, so that a kind is one range. */
static void lay_out_homes(struct resid *r)
{
    const struct weights *ws = r->parts.weights;
    const uint64_t page = mem_page_size();
    uint64_t at = 0, *bytes[KIND_N] = {&r->sizes.small, &r->sizes.dense, &r->sizes.tables};
    for (int kind = KIND_SMALL; kind <= KIND_TABLE; kind++) {
        const uint64_t from = at;
        for (int i = 0; i < ws->n; i++) {
            if (r->kind[i] != kind) continue;
            r->home_at[i] = at;
            at += round_up(ws->at[i].mat_bytes, kind == KIND_SMALL ? ALIGN : page);
        }
        at = round_up(at, page);
        *bytes[kind] = at - from;
    }
}

/* The class of a bank's experts; a new one when no other has that size. */
static int class_for(struct resid *r, uint64_t bytes)
{
    struct place_sizes *s = &r->sizes;
    for (int c = 0; c < s->n_classes; c++)
        if (s->slot[c] == bytes) return c;
    if (s->n_classes < PLACE_CLASSES) {
        s->slot[s->n_classes] = bytes;
        return s->n_classes++;
    }
    const int last = PLACE_CLASSES - 1; /* more sizes than classes: the rest shares the last one */
    if (s->slot[last] < bytes) s->slot[last] = bytes;
    return last;
}

static void add_experts(struct resid *r)
{
    const struct weights *ws = r->parts.weights;
    r->first_expert = r->n_groups;
    for (int b = 0; b < r->n_banks; b++) {
        uint64_t at[3], bytes = 0;
        for (int k = 0; k < 3; k++) {
            at[k] = bytes;
            bytes += round_up(ws->at[r->bank[b].weight[k]].mat_bytes, ALIGN);
        }
        r->class_of[b] = (uint8_t)class_for(r, round_up(bytes, mem_page_size()));
        r->sizes.n_groups[r->class_of[b]] += r->n_experts;
        for (int e = 0; e < r->n_experts; e++) {
            struct group *g = &r->group[r->n_groups++];
            *g = (struct group){.n_parts = 3, .slot = -1};
            for (int k = 0; k < 3; k++) {
                g->part[k] = ws->at[r->bank[b].weight[k]].first_part + e;
                g->at[k] = (uint32_t)at[k];
            }
            g->n_pieces = count_pieces(r, g);
        }
    }
}

static void add_homes(struct resid *r)
{
    const struct weights *ws = r->parts.weights;
    for (int i = 0; i < ws->n; i++) {
        r->home_of[i] = -1;
        if (r->kind[i] == KIND_EXPERT || r->kind[i] == KIND_LEVELS) continue;
        r->home_of[i] = r->n_groups;
        struct group *g = &r->group[r->n_groups++];
        *g = (struct group){.part = {ws->at[i].first_part}, .n_parts = 1, .slot = -1,
                            .n_rows = ws->at[i].n_rows};
        g->n_pieces = count_pieces(r, g);
    }
}

static void add_pieces(struct resid *r)
{
    const struct weights *ws = r->parts.weights;
    r->first_piece = r->n_groups;
    for (int i = 0; i < ws->n; i++) {
        const struct weight *w = &ws->at[i];
        r->piece_of[i] = -1;
        if (r->kind[i] != KIND_DENSE) continue;
        r->piece_of[i] = r->n_groups;
        const int step = part_piece_rows(w);
        for (int row = 0; row < w->n_rows; row += step) {
            const int n = w->n_rows - row < step ? w->n_rows - row : step;
            struct group *g = &r->group[r->n_groups++];
            *g = (struct group){.part = {w->first_part}, .n_parts = 1, .row0 = row, .n_rows = n,
                                .slot = -1, .n_pieces = 1};
            const uint64_t bytes = round_up(part_rows_bytes(w, n), mem_page_size());
            if (bytes > r->sizes.ring_slot) r->sizes.ring_slot = bytes;
            r->sizes.n_pieces++;
        }
    }
}

static int most_groups(const struct resid *r)
{
    const struct weights *ws = r->parts.weights;
    int n = ws->n + r->n_banks * r->n_experts;
    for (int i = 0; i < ws->n; i++) {
        if (r->kind[i] != KIND_DENSE) continue;
        const int step = part_piece_rows(&ws->at[i]);
        n += (ws->at[i].n_rows + step - 1) / step;
    }
    return n;
}

static bool open_class(struct slot_class *c, uint64_t slot_bytes, int n)
{
    c->slot_bytes = slot_bytes;
    c->n_max = n;
    c->owner = calloc((size_t)n + 1, sizeof *c->owner);
    c->idle = calloc((size_t)n + 1, sizeof *c->idle);
    if (!c->owner || !c->idle) return false;
    for (int i = 0; i < n; i++) c->owner[i] = SLOT_AWAY;
    return true;
}

static enum status open_policy(struct resid *r, enum policy_kind kind, struct err *e)
{
    const struct policy_options o = {
        .kind = kind, .n_layers = r->n_banks, .n_experts = r->n_experts,
        .slot_class = r->class_of,
    };
    return r->n_banks ? policy_open(&o, &r->policy, e) : OK;
}

/* The kernels' view of every stacked part, without levels yet. */
static enum status open_stack(struct resid *r, const struct resid_options *o, struct err *e)
{
    const struct weights *ws = r->parts.weights;
    r->stack.weight = o->unit ? o->levels : -1;
    if (!o->unit) return OK;
    r->stack.unit = o->unit;
    r->stack.end = o->level_end;
    r->stack.head = o->level_head;
    r->stack.rank = o->rank;
    r->sizes.level_end = o->level_end;
    r->sizes.n_units = o->n_units;
    r->sizes.n_floor = o->n_floor;
    r->stack.mat = calloc((size_t)r->parts.n_parts + 1, sizeof *r->stack.mat);
    if (!r->stack.mat) return err_set(e, ERR_MEMORY, "no memory for the table of the stack");
    for (int i = 0; i < r->parts.n_parts; i++) {
        const struct weight *w = &ws->at[r->parts.part[i].weight];
        r->stack.mat[i] = (struct stacked){.type = w->type, .n_cols = w->n_cols,
                                           .n_rows = w->n_rows, .rank = o->rank};
    }
    return OK;
}

static enum status open_tables(struct resid *r, const struct resid_options *o, struct err *e)
{
    r->n_banks = o->n_banks;
    r->n_experts = o->n_experts;
    r->bank = calloc((size_t)o->n_banks + 1, sizeof *r->bank);
    r->class_of = calloc((size_t)o->n_banks + 1, 1);
    if (!r->bank || !r->class_of || !sort_weights(r, o)) goto no_memory;
    for (int b = 0; b < o->n_banks; b++) r->bank[b] = o->bank[b];
    lay_out_homes(r);
    const int most = most_groups(r);
    r->group = calloc((size_t)most + 1, sizeof *r->group);
    if (!r->group) goto no_memory;
    add_homes(r);
    add_experts(r);
    add_pieces(r);
    r->want = calloc((size_t)o->n_experts + 1, sizeof *r->want);
    r->stage = calloc((size_t)o->n_experts + 1, 1);
    r->was = calloc((size_t)o->n_experts + 1, 1);
    r->expect = calloc((size_t)o->n_experts + 1, sizeof *r->expect);
    r->guess = calloc((size_t)(o->n_banks * o->n_experts) + 1, sizeof *r->guess);
    r->seq_at = calloc((size_t)r->sizes.n_pieces + 1, sizeof *r->seq_at);
    if (!r->want || !r->stage || !r->was || !r->expect || !r->guess || !r->seq_at ||
        !queue_open(&r->demand, r->n_groups) || !queue_open(&r->ahead, r->n_groups) ||
        !queue_open(&r->fill, r->n_groups) || !queue_open(&r->passed, o->n_banks * o->n_experts) ||
        !queue_open(&r->held, o->n_banks * o->n_experts))
        goto no_memory;
    for (int c = 0; c < r->sizes.n_classes; c++)
        if (!open_class(&r->cls[c], r->sizes.slot[c], r->sizes.n_groups[c])) goto no_memory;
    if (!open_class(&r->cls[RING], r->sizes.ring_slot, r->sizes.n_pieces)) goto no_memory;
    return OK;
no_memory:
    return err_set(e, ERR_MEMORY, "no memory for the table of what is where");
}

enum status resid_open(struct resid *r, const struct weights *ws, const struct resid_options *o,
                       struct err *e)
{
    memset(r, 0, sizeof *r);
    r->pinned_piece = -1;
    r->stack.weight = -1;
    enum status s = part_table_open(&r->parts, ws, e);
    if (!s) s = open_tables(r, o, e);
    if (!s) s = open_stack(r, o, e);
    if (!s) s = open_policy(r, o->policy, e);
    return s;
}

void resid_close(struct resid *r)
{
    fetch_stop(&r->fetch);
    region_release(&r->home);
    region_release(&r->stack.mem);
    free(r->stack.mat);
    for (int c = 0; c <= RING; c++) {
        region_release(&r->cls[c].mem);
        free(r->cls[c].owner);
        free(r->cls[c].idle);
    }
    policy_close(r->policy);
    free(r->group);
    free(r->bank);
    free(r->kind);
    free(r->warned);
    free(r->class_of);
    free(r->home_of);
    free(r->piece_of);
    free(r->home_at);
    free(r->want);
    free(r->stage);
    free(r->was);
    free(r->expect);
    free(r->guess);
    free(r->seq);
    free(r->off);
    free(r->seq_at);
    free(r->demand.item);
    free(r->ahead.item);
    free(r->fill.item);
    free(r->passed.item);
    free(r->held.item);
    part_table_close(&r->parts);
    memset(r, 0, sizeof *r);
}

/* Lists the pieces of the nth weight; with seq NULL it only counts. */
static int list_pieces(struct resid *r, int weight, int at, bool put)
{
    const int rows = r->parts.weights->at[weight].n_rows;
    int gi = r->piece_of[weight], n = 0;
    for (int row = 0; row < rows; row += r->group[gi++].n_rows, n++) {
        if (!put) continue;
        r->seq[at + n] = gi;
        r->seq_at[gi - r->first_piece] = at + n;
    }
    return n;
}

enum status resid_sequence(struct resid *r, const int *weight, int n, int *first, struct err *e)
{
    int total = 0;
    for (int i = 0; i < n; i++)
        if (r->kind[weight[i]] == KIND_DENSE) total += list_pieces(r, weight[i], 0, false);
    free(r->seq);
    free(r->off);
    r->seq = calloc((size_t)total + 1, sizeof *r->seq);
    r->off = calloc((size_t)total + 1, sizeof *r->off);
    if (!r->seq || !r->off) return err_set(e, ERR_MEMORY, "no memory for the order of reads");
    r->n_seq = 0;
    for (int i = 0; i < n; i++) {
        first[i] = -1;
        if (r->kind[weight[i]] != KIND_DENSE) continue;
        first[i] = r->n_seq;
        r->n_seq += list_pieces(r, weight[i], r->n_seq, true);
    }
    return OK;
}

/* ---- slots ---- */

char *slot_base(const struct slot_class *c, int slot)
{
    return (char *)c->mem.base + (uint64_t)slot * c->slot_bytes;
}

void slot_give(struct slot_class *c, int slot)
{
    c->owner[slot] = SLOT_IDLE;
    c->idle[c->n_idle++] = slot;
}

int slot_take_idle(struct slot_class *c, int group)
{
    if (!c->n_idle) return -1;
    const int slot = c->idle[--c->n_idle];
    c->owner[slot] = group;
    return slot;
}

void resid_let_go(struct resid *r, int gi)
{
    if (!r->group[gi].held) return;
    r->group[gi].held = false;
    policy_unpin(r->policy, gi - r->first_expert);
}

void resid_evict(struct resid *r, int gi)
{
    struct group *g = &r->group[gi];
    ASSERT(g->state == GROUP_RAM && !g->pins && g->slot >= 0);
    g->state = GROUP_DISK;
    slot_give(class_of_group(r, gi), g->slot);
    g->slot = -1;
    g->base = NULL;
    if (g->ahead == AHEAD_GUESS) r->count.wasted_bytes += g->guessed;
    g->ahead = AHEAD_NOT;
    if (is_expert(r, gi)) {
        resid_let_go(r, gi);
        policy_removed(r->policy, gi - r->first_expert);
        r->count.evictions++;
    }
}

/* Unmaps slots until n are left; the idle ones go first, then what is worth least. */
static void shrink_class(struct resid *r, int c, int n)
{
    struct slot_class *k = &r->cls[c];
    while (k->n_slots > n) {
        if (!k->n_idle && c == RING) {
            for (int s = 0; s < k->n_max && !k->n_idle; s++)
                if (k->owner[s] >= 0) resid_evict(r, k->owner[s]);
        } else if (!k->n_idle) {
            const int32_t v = policy_victim(r->policy, c);
            ASSERT(v >= 0); /* nothing is pinned */
            resid_evict(r, r->first_expert + v);
        }
        const int slot = k->idle[--k->n_idle];
        k->owner[slot] = SLOT_AWAY;
        k->n_slots--;
        region_trim_at(&k->mem, (uint64_t)slot * k->slot_bytes, k->slot_bytes);
    }
}

static enum status grow_class(struct resid *r, int c, int n, struct err *e)
{
    struct slot_class *k = &r->cls[c];
    if (n && !k->mem.base) {
        enum status s = region_reserve(&k->mem, r->how.ledger, MEM_WEIGHTS,
                                       (uint64_t)k->n_max * k->slot_bytes, e);
        if (s) return s;
    }
    for (int slot = 0; k->n_slots < n; slot++) {
        if (k->owner[slot] != SLOT_AWAY) continue;
        enum status s = region_commit_at(&k->mem, (uint64_t)slot * k->slot_bytes, k->slot_bytes, e);
        if (s) return s;
        k->n_slots++;
        slot_give(k, slot);
    }
    return OK;
}

/* ---- homes ---- */

static void leave_home(struct resid *r, enum kind kind)
{
    for (int i = 0; i < r->parts.weights->n; i++) {
        if (r->kind[i] != kind) continue;
        r->group[r->home_of[i]].state = GROUP_DISK;
        r->group[r->home_of[i]].base = NULL;
    }
}

static uint64_t kind_at(const struct resid *r, enum kind kind)
{
    return kind == KIND_SMALL ? 0 : r->sizes.small + (kind == KIND_TABLE ? r->sizes.dense : 0);
}

/* Opens a kind's pages: its weights have a place now. */
static enum status come_home(struct resid *r, enum kind kind, uint64_t bytes, struct err *e)
{
    enum status s = region_commit_at(&r->home, kind_at(r, kind), bytes, e);
    for (int i = 0; !s && i < r->parts.weights->n; i++)
        if (r->kind[i] == kind)
            r->group[r->home_of[i]].base = (char *)r->home.base + r->home_at[i];
    return s;
}

/* ---- levels of a stack ---- */

static void drop_levels(struct resid *r, int n)
{
    for (; r->now.n_units > n; r->now.n_units--) {
        const struct resid_unit *u = &r->stack.unit[r->now.n_units - 1];
        r->stack.mat[u->part].level[u->level] = NULL;
    }
    if (r->stack.mem.base) region_trim(&r->stack.mem, place_level_bytes(&r->sizes, n));
}

void resid_limit_levels(struct resid *r, int part, int depth)
{
    struct stacked *m = &r->stack.mat[part];
    for (m->depth = 0; m->depth < depth && m->level[m->depth + 1]; m->depth++) {}
}

/* Every matrix at all the levels that it has. */
static void unlimit_levels(struct resid *r)
{
    for (int i = 0; r->stack.mat && i < r->parts.n_parts; i++)
        resid_limit_levels(r, i, STACK_LEVELS);
}

/* Commits and asks for the levels up to n; use_levels() makes them count when they have come. */
static enum status read_levels(struct resid *r, int n, struct err *e)
{
    const struct weight *w = r->stack.weight < 0 ? NULL : &r->parts.weights->at[r->stack.weight];
    if (!w || n <= r->now.n_units) return OK;
    enum status s = OK;
    if (!r->stack.mem.base)
        s = region_reserve(&r->stack.mem, r->how.ledger, MEM_WEIGHTS,
                           place_level_bytes(&r->sizes, r->sizes.n_units), e);
    if (!s) s = region_commit(&r->stack.mem, place_level_bytes(&r->sizes, n), e);
    if (s) return s;
    const uint64_t row = part_row_bytes(w);
    const uint64_t from = r->now.n_units ? r->stack.end[r->now.n_units - 1] : 0;
    pthread_mutex_lock(&r->fetch.lock);
    r->stack.row = (int64_t)(from / row);
    r->stack.rows_end = (int64_t)(r->stack.end[n - 1] / row);
    r->load_total += r->stack.end[n - 1] - from;
    const int step = part_piece_rows(w);
    r->stack.left = (r->stack.rows_end - r->stack.row + step - 1) / step;
    pthread_cond_broadcast(&r->fetch.work);
    pthread_mutex_unlock(&r->fetch.lock);
    return OK;
}

static void use_levels(struct resid *r, int n)
{
    for (; r->now.n_units < n; r->now.n_units++) {
        const int i = r->now.n_units;
        const struct resid_unit *u = &r->stack.unit[i];
        const uint64_t at = i ? r->stack.end[i - 1] : (uint64_t)r->stack.head;
        r->stack.mat[u->part].level[u->level] = (const char *)r->stack.mem.base + at;
    }
    unlimit_levels(r);
}

/* ---- changing sizes ---- */

void resid_prepare(struct resid *r, const struct resid_start *how)
{
    r->warn = how->warn;
    r->warn_arg = how->warn_arg;
    r->how = (struct fetch_how){
        .ledger = how->ledger, .n_threads = how->n_threads, .depth = FETCH_DEPTH, .ops = how->ops,
        .no_uring = how->no_uring, .arg = r, .next = load_next, .done = load_done,
    };
}

static enum status start_fetching(struct resid *r, int depth, struct err *e)
{
    if (r->fetching && r->how.depth == depth) return OK;
    r->how.depth = depth;
    if (r->fetching) {
        enum status s = fetch_deepen(&r->fetch, depth, e);
        r->fetching = !s;
        return s;
    }
    enum status s = fetch_start(&r->fetch, &r->parts, &r->how, e);
    if (s) return s;
    r->fetching = true;
    if (r->fetch.note[0] && r->warn) r->warn(r->warn_arg, r->fetch.note);
    return OK;
}

static void give_back(struct resid *r, const struct placement *p)
{
    if (r->now.tables_home && !p->tables_home) {
        leave_home(r, KIND_TABLE);
        region_trim_at(&r->home, kind_at(r, KIND_TABLE), r->sizes.tables);
    }
    if (r->now.dense_home && !p->dense_home) {
        leave_home(r, KIND_DENSE);
        region_trim_at(&r->home, kind_at(r, KIND_DENSE), r->sizes.dense);
    }
    for (int c = 0; c < r->sizes.n_classes; c++) shrink_class(r, c, p->n_slots[c]);
    shrink_class(r, RING, p->n_ring);
    if (p->n_units < r->now.n_units) drop_levels(r, p->n_units);
    if (!p->tables_home) r->now.tables_home = false;
    if (!p->dense_home) r->now.dense_home = false;
}

static enum status take(struct resid *r, const struct placement *p, bool first, struct err *e)
{
    enum status s = OK;
    if (first) {
        s = region_reserve(&r->home, r->how.ledger, MEM_WEIGHTS,
                           r->sizes.small + r->sizes.dense + r->sizes.tables, e);
        if (!s) s = come_home(r, KIND_SMALL, r->sizes.small, e);
    }
    if (!s && p->dense_home && !r->now.dense_home) {
        s = come_home(r, KIND_DENSE, r->sizes.dense, e);
        r->now.dense_home = !s;
    }
    if (!s && p->tables_home && !r->now.tables_home) {
        s = come_home(r, KIND_TABLE, r->sizes.tables, e);
        r->now.tables_home = !s;
    }
    for (int c = 0; !s && c < r->sizes.n_classes; c++) s = grow_class(r, c, p->n_slots[c], e);
    if (!s) s = grow_class(r, RING, p->n_ring, e);
    return s ? s : read_levels(r, p->n_units, e);
}

/* What there is, as a placement. */
static void take_stock(struct resid *r, bool dense_home, bool tables_home)
{
    const struct place_sizes *z = &r->sizes;
    struct placement *p = &r->now;
    p->dense_home = dense_home;
    p->tables_home = tables_home;
    p->n_ring = r->cls[RING].n_slots;
    p->bytes = z->small + (dense_home ? z->dense : 0) + (tables_home ? z->tables : 0) +
               (uint64_t)p->n_ring * z->ring_slot + place_level_bytes(z, p->n_units);
    for (int c = 0; c < z->n_classes; c++) {
        p->n_slots[c] = r->cls[c].n_slots;
        p->bytes += (uint64_t)p->n_slots[c] * z->slot[c];
    }
}

static bool is_home(const struct resid *r, enum kind kind)
{
    for (int i = 0; i < r->parts.weights->n; i++)
        if (r->kind[i] == kind && r->group[r->home_of[i]].state != GROUP_RAM) return false;
    return true;
}

/* After a failure: what did not come home whole stays on disk, and its pages are given back. */
static enum status make_do(struct resid *r, struct err *e)
{
    const bool dense = r->now.dense_home && is_home(r, KIND_DENSE);
    const bool tables = r->now.tables_home && is_home(r, KIND_TABLE);
    if (r->now.dense_home && !dense) {
        leave_home(r, KIND_DENSE);
        region_trim_at(&r->home, kind_at(r, KIND_DENSE), r->sizes.dense);
    }
    if (r->now.tables_home && !tables) {
        leave_home(r, KIND_TABLE);
        region_trim_at(&r->home, kind_at(r, KIND_TABLE), r->sizes.tables);
    }
    const int ring = r->sizes.n_pieces < PLACE_RING_MIN ? r->sizes.n_pieces : PLACE_RING_MIN;
    enum status s = dense ? OK : grow_class(r, RING, ring, e);
    take_stock(r, dense, tables);
    return s;
}

/* A placement that could not be made real; hopeless: no step can be run with what there is. */
static enum status fall_short(struct resid *r, bool hopeless, struct err *e)
{
    struct err ignored;
    err_clear(&ignored);
    load_drop(r);
    r->unfilled = false;
    if (hopeless || make_do(r, &ignored) || !r->fetching) r->broken = *e;
    else err_clear(&r->broken);
    return e->code;
}

/* Gives back, takes, and asks for what is added; of a stack all but the levels counts from now on. */
static enum status begin(struct resid *r, const struct placement *p, struct err *e)
{
    const bool first = !r->home.base;
    r->all_ram = false;
    load_drop(r);
    resid_block(r, 0);
    if (!first) give_back(r, p);
    enum status s = start_fetching(r, p->depth, e);
    r->load_total = r->load_done = 0;
    if (!s) s = take(r, p, first, e);
    if (s) return fall_short(r, first, e);
    err_clear(&r->broken);
    const int n_units = r->now.n_units;
    r->now = *p;
    r->now.n_units = n_units;
    /* A fill that was taken back half way is still to be done. */
    const bool refill = r->unfilled && r->fill_experts;
    r->fill_experts = r->n_banks && (first || refill || place_experts_fit(&r->sizes, p));
    load_fill(r);
    return OK;
}

enum status resid_begin(struct resid *r, const struct placement *p, struct err *e)
{
    struct err local;
    if (r->stack.weight >= 0) return resid_apply(r, p, NULL, NULL, e);
    if (!e) e = &local;
    err_clear(e);
    return r->all_ram && p->bytes == r->now.bytes ? OK : begin(r, p, e);
}

enum status resid_apply(struct resid *r, const struct placement *p,
                        bool (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                        struct err *e)
{
    struct err local;
    if (!e) e = &local;
    err_clear(e);
    const bool first = !r->home.base;
    if (r->all_ram && p->bytes == r->now.bytes) { /* it is there, and stays */
        unlimit_levels(r);
        return OK;
    }
    enum status s = begin(r, p, e), changed = OK;
    if (s) return s;
    s = load_wait(r, progress, arg, e);
    if (!s) s = changed = load_filled(r, e);
    if (s) return fall_short(r, first || changed, e);
    use_levels(r, p->n_units);
    return OK;
}
