/* Device sim: a device with memory of its own that every machine has (invariant 11).
 *
 * It stands where a GPU will: submissions return at once and are worked off in order by a thread of
 * its own; what it computes with lies in its own memory; time is a virtual clock.  The arithmetic is
 * the CPU device's, so results are real, and bit-equal.  Owns its memory, its thread and a pool of
 * one; never touches host memory but in copies.
 *
 * DESIGN.  Addresses of its memory carry a bit that no address of a process has, so the host faults
 * when it follows one, and every address that is handed in is looked up among the blocks that were
 * given out: what a GPU would find out by dying, or worse by going on, is an error here.  Memory is
 * filled with 0xff, which is NaN in every float and a scale of NaN in every block format, so that
 * reading what was never copied shows in the results.
 *
 * The clock adds, for each submission, latency plus bytes over rate: weights of the experts that ran
 * and rows, or bytes copied.  Numbers of a card with GDDR6 on PCIe 4. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "moe/base/cpu.h"
#include "moe/base/mem.h"
#include "moe/compute/dev.h"

enum { QUEUE = 128, BLOCKS = 64, STEP = 256, EXPERTS_MAX = 4096 };
static const uintptr_t TAG = (uintptr_t)1 << 62;
enum { AUTO_MEMORY = 256 << 20 }; /* it is the host's RAM, after all */
static const double RATE = 400e9, RATE_COPY = 25e9, LATENCY = 10e-6;

struct block {
    char *base; /* as it is mapped */
    uint64_t bytes;
    enum dev_where where;
};

struct command {
    const struct op *op; /* NULL: a copy */
    struct dev_bind bind;
    void *to;
    const void *from;
    uint64_t bytes;
};

struct dev {
    uint64_t memory, used;
    struct ledger ledger; /* of its own memory: regions want one */
    struct region region[BLOCKS];
    struct block block[BLOCKS];
    int n_blocks;
    struct pool *pool;
    struct dev *cpu;
    pthread_t thread;
    bool started, stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct command queue[QUEUE];
    char *kv_base[DEV_SESSIONS]; /* of the op being run */
    struct stacked stack[OP_IO][EXPERTS_MAX]; /* ditto */
    dev_fence n_put, n_done;
    struct err lost;
    double clock;
};

/* ---- addresses ---- */

/* The memory behind a device address, if that many bytes from it are the device's; else NULL, and
 * why is noted. */
static char *own(struct dev *d, struct err *e, const void *at, uint64_t bytes)
{
    char *p = (char *)((uintptr_t)at ^ TAG);
    for (int i = 0; i < d->n_blocks; i++) {
        const struct block *b = &d->block[i];
        if (b->where == DEV_OWN && p >= b->base && bytes <= b->bytes &&
            (uint64_t)(p - b->base) <= b->bytes - bytes)
            return p;
    }
    (void)err_set(e, ERR_DEVICE, "device sim: %p is no address of its memory", (const void *)at);
    return NULL;
}

/* Either end of a copy. */
static char *end_of_copy(struct dev *d, struct err *e, const void *at, uint64_t bytes)
{
    if ((uintptr_t)at & TAG) return own(d, e, at, bytes);
    for (int i = 0; i < d->n_blocks; i++) {
        const struct block *b = &d->block[i];
        if (b->where == DEV_HOST && (const char *)at >= b->base && bytes <= b->bytes &&
            (uint64_t)((const char *)at - b->base) <= b->bytes - bytes)
            return (char *)(uintptr_t)at;
    }
    (void)err_set(e, ERR_DEVICE, "device sim: a copy with %p, which alloc() did not give", at);
    return NULL;
}

/* ---- running ---- */

/* Of a stack without levels. */
static uint64_t bytes_of(const struct dev_weight *w)
{
    if (w->type == QTYPE_NEST2) return dev_stacked_bytes(w->n_cols, w->n_rows, 0);
    if (!w->tiles) return sizeof(float) * (uint64_t)w->n_cols * (uint64_t)w->n_rows;
    return (uint64_t)((w->n_rows + TILE_ROWS - 1) / TILE_ROWS) * tile_bytes(w->type, w->n_cols);
}

