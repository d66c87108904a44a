/* Jinja: upper and lower case and the classes of characters, as Python's str has them; Unicode's
 * tables come from utf8proc.  Stray bytes have no case and no class. */
#include <utf8proc.h>

#include "moe/load/jinja_int.h"

/* Characters whose upper or title case is more than one character (SpecialCasing.txt). */
static const struct special {
    uint16_t cp, upper[3], title[3];
} special[] = {
    {0xdf, {0x53, 0x53}, {0x53, 0x73}}, {0x149, {0x2bc, 0x4e}, {0x2bc, 0x4e}},
    {0x1f0, {0x4a, 0x30c}, {0x4a, 0x30c}}, {0x390, {0x399, 0x308, 0x301}, {0x399, 0x308, 0x301}},
    {0x3b0, {0x3a5, 0x308, 0x301}, {0x3a5, 0x308, 0x301}}, {0x587, {0x535, 0x552}, {0x535, 0x582}},
    {0x1e96, {0x48, 0x331}, {0x48, 0x331}}, {0x1e97, {0x54, 0x308}, {0x54, 0x308}},
    {0x1e98, {0x57, 0x30a}, {0x57, 0x30a}}, {0x1e99, {0x59, 0x30a}, {0x59, 0x30a}},
    {0x1e9a, {0x41, 0x2be}, {0x41, 0x2be}}, {0x1f50, {0x3a5, 0x313}, {0x3a5, 0x313}},
    {0x1f52, {0x3a5, 0x313, 0x300}, {0x3a5, 0x313, 0x300}},
    {0x1f54, {0x3a5, 0x313, 0x301}, {0x3a5, 0x313, 0x301}},
    {0x1f56, {0x3a5, 0x313, 0x342}, {0x3a5, 0x313, 0x342}}, {0x1f80, {0x1f08, 0x399}, {0x1f88}},
    {0x1f81, {0x1f09, 0x399}, {0x1f89}}, {0x1f82, {0x1f0a, 0x399}, {0x1f8a}},
    {0x1f83, {0x1f0b, 0x399}, {0x1f8b}}, {0x1f84, {0x1f0c, 0x399}, {0x1f8c}},
    {0x1f85, {0x1f0d, 0x399}, {0x1f8d}}, {0x1f86, {0x1f0e, 0x399}, {0x1f8e}},
    {0x1f87, {0x1f0f, 0x399}, {0x1f8f}}, {0x1f88, {0x1f08, 0x399}, {0x1f88}},
    {0x1f89, {0x1f09, 0x399}, {0x1f89}}, {0x1f8a, {0x1f0a, 0x399}, {0x1f8a}},
    {0x1f8b, {0x1f0b, 0x399}, {0x1f8b}}, {0x1f8c, {0x1f0c, 0x399}, {0x1f8c}},
    {0x1f8d, {0x1f0d, 0x399}, {0x1f8d}}, {0x1f8e, {0x1f0e, 0x399}, {0x1f8e}},
    {0x1f8f, {0x1f0f, 0x399}, {0x1f8f}}, {0x1f90, {0x1f28, 0x399}, {0x1f98}},
    {0x1f91, {0x1f29, 0x399}, {0x1f99}}, {0x1f92, {0x1f2a, 0x399}, {0x1f9a}},
    {0x1f93, {0x1f2b, 0x399}, {0x1f9b}}, {0x1f94, {0x1f2c, 0x399}, {0x1f9c}},
    {0x1f95, {0x1f2d, 0x399}, {0x1f9d}}, {0x1f96, {0x1f2e, 0x399}, {0x1f9e}},
    {0x1f97, {0x1f2f, 0x399}, {0x1f9f}}, {0x1f98, {0x1f28, 0x399}, {0x1f98}},
    {0x1f99, {0x1f29, 0x399}, {0x1f99}}, {0x1f9a, {0x1f2a, 0x399}, {0x1f9a}},
    {0x1f9b, {0x1f2b, 0x399}, {0x1f9b}}, {0x1f9c, {0x1f2c, 0x399}, {0x1f9c}},
    {0x1f9d, {0x1f2d, 0x399}, {0x1f9d}}, {0x1f9e, {0x1f2e, 0x399}, {0x1f9e}},
    {0x1f9f, {0x1f2f, 0x399}, {0x1f9f}}, {0x1fa0, {0x1f68, 0x399}, {0x1fa8}},
    {0x1fa1, {0x1f69, 0x399}, {0x1fa9}}, {0x1fa2, {0x1f6a, 0x399}, {0x1faa}},
    {0x1fa3, {0x1f6b, 0x399}, {0x1fab}}, {0x1fa4, {0x1f6c, 0x399}, {0x1fac}},
    {0x1fa5, {0x1f6d, 0x399}, {0x1fad}}, {0x1fa6, {0x1f6e, 0x399}, {0x1fae}},
    {0x1fa7, {0x1f6f, 0x399}, {0x1faf}}, {0x1fa8, {0x1f68, 0x399}, {0x1fa8}},
    {0x1fa9, {0x1f69, 0x399}, {0x1fa9}}, {0x1faa, {0x1f6a, 0x399}, {0x1faa}},
    {0x1fab, {0x1f6b, 0x399}, {0x1fab}}, {0x1fac, {0x1f6c, 0x399}, {0x1fac}},
    {0x1fad, {0x1f6d, 0x399}, {0x1fad}}, {0x1fae, {0x1f6e, 0x399}, {0x1fae}},
    {0x1faf, {0x1f6f, 0x399}, {0x1faf}}, {0x1fb2, {0x1fba, 0x399}, {0x1fba, 0x345}},
    {0x1fb3, {0x391, 0x399}, {0x1fbc}}, {0x1fb4, {0x386, 0x399}, {0x386, 0x345}},
    {0x1fb6, {0x391, 0x342}, {0x391, 0x342}},
    {0x1fb7, {0x391, 0x342, 0x399}, {0x391, 0x342, 0x345}}, {0x1fbc, {0x391, 0x399}, {0x1fbc}},
    {0x1fc2, {0x1fca, 0x399}, {0x1fca, 0x345}}, {0x1fc3, {0x397, 0x399}, {0x1fcc}},
    {0x1fc4, {0x389, 0x399}, {0x389, 0x345}}, {0x1fc6, {0x397, 0x342}, {0x397, 0x342}},
    {0x1fc7, {0x397, 0x342, 0x399}, {0x397, 0x342, 0x345}}, {0x1fcc, {0x397, 0x399}, {0x1fcc}},
    {0x1fd2, {0x399, 0x308, 0x300}, {0x399, 0x308, 0x300}},
    {0x1fd3, {0x399, 0x308, 0x301}, {0x399, 0x308, 0x301}},
    {0x1fd6, {0x399, 0x342}, {0x399, 0x342}},
    {0x1fd7, {0x399, 0x308, 0x342}, {0x399, 0x308, 0x342}},
    {0x1fe2, {0x3a5, 0x308, 0x300}, {0x3a5, 0x308, 0x300}},
    {0x1fe3, {0x3a5, 0x308, 0x301}, {0x3a5, 0x308, 0x301}},
    {0x1fe4, {0x3a1, 0x313}, {0x3a1, 0x313}}, {0x1fe6, {0x3a5, 0x342}, {0x3a5, 0x342}},
    {0x1fe7, {0x3a5, 0x308, 0x342}, {0x3a5, 0x308, 0x342}},
    {0x1ff2, {0x1ffa, 0x399}, {0x1ffa, 0x345}}, {0x1ff3, {0x3a9, 0x399}, {0x1ffc}},
    {0x1ff4, {0x38f, 0x399}, {0x38f, 0x345}}, {0x1ff6, {0x3a9, 0x342}, {0x3a9, 0x342}},
    {0x1ff7, {0x3a9, 0x342, 0x399}, {0x3a9, 0x342, 0x345}}, {0x1ffc, {0x3a9, 0x399}, {0x1ffc}},
    {0xfb00, {0x46, 0x46}, {0x46, 0x66}}, {0xfb01, {0x46, 0x49}, {0x46, 0x69}},
    {0xfb02, {0x46, 0x4c}, {0x46, 0x6c}}, {0xfb03, {0x46, 0x46, 0x49}, {0x46, 0x66, 0x69}},
    {0xfb04, {0x46, 0x46, 0x4c}, {0x46, 0x66, 0x6c}}, {0xfb05, {0x53, 0x54}, {0x53, 0x74}},
    {0xfb06, {0x53, 0x54}, {0x53, 0x74}}, {0xfb13, {0x544, 0x546}, {0x544, 0x576}},
    {0xfb14, {0x544, 0x535}, {0x544, 0x565}}, {0xfb15, {0x544, 0x53b}, {0x544, 0x56b}},
    {0xfb16, {0x54e, 0x546}, {0x54e, 0x576}}, {0xfb17, {0x544, 0x53d}, {0x544, 0x56d}},
};

