/* tessera trace: records which experts a model chooses for a text, writes records for other programs
 * (moe/load/trace_export.h), draws them (trace_page.h), or fits a predictor to them (routing/fit/); fits
 * forecasters to a model (trace_fit.h).  Of a model that sees both sides a text is one pass, and --decode
 * records every pass of writing on.  The engine shows every route while the step runs
 * (tessera_observe): a record that is kept is bounded by memory alone, one that is only exported
 * (--export without -o) by nothing. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/trace_fit.h"
#include "cli/trace_page.h"
#include "moe/load/gguf.h"
#include "moe/load/tok.h"
#include "moe/load/trace.h"
#include "moe/load/trace_export.h"
#include "moe/run/branch.h"
#include "moe/run/obs.h"
#include "moe/run/sampler.h"
#include "routing/fit/fit_path.h"

struct trace_args {
    const char *ids, *export, *html;
    struct cli_list activations; /* TENSOR=FILE */
    int decode, passes;
    bool one_by_one, special, train, norms, forecasters;
    float temp;
    int64_t seed;
};

/* Activations that go to a file of their own. */
struct tap {
    char tensor[128];
    struct npy file;
    bool seen;
};

enum { TAPS = 16 };

struct recorder {
    tessera_engine *e;
    tessera_session *session;
    struct trace *t;
    int32_t index[TRACE_LAYERS];   /* of a model's layer among those with experts, -1 = none */
    int32_t first_row, first_pos;  /* of the step being run */
    int32_t n_rows, n_steps, n_sessions;
    struct trace_export export;
    bool exporting, keeping;       /* rows go to a file at once; stay for the end */
    struct tap tap[TAPS];
    int n_taps;
    float *norm;                   /* [n_ubatch] of the rows that the last norm has read; or NULL */
    struct err watch_err;
    float *before;                 /* [n_vocab] logits of the row before the step */
    struct concept_text concepts;  /* for a page */
    struct machine machine;        /* the same, of --machine */
    struct sampler sampler;
    float temp;                    /* the same, where a text is denoised */
    uint64_t seed;
    int32_t *ids;                  /* [n] the text */
    int n, bos;                    /* bos: tokens at its start that every window begins with */
};

/* ---- the model's experts ---- */

/* Sums the bytes of "blk.N.*_exps.weight" by layer; ERR_MISSING for a model without experts. */
static enum status describe(struct recorder *r, bool norms, struct err *err)
{
    const struct gguf *g = tessera_gguf(r->e);
    const struct tessera_model m = tessera_model(r->e);
    uint64_t bytes[TRACE_LAYERS] = {0};
    int n_layers = 0;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char name[128];
        int layer;
        (void)snprintf(name, sizeof name, "%.*s", (int)(t->name.n < 120 ? t->name.n : 120),
                       t->name.s);
        if (sscanf(name, "blk.%d.", &layer) != 1 || layer < 0 || layer >= TRACE_LAYERS ||
            !strstr(name, "_exps.weight")) continue;
        bytes[layer] += t->bytes / (uint64_t)(m.n_expert > 0 ? m.n_expert : 1);
    }
    for (int l = 0; l < TRACE_LAYERS; l++) r->index[l] = bytes[l] ? n_layers++ : -1;
    if (m.n_expert < 1 || !n_layers)
        return err_set(err, ERR_MISSING, "this model has no experts: there are no routes to record");
    /* Where experts were says nothing when all of them are in memory. */
    const bool pool = tessera_traffic(r->e).token_disk_expected > 0;
    const unsigned with = TRACE_WITH_WEIGHTS | (m.sees_both ? 0 : TRACE_WITH_LOSSES) |
                          (pool ? TRACE_WITH_TIERS | TRACE_WITH_WAITS : 0) |
                          (norms ? TRACE_WITH_NORMS : 0);
    enum status s = trace_new(n_layers, m.n_expert, m.n_expert_slots, with, &r->t, err);
    if (s) return s;
    for (int l = 0; l < TRACE_LAYERS; l++) {
        if (r->index[l] < 0) continue;
        r->t->layer[r->index[l]] = l;
        r->t->expert_bytes[r->index[l]] = bytes[l];
    }
    r->t->n_vocab = m.n_vocab;
    r->t->model_hash = m.hash;
    (void)snprintf(r->t->name, sizeof r->t->name, "%s", m.name);
    (void)snprintf(r->t->arch, sizeof r->t->arch, "%s", m.arch);
    return OK;
}

