/* See pressure.h. */
#include "moe/run/pressure.h"

#include <stdio.h>
#include <string.h>

#include "moe/base/osfile.h"
#include "moe/run/engine_int.h"

static const double LOOK = 1, CALM = 10, STEP = 5; /* seconds */
static const double STALLED = 10, QUIET = 1;       /* % of the time */
static const uint64_t MIB = 1u << 20;

uint64_t pressure_reserve(uint64_t total)
{
    const uint64_t part = total / 100 * 6;
    return part > 1024 * MIB ? part : 1024 * MIB;
}

void pressure_open(struct pressure *g, uint64_t budget, uint64_t reserve)
{
    memset(g, 0, sizeof *g);
    g->clock = os_seconds;
    g->most = budget;
    g->reserve = reserve;
    g->on = true;
    machine_watch_open(&g->watch, NULL);
    g->looked = g->calm = g->moved = g->clock();
}

uint64_t pressure_decide(struct pressure *g, const struct machine_room *r, uint64_t budget,
                         uint64_t used, double now)
{
    if (r->available == MACHINE_NONE) return budget;
    const bool waits = r->stalled >= STALLED, low = r->available < g->reserve / 2;
    if (low || waits) {
        uint64_t less = r->available < g->reserve ? g->reserve - r->available : 0;
        /* Somebody waits though there seems to be room: give some, and look again when the average
         * over ten seconds has had time to fall. */
        if (!low && now - g->moved < CALM) return budget;
        if (less < used / 8) less = used / 8;
        g->calm = now;
        g->moved = now;
        return less < used ? used - less : 1;
    }
    const uint64_t step = g->most / 16 > 64 * MIB ? g->most / 16 : 64 * MIB;
    if (r->stalled > QUIET || r->available < g->reserve + step) {
        g->calm = now;
        return budget;
    }
    if (budget >= g->most || now - g->calm < CALM || now - g->moved < STEP) return budget;
    g->moved = now;
    return budget + step < g->most ? budget + step : g->most;
}

/* Whether the step about to be run works on it. */
static bool in_step(const struct tessera_session *s, const struct tessera_input *in, int n_in)
{
    for (int i = 0; i < n_in; i++)
        if (in[i].session == s) return true;
    return false;
}

/* KV caches that nobody needs now go to disk; what cannot is left where it is. */
static void spill(struct tessera_engine *e, const struct tessera_input *in, int n_in)
{
    for (struct tessera_session *s = e->session; s; s = s->next) {
        struct err err;
        err_clear(&err);
        if (in_step(s, in, n_in) || !session_committed(s)) continue;
        if (!session_spill(s, &err)) e->pressure.spilled++;
        else engine_warn(e, err.msg);
    }
}

static void tell(struct tessera_engine *e, uint64_t budget)
{
    char text[256];
    if (e->pressure.shrunk++) return;
    (void)snprintf(text, sizeof text, "memory is getting short on this machine: Tessera goes from %llu "
                   "down to %llu MiB, and comes back when there is room: slower, %s",
                   (unsigned long long)(e->opt.mem_budget / MIB), (unsigned long long)(budget / MIB),
                   e->stack.present ? "with fewer bits per weight" : "the same text");
    engine_warn(e, text);
}

enum status pressure_step(struct tessera_engine *e, const struct tessera_input *in, int n_in,
                          struct err *err)
{
    struct pressure *g = &e->pressure;
    if (!g->on) return OK;
    const double now = g->clock();
    if (now - g->looked < LOOK) return OK;
    g->looked = now;
    struct machine_room r;
    machine_watch_read(&g->watch, &r);
    const uint64_t had = e->opt.mem_budget, used = atomic_load(&e->ledger.total);
    uint64_t to = pressure_decide(g, &r, had, used, now);
    if (to == had) return OK;
    if (to < had) {
        const uint64_t least = fit_least(e);
        if (to < least) to = least;
        if (to == least) spill(e, in, n_in);
        if (to >= had) return OK;
        tell(e, to);
    } else {
        g->grown++;
    }
    return engine_resize(e, to, err);
}
