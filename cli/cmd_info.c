/* tessera info: what is in a GGUF file, without reading a weight.  Everything from the file passes
 * through cli/escape.h.  Works on any well-formed file, also of an unknown architecture or with
 * unknown tensor types. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/escape.h"
#include "moe/load/gguf.h"
#include "quant/qtype.h"

enum { TEXT_MAX = 64, ARRAY_TEXT = 6, ARRAY_JSON = 64, NAME_WIDTH = 44, TYPES = 64 };

/* ---- values ---- */

/* Element i of an array, or a value that stands alone; cursor walks strings. */
static void print_scalar(FILE *to, const struct gguf_value *v, uint64_t i, uint64_t *cursor,
                         bool json)
{
    switch (v->elem) {
    case GGUF_STRING: {
        struct gguf_str s = v->type == GGUF_ARRAY ? gguf_elem_next_str(v, cursor)
                                                  : (struct gguf_str){v->data, v->bytes};
        if (json) {
            escape_json(to, s.s, (size_t)s.n);
        } else {
            (void)fputc('"', to);
            (void)escape_print(to, s.s, (size_t)s.n, TEXT_MAX);
            (void)fputc('"', to);
        }
        break;
    }
    case GGUF_F32:
    case GGUF_F64: {
        double x = gguf_elem_f64(v, i);
        if (json && !isfinite(x))
            (void)fputs("null", to);
        else
            (void)fprintf(to, v->elem == GGUF_F32 ? "%.8g" : "%.17g", x);
        break;
    }
    case GGUF_BOOL:
        (void)fputs(gguf_elem_u64(v, i) ? "true" : "false", to);
        break;
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64:
        (void)fprintf(to, "%" PRIu64, gguf_elem_u64(v, i));
        break;
    default:
        (void)fprintf(to, "%" PRId64, gguf_elem_i64(v, i));
    }
}

static void print_elements(FILE *to, const struct gguf_value *v, uint64_t n, bool json)
{
    uint64_t cursor = 0;
    (void)fputc('[', to);
    for (uint64_t i = 0; i < n; i++) {
        if (i) (void)fputs(", ", to);
        print_scalar(to, v, i, &cursor, json);
    }
    if (n < v->n && !json) (void)fputs(", ...", to);
    (void)fputc(']', to);
}

static void print_value(FILE *to, const struct gguf_value *v)
{
    uint64_t cursor = 0;
    if (v->type != GGUF_ARRAY)
        print_scalar(to, v, 0, &cursor, false);
    else
        print_elements(to, v, v->n < ARRAY_TEXT ? v->n : ARRAY_TEXT, false);
}

/* Long arrays become {"type", "n", "first"}: a vocabulary is no reading matter. */
static void json_value(FILE *to, const struct gguf_value *v)
{
    uint64_t cursor = 0;
    if (v->type != GGUF_ARRAY) {
        print_scalar(to, v, 0, &cursor, true);
    } else if (v->n <= ARRAY_JSON) {
        print_elements(to, v, v->n, true);
    } else {
        (void)fprintf(to, "{\"type\": \"%s\", \"n\": %" PRIu64 ", \"first\": ",
                      gguf_type_name(v->elem), v->n);
        print_elements(to, v, ARRAY_TEXT, true);
        (void)fputc('}', to);
    }
}

/* ---- totals ---- */

struct type_total {
    uint32_t type;
    uint64_t n_tensors, n_weights, bytes;
};

struct totals {
    uint64_t n_weights, n_active, bytes;
    uint64_t n_expert, n_expert_used;
    int n_types;
    bool more_types; /* than fit the table */
    struct type_total type[TYPES];
};

static uint64_t n_weights(const struct gguf_tensor *t)
{
    uint64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->dim[i];
    return n;
}

static const char *type_name(uint32_t type, char buf[24])
{
    const struct qtype_info *q = qtype_in_files(type);
    if (!q) (void)snprintf(buf, 24, "type %" PRIu32, type);
    return q ? q->name : buf;
}

static struct type_total *total_of(struct totals *t, uint32_t type)
{
    for (int i = 0; i < t->n_types; i++)
        if (t->type[i].type == type) return &t->type[i];
    if (t->n_types == TYPES) {
        t->more_types = true;
        return NULL;
    }
    t->type[t->n_types].type = type;
    return &t->type[t->n_types++];
}

/* <arch>.<key> as a number, 0 when it is absent or no number. */
static uint64_t arch_number(const struct gguf *g, const char *key)
{
    struct gguf_str arch;
    char full[160];
    uint64_t v = 0;
    if (gguf_get_str(g, "general.architecture", &arch, NULL) || arch.n > 100) return 0;
    (void)snprintf(full, sizeof full, "%.*s.%s", (int)arch.n, arch.s, key);
    return gguf_get_u64(g, full, &v, NULL) ? 0 : v;
}

