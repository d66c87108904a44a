/* Jinja: the parser of statements, and jinja_parse itself.  Owns struct jinja: the tree and the
 * arena it lies in. */
#include <stdio.h>
#include <stdlib.h>

#include "moe/load/jinja_int.h"

enum {
    MAX_SOURCE = 1 << 20,
    MAX_PARSE_BYTES = 64 << 20,
    MAX_NESTING = 300,           /* brackets, operators, blocks; a level takes some 2 KiB of stack */
    MAX_PARSE_STEPS = 200000000
};

static struct jnodes statements(struct jparser *p, const char *const *ends);

/* The body of a block up to "{% end %}", that included. */
static struct jnodes body_until(struct jparser *p, const char *end)
{
    const char *ends[] = {end, NULL};
    struct jnodes l = statements(p, ends);
    p->tok++;
    return l;
}

/* ---- assignments ---- */

static void check_target(struct jparser *p, const struct jnode *n, bool in_for)
{
    for (size_t i = 0; n->kind == N_TUPLE && i < n->list.n; i++)
        check_target(p, n->list.p[i], in_for);
    p->x->at = n->at;
    if (n->kind != N_NAME && n->kind != N_NSREF && n->kind != N_TUPLE)
        jj_fail(p->x, ERR_FORMAT, "this cannot be assigned to");
    if (n->kind == N_NAME && in_for && js_is(&n->name->str, "loop"))
        jj_fail(p->x, ERR_FORMAT, "the variable loop of a for loop cannot be assigned to");
}

static struct jnode *target(struct jparser *p, unsigned flags, bool in_for)
{
    struct jnode *n = p_tuple(p, TUPLE_PLAIN | flags);
    check_target(p, n, in_for);
    return n;
}

