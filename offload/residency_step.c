/* The executor's calls; see residency.h.
 *
 * DESIGN.  A macro-step is a list of wanted experts.  Those in RAM are given out at once, the others
 * are asked for in the list's order as far as slots can be found, and given out as they arrive;
 * whatever has run is unpinned, which finds slots for the next ones.  So a union of experts that is
 * larger than the pool runs in waves, each expert being read once.
 *
 * Slots for a token's misses come from whom the policy names.  A pass over many rows wants nearly
 * every expert of every layer once: there the slots of what was read and run in this same pass go
 * first, only a window of them is ever in use, and what was there before stays for the next pass
 * (a scan through a cache of any other order would find nothing).  As the order of such a pass is
 * known, the next layer's absent experts are read ahead into the same window.
 *
 * The passes of a block are many rows, too, but the same ones again: what they use is held, and what
 * another pass left in its place goes first.  Where the block uses more than there are slots, a window of
 * them serves for the rest, as in a scan, and what it takes is of the layer that ran last.  What is read
 * ahead is what the block used in its last pass. */
#include "offload/residency_int.h"

#include <string.h>

enum { WINDOW = 8, WINDOW_BYTES = 96 << 20, PIECES_AHEAD = 8, GUESS_BYTES = 32 << 20 };

/* ---- the forward pass ---- */

static void read_ahead(struct resid *r, int bank);

static void expect_all(struct resid *r)
{
    for (int x = 0; x < r->n_experts; x++) r->expect[x] = x;
    r->n_expect = r->n_experts;
    r->next_ahead = 0;
}

/* What the block used of a bank in its last pass. */
static void expect_again(struct resid *r, int bank)
{
    r->n_expect = r->next_ahead = 0;
    for (int x = 0; x < r->n_experts; x++)
        if (r->group[r->first_expert + bank * r->n_experts + x].used + 1 == r->pass) r->expect[r->n_expect++] = x;
}

/* The first step after opening has the loaders to itself. */
static void hold_fill(struct resid *r, bool on)
{
    if (!r->fetching) return;
    pthread_mutex_lock(&r->fetch.lock);
    if (r->hold && !on) pthread_cond_broadcast(&r->fetch.work);
    r->hold = on;
    pthread_mutex_unlock(&r->fetch.lock);
}

/* A window of the slots is never of what stays: of few slots that is most of them. */
static bool can_hold(const struct resid *r)
{
    for (int c = 0; c < r->sizes.n_classes; c++)
        if (r->cls[c].n_slots < 8 * WINDOW) return false;
    return true;
}

void resid_block(struct resid *r, uint64_t block)
{
    if (block == r->named) return;
    r->named = block;
    r->block = can_hold(r) ? block : 0;
    r->pass++; /* what the last one used says nothing of the next */
    for (int gi = r->first_expert; gi < r->first_piece; gi++) resid_let_go(r, gi);
}

static void hold(struct resid *r, int gi)
{
    struct group *g = &r->group[gi];
    if (!r->block || g->held) return;
    g->held = true;
    policy_pin(r->policy, gi - r->first_expert);
}

enum status resid_step(struct resid *r, int n_rows, struct err *e)
{
    if (r->broken.code) return err_set(e, r->broken.code, "%s", r->broken.msg);
    load_retry(r);
    if (r->filling && load_filled(r, &r->broken)) {
        if (e) *e = r->broken;
        return r->broken.code;
    }
    if (r->unfilled) load_fill(r);
    if (r->filling && !r->stepped) hold_fill(r, true);
    r->stepped = true;
    r->pass++;
    if (r->policy) policy_step(r->policy, n_rows);
    r->streaming = n_rows >= STREAM_ROWS || r->block;
    r->n_want = r->n_open = 0;
    r->read_before = r->count.bytes_read;
    resid_more(r, false);
    for (; r->passed.n; queue_pop(&r->passed)) r->group[queue_front(&r->passed)].passed = false;
    if (r->all_ram || !r->streaming || !r->n_banks) return OK;
    if (r->block) expect_again(r, 0);
    else expect_all(r);
    pthread_mutex_lock(&r->fetch.lock);
    read_ahead(r, 0);
    pthread_mutex_unlock(&r->fetch.lock);
    return OK;
}

