/* The CUDA device: dev.h's interface on CUDA's runtime.  Host code only; what ops are is in cuda_run.c,
 * kernels are in kernels.cu.
 *
 * Owns its memory, two streams, events, and the lists that kernels read.  No type of CUDA's leaves this
 * folder.  It never waits without an end: a GPU that does not answer is lost.
 *
 * DESIGN.  One stream works, another uploads, so that an expert can come in while others run.  Everything
 * still takes effect in the order of submission: an upload waits for earlier work that touches its target,
 * and work or a copy that touches what an upload writes waits for it (`pending`); nothing else waits.
 * What work touches is known by the matrix for experts (the batches' reads), by the block for all else:
 * an upload waits for the last work that touched something in its block, so what comes in while others
 * run lies best in blocks of its own.  A fence is an event; a ring of them goes round, and each is waited
 * for before its turn comes again.
 *
 * A submission is collected in batches: launches, and the lists that their kernels read, which go over in
 * one copy before them.  A few batches go round, so that the host can be that far ahead.
 *
 * The driver keeps some of the card's memory for itself (context, kernels, their stacks), and that counts:
 * it is measured at open, where NVML tells how much of the card was in use before, and assumed where it
 * does not.  Every block that is given out is counted in the driver's grains. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "moe/compute/cuda/cuda_int.h"

/* The last batch is for a whole step, which begins it: so its launches are the same every time. */
enum { FENCES = 256, PENDING = 16, BLOCKS = 64, BATCHES = 5, WHOLE = BATCHES - 1, WHOLE_OPS = 32 };
enum { MIB = 1 << 20, GRAIN = 2 * MIB, UPLOAD = 64 << 10 };
static const uint64_t CONTEXT = 640u << 20; /* where nobody can tell: more than any seen */
static const uint64_t AUTO_LEAVE = 512u << 20; /* of an automatic budget, for what else the card does */
static const double CLOSE_SECONDS = 2, RING_SECONDS = 10;

struct fence {
    cudaEvent_t begin, end;
    dev_fence id;       /* 0 = none yet */
    bool counted;       /* in the clock */
};

/* Bytes that an upload writes. */
struct range {
    const char *at;
    uint64_t bytes;
    dev_fence f;
};

/* What alloc() gave. */
struct block {
    char *at;
    uint64_t bytes;
    enum dev_where where;
    dev_fence last;     /* work that touches it */
};

struct dev {
    struct dev_caps caps;
    uint64_t budget, used;      /* bytes of the card for blocks; of them given out */
    cudaStream_t work, copies;
    struct fence fence[FENCES];
    dev_fence n_put;
    struct range pending[PENDING];
    int n_pending;
    struct batch batch[BATCHES]; /* their lists are one block here, and one there, the same for all:
                                    stream order guards it */
    dev_fence sent[BATCHES];
    int now, next;              /* the batch that is being filled; of the others the one after it */
    struct graphs graphs;
    struct block block[BLOCKS];
    int n_blocks;
    double seconds;
    struct err lost;
};

/* ---- errors ---- */

static bool ok(struct dev *d, cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return true;
    (void)err_set(&d->lost, ERR_DEVICE, "%s failed: %s", what, cudaGetErrorString(e));
    return false;
}

static bool is_lost(const struct dev *d) { return d->lost.code != OK; }

/* ---- fences ---- */

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void rest(double waited)
{
    if (waited > 200e-6) (void)nanosleep(&(struct timespec){0, 20000}, NULL);
}

/* Adds what a fence that has passed took to the clock, once. */
static void count(struct dev *d, struct fence *f)
{
    float ms = 0;
    if (f->counted || !f->id) return;
    f->counted = true;
    if (ok(d, cudaEventElapsedTime(&ms, f->begin, f->end), "reading the clock")) d->seconds += ms * 1e-3;
}