/* ---- recording ---- */

static void see(void *arg, const struct obs *o)
{
    struct recorder *r = arg;
    const int32_t row = r->first_row + o->pos - r->first_pos;
    if (o->layer < 0 || o->layer >= TRACE_LAYERS || r->index[o->layer] < 0) return;
    uint16_t *x = trace_experts(r->t, row, r->index[o->layer]);
    const size_t at = trace_at(r->t, row, r->index[o->layer]);
    for (int k = 0; k < r->t->n_used && k < o->n_used; k++) {
        x[k] = (uint16_t)o->expert[k];
        r->t->weight[at + (size_t)k] = o->weight[k];
        if (r->t->tier)
            r->t->tier[at + (size_t)k] = (uint8_t)(o->in_ram[k] ? TRACE_RAM : TRACE_DISK);
    }
    if (r->t->wait)
        r->t->wait[(size_t)row * (size_t)r->t->n_layers + (size_t)r->index[o->layer]] = o->wait_us;
}

/* Rows that a norm has read just now are what the router behind it belongs to. */
static void see_norm(struct recorder *r, const struct tessera_watched *w)
{
    int layer;
    if (!w->n_matrices) {
        for (int i = 0; i < w->n_rows; i++) {
            double sum = 0;
            for (int k = 0; k < w->n_cols; k++) sum += (double)w->row[i][k] * (double)w->row[i][k];
            r->norm[i] = (float)sqrt(sum);
        }
        return;
    }
    if (sscanf(w->tensor, "blk.%d.ffn_gate_inp.", &layer) != 1 || layer < 0 ||
        layer >= TRACE_LAYERS || r->index[layer] < 0 || !strstr(w->tensor, ".ffn_gate_inp.weight"))
        return;
    for (int i = 0; i < w->n_rows && r->first_row + i < r->t->n_rows; i++)
        r->t->norm[(size_t)(r->first_row + i) * (size_t)r->t->n_layers +
                   (size_t)r->index[layer]] = r->norm[i];
}

static void watch(void *arg, const struct tessera_watched *w)
{
    struct recorder *r = arg;
    if (r->norm) see_norm(r, w);
    for (int k = 0; k < r->n_taps && !r->watch_err.code; k++) {
        if (strcmp(r->tap[k].tensor, w->tensor) != 0) continue;
        r->tap[k].seen = true;
        if (w->n_matrices > 1) {
            err_set(&r->watch_err, ERR_RANGE, "--activations: every matrix of %s meets rows of its "
                    "own; name a tensor of one matrix", w->tensor);
            return;
        }
        for (int i = 0; i < w->n_rows && !r->watch_err.code; i++)
            (void)npy_row(&r->tap[k].file, w->row[i], w->n_cols, &r->watch_err);
    }
}

/* Opens what is asked for beside routes. */
static enum status open_taps(struct recorder *r, const struct trace_args *own, struct err *err)
{
    enum status s = OK;
    if (own->norms && !(r->norm = calloc((size_t)tessera_model(r->e).n_ubatch, sizeof *r->norm)))
        return err_set(err, ERR_MEMORY, "no memory for norms");
    for (int i = 0; i < own->activations.n && !s; i++) {
        const char *p = own->activations.at[i], *eq = strchr(p, '=');
        struct tap *t = &r->tap[r->n_taps];
        (void)snprintf(t->tensor, sizeof t->tensor, "%.*s", (int)(eq - p), p);
        if (!gguf_find_tensor(tessera_gguf(r->e), t->tensor))
            return err_set(err, ERR_RANGE, "--activations: the model has no tensor %s: `tessera "
                           "info` lists them", t->tensor);
        if (!(s = npy_open(&t->file, eq + 1, err))) r->n_taps++;
    }
    if (!s && (r->norm || r->n_taps)) s = tessera_watch(r->e, watch, r, err);
    return s;
}

static enum status close_taps(struct recorder *r, enum status s, struct err *err)
{
    for (int k = 0; k < r->n_taps; k++) {
        if (!s && !r->tap[k].seen)
            s = err_set(err, ERR_RANGE, "--activations: nothing is multiplied with %s",
                        r->tap[k].tensor);
        if (s) npy_abort(&r->tap[k].file);
        else s = npy_close(&r->tap[k].file, err);
    }
    r->n_taps = 0;
    return s;
}

