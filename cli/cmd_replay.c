/* tessera replay: recorded routes against every policy, size and predictor, beside Belady's optimum
 * and the reads that nobody can avoid.  Opens traces, predictors and machine files, no model. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/escape.h"
#include "cli/replay_record.h"
#include "moe/base/machine.h"
#include "moe/load/trace.h"
#include "moe/run/predictor.h"

enum { SIZES = 16 };

struct replay_args {
    const char *slots, *policy, *predictor, *machine;
    int ahead, pins;
    float half_life, margin;
    bool selective;
};

enum predictor_kind { PREDICT_NONE, PREDICT_PREVIOUS, PREDICT_FREQUENCY, PREDICT_ORACLE,
                      PREDICT_PATH };

/* A trace made ready, and what predictors remember while it is replayed. */
struct film {
    const struct trace *t;
    struct trace_events v;
    struct replay_record record;
    uint64_t bank, cycle;       /* bytes of all experts; of those that one token uses, on average */
    float *frequency;           /* [n_items] of the prompts, or of the predictor's file */
    bool counted;               /* there was something to count */
    enum predictor_kind kind;
    const struct predictor *learned;
    float *rate;                /* [n_items] decayed use */
    float *p, *mix, *hidden;    /* of the path model */
    struct path_state path;
    int32_t next_row, session;
};

struct size {
    char label[24];
    double share; /* of the bank, or 0 */
    int slots;
};

/* What --slots curve stands for. */
static const char curve[] = "1%,2%,3%,4%,5%,7%,10%,15%,20%,25%,30%,40%,50%,60%,70%,80%";

struct job {
    struct cli_args *a;
    struct replay_args own;
    bool wanted[POLICY_N];
    enum predictor_kind kind;
    struct predictor learned;
    struct machine machine;
    double disk, ram; /* bytes per second, 0 = no machine file */
    struct size size[SIZES];
    int n_sizes;
    bool first;       /* nothing printed yet (JSON) */
};

/* ---- predictors ---- */

/* Rows before the step have been seen by everybody. */
static void look_back(struct film *f, int32_t row)
{
    const struct trace *t = f->t;
    const float keep = f->kind == PREDICT_PREVIOUS ? 0 : exp2f(-1.0f / 16);
    for (; f->next_row < row; f->next_row++) {
        for (int l = 0; l < t->n_layers; l++)
            predict_seen(f->rate + (size_t)l * (size_t)t->n_experts, t->n_experts, keep,
                         trace_experts(t, f->next_row, l), t->n_used);
    }
}

/* The path model has read the step's own tokens, which are known before it runs. */
static void read_path(struct film *f, int32_t end)
{
    for (; f->next_row < end; f->next_row++) {
        const int32_t session = f->t->session[f->next_row];
        if (session != f->session) path_reset(&f->learned->path, &f->path);
        f->session = session;
        path_step(&f->learned->path, &f->path, f->t->token[f->next_row], f->mix, f->hidden, f->p);
    }
}

static int guess(void *arg, int32_t step, int layer, int max, int32_t *expert, float *prob)
{
    struct film *f = arg;
    const int n = f->t->n_experts;
    const int32_t row = f->v.row[step], end = f->v.row[step + 1];
    const float *score = f->rate + (size_t)layer * (size_t)n;
    if (f->kind == PREDICT_PATH) {
        read_path(f, end);
        score = f->p + (size_t)layer * (size_t)n;
    } else if (f->kind == PREDICT_ORACLE) {
        memset(f->rate, 0, (size_t)n * sizeof *f->rate);
        for (int32_t r = row; r < end; r++)
            predict_seen(f->rate, n, 0.0f, trace_experts(f->t, r, layer), f->t->n_used);
        score = f->rate;
    } else {
        look_back(f, row);
    }
    return predict_top(score, n, max, expert, prob);
}

/* ---- a trace made ready ---- */

static void film_free(struct film *f)
{
    trace_events_free(&f->v);
    free(f->frequency);
    free(f->rate);
    free(f->p);
    free(f->mix);
    free(f->hidden);
    free(f->path.mean);
    memset(f, 0, sizeof *f);
}

