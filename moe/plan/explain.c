/* EXPLAIN: a plan as text and as JSON.  Owns nothing; prints only.  The text is what golden files
 * compare, so it holds nothing that changes from run to run. */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "moe/plan/plan.h"

static const char *human(char *buf, size_t cap, uint64_t bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    int u = 0;
    while (v >= 1024 && u < 4) {
        v /= 1024;
        u++;
    }
    (void)snprintf(buf, cap, u == 0 ? "%.0f %s" : "%.2f %s", v, unit[u]);
    return buf;
}

static const char *count(char *buf, size_t cap, uint64_t n)
{
    static const char *const unit[] = {"", "K", "M", "G", "T"};
    double v = (double)n;
    int u = 0;
    while (v >= 1000 && u < 4) {
        v /= 1000;
        u++;
    }
    (void)snprintf(buf, cap, u == 0 ? "%.0f%s" : "%.2f%s", v, unit[u]);
    return buf;
}

static const char *lane_name(enum op_lane lane)
{
    static const char *const names[LANE_N] = {"cpu", "dev", "copy", "disk"};
    return names[lane];
}

static void put_buf(const struct plan *p, int i, char *out, size_t cap)
{
    const struct buf *f = &p->model->buf[i];
    switch (f->kind) {
    case BUF_F32:
    case BUF_ACT:
    case BUF_LOGITS: (void)snprintf(out, cap, "%s[%d]", f->name, f->width); return;
    case BUF_ROUTE: (void)snprintf(out, cap, "%s[%d of %d]", f->name, f->route.n_used,
                                   f->route.n_expert); return;
    case BUF_SCRATCH: (void)snprintf(out, cap, "%s", f->name); return;
    }
}

static void put_bufs(const struct plan *p, const int *list, char *out, size_t cap)
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < OP_IO && list[i] >= 0; i++) {
        char one[64];
        put_buf(p, list[i], one, sizeof one);
        int k = snprintf(out + n, cap - n, "%s%s", i ? " " : "", one);
        if (k < 0 || (size_t)k >= cap - n) return;
        n += (size_t)k;
    }
}

static bool same_weight(const struct weight *a, const struct weight *b)
{
    return a->type == b->type && a->n_cols == b->n_cols && a->n_rows == b->n_rows &&
           a->n_mats == b->n_mats;
}

/* "3 x Q8_0 256x256x8": equal neighbours are counted. */
static void put_weights(const struct plan *p, const struct op *op, char *out, size_t cap)
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0, same = 1; i < OP_WEIGHTS; i += same, same = 1) {
        if (op->weight[i] < 0) continue;
        const struct weight *w = &p->model->ws->at[op->weight[i]];
        char times[16] = "", mats[16] = "";
        for (; i + same < OP_WEIGHTS && op->weight[i + same] >= 0; same++)
            if (!same_weight(w, &p->model->ws->at[op->weight[i + same]])) break;
        if (same > 1) (void)snprintf(times, sizeof times, "%d x ", same);
        if (w->n_mats > 1) (void)snprintf(mats, sizeof mats, "x%d", w->n_mats);
        int k = snprintf(out + n, cap - n, "%s%s%s %dx%d%s", n ? ", " : "", times,
                         qtype_info(w->type)->name, w->n_cols, w->n_rows, mats);
        if (k < 0 || (size_t)k >= cap - n) return;
        n += (size_t)k;
    }
}

/* One step as a line, the same for every layer that does the same. */
static void step_line(const struct plan *p, int i, char *out, size_t cap)
{
    const struct op *op = &p->model->op[i];
    const struct plan_step *s = &p->step[i];
    char in[160], o[160], w[160], b[32], m[32], io[336];
    put_bufs(p, op->in, in, sizeof in);
    put_bufs(p, op->out, o, sizeof o);
    put_weights(p, op, w, sizeof w);
    (void)snprintf(io, sizeof io, "%s%s%s", in, in[0] && o[0] ? " -> " : o[0] ? "-> " : "", o);
    (void)snprintf(out, cap, "  %-4s %-10s %-13s %-4s %-46s %-29s %10s %8s", lane_name(op->lane),
                   op_name(op->code), op->name, p->model->set[op->rows].name, io, w,
                   s->weight_bytes ? human(b, sizeof b, s->weight_bytes) : "-",
                   s->macs ? count(m, sizeof m, s->macs) : "-");
    for (size_t n = strlen(out); n && out[n - 1] == ' ';) out[--n] = 0;
}

