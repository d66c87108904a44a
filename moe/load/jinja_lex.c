/* Jinja: template text to tokens, white space control included.
 *
 * What jinja2 does with regular expressions is done by hand: text up to the next "{{", "{%" or
 * "{#"; a '-' inside a tag's end strips white space on its side; trim_blocks takes one line end
 * behind "%}" and "#}"; lstrip_blocks takes the blanks between a line's start and "{%" or "{#";
 * a '+' prevents either.  "}}" and "%}" end a tag only outside of brackets. */
#include <stdlib.h>

#include "moe/load/jinja_int.h"

enum { MAX_BRACKETS = 256 };

struct lexer {
    struct jj *x;
    const char *s;
    size_t n, i;
    bool line_start; /* what was last read ended a line */
    struct jtok *tok;
    size_t n_tok, cap;
    char open[MAX_BRACKETS]; /* the closing brackets that are due */
    int n_open;
};

static struct jtok *emit(struct lexer *l, enum jtok_type t, size_t at)
{
    l->tok = jj_grow(l->x, l->tok, l->n_tok, &l->cap, sizeof *l->tok);
    l->tok[l->n_tok] = (struct jtok){.t = t, .at = at};
    return &l->tok[l->n_tok++];
}

static _Noreturn void fail_at(struct lexer *l, size_t at, const char *what)
{
    l->x->at = at;
    jj_fail(l->x, ERR_FORMAT, "%s", what);
}

static bool looking_at(const struct lexer *l, size_t i, const char *text)
{
    size_t n = strlen(text);
    return l->n - i >= n && !memcmp(l->s + i, text, n);
}

static size_t skip_space(const struct lexer *l, size_t i)
{
    return i + u8_lspace(l->s + i, l->n - i);
}

/* Behind the end of a tag that begins at i, if one does: [+-]?end, or i.  What '-' and
 * trim_blocks take is part of it. */
static size_t tag_end(struct lexer *l, size_t i, const char *end, bool plus, bool trim)
{
    char sign = i < l->n && (l->s[i] == '-' || (plus && l->s[i] == '+')) ? l->s[i] : 0;
    size_t at = i + (sign != 0);
    if (!looking_at(l, at, end)) return i;
    at += 2;
    if (sign == '-') at = skip_space(l, at);
    else if (!sign && trim && at < l->n && l->s[at] == '\n') at++;
    return at;
}

/* The text in front of a tag, without what the tag takes of it. */
static void emit_text(struct lexer *l, size_t from, size_t to, char sign, bool may_lstrip)
{
    size_t end = to;
    if (sign == '-') {
        end = to - u8_rspace(l->s + from, to - from);
    } else if (sign != '+' && may_lstrip) {
        size_t line = to;
        while (line > from && l->s[line - 1] != '\n') line--;
        bool starts = line > from || l->line_start;
        if (starts && u8_lspace(l->s + line, to - line) == to - line) end = line;
    }
    if (end == from) return;
    struct jtok *t = emit(l, T_DATA, from);
    t->s = l->s + from;
    t->n = end - from;
}

static void set_pos(struct lexer *l, size_t to)
{
    l->line_start = to && l->s[to - 1] == '\n';
    l->i = to;
}

/* ---- inside tags ---- */

static size_t span(const struct lexer *l, size_t i, const char *set)
{
    size_t k = i;
    while (k < l->n && l->s[k] && strchr(set, l->s[k])) k++;
    return k - i;
}

/* Digits with single '_' between them, from i; how many bytes. */
static size_t digits(const struct lexer *l, size_t i, const char *set)
{
    size_t k = i + span(l, i, set);
    while (k > i && k < l->n && l->s[k] == '_' && span(l, k + 1, set))
        k += 1 + span(l, k + 1, set);
    return k - i;
}

static const char DEC[] = "0123456789";

