/* tessera stack IN OUT: a stack, one file from which any size of the model can be loaded; and
 * tessera stack --report FILE: what a stack gives at every size.
 *
 * Codes every matrix (quant/build/stack_build.c); then, with a text, measures on the result how much
 * each tensor's error hurts, orders the levels by what they help per byte, and measures the curve.
 *
 * How much it hurts: half the mean squared change of the log-probability of the text's tokens, which
 * is the Kullback-Leibler divergence to second order, needs one float per token, and has no sign to
 * lose in the noise. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/chunks.h"
#include "cli/collect.h"
#include "moe/load/stackfile.h"
#include "quant/build/stack_build.h"

enum { CURVE = 24, CHUNKS_DEFAULT = 8 };

struct stack_args {
    const char *imatrix, *codec, *order;
    int rank, levels, chunks;
    uint64_t cut;
    bool report;
};

struct work {
    struct cli_args *a;
    const struct stack_args *own;
    const char *in, *out;
    char *probe;             /* the stack that is measured, before the order is known */
    struct imatrix m;
    struct gguf *g;
    struct stack_build b;
    struct pool *pool;
    /* measuring */
    tessera_engine *e;
    struct chunks t;
    float *nll;              /* [scored] of the full model */
    int n_nll;
    double before, change;   /* running: nll so far; squared changes */
    int32_t *order;
    int n_units, n_floor;
    int curve_units[CURVE];
    float curve_ppl[CURVE];
    int n_curve;
};

/* ---- activations ---------------------------------------------------------------------------- */

static enum status collect_text(struct work *w, struct err *err)
{
    struct collector c = {.output = true};
    struct chunks t;
    chunks_init(&t, w->e, w->a);
    err_clear(&c.err);
    enum status s = chunks_read(&t, w->a, 0, w->own->chunks, err);
    if (!s) s = chunks_begin(&t, err);
    if (!s) s = tessera_watch(w->e, collect, &c, err);
    for (int i = 0; i < t.n_chunk && !s; i++) {
        s = chunks_run(&t, i, true, NULL, NULL, err);
        if (!s && c.err.code) s = err_set(err, c.err.code, "%s", c.err.msg);
    }
    c.m.n_chunks = (uint32_t)t.n_chunk;
    w->m = c.m;
    chunks_free(&t);
    return s;
}

static enum status open_engine(struct work *w, const char *path, struct err *err)
{
    struct tessera_options o = cli_engine_options(w->a);
    o.model_path = path;
    if (!w->a->ctx) o.n_ctx = 512;
    o.n_logits = o.n_ubatch;
    enum status s = tessera_open(&o, &w->e, err);
    if (!s && tessera_model(w->e).sees_both)
        s = err_set(err, ERR_UNSUPPORTED, "%s: a stack is measured by the next token, which a model of %s "
                    "does not have", path, tessera_model(w->e).arch);
    return s;
}

static void close_engine(struct work *w)
{
    cli_close_engine(w->e);
    w->e = NULL;
}

static enum status importance(struct work *w, struct err *err)
{
    if (w->own->imatrix) return imatrix_read(w->own->imatrix, &w->m, err);
    enum status s = open_engine(w, w->in, err);
    if (!s) {
        fprintf(stderr, "measuring activations on %s\n", w->a->file);
        s = collect_text(w, err);
    }
    close_engine(w);
    return s;
}

/* ---- measuring ------------------------------------------------------------------------------ */

static enum status first_score(void *arg, const float *logits, int32_t next, struct err *err)
{
    struct work *w = arg;
    (void)logits, (void)next, (void)err;
    w->nll[w->n_nll++] = (float)(w->t.nll - w->before);
    w->before = w->t.nll;
    return OK;
}

static enum status next_score(void *arg, const float *logits, int32_t next, struct err *err)
{
    struct work *w = arg;
    (void)logits, (void)next, (void)err;
    const double d = w->t.nll - w->before - (double)w->nll[w->n_nll++];
    w->change += d * d;
    w->before = w->t.nll;
    return OK;
}