/* How likely the step's tokens were, each by the logits of the row before it. */
static void add_losses(struct recorder *r, const int32_t *ids, int n)
{
    const int n_vocab = r->t->n_vocab;
    for (int i = 0; i < n; i++) {
        const float *by = i ? tessera_logits(r->e, 0, i - 1) : r->first_pos ? r->before : NULL;
        if (by) r->t->loss[r->first_row + i] = (float)branches_loss_of(by, n_vocab, ids[i]);
    }
    memcpy(r->before, tessera_logits(r->e, 0, n - 1), sizeof *r->before * (size_t)n_vocab);
}

/* One forward pass, recorded. */
static enum status pass(struct recorder *r, const struct tessera_input *in, struct err *err)
{
    struct trace *t = r->t;
    const int32_t row = t->n_rows;
    const int n = in->n;
    enum status s = trace_append(t, n, err);
    if (s) return s;
    r->first_row = row;
    r->first_pos = in->rewrite ? in->at : tessera_session_n(in->session);
    for (int i = 0; i < n; i++) {
        t->step[row + i] = r->n_steps;
        t->session[row + i] = r->n_sessions;
        t->pos[row + i] = r->first_pos + i;
        t->token[row + i] = in->ids[i];
    }
    s = tessera_step(r->e, in, 1, err);
    if (!s && r->watch_err.code) {
        *err = r->watch_err;
        s = err->code;
    }
    r->n_steps++;
    r->n_rows += n;
    if (!s && t->loss) add_losses(r, in->ids, n);
    if (!s && r->exporting && !r->keeping) {
        s = trace_export_rows(&r->export, t, err);
        trace_clear(t);
    }
    return s;
}

/* The text goes on; logits of its last row to *logits. */
static enum status step(struct recorder *r, const int32_t *ids, int n, const float **logits,
                        struct err *err)
{
    /* All rows, so that the last layer routes all of them too. */
    const struct tessera_input in = {.session = r->session, .ids = ids, .n = n,
                                     .logits = TESSERA_LOGITS_ALL};
    enum status s = pass(r, &in, err);
    if (!s) *logits = tessera_logits(r->e, 0, n - 1);
    return s;
}

/* n tokens behind ids, in the model's own way to write where it sees both sides. */
static enum status write_on(struct recorder *r, const int32_t *ids, int n_ids, int n, struct err *err)
{
    struct tessera_generator_options o = {.n_gen_max = n, .ignore_end = true};
    struct tessera_answer a = {.stop = TESSERA_RUNNING};
    struct tessera_input in;
    tessera_generator *g = NULL;
    o.denoise = tessera_denoising_defaults(r->e, &o.sampling);
    o.sampling.temp = r->temp;
    o.sampling.seed = r->seed;
    enum status s = tessera_generator_open(r->session, ids, n_ids, &o, &g, err);
    while (!s && !a.stop && tessera_generator_want(g, tessera_model(r->e).n_ubatch, &in)) {
        s = pass(r, &in, err);
        if (!s) s = tessera_generator_take(g, 0, &a, err);
    }
    tessera_generator_close(g);
    return s;
}

/* ids [n], then `decode` generated tokens, on a timeline of their own. */
static enum status record_window(struct recorder *r, const int32_t *ids, int n, int piece,
                                 int decode, struct err *err)
{
    const float *logits = NULL;
    enum status s = tessera_session_open(r->e, 0, &r->session, err);
    for (int at = 0, rows; at < n && !s; at += rows) {
        rows = n - at < piece ? n - at : piece;
        s = step(r, ids + at, rows, &logits, err);
    }
    const bool both = tessera_model(r->e).sees_both;
    if (both && decode && !s) s = write_on(r, ids, n, decode, err);
    for (int i = 0; i < decode && !s && !both; i++) {
        const int32_t id = sampler_draw(&r->sampler, logits, tessera_session_ids(r->session),
                                        tessera_session_n(r->session));
        s = step(r, &id, 1, &logits, err);
    }
    if (!s && r->keeping) s = concept_text_add(&r->concepts, r->e, r->session, err);
    tessera_session_close(r->session);
    r->session = NULL;
    r->n_sessions++;
    return s;
}

