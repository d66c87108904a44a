/* Jinja: Python's two ways of formatting text: "%s of %3d" % (a, b) and "{} of {:>3}".format(a, b).
 * Fields of the second kind are names or numbers, without attributes or items. */
#include <math.h>
#include <stdio.h>

#include "moe/load/jinja_int.h"

enum { MAX_WIDTH = 100000, MAX_PRECISION = 60 };

struct spec {
    bool left, plus, space, zero, alt, comma;
    char align;               /* of braces: < > ^ = or 0 */
    const struct jstr *fill;  /* of braces */
    int64_t width, precision; /* -1: none */
    char type;
};

/* ---- numbers ---- */

static size_t put_commas(const char *digits, size_t n, char *out)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0) out[k++] = ',';
        out[k++] = digits[i];
    }
    return k;
}

/* Digits of |v| as the type wants them; their number. */
static size_t int_digits(struct jj *x, const struct spec *s, int64_t v, char *out)
{
    char buf[80];
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    size_t n = 0;
    if (s->type == 'b') {
        for (int bit = 63; bit >= 0; bit--)
            if (n || u >> bit & 1 || !bit) out[n++] = (char)('0' + (u >> bit & 1));
        return n;
    }
    const char *f = s->type == 'x' ? "%llx" : s->type == 'X' ? "%llX" : s->type == 'o' ? "%llo"
                                                                                        : "%llu";
    (void)x;
    n = (size_t)snprintf(buf, sizeof buf, f, (unsigned long long)u);
    if (s->comma) return put_commas(buf, n, out);
    memcpy(out, buf, n);
    return n;
}

static size_t float_digits(struct jj *x, const struct spec *s, double v, char *out, size_t cap)
{
    char f[8] = "%.*f", buf[512];
    int64_t p = s->precision < 0 ? 6 : s->precision;
    bool percent = s->type == '%';
    if (p > MAX_PRECISION) jj_fail(x, ERR_RANGE, "format: a precision of %lld", (long long)p);
    f[3] = percent ? 'f' : s->type;
    size_t n = (size_t)snprintf(buf, sizeof buf, f, (int)p, fabs(percent ? v * 100 : v));
    size_t whole = strspn(buf, "0123456789"), k;
    if (n + n / 3 + 8 > cap) jj_fail(x, ERR_RANGE, "format: a number too long");
    k = s->comma ? put_commas(buf, whole, out) : (memcpy(out, buf, whole), whole);
    memcpy(out + k, buf + whole, n - whole);
    k += n - whole;
    if (percent) out[k++] = '%';
    return k;
}

/* Sign and digits, with zeros between them up to the width when asked for. */
static struct jval number(struct jj *x, const struct spec *s, struct jval v)
{
    char digits[900];
    struct jsb b = {0};
    int64_t i = 0;
    double f = 0;
    bool is_float = strchr("eEfFgG%", s->type) != NULL;
    if (!is_float && v.t == V_FLOAT) i = num_trunc(x, v.u.f);
    else if (!is_float) (void)int_of(v, &i);
    else (void)num_of(v, &f);
    size_t n = is_float ? float_digits(x, s, f, digits, sizeof digits)
                        : int_digits(x, s, i, digits);
    bool minus = is_float ? signbit(f) && !isnan(f) : i < 0;
    sb_text(x, &b, minus ? "-" : s->plus ? "+" : s->space ? " " : "");
    if (s->alt && strchr("xXob", s->type)) {
        char prefix[2] = {'0', s->type};
        sb_put(x, &b, prefix, 2, false);
    }
    bool zeros = s->zero && !s->left && (!is_float || isfinite(f));
    int64_t want = zeros ? s->width : !is_float && s->align == 0 && s->precision > 0
                   ? s->precision + (int64_t)b.n : 0;
    for (int64_t k = (int64_t)(b.n + n); k < want; k++) sb_text(x, &b, "0");
    sb_put(x, &b, digits, n, false);
    return sb_val(x, &b);
}

