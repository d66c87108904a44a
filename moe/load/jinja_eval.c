/* Jinja: the value of an expression. */
#include "moe/load/jinja_int.h"

/* ---- names ---- */

bool jj_lookup(struct jj *x, const struct jname *name, struct jval *out)
{
    for (const struct jscope *s = x->scope; s; s = s->up) {
        jj_step(x, 1);
        for (size_t i = 0; i < s->n; i++) {
            if (s->var[i].name != name) continue;
            *out = s->var[i].v;
            return true;
        }
    }
    const struct jval *v = jd_get(x, x->vars, jv_str(&name->str));
    const struct jfunc *f = v ? NULL : func_find(&name->str);
    if (v) *out = *v;
    else if (f) *out = (struct jval){.t = V_FUNC, .u.fn = f};
    return v || f;
}

static const char *join3(struct jj *x, const char *a, const struct jstr *s, const char *b)
{
    size_t n = s->n > 60 ? 60 : s->n, na = strlen(a), nb = strlen(b);
    char *t = jj_bytes(x, na + n + nb + 1);
    memcpy(t, a, na);
    memcpy(t + na, s->s, n);
    memcpy(t + na + n, b, nb + 1);
    return t;
}

static struct jval name(struct jj *x, const struct jnode *n)
{
    struct jval v;
    if (jj_lookup(x, n->name, &v)) return v;
    return jv_undef(join3(x, "'", &n->name->str, "' is undefined"));
}

/* ---- attributes and items ---- */

static struct jval no_attr(struct jj *x, struct jval v, const struct jstr *name)
{
    const char *a = join3(x, "a ", js_lit(x, jv_type(v)), " has no '");
    return jv_undef(join3(x, a, name, "'"));
}

/* What getattr finds: methods, members of namespaces and of loop.  False: nothing. */
static bool own_attr(struct jj *x, struct jval v, const struct jstr *name, struct jval *out)
{
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (v.t == V_LOOP) {
        *out = loop_attr(x, v.u.loop, name);
        return out->t != V_UNDEF;
    }
    if (v.t == V_NS) {
        const struct jval *m = jd_get(x, v.u.d, jv_str(name));
        if (m) *out = *m;
        return m != NULL;
    }
    if (v.t == V_MACRO && js_is(name, "name")) {
        *out = v.u.macro->name ? jv_str(&v.u.macro->name->str) : JV_NONE;
        return true;
    }
    const struct jmethod_def *def = method_find(v.t, name);
    if (!def) return false;
    if (!def->f && !def->f_args) { /* what changes values is not for templates */
        *out = jv_undef(join3(x, "the method ", name, " is not allowed here"));
        return true;
    }
    struct jmethod *m = jj_alloc(x, sizeof *m);
    m->self = v;
    m->def = def;
    *out = (struct jval){.t = V_METHOD, .u.method = m};
    return true;
}

static struct jval slice_list(struct jj *x, struct jval v, int64_t from, int64_t step, int64_t n)
{
    struct jval r = jl_new(x, v.t, (size_t)n);
    for (int64_t i = 0; i < n; i++) r.u.l->v[i] = v.u.l->v[from + i * step];
    return r;
}

static struct jval slice_str(struct jj *x, const struct jstr *s, int64_t from, int64_t step,
                             int64_t n)
{
    struct jsb b = {0};
    if (!n) return jv_str(js_sub(x, s, 0, 0));
    if (step == 1) {
        size_t a = js_offset(x, s, (size_t)from);
        const struct jstr *rest = js_sub(x, s, a, s->n);
        return jv_str(js_sub(x, rest, 0, js_offset(x, rest, (size_t)n)));
    }
    size_t chars = js_chars(x, s), at = 0, *start = jj_array(x, chars + 1, sizeof *start);
    int32_t cp;
    for (size_t i = 0; i < chars; i++, at += (size_t)u8_get(s->s + at, s->n - at, &cp))
        start[i] = at;
    start[chars] = s->n;
    jj_step(x, (uint64_t)n);
    for (int64_t i = 0; i < n; i++)
        sb_part(x, &b, s, start[from + i * step], start[from + i * step + 1]);
    return sb_val(x, &b);
}

