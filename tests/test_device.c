/* The second device: bit-equal logits wherever experts run (device sim and the CUDA plugin on an emulated
 * runtime, of every size, beside every budget), the split by rates, admission; and devices that
 * misbehave in every way, which end in one line and the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "bench/gen.h"
#include "moe/base/machine.h"
#include "moe/run/engine_int.h"
#include "routing/route.h"
#include "tests/engine.h"
#include "tests/plugin.h"
#include "tests/shared.h"

enum { N = 200, VOCAB = 512, MIB = 1 << 20 }; /* tokens of more than three KV pages */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { SLOW = 1 }; /* ten times: a third of the placements; on the emulated GPU one model of three */
#else
enum { SLOW = 0 };
#endif

static char dir[64] = "/tmp/tessera-device-XXXXXX";
static int32_t ids[N];
static int n_fed; /* of them, as many as a test needs */

static const char *model(const char *arch, unsigned type)
{
    static char path[160];
    struct err e;
    err_clear(&e);
    struct gen_spec g = gen_tiny(arch, QTYPE_Q8_0);
    g.type = type;
    g.n_layer = 3;
    g.n_embd = 256;
    g.n_head = 8;
    g.n_head_kv = 8;
    g.head_dim = 32;
    g.n_ff = 256;
    g.n_expert = 16;
    g.n_expert_used = 3;
    g.n_ctx = 256;
    g.n_vocab = VOCAB;
    (void)snprintf(path, sizeof path, "%s/%s-%u.gguf", dir, arch, type);
    if (access(path, R_OK) && gen_write(&g, path, NULL, &e)) fail_msg("%s", e.msg);
    return path;
}

static struct tessera_options options(const char *path)
{
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.n_threads = 2;
    o.n_ctx = 128;
    o.n_ubatch = 64;
    o.n_logits = 64;
    o.mem_budget = UINT64_MAX;
    return o;
}

/* All ids in pieces of at most `most`; what the model says to each goes to out. */
static void feed(tessera_engine *e, int most, float *out)
{
    struct err err;
    tessera_session *s;
    if (tessera_session_open(e, 0, &s, &err)) fail_msg("%s", err.msg);
    for (int at = 0; at < n_fed;) {
        const int n = n_fed - at < most ? n_fed - at : most;
        struct tessera_input in = {s, ids + at, n, TESSERA_LOGITS_ALL};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < n; i++)
            memcpy(out + (size_t)(at + i) * VOCAB, tessera_logits(e, 0, i), VOCAB * sizeof *out);
        at += n;
    }
    tessera_session_close(s);
}

static float want[N * VOCAB], got[N * VOCAB];

static void reference(const struct tessera_options *o)
{
    struct tessera_options plain = *o;
    plain.device = NULL;
    plain.mem_budget = UINT64_MAX;
    plain.files = NULL;
    tessera_engine *e = must_open(&plain);
    feed(e, 64, want);
    tessera_close(e);
}

static void check(tessera_engine *e, int most)
{
    memset(got, 0, sizeof got);
    feed(e, most, got);
    assert_memory_equal(want, got, (size_t)n_fed * VOCAB * sizeof *want);
}

/* The number in a line that says how much would do. */
static uint64_t named(const char *text, const char *before)
{
    const char *at = strstr(text, before);
    assert_non_null(at);
    return strtoull(at + strlen(before), NULL, 10) * MIB;
}

/* What the experts need, when a device takes `own` bytes for itself. */
static uint64_t least_vram(const struct tessera_options *like, uint64_t own)
{
    struct tessera_options o = *like;
    o.vram_budget = own + MIB / 2;
    tessera_engine *e = must_open(&o);
    assert_false(devtier_on(&e->devtier));
    const uint64_t n = named(tessera_warning(e, 0), "take ");
    tessera_close(e);
    return n;
}

/* ---- the same bits ---- */

static void check_placements(const char *arch, unsigned type, const struct dev_api *api, uint64_t own)
{
    struct tessera_options o = options(model(arch, type));
    reference(&o);
    o.device = api;
    const uint64_t vram = own + least_vram(&o, own), mem = smallest(&o);
    bool all_there = false, some_sent = false, some_refused = false, pooled = false;
    /* Experts alone; with all the rest; a token's step in one submission. */
    bool alone = false, whole = false, at_once = false;
    const int every = SLOW ? 3 : 1;
    for (int k = 0; k < 16; k += own ? 4 : every) {
        const int i = own && k == 4 ? 7 : own && k == 8 ? 10 : own && k ? 15 : k; /* emulated threads are slow */
        o.vram_budget = vram + (uint64_t)(i % 4) * (uint64_t)(i % 4) * 3 * MIB;
        o.mem_budget = i < 8 ? UINT64_MAX : mem + (uint64_t)(i - 8) * MIB;
        const struct machine slow = {.ram_read_n = 1};
        o.machine = i % 2 ? &slow : NULL;
        tessera_engine *e = must_open(&o);
        assert_true(devtier_on(&e->devtier));
        assert_null(tessera_warning(e, 0));
        const struct devstep_plan *d = &e->devstep_plan;
        assert_true(e->devtier.plan.arena + e->devtier.plan.fixed + d->bytes <= o.vram_budget);
        check(e, i % 3 == 0 ? 1 : i % 3 == 1 ? 64 : 5);
        check(e, own ? 7 : 1);
        const struct tessera_traffic t = tessera_traffic(e);
        if (!(t.device_ran > 0 && t.device_filled > 0 && t.device_seconds > 0))
            fail_msg("%d: %llu ran, %llu filled, %g s, %s", i, (unsigned long long)t.device_ran,
                     (unsigned long long)t.device_filled, t.device_seconds,
                     tessera_warning(e, 0) ? tessera_warning(e, 0) : "no warning");
        assert_true(t.device_modelled == !strcmp(api->name, "sim"));
        assert_true(o.mem_budget == UINT64_MAX || tessera_memory(e).peak <= o.mem_budget);
        assert_true(!d->bytes == !e->devstep.n_ops);
        assert_true(e->devstep.attends == (d->n_kv > 0));
        alone |= !d->bytes;
        whole |= d->n_kv > 0;
        at_once |= e->devstep.whole;
        all_there |= e->devtier.plan.n_all == 48;
        some_sent |= t.device_sent > 0;
        some_refused |= e->devtier.count.refused > 0;
        pooled |= !e->resid.all_ram;
        assert_true(t.device_sent == 0 || o.machine);
        tessera_close(e);
    }
    if (!(all_there && (some_sent || own) && (some_refused || own) && pooled))
        fail_msg("%d %d %d %d", all_there, some_sent, some_refused, pooled);
    assert_true(alone && whole && (at_once || !strcmp(api->name, "sim")));
}

static void test_same_bits(void **state)
{
    (void)state;
    check_placements("qwen3moe", QTYPE_Q8_0, dev_sim_api(), 0);
    check_placements("olmoe", GEN_Q4_K_M, dev_sim_api(), 0);
    check_placements("qwen3moe", QTYPE_F16, dev_sim_api(), 0);
}

static void no_watch(void *arg, const struct tessera_watched *w)
{
    (void)w;
    ++*(int *)arg;
}

/* Rows at .. at + n - 1 of the ids on a session; what the model says is as ever. */
static void go_on(tessera_engine *e, tessera_session *s, int n)
{
    struct err err;
    const int at = tessera_session_n(s), all = n <= e->opt.n_ubatch;
    const struct tessera_input in = {s, ids + at, n, all ? TESSERA_LOGITS_ALL : TESSERA_LOGITS_LAST};
    if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
    for (int i = all ? 0 : n - 1; i < n; i++)
        assert_memory_equal(want + (size_t)(at + i) * VOCAB, tessera_logits(e, 0, i), VOCAB * sizeof *want);
}

static tessera_session *new_session(tessera_engine *e)
{
    struct err err;
    tessera_session *s;
    if (tessera_session_open(e, 0, &s, &err)) fail_msg("%s", err.msg);
    return s;
}