void resid_more(struct resid *r, bool more)
{
    r->more = more;
    if (more) return;
    for (; r->held.n; queue_pop(&r->held)) queue_push(&r->passed, queue_front(&r->held));
}

static void unpin_all(struct resid *r)
{
    for (int i = 0; i < r->n_want; i++) {
        const int stage = r->stage[i] & WANT_STAGE;
        if (stage == WANT_ASKED || stage == WANT_GIVEN) r->group[r->want[i]].pins--;
    }
    r->n_want = 0;
    if (r->pinned_piece >= 0) r->group[r->pinned_piece].pins--;
    r->pinned_piece = -1;
}

enum status resid_step_end(struct resid *r, enum status so_far, struct err *e)
{
    unpin_all(r);
    if (r->policy) policy_done(r->policy);
    if (r->all_ram) return so_far;
    hold_fill(r, false);
    if (so_far) {
        load_drop(r);
        return so_far;
    }
    if (r->count.bytes_read == r->read_before) return OK;
    /* What was read before the change was good; what lies in RAM from after it is not. */
    const enum status s = fetch_unchanged(&r->fetch, e);
    if (s) r->broken = *e;
    return s;
}

/* What lies at base, as kernels take it. */
static const void *view_of(const struct resid *r, int part, const char *base)
{
    if (!qtype_is_stacked(r->parts.weights->at[r->parts.part[part].weight].type)) return base;
    r->stack.mat[part].base = base;
    return &r->stack.mat[part];
}

const void *resid_home(struct resid *r, int weight)
{
    const int gi = r->home_of[weight];
    if (gi < 0) return NULL;
    const struct group *g = &r->group[gi];
    if (!r->all_ram) pthread_mutex_lock(&r->fetch.lock);
    const bool there = g->state == GROUP_RAM;
    if (!r->all_ram) pthread_mutex_unlock(&r->fetch.lock);
    return there ? view_of(r, g->part[0], g->base) : NULL;
}

enum status resid_await(struct resid *r, int weight, const void **data, struct err *e)
{
    const int gi = r->home_of[weight];
    *data = NULL;
    if (gi < 0) return OK;
    struct group *g = &r->group[gi];
    enum status s = OK;
    pthread_mutex_lock(&r->fetch.lock);
    if (r->kind[weight] != KIND_TABLE)
        while (g->state == GROUP_LOADING && !r->err.code) load_sleep(r);
    if (g->state == GROUP_RAM) {
        *data = view_of(r, g->part[0], g->base);
    } else if (r->err.code) {
        if (e && !e->code) *e = r->err;
        s = r->err.code;
    }
    pthread_mutex_unlock(&r->fetch.lock);
    return s;
}

/* ---- slots ---- */

/* Takes the slot of something that was read and has run in this pass; -1 = there is none. */
static int slot_of_passed(struct resid *r, const struct slot_class *c)
{
    for (int n = r->passed.n; n; n--) {
        const int gi = queue_front(&r->passed);
        struct group *g = &r->group[gi];
        queue_pop(&r->passed);
        if (class_of_group(r, gi) != c && g->state == GROUP_RAM) {
            queue_push(&r->passed, gi); /* somebody else's */
            continue;
        }
        if (g->state == GROUP_RAM && g->pins) { /* another piece of the rows is at it */
            queue_push(&r->passed, gi);
            continue;
        }
        g->passed = false;
        if (g->state != GROUP_RAM) continue;
        resid_evict(r, gi);
        return 0;
    }
    return -1;
}

/* The same of any expert of this macro-step that has run. */
static int slot_of_run(struct resid *r, const struct slot_class *c)
{
    for (int i = 0; i < r->n_want; i++) {
        const int gi = r->want[i];
        if ((r->stage[i] & WANT_STAGE) != WANT_RUN || class_of_group(r, gi) != c) continue;
        if (r->group[gi].state != GROUP_RAM || r->group[gi].pins) continue;
        resid_evict(r, gi);
        return 0;
    }
    return -1;
}

/* The same of one that is held, from the layer that ran last on. */
static int slot_of_held(struct resid *r, const struct slot_class *c)
{
    for (int i = 1; i <= r->n_banks; i++) {
        const int bank = (r->layer + r->n_banks - i) % r->n_banks;
        for (int x = r->n_experts - 1; x >= 0; x--) {
            const int gi = r->first_expert + bank * r->n_experts + x;
            const struct group *g = &r->group[gi];
            if (!g->held || g->pins || g->state != GROUP_RAM || class_of_group(r, gi) != c) continue;
            resid_evict(r, gi);
            return 0;
        }
    }
    return -1;
}