static struct jval slice_range(struct jj *x, const struct jrange *r, int64_t from, int64_t to,
                               int64_t step, int64_t n)
{
    struct jrange *part = jj_alloc(x, sizeof *part);
    *part = (struct jrange){.start = r->start + from * r->step, .n = n,
                            .stop = r->start + to * r->step};
    if (__builtin_mul_overflow(r->step, step, &part->step))
        jj_fail(x, ERR_RANGE, "an integer beyond 64 bits");
    return (struct jval){.t = V_RANGE, .u.r = part};
}

/* One bound of a slice. */
static int64_t bound(struct jj *x, struct jval v, int64_t len, bool back, int64_t dflt)
{
    if (v.t == V_NONE) return dflt;
    int64_t i = want_int(x, v, "a bound of a slice");
    if (i < 0) i = i < -len ? -1 : i + len;
    else if (i > len) i = len;
    if (i < 0) i = back ? -1 : 0;
    if (back && i >= len) i = len - 1;
    return i;
}

struct slice { /* a value of its own only between [ and ] */
    struct jval part[3];
};

static struct jval take_slice(struct jj *x, struct jval v, const struct slice *s)
{
    int64_t len = 0, step = 1, from, to, n = 0;
    bool can = (v.t == V_STR || v.t == V_LIST || v.t == V_TUPLE || v.t == V_RANGE) &&
               jv_len(x, v, &len);
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (!can) jj_fail(x, ERR_FORMAT, "a slice of a %s", jv_type(v));
    if (s->part[2].t != V_NONE) step = want_int(x, s->part[2], "the step of a slice");
    if (!step) jj_fail(x, ERR_FORMAT, "a slice with step 0");
    bool back = step < 0;
    from = bound(x, s->part[0], len, back, back ? len - 1 : 0);
    to = bound(x, s->part[1], len, back, back ? -1 : len);
    int64_t by = step > len ? len + 1 : step < -len ? -len - 1 : step; /* nothing overflows */
    if (!back && to > from) n = (to - from - 1) / by + 1;
    if (back && from > to) n = (from - to - 1) / -by + 1;
    if (v.t == V_STR) return slice_str(x, v.u.s, from, by, n);
    if (v.t == V_RANGE) return slice_range(x, v.u.r, from, to, step, n);
    step = by;
    return slice_list(x, v, from, step, n);
}

static struct jval char_at(struct jj *x, const struct jstr *s, int64_t i)
{
    size_t at = js_offset(x, s, (size_t)i);
    int32_t cp;
    return jv_str(js_sub(x, s, at, at + (size_t)u8_get(s->s + at, s->n - at, &cp)));
}

static bool index_item(struct jj *x, struct jval v, int64_t i, struct jval *out)
{
    int64_t n;
    if (v.t != V_STR && v.t != V_LIST && v.t != V_TUPLE && v.t != V_RANGE) return false;
    (void)jv_len(x, v, &n);
    if (i < 0) i += n;
    if (i < 0 || i >= n) return false;
    if (v.t == V_STR) *out = char_at(x, v.u.s, i);
    else if (v.t == V_RANGE) *out = jr_at(v.u.r, i);
    else *out = v.u.l->v[i];
    return true;
}

/* v[key]: the item, else the attribute of that name, else undefined. */
struct jval jj_item(struct jj *x, struct jval v, struct jval key)
{
    struct jval out;
    int64_t i;
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (v.t == V_DICT) {
        const struct jval *m = jv_hashable(x, key) ? jd_get(x, v.u.d, key) : NULL;
        if (m) return *m;
    } else if (int_of(key, &i) && index_item(x, v, i, &out)) {
        return out;
    }
    if (key.t == V_STR) return own_attr(x, v, key.u.s, &out) ? out : no_attr(x, v, key.u.s);
    struct jsb b = {0};
    jv_put_repr(x, &b, key);
    return no_attr(x, v, js_new(x, b.s, b.n, false));
}

/* v.name: the attribute, else the item, else undefined. */
struct jval jj_attr(struct jj *x, struct jval v, const struct jstr *name)
{
    struct jval out;
    if (own_attr(x, v, name, &out)) return out;
    const struct jval *m = v.t == V_DICT ? jd_get(x, v.u.d, jv_str(name)) : NULL;
    return m ? *m : no_attr(x, v, name);
}

