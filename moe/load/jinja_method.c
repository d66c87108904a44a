/* Jinja: the methods of strings, dicts and lists that templates may call.  What changes a value is
 * known by name only, and refused; list.append is the exception, for templates that were never run
 * by anything stricter. */
#include "moe/load/jinja_int.h"

#define METHOD(f) static struct jval f(struct jj *x, struct jval v, const struct jval *const *a)

/* ---- strings: ends ---- */

static bool has_char(const struct jstr *set, const char *s, size_t n)
{
    for (size_t i = 0; i + n <= set->n; i++)
        if (!memcmp(set->s + i, s, n)) return true;
    return false;
}

static bool strips(struct jj *x, const struct jstr *set, const char *s, size_t n)
{
    int32_t cp;
    if (set) {
        jj_work(x, set->n);
        return has_char(set, s, n);
    }
    (void)u8_get(s, n, &cp);
    return u8_space(cp);
}

static size_t char_before(const char *s, size_t end)
{
    size_t at = end - 1;
    int32_t cp;
    while (at && end - at < 4 && ((unsigned char)s[at] & 0xc0) == 0x80) at--;
    return (size_t)u8_get(s + at, end - at, &cp) == end - at ? at : end - 1;
}

/* Without the characters in `chars` (NULL or None: white space) on these sides. */
struct jval js_strip(struct jj *x, const struct jstr *s, const struct jval *chars, int sides)
{
    const struct jstr *set = chars && chars->t != V_NONE ? want_str(x, *chars, "strip: chars")
                                                         : NULL;
    size_t from = 0, to = s->n;
    int32_t cp;
    while (sides & STRIP_LEFT && from < to) {
        size_t len = (size_t)u8_get(s->s + from, to - from, &cp);
        if (!strips(x, set, s->s + from, len)) break;
        from += len;
    }
    while (sides & STRIP_RIGHT && to > from) {
        size_t at = char_before(s->s, to);
        if (!strips(x, set, s->s + at, to - at)) break;
        to = at;
    }
    jj_work(x, 8 * (s->n - (to - from)));
    return jv_str(js_sub(x, s, from, to));
}

METHOD(m_strip) { return js_strip(x, v.u.s, a[0], STRIP_LEFT | STRIP_RIGHT); }
METHOD(m_lstrip) { return js_strip(x, v.u.s, a[0], STRIP_LEFT); }
METHOD(m_rstrip) { return js_strip(x, v.u.s, a[0], STRIP_RIGHT); }

/* The bytes of s that s[start:end] is; false when start lies behind the end. */
static bool part(struct jj *x, const struct jstr *s, const struct jval *start,
                 const struct jval *end, size_t *from, size_t *to)
{
    *from = 0;
    *to = s->n;
    bool has_start = start && start->t != V_NONE, has_end = end && end->t != V_NONE;
    if (!has_start && !has_end) return true;
    int64_t n = (int64_t)js_chars(x, s);
    int64_t i = has_start ? want_int(x, *start, "start") : 0;
    int64_t k = has_end ? want_int(x, *end, "end") : n;
    i = i < 0 ? i + n < 0 ? 0 : i + n : i;
    k = k < 0 ? k + n < 0 ? 0 : k + n : k > n ? n : k;
    if (i > n || i > k) return false;
    *from = js_offset(x, s, (size_t)i);
    *to = js_offset(x, s, (size_t)k);
    return true;
}

static bool fits(struct jj *x, const struct jstr *s, const struct jstr *end, bool front)
{
    if (end->n > s->n) return false;
    jj_work(x, end->n);
    return !end->n || !memcmp(front ? s->s : s->s + s->n - end->n, end->s, end->n);
}

static struct jval any_fits(struct jj *x, struct jval v, const struct jval *const *a, bool front)
{
    size_t from, to;
    if (!part(x, v.u.s, a[1], a[2], &from, &to)) return jv_bool(false);
    const struct jstr *s = js_sub(x, v.u.s, from, to);
    if (a[0]->t != V_TUPLE)
        return jv_bool(fits(x, s, want_str(x, *a[0], "the prefix or suffix"), front));
    for (size_t i = 0; i < a[0]->u.l->n; i++)
        if (fits(x, s, want_str(x, a[0]->u.l->v[i], "the prefix or suffix"), front))
            return jv_bool(true);
    return jv_bool(false);
}

