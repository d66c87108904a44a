/* Jinja: what Python does with values of any type: truth, equality, order, length, printing; and
 * the containers. */
#include <math.h>
#include <stdio.h>

#include "moe/load/jinja_int.h"

const char *jv_type(struct jval v)
{
    static const char *const names[] = {
        [V_UNDEF] = "Undefined", [V_NONE] = "NoneType", [V_BOOL] = "bool", [V_INT] = "int",
        [V_FLOAT] = "float", [V_STR] = "str", [V_LIST] = "list", [V_TUPLE] = "tuple",
        [V_DICT] = "dict", [V_RANGE] = "range", [V_VIEW] = "view of a dict",
        [V_ITER] = "generator", [V_NS] = "Namespace", [V_MACRO] = "Macro",
        [V_FUNC] = "function", [V_METHOD] = "method", [V_LOOP] = "LoopContext"};
    return names[v.t];
}

_Noreturn void jv_use_undef(struct jj *x, struct jval v)
{
    jj_fail(x, ERR_FORMAT, "%s", v.u.why ? v.u.why : "a value is undefined");
}

bool jv_len(struct jj *x, struct jval v, int64_t *n)
{
    switch (v.t) {
    case V_UNDEF: *n = 0; return true;
    case V_STR: *n = (int64_t)js_chars(x, v.u.s); return true;
    case V_LIST:
    case V_TUPLE: *n = (int64_t)v.u.l->n; return true;
    case V_DICT: *n = (int64_t)v.u.d->n; return true;
    case V_VIEW: *n = (int64_t)v.u.view->d->n; return true;
    case V_RANGE: *n = v.u.r->n; return true;
    case V_LOOP: *n = loop_length(x, v.u.loop); return true;
    default: return false;
    }
}

bool jv_true(struct jj *x, struct jval v)
{
    int64_t n;
    switch (v.t) {
    case V_NONE: return false;
    case V_BOOL: return v.u.b;
    case V_INT: return v.u.i != 0;
    case V_FLOAT: return v.u.f != 0;
    case V_STR: return v.u.s->n != 0;
    default: return !jv_len(x, v, &n) || n;
    }
}

/* ---- equality and order ---- */

static bool list_eq(struct jj *x, const struct jlist *a, const struct jlist *b)
{
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n && i < b->n; i++)
        if (!jv_eq(x, a->v[i], b->v[i])) return false;
    return true;
}

static bool dict_eq(struct jj *x, const struct jdict *a, const struct jdict *b)
{
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++) {
        const struct jval *v = jd_get(x, b, a->e[i].k);
        if (!v || !jv_eq(x, a->e[i].v, *v)) return false;
    }
    return true;
}

static bool range_eq(const struct jrange *a, const struct jrange *b)
{
    return a->n == b->n && (!a->n || (a->start == b->start && (a->n == 1 || a->step == b->step)));
}

static bool num_eq(struct jval a, struct jval b)
{
    int64_t i, k;
    double f = 0, g = 0;
    if (int_of(a, &i) && int_of(b, &k)) return i == k;
    return num_of(a, &f) && num_of(b, &g) && f == g;
}

/* Same object: what Python compares by identity. */
static bool same(struct jval a, struct jval b)
{
    switch (a.t) {
    case V_ITER: return a.u.it == b.u.it;
    case V_NS: return a.u.d == b.u.d;
    case V_MACRO: return a.u.macro == b.u.macro;
    case V_FUNC: return a.u.fn == b.u.fn;
    case V_LOOP: return a.u.loop == b.u.loop;
    default: return false;
    }
}

bool jv_eq(struct jj *x, struct jval a, struct jval b)
{
    double f;
    jj_step(x, 1);
    if (num_of(a, &f)) return num_eq(a, b);
    if (a.t != b.t) return false;
    switch (a.t) {
    case V_UNDEF:
    case V_NONE: return true;
    case V_STR: jj_work(x, a.u.s->n); return js_eq(a.u.s, b.u.s);
    case V_RANGE: return range_eq(a.u.r, b.u.r);
    case V_LIST:
    case V_TUPLE:
    case V_DICT: break;
    default: return same(a, b);
    }
    jj_down(x);
    bool eq = a.t == V_DICT ? dict_eq(x, a.u.d, b.u.d) : list_eq(x, a.u.l, b.u.l);
    jj_up(x);
    return eq;
}

static int list_cmp(struct jj *x, const struct jlist *a, const struct jlist *b, const char *op)
{
    size_t n = a->n < b->n ? a->n : b->n;
    for (size_t i = 0; i < n; i++)
        if (!jv_eq(x, a->v[i], b->v[i])) return jv_cmp(x, a->v[i], b->v[i], op);
    return a->n < b->n ? -1 : a->n > b->n;
}