/* Two sessions in one step, of which the device has pages for both, one or none. */
static void check_pairs(tessera_engine *e)
{
    struct err err;
    tessera_session *s[2] = {new_session(e), new_session(e)};
    go_on(e, s[1], 7);
    for (int at = 0; at < 24;) {
        const int n = at % 3 + 1;
        const struct tessera_input in[2] = {{s[0], ids + at, n, TESSERA_LOGITS_ALL},
                                            {s[1], ids + 7 + at, n, TESSERA_LOGITS_LAST}};
        if (tessera_step(e, in, 2, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < n; i++)
            assert_memory_equal(want + (size_t)(at + i) * VOCAB, tessera_logits(e, 0, i), VOCAB * sizeof *want);
        assert_memory_equal(want + (size_t)(7 + at + n - 1) * VOCAB, tessera_logits(e, 1, n - 1),
                            VOCAB * sizeof *want);
        at += n;
    }
    tessera_session_close(s[0]);
    go_on(e, s[1], 3);
    tessera_session_close(s[1]);
}

/* What all that is not experts takes, and so many experts of 48; of more than 48 pages have the room. */
static uint64_t vram_of(const struct tessera_options *like, int slots)
{
    struct tessera_options o = *like;
    tessera_engine *e = must_open(&o);
    const struct devtier_plan *p = &e->devtier.plan;
    assert_int_equal(p->n_all, 48);
    const uint64_t need = p->fixed + e->devstep.plan.bytes + p->slots / 48 * (uint64_t)slots;
    const uint64_t vram = o.vram_budget - (e->devtier.caps.memory - need);
    tessera_close(e);
    return vram;
}

/* Room for an expert or two, and for the last layers, not for all. */
static uint64_t vram_of_some(const struct tessera_options *like)
{
    struct tessera_options o = *like;
    tessera_engine *e = must_open(&o);
    const struct devtier_plan *p = &e->devtier.plan;
    const struct devstep_plan *d = &e->devstep.plan;
    const uint64_t need = p->fixed + d->bytes - d->weights / 3 + p->slots / (uint64_t)p->n_all * 3 / 2;
    const uint64_t vram = o.vram_budget - (e->devtier.caps.memory - need);
    tessera_close(e);
    return vram;
}

/* Everything but routing is there: pieces of a step, sessions that are cut, saved, loaded, watched and
 * brought back, more of them than there are pages for, a budget that moves. */
static void check_sessions(const struct tessera_options *o, const char *saved, bool some)
{
    struct err err;
    tessera_engine *e = must_open(o);
    assert_null(tessera_warning(e, 0));
    const struct devstep_plan *d = &e->devstep.plan;
    assert_true(d->bytes > 0 && d->n_kv > 0 && (d->first > 0 && !d->head && d->page_at > 0) == some);
    tessera_session *s = new_session(e);
    go_on(e, s, 60);
    go_on(e, s, 8); /* into the next page */
    assert_true(e->devstep.n_ops > 0);
    tessera_session_close(s);
    s = new_session(e);
    go_on(e, s, 40);
    if (tessera_session_rollback(s, (struct tessera_mark){9}, &err)) fail_msg("%s", err.msg);
    go_on(e, s, 1);
    go_on(e, s, 20);
    /* Other tokens, and back: from here on the device's pages are wrong. */
    int n = 0;
    const struct tessera_mark mark = tessera_session_mark(s);
    const struct tessera_input other = {s, ids, 8, TESSERA_LOGITS_LAST};
    if (tessera_step(e, &other, 1, &err)) fail_msg("%s", err.msg);
    if (tessera_session_rollback(s, mark, &err)) fail_msg("%s", err.msg);
    if (tessera_watch(e, no_watch, &n, &err)) fail_msg("%s", err.msg);
    const uint64_t ran = e->devstep.n_ops;
    go_on(e, s, 3);
    assert_true(n > 0 && e->devstep.n_ops == ran);
    (void)tessera_watch(e, NULL, NULL, &err);
    go_on(e, s, 1);
    assert_true(e->devstep.n_ops > ran);
    if (tessera_session_save(s, saved, &err)) fail_msg("%s", err.msg);
    go_on(e, s, 20);
    if (tessera_session_load(s, saved, &err)) fail_msg("%s", err.msg);
    go_on(e, s, 2);
    const uint64_t least = fit_least(e);
    if (tessera_resize(e, (least / MIB + 2) * MIB, &err)) fail_msg("%s", err.msg);
    go_on(e, s, 2);
    if (tessera_resize(e, UINT64_MAX, &err)) fail_msg("%s", err.msg);
    go_on(e, s, 5);
    tessera_session_close(s);
    check_pairs(e);
    check(e, 1);
    assert_true(devtier_on(&e->devtier));
    tessera_close(e);
}

static void test_sessions(void **state)
{
    (void)state;
    char saved[160];
    (void)snprintf(saved, sizeof saved, "%s/session.gguf", dir);
    for (int i = 0; i < 8; i++) {
        struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
        o.kv = i % 2 ? TESSERA_KV_Q8_0 : TESSERA_KV_F16;
        reference(&o);
        o.device = dev_sim_api();
        o.vram_budget = 24 * MIB;
        o.n_sessions = 1 + i / 2 % 3;
        o.n_ubatch = i < 2 ? 64 : 16;
        o.n_batch = 64;
        o.n_logits = i < 2 ? 64 : 16;
        if (i >= 6) o.vram_budget = vram_of_some(&o);
        else if (i % 3) o.vram_budget = vram_of(&o, i % 3 == 1 ? 48 : 20);
        check_sessions(&o, saved, i >= 6);
    }
}

/* Resizes in between, and a watcher, who needs the CPU's rows. */
static void test_beside(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    struct err err;
    reference(&o);
    o.device = dev_sim_api();
    o.vram_budget = 8 * MIB;
    tessera_engine *e = must_open(&o);
    check(e, 1);
    const uint64_t least = fit_least(e);
    if (tessera_resize(e, (least / MIB + 2) * MIB, &err)) fail_msg("%s", err.msg);
    check(e, 1);
    int n = 0;
    if (tessera_watch(e, no_watch, &n, &err)) fail_msg("%s", err.msg);
    const uint64_t ran = tessera_traffic(e).device_ran;
    check(e, 9);
    assert_true(n > 0 && tessera_traffic(e).device_ran == ran);
    (void)tessera_watch(e, NULL, NULL, &err);
    if (tessera_resize(e, UINT64_MAX, &err)) fail_msg("%s", err.msg);
    check(e, 9);
    assert_true(tessera_traffic(e).device_ran > ran);
    tessera_close(e);
}

/* ---- a device that routes: sim, with the host's routing put in by hand ---- */

static dev_fence last_put;
static int n_submits;

static char *real(const void *at) { return (char *)((uintptr_t)at ^ (uintptr_t)1 << 62); }

static bool router_supports(const struct dev *d, const struct op *op, const struct dev_weight *w)
{
    return op->code == OP_ROUTE || dev_sim_api()->supports(d, op, w);
}

static void settled(struct dev *d)
{
    (void)dev_sim_api()->wait(d, last_put, 10, NULL);
}

static const float *vector_of(const struct dev_bind *b, int w)
{
    return w < 0 ? NULL : (const float *)(const void *)real(b->weight[w].data);
}

static void route_there(struct dev *d, const struct op *op, const struct dev_bind *b)
{
    const struct route_params *p = &op->p.moe.route;
    const int n = b->set[op->rows].n;
    const struct dev_choice c = dev_choice(real(b->buf[op->out[0]].base), n, p->n_used);
    settled(d);
    for (int i = 0; i < n; i++) {
        float logits[64], pick[64];
        assert_true(p->n_expert <= 64);
        memcpy(logits, real(dev_buf_row(&b->buf[op->in[0]], i)), sizeof *logits * (size_t)p->n_expert);
        route_token_choice(p, elem_kernels(CPU_REF), vector_of(b, op->weight[0]),
                           vector_of(b, op->weight[1]), logits, pick, c.id + i * p->n_used,
                           c.w + i * p->n_used);
    }
}

static void run_chosen(struct dev *d, const struct op *op, const struct dev_bind *b)
{
    static int32_t count[64], expert[64], first[65], pair[64 * 64];
    static const void *tile[OP_IO][64];
    const struct route_params *p = &op->p.moe.route;
    const int n = b->set[op->rows].n;
    settled(d);
    const struct dev_choice c = dev_choice(real(b->buf[op->in[1]].base), n, p->n_used);
    const void *const *table = (const void *const *)(const void *)real(b->table[op->weight[0]]);
    struct dev_route r = {.n_rows = n, .n_used = p->n_used, .n_pairs = n * p->n_used,
                          .n_slots = n * p->n_used, .sum = true, .w = c.w, .expert = expert,
                          .first = first, .pair = pair, .gate = tile[0], .up = tile[1], .down = tile[2]};
    r.n_active = r.end = route_group(c.id, NULL, n, p->n_used, p->n_expert, count, expert, first, pair);
    for (int a = 0; a < r.n_active; a++)
        for (int k = 0; k < OP_IO; k++) tile[k][a] = table[expert[a] * OP_IO + k];
    struct dev_bind with = *b;
    with.route = &r;
    last_put = dev_sim_api()->submit(d, op, 1, &with);
    settled(d);
}

static dev_fence router_submit(struct dev *d, const struct op *ops, int n, const struct dev_bind *b)
{
    n_submits++;
    for (int i = 0; i < n; i++) {
        if (ops[i].code == OP_ROUTE) route_there(d, &ops[i], b);
        else if (ops[i].code == OP_EXPERTS && !b->route) run_chosen(d, &ops[i], b);
        else last_put = dev_sim_api()->submit(d, &ops[i], 1, b);
    }
    return last_put;
}

static struct dev_api router(void)
{
    struct dev_api api = *dev_sim_api();
    api.supports = router_supports;
    api.submit = router_submit;
    return api;
}

/* Nothing is left for the host: the same bits, and one submission a token. */
static void test_resident(void **state)
{
    (void)state;
    static const char *const arch[] = {"qwen3moe", "olmoe"};
    char saved[160];
    (void)snprintf(saved, sizeof saved, "%s/session.gguf", dir);
    const struct dev_api api = router();
    for (int i = 0; i < 4; i++) {
        struct tessera_options o = options(model(arch[i % 2], QTYPE_Q8_0));
        o.kv = i / 2 ? TESSERA_KV_Q8_0 : TESSERA_KV_F16;
        reference(&o);
        o.device = &api;
        o.vram_budget = 40 * MIB;
        o.n_sessions = 2;
        tessera_engine *e = must_open(&o);
        assert_true(devtier_complete(&e->devtier));
        const uint64_t before = tessera_traffic(e).device_ran;
        n_submits = 0;
        check(e, 1);
        assert_true(e->devstep.whole);
        assert_int_equal(n_submits, n_fed);
        assert_int_equal(tessera_traffic(e).device_ran - before, 3 * 3 * n_fed);
        assert_true(tessera_traffic(e).misses == 0 && tessera_traffic(e).hits == 0);
        check(e, 5);
        check(e, 60); /* more rows than that */
        assert_true(e->devstep.on && !e->devstep.whole);
        check_pairs(e);
        tessera_close(e);
        check_sessions(&o, saved, false);
        o.n_ubatch = o.n_logits = 4; /* and steps of few rows in pieces */
        o.n_batch = 64;
        check_sessions(&o, saved, false);
    }
}

/* ---- devices that misbehave, on sim ---- */

enum bad { BAD_ALLOC, BAD_LOST, BAD_LATE, BAD_N };
static enum bad bad;
static int bad_after;      /* calls that go well */
static _Atomic int calls;
static dev_fence held;     /* fences from this one on are late */

static bool turn(void) { return atomic_fetch_add(&calls, 1) >= bad_after; }

static void *bad_alloc(struct dev *d, enum dev_where where, uint64_t bytes)
{
    return bad == BAD_ALLOC && turn() ? NULL : dev_sim_api()->alloc(d, where, bytes);
}

static dev_fence after(dev_fence f)
{
    if (bad != BAD_ALLOC && turn() && (!held || f < held)) held = f;
    return f;
}

static dev_fence bad_submit(struct dev *d, const struct op *ops, int n, const struct dev_bind *b)
{
    return after(dev_sim_api()->submit(d, ops, n, b));
}

static dev_fence bad_copy(struct dev *d, void *to, const void *from, uint64_t bytes)
{
    return after(dev_sim_api()->copy(d, to, from, bytes));
}

static enum dev_state bad_wait(struct dev *d, dev_fence f, double seconds, struct err *e)
{
    if (!held || f < held) return dev_sim_api()->wait(d, f, seconds, e);
    if (bad == BAD_LATE) return DEV_PENDING;
    (void)err_set(e, ERR_DEVICE, "it has fallen off the bus");
    return DEV_LOST;
}

/* ---- pages take slots ---- */

/* Slots that pages have; and every list says the same. */
static int n_claimed(const struct devtier *t)
{
    int n = 0, full = 0, idle = 0;
    for (int i = 0; i < t->plan.n_all; i++) {
        const struct devtier_slot *k = &t->slot[i];
        assert_true(!k->claimed || (k->item < 0 && k->at < t->o.shared));
        assert_true(k->item < 0 || t->slot_of[k->item] == i);
        n += k->claimed;
        full += k->item >= 0;
    }
    for (int c = 0; c < PLACE_CLASSES; c++) idle += t->cls[c].n_idle;
    assert_true(full == t->n_there && full + idle + n == t->plan.n_all);
    return n;
}

/* Slots, all of one size, into which the pages of n tokens in place i reach. */
static int n_reached(const tessera_engine *e, int i, int n)
{
    const struct devtier *t = &e->devtier;
    const uint64_t slot = t->o.resid->sizes.slot[0], rest = t->plan.arena - slot * (uint64_t)t->plan.n_all;
    const uint64_t from = e->devstep.plan.kv / (uint64_t)e->devstep.plan.n_kv * (uint64_t)i;
    const uint64_t to = from + (uint64_t)((n + KV_PAGE - 1) / KV_PAGE) * e->line[0].page_bytes;
    const uint64_t first = from < rest ? 0 : (from - rest) / slot;
    return to <= rest ? 0 : (int)((to - rest + slot - 1) / slot - first);
}

/* The expert of the least worth goes, whatever lay in the bytes that are claimed. */
static void check_least_worth(tessera_engine *e)
{
    enum { OTHER = 9, STEP = 4096 };
    struct devtier *t = &e->devtier;
    const uint64_t moved = t->count.moved;
    int n_gone = 0;
    for (uint64_t to = STEP; to <= t->o.shared; to += STEP) {
        const int32_t v = t->cls[0].n_idle ? -1 : policy_victim(t->policy, 0);
        const int n = n_claimed(t), there = t->n_there;
        devtier_claim(t, OTHER, 0, to);
        if (v < 0 || n_claimed(t) == n) continue;
        assert_int_equal(t->slot_of[v], -1);
        assert_int_equal(t->n_there, there - 1);
        n_gone++;
    }
    assert_true(n_gone > 0 && t->count.moved > moved);
    devtier_claim(t, OTHER, 0, 0);
    assert_true(t->cls[0].n_idle >= n_gone);
}

/* Pages take slots as sessions grow, and give them back when those are cut and closed; the same bits
 * throughout. */
static void check_growth(const struct tessera_options *o, bool whole)
{
    struct err err;
    tessera_engine *e = must_open(o);
    const struct devtier *t = &e->devtier;
    const struct devstep_plan *p = &e->devstep.plan;
    assert_true(p->n_kv == 3 && p->n_pages == 4 && t->plan.n_sure > 0 && t->plan.n_sure < t->plan.n_all);
    assert_true(t->plan.arena + t->plan.fixed + p->bytes <= t->caps.memory);
    const bool all = t->plan.n_all == 48;
    assert_true(all == devtier_complete(t));
    tessera_session *s[3] = {new_session(e), new_session(e), new_session(e)};
    for (int at = 0, n; at < N; at += n) {
        n = at % 3 == 0 ? 1 : at % 3 == 1 ? 30 : 4;
        if (n > N - at) n = N - at;
        go_on(e, s[0], n);
        assert_true(e->devstep.attends);
        if (!at) assert_true(whole == e->devstep.whole);
        assert_int_equal(n_claimed(t), n_reached(e, 0, at + n));
    }
    assert_true(n_claimed(t) > 0 && t->count.displaced > 0 && !devtier_complete(t));
    for (int i = 1; i < 3; i++) {
        go_on(e, s[i], 64);
        go_on(e, s[i], 5);
    }
    const int full = n_claimed(t);
    assert_true(full >= n_reached(e, 0, N) + n_reached(e, 2, 69));
    check_least_worth(e);
    assert_int_equal(n_claimed(t), full);
    /* What is behind a cut goes back with the next step, whoever makes it. */
    if (tessera_session_rollback(s[0], (struct tessera_mark){20}, &err)) fail_msg("%s", err.msg);
    go_on(e, s[1], 1);
    assert_true(n_claimed(t) < full);
    go_on(e, s[0], 50);
    tessera_session_close(s[0]);
    tessera_session_close(s[1]);
    assert_int_equal(n_claimed(t), n_reached(e, 2, 69));
    go_on(e, s[2], 1);
    tessera_session_close(s[2]);
    assert_int_equal(n_claimed(t), 0);
    /* Experts come back that are used, or, where all can be there, all. */
    const uint64_t before = t->count.uploads;
    assert_true(t->cls[0].n_idle > 0);
    s[0] = new_session(e);
    go_on(e, s[0], 30);
    for (int i = 0; i < 30; i++) go_on(e, s[0], 1);
    assert_true(whole || !all ? t->count.uploads > before && !t->cls[0].n_idle : t->n_there < 48);
    assert_int_equal(n_claimed(t), n_reached(e, 0, 60));
    assert_true(e->devstep.whole == whole && (!whole || devtier_complete(t)));
    tessera_session_close(s[0]);
    assert_null(tessera_warning(e, 0));
    tessera_close(e);
}

static void test_growth(void **state)
{
    (void)state;
    const struct dev_api routes = router();
    static const int slots[] = {30, 48, 50, 49};
    for (int i = 0; i < 4; i++) {
        struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
        o.kv = i % 2 ? TESSERA_KV_Q8_0 : TESSERA_KV_F16;
        o.n_ctx = 256;
        o.n_sessions = 3;
        reference(&o);
        o.device = i / 2 ? &routes : dev_sim_api();
        o.vram_budget = 64 * MIB;
        o.vram_budget = vram_of(&o, slots[i]);
        check_growth(&o, i / 2);
    }
}

/* The device is lost at any time while slots come and go. */
static void test_growth_lost(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    struct dev_api lossy = *dev_sim_api();
    lossy.submit = bad_submit;
    lossy.copy = bad_copy;
    lossy.wait = bad_wait;
    o.n_ctx = 256;
    o.n_sessions = 2;
    reference(&o);
    o.device = dev_sim_api();
    o.vram_budget = 64 * MIB;
    o.vram_budget = vram_of(&o, 20);
    o.device = &lossy;
    bool before = false, behind = false, failed = true;
    for (int i = 0; failed; i++) {
        bad = i % 2 ? BAD_LOST : BAD_LATE;
        bad_after = i * (SLOW ? 430 : 290);
        held = 0;
        atomic_store(&calls, 0);
        tessera_engine *e = must_open(&o);
        tessera_session *s = new_session(e), *other = new_session(e);
        for (int at = 0; at < 130; at += 13) go_on(e, s, 13);
        go_on(e, other, 20);
        tessera_session_close(s);
        go_on(e, other, 60);
        tessera_session_close(other);
        failed = atomic_load(&calls) > bad_after;
        assert_true(failed == !!tessera_warning(e, 0) && failed == !devtier_on(&e->devtier));
        before |= failed && !e->devtier.count.displaced;
        behind |= failed && e->devtier.count.displaced;
        tessera_close(e);
    }
    assert_true(before && behind);
}

/* A session that has no room to grow: attention is the host's, and the slots are the experts'. */
static void test_outgrown(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    o.n_ctx = 256;
    o.n_sessions = 3;
    reference(&o);
    o.device = dev_sim_api();
    o.vram_budget = 64 * MIB;
    o.vram_budget = vram_of(&o, 3);
    tessera_engine *e = must_open(&o);
    const struct devstep_plan *p = &e->devstep.plan;
    assert_true(p->n_kv == 2 && p->n_pages == 2);
    tessera_session *s[3] = {new_session(e), new_session(e), new_session(e)};
    go_on(e, s[0], 60);
    assert_true(e->devstep.attends && n_claimed(&e->devtier) == n_reached(e, 0, 60));
    go_on(e, s[1], 10);
    assert_true(e->devstep.attends);
    go_on(e, s[2], 10); /* has no place */
    assert_true(!e->devstep.attends);
    tessera_session_close(s[2]);
    go_on(e, s[0], 40); /* the next place is somebody's */
    assert_true(!e->devstep.attends);
    tessera_session_close(s[1]);
    s[1] = new_session(e);
    go_on(e, s[0], 10);
    assert_true(e->devstep.attends);
    go_on(e, s[0], 30);
    assert_true(e->devstep.on && !e->devstep.attends);
    assert_int_equal(n_claimed(&e->devtier), 0);
    go_on(e, s[1], 10); /* has one now */
    assert_true(e->devstep.attends);
    tessera_session_close(s[1]);
    struct err err;
    if (tessera_session_rollback(s[0], (struct tessera_mark){100}, &err)) fail_msg("%s", err.msg);
    for (int i = 0; i < 3; i++) go_on(e, s[0], 1);
    assert_true(e->devstep.attends);
    tessera_session_close(s[0]);
    assert_null(tessera_warning(e, 0));
    tessera_close(e);
}

/* Sessions that come, grow, are cut and go in any order, several of them in a step, with less room than all of them
 * want: no byte is two sessions', and the bits are the same. */
static void check_disjoint(const tessera_engine *e)
{
    const struct devtier *t = &e->devtier;
    const struct devstep *d = &e->devstep;
    (void)n_claimed(t);
    for (int i = 0; i < d->plan.n_kv; i++) {
        const uint64_t from = t->claim[i].from, to = t->claim[i].to;
        assert_int_equal(to - from, d->place[i].bytes);
        for (int k = 0; k < i; k++)
            assert_true(from == to || t->claim[k].to <= from || to <= t->claim[k].from);
    }
}

static void test_places(void **state)
{
    enum { MANY = 6, TOGETHER = 3 };
    struct rng r;
    (void)state;
    rng_seed(&r, 11);
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    o.n_ctx = 256;
    o.n_sessions = MANY;
    reference(&o);
    o.device = dev_sim_api();
    o.vram_budget = 64 * MIB;
    o.vram_budget = vram_of(&o, 12);
    tessera_engine *e = must_open(&o);
    tessera_session *s[MANY];
    for (int i = 0; i < MANY; i++) s[i] = new_session(e);
    int there = 0, here = 0;
    for (int step = 0; step < (SLOW ? 150 : 500); step++) {
        struct tessera_input in[TOGETHER];
        struct err err;
        int n_in = 0;
        const int first = (int)rng_below(&r, MANY), some = 1 + (int)rng_below(&r, TOGETHER);
        for (int i = first; i < MANY && n_in < some; i += 2) {
            const int at = tessera_session_n(s[i]);
            int n = 1 + (int)rng_below(&r, 15);
            if (n > N - at) n = N - at;
            if (n) in[n_in++] = (struct tessera_input){s[i], ids + at, n, TESSERA_LOGITS_LAST};
        }
        if (n_in && tessera_step(e, in, n_in, &err)) fail_msg("%s", err.msg);
        for (int i = 0; i < n_in; i++)
            assert_memory_equal(want + (size_t)(tessera_session_n(in[i].session) - 1) * VOCAB,
                                tessera_logits(e, i, in[i].n - 1), VOCAB * sizeof *want);
        there += n_in && e->devstep.attends;
        here += n_in && !e->devstep.attends;
        check_disjoint(e);
        const int i = (int)rng_below(&r, MANY), n = tessera_session_n(s[i]);
        const uint32_t what = rng_below(&r, 12);
        if (what == 0 || n == N) {
            tessera_session_close(s[i]);
            s[i] = new_session(e);
        } else if (what < 3 && n) {
            const struct tessera_mark mark = {(int32_t)rng_below(&r, (uint32_t)n)};
            if (tessera_session_rollback(s[i], mark, &err)) fail_msg("%s", err.msg);
        }
    }
    assert_true(there > 30 && here > 30 && tessera_traffic(e).device_displaced > 30);
    for (int i = 0; i < MANY; i++) tessera_session_close(s[i]);
    assert_int_equal(n_claimed(&e->devtier), 0);
    assert_null(tessera_warning(e, 0));
    tessera_close(e);
}

/* ---- the split ---- */

static void test_split(void **state)
{
    (void)state;
    const struct dev_caps fast = {.rate = 400e9, .rate_copy = 25e9, .latency = 10e-6};
    const double mib3 = 3 * MIB;
    /* Nothing is known of the CPU, or there is nothing to send. */
    assert_int_equal(devtier_split(&fast, 0, mib3, 0, 8), 0);
    assert_int_equal(devtier_split(&fast, 25e9, mib3, 4, 0), 0);
    /* Equal rates: half of them; a slow CPU: most; a fast one: none. */
    assert_int_equal(devtier_split(&fast, 25e9, mib3, 0, 8), 4);
    assert_int_equal(devtier_split(&fast, 1e9, mib3, 0, 8), 8);
    assert_int_equal(devtier_split(&fast, 400e9, mib3, 8, 8), 0);
    /* Against all splits, by hand. */
    for (int n = 0; n < 9; n++)
        for (int m = 0; m < 9; m++)
            for (double ram = 5e9; ram < 200e9; ram *= 2) {
                const int q = devtier_split(&fast, ram, mib3, n, m);
                for (int p = 0; p <= m; p++) {
                    double t[2];
                    for (int k = 0; k < 2; k++) {
                        const int s = k ? p : q;
                        const double dev = (n + s ? 10e-6 : 0) + n * mib3 / 400e9 + s * mib3 / 25e9;
                        const double cpu = (m - s) * mib3 / ram;
                        t[k] = dev > cpu ? dev : cpu;
                    }
                    assert_true(t[0] <= t[1] * (1 + 1e-12));
                }
            }
}


/* ---- devices that misbehave ---- */

static void test_bad_devices(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    reference(&o);
    struct dev_api api = *dev_sim_api();
    api.name = "bad";
    api.alloc = bad_alloc;
    api.submit = bad_submit;
    api.copy = bad_copy;
    api.wait = bad_wait;
    o.device = &api;
    o.vram_budget = 10 * MIB;
    const struct machine slow = {.ram_read_n = 5};
    o.machine = &slow;
    const uint64_t mem = smallest(&o);
    for (bad = 0; bad < BAD_N; bad++)
        for (bad_after = 0;; bad_after += 1 + bad_after / 3) {
            o.mem_budget = bad_after % 2 ? mem + 2 * MIB : UINT64_MAX;
            atomic_store(&calls, 0);
            held = 0;
            tessera_engine *e = must_open(&o);
            const bool opened = devtier_on(&e->devtier);
            check(e, bad_after % 4 == 3 ? 7 : 1);
            const bool failed = atomic_load(&calls) > bad_after;
            const char *line = tessera_warning(e, 0);
            assert_true(failed == !!line);
            assert_true(failed == !devtier_on(&e->devtier));
            if (line) assert_non_null(strstr(line, opened ? "given up" : "not used"));
            if (line && bad == BAD_LOST) assert_non_null(strstr(line, "bus"));
            assert_null(line ? tessera_warning(e, 1) : NULL);
            assert_true(o.mem_budget == UINT64_MAX || tessera_memory(e).peak <= o.mem_budget);
            check(e, 1); /* and on it goes */
            tessera_close(e);
            if (!failed) break;
            if (bad != BAD_ALLOC && bad_after > 3000) break;
        }
}

/* Routes are written down once, whoever ran the experts, and whether or not the device was lost. */
struct seen_routes {
    uint64_t sum, n;
};

static void see(void *arg, const struct obs *o)
{
    struct seen_routes *s = arg;
    uint64_t h = (uint64_t)o->layer << 40 ^ (uint64_t)o->pos << 20 ^ (uint64_t)(uint32_t)o->token;
    for (int k = 0; k < o->n_used; k++) {
        uint32_t w;
        memcpy(&w, &o->weight[k], sizeof w);
        h = (h ^ (uint32_t)o->expert[k] ^ (uint64_t)w << 16) * 0x9e3779b97f4a7c15u;
    }
    s->sum += h * h; /* of all records, in any order */
    s->n++;
}

static void test_observed(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    struct dev_api lossy = *dev_sim_api();
    const struct dev_api routes = router();
    reference(&o);
    lossy.submit = bad_submit;
    lossy.copy = bad_copy;
    lossy.wait = bad_wait;
    struct seen_routes want_seen = {0};
    for (int i = 0; i < 12; i++) {
        struct seen_routes got_seen = {0};
        o.device = i == 0 ? NULL : i == 1 ? dev_sim_api() : i == 2 ? &routes : &lossy;
        o.vram_budget = (i % 2 ? 10 : 40) * MIB;
        bad = BAD_LOST;
        bad_after = 130 + 15 * i;
        held = 0;
        atomic_store(&calls, 0);
        tessera_engine *e = must_open(&o);
        tessera_observe(e, see, &got_seen);
        check(e, i % 3 == 2 ? 1 : 9);
        if (!i) want_seen = got_seen;
        assert_true(got_seen.n == (uint64_t)(3 * n_fed) && got_seen.sum == want_seen.sum);
        tessera_close(e);
    }
}

/* Late for real: what it writes after it was given up goes where nobody looks. */
static dev_fence slow_copy(struct dev *d, void *to, const void *from, uint64_t bytes)
{
    if (turn()) (void)nanosleep(&(struct timespec){0, 2000000}, NULL);
    return dev_sim_api()->copy(d, to, from, bytes);
}

static enum dev_state impatient(struct dev *d, dev_fence f, double seconds, struct err *e)
{
    return dev_sim_api()->wait(d, f, seconds > 0 && turn() ? 1e-7 : seconds, e);
}

static void test_late(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    reference(&o);
    struct dev_api api = *dev_sim_api();
    api.copy = slow_copy;
    api.wait = impatient;
    o.device = &api;
    o.vram_budget = 10 * MIB;
    int given_up = 0;
    for (bad_after = 0; bad_after < 400; bad_after += 40) {
        atomic_store(&calls, 0);
        tessera_engine *e = must_open(&o);
        check(e, bad_after % 80 ? 5 : 1);
        assert_true(!tessera_warning(e, 0) == devtier_on(&e->devtier));
        given_up += !devtier_on(&e->devtier);
        tessera_close(e);
    }
    assert_true(given_up > 0);
}

/* Another build, another interface, a function missing, an open that fails, no experts. */
static enum status no_open(uint64_t memory, struct dev **out, struct err *e)
{
    (void)memory;
    *out = NULL;
    return err_set(e, ERR_DEVICE, "the driver is missing");
}

static bool supports_nothing(const struct dev *d, const struct op *op, const struct dev_weight *w)
{
    (void)d;
    (void)w;
    (void)op;
    return false;
}

static void test_unfit(void **state)
{
    (void)state;
    static const char *const line[] = {"another version", "another version", "another version",
                                       "lacks a function", "driver is missing", "cannot run"};
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    reference(&o);
    for (int i = 0; i < 6; i++) {
        struct dev_api api = *dev_sim_api();
        if (i == 0) api.abi++;
        if (i == 1) api.size -= 8;
        if (i == 2) api.build = "yesterday's";
        if (i == 3) api.copy = NULL;
        if (i == 4) api.open = no_open;
        if (i == 5) api.supports = supports_nothing;
        o.device = &api;
        o.vram_budget = 8 * MIB;
        tessera_engine *e = must_open(&o);
        assert_non_null(tessera_warning(e, 0));
        assert_non_null(strstr(tessera_warning(e, 0), line[i]));
        assert_null(tessera_warning(e, 1));
        check(e, 16);
        tessera_close(e);
    }
}

/* ---- sim itself ---- */

/* Addresses that are not its own, on either side, are found, and what follows is refused. */
static void test_sim_addresses(void **state)
{
    (void)state;
    const struct dev_api *api = dev_sim_api();
    for (int i = 0; i < 4; i++) {
        struct dev *d;
        struct err err;
        char here[256];
        err_clear(&err);
        assert_int_equal(api->open(MIB, &d, &err), OK);
        char *there = api->alloc(d, DEV_OWN, 4096), *host = api->alloc(d, DEV_HOST, 4096);
        assert_true(there && host);
        assert_null(api->alloc(d, DEV_OWN, MIB));
        memset(host, 5, 4096);
        assert_int_equal(api->wait(d, api->copy(d, there, host, 4096), 10, &err), DEV_PASSED);
        memset(host, 0, 4096);
        assert_int_equal(api->wait(d, api->copy(d, host, there + 256, 256), 10, &err), DEV_PASSED);
        assert_true(host[0] == 5 && host[255] == 5 && host[256] == 0);
        void *to = i == 0 ? there + 1 : i == 1 ? (char *)here : there;
        const void *from = i == 2 ? there + 4096 : host;
        const dev_fence f = api->copy(d, to, from, i == 1 ? 16 : i == 2 ? 1 : i == 3 ? 4097 : 4096);
        assert_int_equal(api->wait(d, f, 10, &err), DEV_LOST);
        assert_non_null(strstr(err.msg, "sim"));
        assert_int_equal(api->wait(d, api->copy(d, there, host, 1), 10, NULL), DEV_LOST);
        api->close(d);
    }
}

/* The clock is virtual: it depends on the work, not on the day. */
static void test_sim_clock(void **state)
{
    (void)state;
    double seconds[2];
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    reference(&o);
    o.device = dev_sim_api();
    o.vram_budget = 64 * MIB;
    for (int i = 0; i < 2; i++) {
        tessera_engine *e = must_open(&o);
        for (int k = 0; k < 3; k++) check(e, 1);
        assert_int_equal(e->devtier.plan.n_all, 48);
        const double before = tessera_traffic(e).device_seconds;
        check(e, 1);
        seconds[i] = tessera_traffic(e).device_seconds - before;
        tessera_close(e);
    }
    /* At the end everything is there: the same work twice. */
    assert_true(seconds[0] > 0);
    assert_float_equal((float)seconds[0], (float)seconds[1], 1e-6);
}

/* ---- the CUDA plugin, on a runtime that is emulated (tests/cuda_emu) ---- */

static void test_cuda_same_bits(void **state)
{
    (void)state;
    (void)setenv("TEST_CUDA", "", 1);
    check_placements("olmoe", GEN_Q4_K_M, plugin(""), (uint64_t)CUDA_OWN * MIB);
    if (SLOW) return;
    check_placements("qwen3moe", QTYPE_Q8_0, plugin(""), (uint64_t)CUDA_OWN * MIB);
    check_placements("qwen3moe", QTYPE_F16, plugin(""), (uint64_t)CUDA_OWN * MIB);
}

/* From its third time on a token's step is a graph: no launch of its own.  Where there are none, it goes
 * without; where one fails to start, the device is lost. */
static void test_cuda_graphs(void **state)
{
    static const struct { const char *mode; bool lost; } m[] = {
        {"launches=400", false}, {"graph=1", false}, {"graph=2", false}, {"graph=3", false},
        {"graph=4", true}, {"graph=9", true},
    };
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    reference(&o);
    o.device = plugin("");
    for (size_t i = 0; i < sizeof m / sizeof m[0]; i++) {
        (void)setenv("TEST_CUDA", m[i].mode, 1);
        tessera_engine *e = must_open(&o);
        check(e, 1);
        const char *line = tessera_warning(e, 0);
        assert_true(m[i].lost == !!line);
        if (m[i].lost) assert_non_null(strstr(line, "starting a step failed"));
        else assert_true(e->devstep.whole);
        assert_null(line ? tessera_warning(e, 1) : NULL);
        tessera_close(e);
    }
    (void)setenv("TEST_CUDA", "", 1);
}

/* Pages take slots, and give them back; a step is a graph again where all experts are there again.  What is
 * given out there is rounded up: so many sessions that their pages reach the slots in any case. */
static void test_cuda_growth(void **state)
{
    enum { MANY = 8 };
    static const char *const mode[] = {"", "", "lost=900", "lost=1400"};
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    o.n_sessions = MANY;
    reference(&o);
    o.device = plugin("");
    (void)setenv("TEST_CUDA", "", 1);
    o.vram_budget = (uint64_t)(CUDA_OWN + 64) * MIB;
    const uint64_t vram[2] = {vram_of(&o, 30), vram_of(&o, 60)};
    for (int i = SLOW; i < (SLOW ? 2 : 4); i++) {
        struct err err;
        const bool good = !mode[i][0];
        (void)setenv("TEST_CUDA", mode[i], 1);
        o.vram_budget = vram[i % 2];
        tessera_engine *e = must_open(&o);
        const struct devtier *t = &e->devtier;
        tessera_session *s[MANY];
        for (int k = 0; k < MANY; k++) s[k] = new_session(e);
        go_on(e, s[0], 63);
        for (int k = 0; k < 4; k++) go_on(e, s[0], 1);
        if (good) assert_true(e->devstep.attends && e->devstep.whole == (i == 1));
        for (int k = 1; k < MANY; k++) go_on(e, s[k], 2);
        if (good) assert_true(n_claimed(t) > 0 && t->count.displaced > 0 && !e->devstep.whole);
        if (tessera_session_rollback(s[0], (struct tessera_mark){50}, &err)) fail_msg("%s", err.msg);
        for (int k = 1; k < MANY; k++) tessera_session_close(s[k]);
        for (int k = 0; k < 5; k++) go_on(e, s[0], 1);
        if (good) assert_true(e->devstep.attends && e->devstep.whole == (i == 1));
        tessera_session_close(s[0]);
        assert_true(good == !tessera_warning(e, 0));
        tessera_close(e);
    }
    (void)setenv("TEST_CUDA", "", 1);
}

/* The last layers only.  Memory comes in large steps there: so the rows of a step are what is chosen. */
static void test_cuda_layers(void **state)
{
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    reference(&o);
    o.device = plugin("");
    (void)setenv("TEST_CUDA", "", 1);
    bool some = false;
    for (o.n_ubatch = 60; o.n_ubatch >= 20 && !some; o.n_ubatch -= 8) {
        o.n_logits = o.n_ubatch;
        o.vram_budget = (uint64_t)(CUDA_OWN + 64) * MIB;
        o.vram_budget = vram_of_some(&o);
        tessera_engine *e = must_open(&o);
        const struct devstep_plan *d = &e->devstep.plan;
        some = d->bytes && d->first > 0 && d->n_kv && !d->head;
        if (some) {
            check(e, 20);
            check(e, 1);
            assert_true(e->devstep.n_ops > 0 && e->devstep.attends);
            assert_null(tessera_warning(e, 0));
        }
        tessera_close(e);
    }
    assert_true(some);
}

/* Types of every kind that it has kernels for, a step's pairs at once and in pieces. */
static void test_cuda_types(void **state)
{
    static const struct { const char *arch; unsigned type; } m[] = {
        {"qwen3moe", QTYPE_MXFP4}, {"llama", QTYPE_Q5_K}, {"llama", QTYPE_Q6_K},
        {"qwen3moe", QTYPE_IQ4_XS}, {"olmoe", QTYPE_Q3_K}, {"qwen3moe", QTYPE_Q4_0},
        {"qwen3moe", QTYPE_IQ2_XXS}, {"llama", QTYPE_IQ1_M}, {"olmoe", QTYPE_IQ3_S},
    };
    (void)state;
    (void)setenv("TEST_CUDA", "", 1);
    for (size_t i = 0; i < sizeof m / sizeof m[0]; i += SLOW ? 4 : 1) {
        struct tessera_options o = options(model(m[i].arch, m[i].type));
        reference(&o);
        o.device = plugin("");
        for (int k = 0; k < 2; k++) {
            o.vram_budget = (uint64_t)(k ? CUDA_OWN + 300 : CUDA_OWN + 12) * MIB;
            tessera_engine *e = must_open(&o);
            if (tessera_warning(e, 0)) fail_msg("%s: %s", m[i].arch, tessera_warning(e, 0));
            check(e, 64);
            check(e, 1);
            assert_true(tessera_traffic(e).device_ran > 0);
            assert_null(tessera_warning(e, 0));
            tessera_close(e);
        }
    }
}

/* Architectures with biases, other activations, shared experts, experts of their own sizes. */
static void feed_reference(const struct tessera_options *o, bool whole, float *out, size_t cap)
{
    struct err err;
    tessera_engine *e = must_open(o);
    tessera_session *s = session(e);
    const size_t n = (size_t)tessera_model(e).n_vocab;
    int32_t known[24];
    for (int i = 0; i < 24; i++) known[i] = ids[i] % (int32_t)n;
    for (int at = 0, step = 1; at < 24; at += step) {
        step = at < 8 ? 1 : 16;
        struct tessera_input in = {s, known + at, step, TESSERA_LOGITS_LAST};
        if (tessera_step(e, &in, 1, &err)) fail_msg("%s: %s", o->model_path, err.msg);
        assert_true(((size_t)at + 1) * n <= cap);
        memcpy(out + (size_t)at * n, tessera_logits(e, 0, step - 1), n * sizeof *out);
    }
    if (o->device && tessera_warning(e, 0)) fail_msg("%s: %s", o->model_path, tessera_warning(e, 0));
    assert_true(!o->device || tessera_traffic(e).device_ran > 0 || e->devstep.n_ops > 0);
    if (whole) assert_true(e->devstep.n_ops > 0);
    tessera_session_close(s);
    tessera_close(e);
}

static void check_references(const char *const *names, int n_names, const struct dev_api *api, bool whole)
{
    char path[300], name[100];
    for (int i = 0; i < n_names; i++) {
        (void)snprintf(name, sizeof name, "reference/architectures/%s.gguf", names[i]);
        if (!shared_file(path, sizeof path, name)) continue;
        struct tessera_options o = options(path);
        memset(want, 0, sizeof want);
        memset(got, 0, sizeof got);
        feed_reference(&o, false, want, N * VOCAB);
        o.device = api;
        feed_reference(&o, whole, got, N * VOCAB);
        assert_memory_equal(want, got, sizeof want);
    }
}

/* Everything that is not experts, too, and where there are none. */
static void test_sim_reference(void **state)
{
    static const char *const names[] = {
        "gpt-oss-moe", "qwen2moe-moe", "deepseek2-moe", "glm4moe-moe", "llama-moe", "olmoe-moe",
        "qwen3next-moe", "qwen35moe-moe", "qwen3moe-moe", "llama-dense",
    };
    (void)state;
    check_references(names, sizeof names / sizeof *names, dev_sim_api(), true);
}

/* Any number of layers there, counted from the last, with the last product and without: the same bits. */
enum { NO_PAGES, SOME, ALL_LAYERS, ALL, SEEN_N };

static bool check_layers(const char *name, bool *seen)
{
    char path[300], file[100];
    (void)snprintf(file, sizeof file, "reference/architectures/%s.gguf", name);
    if (!shared_file(path, sizeof path, file)) return false;
    struct tessera_options o = options(path);
    o.n_ubatch = o.n_logits = 16;
    memset(want, 0, sizeof want);
    feed_reference(&o, false, want, N * VOCAB);
    o.device = dev_sim_api();
    o.vram_budget = 64 * MIB;
    tessera_engine *e = must_open(&o);
    const struct devstep_plan whole = e->devstep.plan;
    const struct devtier_plan t = e->devtier.plan;
    const int n_layer = e->model.n_layer;
    tessera_close(e);
    for (int i = 0; i <= 12; i++) {
        o.vram_budget = t.fixed + (t.n_all ? t.slots / 4 : 0) + whole.bytes - whole.weights + 8192 +
                        whole.weights * (uint64_t)i / 12;
        e = must_open(&o);
        const struct devstep_plan d = e->devstep.plan;
        tessera_close(e);
        if (!d.bytes) continue;
        assert_true(d.first >= -1 && d.first < n_layer && (d.first < 0 || !d.head));
        assert_true(d.bytes + t.fixed <= o.vram_budget);
        seen[d.head ? ALL : d.first < 0 ? ALL_LAYERS : d.n_kv ? SOME : NO_PAGES] = true;
        memset(got, 0, sizeof got);
        feed_reference(&o, true, got, N * VOCAB);
        assert_memory_equal(want, got, sizeof want);
    }
    return true;
}

static void test_layers(void **state)
{
    static const char *const names[] = {
        "gpt-oss-moe", "qwen2moe-moe", "deepseek2-moe", "glm4moe-moe", "llama-moe", "olmoe-moe",
        "qwen3next-moe", "qwen35moe-moe", "qwen3moe-moe", "llama-dense",
    };
    (void)state;
    bool seen[SEEN_N] = {false};
    bool there = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i += SLOW ? 2 : 1)
        there |= check_layers(names[i], seen);
    for (int k = 0; k < SEEN_N && there; k++) assert_true(seen[k]);
}

