/* Tests of the tokenizers: golden texts of real vocabularies (when ../shared or TESSERA_SHARED is
 * there), round trips, the merge loop against a quadratic one, special tokens, flags, pieces,
 * malformed vocabularies, long words, threads.  Vocabularies are read from memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <time.h>

#include "moe/base/rng.h"
#include "moe/load/tok_int.h"
#include "tests/shared.h"
#include "tests/tokvocab.h"

static struct tv v; /* large: not for the stack */

static struct tok *open_tv(void)
{
    struct err e;
    struct tok *t;
    if (tv_open(&v, &t, &e)) fail_msg("%s", e.msg);
    return t;
}

static struct tok *open_shared(const char *name)
{
    char path[512];
    struct err e;
    struct gguf *g;
    struct tok *t;
    if (!shared_file(path, sizeof path, name)) return NULL;
    err_clear(&e);
    if (gguf_open(path, NULL, &g, &e) || tok_open(g, &t, &e)) fail_msg("%s", e.msg);
    gguf_close(g); /* the tokenizer needs it no more */
    return t;
}

/* Encodes and checks that sizing, a short buffer and a full one agree.  Caller frees. */
static int32_t *encode(const struct tok *t, const char *s, size_t n, unsigned flags, int64_t *n_ids)
{
    int64_t want = tok_encode(t, s, n, flags, NULL, 0);
    assert_true(want >= 0);
    int32_t *ids = malloc((size_t)want * sizeof *ids + 8);
    int32_t *few = malloc((size_t)want * sizeof *few + 8);
    assert_true(ids && few);
    memset(few, 0x55, (size_t)want * sizeof *few + 8);
    assert_int_equal(tok_encode(t, s, n, flags, ids, want), want);
    assert_int_equal(tok_encode(t, s, n, flags, few, want / 2), want);
    assert_memory_equal(ids, few, (size_t)(want / 2) * sizeof *ids);
    assert_int_equal(few[want / 2], 0x55555555);
    free(few);
    *n_ids = want;
    return ids;
}

/* The pieces of ids joined; caller frees. */
static char *decode(const struct tok *t, const int32_t *ids, int64_t n_ids, bool special, size_t *n)
{
    static char piece[TOK_PIECE_MAX];
    char *text = NULL;
    *n = 0;
    for (int64_t i = 0; i < n_ids; i++) {
        int len = tok_piece(t, ids[i], special, piece, sizeof piece);
        text = realloc(text, *n + (size_t)len + 1);
        assert_non_null(text);
        memcpy(text + *n, piece, (size_t)len);
        *n += (size_t)len;
    }
    return text;
}

static void check_ids(const struct tok *t, const char *text, unsigned flags, const int32_t *want,
                      int n_want)
{
    int64_t n;
    int32_t *ids = encode(t, text, strlen(text), flags, &n);
    if (n != n_want || (n && memcmp(ids, want, (size_t)n * sizeof *ids) != 0)) {
        printf("\"%s\":", text);
        for (int64_t i = 0; i < n; i++) printf(" %d", ids[i]);
        printf("\n");
        fail_msg("other ids than expected");
    }
    free(ids);
}
#define IDS(t, text, flags, ...)                                                             \
    do {                                                                                     \
        const int32_t want_[] = {__VA_ARGS__};                                               \
        check_ids(t, text, flags, want_, (int)(sizeof want_ / sizeof *want_));               \
    } while (0)
#define ID(text) tv_id(&v, text)

/* ---- golden texts ---- */

static int check_golden_text(const struct tok *t, const char *text, size_t n, const char *line)
{
    int64_t n_ids, i = 0;
    int32_t *ids = encode(t, text, n, 0, &n_ids);
    for (char *end; i <= n_ids; i++, line = end) {
        long want = strtol(line, &end, 10);
        if (end == line || i == n_ids || ids[i] != want) break;
    }
    while (*line == ' ') line++;
    int bad = i != n_ids || (*line && *line != '\n');
    if (bad) printf("differs from id %d on: \"%.*s\"\n", (int)i, (int)n, text);
    free(ids);
    return bad;
}

/* Texts and ids as files hold them. */
static void check_golden(const struct tok *t, const char *name, char *in, char *out)
{
    static const char cut[] = "\n__ggml_vocab_test__\n";
    assert_true(in && out);
    int texts = 0, bad = 0;
    const char *line = out;
    for (char *p = in, *q; (q = strstr(p, cut)); p = q + strlen(cut), texts++) {
        bad += check_golden_text(t, p, (size_t)(q - p), line);
        line = strchr(line, '\n');
        line = line ? line + 1 : "";
    }
    printf("%s: %d of %d texts as expected\n", name, texts - bad, texts);
    assert_int_equal(bad, 0);
    assert_true(texts > 40);
    free(in);
    free(out);
}

static void golden(const char *name)
{
    char path[512], rel[256];
    snprintf(rel, sizeof rel, "reference/tokenizers/ggml-vocab-%s.gguf", name);
    struct tok *t = open_shared(rel);
    if (!t) skip();
    size_t n;
    snprintf(rel, sizeof rel, "reference/tokenizers/ggml-vocab-%s.gguf.inp", name);
    char *in = shared_file(path, sizeof path, rel) ? shared_slurp(path, &n) : NULL;
    snprintf(rel, sizeof rel, "reference/tokenizers/ggml-vocab-%s.gguf.out", name);
    char *out = shared_file(path, sizeof path, rel) ? shared_slurp(path, &n) : NULL;
    check_golden(t, name, in, out);
    tok_close(t);
}

