/* An automatic budget under memory pressure: what it decides, and an engine whose system runs out of memory:
 * it shrinks in the declared order, says the same, and grows back. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "moe/run/engine_int.h"
#include "tests/engine.h"
#include "tests/gen_small.h"

enum { VOCAB = 2048, MIB = 1 << 20, N = 48 };

static char dir[64] = "/tmp/tessera-pressure-XXXXXX";
static double now;
static double fake_clock(void) { return now; }

/* ---- decisions ---- */

static void test_decide(void **state)
{
    (void)state;
    struct pressure g = {.most = 4096 * (uint64_t)MIB, .reserve = 1024 * (uint64_t)MIB};
    const uint64_t gib = 1024 * (uint64_t)MIB;
    struct machine_room r = {.available = 2 * gib, .total = 8 * gib};
    /* Room enough, nothing to grow to. */
    assert_int_equal(pressure_decide(&g, &r, g.most, 3 * gib, 1), g.most);
    /* The reserve is touched, but not by half. */
    r.available = 700 * (uint64_t)MIB;
    assert_int_equal(pressure_decide(&g, &r, g.most, 3 * gib, 2), g.most);
    /* By more: back to all of it, at once, and again. */
    r.available = 500 * (uint64_t)MIB;
    assert_int_equal(pressure_decide(&g, &r, g.most, 3 * gib, 3), 3 * gib - 524 * (uint64_t)MIB);
    r.available = 0;
    assert_int_equal(pressure_decide(&g, &r, 2 * gib, 2 * gib, 4), gib);
    /* Waiting tasks: an eighth, then not before the average can have fallen. */
    r.available = 2 * gib;
    r.stalled = 30;
    assert_int_equal(pressure_decide(&g, &r, 2 * gib, 2 * gib, 5), 2 * gib); /* it moved at 4 */
    assert_int_equal(pressure_decide(&g, &r, 2 * gib, 2 * gib, 15), 2 * gib - gib / 4);
    assert_int_equal(pressure_decide(&g, &r, gib, gib, 16), gib);
    /* Growing: after ten calm seconds, a sixteenth every five, up to the start. */
    r.stalled = 0;
    assert_int_equal(pressure_decide(&g, &r, gib, gib, 20), gib);
    assert_int_equal(pressure_decide(&g, &r, gib, gib, 26), gib + gib / 4);
    assert_int_equal(pressure_decide(&g, &r, gib + gib / 4, gib, 27), gib + gib / 4);
    assert_int_equal(pressure_decide(&g, &r, g.most - MIB, gib, 32), g.most);
    assert_int_equal(pressure_decide(&g, &r, g.most, gib, 40), g.most);
    /* A little waiting, or hardly any room: no. */
    r.stalled = 2;
    assert_int_equal(pressure_decide(&g, &r, gib, gib, 50), gib);
    r.stalled = 0;
    r.available = gib + MIB;
    assert_int_equal(pressure_decide(&g, &r, gib, gib, 70), gib);
    r.available = MACHINE_NONE;
    assert_int_equal(pressure_decide(&g, &r, gib, gib, 99), gib);
    /* Never below nothing. */
    r.available = 0;
    assert_int_equal(pressure_decide(&g, &r, gib, 10, 100), 1);
}

/* ---- the system's files ---- */

static void put(const char *name, const char *fmt, unsigned long long x)
{
    char path[200];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    (void)fprintf(f, fmt, x);
    assert_int_equal(fclose(f), 0);
}

static void room(uint64_t available_mib, unsigned stalled)
{
    put("proc/meminfo", "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: %llu kB\n",
        (unsigned long long)available_mib * 1024);
    put("proc/pressure/memory", "some avg10=%llu.50 avg60=0.00 avg300=0.00 total=1\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", stalled);
}