/* With more memory a token finds more there, and the plan says what lies there and why. */
static void test_worth(void **state)
{
    static const char *const says[] = {
        "worth less than experts", "layers from", "the last product, which has no room",
        "of all that is not experts", "of longer ones it is the host's", "page by page",
    };
    enum { SAYS = sizeof says / sizeof *says };
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    o.header_only = true;
    o.device = dev_sim_api();
    bool said[SAYS] = {false};
    double before = 0;
    for (o.vram_budget = 1 * MIB; o.n_ubatch <= 256; o.vram_budget += MIB / (SLOW ? 5 : 10)) {
        if (o.vram_budget > (o.n_ubatch < 256 ? 14 : 26) * MIB) { /* many rows take more than all layers */
            o.vram_budget = 3 * MIB;
            o.n_ubatch *= 4;
            before = 0;
            continue;
        }
        struct err err;
        char *text = NULL;
        size_t n;
        tessera_engine *e = must_open(&o);
        const struct devstep_plan *d = &e->devstep_plan;
        FILE *f = open_memstream(&text, &n);
        assert_non_null(f);
        assert_int_equal(tessera_explain(e, f, false, &err), OK);
        (void)fclose(f);
        if (e->device_plan.n_all) {
            /* What is left over may be less than a slot. */
            const double slot = (double)e->resid.sizes.slot[0] * 3 / 16;
            assert_true(e->device_found + slot >= before);
            before = e->device_found;
            assert_true(e->device_plan.arena + e->device_plan.fixed + d->bytes <= o.vram_budget);
            assert_true(!!strstr(text, says[0]) == (e->dense_declined > 0));
            assert_true(!!strstr(text, says[1]) == (d->bytes && d->first >= 0));
            assert_true(!!strstr(text, says[3]) == (d->bytes && d->head));
            assert_true(!!strstr(text, says[4]) == (d->n_kv && d->n_pages * KV_PAGE < o.n_ctx));
            for (int i = 0; i < SAYS; i++) said[i] |= strstr(text, says[i]) != NULL;
        }
        free(text);
        tessera_close(e);
    }
    for (int i = 0; i < SAYS; i++)
        if (!said[i]) fail_msg("no plan says: %s", says[i]);
}