static void test_golden_gpt2(void **state) { (void)state; golden("gpt-2"); }
static void test_golden_qwen2(void **state) { (void)state; golden("qwen2"); }
static void test_golden_llama(void **state) { (void)state; golden("llama-spm"); }
static void test_golden_phi3(void **state) { (void)state; golden("phi-3"); }
static void test_golden_deepseek(void **state) { (void)state; golden("deepseek-llm"); }
static void test_golden_o200k(void **state) { (void)state; golden("o200k"); }

/* A vocabulary of our own; the ids are those of the library `tokenizers`. */
static void test_golden_gemma4(void **state)
{
    (void)state;
    struct err e;
    struct gguf *g;
    struct tok *t;
    size_t n;
    err_clear(&e);
    if (gguf_open("tests/tokenizers/gemma4.gguf", NULL, &g, &e) || tok_open(g, &t, &e))
        fail_msg("%s", e.msg);
    gguf_close(g);
    check_golden(t, "gemma4", shared_slurp("tests/tokenizers/gemma4.inp", &n),
                 shared_slurp("tests/tokenizers/gemma4.out", &n));
    tok_close(t);
}

/* ---- round trips ---- */

/* Random text: ASCII words, characters of every length, and with `broken` stray bytes. */
static size_t random_text(struct rng *r, char *s, size_t cap, bool broken)
{
    static const char *const chars[] = {
        " ", " ", " ", "\n", "\t", "  ", "e", "t", "a", "h", "l", "o", "w", "the", " the", "hello",
        " world", "'s", "'LL", "123", "4", "<", "/", "s>", "\xc3\xa9", "\xe2\x82\xac",
        "\xe3\x80\x80", "\xf0\x9f\x98\x80", "\xe4\xb8\xad", "\xd0\x9f", "\xc2\xa0", "\xcc\x81",
        "\xe0\xa4\xb9", "!?", "aaaaaaaa", "\r\n", "A", "Zz",
    };
    size_t n = 0;
    int words = (int)rng_below(r, 60);
    for (int i = 0; i < words && n + 16 < cap; i++) {
        if (broken && rng_below(r, 4) == 0) {
            s[n++] = (char)rng_below(r, 256);
            continue;
        }
        const char *c = chars[rng_below(r, sizeof chars / sizeof *chars)];
        memcpy(s + n, c, strlen(c));
        n += strlen(c);
    }
    return n;
}

static bool holds_space_mark(const char *s, size_t n)
{
    for (size_t i = 0; i + 3 <= n; i++)
        if (!memcmp(s + i, "\xe2\x96\x81", 3)) return true;
    return false;
}

static void check_round_trip(const struct tok *t, const char *s, size_t n, unsigned flags)
{
    int64_t n_ids;
    int32_t *ids = encode(t, s, n, flags, &n_ids);
    size_t n_back;
    char *back = decode(t, ids, n_ids, true, &n_back);
    size_t lead = t->spm && t->add_space && n_back == n + 1 && back[0] == ' ';
    if (!(t->spm && holds_space_mark(s, n))) {
        assert_int_equal(n_back - lead, n);
        if (n) assert_memory_equal(back + lead, s, n);
    }
    free(back);
    free(ids);
}

static void round_trips(const struct tok *t, bool broken)
{
    struct rng r;
    rng_seed(&r, 7);
    for (int i = 0; i < 400; i++) {
        char s[2048];
        size_t n = random_text(&r, s, sizeof s, broken && i % 2);
        check_round_trip(t, s, n, 0);
        /* Behind a special token comes another added space, which nobody could take out again. */
        if (!(t->spm && t->add_space)) check_round_trip(t, s, n, TOK_SPECIAL);
    }
    for (int b = 0; b < 256; b++) {
        char s[3] = {(char)b, 'x', (char)b};
        check_round_trip(t, s, broken || b < 0x80 ? 3 : 0, 0);
    }
}

static void test_round_trip_small(void **state)
{
    (void)state;
    for (int space = 0; space < 2; space++) {
        tv_spm(&v);
        v.add_space = space;
        struct tok *t = open_tv();
        round_trips(t, true);
        tok_close(t);
    }
    tv_gemma(&v);
    struct tok *gemma = open_tv();
    round_trips(gemma, true);
    tok_close(gemma);
    for (int i = 0; tok_pre_at(i); i++) {
        tv_bpe(&v);
        v.pre = tok_pre_at(i);
        struct tok *t = open_tv();
        assert_string_equal(tok_pre(t), tok_pre_at(i));
        round_trips(t, true);
        tok_close(t);
    }
    assert_null(tok_pre_at(-1));
}

