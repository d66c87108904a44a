/* Tests of moe/load/jinja: against jinja2's own output (tests/jinja_cases, see make.py there),
 * errors with line and column, limits on hostile templates, and the origin of every byte. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "moe/load/jinja.h"

#define CASES "tests/jinja_cases/"

/* ---- helpers ---- */

/* The clock of make.py. */
static bool frozen(void *arg, struct tm *t)
{
    (void)arg;
    *t = (struct tm){.tm_year = 125, .tm_mon = 6, .tm_mday = 4, .tm_hour = 9, .tm_min = 5,
                     .tm_sec = 7, .tm_wday = 5, .tm_yday = 184};
    return true;
}

static enum status render_with(const char *src, size_t n, const char *vars,
                               const struct jinja_limits *l, const struct jinja_env *env,
                               struct jinja_text *out, struct err *e)
{
    struct jinja *t;
    err_clear(e);
    *out = (struct jinja_text){0};
    enum status s = jinja_parse(src, n, &t, e);
    assert_true((s == OK) == (t != NULL));
    if (!s) s = jinja_render(t, vars, l, env, out, e);
    jinja_free(t);
    assert_true(s == e->code && (s == OK || e->msg[0]) && (s == OK) == (out->s != NULL));
    return s;
}

static enum status render(const char *src, const char *vars, struct jinja_text *out,
                          struct err *e)
{
    const struct jinja_env env = {.now = frozen};
    return render_with(src, strlen(src), vars, NULL, &env, out, e);
}

static void expect(const char *src, const char *vars, const char *want)
{
    struct jinja_text t;
    struct err e;
    if (render(src, vars, &t, &e)) fail_msg("%s: %s", src, e.msg);
    assert_string_equal(t.s, want);
    assert_int_equal(t.n, strlen(want));
    jinja_text_free(&t);
}

/* A whole file, terminated.  Caller frees. */
static char *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s", path);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    long size = ftell(f);
    char *s = malloc((size_t)size + 1);
    rewind(f);
    assert_int_equal(fread(s, 1, (size_t)size, f), size);
    s[size] = 0;
    fclose(f);
    if (n) *n = (size_t)size;
    return s;
}

/* Cuts *at at the next `sep` and returns what was in front of it, NULL at the end. */
static char *next_part(char **at, const char *sep)
{
    char *s = *at, *end = s ? strstr(s, sep) : NULL;
    if (!end) return NULL;
    *end = 0;
    *at = end + strlen(sep);
    return s;
}

/* ---- against jinja2 ---- */

/* The runs of a text have no gaps, alternate and end with it. */
static void check_runs(const struct jinja_text *t)
{
    size_t at = 0;
    for (size_t i = 0; i < t->n_runs; i++) {
        assert_true(t->run[i].start == at && t->run[i].end > at);
        assert_true(!i || t->run[i].from_variable != t->run[i - 1].from_variable);
        at = t->run[i].end;
    }
    assert_int_equal(at, t->n);
}

/* One line of a .want file: a JSON string, or null for an error. */
static bool same(const char *name, int line, const char *src, size_t n, const char *vars,
                 const char *want)
{
    const struct jinja_env env = {.now = frozen};
    struct jinja_text t;
    struct err e;
    cJSON *w = cJSON_Parse(want);
    assert_non_null(w);
    enum status s = render_with(src, n, vars, NULL, &env, &t, &e);
    bool good = cJSON_IsNull(w) ? s != OK : !s && !strcmp(t.s, w->valuestring);
    if (!good)
        print_error("%s, case %d: %.400s\n  want %.600s\n  have %.600s\n", name, line, src, want,
                    s ? e.msg : t.s);
    if (!s) check_runs(&t);
    jinja_text_free(&t);
    cJSON_Delete(w);
    return good;
}