/* Runs the text; *ppl, and in w->change the mean squared change per token. */
static enum status run_text(struct work *w, bool first, double *ppl, struct err *err)
{
    enum status s = OK;
    w->t.nll = w->t.nll2 = w->before = w->change = 0;
    w->t.count = w->n_nll = 0;
    for (int i = 0; i < w->t.n_chunk && !s; i++)
        s = chunks_run(&w->t, i, false, first ? first_score : next_score, w, err);
    if (w->t.count) *ppl = exp(w->t.nll / w->t.count);
    if (w->n_nll) w->change /= w->n_nll;
    return s;
}

static void part_name(const struct stack_part *p, char *name, size_t cap)
{
    (void)snprintf(name, cap, "%.*s", (int)p->t->in->name.n, p->t->in->name.s);
}

static enum status went(struct cli_progress *bar, uint64_t done, uint64_t all, struct err *err)
{
    return cli_progress(bar, done, all) ? OK : err_set(err, ERR_CANCELLED, "interrupted");
}

/* What a unit of a tensor's error costs: the tensor alone without its levels. */
static enum status measure_worth(struct work *w, struct err *err)
{
    enum status s = OK;
    struct cli_progress bar = {.label = "what matters"};
    for (int i = 0; i < w->b.n_parts && !s; i++) {
        struct stack_part *p = &w->b.part[i];
        char name[128];
        double ppl, lost = 0;
        part_name(p, name, sizeof name);
        s = tessera_stack_limit(w->e, name, -1, 0, err);
        if (!s) s = run_text(w, false, &ppl, err);
        if (!s) s = tessera_stack_limit(w->e, name, -1, STACK_LEVELS, err);
        for (int m = 0; m < p->n_mats; m++)
            lost += p->mat[m].error[0] - p->mat[m].error[w->b.o.n_levels];
        if (!s) p->worth = lost > 0 ? 0.5 * w->change / lost : 0;
        if (!s) s = went(&bar, (uint64_t)i + 1, (uint64_t)w->b.n_parts, err);
    }
    cli_progress_end(&bar);
    return s;
}

/* Loads as many levels of each matrix as the first n units hold. */
static enum status use_prefix(struct work *w, int n, struct err *err)
{
    enum status s = tessera_stack_limit(w->e, NULL, -1, 0, err);
    for (int i = 0; i < n && !s; i++) { /* in order: the last one of a matrix is its depth */
        const int32_t *u = w->order + 3 * i;
        char name[128];
        part_name(&w->b.part[u[0]], name, sizeof name);
        s = tessera_stack_limit(w->e, name, u[1], u[2], err);
    }
    return s;
}

/* Whether the first n units are worth running: a perplexity of at most FLOOR_PPL times the full one's,
 * and not on the steep part, where FLOOR_STEP more of all bytes would take off more than FLOOR_GAIN. */
static enum status is_floor(struct work *w, int n, double bases, double full, bool *ok, struct err *err)
{
    const double FLOOR_PPL = 1.25, FLOOR_STEP = 1.03, FLOOR_GAIN = 1.04;
    const double want = (bases + (double)stack_order_bytes(&w->b, w->order, n)) * FLOOR_STEP - bases;
    double ppl = 0, more = 0;
    int k = n;
    while (k < w->n_units && (double)stack_order_bytes(&w->b, w->order, k) < want) k++;
    enum status s = use_prefix(w, n, err);
    if (!s) s = run_text(w, false, &ppl, err);
    *ok = ppl <= FLOOR_PPL * full;
    if (s || !*ok) return s;
    s = use_prefix(w, k, err);
    if (!s) s = run_text(w, false, &more, err);
    *ok = ppl <= FLOOR_GAIN * more;
    return s;
}

/* The floor: levels without which the model is not worth running, those of small tensors that hurt much
 * (attention, embeddings).  The fewest units that is_floor() accepts, if they add at most FLOOR_BYTES of
 * the bases. */
static enum status find_floor(struct work *w, double full, struct err *err)
{
    const double FLOOR_BYTES = 0.15;
    double bases = 0;
    for (int i = 0; i < w->b.n_parts; i++)
        bases += (double)qtype_bytes(w->b.o.base, (uint64_t)w->b.part[i].n_cols) *
                 w->b.part[i].n_rows * w->b.part[i].n_mats;
    int lo = w->n_floor, hi = lo;
    while (hi < w->n_units && (double)stack_order_bytes(&w->b, w->order, hi) < bases * FLOOR_BYTES)
        hi++;
    while (lo < hi) {
        const int mid = (lo + hi) / 2;
        bool ok = false;
        enum status s = is_floor(w, mid, bases, full, &ok, err);
        if (s) return s;
        if (ok) hi = mid;
        else lo = mid + 1;
    }
    w->n_floor = hi;
    return OK;
}