static void test_round_trip_real(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt-2", "qwen2", "llama-spm", "phi-3", "deepseek-llm",
                                        "o200k"};
    int n = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char rel[256];
        snprintf(rel, sizeof rel, "reference/tokenizers/ggml-vocab-%s.gguf", names[i]);
        struct tok *t = open_shared(rel);
        if (!t) continue;
        /* DeepSeek spells the bytes that no UTF-8 holds with user-defined tokens of other text. */
        round_trips(t, strcmp(names[i], "deepseek-llm") != 0);
        tok_close(t);
        n++;
    }
    if (!n) skip();
}

/* ---- the merge loop against one that looks at every pair each time ---- */

struct naive {
    int pos[256], len[256], id[256], n;
};

static bool naive_best(const struct tok *t, const char *word, const struct naive *y, int *at,
                       int *id)
{
    bool any = false;
    uint32_t best = 0;
    for (int i = 0; i + 1 < y->n; i++) {
        struct sym a = {.pos = y->pos[i], .len = y->len[i], .id = y->id[i]};
        struct sym b = {.pos = y->pos[i + 1], .len = y->len[i + 1], .id = y->id[i + 1]};
        struct cand c;
        const struct pair *p = t->pair ? bpe_pair(t, a.id, b.id) : NULL;
        if (t->pair ? !p : !spm_pair(t, word, &a, &b, &c)) continue;
        uint32_t order = p ? p->rank : c.order;
        if (any && order >= best) continue;
        any = true;
        best = order;
        *at = i;
        *id = p ? p->id : c.id;
    }
    return any;
}

static void naive_merge(const struct tok *t, const char *word, struct naive *y)
{
    for (int at, id; naive_best(t, word, y, &at, &id);) {
        y->len[at] += y->len[at + 1];
        y->id[at] = id;
        y->n--;
        for (int i = at + 1; i < y->n; i++) {
            y->pos[i] = y->pos[i + 1];
            y->len[i] = y->len[i + 1];
            y->id[i] = y->id[i + 1];
        }
    }
}

/* A vocabulary of random strings over a few letters; SentencePiece with equal scores among them,
 * and, every second time, with tokens that have a space inside. */
static void random_vocab(struct rng *r, const char *model, bool inner)
{
    static const char *const letters[] = {"a", "b", "c", "\xe2\x96\x81"};
    static char merges[TV_MERGES][48];
    const bool bpe = !strcmp(model, "gpt2"), ranked = strcmp(model, "llama") != 0;
    tv_start(&v, model);
    v.pre = bpe ? "qwen2" : NULL;
    for (int i = 0; i < 4 - bpe; i++) tv_add(&v, letters[i], 1, -50);
    for (int i = 0; i < 40; i++) {
        const struct tv_tok *a = &v.tok[rng_below(r, (uint32_t)v.n_tok)];
        const struct tv_tok *b = &v.tok[rng_below(r, (uint32_t)v.n_tok)];
        char text[40];
        if (a->n + b->n > 12) continue;
        snprintf(text, sizeof text, "%.*s%.*s", a->n, a->text, b->n, b->text);
        bool space = b->n && !memcmp(b->text, letters[3], 1);
        bool all = !memcmp(a->text + a->n - (a->n < 3 ? a->n : 3), letters[3], a->n < 3 ? 1 : 3);
        if (!bpe && space && !all && !inner) continue;
        if (ranked && v.n_merge < TV_MERGES) {
            snprintf(merges[v.n_merge], sizeof *merges, "%.*s %.*s", a->n, a->text, b->n, b->text);
            v.merge[v.n_merge] = merges[v.n_merge];
            v.n_merge++;
        }
        if (ID(text) < 0) tv_add(&v, text, 1, -(float)rng_below(r, 8));
    }
    tv_ready(&v);
}

static void check_against_naive(const struct tok *t, const char *text, const char *word)
{
    struct naive y = {.n = 0};
    int32_t want[256];
    for (int i = 0, len; word[i]; i += len) {
        len = word[i] == '\xe2' ? 3 : 1;
        y.pos[y.n] = i;
        y.len[y.n] = len;
        y.id[y.n++] = tok_lookup(t, word + i, (size_t)len);
    }
    naive_merge(t, word, &y);
    for (int i = 0; i < y.n; i++) want[i] = y.id[i];
    check_ids(t, text, 0, want, y.n);
}

static void test_merge_loop(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, 11);
    int split = 0, whole = 0;
    for (int round = 0; round < 300; round++) {
        const char *model = round % 3 == 0 ? "gpt2" : round % 3 == 1 ? "llama" : "gemma4";
        random_vocab(&r, model, round % 2);
        v.add_space = 0;
        struct tok *t = open_tv();
        const bool spm = t->spm;
        split += t->spm && t->word_split;
        whole += t->spm && !t->word_split;
        for (int k = 0; k < 20; k++) {
            char text[100], word[256];
            int n = 1 + (int)rng_below(&r, 80), m = 0;
            for (int i = 0; i < n; i++) {
                text[i] = "abc "[rng_below(&r, spm ? 4 : 3)];
                if (text[i] == ' ') m += sprintf(word + m, "\xe2\x96\x81");
                else m += sprintf(word + m, "%c", text[i]);
            }
            text[n] = 0;
            check_against_naive(t, text, word);
        }
        tok_close(t);
    }
    assert_true(split > 20 && whole > 20);
}