static void test_router_reference(void **state)
{
    static const char *const names[] = {
        "gpt-oss-moe", "qwen2moe-moe", "deepseek2-moe", "glm4moe-moe", "llama-moe", "olmoe-moe",
        "qwen3moe-moe", "llama-dense",
    };
    (void)state;
    const struct dev_api api = router();
    check_references(names, sizeof names / sizeof *names, &api, true);
}

static void test_cuda_reference(void **state)
{
    static const char *const names[] = {"gpt-oss-moe", "qwen2moe-moe", "deepseek2-moe", "glm4moe-moe",
                                        "llama-moe", "olmoe-moe", "qwen3next-moe"};
    (void)state;
    (void)setenv("TEST_CUDA", "", 1);
    check_references(names, sizeof names / sizeof *names, plugin(""), true);
}

/* No driver, no card, an old one, no memory, calls that fail, a card that is lost: one line each. */
static void test_cuda_misbehaves(void **state)
{
    static const struct { const char *mode, *line; unsigned mib; } m[] = {
        {"driver", "driver version is insufficient", 0}, {"none", "no CUDA-capable device", 0},
        {"old", "7.5 is the least", 0}, {"image", "no kernel image", 0},
        {"small=64", "no memory left", 0}, {"small=546", "rows, scratch and an expert", 0},
        {"", "context alone takes", 8},
        {"malloc=1", "no memory left", 0}, {"malloc=3", "no memory left", 0},
        {"malloc=5", "less memory than it said", 0}, {"host=1", "no memory left", 0},
        {"host=2", "no memory left", 0}, {"host=5", "less memory than it said", 0},
    };
    (void)state;
    struct tessera_options o = options(model("qwen3moe", QTYPE_Q8_0));
    reference(&o);
    o.device = plugin("");
    for (size_t i = 0; i < sizeof m / sizeof m[0]; i++) {
        (void)setenv("TEST_CUDA", m[i].mode, 1);
        o.vram_budget = (uint64_t)m[i].mib * MIB;
        tessera_engine *e = must_open(&o);
        const char *line = tessera_warning(e, 0);
        if (!line || !strstr(line, m[i].line) || !strstr(line, "device cuda is not used"))
            fail_msg("%s: %s", m[i].mode, line ? line : "no line");
        assert_null(tessera_warning(e, 1));
        check(e, 7);
        tessera_close(e);
    }
    bool opened_first = false, closed_first = false;
    for (int n = 1;; n += 1 + n / 4) {
        char mode[32];
        (void)snprintf(mode, sizeof mode, "lost=%d", n);
        (void)setenv("TEST_CUDA", mode, 1);
        o.vram_budget = 0;
        tessera_engine *e = must_open(&o);
        const bool opened = devtier_on(&e->devtier);
        check(e, 1);
        const char *line = tessera_warning(e, 0);
        check(e, 9);
        if (!line) {
            tessera_close(e);
            break; /* more commands than there are */
        }
        if (!strstr(line, opened ? "given up" : "not used") || !strstr(line, "launch failure"))
            fail_msg("%s: %s", mode, line);
        assert_null(tessera_warning(e, 1));
        opened_first |= opened;
        closed_first |= !opened;
        tessera_close(e);
    }
    assert_true(opened_first && closed_first);
    (void)setenv("TEST_CUDA", "", 1);
    o.device = plugin("/old");
    tessera_engine *e = must_open(&o);
    assert_non_null(strstr(tessera_warning(e, 0), "another version"));
    check(e, 9);
    tessera_close(e);
}

