/* concepts DIR [--ctx N,N..] [--tokens N] [--rounds N] [--type T] [-ub N]: is work that concepts save
 * saved time?
 *
 * Writes a random-weight ConceptMoE of more than a gigabyte into DIR (bench/gen.h; kept), whose
 * boundaries are where a text's ids change between odd and even, and reads texts of 1, 1.5, 2 and 4 tokens
 * per concept: a prompt of N tokens, then decoding behind it, interleaved.  Prints tokens per second
 * (medians of the rounds), what the work predicts from the text with a concept for every token, and what
 * was reached of it, and the bytes of K and V per token beside the derived ones.
 *
 * DESIGN.  The prediction is by kind of step, from the runs themselves: what a kind took with a concept
 * for every token, times the work that it had left: products when a prompt is read, bytes of weights, keys
 * and values when decoding.  Kinds without either (norms, additions) shrink as all others together. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/gen.h"
#include "bench/median.h"
#include "moe/base/osfile.h"
#include "moe/tessera.h"

enum { RATIOS = 4, CTX_MAX = 8, ROUNDS_MAX = 9, KINDS_MAX = 128, VOCAB = 32768 };
enum { LAYERS = 16, ENDS = 4, HEADS_KV = 4, HEAD_DIM = 64 };

static const double ratio[RATIOS] = {1, 1.5, 2, 4};

struct kinds {
    int n;
    struct tessera_step_kind at[KINDS_MAX];
};

/* One phase of one text: seconds per token of each round; work and time by kind in the last one. */
struct phase {
    double seconds[ROUNDS_MAX];
    struct kinds kinds;
};

struct text {
    struct phase prompt, decode;
    double measured;       /* tokens per concept */
    double kv;             /* bytes of K and V per token */
};

static int fail(const struct err *e)
{
    (void)fprintf(stderr, "concepts: %s\n", e->msg);
    return 1;
}

static enum status write_model(const char *path, unsigned type, int n_ctx, struct err *e)
{
    struct gen_spec g = gen_defaults();
    g.arch = "conceptmoe";
    g.type = type;
    g.n_layer = LAYERS;
    g.n_encoder = g.n_decoder = ENDS / 2;
    g.n_embd = 1024;
    g.n_head = 16;
    g.n_head_kv = HEADS_KV;
    g.head_dim = HEAD_DIM;
    g.n_ff = 512;
    g.n_expert = 48;
    g.n_expert_used = 8;
    g.n_vocab = VOCAB;
    g.n_ctx = n_ctx;
    return gen_write(&g, path, NULL, e);
}

/* Spans of ratio r: of 1 and 2 tokens by turns for 1.5. */
static void make_text(double r, int32_t *ids, int n)
{
    int odd = 0, left = 1, turn = 0;
    for (int i = 0; i < n; i++) {
        if (!left--) {
            odd ^= 1;
            left = (r < 1.75 && r > 1.25 ? 1 + turn++ % 2 : (int)r) - 1;
        }
        ids[i] = (int32_t)((uint32_t)i * 104729u % (VOCAB / 2)) * 2 + odd;
    }
}

static void take_kinds(tessera_engine *e, struct kinds *k)
{
    for (k->n = 0; k->n < KINDS_MAX && tessera_profile_at(e, k->n, &k->at[k->n]); k->n++) {}
}

/* ids through the engine in steps of `piece`; the phase's time and kinds. */
static enum status pass(tessera_engine *e, tessera_session *s, const int32_t *ids, int n, int piece,
                        struct phase *p, int round, struct err *err)
{
    enum status st = tessera_profile(e, true, err);
    const double start = os_seconds();
    for (int at = 0; at < n && !st; at += piece) {
        const struct tessera_input in = {s, ids + at, piece < n - at ? piece : n - at,
                                         piece == 1 || at + piece >= n ? TESSERA_LOGITS_LAST
                                                                       : TESSERA_LOGITS_NONE};
        st = tessera_step(e, &in, 1, err);
    }
    p->seconds[round] = (os_seconds() - start) / n;
    take_kinds(e, &p->kinds);
    return st;
}

static enum status run_text(tessera_engine *e, struct text *t, int which, int n_ctx, int n_tokens,
                            int piece, int round, struct err *err)
{
    int32_t *ids = malloc(sizeof *ids * (size_t)(n_ctx + n_tokens));
    tessera_session *s = NULL;
    if (!ids) return err_set(err, ERR_MEMORY, "no memory for a text");
    make_text(ratio[which], ids, n_ctx + n_tokens);
    enum status st = tessera_session_open(e, 0, &s, err);
    if (!st) st = pass(e, s, ids, n_ctx, piece, &t->prompt, round, err);
    const unsigned char *begins = st ? NULL : tessera_session_depths(s);
    int concepts = 0;
    for (int i = 0; begins && i < n_ctx; i++) concepts += begins[i];
    t->measured = concepts ? (double)n_ctx / concepts : 0;
    t->kv = (double)tessera_memory(e).kv / n_ctx;
    if (!st) st = pass(e, s, ids + n_ctx, n_tokens, 1, &t->decode, round, err);
    tessera_session_close(s);
    free(ids);
    return st;
}

