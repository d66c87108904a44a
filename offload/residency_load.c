/* Loading: from groups to pieces and back; see residency.h and residency_int.h.
 *
 * Runs under the lock of r->fetch: the executor puts groups in queues, the loaders take pieces out
 * and report them.  A group whose read failed, or was taken back, ends on DISK as soon as nothing
 * of it is under way; its slot is the executor's to free. */
#include "offload/residency_int.h"

#include <stdio.h>
#include <string.h>

enum { ROWS_TAG = -1, LEVELS_TAG = -2 };

void load_start(struct resid *r, int gi, struct index_queue *q)
{
    struct group *g = &r->group[gi];
    ASSERT(g->state == GROUP_DISK && g->base);
    g->state = GROUP_LOADING;
    g->next_piece = 0;
    g->left = g->n_pieces;
    g->failed = false;
    r->n_loading++;
    for (int k = 0; k < g->n_parts; k++) {
        const struct weight *w = &r->parts.weights->at[r->parts.part[g->part[k]].weight];
        r->load_total += part_row_bytes(w) * (uint64_t)(g->n_parts == 1 ? g->n_rows : w->n_rows);
    }
    queue_push(q, gi);
    pthread_cond_broadcast(&r->fetch.work);
}

void expert_start(struct resid *r, int gi, int slot, enum group_ahead ahead)
{
    struct group *g = &r->group[gi];
    struct slot_class *c = class_of_group(r, gi);
    c->owner[slot] = gi;
    g->slot = slot;
    g->base = slot_base(c, slot);
    g->ahead = ahead == AHEAD_FILL ? AHEAD_NOT : ahead;
    g->guessed = 0;
    if (is_expert(r, gi)) policy_added(r->policy, gi - r->first_expert, g->ahead != AHEAD_NOT);
    load_start(r, gi, ahead == AHEAD_FILL ? &r->fill : ahead ? &r->ahead : &r->demand);
}

/* An expert that overtakes the others gets the topmost slot that one of them has: what is used first
 * lies side by side, so that fewer huge pages are cleared before the first token. */
static void take_top_slot(struct resid *r, int gi)
{
    struct slot_class *c = class_of_group(r, gi);
    struct group *g = &r->group[gi];
    for (; c->top > g->slot && !g->next_piece; c->top--) {
        const int other = c->owner[c->top];
        struct group *o = other < 0 ? NULL : &r->group[other];
        if (!o || o->state != GROUP_LOADING || o->next_piece || o->pins) continue;
        o->slot = g->slot;
        g->slot = c->top--;
        o->base = slot_base(c, o->slot);
        g->base = slot_base(c, g->slot);
        c->owner[o->slot] = other;
        c->owner[g->slot] = gi;
        return;
    }
}

void load_promote(struct resid *r, int gi)
{
    if (!queue_remove(&r->ahead, gi)) {
        if (!queue_remove(&r->fill, gi)) return;
        take_top_slot(r, gi);
    }
    queue_push(&r->demand, gi);
    pthread_cond_broadcast(&r->fetch.work); /* the loaders may be held back from what is filled in */
}

/* The i-th read of a group. */
static struct fetch_piece piece_of(const struct resid *r, int gi, int i)
{
    const struct group *g = &r->group[gi];
    int k = 0, step, rows;
    for (;; k++) {
        const struct weight *w = &r->parts.weights->at[r->parts.part[g->part[k]].weight];
        rows = g->n_parts == 1 ? g->n_rows : w->n_rows;
        step = part_piece_rows(w);
        const int n = (rows + step - 1) / step;
        if (i < n) break;
        i -= n;
    }
    const struct weight *w = &r->parts.weights->at[r->parts.part[g->part[k]].weight];
    struct fetch_piece p = {.part = g->part[k], .row0 = i * step, .tag = gi, .check = !g->checked};
    p.n_rows = rows - p.row0 < step ? rows - p.row0 : step;
    p.dst = g->base + g->at[k];
    if (g->n_parts == 1 && g->row0) { /* a piece of a matrix: its first row lies at base */
        p.row0 += g->row0;
        p.dst -= part_rows_bytes(w, g->row0);
    }
    return p;
}