/* The text in windows of the context; each begins as the text does. */
static enum status record_text(struct recorder *r, const struct trace_args *own, int ubatch,
                               struct err *err)
{
    const struct tessera_model m = tessera_model(r->e);
    const int room = m.n_ctx - own->decode - r->bos, text = r->n - r->bos;
    if (room < 1)
        return err_set(err, ERR_FULL, "--decode %d leaves no room for a prompt in a context of %d",
                       own->decode, m.n_ctx);
    int32_t *window = malloc(sizeof *window * (size_t)m.n_ctx);
    if (!window) return err_set(err, ERR_MEMORY, "no memory for a window of the text");
    enum status s = OK;
    memcpy(window, r->ids, sizeof *window * (size_t)r->bos);
    for (int at = 0; at < (text ? text : 1) && !s; at += room) {
        const int n = text - at < room ? text - at : room;
        memcpy(window + r->bos, r->ids + r->bos + at, sizeof *window * (size_t)n);
        s = record_window(r, window, r->bos + n, own->one_by_one ? 1 : ubatch, own->decode, err);
    }
    free(window);
    return s;
}

static void report(const struct recorder *r, const char *path)
{
    const bool most = tessera_model(r->e).n_expert_used < r->t->n_used;
    fprintf(stderr, "%s: %" PRId32 " tokens in %" PRId32 " steps, %d layers, %s%d of %d experts\n", path,
            r->n_rows, r->n_steps, r->t->n_layers, most ? "up to " : "", r->t->n_used, r->t->n_experts);
    cli_print_ahead(r->e, 15);
}

static enum status read_speeds(const char *path, struct machine *m, struct err *err)
{
    enum status s = machine_read(m, path, err);
    if (s || (m->disk_random > 0 && m->ram_read_n > 0)) return s;
    return err_set(err, ERR_MISSING, "%s has no measured disk and memory speeds: `tessera doctor -o FILE` "
                   "measures them", path);
}

/* Writes what was asked for; the export has the rows already unless they were kept. */
static enum status write_files(struct recorder *r, const struct cli_args *a,
                               const struct trace_args *own, enum status s, struct err *err)
{
    s = close_taps(r, s, err);
    if (!s && a->output) s = trace_write(r->t, a->output, err);
    if (r->exporting && !s && r->keeping) s = trace_export_rows(&r->export, r->t, err);
    if (r->exporting && s) trace_export_abort(&r->export);
    else if (r->exporting) s = trace_export_close(&r->export, err);
    if (s || !own->html) return s;
    const struct trace_page page = {
        .t = {r->t}, .name = {a->output ? a->output : "this run"}, .tok = tessera_tok(r->e),
        .concepts = &r->concepts, .machine = a->machine ? &r->machine : NULL};
    return trace_page_write(&page, own->html, err);
}

static int record(const struct cli_args *a, const struct trace_args *own)
{
    struct recorder *r = calloc(1, sizeof *r);
    struct err err;
    int rc = CLI_OK;
    err_clear(&err);
    if (!r) return cli_fail(&(struct err){.code = ERR_MEMORY});
    if ((rc = cli_open_engine(a, &r->e))) {
        free(r);
        return rc;
    }
    struct tessera_sampling set = tessera_sampling_defaults();
    set.temp = own->temp;
    set.seed = (uint64_t)own->seed;
    r->temp = set.temp;
    r->seed = set.seed;
    enum status s = describe(r, own->norms, &err);
    if (!s && own->one_by_one && tessera_model(r->e).sees_both)
        s = err_set(&err, ERR_UNSUPPORTED, "%s sees a text as a whole: there is no --one-by-one",
                    tessera_model(r->e).arch);
    if (!s && own->html && a->machine) s = read_speeds(a->machine, &r->machine, &err);
    r->keeping = a->output || own->html;
    if (!s) s = sampler_open(&r->sampler, &set, tessera_model(r->e).n_vocab, &err);
    if (!s) s = cli_text_ids(r->e, a, own->ids, own->special, &r->ids, &r->n, &r->bos, &err);
    if (!s && !(r->before = malloc(sizeof *r->before * (size_t)tessera_model(r->e).n_vocab)))
        s = err_set(&err, ERR_MEMORY, "no memory for logits");
    if (!s) s = open_taps(r, own, &err);
    if (!s && own->export) {
        s = trace_export_open(&r->export, own->export, trace_form_of(own->export), r->t, &err);
        r->exporting = !s;
    }
    cli_interrupt_target(r->e);
    tessera_observe(r->e, see, r);
    if (!s) s = record_text(r, own, tessera_model(r->e).n_ubatch, &err);
    tessera_observe(r->e, NULL, NULL);
    cli_interrupt_target(NULL);
    s = write_files(r, a, own, s, &err);
    if (!s) report(r, a->output ? a->output : own->export ? own->export : own->html);
    rc = s ? cli_fail(&err) : CLI_OK;
    sampler_close(&r->sampler);
    cli_close_engine(r->e);
    trace_free(r->t);
    concept_text_free(&r->concepts);
    free(r->norm);
    free(r->before);
    free(r->ids);
    free(r);
    return rc;
}

