/* The inside of residency; private to offload/residency*.c. */
#ifndef OFFLOAD_RESIDENCY_INT_H
#define OFFLOAD_RESIDENCY_INT_H

#include "offload/residency.h"

enum kind { KIND_SMALL, KIND_DENSE, KIND_TABLE, KIND_EXPERT, KIND_LEVELS, KIND_N };
enum { RING = PLACE_CLASSES };                      /* its slot class */
enum { SLOT_IDLE = -1, SLOT_AWAY = -2 };            /* slot_class.owner */
enum { WANT_MISS, WANT_ASKED, WANT_GIVEN, WANT_RUN, /* resid.stage, and: */
       WANT_STAGE = 3, WANT_READ = 4 /* it was not in RAM when it was routed to */ };
enum { AHEAD_MAX = 64, STREAM_ROWS = 32, GUESS_PIECES = 4 };

static inline bool is_expert(const struct resid *r, int g)
{
    return g >= r->first_expert && g < r->first_piece;
}

static inline struct slot_class *class_of_group(struct resid *r, int g)
{
    return &r->cls[is_expert(r, g) ? r->class_of[(g - r->first_expert) / r->n_experts] : RING];
}

void queue_push(struct index_queue *q, int32_t x);
int32_t queue_front(const struct index_queue *q);
void queue_pop(struct index_queue *q);
bool queue_remove(struct index_queue *q, int32_t x);

char *slot_base(const struct slot_class *c, int slot);
void slot_give(struct slot_class *c, int slot);
int slot_take_idle(struct slot_class *c, int group);
/* It is held no longer. */
void resid_let_go(struct resid *r, int group);
/* Forgets an unpinned group in RAM; its slot becomes idle. */
void resid_evict(struct resid *r, int group);

/* ---- loading; the lock of r->fetch is held unless said otherwise ---- */

/* DISK -> LOADING; its base is set. */
void load_start(struct resid *r, int group, struct index_queue *q);
/* The same for an expert or a piece of the ring, into a slot that it owns. */
void expert_start(struct resid *r, int group, int slot, enum group_ahead ahead);
/* What was read ahead, or is filled in, is needed now. */
void load_promote(struct resid *r, int group);
/* What was read ahead is not needed: what has not been handed out is never read, and it ends on
 * DISK as soon as nothing of it is under way. */
void load_cancel(struct resid *r, int group);
/* On DISK, but its slot still its own: gives that back. */
void load_forget(struct resid *r, int group);
/* Called by the loaders. */
bool load_next(void *arg, struct fetch_piece *p);
void load_done(void *arg, const struct fetch_piece *p, uint64_t bytes, bool nan,
               const struct err *e);
/* Not held.  Waits until nothing is being loaded. */
enum status load_wait(struct resid *r, bool (*progress)(void *arg, uint64_t done, uint64_t total),
                      void *arg, struct err *e);
/* Not held.  Takes back whatever has been asked for and has not arrived. */
void load_drop(struct resid *r);
/* Guesses that have arrived are as evictable as everything else. */
void settle_guesses(struct resid *r);
/* Waits for a report; counts the time. */
void load_sleep(struct resid *r);
/* Not held.  Asks for all that has a place and is not there, in the order of first use. */
void load_fill(struct resid *r);
/* Not held.  What failed between steps was nobody's error: it is forgotten and asked for again. */
void load_retry(struct resid *r);
/* Takes back the slot of an expert that would be filled in and has not begun. */
bool load_steal(struct resid *r, const struct slot_class *c);
/* Not held.  Takes note of a fill that has ended. */
enum status load_filled(struct resid *r, struct err *e);

#endif