/* The next rows of a stack's levels: they lie in memory as in the file. */
static struct fetch_piece level_piece(struct resid *r)
{
    const struct weight *w = &r->parts.weights->at[r->stack.weight];
    const int64_t step = part_piece_rows(w), left = r->stack.rows_end - r->stack.row;
    const struct fetch_piece p = {
        .part = w->first_part, .row0 = (int)r->stack.row, .n_rows = (int)(left < step ? left : step),
        .raw = true, .tag = LEVELS_TAG,
        .dst = (char *)r->stack.mem.base + (uint64_t)r->stack.row * part_row_bytes(w),
    };
    r->stack.row += p.n_rows;
    return p;
}

/* Levels that have not been asked for are not wanted any more. */
static void give_up_levels(struct resid *r)
{
    if (r->stack.weight < 0) return;
    const int64_t step = part_piece_rows(&r->parts.weights->at[r->stack.weight]);
    r->stack.left -= (r->stack.rows_end - r->stack.row + step - 1) / step;
    r->stack.rows_end = r->stack.row;
}

static bool next_piece(struct resid *r, struct fetch_piece *p)
{
    if (r->rows.next < r->rows.n) {
        const int i = r->rows.next++;
        const struct weight *w = &r->parts.weights->at[r->rows.weight];
        *p = (struct fetch_piece){
            .part = w->first_part, .row0 = r->rows.ids[i], .n_rows = 1, .raw = true,
            .dst = r->rows.dst + (uint64_t)i * r->rows.stride, .tag = ROWS_TAG,
        };
        return true;
    }
    struct index_queue *q = r->demand.n ? &r->demand : &r->ahead;
    if (!q->n && r->stack.row < r->stack.rows_end) {
        *p = level_piece(r);
        return true;
    }
    if (!q->n) q = &r->fill;
    if (!q->n) return false;
    const int gi = queue_front(q);
    struct group *g = &r->group[gi];
    /* A few guesses keep the drive busy; with more of them a demand would find no buffer. */
    if (g->ahead == AHEAD_GUESS && r->guess_flight >= GUESS_PIECES) return false;
    if (q == &r->fill && r->hold && !g->next_piece) return false; /* one that has begun goes on */
    *p = piece_of(r, gi, g->next_piece);
    p->guess = g->ahead == AHEAD_GUESS;
    r->guess_flight += p->guess;
    if (++g->next_piece == g->n_pieces) queue_pop(q);
    return true;
}

/* So many pieces more, or fewer, are with the loaders. */
static void count_flight(struct resid *r, int more)
{
    const double now = os_seconds();
    if (r->n_flight) r->count.reading += (uint64_t)(1e9 * (now - r->flight_from));
    r->flight_from = now;
    r->n_flight += more;
}

bool load_next(void *arg, struct fetch_piece *p)
{
    struct resid *r = arg;
    if (!next_piece(r, p)) return false;
    count_flight(r, 1);
    return true;
}

/* Hands out no more of a group. */
static void give_up(struct group *g)
{
    g->failed = true;
    g->left -= g->n_pieces - g->next_piece;
    g->next_piece = g->n_pieces;
}

/* If nothing of it is under way any more, it is where it is. */
static void settle(struct resid *r, struct group *g)
{
    if (g->left) return;
    g->state = g->failed ? GROUP_DISK : GROUP_RAM;
    g->checked |= !g->failed;
    r->n_loading--;
    pthread_cond_broadcast(&r->fetch.ready);
}

void load_cancel(struct resid *r, int gi)
{
    struct group *g = &r->group[gi];
    ASSERT(g->state == GROUP_LOADING);
    if (g->next_piece < g->n_pieces && !queue_remove(&r->ahead, gi) && !queue_remove(&r->demand, gi))
        (void)queue_remove(&r->fill, gi);
    give_up(g);
    settle(r, g);
}

