/* Jinja: the parser of expressions, by recursive descent; loosest first:
 *
 *   a if b else c | or | and | not | == != < in ... (a chain) | + - | ~ | * / // % | ** | - +
 *   primary, then .name [item] (call), then |filter is test
 *
 * The peculiarities are jinja2's: -x.y|f is (-(x.y))|f, ** groups to the left, ~ binds tighter
 * than +, a test takes one bare argument. */
#include "moe/load/jinja_int.h"

/* ---- helpers ---- */

struct jnode *p_node(struct jparser *p, enum jnode_kind kind)
{
    struct jnode *n = jj_alloc(p->x, sizeof *n);
    n->kind = kind;
    n->at = p->tok->at;
    return n;
}

void p_add(struct jparser *p, struct jnodes *l, struct jnode *n)
{
    l->p = jj_grow(p->x, l->p, l->n, &l->cap, sizeof *l->p);
    l->p[l->n++] = n;
}

const struct jname *p_intern(struct jparser *p, const char *s, size_t n)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 16777619u;
    struct jname **slot = &p->names[h % NAME_SLOTS];
    for (struct jname *k = *slot; k; k = k->next) {
        jj_step(p->x, 1);
        if (k->str.n == n && !memcmp(k->str.s, s, n)) return k;
    }
    struct jname *k = jj_alloc(p->x, sizeof *k);
    char *copy = jj_bytes(p->x, n + 1);
    memcpy(copy, s, n);
    copy[n] = 0;
    k->str = (struct jstr){.s = copy, .n = n};
    k->next = *slot;
    return *slot = k;
}

bool p_is(const struct jparser *p, const char *keyword)
{
    return p->tok->t == T_NAME && p->tok->n == strlen(keyword) &&
           !memcmp(p->tok->s, keyword, p->tok->n);
}

bool p_skip_t(struct jparser *p, enum jtok_type t)
{
    if (p->tok->t != t) return false;
    if (t != T_EOF) p->tok++;
    return true;
}

bool p_skip(struct jparser *p, const char *keyword)
{
    return p_is(p, keyword) && p_skip_t(p, T_NAME);
}

static const char *const token_names[] = {
    [T_EOF] = "the end of the template", [T_DATA] = "text", [T_VAR_BEGIN] = "'{{'",
    [T_VAR_END] = "'}}'", [T_BLOCK_BEGIN] = "'{%'", [T_BLOCK_END] = "'%}'", [T_NAME] = "a name",
    [T_STR] = "a string", [T_INT] = "an integer", [T_FLOAT] = "a number", [T_ADD] = "'+'",
    [T_SUB] = "'-'", [T_DIV] = "'/'", [T_FLOORDIV] = "'//'", [T_MUL] = "'*'", [T_MOD] = "'%'",
    [T_POW] = "'**'", [T_TILDE] = "'~'", [T_LBRACKET] = "'['", [T_RBRACKET] = "']'",
    [T_LPAREN] = "'('", [T_RPAREN] = "')'", [T_LBRACE] = "'{'", [T_RBRACE] = "'}'",
    [T_EQ] = "'=='", [T_NE] = "'!='", [T_GT] = "'>'", [T_GE] = "'>='", [T_LT] = "'<'",
    [T_LE] = "'<='", [T_ASSIGN] = "'='", [T_DOT] = "'.'", [T_COLON] = "':'", [T_PIPE] = "'|'",
    [T_COMMA] = "','", [T_SEMICOLON] = "';'"};

_Noreturn void p_unexpected(struct jparser *p, const char *wanted)
{
    p->x->at = p->tok->at;
    if (p->tok->t == T_NAME)
        jj_fail(p->x, ERR_FORMAT, "%s expected, not '%.*s'", wanted,
                p->tok->n > 40 ? 40 : (int)p->tok->n, p->tok->s);
    jj_fail(p->x, ERR_FORMAT, "%s expected, not %s", wanted, token_names[p->tok->t]);
}

void p_expect(struct jparser *p, enum jtok_type t)
{
    if (!p_skip_t(p, t)) p_unexpected(p, token_names[t]);
}