static const struct special *find_special(int32_t cp)
{
    size_t lo = 0, hi = sizeof special / sizeof *special;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (special[mid].cp == cp) return &special[mid];
        if (special[mid].cp < cp) lo = mid + 1;
        else hi = mid;
    }
    return NULL;
}

static utf8proc_category_t category(int32_t cp)
{
    return cp < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(cp);
}

static bool is_upper(int32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LU || (cp >= 0x2160 && cp < 0x2170) ||
           (cp >= 0x24b6 && cp < 0x24d0);
}

static bool is_lower(int32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LL || cp == 0xaa || cp == 0xba ||
           (cp >= 0x2b0 && cp <= 0x2b8) || (cp >= 0x2170 && cp < 0x2180) ||
           (cp >= 0x24d0 && cp < 0x24ea);
}

static bool is_title(int32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LT;
}

static bool is_cased(int32_t cp)
{
    return cp >= 0 && (is_upper(cp) || is_lower(cp) || is_title(cp));
}

/* ---- mapping ---- */

/* Marks and the like stand between letters without separating them. */
static bool is_between(int32_t cp)
{
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_ME || c == UTF8PROC_CATEGORY_CF ||
           c == UTF8PROC_CATEGORY_LM || c == UTF8PROC_CATEGORY_SK || cp == '\'' || cp == '.' ||
           cp == ':' || cp == 0xb7 || cp == 0x2019;
}