static void film_rewind(struct film *f)
{
    f->next_row = 0;
    f->session = -1;
    memset(f->rate, 0, (size_t)f->t->n_layers * (size_t)f->t->n_experts * sizeof *f->rate);
}

/* Counts what the prompts used; the decoded tokens stay unseen. */
static void count_prompts(struct film *f)
{
    for (int32_t i = 0; i < f->v.n_steps; i++) {
        const uint32_t from = f->v.first[f->v.event[i]], to = f->v.first[f->v.event[i + 1]];
        for (uint32_t u = from; f->v.prompt[i] && u < to; u++)
            f->frequency[f->v.item[u]] += (float)f->v.count[u];
        f->counted = f->counted || (f->v.prompt[i] && from < to);
    }
}

static enum status film_open(struct film *f, const struct trace *t, const struct job *j,
                             struct err *e)
{
    const size_t n = (size_t)t->n_layers * (size_t)t->n_experts;
    const struct path_model *m = &j->learned.path;
    memset(f, 0, sizeof *f);
    f->t = t;
    f->kind = j->kind;
    f->learned = &j->learned;
    if (j->learned.data && (m->n_layers != t->n_layers || m->n_expert != t->n_experts ||
                            (t->model_hash && t->model_hash != j->learned.model_hash)))
        return err_set(e, ERR_SHAPE, "the predictor was fitted to another model than the trace");
    enum status s = trace_events_make(t, &f->v, e);
    if (s) return s;
    f->frequency = calloc(n, sizeof *f->frequency);
    f->rate = calloc(n, sizeof *f->rate);
    f->p = calloc(n, sizeof *f->p);
    f->mix = calloc((size_t)m->n_dim + 1, sizeof *f->mix);
    f->hidden = calloc((size_t)m->n_hidden + 1, sizeof *f->hidden);
    f->path.mean = calloc((size_t)m->n_dim * PATH_SLOW + 1, sizeof *f->path.mean);
    if (!f->frequency || !f->rate || !f->p || !f->mix || !f->hidden || !f->path.mean)
        return err_set(e, ERR_MEMORY, "no memory to replay a trace");
    f->counted = j->learned.data;
    if (f->counted) memcpy(f->frequency, j->learned.frequency, n * sizeof *f->frequency);
    else count_prompts(f);
    f->record = cli_replay_record(t, &f->v);
    for (int l = 0; l < t->n_layers; l++) {
        f->bank += t->expert_bytes[l] * (uint64_t)t->n_experts;
        f->cycle += t->expert_bytes[l] * (uint64_t)t->n_used;
    }
    return OK;
}

/* ---- running ---- */

static enum status run(const struct job *j, struct film *f, enum policy_kind kind, int slots,
                       int prefetch, struct replay_result *out, struct err *e)
{
    struct replay_options o = {
        .policy = {.kind = kind, .half_life = (double)j->own.half_life,
                   .selective = j->own.selective, .margin = (double)j->own.margin,
                   .frequency = f->frequency},
        .slots = slots, .disk_rate = j->disk, .ram_rate = j->ram, .prefetch = prefetch,
    };
    if (f->kind != PREDICT_NONE && (prefetch || kind == POLICY_LRU))
        o.predictor = (struct replay_predictor){guess, f};
    film_rewind(f);
    return replay_run(&f->record, &o, out, e);
}

/* Guesses per layer that a policy acts on: ExpertFlow's always, others when asked to. */
static int ahead(const struct job *j, const struct film *f, enum policy_kind kind)
{
    if (f->kind == PREDICT_NONE) return 0;
    if (j->own.ahead >= 0) return kind == POLICY_MIN ? 0 : j->own.ahead;
    return kind == POLICY_PLEC ? f->t->n_used : 0;
}

/* Whether the table has a line for it: static needs frequencies from somewhere. */
static bool shown(const struct job *j, const struct film *f, int kind)
{
    return j->wanted[kind] && (kind != POLICY_STATIC || f->counted);
}

static int slots_of(const struct film *f, const struct size *z)
{
    if (!(z->share > 0)) return z->slots;
    const int n = (int)(z->share * f->t->n_layers * f->t->n_experts);
    return n;
}

