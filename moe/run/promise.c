/* What a placement promises: how much of the weights is where, what a token reads from memory and
 * from disk, how long that takes at known rates, and what another gigabyte would buy.
 *
 * DESIGN.  Hits and waiting come from prior.c: the engine's policy on assumed routes.  Time in three
 * numbers: perfect overlap of drive and CPU, none, and what is likely.  The last one adds, for each
 * step of a decode, its weights at the speed that products of their type reach on this machine, the
 * cost of starting the threads, and the waiting of a replay in which what is there runs while the rest
 * arrives.  Streamed dense matrices are read ahead: there the slower one of drive and CPU counts. */
#include "moe/run/engine_int.h"

#include <string.h>

void rates_of(struct rates *r, const struct machine *m)
{
    memset(r, 0, sizeof *r);
    if (!m) return;
    r->ram = 1e9 * m->ram_read_n;
    r->disk = 1e9 * m->disk_random;
    r->region = 1e-6 * m->region;
    r->wait = 1e-6 * m->disk_wait;
    if (r->disk > 0) {
        const double large = 1 << 20, small = 64 << 10;
        const double slow = large / r->disk;
        const double fast = m->disk_small > 0 ? small / (1e9 * m->disk_small) : slow * small / large;
        r->per_byte = slow > fast ? (slow - fast) / (large - small) : 1 / r->disk;
        r->per_read = slow - large * r->per_byte;
        if (r->per_read < 0) r->per_read = 0;
    }
    for (int i = 0; i < m->n_types; i++) {
        const struct qtype_info *q = qtype_by_name(m->type[i].name);
        if (q) r->type[q->id] = 1e9 * m->type[i].read;
    }
}

double rates_disk(const struct rates *r, double bytes)
{
    return bytes > 0 ? bytes / (r->per_read + bytes * r->per_byte) : r->disk;
}

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

/* Seconds in which the CPU multiplies one row with everything that a token uses. */
static double cpu_seconds(const struct tessera_engine *e)
{
    double sum = 0;
    for (int i = 0; i < e->model.n_op; i++) {
        const struct op *op = &e->model.op[i];
        const double runs = e->model.set[op->rows].share; /* the chance that it runs at all */
        sum += runs * e->rates.region;
        if (op->code != OP_MATMUL && op->code != OP_HEAD_MATMUL && op->code != OP_EXPERTS) continue;
        const int times = op->code == OP_EXPERTS ? op->p.moe.route.n_used : 1;
        for (int k = 0; k < OP_IO && op->weight[k] >= 0; k++) {
            const struct weight *w = &e->weights.at[op->weight[k]];
            const double rate = e->rates.type[w->type] > 0 ? e->rates.type[w->type] : e->rates.ram;
            const double mats = op->code == OP_HEAD_MATMUL ? w->n_mats : times;
            sum += runs * mats * (double)w->mat_bytes / rate;
        }
    }
    return sum;
}

/* How often a byte of the dense matrices is used per token: more than once where layers repeat, less
 * where not every token comes to them. */
static double dense_uses(const struct tessera_engine *e)
{
    const struct build *m = &e->model;
    double used = 0, once = 0;
    for (int i = 0; i < m->n_op; i++) {
        const struct op *op = &m->op[i];
        if (op->code != OP_MATMUL && op->code != OP_HEAD_MATMUL) continue;
        for (int k = 0; k < OP_IO && op->weight[k] >= 0; k++) {
            const double bytes = (double)e->weights.at[op->weight[k]].mat_file_bytes;
            bool seen = false;
            for (int j = 0; j < i && !seen; j++)
                for (int l = 0; l < OP_IO; l++)
                    seen |= m->op[j].code == op->code && m->op[j].weight[l] == op->weight[k];
            used += m->set[op->rows].share * bytes;
            once += seen ? 0 : bytes;
        }
    }
    return once > 0 ? used / once : 1;
}

