/* saved DIR [--type T] [--tokens N] [--rounds N] [--mor] [--ouro] [--sessions]: is saved work saved
 * time?
 *
 * Writes random-weight models of published shapes into DIR (bench/gen.h; kept, some gigabytes):
 * the mixture-of-recursions 360M with 3 recursions and Ouro 1.4B with 4 loops, whose routers send
 * every token equally deep, and one of the former whose tokens differ.  Decodes with each,
 * interleaved, and prints for each mean depth: tokens per second (median of the rounds), the bytes
 * of weights and products per token that really were read and done, the speed that these predict
 * from the deepest one's, what was reached of it, and the bytes of K and V per token beside the
 * derived ones.
 *
 * --sessions: steps of several sessions of the recursive model instead, beside the paper's queue
 * ("continuous depth-wise batching"), in which a pass over the block takes each session's token
 * one recursion on, whichever that is, and a new token may enter while others are deep.  A step
 * here reads the block as often as its deepest token needs; a queue as often as the mean one does,
 * but it reads the layers and the head around the block more often.  The queue's reads and time
 * are computed: from the depths that the sessions' tokens really had, and from the measured time
 * of a pass over the block and of the rest with so many rows (steps whose tokens are all 3 or all
 * 1 deep). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gen.h"
#include "bench/median.h"
#include "moe/base/osfile.h"
#include "moe/tessera.h"

enum { CASES_MAX = 8, ROUNDS_MAX = 15, PROMPT = 16, SIZES = 5, SESSIONS_MAX = 16, TOKENS_MAX = 256 };

static const int sizes[SIZES] = {1, 2, 4, 8, SESSIONS_MAX};

struct bench_case {
    char path[256], name[40];
    float exit_at;             /* ouro */
    int layers_all, layers_rec; /* of the unrolled model: in every pass; per unit of depth */
    int kv_values;             /* of K and V per layer */
    double seconds[ROUNDS_MAX], depth;
    double bytes, macs;        /* per token */
    uint64_t kv_bytes;
    tessera_engine *engine;
};

static int fail(const struct err *e)
{
    (void)fprintf(stderr, "saved: %s\n", e->msg);
    return 1;
}

/* The deepest first: the others are judged by it. */
static int list_cases(struct bench_case *c, const char *dir, unsigned type, bool mor, bool ouro,
                      bool sessions, struct err *e)
{
    int n = 0;
    struct gen_spec g = gen_defaults();
    g.type = type;
    g.n_expert = g.n_expert_used = 0;
    g.n_vocab = 49152;
    g.n_ctx = 2048;
    for (int k = 3; mor && k >= 0; k--) { /* 0: depths differ */
        g.arch = "mor";
        g.n_layer = 12; /* 2 + 10, three times: 32 */
        g.n_embd = 960;
        g.n_head = 15;
        g.n_head_kv = 5;
        g.head_dim = 64;
        g.n_ff = 2560;
        g.tied = true;
        g.n_repeats = 3;
        g.router_sigma = k ? 0 : 0.05f;
        for (int r = 0; r < 3; r++) g.threshold[r] = k == 0 && (r || !sessions) ? 0.4f : r < k || !k ? 0.0f : 2.0f;
        struct bench_case *b = &c[n++];
        *b = (struct bench_case){.layers_all = 2, .layers_rec = 10, .kv_values = 2 * 320};
        (void)snprintf(b->name, sizeof b->name, k ? "MoR-360M, depth %d" : "MoR-360M, mixed", k);
        (void)snprintf(b->path, sizeof b->path, "%s/mor-%d.gguf", dir, k);
        if (gen_write(&g, b->path, NULL, e)) return -1;
    }
    for (int k = 4; ouro && k >= 1; k--) {
        g.arch = "ouro";
        g.n_layer = 24;
        g.n_embd = 2048;
        g.n_head = g.n_head_kv = 16;
        g.head_dim = 128;
        g.n_ff = 5632;
        g.tied = false;
        g.n_repeats = 4;
        g.router_sigma = 0;
        struct bench_case *b = &c[n++];
        *b = (struct bench_case){.layers_rec = 24, .kv_values = 2 * 2048};
        /* Chances of a half: they sum to 1/2, 3/4, 7/8 after one, two, three loops. */
        b->exit_at = 1.0f - 1.0f / (float)(1 << k) - (k == 4 ? 0 : 0.01f);
        if (k == 4) b->exit_at = 0.95f;
        (void)snprintf(b->name, sizeof b->name, "Ouro-1.4B, %d loop%s", k, k == 1 ? "" : "s");
        (void)snprintf(b->path, sizeof b->path, "%s/ouro.gguf", dir);
        if (k == 4 && gen_write(&g, b->path, NULL, e)) return -1;
    }
    return n;
}