/* The memory of words that long texts get must not change an id. */
static void test_long_text_is_its_words(void **state)
{
    (void)state;
    tv_bpe(&v);
    struct tok *t = open_tv();
    static const char *const words[] = {" the", " world", " hello", " aaaaaaaaaaaaaaaaaaaaaaaaaa"};
    char text[40000];
    int32_t want[40000];
    size_t n = 0;
    int n_want = 0;
    struct rng r;
    rng_seed(&r, 3);
    while (n + 64 < sizeof text) {
        const char *w = words[rng_below(&r, 4)];
        memcpy(text + n, w, strlen(w) + 1);
        n += strlen(w);
        n_want += (int)tok_encode(t, w, strlen(w), 0, want + n_want, 100);
    }
    check_ids(t, text, 0, want, n_want);
    tok_close(t);
}

/* ---- what the small vocabularies must give ---- */

static void test_spm(void **state)
{
    (void)state;
    tv_spm(&v);
    struct tok *t = open_tv();
    assert_string_equal(tok_model(t), "llama");
    assert_string_equal(tok_pre(t), "-");
    assert_int_equal(tok_n_vocab(t), v.n_tok);
    assert_int_equal(tok_bos(t), 1);
    assert_int_equal(tok_eos(t), 2);
    assert_true(tok_adds_bos(t)); /* the family's default */
    assert_int_equal(tok_find(t, "\xe2\x96\x81the"), ID("\xe2\x96\x81the"));
    assert_int_equal(tok_find(t, "no such token"), -1);
    assert_int_equal(tok_find(t, ""), -1);
    int space = ID("\xe2\x96\x81"), the = ID("\xe2\x96\x81the");
    IDS(t, "the", 0, the);
    IDS(t, "the the", TOK_BOS, 1, the, the);
    IDS(t, " the", 0, space, the);
    IDS(t, "hello world", 0, ID("\xe2\x96\x81hello"), ID("\xe2\x96\x81world"));
    IDS(t, "x", 0, space, ID("<0x78>"));
    IDS(t, "\xc3\xa9\xe2\x82\xac\xc3", 0, space, ID("\xc3\xa9"), ID("\xe2\x82\xac"), ID("<0xC3>"));
    IDS(t, "\xe4\xb8\xad", 0, space, ID("<0xE4>"), ID("<0xB8>"), ID("<0xAD>"));
    IDS(t, "\xe2\x96\x81the", 0, space, the); /* the mark itself reads as a space */
    check_ids(t, "", 0, NULL, 0);
    IDS(t, "", TOK_BOS, 1);
    assert_int_equal(tok_encode(t, NULL, 0, TOK_SPECIAL, NULL, 0), 0);
    tok_close(t);
    v.add_space = 0;
    v.add_bos = 0;
    v.add_eos = 1;
    t = open_tv();
    IDS(t, "the", TOK_BOS, ID("the"), 2);
    IDS(t, "the", 0, ID("the"));
    tok_close(t);
}

static void test_gemma4(void **state)
{
    (void)state;
    tv_gemma(&v);
    v.add_bos = 0; /* as some files have it */
    v.add_space = 1;
    struct tok *t = open_tv();
    assert_string_equal(tok_model(t), "gemma4");
    assert_string_equal(tok_pre(t), "-");
    assert_true(tok_adds_bos(t));
    IDS(t, "hello world", TOK_BOS, 2, ID("hello"), ID("\xe2\x96\x81world"));
    IDS(t, "the  aaaaa", 0, ID("t"), ID("he"), ID("\xe2\x96\x81\xe2\x96\x81"), ID("aaaa"), ID("a"));
    IDS(t, "\xe4\xb8\xad\xff\xc3\xa9", 0, ID("<0xE4>"), ID("<0xB8>"), ID("<0xAD>"), ID("<0xFF>"),
        ID("\xc3\xa9"));
    /* A run of newlines that is a token, and one that is none. */
    IDS(t, "a\n\n\na", 0, ID("a"), ID("\n\n\n"), ID("a"));
    IDS(t, "\n\n\n\n\n \n", 0, ID("\n\n"), ID("\n\n"), ID("\n"), ID("\xe2\x96\x81"), ID("\n"));
    /* Visible markers count in any text, the others where special ones do. */
    IDS(t, "a<|channel>", 0, ID("a"), ID("<|channel>"));
    IDS(t, "<|turn>a<turn|>", TOK_SPECIAL, ID("<|turn>"), ID("a"), ID("<turn|>"));
    int64_t n;
    int32_t *ids = encode(t, "<|turn><turn|><bos>", 19, 0, &n);
    for (int64_t i = 0; i < n; i++) assert_true(ids[i] > ID("<|tool_response>"));
    free(ids);
    assert_true(tok_is_end(t, ID("<eos>")) && tok_is_end(t, ID("<turn|>")));
    assert_true(tok_is_end(t, ID("<|tool_response>")));
    assert_false(tok_is_end(t, ID("</s>")) || tok_is_end(t, ID("<|turn>")));
    IDS(t, "</s>", TOK_SPECIAL, ID("</s>"));
    tok_close(t);
    v.bos = v.unk = TV_NONE; /* nothing is guessed */
    t = open_tv();
    assert_int_equal(tok_bos(t), -1);
    assert_false(tok_adds_bos(t));
    tok_close(t);
    v.n_merge = 0;
    struct err e;
    assert_int_equal(tv_open(&v, &t, &e), ERR_MISSING);
    assert_non_null(strstr(e.msg, "\"gemma4\""));
}

