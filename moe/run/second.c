/* The second device: from an option to a tier of experts; see devtier.h for what it does then.
 *
 * Nothing here is fatal: a device that is of another build, does not open, or has too little memory
 * is one warning, and the CPU computes everything.  Owns nothing of its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/run/engine_int.h"

static void without(struct tessera_engine *e, const char *name, const char *why)
{
    char text[700];
    (void)snprintf(text, sizeof text, "device %s is not used: %s", name, why);
    engine_warn(e, text);
    memset(&e->device_plan, 0, sizeof e->device_plan);
    memset(&e->devstep_plan, 0, sizeof e->devstep_plan);
}

bool second_used(const struct tessera_engine *e) { return e->device_plan.n_all || e->devstep_plan.bytes; }

static const char *unfit(const struct dev_api *api)
{
    if (api->abi != DEV_ABI || api->size != sizeof *api || !api->build ||
        strcmp(api->build, dev_build))
        return "it was built for another version of Tessera";
    if (!api->own_memory || !api->open || !api->caps || !api->alloc || !api->copy || !api->clock ||
        !api->supports || !api->submit || !api->wait || !api->close)
        return "it lacks a function that a second device must have";
    return NULL;
}

static void list_banks(struct tessera_engine *e)
{
    const struct build *m = &e->model;
    e->bank = calloc((size_t)e->resid.n_banks + 1, sizeof *e->bank);
    for (int i = 0, n = 0; e->bank && i < m->n_op; i++) {
        if (m->op[i].code != OP_EXPERTS) continue;
        e->bank[n].op = &m->op[i];
        e->bank[n++].x_stride = e->plan[e->n_plans - 1].stride[m->op[i].in[0]];
    }
}

static struct devtier_options options(struct tessera_engine *e)
{
    return (struct devtier_options){
        .api = e->opt.device, .dev = e->second, .weights = &e->weights, .resid = &e->resid,
        .bank = e->bank, .n_rows = e->opt.n_ubatch, .n_used = e->hp.n_expert_used,
        .ledger = &e->ledger, .rate_ram = e->rates.ram, .warn = engine_warn, .warn_arg = e,
        .whole = e->devstep_plan.bytes, .elsewhere = e->devstep_plan.bytes, .shared = e->devstep_plan.kv,
    };
}

/* Bytes that a token finds on the device: of dense weights all, of experts the share that hits. */
static double found(struct tessera_engine *e, int n_experts, uint64_t dense)
{
    double hit, stall, experts = 0;
    if (!prior_ask(e, n_experts, &hit, &stall)) hit = 0;
    for (int b = 0; b < e->resid.n_banks; b++)
        for (int k = 0; k < OP_IO; k++)
            experts += (double)e->weights.at[e->resid.bank[b].weight[k]].mat_bytes;
    return (double)dense + hit * e->hp.n_expert_used * experts;
}

/* What a token waits for the host beside a device that has so many experts and runs all that d says, but for
 * a constant: seconds, or bytes that the host reads where nobody knows how fast. */
static double host_waits(struct tessera_engine *e, int n_experts, const struct devstep_plan *d)
{
    const double bytes = found(e, n_experts, d->weights);
    double hit, stall = 0;
    int slots = n_experts;
    if (!(e->rates.ram > 0)) return -bytes;
    for (int c = 0; c < e->resid.sizes.n_classes; c++) slots += e->placement.n_slots[c];
    if (!prior_ask(e, slots, &hit, &stall)) stall = 0;
    const bool at_once = d->all && n_experts == e->resid.n_banks * e->resid.n_experts;
    return stall - bytes / e->rates.ram +
           (at_once ? 0 : d->n_submits) * e->opt.device->caps(e->second).latency;
}

/* What goes there: an expert of each size; of all that is not experts as many layers as find room beside it, if
 * it is at home on the host; experts.  A byte of the dense weights is read by every token, an expert's by
 * a few in a hundred: so they come first.  But the rows of their steps take room, too: where experts in it are
 * worth more than the layers that are left room for, experts alone. */
static enum status divide(struct tessera_engine *e, struct err *err)
{
    const uint64_t memory = e->opt.device->caps(e->second).memory;
    /* Before context, micro-batch and placement are known, what takes more of the host. */
    const bool fitted = e->placement.bytes > 0;
    struct devtier_plan least = {.least = 0}, alone, with;
    struct devstep_plan *d = &e->devstep_plan, none;
    memset(d, 0, sizeof *d);
    memset(&none, 0, sizeof none);
    struct devtier_options o = options(e);
    const bool can_alone = e->resid.n_banks && !devtier_size(&o, memory, &alone, NULL);
    o.whole = true;
    if ((!fitted || e->placement.dense_home) &&
        (!e->resid.n_banks || !devtier_size(&o, memory, &least, NULL)))
        devstep_size(e, memory, least.least, d);
    o = options(e);
    e->dense_declined = 0;
    if (fitted && d->bytes && can_alone && !devtier_size(&o, memory, &with, NULL) &&
        host_waits(e, with.n_all, d) > host_waits(e, alone.n_all, &none)) {
        e->dense_declined = d->weights;
        *d = none;
    }
    o = options(e);
    const enum status s = devtier_size(&o, memory, &e->device_plan, err);
    e->device_plan.host += d->host;
    e->device_found = found(e, e->device_plan.n_all, d->weights);
    return s;
}

void second_find(struct tessera_engine *e)
{
    const struct dev_api *api = e->opt.device;
    struct err err;
    if (!api) return;
    err_clear(&err);
    const char *why = unfit(api);
    if (why) {
        without(e, api->name && api->abi == DEV_ABI ? api->name : "", why);
        return;
    }
    list_banks(e);
    const uint64_t want = e->opt.vram_budget ? e->opt.vram_budget : UINT64_MAX;
    if (!e->bank) {
        without(e, api->name, "no memory for the list of experts");
    } else if (api->open(want, &e->second, &err)) {
        e->second = NULL;
        without(e, api->name, err.msg);
    } else {
        e->device_modelled = api->caps(e->second).modelled;
        if (!divide(e, &err)) return;
        without(e, api->name, err.msg);
        api->close(e->second);
        e->second = NULL;
    }
}

void second_fit(struct tessera_engine *e)
{
    if (e->second) (void)divide(e, NULL);
}

void second_open(struct tessera_engine *e)
{
    struct err err;
    if (!e->second) return;
    err_clear(&err);
    const struct devtier_options o = options(e);
    e->second = NULL; /* the tier's from here on */
    if (devtier_open(&e->devtier, &o, &err) ||
        devstep_open(&e->devstep, e, &e->devstep_plan, &err) ||
        (e->resid.all_ram && devtier_preload(&e->devtier, &err))) {
        devtier_close(&e->devtier);
        without(e, o.api->name, err.msg);
    }
}

void second_close(struct tessera_engine *e)
{
    if (e->second) e->opt.device->close(e->second);
    devtier_close(&e->devtier); /* what it still reads is devstep's */
    devstep_close(&e->devstep, e);
    free(e->bank);
}
