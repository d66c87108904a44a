/* The second device: bit-equal logits wherever experts run (device sim, of every size, beside every
 * budget), the split by rates, admission; and devices that misbehave in every way, which end in one
 * line and the same bits. */
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
#include "tests/engine.h"

enum { N = 60, VOCAB = 512, MIB = 1 << 20 };

static char dir[64] = "/tmp/tessera-device-XXXXXX";
static int32_t ids[N];

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
    for (int at = 0; at < N;) {
        const int n = N - at < most ? N - at : most;
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
    assert_memory_equal(want, got, sizeof want);
}

/* The number in a line that says how much would do. */
static uint64_t named(const char *text, const char *before)
{
    const char *at = strstr(text, before);
    assert_non_null(at);
    return strtoull(at + strlen(before), NULL, 10) * MIB;
}

static uint64_t least_vram(const struct tessera_options *like)
{
    struct tessera_options o = *like;
    o.vram_budget = MIB / 2;
    tessera_engine *e = must_open(&o);
    assert_false(devtier_on(&e->devtier));
    const uint64_t n = named(tessera_warning(e, 0), "take ");
    tessera_close(e);
    return n;
}

/* ---- the same bits ---- */

static void check_placements(const char *arch, unsigned type)
{
    struct tessera_options o = options(model(arch, type));
    reference(&o);
    o.device = dev_sim_api();
    const uint64_t vram = least_vram(&o), mem = smallest(&o);
    bool all_there = false, some_sent = false, some_refused = false, pooled = false;
    for (int i = 0; i < 16; i++) {
        o.vram_budget = vram + (uint64_t)(i % 4) * (uint64_t)(i % 4) * 2 * MIB;
        o.mem_budget = i < 8 ? UINT64_MAX : mem + (uint64_t)(i - 8) * MIB;
        const struct machine slow = {.ram_read_n = 1};
        o.machine = i % 2 ? &slow : NULL;
        tessera_engine *e = must_open(&o);
        assert_true(devtier_on(&e->devtier));
        assert_null(tessera_warning(e, 0));
        assert_true(e->devtier.plan.slots + e->devtier.plan.fixed <= o.vram_budget);
        check(e, i % 3 == 0 ? 1 : i % 3 == 1 ? 64 : 5);
        check(e, 1);
        const struct tessera_traffic t = tessera_traffic(e);
        assert_true(t.device_ran > 0 && t.device_filled > 0 && t.device_seconds > 0);
        assert_true(t.device_modelled);
        assert_true(o.mem_budget == UINT64_MAX || tessera_memory(e).peak <= o.mem_budget);
        all_there |= e->devtier.plan.n_all == 48;
        some_sent |= t.device_sent > 0;
        some_refused |= e->devtier.count.refused > 0;
        pooled |= !e->resid.all_ram;
        assert_true(t.device_sent == 0 || o.machine);
        tessera_close(e);
    }
    assert_true(all_there && some_sent && some_refused && pooled);
}

static void test_same_bits(void **state)
{
    (void)state;
    check_placements("qwen3moe", QTYPE_Q8_0);
    check_placements("olmoe", GEN_Q4_K_M);
    check_placements("qwen3moe", QTYPE_F16);
}

/* Several sessions in a step, resizes in between, and a watcher, who needs the CPU's rows. */
static void no_watch(void *arg, const struct tessera_watched *w)
{
    (void)w;
    ++*(int *)arg;
}

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

static bool supports_nothing(const struct dev *d, const struct op *op)
{
    (void)d;
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),       cmocka_unit_test(test_sim_addresses),
        cmocka_unit_test(test_same_bits),   cmocka_unit_test(test_beside),
        cmocka_unit_test(test_bad_devices), cmocka_unit_test(test_late),
        cmocka_unit_test(test_unfit),       cmocka_unit_test(test_sim_clock),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