METHOD(m_startswith) { return any_fits(x, v, a, true); }
METHOD(m_endswith) { return any_fits(x, v, a, false); }

METHOD(m_removeprefix)
{
    const struct jstr *s = v.u.s, *p = want_str(x, *a[0], "removeprefix");
    return jv_str(fits(x, s, p, true) ? js_sub(x, s, p->n, s->n) : s);
}

METHOD(m_removesuffix)
{
    const struct jstr *s = v.u.s, *p = want_str(x, *a[0], "removesuffix");
    return jv_str(fits(x, s, p, false) ? js_sub(x, s, 0, s->n - p->n) : s);
}

/* ---- strings: pieces ---- */

static void push(struct jj *x, struct jval l, const struct jstr *s, size_t from, size_t to)
{
    jl_push(x, l.u.l, jv_str(js_sub(x, s, from, to)));
}

static struct jval split_space(struct jj *x, const struct jstr *s, int64_t max)
{
    struct jval l = jl_new(x, V_LIST, 0);
    size_t i = 0;
    jj_work(x, 8 * s->n);
    for (;;) {
        i += u8_lspace(s->s + i, s->n - i);
        if (i >= s->n) return l;
        if (max-- == 0) break;
        size_t from = i;
        int32_t cp;
        while (i < s->n) {
            size_t len = (size_t)u8_get(s->s + i, s->n - i, &cp);
            if (u8_space(cp)) break;
            i += len;
        }
        push(x, l, s, from, i);
    }
    push(x, l, s, i, s->n);
    return l;
}

static void turn_round(struct jlist *l)
{
    for (size_t i = 0, k = l->n; i + 1 < k; i++) {
        struct jval swap = l->v[i];
        l->v[i] = l->v[--k];
        l->v[k] = swap;
    }
}

static struct jval rsplit_space(struct jj *x, const struct jstr *s, int64_t max)
{
    struct jval l = jl_new(x, V_LIST, 0);
    size_t end = s->n;
    jj_work(x, 8 * s->n);
    for (;;) {
        end -= u8_rspace(s->s, end);
        if (!end) break;
        if (max-- == 0) {
            push(x, l, s, 0, end);
            break;
        }
        size_t to = end;
        while (end && !u8_rspace(s->s + char_before(s->s, end), end - char_before(s->s, end)))
            end = char_before(s->s, end);
        push(x, l, s, end, to);
    }
    turn_round(l.u.l);
    return l;
}

static struct jval split_at(struct jj *x, const struct jstr *s, const struct jstr *sep,
                            int64_t max)
{
    struct jval l = jl_new(x, V_LIST, 0);
    size_t from = 0;
    while (max-- != 0) {
        size_t at = js_find(x, s, sep, from);
        if (at == SIZE_MAX) break;
        push(x, l, s, from, at);
        from = at + sep->n;
    }
    push(x, l, s, from, s->n);
    return l;
}

static struct jval rsplit_at(struct jj *x, const struct jstr *s, const struct jstr *sep,
                             int64_t max)
{
    struct jval l = jl_new(x, V_LIST, 0);
    size_t end = s->n;
    while (max-- != 0) {
        size_t at = js_rfind(x, s, sep, end);
        if (at == SIZE_MAX) break;
        push(x, l, s, at + sep->n, end);
        end = at;
    }
    push(x, l, s, 0, end);
    turn_round(l.u.l);
    return l;
}

static struct jval split(struct jj *x, const struct jstr *s, const struct jval *const *a,
                         bool right)
{
    int64_t max = a[1] ? want_int(x, *a[1], "split: maxsplit") : -1;
    if (!a[0] || a[0]->t == V_NONE)
        return right ? rsplit_space(x, s, max) : split_space(x, s, max);
    const struct jstr *sep = want_str(x, *a[0], "split: the separator");
    if (!sep->n) jj_fail(x, ERR_FORMAT, "split: the separator is empty");
    return right ? rsplit_at(x, s, sep, max) : split_at(x, s, sep, max);
}