/* A capital sigma at the end of a word becomes another letter than elsewhere. */
static bool final_sigma(const struct jstr *s, size_t i)
{
    int32_t cp = -1;
    size_t k = i;
    while (k) {
        size_t end = k--;
        while (k && end - k < 4 && ((unsigned char)s->s[k] & 0xc0) == 0x80) k--;
        (void)u8_get(s->s + k, end - k, &cp);
        if (!is_between(cp)) break;
        cp = -1;
    }
    if (!is_cased(cp)) return false;
    cp = -1;
    for (k = i + 2; k < s->n;) {
        k += (size_t)u8_get(s->s + k, s->n - k, &cp);
        if (!is_between(cp)) break;
        cp = -1;
    }
    return !is_cased(cp);
}

static void put_special(struct jj *x, struct jsb *b, const uint16_t *to, bool tainted)
{
    for (int i = 0; i < 3 && to[i]; i++) sb_char(x, b, to[i], tainted);
}

static void put_lower(struct jj *x, struct jsb *b, const struct jstr *s, size_t i, int32_t cp)
{
    bool tainted = js_tainted(s, i);
    if (cp == 0x130) {
        sb_char(x, b, 'i', tainted);
        sb_char(x, b, 0x307, tainted);
    } else if (cp == 0x3a3) {
        jj_step(x, 1);
        sb_char(x, b, final_sigma(s, i) ? 0x3c2 : 0x3c3, tainted);
    } else {
        sb_char(x, b, utf8proc_tolower(cp), tainted);
    }
}

static void put_case(struct jj *x, struct jsb *b, const struct jstr *s, size_t i, int32_t cp,
                     enum jcase how)
{
    bool tainted = js_tainted(s, i);
    if (how == CASE_SWAP) how = is_lower(cp) ? CASE_UPPER : is_upper(cp) ? CASE_LOWER : CASE_SWAP;
    const struct special *sp = cp < 0x80 ? NULL : find_special(cp);
    if (how == CASE_SWAP) sb_char(x, b, cp, tainted);
    else if (how == CASE_LOWER) put_lower(x, b, s, i, cp);
    else if (sp) put_special(x, b, how == CASE_UPPER ? sp->upper : sp->title, tainted);
    else if (how == CASE_UPPER) sb_char(x, b, utf8proc_toupper(cp), tainted);
    else sb_char(x, b, utf8proc_totitle(cp), tainted);
}

