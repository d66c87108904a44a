/* tessera logits: the logits of every position of a prompt, as f32 little-endian
 * [n_tokens][n_vocab].  The prompt goes through the engine in pieces, and other prompts may run in
 * the same steps: none of that may change a bit of the result, which is what this is for. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "moe/base/osfile.h"

enum {
    PROMPTS = 65,      /* the one asked for and its companions */
    ROWS_MAX = 1 << 16 /* of a step */
};

struct logits_args {
    const char *ids, *batch_with;
    bool decode, special;
};

struct prompt {
    int32_t *ids;
    int n, done;
    tessera_session *session;
};

struct job {
    struct prompt at[PROMPTS]; /* at[0] is written out */
    int n;
    int piece; /* rows of one prompt in a step at most */
};

static void job_free(struct job *j)
{
    for (int i = 0; i < j->n; i++) {
        if (j->at[i].session) tessera_session_close(j->at[i].session);
        free(j->at[i].ids);
    }
}

/* --batch-with "1,2,3;4,5": companions are parsed from a copy. */
static int parse_companions(struct job *j, const char *text)
{
    char why[160], *copy = strdup(text), *save = NULL;
    int rc = copy ? CLI_GO_ON : CLI_ERROR;
    for (char *p = copy ? strtok_r(copy, ";", &save) : NULL; p && rc == CLI_GO_ON;
         p = strtok_r(NULL, ";", &save)) {
        struct prompt *c = &j->at[j->n];
        if (j->n == PROMPTS)
            rc = cli_usage("logits", "--batch-with takes %d prompts at most", PROMPTS - 1);
        else if (!cli_parse_ids(p, &c->ids, &c->n, why, sizeof why))
            rc = cli_usage("logits", "--batch-with: %s", why);
        else
            j->n++;
    }
    free(copy);
    return rc;
}

/* What can be wrong before any file is opened. */
static int parse_job(struct job *j, const struct cli_args *a, const struct logits_args *own)
{
    char why[160];
    if (!own->ids + !a->prompt + !a->file != 2)
        return cli_usage("logits", "give the prompt with one of --ids, -p and -f");
    if (!a->output) return cli_usage("logits", "-o FILE is missing: where the logits go");
    j->n = 1;
    if (own->ids && !cli_parse_ids(own->ids, &j->at[0].ids, &j->at[0].n, why, sizeof why))
        return cli_usage("logits", "--ids: %s", why);
    return own->batch_with ? parse_companions(j, own->batch_with) : CLI_GO_ON;
}

/* Says which id of which prompt is wrong; the engine would only say that one is. */
static enum status check_job(tessera_engine *e, const struct job *j, struct err *err)
{
    struct tessera_model m = tessera_model(e);
    for (int i = 0; i < j->n; i++) {
        const struct prompt *p = &j->at[i];
        for (int k = 0; k < p->n; k++)
            if (p->ids[k] < 0 || p->ids[k] >= m.n_vocab)
                return err_set(err, ERR_RANGE,
                               "id %d (number %d of the prompt) is outside the vocabulary: "
                               "ids are 0 to %d", (int)p->ids[k], k + 1, m.n_vocab - 1);
        if (p->n > m.n_ctx)
            return err_set(err, ERR_RANGE, "the prompt has %d tokens, the context %d%s", p->n,
                           m.n_ctx, m.n_ctx < m.n_ctx_train ? ": give a larger -c"
                                                            : ", which is all the model has");
    }
    return OK;
}

/* One step: the next piece of every prompt that has one; the first prompt's logits go out. */
static enum status one_step(tessera_engine *e, struct job *j, struct osfile_writer *out, struct err *err)
{
    struct tessera_input in[PROMPTS];
    size_t n_vocab = (size_t)tessera_model(e).n_vocab;
    int n_in = 0;
    for (int i = 0; i < j->n; i++) {
        struct prompt *p = &j->at[i];
        int n = p->n - p->done < j->piece ? p->n - p->done : j->piece;
        if (!n) continue;
        in[n_in++] = (struct tessera_input){
            .session = p->session, .ids = p->ids + p->done, .n = n,
            .logits = i ? TESSERA_LOGITS_NONE : TESSERA_LOGITS_ALL};
        p->done += n;
    }
    enum status s = tessera_step(e, in, n_in, err);
    for (int r = 0; r < in[0].n && !s; r++) {
        const float *row = tessera_logits(e, 0, r);
        if (fwrite(row, sizeof *row, n_vocab, out->fp) != n_vocab)
            s = err_set(err, ERR_IO, "cannot write the logits: %s", strerror(errno));
        osfile_writer_settle(out);
    }
    return s;
}

