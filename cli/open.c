/* From flags to an open engine, from prompts to ids: the part of a command that every command
 * shares.  Owns nothing between calls. */
#include "cli/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "moe/base/machine.h"
#include "moe/base/osfile.h"
#include "moe/compute/dev.h"
#include "moe/load/tok.h"

/* ---- errors ---- */

int cli_exit_code(enum status s)
{
    switch (s) {
    case OK: return CLI_OK;
    case ERR_BUDGET: return CLI_BUDGET;
    case ERR_CANCELLED: return CLI_INTERRUPTED;
    case ERR_USAGE: return CLI_USAGE;
    default: return CLI_ERROR;
    }
}

int cli_fail(const struct err *e)
{
    const char *msg = e->msg[0] ? e->msg : err_name(e->code);
    if (e->code == ERR_CANCELLED) msg = "interrupted";
    fprintf(stderr, "tessera: %s\n", msg);
    return e->code == OK ? CLI_ERROR : cli_exit_code(e->code);
}

/* ---- opening ---- */

/* The device that -dev names, NULL = none.  What cannot be had is one line; of "auto" only when there is a
 * plugin. */
static const struct dev_api *named_device(const char *name)
{
    struct err e;
    if (!name || !strcmp(name, "none")) return NULL;
    if (!strcmp(name, "sim")) return dev_sim_api();
    err_clear(&e);
    const struct dev_api *api = dev_plugin("cuda", &e);
    if (!api && (e.code != ERR_MISSING || strcmp(name, "auto")))
        cli_warn("device cuda is not used: %s", e.msg);
    return api;
}

struct tessera_options cli_engine_options(const struct cli_args *a)
{
    struct tessera_options o = tessera_defaults();
    o.model_path = a->model;
    o.n_threads = a->threads;
    o.n_ctx = a->ctx;
    o.n_ubatch = a->ubatch;
    o.n_batch = a->batch;
    o.n_sessions = a->n_sessions;
    o.n_logits = a->n_logits;
    o.kv = (enum tessera_kv)a->kv_k;
    o.mem_budget = a->mem;
    o.header_only = a->header_only;
    o.vram_budget = a->vram;
    o.device = named_device(a->device);
    o.policy = a->policy;
    o.predictor = a->predictor;
    o.loops = a->loops;
    o.exit_at = a->exit_at;
    o.exit_weighted = a->exit_weighted;
    o.depth_exact = a->depth_exact;
    o.expert_choice = a->routing && !strcmp(a->routing, "expert-choice");
    o.background = a->background;
    return o;
}

void cli_print_model(const tessera_engine *e, const struct cli_args *a)
{
    struct tessera_model m = tessera_model(e);
    struct tessera_memory mem = tessera_memory(e);
    char params[24], total[24], budget[24];
    fprintf(stderr, "%s%s%s: %s, %s parameters", cli_bold(), m.name && *m.name ? m.name : a->model,
            cli_plain(), m.arch, cli_count(m.n_params, params));
    if (m.n_expert > 0) fprintf(stderr, ", %d of %d experts", m.n_expert_used, m.n_expert);
    fprintf(stderr, ", %s; context %d", m.type_label, m.n_ctx);
    if (m.n_ctx < m.n_ctx_train) fprintf(stderr, " of %d", m.n_ctx_train);
    fprintf(stderr, "; memory %s", cli_bytes(mem.total, total));
    if (mem.budget != UINT64_MAX)
        fprintf(stderr, " of %s%s", cli_bytes(mem.budget, budget), a->mem ? "" : " (auto)");
    const struct tessera_traffic t = tessera_traffic(e);
    if (t.token_disk_expected && m.n_expert > 0)
        fprintf(stderr, ", %.0f %% of the experts", 100 * t.hit_expected);
    if (t.token_disk_expected)
        fprintf(stderr, "; %s per token from disk", cli_bytes(t.token_disk_expected, total));
    if (t.seconds_expected[1] > 0 && !m.sees_both)
        fprintf(stderr, ", %.3g tokens/s promised", 1 / t.seconds_expected[2]);
    fprintf(stderr, "; %d thread%s, %s\n", m.n_threads, m.n_threads == 1 ? "" : "s", m.cpu);
}

