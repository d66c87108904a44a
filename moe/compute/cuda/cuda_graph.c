/* The same launches again: a step of a token is some twenty kernels a layer, each of which would cost the
 * host two microseconds and the card a pause; as a graph they are one.
 *
 * DESIGN.  Nobody says that a step is like the one before: launches are values, so it shows.  A row of
 * them that is equal to one seen before, byte for byte, is recorded the second time and started as a graph
 * from then on.  What changes from token to token (rows, positions, pages) lies in lists at fixed
 * addresses, which go over before.  A driver that makes no graph is not asked again.
 *
 * Owns graphs and copies of launches.  Executor thread only. */
#include <stdlib.h>
#include <string.h>

#include "moe/compute/cuda/cuda_int.h"

static cudaError_t start_all(cudaStream_t s, const struct gpu_launch *l, int n)
{
    cudaError_t e = cudaSuccess;
    for (int i = 0; i < n && e == cudaSuccess; i++) e = gpu_start(s, &l[i]);
    return e;
}

static void forget(struct seen *k)
{
    if (k->exec) (void)cudaGraphExecDestroy(k->exec);
    free(k->launch);
    memset(k, 0, sizeof *k);
}

/* The one that is equal, or NULL and *oldest to be overwritten. */
static struct seen *find(struct graphs *g, const struct gpu_launch *l, int n, struct seen **oldest)
{
    *oldest = &g->seen[0];
    for (int i = 0; i < GRAPHS; i++) {
        struct seen *k = &g->seen[i];
        if (k->n == n && !memcmp(k->launch, l, sizeof *l * (size_t)n)) return k;
        if (k->last < (*oldest)->last) *oldest = k;
    }
    return NULL;
}

/* NULL: there is no graph to be had. */
static cudaGraphExec_t record(cudaStream_t s, const struct gpu_launch *l, int n)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return NULL;
    const cudaError_t started = start_all(s, l, n);
    if (cudaStreamEndCapture(s, &graph) != cudaSuccess || !graph) return NULL;
    if (started != cudaSuccess || cudaGraphInstantiateWithFlags(&exec, graph, 0) != cudaSuccess)
        exec = NULL;
    (void)cudaGraphDestroy(graph);
    return exec;
}

cudaError_t graphs_start(struct graphs *g, cudaStream_t s, const struct gpu_launch *l, int n)
{
    struct seen *oldest, *k = g->off ? NULL : find(g, l, n, &oldest);
    if (g->off) return start_all(s, l, n);
    if (!k) {
        forget(oldest);
        oldest->launch = malloc(sizeof *l * (size_t)n);
        if (oldest->launch) {
            memcpy(oldest->launch, l, sizeof *l * (size_t)n);
            oldest->n = n;
            oldest->last = ++g->n_starts;
        }
        return start_all(s, l, n);
    }
    k->last = ++g->n_starts;
    if (!k->exec && !(k->exec = record(s, l, n))) {
        g->off = true;
        return start_all(s, l, n);
    }
    return cudaGraphLaunch(k->exec, s);
}

void graphs_close(struct graphs *g)
{
    for (int i = 0; i < GRAPHS; i++) forget(&g->seen[i]);
}
