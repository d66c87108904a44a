/* tessera perplexity: how well a model predicts a text, counted as llama-perplexity counts.
 *
 * The text is tokenised as a whole and cut into chunks of n_ctx tokens; what is left at the end is
 * not used.  Each chunk runs from an empty context (its first token replaced by BOS where the
 * vocabulary adds one) and the predictions of positions n_ctx/2 .. n_ctx-2 are scored:
 *   PPL = exp(mean nll), uncertainty = PPL * sqrt((mean nll^2 - (mean nll)^2) / (count - 1))
 * --kl-divergence-base saves every scored distribution in llama-perplexity's file format (8-byte
 * magic, then cli/kl.h), and with --kl-divergence compares against such a file. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/kl.h"
#include "moe/load/tok.h"

struct perplexity_args {
    int chunks; /* -1 = all */
    const char *base;
    bool kl;
};

struct ppl {
    tessera_engine *e;
    tessera_session *session;
    int32_t *ids; /* [n] */
    int n, n_ctx, n_chunk, n_vocab, bos; /* bos -1: chunks keep their first token */
    int n_ubatch;
    double nll, nll2;
    int count;
    struct kl_writer save; /* open when a base is written */
    struct kl_reader base; /* open when compared against one */
    struct kl_sum kl;
};

/* ---- scoring ---- */

/* -log of the probability that the logits give to id. */
static double nll_of(const float *logits, int n_vocab, int32_t id)
{
    float max = logits[0];
    double sum = 0;
    for (int i = 1; i < n_vocab; i++) max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < n_vocab; i++) sum += expf(logits[i] - max);
    return -((double)(logits[id] - max) - log(sum));
}

/* Scores what position pos of a chunk says about the token after it. */
static enum status score(struct ppl *p, const float *logits, int32_t next, struct err *err)
{
    double v = nll_of(logits, p->n_vocab, next);
    p->nll += v;
    p->nll2 += v * v;
    p->count++;
    if (p->save.w.fp) return kl_put(&p->save, logits, err);
    if (p->base.f) return kl_compare(&p->base, logits, next, &p->kl, err);
    return OK;
}

/* Runs positions from .. to - 1 of a chunk; scored positions ask for their logits. */
static enum status run_piece(struct ppl *p, const int32_t *chunk, int from, int to, struct err *err)
{
    bool scored = from >= p->n_ctx / 2;
    struct tessera_input in = {.session = p->session, .ids = chunk + from, .n = to - from,
                               .logits = scored ? TESSERA_LOGITS_ALL : TESSERA_LOGITS_NONE};
    enum status s = tessera_step(p->e, &in, 1, err);
    for (int i = from; i < to && scored && !s; i++)
        s = score(p, tessera_logits(p->e, 0, i - from), chunk[i + 1], err);
    return s;
}

/* The last token of a chunk is only predicted; nobody asks what follows it. */
static enum status run_chunk(struct ppl *p, int c, struct err *err)
{
    int32_t *chunk = p->ids + (size_t)c * (size_t)p->n_ctx, own = chunk[0];
    int first = p->n_ctx / 2, last = p->n_ctx - 1;
    enum status s = tessera_session_rollback(p->session, (struct tessera_mark){0}, err);
    if (p->bos >= 0) chunk[0] = p->bos;
    for (int at = 0; at < last && !s;) {
        int end = at < first ? first : last;
        if (end - at > p->n_ubatch) end = at + p->n_ubatch;
        s = run_piece(p, chunk, at, end, err);
        at = end;
    }
    chunk[0] = own;
    return s;
}

/* ---- preparing ---- */

static enum status read_text(struct ppl *p, const struct cli_args *a, struct err *err)
{
    const struct tok *t = tessera_tok(p->e);
    char *text;
    size_t n;
    if (!t)
        return err_set(err, ERR_MISSING, "%s: text cannot be scored", tessera_tok_error(p->e));
    enum status s = cli_read_prompt(a, &text, &n, err);
    if (!s) s = cli_encode(t, text, n, TOK_BOS, &p->ids, &p->n, err);
    free(text);
    if (s) return s;
    p->bos = tok_adds_bos(t) ? tok_bos(t) : -1;
    return OK;
}

/* With a base file its tokens are scored, whatever the text. */
static enum status take_base(struct ppl *p, const char *path, struct err *err)
{
    const struct tok *t = tessera_tok(p->e);
    enum status s = kl_open(&p->base, path, p->n_vocab, &p->n_ctx, &p->n_chunk, &p->ids, err);
    p->n = p->n_ctx * p->n_chunk;
    p->bos = t && tok_adds_bos(t) ? tok_bos(t) : -1;
    return s;
}