static enum dev_state ask(struct dev *d, dev_fence id)
{
    struct fence *f = &d->fence[id % FENCES];
    if (is_lost(d)) return DEV_LOST;
    if (f->id != id || f->counted) return DEV_PASSED; /* its turn came again, or it was seen to pass */
    const cudaError_t e = cudaEventQuery(f->end);
    if (e == cudaErrorNotReady) return DEV_PENDING;
    if (!ok(d, e, "its work")) return DEV_LOST;
    count(d, f);
    return is_lost(d) ? DEV_LOST : DEV_PASSED;
}

/* Time in which this process stood still (stopped, frozen, suspended) is not the card's fault: a turn of
 * the loop counts as a tenth of a second at most. */
static enum dev_state wait_for(struct dev *d, dev_fence id, double seconds)
{
    enum dev_state s = ask(d, id);
    double waited = 0;
    for (double last = now(); s == DEV_PENDING && waited < seconds; s = ask(d, id)) {
        const double t = now();
        waited += t - last < 0.1 ? t - last : 0.1;
        last = t;
        rest(waited);
    }
    return s;
}

/* Where the next fence begins; NULL: the device is lost. */
static struct fence *begin(struct dev *d, cudaStream_t s)
{
    struct fence *f = &d->fence[(d->n_put + 1) % FENCES];
    if (f->id && wait_for(d, f->id, RING_SECONDS) == DEV_PENDING)
        (void)err_set(&d->lost, ERR_DEVICE, "it does not finish what it was given");
    if (is_lost(d)) return NULL;
    f->id = d->n_put + 1;
    f->counted = false;
    return ok(d, cudaEventRecord(f->begin, s), "an event") ? f : NULL;
}

static dev_fence end(struct dev *d, struct fence *f, cudaStream_t s)
{
    d->n_put++;
    if (f && !is_lost(d)) (void)ok(d, cudaEventRecord(f->end, s), "an event");
    return d->n_put;
}

/* The stream goes on when the fence has passed. */
static void order(struct dev *d, cudaStream_t s, dev_fence id)
{
    const struct fence *f = &d->fence[id % FENCES];
    if (id && f->id == id && !f->counted) (void)ok(d, cudaStreamWaitEvent(s, f->end, 0), "an event");
}

static bool overlap(const void *a, uint64_t a_bytes, const void *b, uint64_t b_bytes)
{
    return (const char *)a < (const char *)b + b_bytes && (const char *)b < (const char *)a + a_bytes;
}

static struct block *block_of(struct dev *d, const void *at)
{
    for (int i = 0; i < d->n_blocks; i++)
        if (overlap(at, 1, d->block[i].at, d->block[i].bytes)) return &d->block[i];
    return NULL;
}

/* The next submission of work touches something of the block that this lies in. */
static void touch(struct dev *d, const void *at)
{
    struct block *b = block_of(d, at);
    if (b) b->last = d->n_put + 1;
}

/* An upload to these bytes comes behind the work that touches them. */
static void after_work(struct dev *d, const void *to, uint64_t bytes)
{
    const struct block *b = block_of(d, to);
    if (b) order(d, d->copies, b->last);
    for (int k = 0; k < BATCHES; k++)
        for (int i = 0; i < d->batch[k].n_reads; i++) {
            const struct cuda_read *r = &d->batch[k].read[i];
            if (!overlap(to, bytes, r->at, r->bytes)) continue;
            order(d, d->copies, d->sent[k]);
            break; /* once is enough */
        }
}

/* Work that touches these bytes comes behind the uploads that write them. */
static void after_uploads(struct dev *d, const void *at, uint64_t bytes)
{
    int n = 0;
    for (int i = 0; i < d->n_pending; i++) {
        const struct range *u = &d->pending[i];
        if (overlap(at, bytes, u->at, u->bytes)) order(d, d->work, u->f);
        else d->pending[n++] = *u;
    }
    d->n_pending = n;
}

