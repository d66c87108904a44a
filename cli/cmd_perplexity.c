/* tessera perplexity: how well a model predicts a text, counted as llama-perplexity counts
 * (cli/chunks.h).
 *
 * --kl-divergence-base saves every scored distribution in llama-perplexity's file format (8-byte
 * magic, then cli/kl.h), and with --kl-divergence compares against such a file. */
#include <stdlib.h>
#include <string.h>

#include "cli/chunks.h"
#include "cli/kl.h"
#include "moe/load/tok.h"

struct perplexity_args {
    int chunks; /* -1 = all */
    const char *base;
    bool kl;
};

struct ppl {
    struct chunks c;
    struct kl_writer save; /* open when a base is written */
    struct kl_reader base; /* open when compared against one */
    struct kl_sum kl;
};

/* What is done with a scored position beside counting it. */
static enum status score(void *arg, const float *logits, int32_t next, struct err *err)
{
    struct ppl *p = arg;
    if (p->save.w.fp) return kl_put(&p->save, logits, err);
    if (p->base.f) return kl_compare(&p->base, logits, next, &p->kl, err);
    return OK;
}

/* With a base file its tokens are scored, whatever the text. */
static enum status take_base(struct ppl *p, const struct perplexity_args *own, struct err *err)
{
    struct chunks *c = &p->c;
    enum status s = kl_open(&p->base, own->base, c->n_vocab, &c->n_ctx, &c->n_chunk, &c->ids, err);
    c->n = c->n_ctx * c->n_chunk;
    if (own->chunks >= 0 && own->chunks < c->n_chunk) c->n_chunk = own->chunks;
    return s;
}

static enum status prepare(struct ppl *p, const struct cli_args *a,
                           const struct perplexity_args *own, struct err *err)
{
    struct chunks *c = &p->c;
    const struct tessera_model m = tessera_model(c->e);
    enum status s = own->kl ? take_base(p, own, err) : chunks_read(c, a, 0, own->chunks, err);
    if (s) return s;
    if (c->n_ctx > m.n_ctx)
        return err_set(err, ERR_RANGE, "%s was made with a context of %d: give -c %d", own->base,
                       c->n_ctx, c->n_ctx);
    if (own->base && !own->kl)
        s = kl_create(&p->save, own->base, c->n_vocab, c->n_ctx, c->n_chunk, c->ids, err);
    p->save.w.keep = osfile_keep(tessera_memory(c->e).budget);
    return s ? s : chunks_begin(c, err);
}

static void print_chunk(const struct ppl *p, int chunk)
{
    if (p->base.f)
        kl_print_chunk(&p->kl, chunk);
    else
        chunks_print(&p->c, chunk);
}

static enum status run_all(struct ppl *p, struct err *err)
{
    enum status s = OK;
    print_chunk(p, 0);
    for (int i = 0; i < p->c.n_chunk && !s; i++) {
        s = chunks_run(&p->c, i, false, score, p, err);
        if (s) break;
        print_chunk(p, i + 1);
        if (!cli_out("", 0)) return OK; /* nobody reads: main ends quietly or says why */
    }
    if (!s && p->save.w.fp) s = kl_commit(&p->save, err);
    if (s || !p->c.count) return s;
    printf("\n");
    if (p->base.f) kl_print(&p->kl);
    chunks_print_final(&p->c);
    return OK;
}

static void ppl_free(struct ppl *p)
{
    chunks_free(&p->c);
    kl_close(&p->base);
    kl_abort(&p->save);
    kl_sum_free(&p->kl);
}

static int check_args(const struct cli_args *a, const struct perplexity_args *own)
{
    const char *cmd = "perplexity";
    if (own->kl && !own->base) return cli_usage(cmd, "--kl-divergence needs --kl-divergence-base");
    if (!own->kl && !a->prompt == !a->file)
        return cli_usage(cmd, "give the text with -f FILE");
    return chunks_check(cmd, a);
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
    struct ppl p = {0};
    tessera_engine *e;
    struct err err;
    err_clear(&err);
    chunks_default_ctx(&a);
    a.n_logits = a.ctx && (a.ctx + 1) / 2 < a.ubatch ? (a.ctx + 1) / 2 : a.ubatch;
    if ((rc = cli_open_engine(&a, &e))) return rc;
    if ((rc = cli_next_tokens(e, "perplexity"))) {
        cli_close_engine(e);
        return rc;
    }
    chunks_init(&p.c, e, &a);
    cli_interrupt_target(e);
    enum status s = prepare(&p, &a, &own, &err);
    if (!s) s = run_all(&p, &err);
    cli_interrupt_target(NULL);
    rc = s ? cli_fail(&err) : CLI_OK;
    ppl_free(&p);
    cli_close_engine(e);
    return rc;
}