static int find_slot(struct resid *r, int gi, bool ahead)
{
    struct slot_class *c = class_of_group(r, gi);
    if (!c->n_idle && r->block) { /* what it does not use */
        const int32_t v = policy_victim(r->policy, (int)(c - r->cls));
        if (v >= 0) resid_evict(r, r->first_expert + v);
    }
    if (!c->n_idle && r->streaming) (void)slot_of_passed(r, c);
    if (!c->n_idle && !ahead && !load_steal(r, c)) {
        const int32_t v = policy_victim(r->policy, (int)(c - r->cls));
        if (v >= 0) resid_evict(r, r->first_expert + v);
        else if (slot_of_passed(r, c) < 0 && slot_of_run(r, c) < 0) (void)slot_of_held(r, c);
    }
    return slot_take_idle(c, gi);
}

/* ---- experts ---- */

/* Groups of a scan that are asked for and have not run.  While attention and the experts in memory
 * are computed nobody asks for more, and the drive should not run dry: some 100 MB last for 50 ms at
 * 2 GB/s.  What they take is lost to what stays, so an eighth of the slots is enough. */
static int window_of(const struct slot_class *c)
{
    int n = (int)(WINDOW_BYTES / c->slot_bytes);
    if (n > c->n_slots / 8) n = c->n_slots / 8;
    if (n < WINDOW) n = WINDOW;
    if (n > c->n_slots / 2) n = c->n_slots / 2;
    return n < 1 ? 1 : n > AHEAD_MAX ? AHEAD_MAX : n;
}

/* What was read ahead and has arrived is as evictable as everything else; what was taken back, or
 * could not be read, gives up its slot. */
void settle_guesses(struct resid *r)
{
    int n = 0;
    for (int i = 0; i < r->n_guess; i++) {
        const int gi = r->guess[i];
        const enum group_state state = r->group[gi].state;
        if (state == GROUP_LOADING) {
            r->guess[n++] = gi;
            continue;
        }
        policy_unpin(r->policy, gi - r->first_expert);
        if (state == GROUP_DISK) load_forget(r, gi);
    }
    r->n_guess = n;
}

/* The router of a bank has not named these. */
static void cancel_guesses(struct resid *r, int bank)
{
    for (int i = 0; i < r->n_guess; i++) {
        const struct group *g = &r->group[r->guess[i]];
        if ((r->guess[i] - r->first_expert) / r->n_experts != bank || g->failed ||
            g->ahead != AHEAD_GUESS || g->state != GROUP_LOADING) continue;
        r->count.cancelled++;
        load_cancel(r, r->guess[i]);
    }
}

static void guess_ahead(struct resid *r)
{
    int idle[256] = {0};
    settle_guesses(r);
    while (r->n_guess < AHEAD_MAX) {
        int32_t victim;
        for (int c = 0; c < r->sizes.n_classes; c++) idle[c] = r->cls[c].n_idle;
        const int32_t x = policy_prefetch(r->policy, idle, &victim);
        if (x < 0) return;
        struct slot_class *c = class_of_group(r, r->first_expert + x);
        if (r->n_guess >= c->n_slots / 4 ||
            (r->n_guess >= 2 && (uint64_t)(r->n_guess + 1) * c->slot_bytes > GUESS_BYTES)) return;
        if (victim >= 0) resid_evict(r, r->first_expert + victim);
        const int slot = slot_take_idle(c, r->first_expert + x);
        ASSERT(slot >= 0);
        expert_start(r, r->first_expert + x, slot, AHEAD_GUESS);
        policy_pin(r->policy, x);
        r->guess[r->n_guess++] = r->first_expert + x;
        r->count.guessed++;
    }
}

void resid_predict(struct resid *r, int bank, const int32_t *expert, const float *prob, int n)
{
    if (!r->all_ram && !r->streaming) policy_predict(r->policy, bank, expert, prob, n);
}

void resid_speculate(struct resid *r)
{
    if (r->all_ram || r->streaming) return;
    pthread_mutex_lock(&r->fetch.lock);
    guess_ahead(r);
    pthread_mutex_unlock(&r->fetch.lock);
}