static void note_upload(struct dev *d, void *to, uint64_t bytes, dev_fence f)
{
    if (d->n_pending == PENDING) {
        order(d, d->work, d->pending[0].f);
        memmove(d->pending, d->pending + 1, sizeof *d->pending * (PENDING - 1));
        d->n_pending--;
    }
    d->pending[d->n_pending++] = (struct range){to, bytes, f};
}

/* ---- batches ---- */

/* Makes a batch the one that is filled, when what it held has been read. */
static void fill(struct dev *d, int i)
{
    struct batch *q = &d->batch[i];
    if (d->sent[i] && wait_for(d, d->sent[i], RING_SECONDS) == DEV_PENDING)
        (void)err_set(&d->lost, ERR_DEVICE, "it does not finish what it was given");
    q->n_launches = q->n_reads = q->n_places = 0;
    q->used = 0;
    d->now = i;
}

static void send(struct dev *d)
{
    struct batch *q = &d->batch[d->now];
    if (!q->n_launches) return;
    struct fence *f = begin(d, d->work);
    if (f && q->used)
        (void)ok(d, cudaMemcpyAsync(q->own, q->host, q->used, cudaMemcpyDefault, d->work), "sending a list");
    if (d->now == WHOLE && !is_lost(d))
        (void)ok(d, graphs_start(&d->graphs, d->work, q->launch, q->n_launches), "starting a step");
    for (int i = 0; d->now != WHOLE && i < q->n_launches && !is_lost(d); i++)
        (void)ok(d, gpu_start(d->work, &q->launch[i]), "starting a kernel");
    d->sent[d->now] = end(d, f, d->work);
    if (d->now != WHOLE) d->next = (d->now + 1) % WHOLE;
    fill(d, d->now == WHOLE ? WHOLE : d->next);
}

struct batch *batch_room(struct dev *d, int launches, int reads, uint64_t bytes)
{
    const struct batch *q = &d->batch[d->now];
    const uint64_t rounding = 128;
    if (q->n_launches + launches > q->most_launches || q->n_reads + reads > BATCH_READS ||
        q->used + bytes + rounding > LIST_BYTES)
        send(d);
    return is_lost(d) ? NULL : &d->batch[d->now];
}

void batch_touches(struct dev *d, const void *at, uint64_t bytes)
{
    after_uploads(d, at, bytes);
    touch(d, at);
}

void batch_reads(struct dev *d, struct batch *b, const void *at, uint64_t bytes)
{
    after_uploads(d, at, bytes);
    b->read[b->n_reads++] = (struct cuda_read){at, bytes};
}

/* ---- the interface ---- */

static bool cuda_supports(const struct dev *d, const struct op *op, const struct dev_weight *weight)
{
    (void)d;
    return cuda_can(op, weight);
}

static dev_fence cuda_submit(struct dev *d, const struct op *ops, int n, const struct dev_bind *b)
{
    const bool whole = !b->route && n > WHOLE_OPS;
    if (whole) fill(d, WHOLE);
    for (int i = 0; i < n && !is_lost(d); i++) cuda_run(d, &ops[i], b);
    send(d);
    if (whole) d->now = d->next;
    return d->n_put;
}

/* Large uploads go beside the work; everything else takes its turn in it. */
static dev_fence cuda_copy(struct dev *d, void *to, const void *from, uint64_t bytes)
{
    const struct block *b = block_of(d, from);
    const cudaStream_t s = b && b->where == DEV_HOST && bytes >= UPLOAD ? d->copies : d->work;
    if (is_lost(d)) return ++d->n_put;
    if (s == d->copies) after_work(d, to, bytes);
    else {
        after_uploads(d, to, bytes);
        after_uploads(d, from, bytes);
        touch(d, to);
        touch(d, from);
    }
    struct fence *f = begin(d, s);
    if (f) (void)ok(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s), "a copy");
    const dev_fence id = end(d, f, s);
    if (s == d->copies) note_upload(d, to, bytes, id);
    return id;
}

