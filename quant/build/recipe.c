/* See recipe.h.
 *
 * DESIGN.  A tensor has a role, read off its name.  A rule says: in this recipe, for this role,
 * under this condition, that type; the first rule that applies decides, none means the recipe's
 * base type.  Conditions look at the model (experts, heads per KV head) and at how deep the tensor
 * lies.  Tensors are visited layer by layer and by name within a layer, because some conditions
 * count those of a role that came before; tensors whose type the user gave are not counted.
 *
 * What falls outside the table: the output matrix (and the embedding where it is the output
 * matrix too), MXFP4_MOE, which looks at shapes only, and fallbacks. */
#include "quant/build/recipe.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- the recipes ---- */

enum { /* general.file_type */
    AS_F32 = 0, AS_F16 = 1, AS_Q4_0 = 2, AS_Q4_1 = 3, AS_Q8_0 = 7, AS_Q5_0 = 8, AS_Q5_1 = 9,
    AS_Q2_K = 10, AS_Q3_K_S = 11, AS_Q3_K_M = 12, AS_Q3_K_L = 13, AS_Q4_K_S = 14, AS_Q4_K_M = 15,
    AS_Q5_K_S = 16, AS_Q5_K_M = 17, AS_Q6_K = 18, AS_Q2_K_S = 21, AS_IQ4_NL = 25, AS_IQ4_XS = 30,
    AS_BF16 = 32, AS_MXFP4_MOE = 38, ANY = 1000
};

static const struct recipe recipes[] = {
    {"F32", AS_F32, QTYPE_F32, "32 bits"},
    {"F16", AS_F16, QTYPE_F16, "16 bits"},
    {"BF16", AS_BF16, QTYPE_BF16, "16 bits"},
    {"Q8_0", AS_Q8_0, QTYPE_Q8_0, "8.5 bits, next to no loss"},
    {"Q6_K", AS_Q6_K, QTYPE_Q6_K, "6.6 bits"},
    {"Q5_K_M", AS_Q5_K_M, QTYPE_Q5_K, "5.5 bits, Q6_K where it matters"},
    {"Q5_K_S", AS_Q5_K_S, QTYPE_Q5_K, "5.5 bits"},
    {"Q5_1", AS_Q5_1, QTYPE_Q5_1, "6 bits, older"},
    {"Q5_0", AS_Q5_0, QTYPE_Q5_0, "5.5 bits, older"},
    {"Q4_K_M", AS_Q4_K_M, QTYPE_Q4_K, "4.5 bits, Q6_K where it matters; the usual choice"},
    {"Q4_K_S", AS_Q4_K_S, QTYPE_Q4_K, "4.5 bits, Q5_K in a few places"},
    {"IQ4_NL", AS_IQ4_NL, QTYPE_IQ4_NL, "4.5 bits on an uneven grid"},
    {"IQ4_XS", AS_IQ4_XS, QTYPE_IQ4_XS, "4.25 bits on an uneven grid"},
    {"MXFP4_MOE", AS_MXFP4_MOE, QTYPE_MXFP4, "4.25 bits for experts, Q8_0 for the rest"},
    {"Q4_1", AS_Q4_1, QTYPE_Q4_1, "5 bits, older"},
    {"Q4_0", AS_Q4_0, QTYPE_Q4_0, "4.5 bits, older"},
    {"Q3_K_L", AS_Q3_K_L, QTYPE_Q3_K, "3.4 bits, Q5_K where it matters"},
    {"Q3_K_M", AS_Q3_K_M, QTYPE_Q3_K, "3.4 bits, Q4_K where it matters"},
    {"Q3_K_S", AS_Q3_K_S, QTYPE_Q3_K, "3.4 bits"},
    {"Q2_K", AS_Q2_K, QTYPE_Q2_K, "2.6 bits, Q3_K where it matters"},
    {"Q2_K_S", AS_Q2_K_S, QTYPE_Q2_K, "2.6 bits; wants an importance matrix"},
};
enum { N_RECIPES = sizeof recipes / sizeof recipes[0] };

const struct recipe *recipe_at(int i) { return i >= 0 && i < N_RECIPES ? &recipes[i] : NULL; }

const struct recipe *recipe_by_name(const char *name)
{
    static const char *const alias[][2] = {
        {"Q3_K", "Q3_K_M"}, {"Q4_K", "Q4_K_M"}, {"Q5_K", "Q5_K_M"}};
    for (size_t i = 0; i < sizeof alias / sizeof alias[0]; i++)
        if (!strcasecmp(name, alias[i][0])) name = alias[i][1];
    for (int i = 0; i < N_RECIPES; i++)
        if (!strcasecmp(name, recipes[i].name)) return &recipes[i];
    return NULL;
}