static void test_files(void **state)
{
    (void)state;
    struct machine_watch w;
    struct machine_room r;
    room(300, 12);
    machine_watch_open(&w, dir);
    machine_watch_read(&w, &r);
    assert_int_equal(r.available, 300 * (uint64_t)MIB);
    assert_int_equal(r.total, 8192 * (uint64_t)MIB);
    assert_true(r.stalled > 12.4 && r.stalled < 12.6);
    /* In a control group, version 2, the tighter of both. */
    put("proc/self/cgroup", "0::/box\n", 0);
    put("proc/self/mountinfo", "30 1 0:2 / /cg rw - cgroup2 cgroup rw\n", 0);
    put("cg/box/memory.max", "%llu\n", 512 * (unsigned long long)MIB);
    put("cg/box/memory.current", "%llu\n", 412 * (unsigned long long)MIB);
    put("cg/box/memory.stat", "anon 1\ninactive_file %llu\nactive_file 0\n", 50 * (unsigned long long)MIB);
    put("cg/box/memory.pressure", "some avg10=%llu.00 avg60=0.00 avg300=0.00 total=1\n", 40);
    machine_watch_open(&w, dir);
    machine_watch_read(&w, &r);
    assert_int_equal(r.available, 150 * (uint64_t)MIB);
    assert_int_equal(r.total, 512 * (uint64_t)MIB);
    assert_true(r.stalled > 39 && r.stalled < 41);
    put("proc/self/cgroup", "\n", 0);
}

/* ---- an engine ---- */

static int32_t ids[N];

static tessera_engine *open_model(uint64_t budget, int n_sessions)
{
    static char path[160];
    struct err e;
    err_clear(&e);
    struct gen_spec g = gen_small("qwen3moe", QTYPE_Q8_0);
    g.n_vocab = VOCAB;
    (void)snprintf(path, sizeof path, "%s/model.gguf", dir);
    if (access(path, R_OK) && gen_write(&g, path, NULL, &e)) fail_msg("%s", e.msg);
    struct tessera_options o = tessera_defaults();
    tessera_engine *engine;
    o.model_path = path;
    o.n_threads = 2;
    o.n_ctx = 128;
    o.n_ubatch = 16;
    o.n_sessions = n_sessions;
    o.mem_budget = budget;
    if (tessera_open(&o, &engine, &e)) fail_msg("%s", e.msg);
    return engine;
}

static void step(tessera_engine *e, tessera_session *s, int at, int n, float *out)
{
    struct err err;
    struct tessera_input in = {s, ids + at, n, TESSERA_LOGITS_LAST};
    if (tessera_step(e, &in, 1, &err)) fail_msg("%s", err.msg);
    memcpy(out, tessera_logits(e, 0, n - 1), VOCAB * sizeof *out);
}

static void test_engine(void **state)
{
    (void)state;
    static float want[N][VOCAB], got[VOCAB];
    tessera_engine *e = open_model(UINT64_MAX, 2);
    tessera_session *s = session(e);
    for (int i = 0; i < N; i++) step(e, s, i, 1, want[i]);
    tessera_session_close(s);
    const uint64_t most = (fit_need(e, &e->placement) / MIB + 4) * MIB;
    tessera_close(e);

    e = open_model(most, 2);
    assert_true(e->resid.all_ram && !e->pressure.on); /* a fixed budget is not watched */
    pressure_open(&e->pressure, most, 8 * (uint64_t)MIB);
    e->pressure.clock = fake_clock;
    e->pressure.looked = e->pressure.moved = e->pressure.calm = now = 100;
    machine_watch_open(&e->pressure.watch, dir);
    room(1000, 0);
    s = session(e);
    tessera_session *idle = session(e);
    step(e, idle, 0, 16, got);
    uint64_t least_seen = UINT64_MAX;
    for (int i = 0; i < N; i++) {
        now += 2;
        if (i == 8) room(3, 0);           /* somebody takes it: 5 MiB are wanted */
        if (i == 9) room(9, 0);           /* enough */
        if (i == 16) room(0, 60);
        if (i == 24) room(1000, 0);
        step(e, s, i, 1, got);
        assert_memory_equal(want[i], got, sizeof got);
        const struct tessera_memory m = tessera_memory(e);
        assert_true(m.total <= m.budget);
        if (m.budget < least_seen) least_seen = m.budget;
        if (i < 8) assert_int_equal(m.budget, most);
        if (i == 8) assert_true(m.budget < most && m.budget > fit_least(e) && !e->resid.all_ram);
        if (i == 15) assert_true(m.budget > fit_least(e) && !e->pressure.spilled);
        if (i == 23) {
            assert_int_equal(m.budget, fit_least(e));
            assert_int_equal(e->pressure.spilled, 1);
            assert_int_equal(session_committed(idle), 0); /* its KV cache is on disk */
            assert_int_not_equal(session_committed(s), 0);
        }
        if (i > 24 && i < 28) assert_int_equal(m.budget, fit_least(e)); /* slowly */
    }
    const struct tessera_traffic t = tessera_traffic(e);
    assert_true(t.shrunk >= 2 && t.grown >= 1 && t.spilled == 1);
    assert_true(tessera_memory(e).budget > least_seen);
    assert_non_null(strstr(tessera_warning(e, 0), "memory is getting short"));
    assert_null(tessera_warning(e, 1));
    /* The idle session goes on as if nothing had been. */
    for (int i = 16; i < N; i++) {
        now += 3;
        step(e, idle, i, 1, got);
        assert_memory_equal(want[i], got, sizeof got);
    }
    assert_int_equal(tessera_memory(e).budget, most);
    tessera_session_close(idle);
    tessera_session_close(s);
    tessera_close(e);
}