int jv_cmp(struct jj *x, struct jval a, struct jval b, const char *op)
{
    int64_t i, k;
    double f, g;
    jj_step(x, 1);
    if (int_of(a, &i) && int_of(b, &k)) return i < k ? -1 : i > k;
    if (num_of(a, &f) && num_of(b, &g)) return f < g ? -1 : f > g ? 1 : f == g ? 0 : 2;
    if (a.t == V_STR && b.t == V_STR) {
        jj_work(x, a.u.s->n);
        return js_cmp(a.u.s, b.u.s);
    }
    if (a.t == b.t && (a.t == V_LIST || a.t == V_TUPLE)) {
        jj_down(x);
        int c = list_cmp(x, a.u.l, b.u.l, op);
        jj_up(x);
        return c;
    }
    if (a.t == V_UNDEF) jv_use_undef(x, a);
    if (b.t == V_UNDEF) jv_use_undef(x, b);
    jj_fail(x, ERR_FORMAT, "'%s' between %s and %s", op, jv_type(a), jv_type(b));
}

static bool in_range(struct jval item, const struct jrange *r)
{
    int64_t i;
    double f;
    if (!int_of(item, &i)) {
        if (!num_of(item, &f) || f != floor(f) || fabs(f) > 1e15) return false;
        i = (int64_t)f;
    }
    if (!r->n) return false;
    int64_t first = r->start, last = r->start + (r->n - 1) * r->step;
    if (r->step < 0 ? i > first || i < last : i < first || i > last) return false;
    return (i - first) % r->step == 0;
}

bool jv_in(struct jj *x, struct jval item, struct jval in)
{
    struct jval v;
    if (in.t == V_STR) {
        if (item.t != V_STR)
            jj_fail(x, ERR_FORMAT, "'in <string>' with %s on the left", jv_type(item));
        return js_find(x, in.u.s, item.u.s, 0) != SIZE_MAX;
    }
    bool keys = in.t == V_DICT || (in.t == V_VIEW && in.u.view->kind == VIEW_KEYS);
    if (keys) {
        if (!jv_hashable(x, item)) jj_fail(x, ERR_FORMAT, "a %s as a key", jv_type(item));
        return jd_get(x, in.t == V_DICT ? in.u.d : in.u.view->d, item) != NULL;
    }
    if (in.t == V_RANGE) return in_range(item, in.u.r);
    for (struct jiter *it = it_open(x, in); it_next(x, it, &v);)
        if (jv_eq(x, v, item)) return true;
    return false;
}

/* ---- printing ---- */

static void put_quoted(struct jj *x, struct jsb *b, const struct jstr *s)
{
    bool single = memchr(s->s, '\'', s->n), twice = memchr(s->s, '"', s->n);
    const char *quote = single && !twice ? "\"" : "'";
    sb_text(x, b, quote);
    for (size_t i = 0; i < s->n;) {
        char esc[16];
        int32_t cp;
        size_t len = (size_t)u8_get(s->s + i, s->n - i, &cp);
        esc[0] = 0;
        if (cp == '\\' || cp == *quote) (void)snprintf(esc, sizeof esc, "\\%c", (char)cp);
        else if (cp == '\n') memcpy(esc, "\\n", 3);
        else if (cp == '\r') memcpy(esc, "\\r", 3);
        else if (cp == '\t') memcpy(esc, "\\t", 3);
        else if (cp < 0) (void)snprintf(esc, sizeof esc, "\\x%02x", (unsigned char)s->s[i]);
        else if (!u8_printable(cp))
            (void)snprintf(esc, sizeof esc, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x"
                                            : "\\U%08x", (unsigned)cp);
        if (esc[0]) sb_put(x, b, esc, strlen(esc), js_tainted(s, i));
        else sb_part(x, b, s, i, i + len);
        i += len;
    }
    jj_work(x, 8 * s->n);
    sb_text(x, b, quote);
}

static void put_list(struct jj *x, struct jsb *b, const struct jlist *l, const char *ends)
{
    sb_put(x, b, ends, 1, false);
    for (size_t i = 0; i < l->n; i++) {
        if (i) sb_text(x, b, ", ");
        jv_put_repr(x, b, l->v[i]);
    }
    if (l->n == 1 && *ends == '(') sb_text(x, b, ",");
    sb_put(x, b, ends + 1, 1, false);
}

