/* Jinja: how filters are called, and those that work on text, numbers and anything; the ones for
 * sequences are in jinja_seq.c. */
#include <math.h>

#include "moe/load/jinja_int.h"

/* ---- arguments ---- */

/* Length of the word at s, up to a blank. */
static size_t word(const char *s)
{
    return strcspn(s, " ");
}

/* Puts what is given for parameter i, called s[n], into *out. */
static void bind_one(struct jj *x, const char *what, const char *s, size_t n, size_t i,
                     const struct jargs *a, const struct jval **out)
{
    *out = i < a->n_pos ? &a->pos[i] : NULL;
    for (size_t k = 0; k < a->n_kw; k++) {
        if (a->kw_name[k]->n != n || memcmp(a->kw_name[k]->s, s, n)) continue;
        if (*out) jj_fail(x, ERR_FORMAT, "%s: the argument %.*s is given twice", what, (int)n, s);
        *out = &a->kw[k];
    }
}

void jj_bind(struct jj *x, const char *what, const char *params, const struct jargs *a,
             const struct jval **out)
{
    size_t n = 0, named = 0;
    bool required = strchr(params, ';') != NULL;
    for (int i = 0; i < MAX_PARAMS; i++) out[i] = NULL;
    for (const char *s = params; *s;) {
        size_t len = word(s);
        if (*s == ';') {
            required = false;
        } else {
            bind_one(x, what, s, len, n, a, &out[n]);
            named += out[n] && n >= a->n_pos;
            if (required && !out[n])
                jj_fail(x, ERR_FORMAT, "%s: the argument %.*s is missing", what, (int)len, s);
            n++;
        }
        s += len + (s[len] == ' ');
    }
    if (a->n_pos > n) jj_fail(x, ERR_FORMAT, "%s takes at most %zu arguments", what, n);
    if (a->n_kw > named) jj_fail(x, ERR_FORMAT, "%s does not take this keyword argument", what);
}

const struct jstr *want_str(struct jj *x, struct jval v, const char *what)
{
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (v.t != V_STR) jj_fail(x, ERR_FORMAT, "%s must be a string, not a %s", what, jv_type(v));
    return v.u.s;
}

int64_t want_int(struct jj *x, struct jval v, const char *what)
{
    int64_t i;
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (!int_of(v, &i))
        jj_fail(x, ERR_FORMAT, "%s must be an integer, not a %s", what, jv_type(v));
    return i;
}

struct jval filter_call(struct jj *x, const struct jfilter *f, struct jval v,
                        const struct jargs *a)
{
    const struct jval *bound[MAX_PARAMS];
    jj_step(x, 1);
    if (f->f_args) return f->f_args(x, v, a);
    jj_bind(x, f->name, f->params, a, bound);
    return f->f(x, v, bound);
}

const struct jfilter *filter_find(const char *name, size_t n)
{
    const struct jfilter *f = filter_find_text(name, n);
    return f ? f : filter_find_seq(name, n);
}

/* ---- text ---- */

#define FILTER(f) static struct jval f(struct jj *x, struct jval v, const struct jval *const *a)

FILTER(f_upper)
{
    (void)a;
    return js_case(x, jv_to_str(x, v), CASE_UPPER);
}

FILTER(f_lower)
{
    (void)a;
    return js_case(x, jv_to_str(x, v), CASE_LOWER);
}

FILTER(f_capitalize)
{
    (void)a;
    return js_capitalize(x, jv_to_str(x, v));
}

static bool splits_words(int32_t cp)
{
    return cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<' || u8_space(cp);
}

/* Not Python's title(): "it's" keeps its small s. */
FILTER(f_title)
{
    (void)a;
    const struct jstr *s = jv_to_str(x, v);
    struct jsb b = {0};
    bool begin = true;
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        size_t len = (size_t)u8_get(s->s + i, s->n - i, &cp);
        case_put(x, &b, s, i, i + len, begin ? CASE_UPPER : CASE_LOWER);
        begin = splits_words(cp);
        i += len;
    }
    return sb_val(x, &b);
}

