/* Jinja: going through values, the lazy filters map, select, reject and their -attr forms, and
 * the state of a loop.  A struct jiter is used up by reading it, as a generator of Python is. */
#include "moe/load/jinja_int.h"

static struct jiter *it_new(struct jj *x, enum jiter_kind kind, struct jval src)
{
    struct jiter *it = jj_alloc(x, sizeof *it);
    it->kind = kind;
    it->src = src;
    return it;
}

struct jval it_value(struct jiter *it)
{
    return (struct jval){.t = V_ITER, .u.it = it};
}

bool it_can(struct jval v)
{
    return v.t == V_UNDEF || v.t == V_STR || v.t == V_LIST || v.t == V_TUPLE || v.t == V_DICT ||
           v.t == V_RANGE || v.t == V_VIEW || v.t == V_ITER || v.t == V_LOOP;
}

static struct jiter *over_dict(struct jj *x, enum jiter_kind kind, struct jval v)
{
    enum jview_kind view = v.t == V_VIEW ? v.u.view->kind : VIEW_KEYS;
    if (v.t == V_VIEW) v = (struct jval){.t = V_DICT, .u.d = v.u.view->d};
    struct jiter *it = it_new(x, kind, v);
    it->view = view;
    return it;
}

struct jiter *it_open(struct jj *x, struct jval v)
{
    switch (v.t) {
    case V_ITER: return v.u.it;
    case V_UNDEF: return it_new(x, IT_NONE, v);
    case V_STR: return it_new(x, IT_STR, v);
    case V_LIST:
    case V_TUPLE: return it_new(x, IT_SEQ, v);
    case V_RANGE: return it_new(x, IT_RANGE, v);
    case V_DICT:
    case V_VIEW: return over_dict(x, IT_DICT, v);
    default: jj_fail(x, ERR_FORMAT, "a %s cannot be iterated", jv_type(v));
    }
}

struct jiter *it_reversed(struct jj *x, struct jval v)
{
    struct jiter *it;
    switch (v.t) {
    case V_UNDEF: return it_new(x, IT_NONE, v);
    case V_RANGE: return it_new(x, IT_RANGE_BACK, v);
    case V_DICT:
    case V_VIEW: return over_dict(x, IT_DICT_BACK, v);
    case V_LIST:
    case V_TUPLE:
        it = it_new(x, IT_SEQ_BACK, v);
        it->i = v.u.l->n;
        return it;
    default: return NULL;
    }
}

/* ---- one item ---- */

static bool next_char(struct jj *x, struct jiter *it, struct jval *out)
{
    const struct jstr *s = it->src.u.s;
    int32_t cp;
    if (it->i >= s->n) return false;
    size_t len = (size_t)u8_get(s->s + it->i, s->n - it->i, &cp);
    struct jstr *one = jj_alloc(x, sizeof *one); /* never Markup, even of Markup */
    *one = (struct jstr){.s = s->s + it->i, .n = len, .tainted = js_tainted(s, it->i)};
    *out = jv_str(one);
    it->i += len;
    return true;
}

static struct jval entry_at(struct jj *x, const struct jiter *it, size_t i)
{
    const struct jentry *e = &it->src.u.d->e[i];
    return it->view == VIEW_KEYS ? e->k : it->view == VIEW_VALUES ? e->v : jl_pair(x, e->k, e->v);
}

static bool next_selected(struct jj *x, struct jiter *it, struct jval *out)
{
    while (it_next(x, it->in, out)) {
        struct jval v = it->has_attr ? attr_path(x, *out, it->attr, NULL) : *out;
        bool yes = it->test ? test_call(x, it->test, v, &it->args) : jv_true(x, v);
        if (yes != it->negate) return true;
    }
    return false;
}

static bool next_mapped(struct jj *x, struct jiter *it, struct jval *out)
{
    struct jval v;
    if (!it_next(x, it->in, &v)) return false;
    if (it->kind == IT_MAP) *out = filter_call(x, it->filter, v, &it->args);
    else *out = attr_path(x, v, it->attr, it->has_dflt ? &it->dflt : NULL);
    return true;
}

/* `for target in ... if condition`: the condition sees the targets, but not `loop`. */
static bool next_if(struct jj *x, struct jiter *it, struct jval *out)
{
    if (!it->in) it->in = it_open(x, it->src);
    while (it_next(x, it->in, out)) {
        struct jscope *back = x->scope;
        x->scope = jj_scope(x, it->scope);
        jj_assign(x, it->loop->a, *out);
        bool yes = jv_true(x, jj_eval(x, it->loop->c));
        x->scope = back;
        if (yes) return true;
    }
    return false;
}

