/* CUDA's runtime on the CPU, for tests: what the plugin asks of it, done for real, and late.
 *
 * Work is put off: a stream is a list, and nothing of it happens until somebody asks whether it has; then
 * a command or two run, of whichever stream may go on.  So copies read their source as late as a GPU
 * might, streams pass one another, and answers come late.  Kernels run as loops over their threads, every
 * other launch backwards.
 *
 * How it misbehaves is named in the environment, TEST_CUDA, read when the device is set:
 *   driver, none, old, image   the driver is too old, there is no device, an old one, no kernels for it
 *   small=MIB                  so much memory
 *   malloc=N, host=N           the Nth allocation there fails
 *   lost=N                     everything from the Nth command on fails
 *   late=N                     the Nth command never runs
 *   launches=N                 the launches behind the Nth fail, but for those of graphs
 *   graph=N                    the Nth call that has to do with graphs fails
 * Owns what it gives out; one thread. */
#include <cuda_runtime_api.h>

#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ARGS = 256, STREAMS = 8, QUEUE = 4096, KERNELS = 128 };

struct emu_event { uint64_t recorded, passed; /* how often */ };

struct command {
    emu_fn *fn;               /* a kernel */
    unsigned char args[MAX_ARGS];
    dim3 grid;
    void *to;                 /* a copy */
    const void *from;
    size_t n;
    cudaEvent_t record, wait; /* an event */
    uint64_t turn;
};

struct emu_graph {
    struct command *launch;
    int n, cap;
};

struct emu_stream {
    struct command *queue[QUEUE]; /* [n_done % QUEUE ..] */
    uint64_t n_put, n_done;
    struct emu_graph *graph;      /* launches are recorded there */
};

int emu_backwards;
static struct kernel { emu_fn *fn; int args; } kernels[KERNELS];
static struct emu_stream *streams[STREAMS];
static size_t used, total = (size_t)1 << 30;
static long n_malloc, n_host, n_run, fail_malloc, fail_host, lost_from, late_from;
static long n_launch, n_graph, most_launches, fail_graph;
static uint64_t turn = 88172645463325252u;
static char mode[64];

static cudaError_t lost(void)
{
    return lost_from && n_run >= lost_from ? cudaErrorLaunchFailure : cudaSuccess;
}

/* The number behind NAME= in the mode, 0 = not there. */
static long number(const char *name)
{
    const size_t n = strlen(name);
    return !strncmp(mode, name, n) && mode[n] == '=' ? strtol(mode + n + 1, NULL, 10) : 0;
}

const void *emu_kernel(emu_fn *f, int args)
{
    for (int i = 0; args <= MAX_ARGS && i < KERNELS; i++) {
        if (!kernels[i].fn) kernels[i] = (struct kernel){f, args};
        if (kernels[i].fn == f) return &kernels[i];
    }
    abort();
}

/* ---- running ---- */

static void run(struct command *c)
{
    n_run++;
    if (lost()) return;
    if (c->record) c->record->passed = c->turn;
    if (c->to) memcpy(c->to, c->from, c->n);
    if (!c->fn) return;
    emu_backwards = !emu_backwards;
    for (unsigned z = 0; z < c->grid.z; z++)
        for (unsigned y = 0; y < c->grid.y; y++)
            for (unsigned x = 0; x < c->grid.x; x++) c->fn(c->args, (int)x, (int)y, (int)z);
}

/* Runs the next command of a stream; 0: there is none, or it waits. */
static int advance(struct emu_stream *s)
{
    if (!s || s->n_done == s->n_put) return 0;
    struct command *c = s->queue[s->n_done % QUEUE];
    if (c->wait && c->wait->passed < c->turn) return 0;
    if (late_from && n_run + 1 >= late_from) return 0;
    run(c);
    free(c);
    s->n_done++;
    return 1;
}

static int some(void)
{
    int any = 0;
    for (int i = 0; i < 3 && !any; i++) {
        turn ^= turn << 13, turn ^= turn >> 7, turn ^= turn << 17;
        any |= advance(streams[turn % STREAMS]);
    }
    for (int i = 0; i < STREAMS && !any; i++) any |= advance(streams[i]);
    return any;
}

static cudaError_t put(cudaStream_t s, const struct command *c)
{
    if (lost()) return lost();
    while (s->n_put - s->n_done == QUEUE)
        if (!some()) return cudaErrorLaunchFailure;
    struct command *copy = malloc(sizeof *copy);
    if (!copy) return cudaErrorMemoryAllocation;
    *copy = *c;
    s->queue[s->n_put++ % QUEUE] = copy;
    return cudaSuccess;
}

/* ---- the functions ---- */

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorInvalidValue: break;
    }
    return "invalid argument";
}

