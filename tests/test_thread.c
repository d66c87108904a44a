/* Tests of moe/base/thread.c and cpu.c: every task of every region runs exactly once, on a worker
 * number that nobody else uses at that moment, and is seen by the caller afterwards.  Plain (not
 * atomic) counters are on purpose: under SAN=thread they prove the happens-before edges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "moe/base/cpu.h"
#include "moe/base/rng.h"
#include "moe/base/thread.h"

enum { MAX_TASKS = 500, MAX_THREADS = 4 };

struct job {
    int n_tasks, n_workers;
    int count[MAX_TASKS]; /* each task writes its own */
    int worker_tasks[MAX_THREADS];
    _Atomic int busy[MAX_THREADS]; /* tasks now on this worker number */
    _Atomic int bad;
    int work; /* how long a task takes */
};

static void run_task(void *arg, int task, int worker)
{
    struct job *j = arg;
    if (task < 0 || task >= j->n_tasks || worker < 0 || worker >= j->n_workers) {
        atomic_fetch_add(&j->bad, 1);
        return;
    }
    if (atomic_fetch_add(&j->busy[worker], 1)) atomic_fetch_add(&j->bad, 1);
    j->count[task]++;
    j->worker_tasks[worker]++;
    for (volatile int i = 0; i < j->work * (task % 7); i++) {}
    atomic_fetch_sub(&j->busy[worker], 1);
}

static void run_region(struct pool *p, struct job *j, int n_tasks, int work)
{
    memset(j, 0, sizeof *j);
    j->n_tasks = n_tasks;
    j->n_workers = pool_size(p);
    j->work = work;
    pool_run(p, run_task, j, n_tasks);
    int sum = 0;
    for (int i = 0; i < n_tasks; i++)
        if (j->count[i] != 1) fail_msg("task %d of %d ran %d times", i, n_tasks, j->count[i]);
    for (int i = 0; i < MAX_THREADS; i++) sum += j->worker_tasks[i];
    assert_int_equal(sum, n_tasks);
    assert_int_equal(j->bad, 0);
}

static void stress(int n_threads, int regions, int max_tasks, int work)
{
    struct pool *p;
    static struct job j;
    struct rng rng;
    rng_seed(&rng, (uint64_t)(n_threads * 1000 + max_tasks));
    assert_int_equal(pool_open(n_threads, &p, NULL), OK);
    assert_int_equal(pool_size(p), n_threads);
    for (int i = 0; i < regions; i++)
        run_region(p, &j, (int)rng_below(&rng, (uint32_t)max_tasks + 1), work);
    pool_close(p);
}

static void test_many_short_regions(void **state)
{
    (void)state;
    for (int n = 1; n <= MAX_THREADS; n++) stress(n, 3000, 8, 0);
}

static void test_random_regions(void **state)
{
    (void)state;
    for (int n = 1; n <= MAX_THREADS; n++) stress(n, 500, MAX_TASKS, 20);
}

/* Workers fall asleep between the regions: waking them must not lose a task. */
static void test_sleepy_regions(void **state)
{
    (void)state;
    struct pool *p;
    static struct job j;
    struct rng rng;
    rng_seed(&rng, 5);
    assert_int_equal(pool_open(MAX_THREADS, &p, NULL), OK);
    for (int i = 0; i < 150; i++) {
        usleep((useconds_t)rng_below(&rng, 700)); /* around the end of the spinning */
        run_region(p, &j, 1 + (int)rng_below(&rng, 40), 10);
    }
    pool_close(p);
}

/* Each region reads what the one before wrote, whichever worker did it. */
struct chain {
    uint64_t a[64], b[64];
};

static void chain_step(void *arg, int task, int worker)
{
    struct chain *c = arg;
    (void)worker;
    c->b[task] = c->a[task] * 3 + c->a[(task + 1) % 64];
}