static enum status prepare(struct ppl *p, const struct cli_args *a,
                           const struct perplexity_args *own, struct err *err)
{
    struct tessera_model m = tessera_model(p->e);
    p->n_vocab = m.n_vocab;
    p->n_ubatch = m.n_ubatch;
    p->n_ctx = a->ctx;
    enum status s = own->kl ? take_base(p, own->base, err) : read_text(p, a, err);
    if (s) return s;
    if (!own->kl) p->n_chunk = p->n / p->n_ctx;
    if (!own->kl && p->n_chunk < 2)
        return err_set(err, ERR_RANGE, "the text has %d token%s; a context of %d needs at least %d",
                       p->n, p->n == 1 ? "" : "s", p->n_ctx, 2 * p->n_ctx);
    if (p->n_ctx > m.n_ctx)
        return err_set(err, ERR_RANGE, "%s was made with a context of %d: give -c %d", own->base,
                       p->n_ctx, p->n_ctx);
    if (own->chunks >= 0 && own->chunks < p->n_chunk) p->n_chunk = own->chunks;
    if (own->base && !own->kl)
        s = kl_create(&p->save, own->base, p->n_vocab, p->n_ctx, p->n_chunk, p->ids, err);
    return s ? s : tessera_session_open(p->e, p->n_ctx, &p->session, err);
}

/* ---- output ---- */

static void print_final(struct ppl *p)
{
    double mean = p->nll / p->count, var = p->nll2 / p->count - mean * mean;
    double ppl = exp(mean);
    printf("\n");
    if (p->base.f) kl_print(&p->kl);
    if (var > 0 && p->count > 1)
        printf("Final estimate: PPL = %.4f +/- %.5f\n", ppl, sqrt(var / (p->count - 1)) * ppl);
    else
        printf("Final estimate: PPL = %.4f +/- nan\n", ppl);
}

static void print_chunk(const struct ppl *p, int chunk)
{
    if (p->base.f)
        kl_print_chunk(&p->kl, chunk);
    else if (chunk)
        printf("[%d]%.4f,", chunk, exp(p->nll / p->count));
}

static enum status run_all(struct ppl *p, struct err *err)
{
    enum status s = OK;
    print_chunk(p, 0);
    for (int c = 0; c < p->n_chunk && !s; c++) {
        s = run_chunk(p, c, err);
        if (s) break;
        print_chunk(p, c + 1);
        if (!cli_out("", 0)) return OK; /* nobody reads: main ends quietly or says why */
    }
    if (!s && p->save.w.fp) s = kl_commit(&p->save, err);
    if (!s && p->count) print_final(p);
    return s;
}

static void ppl_free(struct ppl *p)
{
    if (p->session) tessera_session_close(p->session);
    kl_close(&p->base);
    kl_abort(&p->save);
    kl_sum_free(&p->kl);
    free(p->ids);
}

static int check_args(const struct cli_args *a, const struct perplexity_args *own)
{
    const char *cmd = "perplexity";
    if (own->kl && !own->base) return cli_usage(cmd, "--kl-divergence needs --kl-divergence-base");
    if (!own->kl && !a->prompt == !a->file)
        return cli_usage(cmd, "give the text with -f FILE");
    if (a->ctx == 1 || a->ctx == 2 || a->ctx == 3)
        return cli_usage(cmd, "a context of %d leaves nothing to score", a->ctx);
    return CLI_GO_ON;
}

/* -c when it is absent: 512, or the model's own when that is smaller. */
static int default_ctx(struct cli_args *a)
{
    struct gguf *g;
    struct gguf_str arch;
    char key[160];
    uint64_t n = 0;
    a->ctx = 512;
    if (gguf_open(a->model, NULL, &g, NULL)) return a->ctx; /* opening the engine says why */
    if (!gguf_get_str(g, "general.architecture", &arch, NULL) && arch.n < 100) {
        (void)snprintf(key, sizeof key, "%.*s.context_length", (int)arch.n, arch.s);
        if (!gguf_get_u64(g, key, &n, NULL) && n >= 4 && n < 512) {
            a->ctx = (int)n;
            fprintf(stderr, "tessera: context %d, all that the model has (-c)\n", a->ctx);
        }
    }
    gguf_close(g);
    return a->ctx;
}

int cmd_perplexity(int argc, char **argv)
{
    struct perplexity_args own = {.chunks = -1};
    static const struct cli_flag flags[] = {
        {"--chunks", "N", "score the first N chunks only (default -1 = all)", CLI_INT,
         offsetof(struct perplexity_args, chunks), -1, 1 << 30},
        {"--kl-divergence-base --save-all-logits", "FILE",
         "write every scored distribution to FILE", CLI_STR,
         offsetof(struct perplexity_args, base), 0, 0},
        {"--kl-divergence", NULL, "compare with the distributions in --kl-divergence-base",
         CLI_TRUE, offsetof(struct perplexity_args, kl), 0, 0},
        {0}};
    struct cli_args a = cli_defaults();
    a.escape = false;
    struct cli_spec spec = {.name = "perplexity", .groups = CLI_MODEL | CLI_PROMPT, .own = flags,
                            .own_base = &own};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc == CLI_GO_ON) rc = check_args(&a, &own);
    if (rc != CLI_GO_ON) return rc;
    struct ppl p = {.bos = -1};
    struct err err;
    err_clear(&err);
    if (!a.ctx) (void)default_ctx(&a);
    a.n_logits = a.ctx && (a.ctx + 1) / 2 < a.ubatch ? (a.ctx + 1) / 2 : a.ubatch;
    if ((rc = cli_open_engine(&a, &p.e))) return rc;
    cli_interrupt_target(p.e);
    enum status s = prepare(&p, &a, &own, &err);
    if (!s) s = run_all(&p, &err);
    cli_interrupt_target(NULL);
    rc = s ? cli_fail(&err) : CLI_OK;
    ppl_free(&p);
    tessera_close(p.e);
    return rc;
}
