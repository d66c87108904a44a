/* See trace_page.h.  Everything is counted from the trace in one pass per figure. */
#include "cli/trace_page.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/page.h"
#include "cli/replay_record.h"

enum { BINS = 64, WORDS = 1500 };

/* Kinds of tokens, by their text. */
enum token_class { CLASS_SPECIAL, CLASS_START, CLASS_INSIDE, CLASS_DIGIT, CLASS_MARK, CLASS_SPACE, CLASSES };
static const char *const class_names[CLASSES] = {"special", "word begins", "word goes on", "digits",
                                                 "punctuation", "space, lines"};

struct counts {
    struct page *page;
    const struct trace *t;
    const struct tok *tok;
    int n_bins;
    double *use;         /* [n_layers][n_experts] */
    double *layer_all;   /* [n_layers] sums, and largest */
    double *layer_most;
    double *by_bin;      /* [n_bins][n_layers][n_experts] */
    double *by_class;    /* [CLASSES][n_layers][n_experts] */
    int64_t class_n[CLASSES];
    double *drift;       /* [n_layers][n_bins] distance of a bin from the whole */
    double *apart;       /* [CLASSES][n_layers] of a class */
    double *pair;        /* [n_experts][n_experts] of the layer shown */
    int shown;           /* the layer of a figure */
    double scale;
};

static size_t at3(const struct counts *c, int a, int l, int x)
{
    return ((size_t)a * (size_t)c->t->n_layers + (size_t)l) * (size_t)c->t->n_experts + (size_t)x;
}

static enum token_class class_of(const struct tok *tok, int32_t id)
{
    char s[TOK_PIECE_MAX];
    const int n = tok_piece(tok, id, false, s, sizeof s);
    int i = 0;
    if (n <= 0) return CLASS_SPECIAL;
    while (i < n && i < (int)sizeof s && isspace((unsigned char)s[i])) i++;
    if (i == n) return CLASS_SPACE;
    const unsigned char c = (unsigned char)s[i];
    if (isdigit(c)) return CLASS_DIGIT;
    if (c < 0x80 && !isalpha(c)) return CLASS_MARK;
    return i ? CLASS_START : CLASS_INSIDE;
}

static void counts_free(struct counts *c)
{
    free(c->use);
    free(c->layer_all);
    free(c->layer_most);
    free(c->by_bin);
    free(c->by_class);
    free(c->drift);
    free(c->apart);
    free(c->pair);
}

/* Half the sum of the differences of two distributions: 0 alike, 1 nothing in common. */
static double distance(const double *a, double sum_a, const double *b, double sum_b, int n)
{
    double d = 0;
    if (!(sum_a > 0) || !(sum_b > 0)) return NAN;
    for (int i = 0; i < n; i++) d += fabs(a[i] / sum_a - b[i] / sum_b) / 2;
    return d;
}

static double sum_of(const double *x, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++) s += x[i];
    return s;
}

static void count_row(struct counts *c, int32_t r)
{
    const struct trace *t = c->t;
    const int bin = (int)((int64_t)r * c->n_bins / t->n_rows);
    const int cls = c->tok && t->token[r] >= 0 ? (int)class_of(c->tok, t->token[r]) : -1;
    if (cls >= 0) c->class_n[cls]++;
    for (int l = 0; l < t->n_layers; l++) {
        const uint16_t *x = trace_experts(t, r, l);
        for (int k = 0; k < t->n_used; k++) {
            if (x[k] == TRACE_NONE) continue;
            c->use[at3(c, 0, l, x[k])]++;
            c->by_bin[at3(c, bin, l, x[k])]++;
            if (cls >= 0) c->by_class[at3(c, cls, l, x[k])]++;
        }
    }
}

