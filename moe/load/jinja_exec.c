/* Jinja: statements, scopes, macros, and jinja_render.
 *
 * Scopes are jinja2's: the body of a for loop begins anew with each item, blocks of set, with,
 * call, filter, generation and macros have scopes of their own, if has not.  A macro sees the
 * scope in which it was made, not the one it is called from. */
#include <stdlib.h>

#include "moe/load/jinja_int.h"

/* ---- scopes ---- */

struct jscope *jj_scope(struct jj *x, struct jscope *up)
{
    struct jscope *s = jj_alloc(x, sizeof *s);
    s->up = up;
    return s;
}

void jj_set(struct jj *x, const struct jname *name, struct jval v)
{
    struct jscope *s = x->scope;
    jj_step(x, 1);
    for (size_t i = 0; i < s->n; i++) {
        if (s->var[i].name != name) continue;
        s->var[i].v = v;
        return;
    }
    s->var = jj_grow(x, s->var, s->n, &s->cap, sizeof *s->var);
    s->var[s->n++] = (struct jvar){name, v};
}

static void set_member(struct jj *x, const struct jnode *target, struct jval v)
{
    struct jval ns;
    if (!jj_lookup(x, target->name, &ns) || ns.t != V_NS)
        jj_fail(x, ERR_FORMAT, "'%s' is not a namespace: its members cannot be set",
                target->name->str.s);
    jd_set(x, ns.u.d, target->v, v);
}

void jj_assign(struct jj *x, const struct jnode *target, struct jval v)
{
    x->at = target->at;
    if (target->kind == N_NSREF) {
        set_member(x, target, v);
    } else if (target->kind == N_NAME) {
        jj_set(x, target->name, v);
    } else {
        struct jval l = it_list(x, v);
        if (l.u.l->n != target->list.n)
            jj_fail(x, ERR_FORMAT, "%zu values for %zu names", l.u.l->n, target->list.n);
        for (size_t i = 0; i < l.u.l->n; i++) jj_assign(x, target->list.p[i], l.u.l->v[i]);
    }
}

/* ---- output ---- */

/* What the body prints, in a scope of its own.  *flow tells how it ended. */
static struct jval capture(struct jj *x, const struct jnodes *body, struct jscope *scope,
                           enum jflow *flow)
{
    struct jsb b = {0}, *sink = x->sink;
    struct jscope *back = x->scope;
    x->sink = &b;
    x->scope = scope;
    *flow = jj_exec(x, body);
    x->sink = sink;
    x->scope = back;
    return sb_val(x, &b);
}

static void print(struct jj *x, const struct jnode *n)
{
    for (size_t i = 0; i < n->list.n; i++) {
        struct jval v = jj_eval(x, n->list.p[i]);
        x->at = n->at;
        jv_put_str(x, x->sink, v);
    }
}

/* ---- macros ---- */

static struct jval make_macro(struct jj *x, const struct jnode *n, const struct jname *name)
{
    struct jmacro *m = jj_alloc(x, sizeof *m);
    *m = (struct jmacro){.name = name, .node = n, .scope = x->scope};
    for (struct jscope *s = x->scope; s && !s->kept; s = s->up) s->kept = true;
    return (struct jval){.t = V_MACRO, .u.macro = m};
}

static const char *macro_name(const struct jmacro *m)
{
    return m->name ? m->name->str.s : "caller";
}

static size_t keyword(struct jj *x, const struct jargs *a, const struct jstr *name)
{
    size_t i = 0;
    while (i < a->n_kw && !js_eq(a->kw_name[i], name)) i++;
    jj_step(x, i);
    return i;
}

/* The value of parameter i: by position, by name, its default, or undefined. */
static struct jval param(struct jj *x, const struct jmacro *m, size_t i, const struct jargs *a,
                         bool *used)
{
    const struct jparams *p = m->node->params;
    size_t first = p->names.n - p->defaults.n;
    if (i < a->n_pos) return a->pos[i];
    size_t k = keyword(x, a, &p->names.p[i]->name->str);
    if (k < a->n_kw) {
        used[k] = true;
        return a->kw[k];
    }
    if (i >= first) return jj_eval(x, p->defaults.p[i - first]);
    return jv_undef("a parameter was not provided");
}