static enum status run_job(tessera_engine *e, const struct cli_args *a, bool special,
                           struct job *j, struct osfile_writer *out, struct err *err)
{
    struct prompt *p = &j->at[0];
    int bos;
    enum status s = p->ids ? OK : cli_text_ids(e, a, NULL, special, &p->ids, &p->n, &bos, err);
    if (!s) s = check_job(e, j, err);
    for (int i = 0; i < j->n && !s; i++)
        s = tessera_session_open(e, 0, &j->at[i].session, err);
    while (!s && j->at[0].done < j->at[0].n) s = one_step(e, j, out, err);
    return s;
}

static int write_logits(struct cli_args *a, const struct logits_args *own, struct job *j)
{
    struct err err;
    struct osfile_writer w;
    tessera_engine *e;
    err_clear(&err);
    if (osfile_writer_open(&w, a->output, &err)) return cli_fail(&err);
    int rc = cli_open_engine(a, &e);
    if (rc) {
        osfile_writer_abort(&w);
        return rc;
    }
    cli_interrupt_target(e);
    w.keep = osfile_keep(tessera_memory(e).budget);
    if (tessera_model(e).sees_both && own->decode) {
        fprintf(stderr, "tessera: --decode: a model of %s sees a text as a whole\n",
                tessera_model(e).arch);
        osfile_writer_abort(&w);
        cli_close_engine(e);
        return CLI_ERROR;
    }
    if (tessera_model(e).sees_both) j->piece = tessera_model(e).n_ubatch;
    else if (j->piece * j->n > tessera_model(e).n_ubatch) /* the budget has made steps smaller */
        j->piece = tessera_model(e).n_ubatch / j->n;
    enum status s = run_job(e, a, own->special, j, &w, &err);
    cli_interrupt_target(NULL);
    if (s)
        osfile_writer_abort(&w);
    else
        s = osfile_writer_commit(&w, &err);
    job_free(j);
    j->n = 0;
    cli_close_engine(e);
    return s ? cli_fail(&err) : CLI_OK;
}

int cmd_logits(int argc, char **argv)
{
    struct logits_args own = {0};
    static const struct cli_flag flags[] = {
        {"--ids", "1,2,3", "the prompt as token ids", CLI_STR, offsetof(struct logits_args, ids),
         0, 0},
        {"--decode", NULL, "one token at a time", CLI_TRUE, offsetof(struct logits_args, decode),
         0, 0},
        {"--batch-with", "\"1,2;3,4\"", "other prompts that run in the same steps", CLI_STR,
         offsetof(struct logits_args, batch_with), 0, 0},
        {"--special", NULL, "read <|im_end|> and the like in the text as special tokens", CLI_TRUE,
         offsetof(struct logits_args, special), 0, 0},
        {0}};
    struct cli_args a = cli_defaults();
    a.raw_text = true;
    struct cli_spec spec = {.name = "logits", .groups = CLI_MODEL | CLI_PROMPT | CLI_OUTPUT,
                            .own = flags, .own_base = &own};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    struct job *j = calloc(1, sizeof *j);
    if (!j) return cli_fail(&(struct err){.code = ERR_MEMORY});
    rc = parse_job(j, &a, &own);
    if (rc == CLI_GO_ON) {
        j->piece = own.decode ? 1 : a.ubatch;
        if (j->piece > ROWS_MAX / j->n) j->piece = ROWS_MAX / j->n;
        a.n_sessions = j->n;
        a.n_logits = j->piece;
        a.ubatch = j->piece * j->n;
        rc = write_logits(&a, &own, j);
    }
    job_free(j);
    free(j);
    return rc;
}