static enum dev_state cuda_wait(struct dev *d, dev_fence f, double seconds, struct err *e)
{
    const enum dev_state s = f ? wait_for(d, f, seconds) : is_lost(d) ? DEV_LOST : DEV_PASSED;
    if (s == DEV_LOST && e && !e->code) *e = d->lost;
    return s;
}

static void give_back(const struct block *b)
{
    (void)(b->where == DEV_OWN ? cudaFree(b->at) : cudaFreeHost(b->at));
}

static void *cuda_alloc(struct dev *d, enum dev_where where, uint64_t bytes)
{
    const uint64_t takes = (bytes + GRAIN - 1) / GRAIN * GRAIN;
    void *p = NULL;
    if (d->n_blocks == BLOCKS || (where == DEV_OWN && takes > d->budget - d->used)) return NULL;
    if ((where == DEV_OWN ? cudaMalloc(&p, bytes) : cudaHostAlloc(&p, bytes, cudaHostAllocDefault)) !=
        cudaSuccess)
        return NULL;
    if (where == DEV_OWN) d->used += takes;
    d->block[d->n_blocks++] = (struct block){p, bytes, where, 0};
    return p;
}

static struct dev_caps cuda_caps(const struct dev *d) { return d->caps; }

static double cuda_clock(struct dev *d)
{
    for (int i = 0; i < FENCES; i++)
        if (d->fence[i].id && !d->fence[i].counted) (void)ask(d, d->fence[i].id);
    return d->seconds;
}

/* Whether everything that was submitted has ended, or never will. */
static bool drained(struct dev *d)
{
    const double from = now();
    for (double waited = 0; waited < CLOSE_SECONDS; waited = now() - from) {
        const cudaError_t a = d->work ? cudaStreamQuery(d->work) : cudaSuccess;
        const cudaError_t b = d->copies ? cudaStreamQuery(d->copies) : cudaSuccess;
        if (a != cudaErrorNotReady && b != cudaErrorNotReady) return true;
        rest(waited);
    }
    return false;
}

/* A GPU that still works on something may write: what it knows of is left alone then. */
static void cuda_close(struct dev *d)
{
    if (!drained(d)) return;
    for (int i = 0; i < d->n_blocks; i++) give_back(&d->block[i]);
    graphs_close(&d->graphs);
    for (int i = 0; i < BATCHES; i++) free(d->batch[i].launch);
    for (int i = 0; i < FENCES; i++) {
        if (d->fence[i].begin) (void)cudaEventDestroy(d->fence[i].begin);
        if (d->fence[i].end) (void)cudaEventDestroy(d->fence[i].end);
    }
    if (d->work) (void)cudaStreamDestroy(d->work);
    if (d->copies) (void)cudaStreamDestroy(d->copies);
    (void)cudaDeviceReset();
    free(d);
}

/* ---- opening ---- */

/* Bytes of the card that are in use, by anybody; false: nobody can tell before there is a context. */
static bool card_used(uint64_t *bytes)
{
    struct { unsigned long long total, free, used; } m;
    int (*init)(void), (*stop)(void), (*handle)(const char *, void **), (*memory)(void *, void *);
    char id[32];
    void *so = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL), *card = NULL;
    bool told = false;
    if (!so) return false;
    struct { const char *name; void *fn; } f[] = {
        {"nvmlInit_v2", &init}, {"nvmlShutdown", &stop}, {"nvmlDeviceGetHandleByPciBusId_v2", &handle},
        {"nvmlDeviceGetMemoryInfo", &memory}};
    bool all = true;
    for (int i = 0; i < 4; i++) {
        void *at = dlsym(so, f[i].name);
        all &= at != NULL;
        memcpy(f[i].fn, &at, sizeof at);
    }
    if (all && !init()) {
        told = cudaDeviceGetPCIBusId(id, sizeof id, 0) == cudaSuccess && !handle(id, &card) &&
               !memory(card, &m);
        (void)stop();
    }
    (void)dlclose(so);
    if (told) *bytes = m.used;
    return told;
}

