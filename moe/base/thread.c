/* See thread.h.
 *
 * DESIGN.  A decode step is some hundred short parallel regions, so the cost of starting one
 * counts.  A region is announced by raising `epoch`; workers that spin see it within a cache miss,
 * sleepers are woken through a condition variable.  Tasks come from one atomic counter.  The caller
 * works too and then waits until `active` is zero, i.e. until no worker can still touch the
 * region's fields; a worker joins a region by raising `active` and re-checking the epoch, so one
 * that wakes up late simply finds no task left. */
#include "moe/base/thread.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
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
    _Atomic unsigned epoch;   /* raised when a region starts */
    _Atomic int sleepers;     /* workers waiting on wake */
    _Atomic int active;       /* workers inside a region */
    _Atomic int stop;
    _Atomic int next;
    pool_fn *fn;
    void *arg;
    _Atomic int n_tasks;
};

static void work(struct pool *p, int worker)
{
    const int n = atomic_load_explicit(&p->n_tasks, memory_order_acquire);
    for (;;) {
        int task = atomic_fetch_add(&p->next, 1);
        if (task >= n) return;
        p->fn(p->arg, task, worker);
    }
}

static unsigned wait_epoch(struct pool *p, unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        unsigned now = atomic_load_explicit(&p->epoch, memory_order_acquire);
        if (now != seen) return now;
        cpu_relax();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->epoch) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
    return atomic_load(&p->epoch);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct pool *p = w->pool;
    unsigned seen = 0;
    for (;;) {
        seen = wait_epoch(p, seen);
        if (atomic_load(&p->stop)) return NULL;
        atomic_fetch_add(&p->active, 1);
        /* The region may have ended since; only one that is still open has an even epoch's task
         * counter below n_tasks, and the caller cannot change fn while active is above zero. */
        if (atomic_load(&p->epoch) == seen) work(p, w->index);
        atomic_fetch_sub(&p->active, 1);
    }
}

static void raise_epoch(struct pool *p)
{
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
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
    raise_epoch(p);
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
    /* A worker that came late for the last region may still be looking at the counter. */
    while (atomic_load(&p->active)) cpu_relax();
    p->fn = fn;
    p->arg = arg;
    atomic_store(&p->n_tasks, n_tasks);
    atomic_store(&p->next, 0);
    raise_epoch(p);
    work(p, 0);
    while (atomic_load(&p->active)) cpu_relax();
    /* Closes the region for late workers: without tasks they leave fn and arg alone. */
    atomic_store(&p->n_tasks, 0);
}