METHOD(m_split) { return split(x, v.u.s, a, false); }
METHOD(m_rsplit) { return split(x, v.u.s, a, true); }

static bool ends_line(int32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

struct jval js_lines(struct jj *x, const struct jstr *s, bool keep)
{
    struct jval l = jl_new(x, V_LIST, 0);
    size_t from = 0;
    jj_work(x, 4 * s->n);
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        size_t at = i;
        i += (size_t)u8_get(s->s + i, s->n - i, &cp);
        if (!ends_line(cp)) continue;
        if (cp == '\r' && i < s->n && s->s[i] == '\n') i++;
        push(x, l, s, from, keep ? i : at);
        from = i;
    }
    if (from < s->n) push(x, l, s, from, s->n);
    return l;
}

METHOD(m_splitlines)
{
    return js_lines(x, v.u.s, a[0] && jv_true(x, *a[0]));
}

static struct jval three(struct jj *x, const struct jstr *s, size_t a, size_t b)
{
    struct jval t = jl_new(x, V_TUPLE, 3);
    t.u.l->v[0] = jv_str(js_sub(x, s, 0, a));
    t.u.l->v[1] = jv_str(js_sub(x, s, a, b));
    t.u.l->v[2] = jv_str(js_sub(x, s, b, s->n));
    return t;
}

static struct jval partition(struct jj *x, const struct jstr *s, struct jval by, bool right)
{
    const struct jstr *sep = want_str(x, by, "partition: the separator");
    if (!sep->n) jj_fail(x, ERR_FORMAT, "partition: the separator is empty");
    size_t at = right ? js_rfind(x, s, sep, s->n) : js_find(x, s, sep, 0);
    if (at != SIZE_MAX) return three(x, s, at, at + sep->n);
    return right ? three(x, s, 0, 0) : three(x, s, s->n, s->n);
}

METHOD(m_partition) { return partition(x, v.u.s, *a[0], false); }
METHOD(m_rpartition) { return partition(x, v.u.s, *a[0], true); }

/* ---- strings: finding ---- */

/* The character where a[0] stands within s[a[1]:a[2]], or -1. */
static int64_t find(struct jj *x, const struct jstr *s, const struct jval *const *a, bool right)
{
    size_t from, to;
    const struct jstr *sub = want_str(x, *a[0], "find: the text");
    if (!part(x, s, a[1], a[2], &from, &to)) return -1;
    const struct jstr *in = js_sub(x, s, from, to);
    size_t at = right ? js_rfind(x, in, sub, in->n) : js_find(x, in, sub, 0);
    if (at == SIZE_MAX) return -1;
    return (int64_t)js_chars(x, js_sub(x, s, 0, from + at));
}

METHOD(m_find) { return jv_int(find(x, v.u.s, a, false)); }
METHOD(m_rfind) { return jv_int(find(x, v.u.s, a, true)); }

static struct jval found(struct jj *x, int64_t at)
{
    if (at < 0) jj_fail(x, ERR_FORMAT, "index: it is not in there");
    return jv_int(at);
}

METHOD(m_index) { return found(x, find(x, v.u.s, a, false)); }
METHOD(m_rindex) { return found(x, find(x, v.u.s, a, true)); }

METHOD(m_count)
{
    size_t from, to, n = 0;
    const struct jstr *sub = want_str(x, *a[0], "count: the text");
    if (!part(x, v.u.s, a[1], a[2], &from, &to)) return jv_int(0);
    const struct jstr *s = js_sub(x, v.u.s, from, to);
    if (!sub->n) return jv_int((int64_t)js_chars(x, s) + 1);
    for (size_t at = 0; (at = js_find(x, s, sub, at)) != SIZE_MAX; at += sub->n) n++;
    return jv_int((int64_t)n);
}