/* The measured speeds: of the file that was named, or what doctor has kept of this machine and the
 * model's drive.  *known: there are any. */
static enum status read_machine(const struct cli_args *a, struct machine *m, bool *known,
                                struct err *err)
{
    char kept[1024];
    *known = false;
    if (a->machine) {
        enum status s = machine_read(m, a->machine, err);
        if (s) return s;
        if (!(m->ram_read_n > 0) || !(m->disk_random > 0))
            return err_set(err, ERR_FORMAT, "%s has no measured speeds of memory and disk: write it "
                           "with `tessera doctor -m MODEL -o FILE`", a->machine);
    } else {
        struct err local;
        if (!machine_cache(a->model, false, kept, sizeof kept) || access(kept, R_OK)) return OK;
        err_clear(&local);
        if (machine_read(m, kept, &local)) {
            cli_warn("%s: `tessera doctor -m MODEL --fresh` measures again", local.msg);
            return OK;
        }
    }
    *known = true;
    return OK;
}

/* What the system's own words would not say. */
static enum status check_path(const char *path, struct err *err)
{
    struct stat st;
    if (stat(path, &st)) return err_set(err, ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return err_set(err, ERR_IO, "%s is a directory; -m names one GGUF file", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_IO, "%s is not a regular file; -m names one GGUF file", path);
    return OK;
}

/* Warnings printed so far, of the engine that is open: a command has one at a time. */
static int n_warned;

void cli_print_warnings(const tessera_engine *e)
{
    const char *w;
    for (; (w = tessera_warning(e, n_warned)); n_warned++) cli_warn("%s", w);
}

/* What informed routing did to what was computed, in a line; nothing when it is off. */
static void print_approx(const tessera_engine *e)
{
    const struct tessera_approx x = tessera_approx(e);
    if (!(x.share > 0) || !x.rows) return;
    fprintf(stderr, "approximated %.1f %% of feed-forwards (%.0f %% asked for), %" PRIu64 " did not run",
            100 * (double)x.rows_on / (double)x.rows, 100 * x.share, x.skipped);
    if (isfinite(x.kl)) fprintf(stderr, "; price when they were fitted: KL %.4f nats per token", x.kl);
    fprintf(stderr, "\n");
}

void cli_close_engine(tessera_engine *e)
{
    if (e) cli_print_warnings(e);
    if (e) print_approx(e);
    tessera_close(e);
    n_warned = 0;
}

/* "25%", and what can do it. */
static enum status read_approximate(const struct cli_args *a, struct tessera_options *o, struct err *err)
{
    char word[16];
    double share = 0;
    const size_t n = a->approximate ? strlen(a->approximate) : 0;
    if (!n && !a->forecasters) return OK;
    if (!n || !a->forecasters)
        return err_set(err, ERR_USAGE, "--approximate 25%% and --forecasters FILE go together");
    (void)snprintf(word, sizeof word, "%.*s", (int)(n - 1), a->approximate);
    if (a->approximate[n - 1] != '%' || !cli_parse_float(word, 0, 100, &share))
        return err_set(err, ERR_USAGE, "--approximate %s: 25%%, say", a->approximate);
    o->forecasters = a->forecasters;
    o->approximate = (float)(share / 100);
    return OK;
}

int cli_open_engine(const struct cli_args *a, tessera_engine **out)
{
    struct err err;
    struct cli_progress bar = {.label = "reading"};
    struct tessera_options o = cli_engine_options(a);
    err_clear(&err);
    *out = NULL;
    if (check_path(a->model, &err)) return cli_fail(&err);
    struct machine m;
    bool known;
    if (read_machine(a, &m, &known, &err)) return cli_fail(&err);
    o.machine = known ? &m : NULL;
    o.routes = a->routes;
    if (read_approximate(a, &o, &err)) return cli_fail(&err);
    cli_catch_interrupts();
    o.progress = cli_progress;
    o.progress_arg = &bar;
    enum status s = tessera_open(&o, out, &err);
    cli_progress_end(&bar);
    if (s) return cli_fail(&err);
    n_warned = 0;
    cli_print_warnings(*out);
    if (!a->quiet_open) cli_print_model(*out, a);
    return CLI_OK;
}

/* ---- text ---- */

enum status cli_read_file(const char *path, char **text, size_t *n, struct err *e)
{
    bool in = !strcmp(path, "-");
    const char *name = in ? "standard input" : path;
    *text = NULL;
    *n = 0;
    FILE *f = in ? stdin : fopen(path, "re");
    if (!f) return err_set(e, ERR_IO, "cannot open %s: %s", path, strerror(errno));
    size_t cap = 0;
    char *buf = NULL;
    enum status s = OK;
    while (!s) {
        if (cap - *n < 4096) {
            cap = cap * 2 + 8192;
            char *more = realloc(buf, cap);
            if (!more) {
                s = err_set(e, ERR_MEMORY, "no memory to read %s", name);
                break;
            }
            buf = more;
        }
        size_t got = fread(buf + *n, 1, cap - *n - 1, f);
        *n += got;
        if (ferror(f))
            s = errno == EINTR && cli_interrupted()
                    ? err_set(e, ERR_CANCELLED, "interrupted")
                    : err_set(e, ERR_IO, "cannot read %s: %s", name, strerror(errno));
        if (feof(f)) break;
    }
    if (!in) (void)fclose(f);
    if (s) {
        free(buf);
        *n = 0;
        return s;
    }
    buf[*n] = 0;
    *text = buf;
    return OK;
}

enum status cli_read_prompt(const struct cli_args *a, char **text, size_t *n, struct err *e)
{
    const char *path = a->file ? a->file : a->prompt && !strcmp(a->prompt, "-") ? "-" : NULL;
    *text = NULL;
    *n = 0;
    if (path) {
        enum status s = cli_read_file(path, text, n, e);
        if (!s && !a->raw_text && *n && (*text)[*n - 1] == '\n') (*text)[--*n] = 0;
        return s;
    }
    if (!a->prompt) return err_set(e, ERR_USAGE, "no prompt: give -p TEXT, -p - or -f FILE");
    *text = strdup(a->prompt);
    if (!*text) return err_set(e, ERR_MEMORY, "no memory for the prompt");
    *n = a->escape ? cli_unescape(*text) : strlen(*text);
    return OK;
}

int cli_can_write(const char *path)
{
    struct osfile_writer w;
    struct stat st;
    struct err err;
    err_clear(&err);
    /* A pipe or a device: whoever reads it would take this for all. */
    if (!path || (!stat(path, &st) && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))) return CLI_OK;
    if (osfile_writer_open(&w, path, &err)) return cli_fail(&err);
    osfile_writer_abort(&w);
    return CLI_OK;
}

