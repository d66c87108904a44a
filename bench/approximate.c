/* approximate MODEL FORECASTERS FITTED HELD [--mem SIZE,..] [--tokens N] [--rounds N]: is less than all of a
 * model less time?
 *
 * Decodes the first N tokens of the text HELD one by one: as the model is, with forecasters (made by
 * `tessera trace --fit-forecasters`) in the place of 25 and 40 % of its feed-forwards, as many of them
 * left out by lot or forecast by lot, and with as many of the experts left out that have the least gate
 * weight (the threshold is that share of all weights on the text FITTED; a token's best expert always
 * stays; what stays shares out the sum of all where the model normalises).  In turn, so that no way
 * has the machine's good minutes; times are medians of the rounds, and what is read in a round begins with
 * the cache that the round before it has left.
 *
 * Prints CSV: budget in MiB (0 = the whole model is there), way, share asked for, share that was left out, KL
 * in nats and perplexity over all tokens, MiB of experts that ran and MiB that were read, both per
 * token, and milliseconds per token with the lowest and highest round. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/median.h"
#include "moe/base/osfile.h"
#include "moe/load/gguf.h"
#include "moe/load/tok.h"
#include "moe/run/informed.h"
#include "moe/tessera.h"

enum { ROUNDS_MAX = 15, WAYS = 9, BUDGETS_MAX = 4, GATES_MAX = 1 << 20, FIT_TOKENS = 400 };

static const struct {
    const char *name;
    enum approx_mode mode;
    double share;
} ways[WAYS] = {
    {"whole", APPROX_OFF, 0},
    {"judged", APPROX_JUDGE, 0.25}, {"gate", APPROX_GATE, 0.25},
    {"forecast-by-lot", APPROX_RANDOM_FORECAST, 0.25}, {"left-out-by-lot", APPROX_RANDOM, 0.25},
    {"judged", APPROX_JUDGE, 0.4}, {"gate", APPROX_GATE, 0.4},
    {"forecast-by-lot", APPROX_RANDOM_FORECAST, 0.4}, {"left-out-by-lot", APPROX_RANDOM, 0.4},
};

struct way {
    double seconds[ROUNDS_MAX], kl, loss, ran, read, did;
};

struct collected {
    float *w;
    long n;
};

static void see_gates(void *arg, int n, const float *w)
{
    struct collected *g = arg;
    for (int i = 0; i < n && g->n < GATES_MAX; i++) g->w[g->n++] = w[i];
}

/* Log-probabilities in the place of logits. */
static void normalise(const float *x, int n, float *out)
{
    double sum = 0;
    float top = x[0];
    for (int i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int i = 0; i < n; i++) sum += exp((double)(x[i] - top));
    for (int i = 0; i < n; i++) out[i] = (float)((double)(x[i] - top) - log(sum));
}

static double kl_of(const float *p, const float *q, int n)
{
    double kl = 0;
    for (int i = 0; i < n; i++) kl += exp((double)p[i]) * ((double)p[i] - (double)q[i]);
    return kl;
}

/* One round of one way; full [n][n_vocab] is filled by the first of the whole model's. */
static enum status decode(tessera_engine *e, int way, int round, const int32_t *ids, int n, float *full,
                          struct way *a, struct err *err)
{
    struct approx *x = approx_of(e);
    const int n_vocab = tessera_model(e).n_vocab;
    const bool judge = !round, fill = judge && !way;
    float *row = malloc(sizeof *row * (size_t)n_vocab);
    tessera_session *s;
    enum status st = row ? tessera_session_open(e, 0, &s, err) : err_set(err, ERR_MEMORY, "no memory");
    if (st) return st;
    approx_set(x, ways[way].mode, ways[way].share);
    const struct tessera_traffic before = tessera_traffic(e);
    double seconds = 0;
    for (int i = 0; i < n && !st; i++) {
        const struct tessera_input in = {s, ids + i, 1, TESSERA_LOGITS_LAST};
        const double start = os_seconds();
        st = tessera_step(e, &in, 1, err);
        seconds += os_seconds() - start;
        if (st || !judge) continue;
        normalise(tessera_logits(e, 0, 0), n_vocab, row);
        if (fill) memcpy(full + (size_t)i * (size_t)n_vocab, row, sizeof *row * (size_t)n_vocab);
        a->kl += kl_of(full + (size_t)i * (size_t)n_vocab, row, n_vocab) / n;
        a->loss -= i + 1 < n ? (double)row[ids[i + 1]] / (n - 1) : 0;
    }
    const struct tessera_traffic after = tessera_traffic(e);
    a->seconds[round] = seconds / n;
    a->did = x->rows ? (double)x->rows_on / (double)x->rows : 0;
    /* Of the last round: what the first found in the cache was loaded by something else. */
    a->read = (double)(after.bytes_read - before.bytes_read) / n;
    a->ran = (double)(after.hits + after.misses - before.hits - before.misses) / n;
    tessera_session_close(s);
    free(row);
    return st;
}

