/* Tests of streaming detokenisation: every split of short texts, valid and not, must come out as
 * the whole text would, in pieces that are valid UTF-8 by themselves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "moe/base/rng.h"
#include "moe/load/tok_int.h"

/* What a whole text must come out as: the same rule, one character at a time. */
static size_t repaired(const char *s, size_t n, char *out)
{
    size_t k = 0;
    int len;
    for (size_t i = 0; i < n; i += (size_t)len) {
        bool good = utf8_look(s + i, n - i, &len) == UTF8_CHAR;
        memcpy(out + k, good ? s + i : "\xef\xbf\xbd", good ? (size_t)len : 3);
        k += good ? (size_t)len : 3;
    }
    return k;
}

static bool is_valid(const char *s, size_t n)
{
    int len;
    for (size_t i = 0; i < n; i += (size_t)len)
        if (utf8_look(s + i, n - i, &len) != UTF8_CHAR) return false;
    return true;
}

/* Pushes s in pieces that end where the bits of `cuts` say; everything between must be whole. */
static void check_stream(const char *s, size_t n, uint64_t cuts)
{
    struct tok_stream st = {.n_held = 0};
    char want[256], got[256 + TOK_STREAM_CAP(64)];
    size_t n_want = repaired(s, n, want), n_got = 0, start = 0;
    for (size_t i = 0; i < n; i++) {
        if (i + 1 < n && !(cuts >> i & 1)) continue;
        int len = (int)(i + 1 - start);
        int k = tok_stream_push(&st, s + start, len, got + n_got);
        assert_true(k <= TOK_STREAM_CAP(len) && is_valid(got + n_got, (size_t)k));
        n_got += (size_t)k;
        start = i + 1;
    }
    n_got += (size_t)tok_stream_flush(&st, got + n_got);
    assert_int_equal(st.n_held, 0);
    assert_int_equal(n_got, n_want);
    if (n_got) assert_memory_equal(got, want, n_got);
}

static void test_stream_every_split(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "", "a", "\xc3\xa9", "a\xe2\x82\xac" "b\xf0\x9f\x98\x80",
        "\xf0\x9f\x98\x80\xf0\x9f\x98\x80", "\xf0\x9f\x98", "\xff\xfe\x80",
        "\xe2\x82" "a\xe2", "\xc0\xaf\xed\xa0\x80", "\xf4\x90\x80\x80",
        "\xf0\x80\x80\x80", "\xc3\xc3\xa9\xe2\xe2\x82\xac", "\x80\x80\x80\x80\x80", "\xe0\x9f\xbf",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        size_t n = strlen(texts[i]);
        for (uint64_t cuts = 0; cuts < (uint64_t)1 << (n ? n - 1 : 0); cuts++)
            check_stream(texts[i], n, cuts);
    }
    struct rng r;
    rng_seed(&r, 5);
    for (int i = 0; i < 20000; i++) {
        char s[24];
        size_t n = rng_below(&r, sizeof s);
        for (size_t k = 0; k < n; k++)
            s[k] = "\x80\xbf\xc3\xe2\x82\xac\xf0\x9f\xed\xa0 a"[rng_below(&r, 12)];
        check_stream(s, n, rng_u64(&r));
    }
}

/* The rule itself (table 3-8 of the Unicode standard): one U+FFFD per maximal invalid stretch. */
static void test_stream_replacement(void **state)
{
    (void)state;
    char out[64];
    struct tok_stream st = {.n_held = 0};
    int n = tok_stream_push(&st, "\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64", 13, out);
    static const char want[] = "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" "b\xef\xbf\xbd" "c"
                               "\xef\xbf\xbd\xef\xbf\xbd" "d";
    assert_int_equal(n, sizeof want - 1);
    assert_memory_equal(out, want, sizeof want - 1);
    assert_int_equal(tok_stream_push(&st, "\xe2\x82", 2, out), 0);
    assert_int_equal(tok_stream_push(&st, "\xac!", 2, out), 4);
    assert_memory_equal(out, "\xe2\x82\xac!", 4);
    assert_int_equal(tok_stream_push(&st, "\xf0\x9f\x98", 3, out), 0);
    assert_int_equal(tok_stream_flush(&st, out), 3);
    assert_int_equal(tok_stream_flush(&st, out), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream_every_split),
        cmocka_unit_test(test_stream_replacement),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