/* More rows will come to the layer at hand: nothing is asked for while they are computed, for as long as
 * all its other rows took, so far more of the next layer than a window can be read.  Its slots come from
 * what the policy would lose first, other layers' experts; from the next layer on they are those of what
 * has passed.  Half of the slots that this layer does not want, in all. */
static int slot_between(struct resid *r, int gi)
{
    struct slot_class *c = class_of_group(r, gi);
    const int bank = (gi - r->first_expert) / r->n_experts, first = r->first_expert + bank * r->n_experts;
    int n = 0;
    for (int i = first; i < first + r->n_experts; i++) n += r->group[i].ahead == AHEAD_KNOWN;
    if (n >= (c->n_slots - r->n_want) / 2 || r->n_guess >= AHEAD_MAX) return -1;
    if (!c->n_idle) (void)slot_of_passed(r, c);
    if (!c->n_idle) {
        const int32_t v = policy_victim(r->policy, (int)(c - r->cls));
        if (v < 0 || v / r->n_experts == r->layer || v / r->n_experts == bank) return -1;
        resid_evict(r, r->first_expert + v);
    }
    return slot_take_idle(c, gi);
}

/* Asks for absent experts of a bank in order, while the window has room. */
static void read_ahead(struct resid *r, int bank)
{
    settle_guesses(r);
    if (r->more && r->n_expect && !r->next_ahead) policy_predict(r->policy, bank, r->expect, NULL, r->n_expect);
    while (r->next_ahead < r->n_expect && !r->err.code) {
        const int gi = r->first_expert + bank * r->n_experts + r->expect[r->next_ahead];
        struct slot_class *c = class_of_group(r, gi);
        if (r->group[gi].state == GROUP_DISK) {
            if (!r->more && (r->n_open + r->n_guess >= window_of(c) || c->n_slots < 4)) return;
            const int slot = r->more ? slot_between(r, gi) : find_slot(r, gi, true);
            if (slot < 0) return;
            expert_start(r, gi, slot, AHEAD_KNOWN);
            hold(r, gi);
            policy_pin(r->policy, gi - r->first_expert);
            r->guess[r->n_guess++] = gi;
        }
        r->next_ahead++;
    }
}

/* Asks for misses in order, as far as slots can be found. */
static void ask(struct resid *r)
{
    settle_guesses(r);
    for (; r->next_ask < r->n_want && !r->err.code; r->next_ask++) {
        const int i = r->next_ask, gi = r->want[i];
        if (r->stage[i] != (WANT_MISS | WANT_READ)) continue;
        if (r->streaming && r->n_open && r->n_open >= window_of(class_of_group(r, gi))) return;
        if (r->group[gi].state == GROUP_LOADING) return; /* a guess that is being taken back */
        const int slot = find_slot(r, gi, false);
        if (slot < 0) return;
        expert_start(r, gi, slot, AHEAD_NOT);
        hold(r, gi);
        r->group[gi].pins++;
        r->stage[i] = WANT_ASKED | WANT_READ;
        r->n_open++;
    }
    if (r->more && r->block) return; /* what has passed is the block's own: its next pass wants it */
    if (r->streaming && r->layer + 1 < r->n_banks) read_ahead(r, r->layer + 1);
}

/* Looks one up, and pins it if it is there or on its way. */
static void want(struct resid *r, int i, int gi)
{
    struct group *g = &r->group[gi];
    const bool in_ram = g->state == GROUP_RAM, coming = g->state == GROUP_LOADING && !g->failed;
    const bool guess = g->ahead == AHEAD_GUESS && (in_ram || coming);
    r->want[i] = gi;
    g->used = r->pass;
    r->was[i] = (uint8_t)(in_ram ? guess ? RESID_GUESSED : RESID_IN_RAM
                          : coming && guess ? RESID_LATE : RESID_ABSENT);
    r->count.useful += guess;
    r->count.late += guess && !in_ram;
    r->count.useful_bytes += guess ? g->guessed : 0;
    r->count.hits += in_ram;
    r->count.misses += !in_ram;
    r->stage[i] = in_ram && !g->ahead ? WANT_ASKED
                  : in_ram || coming ? WANT_ASKED | WANT_READ : WANT_MISS | WANT_READ;
    if (!in_ram && !coming) return;
    hold(r, gi);
    g->pins++;
    r->n_open += (r->stage[i] & WANT_READ) != 0;
    g->ahead = AHEAD_NOT;
    if (coming) load_promote(r, gi);
}