static void test_spm_without_bytes(void **state)
{
    (void)state;
    tv_start(&v, "llama");
    tv_add(&v, "<unk>", 2, 0);
    tv_add(&v, "a", 1, 0);
    tv_add(&v, "<0xC3>", 6, 0);
    tv_ready(&v);
    v.add_space = 0;
    struct tok *t = open_tv();
    assert_int_equal(tok_bos(t), -1); /* id 1 is ordinary text */
    IDS(t, "a\xc3\xa9" "a", TOK_BOS, 1, 0, 1);
    tok_close(t);
    v.tok[0].type = 1;
    t = open_tv();
    IDS(t, "a\xc3\xa9" "a", TOK_BOS, 1, 1); /* nothing to say it with */
    tok_close(t);
}

static void test_bpe(void **state)
{
    (void)state;
    tv_bpe(&v);
    struct tok *t = open_tv();
    assert_string_equal(tok_model(t), "gpt2");
    assert_string_equal(tok_pre(t), "gpt-2");
    assert_false(tok_adds_bos(t));
    IDS(t, "hello world", TOK_BOS, ID("hello"), ID("\xc4\xa0world"));
    IDS(t, "hell", 0, ID("hell"));
    IDS(t, "aaaaa", 0, ID("aaaa"), 'a');
    IDS(t, "\n\n \n", 0, ID("\xc4\x8a\xc4\x8a"), ' ', '\n');
    IDS(t, "\xc3\xa9\xe2\x82\xff", 0, ID("\xc3\x83\xc2\xa9"), 0xe2, 0x82, 0xff);
    tok_close(t);
    v.add_bos = 1;
    t = open_tv();
    IDS(t, "a", TOK_BOS, tok_bos(t), 'a');
    IDS(t, "a", 0, 'a');
    tok_close(t);
    v.add_bos = TV_NONE;
    v.pre = "llama-bpe";
    t = open_tv();
    assert_true(tok_adds_bos(t));
    tok_close(t);
    v.pre = NULL;
    t = open_tv();
    assert_string_equal(tok_pre(t), "default");
    tok_close(t);
}

static void test_ignore_merges(void **state)
{
    (void)state;
    tv_bpe(&v);
    int whole = tv_add(&v, "\xc4\xa0xyz", 1, 0);
    tv_ready(&v);
    struct tok *t = open_tv();
    IDS(t, " xyz", 0, ' ', 'x', 'y', 'z');
    tok_close(t);
    v.ignore_merges = 1;
    t = open_tv();
    IDS(t, " xyz xyzz", 0, whole, ' ', 'x', 'y', 'z', 'z');
    IDS(t, "<none>", 0, '<', 'n', 'o', 'n', 'e', '>'); /* unused tokens stay unused */
    tok_close(t);
}

static void test_bpe_lacks_bytes(void **state)
{
    (void)state;
    tv_start(&v, "gpt2");
    v.pre = "qwen2";
    tv_add(&v, "a", 1, 0);
    tv_add(&v, "aa", 1, 0);
    v.merge[v.n_merge++] = "a a";
    tv_ready(&v);
    struct tok *t = open_tv();
    IDS(t, "aabaa", 0, 1, 1);
    tok_close(t);
    v.unk = tv_add(&v, "<unk>", 2, 0);
    tv_ready(&v);
    t = open_tv();
    IDS(t, "aabaa", 0, 1, 2, 1);
    tok_close(t);
}

/* ---- special tokens ---- */