static enum status count(struct counts *c, struct err *e)
{
    const struct trace *t = c->t;
    const size_t items = (size_t)t->n_layers * (size_t)t->n_experts, layers = (size_t)t->n_layers;
    c->n_bins = t->n_rows < BINS ? t->n_rows : BINS;
    c->use = calloc(items, sizeof *c->use);
    c->layer_all = calloc(layers, sizeof *c->layer_all);
    c->layer_most = calloc(layers, sizeof *c->layer_most);
    c->by_bin = calloc(items * (size_t)c->n_bins, sizeof *c->by_bin);
    c->by_class = calloc(items * CLASSES, sizeof *c->by_class);
    c->drift = calloc(layers * (size_t)c->n_bins, sizeof *c->drift);
    c->apart = calloc(layers * CLASSES, sizeof *c->apart);
    c->pair = calloc((size_t)t->n_experts * (size_t)t->n_experts, sizeof *c->pair);
    if (!c->use || !c->layer_all || !c->layer_most || !c->by_bin || !c->by_class || !c->drift ||
        !c->apart || !c->pair)
        return err_set(e, ERR_MEMORY, "no memory to draw a trace");
    for (int32_t r = 0; r < t->n_rows; r++) count_row(c, r);
    for (int l = 0; l < t->n_layers; l++) {
        const double *all = c->use + at3(c, 0, l, 0);
        c->layer_all[l] = sum_of(all, t->n_experts);
        for (int x = 0; x < t->n_experts; x++) c->layer_most[l] = fmax(c->layer_most[l], all[x]);
        for (int b = 0; b < c->n_bins; b++) {
            const double *some = c->by_bin + at3(c, b, l, 0);
            c->drift[l * c->n_bins + b] = distance(some, sum_of(some, t->n_experts), all,
                                                   c->layer_all[l], t->n_experts);
        }
        for (int k = 0; k < CLASSES; k++) {
            const double *some = c->by_class + at3(c, k, l, 0);
            c->apart[k * t->n_layers + l] = distance(some, sum_of(some, t->n_experts), all,
                                                     c->layer_all[l], t->n_experts);
        }
    }
    return OK;
}

/* ---- values of the maps ---- */

static double use_value(void *arg, int row, int col)
{
    const struct counts *c = arg;
    return c->layer_most[row] > 0 ? c->use[at3(c, 0, row, col)] / c->layer_most[row] : NAN;
}
static const char *layer_label(void *arg, int row, char buf[32])
{
    const struct counts *c = arg;
    (void)snprintf(buf, 32, "%d", c->t->layer[row]);
    return buf;
}
static double drift_value(void *arg, int row, int col)
{
    const struct counts *c = arg;
    return c->drift[row * c->n_bins + col];
}
static double time_value(void *arg, int row, int col)
{
    const struct counts *c = arg;
    return c->by_bin[at3(c, col, c->shown, row)] / c->scale;
}
static double apart_value(void *arg, int row, int col)
{
    const struct counts *c = arg;
    return c->apart[row * c->t->n_layers + col];
}
static const char *class_label(void *arg, int row, char buf[32])
{
    (void)arg;
    (void)buf;
    return class_names[row];
}
static double class_value(void *arg, int row, int col)
{
    const struct counts *c = arg;
    const double *some = c->by_class + at3(c, row, c->shown, 0), all = sum_of(some, c->t->n_experts);
    return all > 0 ? some[col] / all / c->scale : NAN;
}
static double pair_value(void *arg, int row, int col)
{
    const struct counts *c = arg;
    return row == col ? NAN : c->pair[row * c->t->n_experts + col] / c->scale;
}

static void draw(struct counts *c, int rows, int cols, double (*value)(void *, int, int),
                 const char *(*row_label)(void *, int, char[32]), const char *row, const char *col)
{
    page_heat(c->page, &(struct page_heat){.n_rows = rows, .n_cols = cols, .value = value,
                                           .row_label = row_label, .arg = c, .rows = row, .cols = col});
}

/* ---- figures of one trace ---- */

static void draw_use(struct counts *c)
{
    page_head(c->page, "Which experts fire", "Every layer's experts; the darkest of a layer is its most "
              "used. Blank ones were never chosen.");
    draw(c, c->t->n_layers, c->t->n_experts, use_value, layer_label, "layer", "expert");
}