static enum status measure_curve(struct work *w, struct err *err)
{
    enum status s = OK;
    struct cli_progress bar = {.label = "perplexity by size"};
    const double low = (double)stack_order_bytes(&w->b, w->order, w->n_floor);
    const double all = (double)stack_order_bytes(&w->b, w->order, w->n_units);
    int n = w->n_floor;
    for (int i = 0; i < CURVE && !s; i++) {
        const double want = low + (all - low) * i / (CURVE - 1);
        while (n < w->n_units && (double)stack_order_bytes(&w->b, w->order, n) < want) n++;
        double ppl = 0;
        s = use_prefix(w, n, err);
        if (!s) s = run_text(w, false, &ppl, err);
        w->curve_units[w->n_curve] = n;
        w->curve_ppl[w->n_curve++] = (float)ppl;
        if (!s) s = went(&bar, (uint64_t)i + 1, CURVE, err);
    }
    cli_progress_end(&bar);
    return s;
}

/* ---- the paper's order ---------------------------------------------------------------------- */

struct scored {
    double ppl;
    int32_t part, mat;
};

static int by_ppl(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->ppl != y->ppl) return x->ppl < y->ppl ? -1 : 1;
    return x->part != y->part ? x->part - y->part : x->mat - y->mat;
}

/* BitStack's rule: level by level; within a level, what gives the lowest perplexity alone comes first,
 * all others one level below. */
static enum status order_as_paper(struct work *w, struct err *err)
{
    struct stack_build *b = &w->b;
    int mats = 0, n = w->n_floor;
    for (int i = 0; i < b->n_parts; i++) mats += b->part[i].n_mats;
    struct scored *all = calloc((size_t)mats, sizeof *all);
    if (!all) return err_set(err, ERR_MEMORY, "no memory to sort");
    struct cli_progress bar = {.label = "importance of each block"};
    enum status s = OK;
    for (int l = 1; l <= b->o.n_levels && !s; l++) {
        int k = 0;
        s = tessera_stack_limit(w->e, NULL, -1, l - 1, err);
        for (int i = 0; i < b->n_parts && !s; i++)
            for (int m = 0; m < b->part[i].n_mats && !s; m++) {
                char name[128];
                part_name(&b->part[i], name, sizeof name);
                all[k] = (struct scored){0, i, m};
                s = tessera_stack_limit(w->e, name, m, l, err);
                if (!s) s = run_text(w, false, &all[k++].ppl, err);
                if (!s) s = tessera_stack_limit(w->e, name, m, l - 1, err);
                if (!s)
                    s = went(&bar, (uint64_t)(l - 1) * (uint64_t)mats + (uint64_t)k,
                             (uint64_t)mats * (uint64_t)b->o.n_levels, err);
            }
        qsort(all, (size_t)k, sizeof *all, by_ppl);
        for (int i = 0; i < k; i++)
            memcpy(w->order + 3 * n++, (int32_t[]){all[i].part, all[i].mat, l},
                   3 * sizeof *w->order);
    }
    cli_progress_end(&bar);
    free(all);
    return s;
}

/* ---- the whole ------------------------------------------------------------------------------ */

static enum status write_out(struct work *w, const char *out, struct err *err)
{
    struct cli_progress bar = {.label = "writing"};
    const char *slash = w->a->file ? strrchr(w->a->file, '/') : NULL;
    const struct stack_curve curve = {w->curve_units, w->curve_ppl, w->n_curve,
                                      slash ? slash + 1 : w->a->file};
    enum status s = stack_write(&w->b, out, w->order, w->n_units, w->n_floor,
                                w->n_curve ? &curve : NULL, w->pool, cli_progress, &bar, err);
    cli_progress_end(&bar);
    return s;
}