/* First op past the layer that starts at op i. */
static int layer_end(const struct plan *p, int i)
{
    const int layer = p->model->op[i].layer;
    while (i < p->model->n_op && p->model->op[i].layer == layer) i++;
    return i;
}

static bool same_steps(const struct plan *p, int a, int b, int n)
{
    char x[640], y[640];
    for (int i = 0; i < n; i++) {
        step_line(p, a + i, x, sizeof x);
        step_line(p, b + i, y, sizeof y);
        if (strcmp(x, y)) return false;
    }
    return true;
}

static void print_steps(FILE *to, const struct plan *p, int from, int end)
{
    char line[640];
    for (int i = from; i < end; i++) {
        step_line(p, i, line, sizeof line);
        (void)fprintf(to, "%s\n", line);
    }
}

static bool layers_follow(const struct plan *p, int i)
{
    while (i < p->model->n_op && p->model->op[i].layer < 0) i++;
    return i < p->model->n_op;
}

static void print_plan(FILE *to, const struct plan *p, const char *phase)
{
    char a[32], b[32], c[32];
    const struct plan_step t = plan_total(p);
    (void)fprintf(to, "\n%s of up to %d row%s: arena %s, reads %s of weights (expected), %s MAC\n",
                  phase, p->n_rows, p->n_rows == 1 ? "" : "s", human(a, sizeof a, p->arena_bytes),
                  human(b, sizeof b, t.weight_bytes), count(c, sizeof c, t.macs));
    (void)fprintf(to, "  %-4s %-10s %-13s %-4s %-46s %-29s %10s %8s\n", "lane", "step", "name",
                  "rows", "in -> out", "weights", "reads", "MAC");
    for (int i = 0; i < p->model->n_op;) {
        const int layer = p->model->op[i].layer, end = layer_end(p, i), n = end - i;
        if (layer < 0) {
            print_steps(to, p, i, end);
            i = end;
            continue;
        }
        int last = layer, next = end;
        while (next < p->model->n_op && p->model->op[next].layer == last + 1 &&
               layer_end(p, next) - next == n && same_steps(p, i, next, n)) {
            next += n;
            last++;
        }
        if (last > layer)
            (void)fprintf(to, " layers %d-%d (%d times):\n", layer, last, last - layer + 1);
        else
            (void)fprintf(to, " layer %d:\n", layer);
        print_steps(to, p, i, end);
        i = next;
        if (i < p->model->n_op && p->model->op[i].layer < 0)
            (void)fprintf(to, layers_follow(p, i) ? " then:\n" : " after the layers:\n");
    }
}

static void print_bytes(FILE *to, const char *what, uint64_t bytes, const char *note)
{
    char h[32];
    (void)fprintf(to, "  %-13s %11s  %14llu bytes  %s\n", what, human(h, sizeof h, bytes),
                  (unsigned long long)bytes, note);
}

static void print_token(FILE *to, const char *what, double hit, uint64_t disk, const double *seconds)
{
    char h[32], time[96] = "";
    if (seconds[1] > 0 && disk)
        (void)snprintf(time, sizeof time, ": likely %.3g ms, %.3g to %.3g", 1e3 * seconds[2],
                       1e3 * seconds[0], 1e3 * seconds[1]);
    else if (seconds[1] > 0)
        (void)snprintf(time, sizeof time, ": %.3g ms", 1e3 * seconds[2]);
    (void)fprintf(to, "  %-13s %5.1f %% of its experts are in memory, %s from disk%s\n", what,
                  100 * hit, human(h, sizeof h, disk), time);
}