/* Copies of all kinds, many at once, take effect as if one after the other. */
static void test_cuda_order(void **state)
{
    enum { BIG = 256 << 10, N_HOST = 4, N_BACK = 40 };
    static unsigned char model_of[BIG], expect[N_BACK][BIG];
    const struct dev_api *api = plugin("");
    struct rng r;
    (void)state;
    rng_seed(&r, 3);
    (void)setenv("TEST_CUDA", "", 1);
    for (int round = 0; round < 6; round++) {
        struct dev *d;
        struct err err;
        err_clear(&err);
        if (api->open(UINT64_MAX, &d, &err)) fail_msg("%s", err.msg);
        unsigned char *own = api->alloc(d, DEV_OWN, BIG), *from[N_HOST];
        unsigned char *back = api->alloc(d, DEV_HOST, (uint64_t)BIG * N_BACK);
        for (int i = 0; i < N_HOST; i++) {
            from[i] = api->alloc(d, DEV_HOST, BIG);
            for (int k = 0; k < BIG; k++) from[i][k] = (unsigned char)(rng_u64(&r) >> 56);
        }
        (void)api->copy(d, own, from[0], BIG);
        memcpy(model_of, from[0], BIG);
        int n_back = 0;
        while (n_back < N_BACK) {
            const int kind = (int)rng_below(&r, 3), i = (int)rng_below(&r, N_HOST);
            const uint32_t n = kind ? 65536 + rng_below(&r, 65536) : 1 + rng_below(&r, 9000);
            const uint32_t at = rng_below(&r, BIG - n + 1);
            if (kind < 2) {
                (void)api->copy(d, own + at, from[i], n);
                memcpy(model_of + at, from[i], n);
            } else {
                (void)api->copy(d, back + (size_t)n_back * BIG, own + at, n);
                memcpy(expect[n_back], model_of + at, n);
                memset(expect[n_back] + n, 0, BIG - n);
                n_back++;
            }
        }
        const dev_fence last = api->copy(d, back, back, 1);
        assert_int_equal(api->wait(d, last, 10, &err), DEV_PASSED);
        assert_memory_equal(back, expect, sizeof expect);
        assert_true(api->clock(d) > 0);
        api->close(d);
    }
}