static enum status decode(struct bench_case *c, int n_tokens, int round, struct err *e)
{
    tessera_session *s;
    enum status st = tessera_session_open(c->engine, 0, &s, e);
    int32_t ids[PROMPT];
    if (st) return st;
    for (int i = 0; i < PROMPT; i++) ids[i] = (int32_t)(i * 7919 % 49152);
    struct tessera_input in = {s, ids, PROMPT, TESSERA_LOGITS_LAST};
    st = tessera_step(c->engine, &in, 1, e);
    const struct tessera_depth before = tessera_depth(c->engine);
    const double start = os_seconds();
    for (int i = 0; !st && i < n_tokens; i++) {
        const int32_t id = (int32_t)((i * 104729 + 13) % 49152);
        in = (struct tessera_input){s, &id, 1, TESSERA_LOGITS_LAST};
        st = tessera_step(c->engine, &in, 1, e);
    }
    c->seconds[round] = (os_seconds() - start) / n_tokens;
    const struct tessera_depth after = tessera_depth(c->engine);
    uint64_t sum = 0;
    for (int i = 0; i <= after.n_max; i++)
        sum += (uint64_t)i * (after.rows_at[i] - before.rows_at[i]);
    c->depth = (double)sum / n_tokens;
    c->bytes = (double)(after.bytes - before.bytes) / n_tokens;
    c->macs = (double)(after.macs - before.macs) / n_tokens;
    c->kv_bytes = tessera_memory(c->engine).kv / (uint64_t)tessera_session_n(s);
    tessera_session_close(s);
    return st;
}

static void print(struct bench_case *c, int n, int rounds)
{
    struct bench_case *full = NULL;
    printf("| model | mean depth | tokens/s | MB read per token | GMAC per token | predicted tokens/s |"
           " reached | KiB of K and V per token | derived |\n|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < n; i++) {
        struct bench_case *b = &c[i];
        const double t = median(b->seconds, rounds);
        if (!full || strncmp(full->name, b->name, 4)) full = b;
        const double want = median(full->seconds, rounds) * b->bytes / full->bytes;
        /* Exits leave K and V in every slot; recursions only where a token is. */
        const double deep = b->exit_at > 0 ? 4 : b->depth;
        const double kv = 2.0 * b->kv_values * (b->layers_all + b->layers_rec * deep) / 1024;
        printf("| %s | %.2f | %.2f | %.0f | %.2f | %.2f | %.0f %% | %.1f | %.1f |\n", b->name, b->depth,
               1 / t, b->bytes / 1e6, b->macs / 1e9, 1 / want, 100 * want / t,
               (double)b->kv_bytes / 1024, kv);
    }
}

/* ---- steps of several sessions ---- */

/* Steps of n sessions with one token each. */
struct batch {
    double seconds;           /* per step */
    double bytes;             /* of weights, per step */
    unsigned char depth[SESSIONS_MAX][TOKENS_MAX];
};