static struct jval cut(struct jj *x, struct jval v, int64_t precision)
{
    if (precision < 0) return v;
    return jv_str(js_sub(x, v.u.s, 0, js_offset(x, v.u.s, (size_t)precision)));
}

/* ---- percent ---- */

static int64_t digits_at(struct jj *x, const struct jstr *s, size_t *i)
{
    int64_t v = 0;
    for (; *i < s->n && s->s[*i] >= '0' && s->s[*i] <= '9'; ++*i) {
        v = v * 10 + (s->s[*i] - '0');
        if (v > MAX_WIDTH) jj_fail(x, ERR_RANGE, "format: a width above %d", MAX_WIDTH);
    }
    return v;
}

struct percent {
    struct jval args;
    size_t next; /* of a tuple */
    bool named;
};

static struct jval next_arg(struct jj *x, struct percent *p)
{
    size_t n = p->args.t == V_TUPLE ? p->args.u.l->n : 1;
    if (p->next >= n) jj_fail(x, ERR_FORMAT, "not enough arguments for the format");
    size_t i = p->next++;
    return p->args.t == V_TUPLE ? p->args.u.l->v[i] : p->args;
}

/* "(name)" behind the '%'. */
static bool named_arg(struct jj *x, const struct jstr *s, size_t *i, struct percent *p,
                      struct jval *out)
{
    if (*i >= s->n || s->s[*i] != '(') return false;
    size_t from = ++*i;
    while (*i < s->n && s->s[*i] != ')') ++*i;
    if (p->args.t != V_DICT) jj_fail(x, ERR_FORMAT, "the format requires a mapping");
    const struct jval *v = *i < s->n ? jd_get(x, p->args.u.d, jv_str(js_sub(x, s, from, *i)))
                                     : NULL;
    if (!v) jj_fail(x, ERR_FORMAT, "the format's name is not in the mapping");
    ++*i;
    p->named = true;
    *out = *v;
    return true;
}

static struct spec percent_spec(struct jj *x, const struct jstr *s, size_t *i, struct percent *p)
{
    struct spec f = {.width = -1, .precision = -1};
    for (; *i < s->n; ++*i) {
        char c = s->s[*i];
        if (c == '-') f.left = true;
        else if (c == '+') f.plus = true;
        else if (c == ' ') f.space = true;
        else if (c == '0') f.zero = true;
        else if (c == '#') f.alt = true;
        else break;
    }
    if (*i < s->n && s->s[*i] == '*') {
        f.width = want_int(x, next_arg(x, p), "format: the width");
        if (f.width < 0) f.left = true;
        if (f.width > MAX_WIDTH || f.width < -MAX_WIDTH)
            jj_fail(x, ERR_RANGE, "format: a width above %d", MAX_WIDTH);
        f.width = f.width < 0 ? -f.width : f.width;
        ++*i;
    } else {
        f.width = digits_at(x, s, i);
    }
    if (*i < s->n && s->s[*i] == '.') {
        ++*i;
        f.precision = digits_at(x, s, i);
    }
    if (*i < s->n) f.type = s->s[(*i)++];
    return f;
}

static struct jval percent_value(struct jj *x, struct spec *f, struct jval v)
{
    struct jsb b = {0};
    double d;
    if (f->type == 's') return cut(x, jv_str(jv_to_str(x, v)), f->precision);
    if (f->type == 'r' || f->type == 'a') {
        jv_put_repr(x, &b, v);
        return cut(x, sb_val(x, &b), f->precision);
    }
    if (f->type == 'c' && v.t == V_STR && js_chars(x, v.u.s) == 1) return v;
    if (f->type == 'c') {
        sb_char(x, &b, (int32_t)(want_int(x, v, "format: a character") & 0x1fffff), false);
        return sb_val(x, &b);
    }
    if (!f->type || !strchr("diuxXoeEfFgG", f->type))
        jj_fail(x, ERR_FORMAT, "an unsupported format character");
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (!num_of(v, &d) || (v.t == V_FLOAT && strchr("xXo", f->type)))
        jj_fail(x, ERR_FORMAT, "%%%c format of a %s", f->type, jv_type(v));
    return number(x, f, v);
}

