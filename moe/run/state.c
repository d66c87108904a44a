/* Recurrent states of a session: the current one, those a step writes, and the snapshots.
 *
 * DESIGN.  A state is everything that the recurrent layers remember of a timeline, at one position;
 * it cannot be cut back as a KV cache can.  A session owns a few buffers of one state each.  A step
 * reads the current one and writes free ones; when it succeeds, the last one written becomes the
 * current one, and when it fails nothing has happened.  A snapshot is a buffer that is not given
 * free again, so that keeping one copies nothing: the rows of a step are cut into segments at the
 * positions to keep (dev_segment), and the state between two segments stays.
 *
 * Kept are the places that somebody asked for (marks; the last token but one of a generator's
 * prompt, from which the same prompt is answered again), and every STATE_EVERY positions.  When
 * there is no room, a periodic snapshot goes before an asked-for one: of those the one whose
 * neighbours are nearest to each other, so that the old part of a timeline thins out; then the
 * oldest asked-for one.  Position 0 needs no buffer.
 *
 * Invariants: n_kept <= n_snapshots, and there are n_snapshots + 2 buffers: one for the current
 * state and one to write are always there.  Snapshots are a cache: a failed step may lose some. */
#include <string.h>

#include "moe/run/engine_int.h"

enum { STATE_EVERY = 256 };

enum status state_open(struct tessera_session *s, struct err *e)
{
    struct state_pool *p = &s->state;
    p->n = s->engine->n_snapshots + 2;
    p->current = -1;
    if (!s->engine->state_bytes) return OK;
    return region_reserve(&p->mem, &s->engine->ledger, MEM_KV,
                          (size_t)p->n * s->engine->state_bytes, e);
}

void state_close(struct tessera_session *s) { region_release(&s->state.mem); }

char *state_at(const struct tessera_session *s, int i)
{
    return (char *)s->state.mem.base + (size_t)i * s->engine->state_bytes;
}

static int n_kept(const struct state_pool *p)
{
    int n = 0;
    for (int i = 0; i < p->n; i++) n += p->buf[i].kept != STATE_FREE;
    return n;
}

/* Distance between the kept neighbours of snapshot i; those are positions, 0 included. */
static int32_t gap(const struct state_pool *p, int i)
{
    int32_t before = 0, after = INT32_MAX;
    for (int k = 0; k < p->n; k++) {
        if (p->buf[k].kept == STATE_FREE || k == i) continue;
        const int32_t pos = p->buf[k].pos;
        if (pos <= p->buf[i].pos && pos > before) before = pos;
        if (pos > p->buf[i].pos && pos < after) after = pos;
    }
    return after - before;
}

/* Gives up the least useful snapshot that is not the current state; its buffer, -1 = none. */
static int evict(struct state_pool *p)
{
    int best = -1;
    for (int i = 0; i < p->n; i++) {
        const struct state_buf *a = &p->buf[i], *b = best < 0 ? NULL : &p->buf[best];
        if (a->kept == STATE_FREE || a->busy || i == p->current) continue;
        if (!b || a->kept < b->kept) best = i;
        else if (a->kept > b->kept) continue;
        else if (a->kept == STATE_ASKED ? a->pos < b->pos : gap(p, i) < gap(p, best)) best = i;
    }
    if (best >= 0) p->buf[best].kept = STATE_FREE;
    return best;
}

/* A buffer to write to; its memory comes from the ledger the first time. */
static int take(struct tessera_session *s, struct err *e)
{
    struct state_pool *p = &s->state;
    struct err local;
    for (int tries = 0; tries < 2; tries++) {
        for (int i = 0; i < p->n; i++) {
            if (p->buf[i].kept != STATE_FREE || p->buf[i].busy || i == p->current) continue;
            err_clear(&local);
            if (region_commit(&p->mem, (size_t)(i + 1) * s->engine->state_bytes, &local)) break;
            p->buf[i].busy = true;
            return i;
        }
        if (tries || evict(p) < 0) break;
    }
    err_set(e, ERR_BUDGET, "the state of the model's recurrent layers needs %llu bytes more than "
            "the memory budget leaves", (unsigned long long)s->engine->state_bytes);
    return -1;
}