const struct jname *p_name(struct jparser *p)
{
    const struct jtok *t = p->tok;
    p_expect(p, T_NAME);
    return p_intern(p, t->s, t->n);
}

/* ---- primary ---- */

static struct jnode *constant(struct jparser *p, struct jval v)
{
    struct jnode *n = p_node(p, N_CONST);
    n->v = v;
    return n;
}

static void note_special(struct jparser *p, const struct jname *name)
{
    for (struct jparams *m = p->params; m; m = m->outer) {
        m->caller |= js_is(&name->str, "caller");
        m->varargs |= js_is(&name->str, "varargs");
        m->kwargs |= js_is(&name->str, "kwargs");
    }
}

static struct jnode *name_or_word(struct jparser *p, bool ns)
{
    struct jnode *n = p_node(p, N_NAME);
    bool yes = p_is(p, "true") || p_is(p, "True"), no = p_is(p, "false") || p_is(p, "False");
    if (yes || no || p_is(p, "none") || p_is(p, "None")) {
        n = constant(p, yes || no ? jv_bool(yes) : JV_NONE);
        p->tok++;
        return n;
    }
    n->name = p_name(p);
    note_special(p, n->name);
    if (ns && p_skip_t(p, T_DOT)) {
        n->kind = N_NSREF;
        n->v = jv_str(&p_name(p)->str);
    }
    return n;
}

static struct jnode *strings(struct jparser *p)
{
    struct jnode *n = p_node(p, N_CONST);
    const struct jstr *s = js_lit(p->x, "");
    for (; p->tok->t == T_STR; p->tok++)
        s = js_cat(p->x, s, js_new(p->x, p->tok->s, p->tok->n, false));
    struct jstr *own = jj_alloc(p->x, sizeof *own);
    *own = *s;
    own->buf = NULL; /* the tree is shared by renders: nothing may grow into it */
    n->v = jv_str(own);
    return n;
}

static struct jnode *list(struct jparser *p)
{
    struct jnode *n = p_node(p, N_LIST);
    p->tok++;
    while (p->tok->t != T_RBRACKET) {
        if (n->list.n) p_expect(p, T_COMMA);
        if (p->tok->t == T_RBRACKET) break;
        p_add(p, &n->list, p_expr(p));
    }
    p_expect(p, T_RBRACKET);
    return n;
}

static struct jnode *dict(struct jparser *p)
{
    struct jnode *n = p_node(p, N_DICT);
    p->tok++;
    while (p->tok->t != T_RBRACE) {
        if (n->list.n) p_expect(p, T_COMMA);
        if (p->tok->t == T_RBRACE) break;
        p_add(p, &n->list, p_expr(p));
        p_expect(p, T_COLON);
        p_add(p, &n->list, p_expr(p));
    }
    p_expect(p, T_RBRACE);
    return n;
}

static struct jnode *primary(struct jparser *p, bool ns)
{
    struct jnode *n;
    jj_down(p->x);
    switch (p->tok->t) {
    case T_NAME: n = name_or_word(p, ns); break;
    case T_STR: n = strings(p); break;
    case T_INT:
        n = constant(p, jv_int(p->tok->i));
        p->tok++;
        break;
    case T_FLOAT:
        n = constant(p, jv_float(p->tok->f));
        p->tok++;
        break;
    case T_LPAREN:
        p->tok++;
        n = p_tuple(p, TUPLE_PARENS);
        p_expect(p, T_RPAREN);
        break;
    case T_LBRACKET: n = list(p); break;
    case T_LBRACE: n = dict(p); break;
    default: p_unexpected(p, "an expression");
    }
    jj_up(p->x);
    return n;
}

/* ---- behind a primary ---- */