static int against(const char *name, const char *src, size_t n)
{
    char path[256];
    snprintf(path, sizeof path, CASES "want/%s.want", name);
    char *vars = slurp(CASES "chats.vars", NULL), *want = slurp(path, NULL);
    char *v = vars, *w = want, *line, *have;
    int bad = 0, i = 0;
    for (; (line = next_part(&v, "\n")); i++) {
        have = next_part(&w, "\n");
        assert_non_null(have);
        bad += !same(name, i, src, n, line, have);
    }
    assert_true(i > 10 && !*w);
    free(vars);
    free(want);
    return bad;
}

static void test_templates(void **state)
{
    (void)state;
    DIR *d = opendir(CASES);
    int bad = 0, found = 0;
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        char name[64], path[300];
        size_t n, len = strlen(f->d_name);
        if (len < 7 || len > 60 || strcmp(f->d_name + len - 6, ".jinja")) continue;
        snprintf(name, sizeof name, "%.*s", (int)len - 6, f->d_name);
        snprintf(path, sizeof path, CASES "%s", f->d_name);
        char *src = slurp(path, &n);
        bad += against(name, src, n);
        found++;
        free(src);
    }
    closedir(d);
    assert_true(found >= 40);
    assert_int_equal(bad, 0);
}

static void constructs(const char *name, int least)
{
    char path[256];
    snprintf(path, sizeof path, CASES "%s.txt", name);
    char *parts = slurp(path, NULL), *vars = slurp(CASES "snippets.vars", NULL);
    snprintf(path, sizeof path, CASES "want/%s.want", name);
    char *want = slurp(path, NULL), *p = parts, *w = want, *part;
    int bad = 0, n = 0;
    for (; (part = next_part(&p, "\n====\n")); n++) {
        char *line = next_part(&w, "\n");
        assert_non_null(line);
        bad += !same(name, n, part, strlen(part), vars, line);
    }
    assert_true(n >= least && !*w);
    assert_int_equal(bad, 0);
    free(parts);
    free(vars);
    free(want);
}

static void test_snippets(void **state)
{
    (void)state;
    constructs("snippets", 250);
}

static void test_fuzzed(void **state)
{
    (void)state;
    constructs("fuzzed", 400);
}

/* ---- errors ---- */

static void expect_error(const char *src, const char *vars, enum status code, int line, int column,
                         const char *part)
{
    struct jinja_text t;
    struct err e;
    char where[64];
    enum status s = render(src, vars, &t, &e);
    jinja_text_free(&t);
    if (s != code) fail_msg("%s: status %d, %s", src, s, e.msg);
    snprintf(where, sizeof where, "line %d, column %d:", line, column);
    if (line && !strstr(e.msg, where)) fail_msg("%s: not at %s: %s", src, where, e.msg);
    if (!strstr(e.msg, part)) fail_msg("%s: no '%s' in: %s", src, part, e.msg);
}

static void test_syntax_errors(void **state)
{
    (void)state;
    expect_error("a\nb {{ 1 + }}", "{}", ERR_FORMAT, 2, 10, "an expression expected");
    expect_error("{% if x %}\n\n{% for y in x %}", "{}", ERR_FORMAT, 3, 17, "'{% endfor %}'");
    expect_error("{% if x %}\n", "{}", ERR_FORMAT, 1, 11, "'{% endif %}'");
    expect_error("x\n {% foo %}", "{}", ERR_FORMAT, 2, 5, "'foo'");
    expect_error("{% include 'x' %}", "{}", ERR_UNSUPPORTED, 1, 4, "include");
    expect_error("{% for x in y recursive %}{% endfor %}", "{}", ERR_UNSUPPORTED, 1, 15,
                 "recursive");
    expect_error("{{ 'abc }}", "{}", ERR_FORMAT, 1, 4, "does not end");
    expect_error("{# abc", "{}", ERR_FORMAT, 1, 1, "comment");
    expect_error("\n{% raw %}", "{}", ERR_FORMAT, 2, 1, "endraw");
    expect_error("{{ a ] }}", "{}", ERR_FORMAT, 1, 6, "bracket");
    expect_error("{{ 'a' ? }}", "{}", ERR_FORMAT, 1, 8, "unexpected character");
    expect_error("{% set a.b.c = 1 %}", "{}", ERR_FORMAT, 1, 11, "expected");
    expect_error("{% set 1 = 2 %}", "{}", ERR_FORMAT, 1, 8, "cannot be assigned");
    expect_error("{{ 99999999999999999999 }}", "{}", ERR_RANGE, 1, 4, "64 bits");
    expect_error("{% break %}", "{}", ERR_FORMAT, 1, 4, "a loop around this");
}