struct jval format_percent(struct jj *x, const struct jstr *s, struct jval args)
{
    struct jsb b = {0};
    struct percent p = {.args = args};
    size_t from = 0, i = 0;
    while (i < s->n) {
        if (s->s[i++] != '%') continue;
        sb_part(x, &b, s, from, i - 1);
        struct jval v;
        bool named = named_arg(x, s, &i, &p, &v);
        struct spec f = percent_spec(x, s, &i, &p);
        if (f.type == '%') {
            sb_text(x, &b, "%");
        } else {
            if (!named) v = next_arg(x, &p);
            v = percent_value(x, &f, v);
            sb_str(x, &b, js_pad(x, v.u.s, f.width, js_lit(x, " "), f.left ? '<' : '>').u.s);
        }
        from = i;
    }
    sb_part(x, &b, s, from, s->n);
    bool rest = args.t == V_TUPLE ? p.next < args.u.l->n
                                  : !p.next && args.t != V_DICT && args.t != V_LIST &&
                                        args.t != V_UNDEF && args.t != V_RANGE;
    if (rest && !p.named) jj_fail(x, ERR_FORMAT, "not all arguments of the format are used");
    return sb_val(x, &b);
}

/* ---- braces ---- */

static bool is_align(char c)
{
    return c == '<' || c == '>' || c == '^' || c == '=';
}

static struct spec brace_spec(struct jj *x, const struct jstr *s)
{
    struct spec f = {.width = 0, .precision = -1};
    size_t i = 0, first = s->n ? js_offset(x, s, 1) : 0;
    if (first && first < s->n && is_align(s->s[first])) {
        f.fill = js_sub(x, s, 0, first);
        f.align = s->s[first];
        i = first + 1;
    } else if (s->n && is_align(s->s[0])) {
        f.align = s->s[i++];
    }
    for (; i < s->n && strchr("+- #", s->s[i]) && s->s[i]; i++) {
        f.plus |= s->s[i] == '+';
        f.space |= s->s[i] == ' ';
        f.alt |= s->s[i] == '#';
    }
    if (i < s->n && s->s[i] == '0') {
        f.zero = !f.align;
        i++;
    }
    f.width = digits_at(x, s, &i);
    if (i < s->n && s->s[i] == ',') {
        f.comma = true;
        i++;
    }
    if (i + 1 < s->n && s->s[i] == '.') {
        i++;
        f.precision = digits_at(x, s, &i);
    }
    if (i < s->n) f.type = s->s[i++];
    if (i < s->n) jj_fail(x, ERR_UNSUPPORTED, "format: this specification is not supported");
    return f;
}

static struct jval plain_number(struct jj *x, struct spec *f, struct jval v)
{
    if (!f->type && v.t == V_INT) f->type = 'd';
    if (!f->type) {
        if (f->precision >= 0 || f->comma)
            jj_fail(x, ERR_UNSUPPORTED, "format: a float needs a type such as f");
        return jv_str(jv_to_str(x, v));
    }
    bool whole = strchr("dxXob", f->type) != NULL;
    if ((!whole && !strchr("eEfFgG%", f->type)) || (whole && v.t == V_FLOAT) ||
        (whole && f->precision >= 0))
        jj_fail(x, ERR_FORMAT, "format: '%c' of a %s", f->type, jv_type(v));
    return number(x, f, v);
}