static void special_params(struct jj *x, const struct jmacro *m, const struct jargs *a,
                           bool *used)
{
    const struct jparams *p = m->node->params;
    size_t k = p->caller ? keyword(x, a, &p->caller_name->str) : a->n_kw;
    if (p->caller && k == a->n_kw) {
        jj_set(x, p->caller_name, jv_undef("no caller defined"));
    } else if (p->caller) {
        used[k] = true;
        jj_set(x, p->caller_name, a->kw[k]);
    }
    if (p->varargs) {
        size_t from = a->n_pos < p->names.n ? a->n_pos : p->names.n;
        struct jval l = jl_new(x, V_TUPLE, a->n_pos - from);
        if (l.u.l->n) memcpy(l.u.l->v, a->pos + from, l.u.l->n * sizeof l);
        jj_set(x, p->varargs_name, l);
    } else if (a->n_pos > p->names.n) {
        jj_fail(x, ERR_FORMAT, "macro %s takes not more than %zu arguments", macro_name(m),
                p->names.n);
    }
    struct jval d = jd_new(x);
    for (size_t i = 0; i < a->n_kw; i++) {
        if (used[i]) continue;
        if (!p->kwargs)
            jj_fail(x, ERR_FORMAT, "macro %s takes no keyword argument '%.*s'", macro_name(m),
                    a->kw_name[i]->n > 40 ? 40 : (int)a->kw_name[i]->n, a->kw_name[i]->s);
        jd_set(x, d.u.d, jv_str(a->kw_name[i]), a->kw[i]);
    }
    if (p->kwargs) jj_set(x, p->kwargs_name, d);
}

struct jval jj_call_macro(struct jj *x, const struct jmacro *m, const struct jargs *a)
{
    const struct jparams *p = m->node->params;
    bool *used = jj_bytes(x, a->n_kw + 1);
    struct jscope *back = x->scope;
    enum jflow flow;
    size_t at = x->at;
    jj_down(x);
    memset(used, 0, a->n_kw + 1);
    x->scope = jj_scope(x, m->scope);
    for (size_t i = 0; i < p->names.n; i++)
        jj_set(x, p->names.p[i]->name, param(x, m, i, a, used));
    x->at = at;
    special_params(x, m, a, used);
    struct jval v = capture(x, &m->node->list, x->scope, &flow);
    x->scope = back;
    jj_up(x);
    return v;
}

/* {% call(...) macro(...) %}: the body becomes the macro `caller` of the call. */
static void call_block(struct jj *x, const struct jnode *n)
{
    struct jargs a;
    struct jval f = jj_eval(x, n->a->a);
    jj_args(x, n->a->args, &a);
    const struct jstr **names = jj_array(x, a.n_kw + 1, sizeof *names);
    struct jval *kw = jj_array(x, a.n_kw + 1, sizeof *kw);
    for (size_t i = 0; i < a.n_kw; i++) {
        names[i] = a.kw_name[i];
        kw[i] = a.kw[i];
    }
    names[a.n_kw] = js_lit(x, "caller");
    kw[a.n_kw++] = make_macro(x, n, NULL);
    a.kw_name = names;
    a.kw = kw;
    x->at = n->a->at;
    jv_put_str(x, x->sink, jj_call(x, f, &a));
}

/* ---- loops ---- */

static struct jval loop_source(struct jj *x, const struct jnode *n)
{
    struct jval src = jj_eval(x, n->b);
    x->at = n->b->at;
    if (src.t == V_LOOP || !it_can(src))
        jj_fail(x, ERR_FORMAT, "a %s cannot be iterated", jv_type(src));
    if (!n->c) return src;
    struct jiter *it = jj_alloc(x, sizeof *it);
    *it = (struct jiter){.kind = IT_LOOP_IF, .src = src, .loop = n, .scope = x->scope};
    return it_value(it);
}

