/* Every pre-tokenizer against an independent engine: 10,000 random strings, cut by Python's module
 * regex (tests/split/make_splits.py, which also prints the words of one string), must have the same
 * ends of words here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "moe/base/rng.h"
#include "moe/load/tok_int.h"
#include "tests/shared.h"
#include "tests/tokvocab.h"

enum { N_STRINGS = 10000, BLOCK = 200, N_BLOCKS = N_STRINGS / BLOCK, ENTRIES = 4096, SETS = 32 };

static struct tv v;

/* ---- the strings ---- */

struct entry {
    char text[32];
    int n;
};

static struct entry entry[ENTRIES];
static int n_snippets, n_chars;

static int put_utf8(char *s, unsigned long c)
{
    const int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    if (n == 1) {
        s[0] = (char)c;
        return 1;
    }
    for (int i = n - 1; i > 0; i--, c >>= 6) s[i] = (char)(0x80 | (c & 0x3f));
    s[0] = (char)((0xf00 >> n & 0xff) | c);
    return n;
}

static void read_alphabet(void)
{
    size_t n;
    char *text = shared_slurp("tests/split/alphabet.txt", &n), *at = text;
    assert_non_null(text);
    n_snippets = (int)strtol(at, &at, 10);
    n_chars = (int)strtol(at, &at, 10);
    assert_true(n_snippets > 0 && n_chars > 1000 && n_snippets + n_chars <= ENTRIES);
    for (int i = 0; i < n_snippets + n_chars; i++) {
        at += strspn(at, "\n");
        char *s = entry[i].text;
        while (*at != '\n') s += put_utf8(s, strtoul(at, &at, 16));
        entry[i].n = (int)(s - entry[i].text);
    }
    free(text);
}

static char *put(char *s, const struct entry *e)
{
    memcpy(s, e->text, (size_t)e->n);
    return s + e->n;
}

/* make_splits.py does the same, draw for draw. */
static size_t next_string(struct rng *r, int *at, char *out)
{
    const struct entry *chars = entry + n_snippets;
    const uint32_t nc = (uint32_t)n_chars;
    char *s = out;
    for (uint32_t i = 1 + rng_below(r, 24); i > 0; i--) {
        const uint32_t kind = rng_below(r, 6);
        if (kind < 2) {
            *at = (int)rng_below(r, nc);
            for (uint32_t k = kind ? 1 + rng_below(r, 4) : 1; k > 0; k--) s = put(s, &chars[*at]);
        } else if (kind == 2) {
            for (uint32_t k = 1 + rng_below(r, 5); k > 0; k--) {
                *at = (*at + (int)rng_below(r, 4)) % n_chars;
                s = put(s, &chars[*at]);
            }
        } else if (kind == 3) {
            s = put(s, &entry[rng_below(r, (uint32_t)n_snippets)]);
        } else if (kind == 4) {
            *s++ = (char)(32 + rng_below(r, 95));
        } else {
            for (uint32_t k = 1 + rng_below(r, 6); k > 0; k--) {
                const uint32_t first = rng_below(r, 3) ? 97 : 65;
                *s++ = (char)(first + rng_below(r, 26));
            }
        }
    }
    return (size_t)(s - out);
}

/* ---- what the other engine says ---- */

struct set {
    char *names; /* separated by spaces */
    uint64_t hash[N_BLOCKS];
};

static int read_sets(struct set *set)
{
    size_t n;
    char *text = shared_slurp("tests/split/splits.txt", &n), *at = text;
    int n_sets = 0;
    assert_non_null(text);
    for (; *at; n_sets++) {
        char *end = strchr(at, '\n');
        assert_true(end && n_sets < SETS);
        *end = 0;
        set[n_sets].names = strdup(at);
        at = end + 1;
        for (int i = 0; i < N_BLOCKS; i++) set[n_sets].hash[i] = strtoull(at, &at, 16);
        at += strspn(at, "\n");
    }
    free(text);
    return n_sets;
}