static void test_runtime_errors(void **state)
{
    (void)state;
    expect_error("{{ a }}\n{{ a.b.c }}", "{\"a\":{}}", ERR_FORMAT, 2, 7, "has no 'b'");
    expect_error("{{ nope.x }}", "{}", ERR_FORMAT, 1, 8, "'nope' is undefined");
    expect_error("{{ 1 + 'a' }}", "{}", ERR_FORMAT, 1, 6, "+ between int and str");
    expect_error("{% for m in messages %}\n  {{ raise_exception('Not ' ~ m) }}{% endfor %}",
                 "{\"messages\":[\"so\"]}", ERR_UNSUPPORTED, 2, 21, "refuses this: Not so");
    expect_error("{{ x|nofilter }}", "{}", ERR_UNSUPPORTED, 1, 6, "no filter named 'nofilter'");
    expect_error("{{ x is notest }}", "{}", ERR_UNSUPPORTED, 1, 6, "no test named 'notest'");
    expect_error("{{ 'x'|replace('a') }}", "{}", ERR_FORMAT, 1, 8, "argument new is missing");
    expect_error("{{ 'x'|trim(q=1) }}", "{}", ERR_FORMAT, 1, 8, "keyword");
    expect_error("{{ d.pop('x') }}", "{\"d\":{}}", ERR_FORMAT, 1, 9, "not allowed");
    expect_error("{{ 1 // 0 }}", "{}", ERR_FORMAT, 1, 6, "division by zero");
    expect_error("{{ 9223372036854775807 + 1 }}", "{}", ERR_RANGE, 1, 24, "64 bits");
    expect_error("{% macro m(a) %}{{ a.b.c }}{% endmacro %}\n{{ m({}) }}", "{}", ERR_FORMAT, 1, 23,
                 "has no");
    /* What a conversation says does not reach a terminal as it is. */
    expect_error("{{ raise_exception(x) }}", "{\"x\":\"a\\u001b[31m\\nb\\u009bc\"}",
                 ERR_UNSUPPORTED, 1, 19, "a?[31m b??c");
}

static void test_json_errors(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "[]", "1", "{", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\":1} x", "{\"a\":tru}",
        "{\"a\":\"x", "{\"a\":\"\\q\"}", "{\"a\":\"\\u12\"}", "{\"a\":01}", "{\"a\":-}",
        "{\"a\":[1 2]}", "{'a':1}", "{\"a\":\"\n\"}", "{\"a\":[1,]}", "{a:1}", "{\"a\":.5}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_error("x", bad[i], ERR_USAGE, 0, 0, "no JSON");
    expect_error("x", "{\"a\":99999999999999999999}", ERR_RANGE, 0, 0, "64 bits");
}