/* ---- the rules ---- */

enum role { ROLE_OTHER, ROLE_OUTPUT, ROLE_EMBED, ROLE_V, ROLE_K, ROLE_O, ROLE_DOWN, ROLE_N };

enum when {
    ALWAYS,
    EIGHT_EXPERTS,     /* the model has exactly eight: its attention is small beside them */
    GROUPED,           /* four or more heads share a KV head */
    FIRST_TWO, FIRST_FOUR,         /* tensors of the role */
    FIRST_EIGHTH, FIRST_SIXTEENTH, /* layers */
    SPREAD,            /* the first and the last eighth, and every third between them */
    EIGHTH_PLAIN, EIGHTH_WEIGHED,  /* FIRST_EIGHTH without, with an importance matrix */
};

struct rule {
    uint32_t recipe; /* AS_..., or ANY */
    enum role role;
    enum when when;
    enum qtype type;
};

static const struct rule rules[] = {
    {ANY, ROLE_V, EIGHT_EXPERTS, QTYPE_Q8_0},
    {AS_Q2_K, ROLE_V, GROUPED, QTYPE_Q4_K},
    {AS_Q2_K, ROLE_V, ALWAYS, QTYPE_Q3_K},
    {AS_Q2_K_S, ROLE_V, GROUPED, QTYPE_Q4_K},
    {AS_Q3_K_M, ROLE_V, FIRST_TWO, QTYPE_Q5_K},
    {AS_Q3_K_M, ROLE_V, ALWAYS, QTYPE_Q4_K},
    {AS_Q3_K_L, ROLE_V, ALWAYS, QTYPE_Q5_K},
    {AS_Q4_K_S, ROLE_V, FIRST_FOUR, QTYPE_Q5_K},
    {AS_Q4_K_M, ROLE_V, SPREAD, QTYPE_Q6_K},
    {AS_Q5_K_M, ROLE_V, SPREAD, QTYPE_Q6_K},
    {AS_IQ4_NL, ROLE_V, GROUPED, QTYPE_Q5_K},
    {AS_IQ4_XS, ROLE_V, GROUPED, QTYPE_Q5_K},

    {ANY, ROLE_K, EIGHT_EXPERTS, QTYPE_Q8_0},

    {AS_Q2_K, ROLE_O, EIGHT_EXPERTS, QTYPE_Q5_K},
    {AS_Q3_K_S, ROLE_O, EIGHT_EXPERTS, QTYPE_Q5_K},
    {AS_Q3_K_M, ROLE_O, EIGHT_EXPERTS, QTYPE_Q5_K},
    {AS_Q4_K_S, ROLE_O, EIGHT_EXPERTS, QTYPE_Q5_K},
    {AS_Q4_K_M, ROLE_O, EIGHT_EXPERTS, QTYPE_Q5_K},
    {AS_IQ4_NL, ROLE_O, EIGHT_EXPERTS, QTYPE_Q5_K},
    {AS_IQ4_XS, ROLE_O, EIGHT_EXPERTS, QTYPE_Q5_K},
    {AS_Q3_K_L, ROLE_O, EIGHT_EXPERTS, QTYPE_Q3_K},
    {AS_Q2_K, ROLE_O, ALWAYS, QTYPE_Q3_K},
    {AS_Q3_K_M, ROLE_O, ALWAYS, QTYPE_Q4_K},
    {AS_Q3_K_L, ROLE_O, ALWAYS, QTYPE_Q5_K},

    {AS_Q2_K, ROLE_DOWN, ALWAYS, QTYPE_Q3_K},
    {AS_Q2_K_S, ROLE_DOWN, FIRST_EIGHTH, QTYPE_Q4_K},
    {AS_Q3_K_M, ROLE_DOWN, FIRST_SIXTEENTH, QTYPE_Q5_K},
    {AS_Q3_K_M, ROLE_DOWN, ALWAYS, QTYPE_Q4_K},
    {AS_Q3_K_L, ROLE_DOWN, ALWAYS, QTYPE_Q5_K},
    {AS_Q4_K_S, ROLE_DOWN, FIRST_EIGHTH, QTYPE_Q5_K},
    {AS_Q4_K_M, ROLE_DOWN, SPREAD, QTYPE_Q6_K},
    {AS_Q5_K_M, ROLE_DOWN, SPREAD, QTYPE_Q6_K},
    {AS_IQ4_NL, ROLE_DOWN, EIGHTH_PLAIN, QTYPE_Q5_K},
    {AS_IQ4_XS, ROLE_DOWN, EIGHTH_PLAIN, QTYPE_Q5_K},
    {AS_Q4_0, ROLE_DOWN, EIGHTH_WEIGHED, QTYPE_Q4_1},
    {AS_Q5_0, ROLE_DOWN, EIGHTH_WEIGHED, QTYPE_Q5_1},
};