static double ratio(int64_t part, int64_t all)
{
    return all ? 100.0 * (double)part / (double)all : 0;
}

static double per_token(uint64_t bytes, const struct replay_result *r)
{
    return (double)bytes / (double)r->tokens / (1 << 20);
}

static const char *const predictor_names[] = {"none", "previous", "frequency", "oracle", "path"};

static void print_json(struct job *j, const struct film *f, const char *path, enum policy_kind kind,
                       const struct size *z, int slots, const struct replay_result *r)
{
    printf("%s\n {\"trace\": ", j->first ? "[" : ",");
    escape_json(stdout, path, strlen(path));
    printf(", \"policy\": \"%s\", \"predictor\": \"%s\", \"size\": \"%s\", \"slots\": %d, "
           "\"tokens\": %" PRId64 ", \"uses\": %" PRId64 ", \"hits\": %" PRId64
           ", \"compulsory\": %" PRId64 ", \"reads\": %" PRId64 ", \"uploads\": %" PRId64
           ", \"use_bytes\": %" PRIu64 ", \"hit_bytes\": %" PRIu64 ", \"read_bytes\": %" PRIu64
           ", \"ahead\": %" PRId64 ", \"useful\": %" PRId64 ", \"ahead_bytes\": %" PRIu64
           ", \"wasted_bytes\": %" PRIu64 ", \"prompt_bytes\": %" PRIu64,
           policy_name(kind), predictor_names[f->kind], z->label, slots, r->tokens, r->uses,
           r->hits, r->compulsory, r->reads, r->uploads, r->use_bytes, r->hit_bytes, r->read_bytes,
           r->ahead, r->useful, r->ahead_bytes, r->wasted_bytes, r->prompt_bytes);
    if (j->disk > 0)
        printf(", \"modelled_seconds\": %.6f, \"modelled_stall\": %.6f", r->seconds, r->stall);
    printf("}");
    j->first = false;
}

/* How good the guesses were; slots and misses are those of an lru that reads nothing ahead. */
static void print_json_judge(struct job *j, const struct film *f, const char *path,
                             const struct size *z, int slots, const struct replay_result *r)
{
    printf("%s\n {\"trace\": ", j->first ? "[" : ",");
    escape_json(stdout, path, strlen(path));
    printf(", \"predictor\": \"%s\", \"size\": \"%s\", \"slots\": %d, \"recall\": %.4f, "
           "\"recall_2k\": %.4f, \"recall_on_misses\": %.4f, \"recall_2k_on_misses\": %.4f}",
           predictor_names[f->kind], z->label, slots, ratio(r->named, r->asked) / 100,
           ratio(r->named_twice, r->asked) / 100, ratio(r->missed_named, r->missed) / 100,
           ratio(r->missed_named_twice, r->missed) / 100);
    j->first = false;
}

static void head(const struct job *j, const char *what)
{
    printf("%-22s", what);
    for (int i = 0; i < j->n_sizes; i++) printf(" %8s", j->size[i].label);
    printf("\n");
}

/* One line of a table: what(result) for every size that fits. */
static void line(const struct job *j, const char *name, const struct replay_result *r,
                 const bool *fits, double (*what)(const struct replay_result *r))
{
    printf("%-22s", name);
    for (int i = 0; i < j->n_sizes; i++) {
        if (fits[i]) printf(" %8.1f", what(&r[i]));
        else printf(" %8s", "-");
    }
    printf("\n");
}

