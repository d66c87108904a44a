/* Jinja: the global functions: range, dict, namespace, raise_exception, strftime_now. */
#include "moe/load/jinja_int.h"

enum { MAX_RANGE = 100000, MAX_DATE = 1024 };

/* ---- range ---- */

static struct jval fn_range(struct jj *x, const struct jargs *a)
{
    int64_t part[3] = {0, 0, 1};
    if (a->n_kw || !a->n_pos || a->n_pos > 3)
        jj_fail(x, ERR_FORMAT, "range takes one to three integers");
    for (size_t i = 0; i < a->n_pos; i++) part[i] = want_int(x, a->pos[i], "range: an argument");
    if (a->n_pos == 1) {
        part[1] = part[0];
        part[0] = 0;
    }
    int64_t span, step = part[2];
    if (!step) jj_fail(x, ERR_FORMAT, "range: the step is 0");
    bool over = __builtin_sub_overflow(part[1], part[0], &span) || step == INT64_MIN;
    int64_t n = over ? INT64_MAX : step > 0 ? span > 0 ? (span - 1) / step + 1 : 0
                : span < 0 ? (-(span + 1)) / -step + 1 : 0;
    if (n > MAX_RANGE) jj_fail(x, ERR_RANGE, "range: more than %d items", MAX_RANGE);
    struct jrange *r = jj_alloc(x, sizeof *r);
    *r = (struct jrange){.start = part[0], .stop = part[1], .step = step, .n = n};
    return (struct jval){.t = V_RANGE, .u.r = r};
}

/* ---- dict and namespace ---- */

static void add_pairs(struct jj *x, struct jdict *d, struct jval from)
{
    struct jval item;
    for (struct jiter *it = it_open(x, from); it_next(x, it, &item);) {
        struct jval pair = it_list(x, item);
        if (pair.u.l->n != 2) jj_fail(x, ERR_FORMAT, "dict: an item that is no pair");
        jd_set(x, d, pair.u.l->v[0], pair.u.l->v[1]);
    }
}

static struct jval fn_dict(struct jj *x, const struct jargs *a)
{
    struct jval d = jd_new(x);
    if (a->n_pos > 1) jj_fail(x, ERR_FORMAT, "dict takes at most one positional argument");
    if (a->n_pos && a->pos[0].t == V_UNDEF) jv_use_undef(x, a->pos[0]);
    if (a->n_pos && a->pos[0].t == V_DICT) {
        const struct jdict *from = a->pos[0].u.d;
        for (size_t i = 0; i < from->n; i++) jd_set(x, d.u.d, from->e[i].k, from->e[i].v);
    } else if (a->n_pos) {
        add_pairs(x, d.u.d, a->pos[0]);
    }
    for (size_t i = 0; i < a->n_kw; i++) jd_set(x, d.u.d, jv_str(a->kw_name[i]), a->kw[i]);
    return d;
}

static struct jval fn_namespace(struct jj *x, const struct jargs *a)
{
    struct jval d = fn_dict(x, a);
    d.t = V_NS;
    return d;
}

/* ---- what Hugging Face adds ---- */

static struct jval fn_raise(struct jj *x, const struct jargs *a)
{
    const struct jval *bound[MAX_PARAMS];
    jj_bind(x, "raise_exception", "message ;", a, bound);
    const struct jstr *s = jv_to_str(x, *bound[0]);
    jj_fail(x, ERR_UNSUPPORTED, "the template refuses this: %.*s", s->n > 250 ? 250 : (int)s->n,
            s->s);
}

/* The format without what Python answers differently: %f is microseconds, there is no zone. */
static size_t python_format(const struct jstr *s, char *out, size_t cap)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n && n + 8 < cap; i++) {
        bool percent = s->s[i] == '%' && i + 1 < s->n;
        char c = percent ? s->s[i + 1] : 0;
        if (percent && (c == 'z' || c == 'Z' || c == 'f')) {
            memcpy(out + n, "000000", 6);
            n += c == 'f' ? 6 : 0;
            i++;
            continue;
        }
        out[n++] = s->s[i];
        if (percent) out[n++] = s->s[++i];
    }
    out[n++] = '.'; /* so that an empty result is not taken for a failure */
    out[n] = 0;
    return n;
}

static struct jval fn_strftime_now(struct jj *x, const struct jargs *a)
{
    const struct jval *bound[MAX_PARAMS];
    char fmt[MAX_DATE / 4], *out = jj_bytes(x, MAX_DATE);
    struct tm now = {0};
    jj_bind(x, "strftime_now", "format ;", a, bound);
    const struct jstr *s = want_str(x, *bound[0], "strftime_now: the format");
    if (s->n + 16 > sizeof fmt || memchr(s->s, 0, s->n))
        jj_fail(x, ERR_FORMAT, "strftime_now: no such format");
    (void)python_format(s, fmt, sizeof fmt);
    time_t t = time(NULL);
    bool ok = x->env->now ? x->env->now(x->env->arg, &now) : localtime_r(&t, &now) != NULL;
    if (!ok) jj_fail(x, ERR_UNSUPPORTED, "strftime_now: there is no clock");
    size_t n = strftime(out, MAX_DATE, fmt, &now);
    if (!n) jj_fail(x, ERR_FORMAT, "strftime_now: a date that is too long");
    bool tainted = s->mark ? memchr(s->mark, 1, s->n) != NULL : s->tainted;
    return jv_str(js_new(x, out, n - 1, tainted));
}

const struct jfunc *func_find(const struct jstr *name)
{
    static const struct jfunc table[] = {
        {"range", fn_range}, {"dict", fn_dict}, {"namespace", fn_namespace},
        {"raise_exception", fn_raise}, {"strftime_now", fn_strftime_now},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (js_is(name, table[i].name)) return &table[i];
    return NULL;
}