static void add_keyword(struct jparser *p, struct jcall_args *a)
{
    const struct jname *name = p_name(p);
    p->tok++; /* '=' */
    for (size_t i = 0; i < a->kw.n; i++) {
        jj_step(p->x, 1);
        if (a->kw_name[i] == &name->str) {
            p->x->at = p->tok->at;
            jj_fail(p->x, ERR_FORMAT, "the argument %s is given twice", name->str.s);
        }
    }
    a->kw_name = jj_grow(p->x, a->kw_name, a->kw.n, &a->cap_names, sizeof *a->kw_name);
    a->kw_name[a->kw.n] = &name->str;
    p_add(p, &a->kw, p_expr(p));
}

static void one_arg(struct jparser *p, struct jcall_args *a)
{
    bool ok = !a->star2;
    if (p_skip_t(p, T_MUL)) {
        ok = ok && !a->star;
        a->star = p_expr(p);
    } else if (p_skip_t(p, T_POW)) {
        a->star2 = p_expr(p);
    } else if (p->tok->t == T_NAME && p->tok[1].t == T_ASSIGN) {
        add_keyword(p, a);
    } else {
        ok = ok && !a->star && !a->kw.n;
        p_add(p, &a->pos, p_expr(p));
    }
    if (!ok) p_unexpected(p, "another order of arguments");
}

static struct jcall_args *no_args(struct jparser *p)
{
    return jj_alloc(p->x, sizeof(struct jcall_args));
}

static struct jcall_args *call_args(struct jparser *p)
{
    struct jcall_args *a = no_args(p);
    p_expect(p, T_LPAREN);
    for (bool more = false; p->tok->t != T_RPAREN; more = true) {
        if (more) p_expect(p, T_COMMA);
        if (p->tok->t == T_RPAREN) break;
        one_arg(p, a);
    }
    p_expect(p, T_RPAREN);
    return a;
}

static struct jnode *call(struct jparser *p, struct jnode *on)
{
    struct jnode *n = p_node(p, N_CALL);
    n->a = on;
    n->args = call_args(p);
    return n;
}

static struct jnode *slice_part(struct jparser *p)
{
    enum jtok_type t = p->tok->t;
    return t == T_COLON || t == T_RBRACKET || t == T_COMMA ? NULL : p_expr(p);
}

static struct jnode *subscribed(struct jparser *p)
{
    struct jnode *n = p_node(p, N_SLICE);
    if (p->tok->t != T_COLON) {
        n->a = p_expr(p);
        if (p->tok->t != T_COLON) return n->a;
    }
    p->tok++;
    n->b = slice_part(p);
    if (p_skip_t(p, T_COLON)) n->c = slice_part(p);
    return n;
}

static struct jnode *subscript(struct jparser *p, struct jnode *on)
{
    struct jnode *n = p_node(p, N_ITEM);
    n->a = on;
    if (p_skip_t(p, T_DOT)) {
        if (p->tok->t == T_INT) {
            n->b = constant(p, jv_int(p->tok->i));
            p->tok++;
            return n;
        }
        n->kind = N_ATTR;
        n->name = p_name(p);
        return n;
    }
    p->tok++; /* '[' */
    struct jnode *t = p_node(p, N_TUPLE);
    while (p->tok->t != T_RBRACKET) {
        if (t->list.n) p_expect(p, T_COMMA);
        p_add(p, &t->list, subscribed(p));
    }
    p->tok++;
    n->b = t->list.n == 1 ? t->list.p[0] : t;
    return n;
}

static struct jnode *postfix(struct jparser *p, struct jnode *n)
{
    for (;;) {
        if (p->tok->t == T_DOT || p->tok->t == T_LBRACKET) n = subscript(p, n);
        else if (p->tok->t == T_LPAREN) n = call(p, n);
        else return n;
    }
}

/* A filter's or test's name may have dots. */
static const struct jname *dotted(struct jparser *p)
{
    const struct jname *name = p_name(p);
    while (p_skip_t(p, T_DOT)) {
        struct jsb b = {0};
        sb_str(p->x, &b, &name->str);
        sb_text(p->x, &b, ".");
        sb_str(p->x, &b, &p_name(p)->str);
        name = p_intern(p, b.s, b.n);
    }
    return name;
}