/* What does not answer is pending as long as one cares to wait, and does not keep the program. */
static void test_cuda_late(void **state)
{
    const struct dev_api *api = plugin("");
    struct dev *d, *other;
    struct err err;
    (void)state;
    err_clear(&err);
    (void)setenv("TEST_CUDA", "late=120", 1);
    if (api->open(UINT64_MAX, &d, &err)) fail_msg("%s", err.msg);
    char *host = api->alloc(d, DEV_HOST, 4096), *own = api->alloc(d, DEV_OWN, 4096);
    enum dev_state s = DEV_PASSED;
    dev_fence f = 0;
    for (int i = 0; i < 60 && s == DEV_PASSED; i++)
        s = api->wait(d, f = api->copy(d, own, host, 4096), 0.02, &err);
    assert_int_equal(s, DEV_PENDING);
    assert_int_equal(api->wait(d, f, 0, &err), DEV_PENDING);
    api->close(d); /* gives up: what a hung card may still write to is left to it */
    (void)setenv("TEST_CUDA", "", 1); /* from the next opening on it answers again */
    if (api->open(UINT64_MAX, &other, &err)) fail_msg("%s", err.msg);
    assert_int_equal(api->wait(d, f, 5, &err), DEV_PASSED);
    api->close(other);
    api->close(d);
}