/* Spilled, then cut, saved, loaded, closed. */
static void test_spilled(void **state)
{
    (void)state;
    static float want[VOCAB], got[VOCAB];
    char path[160];
    struct err err;
    (void)snprintf(path, sizeof path, "%s/saved.gguf", dir);
    tessera_engine *e = open_model(UINT64_MAX, 2);
    tessera_session *s = session(e), *other = session(e);
    step(e, s, 0, 16, got);
    step(e, s, 16, 16, got);
    step(e, s, 32, 16, want);
    assert_int_equal(tessera_session_rollback(s, (struct tessera_mark){32}, &err), OK);
    assert_int_equal(session_spill(s, &err), OK);
    assert_int_equal(session_spill(s, &err), OK);
    assert_int_equal(tessera_session_save(s, path, &err), OK);
    assert_int_equal(session_spill(s, &err), OK);
    assert_int_equal(tessera_session_load(other, path, &err), OK);
    step(e, other, 32, 16, got);
    assert_memory_equal(want, got, sizeof got);
    assert_int_equal(session_spill(other, &err), OK);
    assert_int_equal(tessera_session_load(other, path, &err), OK); /* over a spilled one */
    step(e, other, 32, 16, got);
    assert_memory_equal(want, got, sizeof got);
    step(e, s, 32, 16, got);
    assert_memory_equal(want, got, sizeof got);
    assert_int_equal(session_spill(s, &err), OK);
    assert_int_equal(tessera_session_rollback(s, (struct tessera_mark){0}, &err), OK);
    step(e, s, 0, 16, got);
    assert_int_equal(session_spill(s, &err), OK);
    tessera_session_close(s);
    tessera_session_close(other);
    tessera_close(e);
}

/* No room for the file: the cache stays in memory, and the session goes on. */
static void test_no_room(void **state)
{
    (void)state;
    static float want[VOCAB], got[VOCAB];
    struct err err;
    struct rlimit was, none;
    tessera_engine *e = open_model(UINT64_MAX, 1);
    tessera_session *s = session(e);
    step(e, s, 0, 16, got);
    step(e, s, 16, 16, want);
    assert_int_equal(tessera_session_rollback(s, (struct tessera_mark){16}, &err), OK);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    none = was;
    none.rlim_cur = 100; /* bytes: the first write is cut short, the next one fails */
    void (*const before)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
    err_clear(&err);
    const enum status st = session_spill(s, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    (void)signal(SIGXFSZ, before);
    assert_int_equal(st, ERR_IO);
    assert_non_null(strstr(err.msg, "set TMPDIR to a folder with room"));
    step(e, s, 16, 16, got);
    assert_memory_equal(want, got, sizeof got);
    tessera_session_close(s);
    tessera_close(e);
}

static int make_dir(void **state)
{
    (void)state;
    static const char *const sub[] = {"proc", "proc/self", "proc/pressure", "cg", "cg/box"};
    char path[160];
    struct rng r;
    rng_seed(&r, 3);
    for (int i = 0; i < N; i++) ids[i] = (int32_t)rng_below(&r, VOCAB);
    if (!mkdtemp(dir)) return -1;
    for (size_t i = 0; i < sizeof sub / sizeof *sub; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", dir, sub[i]);
        if (mkdir(path, 0755)) return -1;
    }
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    return tests_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decide), cmocka_unit_test(test_files),
        cmocka_unit_test(test_engine), cmocka_unit_test(test_spilled),
        cmocka_unit_test(test_no_room),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