static void test_json(void **state)
{
    (void)state;
    expect("{{ a }}", "{\"a\":[1,-1,1.0,1e2,0.5,true,false,null,\"\\u00e9\\ud83d\\ude00\\n\","
                      "{},[],{\"b\":{}}]}",
           "[1, -1, 1.0, 100.0, 0.5, True, False, None, 'é😀\\n', {}, [], {'b': {}}]");
    expect("{{ a|tojson }}", "{\"a\":{\"z\":1,\"a\":2,\"z\":3}}", "{\"z\": 3, \"a\": 2}");
    expect("{{ a }}", "{\"a\":\"\\ud83d lone\"}", "\xef\xbf\xbd lone");
    expect("{{ range }}{{ a }}", " {\"range\" : 1 ,\n\"a\"\t:\r2 } ", "12");
    struct jinja_text t;
    struct err e;
    assert_int_equal(render("a{{ x }}b", "{\"x\":\"\\u0000\"}", &t, &e), OK);
    assert_int_equal(t.n, 3);
    assert_memory_equal(t.s, "a\0b", 4);
    jinja_text_free(&t);
}

/* Bytes that are no UTF-8 pass through, in templates and variables. */
static void test_stray_bytes(void **state)
{
    (void)state;
    expect("\xff{{ x }}\xc3", "{\"x\":\"\xe2\x82\"}", "\xff\xe2\x82\xc3");
    expect("{{ x|length }}{{ x|upper }}{{ x[::-1] }}{{ x[1] }}", "{\"x\":\"a\x80z\"}",
           "3A\x80Zz\x80"
           "a\x80");
    expect("{{ [x] }}{{ x|title }}{{ x.split('\xff') }}", "{\"x\":\"\xff\"}",
           "['\\xff']\xff['', '']");
}

/* ---- limits ---- */

static void expect_limit(const char *src, const char *part)
{
    struct jinja_text t;
    struct err e;
    enum status s = render(src, "{\"u\":\"x\",\"l\":[1,2,3]}", &t, &e);
    jinja_text_free(&t);
    if (s != ERR_RANGE || !strstr(e.msg, part)) fail_msg("%s: status %d, %s", src, s, e.msg);
}

#define TIMES(n, body) "{% for i in range(" #n ") %}" body "{% endfor %}"

static void test_hostile_loops(void **state)
{
    (void)state;
    expect_limit(TIMES(99999, TIMES(99999, "")), "steps");
    expect_limit(TIMES(99999, TIMES(99999, "{% set x = 1 %}")), "steps");
    expect_limit("{% set ns = namespace(l=[1]) %}{% for x in ns.l %}{{ ns.l.append(x) or '' }}"
                 "{% endfor %}", ""); /* steps or memory */
    expect_limit(TIMES(99999, TIMES(99999, "abcdefghij")), "longer than");
    expect_limit(TIMES(99999, "{{ range(99999)|list|sum }}"), ""); /* memory first */
    expect_limit(TIMES(99999, "{{ range(99999)|select('odd')|map('string')|max }}"), "");
    expect_limit(TIMES(99999, "{{ 99999 in range(100000)|map('int') }}"), "steps");
    expect_limit("{% set s = 'a' * 1000000 %}" TIMES(99999, "{{ 'ab' in s }}"), "steps");
    expect_limit("{% set s = 'a' * 1000000 %}" TIMES(99999, "{{ s == s[:-1] ~ 'b' }}"), "");
    expect_limit("{% set s = 'a' * 1000000 %}" TIMES(99999, "{% if s is lower %}{% endif %}"),
                 "steps");
    expect_limit("{% set s = 'é' * 1000000 %}" TIMES(99999, "{% if s[999999] %}{% endif %}"),
                 "steps");
    expect_limit("{{ range(100001) }}", "range");
    expect_limit("{{ 7 ** 7 ** 7 }}", "64 bits");
}

