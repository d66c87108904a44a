/* Jinja: variables from JSON, and the filter tojson (json.dumps as Hugging Face calls it). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "moe/load/jinja_int.h"

/* ---- reading ---------------------------------------------------------------------------------
 * While a value is read, bit i of `on` says that the keys down to it match the first components
 * of trusted path i.  A path that has ended trusts all that lies below. */

enum { MAX_PATHS = 32 };
struct reader {
    struct jj *x;
    const char *text, *s;
    const char *const *trusted;
};

static struct jval read_value(struct reader *r, const char **at, uint32_t on, bool trusted);

static _Noreturn void bad(struct reader *r, const char *what)
{
    jj_fail(r->x, ERR_USAGE, "the variables of the chat template are no JSON: %s at byte %zu",
            what, (size_t)(r->s - r->text));
}

static void blanks(struct reader *r)
{
    r->s += strspn(r->s, " \t\r\n");
}

static bool eat(struct reader *r, char c)
{
    blanks(r);
    if (*r->s != c) return false;
    r->s++;
    return true;
}

static uint32_t hex4(struct reader *r)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++, r->s++) {
        char c = *r->s;
        int d = c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f'
                ? (c | 0x20) - 'a' + 10 : -1;
        if (d < 0) bad(r, "a bad \\u");
        v = v << 4 | (uint32_t)d;
    }
    return v;
}

static int32_t read_unicode(struct reader *r)
{
    uint32_t c = hex4(r);
    if (c >= 0xd800 && c < 0xdc00 && r->s[0] == '\\' && r->s[1] == 'u') {
        const char *back = r->s;
        r->s += 2;
        uint32_t low = hex4(r);
        if (low >= 0xdc00 && low < 0xe000) return (int32_t)(0x10000 + ((c - 0xd800) << 10) +
                                                           (low - 0xdc00));
        r->s = back;
    }
    return (int32_t)c;
}

static void read_escape(struct reader *r, struct jsb *b, bool tainted)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = *r->s ? *r->s++ : 0;
    const char *p = c ? strchr(from, c) : NULL;
    if (p) sb_put(r->x, b, &to[p - from], 1, tainted);
    else if (c == 'u') sb_char(r->x, b, read_unicode(r), tainted);
    else bad(r, "a bad escape");
}

static struct jval read_string(struct reader *r, bool tainted)
{
    struct jsb b = {0};
    for (;;) {
        size_t n = strcspn(r->s, "\"\\");
        for (size_t i = 0; i < n; i++)
            if ((unsigned char)r->s[i] < 0x20) bad(r, "a control character in a string");
        sb_put(r->x, &b, r->s, n, tainted);
        r->s += n;
        if (!*r->s) bad(r, "an open string");
        if (*r->s++ == '"') return sb_val(r->x, &b);
        read_escape(r, &b, tainted);
    }
}

static size_t span_digits(const char *s)
{
    return strspn(s, "0123456789");
}

static struct jval read_number(struct reader *r)
{
    const char *s = r->s, *start = s;
    s += *s == '-';
    size_t digits = span_digits(s);
    if (!digits || (digits > 1 && *s == '0')) bad(r, "a bad value");
    s += digits;
    bool whole = true;
    if (*s == '.' && span_digits(s + 1)) {
        s += 1 + span_digits(s + 1);
        whole = false;
    }
    const char *e = s;
    if ((*e | 0x20) == 'e') {
        e += 1 + (e[1] == '+' || e[1] == '-');
        if (span_digits(e)) {
            s = e + span_digits(e);
            whole = false;
        }
    }
    r->s = s;
    jj_work(r->x, (size_t)(s - start));
    if (!whole) return jv_float(strtod(start, NULL));
    int64_t v;
    struct jstr text = {.s = start, .n = (size_t)(s - start)};
    (void)num_int(r->x, &text, 10, &v);
    return jv_int(v);
}

/* Which paths are still on below `key` (NULL: an item of an array); *ends when one ends there.
 * at[i] is what is left of path i. */
static uint32_t step_paths(const struct reader *r, const char **at, const char **below,
                           uint32_t on, const struct jstr *key, bool *ends)
{
    uint32_t still = 0;
    for (int i = 0; i < MAX_PATHS && r->trusted[i]; i++) {
        if (!(on >> i & 1)) continue;
        size_t n = strcspn(at[i], ".");
        bool star = n == 1 && at[i][0] == '*';
        if (!star && (!key || key->n != n || memcmp(key->s, at[i], n))) continue;
        if (!at[i][n]) {
            *ends = true;
            continue;
        }
        below[i] = at[i] + n + 1;
        still |= 1u << i;
    }
    return still;
}

static struct jval read_member(struct reader *r, const char **at, uint32_t on, bool trusted,
                               const struct jstr *key)
{
    const char *below[MAX_PATHS];
    if (on) on = step_paths(r, at, below, on, key, &trusted);
    return read_value(r, below, on, trusted);
}