/* A buffer as the CPU device can follow it. */
static struct dev_buf own_buf(struct dev *d, struct err *e, const struct dev_bind *b, int i)
{
    struct dev_buf f = b->buf[i];
    f.base = own(d, e, f.base, (uint64_t)f.stride * (uint64_t)b->set[f.rows].n);
    return f;
}

/* The KV pages of every session in the step. */
static void own_pages(struct dev *d, struct err *e, const struct dev_bind *b, struct dev_rows *line)
{
    for (int i = 0; i < b->n_inputs; i++)
        d->kv_base[i] = own(d, e, line->kv_base[i], line->kv_page_bytes);
    line->kv_base = d->kv_base;
}

/* Any other op, in the same way. */
static void run_plain(struct dev *d, const struct op *op, const struct dev_bind *given,
                      struct err *e, double *seconds)
{
    struct dev_bind b = *given;
    struct dev_buf buf[2 * OP_IO];
    struct dev_weight w[OP_WEIGHTS];
    struct dev_rows set[ROWS_MAX];
    struct op one = *op;
    double bytes = 0;
    for (int i = 0; i < OP_IO; i++) {
        if (op->in[i] >= 0) buf[one.in[i] = i] = own_buf(d, e, given, op->in[i]);
        if (op->out[i] >= 0) buf[one.out[i] = OP_IO + i] = own_buf(d, e, given, op->out[i]);
    }
    for (int i = 0; i < OP_WEIGHTS; i++) {
        if (op->weight[i] < 0) continue;
        w[one.weight[i] = i] = given->weight[op->weight[i]];
        w[i].data = own(d, e, w[i].data, bytes_of(&w[i]));
        bytes += (double)bytes_of(&w[i]);
    }
    memcpy(set, given->set, sizeof set);
    if (op->kv_slot >= 0) own_pages(d, e, given, &set[op->kv_rows]);
    if (e->code) return;
    b.buf = buf;
    b.weight = w;
    b.set = set;
    (void)dev_cpu_api()->submit(d->cpu, &one, 1, &b);
    *seconds += bytes / RATE;
}

/* A stacked matrix at `from`, with the addresses that the CPU device follows. */
static uint64_t follow_stack(struct dev *d, struct err *e, const struct dev_weight *w, const void *from,
                             struct stacked *to)
{
    const char *p = own(d, e, from, bytes_of(w));
    if (!p) return 0;
    *to = dev_stacked_view(w->n_cols, w->n_rows, p);
    const uint64_t n = dev_stacked_bytes(w->n_cols, w->n_rows, to->depth);
    (void)own(d, e, from, n);
    return n;
}

/* OP_EXPERTS with every address turned into one that the CPU device can follow. */
static void run_experts(struct dev *d, const struct op *op, const struct dev_bind *given,
                        struct err *e, double *seconds)
{
    struct dev_bind b = *given;
    struct dev_route rt = *given->route;
    struct dev_weight w[OP_WEIGHTS];
    struct dev_buf buf[2] = {given->buf[op->in[0]]}, *in = &buf[0];
    struct op one = *op;
    const void *at[OP_IO][EXPERTS_MAX];
    const void *const *table[OP_IO] = {rt.gate, rt.up, rt.down};
    double bytes = 0;
    in->base = own(d, e, in->base, (uint64_t)in->stride * (uint64_t)rt.n_rows);
    b.scratch = own(d, e, b.scratch, 64);
    if (rt.pair_out) rt.pair_out = own(d, e, rt.pair_out, 64);
    if (rt.sum) buf[1] = own_buf(d, e, given, op->out[0]);
    for (int i = 0; i < OP_WEIGHTS; i++) {
        one.weight[i] = op->weight[i] < 0 ? -1 : i;
        if (op->weight[i] < 0) continue;
        w[i] = given->weight[op->weight[i]];
        if (i >= OP_IO) w[i].data = own(d, e, w[i].data, 64);
    }
    for (int a = rt.begin; a < rt.end; a++)
        for (int k = 0; k < OP_IO; k++) {
            if (w[k].type == QTYPE_NEST2) {
                at[k][a] = &d->stack[k][a];
                bytes += (double)follow_stack(d, e, &w[k], table[k][a], &d->stack[k][a]);
                continue;
            }
            const uint64_t n = bytes_of(&w[k]);
            at[k][a] = own(d, e, table[k][a], n);
            bytes += (double)n;
        }
    if (e->code) return;
    one.in[0] = 0;
    one.out[0] = 1;
    b.buf = buf;
    b.weight = w;
    b.route = &rt;
    rt.gate = at[0];
    rt.up = at[1];
    rt.down = at[2];
    (void)dev_cpu_api()->submit(d->cpu, &one, 1, &b);
    *seconds += bytes / RATE;
}