/* The tiers, and a token's way through them. */
static void print_tiers(FILE *to, const struct plan_tiers *t)
{
    char note[128], h[32];
    print_bytes(to, "  at home", t->home,
                t->dense_home ? t->tables_home ? "norms, dense matrices, tables"
                                               : "norms, dense matrices; tables are read row by row"
                              : "norms and little matrices");
    if (t->n_experts) {
        (void)snprintf(note, sizeof note, "%d slots for %d experts of up to %s", t->n_slots,
                       t->n_experts, human(h, sizeof h, t->slot));
        print_bytes(to, "  experts", t->slots, note);
    }
    if (t->n_ring) {
        (void)snprintf(note, sizeof note, "%d slots that dense matrices stream through", t->n_ring);
        print_bytes(to, "  ring", t->ring, note);
    }
    print_bytes(to, "on disk", t->on_disk, "weights that have no place in memory");
}

static void print_device(FILE *to, const struct plan_tiers *t, int64_t n_tokens)
{
    char note[200], h[32];
    (void)snprintf(note, sizeof note, "on %s%s; a token finds %s of weights there (expected)", t->device_name,
                   t->device_modelled ? ", a model of a device" : "", human(h, sizeof h, (uint64_t)t->device_found));
    print_bytes(to, "device", t->device_bytes, note);
    if (t->device_dense) {
        (void)snprintf(note, sizeof note, "%s: their steps run there",
                       t->device_head ? "weights of all that is not experts"
                                      : "all layers, but for experts and the last product, which has no room");
        if (t->device_first >= 0)
            (void)snprintf(note, sizeof note, "layers from %d on, but for experts: as many as have room; their steps "
                           "run there", t->device_first);
        print_bytes(to, "  dense", t->device_dense, note);
    } else if (t->device_declined) {
        (void)snprintf(note, sizeof note, "%s would have room, but with their rows they are worth less than experts "
                       "there", human(h, sizeof h, t->device_declined));
        print_bytes(to, "  dense", 0, note);
    }
    if (t->device_kv) {
        const int n = snprintf(note, sizeof note, "copies for attention there, of %d session%s up to %lld tokens",
                               t->n_device_kv, t->n_device_kv == 1 ? "" : "s with together",
                               (long long)t->device_kv_tokens);
        if (t->device_kv_tokens < n_tokens)
            (void)snprintf(note + n, sizeof note - (size_t)n, "; of longer ones it is the host's");
        print_bytes(to, "  KV cache", t->device_kv, note);
    }
    if (t->n_experts) {
        const int n = snprintf(note, sizeof note, "%d of %d", t->n_device, t->n_experts);
        if (t->n_device_sure < t->n_device)
            (void)snprintf(note + n, sizeof note - (size_t)n, "; %d when those copies are full, which take their "
                           "places page by page", t->n_device_sure);
        print_bytes(to, "  experts", t->device, note);
    }
    print_bytes(to, "  rows", t->device_fixed, "and scratch");
}

static void print_promise(FILE *to, const struct plan_tiers *t)
{
    char h[32], r[32], d[32];
    (void)fprintf(to, "\ndecode reads %s per token from memory", human(h, sizeof h, t->token_ram));
    if (t->rate_ram > 0 && t->rate_disk > 0) {
        const double ram = (double)t->token_ram / t->rate_ram;
        const double disk = (double)t->token_disk / t->rate_disk;
        (void)fprintf(to, "; at %s/s, and %s/s from disk, the %s is the bottleneck",
                      human(r, sizeof r, (uint64_t)t->rate_ram),
                      human(d, sizeof d, (uint64_t)t->rate_disk), disk > ram ? "disk" : "memory");
    }
    (void)fprintf(to, "\n");
    print_token(to, "promised", t->hit, t->token_disk, t->seconds);
    print_token(to, "with +1 GiB", t->more_hit, t->more_disk, t->more_seconds);
    (void)fprintf(to, "  experts in memory: by %s (--routes TRACE: by a trace of this one)\n", t->prior);
}