/* A name that is given a value: a parameter, a macro. */
static struct jnode *target_name(struct jparser *p)
{
    struct jnode *n = p_node(p, N_NAME);
    static const char *const words[] = {"true", "True", "false", "False", "none", "None"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (p_is(p, words[i])) p_unexpected(p, "a name");
    n->name = p_name(p);
    return n;
}

static struct jnode *parse_set(struct jparser *p)
{
    struct jnode *n = p_node(p, N_SET);
    p->tok++;
    n->a = target(p, TUPLE_NS, p->loops > 0);
    if (p_skip_t(p, T_ASSIGN)) {
        n->b = p_tuple(p, 0);
        return n;
    }
    n->kind = N_SET_BLOCK;
    n->b = p_filters(p, NULL, false);
    n->list = body_until(p, "endset");
    return n;
}

/* ---- control ---- */

static struct jnode *parse_for(struct jparser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct jnode *n = p_node(p, N_FOR);
    p->tok++;
    n->name = p_intern(p, "loop", 4);
    n->a = target(p, 0, true);
    if (!p_skip(p, "in")) p_unexpected(p, "'in'");
    n->b = p_tuple(p, TUPLE_NO_COND);
    if (p_skip(p, "if")) n->c = p_expr(p);
    if (p_is(p, "recursive")) {
        p->x->at = p->tok->at;
        jj_fail(p->x, ERR_UNSUPPORTED, "recursive loops are not supported");
    }
    p->loops++;
    n->list = statements(p, ends);
    p->loops--;
    if (p_skip(p, "endfor")) return n;
    p->tok++; /* else */
    n->list2 = body_until(p, "endfor");
    return n;
}

static struct jnode *scope_of(struct jparser *p, struct jnodes body)
{
    struct jnode *n = p_node(p, N_SCOPE);
    n->list = body;
    return n;
}

/* list: the conditions; list2: their bodies, one more when there is an else. */
static struct jnode *parse_if(struct jparser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct jnode *n = p_node(p, N_IF);
    do {
        p->tok++; /* if, elif */
        p_add(p, &n->list, p_tuple(p, TUPLE_NO_COND));
        p_add(p, &n->list2, scope_of(p, statements(p, ends)));
    } while (p_is(p, "elif"));
    if (p_skip(p, "else")) p_add(p, &n->list2, scope_of(p, body_until(p, "endif")));
    else p->tok++; /* endif */
    return n;
}

static struct jnode *parse_jump(struct jparser *p, enum jnode_kind kind)
{
    struct jnode *n = p_node(p, kind);
    if (!p->loops) p_unexpected(p, "a loop around this");
    p->tok++;
    return n;
}

static struct jnode *parse_with(struct jparser *p)
{
    struct jnode *n = p_node(p, N_WITH);
    struct jnodes names = {0};
    p->tok++;
    while (p->tok->t != T_BLOCK_END) {
        if (names.n) p_expect(p, T_COMMA);
        p_add(p, &names, target(p, 0, p->loops > 0));
        p_expect(p, T_ASSIGN);
        p_add(p, &n->list2, p_expr(p));
    }
    n->a = p_node(p, N_TUPLE);
    n->a->list = names;
    n->list = body_until(p, "endwith");
    return n;
}

/* ---- macros ---- */

static void signature(struct jparser *p, struct jparams *m)
{
    p_expect(p, T_LPAREN);
    while (p->tok->t != T_RPAREN) {
        if (m->names.n) p_expect(p, T_COMMA);
        p_add(p, &m->names, target_name(p));
        if (p_skip_t(p, T_ASSIGN)) p_add(p, &m->defaults, p_expr(p));
        else if (m->defaults.n) p_unexpected(p, "a default");
    }
    p_expect(p, T_RPAREN);
}

static bool has_param(const struct jparams *m, const char *name)
{
    for (size_t i = 0; i < m->names.n; i++)
        if (js_is(&m->names.p[i]->name->str, name)) return true;
    return false;
}

static void macro_body(struct jparser *p, struct jnode *n, const char *end)
{
    int loops = p->loops;
    p->loops = 0;
    n->params->outer = p->params;
    p->params = n->params;
    n->list = body_until(p, end);
    p->params = n->params->outer;
    p->loops = loops;
    n->params->caller_name = p_intern(p, "caller", 6);
    n->params->varargs_name = p_intern(p, "varargs", 7);
    n->params->kwargs_name = p_intern(p, "kwargs", 6);
    n->params->varargs &= !has_param(n->params, "varargs");
    n->params->kwargs &= !has_param(n->params, "kwargs");
    n->params->caller &= !has_param(n->params, "caller");
}

static struct jnode *parse_macro(struct jparser *p)
{
    struct jnode *n = p_node(p, N_MACRO);
    p->tok++;
    n->name = target_name(p)->name;
    n->params = jj_alloc(p->x, sizeof *n->params);
    signature(p, n->params);
    macro_body(p, n, "endmacro");
    return n;
}

static struct jnode *parse_call_block(struct jparser *p)
{
    struct jnode *n = p_node(p, N_CALL_BLOCK);
    p->tok++;
    n->params = jj_alloc(p->x, sizeof *n->params);
    if (p->tok->t == T_LPAREN) signature(p, n->params);
    n->a = p_expr(p);
    if (n->a->kind != N_CALL) p_unexpected(p, "a call");
    macro_body(p, n, "endcall");
    return n;
}

static struct jnode *parse_filter_block(struct jparser *p)
{
    struct jnode *n = p_node(p, N_FILTER_BLOCK);
    p->tok++;
    n->b = p_filters(p, NULL, true);
    n->list = body_until(p, "endfilter");
    return n;
}

/* {% generation %} only marks what an assistant said: its body in a scope of its own. */
static struct jnode *parse_generation(struct jparser *p)
{
    int loops = p->loops;
    p->tok++;
    p->loops = 0;
    struct jnode *n = scope_of(p, body_until(p, "endgeneration"));
    p->loops = loops;
    return n;
}

static struct jnode *parse_print(struct jparser *p)
{
    struct jnode *n = p_node(p, N_PRINT);
    p->tok++;
    while (p->tok->t != T_BLOCK_END) {
        if (n->list.n) p_expect(p, T_COMMA);
        p_add(p, &n->list, p_expr(p));
    }
    return n;
}

/* ---- statements ---- */

static _Noreturn void unknown(struct jparser *p)
{
    static const char *const known[] = {"include", "import", "from", "extends", "block", "do",
                                        "autoescape", "trans", "debug"};
    p->x->at = p->tok->at;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (p_is(p, known[i]))
            jj_fail(p->x, ERR_UNSUPPORTED, "{%% %s %%} is not supported", known[i]);
    p_unexpected(p, "a statement");
}

static struct jnode *statement(struct jparser *p)
{
    if (p_is(p, "set")) return parse_set(p);
    if (p_is(p, "if")) return parse_if(p);
    if (p_is(p, "for")) return parse_for(p);
    if (p_is(p, "macro")) return parse_macro(p);
    if (p_is(p, "break")) return parse_jump(p, N_BREAK);
    if (p_is(p, "continue")) return parse_jump(p, N_CONTINUE);
    if (p_is(p, "generation")) return parse_generation(p);
    if (p_is(p, "with")) return parse_with(p);
    if (p_is(p, "call")) return parse_call_block(p);
    if (p_is(p, "filter")) return parse_filter_block(p);
    if (p_is(p, "print")) return parse_print(p);
    unknown(p);
}

static struct jnode *text(struct jparser *p)
{
    struct jnode *n = p_node(p, N_TEXT);
    n->v = jv_str(js_new(p->x, p->tok->s, p->tok->n, false));
    p->tok++;
    return n;
}

static struct jnode *print_tag(struct jparser *p)
{
    p->tok++;
    struct jnode *n = p_node(p, N_PRINT);
    p_add(p, &n->list, p_tuple(p, 0));
    p_expect(p, T_VAR_END);
    return n;
}

static bool is_end(const struct jparser *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (p_is(p, *ends)) return true;
    return false;
}

static _Noreturn void missing_end(struct jparser *p, const char *const *ends)
{
    char wanted[40];
    while (ends[1]) ends++; /* the last one closes, the others continue */
    (void)snprintf(wanted, sizeof wanted, "'{%% %s %%}'", *ends);
    p_unexpected(p, wanted);
}

/* Everything up to a block that begins with one of `ends`; stands at that word then.  NULL: up to
 * the end of the template. */
static struct jnodes parse_list(struct jparser *p, const char *const *ends)
{
    struct jnodes l = {0};
    for (;;) {
        if (p->tok->t == T_EOF && !ends) return l;
        if (p->tok->t == T_EOF) missing_end(p, ends);
        if (p->tok->t == T_DATA) {
            p_add(p, &l, text(p));
        } else if (p->tok->t == T_VAR_BEGIN) {
            p_add(p, &l, print_tag(p));
        } else {
            p_expect(p, T_BLOCK_BEGIN);
            if (is_end(p, ends)) return l;
            p_add(p, &l, statement(p));
            p_expect(p, T_BLOCK_END);
        }
    }
}

static struct jnodes statements(struct jparser *p, const char *const *ends)
{
    (void)p_skip_t(p, T_COLON);
    p_expect(p, T_BLOCK_END);
    jj_down(p->x);
    struct jnodes l = parse_list(p, ends);
    jj_up(p->x);
    return l;
}

struct jnodes p_body(struct jparser *p)
{
    return parse_list(p, NULL);
}

/* ---- the template ---- */

/* Line ends become LF, one at the very end goes. */
static void take_source(struct jj *x, const char *src, size_t n)
{
    if (n > MAX_SOURCE) jj_fail(x, ERR_RANGE, "a chat template of more than 1 MiB");
    char *s = jj_bytes(x, n + 1);
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        s[k] = src[i];
        if (src[i] == '\r') {
            s[k] = '\n';
            i += i + 1 < n && src[i + 1] == '\n';
        }
        k++;
    }
    if (k && s[k - 1] == '\n') k--;
    s[k] = 0;
    x->src = s;
    x->n_src = k;
}

