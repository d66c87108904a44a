/* How fast a drive brings weights; see machine.h.
 *
 * DESIGN.  What a promise needs is not the drive's speed but that of weights which arrive through it
 * (offload/fetch.c): some threads with a queue of reads each, and the caller's work on every block that
 * arrives, on the same cores as everything else.  So that is what runs here.  A read alone is timed from
 * a thread that asks another one to read, until it hears of it: two threads have to wake up. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "moe/base/aio.h"
#include "moe/base/machine.h"
#include "moe/base/osfile.h"
#include "moe/base/rng.h"
#include "moe/base/thread.h"

enum { DEPTH = 4, THREADS = 8, BLOCK = 4 << 20, SMALL = 1 << 20, TINY = 64 << 10 };
static const double SECONDS = 0.7;
static const uint64_t MOST = (uint64_t)4 << 30;

struct pass {
    const struct osfile *file;
    const struct machine_arrival *arrival;
    size_t block;
    bool random;
    uint64_t n_blocks;
    double until;
    _Atomic uint64_t next, done; /* blocks asked for in order; bytes read */
    _Atomic bool failed;
};

struct reader {
    struct pass *pass;
    struct aio *aio;
    pthread_t thread;
    char *buf; /* DEPTH blocks */
    int index;
};

static void arrived(const struct reader *r, const struct aio_read *a)
{
    const struct machine_arrival *to = r->pass->arrival;
    if (a->error || a->done < a->need) atomic_store(&r->pass->failed, true);
    else if (to) to->fn(to->arg, r->index, a->buf, a->done);
    atomic_fetch_add(&r->pass->done, a->done);
}

static void *read_main(void *arg)
{
    struct reader *r = arg;
    struct pass *p = r->pass;
    struct aio_read read[DEPTH], *idle[DEPTH];
    struct rng rng;
    int n_idle = DEPTH;
    thread_wake_first(); /* as loaders do */
    rng_seed(&rng, p->block + (uint64_t)r->index);
    for (int i = 0; i < DEPTH; i++) {
        read[i].buf = r->buf + (size_t)i * p->block;
        idle[i] = &read[i];
    }
    for (;;) {
        const bool more = os_seconds() < p->until && !atomic_load(&p->failed) && atomic_load(&p->done) < MOST;
        while (more && n_idle) {
            const uint64_t at = p->random ? rng_u64(&rng) % p->n_blocks : atomic_fetch_add(&p->next, 1);
            if (at >= p->n_blocks) break;
            struct aio_read *a = idle[--n_idle];
            *a = (struct aio_read){.file = p->file, .buf = a->buf, .offset = at * p->block,
                                   .n = p->block, .need = p->block};
            aio_submit(r->aio, a);
        }
        if (!aio_in_flight(r->aio)) return NULL;
        struct aio_read *a = aio_wait(r->aio);
        arrived(r, a);
        idle[n_idle++] = a;
    }
}

/* GB/s of whole blocks, in order or at random places; 0 when a read failed. */
static double run_pass(struct pass *p, struct reader *r, int n_threads)
{
    int n = 0;
    p->n_blocks = p->file->size / p->block;
    atomic_store(&p->next, 0);
    atomic_store(&p->done, 0);
    if (!p->n_blocks) return 0;
    const double start = os_seconds();
    p->until = start + SECONDS;
    for (; n < n_threads; n++)
        if (pthread_create(&r[n].thread, NULL, read_main, &r[n])) break;
    if (!n) (void)read_main(r);
    for (int i = 0; i < n; i++) (void)pthread_join(r[i].thread, NULL);
    const double t = os_seconds() - start;
    return t > 0 && !atomic_load(&p->failed) ? (double)atomic_load(&p->done) / t / 1e9 : 0;
}

/* ---- one read alone ---- */

struct errand {
    struct reader *reader;
    pthread_mutex_t lock;
    pthread_cond_t asked, answered;
    bool wanted, stop;
};

