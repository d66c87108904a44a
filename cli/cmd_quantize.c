/* tessera quantize IN OUT TYPE: a model file with its matrices in another weight format.  Prints a
 * table of tensors; the work is quant/build/requant.c's. */
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "quant/build/requant.h"
#include "quant/codec.h"

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
               qtype_info(t->in->type)->name, qtype_info(t->type)->name,
               t->fallback ? " (columns do not fit)" : "", (unsigned long long)t->bytes);
    }
}

static enum status quantize(const char *in, const char *out, enum qtype type, int n_threads,
                            struct err *e)
{
    struct gguf *g = NULL;
    struct requant r;
    struct pool *pool = NULL;
    struct cli_progress bar = {.label = "quantising"};
    enum status s = gguf_open(in, NULL, &g, e);
    if (s) return s;
    s = requant_plan(&r, g, type, e);
    if (!s) s = pool_open(n_threads, &pool, e);
    if (!s) {
        cli_catch_interrupts();
        s = requant_write(&r, out, pool, cli_progress, &bar, e);
        cli_progress_end(&bar);
    }
    if (!s) {
        char a[24], b[24];
        print_table(&r);
        fprintf(stderr, "%s -> %s\n", cli_bytes(r.bytes_in, a), cli_bytes(r.bytes_out, b));
    }
    pool_close(pool);
    requant_free(&r);
    gguf_close(g);
    return s;
}

int cmd_quantize(int argc, char **argv)
{
    struct cli_args a = cli_defaults();
    char types[256] = "TYPE:";
    for (int i = 0; qtype_at(i); i++) {
        const size_t at = strlen(types);
        if (codec_can_encode(qtype_at(i)->id))
            (void)snprintf(types + at, sizeof types - at, " %s", qtype_at(i)->name);
    }
    struct cli_spec spec = {.name = "quantize", .groups = CLI_THREADS, .min_pos = 3, .max_pos = 3,
                            .model_optional = true, .footer = types};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    const struct qtype_info *type = qtype_by_name(a.pos[2]);
    if (!type) return cli_usage("quantize", "unknown weight type '%s'", a.pos[2]);
    if (!strcmp(a.pos[0], a.pos[1]))
        return cli_usage("quantize", "the output would replace the input");
    long n = a.threads > 0 ? a.threads : sysconf(_SC_NPROCESSORS_ONLN);
    struct err e;
    err_clear(&e);
    return quantize(a.pos[0], a.pos[1], type->id, n < 1 ? 1 : (int)n, &e) ? cli_fail(&e) : CLI_OK;
}