/* ---- forecasters ---- */

static int fit_forecasters(const struct cli_args *a, const struct trace_args *own)
{
    tessera_engine *e;
    int32_t *ids = NULL;
    int n = 0, bos = 0;
    struct err err;
    err_clear(&err);
    int rc = cli_open_engine(a, &e);
    if (rc) return rc;
    if ((rc = cli_next_tokens(e, "a forecaster"))) {
        cli_close_engine(e);
        return rc;
    }
    enum status s = cli_text_ids(e, a, own->ids, own->special, &ids, &n, &bos, &err);
    cli_interrupt_target(e);
    if (!s) s = trace_fit(e, ids, n, bos, a->output, &err);
    cli_interrupt_target(NULL);
    cli_close_engine(e);
    free(ids);
    return s ? cli_fail(&err) : CLI_OK;
}

/* ---- exporting ---- */

/* A file's rows on their way to another; opened when the first ones say what fields there are. */
struct passing {
    struct trace_export export;
    const char *path;
    bool open;
};

static enum status pass_rows(void *arg, const struct trace *block, struct err *e)
{
    struct passing *p = arg;
    enum status s = OK;
    if (!p->open) s = trace_export_open(&p->export, p->path, trace_form_of(p->path), block, e);
    if (s) return s;
    p->open = true;
    if (cli_interrupted()) return err_set(e, ERR_CANCELLED, "interrupted");
    return trace_export_rows(&p->export, block, e);
}

/* A trace of either form to a file for other programs. */
static int export(const struct cli_args *a, const struct trace_args *own)
{
    struct passing p = {.path = own->export};
    struct err err;
    err_clear(&err);
    cli_catch_interrupts();
    enum status s = trace_stream(a->pos[0], NULL, pass_rows, &p, &err);
    if (s && p.open) trace_export_abort(&p.export);
    else if (!s) s = trace_export_close(&p.export, &err);
    if (!s) fprintf(stderr, "%s: %" PRIu64 " records\n", own->export, p.export.n);
    return s ? cli_fail(&err) : CLI_OK;
}

/* ---- drawing ---- */

/* One trace, or two side by side; -m names the model whose tokens they are. */
static int draw(const struct cli_args *a, const struct trace_args *own)
{
    struct trace *t[2] = {NULL, NULL};
    struct gguf *g = NULL;
    struct tok *tok = NULL;
    struct machine m;
    struct err err;
    enum status s = OK;
    err_clear(&err);
    for (int i = 0; i < a->n_pos && !s; i++) s = trace_read(a->pos[i], NULL, &t[i], &err);
    if (!s && a->model) s = gguf_open(a->model, NULL, &g, &err);
    if (!s && g) s = tok_open(g, &tok, &err);
    if (!s && tok && t[0]->n_vocab && t[0]->n_vocab != tok_n_vocab(tok))
        s = err_set(&err, ERR_SHAPE, "%s was recorded with another model than %s: their vocabularies have "
                    "%d and %d tokens", a->pos[0], a->model, t[0]->n_vocab, tok_n_vocab(tok));
    if (!s && a->machine) s = read_speeds(a->machine, &m, &err);
    const struct trace_page page = {.t = {t[0], t[1]}, .name = {a->pos[0], a->pos[1]}, .tok = tok,
                                    .machine = a->machine ? &m : NULL};
    if (!s) s = trace_page_write(&page, own->html, &err);
    if (tok) tok_close(tok);
    if (g) gguf_close(g);
    trace_free(t[0]);
    trace_free(t[1]);
    return s ? cli_fail(&err) : CLI_OK;
}