static void test_special(void **state)
{
    (void)state;
    tv_bpe(&v);
    struct tok *t = open_tv();
    int end = ID("<|im_end|>"), user = ID("<user>");
    IDS(t, "a<|im_end|>a", TOK_SPECIAL, 'a', end, 'a');
    IDS(t, "<|im_end|><|im_end|>", TOK_SPECIAL, end, end);
    IDS(t, "<|im_end|", TOK_SPECIAL, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|');
    IDS(t, "<|<|im_end|>", TOK_SPECIAL, '<', '|', end);
    IDS(t, "<user>", 0, user);
    IDS(t, "x<user>+<user>", 0, 'x', ID("<user>+"), user); /* the longest */
    for (unsigned flags = 0; flags < 2; flags++) {
        int64_t n;
        int32_t *ids = encode(t, "<|im_end|><|endoftext|></s><|im_start|>", 39, flags, &n);
        for (int64_t i = 0; i < n; i++) assert_true(v.tok[ids[i]].type == 1);
        free(ids);
    }
    tok_close(t);
    tv_spm(&v);
    t = open_tv();
    int space = ID("\xe2\x96\x81");
    IDS(t, "</s>the", TOK_SPECIAL, 2, ID("\xe2\x96\x81the"));
    IDS(t, "</s>", 0, space, ID("</"), ID("s>"));
    IDS(t, "<0x41>", 0, space, ID("<"), ID("<0x30>"), ID("<0x78>"), ID("<0x34>"), ID("<0x31>"),
        ID(">"));
    tok_close(t);
}

/* Files whose writers forgot to mark the markers: they must not come out of plain text. */
static void test_special_claimed(void **state)
{
    (void)state;
    for (int type = 1; type <= 4; type += 3) {
        tv_bpe(&v);
        v.tok[ID("<|im_end|>")].type = type;
        v.tok[ID("<|im_start|>")].type = type;
        struct tok *t = open_tv();
        int64_t n;
        int32_t *ids = encode(t, "<|im_start|><|im_end|>", 22, 0, &n);
        for (int64_t i = 0; i < n; i++) assert_true(ids[i] < 256);
        free(ids);
        IDS(t, "<|im_end|>", TOK_SPECIAL, ID("<|im_end|>"));
        assert_true(tok_is_end(t, ID("<|im_end|>")));
        assert_false(tok_is_end(t, ID("<|im_start|>")));
        assert_false(tok_is_end(t, ID("</s>"))); /* merges spell it: text */
        IDS(t, "</s>", TOK_SPECIAL, ID("</"), 's', '>');
        tok_close(t);
    }
}

static void test_special_merge_dropped(void **state)
{
    (void)state;
    tv_bpe(&v);
    v.tok[ID("hello")].type = 3;
    struct tok *t = open_tv();
    IDS(t, "hello", 0, ID("hell"), 'o');
    IDS(t, "hello", TOK_SPECIAL, ID("hello"));
    tok_close(t);
}

static void test_ends(void **state)
{
    (void)state;
    tv_bpe(&v);
    v.eot = ID("hello");
    struct tok *t = open_tv();
    assert_true(tok_is_end(t, tok_eos(t)));
    assert_true(tok_is_end(t, ID("<|im_end|>")));
    assert_true(tok_is_end(t, ID("hello")));
    assert_false(tok_is_end(t, ID("hell")));
    assert_false(tok_is_end(t, -1));
    assert_false(tok_is_end(t, v.n_tok));
    tok_close(t);
    /* Harmony: <|end|> closes a message, not the answer. */
    int end = tv_add(&v, "<|end|>", 3, 0);
    tv_ready(&v);
    t = open_tv();
    assert_true(tok_is_end(t, end));
    tok_close(t);
    int call = tv_add(&v, "<|call|>", 3, 0);
    int ret = tv_add(&v, "<|return|>", 3, 0);
    tv_ready(&v);
    t = open_tv();
    assert_false(tok_is_end(t, end));
    assert_true(tok_is_end(t, call) && tok_is_end(t, ret));
    tok_close(t);
}

static void test_no_types(void **state)
{
    (void)state;
    tv_spm(&v);
    v.n_types = TV_NONE;
    struct tok *t = open_tv();
    IDS(t, "</s>x", 0, ID("\xe2\x96\x81"), ID("</"), ID("s>"), ID("<0x78>"));
    IDS(t, "</s>", TOK_SPECIAL, 2);
    char c = 0;
    assert_int_equal(tok_piece(t, ID("<0x41>"), false, &c, 1), 1);
    assert_int_equal(c, 'A');
    tok_close(t);
}

/* ---- pieces ---- */

static void check_piece(const struct tok *t, int32_t id, bool special, const char *want)
{
    char buf[64];
    int n = (int)strlen(want);
    memset(buf, '#', sizeof buf);
    for (int cap = 0; cap <= n + 1; cap++) {
        assert_int_equal(tok_piece(t, id, special, buf, cap), n);
        assert_memory_equal(buf, want, (size_t)(cap < n ? cap : n));
        assert_int_equal(buf[cap < n ? cap : n], '#');
    }
}

static void test_pieces(void **state)
{
    (void)state;
    tv_spm(&v);
    struct tok *t = open_tv();
    check_piece(t, ID("\xe2\x96\x81the"), false, " the");
    check_piece(t, ID("\xe2\x96\x81\xe2\x96\x81"), false, "  ");
    check_piece(t, ID("<0xC3>"), false, "\xc3");
    check_piece(t, 0, false, "");
    check_piece(t, 0, true, "<unk>");
    check_piece(t, 2, false, "");
    check_piece(t, 2, true, "</s>");
    check_piece(t, ID("<user>"), false, "<user>");
    check_piece(t, -1, true, "");
    check_piece(t, v.n_tok, true, "");
    tok_close(t);
    tv_bpe(&v);
    int odd = tv_add(&v, "\xe2\x82\xac\xc4\xa0 \xff", 1, 0); /* not all in disguise */
    int empty = tv_add(&v, "", 1, 0);
    int empty2 = tv_add(&v, "", 3, 0);
    tv_ready(&v);
    t = open_tv();
    check_piece(t, ID("\xc4\xa0world"), false, " world");
    check_piece(t, 0xff, false, "\xff");
    check_piece(t, odd, false, "\xe2\x82\xac  \xff");
    check_piece(t, empty, true, "");
    check_piece(t, empty2, true, "");
    check_piece(t, ID("<none>"), false, "");
    check_piece(t, ID("<|im_end|>"), false, "");
    tok_close(t);
}

/* ---- malformed vocabularies ---- */

static void check_refused(enum status want, const char *word)
{
    struct err e;
    struct tok *t;
    enum status s = tv_open(&v, &t, &e);
    if (s != want || !strstr(e.msg, word)) fail_msg("%s: \"%s\"", err_name(s), e.msg);
    assert_null(t);
    assert_int_equal(e.code, want);
}

static void test_malformed_counts(void **state)
{
    (void)state;
    tv_spm(&v);
    v.n_scores--;
    check_refused(ERR_FORMAT, "scores has");
    tv_spm(&v);
    v.n_scores = TV_NONE;
    check_refused(ERR_MISSING, "tokenizer.ggml.scores");
    tv_spm(&v);
    v.n_types--;
    check_refused(ERR_FORMAT, "token_type has");
    tv_spm(&v);
    v.n_types = v.n_tok + 1;
    check_refused(ERR_FORMAT, "token_type has");
    tv_spm(&v);
    v.n_tok = v.n_scores = v.n_types = 0;
    check_refused(ERR_FORMAT, "0 tokens");
    tv_spm(&v);
    v.tok[7].type = 9;
    check_refused(ERR_FORMAT, "token 7 has the type 9");
    tv_spm(&v);
    v.tok[8].score = (float)strtod("nan", NULL);
    check_refused(ERR_FORMAT, "score of token 8");
    tv_spm(&v);
    v.tok[9].text[5] = ']';
    check_refused(ERR_FORMAT, "token 9 is a byte token");
}

static void test_malformed_ids(void **state)
{
    (void)state;
    tv_bpe(&v);
    v.bos = v.n_tok;
    check_refused(ERR_FORMAT, "bos_token_id is");
    tv_bpe(&v);
    v.eos = 1 << 30;
    check_refused(ERR_FORMAT, "eos_token_id is 1073741824");
    tv_bpe(&v);
    v.unk = 5000;
    check_refused(ERR_FORMAT, "unknown_token_id");
    tv_bpe(&v);
    v.bos = UINT32_MAX; /* "none" */
    v.add_bos = 1;
    struct tok *t = open_tv();
    assert_int_equal(tok_bos(t), -1);
    assert_false(tok_adds_bos(t));
    tok_close(t);
}

static void test_malformed_texts(void **state)
{
    (void)state;
    tv_bpe(&v);
    tv_add(&v, "hello", 1, 0);
    tv_ready(&v);
    check_refused(ERR_FORMAT, "same text \"hello\"");
    static const char *const bad[] = {"he", "h", " ", "h ", " h", "h e", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tv_bpe(&v);
        v.merge[3] = bad[i];
        if (!strcmp(bad[i], "h e")) continue;
        check_refused(ERR_FORMAT, "merge 3 is");
    }
    tv_bpe(&v);
    v.merge[2] = "qq e";
    check_refused(ERR_FORMAT, "left half");
    tv_bpe(&v);
    v.merge[2] = "e qq";
    check_refused(ERR_FORMAT, "right half");
    tv_bpe(&v);
    v.merge[2] = "e q";
    check_refused(ERR_FORMAT, "what it makes");
    tv_bpe(&v);
    v.n_merge = 0;
    check_refused(ERR_MISSING, "tokenizer.ggml.merges");
    tv_bpe(&v);
    v.merge[v.n_merge++] = "h e"; /* twice: the first rank counts */
    struct tok *t = open_tv();
    IDS(t, "hello", 0, ID("hello"));
    tok_close(t);
}

static void test_unknown_models(void **state)
{
    (void)state;
    tv_bpe(&v);
    v.model = NULL;
    check_refused(ERR_MISSING, "no tokenizer");
    tv_bpe(&v);
    v.model = "no_vocab";
    check_refused(ERR_MISSING, "no tokenizer");
    tv_bpe(&v);
    v.model = "bert";
    check_refused(ERR_UNSUPPORTED, "\"bert\" is not known");
    tv_bpe(&v);
    v.pre = "martian";
    check_refused(ERR_UNSUPPORTED, "qwen2");
}

/* Keys of a wrong type; a token longer than any buffer. */
static void test_malformed_keys(void **state)
{
    (void)state;
    static const char *const keys[] = {"model", "tokens", "scores", "token_type", "bos_token_id",
                                       "add_bos_token", "add_space_prefix"};
    tv_spm(&v);
    v.bos = v.add_bos = v.add_space = 1;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct blob b = {0};
        char key[64];
        int n = snprintf(key, sizeof key, "tokenizer.ggml.%s", keys[i]);
        tv_write(&v, &b);
        for (size_t at = 24; at + (size_t)n < b.n; at++) /* rename it, put another one in front */
            if (!memcmp(b.p + at, key, (size_t)n) && b.p[at - 8] == n) b.p[at] = 'T';
        struct blob w = {0};
        uint64_t n_kv;
        memcpy(&n_kv, b.p + 16, 8);
        blob_head(&w, 3, 0, n_kv + 1);
        blob_kv_int(&w, key, GGUF_F64, 0);
        blob_put(&w, b.p + 24, b.n - 24);
        blob_zeros(&w, 64);
        struct gguf *g;
        struct tok *t;
        struct err e;
        if (tv_open_bytes(w.p, w.n, &g, &t, &e) != ERR_SHAPE) fail_msg("%s: %s", key, e.msg);
        assert_null(t);
        gguf_close(g);
        blob_free(&b);
        blob_free(&w);
    }
    struct blob b = {0};
    struct gguf *g;
    struct tok *t;
    struct err e;
    blob_head(&b, 3, 0, 2);
    blob_kv_str(&b, "tokenizer.ggml.model", "llama");
    blob_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, 1);
    blob_u64(&b, TOK_PIECE_MAX + 1);
    blob_zeros(&b, TOK_PIECE_MAX + 64);
    assert_int_equal(tv_open_bytes(b.p, b.n, &g, &t, &e), ERR_UNSUPPORTED);
    gguf_close(g);
    blob_free(&b);
}