/* The next position after `pos` whose state is to be kept, `end` at most. */
static int32_t next_cut(const struct tessera_session *s, int32_t pos, int32_t end)
{
    int32_t at = (pos / STATE_EVERY + 1) * STATE_EVERY;
    if (s->state.asked > pos && s->state.asked < at) at = s->state.asked;
    return s->engine->n_snapshots && at < end ? at : end;
}

enum status state_begin(struct tessera_session *s, int32_t n, int first, int *n_segments,
                        struct err *e)
{
    struct state_pool *p = &s->state;
    if (!s->engine->state_bytes) return OK;
    for (int i = 0; i < p->n; i++) p->buf[i].busy = false;
    const int last = take(s, e);
    if (last < 0) return e->code;
    p->next = last;
    p->buf[last].pos = s->n + n;
    const char *from = p->current < 0 ? NULL : state_at(s, p->current);
    for (int32_t at = s->n, end = s->n + n; at < end;) {
        int32_t to = next_cut(s, at, end);
        int i = last;
        if (to < end) {
            struct err no_room;
            err_clear(&no_room);
            /* busy ones will be kept: all of them together must leave the invariant true */
            int busy = 0;
            for (int k = 0; k < p->n; k++) busy += p->buf[k].busy && k != last;
            if (n_kept(p) + busy >= s->engine->n_snapshots && evict(p) < 0) i = -1;
            else i = take(s, &no_room);
            if (i < 0) {
                to = end;
                i = last;
            } else {
                p->buf[i].pos = to;
            }
        }
        char *out = state_at(s, i);
        if (!from) memset(out, 0, s->engine->state_bytes);
        s->engine->segment[(*n_segments)++] = (struct dev_segment){
            .first = first + (at - s->n), .n = to - at, .from = from ? from : out, .to = out,
        };
        from = out;
        at = to;
    }
    return OK;
}

static enum state_kept kind_of(const struct state_pool *p, int32_t pos)
{
    return pos == p->asked ? STATE_ASKED : pos % STATE_EVERY == 0 ? STATE_PERIODIC : STATE_FREE;
}

/* Keeps buffer i, if there is room. */
static void keep(struct tessera_session *s, int i, enum state_kept kind)
{
    struct state_pool *p = &s->state;
    if (p->buf[i].kept == STATE_FREE && kind != STATE_FREE &&
        n_kept(p) >= s->engine->n_snapshots && evict(p) < 0)
        return;
    if (kind > p->buf[i].kept) p->buf[i].kept = kind;
}

void state_commit(struct tessera_session *s)
{
    struct state_pool *p = &s->state;
    if (!s->engine->state_bytes) return;
    p->current = p->next;
    for (int i = 0; i < p->n; i++)
        if (p->buf[i].busy) keep(s, i, kind_of(p, p->buf[i].pos));
    for (int i = 0; i < p->n; i++) p->buf[i].busy = false;
}

void state_ask(struct tessera_session *s, int32_t pos)
{
    struct state_pool *p = &s->state;
    if (!s->engine->state_bytes) return;
    p->asked = pos;
    for (int i = 0; i < p->n; i++) {
        const bool there = p->buf[i].kept != STATE_FREE || i == p->current;
        if (there && p->buf[i].pos == pos) keep(s, i, STATE_ASKED);
    }
}

int32_t state_rollback(struct tessera_session *s, int32_t pos)
{
    struct state_pool *p = &s->state;
    if (!s->engine->state_bytes || pos >= s->n) return pos;
    int32_t reached = 0;
    p->current = -1;
    for (int i = 0; i < p->n; i++) {
        struct state_buf *b = &p->buf[i];
        if (b->kept == STATE_FREE) continue;
        if (b->pos > pos) {
            b->kept = STATE_FREE;
        } else if (b->pos > reached) {
            reached = b->pos;
            p->current = i;
        }
    }
    return reached;
}

enum status state_restore(struct tessera_session *s, int32_t pos, char **at, struct err *e)
{
    struct state_pool *p = &s->state;
    *at = NULL;
    p->current = -1;
    p->asked = 0;
    for (int i = 0; i < p->n; i++) p->buf[i].kept = STATE_FREE;
    if (!s->engine->state_bytes || pos == 0) return OK;
    enum status st = region_commit(&p->mem, s->engine->state_bytes, e);
    if (st) return st;
    p->current = 0;
    p->buf[0] = (struct state_buf){.pos = pos};
    *at = state_at(s, 0);
    return OK;
}