enum status cli_encode(const struct tok *t, const char *text, size_t n, unsigned flags,
                       int32_t **ids, int *n_ids, struct err *e)
{
    int64_t cap = (int64_t)n + 16; /* nearly always enough */
    *n_ids = 0;
    *ids = NULL;
    for (;;) {
        int32_t *more = realloc(*ids, (size_t)cap * sizeof **ids);
        int64_t got = -1;
        if (more) {
            *ids = more;
            got = tok_encode(t, text, n, flags, *ids, cap);
        }
        if (got < 0 || got > INT32_MAX) {
            free(*ids);
            *ids = NULL;
            return err_set(e, ERR_MEMORY, "no memory for %zu bytes of text", n);
        }
        *n_ids = (int)got;
        if (got <= cap) return OK;
        cap = got;
    }
}

enum status cli_text_ids(const tessera_engine *e, const struct cli_args *a, const char *list, bool special,
                         int32_t **ids, int *n_ids, int *bos, struct err *err)
{
    const struct tok *tok = tessera_tok(e);
    char *text = NULL, why[160];
    size_t n = 0;
    *bos = 0;
    if (list) {
        if (!cli_parse_ids(list, ids, n_ids, why, sizeof why))
            return err_set(err, ERR_USAGE, "--ids: %s", why);
        for (int i = 0; i < *n_ids; i++)
            if ((*ids)[i] < 0 || (*ids)[i] >= tessera_model(e).n_vocab)
                return err_set(err, ERR_RANGE, "id %d is outside the vocabulary: ids are 0 to %d", (*ids)[i],
                               tessera_model(e).n_vocab - 1);
        return OK;
    }
    if (!tok) return err_set(err, ERR_MISSING, "%s: use --ids instead of text", tessera_tok_error(e));
    enum status s = cli_read_prompt(a, &text, &n, err);
    const unsigned flags = TOK_BOS | (special ? TOK_SPECIAL : 0);
    if (!s) s = cli_encode(tok, text, n, flags, ids, n_ids, err);
    free(text);
    if (!s && !*n_ids) s = err_set(err, ERR_RANGE, "the text has no tokens");
    if (!s) *bos = (*ids)[0] == tok_bos(tok);
    return s;
}

