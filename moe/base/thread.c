/* See thread.h.
 *
 * DESIGN.  A decode step is some hundred short parallel regions, so the cost of starting one
 * counts.  One 64-bit word holds the region's number and how many of its tasks are left; taking a
 * task is a compare-and-swap on that word, so a worker that wakes up late can never take a task of
 * a region it does not know.  Workers that spin see a new region within a cache miss, sleepers are
 * woken through a condition variable.  The caller works too and then waits until `active` is zero,
 * i.e. until the last task has ended.  Invariant: fn, arg and n_tasks only change while no task is
 * left and no worker is active with one. */
#include "moe/base/thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#define cpu_relax() _mm_pause()
#else
#define cpu_relax() ((void)0)
#endif

enum { SPINS = 4000 }; /* about 50 us: longer than the gap between two steps */

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    int n_threads;
    struct worker *workers; /* [n_threads - 1] */
    int n_started;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    _Atomic uint64_t word; /* region number << 32 | tasks left */
    _Atomic int sleepers;  /* workers waiting on wake */
    _Atomic int active;    /* workers that may hold a task */
    _Atomic int stop;
    pool_fn *fn;
    void *arg;
    int n_tasks;
};

/* The i-th turn of waiting for a task that runs: it ends within microseconds, unless its thread has
 * lost its core; then spinning on would keep the core from it. */
static void relax(int i)
{
    if (i < SPINS) cpu_relax();
    else sched_yield();
}

static uint32_t region_of(uint64_t word) { return (uint32_t)(word >> 32); }

/* Runs tasks of one region until none is left. */
static void work(struct pool *p, uint32_t region, int worker)
{
    uint64_t word = atomic_load(&p->word);
    while (region_of(word) == region && (uint32_t)word) {
        if (!atomic_compare_exchange_weak(&p->word, &word, word - 1)) continue;
        /* The task keeps the region open, so its fields are stable from here on. */
        p->fn(p->arg, p->n_tasks - (int)(uint32_t)word, worker);
        word = atomic_load(&p->word);
    }
}

static uint32_t wait_region(struct pool *p, uint32_t seen)
{
    for (int i = 0; i < SPINS; i++) {
        uint32_t now = region_of(atomic_load_explicit(&p->word, memory_order_acquire));
        if (now != seen) return now;
        cpu_relax();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (region_of(atomic_load(&p->word)) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
    return region_of(atomic_load(&p->word));
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    uint32_t seen = 0;
    for (;;) {
        seen = wait_region(p, seen);
        if (atomic_load(&p->stop)) return NULL;
        atomic_fetch_add(&p->active, 1);
        work(p, seen, w->index);
        atomic_fetch_sub(&p->active, 1);
    }
}

static uint32_t open_region(struct pool *p, int n_tasks)
{
    uint32_t region = region_of(atomic_load(&p->word)) + 1;
    atomic_store(&p->word, (uint64_t)region << 32 | (uint32_t)n_tasks);
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
    return region;
}

enum status pool_open(int n_threads, struct pool **out, struct err *e)
{
    *out = NULL;
    if (n_threads < 1 || n_threads > 1024)
        return err_set(e, ERR_USAGE, "the number of threads must be 1 to 1024, not %d", n_threads);
    struct pool *p = calloc(1, sizeof *p);
    if (!p) return err_set(e, ERR_MEMORY, "no memory for the thread pool");
    p->n_threads = n_threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->workers = calloc((size_t)n_threads, sizeof *p->workers);
    if (!p->workers) {
        pool_close(p);
        return err_set(e, ERR_MEMORY, "no memory for the thread pool");
    }
    for (int i = 0; i < n_threads - 1; i++) {
        struct worker *w = &p->workers[i];
        w->pool = p;
        w->index = i + 1;
        if (pthread_create(&w->thread, NULL, worker_main, w)) {
            pool_close(p);
            return err_set(e, ERR_MEMORY, "the system started only %d of %d threads", i + 1,
                           n_threads);
        }
        p->n_started++;
    }
    *out = p;
    return OK;
}

void pool_close(struct pool *p)
{
    if (!p) return;
    atomic_store(&p->stop, 1);
    (void)open_region(p, 0);
    for (int i = 0; i < p->n_started; i++) pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->workers);
    free(p);
}

int pool_size(const struct pool *p) { return p->n_threads; }

void pool_run(struct pool *p, pool_fn *fn, void *arg, int n_tasks)
{
    if (n_tasks <= 0) return;
    if (p->n_threads == 1 || n_tasks == 1) {
        for (int i = 0; i < n_tasks; i++) fn(arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n_tasks = n_tasks;
    work(p, open_region(p, n_tasks), 0);
    for (int i = 0; atomic_load(&p->active); i++) relax(i);
}

void pool_wait(_Atomic int32_t *word, int32_t value)
{
    for (int i = 0; atomic_load_explicit(word, memory_order_acquire) != value; i++) relax(i);
}

void thread_wake_first(void)
{
#if defined(__linux__) && defined(SYS_sched_setattr)
    struct { /* the kernel's struct sched_attr, its first version */
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period; /* ns; runtime: a turn */
    } a = {0};
    enum { NORMAL = 0, TURN = 100000 };
    if (syscall(SYS_sched_getattr, 0, &a, sizeof a, 0) || a.policy != NORMAL) return;
    a.runtime = TURN;
    (void)syscall(SYS_sched_setattr, 0, &a, 0);
#endif
}