/* The scope of the next iteration; `loop` is its first variable, as the parser arranged. */
static struct jscope *iteration(struct jj *x, struct jscope *old, struct jscope *up)
{
    if (!old || old->kept) return jj_scope(x, up);
    old->n = 0;
    return old;
}

static enum jflow loop(struct jj *x, const struct jnode *n)
{
    struct jloop *l = jj_alloc(x, sizeof *l);
    struct jscope *up = x->scope, *mine = NULL;
    enum jflow flow = FLOW_NEXT;
    bool finished = false; /* some iteration came to the end of its body */
    *l = (struct jloop){.src = loop_source(x, n), .index0 = -1, .length = -1};
    l->it = it_open(x, l->src);
    while (flow != FLOW_BREAK && loop_next(x, l)) {
        mine = iteration(x, mine, up);
        x->scope = mine;
        jj_set(x, n->name, (struct jval){.t = V_LOOP, .u.loop = l});
        jj_assign(x, n->a, l->cur);
        flow = jj_exec(x, &n->list);
        x->scope = up;
        finished |= flow == FLOW_NEXT;
    }
    if (finished || !n->list2.n) return FLOW_NEXT;
    x->scope = jj_scope(x, up);
    flow = jj_exec(x, &n->list2);
    x->scope = up;
    return flow;
}

/* ---- statements ---- */

static enum jflow choose(struct jj *x, const struct jnode *n)
{
    size_t i = 0;
    while (i < n->list.n && !jv_true(x, jj_eval(x, n->list.p[i]))) i++;
    return i < n->list2.n ? jj_exec(x, &n->list2.p[i]->list) : FLOW_NEXT;
}

/* The filters of a block, applied to what it printed: the innermost has no value of its own. */
static struct jval filtered(struct jj *x, const struct jnode *f, struct jval v)
{
    struct jargs a;
    if (!f) return v;
    jj_down(x);
    v = filtered(x, f->a, v);
    jj_up(x);
    x->at = f->at;
    if (!f->filter) jj_fail(x, ERR_UNSUPPORTED, "no filter named '%s'", f->name->str.s);
    jj_args(x, f->args, &a);
    x->at = f->at;
    return filter_call(x, f->filter, v, &a);
}

static enum jflow set_block(struct jj *x, const struct jnode *n)
{
    enum jflow flow;
    struct jval v = capture(x, &n->list, jj_scope(x, x->scope), &flow);
    if (flow != FLOW_NEXT) return flow;
    v = filtered(x, n->b, v);
    if (n->kind == N_SET_BLOCK) jj_assign(x, n->a, v);
    else jv_put_str(x, x->sink, v);
    return FLOW_NEXT;
}

static enum jflow scoped(struct jj *x, const struct jnode *n)
{
    struct jscope *back = x->scope, *mine = jj_scope(x, back);
    struct jval values = jl_new(x, V_TUPLE, n->list2.n);
    for (size_t i = 0; i < n->list2.n; i++) values.u.l->v[i] = jj_eval(x, n->list2.p[i]);
    x->scope = mine;
    for (size_t i = 0; i < n->list2.n; i++) jj_assign(x, n->a->list.p[i], values.u.l->v[i]);
    enum jflow flow = jj_exec(x, &n->list);
    x->scope = back;
    return flow;
}

