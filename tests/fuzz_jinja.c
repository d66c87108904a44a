/* Fuzz target of moe/load/jinja: an input is a template, and behind a line "--vars--" the JSON of
 * its variables (without it, a small conversation).  Checked: it ends within tight limits, errors
 * have a code and a message, runs cover the text without gaps, and a second render says the same.
 *
 * Built with -DFUZZER and -fsanitize=fuzzer it is a libFuzzer target; otherwise fuzz_main.h replays
 * files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/jinja.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char separator[] = "\n--vars--\n";
static const char talk[] =
    "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_generation_prompt\":true,\"n\":3,"
    "\"f\":2.5,\"s\":\"Hello <b>\\u00e9\\u20ac\",\"l\":[3,1,\"x\",null],\"d\":{\"a\":1,\"b\":[]},"
    "\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},"
    "{\"role\":\"user\",\"content\":\"<think>x</think> hi\\n\"},{\"role\":\"assistant\","
    "\"content\":null,\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"q\":1.5}}}]}],"
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":"
    "{\"properties\":{\"q\":{\"type\":\"number\"}},\"required\":[\"q\"]}}}]}";

static void check(int good)
{
    if (!good) abort();
}

static bool frozen(void *arg, struct tm *t)
{
    (void)arg;
    *t = (struct tm){.tm_year = 125, .tm_mon = 6, .tm_mday = 4};
    return true;
}

static void check_text(const struct jinja_text *t)
{
    size_t at = 0;
    check(t->s && !t->s[t->n]);
    for (size_t i = 0; i < t->n_runs; i++) {
        check(t->run[i].start == at && t->run[i].end > at && t->run[i].end <= t->n);
        check(!i || t->run[i].from_variable != t->run[i - 1].from_variable);
        at = t->run[i].end;
    }
    check(at == t->n);
}

static void render(const struct jinja *t, const char *vars)
{
    const struct jinja_limits l = {.steps = 200000, .bytes = 4 << 20, .output = 1 << 20,
                                   .depth = 200};
    const struct jinja_env env = {.now = frozen};
    struct jinja_text a, b;
    struct err e, e2;
    err_clear(&e);
    err_clear(&e2);
    enum status s = jinja_render(t, vars, &l, &env, &a, &e);
    check(s == e.code && (s == OK || (e.msg[0] && !a.s)));
    check(jinja_render(t, vars, &l, &env, &b, &e2) == s && !strcmp(e.msg, e2.msg));
    if (s) return;
    check_text(&a);
    check(a.n == b.n && a.n_runs == b.n_runs && !memcmp(a.s, b.s, a.n));
    jinja_text_free(&a);
    jinja_text_free(&b);
}

/* Where the separator starts, or n. */
static size_t find_cut(const uint8_t *p, size_t n)
{
    size_t len = sizeof separator - 1;
    for (size_t i = 0; i + len <= n; i++)
        if (p[i] == '\n' && !memcmp(p + i, separator, len)) return i;
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct jinja *t;
    struct err e;
    size_t cut = find_cut(data, n), len = sizeof separator - 1;
    char *src = malloc(cut + 1); /* of its exact size: a sanitizer sees any overrun */
    char *vars = cut < n ? malloc(n - cut - len + 1) : NULL;
    check(src && (vars || cut == n));
    if (cut) memcpy(src, data, cut);
    if (vars) {
        memcpy(vars, data + cut + len, n - cut - len);
        vars[n - cut - len] = 0;
    }
    err_clear(&e);
    char *exact = realloc(src, cut ? cut : 1);
    check(exact != NULL);
    enum status s = jinja_parse(exact, cut, &t, &e);
    free(exact); /* the tree must not need it */
    check((s == OK) == (t != NULL) && s == e.code && (s == OK || e.msg[0]));
    if (t) render(t, vars ? vars : talk);
    jinja_free(t);
    free(vars);
    return 0;
}

#include "tests/fuzz_main.h"