static void draw_balance(struct counts *c)
{
    const struct trace *t = c->t;
    double *x = calloc(4 * (size_t)t->n_layers, sizeof *x);
    if (!x) return;
    double *entropy = x + t->n_layers, *most = entropy + t->n_layers, *idle = most + t->n_layers;
    for (int l = 0; l < t->n_layers; l++) {
        x[l] = t->layer[l];
        for (int k = 0; k < t->n_experts; k++) {
            const double q = c->use[at3(c, 0, l, k)] / c->layer_all[l];
            if (q > 0) entropy[l] -= q * log(q) / log(t->n_experts > 1 ? t->n_experts : 2);
            idle[l] += q > 0 ? 0 : 1.0 / t->n_experts;
        }
        most[l] = c->layer_most[l] / c->layer_all[l] * t->n_experts;
    }
    page_head(c->page, "Balance", "Entropy of a layer's use: 1 when all experts are used alike. Idle: the "
              "share never chosen.");
    page_lines(c->page, &(struct page_lines){.n = t->n_layers, .n_lines = 2, .x = x, .y = {entropy, idle},
               .name = {"entropy", "idle"}, .x_name = "layer", .y_name = "share", .from_zero = true});
    page_head(c->page, "Load", "How many times its fair share each layer's busiest expert gets.");
    page_lines(c->page, &(struct page_lines){.n = t->n_layers, .n_lines = 1, .x = x, .y = {most},
               .name = {"busiest expert"}, .x_name = "layer", .y_name = "times", .from_zero = true});
    free(x);
}

static void draw_time(struct counts *c)
{
    const struct trace *t = c->t;
    double best = -1;
    for (int l = 0; l < t->n_layers; l++) {
        double sum = 0;
        for (int b = 0; b < c->n_bins; b++) sum += isfinite(c->drift[l * c->n_bins + b])
                                                   ? c->drift[l * c->n_bins + b] : 0;
        if (sum <= best) continue;
        best = sum;
        c->shown = l;
    }
    c->scale = 1e-9;
    for (int b = 0; b < c->n_bins; b++)
        for (int x = 0; x < t->n_experts; x++)
            c->scale = fmax(c->scale, c->by_bin[at3(c, b, c->shown, x)]);
    page_head(c->page, "Over time", "The text in %d pieces, from left to right: how far each layer's use is "
              "from that of the whole text (0 the same, 1 no expert in common).", c->n_bins);
    draw(c, t->n_layers, c->n_bins, drift_value, layer_label, "layer", "piece of the text");
    page_head(c->page, "Over time, one layer", "Layer %d, which changes most: uses of each expert.",
              t->layer[c->shown]);
    draw(c, t->n_experts, c->n_bins, time_value, NULL, "expert", "piece of the text");
}

static void draw_classes(struct counts *c)
{
    const struct trace *t = c->t;
    double best = -1;
    if (!c->tok) {
        page_head(c->page, "Kinds of tokens", "No model was named (-m), or it has no tokenizer: what the "
                  "tokens are is not known.");
        return;
    }
    for (int k = 0; k < CLASSES; k++)
        for (int l = 0; l < t->n_layers; l++)
            if (c->class_n[k] >= 8 && c->apart[k * t->n_layers + l] > best) {
                best = c->apart[k * t->n_layers + l];
                c->shown = l;
            }
    c->scale = 1e-9;
    for (int k = 0; k < CLASSES; k++) {
        const double *some = c->by_class + at3(c, k, c->shown, 0), all = sum_of(some, t->n_experts);
        for (int x = 0; all > 0 && x < t->n_experts; x++) c->scale = fmax(c->scale, some[x] / all);
    }
    page_head(c->page, "Kinds of tokens", "How far each kind's experts are from those of the whole text, "
              "layer by layer. Tokens: %" PRId64 " special, %" PRId64 " beginnings of words, %" PRId64
              " further parts, %" PRId64 " digits, %" PRId64 " punctuation, %" PRId64 " space.",
              c->class_n[0], c->class_n[1], c->class_n[2], c->class_n[3], c->class_n[4], c->class_n[5]);
    draw(c, CLASSES, t->n_layers, apart_value, class_label, "", "layer");
    page_head(c->page, "Kinds of tokens, one layer", "Layer %d, where some kind is farthest: which experts "
              "each kind goes to.", t->layer[c->shown]);
    draw(c, CLASSES, t->n_experts, class_value, class_label, "", "expert");
}