/* Resident bytes of this process. */
static uint64_t resident(void)
{
    unsigned long long size, pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    if (fscanf(f, "%llu %llu", &size, &pages) != 2) pages = 0;
    (void)fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* What the driver has taken of the host since `was`; an emulated runtime says it. */
static uint64_t host_taken(uint64_t was)
{
#ifdef CUDA_HOST_MEMORY
    (void)was;
    return CUDA_HOST_MEMORY;
#else
    const uint64_t is = resident();
    return is > was ? is - was : 0;
#endif
}

static enum status find_card(struct err *e)
{
    int n = 0, major = 0, minor = 0;
    const cudaError_t c = cudaGetDeviceCount(&n);
    if (c != cudaSuccess || n < 1)
        return err_set(e, ERR_DEVICE, "there is no GPU that CUDA can use: %s",
                       c == cudaSuccess ? "no card" : cudaGetErrorString(c));
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) != cudaSuccess)
        return err_set(e, ERR_DEVICE, "the GPU does not say what it is");
    if (major * 10 + minor < 75)
        return err_set(e, ERR_DEVICE, "the GPU's compute capability is %d.%d; 7.5 is the least", major,
                       minor);
    return OK;
}

/* Everything that lives as long as the device, and on the card: streams, events, kernels, the list. */
static bool open_parts(struct dev *d)
{
    if (!ok(d, cudaSetDeviceFlags(cudaDeviceScheduleYield), "setting up the GPU") ||
        !ok(d, cudaSetDevice(0), "making a context") ||
        !ok(d, cudaStreamCreateWithFlags(&d->work, cudaStreamNonBlocking), "making a stream") ||
        !ok(d, cudaStreamCreateWithFlags(&d->copies, cudaStreamNonBlocking), "making a stream") ||
        !ok(d, gpu_load_all(), "loading the kernels"))
        return false;
    for (int i = 0; i < FENCES; i++)
        if (!ok(d, cudaEventCreateWithFlags(&d->fence[i].begin, cudaEventDefault), "making an event") ||
            !ok(d, cudaEventCreateWithFlags(&d->fence[i].end, cudaEventDefault), "making an event"))
            return false;
    return true;
}

/* How much of the card there is for us, in `budget`; the context has been made. */
static enum status find_memory(struct dev *d, uint64_t memory, bool told, uint64_t before, struct err *e)
{
    size_t free_bytes = 0, total = 0;
    uint64_t after = 0, context = CONTEXT;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
        return err_set(e, ERR_DEVICE, "the GPU does not say how much memory it has");
    if (told && card_used(&after) && after > before) context = after - before;
    uint64_t room = free_bytes;
    if (memory == UINT64_MAX) room = room > AUTO_LEAVE ? room - AUTO_LEAVE : 0;
    else if (memory <= context)
        return err_set(e, ERR_BUDGET, "%llu MiB are too little: its context alone takes %s%llu",
                       (unsigned long long)(memory / MIB), told ? "" : "perhaps ",
                       (unsigned long long)(context / MIB));
    else if (room > memory - context) room = memory - context;
    d->budget = room / GRAIN * GRAIN;
    return OK;
}

/* Seconds of a copy of so many bytes, at best; 0: it failed. */
static double time_copy(struct dev *d, void *to, const void *from, uint64_t bytes)
{
    double best = 0;
    for (int i = 0; i < 5; i++) {
        const double before = d->seconds;
        if (wait_for(d, cuda_copy(d, to, from, bytes), RING_SECONDS) != DEV_PASSED) return 0;
        const double t = d->seconds - before;
        if (!best || t < best) best = t;
    }
    return best;
}