struct jnode *p_filters(struct jparser *p, struct jnode *on, bool inline_first)
{
    while (inline_first || p_skip_t(p, T_PIPE)) {
        inline_first = false;
        struct jnode *n = p_node(p, N_FILTER);
        n->a = on;
        n->name = dotted(p);
        n->filter = filter_find(n->name->str.s, n->name->str.n);
        n->args = p->tok->t == T_LPAREN ? call_args(p) : no_args(p);
        on = n;
    }
    return on;
}

static bool bare_argument(const struct jparser *p)
{
    switch (p->tok->t) {
    case T_NAME: return !p_is(p, "else") && !p_is(p, "or") && !p_is(p, "and");
    case T_STR:
    case T_INT:
    case T_FLOAT:
    case T_LBRACKET:
    case T_LBRACE: return true;
    default: return false;
    }
}

static struct jnode *test(struct jparser *p, struct jnode *on)
{
    struct jnode *n = p_node(p, N_TEST);
    p->tok++; /* is */
    bool negated = p_skip(p, "not");
    n->a = on;
    n->name = dotted(p);
    n->test = test_find(n->name->str.s, n->name->str.n);
    if (p->tok->t == T_LPAREN) {
        n->args = call_args(p);
    } else {
        n->args = no_args(p);
        if (p_is(p, "is")) p_unexpected(p, "only one test");
        if (bare_argument(p)) p_add(p, &n->args->pos, postfix(p, primary(p, false)));
    }
    if (!negated) return n;
    struct jnode *not = p_node(p, N_NOT);
    not->at = n->at;
    not->a = n;
    return not;
}

static struct jnode *filter_expr(struct jparser *p, struct jnode *n)
{
    for (;;) {
        if (p->tok->t == T_PIPE) n = p_filters(p, n, false);
        else if (p_is(p, "is")) n = test(p, n);
        else if (p->tok->t == T_LPAREN) n = call(p, n);
        else return n;
    }
}

/* ---- operators ---- */

static struct jnode *unary(struct jparser *p, bool with_filter)
{
    struct jnode *n;
    jj_down(p->x);
    if (p->tok->t == T_SUB || p->tok->t == T_ADD) {
        n = p_node(p, p->tok->t == T_SUB ? N_NEG : N_POS);
        p->tok++;
        n->a = unary(p, false);
    } else {
        n = primary(p, false);
    }
    n = postfix(p, n);
    jj_up(p->x);
    return with_filter ? filter_expr(p, n) : n;
}

static struct jnode *binary(struct jparser *p, enum jop op, struct jnode *a)
{
    struct jnode *n = p_node(p, N_BINARY);
    n->op = (uint8_t)op;
    n->a = a;
    p->tok++;
    return n;
}

static struct jnode *power(struct jparser *p)
{
    struct jnode *n = unary(p, true);
    while (p->tok->t == T_POW) {
        n = binary(p, OP_POW, n);
        n->b = unary(p, true);
    }
    return n;
}

static struct jnode *product(struct jparser *p)
{
    struct jnode *n = power(p);
    for (;;) {
        enum jtok_type t = p->tok->t;
        if (t != T_MUL && t != T_DIV && t != T_FLOORDIV && t != T_MOD) return n;
        n = binary(p, t == T_MUL ? OP_MUL : t == T_DIV ? OP_DIV
                      : t == T_MOD ? OP_MOD : OP_FLOORDIV, n);
        n->b = power(p);
    }
}

static struct jnode *concat(struct jparser *p)
{
    struct jnode *first = product(p);
    if (p->tok->t != T_TILDE) return first;
    struct jnode *n = p_node(p, N_CONCAT);
    p_add(p, &n->list, first);
    while (p_skip_t(p, T_TILDE)) p_add(p, &n->list, product(p));
    return n;
}

static struct jnode *sum(struct jparser *p)
{
    struct jnode *n = concat(p);
    while (p->tok->t == T_ADD || p->tok->t == T_SUB) {
        n = binary(p, p->tok->t == T_ADD ? OP_ADD : OP_SUB, n);
        n->b = concat(p);
    }
    return n;
}

