/* Fails every allocation of the tokenizer and of chats, one after the other: opening must end in
 * ERR_MEMORY, encoding in an error or in the same ids as ever, and nothing may leak.  Needs FAULT_LINK
 * (tests/fault.h); what PCRE2 allocates inside itself is not reached. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/fault.h"

#include "moe/load/chat.h"
#include "tests/tokvocab.h"

static struct tv v;

static void check_open(void)
{
    struct blob b = {0};
    struct gguf *g;
    struct tok *t;
    struct err e;
    tv_write(&v, &b);
    assert_int_equal(tv_open_bytes(b.p, b.n, &g, &t, &e), OK);
    tok_close(t);
    for (int n = 1;; n++) {
        long before = fault_living();
        err_clear(&e);
        fault_arm(FAULT_ALLOC, n);
        enum status s = tok_open(g, &t, &e);
        if (!fault_disarm()) break;
        assert_int_equal(s, ERR_MEMORY);
        assert_int_equal(e.code, ERR_MEMORY);
        assert_null(t);
        assert_int_equal(fault_living(), before);
    }
    tok_close(t);
    gguf_close(g);
    blob_free(&b);
}

static void test_open(void **state)
{
    (void)state;
    tv_spm(&v);
    check_open();
    tv_bpe(&v);
    check_open();
    tv_gemma(&v);
    check_open();
}

static struct tok *open_tv(void)
{
    struct err e;
    struct tok *t;
    if (tv_open(&v, &t, &e)) fail_msg("%s", e.msg);
    return t;
}

/* A text with words of every length, so that scratch memory grows several times. */
static void fill_text(char *s, size_t n)
{
    for (size_t i = 0, word = 1; i < n; word = word * 3 / 2 + 1) {
        for (size_t k = 0; k < word && i < n; k++) s[i++] = 'a';
        if (i < n) s[i++] = ' ';
    }
}

enum { N_TEXT = 3000 };

static void check_encode(const struct tok *t)
{
    static char s[N_TEXT + 1];
    static int32_t want[N_TEXT + 8], got[N_TEXT + 8];
    fill_text(s, N_TEXT);
    int64_t n_want = tok_encode(t, s, N_TEXT, TOK_BOS, want, N_TEXT + 8);
    int failed = 0;
    for (int n = 1;; n++) {
        long before = fault_living();
        fault_arm(FAULT_ALLOC, n);
        int64_t k = tok_encode(t, s, N_TEXT, TOK_BOS, got, N_TEXT + 8);
        int hit = fault_disarm();
        assert_int_equal(fault_living(), before);
        assert_true(k < 0 || k == n_want);
        if (k >= 0) assert_memory_equal(got, want, (size_t)k * sizeof *got);
        failed += k < 0;
        if (!hit) break;
    }
    assert_true(failed > 1);
}

/* A chat from its template to its ids. */
static enum status chat(const struct gguf *g, const struct tok *t, struct err *e)
{
    struct chat_msg m = {.role = "user", .content = "hello", .thinking = "hm"};
    static const int32_t held[] = {'h', 'e', 'l', 'l', 'o'};
    struct chat_turn turn = {.msgs = &m, .n = 1, .add_prompt = true, .held = held, .n_held = 5};
    struct chat_options o = {.kwargs = "{\"a\": 1}"};
    struct chat_prompt p;
    struct chat *c;
    char what[64];
    enum status s = chat_open(g, t, &o, &c, e);
    assert_true((s == OK) == (c != NULL));
    if (!s) s = chat_think_check(c, "off", what, sizeof what, e);
    if (!s) s = chat_encode(c, &turn, &p, e);
    if (!s) {
        assert_string_equal(what, "enable_thinking=false");
        assert_int_equal(p.n, 6); /* "hello" as it is held, and the marker */
        free(p.ids);
    }
    chat_close(c);
    return s;
}

static void test_chat(void **state)
{
    (void)state;
    struct blob b = {0};
    struct gguf *g;
    struct tok *t;
    struct err e;
    tv_bpe(&v);
    v.chat = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}x"
             "{% endif %}{{ '<|im_end|>' }}";
    tv_write(&v, &b);
    assert_int_equal(tv_open_bytes(b.p, b.n, &g, &t, &e), OK);
    for (int n = 1;; n++) {
        long before = fault_living();
        err_clear(&e);
        fault_arm(FAULT_ALLOC, n);
        enum status s = chat(g, t, &e);
        int hit = fault_disarm();
        assert_int_equal(fault_living(), before);
        assert_int_equal(s, hit ? ERR_MEMORY : OK);
        assert_int_equal(e.code, s);
        if (!hit) break;
    }
    tok_close(t);
    gguf_close(g);
    blob_free(&b);
}

static void test_encode(void **state)
{
    (void)state;
    tv_spm(&v);
    struct tok *t = open_tv();
    check_encode(t);
    tok_close(t);
    tv_bpe(&v);
    t = open_tv();
    check_encode(t);
    tok_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_encode),
        cmocka_unit_test(test_chat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