enum resid_was resid_was(const struct resid *r, int i) { return (enum resid_was)r->was[i]; }

void resid_route(struct resid *r, int bank, const int32_t *expert, const int32_t *count, int n)
{
    policy_route(r->policy, bank, expert, count, n);
    r->layer = bank;
    r->n_want = n;
    r->next_ask = r->next_ahead = r->n_expect = 0;
    if (r->all_ram) {
        for (int i = 0; i < n; i++) r->want[i] = r->first_expert + bank * r->n_experts + expert[i];
        r->count.hits += (uint64_t)n;
        memset(r->stage, WANT_RUN, (size_t)n);
        memset(r->was, RESID_IN_RAM, (size_t)n);
        return;
    }
    pthread_mutex_lock(&r->fetch.lock);
    settle_guesses(r);
    for (int i = 0; i < n; i++) want(r, i, r->first_expert + bank * r->n_experts + expert[i]);
    if (!r->streaming) cancel_guesses(r, bank);
    else if (r->block && bank + 1 < r->n_banks) expect_again(r, bank + 1);
    /* Nearly all of this layer's are wanted: the next layer's will be, too. */
    else if (!r->block && n >= r->n_experts * 3 / 4) expect_all(r);
    ask(r);
    pthread_mutex_unlock(&r->fetch.lock);
}

void resid_expect(struct resid *r, int bank, const int32_t *expert, int n)
{
    if (r->all_ram || !r->streaming || bank != r->layer + 1 || r->n_expect) return;
    memcpy(r->expect, expert, sizeof *expert * (size_t)n);
    pthread_mutex_lock(&r->fetch.lock);
    r->n_expect = n;
    ask(r);
    pthread_mutex_unlock(&r->fetch.lock);
}

int resid_take(struct resid *r, int32_t *list, struct err *e)
{
    if (r->all_ram) {
        int n = 0;
        for (; n < r->n_want; n++) list[n] = n;
        return n;
    }
    int n = 0, waiting = 1;
    pthread_mutex_lock(&r->fetch.lock);
    for (; !n && waiting && !r->err.code;) {
        waiting = 0;
        for (int i = 0; i < r->n_want; i++) {
            const int stage = r->stage[i] & WANT_STAGE;
            waiting += stage == WANT_MISS || stage == WANT_ASKED;
            if (stage != WANT_ASKED || r->group[r->want[i]].state != GROUP_RAM) continue;
            r->stage[i] = (uint8_t)((r->stage[i] & WANT_READ) | WANT_GIVEN);
            list[n++] = i;
        }
        if (n || !waiting) break;
        const int asked = r->next_ask;
        ask(r); /* a guess may have become evictable */
        if (asked == r->next_ask) {
            ASSERT(r->n_loading); /* else nothing will ever arrive */
            load_sleep(r);
        }
    }
    if (r->err.code) {
        if (e && !e->code) *e = r->err;
        n = -1;
    }
    pthread_mutex_unlock(&r->fetch.lock);
    return n;
}

void resid_ran(struct resid *r)
{
    if (r->all_ram) return;
    pthread_mutex_lock(&r->fetch.lock);
    for (int i = 0; i < r->n_want; i++) {
        if ((r->stage[i] & WANT_STAGE) != WANT_GIVEN) continue;
        struct group *g = &r->group[r->want[i]];
        const bool was_read = r->stage[i] & WANT_READ;
        r->stage[i] = WANT_RUN;
        g->pins--;
        if (!was_read) continue;
        r->n_open--;
        if (!g->passed) queue_push(r->more ? &r->held : &r->passed, r->want[i]);
        g->passed = true;
    }
    ask(r);
    if (!r->streaming) guess_ahead(r);
    pthread_mutex_unlock(&r->fetch.lock);
}

const void *resid_matrix(const struct resid *r, int group, int k)
{
    const struct group *g = &r->group[group];
    return view_of(r, g->part[k], g->base + g->at[k]);
}

const void *resid_expert(const struct resid *r, int i, int k) { return resid_matrix(r, r->want[i], k); }

/* ---- streamed matrices ---- */