static enum status steps(struct bench_case *c, int n, int n_tokens, struct batch *b, struct err *e)
{
    tessera_session *s[SESSIONS_MAX] = {NULL};
    struct tessera_input in[SESSIONS_MAX];
    int32_t ids[SESSIONS_MAX];
    enum status st = OK;
    for (int k = 0; k < n && !st; k++) {
        ids[k] = k;
        st = tessera_session_open(c->engine, 0, &s[k], e);
        in[k] = (struct tessera_input){s[k], &ids[k], 1, TESSERA_LOGITS_LAST};
    }
    struct tessera_depth before = {0};
    double start = 0;
    for (int i = -1; i < n_tokens && !st; i++) { /* the first one warms up */
        if (i == 0) {
            before = tessera_depth(c->engine);
            start = os_seconds();
        }
        st = tessera_step(c->engine, in, n, e);
        for (int k = 0; k < n; k++) ids[k] = (int32_t)(((i + 1) * 104729 + k * 7919 + 13) % 49152);
        for (int k = 0; k < n && i >= 0 && !st; k++) b->depth[k][i] = tessera_session_depths(s[k])[i + 1];
    }
    b->seconds = (os_seconds() - start) / n_tokens;
    b->bytes = (double)(tessera_depth(c->engine).bytes - before.bytes) / n_tokens;
    for (int k = 0; k < n; k++) tessera_session_close(s[k]);
    return st;
}

/* At n rows, between the sizes that were measured. */
static double at_size(const double *y, int n)
{
    int i = 1;
    while (i < SIZES - 1 && sizes[i] < n) i++;
    const double x = (double)(n - sizes[i - 1]) / (sizes[i] - sizes[i - 1]);
    return y[i - 1] + x * (y[i] - y[i - 1]);
}

struct cost {
    double block, rest, block_s[SIZES], rest_s[SIZES]; /* bytes; seconds by rows */
};

/* The queue over n sessions that go on for long, with these depths again and again; what stands behind
 * the block goes on when `wait` are there.  Bytes and seconds per token. */
static void queue(const struct batch *b, int n, int n_tokens, int wait, const struct cost *c,
                  double *bytes, double *seconds)
{
    int left[SESSIONS_MAX], at[SESSIONS_MAX] = {0}, done = 0;
    *bytes = *seconds = 0;
    for (int k = 0; k < n; k++) left[k] = b->depth[k][0];
    while (done < 100 * n * n_tokens) {
        int deep = 0;
        for (int k = 0; k < n; k++) deep += left[k] > 0;
        const bool rest = n - deep >= wait || !deep;
        *bytes += rest ? c->rest : c->block;
        *seconds += at_size(rest ? c->rest_s : c->block_s, rest ? n - deep : deep);
        for (int k = 0; k < n; k++) {
            if ((left[k] == 0) != rest) continue;
            if (!rest) left[k]--;
            else left[k] = b->depth[k][at[k] = (at[k] + 1) % n_tokens], done++;
        }
    }
    *bytes /= done;
    *seconds /= done;
}