int cli_no_tokenizer(const tessera_engine *e, const char *instead)
{
    const char *why = tessera_tok_error(e);
    fprintf(stderr, "tessera: this model cannot read text: %s%s%s\n",
            why && *why ? why : "it has no tokenizer", *instead ? " " : "", instead);
    return CLI_ERROR;
}

/* ---- sampling ---- */

const char *cli_stop_name(enum tessera_stop s)
{
    switch (s) {
    case TESSERA_RUNNING: break;
    case TESSERA_STOP_END: return "end";
    case TESSERA_STOP_LENGTH: return "length";
    case TESSERA_STOP_STRING: return "string";
    case TESSERA_STOP_FULL: return "full";
    case TESSERA_STOP_CANCELLED: return "cancelled";
    }
    return "running";
}

/* In the order of enum tessera_denoise_alg and of enum tessera_denoise_cache. */
static const char *const algs[] = {"low_confidence", "random", "origin", "maskgit_plus", "topk_margin",
                                   "entropy", NULL};
static const char *const caches[] = {"none", "prefix", "dual", NULL};

static int index_of(const char *const *list, const char *name)
{
    int i = 0;
    while (list[i] && strcmp(list[i], name)) i++;
    return list[i] ? i : -1;
}

bool cli_alg_known(const char *name) { return !name || index_of(algs, name) >= 0; }
bool cli_cache_known(const char *name) { return !name || index_of(caches, name) >= 0; }

struct tessera_denoising cli_denoising(const struct cli_args *a)
{
    return (struct tessera_denoising){
        .alg = (enum tessera_denoise_alg)(a->alg ? 1 + index_of(algs, a->alg) : 0),
        .cache = (enum tessera_denoise_cache)(a->cache ? index_of(caches, a->cache) : 0),
        .block = a->block, .steps = a->steps, .threshold = a->threshold, .guidance = a->guidance,
        .alg_temp = a->alg_temp,
    };
}

void cli_sampling_of(struct cli_args *a, const tessera_engine *e)
{
    struct tessera_sampling s = tessera_sampling_defaults();
    if (tessera_model(e).sees_both) (void)tessera_denoising_defaults(e, &s);
    if (a->temp < 0) a->temp = s.temp;
    if (a->top_k < 0) a->top_k = s.top_k;
    if (a->top_p < 0) a->top_p = s.top_p;
    if (a->min_p < 0) a->min_p = s.min_p;
}

int cli_next_tokens(const tessera_engine *e, const char *cmd)
{
    if (!tessera_model(e).sees_both) return CLI_OK;
    fprintf(stderr, "tessera: %s is about the next token, and a model of %s has none: it fills in "
            "hidden tokens from both sides\n", cmd, tessera_model(e).arch);
    return CLI_ERROR;
}

struct tessera_sampling cli_sampling(struct cli_args *a, int n_ctx)
{
    uint32_t seed;
    if (a->seed < 0) {
        if (getrandom(&seed, sizeof seed, 0) != sizeof seed) seed = 1;
        a->seed = seed & 0x7fffffff;
    }
    return (struct tessera_sampling){
        .temp = a->temp, .top_k = a->top_k, .top_p = a->top_p, .min_p = a->min_p,
        .repeat_penalty = a->repeat_penalty,
        .repeat_last_n = a->repeat_last_n < 0 ? n_ctx : a->repeat_last_n,
        .seed = (uint64_t)a->seed,
    };
}
