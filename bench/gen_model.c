/* gen_model OUT [options]: writes a GGUF model with random weights of any shape (bench/gen.h).
 * Only parses the command line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gen.h"
#include "moe/base/osfile.h"

static int usage(FILE *to)
{
    (void)fputs(
        "usage: gen_model OUT [options]     a GGUF model with random weights\n"
        "  --arch NAME      qwen3moe (default), olmoe, llama, mor, ouro, conceptmoe, ecdlm\n"
        "  --type TYPE      F32 F16 BF16 Q8_0 (default) Q4_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS\n"
        "                   MXFP4 IQ3_S IQ3_XXS IQ2_S IQ2_XS IQ2_XXS IQ1_S IQ1_M, or the mixture Q4_K_M\n"
        "  --layers N --embd N --heads N --kv-heads N --head-dim N --ff N (of one expert)\n"
        "  --experts N      0 = dense (llama, mor, ouro)\n"
        "  --router-spread N  of mor's and ouro's routers, in hundredths (default 0: all scores a half)\n"
        "  --repeats N      mor: recursions of the layers but the first and the last; ouro: loops\n"
        "  --encoder N --decoder N  conceptmoe: first and last layers (default 1); a concept begins\n"
        "                   wherever an odd id follows an even one or the other way round\n"
        "  --used N         experts per token\n"
        "  --rows-choose    ecdlm: tokens choose experts, not experts tokens\n"
        "  --ctx N          context length written to the file\n"
        "  --vocab FILE     copy this GGUF's tokenizer\n"
        "  --byte-vocab     a small tokenizer of its own: bytes, letters, ChatML\n"
        "  --chat TEXT      its chat template; an empty one = none\n"
        "  --n-vocab N      without a tokenizer: how many ids\n"
        "  --tied           no output matrix: the embedding serves as one\n"
        "  --trace FILE     qwen3moe whose routers replay this trace of `tessera trace` (or CSV):\n"
        "                   layers, experts and used are the trace's; tokens [0] [1] ... its rows\n"
        "  --name TEXT --seed N\n"
        "  --tiny           start from a few kilobytes instead of the 8-layer model\n",
        to);
    return to == stderr ? 2 : 0;
}

/* 0 .. 2^24 */
static bool parse_int(const char *s, int *out)
{
    char *end;
    long v = strtol(s, &end, 10);
    if (end == s || *end || v < 0 || v > 1 << 24) return false;
    *out = (int)v;
    return true;
}

static bool parse_type(const char *s, unsigned *out)
{
    const struct qtype_info *q = qtype_by_name(s);
    *out = q ? (unsigned)q->id : GEN_Q4_K_M;
    return q || !strcmp(s, "Q4_K_M");
}

/* One option with its value; false when either is wrong. */
static bool option(struct gen_spec *g, const char *name, const char *value)
{
    const struct { const char *name; int *to; } ints[] = {
        {"--layers", &g->n_layer}, {"--embd", &g->n_embd}, {"--heads", &g->n_head},
        {"--kv-heads", &g->n_head_kv}, {"--head-dim", &g->head_dim}, {"--ff", &g->n_ff},
        {"--experts", &g->n_expert}, {"--used", &g->n_expert_used}, {"--ctx", &g->n_ctx},
        {"--n-vocab", &g->n_vocab}, {"--repeats", &g->n_repeats},
        {"--encoder", &g->n_encoder}, {"--decoder", &g->n_decoder},
    };
    const struct { const char *name; const char **to; } texts[] = {
        {"--arch", &g->arch}, {"--vocab", &g->vocab}, {"--name", &g->name},
        {"--chat", &g->chat},
    };
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        if (!strcmp(name, ints[i].name)) return parse_int(value, ints[i].to);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(name, texts[i].name)) {
            *texts[i].to = value;
            return true;
        }
    if (!strcmp(name, "--type")) return parse_type(value, &g->type);
    int seed;
    if (!strcmp(name, "--router-spread") && parse_int(value, &seed)) {
        g->router_sigma = (float)seed / 100;
        return true;
    }
    if (strcmp(name, "--seed") || !parse_int(value, &seed)) return false;
    g->seed = (uint64_t)seed;
    return true;
}

int main(int argc, char **argv)
{
    struct gen_spec g = gen_defaults();
    const char *out = NULL;
    const char *arch = g.arch;
    const char *trace_path = NULL;
    struct trace *trace = NULL;
    struct err e;
    bool tiny = false;
    err_clear(&e);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help")) return usage(stdout);
        if (!strcmp(argv[i], "--tiny")) tiny = true;
        if (!strcmp(argv[i], "--arch") && i + 1 < argc) arch = argv[i + 1];
        if (!strcmp(argv[i], "--trace") && i + 1 < argc) trace_path = argv[i + 1];
    }
    if (tiny) g = gen_tiny(arch, QTYPE_F32); /* then the options change what they name */
    if (trace_path && trace_read(trace_path, NULL, &trace, &e)) {
        (void)fprintf(stderr, "gen_model: %s\n", e.msg);
        return 1;
    }
    if (trace) {
        g.trace = trace;
        g.n_layer = trace->n_layers;
        g.n_expert = trace->n_experts;
        g.n_expert_used = trace->n_used;
    }
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--tiny")) continue;
        if (!strcmp(argv[i], "--trace") && i + 1 < argc) {
            i++;
        } else if (!strcmp(argv[i], "--rows-choose")) {
            g.rows_choose = true;
        } else if (!strcmp(argv[i], "--tied")) {
            g.tied = true;
        } else if (!strcmp(argv[i], "--byte-vocab")) {
            g.byte_vocab = true;
        } else if (argv[i][0] != '-' && !out) {
            out = argv[i];
        } else if (i + 1 == argc || !option(&g, argv[i], argv[i + 1])) {
            (void)fprintf(stderr, "gen_model: bad option or value: %s\n", argv[i]);
            return usage(stderr);
        } else {
            i++;
        }
    }
    if (!out) return usage(stderr);
    bool fell_back = false;
    double t = os_seconds();
    enum status s = gen_write(&g, out, &fell_back, &e);
    trace_free(trace);
    if (s) {
        (void)fprintf(stderr, "gen_model: %s\n", e.msg);
        return s == ERR_USAGE ? 2 : 1;
    }
    if (fell_back)
        (void)fprintf(stderr, "gen_model: some matrices are Q8_0 or F16: their columns are no "
                              "multiple of the type's block\n");
    (void)fprintf(stderr, "gen_model: %s written in %.1f s\n", out, os_seconds() - t);
    return 0;
}