static void test_regions_see_each_other(void **state)
{
    (void)state;
    struct chain c, d;
    for (int i = 0; i < 64; i++) c.a[i] = d.a[i] = (uint64_t)i;
    struct pool *p;
    assert_int_equal(pool_open(3, &p, NULL), OK);
    for (int i = 0; i < 500; i++) {
        pool_run(p, chain_step, &c, 64);
        memcpy(c.a, c.b, sizeof c.a);
        for (int k = 0; k < 64; k++) chain_step(&d, k, 0);
        memcpy(d.a, d.b, sizeof d.a);
    }
    assert_memory_equal(c.a, d.a, sizeof c.a);
    pool_close(p);
}

static void test_no_tasks(void **state)
{
    (void)state;
    struct pool *p;
    static struct job j;
    assert_int_equal(pool_open(2, &p, NULL), OK);
    for (int i = -2; i <= 0; i++) pool_run(p, run_task, &j, i);
    assert_int_equal(j.bad, 0);
    run_region(p, &j, 1, 0);
    pool_close(p);
}

static void test_open_close(void **state)
{
    (void)state;
    struct pool *p;
    static struct job j;
    for (int i = 0; i < 100; i++) { /* closed at once, after one region, and after some */
        assert_int_equal(pool_open(1 + i % MAX_THREADS, &p, NULL), OK);
        for (int k = 0; k < i % 3; k++) run_region(p, &j, 10, 0);
        pool_close(p);
    }
    pool_close(NULL);
}

static void test_open_errors(void **state)
{
    (void)state;
    static const int bad[] = {0, -1, 1025, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 5; i++) {
        struct err e;
        struct pool *p = (struct pool *)&e;
        err_clear(&e);
        assert_int_equal(pool_open(bad[i], &p, &e), ERR_USAGE);
        assert_null(p);
        assert_non_null(strstr(e.msg, "number of threads must be 1 to 1024"));
    }
}

/* Two pools at a time do not disturb each other. */
static void test_two_pools(void **state)
{
    (void)state;
    struct pool *p, *q;
    static struct job j;
    assert_int_equal(pool_open(2, &p, NULL), OK);
    assert_int_equal(pool_open(3, &q, NULL), OK);
    for (int i = 0; i < 200; i++) run_region(i % 2 ? p : q, &j, 20, 5);
    pool_close(p);
    pool_close(q);
}

/* ---- cpu ------------------------------------------------------------------------------------ */

static void test_cpu_names(void **state)
{
    (void)state;
    assert_string_equal(cpu_tier_name(CPU_REF), "ref");
    assert_string_equal(cpu_tier_name(CPU_AVX2), "avx2");
    assert_string_equal(cpu_tier_name(CPU_AVX512), "avx512");
    assert_string_equal(cpu_tier_name(CPU_AMX), "amx");
    assert_string_equal(cpu_tier_name(CPU_TIER_N), "?");
}

static void test_cpu_mask(void **state)
{
    (void)state;
    const char *was = getenv("TESSERA_CPU");
    char *kept = was ? strdup(was) : NULL;
    unsetenv("TESSERA_CPU");
    enum cpu_tier best = cpu_tier_best();
    assert_true(best >= CPU_REF && best < CPU_TIER_N);
    for (int t = 0; t < CPU_TIER_N; t++) { /* lowers, never raises */
        setenv("TESSERA_CPU", cpu_tier_name((enum cpu_tier)t), 1);
        assert_int_equal(cpu_tier_best(), t < (int)best ? t : (int)best);
    }
    static const char *const nothing[] = {"", "sse9", "AVX2 "};
    for (int i = 0; i < 3; i++) {
        setenv("TESSERA_CPU", nothing[i], 1);
        assert_int_equal(cpu_tier_best(), best);
    }
    if (kept) setenv("TESSERA_CPU", kept, 1);
    else unsetenv("TESSERA_CPU");
    free(kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_short_regions),
        cmocka_unit_test(test_random_regions),
        cmocka_unit_test(test_sleepy_regions),
        cmocka_unit_test(test_regions_see_each_other),
        cmocka_unit_test(test_no_tasks),
        cmocka_unit_test(test_open_close),
        cmocka_unit_test(test_open_errors),
        cmocka_unit_test(test_two_pools),
        cmocka_unit_test(test_cpu_names),
        cmocka_unit_test(test_cpu_mask),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
