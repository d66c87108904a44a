/* Jinja: the filters for lists, dicts and whatever else can be iterated. */
#include "moe/load/jinja_int.h"

#define FILTER(f) static struct jval f(struct jj *x, struct jval v, const struct jval *const *a)

/* ---- attribute paths ---- */

static bool all_digits(const struct jstr *s)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->s[i] < '0' || s->s[i] > '9') return false;
    return s->n > 0;
}

static struct jval path_step(struct jj *x, struct jval v, const struct jstr *part,
                             const struct jval *dflt)
{
    int64_t i;
    bool index = all_digits(part) && num_int(x, part, 10, &i);
    v = jj_item(x, v, index ? jv_int(i) : jv_str(part));
    return v.t == V_UNDEF && dflt && dflt->t != V_NONE ? *dflt : v;
}

struct jval attr_path(struct jj *x, struct jval v, struct jval path, const struct jval *dflt)
{
    if (path.t == V_NONE) return v;
    if (path.t != V_STR) {
        v = jj_item(x, v, path);
        return v.t == V_UNDEF && dflt && dflt->t != V_NONE ? *dflt : v;
    }
    const struct jstr *s = path.u.s;
    for (size_t from = 0, i = 0; i <= s->n; i++) {
        if (i < s->n && s->s[i] != '.') continue;
        jj_step(x, 1);
        v = path_step(x, v, js_sub(x, s, from, i), dflt);
        from = i + 1;
    }
    return v;
}

struct jval fold_case(struct jj *x, struct jval v)
{
    return v.t == V_STR ? js_case(x, v.u.s, CASE_LOWER) : v;
}

static bool flag(struct jj *x, const struct jval *a)
{
    return a && jv_true(x, *a);
}

/* What items are compared by: an attribute or themselves, without case unless asked. */
static struct jval key_of(struct jj *x, struct jval v, const struct jval *attr, bool fold)
{
    if (attr) v = attr_path(x, v, *attr, NULL);
    return fold ? fold_case(x, v) : v;
}

/* ---- lazy ones ---- */

/* Each of these is a generator in jinja2: nothing happens, wrong arguments included, until
 * somebody asks for the first item. */
static struct jval defer(struct jj *x, struct jval v, const struct jargs *a,
                         struct jval (*begin)(struct jj *, struct jval, const struct jargs *))
{
    struct jiter *it = jj_alloc(x, sizeof *it);
    *it = (struct jiter){.kind = IT_DEFERRED, .src = v, .begin = begin, .args = *a};
    return it_value(it);
}

#define LAZY(f, begin)                                                             \
    static struct jval f(struct jj *x, struct jval v, const struct jargs *a)       \
    {                                                                              \
        return defer(x, v, a, begin);                                              \
    }
#define BEGIN(f) static struct jval f(struct jj *x, struct jval v, const struct jargs *a)

static struct jiter *reading(struct jj *x, enum jiter_kind kind, struct jval v)
{
    struct jiter *it = jj_alloc(x, sizeof *it);
    it->kind = kind;
    it->src = v;
    it->in = it_open(x, v);
    return it;
}

/* The arguments behind the first n. */
static struct jargs behind(const struct jargs *a, size_t n)
{
    struct jargs r = *a;
    r.pos = n < a->n_pos ? a->pos + n : NULL;
    r.n_pos -= n;
    return r;
}

static struct jval map_attribute(struct jj *x, struct jval v, const struct jargs *a)
{
    const struct jval *bound[MAX_PARAMS];
    struct jiter *it = reading(x, IT_MAP_ATTR, v);
    jj_bind(x, "map", "attribute ; default", a, bound);
    it->attr = *bound[0];
    it->has_dflt = bound[1] != NULL;
    if (bound[1]) it->dflt = *bound[1];
    return it_value(it);
}

BEGIN(begin_map)
{
    if (!jv_true(x, v)) return jv_undef(NULL); /* None and 0 have no items, and no type error */
    if (!a->n_pos && a->n_kw) return map_attribute(x, v, a);
    if (!a->n_pos) jj_fail(x, ERR_FORMAT, "map requires a filter or an attribute");
    struct jiter *it = reading(x, IT_MAP, v);
    const struct jstr *name = want_str(x, a->pos[0], "map: the filter's name");
    it->filter = filter_find(name->s, name->n);
    if (!it->filter)
        jj_fail(x, ERR_UNSUPPORTED, "map: no filter named '%.*s'", name->n > 40 ? 40 : (int)name->n,
                name->s);
    it->args = behind(a, 1);
    return it_value(it);
}