/* What the device says of its speed is measured, in memory that is given back. */
static enum status measure(struct dev *d, struct err *e)
{
    const uint64_t bytes = d->budget / 4 < 64u * MIB ? d->budget / 4 / GRAIN * GRAIN : 64u * MIB;
    const uint64_t over = bytes < 8u * MIB ? bytes : 8u * MIB;
    const int n = d->n_blocks;
    const uint64_t used = d->used;
    char *a = cuda_alloc(d, DEV_OWN, bytes), *b = cuda_alloc(d, DEV_OWN, bytes);
    char *host = cuda_alloc(d, DEV_HOST, over);
    double own = 0, link = 0, least = 0;
    if (bytes && a && b && host) {
        own = time_copy(d, a, b, bytes);
        link = own ? time_copy(d, a, host, over) : 0;
        const double from = now();
        for (int i = 0; link && i < 16; i++)
            if (wait_for(d, cuda_copy(d, host, a, 64), RING_SECONDS) != DEV_PASSED) link = 0;
        least = (now() - from) / 16;
    }
    (void)drained(d);
    d->n_pending = 0;
    while (d->n_blocks > n) give_back(&d->block[--d->n_blocks]);
    d->used = used;
    d->seconds = 0;
    if (is_lost(d)) return err_set(e, ERR_DEVICE, "%s", d->lost.msg);
    if (!own || !link) return err_set(e, ERR_DEVICE, "there is no memory left on it");
    d->caps.rate = 2 * (double)bytes / own; /* read and written */
    d->caps.rate_copy = (double)over / link;
    d->caps.latency = least;
    return OK;
}

static enum status open_all(struct dev *d, uint64_t memory, struct err *e)
{
    uint64_t before = 0;
    const uint64_t was = resident();
    enum status s = find_card(e);
    if (s) return s;
    const bool told = card_used(&before);
    if (!open_parts(d)) return err_set(e, ERR_DEVICE, "%s", d->lost.msg);
    s = find_memory(d, memory, told, before, e);
    if (!s) s = measure(d, e);
    if (s) return s;
    char *own = cuda_alloc(d, DEV_OWN, LIST_BYTES), *host = cuda_alloc(d, DEV_HOST, LIST_BYTES * BATCHES);
    if (!own || !host) return err_set(e, ERR_DEVICE, "there is no memory left on it");
    for (int i = 0; i < BATCHES; i++) {
        struct batch *q = &d->batch[i];
        q->own = own;
        q->host = host + LIST_BYTES * i;
        q->most_launches = i == WHOLE ? WHOLE_LAUNCHES : BATCH_LAUNCHES;
        q->launch = calloc((size_t)q->most_launches, sizeof *q->launch);
        if (!q->launch) return err_set(e, ERR_MEMORY, "no memory for its launches");
    }
    /* What alloc() rounds up is not the caller's to plan for. */
    const uint64_t slack = 16 * (uint64_t)GRAIN, left = d->budget - d->used;
    d->caps.memory = left > slack ? left - slack : 0;
    d->caps.host = host_taken(was) + (GRAPHS + 1) * WHOLE_LAUNCHES * sizeof(struct gpu_launch);
    return OK;
}

static enum status cuda_open(uint64_t memory, struct dev **out, struct err *e)
{
    struct dev *d = calloc(1, sizeof *d);
    *out = NULL;
    if (!d) return err_set(e, ERR_MEMORY, "no memory for device cuda");
    const enum status s = open_all(d, memory, e);
    if (s) cuda_close(d);
    else *out = d;
    return s;
}

__attribute__((visibility("default"))) const struct dev_api *tessera_device(void);

const struct dev_api *tessera_device(void)
{
    static const struct dev_api api = {
        .abi = DEV_ABI, .size = sizeof(struct dev_api), .build = dev_build, .name = "cuda",
        .own_memory = true, .supports = cuda_supports, .submit = cuda_submit, .wait = cuda_wait,
        .close = cuda_close, .open = cuda_open, .caps = cuda_caps, .alloc = cuda_alloc,
        .copy = cuda_copy, .clock = cuda_clock,
    };
    return &api;
}