/* ---- long words ---- */

/* Long runs of anything, for every pre-tokenizer: linear, whatever they are made of (a quadratic
 * expression would need minutes of processor time for a megabyte). */
static void test_long_words(void **state)
{
    (void)state;
    static const char *const units[] = {
        "a", "A", "aA", " ", "\n", " \n", "\t ", "1", "!", "'", "'s", "\xc3\xa9", "\xe4\xb8\xad",
        "\xcc\x81", "\xe4\xb8\xad" "A", "a1", "\xff", "\xe3\x80\x80", "\r", " a", "/\n",
        "\xf0\x9f\x98\x80",
    };
    enum { SIZE = 1 << 20, COMMON = 1 << 18, SMALL = 1 << 15 };
    char *s = malloc(SIZE + 16);
    assert_non_null(s);
    double slowest = 0;
    const char *what = "", *where = "";
    for (int p = -2; p < 0 || tok_pre_at(p); p++) {
        if (p == -2) tv_gemma(&v);
        else if (p == -1) tv_spm(&v);
        else tv_bpe(&v);
        if (p >= 0) v.pre = tok_pre_at(p);
        struct tok *t = open_tv();
        bool common = p < 0 || !strcmp(v.pre, "gpt-2") || !strcmp(v.pre, "qwen2");
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            size_t n = 0, len = strlen(units[u]);
            size_t size = common && !u ? SIZE : common ? COMMON : SMALL;
            for (; n < size; n += len) memcpy(s + n, units[u], len);
            s[n++] = 'x'; /* so that spaces are not at the end */
            clock_t t0 = clock();
            assert_true(tok_encode(t, s, n, 0, NULL, 0) > 0);
            double dt = (double)(clock() - t0) / CLOCKS_PER_SEC / (double)n * SIZE;
            if (dt > slowest) {
                slowest = dt;
                what = units[u];
                where = tok_pre(t);
            }
            if (dt > 60) fail_msg("%s: %.0f s for a megabyte of \"%s\"", tok_pre(t), dt, units[u]);
        }
        tok_close(t);
    }
    printf("slowest long word: %.2f s per MiB (\"%s\", pre-tokenizer %s)\n", slowest, what, where);
    free(s);
}

