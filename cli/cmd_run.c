/* `tessera run`: one completion.  stdout gets the generated text and nothing else, no line end
 * added; everything else goes to stderr.  With --batch, run_batch.c takes over. */
#include "cli/cli.h"
#include "cli/kl.h"

#include <stdlib.h>
#include <string.h>

#include "moe/base/osfile.h"
#include "moe/load/tok.h"

struct run_args {
    const char *ids, *batch;
    int parallel;
};

struct run {
    struct cli_args *a;
    tessera_engine *e;
    tessera_session *s;
    int32_t *ids;
    int n_ids;
    bool print_ids; /* no tokenizer: ids in, ids out */
    int n_printed;  /* of the ids of a model that sees both sides */
    struct cli_canvas canvas;
};

static const char footer[] =
    "The prompt may hold special tokens (<|im_start|>); a BOS token is put first when the\n"
    "vocabulary wants one.  With --ids and a model without a tokenizer, ids are printed.\n"
    "Ctrl-C ends the answer with exit code 130; what was printed so far stays.\n"
    "\n"
    "--batch FILE (- = stdin) has one JSON object per line:\n"
    "  {\"id\": \"a\", \"prompt\": \"Once upon\", \"n\": 64, \"seed\": 1, \"temp\": 0.8}\n"
    "prompt must be there; the flags are the defaults of the rest, id's is the line number.\n"
    "All lines are checked before the model is opened: a malformed one ends the run, exit 1,\n"
    "nothing printed.  One line comes out for each, in the same order:\n"
    "  {\"id\": \"a\", \"text\": \"...\", \"n_prompt\": 2, \"n_gen\": 64, \"stop\": \"length\"}\n"
    "stop is end, length, string, full or error; an error (a prompt that does not fit the\n"
    "context, say) has a field \"error\", the other lines go on, and the exit code is 1.\n";

static const struct cli_flag flags[] = {
    {"--ids", "LIST", "the prompt as token ids: 1,2,3", CLI_STR, offsetof(struct run_args, ids), 0,
     0},
    {"--batch", "FILE", "many prompts as JSON lines, see below", CLI_STR,
     offsetof(struct run_args, batch), 0, 0},
    {"--parallel", "N", "lines of a batch that run together (default 4)", CLI_INT,
     offsetof(struct run_args, parallel), 1, 256},
    {0}};

/* The ids of the prompt, read before the model is: text stays text until there is a tokenizer. */
static enum status encode_prompt(struct run *r, const char *text, size_t n, struct err *err)
{
    enum status s = cli_encode(tessera_tok(r->e), text, n, TOK_BOS | TOK_SPECIAL, &r->ids,
                               &r->n_ids, err);
    if (s) return s;
    if (!r->n_ids) return err_set(err, ERR_RANGE, "the prompt is empty: nothing to go on from");
    return OK;
}

/* What is settled for good, and on a terminal the rest as it is now. */
static bool print_canvas(struct run *r, const struct tessera_answer *a)
{
    if (r->print_ids) {
        for (int at; (at = r->n_ids + r->n_printed) < a->n_settled; r->n_printed++) {
            char id[16];
            int n = snprintf(id, sizeof id, "%s%d", r->n_printed ? "," : "", a->canvas[at]);
            if (!cli_out(id, (size_t)n)) return false;
        }
        return true;
    }
    cli_canvas_wipe(&r->canvas);
    if (a->n_text && !cli_out(a->text, (size_t)a->n_text)) return false;
    cli_canvas_printed(&r->canvas, a->text, (size_t)a->n_text);
    if (!a->stop) cli_canvas_show(&r->canvas, a->canvas + a->n_settled, a->n_canvas - a->n_settled);
    return true;
}

static bool print_answer(struct run *r, const struct tessera_answer *a, bool first)
{
    char id[16];
    if (a->canvas) return print_canvas(r, a);
    if (!r->print_ids) return !a->n_text || cli_out(a->text, (size_t)a->n_text);
    if (a->id < 0) return true;
    int n = snprintf(id, sizeof id, "%s%d", first ? "" : ",", a->id);
    return cli_out(id, (size_t)n);
}