static bool is_expert(const struct gguf_tensor *t)
{
    static const char mark[] = "_exps.";
    for (uint64_t i = 0; i + sizeof mark - 1 <= t->name.n; i++)
        if (!memcmp(t->name.s + i, mark, sizeof mark - 1)) return true;
    return false;
}

static void add_up(const struct gguf *g, struct totals *t)
{
    memset(t, 0, sizeof *t);
    t->n_expert = arch_number(g, "expert_count");
    t->n_expert_used = arch_number(g, "expert_used_count");
    bool sparse = t->n_expert && t->n_expert_used < t->n_expert;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *w = gguf_tensor_at(g, i);
        uint64_t n = n_weights(w);
        struct type_total *k = total_of(t, w->type);
        t->n_weights += n;
        t->bytes += w->bytes;
        t->n_active += sparse && is_expert(w) ? n / t->n_expert * t->n_expert_used : n;
        if (!k) continue;
        k->n_tensors++;
        k->n_weights += n;
        k->bytes += w->bytes;
    }
}

/* ---- text ---- */

static void print_key_text(const struct gguf *g, const char *label, const char *key)
{
    struct gguf_str s;
    if (gguf_get_str(g, key, &s, NULL)) return;
    printf("%-13s ", label);
    (void)escape_print(stdout, s.s, (size_t)s.n, TEXT_MAX);
    printf("\n");
}

static void print_summary(const struct gguf *g, const struct totals *t)
{
    char a[24], b[24];
    printf("%-13s ", "file");
    (void)escape_print(stdout, gguf_path(g, 0), strlen(gguf_path(g, 0)), 0);
    printf("\n%-13s GGUF version %" PRIu32 ", %d file%s, %s (%" PRIu64 " bytes)\n", "format",
           gguf_version(g), gguf_n_shards(g), gguf_n_shards(g) == 1 ? "" : "s",
           cli_bytes(gguf_file_bytes(g), a), gguf_file_bytes(g));
    print_key_text(g, "architecture", "general.architecture");
    print_key_text(g, "name", "general.name");
    printf("%-13s %s", "parameters", cli_count(t->n_weights, a));
    if (t->n_active != t->n_weights)
        printf(", %s per token (%" PRIu64 " of %" PRIu64 " experts)", cli_count(t->n_active, b),
               t->n_expert_used, t->n_expert);
    printf("\n%-13s %" PRIu64 " in %" PRIu64 " tensors\n%-13s %" PRIu64 "\n", "weight bytes",
           t->bytes, gguf_n_tensors(g), "keys", gguf_n_kv(g));
}

static void print_kv(const struct gguf *g)
{
    printf("\nmetadata\n");
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) {
        const struct gguf_kv *kv = gguf_kv_at(g, i);
        char type[48];
        bool array = kv->value.type == GGUF_ARRAY;
        (void)snprintf(type, sizeof type, array ? "%s[%" PRIu64 "]" : "%s",
                       gguf_type_name(kv->value.elem), kv->value.n);
        printf("  %-14s ", type);
        size_t w = escape_print(stdout, kv->key.s, (size_t)kv->key.n, 0);
        printf("%*s = ", w < NAME_WIDTH ? (int)(NAME_WIDTH - w) : 0, "");
        print_value(stdout, &kv->value);
        printf("\n");
    }
}

static void print_shape(const struct gguf_tensor *t, char buf[96])
{
    int n = 0;
    for (int i = 0; i < t->n_dims; i++)
        n += snprintf(buf + n, (size_t)(96 - n), "%s%" PRIu64, i ? " x " : "", t->dim[i]);
}

static void print_tensors(const struct gguf *g)
{
    bool split = gguf_n_shards(g) > 1;
    printf("\ntensors\n  %-*s %-8s %-22s %14s %16s%s\n", NAME_WIDTH, "name", "type", "shape",
           "bytes", "offset", split ? "  part" : "");
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char shape[96], type[24], bytes[24] = "?";
        print_shape(t, shape);
        if (t->bytes || qtype_in_files(t->type)) (void)snprintf(bytes, 24, "%" PRIu64, t->bytes);
        printf("  ");
        size_t w = escape_print(stdout, t->name.s, (size_t)t->name.n, 0);
        printf("%*s %-8s %-22s %14s %16" PRIu64, w < NAME_WIDTH ? (int)(NAME_WIDTH - w) : 0, "",
               type_name(t->type, type), shape, bytes, t->offset);
        if (split) printf("  %4d", t->shard + 1);
        printf("\n");
    }
}