/* ---- threads ---- */

struct job {
    const struct tok *t;
    const char *s;
    size_t n;
    int32_t ids[4096];
    int64_t n_ids;
};

static void *run_job(void *arg)
{
    struct job *j = arg;
    for (int i = 0; i < 20; i++) j->n_ids = tok_encode(j->t, j->s, j->n, 0, j->ids, 4096);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    static struct job job[4];
    char s[2048];
    struct rng r;
    rng_seed(&r, 9);
    size_t n = 0;
    while (n < 1500) n += random_text(&r, s + n, sizeof s - n, true);
    tv_bpe(&v);
    v.pre = "deepseek-llm";
    struct tok *t = open_tv();
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) {
        job[i] = (struct job){.t = t, .s = s, .n = n};
        assert_int_equal(pthread_create(&thread[i], NULL, run_job, &job[i]), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(thread[i], NULL);
    for (int i = 1; i < 4; i++) {
        assert_int_equal(job[i].n_ids, job[0].n_ids);
        assert_memory_equal(job[i].ids, job[0].ids, (size_t)job[0].n_ids * sizeof(int32_t));
    }
    tok_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_gpt2),
        cmocka_unit_test(test_golden_qwen2),
        cmocka_unit_test(test_golden_llama),
        cmocka_unit_test(test_golden_phi3),
        cmocka_unit_test(test_golden_deepseek),
        cmocka_unit_test(test_golden_o200k),
        cmocka_unit_test(test_golden_gemma4),
        cmocka_unit_test(test_round_trip_small),
        cmocka_unit_test(test_round_trip_real),
        cmocka_unit_test(test_merge_loop),
        cmocka_unit_test(test_long_text_is_its_words),
        cmocka_unit_test(test_spm),
        cmocka_unit_test(test_gemma4),
        cmocka_unit_test(test_spm_without_bytes),
        cmocka_unit_test(test_bpe),
        cmocka_unit_test(test_ignore_merges),
        cmocka_unit_test(test_bpe_lacks_bytes),
        cmocka_unit_test(test_special),
        cmocka_unit_test(test_special_claimed),
        cmocka_unit_test(test_special_merge_dropped),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_no_types),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_malformed_counts),
        cmocka_unit_test(test_malformed_ids),
        cmocka_unit_test(test_malformed_texts),
        cmocka_unit_test(test_unknown_models),
        cmocka_unit_test(test_malformed_keys),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