/* Between all characters, in front of the first and behind the last. */
static struct jval replace_nothing(struct jj *x, const struct jstr *s, const struct jstr *new,
                                   int64_t count)
{
    struct jsb b = {0};
    size_t i = 0;
    int32_t cp;
    while (count-- != 0) {
        sb_str(x, &b, new);
        jj_step(x, 1);
        if (i >= s->n) break;
        size_t len = (size_t)u8_get(s->s + i, s->n - i, &cp);
        sb_part(x, &b, s, i, i + len);
        i += len;
    }
    sb_part(x, &b, s, i, s->n);
    return sb_val(x, &b);
}

struct jval js_replace(struct jj *x, const struct jstr *s, const struct jstr *old,
                       const struct jstr *new, int64_t count)
{
    struct jsb b = {0};
    size_t from = 0;
    if (!old->n) return replace_nothing(x, s, new, count);
    while (count-- != 0) {
        size_t at = js_find(x, s, old, from);
        if (at == SIZE_MAX) break;
        jj_step(x, 1);
        sb_part(x, &b, s, from, at);
        sb_str(x, &b, new);
        from = at + old->n;
    }
    if (!from && !s->markup) return jv_str(s);
    sb_part(x, &b, s, from, s->n);
    return sb_val(x, &b);
}

METHOD(m_replace)
{
    const struct jstr *old = want_str(x, *a[0], "replace: old");
    const struct jstr *new = want_str(x, *a[1], "replace: new");
    return js_replace(x, v.u.s, old, new, a[2] ? want_int(x, *a[2], "replace: count") : -1);
}

/* ---- strings: the rest ---- */

METHOD(m_join)
{
    struct jsb b = {0};
    struct jval item;
    bool first = true;
    if (a[0]->t == V_UNDEF) return jv_str(js_lit(x, ""));
    for (struct jiter *it = it_open(x, *a[0]); it_next(x, it, &item); first = false) {
        if (!first) sb_str(x, &b, v.u.s);
        sb_str(x, &b, want_str(x, item, "join: an item"));
    }
    return sb_val(x, &b);
}

METHOD(m_upper) { (void)a; return js_case(x, v.u.s, CASE_UPPER); }
METHOD(m_lower) { (void)a; return js_case(x, v.u.s, CASE_LOWER); }
METHOD(m_swapcase) { (void)a; return js_case(x, v.u.s, CASE_SWAP); }
METHOD(m_capitalize) { (void)a; return js_capitalize(x, v.u.s); }
METHOD(m_title) { (void)a; return js_title(x, v.u.s); }

#define IS(name, class) METHOD(name) { (void)a; return jv_bool(js_class(x, v.u.s, class)); }
IS(m_isalpha, IS_ALPHA)
IS(m_isdigit, IS_DIGIT)
IS(m_isdecimal, IS_DECIMAL)
IS(m_isnumeric, IS_NUMERIC)
IS(m_isalnum, IS_ALNUM)
IS(m_isspace, IS_SPACE)
IS(m_isupper, IS_UPPER)
IS(m_islower, IS_LOWER)
IS(m_istitle, IS_TITLE)
IS(m_isascii, IS_ASCII)
IS(m_isprintable, IS_PRINTABLE)
IS(m_isidentifier, IS_IDENTIFIER)

static void put_times(struct jj *x, struct jsb *b, const struct jstr *s, int64_t n)
{
    for (; n > 0; n--) {
        jj_step(x, 1);
        sb_str(x, b, s);
    }
}

struct jval js_pad(struct jj *x, const struct jstr *s, int64_t width, const struct jstr *fill,
                   char mode)
{
    struct jsb b = {0};
    int64_t all = width - (int64_t)js_chars(x, s), left = 0;
    if (js_chars(x, fill) != 1) jj_fail(x, ERR_FORMAT, "the fill must be one character");
    if (all <= 0) return jv_str(s);
    if (mode == '>') left = all;
    if (mode == '^') left = all / 2 + (all & width & 1); /* as str.center rounds */
    put_times(x, &b, fill, left);
    sb_str(x, &b, s);
    put_times(x, &b, fill, all - left);
    return sb_val(x, &b);
}