static void test_hostile_memory(void **state)
{
    (void)state;
    expect_limit("{{ 'x' * 999999999999 }}", "");
    expect_limit("{{ [1] * 999999999999 }}", "list");
    expect_limit("{{ ('x' * 1000000) * 1000 }}", "memory");
    expect_limit("{% set ns = namespace(s='x') %}" TIMES(99, "{% set ns.s = ns.s ~ ns.s %}"),
                 "memory");
    expect_limit("{% set ns = namespace(s=[1]) %}" TIMES(99, "{% set ns.s = ns.s + ns.s %}"),
                 "memory");
    expect_limit("{{ 'x'|center(999999999) }}", "");
    expect_limit("{{ '%999999999d' % 1 }}", "width");
    expect_limit("{{ '{:999999999}'.format(1) }}", "width");
    expect_limit("{{ [1]|tojson(indent=999999999) }}", "indent");
    expect_limit("{{ 'x'|indent(99999999, true) }}", "");
    expect_limit("{{ l|batch(999999999, 1)|list }}", "");
    expect_limit("{% set s = 'a' * 10000000 %}{{ s.replace('a', 'bbbbbbbbbb') }}", "");
    expect_limit("{% set s = 'a' * 10000000 %}{{ s|list|length }}", "memory");
    expect_limit("{% set s = 'a' * 10000000 %}{{ s }}{{ s }}", "longer than");
}