static struct jval item(struct jj *x, const struct jnode *n)
{
    struct jval v = jj_eval(x, n->a);
    if (n->b->kind != N_SLICE) {
        struct jval key = jj_eval(x, n->b);
        x->at = n->at;
        return jj_item(x, v, key);
    }
    const struct jnode *part[3] = {n->b->a, n->b->b, n->b->c};
    struct slice s;
    for (int i = 0; i < 3; i++) s.part[i] = part[i] ? jj_eval(x, part[i]) : JV_NONE;
    x->at = n->at;
    return take_slice(x, v, &s);
}

/* ---- operators ---- */

static bool is_list(struct jval v)
{
    return v.t == V_LIST || v.t == V_TUPLE;
}

static struct jval repeat(struct jj *x, struct jval v, int64_t times)
{
    if (times < 0) times = 0;
    if (v.t == V_STR) {
        struct jsb b = {0};
        if (!v.u.s->n || times == 1) return v;
        for (int64_t i = 0; i < times; i++) {
            jj_step(x, 1);
            sb_str(x, &b, v.u.s);
        }
        return sb_val(x, &b);
    }
    size_t n = v.u.l->n;
    if (n && (uint64_t)times > x->a.limit / n)
        jj_fail(x, ERR_RANGE, "a list of %lld times %zu items", (long long)times, n);
    struct jval r = jl_new(x, v.t, n * (size_t)times);
    jj_step(x, n * (uint64_t)times);
    for (size_t i = 0; i < r.u.l->n; i++) r.u.l->v[i] = v.u.l->v[i % n];
    return r;
}

static struct jval joined(struct jj *x, struct jval a, struct jval b)
{
    size_t n = a.u.l->n, m = b.u.l->n;
    struct jval r = jl_new(x, a.t, n + m);
    jj_step(x, (n + m) / 8);
    if (n) memcpy(r.u.l->v, a.u.l->v, n * sizeof a);
    if (m) memcpy(r.u.l->v + n, b.u.l->v, m * sizeof b);
    return r;
}

static const char *const op_names[] = {
    [OP_ADD] = "+", [OP_SUB] = "-", [OP_MUL] = "*", [OP_DIV] = "/", [OP_FLOORDIV] = "//",
    [OP_MOD] = "%", [OP_POW] = "**", [OP_EQ] = "==", [OP_NE] = "!=", [OP_LT] = "<",
    [OP_LE] = "<=", [OP_GT] = ">", [OP_GE] = ">=", [OP_IN] = "in", [OP_NOT_IN] = "not in"};

struct jval jj_binary(struct jj *x, enum jop op, struct jval a, struct jval b)
{
    double f;
    int64_t i;
    if (num_of(a, &f) && num_of(b, &f)) return num_op(x, op, a, b);
    if (op == OP_MOD && a.t == V_STR) return format_percent(x, a.u.s, b);
    if (a.t == V_UNDEF) jv_use_undef(x, a);
    if (b.t == V_UNDEF) jv_use_undef(x, b);
    if (op == OP_ADD && a.t == V_STR && b.t == V_STR) return jv_str(js_cat(x, a.u.s, b.u.s));
    if (op == OP_ADD && a.t == b.t && is_list(a)) return joined(x, a, b);
    if (op == OP_MUL && (a.t == V_STR || is_list(a)) && int_of(b, &i)) return repeat(x, a, i);
    if (op == OP_MUL && (b.t == V_STR || is_list(b)) && int_of(a, &i)) return repeat(x, b, i);
    jj_fail(x, ERR_FORMAT, "%s between %s and %s", op_names[op], jv_type(a), jv_type(b));
}

bool jj_compare(struct jj *x, enum jop op, struct jval a, struct jval b)
{
    if (op == OP_EQ) return jv_eq(x, a, b);
    if (op == OP_NE) return !jv_eq(x, a, b);
    if (op == OP_IN) return jv_in(x, a, b);
    if (op == OP_NOT_IN) return !jv_in(x, a, b);
    int c = jv_cmp(x, a, b, op_names[op]);
    if (c == 2) return false;
    return op == OP_LT ? c < 0 : op == OP_LE ? c <= 0 : op == OP_GT ? c > 0 : c >= 0;
}