void case_put(struct jj *x, struct jsb *b, const struct jstr *s, size_t from, size_t to,
              enum jcase how)
{
    for (size_t i = from; i < to;) {
        int32_t cp;
        size_t len = (size_t)u8_get(s->s + i, s->n - i, &cp);
        if (cp < 0) sb_part(x, b, s, i, i + len);
        else put_case(x, b, s, i, cp, how);
        i += len;
    }
    jj_work(x, 32 * (to - from)); /* slower than copying */
}

/* The same string with other bytes: Markup stays Markup. */
static struct jval like(struct jj *x, const struct jsb *b, const struct jstr *s)
{
    struct jval v = sb_val(x, b);
    if (!s->markup) return v;
    struct jstr *r = jj_alloc(x, sizeof *r);
    *r = *v.u.s;
    r->markup = true;
    return jv_str(r);
}

struct jval js_case(struct jj *x, const struct jstr *s, enum jcase how)
{
    struct jsb b = {0};
    case_put(x, &b, s, 0, s->n, how);
    return like(x, &b, s);
}

struct jval js_capitalize(struct jj *x, const struct jstr *s)
{
    struct jsb b = {0};
    size_t first = js_offset(x, s, 1);
    case_put(x, &b, s, 0, first, CASE_TITLE);
    case_put(x, &b, s, first, s->n, CASE_LOWER);
    return like(x, &b, s);
}

struct jval js_title(struct jj *x, const struct jstr *s)
{
    struct jsb b = {0};
    bool inside = false;
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        size_t len = (size_t)u8_get(s->s + i, s->n - i, &cp);
        case_put(x, &b, s, i, i + len, inside ? CASE_LOWER : CASE_TITLE);
        inside = is_cased(cp);
        i += len;
    }
    return like(x, &b, s);
}

/* ---- classes ---- */

static bool is_alpha(int32_t cp)
{
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

static bool is_digit(int32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_ND || cp == 0xb2 || cp == 0xb3 || cp == 0xb9 ||
           cp == 0x2070 || (cp >= 0x2074 && cp <= 0x2079) || (cp >= 0x2080 && cp <= 0x2089) ||
           (cp >= 0x2460 && cp <= 0x2468) || (cp >= 0x2474 && cp <= 0x247c);
}

static bool is_numeric(int32_t cp)
{
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

bool u8_printable(int32_t cp)
{
    if (cp == ' ') return true;
    utf8proc_category_t c = category(cp);
    return !(c == UTF8PROC_CATEGORY_CN || (c >= UTF8PROC_CATEGORY_ZS && c <= UTF8PROC_CATEGORY_CO));
}

static bool one_class(int32_t cp, enum jclass c)
{
    switch (c) {
    case IS_ALPHA: return is_alpha(cp);
    case IS_DIGIT: return is_digit(cp);
    case IS_DECIMAL: return category(cp) == UTF8PROC_CATEGORY_ND;
    case IS_NUMERIC: return is_numeric(cp);
    case IS_ALNUM: return is_alpha(cp) || is_digit(cp) || is_numeric(cp);
    case IS_SPACE: return u8_space(cp);
    case IS_ASCII: return cp >= 0 && cp < 0x80;
    case IS_PRINTABLE: return u8_printable(cp);
    case IS_IDENTIFIER: return cp == '_' || is_alpha(cp) || one_class(cp, IS_DECIMAL);
    default: return false;
    }
}

/* isupper, islower: some letters, all of the one case.  istitle: capitals begin words and only
 * words. */
static bool cased_class(const struct jstr *s, enum jclass c)
{
    bool any = false, inside = false;
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        i += (size_t)u8_get(s->s + i, s->n - i, &cp);
        bool up = is_upper(cp) || is_title(cp);
        if (c == IS_UPPER && (is_lower(cp) || is_title(cp))) return false;
        if (c == IS_LOWER && up) return false;
        if (c == IS_TITLE && ((up && inside) || (is_lower(cp) && !inside))) return false;
        inside = is_cased(cp);
        any |= inside;
    }
    return any;
}

bool js_class(struct jj *x, const struct jstr *s, enum jclass c)
{
    jj_work(x, 32 * s->n);
    if (c == IS_UPPER || c == IS_LOWER || c == IS_TITLE) return cased_class(s, c);
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        bool first = i == 0;
        i += (size_t)u8_get(s->s + i, s->n - i, &cp);
        if (!one_class(cp, c) || (c == IS_IDENTIFIER && first && is_digit(cp))) return false;
    }
    return s->n || c == IS_ASCII || c == IS_PRINTABLE;
}
