/* How fast routes are replayed: accesses per second of every policy on one core, and the memory of it.
 *
 *     build/release/bench/replay_speed TRACE [ACCESSES] [SHARE] [POLICY]
 *
 * The trace's decoded steps are repeated until there are that many accesses (default 2000000); SHARE of
 * all experts have a slot (default 0.25).  Prints a line per policy: accesses per second, the median
 * of five runs, and hits; then the largest resident memory of the process, the record included. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "bench/median.h"
#include "cli/replay_record.h"
#include "moe/base/osfile.h"
#include "moe/load/trace.h"
#include "offload/replay.h"

/* The decoded steps of v, over and over. */
static bool repeat(const struct trace_events *v, uint32_t want, struct trace_events *out)
{
    uint32_t uses = 0;
    int32_t steps = 0, events = 0;
    for (int32_t i = 0; i < v->n_steps; i++) {
        if (v->prompt[i]) continue;
        steps++;
        events += v->event[i + 1] - v->event[i];
        uses += v->first[v->event[i + 1]] - v->first[v->event[i]];
    }
    if (!uses) return false;
    const size_t n = (want + uses - 1) / uses;
    out->row = calloc(n * (size_t)steps + 1, sizeof *out->row);
    out->event = calloc(n * (size_t)steps + 1, sizeof *out->event);
    out->prompt = calloc(n * (size_t)steps, 1);
    out->layer = calloc(n * (size_t)events, sizeof *out->layer);
    out->first = calloc(n * (size_t)events + 1, sizeof *out->first);
    out->item = calloc(n * uses, sizeof *out->item);
    out->count = calloc(n * uses, sizeof *out->count);
    if (!out->row || !out->event || !out->prompt || !out->layer || !out->first || !out->item ||
        !out->count) return false;
    for (size_t r = 0; r < n; r++) {
        for (int32_t i = 0; i < v->n_steps; i++) {
            if (v->prompt[i]) continue;
            for (int32_t e = v->event[i]; e < v->event[i + 1]; e++) {
                const uint32_t from = v->first[e], m = v->first[e + 1] - from;
                const uint32_t at = out->first[out->n_events];
                memcpy(out->item + at, v->item + from, m * sizeof *out->item);
                memcpy(out->count + at, v->count + from, m * sizeof *out->count);
                out->layer[out->n_events++] = v->layer[e];
                out->first[out->n_events] = at + m;
            }
            out->n_steps++;
            out->row[out->n_steps] = out->row[out->n_steps - 1] + v->row[i + 1] - v->row[i];
            out->event[out->n_steps] = out->n_events;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    struct trace *t;
    struct trace_events v, w = {0};
    struct err e;
    err_clear(&e);
    if (argc < 2 || trace_read(argv[1], NULL, &t, &e) || trace_events_make(t, &v, &e)) {
        fprintf(stderr, "replay_speed: %s\n", argc < 2 ? "which trace?" : e.msg);
        return 1;
    }
    const uint32_t want = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 2000000;
    const double share = argc > 3 ? strtod(argv[3], NULL) : 0.25;
    const int n_items = t->n_layers * t->n_experts;
    float *frequency = calloc((size_t)n_items, sizeof *frequency);
    if (!frequency || !repeat(&v, want, &w)) {
        fprintf(stderr, "replay_speed: nothing to replay, or no memory\n");
        return 1;
    }
    for (uint32_t u = 0; u < w.first[w.n_events]; u++) frequency[w.item[u]] += 1;
    const struct replay_record r = cli_replay_record(t, &w);
    trace_events_free(&v);
    for (int k = 0; k < POLICY_N; k++) {
        if (argc > 4 && strcmp(argv[4], policy_name((enum policy_kind)k))) continue;
        struct replay_options o = {.policy = {.kind = (enum policy_kind)k, .frequency = frequency},
                                   .slots = (int)(share * n_items)};
        struct replay_result out = {0};
        double s[5];
        for (int i = 0; i < 5; i++) {
            const double start = os_seconds();
            if (replay_run(&r, &o, &out, &e)) {
                fprintf(stderr, "replay_speed: %s\n", e.msg);
                return 1;
            }
            s[i] = os_seconds() - start;
        }
        printf("%-8s %7.2f M accesses/s, %5.1f %% hits\n", policy_name((enum policy_kind)k),
               1e-6 * (double)out.uses / median(s, 5), 100.0 * (double)out.hits / (double)out.uses);
    }
    struct rusage use;
    (void)getrusage(RUSAGE_SELF, &use);
    printf("%.1f MiB at most\n", (double)use.ru_maxrss / 1024);
    trace_events_free(&w);
    trace_free(t);
    free(frequency);
    return 0;
}