/* The length of a float at i, or 0. */
static size_t float_length(const struct lexer *l, size_t i)
{
    if (i && l->s[i - 1] == '.') return 0;
    size_t k = i + digits(l, i, DEC);
    if (k == i) return 0;
    bool is_float = false;
    if (k < l->n && l->s[k] == '.' && span(l, k + 1, DEC)) {
        k += 1 + digits(l, k + 1, DEC);
        is_float = true;
    }
    if (k < l->n && (l->s[k] == 'e' || l->s[k] == 'E')) {
        size_t e = k + 1;
        if (e < l->n && (l->s[e] == '+' || l->s[e] == '-')) e++;
        if (span(l, e, DEC)) {
            k = e + digits(l, e, DEC);
            is_float = true;
        }
    }
    return is_float ? k - i : 0;
}

static size_t int_length(const struct lexer *l, size_t i)
{
    if (l->s[i] != '0') return digits(l, i, DEC);
    char c = i + 1 < l->n ? (char)(l->s[i + 1] | 0x20) : 0;
    const char *set = c == 'x' ? "0123456789abcdefABCDEF" : c == 'o' ? "01234567"
                      : c == 'b' ? "01" : NULL;
    if (set) {
        size_t from = i + 2 + (i + 2 < l->n && l->s[i + 2] == '_');
        size_t n = digits(l, from, set);
        if (n) return from - i + n;
    }
    return digits(l, i, "0");
}

static bool lex_number(struct lexer *l)
{
    char c = l->s[l->i];
    if (c < '0' || c > '9') return false;
    size_t n = float_length(l, l->i);
    bool is_float = n != 0;
    if (!n) n = int_length(l, l->i);
    l->x->at = l->i;
    struct jstr text = {.s = l->s + l->i, .n = n};
    struct jtok *t = emit(l, is_float ? T_FLOAT : T_INT, l->i);
    bool ok = is_float ? num_float(l->x, &text, &t->f) : num_int(l->x, &text, 0, &t->i);
    if (!ok) fail_at(l, l->i, "a bad number");
    set_pos(l, l->i + n);
    return true;
}

static bool name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           c == '_' || (unsigned char)c >= 0x80;
}

static bool lex_name(struct lexer *l)
{
    size_t k = l->i;
    while (k < l->n && name_byte(l->s[k])) k++;
    if (k == l->i) return false;
    struct jstr text = {.s = l->s + l->i, .n = k - l->i};
    if (!js_class(l->x, &text, IS_IDENTIFIER))
        fail_at(l, l->i, "an invalid character in a name");
    struct jtok *t = emit(l, T_NAME, l->i);
    t->s = text.s;
    t->n = text.n;
    set_pos(l, k);
    return true;
}

static const char *hex_escape(struct lexer *l, struct jsb *b, const char *s, const char *end,
                              int n)
{
    int32_t c = 0;
    for (int i = 0; i < n; i++, s++) {
        int d = s < end && *s >= '0' && *s <= '9' ? *s - '0'
                : s < end && (*s | 0x20) >= 'a' && (*s | 0x20) <= 'f' ? (*s | 0x20) - 'a' + 10
                : -1;
        if (d < 0 || c > 0x10ffff) fail_at(l, l->i, "a bad escape in a string");
        c = c << 4 | d;
    }
    if (c > 0x10ffff) fail_at(l, l->i, "a bad escape in a string");
    sb_char(l->x, b, c, false);
    return s;
}

/* Python spells what is not ASCII before it reads escapes: a backslash in front of such a
 * character stays, and the character becomes the text "xe9", "u20ac" ... */
static const char *spelled(struct lexer *l, struct jsb *b, const char *s, const char *end)
{
    static const char hex[] = "0123456789abcdef";
    int32_t cp;
    char buf[9];
    int len = u8_get(s, (size_t)(end - s), &cp);
    if (cp < 0) cp = 0xfffd;
    int n = cp < 0x100 ? 2 : cp < 0x10000 ? 4 : 8;
    buf[0] = n == 2 ? 'x' : n == 4 ? 'u' : 'U';
    for (int i = 0; i < n; i++) buf[1 + i] = hex[cp >> (4 * (n - 1 - i)) & 15];
    sb_text(l->x, b, "\\");
    sb_put(l->x, b, buf, (size_t)n + 1, false);
    return s + len;
}