static struct jval select_by(struct jj *x, struct jval v, const struct jargs *a, bool attr,
                             bool negate)
{
    size_t at = attr;
    if (!jv_true(x, v)) return jv_undef(NULL);
    if (a->n_pos < at) jj_fail(x, ERR_FORMAT, "the name of the attribute is missing");
    struct jiter *it = reading(x, IT_SELECT, v);
    it->negate = negate;
    it->has_attr = attr;
    if (attr) it->attr = a->pos[0];
    if (a->n_pos == at) return it_value(it);
    const struct jstr *name = want_str(x, a->pos[at], "the name of the test");
    it->test = test_find(name->s, name->n);
    if (!it->test)
        jj_fail(x, ERR_UNSUPPORTED, "no test named '%.*s'", name->n > 40 ? 40 : (int)name->n,
                name->s);
    it->args = behind(a, at + 1);
    return it_value(it);
}

BEGIN(begin_select) { return select_by(x, v, a, false, false); }
BEGIN(begin_reject) { return select_by(x, v, a, false, true); }
BEGIN(begin_selectattr) { return select_by(x, v, a, true, false); }
BEGIN(begin_rejectattr) { return select_by(x, v, a, true, true); }

BEGIN(begin_items)
{
    (void)a;
    if (v.t == V_UNDEF) return v;
    if (v.t != V_DICT) jj_fail(x, ERR_FORMAT, "items of a %s", jv_type(v));
    struct jview *view = jj_alloc(x, sizeof *view);
    *view = (struct jview){v.u.d, VIEW_ITEMS};
    return (struct jval){.t = V_VIEW, .u.view = view};
}

BEGIN(begin_unique)
{
    const struct jval *bound[MAX_PARAMS];
    jj_bind(x, "unique", "case_sensitive attribute", a, bound);
    bool fold = !flag(x, bound[0]);
    struct jval seen = jd_new(x), l = jl_new(x, V_LIST, 0), item;
    for (struct jiter *it = it_open(x, v); it_next(x, it, &item);) {
        struct jval k = key_of(x, item, bound[1], fold);
        if (!jv_hashable(x, k)) jj_fail(x, ERR_FORMAT, "unique: a %s cannot be hashed", jv_type(k));
        if (jd_get(x, seen.u.d, k)) continue;
        jd_set(x, seen.u.d, k, JV_NONE);
        jl_push(x, l.u.l, item);
    }
    return l;
}

static void fill_up(struct jj *x, struct jlist *l, int64_t n, const struct jval *with)
{
    if (!with || with->t == V_NONE) return;
    while ((int64_t)l->n < n) {
        jj_step(x, 1);
        jl_push(x, l, *with);
    }
}

BEGIN(begin_batch)
{
    const struct jval *bound[MAX_PARAMS];
    jj_bind(x, "batch", "linecount ; fill_with", a, bound);
    int64_t n = want_int(x, *bound[0], "batch: linecount");
    struct jval all = jl_new(x, V_LIST, 0), now = jl_new(x, V_LIST, 0), item;
    for (struct jiter *it = it_open(x, v); it_next(x, it, &item);) {
        if ((int64_t)now.u.l->n == n) {
            jl_push(x, all.u.l, now);
            now = jl_new(x, V_LIST, 0);
        }
        jl_push(x, now.u.l, item);
    }
    if (!now.u.l->n) return all;
    fill_up(x, now.u.l, n, bound[1]);
    jl_push(x, all.u.l, now);
    return all;
}

BEGIN(begin_slice)
{
    const struct jval *bound[MAX_PARAMS];
    jj_bind(x, "slice", "slices ; fill_with", a, bound);
    int64_t n = want_int(x, *bound[0], "slice: slices");
    if (!n) jj_fail(x, ERR_FORMAT, "division by zero");
    struct jval seq = it_list(x, v), all = jl_new(x, V_LIST, 0);
    size_t len = seq.u.l->n, at = 0;
    for (int64_t i = 0; i < n; i++) {
        size_t each = len / (size_t)n, more = (size_t)i < len % (size_t)n;
        struct jval part = jl_new(x, V_LIST, 0);
        jj_step(x, 1);
        for (size_t k = 0; k < each + more; k++) jl_push(x, part.u.l, seq.u.l->v[at++]);
        if (!more) fill_up(x, part.u.l, (int64_t)part.u.l->n + 1, bound[1]);
        jl_push(x, all.u.l, part);
    }
    return all;
}