/* Blocks of the type on the left do not divide the columns: the type on the right may. */
static const enum qtype fallbacks[][2] = {
    {QTYPE_IQ4_XS, QTYPE_IQ4_NL}, {QTYPE_Q2_K, QTYPE_Q4_0}, {QTYPE_Q3_K, QTYPE_Q4_0},
    {QTYPE_Q4_K, QTYPE_Q5_0},     {QTYPE_Q5_K, QTYPE_Q5_1}, {QTYPE_Q6_K, QTYPE_Q8_0},
};

/* ---- names ---- */

static bool has(struct gguf_str s, const char *part)
{
    const size_t n = strlen(part);
    for (uint64_t i = 0; i + n <= s.n; i++)
        if (!memcmp(s.s + i, part, n)) return true;
    return false;
}

/* Dimensions without the trailing ones. */
static int real_dims(const struct gguf_tensor *t)
{
    int n = GGUF_DIMS;
    while (n > 1 && t->dim[n - 1] == 1) n--;
    return n;
}

/* Matrices that are multiplied by activations, less those that are small or decide much. */
static bool is_matrix(const struct gguf_tensor *t)
{
    static const char *const stay[] = {
        "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
        "exit_gate.weight", ".router.weight", ".aux.weight", "router_q.weight", "router_k.weight",
        "res_proj.weight",
        "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
        "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight",
        "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight",
        "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight",
        "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight",
        "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight",
        ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
        ".patch_merger", "a.rvq.codebook", "mm.a.code_embd"};
    const struct gguf_str s = t->name;
    if (real_dims(t) < 2 || s.n < 6 || memcmp(s.s + s.n - 6, "weight", 6)) return false;
    if (gguf_str_is(s, "position_embd.weight") || gguf_str_is(s, "token_types.weight"))
        return false;
    for (size_t i = 0; i < sizeof stay / sizeof stay[0]; i++)
        if (has(s, stay[i])) return false;
    return true;
}

static enum role role_of(struct gguf_str s)
{
    static const struct { const char *part; enum role role; } parts[] = {
        {"attn_qkv.weight", ROLE_V}, {"attn_kv_b.weight", ROLE_V}, {"attn_v.weight", ROLE_V},
        {"attn_k.weight", ROLE_K}, {"attn_output.weight", ROLE_O}, {"ffn_down", ROLE_DOWN}};
    if (gguf_str_is(s, "output.weight")) return ROLE_OUTPUT;
    if (gguf_str_is(s, "token_embd.weight") || gguf_str_is(s, "per_layer_token_embd.weight"))
        return ROLE_EMBED;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (has(s, parts[i].part)) return parts[i].role;
    return ROLE_OTHER;
}

/* N of "blk.N.", -1 outside the layers. */
static int layer_of(struct gguf_str s)
{
    int n = 0;
    if (s.n < 5 || memcmp(s.s, "blk.", 4) || !isdigit((unsigned char)s.s[4])) return -1;
    for (uint64_t i = 4; i < s.n && isdigit((unsigned char)s.s[i]) && n < 100000; i++)
        n = 10 * n + (s.s[i] - '0');
    return n;
}

/* ---- choosing ---- */

struct chooser {
    const struct recipe_options *o;
    const struct gguf *in;
    pcre2_code **pattern; /* [o->n_override] */
    pcre2_match_data *match;
    int n_layers, n_experts, heads_per_kv;
    bool tied;                 /* the embedding is the output matrix as well */
    bool large_llama;          /* of the shape of a Llama with 70 B */
    int n_v;                   /* tensors of ROLE_V */
    int seen[ROLE_N];          /* tensors of a role that came before */
};

static enum status model_int(const struct gguf *in, struct gguf_str arch, const char *key,
                             uint64_t otherwise, int *out, struct err *e)
{
    char full[128];
    uint64_t v = otherwise;
    (void)snprintf(full, sizeof full, "%.*s.%s", (int)(arch.n < 64 ? arch.n : 64), arch.s, key);
    const struct gguf_kv *kv = gguf_find(in, full);
    enum status s = OK;
    if (kv && kv->value.type == GGUF_ARRAY) { /* one per layer: the first speaks for all */
        if (kv->value.elem == GGUF_STRING || !kv->value.n)
            return err_set_at(e, ERR_FORMAT, kv->pos, "%s: %s holds no numbers", gguf_path(in, 0),
                              full);
        v = gguf_elem_u64(&kv->value, 0);
    } else {
        s = gguf_get_u64_or(in, full, otherwise, &v, e);
    }
    if (!s && v > 100000)
        return err_set(e, ERR_FORMAT, "%s: %s is %llu, which makes no sense", gguf_path(in, 0),
                       full, (unsigned long long)v);
    *out = (int)v;
    return s;
}