static void put_dict(struct jj *x, struct jsb *b, const struct jdict *d)
{
    sb_text(x, b, "{");
    for (size_t i = 0; i < d->n; i++) {
        if (i) sb_text(x, b, ", ");
        jv_put_repr(x, b, d->e[i].k);
        sb_text(x, b, ": ");
        jv_put_repr(x, b, d->e[i].v);
    }
    sb_text(x, b, "}");
}

static void put_view(struct jj *x, struct jsb *b, const struct jview *v)
{
    static const char *const names[] = {"dict_keys([", "dict_values([", "dict_items(["};
    sb_text(x, b, names[v->kind]);
    for (size_t i = 0; i < v->d->n; i++) {
        if (i) sb_text(x, b, ", ");
        const struct jentry *e = &v->d->e[i];
        jv_put_repr(x, b, v->kind == VIEW_ITEMS ? jl_pair(x, e->k, e->v)
                          : v->kind == VIEW_KEYS ? e->k : e->v);
    }
    sb_text(x, b, "])");
}

static void put_number(struct jj *x, struct jsb *b, struct jval v)
{
    char buf[NUM_TEXT];
    if (v.t == V_FLOAT) (void)num_repr(v.u.f, buf);
    else (void)snprintf(buf, sizeof buf, "%lld", (long long)v.u.i);
    sb_text(x, b, buf);
}

static void put_range(struct jj *x, struct jsb *b, const struct jrange *r)
{
    char buf[80];
    int n = snprintf(buf, sizeof buf, "range(%lld, %lld", (long long)r->start, (long long)r->stop);
    if (r->step != 1) n += snprintf(buf + n, sizeof buf - (size_t)n, ", %lld", (long long)r->step);
    sb_put(x, b, buf, (size_t)n, false);
    sb_text(x, b, ")");
}

static void put_macro(struct jj *x, struct jsb *b, const struct jmacro *m)
{
    sb_text(x, b, "<Macro ");
    if (m->name) put_quoted(x, b, &m->name->str);
    else sb_text(x, b, "anonymous");
    sb_text(x, b, ">");
}

static void put_loop(struct jj *x, struct jsb *b, struct jloop *l)
{
    sb_text(x, b, "<LoopContext ");
    put_number(x, b, jv_int(l->index0 + 1));
    sb_text(x, b, "/");
    put_number(x, b, jv_int(loop_length(x, l)));
    sb_text(x, b, ">");
}

void jv_put_repr(struct jj *x, struct jsb *b, struct jval v)
{
    jj_step(x, 1);
    jj_down(x);
    switch (v.t) {
    case V_UNDEF: sb_text(x, b, "Undefined"); break;
    case V_NONE: sb_text(x, b, "None"); break;
    case V_BOOL: sb_text(x, b, v.u.b ? "True" : "False"); break;
    case V_INT:
    case V_FLOAT: put_number(x, b, v); break;
    case V_STR:
        if (v.u.s->markup) sb_text(x, b, "Markup(");
        put_quoted(x, b, v.u.s);
        if (v.u.s->markup) sb_text(x, b, ")");
        break;
    case V_LIST: put_list(x, b, v.u.l, "[]"); break;
    case V_TUPLE: put_list(x, b, v.u.l, "()"); break;
    case V_DICT: put_dict(x, b, v.u.d); break;
    case V_RANGE: put_range(x, b, v.u.r); break;
    case V_VIEW: put_view(x, b, v.u.view); break;
    case V_NS:
        sb_text(x, b, "<Namespace ");
        put_dict(x, b, v.u.d);
        sb_text(x, b, ">");
        break;
    case V_MACRO: put_macro(x, b, v.u.macro); break;
    case V_LOOP: put_loop(x, b, v.u.loop); break;
    default: /* Python prints addresses here */
        sb_text(x, b, "<");
        sb_text(x, b, jv_type(v));
        sb_text(x, b, ">");
    }
    jj_up(x);
}

void jv_put_str(struct jj *x, struct jsb *b, struct jval v)
{
    if (v.t == V_STR) sb_str(x, b, v.u.s);
    else if (v.t != V_UNDEF) jv_put_repr(x, b, v);
}

const struct jstr *jv_to_str(struct jj *x, struct jval v)
{
    struct jsb b = {0};
    if (v.t == V_STR) return v.u.s;
    jv_put_str(x, &b, v);
    return sb_val(x, &b).u.s;
}

/* ---- lists ---- */

struct jval jl_new(struct jj *x, enum jtype t, size_t n)
{
    struct jlist *l = jj_alloc(x, sizeof *l);
    l->v = n ? jj_array(x, n, sizeof *l->v) : NULL;
    l->n = l->cap = n;
    jj_step(x, n / 8);
    return (struct jval){.t = t, .u.l = l};
}