LAZY(f_map, begin_map)
LAZY(f_select, begin_select)
LAZY(f_reject, begin_reject)
LAZY(f_selectattr, begin_selectattr)
LAZY(f_rejectattr, begin_rejectattr)
LAZY(f_items, begin_items)
LAZY(f_unique, begin_unique)
LAZY(f_batch, begin_batch)
LAZY(f_slice, begin_slice)

/* ---- ends ---- */

FILTER(f_first)
{
    (void)a;
    struct jval item;
    if (it_next(x, it_open(x, v), &item)) return item;
    return jv_undef("no first item, the sequence was empty");
}

static const struct jstr *reversed_str(struct jj *x, const struct jstr *s)
{
    struct jsb b = {0};
    size_t end = s->n;
    while (end) {
        size_t at = end - 1;
        int32_t cp;
        while (at && end - at < 4 && ((unsigned char)s->s[at] & 0xc0) == 0x80) at--;
        if ((size_t)u8_get(s->s + at, end - at, &cp) != end - at) at = end - 1;
        sb_part(x, &b, s, at, end);
        end = at;
    }
    jj_work(x, 8 * s->n);
    return sb_val(x, &b).u.s;
}

FILTER(f_last)
{
    (void)a;
    struct jval item;
    if (v.t == V_STR) v = it_list(x, v);
    struct jiter *it = it_reversed(x, v);
    if (!it) jj_fail(x, ERR_FORMAT, "last: a %s cannot be reversed", jv_type(v));
    if (it_next(x, it, &item)) return item;
    return jv_undef("no last item, the sequence was empty");
}

FILTER(f_reverse)
{
    (void)a;
    if (v.t == V_STR) return jv_str(reversed_str(x, v.u.s));
    struct jiter *it = it_reversed(x, v);
    if (it) return it_value(it);
    struct jval l = it_list(x, v), r = jl_new(x, V_LIST, l.u.l->n);
    for (size_t i = 0; i < l.u.l->n; i++) r.u.l->v[i] = l.u.l->v[l.u.l->n - 1 - i];
    return r;
}

FILTER(f_list)
{
    (void)a;
    return it_list(x, v);
}

/* ---- together ---- */

FILTER(f_join)
{
    struct jsb b = {0};
    struct jval item;
    const struct jstr *between = a[0] ? jv_to_str(x, *a[0]) : js_lit(x, "");
    bool first = true;
    for (struct jiter *it = it_open(x, v); it_next(x, it, &item); first = false) {
        if (!first) sb_str(x, &b, between);
        if (a[1] && a[1]->t != V_NONE) item = attr_path(x, item, *a[1], NULL);
        jv_put_str(x, &b, item);
    }
    return sb_val(x, &b);
}

FILTER(f_sum)
{
    struct jval sum = a[1] ? *a[1] : jv_int(0), item;
    if (sum.t == V_STR) jj_fail(x, ERR_FORMAT, "sum cannot add strings");
    for (struct jiter *it = it_open(x, v); it_next(x, it, &item);) {
        if (a[0] && a[0]->t != V_NONE) item = attr_path(x, item, *a[0], NULL);
        sum = jj_binary(x, OP_ADD, sum, item);
    }
    return sum;
}

static struct jval extreme(struct jj *x, struct jval v, const struct jval *const *a, int sign)
{
    struct jval best = jv_undef("no aggregated item, the sequence was empty"), best_key = best;
    struct jval item;
    bool any = false, fold = !flag(x, a[0]);
    for (struct jiter *it = it_open(x, v); it_next(x, it, &item); any = true) {
        struct jval key = key_of(x, item, a[1], fold);
        if (any) {
            int c = jv_cmp(x, key, best_key, sign < 0 ? "<" : ">");
            if (c == 2 || c * sign <= 0) continue;
        }
        best = item;
        best_key = key;
    }
    return best;
}

FILTER(f_min)
{
    return extreme(x, v, a, -1);
}

FILTER(f_max)
{
    return extreme(x, v, a, 1);
}

/* ---- order ---- */

struct keyed {
    struct jval key, item;
};

static bool before(struct jj *x, struct jval a, struct jval b)
{
    return jv_cmp(x, a, b, "<") < 0;
}