static void *errand_main(void *arg)
{
    struct errand *d = arg;
    struct pass *p = d->reader->pass;
    struct rng rng;
    rng_seed(&rng, p->block);
    thread_wake_first();
    pthread_mutex_lock(&d->lock);
    for (;;) {
        while (!d->wanted && !d->stop) pthread_cond_wait(&d->asked, &d->lock);
        if (d->stop) break;
        pthread_mutex_unlock(&d->lock);
        struct aio_read a = {.file = p->file, .buf = d->reader->buf, .n = p->block, .need = p->block,
                             .offset = rng_u64(&rng) % p->n_blocks * p->block};
        aio_submit(d->reader->aio, &a);
        arrived(d->reader, aio_wait(d->reader->aio));
        pthread_mutex_lock(&d->lock);
        d->wanted = false;
        pthread_cond_signal(&d->answered);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

/* Microseconds; 0 when a read failed. */
static double run_alone(struct pass *p, struct reader *r)
{
    struct errand d = {.reader = r};
    int n = 0;
    p->n_blocks = p->file->size / p->block;
    if (!p->n_blocks) return 0;
    pthread_mutex_init(&d.lock, NULL);
    pthread_cond_init(&d.asked, NULL);
    pthread_cond_init(&d.answered, NULL);
    double t = 0;
    if (!pthread_create(&r->thread, NULL, errand_main, &d)) {
        const double start = os_seconds();
        pthread_mutex_lock(&d.lock);
        for (; t < SECONDS && !atomic_load(&p->failed); n++, t = os_seconds() - start) {
            d.wanted = true;
            pthread_cond_signal(&d.asked);
            while (d.wanted) pthread_cond_wait(&d.answered, &d.lock);
        }
        d.stop = true;
        pthread_cond_signal(&d.asked);
        pthread_mutex_unlock(&d.lock);
        (void)pthread_join(r->thread, NULL);
    }
    pthread_cond_destroy(&d.answered);
    pthread_cond_destroy(&d.asked);
    pthread_mutex_destroy(&d.lock);
    return n && !atomic_load(&p->failed) ? 1e6 * t / n : 0;
}

/* ---- all of it ---- */

static void run_all(struct pass *p, struct reader *r, int n_threads, struct machine *m)
{
    const size_t least = p->file->size < TINY ? OSFILE_ALIGN : TINY;
    const size_t small = p->file->size < SMALL ? least : SMALL;
    p->block = p->file->size < BLOCK ? small : BLOCK;
    m->disk_read = run_pass(p, r, n_threads);
    p->random = true;
    p->block = small;
    m->disk_random = run_pass(p, r, n_threads);
    p->block = least;
    m->disk_small = run_pass(p, r, n_threads);
    m->disk_wait = run_alone(p, r);
}

enum status machine_measure_disk(const char *path, int n_threads, const struct machine_arrival *arrival,
                                 struct machine *m, bool *direct, struct err *e)
{
    struct osfile f;
    struct reader r[THREADS];
    const char *why;
    void *mem = NULL;
    int n = 0;
    n_threads = n_threads < 2 ? 2 : n_threads > THREADS ? THREADS : n_threads;
    m->disk_read = m->disk_random = m->disk_small = m->disk_wait = 0;
    enum status s = osfile_open(&f, path, OSFILE_DIRECT, NULL, e);
    if (s) return s;
    *direct = f.direct;
    if (!f.direct) f.ops->drop(f.fd, 0, f.size);
    if (posix_memalign(&mem, OSFILE_ALIGN, (size_t)n_threads * DEPTH * BLOCK)) {
        mem = NULL;
        s = err_set(e, ERR_MEMORY, "no memory to measure the disk");
    }
    struct pass p = {.file = &f, .arrival = arrival};
    for (; !s && n < n_threads; n++) {
        r[n] = (struct reader){.pass = &p, .index = n, .buf = (char *)mem + (size_t)n * DEPTH * BLOCK};
        s = aio_open(DEPTH, true, &r[n].aio, &why, e);
    }
    if (!s) run_all(&p, r, n_threads, m);
    if (!s && atomic_load(&p.failed)) s = err_set(e, ERR_IO, "cannot read %s while measuring", path);
    for (int i = 0; i < n; i++) aio_close(r[i].aio);
    free(mem);
    osfile_close(&f);
    return s;
}