/* a < b < c: each operand once, up to the first that does not hold. */
static struct jval compare(struct jj *x, const struct jnode *n)
{
    struct jval a = jj_eval(x, n->a);
    for (size_t i = 0; i < n->list.n; i++) {
        const struct jnode *o = n->list.p[i];
        struct jval b = jj_eval(x, o->b);
        x->at = n->at;
        if (!jj_compare(x, (enum jop)o->op, a, b)) return jv_bool(false);
        a = b;
    }
    return jv_bool(true);
}

static struct jval sign(struct jj *x, const struct jnode *n)
{
    struct jval v = jj_eval(x, n->a);
    double f;
    x->at = n->at;
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (!num_of(v, &f)) jj_fail(x, ERR_FORMAT, "a sign in front of a %s", jv_type(v));
    if (v.t == V_FLOAT) return jv_float(n->kind == N_NEG ? -f : f);
    return num_op(x, n->kind == N_NEG ? OP_SUB : OP_ADD, jv_int(0), v);
}

static struct jval concat(struct jj *x, const struct jnode *n)
{
    struct jsb b = {0};
    for (size_t i = 0; i < n->list.n; i++) jv_put_str(x, &b, jj_eval(x, n->list.p[i]));
    return sb_val(x, &b);
}

/* ---- literals ---- */

static struct jval sequence(struct jj *x, const struct jnode *n)
{
    struct jval l = jl_new(x, n->kind == N_LIST ? V_LIST : V_TUPLE, n->list.n);
    for (size_t i = 0; i < n->list.n; i++) l.u.l->v[i] = jj_eval(x, n->list.p[i]);
    return l;
}

static struct jval dict(struct jj *x, const struct jnode *n)
{
    struct jval d = jd_new(x);
    for (size_t i = 0; i + 1 < n->list.n; i += 2) {
        struct jval k = jj_eval(x, n->list.p[i]), v = jj_eval(x, n->list.p[i + 1]);
        x->at = n->list.p[i]->at;
        jd_set(x, d.u.d, k, v);
    }
    return d;
}

/* ---- calls ---- */

static void add_star(struct jj *x, const struct jnode *n, struct jargs *out)
{
    struct jval l = it_list(x, jj_eval(x, n));
    struct jval all = jl_new(x, V_LIST, out->n_pos + l.u.l->n);
    if (out->n_pos) memcpy(all.u.l->v, out->pos, out->n_pos * sizeof l);
    if (l.u.l->n) memcpy(all.u.l->v + out->n_pos, l.u.l->v, l.u.l->n * sizeof l);
    out->pos = all.u.l->v;
    out->n_pos = all.u.l->n;
}

static void add_star2(struct jj *x, const struct jnode *n, struct jargs *out)
{
    struct jval d = jj_eval(x, n);
    if (d.t != V_DICT) jj_fail(x, ERR_FORMAT, "** in front of a %s", jv_type(d));
    size_t all = out->n_kw + d.u.d->n;
    const struct jstr **name = jj_array(x, all, sizeof *name);
    struct jval *v = jj_array(x, all, sizeof *v);
    for (size_t i = 0; i < all; i++) {
        const struct jentry *e = i < out->n_kw ? NULL : &d.u.d->e[i - out->n_kw];
        if (e && e->k.t != V_STR) jj_fail(x, ERR_FORMAT, "an argument's name is no string");
        name[i] = e ? e->k.u.s : out->kw_name[i];
        v[i] = e ? e->v : out->kw[i];
        for (size_t k = 0; e && k < out->n_kw; k++)
            if (js_eq(name[k], name[i]))
                jj_fail(x, ERR_FORMAT, "an argument is given twice");
    }
    jj_step(x, all * (out->n_kw + 1));
    out->kw_name = name;
    out->kw = v;
    out->n_kw = all;
}

void jj_args(struct jj *x, const struct jcall_args *a, struct jargs *out)
{
    *out = (struct jargs){.n_pos = a->pos.n, .n_kw = a->kw.n, .kw_name = a->kw_name};
    if (a->pos.n) out->pos = jj_array(x, a->pos.n, sizeof *out->pos);
    if (a->kw.n) out->kw = jj_array(x, a->kw.n, sizeof *out->kw);
    for (size_t i = 0; i < a->pos.n; i++) out->pos[i] = jj_eval(x, a->pos.p[i]);
    for (size_t i = 0; i < a->kw.n; i++) out->kw[i] = jj_eval(x, a->kw.p[i]);
    if (a->star) add_star(x, a->star, out);
    if (a->star2) add_star2(x, a->star2, out);
}