static enum status sort_units(struct work *w, struct err *err)
{
    free(w->order);
    w->order = stack_order(&w->b, &w->n_units, &w->n_floor);
    return w->order ? OK : err_set(err, ERR_MEMORY, "no memory for the order of the levels");
}

/* Opens what was written, and measures. */
static enum status measure(struct work *w, struct err *err)
{
    double ppl;
    enum status s = open_engine(w, w->probe, err);
    if (s) return s;
    const struct tessera_stack k = tessera_stack(w->e);
    chunks_init(&w->t, w->e, w->a);
    if (k.n_loaded < k.n_units)
        return err_set(err, ERR_BUDGET, "measuring needs the whole stack in memory: give it more "
                       "with --mem, or leave out -f");
    s = chunks_read(&w->t, w->a, 0, w->own->chunks, err);
    if (!s) s = chunks_begin(&w->t, err);
    w->nll = calloc((size_t)w->t.n_chunk * (size_t)w->t.n_ctx + 1, sizeof *w->nll);
    if (!s && !w->nll) s = err_set(err, ERR_MEMORY, "no memory to measure");
    if (!s) s = run_text(w, true, &ppl, err);
    if (!s && !strcmp(w->own->order, "paper")) {
        s = order_as_paper(w, err);
    } else if (!s) {
        s = measure_worth(w, err);
        if (!s) s = sort_units(w, err);
    }
    if (!s && w->b.o.base == QTYPE_NEST2) s = find_floor(w, ppl, err);
    if (!s) s = measure_curve(w, err);
    return s;
}

static void drop_measuring(struct work *w)
{
    chunks_free(&w->t);
    w->t = (struct chunks){0};
    free(w->nll);
    w->nll = NULL;
    close_engine(w);
}

/* Without a text: a tensor's error counts in parts of what the tensor does. */
static void guess_worth(struct stack_build *b)
{
    for (int i = 0; i < b->n_parts; i++) {
        double energy = 0;
        for (int m = 0; m < b->part[i].n_mats; m++) energy += b->part[i].mat[m].energy;
        b->part[i].worth = energy > 0 ? 1 / energy : 0;
    }
}

static enum status encode(struct work *w, struct err *err)
{
    struct cli_progress bar = {.label = "coding"};
    enum status s = stack_encode(&w->b, w->out, w->pool, cli_progress, &bar, err);
    cli_progress_end(&bar);
    if (w->b.n_coded)
        fprintf(stderr, "an interrupted build went on: %d of %d tensors were coded\n", w->b.n_coded,
                w->b.n_parts);
    return s;
}

static enum status build(struct work *w, struct err *err)
{
    const bool nested = !strcmp(w->own->codec, "nested");
    const struct stack_options o = {.base = nested ? QTYPE_NEST2 : QTYPE_SIGN1,
                                    .rank = nested ? 0 : w->own->rank,
                                    .n_levels = w->own->levels};
    const long n = w->a->threads > 0 ? w->a->threads : sysconf(_SC_NPROCESSORS_ONLN);
    enum status s = gguf_open(w->in, NULL, &w->g, err);
    if (!s) s = importance(w, err);
    if (!s) s = pool_open(n < 1 ? 1 : (int)n, &w->pool, err);
    if (!s) s = stack_build_open(&w->b, w->g, &o, &w->m, err);
    if (!s) s = encode(w, err);
    if (!s) guess_worth(&w->b);
    if (!s) s = sort_units(w, err);
    if (s || !w->a->file) return s ? s : write_out(w, w->out, err);
    const size_t cap = strlen(w->out) + 16;
    w->probe = malloc(cap);
    if (!w->probe) return err_set(err, ERR_MEMORY, "no memory for a file name");
    (void)snprintf(w->probe, cap, "%s.probe.part", w->out);
    s = write_out(w, w->probe, err);
    if (!s) s = measure(w, err);
    drop_measuring(w);
    (void)unlink(w->probe);
    return s ? s : write_out(w, w->out, err);
}

static void done(struct work *w)
{
    drop_measuring(w);
    free(w->order);
    free(w->probe);
    if (w->b.part) stack_build_close(&w->b);
    imatrix_free(&w->m);
    pool_close(w->pool);
    gguf_close(w->g);
}

/* ---- cutting --------------------------------------------------------------------------------- */

