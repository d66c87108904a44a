/* Recipes: every tensor of some thirty models gets the type that llama-quantize gives it
 * (tests/recipes/tables.txt, whose format tests/recipes/make.py describes), and what is wrong is
 * refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "quant/build/recipe.h"
#include "tests/ggufblob.h"
#include "tests/memfile.h"
#include "tests/shared.h"

enum { KINDS = 128, OVERRIDES = 8, TENSORS = 4096 };

struct kind {
    char name[80];
    uint32_t type;
    int n_dims;
    uint64_t dim[GGUF_DIMS];
    int first, last; /* layers; -1 = none */
};

struct model {
    char name[96];
    struct blob keys, head;
    uint64_t n_keys;
    struct kind kind[KINDS];
    int n_kinds;
    struct gguf *g; /* NULL until the first case */
    uint64_t n_tensors, n_checked;
};

/* A case: arguments, then what they give. */
struct order {
    char text[256];
    struct recipe_options o;
    struct recipe_override override[OVERRIDES];
    struct recipe_choice choice[TENSORS];
    bool seen[TENSORS];
};

static const struct { char letter; enum qtype type; } letters[] = {
    {'F', QTYPE_F32},  {'H', QTYPE_F16},    {'B', QTYPE_BF16},   {'8', QTYPE_Q8_0},
    {'6', QTYPE_Q6_K}, {'5', QTYPE_Q5_K},   {'4', QTYPE_Q4_K},   {'3', QTYPE_Q3_K},
    {'2', QTYPE_Q2_K}, {'a', QTYPE_Q4_0},   {'b', QTYPE_Q4_1},   {'c', QTYPE_Q5_0},
    {'d', QTYPE_Q5_1}, {'n', QTYPE_IQ4_NL}, {'x', QTYPE_IQ4_XS}, {'m', QTYPE_MXFP4},
};

static enum qtype type_of(char letter)
{
    for (size_t i = 0; i < sizeof letters / sizeof letters[0]; i++)
        if (letters[i].letter == letter) return letters[i].type;
    fail_msg("no type has the letter %c", letter);
    return QTYPE_F32;
}

/* ---- models ---- */

static void add_key(struct model *m, char *word)
{
    char *v = strchr(word, '=');
    assert_non_null(v);
    *v++ = 0;
    m->n_keys++;
    if (!strncmp(v, "s:", 2)) {
        blob_kv_str(&m->keys, word, v + 2);
    } else if (!strncmp(v, "f:", 2)) {
        const float f = strtof(v + 2, NULL);
        uint32_t bits;
        memcpy(&bits, &f, 4);
        blob_kv_int(&m->keys, word, GGUF_F32, bits);
    } else {
        blob_kv_int(&m->keys, word, GGUF_U32, strtoul(v, NULL, 10));
    }
}

static void add_kind(struct model *m, char *line)
{
    char type[16] = "", dims[64] = "", layers[32] = "-";
    assert_true(m->n_kinds < KINDS);
    struct kind *k = &m->kind[m->n_kinds++];
    *k = (struct kind){.first = -1, .last = -1};
    const int n = sscanf(line, "%79s %15s %63s %31s", k->name, type, dims, layers);
    if (n == 1) return; /* of a file */
    assert_int_equal(n, 4);
    k->type = (uint32_t)qtype_by_name(type)->id;
    for (char *p = dims; *p; p += *p == 'x') k->dim[k->n_dims++] = strtoul(p, &p, 10);
    if (*layers != '-') assert_int_equal(sscanf(layers, "%d-%d", &k->first, &k->last), 2);
}

/* "blk.*.x" in a layer. */
static void name_in(const struct kind *k, int layer, char out[96])
{
    if (layer < 0) (void)snprintf(out, 96, "%s", k->name);
    else (void)snprintf(out, 96, "blk.%d%s", layer, k->name + 5);
}