static enum jflow statement(struct jj *x, const struct jnode *n)
{
    switch (n->kind) {
    case N_TEXT: sb_str(x, x->sink, n->v.u.s); break;
    case N_PRINT: print(x, n); break;
    case N_FOR: return loop(x, n);
    case N_IF: return choose(x, n);
    case N_SET: jj_assign(x, n->a, jj_eval(x, n->b)); break;
    case N_SET_BLOCK:
    case N_FILTER_BLOCK: return set_block(x, n);
    case N_MACRO: jj_set(x, n->name, make_macro(x, n, n->name)); break;
    case N_CALL_BLOCK: call_block(x, n); break;
    case N_WITH:
    case N_SCOPE: return scoped(x, n);
    case N_BREAK: return FLOW_BREAK;
    case N_CONTINUE: return FLOW_CONTINUE;
    default: break;
    }
    return FLOW_NEXT;
}

enum jflow jj_exec(struct jj *x, const struct jnodes *body)
{
    enum jflow flow = FLOW_NEXT;
    jj_down(x);
    for (size_t i = 0; i < body->n && flow == FLOW_NEXT; i++) {
        x->at = body->p[i]->at;
        jj_step(x, 1);
        flow = statement(x, body->p[i]);
    }
    jj_up(x);
    return flow;
}

/* ---- rendering ---- */

const char *const jinja_trusted[] = {"bos_token", "eos_token", "pad_token", "unk_token",
                                     "messages.*.role", NULL};

static void render(struct jj *x, const struct jinja *t, const char *vars_json, struct jsb *top)
{
    static const struct jinja_env nothing;
    if (!x->env) x->env = &nothing;
    x->src = NULL; /* errors in the variables are not in the template */
    x->vars = json_read(x, vars_json, x->env->trusted ? x->env->trusted : jinja_trusted).u.d;
    x->src = t->src;
    x->n_src = t->n_src;
    x->sink = x->top = top;
    x->scope = jj_scope(x, NULL);
    (void)jj_exec(x, &t->body);
}

static enum status render_into(struct jj *x, const struct jinja *t, const char *vars_json,
                               struct jsb *top)
{
    if (setjmp(x->out)) return x->code;
    render(x, t, vars_json, top);
    return OK;
}

static size_t runs_of(const struct jsb *b, struct jinja_run *run)
{
    size_t n = 0;
    for (size_t i = 0, from = 0; i < b->n; i++) {
        bool mine = b->mark ? b->mark[i] : b->tainted;
        bool next = i + 1 < b->n && (b->mark ? b->mark[i + 1] : b->tainted) == mine;
        if (next) continue;
        if (run) run[n] = (struct jinja_run){from, i + 1, mine};
        n++;
        from = i + 1;
    }
    return n;
}

static enum status hand_out(const struct jsb *b, struct jinja_text *out, struct err *e)
{
    size_t n_runs = runs_of(b, NULL);
    *out = (struct jinja_text){.n = b->n, .n_runs = n_runs};
    out->s = malloc(b->n + 1);
    out->run = malloc((n_runs + 1) * sizeof *out->run);
    if (!out->s || !out->run) {
        jinja_text_free(out);
        return err_set(e, ERR_MEMORY, "no memory for the prompt");
    }
    if (b->n) memcpy(out->s, b->s, b->n);
    out->s[b->n] = 0;
    (void)runs_of(b, out->run);
    return OK;
}

enum status jinja_render(const struct jinja *t, const char *vars_json,
                         const struct jinja_limits *limits, const struct jinja_env *env,
                         struct jinja_text *out, struct err *e)
{
    struct jinja_limits l = {0};
    if (limits) l = *limits;
    struct jj x = {.e = e, .env = env};
    struct jsb top = {0};
    x.steps = l.steps ? l.steps : 20000000;
    x.a.limit = l.bytes ? l.bytes : (size_t)64 << 20;
    x.output_max = l.output ? l.output : (size_t)16 << 20;
    x.depth_max = l.depth ? l.depth : 600;
    *out = (struct jinja_text){0};
    enum status s = render_into(&x, t, vars_json, &top);
    if (!s) s = hand_out(&top, out, e);
    jj_arena_free(&x.a);
    return s;
}

void jinja_text_free(struct jinja_text *t)
{
    free(t->s);
    free(t->run);
    *t = (struct jinja_text){0};
}