/* s is behind a backslash. */
static const char *escape(struct lexer *l, struct jsb *b, const char *s, const char *end)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    char c = *s;
    const char *p = c ? strchr(from, c) : NULL;
    if ((unsigned char)c >= 0x80) return spelled(l, b, s, end);
    if (c == 'N') fail_at(l, l->i, "\\N{...} in a string is not supported");
    if (c == 'x' || c == 'u' || c == 'U')
        return hex_escape(l, b, s + 1, end, c == 'x' ? 2 : c == 'u' ? 4 : 8);
    if (c >= '0' && c <= '7') {
        int32_t v = 0;
        for (int i = 0; i < 3 && s < end && *s >= '0' && *s <= '7'; i++) v = v * 8 + (*s++ - '0');
        sb_char(l->x, b, v, false);
        return s;
    }
    if (p) {
        sb_put(l->x, b, &to[p - from], 1, false);
    } else if (c != '\n') { /* an unknown escape stays as it is */
        sb_text(l->x, b, "\\");
        sb_put(l->x, b, &c, 1, false);
    }
    return s + 1;
}

static bool lex_string(struct lexer *l)
{
    char quote = l->s[l->i];
    if (quote != '\'' && quote != '"') return false;
    size_t k = l->i + 1;
    while (k < l->n && l->s[k] != quote) k += l->s[k] == '\\' ? 2 : 1;
    if (k >= l->n) fail_at(l, l->i, "a string that does not end");
    struct jsb b = {0};
    const char *s = l->s + l->i + 1, *end = l->s + k;
    while (s < end) {
        const char *stop = memchr(s, '\\', (size_t)(end - s));
        if (!stop) stop = end;
        sb_put(l->x, &b, s, (size_t)(stop - s), false);
        s = stop < end ? escape(l, &b, stop + 1, end) : end;
    }
    struct jtok *t = emit(l, T_STR, l->i);
    t->s = b.n ? b.s : "";
    t->n = b.n;
    set_pos(l, k + 1);
    return true;
}

static void brackets(struct lexer *l, char c)
{
    char closes = c == '(' ? ')' : c == '[' ? ']' : c == '{' ? '}' : 0;
    if (closes) {
        if (l->n_open == MAX_BRACKETS) {
            l->x->at = l->i;
            jj_fail(l->x, ERR_RANGE, "brackets nested more than %d deep", MAX_BRACKETS);
        }
        l->open[l->n_open++] = closes;
    } else if (c == ')' || c == ']' || c == '}') {
        if (!l->n_open || l->open[--l->n_open] != c)
            fail_at(l, l->i, "a closing bracket that does not match");
    }
}

static void lex_operator(struct lexer *l)
{
    static const struct { const char *text; enum jtok_type t; } ops[] = {
        {"//", T_FLOORDIV}, {"**", T_POW}, {"==", T_EQ}, {"!=", T_NE}, {">=", T_GE}, {"<=", T_LE},
        {"+", T_ADD}, {"-", T_SUB}, {"/", T_DIV}, {"*", T_MUL}, {"%", T_MOD}, {"~", T_TILDE},
        {"[", T_LBRACKET}, {"]", T_RBRACKET}, {"(", T_LPAREN}, {")", T_RPAREN}, {"{", T_LBRACE},
        {"}", T_RBRACE}, {">", T_GT}, {"<", T_LT}, {"=", T_ASSIGN}, {".", T_DOT}, {":", T_COLON},
        {"|", T_PIPE}, {",", T_COMMA}, {";", T_SEMICOLON}};
    for (size_t k = 0; k < sizeof ops / sizeof *ops; k++) {
        if (!looking_at(l, l->i, ops[k].text)) continue;
        brackets(l, l->s[l->i]);
        (void)emit(l, ops[k].t, l->i);
        set_pos(l, l->i + strlen(ops[k].text));
        return;
    }
    fail_at(l, l->i, "an unexpected character");
}