static double hit_ratio(const struct replay_result *r) { return ratio(r->hits, r->uses); }
static double bound(const struct replay_result *r)
{
    return ratio(r->uses - r->compulsory, r->uses);
}
static double moved(const struct replay_result *r)
{
    return per_token(r->read_bytes + r->ahead_bytes, r);
}
static double wasted(const struct replay_result *r) { return per_token(r->wasted_bytes, r); }
static double useful(const struct replay_result *r)
{
    return per_token(r->ahead_bytes - r->wasted_bytes, r);
}
static double uploads(const struct replay_result *r)
{
    return r->uses ? per_token(r->use_bytes, r) * (double)r->uploads / (double)r->uses : 0;
}
static double recall(const struct replay_result *r) { return ratio(r->named, r->asked); }
static double recall_2k(const struct replay_result *r) { return ratio(r->named_twice, r->asked); }
static double on_misses(const struct replay_result *r) { return ratio(r->missed_named, r->missed); }
static double on_misses_2k(const struct replay_result *r)
{
    return ratio(r->missed_named_twice, r->missed);
}
static double ms(const struct replay_result *r) { return 1e3 * r->seconds / (double)r->tokens; }
static double speed(const struct replay_result *r)
{
    return r->seconds > 0 ? (double)r->tokens / r->seconds : 0;
}
static double stall(const struct replay_result *r) { return 1e3 * r->stall / (double)r->tokens; }

struct table {
    struct replay_result r[POLICY_N][SIZES];
    struct replay_result judge[SIZES]; /* lru that reads nothing ahead: its misses judge guesses */
    bool fits[SIZES];
};

static void print_tables(const struct job *j, const struct film *f, const struct table *t)
{
    static const struct {
        const char *title;
        double (*what)(const struct replay_result *r);
        int when; /* 1 with --selective, 2 of policies that read ahead, 3 with a machine */
    } tables[] = {
        {"hit ratio, %", hit_ratio, 0}, {"read, MiB/token", moved, 0},
        {"admitted, MiB/token", uploads, 1}, {"read ahead, useful", useful, 2},
        {"read ahead, wasted", wasted, 2}, {"modelled ms/token", ms, 3},
        {"of that waiting", stall, 3}, {"modelled tokens/s", speed, 3}};
    for (size_t k = 0; k < sizeof tables / sizeof *tables; k++) {
        if ((tables[k].when == 1 && !j->own.selective) || (tables[k].when == 3 && !(j->disk > 0)))
            continue;
        if (k) printf("\n");
        head(j, tables[k].title);
        for (int p = 0; p < POLICY_N; p++) {
            char name[48];
            if (!shown(j, f, p) || (tables[k].when == 2 && !ahead(j, f, (enum policy_kind)p)))
                continue;
            (void)snprintf(name, sizeof name, "%s%s%s", policy_name((enum policy_kind)p),
                           ahead(j, f, (enum policy_kind)p) ? " + " : "",
                           ahead(j, f, (enum policy_kind)p) ? predictor_names[f->kind] : "");
            line(j, name, t->r[p], t->fits, tables[k].what);
        }
        if (!k) line(j, "nothing read twice", t->r[POLICY_MIN], t->fits, bound);
    }
    if (f->kind == PREDICT_NONE) return;
    printf("\n%s predictor, %% of the experts that it named before the token, among the k and the 2k "
           "likeliest;\non misses: of lru\n", predictor_names[f->kind]);
    head(j, "");
    line(j, "of all, k", t->judge, t->fits, recall);
    line(j, "of all, 2k", t->judge, t->fits, recall_2k);
    line(j, "on misses, k", t->judge, t->fits, on_misses);
    line(j, "on misses, 2k", t->judge, t->fits, on_misses_2k);
}

static void print_title(const struct film *f, const char *path)
{
    int64_t prompt = 0, decode = 0;
    char bank[24], cycle[24];
    for (int32_t i = 0; i < f->v.n_steps; i++)
        *(f->v.prompt[i] ? &prompt : &decode) += f->v.row[i + 1] - f->v.row[i];
    printf("%s: ", path);
    escape_print(stdout, f->t->name, strlen(f->t->name), 60);
    printf("\n%d layers, %d of %d experts; %" PRId64 " prompt and %" PRId64
           " decoded tokens; all experts %s, those of one token %s (%.1f %%)\n\n",
           f->t->n_layers, f->t->n_used, f->t->n_experts, prompt, decode, cli_bytes(f->bank, bank),
           cli_bytes(f->cycle, cycle), 100.0 * (double)f->cycle / (double)f->bank);
}

