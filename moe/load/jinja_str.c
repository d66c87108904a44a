/* Jinja: strings with the origin of their bytes.  See struct jstr and struct jsb in jinja_int.h. */
#include "moe/load/jinja_int.h"

/* ---- UTF-8 ---- */

int u8_get(const char *text, size_t n, int32_t *cp)
{
    const unsigned char *s = (const unsigned char *)text;
    *cp = s[0];
    if (s[0] < 0x80) return 1;
    int len = s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
              : s[0] >= 0xf0 && s[0] < 0xf5 ? 4 : 0;
    int32_t c = len == 2 ? s[0] & 0x1f : len == 3 ? s[0] & 0x0f : s[0] & 0x07;
    static const int32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    *cp = -1;
    if (!len || (size_t)len > n) return 1;
    for (int i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 1;
        c = c << 6 | (s[i] & 0x3f);
    }
    if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 1;
    *cp = c;
    return len;
}

int u8_put(char *s, int32_t cp)
{
    uint32_t c = (uint32_t)cp;
    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) c = 0xfffd; /* no lone surrogates */
    if (c < 0x80) {
        s[0] = (char)c;
        return 1;
    }
    int len = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--, c >>= 6) s[i] = (char)(0x80 | (c & 0x3f));
    s[0] = (char)((len == 2 ? 0xc0 : len == 3 ? 0xe0 : 0xf0) | c);
    return len;
}