static enum status learn_gates(tessera_engine *e, const int32_t *ids, int n, struct err *err)
{
    struct approx *x = approx_of(e);
    struct collected g = {malloc(sizeof(float) * GATES_MAX), 0};
    tessera_session *s;
    enum status st = g.w ? tessera_session_open(e, 0, &s, err) : err_set(err, ERR_MEMORY, "no memory");
    if (st) return st;
    approx_set(x, APPROX_OFF, 0);
    x->see_gates = see_gates;
    x->see_arg = &g;
    for (int i = 0; i < n && !st; i++)
        st = tessera_step(e, &(struct tessera_input){s, ids + i, 1, TESSERA_LOGITS_LAST}, 1, err);
    x->see_gates = NULL;
    approx_gates(x, g.w, g.n);
    tessera_session_close(s);
    free(g.w);
    return st;
}

static enum status text_ids(tessera_engine *e, const char *path, int n, int32_t *ids, int *got,
                            struct err *err)
{
    char *text = malloc(16 * (size_t)n + 1);
    FILE *f = fopen(path, "rb");
    if (!f || !text) {
        free(text);
        return err_set(err, ERR_IO, "%s cannot be read", path);
    }
    const size_t bytes = fread(text, 1, 16 * (size_t)n, f);
    (void)fclose(f);
    int32_t *all = malloc(sizeof *all * (bytes + 2));
    const struct tok *tok = tessera_tok(e);
    const int64_t m = all && tok ? tok_encode(tok, text, bytes, TOK_BOS, all, (int64_t)bytes + 2) : 0;
    *got = m < n ? (int)(m < 0 ? 0 : m) : n;
    memcpy(ids, all, sizeof *ids * (size_t)*got);
    free(all);
    free(text);
    return *got < 2 ? err_set(err, ERR_RANGE, "%s is too short", path) : OK;
}

/* Mean bytes of an expert. */
static double expert_bytes(tessera_engine *e)
{
    const struct gguf *g = tessera_gguf(e);
    double bytes = 0, down = 0;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char name[256];
        (void)snprintf(name, sizeof name, "%.*s", (int)t->name.n, t->name.s);
        if (!strstr(name, "_exps.weight")) continue;
        bytes += (double)t->bytes;
        down += strstr(name, "down_exps") != NULL;
    }
    return bytes / (down * tessera_model(e).n_expert);
}

static enum status measure(struct tessera_options o, uint64_t mem, const char *fitted, const char *held,
                           int n_tokens, int rounds, float **full, struct err *err)
{
    tessera_engine *e = NULL;
    struct way a[WAYS] = {{.kl = 0}};
    int32_t ids[4096], fit[FIT_TOKENS];
    int n = 0, n_fit = 0;
    o.mem_budget = mem ? mem : UINT64_MAX;
    o.approximate = 0.25f;
    enum status s = tessera_open(&o, &e, err);
    if (!s) s = text_ids(e, fitted, FIT_TOKENS, fit, &n_fit, err);
    if (!s) s = text_ids(e, held, n_tokens, ids, &n, err);
    const struct tessera_model m = e ? tessera_model(e) : (struct tessera_model){.n_ctx = 0};
    if (!s && !(*full = realloc(*full, sizeof **full * (size_t)n * (size_t)m.n_vocab)))
        s = err_set(err, ERR_MEMORY, "no memory for logits");
    if (!s) s = learn_gates(e, fit, n_fit, err);
    for (int r = 0; r < rounds && !s; r++)
        for (int k = 0; k < WAYS && !s; k++) s = decode(e, k, r, ids, n, *full, &a[k], err);
    for (int k = 0; k < WAYS && !s; k++) {
        double t[ROUNDS_MAX];
        memcpy(t, a[k].seconds, sizeof t);
        const double mid = median(t, rounds); /* they are sorted now */
        printf("%d,%s,%.2f,%.4f,%.4f,%.3f,%.3f,%.3f,%.3f,%.3f,%.3f\n", (int)(mem >> 20), ways[k].name,
               ways[k].share, a[k].did, a[k].kl, exp(a[k].loss),
               a[k].ran * expert_bytes(e) / (1 << 20), a[k].read / (1 << 20),
               1e3 * mid, 1e3 * t[0], 1e3 * t[rounds - 1]);
    }
    tessera_close(e);
    return s;
}

int main(int argc, char **argv)
{
    struct tessera_options o = tessera_defaults();
    uint64_t mem[BUDGETS_MAX] = {0};
    int n_mem = 1, tokens = 400, rounds = 5;
    float *full = NULL;
    struct err err;
    err_clear(&err);
    for (int i = 5; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--tokens")) tokens = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--rounds")) rounds = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--mem"))
            for (char *p = argv[i + 1]; *p && n_mem < BUDGETS_MAX; p += *p == ',' || *p == 'M') {
                mem[n_mem++] = (uint64_t)strtoul(p, &p, 10) << 20;
                p += *p == 'M';
            }
    }
    if (argc < 5 || tokens < 2 || tokens > 4096 || rounds < 1 || rounds > ROUNDS_MAX) {
        (void)fprintf(stderr, "approximate MODEL FORECASTERS FITTED HELD [--mem 30M,..] [--tokens N] [--rounds N]\n");
        return 2;
    }
    o.model_path = argv[1];
    o.forecasters = argv[2];
    printf("mem_mib,way,share,left_out,kl,ppl,ran_mib,read_mib,ms,ms_min,ms_max\n");
    for (int b = 0; b < n_mem; b++)
        if (measure(o, mem[b], argv[3], argv[4], tokens, rounds, &full, &err)) {
            (void)fprintf(stderr, "approximate: %s\n", err.msg);
            return 1;
        }
    free(full);
    return 0;
}