/* What the engine that recorded the trace found in memory, and how long it waited; decoded tokens. */
static void print_recorded(struct job *j, const struct film *f, const char *path)
{
    const struct trace *t = f->t;
    int64_t uses = 0, hits = 0, tokens = 0;
    double wait = 0;
    if (!t->tier || !t->wait) return;
    for (int32_t i = 0; i < f->v.n_steps; i++) {
        if (f->v.prompt[i]) continue;
        const int32_t from = f->v.row[i], to = f->v.row[i + 1];
        tokens += to - from;
        for (int l = 0; l < t->n_layers; l++) {
            /* A step's rows waited together. */
            wait += 1e-6 * t->wait[(size_t)from * (size_t)t->n_layers + (size_t)l];
            for (int32_t r = from; r < to; r++)
                for (int k = 0; k < t->n_used; k++) {
                    if (trace_experts(t, r, l)[k] == TRACE_NONE) continue;
                    uses++;
                    hits += t->tier[trace_at(t, r, l) + (size_t)k] != TRACE_DISK;
                }
        }
    }
    if (!tokens) return;
    if (!j->a->json) {
        printf("recorded: %.1f %% of the experts in memory, %.1f ms waited per token\n\n",
               ratio(hits, uses), 1e3 * wait / (double)tokens);
        return;
    }
    printf("%s\n {\"trace\": ", j->first ? "[" : ",");
    escape_json(stdout, path, strlen(path));
    printf(", \"recorded_tokens\": %" PRId64 ", \"recorded_uses\": %" PRId64
           ", \"recorded_hits\": %" PRId64 ", \"recorded_wait_seconds\": %.6f}",
           tokens, uses, hits, wait);
    j->first = false;
}

/* The experts used most, the whole trace counted: one line per layer, most used first. */
struct pin {
    int64_t uses;
    int32_t item;
};

static int by_uses(const void *a, const void *b)
{
    const struct pin *x = a, *y = b;
    if (x->uses != y->uses) return x->uses < y->uses ? 1 : -1;
    return (x->item > y->item) - (x->item < y->item);
}

static enum status print_pins(struct job *j, const struct film *f, const char *path, struct err *e)
{
    const struct trace *t = f->t;
    const int n = t->n_layers * t->n_experts, n_pins = j->own.pins < n ? j->own.pins : n;
    int64_t all = 0, pinned = 0;
    uint64_t bytes = 0;
    char b[24];
    struct pin *pin = calloc((size_t)n, sizeof *pin);
    if (!pin) return err_set(e, ERR_MEMORY, "no memory for a list of experts");
    for (int32_t x = 0; x < n; x++) pin[x].item = x;
    for (uint32_t u = 0; u < f->v.first[f->v.n_events]; u++) {
        pin[f->v.item[u]].uses += f->v.count[u];
        all += f->v.count[u];
    }
    qsort(pin, (size_t)n, sizeof *pin, by_uses);
    for (int i = 0; i < n_pins; i++) {
        pinned += pin[i].uses;
        bytes += t->expert_bytes[pin[i].item / t->n_experts];
    }
    if (j->a->json) {
        printf("%s\n {\"trace\": ", j->first ? "[" : ",");
        escape_json(stdout, path, strlen(path));
        printf(", \"pins\": [");
        for (int i = 0; i < n_pins; i++)
            printf("%s[%d, %d, %" PRId64 "]", i ? ", " : "", t->layer[pin[i].item / t->n_experts],
                   pin[i].item % t->n_experts, pin[i].uses);
        printf("], \"pinned_uses\": %" PRId64 ", \"uses\": %" PRId64 "}", pinned, all);
        j->first = false;
        free(pin);
        return OK;
    }
    printf("\nthe %d experts used most: %.1f %% of all uses (%.1f %% if all were used alike), %s\n",
           n_pins, ratio(pinned, all), 100.0 * n_pins / n, cli_bytes(bytes, b));
    for (int l = 0; l < t->n_layers; l++) {
        printf("layer %-4d", t->layer[l]);
        for (int i = 0; i < n_pins; i++)
            if (pin[i].item / t->n_experts == l) printf(" %d", pin[i].item % t->n_experts);
        printf("\n");
    }
    free(pin);
    return OK;
}