/* Pairs of a layer; returns the largest count. */
static double count_pairs(struct counts *c, int layer)
{
    const struct trace *t = c->t;
    double most = 0;
    memset(c->pair, 0, sizeof *c->pair * (size_t)t->n_experts * (size_t)t->n_experts);
    for (int32_t r = 0; r < t->n_rows; r++) {
        const uint16_t *x = trace_experts(t, r, layer);
        for (int a = 0; a < t->n_used; a++)
            for (int b = 0; b < t->n_used; b++) {
                if (a == b || x[a] == TRACE_NONE || x[b] == TRACE_NONE) continue;
                most = fmax(most, ++c->pair[x[a] * t->n_experts + x[b]]);
            }
    }
    return most;
}

static void draw_pairs(struct counts *c)
{
    const struct trace *t = c->t;
    double best = -1;
    int layer = 0;
    if (t->n_used < 2) return;
    for (int l = 0; l < t->n_layers; l++) {
        const double share = count_pairs(c, l) / (c->layer_all[l] + 1);
        if (share <= best) continue;
        best = share;
        layer = l;
    }
    c->scale = fmax(count_pairs(c, layer), 1e-9);
    page_head(c->page, "Who fires together", "Layer %d, which has the strongest pair: how often a token used "
              "both experts.", t->layer[layer]);
    draw(c, t->n_experts, t->n_experts, pair_value, NULL, "expert", "expert");
}

/* ---- working sets ---- */

struct curve {
    int n;
    double share[16], hit[3][16], read[3][16], speed[3][16];
};

static enum status replay(const struct trace *t, const struct machine *m, struct curve *k, struct err *e)
{
    static const enum policy_kind kinds[3] = {POLICY_LRU, POLICY_LRFU, POLICY_MIN};
    static const double shares[16] = {1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80};
    struct trace_events v;
    uint64_t bank = 0;
    enum status s = trace_events_make(t, &v, e);
    if (s) return s;
    for (int l = 0; l < t->n_layers; l++) bank += t->expert_bytes[l];
    const struct replay_record r = cli_replay_record(t, &v);
    for (int i = 0; i < 16 && bank; i++) {
        const int slots = (int)(shares[i] / 100 * t->n_layers * t->n_experts);
        bool fits = slots >= t->n_used;
        for (int p = 0; p < 3 && fits; p++) {
            struct replay_options o = {.policy = {.kind = kinds[p]}, .slots = slots};
            struct replay_result out;
            struct err local;
            err_clear(&local);
            if (m) {
                o.disk_rate = m->disk_random * 1e9;
                o.ram_rate = m->ram_read_n * 1e9;
            }
            if (replay_run(&r, &o, &out, &local)) {
                if (local.code != ERR_RANGE) s = err_set(e, local.code, "%s", local.msg);
                fits = false; /* too few slots, or no decoded token */
                break;
            }
            k->hit[p][k->n] = 100.0 * (double)out.hits / (double)out.uses;
            k->read[p][k->n] = (double)out.read_bytes / (double)out.tokens / (1 << 20);
            k->speed[p][k->n] = out.seconds > 0 ? (double)out.tokens / out.seconds : NAN;
        }
        if (fits) k->share[k->n++] = shares[i];
    }
    trace_events_free(&v);
    return s;
}

static enum status draw_curves(struct page *p, const struct trace *t, const struct machine *m,
                               struct err *e)
{
    struct curve k = {.n = 0};
    enum status s = replay(t, m, &k, e);
    if (s) return s;
    if (k.n < 2) {
        page_head(p, "How much memory is enough", "There are no decoded tokens to replay: record with "
                  "--decode or --one-by-one.");
        return OK;
    }
    struct page_lines l = {.n = k.n, .n_lines = 3, .x = k.share,
        .name = {"least recently used", "decayed frequency (lrfu, the default)", "Belady: the bound"},
        .x_name = "share of all experts in memory, %", .from_zero = true};
    page_head(p, "How much memory is enough", "Share of a decoded token's experts that are in memory when "
              "the router names them.");
    for (int i = 0; i < 3; i++) l.y[i] = k.hit[i];
    l.y_name = "hits, %";
    page_lines(p, &l);
    page_head(p, "Bytes read", "From disk, per decoded token.");
    for (int i = 0; i < 3; i++) l.y[i] = k.read[i];
    l.y_name = "MiB per token";
    page_lines(p, &l);
    if (!m) return OK;
    page_head(p, "Speed", "Modelled from the machine's measured rates: experts alone, reads overlapping with "
              "products.");
    for (int i = 0; i < 3; i++) l.y[i] = k.speed[i];
    l.y_name = "tokens/s";
    page_lines(p, &l);
    return OK;
}

