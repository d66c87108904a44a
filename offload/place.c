/* See place.h. */
#include "offload/place.h"

#include <string.h>

#include "offload/fetch.h"

uint64_t place_level_bytes(const struct place_sizes *s, int n)
{
    const uint64_t page = 4096;
    return n ? (s->level_end[n - 1] + page - 1) / page * page : 0;
}

static uint64_t sum(const struct place_sizes *s, const struct placement *p)
{
    uint64_t n = s->small + (p->dense_home ? s->dense : 0) + (p->tables_home ? s->tables : 0) +
                 (uint64_t)p->n_ring * s->ring_slot;
    for (int c = 0; c < s->n_classes; c++) n += (uint64_t)p->n_slots[c] * s->slot[c];
    return n + place_level_bytes(s, p->n_units);
}

struct placement place_all(const struct place_sizes *s)
{
    struct placement p = {.dense_home = true, .tables_home = true, .n_units = s->n_units,
                          .depth = FETCH_DEPTH};
    for (int c = 0; c < s->n_classes; c++) p.n_slots[c] = s->n_groups[c];
    p.bytes = sum(s, &p);
    return p;
}

struct placement place_least(const struct place_sizes *s)
{
    struct placement p = {.n_units = s->n_floor, .depth = 1};
    if (s->n_pieces) p.n_ring = s->n_pieces < PLACE_RING_MIN ? s->n_pieces : PLACE_RING_MIN;
    p.dense_home = p.n_ring == 0;
    for (int c = 0; c < s->n_classes; c++) p.n_slots[c] = 1;
    p.bytes = sum(s, &p);
    return p;
}

/* More slots for each class from `left` bytes, in proportion, then one by one while any fits. */
static void add_slots(const struct place_sizes *s, struct placement *p, uint64_t left)
{
    uint64_t wanted = 0;
    for (int c = 0; c < s->n_classes; c++)
        wanted += (uint64_t)(s->n_groups[c] - p->n_slots[c]) * s->slot[c];
    if (!wanted) return;
    const double share = left < wanted ? (double)left / (double)wanted : 1;
    for (int c = 0; c < s->n_classes; c++) {
        int more = (int)((double)(s->n_groups[c] - p->n_slots[c]) * share);
        while ((uint64_t)more * s->slot[c] > left) more--; /* rounding */
        p->n_slots[c] += more;
        left -= (uint64_t)more * s->slot[c];
    }
    for (bool any = true; any;) {
        any = false;
        for (int c = 0; c < s->n_classes; c++) {
            if (p->n_slots[c] == s->n_groups[c] || s->slot[c] > left) continue;
            p->n_slots[c]++;
            left -= s->slot[c];
            any = true;
        }
    }
}

/* As many levels as fit. */
static void add_levels(const struct place_sizes *s, struct placement *p, uint64_t bytes)
{
    const uint64_t rest = bytes - (sum(s, p) - place_level_bytes(s, p->n_units));
    int lo = p->n_units, hi = s->n_units;
    while (lo < hi) {
        const int mid = (lo + hi + 1) / 2;
        if (place_level_bytes(s, mid) <= rest) lo = mid;
        else hi = mid - 1;
    }
    p->n_units = lo;
}

bool place_solve(const struct place_sizes *s, uint64_t bytes, struct placement *out)
{
    *out = place_all(s);
    if (out->bytes <= bytes) return true;
    struct placement p = place_least(s);
    p.n_ring = 0;
    p.dense_home = true;
    p.bytes = sum(s, &p);
    if (p.bytes <= bytes) {
        add_slots(s, &p, bytes - p.bytes);
        p.bytes = sum(s, &p);
        if (bytes - p.bytes >= s->tables) p.tables_home = true;
        if (place_resident(s, &p)) add_levels(s, &p, bytes);
        p.bytes = sum(s, &p);
        *out = p;
        return true;
    }
    *out = p = place_least(s);
    if (p.bytes > bytes) return false;
    const uint64_t more = s->ring_slot ? (bytes - p.bytes) / s->ring_slot : 0;
    const uint64_t most = (uint64_t)(s->n_pieces - p.n_ring);
    p.n_ring += (int)(more < most ? more : most);
    p.bytes = sum(s, &p);
    *out = p;
    return true;
}

bool place_experts_fit(const struct place_sizes *s, const struct placement *p)
{
    for (int c = 0; c < s->n_classes; c++)
        if (p->n_slots[c] < s->n_groups[c]) return false;
    return true;
}

bool place_resident(const struct place_sizes *s, const struct placement *p)
{
    return p->dense_home && (p->tables_home || !s->tables) && place_experts_fit(s, p);
}
