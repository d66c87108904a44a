/* Measuring what the integer units can do at best; see mm.h. */
#include "moe/base/osfile.h"
#include "moe/base/thread.h"
#include "quant/mm.h"

enum { PASSES = 10, STEPS = 400000 };

struct peak_job {
    const struct mm_kernels *k;
    uint64_t macs; /* of a task; all do the same */
};

static void peak_task(void *arg, int task, int worker)
{
    struct peak_job *j = arg;
    (void)worker;
    const uint64_t macs = j->k->peak(STEPS);
    if (!task) j->macs = macs;
}

enum status mm_measure_peak(enum cpu_tier tier, int n_threads, double *gmac_per_s, struct err *e)
{
    struct peak_job j = {.k = mm_kernels(tier)};
    struct pool *pool;
    *gmac_per_s = 0;
    if (!j.k->peak) return OK;
    enum status s = pool_open(n_threads, &pool, e);
    if (s) return s;
    for (int i = 0; i < PASSES; i++) {
        const double start = os_seconds();
        pool_run(pool, peak_task, &j, n_threads);
        const double v = (double)j.macs * n_threads / (os_seconds() - start) / 1e9;
        if (v > *gmac_per_s) *gmac_per_s = v;
    }
    pool_close(pool);
    return OK;
}