/* Copies the beginning of a stack: as many levels as fit a file of so many bytes. */
static enum status cut(const char *in, const char *out, uint64_t bytes, struct err *err)
{
    enum { STEP = 1 << 20 };
    struct gguf *g = NULL;
    struct stackfile k = {0};
    struct osfile f = {.fd = -1};
    struct osfile_writer w = {0};
    char *buf = malloc(STEP);
    enum status s = buf ? gguf_open(in, NULL, &g, err) : err_set(err, ERR_MEMORY, "no memory to copy");
    if (!s) s = stackfile_open(&k, g, err);
    if (!s && !k.present) s = err_set(err, ERR_FORMAT, "%s is no stack", in);
    const uint64_t from = !s ? k.levels->offset : 0;
    const int n = !s && bytes > from ? stackfile_units_in(&k, bytes - from) : 0;
    const uint64_t end = from + stackfile_end(&k, n);
    if (!s && (bytes < end || n < k.n_floor))
        s = err_set(err, ERR_RANGE, "%s cannot be cut to %llu bytes: its smallest is %llu", in,
                    (unsigned long long)bytes,
                    (unsigned long long)(from + stackfile_end(&k, k.n_floor)));
    if (!s) s = osfile_open(&f, in, OSFILE_BUFFERED, NULL, err);
    if (!s) s = osfile_writer_open(&w, out, err);
    for (uint64_t at = 0; at < end && !s; at += STEP) {
        const size_t m = end - at < STEP ? (size_t)(end - at) : STEP;
        s = osfile_read(&f, buf, m, at, err);
        if (!s && fwrite(buf, 1, m, w.fp) != m) s = err_set(err, ERR_IO, "cannot write %s", out);
    }
    if (!s) s = osfile_writer_commit(&w, err);
    else if (w.fp) osfile_writer_abort(&w);
    if (!s) fprintf(stderr, "%d of %d levels, %llu bytes\n", n, k.n_units + k.n_cut,
                    (unsigned long long)end);
    osfile_close(&f);
    stackfile_close(&k);
    gguf_close(g);
    free(buf);
    return s;
}

/* ---- the report ----------------------------------------------------------------------------- */

static void bar_of(double part, char *to)
{
    const int n = (int)(part * 40 + 0.5);
    for (int i = 0; i < 40; i++) to[i] = i < n ? '#' : ' ';
    to[40] = 0;
}

static enum status report(const char *path, struct err *err)
{
    struct gguf *g = NULL;
    struct stackfile s = {0};
    enum status st = gguf_open(path, NULL, &g, err);
    if (!st) st = stackfile_open(&s, g, err);
    if (!st && !s.present)
        st = err_set(err, ERR_FORMAT, "%s is no stack: `tessera stack IN OUT` makes one", path);
    if (!st) {
        double weights = 0, base = 0;
        float worst = 0, best = INFINITY;
        for (int i = 0; i < s.n_tensors; i++) {
            const struct gguf_tensor *t = s.tensor[i].base;
            weights += (double)s.tensor[i].n_cols * s.tensor[i].n_rows * s.tensor[i].n_mats;
            base += (double)t->dim[0] * (double)t->dim[1] * (double)t->dim[2];
        }
        for (int i = 0; i < s.n_curve; i++) {
            worst = fmaxf(worst, s.curve_ppl[i]);
            best = fminf(best, s.curve_ppl[i]);
        }
        fprintf(stderr, "%d tensors in the stack, %d levels of matrices above their bases\n",
                s.n_tensors, s.n_units);
        if (!s.n_curve) fprintf(stderr, "no curve: it was built without a text (-f)\n");
        printf("| levels | stack bytes | bits per weight | perplexity | |\n|---|---|---|---|---|\n");
        for (int i = 0; i < s.n_curve; i++) {
            const int n = s.curve_units[i];
            const double bytes = base + (double)stackfile_end(&s, n);
            char bar[64];
            bar_of(worst > best ? (double)((s.curve_ppl[i] - best) / (worst - best)) : 0, bar);
            printf("| %d | %.0f | %.3f | %.4f | %s |\n", n, bytes, 8 * bytes / weights,
                   (double)s.curve_ppl[i], bar);
        }
    }
    stackfile_close(&s);
    gguf_close(g);
    return st;
}