/* ---- text ---- */

static void draw_text(struct page *p, const struct trace_page *w)
{
    const struct trace *t = w->t[0];
    if (!w->tok || !t->loss) return;
    double mean = 0;
    int n = 0;
    for (int32_t r = 0; r < t->n_rows; r++)
        if (t->loss[r] >= 0) {
            mean += (double)t->loss[r];
            n++;
        }
    if (!n) return;
    mean /= n;
    page_head(p, "The text", "Warm: harder to predict than the mean of %.3f nats; cool: easier.%s", mean,
              t->n_rows > WORDS ? " Only its beginning." : "");
    page_words(p, true);
    for (int32_t r = 0; r < t->n_rows && r < WORDS; r++) {
        char s[TOK_PIECE_MAX], tip[64];
        const int k = t->token[r] < 0 ? 0 : tok_piece(w->tok, t->token[r], true, s, sizeof s);
        (void)snprintf(tip, sizeof tip, "token %d, %.3f nats", t->token[r], (double)t->loss[r]);
        page_word(p, s, k > 0 ? (size_t)k : 0,
                  t->loss[r] >= 0 ? ((double)t->loss[r] - mean) / 5 : NAN, tip);
    }
    page_words(p, false);
}

/* ---- two traces ---- */

/* Share of a row's experts in a layer that both traces chose; NAN: not routed. */
static double shared(const struct trace *a, const struct trace *b, int32_t r, int l)
{
    const uint16_t *x = trace_experts(a, r, l), *y = trace_experts(b, r, l);
    int both = 0, n = 0;
    for (int i = 0; i < a->n_used; i++) {
        if (x[i] == TRACE_NONE) continue;
        n++;
        for (int k = 0; k < b->n_used; k++) both += x[i] == y[k];
    }
    return n ? (double)both / n : NAN;
}

static bool same_token(const struct trace *a, const struct trace *b, int32_t r)
{
    return r < b->n_rows && a->token[r] == b->token[r] && a->pos[r] == b->pos[r];
}

static void agreement_rows(struct page *p, const struct trace *a, const struct trace *b, double all)
{
    double sum[2][3] = {{0}};
    for (int32_t r = 0; r < a->n_rows; r++) {
        if (!same_token(a, b, r) || !a->loss || !b->loss || a->loss[r] < 0 || b->loss[r] < 0) continue;
        double mean = 0;
        for (int l = 0; l < a->n_layers; l++) {
            const double s = shared(a, b, r, l);
            mean += isfinite(s) ? s / a->n_layers : 0;
        }
        const int k = mean >= all;
        sum[k][0]++;
        sum[k][1] += (double)a->loss[r];
        sum[k][2] += (double)b->loss[r];
    }
    page_table(p, true);
    page_row(p, true, 4, (const char *const[]){"tokens", "number", "loss of A", "loss of B"});
    for (int k = 1; k >= 0; k--) {
        char c[3][32];
        (void)snprintf(c[0], sizeof c[0], "%.0f", sum[k][0]);
        for (int i = 1; i < 3; i++)
            if (sum[k][0] > 0) (void)snprintf(c[i], sizeof c[i], "%.4f", sum[k][i] / sum[k][0]);
            else (void)snprintf(c[i], sizeof c[i], "-");
        page_row(p, false, 4, (const char *const[]){k ? "that agree at least as the mean does"
                                                      : "that agree less", c[0], c[1], c[2]});
    }
    page_table(p, false);
}