static void run(struct dev *d, const struct command *c, struct err *e, double *seconds)
{
    *seconds = LATENCY;
    if (c->op) {
        if (c->op->code == OP_EXPERTS) run_experts(d, c->op, &c->bind, e, seconds);
        else run_plain(d, c->op, &c->bind, e, seconds);
        return;
    }
    char *to = end_of_copy(d, e, c->to, c->bytes);
    const char *from = end_of_copy(d, e, c->from, c->bytes);
    if (!to || !from) return;
    memcpy(to, from, c->bytes);
    *seconds += (double)c->bytes / RATE_COPY;
}

static void *stream(void *arg)
{
    struct dev *d = arg;
    pthread_mutex_lock(&d->lock);
    for (;;) {
        while (d->n_done == d->n_put && !d->stop) pthread_cond_wait(&d->changed, &d->lock);
        if (d->n_done == d->n_put) break;
        const struct command *c = &d->queue[d->n_done % QUEUE];
        struct err e = d->lost;
        double seconds = 0;
        pthread_mutex_unlock(&d->lock);
        if (!e.code) run(d, c, &e, &seconds);
        pthread_mutex_lock(&d->lock);
        d->lost = e;
        d->clock += seconds;
        d->n_done++;
        pthread_cond_broadcast(&d->changed);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

/* ---- the interface ---- */

static dev_fence put(struct dev *d, const struct command *c)
{
    pthread_mutex_lock(&d->lock);
    while (d->n_put - d->n_done == QUEUE) pthread_cond_wait(&d->changed, &d->lock);
    d->queue[d->n_put % QUEUE] = *c;
    const dev_fence f = ++d->n_put;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    return f;
}

static bool sim_supports(const struct dev *d, const struct op *op, const struct dev_weight *weight)
{
    (void)d;
    for (int k = 0; k < OP_WEIGHTS; k++) {
        const enum qtype type = op->weight[k] < 0 ? QTYPE_F32 : weight[op->weight[k]].type;
        if (qtype_is_stacked(type) && (type != QTYPE_NEST2 || op->code != OP_EXPERTS)) return false;
    }
    switch (op->code) {
    case OP_EXPERTS: return op->p.moe.route.n_expert <= EXPERTS_MAX;
    case OP_RMS_NORM:
    case OP_HEAD_NORM:
    case OP_PREPARE:
    case OP_HEAD_PREPARE:
    case OP_MATMUL:
    case OP_HEAD_MATMUL:
    case OP_COPY_HEADS:
    case OP_ROPE:
    case OP_KV_PUT:
    case OP_ATTENTION:
    case OP_ADD:
    case OP_ADD_BIAS:
    case OP_FILL:
    case OP_SCALE:
    case OP_GATE:
    case OP_SOFTCAP:
    case OP_MUL:
    case OP_SELECT:
    case OP_GLU: return true;
    default: return false;
    }
}

static dev_fence sim_submit(struct dev *d, const struct op *ops, int n, const struct dev_bind *b)
{
    dev_fence f = 0;
    for (int i = 0; i < n; i++) f = put(d, &(struct command){.op = &ops[i], .bind = *b});
    return f;
}

static dev_fence sim_copy(struct dev *d, void *to, const void *from, uint64_t bytes)
{
    return put(d, &(struct command){.to = to, .from = from, .bytes = bytes});
}

static enum dev_state sim_wait(struct dev *d, dev_fence f, double seconds, struct err *e)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    until.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&d->lock);
    while (d->n_done < f && !d->lost.code)
        if (seconds <= 0 || pthread_cond_timedwait(&d->changed, &d->lock, &until) == ETIMEDOUT) break;
    const enum dev_state s = d->lost.code ? DEV_LOST : d->n_done < f ? DEV_PENDING : DEV_PASSED;
    if (d->lost.code && e && !e->code) *e = d->lost;
    pthread_mutex_unlock(&d->lock);
    return s;
}

