/* A pool of worker threads for the steps of a plan.
 *
 * pool_run() calls fn for every task number 0 .. n_tasks-1, each exactly once, on the caller's
 * thread and the workers, and returns when all have ended.  Tasks are taken from one counter: they
 * start in rising order, so a task may wait (pool_wait) for what a lower one does; which worker runs
 * which is not defined: results must not depend on it (fixed arithmetic).
 * One thread at a time may call pool_run on a pool.  Workers spin briefly between steps, then
 * sleep. */
#ifndef MOE_BASE_THREAD_H
#define MOE_BASE_THREAD_H

#include <stdatomic.h>
#include <stdint.h>

#include "moe/base/err.h"

struct pool;

/* worker is 0 .. pool_size-1, for per-worker scratch memory. */
typedef void pool_fn(void *arg, int task, int worker);

/* n_threads counts the caller: 1 starts no thread.  *out is NULL on failure. */
enum status pool_open(int n_threads, struct pool **out, struct err *e);
void pool_close(struct pool *p);
int pool_size(const struct pool *p);
void pool_run(struct pool *p, pool_fn *fn, void *arg, int n_tasks);

/* Inside a task: returns when *word has become `value`, which a lower task will store.  What was
 * written before that store is seen. */
void pool_wait(_Atomic int32_t *word, int32_t value);

/* For a thread that sleeps most of the time and hands on what it wakes up for: asks the system to let it
 * run at once, in short turns, before threads that compute.  Its share of a core stays the same.  A
 * hint: Linux knows it since 6.12, elsewhere nothing happens. */
void thread_wake_first(void);

#endif