static const struct jstr *brace_value(struct jj *x, const struct jstr *how, struct jval v)
{
    double d;
    if (!how->n) return jv_to_str(x, v);
    struct spec f = brace_spec(x, how);
    bool num = num_of(v, &d) && v.t != V_BOOL;
    if (v.t == V_BOOL && f.type) {
        v = jv_int(v.u.b);
        num = true;
    }
    if (!num && v.t != V_STR && v.t != V_BOOL)
        jj_fail(x, ERR_FORMAT, "format: a specification for a %s", jv_type(v));
    if (num) {
        v = plain_number(x, &f, v);
    } else {
        if ((f.type && f.type != 's') || f.align == '=' || f.plus || f.space || f.alt || f.comma)
            jj_fail(x, ERR_FORMAT, "format: this specification is not for text");
        v = cut(x, jv_str(jv_to_str(x, v)), f.precision);
        if (f.zero) f.fill = js_lit(x, "0");
    }
    char align = f.align == '=' ? '>' : f.align ? f.align : num ? '>' : '<';
    struct jval fill = jv_str(f.fill ? f.fill : js_lit(x, " "));
    if (align != '^') return js_pad(x, v.u.s, f.width, fill.u.s, align).u.s;
    int64_t n = (int64_t)js_chars(x, v.u.s), left = f.width > n ? (f.width - n) / 2 : 0;
    const struct jstr *s = js_pad(x, v.u.s, n + left, fill.u.s, '>').u.s;
    return js_pad(x, s, f.width, fill.u.s, '<').u.s;
}

static struct jval field(struct jj *x, const struct jstr *name, const struct jargs *a,
                         int64_t *next)
{
    size_t i = 0;
    int64_t k = digits_at(x, name, &i);
    if (!name->n) k = (*next)++;
    if (i == name->n) {
        if (k >= (int64_t)a->n_pos) jj_fail(x, ERR_FORMAT, "format: not enough arguments");
        return a->pos[k];
    }
    for (size_t n = 0; n < a->n_kw; n++)
        if (js_eq(a->kw_name[n], name)) return a->kw[n];
    if (memchr(name->s, '.', name->n) || memchr(name->s, '[', name->n))
        jj_fail(x, ERR_UNSUPPORTED, "format: attributes of fields are not supported");
    jj_fail(x, ERR_FORMAT, "format: no argument of that name");
}

/* One "{name!conversion:specification}", from behind the brace up to `end`. */
static void put_field(struct jj *x, struct jsb *b, const struct jstr *s, size_t from, size_t end,
                      const struct jargs *a, int64_t *next)
{
    size_t name = from;
    char conv = 0;
    while (name < end && s->s[name] != '!' && s->s[name] != ':') name++;
    size_t how = name;
    if (how + 1 < end && s->s[how] == '!') {
        conv = s->s[how + 1];
        how += 2;
    }
    if (how < end && s->s[how] != ':') jj_fail(x, ERR_FORMAT, "format: a malformed field");
    struct jval v = field(x, js_sub(x, s, from, name), a, next);
    if (conv && conv != 'r' && conv != 's') jj_fail(x, ERR_UNSUPPORTED, "format: !%c", conv);
    if (conv == 's') v = jv_str(jv_to_str(x, v));
    if (conv == 'r') {
        struct jsb r = {0};
        jv_put_repr(x, &r, v);
        v = sb_val(x, &r);
    }
    sb_str(x, b, brace_value(x, js_sub(x, s, how < end ? how + 1 : end, end), v));
}

struct jval format_braces(struct jj *x, struct jval self, const struct jargs *a)
{
    const struct jstr *s = self.u.s;
    struct jsb b = {0};
    int64_t next = 0;
    for (size_t i = 0; i < s->n; i++) {
        char c = s->s[i];
        if (c != '{' && c != '}') {
            sb_part(x, &b, s, i, i + 1);
        } else if (i + 1 < s->n && s->s[i + 1] == c) {
            sb_part(x, &b, s, i, i + 1);
            i++;
        } else {
            size_t end = i + 1;
            while (end < s->n && s->s[end] != '}' && s->s[end] != '{') end++;
            if (c == '}' || end == s->n || s->s[end] == '{')
                jj_fail(x, ERR_FORMAT, "format: a single or nested brace");
            put_field(x, &b, s, i + 1, end, a, &next);
            i = end;
        }
    }
    jj_work(x, 8 * s->n);
    return sb_val(x, &b);
}