static double work(const struct tessera_step_kind *k, bool bytes)
{
    return bytes ? (double)k->bytes : (double)k->macs;
}

/* Share of full's time that p's work is worth. */
static double predict(const struct kinds *full, const struct kinds *p, bool bytes)
{
    double time = 0, shrunk = 0, all = 0;
    for (int i = 0; i < full->n; i++) {
        const struct tessera_step_kind *f = &full->at[i];
        all += f->seconds;
        for (int k = 0; k < p->n && work(f, bytes) > 0; k++) {
            if (strcmp(f->step, p->at[k].step) || strcmp(f->name, p->at[k].name)) continue;
            time += f->seconds;
            shrunk += f->seconds * work(&p->at[k], bytes) / work(f, bytes);
        }
    }
    return time > 0 && all > 0 ? shrunk / time : 1;
}

static void print(struct text *t, int n_ctx, int rounds)
{
    const double pp = median(t[0].prompt.seconds, rounds), tg = median(t[0].decode.seconds, rounds);
    const double row = 2.0 * HEADS_KV * HEAD_DIM * 2; /* K and V of a layer, halves */
    for (int i = 0; i < RATIOS; i++) {
        const double a = median(t[i].prompt.seconds, rounds), b = median(t[i].decode.seconds, rounds);
        const double wa = pp * predict(&t[0].prompt.kinds, &t[i].prompt.kinds, false);
        const double wb = tg * predict(&t[0].decode.kinds, &t[i].decode.kinds, true);
        printf("| %d | %.2f | %.1f | %.1f | %.0f %% | %.2f | %.2f | %.0f %% | %.1f | %.1f |\n", n_ctx,
               t[i].measured, 1 / a, 1 / wa, 100 * wa / a, 1 / b, 1 / wb, 100 * wb / b, t[i].kv / 1024,
               row * (ENDS + (LAYERS - ENDS) / t[i].measured) / 1024);
    }
    (void)fflush(stdout);
}

static int run(const char *path, const int *ctx, int n_sizes, int n_tokens, int rounds, int piece,
               struct err *e)
{
    struct tessera_options o = tessera_defaults();
    tessera_engine *engine;
    int most = 0;
    for (int i = 0; i < n_sizes; i++) most = ctx[i] > most ? ctx[i] : most;
    o.model_path = path;
    o.n_ctx = most + n_tokens;
    o.n_ubatch = piece;
    if (tessera_open(&o, &engine, e)) return fail(e);
    printf("| prompt | tokens per concept | read, tokens/s | predicted | reached | decoded, tokens/s |"
           " predicted | reached | KiB of K and V per token | derived |\n"
           "|---|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < n_sizes; i++) {
        struct text *t = calloc(RATIOS, sizeof *t);
        enum status s = t ? OK : err_set(e, ERR_MEMORY, "no memory for the results");
        for (int r = -1; r < rounds && !s; r++) /* the first one warms up */
            for (int k = 0; k < RATIOS && !s; k++)
                s = run_text(engine, &t[k], k, r < 0 ? 64 : ctx[i], r < 0 ? 4 : n_tokens, piece,
                             r < 0 ? 0 : r, e);
        if (!s) print(t, ctx[i], rounds);
        free(t);
        if (s) return fail(e);
    }
    tessera_close(engine);
    return 0;
}

int main(int argc, char **argv)
{
    int ctx[CTX_MAX] = {256, 2048, 8192}, n_sizes = 3, n_tokens = 48, rounds = 3, piece = 512;
    unsigned type = QTYPE_Q8_0;
    char path[256];
    struct err e;
    err_clear(&e);
    for (int i = 2; i < argc; i++) {
        if (i + 1 == argc) argc = 0;
        else if (!strcmp(argv[i], "--tokens")) n_tokens = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--rounds")) rounds = atoi(argv[++i]);
        else if (!strcmp(argv[i], "-ub")) piece = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--type") && qtype_by_name(argv[i + 1]))
            type = (unsigned)qtype_by_name(argv[++i])->id;
        else if (!strcmp(argv[i], "--ctx")) {
            n_sizes = 0;
            for (char *at = strtok(argv[++i], ","); at && n_sizes < CTX_MAX; at = strtok(NULL, ","))
                ctx[n_sizes++] = atoi(at);
        } else argc = 0;
    }
    for (int i = 0; i < n_sizes; i++)
        if (ctx[i] < 64) argc = 0;
    if (argc < 2 || argv[1][0] == '-' || n_tokens < 4 || rounds < 1 || rounds > ROUNDS_MAX || piece < 1) {
        (void)fprintf(stderr, "usage: concepts DIR [--ctx N,N..] [--tokens N] [--rounds N] [--type T] "
                              "[-ub N]\n");
        return 2;
    }
    (void)snprintf(path, sizeof path, "%s/conceptmoe-%u.gguf", argv[1], type);
    if (access(path, R_OK) && write_model(path, type, 16384, &e)) return fail(&e);
    return run(path, ctx, n_sizes, n_tokens, rounds, piece, &e);
}