static struct jval read_array(struct reader *r, const char **at, uint32_t on, bool trusted)
{
    struct jval l = jl_new(r->x, V_LIST, 0);
    if (eat(r, ']')) return l;
    do jl_push(r->x, l.u.l, read_member(r, at, on, trusted, NULL));
    while (eat(r, ','));
    if (!eat(r, ']')) bad(r, "no ',' or ']'");
    return l;
}

static struct jval read_object(struct reader *r, const char **at, uint32_t on, bool trusted)
{
    struct jval d = jd_new(r->x);
    if (eat(r, '}')) return d;
    do {
        if (!eat(r, '"')) bad(r, "no key");
        struct jval k = read_string(r, !trusted);
        if (!eat(r, ':')) bad(r, "no ':'");
        jd_set(r->x, d.u.d, k, read_member(r, at, on, trusted, k.u.s));
    } while (eat(r, ','));
    if (!eat(r, '}')) bad(r, "no ',' or '}'");
    return d;
}

static struct jval read_word(struct reader *r, const char *word, struct jval v)
{
    size_t n = strlen(word);
    if (strncmp(r->s, word, n)) bad(r, "a bad value");
    r->s += n;
    return v;
}

static struct jval read_value(struct reader *r, const char **at, uint32_t on, bool trusted)
{
    struct jval v;
    jj_step(r->x, 1);
    jj_down(r->x);
    blanks(r);
    switch (*r->s) {
    case '{': r->s++; v = read_object(r, at, on, trusted); break;
    case '[': r->s++; v = read_array(r, at, on, trusted); break;
    case '"': r->s++; v = read_string(r, !trusted); break;
    case 't': v = read_word(r, "true", jv_bool(true)); break;
    case 'f': v = read_word(r, "false", jv_bool(false)); break;
    case 'n': v = read_word(r, "null", JV_NONE); break;
    default: v = read_number(r);
    }
    jj_up(r->x);
    return v;
}

struct jval json_read(struct jj *x, const char *text, const char *const *trusted)
{
    struct reader r = {.x = x, .text = text, .s = text, .trusted = trusted};
    uint32_t on = 0;
    const char *at[MAX_PATHS] = {0};
    for (int i = 0; i < MAX_PATHS && trusted[i]; i++) {
        at[i] = trusted[i];
        on |= 1u << i;
    }
    blanks(&r);
    if (*r.s != '{') bad(&r, "not an object");
    struct jval v = read_value(&r, at, on, false);
    blanks(&r);
    if (*r.s) bad(&r, "something behind the object");
    return v;
}

/* ---- writing ---- */

struct writer {
    struct jj *x;
    struct jsb b;
    bool ascii, sort;
    const struct jstr *indent;          /* NULL: one line */
    const struct jstr *between, *colon; /* separators */
};

static void write_value(struct writer *w, struct jval v, int level);

static void write_char(struct writer *w, int32_t cp, bool tainted)
{
    char esc[16];
    if (cp >= 0x10000)
        (void)snprintf(esc, sizeof esc, "\\u%04x\\u%04x",
                       (unsigned)(0xd800 + ((cp - 0x10000) >> 10)),
                       (unsigned)(0xdc00 + ((cp - 0x10000) & 0x3ff)));
    else (void)snprintf(esc, sizeof esc, "\\u%04x", (unsigned)cp & 0xffff);
    sb_put(w->x, &w->b, esc, strlen(esc), tainted);
}

static void write_string(struct writer *w, const struct jstr *s)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    sb_text(w->x, &w->b, "\"");
    size_t plain = 0;
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        size_t len = (size_t)u8_get(s->s + i, s->n - i, &cp);
        const char *p = cp > 0 && cp < 0x80 ? strchr(from, cp) : NULL;
        if (p || (cp >= 0 && cp < 0x20) || (w->ascii && (cp < 0 || cp >= 0x7f))) {
            sb_part(w->x, &w->b, s, plain, i);
            plain = i + len;
            char two[2] = {'\\', p ? to[p - from] : 0};
            if (p) sb_put(w->x, &w->b, two, 2, js_tainted(s, i));
            else write_char(w, cp < 0 ? 0xfffd : cp, js_tainted(s, i));
        }
        i += len;
    }
    sb_part(w->x, &w->b, s, plain, s->n);
    sb_text(w->x, &w->b, "\"");
}

static void write_line(struct writer *w, int level)
{
    if (!w->indent) return;
    sb_text(w->x, &w->b, "\n");
    for (int i = 0; i < level; i++) sb_str(w->x, &w->b, w->indent);
}