static struct jval pad(struct jj *x, struct jval v, const struct jval *const *a, char mode)
{
    const struct jstr *fill = a[1] ? want_str(x, *a[1], "the fill") : js_lit(x, " ");
    return js_pad(x, v.u.s, want_int(x, *a[0], "the width"), fill, mode);
}

METHOD(m_ljust) { return pad(x, v, a, '<'); }
METHOD(m_rjust) { return pad(x, v, a, '>'); }
METHOD(m_center) { return pad(x, v, a, '^'); }

METHOD(m_zfill)
{
    const struct jstr *s = v.u.s;
    bool sign = s->n && (s->s[0] == '-' || s->s[0] == '+');
    struct jsb b = {0};
    sb_part(x, &b, s, 0, sign);
    put_times(x, &b, js_lit(x, "0"), want_int(x, *a[0], "the width") - (int64_t)js_chars(x, s));
    sb_part(x, &b, s, sign, s->n);
    return sb_val(x, &b);
}

/* ---- dicts ---- */

static struct jval view(struct jj *x, struct jval v, enum jview_kind kind)
{
    struct jview *w = jj_alloc(x, sizeof *w);
    *w = (struct jview){v.u.d, kind};
    return (struct jval){.t = V_VIEW, .u.view = w};
}

METHOD(m_keys) { (void)a; return view(x, v, VIEW_KEYS); }
METHOD(m_values) { (void)a; return view(x, v, VIEW_VALUES); }
METHOD(m_items) { (void)a; return view(x, v, VIEW_ITEMS); }

METHOD(m_get)
{
    if (!jv_hashable(x, *a[0])) jj_fail(x, ERR_FORMAT, "get: a %s as a key", jv_type(*a[0]));
    const struct jval *m = jd_get(x, v.u.d, *a[0]);
    return m ? *m : a[1] ? *a[1] : JV_NONE;
}

METHOD(m_dict_copy)
{
    (void)a;
    struct jval d = jd_new(x);
    for (size_t i = 0; i < v.u.d->n; i++) jd_set(x, d.u.d, v.u.d->e[i].k, v.u.d->e[i].v);
    return d;
}

/* ---- lists ---- */

METHOD(m_append)
{
    jj_step(x, 1);
    jl_push(x, v.u.l, *a[0]);
    return JV_NONE;
}

METHOD(m_list_copy) { (void)a; return it_list(x, v); }

METHOD(m_list_index)
{
    for (size_t i = 0; i < v.u.l->n; i++)
        if (jv_eq(x, v.u.l->v[i], *a[0])) return jv_int((int64_t)i);
    return found(x, -1);
}

METHOD(m_list_count)
{
    int64_t n = 0;
    for (size_t i = 0; i < v.u.l->n; i++) n += jv_eq(x, v.u.l->v[i], *a[0]);
    return jv_int(n);
}

/* ---- tables ---- */

#define REFUSED(type, name) {type, name, "", NULL, NULL}

