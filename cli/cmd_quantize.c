/* tessera quantize IN OUT TYPE: a model file with its matrices in another weight format.  Prints a
 * table of tensors; the choice is quant/build/recipe.c's, the work quant/build/requant.c's. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "quant/build/requant.h"
#include "quant/codec.h"

struct quantize_args {
    const char *imatrix, *embedding, *output;
    struct cli_list tensor_types;
    bool pure, leave_output, allow_requantize, dry_run;
};

/* The command line, understood. */
struct order {
    const char *in, *out; /* out NULL: dry run */
    const char *imatrix;
    bool allow_requantize;
    int n_threads;
    struct recipe_options o;
    struct recipe_override override[CLI_LIST_MAX];
    char *patterns; /* what override[].pattern points into */
};

/* ---- output ---- */

static void print_table(const struct requant *r)
{
    printf("| tensor | shape | from | to | bytes |\n|---|---|---|---|---|\n");
    for (uint64_t i = 0; i < r->n; i++) {
        const struct requant_tensor *t = &r->tensor[i];
        char shape[96];
        int n = snprintf(shape, sizeof shape, "%llu", (unsigned long long)t->in->dim[0]);
        for (int d = 1; d < t->in->n_dims; d++)
            n += snprintf(shape + n, sizeof shape - (size_t)n, " x %llu",
                          (unsigned long long)t->in->dim[d]);
        printf("| %.*s | %s | %s | %s%s | %llu |\n", (int)t->in->name.n, t->in->name.s, shape,
               qtype_info(t->in->type)->name, qtype_info((uint32_t)t->type)->name,
               t->fallback ? " (columns do not fit)" : "", (unsigned long long)t->bytes);
    }
}

static void print_sum(const struct requant *r)
{
    char a[24], b[24];
    uint64_t n = 0;
    for (uint64_t i = 0; i < r->n; i++) {
        const uint64_t *d = r->tensor[i].in->dim;
        n += d[0] * d[1] * d[2] * d[3];
    }
    fprintf(stderr, "%s -> %s, %.2f bits per weight\n", cli_bytes(r->bytes_in, a),
            cli_bytes(r->bytes_out, b), n ? 8.0 * (double)r->bytes_out / (double)n : 0.0);
}

/* What the user should know before the work begins. */
static void warn(const struct requant *r, bool will_write)
{
    if (r->imatrix && r->n_missing)
        cli_warn("the importance matrix has nothing for %llu of %llu matrices (%.*s%s): their "
                 "columns count alike", (unsigned long long)r->n_missing,
                 (unsigned long long)r->n_searched, (int)r->missing->in->name.n,
                 r->missing->in->name.s, r->n_missing > 1 ? ", ..." : "");
    if (!r->imatrix && !strcmp(r->recipe->name, "Q2_K_S"))
        cli_warn("Q2_K_S without --imatrix loses much of a model: `tessera imatrix` makes one");
    if (r->lossy && !will_write)
        cli_warn("%.*s is %s already: writing wants --allow-requantize",
                 (int)r->lossy->in->name.n, r->lossy->in->name.s,
                 qtype_info(r->lossy->in->type)->name);
}

/* ---- the work ---- */

static enum status write_model(const struct order *q, const struct requant *r,
                               const struct imatrix *m, struct err *e)
{
    struct pool *pool = NULL;
    struct cli_progress bar = {.label = "quantising"};
    const struct requant_origin origin = {q->imatrix, m->n_datasets ? m->dataset[0] : NULL};
    if (r->lossy && !q->allow_requantize)
        return err_set(e, ERR_UNSUPPORTED, "%s: %.*s is %s already, and quantising it again loses "
                       "more than doing it once: take the F16 or BF16 file, or give --allow-requantize",
                       q->in, (int)r->lossy->in->name.n, r->lossy->in->name.s,
                       qtype_info(r->lossy->in->type)->name);
    enum status s = pool_open(q->n_threads, &pool, e);
    if (s) return s;
    cli_catch_interrupts();
    s = requant_write(r, q->out, &origin, pool, cli_progress, &bar, e);
    cli_progress_end(&bar);
    pool_close(pool);
    return s;
}