static int batches(struct bench_case *deep, struct bench_case *flat, struct bench_case *mixed,
                   int n_tokens, int rounds, struct err *e)
{
    static struct batch b[SIZES][3];
    static double t[SIZES][3][ROUNDS_MAX];
    struct bench_case *const c[3] = {deep, flat, mixed};
    struct cost cost;
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < SIZES; i++)
            for (int k = 0; k < 3; k++) {
                if (steps(c[k], sizes[i], n_tokens, &b[i][k], e)) return fail(e);
                t[i][k][r] = b[i][k].seconds;
            }
    for (int i = 0; i < SIZES; i++) {
        for (int k = 0; k < 3; k++) b[i][k].seconds = median(t[i][k], rounds);
        cost.block_s[i] = (b[i][0].seconds - b[i][1].seconds) / 2;
        cost.rest_s[i] = b[i][1].seconds - cost.block_s[i];
    }
    cost.block = (b[0][0].bytes - b[0][1].bytes) / 2;
    cost.rest = b[0][1].bytes - cost.block;
    printf("A pass over the block reads %.0f MB, the rest %.0f MB.\n\n| sessions | mean depth | deepest of a "
           "step | tokens/s | MB read per token | queue: MB | tokens/s, computed | ms of a pass | of the "
           "rest |\n|---|---|---|---|---|---|---|---|---|\n", cost.block / 1e6, cost.rest / 1e6);
    for (int i = 0; i < SIZES; i++) {
        const int n = sizes[i];
        const struct batch *m = &b[i][2];
        double sum = 0, deepest = 0, least_b = 0, least_s = 0;
        for (int j = 0; j < n_tokens; j++) {
            int most = 0;
            for (int k = 0; k < n; k++) {
                sum += m->depth[k][j];
                if (m->depth[k][j] > most) most = m->depth[k][j];
            }
            deepest += most;
        }
        for (int wait = 1; wait <= n; wait++) {
            double bytes, seconds;
            queue(m, n, n_tokens, wait, &cost, &bytes, &seconds);
            if (wait == 1 || bytes < least_b) least_b = bytes;
            if (wait == 1 || seconds < least_s) least_s = seconds;
        }
        printf("| %d | %.2f | %.2f | %.1f | %.0f | %.0f | %.1f | %.1f | %.1f |\n", n, sum / n / n_tokens,
               deepest / n_tokens, n / m->seconds, m->bytes / n / 1e6, least_b / 1e6, 1 / least_s,
               cost.block_s[i] * 1e3, cost.rest_s[i] * 1e3);
    }
    return 0;
}

static int run(struct bench_case *c, int n, int n_tokens, int rounds, bool sessions, struct err *e)
{
    for (int i = 0; i < n; i++) {
        struct tessera_options o = tessera_defaults();
        o.model_path = c[i].path;
        o.n_ctx = 2048;
        if (sessions) o.n_sessions = SESSIONS_MAX;
        o.exit_at = c[i].exit_at;
        if (tessera_open(&o, &c[i].engine, e)) return fail(e);
    }
    int rc = 0;
    for (int r = -1; r < rounds && !sessions; r++) /* the first one warms up */
        for (int i = 0; i < n; i++)
            if (decode(&c[i], r < 0 ? 4 : n_tokens, r < 0 ? 0 : r, e)) return fail(e);
    if (sessions) rc = batches(&c[0], &c[2], &c[3], n_tokens, rounds, e);
    else print(c, n, rounds);
    for (int i = 0; i < n; i++) tessera_close(c[i].engine);
    return rc;
}

int main(int argc, char **argv)
{
    static struct bench_case c[CASES_MAX];
    int n_tokens = 48, rounds = 3;
    unsigned type = QTYPE_Q8_0;
    bool mor = false, ouro = false, sessions = false;
    struct err e;
    err_clear(&e);
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--mor")) mor = true;
        else if (!strcmp(argv[i], "--ouro")) ouro = true;
        else if (!strcmp(argv[i], "--sessions")) sessions = true;
        else if (!strcmp(argv[i], "--tokens") && i + 1 < argc) n_tokens = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--rounds") && i + 1 < argc) rounds = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--type") && i + 1 < argc && qtype_by_name(argv[i + 1]))
            type = (unsigned)qtype_by_name(argv[++i])->id;
        else argc = 0;
    }
    if (argc < 2 || argv[1][0] == '-' || n_tokens < 1 || (sessions && n_tokens > TOKENS_MAX) ||
        rounds < 1 || rounds > ROUNDS_MAX) {
        (void)fprintf(stderr, "usage: saved DIR [--type T] [--tokens N] [--rounds N] [--mor] [--ouro] "
                      "[--sessions]\n");
        return 2;
    }
    if (sessions) mor = true, ouro = false;
    else if (!mor && !ouro) mor = ouro = true;
    const int n = list_cases(c, argv[1], type, mor, ouro, sessions, &e);
    return n < 0 ? fail(&e) : run(c, n, n_tokens, rounds, sessions, &e);
}
