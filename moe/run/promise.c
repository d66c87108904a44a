/* What a placement promises: how much of the weights is where, what a token reads from memory and
 * from disk, how long that takes at known rates, and what another gigabyte would buy.
 *
 * DESIGN.  Where no routing of the model is known every expert is as likely as any other; then a
 * slot is worth the same whoever has it, and the expected share of hits is slots over experts, size
 * class by size class.  Real routing is skewed, so this is from below.  Time is an interval: the
 * drive and the memory overlap perfectly, or not at all.  Pure functions. */
#include "moe/run/engine_int.h"

static double share(int part, int whole) { return whole ? (double)part / whole : 1; }

/* Experts' slots, of all classes. */
static void count_slots(const struct tessera_engine *e, const struct placement *p,
                        struct plan_tiers *t)
{
    const struct place_sizes *s = &e->resid.sizes;
    for (int c = 0; c < s->n_classes; c++) {
        t->n_slots += p->n_slots[c];
        t->n_experts += s->n_groups[c];
        t->slots += (uint64_t)p->n_slots[c] * s->slot[c];
        t->experts += (uint64_t)s->n_groups[c] * s->slot[c];
        if (s->slot[c] > t->slot) t->slot = s->slot[c];
    }
}

/* Bytes that one token reads from the disk, and the share of experts that it finds in memory. */
static void per_token(const struct tessera_engine *e, const struct placement *p,
                      struct plan_tiers *t)
{
    const struct resid *r = &e->resid;
    const int used = e->hp.n_expert_used;
    double expert_bytes = 0, hit_sum = 0;
    for (int b = 0; b < r->n_banks; b++) {
        const int c = r->class_of[b];
        /* What the device holds is not asked for in RAM: the tiers are exclusive. */
        const double slots = share(p->n_slots[c] + e->device_plan.n_slots[c], r->sizes.n_groups[c]);
        const double hit = slots < 1 ? slots : 1;
        for (int k = 0; k < 3; k++)
            expert_bytes += (1 - hit) * used *
                            (double)e->weights.at[r->bank[b].weight[k]].mat_file_bytes;
        hit_sum += hit;
    }
    t->hit = r->n_banks ? hit_sum / r->n_banks : 1;
    /* The ring keeps what is used latest; all but one of its slots hit. */
    const double ring = p->dense_home ? 1 : share(p->n_ring - 1, r->sizes.n_pieces - 1);
    t->token_disk = (uint64_t)(expert_bytes + (1 - ring) * (double)r->sizes.dense);
    if (!p->tables_home && e->model.n_op && e->model.op[0].code == OP_EMBED)
        t->token_disk += part_row_bytes(&e->weights.at[e->model.op[0].weight[0]]);
}

static void times(const struct plan_tiers *t, double rate_ram, double rate_disk, double out[2])
{
    const double ram = (double)t->token_ram / rate_ram, disk = (double)t->token_disk / rate_disk;
    out[0] = ram > disk ? ram : disk;
    out[1] = ram + disk;
}

void promise(const struct tessera_engine *e, const struct placement *p, struct plan_tiers *t)
{
    *t = (struct plan_tiers){.dense_home = p->dense_home, .tables_home = p->tables_home};
    const struct place_sizes *s = &e->resid.sizes;
    const struct placement all = place_all(s);
    count_slots(e, p, t);
    if (e->device_plan.n_all) {
        t->device = e->device_plan.slots;
        t->device_fixed = e->device_plan.fixed;
        t->device_host = e->device_plan.host;
        t->n_device = e->device_plan.n_all;
        t->device_name = e->opt.device->name;
        t->device_modelled = e->device_modelled;
    }
    per_token(e, p, t);
    t->all_ram = p->bytes == all.bytes;
    t->home = s->small + (p->dense_home ? s->dense : 0) + (p->tables_home ? s->tables : 0);
    t->ring = (uint64_t)p->n_ring * s->ring_slot;
    t->n_ring = p->n_ring;
    t->on_disk = all.bytes - t->slots - t->home;
    t->token_ram = plan_total(&e->plan[0]).weight_bytes;
    t->rate_ram = e->opt.rate_ram;
    t->rate_disk = e->opt.rate_disk;
    const bool rates = t->rate_ram > 0 && t->rate_disk > 0;
    if (rates) times(t, t->rate_ram, t->rate_disk, t->seconds);
    struct placement more;
    if (t->all_ram || !place_solve(s, p->bytes + (1u << 30), &more)) return;
    struct plan_tiers u = *t;
    per_token(e, &more, &u);
    t->more_hit = u.hit;
    t->more_disk = u.token_disk;
    if (rates) times(&u, t->rate_ram, t->rate_disk, t->more_seconds);
}