static void parse(struct jj *x, struct jinja *t, const char *src, size_t n)
{
    size_t n_tok;
    struct jparser p = {.x = x};
    take_source(x, src, n);
    p.names = t->names;
    p.tok = jj_lex(x, &n_tok);
    t->body = p_body(&p);
}

static enum status parse_into(struct jj *x, struct jinja *t, const char *src, size_t n)
{
    if (setjmp(x->out)) return x->code;
    parse(x, t, src, n);
    return OK;
}

enum status jinja_parse(const char *src, size_t n, struct jinja **out, struct err *e)
{
    struct jj x = {.a.limit = MAX_PARSE_BYTES, .e = e, .steps = MAX_PARSE_STEPS,
                   .depth_max = MAX_NESTING};
    struct jinja *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t) return err_set(e, ERR_MEMORY, "no memory for the chat template");
    enum status s = parse_into(&x, t, src, n);
    if (s) {
        jj_arena_free(&x.a);
        free(t);
        return s;
    }
    t->a = x.a;
    t->src = x.src;
    t->n_src = x.n_src;
    *out = t;
    return OK;
}

void jinja_free(struct jinja *t)
{
    if (!t) return;
    jj_arena_free(&t->a);
    free(t);
}

bool jinja_mentions(const struct jinja *t, const char *name)
{
    for (int i = 0; i < NAME_SLOTS; i++)
        for (const struct jname *k = t->names[i]; k; k = k->next)
            if (js_is(&k->str, name)) return true;
    return false;
}