static void test_hostile_depth(void **state)
{
    (void)state;
    expect_limit("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "deep");
    expect_limit("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}"
                 "{{ a() }}", "deep");
    expect_limit("{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}"
                 "{% call m() %}x{% endcall %}", "deep");
    expect_limit("{% set l = [] %}{{ l.append(l) }}{{ l }}", "deep");
    expect_limit("{% set l = [] %}{{ l.append(l) }}{{ l|tojson }}", "deep");
    expect_limit("{% set l = [] %}{% set k = [] %}{{ l.append(k) }}{{ k.append(l) }}{{ l == k }}",
                 "deep");
    expect_limit("{% set ns = namespace(t=()) %}" TIMES(9999, "{% set ns.t = (ns.t,) %}")
                 "{{ {ns.t: 1} }}", "deep");
    expect_limit("{% set ns = namespace(t=()) %}" TIMES(9999, "{% set ns.t = (ns.t,) %}")
                 "{{ ns.t < ns.t }}", "deep");
    expect_limit("{% set ns = namespace(g=l) %}" TIMES(9999, "{% set ns.g = ns.g|map('int') %}")
                 "{{ ns.g|list }}", "deep");
    expect_limit("{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns }}", "deep");
}

/* `head` n times, then `tail`. */
static void expect_deep(const char *head, size_t n, const char *tail, const char *part)
{
    size_t len = strlen(head);
    char *src = malloc(n * len + strlen(tail) + 32);
    assert_non_null(src);
    strcpy(src, "{{ ");
    if (head[0] == '{') src[0] = 0;
    size_t k = strlen(src);
    for (size_t i = 0; i < n; i++, k += len) memcpy(src + k, head, len);
    strcpy(src + k, tail);
    expect_limit(src, part);
    free(src);
}

static void test_hostile_syntax(void **state)
{
    (void)state;
    expect_deep("(", 100000, "", "deep");
    expect_deep("(", 255, "", "deep");
    expect_deep("[", 200, "1", "deep");
    expect_deep("-", 100000, "1 }}", "deep");
    expect_deep("not ", 100000, "1 }}", "deep");
    expect_deep("1 if 1 else ", 50000, "1 }}", "deep");
    expect_deep("{% if 1 %}", 50000, "", "deep");
    expect_deep("{% for x in y %}", 50000, "", "deep");
    expect_deep("1 + ", 50000, "1 }}", "deep"); /* parsed in a loop, too deep to evaluate */
    expect_deep("1 ~ ", 60000, "1 }}{{ 'x' * 999999999 }}", ""); /* flat: only the rest fails */
    expect_deep("a ", 600000, "", "1 MiB");
}

/* JSON of any depth, and limits of the caller's own. */
static void test_own_limits(void **state)
{
    (void)state;
    struct jinja_text t;
    struct err e;
    char *deep = malloc(300100);
    strcpy(deep, "{\"a\":");
    memset(deep + 5, '[', 300000);
    deep[300005] = 0;
    assert_int_equal(render("x", deep, &t, &e), ERR_RANGE);
    free(deep);
    static const struct {
        struct jinja_limits l;
        const char *src, *part;
    } cases[] = {
        {{.steps = 100}, TIMES(50, "x"), "steps"},
        {{.bytes = 20000}, "{{ 'abc' * 10000 }}", "memory"},
        {{.output = 10}, "12345678901", "longer than 10 bytes"},
        {{.depth = 10}, "{{ ((((((((((((x)))))))))))) }}{{ [[[[[[[[[[[[1]]]]]]]]]]]] }}", "10"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *s = cases[i].src;
        assert_int_equal(render_with(s, strlen(s), "{}", &cases[i].l, NULL, &t, &e), ERR_RANGE);
        if (!strstr(e.msg, cases[i].part)) fail_msg("%s: %s", s, e.msg);
    }
    const struct jinja_limits ten = {.output = 10};
    assert_int_equal(render_with("1234567890", 10, "{}", &ten, NULL, &t, &e), OK);
    jinja_text_free(&t);
}

/* A long conversation stays far below the limits. */
static void test_long_conversation(void **state)
{
    (void)state;
    size_t n = 0, cap = 2000 * 1100 + 64;
    char *vars = malloc(cap), *src = slurp(CASES "qwen3.jinja", NULL), text[1001];
    struct jinja_text t;
    struct err e;
    memset(text, 'w', 1000);
    text[1000] = 0;
    n += (size_t)sprintf(vars + n, "{\"add_generation_prompt\":true,\"messages\":[");
    for (int i = 0; i < 2000; i++)
        n += (size_t)sprintf(vars + n, "%s{\"role\":\"%s\",\"content\":\"%s\"}", i ? "," : "",
                             i % 2 ? "assistant" : "user", text);
    strcpy(vars + n, "]}");
    if (render(src, vars, &t, &e)) fail_msg("%s", e.msg);
    assert_true(t.n > 2000 * 1000);
    check_runs(&t);
    jinja_text_free(&t);
    /* Text grown piece by piece takes memory in proportion, not squared. */
    expect("{% set ns = namespace(s='') %}" TIMES(20000, "{% set ns.s = ns.s + 'abcd' + l[0] %}")
           "{{ ns.s|length }}", "{\"l\":[\"efgh\"]}", "160000");
    free(vars);
    free(src);
}

/* ---- origin ---- */

/* Renders and writes every byte that comes from a variable as it is, others in [ ]. */
static void expect_runs(const char *src, const char *vars, const char *const *trusted,
                        const char *want)
{
    const struct jinja_env env = {.now = frozen, .trusted = trusted};
    struct jinja_text t;
    struct err e;
    char have[1024];
    size_t n = 0;
    if (render_with(src, strlen(src), vars, NULL, &env, &t, &e)) fail_msg("%s: %s", src, e.msg);
    check_runs(&t);
    for (size_t i = 0; i < t.n_runs; i++) {
        int len = (int)(t.run[i].end - t.run[i].start);
        n += (size_t)snprintf(have + n, sizeof have - n, t.run[i].from_variable ? "%.*s" : "[%.*s]",
                              len, t.s + t.run[i].start);
        assert_true(n < sizeof have);
    }
    if (strcmp(have, want)) fail_msg("%s:\n  want %s\n  have %s", src, want, have);
    jinja_text_free(&t);
}

static void test_origin(void **state)
{
    (void)state;
    static const char vars[] = "{\"u\":\"User Text\",\"l\":[\"p\",\"q\"],\"n\":42,"
                               "\"d\":{\"key\":\"val\\n\"},\"e\":\"\"}";
    static const struct { const char *src, *want; } cases[] = {
        {"a{{ u }}b", "[a]User Text[b]"},
        {"{{ '<|x|>' + u + '<|y|>' }}", "[<|x|>]User Text[<|y|>]"},
        {"{{ '<' ~ u ~ '>' }}", "[<]User Text[>]"},
        {"{{ u|upper }}{{ u.lower() }}{{ u|title }}{{ u|capitalize }}",
         "USER TEXTuser textUser TextUser text"},
        {"{{ u|trim }}{{ u.split(' ')[1] }}{{ u[2:4] }}{{ u[0] }}{{ u[::-1] }}",
         "User TextTexterUtxeT resU"},
        {"{{ (' a' + u + 'b ')|trim|upper }}", "[A]USER TEXT[B]"},
        {"{{ ('a' + u + 'b')[::-1] }}", "[b]txeT resU[a]"},
        {"{{ u|replace('e', '<e>') }}", "Us[<e>]r T[<e>]xt"},
        {"{{ 'x-y'|replace('-', u) }}", "[x]User Text[y]"},
        {"{{ l|join('+') }}{{ ', '.join(l) }}", "p[+]qp[, ]q"},
        {"{{ l }}{{ d }}", "[[']p[', ']q[']{']key[': ']val\\n['}]"},
        {"{{ d|tojson }}", "[{\"]key[\": \"]val\\n[\"}]"},
        {"{{ n }}{{ n|string }}{{ u|length }}{{ u == 'x' }}", "[42429False]"},
        {"{% set x %}<{{ u }}>{% endset %}{{ x }}{{ x|length }}", "[<]User Text[>11]"},
        {"{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(u) }}{{ m('t') }}", "[<]User Text[><t>]"},
        {"{% for c in u[:2] %}{{ c }}.{% endfor %}", "U[.]s[.]"},
        {"{% for k, v in d.items() %}{{ k }}={{ v|trim }}{% endfor %}", "key[=]val"},
        {"{{ u|indent(2, true) }}{{ 'a\nb'|indent(u) }}", "[  ]User Text[a\n]User Text[b]"},
        {"{{ '%s: %s'|format('a', u) }}{{ '{}!'.format(u) }}", "[a: ]User TextUser Text[!]"},
        {"{{ u|center(13) }}{{ u * 2 }}", "[  ]User Text[  ]User TextUser Text"},
        {"{{ u|e }}{{ '<'|e }}", "User Text[&lt;]"},
        {"{{ 'a' if u else 'b' }}{{ u if u else 'b' }}{{ e or 'c' }}", "[a]User Text[c]"},
        {"{{ strftime_now('%Y') }}", "[2025]"},
        {"{{ l|sort(reverse=true)|map('upper')|list|join }}{{ l|last }}", "QPq"},
        {"{% filter upper %}a{{ u }}{% endfilter %}", "[A]USER TEXT"},
        {"{{ dict(a=u).a }}{{ namespace(a=u).a }}{{ [u][0] }}", "User TextUser TextUser Text"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_runs(cases[i].src, vars, NULL, cases[i].want);
}

static void test_trusted(void **state)
{
    (void)state;
    static const char vars[] =
        "{\"bos_token\":\"<s>\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\","
        "\"x\":{\"role\":\"deep\"}}],\"role\":\"top\",\"a\":{\"b\":{\"c\":\"abc\"}}}";
    static const char src[] = "{{ bos_token }}{{ messages[0].role }}|{{ messages[0].content }}|"
                              "{{ messages[0].x.role }}|{{ role }}|{{ a.b.c }}";
    static const char *const none[] = {NULL};
    static const char *const some[] = {"a.*.c", "role", "messages.*.content", "nope.x", NULL};
    static const char *const whole[] = {"messages", "a.b", "bos_token.x", NULL};
    expect_runs(src, vars, NULL, "[<s>user|]hi[|]deep[|]top[|]abc");
    expect_runs(src, vars, none, "<s>user[|]hi[|]deep[|]top[|]abc");
    expect_runs(src, vars, some, "<s>user[|hi|]deep[|top|abc]");
    expect_runs(src, vars, whole, "<s>[user|hi|deep|]top[|abc]");
}

/* ---- the rest ---- */

static bool no_clock(void *arg, struct tm *t)
{
    (void)t;
    return *(bool *)arg;
}

static void test_clock(void **state)
{
    (void)state;
    static const char src[] = "{{ strftime_now('%Y')|int > 2020 }}";
    struct jinja_text t;
    struct err e;
    bool works = false;
    const struct jinja_env broken = {.now = no_clock, .arg = &works};
    assert_int_equal(render_with(src, strlen(src), "{}", NULL, NULL, &t, &e), OK);
    assert_string_equal(t.s, "True");
    jinja_text_free(&t);
    assert_int_equal(render_with(src, strlen(src), "{}", NULL, &broken, &t, &e), ERR_UNSUPPORTED);
}

static void test_mentions(void **state)
{
    (void)state;
    static const char src[] = "enable_tools {% if enable_thinking %}{{ m.tools }}{% endif %}"
                              "{# documents #}{{ 'text' }}";
    struct jinja *t;
    struct err e;
    err_clear(&e);
    assert_int_equal(jinja_parse(src, strlen(src), &t, &e), OK);
    assert_true(jinja_mentions(t, "enable_thinking"));
    assert_true(jinja_mentions(t, "tools"));
    assert_false(jinja_mentions(t, "documents"));
    assert_false(jinja_mentions(t, "text"));
    assert_false(jinja_mentions(t, "enable_tools"));
    jinja_free(t);
    jinja_free(NULL);
}

/* One tree, many renders: nothing that a render does is left in it. */
static void test_renders_are_apart(void **state)
{
    (void)state;
    static const char src[] = "{% set l = [1] %}{{ l.append(x) or '' }}{{ l }}{{ 'a' + 'b' + x }}"
                              "{% set ns = namespace(q=1) %}{% set ns.q = ns.q + 1 %}{{ ns.q }}";
    struct jinja *t;
    struct jinja_text a, b;
    struct err e;
    err_clear(&e);
    assert_int_equal(jinja_parse(src, strlen(src), &t, &e), OK);
    assert_int_equal(jinja_render(t, "{\"x\":\"c\"}", NULL, NULL, &a, &e), OK);
    assert_int_equal(jinja_render(t, "{\"x\":\"c\"}", NULL, NULL, &b, &e), OK);
    assert_string_equal(a.s, "[1, 'c']abc2");
    assert_string_equal(b.s, a.s);
    jinja_text_free(&a);
    jinja_text_free(&b);
    assert_int_equal(jinja_render(t, "{\"x\":1}", NULL, NULL, &a, &e), ERR_FORMAT);
    assert_null(a.s);
    jinja_free(t);
}

static void test_empty(void **state)
{
    (void)state;
    expect("", "{}", "");
    expect("\n", "{}", "");
    expect("{{ '' }}", "{}", "");
    expect("{# #}", "{}", "");
    struct jinja_text t;
    struct err e;
    assert_int_equal(render("", "{}", &t, &e), OK);
    assert_int_equal(t.n_runs, 0);
    jinja_text_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_templates),
        cmocka_unit_test(test_snippets),
        cmocka_unit_test(test_fuzzed),
        cmocka_unit_test(test_syntax_errors),
        cmocka_unit_test(test_runtime_errors),
        cmocka_unit_test(test_json_errors),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_stray_bytes),
        cmocka_unit_test(test_hostile_loops),
        cmocka_unit_test(test_hostile_memory),
        cmocka_unit_test(test_hostile_depth),
        cmocka_unit_test(test_hostile_syntax),
        cmocka_unit_test(test_own_limits),
        cmocka_unit_test(test_long_conversation),
        cmocka_unit_test(test_origin),
        cmocka_unit_test(test_trusted),
        cmocka_unit_test(test_clock),
        cmocka_unit_test(test_mentions),
        cmocka_unit_test(test_renders_are_apart),
        cmocka_unit_test(test_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