static bool has_name(const struct set *s, const char *name)
{
    const size_t n = strlen(name);
    for (const char *p = s->names; (p = strstr(p, name)); p += n)
        if ((p == s->names || p[-1] == ' ') && (!p[n] || p[n] == ' ')) return true;
    return false;
}

/* ---- the comparison ---- */

static uint64_t fnv(uint64_t h, uint32_t v32)
{
    for (int i = 0; i < 4; i++) h = (h ^ (v32 >> 8 * i & 0xff)) * UINT64_C(0x100000001b3);
    return h;
}

static uint64_t add_ends(const struct tok *t, const char *s, size_t n, uint64_t h)
{
    struct enc e;
    struct cutter k;
    size_t from, to, last = 0;
    enc_begin(&e, t, 0, NULL, 0);
    cutter_begin(&k, &e, s, n);
    while (cutter_next(&k, &from, &to)) {
        assert_true(from == last && to > from);
        h = fnv(h, (uint32_t)to);
        last = to;
    }
    assert_int_equal(last, n);
    assert_int_equal(enc_end(&e), 0);
    return fnv(h, UINT32_MAX);
}

static struct tok *open_pre(const char *name)
{
    struct err e;
    struct tok *t;
    tv_bpe(&v);
    v.pre = name;
    if (tv_open(&v, &t, &e)) fail_msg("%s", e.msg);
    return t;
}

/* Blocks in which the words end elsewhere. */
static int compare(const char *name, const uint64_t *want)
{
    static char s[1 << 14];
    struct tok *t = open_pre(name);
    struct rng r;
    int at = 0, bad = 0;
    rng_seed(&r, 2026);
    for (int i = 0; i < N_BLOCKS; i++) {
        uint64_t h = UINT64_C(0xcbf29ce484222325);
        for (int k = 0; k < BLOCK; k++) {
            const size_t n = next_string(&r, &at, s);
            h = add_ends(t, s, n, h);
        }
        if (h != want[i] && !bad++)
            printf("%s: a string of %d to %d is cut differently\n", name, i * BLOCK,
                   i * BLOCK + BLOCK - 1);
    }
    tok_close(t);
    return bad;
}

static bool same_expressions(const char *a, const char *b)
{
    const struct pre *x = pre_find(a, strlen(a)), *y = pre_find(b, strlen(b));
    for (int i = 0; i <= PRE_EXPRS; i++) {
        if (!x->expr[i] || !y->expr[i]) return x->expr[i] == y->expr[i];
        if (strcmp(x->expr[i], y->expr[i])) return false;
    }
    return true;
}

static void test_splits(void **state)
{
    (void)state;
    static struct set set[SETS];
    const char *first[SETS] = {NULL};
    const int n_sets = read_sets(set);
    int bad = 0, names = 0;
    read_alphabet();
    for (; tok_pre_at(names); names++) {
        const char *name = tok_pre_at(names);
        int k = 0;
        while (k < n_sets && !has_name(&set[k], name)) k++;
        if (k == n_sets) fail_msg("%s is not in tests/split/splits.txt", name);
        if (first[k] && same_expressions(first[k], name)) continue;
        bad += compare(name, set[k].hash);
        first[k] = name;
    }
    assert_int_equal(bad, 0);
    /* The strings tell every two sets apart, so that a wrong expression would be seen, but for one
     * pair that means the same: Ling's \s*[\r\n] takes as much as Qwen's \s*[\r\n]+. */
    int same = 0;
    for (int i = 0; i < n_sets; i++)
        for (int k = 0; k < i; k++)
            same += !memcmp(set[i].hash, set[k].hash, sizeof set[i].hash);
    assert_int_equal(same, 1);
    printf("[  NOTE    ] %d pre-tokenizers, %d sets of expressions, %d strings: as cut by another "
           "engine\n", names, n_sets, N_STRINGS);
    for (int i = 0; i < n_sets; i++) free(set[i].names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_splits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