/* Uses from now until a piece's turn. */
static int distance(const struct resid *r, int gi, int now)
{
    const int d = r->seq_at[gi - r->first_piece] - now;
    return d < 0 ? d + r->n_seq : d;
}

/* A slot for a piece that is used in `due` steps: idle, or of one that is used later still. */
static int ring_slot(struct resid *r, int gi, int now, int due)
{
    struct slot_class *c = &r->cls[RING];
    int last = -1;
    for (int s = 0; !c->n_idle && s < c->n_max; s++) {
        const int o = c->owner[s];
        if (o < 0 || r->group[o].state != GROUP_RAM || r->group[o].pins) continue;
        if (distance(r, o, now) > due && (last < 0 || distance(r, o, now) > distance(r, last, now)))
            last = o;
    }
    if (last >= 0) resid_evict(r, last);
    return slot_take_idle(c, gi);
}

/* Starts the read of a piece if there is a slot for it. */
static bool start_piece(struct resid *r, int gi, int now, int due, enum group_ahead ahead)
{
    if (r->group[gi].state != GROUP_DISK) return true;
    const int slot = ring_slot(r, gi, now, due);
    if (slot < 0) return false;
    expert_start(r, gi, slot, ahead);
    r->count.pieces_read++;
    return true;
}

/* Starts the reads of the pieces that come after this one. */
static void pieces_ahead(struct resid *r, int at)
{
    int most = r->now.n_ring - 1 < PIECES_AHEAD ? r->now.n_ring - 1 : PIECES_AHEAD;
    if (most > r->n_seq - 1) most = r->n_seq - 1;
    for (int d = 1, n = 0; d < r->n_seq && n < most; d++) {
        const int next = (at + d) % r->n_seq;
        if (r->off[next]) continue;
        if (!start_piece(r, r->seq[next], at, d, AHEAD_KNOWN)) return;
        n++;
    }
}

void resid_expect_piece(struct resid *r, int at, bool on)
{
    const struct group *g = &r->group[r->seq[at]];
    const int weight = r->parts.part[g->part[0]].weight, n_rows = r->parts.weights->at[weight].n_rows;
    pthread_mutex_lock(&r->fetch.lock);
    for (int row = 0; row < n_rows; row += r->group[r->seq[at++]].n_rows) r->off[at] = !on;
    pthread_mutex_unlock(&r->fetch.lock);
}

enum status resid_piece(struct resid *r, int at, struct resid_piece *p, struct err *e)
{
    const int gi = r->seq[at];
    struct group *g = &r->group[gi];
    enum status s = OK;
    pthread_mutex_lock(&r->fetch.lock);
    if (r->pinned_piece >= 0) r->group[r->pinned_piece].pins--;
    r->pinned_piece = -1;
    while (g->state != GROUP_RAM && !r->err.code) {
        /* -1: whatever is in the ring and not on its way may go for what is needed now. */
        if (start_piece(r, gi, at, -1, AHEAD_NOT)) load_promote(r, gi);
        pieces_ahead(r, at);
        if (g->state != GROUP_RAM && !r->err.code) load_sleep(r);
    }
    if (r->err.code) {
        if (e && !e->code) *e = r->err;
        s = r->err.code;
    } else {
        g->pins++;
        r->pinned_piece = gi;
        pieces_ahead(r, at);
        const struct weight *w = &r->parts.weights->at[r->parts.part[g->part[0]].weight];
        *p = (struct resid_piece){g->base, g->row0, g->n_rows, g->row0 + g->n_rows == w->n_rows};
    }
    pthread_mutex_unlock(&r->fetch.lock);
    return s;
}

/* ---- rows of tables ---- */

enum status resid_rows(struct resid *r, int weight, const int32_t *ids, int n, char *dst,
                       uint64_t stride, struct err *e)
{
    pthread_mutex_lock(&r->fetch.lock);
    r->rows.weight = weight;
    r->rows.ids = ids;
    r->rows.dst = dst;
    r->rows.stride = stride;
    r->rows.next = 0;
    r->rows.n = r->rows.left = n;
    pthread_cond_broadcast(&r->fetch.work);
    while (r->rows.left) load_sleep(r);
    const enum status s = r->err.code;
    if (s && e && !e->code) *e = r->err;
    pthread_mutex_unlock(&r->fetch.lock);
    return s;
}