static bool next_of(struct jj *x, struct jiter *it, struct jval *out)
{
    size_t n;
    switch (it->kind) {
    case IT_NONE: return false;
    case IT_SEQ:
        if (it->i >= it->src.u.l->n) return false;
        *out = it->src.u.l->v[it->i++];
        return true;
    case IT_SEQ_BACK:
        if (!it->i) return false;
        *out = it->src.u.l->v[--it->i];
        return true;
    case IT_STR: return next_char(x, it, out);
    case IT_DICT:
    case IT_DICT_BACK:
        n = it->src.u.d->n;
        if (it->i >= n) return false;
        *out = entry_at(x, it, it->kind == IT_DICT ? it->i : n - 1 - it->i);
        it->i++;
        return true;
    case IT_RANGE:
    case IT_RANGE_BACK:
        n = (size_t)it->src.u.r->n;
        if (it->i >= n) return false;
        *out = jr_at(it->src.u.r, (int64_t)(it->kind == IT_RANGE ? it->i : n - 1 - it->i));
        it->i++;
        return true;
    case IT_DEFERRED:
        if (!it->in) it->in = it_open(x, it->begin(x, it->src, &it->args));
        return it_next(x, it->in, out);
    case IT_MAP:
    case IT_MAP_ATTR: return next_mapped(x, it, out);
    case IT_SELECT: return next_selected(x, it, out);
    case IT_LOOP_IF: return next_if(x, it, out);
    }
    return false;
}

bool it_next(struct jj *x, struct jiter *it, struct jval *out)
{
    jj_step(x, 1);
    jj_down(x); /* lazy filters read lazy filters */
    bool more = next_of(x, it, out);
    jj_up(x);
    return more;
}

struct jval it_list(struct jj *x, struct jval v)
{
    struct jval l = jl_new(x, V_LIST, 0), item;
    if (v.t == V_LIST || v.t == V_TUPLE) {
        l = jl_new(x, V_LIST, v.u.l->n);
        if (v.u.l->n) memcpy(l.u.l->v, v.u.l->v, v.u.l->n * sizeof item);
        return l;
    }
    for (struct jiter *it = it_open(x, v); it_next(x, it, &item);) jl_push(x, l.u.l, item);
    return l;
}

/* ---- the variable `loop` ---- */

static bool peek(struct jj *x, struct jloop *l)
{
    if (!l->has_after && !l->done) {
        l->has_after = it_next(x, l->it, &l->after);
        l->done = !l->has_after;
    }
    return l->has_after;
}

bool loop_next(struct jj *x, struct jloop *l)
{
    if (!peek(x, l)) return false;
    l->has_after = false;
    l->before = l->cur;
    l->cur = l->after;
    l->index0++;
    return true;
}

int64_t loop_length(struct jj *x, struct jloop *l)
{
    if (l->length >= 0 || jv_len(x, l->src, &l->length)) return l->length;
    struct jval rest = it_list(x, it_value(l->it));
    l->it = it_open(x, rest);
    l->length = (int64_t)rest.u.l->n + l->index0 + 1 + l->has_after;
    return l->length;
}

enum { LOOP_CYCLE, LOOP_CHANGED };

static struct jval loop_method(struct jj *x, struct jloop *l, int what)
{
    struct jmethod *m = jj_alloc(x, sizeof *m);
    m->self = (struct jval){.t = V_LOOP, .u.loop = l};
    m->what = what;
    return (struct jval){.t = V_METHOD, .u.method = m};
}

struct jval loop_attr(struct jj *x, struct jloop *l, const struct jstr *name)
{
    if (js_is(name, "index")) return jv_int(l->index0 + 1);
    if (js_is(name, "index0")) return jv_int(l->index0);
    if (js_is(name, "first")) return jv_bool(l->index0 == 0);
    if (js_is(name, "last")) return jv_bool(!peek(x, l));
    if (js_is(name, "length")) return jv_int(loop_length(x, l));
    if (js_is(name, "revindex")) return jv_int(loop_length(x, l) - l->index0);
    if (js_is(name, "revindex0")) return jv_int(loop_length(x, l) - l->index0 - 1);
    if (js_is(name, "previtem"))
        return l->index0 ? l->before : jv_undef("there is no previous item");
    if (js_is(name, "nextitem")) return peek(x, l) ? l->after : jv_undef("there is no next item");
    if (js_is(name, "depth")) return jv_int(1);
    if (js_is(name, "depth0")) return jv_int(0);
    if (js_is(name, "cycle")) return loop_method(x, l, LOOP_CYCLE);
    if (js_is(name, "changed")) return loop_method(x, l, LOOP_CHANGED);
    return jv_undef("loop has no such attribute");
}

struct jval loop_call(struct jj *x, struct jloop *l, int what, const struct jargs *a)
{
    if (a->n_kw) jj_fail(x, ERR_FORMAT, "a method of loop takes no keyword arguments");
    if (what == LOOP_CYCLE) {
        if (!a->n_pos) jj_fail(x, ERR_FORMAT, "no items for cycling given");
        return a->pos[(size_t)l->index0 % a->n_pos];
    }
    struct jlist args = {.v = a->pos, .n = a->n_pos};
    struct jval now = {.t = V_TUPLE, .u.l = &args};
    if (l->has_changed && jv_eq(x, l->changed, now)) return jv_bool(false);
    l->changed = jl_new(x, V_TUPLE, a->n_pos);
    if (a->n_pos) memcpy(l->changed.u.l->v, a->pos, a->n_pos * sizeof *a->pos);
    l->has_changed = true;
    return jv_bool(true);
}