void load_forget(struct resid *r, int gi)
{
    struct group *g = &r->group[gi];
    ASSERT(g->state == GROUP_DISK && g->slot >= 0);
    g->failed = false;
    if (is_expert(r, gi)) {
        resid_let_go(r, gi);
        policy_removed(r->policy, gi - r->first_expert);
    }
    if (g->ahead == AHEAD_GUESS) r->count.wasted_bytes += g->guessed;
    g->ahead = AHEAD_NOT;
    slot_give(class_of_group(r, gi), g->slot);
    g->slot = -1;
    g->base = NULL;
}

static void warn_nan(struct resid *r, int part)
{
    const struct part *p = &r->parts.part[part];
    const struct weight *w = &r->parts.weights->at[p->weight];
    const struct gguf_tensor *t = w->src[w->n_src == 1 ? 0 : p->mat];
    char text[512];
    if (!r->warn || r->warned[p->weight]) return;
    r->warned[p->weight] = 1;
    (void)snprintf(text, sizeof text,
                   "%s: tensor %.*s holds NaN: what the model says will be unusable",
                   gguf_path(r->parts.weights->file, t->shard), (int)t->name.n, t->name.s);
    r->warn(r->warn_arg, text);
}

void load_done(void *arg, const struct fetch_piece *p, uint64_t bytes, bool nan,
               const struct err *e)
{
    struct resid *r = arg;
    count_flight(r, -1);
    r->guess_flight -= p->guess;
    /* A guess that cannot be read is a wrong one; whoever needs it will hear of it. */
    const bool idle_guess = p->guess && r->group[p->tag].ahead == AHEAD_GUESS;
    if (e->code && !r->err.code && !idle_guess) r->err = *e;
    r->count.bytes_read += bytes;
    if (p->tag == ROWS_TAG) {
        if (e->code) {
            r->rows.left -= r->rows.n - r->rows.next;
            r->rows.n = r->rows.next;
        }
        if (--r->rows.left <= 0) pthread_cond_broadcast(&r->fetch.ready);
        return;
    }
    if (p->tag == LEVELS_TAG) {
        r->load_done += bytes;
        if (e->code) give_up_levels(r);
        if (--r->stack.left <= 0 || e->code) pthread_cond_broadcast(&r->fetch.ready);
        return;
    }
    struct group *g = &r->group[p->tag];
    if (nan) warn_nan(r, p->part);
    r->load_done += bytes;
    if (p->guess) {
        g->guessed += bytes;
        r->count.guess_bytes += bytes;
    }
    g->left--;
    if (e->code) {
        load_cancel(r, p->tag);
        pthread_cond_broadcast(&r->fetch.ready);
    } else {
        settle(r, g);
    }
}

void load_sleep(struct resid *r)
{
    const double t = os_seconds();
    pthread_cond_wait(&r->fetch.ready, &r->fetch.lock);
    r->count.waited += os_seconds() - t;
}

enum status load_wait(struct resid *r, bool (*progress)(void *arg, uint64_t done, uint64_t total),
                      void *arg, struct err *e)
{
    pthread_mutex_lock(&r->fetch.lock);
    while ((r->n_loading || r->stack.left) && !r->err.code) {
        if (progress) {
            const uint64_t done = r->load_done, total = r->load_total;
            pthread_mutex_unlock(&r->fetch.lock);
            const bool go_on = progress(arg, done, total);
            pthread_mutex_lock(&r->fetch.lock);
            if (!go_on && !r->err.code)
                err_set(&r->err, ERR_CANCELLED, "loading was interrupted");
            if ((!r->n_loading && !r->stack.left) || r->err.code) break;
        }
        load_sleep(r);
    }
    if (r->err.code && !e->code) *e = r->err;
    const uint64_t done = r->load_done, total = r->load_total;
    pthread_mutex_unlock(&r->fetch.lock);
    if (!e->code && progress && !progress(arg, done, total))
        err_set(e, ERR_CANCELLED, "loading was interrupted");
    return e->code;
}

