/* Memory pressure and an automatic budget: looks at the system's memory between steps and keeps out of
 * everybody's way.
 *
 * When what is available falls under half of the reserve that `auto` leaves to others, the budget
 * shrinks so far that the reserve is whole again; when tasks wait for memory (PSI) it shrinks by an
 * eighth, and waits for the effect; when there has been plenty for a while it grows back, slowly, up to
 * what it was at the start.  What gives way: first a stack's levels, expert slots, tables and dense
 * weights (they are read again when needed), then, at the floor, the KV caches of sessions that the
 * step does not use, which go to a file and come back when they are.  Never precision, a stack's
 * apart, never a token.
 *
 * The decision is a pure function.  Executor thread only. */
#ifndef MOE_RUN_PRESSURE_H
#define MOE_RUN_PRESSURE_H

#include "moe/base/machine.h"
#include "moe/tessera.h"

struct pressure {
    bool on;
    struct machine_watch watch;
    double (*clock)(void);    /* seconds, monotonic */
    uint64_t most, reserve;   /* bytes: the budget at the start; what is left to others */
    double looked, moved, calm; /* when it looked; when the budget moved; since when all is well */
    int shrunk, grown, spilled; /* times; sessions put on disk */
};

void pressure_open(struct pressure *g, uint64_t budget, uint64_t reserve);
/* What others are left of a system with so much memory, by auto. */
uint64_t pressure_reserve(uint64_t total);

/* Another budget for a process that takes `used` bytes of `budget` now; budget: leave it. */
uint64_t pressure_decide(struct pressure *g, const struct machine_room *r, uint64_t budget,
                         uint64_t used, double now);

/* Before a step: at most once a second something happens.  ERR_IO: weights could not be read. */
enum status pressure_step(struct tessera_engine *e, const struct tessera_input *in, int n_in,
                          struct err *err);

#endif