/* The comparison that stands here, or -1; skips it. */
static int comparison(struct jparser *p)
{
    static const struct { enum jtok_type t; enum jop op; } ops[] = {
        {T_EQ, OP_EQ}, {T_NE, OP_NE}, {T_LT, OP_LT}, {T_LE, OP_LE}, {T_GT, OP_GT}, {T_GE, OP_GE}};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (p_skip_t(p, ops[i].t)) return (int)ops[i].op;
    if (p_skip(p, "in")) return OP_IN;
    if (p_is(p, "not") && p->tok[1].t == T_NAME && p->tok[1].n == 2 &&
        !memcmp(p->tok[1].s, "in", 2)) {
        p->tok += 2;
        return OP_NOT_IN;
    }
    return -1;
}

static struct jnode *compare(struct jparser *p)
{
    struct jnode *first = sum(p), *n = NULL;
    for (;;) {
        size_t at = p->tok->at;
        int op = comparison(p);
        if (op < 0) return n ? n : first;
        if (!n) n = p_node(p, N_COMPARE);
        if (!n->a) n->at = at;
        n->a = first;
        struct jnode *operand = p_node(p, N_BINARY);
        operand->op = (uint8_t)op;
        operand->b = sum(p);
        p_add(p, &n->list, operand);
    }
}

static struct jnode *negation(struct jparser *p)
{
    if (!p_is(p, "not")) return compare(p);
    jj_down(p->x);
    struct jnode *n = p_node(p, N_NOT);
    p->tok++;
    n->a = negation(p);
    jj_up(p->x);
    return n;
}

static struct jnode *conjunction(struct jparser *p)
{
    struct jnode *n = negation(p);
    while (p_is(p, "and")) {
        struct jnode *both = p_node(p, N_AND);
        p->tok++;
        both->a = n;
        both->b = negation(p);
        n = both;
    }
    return n;
}

static struct jnode *disjunction(struct jparser *p)
{
    struct jnode *n = conjunction(p);
    while (p_is(p, "or")) {
        struct jnode *either = p_node(p, N_OR);
        p->tok++;
        either->a = n;
        either->b = conjunction(p);
        n = either;
    }
    return n;
}

struct jnode *p_expr(struct jparser *p)
{
    jj_down(p->x);
    struct jnode *n = disjunction(p);
    while (p_is(p, "if")) {
        struct jnode *cond = p_node(p, N_COND);
        p->tok++;
        cond->b = n;
        cond->a = disjunction(p);
        if (p_skip(p, "else")) cond->c = p_expr(p);
        n = cond;
    }
    jj_up(p->x);
    return n;
}

/* ---- tuples ---- */

static bool tuple_end(const struct jparser *p)
{
    return p->tok->t == T_VAR_END || p->tok->t == T_BLOCK_END || p->tok->t == T_RPAREN;
}

static struct jnode *tuple_item(struct jparser *p, unsigned flags)
{
    if (flags & TUPLE_PLAIN) return primary(p, flags & TUPLE_NS);
    if (!(flags & TUPLE_NO_COND)) return p_expr(p);
    jj_down(p->x);
    struct jnode *n = disjunction(p);
    jj_up(p->x);
    return n;
}

/* One expression, or several with commas: a tuple.  PLAIN: names and literals; NS: and names of
 * namespaces; NO_COND: without "if"; PARENS: may be empty. */
struct jnode *p_tuple(struct jparser *p, unsigned flags)
{
    struct jnode *n = p_node(p, N_TUPLE);
    bool is_tuple = false;
    for (;;) {
        if (n->list.n) p_expect(p, T_COMMA);
        if (tuple_end(p)) break;
        p_add(p, &n->list, tuple_item(p, flags));
        if (p->tok->t != T_COMMA) break;
        is_tuple = true;
    }
    if (is_tuple) return n;
    if (n->list.n) return n->list.p[0];
    if (!(flags & TUPLE_PARENS)) p_unexpected(p, "an expression");
    return n;
}