/* ---- fitting ---- */

static bool progress(void *arg, int pass, double loss, double recall)
{
    const int *passes = arg;
    fprintf(stderr, "pass %d of %d: loss %.4f, recall %.1f %%\n", pass + 1, *passes, loss,
            100 * recall);
    return !cli_interrupted();
}

static int train(const struct cli_args *a, const struct trace_args *own)
{
    const struct trace *t[CLI_POS] = {NULL};
    struct predictor p = {.data = NULL};
    struct err err;
    enum status s = OK;
    int passes = own->passes;
    err_clear(&err);
    for (int i = 0; i < a->n_pos && !s; i++) {
        struct trace *one;
        s = trace_read(a->pos[i], NULL, &one, &err);
        if (!s) t[i] = one;
    }
    cli_catch_interrupts();
    const struct fit_path_options o = {.passes = passes, .seed = (uint64_t)own->seed,
                                       .progress = progress, .arg = &passes};
    if (!s) s = fit_path(t, a->n_pos, &o, &p, &err);
    if (!s) s = predictor_write(&p, t[0]->name, a->output, &err);
    predictor_free(&p);
    for (int i = 0; i < a->n_pos; i++) trace_free((struct trace *)(uintptr_t)t[i]);
    return s ? cli_fail(&err) : CLI_OK;
}

/* ---- the command line ---- */

static int check_files(const struct trace_args *own)
{
    if (own->export && trace_form_of(own->export) == TRACE_FORMS)
        return cli_usage("trace", "--export %s: its name should end in .csv, .jsonl or .npy",
                         own->export);
    if (own->activations.n > TAPS)
        return cli_usage("trace", "--activations of at most %d tensors", TAPS);
    for (int i = 0; i < own->activations.n; i++) {
        const char *p = own->activations.at[i], *eq = strchr(p, '=');
        if (!eq || eq == p || eq - p > 127 || !eq[1])
            return cli_usage("trace", "--activations wants TENSOR=FILE.npy, not '%s'", p);
    }
    return CLI_GO_ON;
}

/* What only a forward pass can give. */
static bool wants_more(const struct trace_args *own)
{
    return own->norms || own->activations.n || own->decode || own->one_by_one;
}

static int check_train(const struct cli_args *a, const struct trace_args *own)
{
    if (!a->output) return cli_usage("trace", "-o FILE is missing: where the predictor goes");
    if (!a->n_pos) return cli_usage("trace", "--train wants the traces to learn from");
    if (a->model) return cli_usage("trace", "--train reads traces, no model");
    if (a->prompt || a->file || own->ids || own->export || own->html || wants_more(own))
        return cli_usage("trace", "--train takes traces and -o FILE, no text and no other files");
    return CLI_GO_ON;
}

/* Of one that is there already: --export or --html. */
static int check_trace(const struct cli_args *a, const struct trace_args *own)
{
    if (own->export && own->html)
        return cli_usage("trace", "--export and --html of a trace that is there: one at a time");
    if (own->export && a->n_pos > 1) return cli_usage("trace", "--export of one trace at a time");
    if (a->n_pos > 2) return cli_usage("trace", "--html of one trace, or of two side by side");
    if (a->output || a->prompt || a->file || own->ids || wants_more(own))
        return cli_usage("trace", "%s of a trace that is there takes no -o, no text and nothing that is "
                         "recorded", own->export ? "--export" : "--html");
    if (own->export && a->model)
        return cli_usage("trace", "--export reads '%s', no model", a->pos[0]);
    return CLI_GO_ON;
}

static int check(const struct cli_args *a, const struct trace_args *own)
{
    const int rc = check_files(own);
    if (rc != CLI_GO_ON) return rc;
    if (own->forecasters && (!a->output || own->train || own->export || own->html || a->n_pos ||
                             wants_more(own)))
        return cli_usage("trace", "--fit-forecasters takes a model (-m), a text and -o FILE, nothing else");
    if (own->train) return check_train(a, own);
    if (a->n_pos && (own->export || own->html)) return check_trace(a, own);
    if (!a->output && !own->export && !own->html)
        return cli_usage("trace", "-o FILE is missing, or --export or --html: where the record goes");
    if (a->n_pos) return cli_usage("trace", "'%s' belongs to no flag", a->pos[0]);
    if (!a->model) return cli_usage("trace", "which model? -m FILE.gguf");
    if (!own->ids + !a->prompt + !a->file != 2)
        return cli_usage("trace", "give the text with one of -p, -f and --ids");
    return CLI_GO_ON;
}

