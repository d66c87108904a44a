/* See chunks.h. */
#include "cli/chunks.h"

#include <math.h>
#include <stdlib.h>

#include "moe/load/gguf.h"
#include "moe/load/tok.h"

void chunks_default_ctx(struct cli_args *a)
{
    struct gguf *g;
    struct gguf_str arch;
    char key[160];
    uint64_t n = 0;
    if (a->ctx) return;
    a->ctx = 512;
    if (gguf_open(a->model, NULL, &g, NULL)) return; /* opening the engine says why */
    if (!gguf_get_str(g, "general.architecture", &arch, NULL) && arch.n < 100) {
        (void)snprintf(key, sizeof key, "%.*s.context_length", (int)arch.n, arch.s);
        if (!gguf_get_u64(g, key, &n, NULL) && n >= 4 && n < 512) {
            a->ctx = (int)n;
            fprintf(stderr, "tessera: context %d, all that the model has (-c)\n", a->ctx);
        }
    }
    gguf_close(g);
}

int chunks_check(const char *cmd, const struct cli_args *a)
{
    if (a->ctx >= 1 && a->ctx <= 3)
        return cli_usage(cmd, "a context of %d leaves nothing to score", a->ctx);
    return CLI_GO_ON;
}

void chunks_init(struct chunks *c, tessera_engine *e, const struct cli_args *a)
{
    const struct tessera_model m = tessera_model(e);
    const struct tok *t = tessera_tok(e);
    *c = (struct chunks){.e = e, .n_ctx = a->ctx, .n_vocab = m.n_vocab, .n_ubatch = m.n_ubatch,
                         .bos = t && tok_adds_bos(t) ? tok_bos(t) : -1};
}

enum status chunks_read(struct chunks *c, const struct cli_args *a, unsigned flags, int most,
                        struct err *err)
{
    const struct tok *t = tessera_tok(c->e);
    char *text;
    size_t n;
    if (!t)
        return err_set(err, ERR_MISSING, "%s: text cannot be scored", tessera_tok_error(c->e));
    enum status s = cli_read_prompt(a, &text, &n, err);
    if (!s) s = cli_encode(t, text, n, TOK_BOS | flags, &c->ids, &c->n, err);
    free(text);
    if (s) return s;
    c->n_chunk = c->n / c->n_ctx;
    if (c->n_chunk < 2)
        return err_set(err, ERR_RANGE, "the text has %d token%s; a context of %d needs at least %d",
                       c->n, c->n == 1 ? "" : "s", c->n_ctx, 2 * c->n_ctx);
    if (most >= 0 && most < c->n_chunk) c->n_chunk = most;
    return OK;
}

enum status chunks_begin(struct chunks *c, struct err *err)
{
    return tessera_session_open(c->e, c->n_ctx, &c->session, err);
}

void chunks_free(struct chunks *c)
{
    if (c->session) tessera_session_close(c->session);
    free(c->ids);
}

/* ---- running ---- */

/* -log of the probability that the logits give to id. */
static double nll_of(const float *logits, int n_vocab, int32_t id)
{
    float max = logits[0];
    double sum = 0;
    for (int i = 1; i < n_vocab; i++) max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < n_vocab; i++) sum += expf(logits[i] - max);
    return -((double)(logits[id] - max) - log(sum));
}

enum status chunks_run(struct chunks *c, int i, bool all,
                       enum status (*score)(void *arg, const float *logits, int32_t next,
                                            struct err *err),
                       void *arg, struct err *err)
{
    int32_t *chunk = c->ids + (size_t)i * (size_t)c->n_ctx, own = chunk[0];
    const int first = c->n_ctx / 2, last = c->n_ctx - 1, n = all ? c->n_ctx : last;
    enum status s = tessera_session_rollback(c->session, (struct tessera_mark){0}, err);
    if (c->bos >= 0) chunk[0] = c->bos;
    for (int at = 0; at < n && !s;) {
        int end = at < first ? first : n;
        if (end - at > c->n_ubatch) end = at + c->n_ubatch;
        struct tessera_input in = {
            .session = c->session, .ids = chunk + at, .n = end - at,
            .logits = all || at >= first ? TESSERA_LOGITS_ALL : TESSERA_LOGITS_NONE};
        s = tessera_step(c->e, &in, 1, err);
        for (int p = at < first ? end : at; p < end && p < last && !s; p++) {
            const float *logits = tessera_logits(c->e, 0, p - at);
            const double v = nll_of(logits, c->n_vocab, chunk[p + 1]);
            c->nll += v;
            c->nll2 += v * v;
            c->count++;
            if (score) s = score(arg, logits, chunk[p + 1], err);
        }
        at = end;
    }
    chunk[0] = own;
    return s;
}

/* ---- output ---- */

void chunks_print(const struct chunks *c, int i)
{
    if (i) printf("[%d]%.4f,", i, exp(c->nll / c->count));
}

void chunks_print_final(const struct chunks *c)
{
    const double mean = c->nll / c->count, var = c->nll2 / c->count - mean * mean;
    const double ppl = exp(mean);
    if (var > 0 && c->count > 1)
        printf("Final estimate: PPL = %.4f +/- %.5f\n", ppl, sqrt(var / (c->count - 1)) * ppl);
    else
        printf("Final estimate: PPL = %.4f +/- nan\n", ppl);
}