struct jval jj_call(struct jj *x, struct jval f, const struct jargs *a)
{
    switch (f.t) {
    case V_UNDEF: jv_use_undef(x, f);
    case V_FUNC: return f.u.fn->call(x, a);
    case V_METHOD: return method_call(x, f.u.method, a);
    case V_MACRO: return jj_call_macro(x, f.u.macro, a);
    case V_LOOP: jj_fail(x, ERR_UNSUPPORTED, "recursive loops are not supported");
    default: jj_fail(x, ERR_FORMAT, "a %s cannot be called", jv_type(f));
    }
}

static struct jval call(struct jj *x, const struct jnode *n)
{
    struct jargs a;
    struct jval f = jj_eval(x, n->a);
    jj_args(x, n->args, &a);
    x->at = n->at;
    return jj_call(x, f, &a);
}

static struct jval filter(struct jj *x, const struct jnode *n)
{
    struct jargs a;
    x->at = n->at;
    if (!n->filter) jj_fail(x, ERR_UNSUPPORTED, "no filter named '%s'", n->name->str.s);
    struct jval v = jj_eval(x, n->a);
    jj_args(x, n->args, &a);
    x->at = n->at;
    return filter_call(x, n->filter, v, &a);
}

static struct jval test(struct jj *x, const struct jnode *n)
{
    struct jargs a;
    x->at = n->at;
    if (!n->test) jj_fail(x, ERR_UNSUPPORTED, "no test named '%s'", n->name->str.s);
    struct jval v = jj_eval(x, n->a);
    jj_args(x, n->args, &a);
    x->at = n->at;
    return jv_bool(test_call(x, n->test, v, &a));
}

/* ---- everything ---- */

static struct jval cond(struct jj *x, const struct jnode *n)
{
    if (jv_true(x, jj_eval(x, n->a))) return jj_eval(x, n->b);
    if (n->c) return jj_eval(x, n->c);
    return jv_undef("the inline if-expression was false and has no else");
}

static struct jval logic(struct jj *x, const struct jnode *n)
{
    struct jval a = jj_eval(x, n->a);
    return jv_true(x, a) == (n->kind == N_OR) ? a : jj_eval(x, n->b);
}

static struct jval binary(struct jj *x, const struct jnode *n)
{
    struct jval a = jj_eval(x, n->a), b = jj_eval(x, n->b);
    x->at = n->at;
    return jj_binary(x, (enum jop)n->op, a, b);
}

static struct jval attr(struct jj *x, const struct jnode *n)
{
    struct jval v = jj_eval(x, n->a);
    x->at = n->at;
    return jj_attr(x, v, &n->name->str);
}

static struct jval value_of(struct jj *x, const struct jnode *n)
{
    switch (n->kind) {
    case N_CONST: return n->v;
    case N_NAME: return name(x, n);
    case N_TUPLE:
    case N_LIST: return sequence(x, n);
    case N_DICT: return dict(x, n);
    case N_COND: return cond(x, n);
    case N_OR:
    case N_AND: return logic(x, n);
    case N_NOT: return jv_bool(!jv_true(x, jj_eval(x, n->a)));
    case N_COMPARE: return compare(x, n);
    case N_BINARY: return binary(x, n);
    case N_CONCAT: return concat(x, n);
    case N_NEG:
    case N_POS: return sign(x, n);
    case N_ATTR: return attr(x, n);
    case N_ITEM: return item(x, n);
    case N_CALL: return call(x, n);
    case N_FILTER: return filter(x, n);
    case N_TEST: return test(x, n);
    default: x->at = n->at; jj_fail(x, ERR_UNSUPPORTED, "a slice among other indices");
    }
}

struct jval jj_eval(struct jj *x, const struct jnode *n)
{
    x->at = n->at;
    jj_step(x, 1);
    jj_down(x);
    struct jval v = value_of(x, n);
    jj_up(x);
    return v;
}