/* The row sets of depth, and what their mean is expected to be. */
static double depth_expected(const struct build *m)
{
    double d = m->depth_first;
    for (int s = ROWS_FIRST; s < m->n_sets; s++) d += m->set[s].share;
    return d;
}

static void print_depth(FILE *to, const struct build *m)
{
    if (!m->n_depth) return;
    if (m->has_chances && m->set[ROWS_FIRST].share < 1)
        (void)fprintf(to, "rates   %.2f tokens to a concept, as aimed at; a text's own are measured\n",
                      1 / m->set[ROWS_FIRST].share);
    (void)fprintf(to, "depth   %d to %d, ", m->depth_first, m->n_depth);
    if (m->approximate)
        (void)fprintf(to, "no forecast; approximate: in loops that a token leaves out, later ones see "
                      "what it left before\n");
    else
        (void)fprintf(to, "%.2f expected; of all tokens go", depth_expected(m));
    for (int s = ROWS_FIRST; s < m->n_sets && !m->approximate; s++)
        (void)fprintf(to, "%s %.0f %% into %s", s > ROWS_FIRST ? "," : "", 100 * m->set[s].share,
                      m->set[s].name);
    if (!m->approximate) (void)fprintf(to, "\n");
}

static void print_sees(FILE *to, const struct build *m)
{
    if (m->sees == SEES_ALL)
        (void)fprintf(to, "sees    the whole text: every pass computes it again, exact; --cache prefix and "
                      "dual keep K and V of a block's first pass: approximate\n");
    else if (m->sees)
        (void)fprintf(to, "sees    to the end of its block of %d tokens: K and V of settled blocks are "
                      "kept, exact\n", m->sees);
}

/* How many of a prompt's rows the experts choose themselves: a lossy switch. */
static const struct route_params *lossy_route(const struct build *m)
{
    for (int i = 0; i < m->n_op; i++)
        if (m->op[i].code == OP_CHOOSE && m->op[i].p.moe.route.choice.prompts)
            return &m->op[i].p.moe.route;
    return NULL;
}

static void print_lossy(FILE *to, const struct build *m)
{
    const struct route_params *p = lossy_route(m);
    if (p)
        (void)fprintf(to, "routing lossy: experts choose a prompt's rows, %d for each on average, where %d or "
                      "more run together; decoded tokens choose their own\n", p->n_used,
                      (p->n_expert + p->n_used - 1) / p->n_used);
}

static cJSON *json_depth(const struct build *m)
{
    cJSON *o = cJSON_CreateObject(), *sets = cJSON_AddArrayToObject(o, "sets");
    cJSON_AddNumberToObject(o, "least", m->depth_first);
    cJSON_AddNumberToObject(o, "most", m->n_depth);
    cJSON_AddBoolToObject(o, "approximate", m->approximate);
    if (!m->approximate) cJSON_AddNumberToObject(o, "expected", depth_expected(m));
    for (int s = ROWS_FIRST; s < m->n_sets; s++) {
        cJSON *one = cJSON_CreateObject();
        cJSON_AddStringToObject(one, "rows", m->set[s].name);
        if (!m->approximate) cJSON_AddNumberToObject(one, "share_expected", m->set[s].share);
        cJSON_AddItemToArray(sets, one);
    }
    return o;
}

/* How deep each kind of matrix is. */
static void print_stack(FILE *to, const struct plan_stack *k)
{
    char note[128] = "";
    (void)snprintf(note, sizeof note, "%d of %d levels above the bases", k->n_loaded, k->n_units);
    print_bytes(to, "  levels", k->bytes, note);
    if (k->ppl > 0)
        (void)fprintf(to, "  expected perplexity %.3f on %s\n", k->ppl, k->text[0] ? k->text : "its text");
    for (int i = 0; i < k->n_depths; i++) {
        (void)snprintf(note, sizeof note, "%.2f bits per weight, from %.2f to %.2f", k->depth[i].bits,
                       k->depth[i].least, k->depth[i].most);
        print_bytes(to, k->depth[i].kind, k->depth[i].bytes, note);
    }
}