/* The tokens of a tag whose opening has been read, up to its end or the template's. */
static void lex_tag(struct lexer *l, bool block)
{
    l->n_open = 0;
    while (l->i < l->n) {
        size_t end = l->n_open ? l->i : tag_end(l, l->i, block ? "%}" : "}}", block, block);
        if (end != l->i) {
            (void)emit(l, block ? T_BLOCK_END : T_VAR_END, l->i);
            set_pos(l, end);
            return;
        }
        size_t space = skip_space(l, l->i);
        if (space != l->i) set_pos(l, space);
        else if (!lex_number(l) && !lex_name(l) && !lex_string(l)) lex_operator(l);
    }
}

/* ---- outside ---- */

/* Behind "{%", sign and `word` at i, up to its end tag; i when something else stands there. */
static size_t word_tag(struct lexer *l, size_t i, const char *word, bool closing)
{
    size_t at = i + 2;
    if (at < l->n && (l->s[at] == '-' || l->s[at] == '+')) at++;
    at = skip_space(l, at);
    if (!looking_at(l, at, word)) return i;
    at = skip_space(l, at + strlen(word));
    size_t end = tag_end(l, at, "%}", closing, closing);
    return end == at ? i : end;
}

static char sign_at(const struct lexer *l, size_t i)
{
    return i < l->n && (l->s[i] == '-' || l->s[i] == '+') ? l->s[i] : 0;
}

static void lex_raw(struct lexer *l, size_t begin, size_t body)
{
    set_pos(l, body);
    for (size_t i = body; i + 1 < l->n; i++) {
        if (l->s[i] != '{' || l->s[i + 1] != '%') continue;
        size_t end = word_tag(l, i, "endraw", true);
        if (end == i) continue;
        emit_text(l, body, i, sign_at(l, i + 2), true);
        set_pos(l, end);
        return;
    }
    fail_at(l, begin, "{% raw %} without {% endraw %}");
}

static void lex_comment(struct lexer *l, size_t begin)
{
    for (size_t i = l->i; i + 1 < l->n; i++) {
        size_t end = tag_end(l, i, "#}", true, true);
        if (end == i) continue;
        set_pos(l, end);
        return;
    }
    fail_at(l, begin, "a comment that does not end");
}

static size_t next_tag(const struct lexer *l)
{
    for (size_t i = l->i; i + 1 < l->n; i++)
        if (l->s[i] == '{' && (l->s[i + 1] == '{' || l->s[i + 1] == '%' || l->s[i + 1] == '#'))
            return i;
    return l->n;
}

struct jtok *jj_lex(struct jj *x, size_t *n)
{
    struct lexer l = {.x = x, .s = x->src, .n = x->n_src, .line_start = true};
    while (l.i < l.n) {
        size_t at = next_tag(&l);
        char kind = at < l.n ? l.s[at + 1] : 0, sign = kind ? sign_at(&l, at + 2) : 0;
        emit_text(&l, l.i, at, kind ? sign : '+', kind != '{');
        if (!kind) break;
        size_t raw = kind == '%' ? word_tag(&l, at, "raw", false) : at;
        if (raw != at) {
            lex_raw(&l, at, raw);
            continue;
        }
        set_pos(&l, at + 2 + (sign != 0));
        if (kind == '#') {
            lex_comment(&l, at);
            continue;
        }
        (void)emit(&l, kind == '%' ? T_BLOCK_BEGIN : T_VAR_BEGIN, at);
        lex_tag(&l, kind == '%');
    }
    (void)emit(&l, T_EOF, l.n);
    *n = l.n_tok;
    return l.tok;
}