int cmd_trace(int argc, char **argv)
{
    struct trace_args own = {.passes = 8, .seed = 1};
    static const struct cli_flag flags[] = {
        {"--decode", "N", "tokens generated after the text, or after each window of it (default 0)",
         CLI_INT, offsetof(struct trace_args, decode), 0, 1 << 24},
        {"--one-by-one", NULL, "read the text one token at a time, as if it were generated",
         CLI_TRUE, offsetof(struct trace_args, one_by_one), 0, 0},
        {"--temp", "X", "temperature of generation (default 0: the likeliest token)", CLI_F32,
         offsetof(struct trace_args, temp), 0, 100},
        {"-s --seed", "N", "of generation or fitting (default 1)", CLI_I64,
         offsetof(struct trace_args, seed), 0, 9e15},
        {"--ids", "1,2,3", "the text as token ids", CLI_STR, offsetof(struct trace_args, ids), 0, 0},
        {"--special", NULL, "read <|im_end|> and the like in the text as special tokens", CLI_TRUE,
         offsetof(struct trace_args, special), 0, 0},
        {"--export", "FILE", "for other programs: .csv, .jsonl or .npy by its name; of a recording "
         "(with or without -o), or of a TRACE", CLI_STR, offsetof(struct trace_args, export), 0, 0},
        {"--html", "FILE", "pictures as one web page: of a recording, of a TRACE, or of two side by side (-m "
         "then names the model that tells what tokens mean)", CLI_STR, offsetof(struct trace_args, html), 0,
         0},
        {"--norms", NULL, "record the length of the hidden state before every router, too", CLI_TRUE,
         offsetof(struct trace_args, norms), 0, 0},
        {"--activations", "TENSOR=FILE.npy", "what that tensor is multiplied with, or what that norm "
         "reads, a row per token (may be given several times)", CLI_LIST,
         offsetof(struct trace_args, activations), 0, 0},
        {"--fit-forecasters", NULL, "fit stand-ins for the model's feed-forwards to the text and write them "
         "to -o, for --approximate; prints what they cost on its last fifth", CLI_TRUE,
         offsetof(struct trace_args, forecasters), 0, 0},
        {"--train", NULL, "fit a predictor to the traces named and write it to -o", CLI_TRUE,
         offsetof(struct trace_args, train), 0, 0},
        {"--passes", "N", "over the traces when fitting (default 8)", CLI_INT,
         offsetof(struct trace_args, passes), 1, 1000},
        {0}};
    struct cli_args a = cli_defaults();
    a.raw_text = true;
    struct cli_spec spec = {
        .name = "trace", .groups = CLI_MODEL | CLI_PROMPT | CLI_OUTPUT, .own = flags,
        .own_base = &own, .max_pos = CLI_POS, .model_optional = true,
        .footer = "A text longer than the context is recorded in windows of it, each a timeline of "
                  "its own.\n`tessera replay` reads the record; `tessera trace --train TRACE... -o "
                  "PRED` learns from it\nwhich experts a text will want.\n"
                  "Of a model that sees both sides the text is one pass, and --decode records every pass of\n"
                  "writing on.  Where experts choose, a token has as many slots as there are experts: -1 in\n"
                  "those not used.\n"};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc == CLI_GO_ON) rc = check(&a, &own);
    if (rc != CLI_GO_ON) return rc;
    if (cli_can_write(a.output) || cli_can_write(own.html)) return CLI_ERROR;
    a.n_logits = own.one_by_one ? 1 : a.ubatch; /* all rows, see step() */
    if (own.forecasters) {
        a.n_logits = 64 < a.ubatch ? 64 : a.ubatch;
        a.n_sessions = 2;
        return fit_forecasters(&a, &own);
    }
    if (own.train) return train(&a, &own);
    if (a.n_pos) return own.export ? export(&a, &own) : draw(&a, &own);
    return record(&a, &own);
}