FILTER(f_trim)
{
    return js_strip(x, jv_to_str(x, v), a[0], STRIP_LEFT | STRIP_RIGHT);
}

FILTER(f_replace)
{
    int64_t count = a[2] && a[2]->t != V_NONE ? want_int(x, *a[2], "replace: count") : -1;
    return js_replace(x, jv_to_str(x, v), jv_to_str(x, *a[0]), jv_to_str(x, *a[1]), count);
}

FILTER(f_string)
{
    (void)a;
    return jv_str(jv_to_str(x, v));
}

FILTER(f_escape)
{
    (void)a;
    const struct jstr *s = jv_to_str(x, v);
    return jv_str(s->markup ? s : js_escape(x, s));
}

FILTER(f_forceescape)
{
    (void)a;
    return jv_str(js_escape(x, jv_to_str(x, v)));
}

FILTER(f_safe)
{
    (void)a;
    struct jstr *s = jj_alloc(x, sizeof *s);
    *s = *jv_to_str(x, v);
    s->markup = true;
    return jv_str(s);
}

static struct jval spaces(struct jj *x, int64_t n)
{
    return js_pad(x, js_lit(x, ""), n < 0 ? 0 : n, js_lit(x, " "), '<');
}

/* indent(width=4, first=false, blank=false): blank lines stay as they are unless blank. */
FILTER(f_indent)
{
    const struct jstr *s = want_str(x, v, "indent: the value");
    struct jval by = a[0] ? *a[0] : jv_int(4);
    if (by.t != V_STR) by = spaces(x, want_int(x, by, "indent: width"));
    bool first = a[1] && jv_true(x, *a[1]), blank = a[2] && jv_true(x, *a[2]);
    struct jval lines = js_lines(x, js_cat(x, s, js_lit(x, "\n")), false);
    struct jsb b = {0};
    for (size_t i = 0; i < lines.u.l->n; i++) {
        const struct jstr *line = lines.u.l->v[i].u.s;
        if (i) sb_text(x, &b, "\n");
        if (i ? line->n || blank : first) sb_str(x, &b, by.u.s);
        sb_str(x, &b, line);
    }
    return sb_val(x, &b);
}

FILTER(f_center)
{
    int64_t width = a[0] ? want_int(x, *a[0], "center: width") : 80;
    return js_pad(x, jv_to_str(x, v), width, js_lit(x, " "), '^');
}

FILTER(f_wordcount)
{
    (void)a;
    const struct jstr *s = jv_to_str(x, v);
    int64_t words = 0;
    bool inside = false;
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        size_t len = (size_t)u8_get(s->s + i, s->n - i, &cp);
        struct jstr one = {.s = s->s + i, .n = len};
        bool now = cp == '_' || js_class(x, &one, IS_ALNUM);
        words += now && !inside;
        inside = now;
        i += len;
    }
    jj_work(x, 8 * s->n);
    return jv_int(words);
}

static struct jval f_format(struct jj *x, struct jval v, const struct jargs *a)
{
    struct jval args;
    if (a->n_kw && a->n_pos)
        jj_fail(x, ERR_FORMAT, "format takes positional or keyword arguments, not both");
    if (a->n_kw) {
        args = jd_new(x);
        for (size_t i = 0; i < a->n_kw; i++) jd_set(x, args.u.d, jv_str(a->kw_name[i]), a->kw[i]);
    } else {
        args = jl_new(x, V_TUPLE, a->n_pos);
        if (a->n_pos) memcpy(args.u.l->v, a->pos, a->n_pos * sizeof args);
    }
    return format_percent(x, jv_to_str(x, v), args);
}

/* ---- numbers ---- */