#define AT(field) offsetof(struct stack_args, field)

int cmd_stack(int argc, char **argv)
{
    static const struct cli_flag flags[] = {
        {"--imatrix", "FILE", "how large the activations are that each column meets (tessera imatrix, "
         "llama-imatrix); without it they are collected on -f", CLI_STR, AT(imatrix), 0, 0},
        {"--chunks", "N", "measure on the first N chunks of the text (default 8)", CLI_INT,
         AT(chunks), 1, 1 << 20},
        {"--codec", "NAME", "nested (default), or factored: BitStack's own, for comparison", CLI_STR,
         AT(codec), 0, 0},
        {"--order", "NAME", "energy (default): error taken away per byte; or paper: BitStack's, one "
         "run of the text per level of every matrix", CLI_STR, AT(order), 0, 0},
        {"--levels", "N", "levels above the base (default: nested 4, factored 7)", CLI_INT,
         AT(levels), 1, STACK_LEVELS},
        {"--rank", "K", "vectors of a factored level (default 16)", CLI_INT, AT(rank), 1, STACK_RANK_MAX},
        {"--cut", "SIZE", "copy the beginning of a stack: a file of at most this size", CLI_SIZE,
         AT(cut), 0, 0},
        {"--report", NULL, "print what a stack gives at every size: tessera stack --report FILE",
         CLI_TRUE, AT(report), 0, 0},
        {0}};
    struct stack_args own = {.codec = "nested", .order = "energy", .rank = 16,
                             .chunks = CHUNKS_DEFAULT};
    struct cli_args a = cli_defaults();
    a.escape = false;
    struct cli_spec spec = {.name = "stack", .groups = CLI_MODEL | CLI_PROMPT, .own = flags,
                            .own_base = &own, .min_pos = 1, .max_pos = 2, .model_optional = true,
                            .footer = "A build that was interrupted leaves OUT.work.part, and the same command "
                                      "goes on behind the last tensor\nthat was coded, as long as input, options "
                                      "and activations are the same.\n"};
    struct err err;
    err_clear(&err);
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    if (own.report)
        return a.n_pos == 1 ? (report(a.pos[0], &err) ? cli_fail(&err) : CLI_OK)
                            : cli_usage("stack", "--report wants one file");
    if (a.n_pos != 2)
        return cli_usage("stack", "which file shall be written? tessera stack IN OUT");
    if (!strcmp(a.pos[0], a.pos[1]))
        return cli_usage("stack", "the output would replace the input");
    if (own.cut) return cut(a.pos[0], a.pos[1], own.cut, &err) ? cli_fail(&err) : CLI_OK;
    if (strcmp(own.codec, "nested") && strcmp(own.codec, "factored"))
        return cli_usage("stack", "--codec is nested or factored, not '%s'", own.codec);
    if (strcmp(own.order, "energy") && strcmp(own.order, "paper"))
        return cli_usage("stack", "--order is energy or paper, not '%s'", own.order);
    if (!own.imatrix && !a.file)
        return cli_usage("stack", "give a text with -f FILE, an importance matrix with --imatrix, or "
                         "both");
    if (!strcmp(own.order, "paper") && !a.file)
        return cli_usage("stack", "--order paper measures on a text: give one with -f FILE");
    const int most = strcmp(own.codec, "nested") ? 7 : STACK_NESTED;
    if (!own.levels) own.levels = most;
    if (!strcmp(own.codec, "nested") && own.levels > STACK_NESTED)
        return cli_usage("stack", "the nested codec has at most %d levels", STACK_NESTED);
    if ((rc = chunks_check("stack", &a)) != CLI_GO_ON) return rc;
    if (!a.ctx) a.ctx = 512;
    struct work w = {.a = &a, .own = &own, .in = a.pos[0], .out = a.pos[1]};
    cli_catch_interrupts();
    rc = build(&w, &err) ? cli_fail(&err) : CLI_OK;
    w.b.keep = err.code == ERR_CANCELLED && w.b.state_path;
    if (w.b.keep)
        fprintf(stderr, "what was coded is in %s.work.part: the same command goes on there\n", w.out);
    done(&w);
    return rc;
}