static enum status replay_trace(struct job *j, const char *path, struct err *e)
{
    struct trace *t;
    struct film f;
    enum status s = trace_read(path, NULL, &t, e);
    if (s) return s;
    struct table *tab = calloc(1, sizeof *tab);
    s = tab ? film_open(&f, t, j, e) : err_set(e, ERR_MEMORY, "no memory to replay a trace");
    if (!s && !f.bank) s = err_set(e, ERR_MISSING, "%s does not say how large its experts are", path);
    if (!s && j->wanted[POLICY_STATIC] && !f.counted)
        fprintf(stderr, "tessera: %s has no prompt to take frequencies from: no static policy; "
                        "--predictor FILE brings some\n", path);
    if (!s && j->a->json) print_recorded(j, &f, path);
    for (int i = 0; i < j->n_sizes && !s; i++) {
        const int slots = slots_of(&f, &j->size[i]);
        tab->fits[i] = slots >= t->n_used;
        for (int p = 0; p < POLICY_N && tab->fits[i] && !s; p++) {
            if (!shown(j, &f, p) && p != POLICY_MIN) continue; /* it bounds every table */
            s = run(j, &f, (enum policy_kind)p, slots, ahead(j, &f, (enum policy_kind)p),
                    &tab->r[p][i], e);
            if (!s && j->a->json && j->wanted[p])
                print_json(j, &f, path, (enum policy_kind)p, &j->size[i], slots, &tab->r[p][i]);
        }
        if (s || !tab->fits[i] || f.kind == PREDICT_NONE) continue;
        s = run(j, &f, POLICY_LRU, slots, 0, &tab->judge[i], e);
        if (!s && j->a->json) print_json_judge(j, &f, path, &j->size[i], slots, &tab->judge[i]);
    }
    if (!s && !j->a->json) {
        print_title(&f, path);
        print_recorded(j, &f, path);
        print_tables(j, &f, tab);
    }
    if (!s && j->own.pins) s = print_pins(j, &f, path, e);
    if (tab) film_free(&f);
    free(tab);
    trace_free(t);
    return s;
}

/* ---- the command line ---- */

/* "1%,5%,300" */
static int parse_sizes(struct job *j, const char *text)
{
    if (!strcmp(text, "curve")) text = curve;
    for (const char *p = text; *p;) {
        char word[24];
        const size_t n = strcspn(p, ",");
        int64_t slots;
        double share = 0;
        if (!n || n >= sizeof word - 1 || j->n_sizes == SIZES)
            return cli_usage("replay", "--slots takes up to %d sizes like 5%% or 300", SIZES);
        struct size *z = &j->size[j->n_sizes++];
        memcpy(word, p, n);
        word[n] = 0;
        (void)snprintf(z->label, sizeof z->label, "%s", word);
        if (word[n - 1] == '%') {
            word[n - 1] = 0;
            if (!cli_parse_float(word, 0.001, 100, &share))
                return cli_usage("replay", "--slots: %s is no share of the experts", z->label);
            z->share = share / 100;
        } else if (cli_parse_int(word, 1, 1 << 24, &slots)) {
            z->slots = (int)slots;
        } else {
            return cli_usage("replay", "--slots: %s is neither a share nor a number", word);
        }
        p += n + (p[n] == ',');
    }
    return j->n_sizes ? CLI_GO_ON : cli_usage("replay", "--slots names no size");
}

static int parse_policies(struct job *j, const char *text)
{
    if (!strcmp(text, "all")) {
        for (int k = 0; k < POLICY_N; k++) j->wanted[k] = true;
        return CLI_GO_ON;
    }
    for (const char *p = text; *p;) {
        char word[24];
        const size_t n = strcspn(p, ",");
        (void)snprintf(word, sizeof word, "%.*s", (int)n, p);
        const enum policy_kind k = policy_by_name(word);
        if (k == POLICY_N)
            return cli_usage("replay", "unknown policy '%s'; known: lru lfu lrfu static plec min, "
                                       "or all", word);
        j->wanted[k] = true;
        p += n + (p[n] == ',');
    }
    return CLI_GO_ON;
}

static void parse_predictor(struct job *j, const char *name)
{
    j->kind = PREDICT_PATH; /* a file */
    for (int k = PREDICT_NONE; k <= PREDICT_ORACLE; k++)
        if (!strcmp(name, predictor_names[k])) j->kind = (enum predictor_kind)k;
}

