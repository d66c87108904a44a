/* tessera bench: tokens per second, measured and printed as llama-bench does: pp N reads N random
 * tokens into an empty context, tg N generates N tokens one at a time; one warm-up, then -r runs; with
 * -d the context holds D tokens already ("@ dD").
 * Reads no prompt and samples nothing.  --roofline adds one more run of each test, its steps timed
 * one by one, beside what the memory and the integer units of this machine allow. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/escape.h"
#include "moe/base/machine.h"
#include "moe/base/osfile.h"
#include "moe/base/rng.h"
#include "moe/load/gguf.h"
#include "quant/mm.h"

enum { REPS = 100, TESTS = 32, CTX_AUTO = 8192 /* what an absent -c gives at most */ };

enum format { FORMAT_MD, FORMAT_CSV, FORMAT_JSON, FORMAT_JSONL };

struct bench_args {
    const char *prompts, *gens, *depths, *format;
    int reps;
    bool roofline;
};

struct test {
    int n_prompt, n_gen; /* one of them is 0 */
    int depth;           /* tokens before them */
    double s[REPS];      /* seconds of each run */
    double avg_s, dev_s, avg_ts, dev_ts;
    char when[32];
};

struct bench {
    tessera_engine *e;
    tessera_session *session;
    const char *path;
    struct tessera_model m;
    char cpu[MACHINE_NAME], type[160]; /* "qwen3moe 8.1M Q8_0" */
    char backend[32];                  /* "CPU", "CPU+cuda" */
    uint64_t weight_bytes;
    int kv, n_batch, reps;
    struct rng rng;
    enum format format;
    int printed;
    bool roofline;
    double ram, peak; /* GB/s and 1e9 multiply-accumulates per second of all threads */
};

/* ---- measuring ---- */

static enum status run_prompt(struct bench *b, int32_t *ids, int n, struct err *err)
{
    enum status s = OK;
    for (int i = 0; i < n; i++) ids[i] = (int32_t)rng_below(&b->rng, (uint32_t)b->m.n_vocab);
    for (int at = 0; at < n && !s;) {
        int left = n - at, rows = left < b->m.n_batch ? left : b->m.n_batch;
        struct tessera_input in = {
            .session = b->session, .ids = ids + at, .n = rows,
            .logits = rows == left ? TESSERA_LOGITS_LAST : TESSERA_LOGITS_NONE};
        s = tessera_step(b->e, &in, 1, err);
        at += rows;
    }
    return s;
}

static enum status run_gen(struct bench *b, int n, struct err *err)
{
    enum status s = OK;
    for (int i = 0; i < n && !s; i++) {
        int32_t id = (int32_t)rng_below(&b->rng, (uint32_t)b->m.n_vocab);
        struct tessera_input in = {.session = b->session, .ids = &id, .n = 1,
                                   .logits = TESSERA_LOGITS_LAST};
        s = tessera_step(b->e, &in, 1, err);
    }
    return s;
}

/* Leaves a context of depth tokens; recurrent states may lie further back and are brought up. */
static enum status go_to_depth(struct bench *b, int depth, int32_t *ids, struct err *err)
{
    enum status s = OK;
    if (tessera_session_n(b->session) > depth)
        s = tessera_session_rollback(b->session, (struct tessera_mark){depth}, err);
    const int n = tessera_session_n(b->session);
    return s || n == depth ? s : run_prompt(b, ids, depth - n, err);
}

/* At the test's depth. */
static enum status run_once(struct bench *b, const struct test *t, int32_t *ids, struct err *err)
{
    enum status s = OK;
    if (t->n_prompt) s = run_prompt(b, ids, t->n_prompt, err);
    if (!s && t->n_gen) s = run_gen(b, t->n_gen, err);
    return s;
}

/* Mean and standard deviation of a sample. */
static double mean_dev(const double *x, int n, double *dev)
{
    double sum = 0, sq = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    for (int i = 0; i < n; i++) sq += (x[i] - sum / n) * (x[i] - sum / n);
    *dev = n > 1 ? sqrt(sq / (n - 1)) : 0;
    return sum / n;
}