void plan_text(FILE *to, const struct plan_summary *s, const struct plan *prefill,
               const struct plan *decode)
{
    char note[96], h[32];
    const struct build *m = prefill->model;
    const bool all = s->tiers.all_ram;
    (void)fprintf(to, "model   %s%s%s%s: %d layers", s->arch, s->name[0] ? " \"" : "", s->name,
                  s->name[0] ? "\"" : "", m->n_layer);
    if (s->n_expert) (void)fprintf(to, ", %d experts, %d per token", s->n_expert, s->n_expert_used);
    (void)fprintf(to, "\n");
    print_depth(to, m);
    print_sees(to, m);
    print_lossy(to, m);
    uint64_t total = s->weights + s->kv + s->activations + s->logits + s->process +
                           s->tiers.device_host + (all ? 0 : s->staging);
    const uint64_t lent = total > s->budget ? total - s->budget : 0;
    total -= lent;
    (void)fprintf(to, "memory  %s%s%s\n", human(h, sizeof h, total), s->budget == UINT64_MAX ? "" :
                  " of ", s->budget == UINT64_MAX ? " planned, no limit set" :
                  human(note, sizeof note, s->budget));
    (void)snprintf(note, sizeof note, "%d parts, %s", s->n_parts, all ? "all in RAM" :
                   "not all of them in RAM at a time");
    print_bytes(to, "weights", s->weights, note);
    if (s->stack.n_units) print_stack(to, &s->stack);
    if (!all) print_tiers(to, &s->tiers);
    (void)snprintf(note, sizeof note, "%d session%s x %d positions, %s, committed as they fill",
                   s->n_sessions, s->n_sessions == 1 ? "" : "s", s->n_ctx, s->kv_type);
    print_bytes(to, "KV cache", s->kv, note);
    if (lent) print_bytes(to, "  lent", lent, "of these: used for weights until it fills");
    if (s->kv_share < 1) {
        (void)snprintf(note, sizeof note, "of these, when all positions are filled: %.0f %%",
                       100 * s->kv_share);
        print_bytes(to, "  expected", (uint64_t)((double)s->kv * s->kv_share), note);
    }
    if (s->state) {
        (void)snprintf(note, sizeof note, "of these: current, next and %d snapshot%s per session",
                       s->n_snapshots, s->n_snapshots == 1 ? "" : "s");
        print_bytes(to, "  recurrent", s->state, note);
    }
    print_bytes(to, "activations", s->activations, "one arena, reused by every step");
    print_bytes(to, "logits", s->logits, "more when more rows ask for them");
    print_bytes(to, "staging", s->staging, all ? "only while loading" : "reads on their way");
    print_bytes(to, "process", s->process, "code, libraries, heap, stacks: estimated from above");
    if (s->tiers.device_name) {
        print_bytes(to, "device's host", s->tiers.device_host, "what the device copies from and to");
        print_device(to, &s->tiers, (int64_t)s->n_sessions * s->n_ctx);
    }
    if (!all) print_promise(to, &s->tiers);
    print_plan(to, prefill, "prefill");
    print_plan(to, decode, "decode");
}

static cJSON *json_stack(const struct plan_stack *k)
{
    cJSON *o = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(o, "kinds");
    cJSON_AddNumberToObject(o, "levels_loaded", k->n_loaded);
    cJSON_AddNumberToObject(o, "levels", k->n_units);
    cJSON_AddNumberToObject(o, "level_bytes", (double)k->bytes);
    if (k->ppl > 0) cJSON_AddNumberToObject(o, "perplexity_expected", k->ppl);
    for (int i = 0; i < k->n_depths; i++) {
        cJSON *j = cJSON_CreateObject();
        cJSON_AddStringToObject(j, "kind", k->depth[i].kind);
        cJSON_AddNumberToObject(j, "bits_per_weight", k->depth[i].bits);
        cJSON_AddNumberToObject(j, "bits_least", k->depth[i].least);
        cJSON_AddNumberToObject(j, "bits_most", k->depth[i].most);
        cJSON_AddNumberToObject(j, "bytes", (double)k->depth[i].bytes);
        cJSON_AddItemToArray(list, j);
    }
    return o;
}