static enum status open_files(struct job *j, struct err *e)
{
    enum status s = OK;
    if (j->kind == PREDICT_PATH) s = predictor_read(j->own.predictor, NULL, &j->learned, e);
    if (s || !j->own.machine) return s;
    if ((s = machine_read(&j->machine, j->own.machine, e))) return s;
    j->disk = j->machine.disk_random * 1e9;
    j->ram = j->machine.ram_read_n * 1e9;
    if (!(j->disk > 0) || !(j->ram > 0))
        return err_set(e, ERR_MISSING, "%s has no measured disk and memory speeds: `tessera doctor "
                       "-o FILE` measures them", j->own.machine);
    return OK;
}

int cmd_replay(int argc, char **argv)
{
    struct job j = {.own = {.slots = "1%,5%,10%,20%,40%", .policy = "all", .predictor = "previous",
                            .ahead = -1, .half_life = 8, .margin = 1}, .first = true};
    static const struct cli_flag flags[] = {
        {"--slots", "LIST", "shares of all experts, or numbers of them (default 1%,5%,10%,20%,40%), or "
         "curve: 16 shares from 1% to 80%", CLI_STR, offsetof(struct replay_args, slots), 0, 0},
        {"--policy", "LIST", "lru lfu lrfu static plec min, separated by commas (default all)",
         CLI_STR, offsetof(struct replay_args, policy), 0, 0},
        {"--predictor", "WHICH", "previous (default), frequency, oracle, none, or a file that "
         "`tessera trace --train` made", CLI_STR, offsetof(struct replay_args, predictor), 0, 0},
        {"--ahead", "N", "every policy reads the N likeliest experts per layer ahead (default: plec "
         "only, as many as a token uses)", CLI_INT, offsetof(struct replay_args, ahead), 0, 65535},
        {"--half-life", "TOKENS", "of lrfu (default 8)", CLI_F32,
         offsetof(struct replay_args, half_life), 0.01, 1e6},
        {"--selective", NULL, "a missed expert enters only when it is worth more than its victim: a "
         "device whose misses are computed elsewhere", CLI_TRUE,
         offsetof(struct replay_args, selective), 0, 0},
        {"--margin", "X", "with --selective: lrfu wants 2^X times the victim's heat (default 1)",
         CLI_F32, offsetof(struct replay_args, margin), 0, 64},
        {"--pins", "N", "list the N experts that are used most, by layer", CLI_INT,
         offsetof(struct replay_args, pins), 1, 1 << 20},
        {"--machine", "FILE", "model times with the speeds in this machine file", CLI_STR,
         offsetof(struct replay_args, machine), 0, 0},
        {0}};
    struct cli_args a = cli_defaults();
    struct cli_spec spec = {
        .name = "replay", .groups = CLI_JSON, .own = flags, .own_base = &j.own, .min_pos = 1,
        .max_pos = CLI_POS,
        .footer = "A TRACE is a file of `tessera trace`, or a \"# route_trace v1\" table.  lru, lfu "
                  "(since it came in),\nlrfu (decayed frequency, the default of the engine), static "
                  "(frequencies of the prompts, or of the\npredictor's file), plec (ExpertFlow's, as "
                  "we read it), min (Belady: nobody who reads on demand can\ndo better).  Prompts "
                  "warm the cache and are not counted.\n"};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    j.a = &a;
    if ((rc = parse_sizes(&j, j.own.slots)) != CLI_GO_ON) return rc;
    if ((rc = parse_policies(&j, j.own.policy)) != CLI_GO_ON) return rc;
    parse_predictor(&j, j.own.predictor);
    struct err e;
    err_clear(&e);
    enum status s = open_files(&j, &e);
    for (int i = 0; i < a.n_pos && !s; i++) {
        if (i && !a.json) printf("\n");
        s = replay_trace(&j, a.pos[i], &e);
    }
    if (a.json && !j.first) printf("\n]\n");
    predictor_free(&j.learned);
    return s ? cli_fail(&e) : CLI_OK;
}