static enum status run_test(struct bench *b, struct test *t, int32_t *ids, struct err *err)
{
    struct test warm = *t;
    double ts[REPS];
    if (warm.n_gen) warm.n_gen = 1;
    enum status s = tessera_session_rollback(b->session, (struct tessera_mark){0}, err);
    if (!s) s = go_to_depth(b, t->depth, ids, err);
    if (!s) s = run_once(b, &warm, ids, err);
    for (int r = 0; r < b->reps && !s; r++) {
        if ((s = go_to_depth(b, t->depth, ids, err))) break;
        double start = os_seconds();
        s = run_once(b, t, ids, err);
        t->s[r] = os_seconds() - start;
        ts[r] = (t->n_prompt + t->n_gen) / t->s[r];
    }
    if (s) return s;
    time_t now = time(NULL);
    struct tm utc;
    t->avg_s = mean_dev(t->s, b->reps, &t->dev_s);
    t->avg_ts = mean_dev(ts, b->reps, &t->dev_ts);
    if (gmtime_r(&now, &utc)) (void)strftime(t->when, sizeof t->when, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return OK;
}

/* "tg64 @ d4096", as llama-bench says it. */
static void test_name(const struct test *t, char *name, size_t cap)
{
    const int n = snprintf(name, cap, t->n_prompt ? "pp%d" : "tg%d", t->n_prompt + t->n_gen);
    if (t->depth && n > 0) (void)snprintf(name + n, cap - (size_t)n, " @ d%d", t->depth);
}

/* ---- the roofline ---- */

enum { ROOF_BYTES = 512 << 20 };

static enum status measure_roof(struct bench *b, struct err *err)
{
    const int n = b->m.n_threads;
    enum status s = machine_measure_ram(n, ROOF_BYTES, &b->ram, err);
    return s ? s : mm_measure_peak(cpu_tier_best(), n, &b->peak, err);
}

/* The time that the bytes and the products of a step need at least. */
static double least_seconds(const struct bench *b, const struct tessera_step_kind *k)
{
    const double bytes = b->ram > 0 ? (double)k->bytes / b->ram / 1e9 : 0;
    const double macs = b->peak > 0 ? (double)k->macs / b->peak / 1e9 : 0;
    return bytes > macs ? bytes : macs;
}

static void print_kind(const struct tessera_step_kind *k, double n_passes,
                       double total, double least)
{
    const double s = k->seconds > 0 ? k->seconds : 1e-9;
    printf("| %-11s | %-13s | %6.0f | %9.3f | %5.1f | %9.2f | %7.2f | %9.3f | %7.1f | %5.1f |\n",
           k->step, k->name, (double)k->n_runs / n_passes, 1e3 * k->seconds / n_passes,
           100 * k->seconds / total, (double)k->bytes / n_passes / 1e6, (double)k->bytes / s / 1e9,
           (double)k->macs / n_passes / 1e9, (double)k->macs / s / 1e9, 100 * least / s);
}

/* Runs the test once more, timed by step, and prints where its time went per forward pass. */
static enum status roofline(struct bench *b, const struct test *t, int32_t *ids, struct err *err)
{
    struct tessera_step_kind k, sum = {.step = "all", .name = ""};
    double least = 0;
    enum status s = b->ram > 0 ? OK : measure_roof(b, err);
    if (!s) s = go_to_depth(b, t->depth, ids, err);
    if (!s) s = tessera_profile(b->e, true, err);
    if (s) return s;
    const double start = os_seconds();
    s = run_once(b, t, ids, err);
    const double total = os_seconds() - start;
    const double n = t->n_gen ? t->n_gen : (t->n_prompt + b->m.n_ubatch - 1) / b->m.n_ubatch;
    if (!s) {
        char name[48];
        test_name(t, name, sizeof name);
        printf("\n%s by step, per pass of %d: memory %.1f GB/s, products %.0f GMAC/s, "
               "%d threads\n\n",
               name,
               t->n_gen ? 1 : t->n_prompt < b->m.n_ubatch ? t->n_prompt : b->m.n_ubatch, b->ram,
               b->peak, b->m.n_threads);
        printf("| step        | name          |   runs |        ms |     %% |        MB |    GB/s |"
               "      GMAC |  GMAC/s | %% of limit |\n"
               "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    }
    for (int i = 0; !s && tessera_profile_at(b->e, i, &k); i++) {
        print_kind(&k, n, total, least_seconds(b, &k));
        sum.n_runs += k.n_runs;
        sum.bytes += k.bytes;
        sum.macs += k.macs;
        sum.seconds += k.seconds;
        least += least_seconds(b, &k);
    }
    k = (struct tessera_step_kind){.step = "between", .name = "", .seconds = total - sum.seconds};
    sum.seconds = total;
    if (!s) {
        print_kind(&k, n, total, 0);
        print_kind(&sum, n, total, least);
    }
    (void)tessera_profile(b->e, false, NULL);
    return s;
}

/* ---- printing ---- */

static void print_md(const struct bench *b, const struct test *t)
{
    char size[32], params[32], test[48], ts[64];
    double mib = (double)b->weight_bytes / 1048576.0, n = (double)b->m.n_params;
    if (!b->printed)
        printf("| %-30s | %10s | %10s | %-10s | %7s | %15s | %20s |\n"
               "| %.30s | %.9s: | %.9s: | %.10s | %.6s: | %.14s: | %.19s: |\n",
               "model", "size", "params", "backend", "threads", "test", "t/s",
               "------------------------------", "---------", "---------", "----------", "------",
               "--------------", "-------------------");
    (void)snprintf(size, sizeof size, mib < 1024 ? "%.2f MiB" : "%.2f GiB",
                   mib < 1024 ? mib : mib / 1024);
    (void)snprintf(params, sizeof params, n < 1e9 ? "%.2f M" : "%.2f B",
                   n < 1e9 ? n / 1e6 : n / 1e9);
    test_name(t, test, sizeof test);
    (void)snprintf(ts, sizeof ts, "%.2f ± %.2f", t->avg_ts, t->dev_ts);
    printf("| %-30s | %10s | %10s | %-10s | %7d | %15s | %21s |\n", b->type, size, params, b->backend,
           b->m.n_threads, test, ts); /* 21: the sign takes two bytes */
}

/* One value of a record: a number as it stands, or a text. */
struct column {
    const char *name;
    bool text;
    char value[512];
};

enum { COLUMNS = 21 };

static void number(struct column *c, const char *name, double v, int digits)
{
    c->name = name;
    c->text = false;
    (void)snprintf(c->value, sizeof c->value, "%.*f", digits, v);
}

static void text(struct column *c, const char *name, const char *v)
{
    c->name = name;
    c->text = true;
    (void)snprintf(c->value, sizeof c->value, "%s", v);
}

/* llama-bench's names, less what has no meaning here. */
static int columns(const struct bench *b, const struct test *t, struct column c[COLUMNS])
{
    const char *kv = b->kv == TESSERA_KV_Q8_0 ? "q8_0" : "f16";
    int n = 0;
    text(&c[n++], "build_version", TESSERA_VERSION);
    text(&c[n++], "cpu_info", b->cpu);
    text(&c[n++], "cpu_tier", b->m.cpu);
    text(&c[n++], "backends", b->backend);
    text(&c[n++], "model_filename", b->path);
    text(&c[n++], "model_type", b->type);
    number(&c[n++], "model_size", (double)b->weight_bytes, 0);
    number(&c[n++], "model_n_params", (double)b->m.n_params, 0);
    number(&c[n++], "n_batch", b->n_batch, 0);
    number(&c[n++], "n_ubatch", b->m.n_ubatch, 0);
    number(&c[n++], "n_threads", b->m.n_threads, 0);
    text(&c[n++], "type_k", kv);
    text(&c[n++], "type_v", kv);
    number(&c[n++], "n_prompt", t->n_prompt, 0);
    number(&c[n++], "n_gen", t->n_gen, 0);
    number(&c[n++], "n_depth", t->depth, 0);
    text(&c[n++], "test_time", t->when);
    number(&c[n++], "avg_ns", t->avg_s * 1e9, 0);
    number(&c[n++], "stddev_ns", t->dev_s * 1e9, 0);
    number(&c[n++], "avg_ts", t->avg_ts, 6);
    number(&c[n++], "stddev_ts", t->dev_ts, 6);
    return n;
}

static void print_csv_text(const char *s)
{
    (void)putchar('"');
    for (; *s; s++) {
        if (*s == '"') (void)putchar('"');
        (void)putchar(*s);
    }
    (void)putchar('"');
}

static void print_csv(const struct bench *b, const struct test *t)
{
    struct column c[COLUMNS];
    int n = columns(b, t, c);
    for (int i = 0; i < n && !b->printed; i++) printf("%s%s", i ? "," : "", c[i].name);
    if (!b->printed) printf("\n");
    for (int i = 0; i < n; i++) {
        if (i) (void)putchar(',');
        print_csv_text(c[i].value);
    }
    printf("\n");
}

/* A record over several lines (indent) or on one. */
static void print_json(const struct bench *b, const struct test *t, const char *indent)
{
    struct column c[COLUMNS];
    int n = columns(b, t, c);
    (void)putchar('{');
    for (int i = 0; i < n; i++) {
        printf("%s%s\"%s\": ", i ? (*indent ? "," : ", ") : "", indent, c[i].name);
        if (c[i].text)
            escape_json(stdout, c[i].value, strlen(c[i].value));
        else
            printf("%s", c[i].value);
    }
    printf("%s%s\"samples_ns\": [", *indent ? "," : ", ", indent);
    for (int r = 0; r < b->reps; r++) printf("%s%.0f", r ? ", " : "", t->s[r] * 1e9);
    printf("]}");
}

static void print_test(struct bench *b, const struct test *t)
{
    switch (b->format) {
    case FORMAT_MD: print_md(b, t); break;
    case FORMAT_CSV: print_csv(b, t); break;
    case FORMAT_JSON:
        printf("%s", b->printed ? ",\n  " : "[\n  ");
        print_json(b, t, "\n    ");
        break;
    case FORMAT_JSONL:
        print_json(b, t, "");
        printf("\n");
    }
    b->printed++;
}

/* ---- the command ---- */

/* "512" or "128,512" to numbers; false when it is neither. */
static bool parse_sizes(const char *list, int32_t **n, int *count)
{
    char why[160];
    if (!cli_parse_ids(list, n, count, why, sizeof why)) return false;
    for (int i = 0; i < *count; i++)
        if ((*n)[i] > 1 << 24) return false;
    return true;
}

/* Zeros say "not this test", as in llama-bench. */
static int list_tests(const struct bench_args *own, struct test *t, int *n_tests)
{
    int32_t *pp = NULL, *tg = NULL, *depth = NULL;
    int n_pp = 0, n_tg = 0, n_depth = 0, rc = CLI_GO_ON;
    *n_tests = 0;
    if (!parse_sizes(own->prompts, &pp, &n_pp))
        rc = cli_usage("bench", "-p wants numbers like 512 or 128,512, not '%s'", own->prompts);
    else if (!parse_sizes(own->gens, &tg, &n_tg))
        rc = cli_usage("bench", "-n wants numbers like 128 or 16,128, not '%s'", own->gens);
    else if (!parse_sizes(own->depths, &depth, &n_depth))
        rc = cli_usage("bench", "-d wants numbers like 4096 or 0,4096, not '%s'", own->depths);
    else if ((n_pp + n_tg) * n_depth > TESTS)
        rc = cli_usage("bench", "at most %d tests", TESTS);
    for (int i = 0; i < (n_pp + n_tg) * n_depth && rc == CLI_GO_ON; i++) {
        const int at = i % (n_pp + n_tg), n = at < n_pp ? pp[at] : tg[at - n_pp];
        if (n) t[(*n_tests)++] = (struct test){.n_prompt = at < n_pp ? n : 0,
                                               .n_gen = at < n_pp ? 0 : n,
                                               .depth = depth[i / (n_pp + n_tg)]};
    }
    if (rc == CLI_GO_ON && !*n_tests) rc = cli_usage("bench", "-p 0 -n 0 leaves no test");
    free(pp);
    free(tg);
    free(depth);
    return rc;
}

static bool parse_format(const char *s, enum format *f)
{
    static const char *const names[] = {"md", "csv", "json", "jsonl"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(s, names[i])) {
            *f = (enum format)i;
            return true;
        }
    return false;
}

/* What the rows say about model and machine. */
static void describe(struct bench *b, const struct cli_args *a)
{
    const struct gguf *g = tessera_gguf(b->e);
    struct machine machine;
    char params[24], *blank;
    b->m = tessera_model(b->e);
    (void)snprintf(b->backend, sizeof b->backend, "CPU%s%.20s", b->m.device ? "+" : "", b->m.device ? b->m.device : "");
    b->path = a->model;
    b->kv = a->kv_k;
    b->n_batch = a->batch;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) b->weight_bytes += gguf_tensor_at(g, i)->bytes;
    (void)cli_count(b->m.n_params, params);
    if ((blank = strchr(params, ' ')) != NULL) memmove(blank, blank + 1, strlen(blank));
    (void)snprintf(b->type, sizeof b->type, "%.40s %s %s", b->m.arch, params, b->m.type_label);
    if (!machine_detect(&machine, NULL, NULL))
        memcpy(b->cpu, machine.cpu, sizeof b->cpu);
}

static int longest_test(const struct test *t, int n)
{
    int longest = 1;
    for (int i = 0; i < n; i++) {
        int rows = t[i].n_prompt + t[i].n_gen + t[i].depth;
        longest = rows > longest ? rows : longest;
    }
    return longest;
}

static enum status run_tests(struct bench *b, struct test *t, int n, struct err *err)
{
    int32_t *ids = NULL;
    int longest = longest_test(t, n);
    enum status s = OK;
    if (longest > b->m.n_ctx)
        s = err_set(err, ERR_RANGE, "a test of %d tokens does not fit the context of %d", longest,
                    b->m.n_ctx);
    if (!s) s = tessera_session_open(b->e, longest, &b->session, err);
    if (!s && !(ids = malloc((size_t)longest * sizeof *ids)))
        s = err_set(err, ERR_MEMORY, "no memory for %d ids", longest);
    rng_seed(&b->rng, 1);
    for (int i = 0; i < n && !s; i++) {
        s = run_test(b, &t[i], ids, err);
        if (s) break;
        print_test(b, &t[i]);
        if (b->roofline && (s = roofline(b, &t[i], ids, err))) break;
        if (b->roofline) b->printed = 0; /* a table of its own for the next one */
        if (!cli_out("", 0)) break;
    }
    if (b->format == FORMAT_JSON && b->printed) printf("\n]\n");
    if (b->format == FORMAT_MD && !s) printf("\nbuild: tessera %s\n", TESSERA_VERSION);
    free(ids);
    if (b->session) tessera_session_close(b->session);
    return s;
}

int cmd_bench(int argc, char **argv)
{
    struct bench_args own = {.prompts = "512", .gens = "128", .depths = "0", .format = "md", .reps = 5};
    static const struct cli_flag flags[] = {
        {"-p --n-prompt", "N", "tokens of the prompt tests; 0 = none, 128,512 = two (default 512)",
         CLI_STR, offsetof(struct bench_args, prompts), 0, 0},
        {"-n --n-gen", "N", "tokens of the generation tests (default 128)", CLI_STR,
         offsetof(struct bench_args, gens), 0, 0},
        {"-d --n-depth", "N", "tokens in the context before each test; 0,4096 = two (default 0)",
         CLI_STR, offsetof(struct bench_args, depths), 0, 0},
        {"-r --repetitions", "N", "runs of each test (default 5)", CLI_INT,
         offsetof(struct bench_args, reps), 1, REPS},
        {"-o --output", "FORMAT", "md, csv, json or jsonl (default md)", CLI_STR,
         offsetof(struct bench_args, format), 0, 0},
        {"--roofline", NULL, "one more run of each test, timed by step, beside the machine's limits",
         CLI_TRUE, offsetof(struct bench_args, roofline), 0, 0},
        {0}};
    struct cli_args a = cli_defaults();
    struct cli_spec spec = {.name = "bench", .groups = CLI_MODEL, .own = flags, .own_base = &own,
                            .max_pos = 1, .model_pos = true};
    struct bench b = {0};
    struct test tests[TESTS];
    struct err err;
    int n_tests;
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc == CLI_GO_ON && !parse_format(own.format, &b.format))
        rc = cli_usage("bench", "-o knows md, csv, json and jsonl, not '%s'", own.format);
    if (rc == CLI_GO_ON && own.roofline && b.format != FORMAT_MD)
        rc = cli_usage("bench", "--roofline prints tables: use -o md");
    if (rc == CLI_GO_ON) rc = list_tests(&own, tests, &n_tests);
    if (rc != CLI_GO_ON) return rc;
    err_clear(&err);
    b.reps = own.reps;
    b.roofline = own.roofline;
    if (!a.ctx && longest_test(tests, n_tests) > CTX_AUTO) a.ctx = longest_test(tests, n_tests);
    if ((rc = cli_open_engine(&a, &b.e))) return rc;
    for (int i = 0; i < n_tests && !rc; i++)
        if (tests[i].n_gen) rc = cli_next_tokens(b.e, "-n (-n 0: prompts alone)");
    if (rc) {
        cli_close_engine(b.e);
        return rc;
    }
    describe(&b, &a);
    cli_interrupt_target(b.e);
    enum status s = run_tests(&b, tests, n_tests, &err);
    cli_interrupt_target(NULL);
    cli_close_engine(b.e);
    return s ? cli_fail(&err) : CLI_OK;
}