static cJSON *json_plan(const struct plan *p)
{
    cJSON *o = cJSON_CreateObject(), *steps = cJSON_AddArrayToObject(o, "steps");
    const struct plan_step t = plan_total(p);
    cJSON_AddNumberToObject(o, "rows_max", p->n_rows);
    cJSON_AddNumberToObject(o, "arena_bytes", (double)p->arena_bytes);
    cJSON_AddNumberToObject(o, "weight_bytes_expected", (double)t.weight_bytes);
    cJSON_AddNumberToObject(o, "macs", (double)t.macs);
    for (int i = 0; i < p->model->n_op; i++) {
        const struct op *op = &p->model->op[i];
        char text[160];
        cJSON *j = cJSON_CreateObject();
        cJSON_AddNumberToObject(j, "layer", op->layer);
        cJSON_AddStringToObject(j, "lane", lane_name(op->lane));
        cJSON_AddStringToObject(j, "step", op_name(op->code));
        cJSON_AddStringToObject(j, "name", op->name);
        cJSON_AddStringToObject(j, "rows", p->model->set[op->rows].name);
        put_bufs(p, op->in, text, sizeof text);
        cJSON_AddStringToObject(j, "in", text);
        put_bufs(p, op->out, text, sizeof text);
        cJSON_AddStringToObject(j, "out", text);
        put_weights(p, op, text, sizeof text);
        cJSON_AddStringToObject(j, "weights", text);
        cJSON_AddNumberToObject(j, "weight_bytes_expected", (double)p->step[i].weight_bytes);
        cJSON_AddNumberToObject(j, "weight_bytes_max", (double)p->step[i].weight_bytes_max);
        cJSON_AddNumberToObject(j, "activation_bytes", (double)p->step[i].act_bytes);
        cJSON_AddNumberToObject(j, "macs", (double)p->step[i].macs);
        cJSON_AddItemToArray(steps, j);
    }
    return o;
}

static cJSON *json_tiers(const struct plan_tiers *t)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddBoolToObject(o, "all_in_ram", t->all_ram);
    cJSON_AddNumberToObject(o, "home_bytes", (double)t->home);
    cJSON_AddNumberToObject(o, "expert_slot_bytes", (double)t->slots);
    cJSON_AddNumberToObject(o, "expert_bytes", (double)t->experts);
    cJSON_AddNumberToObject(o, "expert_slots", t->n_slots);
    cJSON_AddNumberToObject(o, "experts", t->n_experts);
    cJSON_AddNumberToObject(o, "ring_bytes", (double)t->ring);
    cJSON_AddNumberToObject(o, "disk_bytes", (double)t->on_disk);
    cJSON_AddNumberToObject(o, "hit_expected", t->hit);
    cJSON_AddStringToObject(o, "prior", t->prior);
    cJSON_AddNumberToObject(o, "token_memory_bytes", (double)t->token_ram);
    cJSON_AddNumberToObject(o, "token_disk_bytes_expected", (double)t->token_disk);
    if (t->seconds[1] > 0) {
        cJSON_AddNumberToObject(o, "token_seconds_least", t->seconds[0]);
        cJSON_AddNumberToObject(o, "token_seconds_most", t->seconds[1]);
        cJSON_AddNumberToObject(o, "token_seconds_likely", t->seconds[2]);
    }
    if (t->device_name) {
        cJSON_AddStringToObject(o, "device", t->device_name);
        cJSON_AddNumberToObject(o, "device_expert_bytes", (double)t->device);
        cJSON_AddNumberToObject(o, "device_fixed_bytes", (double)t->device_fixed);
        cJSON_AddNumberToObject(o, "device_dense_bytes", (double)t->device_dense);
        cJSON_AddNumberToObject(o, "device_kv_bytes", (double)t->device_kv);
        if (t->device_dense)
            cJSON_AddNumberToObject(o, "device_first_layer", t->device_first < 0 ? 0 : t->device_first);
        cJSON_AddBoolToObject(o, "device_head", t->device_head);
        cJSON_AddNumberToObject(o, "device_dense_declined_bytes", (double)t->device_declined);
        cJSON_AddNumberToObject(o, "device_token_bytes", t->device_found);
        cJSON_AddNumberToObject(o, "device_kv_sessions", t->n_device_kv);
        cJSON_AddNumberToObject(o, "device_kv_tokens", (double)t->device_kv_tokens);
        cJSON_AddNumberToObject(o, "device_host_bytes", (double)t->device_host);
        cJSON_AddNumberToObject(o, "device_experts", t->n_device);
        cJSON_AddNumberToObject(o, "device_experts_sure", t->n_device_sure);
        cJSON_AddNumberToObject(o, "device_bytes", (double)t->device_bytes);
    }
    if (t->all_ram) return o;
    cJSON_AddNumberToObject(o, "hit_with_another_gib", t->more_hit);
    cJSON_AddNumberToObject(o, "token_disk_bytes_with_another_gib", (double)t->more_disk);
    return o;
}