/* Stable, by merging runs of doubling length; backwards keeps equal items in order too. */
static struct keyed *sort(struct jj *x, struct keyed *from, size_t n, bool backwards)
{
    struct keyed *to = jj_array(x, n + 1, sizeof *to);
    for (size_t run = 1; run < n; run *= 2) {
        for (size_t at = 0; at < n; at += 2 * run) {
            size_t i = at, mid = at + run < n ? at + run : n;
            size_t k = mid, end = at + 2 * run < n ? at + 2 * run : n;
            for (size_t o = at; o < end; o++) {
                bool right = i == mid ||
                             (k < end && (backwards ? before(x, from[i].key, from[k].key)
                                                    : before(x, from[k].key, from[i].key)));
                to[o] = right ? from[k++] : from[i++];
            }
        }
        struct keyed *swap = from;
        from = to;
        to = swap;
    }
    return from;
}

/* The keys of sort: a list of one for each attribute in "a,b". */
static struct jval sort_key(struct jj *x, struct jval item, const struct jval *attr, bool fold)
{
    struct jval keys = jl_new(x, V_LIST, 0);
    if (!attr || attr->t != V_STR) {
        jl_push(x, keys.u.l, key_of(x, item, attr, fold));
        return keys;
    }
    const struct jstr *s = attr->u.s;
    for (size_t from = 0, i = 0; i <= s->n; i++) {
        if (i < s->n && s->s[i] != ',') continue;
        struct jval part = jv_str(js_sub(x, s, from, i));
        jl_push(x, keys.u.l, key_of(x, item, &part, fold));
        from = i + 1;
    }
    return keys;
}

static struct jval take_items(struct jj *x, const struct keyed *k, size_t n)
{
    struct jval l = jl_new(x, V_LIST, n);
    for (size_t i = 0; i < n; i++) l.u.l->v[i] = k[i].item;
    return l;
}

FILTER(f_sort)
{
    struct jval l = it_list(x, v);
    size_t n = l.u.l->n;
    bool fold = !flag(x, a[1]);
    struct keyed *k = jj_array(x, n + 1, sizeof *k);
    for (size_t i = 0; i < n; i++)
        k[i] = (struct keyed){sort_key(x, l.u.l->v[i], a[2], fold), l.u.l->v[i]};
    return take_items(x, sort(x, k, n, flag(x, a[0])), n);
}

FILTER(f_dictsort)
{
    if (v.t == V_UNDEF) jv_use_undef(x, v);
    if (v.t != V_DICT) jj_fail(x, ERR_FORMAT, "dictsort of a %s", jv_type(v));
    bool by_value = a[1] && a[1]->t == V_STR && js_is(a[1]->u.s, "value");
    if (a[1] && !by_value && !(a[1]->t == V_STR && js_is(a[1]->u.s, "key")))
        jj_fail(x, ERR_FORMAT, "dictsort sorts by \"key\" or \"value\"");
    size_t n = v.u.d->n;
    struct keyed *k = jj_array(x, n + 1, sizeof *k);
    for (size_t i = 0; i < n; i++) {
        const struct jentry *e = &v.u.d->e[i];
        struct jval key = by_value ? e->v : e->k;
        k[i] = (struct keyed){flag(x, a[0]) ? key : fold_case(x, key), jl_pair(x, e->k, e->v)};
    }
    return take_items(x, sort(x, k, n, flag(x, a[2])), n);
}

const struct jfilter *filter_find_seq(const char *name, size_t n)
{
    static const struct jfilter table[] = {
        {"batch", NULL, NULL, f_batch},
        {"dictsort", "case_sensitive by reverse", f_dictsort, NULL},
        {"first", "", f_first, NULL},
        {"items", NULL, NULL, f_items},
        {"join", "d attribute", f_join, NULL},
        {"last", "", f_last, NULL},
        {"list", "", f_list, NULL},
        {"map", NULL, NULL, f_map},
        {"max", "case_sensitive attribute", f_max, NULL},
        {"min", "case_sensitive attribute", f_min, NULL},
        {"reject", NULL, NULL, f_reject},
        {"rejectattr", NULL, NULL, f_rejectattr},
        {"reverse", "", f_reverse, NULL},
        {"select", NULL, NULL, f_select},
        {"selectattr", NULL, NULL, f_selectattr},
        {"slice", NULL, NULL, f_slice},
        {"sort", "reverse case_sensitive attribute", f_sort, NULL},
        {"sum", "attribute start", f_sum, NULL},
        {"unique", NULL, NULL, f_unique},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strlen(table[i].name) == n && !memcmp(table[i].name, name, n)) return &table[i];
    return NULL;
}
