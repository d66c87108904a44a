/* See obs.h; tessera_observe is the engine's side of it. */
#include "moe/run/obs.h"

#include <stdlib.h>
#include <string.h>

#include "moe/run/engine_int.h"

enum { RECORDS = 1 << 14, HEAD = 8 };

enum status obs_open(struct obs_ring *r, int n_used, struct err *e)
{
    memset(r, 0, sizeof *r);
    r->n_used = n_used;
    r->stride = HEAD + n_used;
    r->cap = n_used ? RECORDS : 0;
    if (!r->cap) return OK;
    r->word = calloc((size_t)r->cap * (size_t)r->stride, sizeof *r->word);
    r->weight = calloc((size_t)r->cap * (size_t)n_used, sizeof *r->weight);
    r->in_ram = calloc((size_t)r->cap * (size_t)n_used, 1);
    if (r->word && r->weight && r->in_ram) return OK;
    return err_set(e, ERR_MEMORY, "no memory for the observation ring");
}

void obs_close(struct obs_ring *r)
{
    free(r->word);
    free(r->weight);
    free(r->in_ram);
    memset(r, 0, sizeof *r);
}

void obs_put(struct obs_ring *r, const struct obs *o)
{
    int32_t *w = r->word + (size_t)(r->n_written % (uint64_t)r->cap) * (size_t)r->stride;
    w[0] = (int32_t)(uint32_t)o->step;
    w[1] = (int32_t)(uint32_t)(o->step >> 32);
    w[2] = o->layer;
    w[3] = o->session;
    w[4] = o->pos;
    w[5] = o->token;
    w[6] = (int32_t)o->wait_us;
    w[7] = o->n_used;
    memcpy(w + HEAD, o->expert, sizeof *w * (size_t)o->n_used);
    memcpy(r->weight + (size_t)(r->n_written % (uint64_t)r->cap) * (size_t)r->n_used, o->weight,
           sizeof *o->weight * (size_t)o->n_used);
    memcpy(r->in_ram + (size_t)(r->n_written % (uint64_t)r->cap) * (size_t)r->n_used, o->in_ram,
           (size_t)o->n_used);
    r->n_written++;
    if (r->sink) r->sink(r->sink_arg, o);
}

int obs_get(const struct obs_ring *r, uint64_t i, struct obs *o)
{
    if (i >= r->n_written || r->n_written - i > (uint64_t)r->cap) return 0;
    const int32_t *w = r->word + (size_t)(i % (uint64_t)r->cap) * (size_t)r->stride;
    *o = (struct obs){
        .step = (uint32_t)w[0] | (uint64_t)(uint32_t)w[1] << 32,
        .layer = w[2], .session = w[3], .pos = w[4], .token = w[5],
        .n_used = w[7], .expert = w + HEAD,
        .weight = r->weight + (size_t)(i % (uint64_t)r->cap) * (size_t)r->n_used,
        .in_ram = r->in_ram + (size_t)(i % (uint64_t)r->cap) * (size_t)r->n_used,
        .wait_us = (uint32_t)w[6],
    };
    return 1;
}

void tessera_observe(tessera_engine *e, void (*fn)(void *arg, const struct obs *o), void *arg)
{
    e->obs.sink = fn;
    e->obs.sink_arg = arg;
}