/* Files that are no plugins. */
static void test_no_plugin(void **state)
{
    char path[128];
    struct err e;
    (void)state;
    (void)setenv("TESSERA_PLUGINS", dir, 1);
    err_clear(&e);
    assert_null(dev_plugin("cuda", &e));
    assert_int_equal(e.code, ERR_MISSING);
    (void)snprintf(path, sizeof path, "%s/tessera_cuda.so", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    (void)fputs("not a shared object\n", f);
    (void)fclose(f);
    err_clear(&e);
    assert_null(dev_plugin("cuda", &e));
    assert_int_equal(e.code, ERR_DEVICE);
    assert_non_null(strstr(e.msg, "does not load"));
}

static int make_dir(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, 5);
    for (int i = 0; i < N; i++) ids[i] = (int32_t)rng_below(&r, VOCAB);
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return tests_remove(dir);
}

/* Tokens of a test: past the end of a page where sessions are cut and saved; few on an emulated GPU and
 * where every call fails once. */
static int set_n(void **state)
{
    n_fed = *(const int *)*state;
    return 0;
}

#define FEED(test, n) cmocka_unit_test_prestate_setup_teardown(test, set_n, NULL, &(int){n})

int main(void)
{
    const struct CMUnitTest tests[] = {
        FEED(test_split, 24), FEED(test_sim_addresses, 24), FEED(test_same_bits, 60),
        FEED(test_beside, 60), FEED(test_sessions, 72), FEED(test_sim_reference, 24),
        FEED(test_resident, 72), FEED(test_growth, N), FEED(test_growth_lost, N),
        FEED(test_cuda_growth, 72), FEED(test_cuda_layers, 24), FEED(test_outgrown, N),
        FEED(test_layers, 24), FEED(test_places, N), FEED(test_worth, 24),
        FEED(test_router_reference, 24), FEED(test_bad_devices, 24), FEED(test_observed, 24),
        FEED(test_late, 60), FEED(test_unfit, 24), FEED(test_sim_clock, 60),
        FEED(test_no_plugin, 24), FEED(test_cuda_order, 24), FEED(test_cuda_late, 24),
        FEED(test_cuda_same_bits, 24), FEED(test_cuda_types, 24), FEED(test_cuda_reference, 24),
        FEED(test_cuda_misbehaves, 24), FEED(test_cuda_graphs, 24),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