static const struct jmethod_def methods[] = {
    {V_STR, "strip", "chars", m_strip, NULL},
    {V_STR, "split", "sep maxsplit", m_split, NULL},
    {V_STR, "startswith", "prefix ; start end", m_startswith, NULL},
    {V_STR, "endswith", "suffix ; start end", m_endswith, NULL},
    {V_STR, "replace", "old new ; count", m_replace, NULL},
    {V_STR, "lstrip", "chars", m_lstrip, NULL},
    {V_STR, "rstrip", "chars", m_rstrip, NULL},
    {V_STR, "rsplit", "sep maxsplit", m_rsplit, NULL},
    {V_STR, "splitlines", "keepends", m_splitlines, NULL},
    {V_STR, "partition", "sep ;", m_partition, NULL},
    {V_STR, "rpartition", "sep ;", m_rpartition, NULL},
    {V_STR, "removeprefix", "prefix ;", m_removeprefix, NULL},
    {V_STR, "removesuffix", "suffix ;", m_removesuffix, NULL},
    {V_STR, "find", "sub ; start end", m_find, NULL},
    {V_STR, "rfind", "sub ; start end", m_rfind, NULL},
    {V_STR, "index", "sub ; start end", m_index, NULL},
    {V_STR, "rindex", "sub ; start end", m_rindex, NULL},
    {V_STR, "count", "sub ; start end", m_count, NULL},
    {V_STR, "join", "iterable ;", m_join, NULL},
    {V_STR, "upper", "", m_upper, NULL},
    {V_STR, "lower", "", m_lower, NULL},
    {V_STR, "casefold", "", m_lower, NULL},
    {V_STR, "swapcase", "", m_swapcase, NULL},
    {V_STR, "capitalize", "", m_capitalize, NULL},
    {V_STR, "title", "", m_title, NULL},
    {V_STR, "isalpha", "", m_isalpha, NULL},
    {V_STR, "isdigit", "", m_isdigit, NULL},
    {V_STR, "isdecimal", "", m_isdecimal, NULL},
    {V_STR, "isnumeric", "", m_isnumeric, NULL},
    {V_STR, "isalnum", "", m_isalnum, NULL},
    {V_STR, "isspace", "", m_isspace, NULL},
    {V_STR, "isupper", "", m_isupper, NULL},
    {V_STR, "islower", "", m_islower, NULL},
    {V_STR, "istitle", "", m_istitle, NULL},
    {V_STR, "isascii", "", m_isascii, NULL},
    {V_STR, "isprintable", "", m_isprintable, NULL},
    {V_STR, "isidentifier", "", m_isidentifier, NULL},
    {V_STR, "ljust", "width ; fillchar", m_ljust, NULL},
    {V_STR, "rjust", "width ; fillchar", m_rjust, NULL},
    {V_STR, "center", "width ; fillchar", m_center, NULL},
    {V_STR, "zfill", "width ;", m_zfill, NULL},
    {V_STR, "format", NULL, NULL, format_braces},
    {V_DICT, "get", "key ; default", m_get, NULL},
    {V_DICT, "items", "", m_items, NULL},
    {V_DICT, "keys", "", m_keys, NULL},
    {V_DICT, "values", "", m_values, NULL},
    {V_DICT, "copy", "", m_dict_copy, NULL},
    REFUSED(V_DICT, "clear"),
    REFUSED(V_DICT, "fromkeys"),
    REFUSED(V_DICT, "pop"),
    REFUSED(V_DICT, "popitem"),
    REFUSED(V_DICT, "setdefault"),
    REFUSED(V_DICT, "update"),
    {V_LIST, "append", "object ;", m_append, NULL},
    {V_LIST, "copy", "", m_list_copy, NULL},
    REFUSED(V_LIST, "clear"),
    REFUSED(V_LIST, "extend"),
    REFUSED(V_LIST, "insert"),
    REFUSED(V_LIST, "pop"),
    REFUSED(V_LIST, "remove"),
    REFUSED(V_LIST, "reverse"),
    REFUSED(V_LIST, "sort"),
    {V_TUPLE, "index", "value ;", m_list_index, NULL},
    {V_TUPLE, "count", "value ;", m_list_count, NULL},
};

const struct jmethod_def *method_find(enum jtype t, const struct jstr *name)
{
    if (t != V_STR && t != V_DICT && t != V_LIST && t != V_TUPLE) return NULL;
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        const struct jmethod_def *m = &methods[i];
        bool mine = m->type == t || (t == V_LIST && m->type == V_TUPLE);
        if (mine && m->name[0] == (name->n ? name->s[0] : 0) && js_is(name, m->name)) return m;
    }
    return NULL;
}

struct jval method_call(struct jj *x, const struct jmethod *m, const struct jargs *a)
{
    const struct jval *bound[MAX_PARAMS];
    jj_step(x, 1);
    if (!m->def) return loop_call(x, m->self.u.loop, m->what, a);
    if (m->def->f_args) return m->def->f_args(x, m->self, a);
    jj_bind(x, m->def->name, m->def->params, a, bound);
    return m->def->f(x, m->self, bound);
}