bool u8_space(int32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

size_t u8_lspace(const char *s, size_t n)
{
    size_t i = 0;
    int32_t cp;
    while (i < n) {
        int len = u8_get(s + i, n - i, &cp);
        if (!u8_space(cp)) break;
        i += (size_t)len;
    }
    return i;
}

size_t u8_rspace(const char *s, size_t n)
{
    size_t end = n;
    while (end) {
        size_t at = end - 1;
        int32_t cp;
        while (at && end - at < 4 && ((unsigned char)s[at] & 0xc0) == 0x80) at--;
        int len = u8_get(s + at, end - at, &cp);
        if ((size_t)len != end - at || !u8_space(cp)) break;
        end = at;
    }
    return n - end;
}

/* ---- strings in the making ---- */

static void sb_room(struct jj *x, struct jsb *b, size_t n)
{
    /* Checked before memory is taken, so that an endless loop ends with the right message. */
    if (b == x->top && n > x->output_max - b->n)
        jj_fail(x, ERR_RANGE, "the text becomes longer than %zu bytes", x->output_max);
    if (n <= b->cap - b->n) return;
    size_t cap = b->cap * 2 > b->n + n ? b->cap * 2 : b->n + n + 16;
    char *s = jj_bytes(x, cap);
    if (b->n) memcpy(s, b->s, b->n);
    b->s = s;
    if (b->mark) {
        uint8_t *mark = jj_bytes(x, cap);
        memcpy(mark, b->mark, b->n);
        b->mark = mark;
    }
    b->cap = cap;
}

/* From now on byte by byte. */
static void sb_marks(struct jj *x, struct jsb *b)
{
    b->mark = jj_bytes(x, b->cap);
    memset(b->mark, b->tainted, b->n);
}

void sb_put(struct jj *x, struct jsb *b, const char *s, size_t n, bool tainted)
{
    if (!n) return;
    jj_work(x, n);
    sb_room(x, b, n);
    if (!b->n) b->tainted = tainted;
    if (!b->mark && b->tainted != tainted) sb_marks(x, b);
    memcpy(b->s + b->n, s, n);
    if (b->mark) memset(b->mark + b->n, tainted, n);
    b->n += n;
}

void sb_text(struct jj *x, struct jsb *b, const char *s)
{
    sb_put(x, b, s, strlen(s), false);
}

void sb_part(struct jj *x, struct jsb *b, const struct jstr *s, size_t from, size_t to)
{
    if (from >= to) return;
    if (!s->mark) {
        sb_put(x, b, s->s + from, to - from, s->tainted);
        return;
    }
    jj_work(x, to - from);
    sb_room(x, b, to - from);
    if (!b->mark) sb_marks(x, b);
    memcpy(b->s + b->n, s->s + from, to - from);
    memcpy(b->mark + b->n, s->mark + from, to - from);
    b->n += to - from;
}

void sb_str(struct jj *x, struct jsb *b, const struct jstr *s)
{
    sb_part(x, b, s, 0, s->n);
}

void sb_char(struct jj *x, struct jsb *b, int32_t cp, bool tainted)
{
    char s[4];
    sb_put(x, b, s, (size_t)u8_put(s, cp), tainted);
}

struct jval sb_val(struct jj *x, const struct jsb *b)
{
    struct jstr *s = jj_alloc(x, sizeof *s);
    *s = (struct jstr){.s = b->n ? b->s : "", .mark = b->n ? b->mark : NULL, .n = b->n,
                       .tainted = b->n && b->tainted};
    return jv_str(s);
}

/* ---- strings ---- */

const struct jstr *js_new(struct jj *x, const char *s, size_t n, bool tainted)
{
    struct jstr *r = jj_alloc(x, sizeof *r);
    *r = (struct jstr){.s = s, .n = n, .tainted = tainted};
    return r;
}

const struct jstr *js_lit(struct jj *x, const char *s)
{
    return js_new(x, s, strlen(s), false);
}

const struct jstr *js_sub(struct jj *x, const struct jstr *s, size_t from, size_t to)
{
    if (from == 0 && to == s->n) return s;
    if (to < from) to = from;
    struct jstr *r = jj_alloc(x, sizeof *r);
    *r = (struct jstr){.s = s->s + from, .n = to - from, .tainted = s->tainted,
                       .mark = s->mark ? s->mark + from : NULL, .markup = s->markup};
    return r;
}

/* A string made by concatenation may have room behind it; who still ends where the room's text
 * ends can be added to in place.  That keeps `s = s + piece` in a loop linear. */
struct jbuf {
    char *s;
    uint8_t *mark;
    size_t n, cap;
    bool tainted;
};

static void fill(uint8_t *mark, const struct jstr *s)
{
    if (s->mark) memcpy(mark, s->mark, s->n);
    else memset(mark, s->tainted, s->n);
}

static struct jbuf *room_for(struct jj *x, const struct jstr *a, size_t n)
{
    struct jbuf *b = a->buf;
    if (b && a->s + a->n == b->s + b->n && a->n == b->n && b->cap - b->n >= n) return b;
    size_t cap = a->buf ? (a->n + n) * 2 : a->n + n;
    jj_work(x, a->n);
    b = jj_alloc(x, sizeof *b);
    b->s = jj_bytes(x, cap);
    b->cap = cap;
    b->n = a->n;
    b->tainted = a->tainted;
    memcpy(b->s, a->s, a->n);
    if (a->mark) {
        b->mark = jj_bytes(x, cap);
        memcpy(b->mark, a->mark, a->n);
    }
    return b;
}

const struct jstr *js_cat(struct jj *x, const struct jstr *a, const struct jstr *b)
{
    if (a->markup != b->markup) {
        if (a->markup) b = js_escape(x, b);
        else a = js_escape(x, a);
    }
    if (!a->n) return b;
    if (!b->n) return a;
    jj_work(x, b->n);
    struct jbuf *buf = room_for(x, a, b->n);
    if (!buf->mark && (b->mark || b->tainted != buf->tainted)) {
        buf->mark = jj_bytes(x, buf->cap);
        memset(buf->mark, buf->tainted, buf->n);
    }
    memcpy(buf->s + buf->n, b->s, b->n);
    if (buf->mark) fill(buf->mark + buf->n, b);
    buf->n += b->n;
    struct jstr *r = jj_alloc(x, sizeof *r);
    *r = (struct jstr){.s = buf->s, .mark = buf->mark, .n = buf->n, .buf = buf,
                       .tainted = buf->tainted, .markup = a->markup};
    return r;
}

bool js_eq(const struct jstr *a, const struct jstr *b)
{
    return a->n == b->n && !memcmp(a->s, b->s, a->n);
}

bool js_is(const struct jstr *s, const char *text)
{
    return s->n == strlen(text) && !memcmp(s->s, text, s->n);
}

int js_cmp(const struct jstr *a, const struct jstr *b)
{
    size_t n = a->n < b->n ? a->n : b->n;
    int c = memcmp(a->s, b->s, n);
    if (c) return c < 0 ? -1 : 1;
    return a->n < b->n ? -1 : a->n > b->n;
}

/* b stands at byte i of a.  Costs a step: a pattern can make every byte a place to look at. */
static bool at(struct jj *x, const struct jstr *a, size_t i, const struct jstr *b)
{
    jj_step(x, 1 + b->n / 64);
    return !memcmp(a->s + i, b->s, b->n);
}

size_t js_find(struct jj *x, const struct jstr *a, const struct jstr *b, size_t from)
{
    if (from > a->n || b->n > a->n - from) return SIZE_MAX;
    if (!b->n) return from;
    const char *s = a->s + from, *end = a->s + a->n - b->n + 1, *hit;
    for (; s < end && (hit = memchr(s, b->s[0], (size_t)(end - s))); s = hit + 1) {
        jj_work(x, (size_t)(hit - s));
        if (at(x, a, (size_t)(hit - a->s), b)) return (size_t)(hit - a->s);
    }
    jj_work(x, s < end ? (size_t)(end - s) : 0);
    return SIZE_MAX;
}

size_t js_rfind(struct jj *x, const struct jstr *a, const struct jstr *b, size_t end)
{
    if (end > a->n) end = a->n;
    if (b->n > end) return SIZE_MAX;
    if (!b->n) return end;
    for (size_t i = end - b->n + 1; i-- > 0;) {
        if (i % 64 == 0) jj_step(x, 1);
        if (a->s[i] == b->s[0] && at(x, a, i, b)) return i;
    }
    return SIZE_MAX;
}

size_t js_chars(struct jj *x, const struct jstr *s)
{
    size_t n = 0;
    int32_t cp;
    jj_work(x, 4 * s->n); /* slower than copying */
    for (size_t i = 0; i < s->n; n++) i += (size_t)u8_get(s->s + i, s->n - i, &cp);
    return n;
}

size_t js_offset(struct jj *x, const struct jstr *s, size_t k)
{
    size_t i = 0;
    int32_t cp;
    for (; k && i < s->n; k--) i += (size_t)u8_get(s->s + i, s->n - i, &cp);
    jj_work(x, 4 * i);
    return i;
}

const struct jstr *js_escape(struct jj *x, const struct jstr *s)
{
    struct jsb b = {0};
    size_t from = 0;
    for (size_t i = 0; i < s->n; i++) {
        char c = s->s[i];
        const char *to = c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;"
                         : c == '\'' ? "&#39;" : c == '"' ? "&#34;" : NULL;
        if (!to) continue;
        sb_part(x, &b, s, from, i);
        sb_put(x, &b, to, strlen(to), js_tainted(s, i));
        from = i + 1;
    }
    sb_part(x, &b, s, from, s->n);
    struct jval v = sb_val(x, &b);
    struct jstr *r = jj_alloc(x, sizeof *r);
    *r = *v.u.s;
    r->markup = true;
    return r;
}
