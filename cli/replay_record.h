/* A trace's events as the replay wants them: the two know nothing of each other. */
#ifndef CLI_REPLAY_RECORD_H
#define CLI_REPLAY_RECORD_H

#include "moe/load/trace.h"
#include "offload/replay.h"

/* Borrows both. */
static inline struct replay_record cli_replay_record(const struct trace *t, const struct trace_events *v)
{
    return (struct replay_record){
        .n_layers = t->n_layers, .n_experts = t->n_experts, .expert_bytes = t->expert_bytes,
        .n_steps = v->n_steps, .n_events = v->n_events, .row = v->row, .event = v->event,
        .prompt = v->prompt, .layer = v->layer, .first = v->first, .item = v->item, .count = v->count};
}

#endif