static void report(struct run *r, const tessera_generator *g, enum tessera_stop stop)
{
    char more[64] = "";
    struct tessera_timing t = tessera_generator_timing(g);
    if (r->a->temp > 0) (void)snprintf(more, sizeof more, "seed %lld", (long long)r->a->seed);
    if (cli_tty(stdout) && cli_tty(stderr)) fprintf(stderr, "\n");
    if (stop == TESSERA_STOP_FULL)
        cli_warn("the context of %d tokens is full; -c sets a larger one",
                 tessera_session_n_ctx(r->s));
    cli_print_speed(&t, r->e, more);
}

/* What the plan promised of a decoded token, beside what it was since `before`. */
static void analyze(const struct run *r, const struct tessera_traffic *before, double seconds)
{
    const struct tessera_traffic t = tessera_traffic(r->e);
    const double steps = (double)(t.steps - before->steps);
    const uint64_t hits = t.hits - before->hits, all = hits + t.misses - before->misses;
    char want[24], got[24];
    if (!(steps > 0)) return;
    fprintf(stderr, "\ndecode, %.0f tokens      promised    measured\n", steps);
    if (all)
        fprintf(stderr, "  experts in memory %9.1f %% %9.1f %%\n", 100 * t.hit_expected,
                100 * (double)hits / (double)all);
    fprintf(stderr, "  read per token    %11s %11s\n", cli_bytes(t.token_disk_expected, want),
            cli_bytes((uint64_t)((double)(t.bytes_read - before->bytes_read) / steps), got));
    fprintf(stderr, "  time per token    ");
    if (t.seconds_expected[1] > 0)
        fprintf(stderr, "%8.1f ms", 1e3 * t.seconds_expected[2]);
    else
        fprintf(stderr, "%11s", "-");
    fprintf(stderr, " %8.1f ms, %.1f of them waiting for reads\n", 1e3 * seconds / steps,
            1e3 * (t.waited - before->waited) / steps);
    const double reading = t.reading - before->reading;
    if (reading > 0)
        fprintf(stderr, "  the drive busy    %11s %8.1f ms, at %.2f GB/s meanwhile\n", "-", 1e3 * reading / steps,
                1e-9 * (double)(t.bytes_read - before->bytes_read) / reading);
    if (t.seconds_expected[1] > 0)
        fprintf(stderr, "  (between %.1f, if reads cost nothing beside the products, and %.1f ms)\n",
                1e3 * t.seconds_expected[0], 1e3 * t.seconds_expected[1]);
    const uint64_t there = t.device_ran - before->device_ran;
    if (there)
        fprintf(stderr, "  on the device     %11s %9.1f %%, %.1f sent over and %s moved per token; its work "
                "%.2f ms%s\n", "-", 100 * (double)there / (double)(there + all),
                (double)(t.device_sent - before->device_sent) / steps,
                cli_bytes((uint64_t)((double)(t.device_bytes - before->device_bytes) / steps), got),
                1e3 * (t.device_seconds - before->device_seconds) / steps,
                t.device_modelled ? " (modelled)" : "");
    if (t.device_displaced > before->device_displaced)
        fprintf(stderr, "  (%llu experts there gave way to keys and values)\n",
                (unsigned long long)(t.device_displaced - before->device_displaced));
    cli_print_ahead(r->e, 18);
    if (!(t.seconds_expected[1] > 0))
        fprintf(stderr, "  (times are promised when `tessera doctor -m MODEL` has measured this machine)\n");
}

/* How far a cache has gone from passes over the whole text. */
static void report_cache(const struct run *r, const struct tessera_timing *t)
{
    if (t->n_compared)
        fprintf(stderr, "cache %s: KL %.2g nats from whole passes on average, on %d places; %.1f %% of them "
                "have another likeliest token\n", r->a->cache, t->kl / t->n_compared, t->n_compared,
                100.0 * t->n_changed / t->n_compared);
}

static bool by_experts(const struct cli_args *a)
{
    return a->routing && !strcmp(a->routing, "expert-choice");
}