static void *sim_alloc(struct dev *d, enum dev_where where, uint64_t bytes)
{
    bytes = (bytes + STEP - 1) / STEP * STEP;
    if (d->n_blocks == BLOCKS || (where == DEV_OWN && bytes > d->memory - d->used)) return NULL;
    struct region *r = &d->region[d->n_blocks];
    if (region_reserve(r, &d->ledger, MEM_ACT, bytes, NULL) || region_commit(r, bytes, NULL)) {
        region_release(r);
        return NULL;
    }
    d->block[d->n_blocks++] = (struct block){r->base, bytes, where};
    if (where == DEV_HOST) return r->base;
    d->used += bytes;
    memset(r->base, 0xff, bytes);
    return (void *)((uintptr_t)r->base ^ TAG);
}

static struct dev_caps sim_caps(const struct dev *d)
{
    return (struct dev_caps){.memory = d->memory, .rate = RATE, .rate_copy = RATE_COPY,
                             .latency = LATENCY, .modelled = true};
}

static double sim_clock(struct dev *d)
{
    pthread_mutex_lock(&d->lock);
    const double t = d->clock;
    pthread_mutex_unlock(&d->lock);
    return t;
}

static void sim_close(struct dev *d)
{
    if (d->started) {
        pthread_mutex_lock(&d->lock);
        d->stop = true;
        pthread_cond_broadcast(&d->changed);
        pthread_mutex_unlock(&d->lock);
        (void)pthread_join(d->thread, NULL);
    }
    if (d->cpu) dev_cpu_api()->close(d->cpu);
    pool_close(d->pool);
    for (int i = 0; i < d->n_blocks; i++) region_release(&d->region[i]);
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static enum status sim_open(uint64_t memory, struct dev **out, struct err *e)
{
    struct dev *d = calloc(1, sizeof *d);
    pthread_condattr_t clock;
    *out = NULL;
    if (!d) return err_set(e, ERR_MEMORY, "no memory for device sim");
    d->memory = memory == UINT64_MAX ? AUTO_MEMORY : memory;
    ledger_init(&d->ledger, UINT64_MAX);
    pthread_mutex_init(&d->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&d->changed, &clock);
    pthread_condattr_destroy(&clock);
    enum status s = pool_open(1, &d->pool, e);
    if (!s) s = dev_cpu_open(d->pool, cpu_tier_best(), &d->cpu, e);
    if (!s && pthread_create(&d->thread, NULL, stream, d))
        s = err_set(e, ERR_MEMORY, "the system gave no thread for device sim");
    d->started = !s;
    if (s) sim_close(d);
    else *out = d;
    return s;
}

const struct dev_api *dev_sim_api(void)
{
    static const struct dev_api api = {
        .abi = DEV_ABI, .size = sizeof(struct dev_api), .build = dev_build, .name = "sim",
        .own_memory = true, .supports = sim_supports, .submit = sim_submit, .wait = sim_wait,
        .close = sim_close, .open = sim_open, .caps = sim_caps, .alloc = sim_alloc,
        .copy = sim_copy, .clock = sim_clock,
    };
    return &api;
}
