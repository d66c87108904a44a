/* Traces: what the routers of a model chose, token by token; a record that outlives the run.
 *
 * Written by `tessera trace`, read by `tessera replay`, by the fitting of predictors and by the
 * generator of trace-carrying models.  The file is a GGUF container (general.type
 * "tessera.trace"); the CSV form "# route_trace v1" of BigMoeOnEdge is read as well.
 *
 * A row is one token in one forward pass; rows are in order of execution, and rows of one pass
 * share their step.  A pass in which one session has several rows is a prompt being read, all
 * others generate.  Layers are those with experts, numbered from 0; layer[] says which they are in
 * the model.
 *
 * File: keys tessera.trace.{n_layers,n_experts,n_used,n_vocab,model_arch,layers,expert_bytes},
 * tessera.model.{hash,name}; tensors, all with n_rows as last dimension: steps, sessions,
 * positions, tokens (I32), experts [n_used][n_layers] (I8, or I16 above 255 experts; all ones =
 * not routed), weights (F16, same shape), and optionally tiers (I8, same shape), waits (I32,
 * microseconds, [n_layers]), norms (F32, [n_layers]) and losses (F32).
 *
 * Owns its arrays.  Everything that a file says is checked before it is believed. */
#ifndef MOE_LOAD_TRACE_H
#define MOE_LOAD_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "moe/base/err.h"
#include "moe/base/osfile.h"

enum {
    TRACE_NONE = 0xffff, /* expert of a slot that was not routed */
    TRACE_LAYERS = 4096, TRACE_EXPERTS = 4096, TRACE_USED = 1024,
    TRACE_ITEMS = 1 << 20 /* layers times experts */
};

enum trace_tier { TRACE_DISK, TRACE_RAM, TRACE_DEVICE };

struct trace {
    char name[128], arch[64]; /* of the model; may be "" */
    uint64_t model_hash;      /* of its header; 0 = not known */
    int n_layers, n_experts, n_used, n_vocab; /* n_vocab 0 = not known */
    int32_t *layer;           /* [n_layers] number in the model */
    uint64_t *expert_bytes;   /* [n_layers] of one expert in the file; 0 = not known */
    int32_t n_rows, cap;
    int32_t *step, *session, *pos, *token; /* [n_rows]; token -1 = not known */
    uint16_t *expert;         /* [n_rows][n_layers][n_used] in router-slot order */
    float *weight;            /* the same shape, NULL = not known */
    uint8_t *tier;            /* the same shape: enum trace_tier at routing time; NULL = not known */
    uint32_t *wait;           /* [n_rows][n_layers] microseconds that the layer waited; or NULL */
    float *norm;              /* [n_rows][n_layers] length of the hidden state that the router's norm
                                 reads; or NULL */
    float *loss;              /* [n_rows] minus the log of the token's probability, given those before
                                 it; -1 = not known; or NULL */
};

enum { TRACE_WITH_WEIGHTS = 1, TRACE_WITH_TIERS = 2, TRACE_WITH_WAITS = 4, TRACE_WITH_NORMS = 8,
       TRACE_WITH_LOSSES = 16 };

/* An empty trace.  ERR_RANGE for shapes outside the limits, ERR_MEMORY. */
enum status trace_new(int n_layers, int n_experts, int n_used, unsigned with, struct trace **out,
                      struct err *e);
void trace_free(struct trace *t);

/* Appends rows that have not been routed yet (experts TRACE_NONE, weights 0).  ERR_MEMORY. */
enum status trace_append(struct trace *t, int32_t n, struct err *e);
/* Forgets all rows, keeping the memory. */
void trace_clear(struct trace *t);

static inline uint16_t *trace_experts(const struct trace *t, int32_t row, int layer)
{
    return t->expert + ((size_t)row * (size_t)t->n_layers + (size_t)layer) * (size_t)t->n_used;
}
/* Index into weight and tier of the same place. */
static inline size_t trace_at(const struct trace *t, int32_t row, int layer)
{
    return ((size_t)row * (size_t)t->n_layers + (size_t)layer) * (size_t)t->n_used;
}

/* One past the last row of the step that begins at row; *prompt: some session has several rows. */
int32_t trace_step_end(const struct trace *t, int32_t row, bool *prompt);

/* The same expert-major, as an executor sees it: per layer of each step, in order of execution, the
 * distinct experts (rising) that some row of the step was routed to.  Layers without any leave no
 * event.  Owns its arrays. */
struct trace_events {
    int32_t n_steps, n_events;
    int32_t *row, *event; /* [n_steps + 1] first row and first event of a step */
    uint8_t *prompt;      /* [n_steps] */
    int32_t *layer;       /* [n_events] */
    uint32_t *first;      /* [n_events + 1] into item and count */
    int32_t *item;        /* layer * n_experts + expert */
    int32_t *count;       /* rows of the step that chose it */
};
enum status trace_events_make(const struct trace *t, struct trace_events *out, struct err *e);
void trace_events_free(struct trace_events *v);

/* Written aside, then renamed. */
enum status trace_write(const struct trace *t, const char *path, struct err *e);

/* Either form.  ERR_IO, ERR_MEMORY; ERR_FORMAT, ERR_MISSING or ERR_SHAPE with file and place. */
enum status trace_read(const char *path, const struct osfile_ops *ops, struct trace **out,
                       struct err *e);

/* The same a block of rows at a time, in order, in memory that does not grow with the file (the CSV
 * form apart): fn sees a trace that holds just those rows.  What fn returns ends it unless OK. */
typedef enum status trace_block_fn(void *arg, const struct trace *block, struct err *e);
enum status trace_stream(const char *path, const struct osfile_ops *ops, trace_block_fn *fn,
                         void *arg, struct err *e);

/* The CSV form from memory (trace_csv.c); path for messages. */
enum status trace_read_csv(const char *path, const char *text, uint64_t n, struct trace **out,
                           struct err *e);

#endif