static void print_types(const struct totals *t)
{
    printf("\n  %-10s %8s %16s %16s %6s\n", "type", "tensors", "weights", "bytes", "bits");
    for (int i = 0; i < t->n_types; i++) {
        const struct type_total *k = &t->type[i];
        char name[24];
        double bits = k->n_weights ? 8.0 * (double)k->bytes / (double)k->n_weights : 0;
        printf("  %-10s %8" PRIu64 " %16" PRIu64 " %16" PRIu64 " %6.2f%s\n",
               type_name(k->type, name), k->n_tensors, k->n_weights, k->bytes, bits,
               qtype_in_files(k->type) ? "" : "  not known to this version");
    }
    if (t->more_types) printf("  ... and more types\n");
    double bits = t->n_weights ? 8.0 * (double)t->bytes / (double)t->n_weights : 0;
    printf("  %-10s %8s %16" PRIu64 " %16" PRIu64 " %6.2f\n", "all", "", t->n_weights, t->bytes,
           bits);
}

/* ---- JSON ---- */

static void json_kv(const struct gguf *g)
{
    printf(",\n \"metadata\": {");
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) {
        const struct gguf_kv *kv = gguf_kv_at(g, i);
        printf("%s\n  ", i ? "," : "");
        escape_json(stdout, kv->key.s, (size_t)kv->key.n);
        printf(": ");
        json_value(stdout, &kv->value);
    }
    printf("}");
}

static void json_tensors(const struct gguf *g)
{
    printf(",\n \"tensors\": [");
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char type[24];
        printf("%s\n  {\"name\": ", i ? "," : "");
        escape_json(stdout, t->name.s, (size_t)t->name.n);
        printf(", \"type\": \"%s\", \"shape\": [", type_name(t->type, type));
        for (int d = 0; d < t->n_dims; d++) printf("%s%" PRIu64, d ? ", " : "", t->dim[d]);
        printf("], \"bytes\": %" PRIu64 ", \"offset\": %" PRIu64 ", \"part\": %d}", t->bytes,
               t->offset, t->shard + 1);
    }
    printf("]");
}

static void json_summary(const struct gguf *g, const struct totals *t)
{
    printf("{\"file\": ");
    escape_json(stdout, gguf_path(g, 0), strlen(gguf_path(g, 0)));
    printf(", \"version\": %" PRIu32 ", \"parts\": %d, \"file_bytes\": %" PRIu64
           ",\n \"parameters\": %" PRIu64 ", \"parameters_active\": %" PRIu64
           ", \"weight_bytes\": %" PRIu64 ",\n \"types\": [",
           gguf_version(g), gguf_n_shards(g), gguf_file_bytes(g), t->n_weights, t->n_active,
           t->bytes);
    for (int i = 0; i < t->n_types; i++) {
        char name[24];
        printf("%s{\"type\": \"%s\", \"tensors\": %" PRIu64 ", \"weights\": %" PRIu64
               ", \"bytes\": %" PRIu64 "}",
               i ? ", " : "", type_name(t->type[i].type, name), t->type[i].n_tensors,
               t->type[i].n_weights, t->type[i].bytes);
    }
    printf("]");
}

/* ---- the command ---- */

struct info_args {
    bool kv, tensors;
};

static void print_all(const struct gguf *g, const struct totals *t, struct info_args own, bool json)
{
    bool all = !own.kv && !own.tensors;
    if (json) {
        json_summary(g, t);
        if (all || own.kv) json_kv(g);
        if (all || own.tensors) json_tensors(g);
        printf("}\n");
        return;
    }
    if (all) print_summary(g, t);
    if (all || own.kv) print_kv(g);
    if (all || own.tensors) print_tensors(g);
    if (all) print_types(t);
}

int cmd_info(int argc, char **argv)
{
    struct info_args own = {0};
    static const struct cli_flag flags[] = {
        {"--kv", NULL, "only the metadata", CLI_TRUE, offsetof(struct info_args, kv), 0, 0},
        {"--tensors", NULL, "only the tensors", CLI_TRUE, offsetof(struct info_args, tensors), 0,
         0},
        {0}};
    struct cli_args a = cli_defaults();
    struct cli_spec spec = {.name = "info", .groups = CLI_JSON | CLI_MODEL, .own = flags,
                            .own_base = &own, .max_pos = 1, .model_pos = true};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    struct gguf *g;
    struct err err;
    struct totals t;
    err_clear(&err);
    if (gguf_open(a.model, NULL, &g, &err)) return cli_fail(&err);
    add_up(g, &t);
    print_all(g, &t, own, a.json);
    gguf_close(g);
    return CLI_OK;
}