cudaError_t cudaGetDeviceCount(int *n)
{
    const char *m = getenv("TEST_CUDA");
    (void)snprintf(mode, sizeof mode, "%s", m ? m : "");
    *n = !strcmp(mode, "driver") || !strcmp(mode, "none") ? 0 : 1;
    if (!strcmp(mode, "driver")) return cudaErrorInsufficientDriver;
    return *n ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int n, int device)
{
    (void)device;
    (void)snprintf(id, (size_t)n, "0000:00:00.0");
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int device)
{
    (void)device;
    *v = a == cudaDevAttrComputeCapabilityMinor ? 0 : !strcmp(mode, "old") ? 7 : 8;
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned flags)
{
    (void)flags;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    (void)device;
    n_malloc = n_host = n_run = n_launch = n_graph = 0;
    most_launches = number("launches");
    fail_graph = number("graph");
    fail_malloc = number("malloc");
    fail_host = number("host");
    lost_from = number("lost");
    late_from = number("late");
    total = (size_t)(number("small") ? number("small") : 1024) << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceReset(void) { return cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all)
{
    *free_bytes = total - used;
    *all = total;
    return cudaSuccess;
}

/* The size lies in front of the block. */
static void *block(size_t n, int fill)
{
    char *p = aligned_alloc(256, (n + 256 + 255) / 256 * 256);
    if (!p) return NULL;
    memset(p + 256, fill, n);
    memcpy(p, &n, sizeof n);
    return p + 256;
}

cudaError_t cudaMalloc(void **p, size_t n)
{
    *p = NULL;
    if (++n_malloc == fail_malloc || n > total - used) return cudaErrorMemoryAllocation;
    if (!(*p = block(n, 0xff))) return cudaErrorMemoryAllocation;
    used += n;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    size_t n;
    if (!p) return cudaSuccess;
    memcpy(&n, (char *)p - 256, sizeof n);
    used -= n;
    free((char *)p - 256);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags)
{
    (void)flags;
    *p = ++n_host == fail_host ? NULL : block(n, 0);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *p)
{
    if (p) free((char *)p - 256);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s)
{
    (void)k;
    struct command c = {.to = to, .from = from, .n = n};
    return put(s, &c);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    (void)flags;
    for (int i = 0; i < STREAMS; i++)
        if (!streams[i]) {
            *s = streams[i] = calloc(1, sizeof **s);
            return *s ? cudaSuccess : cudaErrorMemoryAllocation;
        }
    return cudaErrorInvalidValue;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    for (int i = 0; i < STREAMS; i++)
        if (s && streams[i] == s) streams[i] = NULL;
    for (; s && s->n_done < s->n_put; s->n_done++) free(s->queue[s->n_done % QUEUE]);
    free(s);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    (void)some();
    return lost() ? lost() : s->n_done < s->n_put ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    while (!lost() && s->n_done < s->n_put)
        if (!some()) return cudaErrorLaunchFailure;
    return lost();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    (void)flags;
    struct command c = {.wait = e, .turn = e->recorded};
    return put(s, &c);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    (void)flags;
    *e = calloc(1, sizeof **e);
    return *e ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    free(e);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    struct command c = {.record = e, .turn = ++e->recorded};
    return put(s, &c);
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    if (lost()) return lost();
    if (e->passed == e->recorded) return cudaSuccess;
    (void)some();
    return lost() ? lost() : e->passed == e->recorded ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    (void)from;
    (void)to;
    *ms = 0.001f;
    return lost();
}

cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 threads, void **args, size_t shared,
                             cudaStream_t s)
{
    const struct kernel *k = f;
    struct command c = {.fn = k->fn, .grid = grid};
    if (threads.x != 256 || shared || !grid.x || !grid.y || !grid.z) return cudaErrorInvalidValue;
    memcpy(c.args, args[0], (size_t)k->args);
    if (!s->graph) return most_launches && ++n_launch > most_launches ? cudaErrorLaunchFailure : put(s, &c);
    if (s->graph->n == s->graph->cap) {
        const int cap = 2 * s->graph->cap + 64;
        struct command *more = realloc(s->graph->launch, sizeof *more * (size_t)cap);
        if (!more) return cudaErrorMemoryAllocation;
        s->graph->launch = more;
        s->graph->cap = cap;
    }
    s->graph->launch[s->graph->n++] = c;
    return cudaSuccess;
}

/* ---- graphs ---- */

static int graph_fails(void) { return ++n_graph == fail_graph; }

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode capture)
{
    (void)capture;
    if (graph_fails() || s->graph) return cudaErrorInvalidValue;
    s->graph = calloc(1, sizeof *s->graph);
    return s->graph ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    if (g) free(g->launch);
    free(g);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) { return cudaGraphDestroy(x); }

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    *g = s->graph;
    s->graph = NULL;
    if (!graph_fails()) return cudaSuccess;
    (void)cudaGraphDestroy(*g);
    *g = NULL;
    return cudaErrorInvalidValue;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags)
{
    (void)flags;
    *x = NULL;
    if (graph_fails() || !g->n) return cudaErrorInvalidValue;
    *x = calloc(1, sizeof **x);
    if (!*x) return cudaErrorMemoryAllocation;
    (*x)->launch = malloc(sizeof *g->launch * (size_t)g->n);
    if (!(*x)->launch) return cudaErrorMemoryAllocation;
    memcpy((*x)->launch, g->launch, sizeof *g->launch * (size_t)g->n);
    (*x)->n = g->n;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    cudaError_t e = graph_fails() ? cudaErrorLaunchFailure : cudaSuccess;
    for (int i = 0; i < x->n && e == cudaSuccess; i++) e = put(s, &x->launch[i]);
    return e;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f)
{
    (void)f;
    a->sharedSizeBytes = 0;
    return !strcmp(mode, "image") ? cudaErrorNoKernelImageForDevice : cudaSuccess;
}