static enum status quantize(const struct order *q, struct err *e)
{
    struct gguf *g = NULL;
    struct requant r = {0};
    struct imatrix m = {0};
    enum status s = gguf_open(q->in, NULL, &g, e);
    if (!s && q->imatrix) s = imatrix_read(q->imatrix, &m, e);
    if (!s) s = requant_plan(&r, g, &q->o, q->imatrix ? &m : NULL, e);
    if (!s) {
        warn(&r, q->out);
        if (q->out) s = write_model(q, &r, &m, e);
    }
    if (!s) {
        print_table(&r);
        print_sum(&r);
    }
    requant_free(&r);
    imatrix_free(&m);
    gguf_close(g);
    return s;
}

/* ---- the command line ---- */

static int usage_type(const char *flag, const char *name)
{
    char known[320] = "";
    for (int i = 0; qtype_at(i); i++) {
        const size_t at = strlen(known);
        if (codec_can_encode(qtype_at(i)->id))
            (void)snprintf(known + at, sizeof known - at, " %s", qtype_at(i)->name);
    }
    return cli_usage("quantize", "%s: no weight type to write is called '%s', these are:%s", flag,
                     name, known);
}

static bool type_by_name(const char *name, int *out)
{
    const struct qtype_info *t = qtype_by_name(name);
    if (!t || !codec_can_encode(t->id)) return false;
    *out = (int)t->id;
    return true;
}

/* --tensor-type PATTERN=TYPE: the pattern in lower case, as all names are. */
static int parse_overrides(struct order *q, const struct cli_list *list)
{
    size_t room = 1;
    for (int i = 0; i < list->n; i++) room += strlen(list->at[i]) + 1;
    char *to = q->patterns = malloc(room);
    if (!to) return cli_fail(&(struct err){.code = ERR_MEMORY});
    for (int i = 0; i < list->n; i++) {
        const char *eq = strrchr(list->at[i], '=');
        int type;
        if (!eq || eq == list->at[i])
            return cli_usage("quantize", "--tensor-type wants PATTERN=TYPE, as in attn_v=Q8_0, "
                             "not '%s'", list->at[i]);
        if (!type_by_name(eq + 1, &type)) return usage_type("--tensor-type", eq + 1);
        q->override[i] = (struct recipe_override){to, (enum qtype)type};
        for (const char *p = list->at[i]; p < eq; p++)
            *to++ = *p >= 'A' && *p <= 'Z' ? (char)(*p + 32) : *p;
        *to++ = 0;
    }
    q->o.override = q->override;
    q->o.n_override = list->n;
    return CLI_GO_ON;
}

static int parse_recipe(struct order *q, const char *name)
{
    const char *names[64];
    int n = 0;
    q->o.recipe = recipe_by_name(name);
    if (q->o.recipe) return CLI_GO_ON;
    for (; recipe_at(n) && n < 63; n++) names[n] = recipe_at(n)->name;
    names[n] = NULL;
    const char *near = cli_nearest(name, names);
    if (near) return cli_usage("quantize", "unknown type '%s'; did you mean %s?", name, near);
    return cli_usage("quantize", "unknown type '%s'", name);
}

/* Both name one file, by whatever path. */
static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return !strcmp(a, b) ||
           (!stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino);
}

