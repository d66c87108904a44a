/* Fuzz target of moe/load/trace.c and trace_csv.c: reads the input as a trace of either form and
 * uses everything that reading then vouches for.  Built and replayed as tests/fuzz_gguf.c is. */
#include <stdlib.h>

#include "moe/load/trace.h"
#include "tests/memfile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(int good)
{
    if (!good) abort();
}

static void walk(const struct trace *t)
{
    struct trace_events v;
    check(t->n_rows > 0 && t->n_layers > 0 && t->n_used > 0 && t->n_used <= t->n_experts);
    for (int32_t r = 0; r < t->n_rows; r++) {
        check(t->step[r] >= 0 && (!r || t->step[r] >= t->step[r - 1]));
        check(t->session[r] >= 0 && t->pos[r] >= 0 && t->token[r] >= -1);
        check(!t->n_vocab || t->token[r] < t->n_vocab);
        for (int l = 0; l < t->n_layers; l++) {
            const uint16_t *x = trace_experts(t, r, l);
            for (int k = 0; k < t->n_used; k++) {
                check(x[k] == TRACE_NONE || x[k] < t->n_experts);
                if (t->weight) check(t->weight[trace_at(t, r, l) + (size_t)k] < 1e5f);
                if (t->tier) check(t->tier[trace_at(t, r, l) + (size_t)k] <= TRACE_DEVICE);
            }
        }
    }
    check(trace_events_make(t, &v, NULL) == OK);
    for (int32_t e = 0; e < v.n_events; e++) {
        check(v.first[e + 1] > v.first[e]);
        for (uint32_t u = v.first[e]; u < v.first[e + 1]; u++)
            check(v.item[u] / t->n_experts == v.layer[e] && v.count[u] > 0);
    }
    check(v.row[v.n_steps] == t->n_rows && v.event[v.n_steps] == v.n_events);
    trace_events_free(&v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1); /* exact, so that a sanitizer sees any overrun */
    struct trace *t;
    struct err e;
    check(copy != NULL);
    if (n) memcpy(copy, data, n);
    memfile_reset();
    memfile_add("f", copy, n, n);
    err_clear(&e);
    const enum status s = trace_read("f", &memfile_ops, &t, &e);
    check((s == OK) == (t != NULL) && s == e.code && (s == OK || e.msg[0]));
    check(memfile_io.opened == memfile_io.closed);
    free(copy); /* t must not need it */
    if (t) walk(t);
    trace_free(t);
    return 0;
}

#include "tests/fuzz_main.h"