static enum status draw_two(struct page *p, const struct trace_page *w, struct err *e)
{
    const struct trace *a = w->t[0], *b = w->t[1];
    double *x = calloc(2 * (size_t)a->n_layers, sizeof *x), *by = x ? x + a->n_layers : NULL, all = 0;
    int64_t n = 0;
    if (!x) return err_set(e, ERR_MEMORY, "no memory to compare traces");
    for (int32_t r = 0; r < a->n_rows; r++) n += same_token(a, b, r);
    for (int l = 0; l < a->n_layers; l++) {
        int64_t rows = 0;
        x[l] = a->layer[l];
        for (int32_t r = 0; r < a->n_rows; r++) {
            const double s = same_token(a, b, r) ? shared(a, b, r, l) : NAN;
            if (!isfinite(s)) continue;
            by[l] += 100 * s;
            rows++;
        }
        by[l] = rows ? by[l] / (double)rows : NAN;
        all += by[l] / 100 / a->n_layers;
    }
    page_head(p, "Do they agree?", "A is %s, B is %s. %" PRId64 " of A's %d tokens are at the same place in "
              "B. Of their experts, %.1f %% are chosen by both.", w->name[0], w->name[1], n, a->n_rows,
              100 * all);
    if (n) {
        page_lines(p, &(struct page_lines){.n = a->n_layers, .n_lines = 1, .x = x, .y = {by},
                   .name = {"experts that both chose"}, .x_name = "layer", .y_name = "%",
                   .from_zero = true});
        agreement_rows(p, a, b, all);
    }
    free(x);
    return OK;
}

/* ---- the page ---- */

static void summary(struct page *p, const struct trace_page *w)
{
    page_table(p, true);
    page_row(p, true, 6, (const char *const[]){"trace", "model", "layers", "experts", "tokens", "loss"});
    for (int i = 0; i < 2 && w->t[i]; i++) {
        const struct trace *t = w->t[i];
        char layers[32], experts[48], tokens[32], loss[32] = "-";
        double sum = 0;
        int n = 0;
        for (int32_t r = 0; t->loss && r < t->n_rows; r++)
            if (t->loss[r] >= 0) {
                sum += (double)t->loss[r];
                n++;
            }
        if (n) (void)snprintf(loss, sizeof loss, "%.4f", sum / n);
        (void)snprintf(layers, sizeof layers, "%d", t->n_layers);
        (void)snprintf(experts, sizeof experts, "%d of %d", t->n_used, t->n_experts);
        (void)snprintf(tokens, sizeof tokens, "%d", t->n_rows);
        page_row(p, false, 6, (const char *const[]){w->name[i], t->name, layers, experts, tokens, loss});
    }
    page_table(p, false);
}

static enum status one(struct page *p, const struct trace_page *w, int i, struct err *e)
{
    struct counts c = {.page = p, .t = w->t[i], .tok = w->tok};
    enum status s = count(&c, e);
    if (!s && w->t[1]) {
        fprintf(p->f, "<h1>%c: ", "AB"[i]);
        page_text(p, w->name[i], strlen(w->name[i]));
        fprintf(p->f, "</h1>\n");
    }
    if (!s) {
        draw_use(&c);
        draw_balance(&c);
        draw_time(&c);
        draw_classes(&c);
        draw_pairs(&c);
        s = draw_curves(p, w->t[i], w->machine, e);
    }
    counts_free(&c);
    return s;
}

enum status trace_page_write(const struct trace_page *w, const char *path, struct err *e)
{
    struct page p;
    const struct trace *a = w->t[0], *b = w->t[1];
    if (b && (a->n_layers != b->n_layers || a->n_experts != b->n_experts))
        return err_set(e, ERR_SHAPE, "%s has %d layers of %d experts, %s has %d of %d: only models of one "
                       "shape are compared", w->name[0], a->n_layers, a->n_experts, w->name[1],
                       b->n_layers, b->n_experts);
    enum status s = page_open(&p, path, b ? "Routing of two models" : "Routing", e);
    if (s) return s;
    summary(&p, w);
    if (b) s = draw_two(&p, w, e);
    for (int i = 0; i < 2 && w->t[i] && !s; i++) s = one(&p, w, i, e);
    if (!s) draw_text(&p, w);
    if (!s && w->concepts) concept_page(&p, w->concepts, w->tok);
    if (!s) return page_close(&p, e);
    page_abort(&p);
    return s;
}