static enum status read_model(struct chooser *c, struct err *e)
{
    struct gguf_str arch;
    int heads, kv_heads;
    enum status s;
    if ((s = gguf_get_str(c->in, "general.architecture", &arch, e)) ||
        (s = model_int(c->in, arch, "block_count", 0, &c->n_layers, e)) ||
        (s = model_int(c->in, arch, "expert_count", 0, &c->n_experts, e)) ||
        (s = model_int(c->in, arch, "attention.head_count", 0, &heads, e)) ||
        (s = model_int(c->in, arch, "attention.head_count_kv", (uint64_t)heads, &kv_heads, e)))
        return s;
    c->heads_per_kv = kv_heads ? heads / kv_heads : 0;
    c->large_llama = c->n_layers == 80 && ((gguf_str_is(arch, "llama") && heads != kv_heads) ||
                                           gguf_str_is(arch, "qwen2"));
    c->tied = true;
    for (uint64_t i = 0; i < gguf_n_tensors(c->in); i++) {
        const enum role role = role_of(gguf_tensor_at(c->in, i)->name);
        c->n_v += role == ROLE_V;
        if (role == ROLE_OUTPUT) c->tied = false;
    }
    return OK;
}

static bool spread(int i, int n)
{
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

static bool applies(const struct chooser *c, enum when when, enum role role, int layer)
{
    /* V counts its tensors; the others their layers, by name where there are experts. */
    const bool v = role == ROLE_V;
    const int i = v || c->n_experts <= 1 ? c->seen[role] : layer;
    const int n = v ? c->n_v : c->n_layers;
    switch (when) {
    case ALWAYS: return true;
    case EIGHT_EXPERTS: return c->n_experts == 8;
    case GROUPED: return c->heads_per_kv >= 4;
    case FIRST_TWO: return i < 2;
    case FIRST_FOUR: return i < 4;
    case FIRST_EIGHTH: return i < n / 8;
    case FIRST_SIXTEENTH: return i < n / 16;
    case SPREAD: return spread(i, n);
    case EIGHTH_PLAIN: return !c->o->importance && i < n / 8;
    case EIGHTH_WEIGHED: return c->o->importance && i < n / 8;
    }
    return false;
}

static enum qtype by_rules(const struct chooser *c, enum role role, int layer)
{
    const struct recipe *r = c->o->recipe;
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        const struct rule *q = &rules[i];
        if ((q->recipe == r->file_type || q->recipe == ANY) && q->role == role &&
            applies(c, q->when, role, layer))
            return q->type;
    }
    return r->base;
}

/* The output matrix, or the embedding that is one too. */
static enum qtype of_output(const struct chooser *c, const struct gguf_tensor *t)
{
    const enum qtype base = c->o->recipe->base;
    if (c->o->output != RECIPE_TYPE_OPEN) return (enum qtype)c->o->output;
    if (base == QTYPE_MXFP4 || base == QTYPE_Q8_0 ||
        t->dim[0] % (uint64_t)qtype_info((uint32_t)base)->block)
        return QTYPE_Q8_0;
    return QTYPE_Q6_K;
}

static enum qtype by_recipe(struct chooser *c, const struct gguf_tensor *t)
{
    const enum role role = role_of(t->name);
    if (role == ROLE_OUTPUT || (role == ROLE_EMBED && c->tied)) return of_output(c, t);
    if (c->o->recipe->file_type == AS_MXFP4_MOE) return t->dim[2] > 1 ? QTYPE_MXFP4 : QTYPE_Q8_0;
    enum qtype type = by_rules(c, role, layer_of(t->name));
    if (role == ROLE_V && c->large_llama && (type == QTYPE_Q3_K || type == QTYPE_Q4_K))
        type = QTYPE_Q5_K;
    c->seen[role]++;
    return type;
}

/* The type that the user gave for this tensor, or RECIPE_TYPE_OPEN.  Patterns are exceptions from
 * quantising: F32, F16 and BF16 know none. */