static void open_model(struct model *m)
{
    struct err e;
    struct blob tensors = {0};
    uint64_t n = 0, bytes = 0;
    err_clear(&e);
    if (m->g) return;
    if (!m->keys.n) { /* a file of tests/ */
        char path[128];
        (void)snprintf(path, sizeof path, "tests/%s", m->name);
        if (gguf_open(path, NULL, &m->g, &e)) fail_msg("%s", e.msg);
        m->n_tensors = gguf_n_tensors(m->g);
        return;
    }
    for (int i = 0; i < m->n_kinds; i++) {
        const struct kind *k = &m->kind[i];
        for (int l = k->first; l <= k->last; l++, n++) {
            char name[96];
            uint64_t all = 1;
            name_in(k, l, name);
            blob_str(&tensors, name);
            blob_u32(&tensors, (uint32_t)k->n_dims);
            for (int d = 0; d < k->n_dims; d++) {
                blob_u64(&tensors, k->dim[d]);
                all *= k->dim[d];
            }
            blob_u32(&tensors, k->type);
            blob_u64(&tensors, bytes);
            bytes = (bytes + qtype_bytes((enum qtype)k->type, all) + 31) / 32 * 32;
        }
    }
    blob_head(&m->head, 3, n, m->n_keys);
    blob_put(&m->head, m->keys.p, m->keys.n);
    blob_put(&m->head, tensors.p, tensors.n);
    blob_pad(&m->head, 32);
    blob_free(&tensors);
    memfile_reset();
    memfile_add("model", m->head.p, m->head.n, m->head.n + bytes);
    if (gguf_open("model", &memfile_ops, &m->g, &e)) fail_msg("%s: %s", m->name, e.msg);
    m->n_tensors = n;
}

static void close_model(struct model *m)
{
    if (m->n_checked)
        print_message("%s: %llu types\n", m->name, (unsigned long long)m->n_checked);
    gguf_close(m->g);
    blob_free(&m->keys);
    blob_free(&m->head);
    memset(m, 0, sizeof *m);
}

/* ---- cases ---- */

static int type_named(const char *name)
{
    const struct qtype_info *t = qtype_by_name(name);
    if (!t) fail_msg("no type is called %s", name);
    return (int)t->id;
}

/* Reads the arguments in place and chooses. */
static void start_case(struct order *q, struct model *m, char *args)
{
    struct err e;
    char *save = NULL;
    err_clear(&e);
    memset(q, 0, sizeof *q);
    (void)snprintf(q->text, sizeof q->text, "%s", args);
    q->o.embedding = q->o.output = RECIPE_TYPE_OPEN;
    q->o.override = q->override;
    for (char *w = strtok_r(args, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        if (!strcmp(w, "--pure")) q->o.pure = true;
        else if (!strcmp(w, "--leave-output-tensor")) q->o.leave_output = true;
        else if (*w != '-') q->o.recipe = recipe_by_name(w);
        else {
            char *v = strtok_r(NULL, " ", &save);
            assert_non_null(v);
            if (!strcmp(w, "--imatrix")) q->o.importance = true;
            else if (!strcmp(w, "--output-tensor-type")) q->o.output = type_named(v);
            else if (!strcmp(w, "--token-embedding-type")) q->o.embedding = type_named(v);
            else if (!strcmp(w, "--tensor-type")) {
                struct recipe_override *r = &q->override[q->o.n_override++];
                char *eq = strrchr(v, '=');
                assert_true(eq && q->o.n_override <= OVERRIDES);
                *eq = 0;
                for (char *p = v; *p; p++) *p = *p >= 'A' && *p <= 'Z' ? (char)(*p + 32) : *p;
                *r = (struct recipe_override){v, (enum qtype)type_named(eq + 1)};
            } else {
                fail_msg("argument %s", w);
            }
        }
    }
    assert_non_null(q->o.recipe);
    open_model(m);
    assert_true(m->n_tensors <= TENSORS);
    if (recipe_choose(&q->o, m->g, q->choice, &e)) fail_msg("%s, %s: %s", m->name, q->text, e.msg);
}

/* UINT64_MAX: there is none. */
static uint64_t index_of(const struct gguf *g, const char *name)
{
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    for (uint64_t i = 0; t && i < gguf_n_tensors(g); i++)
        if (gguf_tensor_at(g, i) == t) return i;
    return UINT64_MAX;
}

static void check_tensor(struct order *q, struct model *m, const char *name, enum qtype want)
{
    const uint64_t i = index_of(m->g, name);
    assert_true(i < m->n_tensors);
    const struct recipe_choice *c = &q->choice[i];
    if (c->type != want)
        fail_msg("%s, %s: %s becomes %s, not %s", m->name, q->text, name,
                 qtype_info((uint32_t)c->type)->name, qtype_info((uint32_t)want)->name);
    q->seen[i] = true;
    m->n_checked++;
}

/* "LETTERS N,N,..." */
static void check_row(struct order *q, struct model *m, char *line)
{
    char *list = strchr(line, ' ');
    assert_non_null(list);
    *list++ = 0;
    while (*list) {
        const struct kind *k = &m->kind[strtoul(list, &list, 10)];
        const char *l = line;
        assert_true(k < m->kind + m->n_kinds);
        list += *list == ',';
        char name[96];
        if (strncmp(k->name, "blk.*.", 6)) {
            check_tensor(q, m, k->name, type_of(*l));
            continue;
        }
        for (int layer = 0; layer < 128; layer++) {
            name_in(k, layer, name);
            if (index_of(m->g, name) == UINT64_MAX) continue;
            check_tensor(q, m, name, type_of(*l));
            if (l[1] != '*') l++;
        }
        assert_true(!*l || l[1] == '*');
    }
}

/* What the rows did not name has not changed. */
static void end_case(struct order *q, struct model *m)
{
    for (uint64_t i = 0; q->o.recipe && i < m->n_tensors; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(m->g, i);
        if (!q->seen[i] && (uint32_t)q->choice[i].type != t->type)
            fail_msg("%s, %s: %.*s becomes %s, but stays", m->name, q->text, (int)t->name.n,
                     t->name.s, qtype_info((uint32_t)q->choice[i].type)->name);
    }
    q->o.recipe = NULL;
}

static void test_tables(void **state)
{
    (void)state;
    size_t n;
    char *text = shared_slurp("tests/recipes/tables.txt", &n), *save = NULL;
    struct model *m = calloc(1, sizeof *m);
    struct order *q = calloc(1, sizeof *q);
    int n_models = 0, n_cases = 0;
    assert_true(text && m && q);
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *rest = strchr(line, ' '), *words = NULL;
        assert_non_null(rest);
        *rest++ = 0;
        if (strcmp(line, "r")) end_case(q, m);
        if (!strcmp(line, "model") || !strcmp(line, "file")) {
            close_model(m);
            n_models++;
            const char *name = strtok_r(rest, " ", &words);
            (void)snprintf(m->name, sizeof m->name, "%s", name);
            for (char *w = strtok_r(NULL, " ", &words); w; w = strtok_r(NULL, " ", &words))
                add_key(m, w);
        } else if (!strcmp(line, "t")) {
            add_kind(m, rest);
        } else if (!strcmp(line, "case")) {
            start_case(q, m, rest);
            n_cases++;
        } else if (!strcmp(line, "r")) {
            check_row(q, m, rest);
        }
    }
    end_case(q, m);
    close_model(m);
    assert_true(n_models > 30 && n_cases > 500);
    print_message("%d models, %d cases\n", n_models, n_cases);
    free(text);
    free(m);
    free(q);
}