void plan_json(FILE *to, const struct plan_summary *s, const struct plan *prefill,
               const struct plan *decode)
{
    cJSON *o = cJSON_CreateObject(), *mem = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "arch", s->arch);
    cJSON_AddStringToObject(o, "name", s->name);
    cJSON_AddNumberToObject(o, "layers", prefill->model->n_layer);
    cJSON_AddNumberToObject(o, "experts", s->n_expert);
    cJSON_AddNumberToObject(o, "experts_used", s->n_expert_used);
    cJSON_AddNumberToObject(o, "parts", s->n_parts);
    cJSON_AddNumberToObject(o, "context", s->n_ctx);
    cJSON_AddNumberToObject(o, "sessions", s->n_sessions);
    cJSON_AddStringToObject(o, "kv_type", s->kv_type);
    cJSON_AddNumberToObject(mem, "weights", (double)s->weights);
    cJSON_AddNumberToObject(mem, "kv", (double)s->kv);
    if (s->kv_share < 1)
        cJSON_AddNumberToObject(mem, "kv_expected", (double)s->kv * s->kv_share);
    if (s->state) cJSON_AddNumberToObject(mem, "kv_recurrent", (double)s->state);
    cJSON_AddNumberToObject(mem, "activations", (double)s->activations);
    cJSON_AddNumberToObject(mem, "logits", (double)s->logits);
    cJSON_AddNumberToObject(mem, "staging", (double)s->staging);
    cJSON_AddNumberToObject(mem, "process", (double)s->process);
    cJSON_AddItemToObject(o, "memory_bytes", mem);
    if (prefill->model->n_depth) cJSON_AddItemToObject(o, "depth", json_depth(prefill->model));
    if (lossy_route(prefill->model)) {
        cJSON *r = cJSON_AddObjectToObject(o, "routing");
        cJSON_AddStringToObject(r, "prompts", "expert_choice");
        cJSON_AddBoolToObject(r, "lossy", true);
    }
    cJSON_AddItemToObject(o, "tiers", json_tiers(&s->tiers));
    if (s->stack.n_units) cJSON_AddItemToObject(o, "stack", json_stack(&s->stack));
    cJSON_AddItemToObject(o, "prefill", json_plan(prefill));
    cJSON_AddItemToObject(o, "decode", json_plan(decode));
    char *text = cJSON_Print(o);
    if (text) (void)fprintf(to, "%s\n", text);
    cJSON_free(text);
    cJSON_Delete(o);
}