static int by_user(const struct chooser *c, struct gguf_str name, bool quantised)
{
    const struct recipe_options *o = c->o;
    const enum role role = role_of(name);
    if (role == ROLE_EMBED && o->embedding != RECIPE_TYPE_OPEN) return o->embedding;
    if (role == ROLE_OUTPUT && o->output != RECIPE_TYPE_OPEN) return o->output;
    for (int i = 0; i < o->n_override && quantised; i++)
        if (pcre2_match(c->pattern[i], (PCRE2_SPTR)name.s, name.n, 0, 0, c->match, NULL) >= 0)
            return (int)o->override[i].type;
    return RECIPE_TYPE_OPEN;
}

static enum qtype fitting(enum qtype want, uint64_t n_cols)
{
    if (n_cols % (uint64_t)qtype_info((uint32_t)want)->block == 0) return want;
    for (size_t i = 0; i < sizeof fallbacks / sizeof fallbacks[0]; i++)
        if (fallbacks[i][0] == want && n_cols % 32 == 0) return fallbacks[i][1];
    return QTYPE_F16;
}

static void choose(struct chooser *c, const struct gguf_tensor *t, struct recipe_choice *q)
{
    const enum qtype base = c->o->recipe->base;
    *q = (struct recipe_choice){.type = (enum qtype)t->type, .kept = true};
    if (!is_matrix(t) || (c->o->leave_output && gguf_str_is(t->name, "output.weight"))) return;
    const bool quantised = qtype_info((uint32_t)base)->block > 1;
    int type = by_user(c, t->name, quantised);
    if (type == RECIPE_TYPE_OPEN)
        type = (int)(quantised && !c->o->pure ? by_recipe(c, t) : base);
    q->kept = false;
    q->type = fitting((enum qtype)type, t->dim[0]);
    q->fallback = (int)q->type != type;
}

/* ---- the order of visits ---- */

struct visit {
    const struct gguf_tensor *t;
    uint64_t i;
    int layer;
};

static int by_layer_and_name(const void *a, const void *b)
{
    const struct visit *x = a, *y = b;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    const struct gguf_str s = x->t->name, t = y->t->name;
    const int d = memcmp(s.s, t.s, s.n < t.n ? s.n : t.n);
    return d ? d : (s.n > t.n) - (s.n < t.n);
}

static enum status compile(struct chooser *c, struct err *e)
{
    const struct recipe_options *o = c->o;
    c->match = pcre2_match_data_create(1, NULL);
    c->pattern = calloc((size_t)o->n_override + 1, sizeof *c->pattern);
    if (!c->match || !c->pattern) return err_set(e, ERR_MEMORY, "no memory for the patterns");
    for (int i = 0; i < o->n_override; i++) {
        int why;
        PCRE2_SIZE at;
        PCRE2_UCHAR text[120];
        c->pattern[i] = pcre2_compile((PCRE2_SPTR)o->override[i].pattern, PCRE2_ZERO_TERMINATED, 0,
                                      &why, &at, NULL);
        if (c->pattern[i]) continue;
        (void)pcre2_get_error_message(why, text, sizeof text);
        return err_set(e, ERR_USAGE, "'%.80s' is no regular expression: %s (character %zu)",
                       o->override[i].pattern, (const char *)text, (size_t)at);
    }
    return OK;
}

static void free_patterns(struct chooser *c)
{
    for (int i = 0; c->pattern && i < c->o->n_override; i++) pcre2_code_free(c->pattern[i]);
    free(c->pattern);
    pcre2_match_data_free(c->match);
}

enum status recipe_check(const struct recipe_options *o, struct err *e)
{
    struct chooser c = {.o = o};
    const enum status s = compile(&c, e);
    free_patterns(&c);
    return s;
}

enum status recipe_choose(const struct recipe_options *o, const struct gguf *in,
                          struct recipe_choice *choice, struct err *e)
{
    struct chooser c = {.o = o, .in = in};
    const uint64_t n = gguf_n_tensors(in);
    struct visit *order = calloc((size_t)n + 1, sizeof *order);
    enum status s = order ? OK : err_set(e, ERR_MEMORY, "no memory for the list of tensors");
    if (!s) s = compile(&c, e);
    if (!s) s = read_model(&c, e);
    for (uint64_t i = 0; i < n && !s; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(in, i);
        order[i] = (struct visit){t, i, layer_of(t->name)};
    }
    if (!s) {
        qsort(order, (size_t)n, sizeof *order, by_layer_and_name);
        for (uint64_t i = 0; i < n; i++) choose(&c, order[i].t, &choice[order[i].i]);
    }
    free_patterns(&c);
    free(order);
    return s;
}