/* ---- names and errors ---- */

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(recipe_by_name("q4_k")->name, "Q4_K_M");
    assert_string_equal(recipe_by_name("iq4_xs")->name, "IQ4_XS");
    assert_null(recipe_by_name("Q4"));
    assert_null(recipe_by_name(""));
    assert_null(recipe_at(-1));
    for (int i = 0; recipe_at(i); i++) {
        assert_ptr_equal(recipe_by_name(recipe_at(i)->name), recipe_at(i));
        assert_non_null(qtype_info((uint32_t)recipe_at(i)->base));
    }
}

static enum status choose(uint64_t layers, const char *pattern, struct err *e)
{
    struct blob b = {0};
    struct gguf *g;
    struct recipe_choice choice[1];
    const struct recipe_override override = {pattern, QTYPE_Q8_0};
    const struct recipe_options o = {
        .recipe = recipe_by_name("Q4_K_M"), .embedding = RECIPE_TYPE_OPEN,
        .output = RECIPE_TYPE_OPEN, .override = &override, .n_override = pattern ? 1 : 0};
    err_clear(e);
    blob_head(&b, 3, 1, 2);
    blob_kv_str(&b, "general.architecture", "llama");
    blob_kv_int(&b, "llama.block_count", GGUF_U64, layers);
    blob_tensor(&b, "a.weight", 8, 0, 0);
    blob_pad(&b, 32);
    blob_zeros(&b, 32);
    memfile_reset();
    memfile_add("model", b.p, b.n, b.n);
    assert_int_equal(gguf_open("model", &memfile_ops, &g, e), OK);
    const enum status s = recipe_choose(&o, g, choice, e);
    gguf_close(g);
    blob_free(&b);
    return s;
}

static void test_errors(void **state)
{
    (void)state;
    struct err e;
    assert_int_equal(choose(2, NULL, &e), OK);
    assert_int_equal(choose(2, "attn_(q|k", &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "attn_(q|k"));
    assert_int_equal(choose(UINT64_MAX, NULL, &e), ERR_FORMAT);
    assert_non_null(strstr(e.msg, "block_count"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
