/* tessera convert DIR OUT: a Hugging Face checkpoint to a GGUF file.  Prints a table of tensors;
 * the work is quant/build/convert.c's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "moe/load/tok.h"
#include "quant/build/convert.h"

static void print_table(const struct convert *c)
{
    printf("| tensor | shape | from | as | to | bytes |\n|---|---|---|---|---|---|\n");
    for (uint32_t i = 0; i < c->n; i++) {
        const struct convert_tensor *t = &c->tensor[i];
        const struct st_tensor *s = t->n_src ? c->src[t->first_src] : NULL;
        char shape[96];
        int n = snprintf(shape, sizeof shape, "%llu", (unsigned long long)t->dim[0]);
        for (int d = 1; d < t->n_dims; d++)
            n += snprintf(shape + n, sizeof shape - (size_t)n, " x %llu",
                          (unsigned long long)t->dim[d]);
        printf("| %s | %s | ", t->name, shape);
        if (t->n_src > 1) printf("%s and %u more", s->name, t->n_src - 1);
        else printf("%s", s ? s->name : "config.json");
        printf(" | %s | %s | %llu |\n", !s ? "-" : t->scales ? "MXFP4" : s->type_name,
               qtype_info(t->type)->name, (unsigned long long)t->bytes);
    }
}

static void print_notes(const struct convert *c)
{
    char a[24], b[24];
    if (c->n_ignored)
        fprintf(stderr, "tessera: %llu tensors (%s) that play no part in generation are left out\n",
                (unsigned long long)c->n_ignored, cli_bytes(c->bytes_ignored, a));
    if (hf_vocab_n_dropped(c->vocab))
        cli_warn("%u tokens lie behind the model's vocab_size and are left out",
                 hf_vocab_n_dropped(c->vocab));
    if (c->model.ignored_window)
        cli_warn("the sliding window of %d tokens is not part of the architecture %s: texts longer "
                 "than that differ", c->model.ignored_window, c->model.arch->name);
    fprintf(stderr, "%s: %s -> %s\n", c->model.arch->name, cli_bytes(c->bytes_in, a),
            cli_bytes(c->bytes_out, b));
}

/* Opens what was written: shapes that contradict the keys show here.  What Tessera cannot run, but
 * others might, is a warning. */
static enum status check_written(const char *path, struct err *e)
{
    tessera_engine *engine;
    struct err why;
    struct tessera_options o = tessera_defaults();
    o.model_path = path;
    o.header_only = true;
    o.mem_budget = UINT64_MAX / 2;
    err_clear(&why);
    enum status s = tessera_open(&o, &engine, &why);
    if (!s && *tessera_tok_error(engine))
        s = err_set(&why, ERR_FORMAT, "%s", tessera_tok_error(engine));
    cli_close_engine(engine);
    if (s == ERR_UNSUPPORTED) cli_warn("Tessera cannot run the result: %s", why.msg);
    if (!s || s == ERR_UNSUPPORTED) return OK;
    return err_set(e, s, "config.json or the tokenizer contradict the tensors; nothing was written: "
                   "%.380s", why.msg);
}

/* Writes beside the place where the file shall be, checks it there, and moves it. */
static enum status write_checked(struct convert *c, const char *out, struct pool *pool,
                                 struct cli_progress *bar, struct err *e)
{
    struct stat st;
    const size_t n = strlen(out) + sizeof ".new";
    const bool in_place = !stat(out, &st) && !S_ISREG(st.st_mode);
    if (in_place) return convert_write(c, out, pool, cli_progress, bar, e);
    char *aside = malloc(n);
    if (!aside) return err_set(e, ERR_MEMORY, "no memory to write %s", out);
    (void)snprintf(aside, n, "%s.new", out);
    enum status s = convert_write(c, aside, pool, cli_progress, bar, e);
    if (!s) {
        s = check_written(aside, e);
        if (!s && rename(aside, out))
            s = err_set(e, ERR_IO, "cannot write %s: %s", out, strerror(errno));
        if (s) (void)unlink(aside);
    }
    free(aside);
    return s;
}

static enum status convert(const struct convert_options *o, const char *out, int n_threads,
                           struct err *e)
{
    struct convert c;
    struct pool *pool = NULL;
    struct cli_progress bar = {.label = "converting"};
    enum status s = convert_open(&c, o, e);
    if (!s) s = pool_open(n_threads, &pool, e);
    if (!s) {
        cli_catch_interrupts();
        s = write_checked(&c, out, pool, &bar, e);
        cli_progress_end(&bar);
    }
    if (!s) {
        print_table(&c);
        print_notes(&c);
    }
    pool_close(pool);
    convert_close(&c);
    return s;
}

/* The word of --outtype; false when there is no such type. */
static bool parse_type(const char *word, enum convert_type *type)
{
    static const char *const names[] = {
        [CONVERT_AUTO] = "auto", [CONVERT_F32] = "f32", [CONVERT_F16] = "f16",
        [CONVERT_BF16] = "bf16", [CONVERT_Q8_0] = "q8_0",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcasecmp(names[i], word)) continue;
        *type = (enum convert_type)i;
        return true;
    }
    return false;
}

static bool is_pre(const char *name)
{
    for (int i = 0; tok_pre_at(i); i++)
        if (!strcmp(tok_pre_at(i), name)) return true;
    return false;
}

static void known_architectures(char *buf, size_t cap)
{
    size_t n = 0;
    for (int i = 0; hf_arch_at(i) && n < cap; i++)
        n += (size_t)snprintf(buf + n, cap - n, "%s %s", i ? "" : "architectures:",
                              hf_arch_at(i)->classes);
    if (n < cap) (void)snprintf(buf + n, cap - n, "\n");
}

int cmd_convert(int argc, char **argv)
{
    struct own {
        const char *type, *pre, *name;
    } own = {"auto", NULL, NULL};
    static const struct cli_flag flags[] = {
        {"--outtype", "TYPE",
         "type of the matrices: f32 f16 bf16 q8_0, or auto, the 16-bit kind that the checkpoint "
         "has (default auto); MXFP4 stays as it is",
         CLI_STR, offsetof(struct own, type), 0, 0},
        {"--pre", "NAME", "the pre-tokenizer, where tokenizer.json has one that is not known",
         CLI_STR, offsetof(struct own, pre), 0, 0},
        {"--model-name", "NAME", "general.name (default: the folder's name)", CLI_STR,
         offsetof(struct own, name), 0, 0},
        {0}};
    char known[512];
    struct cli_args a = cli_defaults();
    known_architectures(known, sizeof known);
    struct cli_spec spec = {.name = "convert", .groups = CLI_THREADS, .own = flags,
                            .own_base = &own, .min_pos = 2, .max_pos = 2, .model_optional = true,
                            .footer = known};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    struct convert_options o = {.dir = a.pos[0], .pre = own.pre, .name = own.name};
    if (!parse_type(own.type, &o.type))
        return cli_usage("convert", "--outtype knows auto, f32, f16, bf16 and q8_0, not '%s'",
                         own.type);
    if (own.pre && !is_pre(own.pre))
        return cli_usage("convert", "--pre %s is not known; `tessera help support` lists the "
                         "pre-tokenizers", own.pre);
    long n = a.threads > 0 ? a.threads : sysconf(_SC_NPROCESSORS_ONLN);
    struct err e;
    err_clear(&e);
    return convert(&o, a.pos[1], n < 1 ? 1 : (int)n, &e) ? cli_fail(&e) : CLI_OK;
}