void jl_push(struct jj *x, struct jlist *l, struct jval v)
{
    l->v = jj_grow(x, l->v, l->n, &l->cap, sizeof *l->v);
    l->v[l->n++] = v;
}

struct jval jl_pair(struct jj *x, struct jval a, struct jval b)
{
    struct jval p = jl_new(x, V_TUPLE, 2);
    p.u.l->v[0] = a;
    p.u.l->v[1] = b;
    return p;
}

struct jval jr_at(const struct jrange *r, int64_t i)
{
    return jv_int(r->start + i * r->step);
}

/* ---- dicts ---- */

enum { INDEX_FROM = 8 }; /* smaller ones are searched from the front */

bool jv_hashable(struct jj *x, struct jval v)
{
    bool good = v.t != V_LIST && v.t != V_DICT &&
                !(v.t == V_VIEW && v.u.view->kind != VIEW_VALUES);
    if (v.t != V_TUPLE) return good;
    jj_down(x);
    for (size_t i = 0; good && i < v.u.l->n; i++) good = jv_hashable(x, v.u.l->v[i]);
    jj_up(x);
    return good;
}

static uint64_t hash_bytes(uint64_t h, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++) h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3;
    return h;
}

/* Equal values have equal hashes: 1, 1.0 and True. */
static uint64_t hash_of(struct jj *x, struct jval v)
{
    double f;
    uint64_t h = 0xcbf29ce484222325;
    if (num_of(v, &f)) {
        if (f == 0) f = 0; /* not minus zero */
        return hash_bytes(h, &f, sizeof f);
    }
    h += (uint64_t)v.t;
    if (v.t == V_STR) {
        jj_work(x, 4 * v.u.s->n);
        return hash_bytes(h, v.u.s->s, v.u.s->n);
    }
    if (v.t != V_TUPLE) return h;
    jj_down(x);
    for (size_t i = 0; i < v.u.l->n; i++) {
        uint64_t k = hash_of(x, v.u.l->v[i]);
        h = hash_bytes(h, &k, sizeof k);
    }
    jj_up(x);
    jj_step(x, v.u.l->n);
    return h;
}

struct jval jd_new(struct jj *x)
{
    return (struct jval){.t = V_DICT, .u.d = jj_alloc(x, sizeof(struct jdict))};
}

static bool entry_is(struct jj *x, const struct jentry *e, uint64_t hash, struct jval k)
{
    jj_step(x, 1); /* keys that collide cost */
    return e->hash == hash && jv_eq(x, e->k, k);
}

static struct jentry *find(struct jj *x, const struct jdict *d, struct jval k, uint64_t hash)
{
    for (size_t i = 0; i < d->n && !d->index; i++)
        if (entry_is(x, &d->e[i], hash, k)) return &d->e[i];
    for (size_t slot = hash; d->index; slot++) {
        uint32_t at = d->index[slot & (d->n_index - 1)];
        if (!at) break;
        if (entry_is(x, &d->e[at - 1], hash, k)) return &d->e[at - 1];
    }
    return NULL;
}

static void index_add(struct jdict *d, size_t i)
{
    size_t slot = d->e[i].hash;
    while (d->index[slot & (d->n_index - 1)]) slot++;
    d->index[slot & (d->n_index - 1)] = (uint32_t)i + 1;
}

static void reindex(struct jj *x, struct jdict *d)
{
    d->n_index = d->cap * 2; /* both powers of two */
    jj_step(x, d->n);
    d->index = jj_array(x, d->n_index, sizeof *d->index);
    for (size_t i = 0; i < d->n; i++) index_add(d, i);
}

void jd_set(struct jj *x, struct jdict *d, struct jval k, struct jval v)
{
    if (!jv_hashable(x, k)) jj_fail(x, ERR_FORMAT, "a %s as a key", jv_type(k));
    uint64_t hash = hash_of(x, k);
    struct jentry *e = find(x, d, k, hash);
    if (e) {
        e->v = v;
        return;
    }
    size_t cap = d->cap;
    d->e = jj_grow(x, d->e, d->n, &d->cap, sizeof *d->e);
    d->e[d->n++] = (struct jentry){k, v, hash};
    if (d->n > INDEX_FROM && d->cap != cap) reindex(x, d);
    else if (d->index) index_add(d, d->n - 1);
}

const struct jval *jd_get(struct jj *x, const struct jdict *d, struct jval k)
{
    const struct jentry *e = find(x, d, k, hash_of(x, k));
    return e ? &e->v : NULL;
}

const struct jval *jd_find(struct jj *x, const struct jdict *d, const char *k)
{
    struct jstr s = {.s = k, .n = strlen(k)};
    return jd_get(x, d, jv_str(&s));
}