/* Bytes that one token reads from the disk, and how long all of it takes. */
static void per_token(struct tessera_engine *e, const struct placement *p, struct plan_tiers *t,
                      double *hit, uint64_t *disk_bytes, double seconds[3])
{
    const struct resid *r = &e->resid;
    double experts = 0, stall = 0;
    int slots = e->device_plan.n_all; /* what the device holds is not asked for in RAM */
    for (int c = 0; c < r->sizes.n_classes; c++) slots += p->n_slots[c];
    if (!prior_ask(e, slots, hit, &stall)) *hit = share(slots, t->n_experts);
    for (int b = 0; b < r->n_banks; b++)
        for (int k = 0; k < 3; k++)
            experts += (1 - *hit) * e->hp.n_expert_used *
                       (double)e->weights.at[r->bank[b].weight[k]].mat_file_bytes;
    /* The ring keeps what is used latest; all but one of its slots hit. */
    const double ring = p->dense_home ? 1 : share(p->n_ring - 1, r->sizes.n_pieces - 1);
    const double streamed = ring < 1 ? (1 - ring) * dense_uses(e) * (double)r->sizes.dense : 0;
    *disk_bytes = (uint64_t)(experts + streamed);
    if (!p->tables_home && e->model.n_op && e->model.op[0].code == OP_EMBED)
        *disk_bytes += part_row_bytes(&e->weights.at[e->model.op[0].weight[0]]);
    memset(seconds, 0, 3 * sizeof *seconds);
    if (!(e->rates.ram > 0) || (*disk_bytes && !(e->rates.disk > 0))) return;
    const double cpu = cpu_seconds(e), pieces = rates_disk(&e->rates, PART_PIECE);
    const double disk = (experts > 0 ? experts / prior_disk(e) : 0) + streamed / pieces;
    seconds[0] = cpu > disk ? cpu : disk;
    seconds[1] = cpu + disk;
    seconds[2] = cpu + stall;
    if (streamed > 0 && seconds[2] < stall + streamed / pieces)
        seconds[2] = stall + streamed / pieces;
}

void promise(struct tessera_engine *e, const struct placement *p, struct plan_tiers *t)
{
    *t = (struct plan_tiers){.dense_home = p->dense_home, .tables_home = p->tables_home};
    const struct place_sizes *s = &e->resid.sizes;
    const struct placement all = place_all(s);
    count_slots(e, p, t);
    if (second_used(e)) {
        const struct devstep_plan *d = &e->devstep_plan;
        t->device = e->device_plan.slots;
        t->device_fixed = e->device_plan.fixed + d->arena + d->logits;
        t->device_dense = d->weights;
        t->device_kv = d->kv;
        t->device_bytes = e->device_plan.arena + t->device_fixed + d->bytes - d->arena - d->logits;
        t->n_device_kv = d->n_kv;
        t->device_kv_tokens = d->n_kv ? (int64_t)(d->kv / d->page) * KV_PAGE : 0;
        if (t->device_kv_tokens > (int64_t)d->n_kv * e->opt.n_ctx)
            t->device_kv_tokens = (int64_t)d->n_kv * e->opt.n_ctx;
        t->n_device_sure = e->device_plan.n_sure;
        t->device_first = d->first;
        t->device_head = d->head;
        t->device_declined = e->dense_declined;
        t->device_found = e->device_found;
        t->device_host = e->device_plan.host;
        t->n_device = e->device_plan.n_all;
        t->device_name = e->opt.device->name;
        t->device_modelled = e->device_modelled;
    }
    t->prior = prior_name(e);
    t->all_ram = place_resident(s, p);
    t->home = s->small + (p->dense_home ? s->dense : 0) + (p->tables_home ? s->tables : 0);
    t->ring = (uint64_t)p->n_ring * s->ring_slot;
    t->n_ring = p->n_ring;
    t->on_disk = all.bytes - t->slots - t->home - place_level_bytes(s, p->n_units);
    t->token_ram = plan_total(&e->plan[0]).weight_bytes + (uint64_t)promise_level_bytes(e, p);
    t->rate_ram = e->rates.ram;
    t->rate_disk = e->rates.disk;
    per_token(e, p, t, &t->hit, &t->token_disk, t->seconds);
    struct placement more;
    if (t->all_ram || !place_solve(s, p->bytes + (1u << 30), &more)) return;
    per_token(e, &more, t, &t->more_hit, &t->more_disk, t->more_seconds);
}