static int likeliest(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Experts chose the prompt's tokens: how far that has taken the answer's distributions from those of the
 * model's own routing.  The same tokens in the same steps once more, by turns on two timelines. */
static enum status report_routing(const struct run *r, struct err *err)
{
    const struct tessera_model m = tessera_model(r->e);
    const int n = tessera_session_n(r->s);
    int32_t *ids = malloc(sizeof *ids * (size_t)n);
    float *own = malloc(sizeof *own * (size_t)m.n_vocab);
    tessera_session *two[2] = {r->s, NULL};
    double kl = 0;
    int n_rows = 0, n_same = 0;
    enum status s = ids && own ? tessera_session_open(r->e, 0, &two[1], err)
                               : err_set(err, ERR_MEMORY, "no memory for logits");
    if (!s) memcpy(ids, tessera_session_ids(r->s), sizeof *ids * (size_t)n);
    if (!s) s = tessera_session_rollback(r->s, (struct tessera_mark){0}, err);
    for (int at = 0, to; at < n && !s; at = to) {
        to = at >= r->n_ids ? at + 1 : at + m.n_batch < r->n_ids ? at + m.n_batch : r->n_ids;
        for (int k = 1; k >= 0 && !s; k--) {
            const struct tessera_input in = {.session = two[k], .ids = ids + at, .n = to - at,
                                             .logits = TESSERA_LOGITS_LAST};
            tessera_own_routing(r->e, k);
            s = tessera_step(r->e, &in, 1, err);
            const float *x = s ? NULL : tessera_logits(r->e, 0, to - at - 1);
            if (!x || to < r->n_ids) continue;
            if (k) {
                memcpy(own, x, sizeof *own * (size_t)m.n_vocab);
                continue;
            }
            kl += kl_rows(own, x, m.n_vocab, NULL);
            n_same += likeliest(own, m.n_vocab) == likeliest(x, m.n_vocab);
            n_rows++;
        }
    }
    tessera_own_routing(r->e, false);
    tessera_session_close(two[1]);
    free(ids);
    free(own);
    if (n_rows)
        fprintf(stderr, "routing expert-choice: KL %.4f nats per token from the model's own routing, on %d "
                "tokens; %.1f %% of them have another likeliest one\n", kl / n_rows, n_rows,
                100.0 * (n_rows - n_same) / n_rows);
    return s;
}

/* Prints until the end; the exit code. */
static int print_all(struct run *r, tessera_generator *g)
{
    struct err err;
    struct tessera_answer a;
    struct tessera_traffic before = {0};
    double start = 0;
    err_clear(&err);
    for (bool first = true;; first = false) {
        enum status s = tessera_generator_next(g, &a, &err);
        if (first) {
            before = tessera_traffic(r->e);
            start = os_seconds();
        }
        if (s && s != ERR_CANCELLED) return cli_fail(&err);
        if (s) a.stop = TESSERA_STOP_CANCELLED;
        if (!s && !print_answer(r, &a, first)) return CLI_OK; /* the reader has gone: main says */
        if (cli_interrupted() || a.stop == TESSERA_STOP_CANCELLED) a.stop = TESSERA_STOP_CANCELLED;
        if (a.stop) break;
    }
    const double seconds = os_seconds() - start;
    cli_canvas_wipe(&r->canvas); /* what was left of an answer that was interrupted */
    report(r, g, a.stop);
    if (r->a->analyze) {
        const struct tessera_timing t = tessera_generator_timing(g);
        if (!t.n_passes) analyze(r, &before, seconds);
        report_cache(r, &t);
        cli_print_depth(r->e, t.prompt_s + t.gen_s);
        if (by_experts(r->a) && a.stop != TESSERA_STOP_CANCELLED && report_routing(r, &err)) return cli_fail(&err);
    }
    return a.stop == TESSERA_STOP_CANCELLED ? CLI_INTERRUPTED : CLI_OK;
}

static int generate(struct run *r)
{
    struct err err;
    tessera_generator *g = NULL;
    struct tessera_generator_options o = {
        .sampling = cli_sampling(r->a, tessera_session_n_ctx(r->s)),
        .stops = r->a->stops.at, .n_stops = r->a->stops.n,
        .n_gen_max = r->a->n_predict < 0 ? -1 : r->a->n_predict,
        .ignore_end = r->a->ignore_eos, .special_text = r->a->special,
        .denoise = cli_denoising(r->a),
    };
    o.denoise.measure = r->a->analyze;
    err_clear(&err);
    if (tessera_model(r->e).sees_both)
        (void)cli_canvas_open(&r->canvas, tessera_tok(r->e), tessera_model(r->e).mask);
    if (tessera_generator_open(r->s, r->ids, r->n_ids, &o, &g, &err)) return cli_fail(&err);
    int rc = o.n_gen_max ? print_all(r, g) : CLI_OK;
    tessera_generator_close(g);
    return rc;
}

/* Opens the model and a session, turns the prompt into ids, generates. */
static int run_prompt(struct run *r, const char *text, size_t n)
{
    struct err err;
    err_clear(&err);
    if (r->a->analyze && by_experts(r->a)) r->a->n_sessions = 2; /* report_routing() opens one */
    r->a->background = !r->a->analyze; /* it measures what is there when all has been read */
    int rc = cli_open_engine(r->a, &r->e);
    if (rc) return rc;
    cli_sampling_of(r->a, r->e);
    if (r->a->analyze && tessera_explain(r->e, stderr, false, &err)) return cli_fail(&err);
    r->print_ids = !tessera_tok(r->e);
    if (text && r->print_ids) return cli_no_tokenizer(r->e, "(--ids 1,2,3)");
    if (text && encode_prompt(r, text, n, &err)) return cli_fail(&err);
    if (tessera_session_open(r->e, 0, &r->s, &err)) return cli_fail(&err);
    cli_interrupt_target(r->e);
    rc = generate(r);
    cli_interrupt_target(NULL);
    return rc;
}

static void run_close(struct run *r)
{
    if (r->s) tessera_session_close(r->s);
    if (r->e) cli_close_engine(r->e);
    free(r->ids);
}

/* One place for the escapes of -r: they are written like those of -p. */
static int unescape_stops(struct cli_args *a, char *copies[CLI_LIST_MAX])
{
    for (int i = 0; a->escape && i < a->stops.n; i++) {
        copies[i] = strdup(a->stops.at[i]);
        if (!copies[i]) return CLI_ERROR;
        (void)cli_unescape(copies[i]);
        a->stops.at[i] = copies[i];
    }
    return CLI_OK;
}

static int run_one(struct cli_args *a, const struct run_args *own)
{
    struct run r = {.a = a};
    struct err err;
    char why[128], *text = NULL;
    size_t n = 0;
    int rc;
    err_clear(&err);
    if (own->ids) {
        if (!cli_parse_ids(own->ids, &r.ids, &r.n_ids, why, sizeof why))
            return cli_usage("run", "--ids: %s", why);
    } else if (cli_read_prompt(a, &text, &n, &err)) {
        return cli_fail(&err);
    }
    rc = run_prompt(&r, text, n);
    run_close(&r);
    free(text);
    return rc;
}

int cmd_run(int argc, char **argv)
{
    struct run_args own = {.parallel = 4};
    struct cli_args a = cli_defaults();
    struct cli_spec spec = {
        .name = "run", .groups = CLI_MODEL | CLI_PROMPT | CLI_GENERATE, .own = flags,
        .own_base = &own, .footer = footer};
    char *stops[CLI_LIST_MAX] = {NULL};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    int sources = !!a.prompt + !!a.file + !!own.ids + !!own.batch;
    if (!sources) return cli_usage("run", "no prompt: -p TEXT, -p -, -f FILE, --ids or --batch");
    if (sources > 1) return cli_usage("run", "give one of -p, -f, --ids and --batch");
    rc = unescape_stops(&a, stops);
    if (!rc) rc = own.batch ? run_batch(&a, own.batch, own.parallel) : run_one(&a, &own);
    for (int i = 0; i < CLI_LIST_MAX; i++) free(stops[i]);
    return rc;
}