static int parse(struct order *q, const struct cli_args *a, const struct quantize_args *own)
{
    const bool named = a->n_pos == 3;
    const long n = a->threads > 0 ? a->threads : sysconf(_SC_NPROCESSORS_ONLN);
    if (!named && !own->dry_run)
        return cli_usage("quantize", "which file shall be written? tessera quantize IN OUT TYPE");
    if (named && !own->dry_run && same_file(a->pos[0], a->pos[1]))
        return cli_usage("quantize", "the output would replace the input");
    q->in = a->pos[0];
    q->out = own->dry_run ? NULL : a->pos[1];
    q->imatrix = own->imatrix;
    q->allow_requantize = own->allow_requantize;
    q->n_threads = n < 1 ? 1 : (int)n;
    q->o = (struct recipe_options){
        .pure = own->pure, .leave_output = own->leave_output, .importance = own->imatrix,
        .embedding = RECIPE_TYPE_OPEN, .output = RECIPE_TYPE_OPEN};
    if (own->embedding && !type_by_name(own->embedding, &q->o.embedding))
        return usage_type("--token-embedding-type", own->embedding);
    if (own->output && !type_by_name(own->output, &q->o.output))
        return usage_type("--output-tensor-type", own->output);
    struct err e;
    err_clear(&e);
    int rc = parse_recipe(q, a->pos[a->n_pos - 1]);
    if (rc == CLI_GO_ON) rc = parse_overrides(q, &own->tensor_types);
    if (rc == CLI_GO_ON && recipe_check(&q->o, &e)) return cli_usage("quantize", "%s", e.msg);
    return rc;
}

/* "TYPE: ..." for --help. */
static void list_recipes(char *to, size_t cap)
{
    size_t n = (size_t)snprintf(to, cap, "TYPE (the same choice per tensor as llama-quantize):\n");
    for (int i = 0; recipe_at(i) && n < cap; i++)
        n += (size_t)snprintf(to + n, cap - n, "  %-10s %s\n", recipe_at(i)->name,
                              recipe_at(i)->help);
}

#define AT(field) offsetof(struct quantize_args, field)

int cmd_quantize(int argc, char **argv)
{
    static const struct cli_flag flags[] = {
        {"--imatrix", "FILE", "an importance matrix (tessera imatrix, llama-imatrix): columns that "
         "meet large activations are kept more exactly", CLI_STR, AT(imatrix), 0, 0},
        {"--pure", NULL, "one type for all matrices, no mixture", CLI_TRUE, AT(pure), 0, 0},
        {"--tensor-type", "PATTERN=TYPE", "tensors whose name matches get TYPE; may be given "
         "several times, the first that matches decides", CLI_LIST, AT(tensor_types), 0, 0},
        {"--token-embedding-type", "TYPE", "the type of token_embd.weight", CLI_STR, AT(embedding),
         0, 0},
        {"--output-tensor-type", "TYPE", "the type of output.weight", CLI_STR, AT(output), 0, 0},
        {"--leave-output-tensor", NULL, "output.weight stays as it is", CLI_TRUE, AT(leave_output),
         0, 0},
        {"--allow-requantize", NULL, "quantise what is quantised already (loses more)", CLI_TRUE,
         AT(allow_requantize), 0, 0},
        {"--dry-run", NULL, "print the table and the size, write nothing: tessera quantize "
         "--dry-run IN TYPE", CLI_TRUE, AT(dry_run), 0, 0},
        {0}};
    struct quantize_args own = {0};
    struct cli_args a = cli_defaults();
    char types[2048];
    list_recipes(types, sizeof types);
    struct cli_spec spec = {.name = "quantize", .groups = CLI_THREADS, .own = flags,
                            .own_base = &own, .min_pos = 2, .max_pos = 3, .model_optional = true,
                            .footer = types};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    struct order *q = calloc(1, sizeof *q);
    if (!q) return cli_fail(&(struct err){.code = ERR_MEMORY});
    rc = parse(q, &a, &own);
    if (rc == CLI_GO_ON) {
        struct err e;
        err_clear(&e);
        rc = quantize(q, &e) ? cli_fail(&e) : CLI_OK;
    }
    free(q->patterns);
    free(q);
    return rc;
}