FILTER(f_int)
{
    int64_t i;
    double f;
    struct jval dflt = a[0] ? *a[0] : jv_int(0);
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (int_of(v, &i)) return jv_int(i);
    if (v.t == V_STR) {
        int64_t base = a[1] ? want_int(x, *a[1], "int: base") : 10;
        if (num_int(x, v.u.s, base < 0 || base > 36 ? 99 : (int)base, &i)) return jv_int(i);
        if (!num_float(x, v.u.s, &f) || !isfinite(f)) return dflt;
        return jv_int(num_trunc(x, f));
    }
    if (!num_of(v, &f) || isnan(f)) return dflt;
    return jv_int(num_trunc(x, f));
}

FILTER(f_float)
{
    double f;
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (num_of(v, &f) || (v.t == V_STR && num_float(x, v.u.s, &f))) return jv_float(f);
    return a[0] ? *a[0] : jv_float(0);
}

static void want_number(struct jj *x, struct jval v, const char *what)
{
    double f;
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (!num_of(v, &f)) jj_fail(x, ERR_FORMAT, "%s of a %s", what, jv_type(v));
}

FILTER(f_abs)
{
    (void)a;
    want_number(x, v, "abs");
    if (v.t == V_FLOAT) return jv_float(fabs(v.u.f));
    int64_t i = 0;
    (void)int_of(v, &i);
    return i < 0 ? num_op(x, OP_SUB, jv_int(0), jv_int(i)) : jv_int(i);
}

FILTER(f_round)
{
    double f;
    want_number(x, v, "round");
    int64_t digits = a[0] ? want_int(x, *a[0], "round: precision") : 0;
    const struct jstr *how = a[1] ? want_str(x, *a[1], "round: method") : js_lit(x, "common");
    if (js_is(how, "common")) return num_round(x, v, digits);
    bool up = js_is(how, "ceil");
    if (!up && !js_is(how, "floor")) jj_fail(x, ERR_FORMAT, "round: no such method");
    (void)num_of(v, &f);
    double unit = pow(10, (double)digits);
    if (!isfinite(f * unit) || unit == 0) jj_fail(x, ERR_FORMAT, "round: a number too large");
    double whole = up ? ceil(f * unit) : floor(f * unit);
    return jv_float(whole == 0 ? 0 : whole / unit); /* no minus zero: Python's ceil is an int */
}

/* ---- anything ---- */

FILTER(f_length)
{
    (void)a;
    int64_t n;
    if (!jv_len(x, v, &n)) jj_fail(x, ERR_FORMAT, "a %s has no length", jv_type(v));
    return jv_int(n);
}

FILTER(f_default)
{
    bool falsy = a[1] && jv_true(x, *a[1]);
    if (v.t != V_UNDEF && !(falsy && !jv_true(x, v))) return v;
    return a[0] ? *a[0] : jv_str(js_lit(x, ""));
}

const struct jfilter *filter_find_text(const char *name, size_t n)
{
    static const struct jfilter table[] = {
        {"abs", "", f_abs, NULL},
        {"capitalize", "", f_capitalize, NULL},
        {"center", "width", f_center, NULL},
        {"count", "", f_length, NULL},
        {"d", "default_value boolean", f_default, NULL},
        {"default", "default_value boolean", f_default, NULL},
        {"e", "", f_escape, NULL},
        {"escape", "", f_escape, NULL},
        {"float", "default", f_float, NULL},
        {"forceescape", "", f_forceescape, NULL},
        {"format", NULL, NULL, f_format},
        {"indent", "width first blank", f_indent, NULL},
        {"int", "default base", f_int, NULL},
        {"length", "", f_length, NULL},
        {"lower", "", f_lower, NULL},
        {"replace", "old new ; count", f_replace, NULL},
        {"round", "precision method", f_round, NULL},
        {"safe", "", f_safe, NULL},
        {"string", "", f_string, NULL},
        {"title", "", f_title, NULL},
        {"tojson", "ensure_ascii indent separators sort_keys", f_tojson, NULL},
        {"trim", "chars", f_trim, NULL},
        {"upper", "", f_upper, NULL},
        {"wordcount", "", f_wordcount, NULL},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strlen(table[i].name) == n && !memcmp(table[i].name, name, n)) return &table[i];
    return NULL;
}
