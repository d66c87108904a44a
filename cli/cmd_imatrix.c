/* tessera imatrix: how large the activations are that each column of each matrix meets on a text,
 * for `tessera quantize --imatrix` and llama-quantize.
 *
 * Runs the text in chunks as llama-imatrix does (cli/chunks.h; all tokens of a chunk count here) and
 * sums squares, expert by expert.  Matrices of the layers are collected; output.weight only with
 * --process-output.  Prints the perplexity on the way, as perplexity does. */
#include <stdlib.h>
#include <string.h>

#include "cli/chunks.h"
#include "cli/collect.h"
#include "moe/load/tok.h"

struct imatrix_args {
    int chunks, first; /* -1 = all; chunks left out at the beginning */
    struct cli_list in;
    bool output, special;
};

/* Chunks before `first` are cut off. */
static enum status skip_chunks(struct chunks *t, int first, int most, struct err *err)
{
    if (first <= 0) return OK;
    if (t->n / t->n_ctx <= first)
        return err_set(err, ERR_RANGE, "the text has %d chunks of %d tokens: none is left after %d",
                       t->n / t->n_ctx, t->n_ctx, first);
    const int left = t->n / t->n_ctx - first;
    t->n -= first * t->n_ctx;
    memmove(t->ids, t->ids + (size_t)first * (size_t)t->n_ctx, sizeof *t->ids * (size_t)t->n);
    t->n_chunk = most >= 0 && most < left ? most : left;
    return OK;
}

static enum status run_text(struct collector *c, struct chunks *t, const struct cli_args *a,
                            const struct imatrix_args *own, struct err *err)
{
    const bool scored = !tessera_model(t->e).sees_both; /* who sees the next token does not predict it */
    enum status s = chunks_read(t, a, own->special ? TOK_SPECIAL : 0, own->chunks, err);
    if (!s) s = skip_chunks(t, own->first, own->chunks, err);
    if (!s) s = chunks_begin(t, err);
    if (!s) s = tessera_watch(t->e, collect, c, err);
    for (int i = 0; i < t->n_chunk && !s; i++) {
        s = chunks_run(t, i, true, NULL, NULL, err);
        if (!s && c->err.code) s = err_set(err, c->err.code, "%s", c->err.msg);
        if (!s && scored) chunks_print(t, i + 1);
        if (!s) (void)fflush(stdout);
    }
    if (s || !t->n_chunk) return s;
    if (scored) printf("\n");
    if (scored) chunks_print_final(t);
    c->m.n_chunks += (uint32_t)t->n_chunk;
    c->m.chunk_size = (uint32_t)t->n_ctx;
    return a->file ? imatrix_add_dataset(&c->m, a->file, err) : OK;
}

/* ---- the rest ---- */

static enum status take_in(struct collector *c, const struct cli_list *in, struct err *err)
{
    enum status s = OK;
    for (int i = 0; i < in->n && !s; i++) {
        struct imatrix one;
        s = imatrix_read(in->at[i], &one, err);
        if (!s) s = imatrix_merge(&c->m, &one, err);
        imatrix_free(&one);
    }
    return s;
}

static void report(const struct imatrix *m, const char *path)
{
    uint64_t mats = 0, unmet = 0;
    for (uint64_t i = 0; i < m->n; i++)
        for (uint64_t k = 0; k < m->entry[i].n_counts; k++) {
            mats++;
            unmet += m->entry[i].count[k] <= 0;
        }
    fprintf(stderr, "%llu tensors, %u chunks of %u tokens -> %s\n", (unsigned long long)m->n,
            m->n_chunks, m->chunk_size, path);
    if (unmet)
        cli_warn("%llu of %llu matrices met no token (experts that this text does not use): their "
                 "columns will count alike", (unsigned long long)unmet, (unsigned long long)mats);
}

static int run(struct cli_args *a, const struct imatrix_args *own)
{
    struct collector c = {.output = own->output};
    struct chunks t = {0};
    struct err err;
    tessera_engine *e = NULL;
    err_clear(&err);
    err_clear(&c.err);
    if (cli_can_write(a->output)) return CLI_ERROR;
    enum status s = take_in(&c, &own->in, &err);
    if (!s && (a->file || a->prompt)) {
        chunks_default_ctx(a);
        const int rc = cli_open_engine(a, &e);
        if (rc) {
            imatrix_free(&c.m);
            return rc;
        }
        chunks_init(&t, e, a);
        cli_interrupt_target(e);
        s = run_text(&c, &t, a, own, &err);
        cli_interrupt_target(NULL);
        chunks_free(&t);
        cli_close_engine(e);
    }
    if (!s) s = imatrix_write(&c.m, a->output, &err);
    if (!s) report(&c.m, a->output);
    imatrix_free(&c.m);
    return s ? cli_fail(&err) : CLI_OK;
}

#define AT(field) offsetof(struct imatrix_args, field)

int cmd_imatrix(int argc, char **argv)
{
    static const struct cli_flag flags[] = {
        {"--chunks", "N", "the first N chunks only (default -1 = all)", CLI_INT, AT(chunks), -1,
         1 << 30},
        {"--chunk --from-chunk", "N", "leave out N chunks at the beginning (default 0)", CLI_INT,
         AT(first), 0, 1 << 30},
        {"--in-file", "FILE", "add this matrix (GGUF or .dat); may be given several times, and "
         "without a text only adds them up", CLI_LIST, AT(in), 0, 0},
        {"--process-output", NULL, "output.weight as well", CLI_TRUE, AT(output), 0, 0},
        {"--parse-special", NULL, "read <|im_end|> and the like in the text as special tokens",
         CLI_TRUE, AT(special), 0, 0},
        {0}};
    struct imatrix_args own = {.chunks = -1};
    struct cli_args a = cli_defaults();
    a.escape = false;
    a.output = "imatrix.gguf";
    struct cli_spec spec = {.name = "imatrix", .groups = CLI_MODEL | CLI_PROMPT | CLI_OUTPUT,
                            .own = flags, .own_base = &own, .model_optional = true};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    if (!a.file && !a.prompt && !own.in.n)
        return cli_usage("imatrix", "give a text with -f FILE, or matrices with --in-file");
    if ((a.file || a.prompt) && !a.model) return cli_usage("imatrix", "which model? -m FILE.gguf");
    if ((rc = chunks_check("imatrix", &a)) != CLI_GO_ON) return rc;
    return run(&a, &own);
}