/* Slots of groups that did not arrive are free again. */
static void free_failed(struct resid *r)
{
    for (int gi = r->first_expert; gi < r->n_groups; gi++)
        if (r->group[gi].state == GROUP_DISK && r->group[gi].slot >= 0) load_forget(r, gi);
}

void load_drop(struct resid *r)
{
    if (!r->fetching) return;
    pthread_mutex_lock(&r->fetch.lock);
    struct index_queue *queues[3] = {&r->demand, &r->ahead, &r->fill};
    for (int i = 0; i < 3; i++)
        for (; queues[i]->n; queue_pop(queues[i])) {
            give_up(&r->group[queue_front(queues[i])]);
            settle(r, &r->group[queue_front(queues[i])]);
        }
    r->rows.left -= r->rows.n - r->rows.next;
    r->rows.n = r->rows.next;
    give_up_levels(r);
    while (r->n_loading || r->rows.left || r->stack.left) load_sleep(r);
    for (int i = 0; i < r->n_guess; i++) policy_unpin(r->policy, r->guess[i] - r->first_expert);
    r->n_guess = 0;
    free_failed(r);
    err_clear(&r->err);
    r->unfilled |= r->filling;
    r->filling = false;
    pthread_mutex_unlock(&r->fetch.lock);
}

/* Every layer alike: without a history any expert is as likely as any other. */
static void fill_slots(struct resid *r)
{
    for (int e = 0; e < r->n_experts; e++)
        for (int b = 0; b < r->n_banks; b++) {
            const int gi = r->first_expert + b * r->n_experts + e;
            struct slot_class *k = &r->cls[r->class_of[b]];
            if (r->group[gi].state != GROUP_DISK || !k->n_idle) continue;
            expert_start(r, gi, slot_take_idle(k, gi), AHEAD_FILL);
            policy_pin(r->policy, gi - r->first_expert);
            r->guess[r->n_guess++] = gi;
        }
}

void load_retry(struct resid *r)
{
    if (!r->fetching) return;
    pthread_mutex_lock(&r->fetch.lock);
    const bool failed = r->err.code;
    pthread_mutex_unlock(&r->fetch.lock);
    if (failed) load_drop(r);
}

bool load_steal(struct resid *r, const struct slot_class *c)
{
    for (int i = r->n_guess - 1; i >= 0; i--) {
        const int gi = r->guess[i];
        struct group *g = &r->group[gi];
        if (g->state != GROUP_LOADING || g->next_piece || class_of_group(r, gi) != c) continue;
        if (!queue_remove(&r->fill, gi)) continue;
        r->guess[i] = r->guess[--r->n_guess];
        r->n_loading--;
        g->state = GROUP_DISK;
        policy_unpin(r->policy, gi - r->first_expert);
        load_forget(r, gi);
        return true;
    }
    return false;
}

void load_fill(struct resid *r)
{
    pthread_mutex_lock(&r->fetch.lock);
    for (int i = 0; i < r->parts.weights->n; i++) {
        const int gi = r->home_of[i];
        if (gi < 0 || r->group[gi].state != GROUP_DISK || !r->group[gi].base) continue;
        load_start(r, gi, r->kind[i] == KIND_TABLE ? &r->fill : &r->demand);
    }
    if (r->fill_experts) fill_slots(r);
    for (int c = 0; c < r->sizes.n_classes; c++) r->cls[c].top = r->cls[c].n_max - 1;
    r->filling = true;
    r->unfilled = false;
    pthread_mutex_unlock(&r->fetch.lock);
}

enum status load_filled(struct resid *r, struct err *e)
{
    pthread_mutex_lock(&r->fetch.lock);
    const bool done = r->filling && !r->n_loading && !r->err.code;
    if (done) settle_guesses(r);
    pthread_mutex_unlock(&r->fetch.lock);
    if (!done) return OK;
    r->filling = false;
    const enum status s = fetch_unchanged(&r->fetch, e);
    if (s) return s;
    r->all_ram = place_resident(&r->sizes, &r->now);
    if (r->all_ram) {
        fetch_stop(&r->fetch);
        r->fetching = false;
    }
    return OK;
}