static void write_list(struct writer *w, const struct jlist *l, int level)
{
    sb_text(w->x, &w->b, "[");
    for (size_t i = 0; i < l->n; i++) {
        if (i) sb_str(w->x, &w->b, w->between);
        write_line(w, level + 1);
        write_value(w, l->v[i], level + 1);
    }
    if (l->n) write_line(w, level);
    sb_text(w->x, &w->b, "]");
}

static void write_key(struct writer *w, struct jval k, int level)
{
    if (k.t == V_STR) {
        write_string(w, k.u.s);
        return;
    }
    if (k.t != V_NONE && k.t != V_BOOL && k.t != V_INT && k.t != V_FLOAT)
        jj_fail(w->x, ERR_FORMAT, "tojson: a key of type %s", jv_type(k));
    sb_text(w->x, &w->b, "\"");
    write_value(w, k, level);
    sb_text(w->x, &w->b, "\"");
}

/* The entries in order of their keys.  Insertion: objects are small, and comparisons cost steps. */
static struct jentry *sorted(struct jj *x, const struct jdict *d)
{
    struct jentry *e = jj_array(x, d->n, sizeof *e);
    for (size_t i = 0; i < d->n; i++) {
        size_t k = i;
        for (; k && jv_cmp(x, d->e[i].k, e[k - 1].k, "<") < 0; k--) e[k] = e[k - 1];
        e[k] = d->e[i];
    }
    return e;
}

static void write_dict(struct writer *w, const struct jdict *d, int level)
{
    const struct jentry *e = w->sort && d->n ? sorted(w->x, d) : d->e;
    sb_text(w->x, &w->b, "{");
    for (size_t i = 0; i < d->n; i++) {
        if (i) sb_str(w->x, &w->b, w->between);
        write_line(w, level + 1);
        write_key(w, e[i].k, level + 1);
        sb_str(w->x, &w->b, w->colon);
        write_value(w, e[i].v, level + 1);
    }
    if (d->n) write_line(w, level);
    sb_text(w->x, &w->b, "}");
}

static void write_float(struct writer *w, double f)
{
    char buf[NUM_TEXT];
    if (isnan(f)) sb_text(w->x, &w->b, "NaN");
    else if (isinf(f)) sb_text(w->x, &w->b, f < 0 ? "-Infinity" : "Infinity");
    else sb_put(w->x, &w->b, buf, (size_t)num_repr(f, buf), false);
}

static void write_value(struct writer *w, struct jval v, int level)
{
    jj_step(w->x, 1);
    jj_down(w->x);
    switch (v.t) {
    case V_NONE: sb_text(w->x, &w->b, "null"); break;
    case V_BOOL: sb_text(w->x, &w->b, v.u.b ? "true" : "false"); break;
    case V_INT: jv_put_repr(w->x, &w->b, v); break;
    case V_FLOAT: write_float(w, v.u.f); break;
    case V_STR: write_string(w, v.u.s); break;
    case V_LIST:
    case V_TUPLE: write_list(w, v.u.l, level); break;
    case V_DICT: write_dict(w, v.u.d, level); break;
    default: jj_fail(w->x, ERR_FORMAT, "tojson: a value of type %s%s%s", jv_type(v),
                     v.t == V_UNDEF && v.u.why ? ": " : "",
                     v.t == V_UNDEF && v.u.why ? v.u.why : "");
    }
    jj_up(w->x);
}

static const struct jstr *spaces(struct jj *x, int64_t n)
{
    if (n > 1000) jj_fail(x, ERR_RANGE, "tojson: an indent of %lld", (long long)n);
    if (n <= 0) return js_lit(x, "");
    char *s = jj_bytes(x, (size_t)n);
    memset(s, ' ', (size_t)n);
    return js_new(x, s, (size_t)n, false);
}

static void separators(struct writer *w, const struct jval *v)
{
    w->between = js_lit(w->x, w->indent ? "," : ", ");
    w->colon = js_lit(w->x, ": ");
    if (!v || v->t == V_NONE) return;
    struct jval l = it_list(w->x, *v);
    if (l.u.l->n != 2) jj_fail(w->x, ERR_FORMAT, "tojson: separators are two strings");
    w->between = want_str(w->x, l.u.l->v[0], "tojson: a separator");
    w->colon = want_str(w->x, l.u.l->v[1], "tojson: a separator");
}

/* tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false) */
struct jval f_tojson(struct jj *x, struct jval v, const struct jval *const *a)
{
    struct writer w = {.x = x};
    w.ascii = a[0] && jv_true(x, *a[0]);
    w.sort = a[3] && jv_true(x, *a[3]);
    if (a[1] && a[1]->t == V_STR) w.indent = a[1]->u.s;
    else if (a[1] && a[1]->t != V_NONE) w.indent = spaces(x, want_int(x, *a[1], "tojson: indent"));
    separators(&w, a[2]);
    write_value(&w, v, 0);
    return sb_val(x, &w.b);
}
