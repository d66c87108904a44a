/* Jinja: the tests behind `is`, which select and selectattr use as well. */
#include "moe/load/jinja_int.h"

#define TEST(f) static bool f(struct jj *x, struct jval v, struct jval arg)
#define UNUSED (void)x, (void)v, (void)arg

TEST(t_defined) { UNUSED; return v.t != V_UNDEF; }
TEST(t_undefined) { UNUSED; return v.t == V_UNDEF; }
TEST(t_none) { UNUSED; return v.t == V_NONE; }
TEST(t_boolean) { UNUSED; return v.t == V_BOOL; }
TEST(t_true) { UNUSED; return v.t == V_BOOL && v.u.b; }
TEST(t_false) { UNUSED; return v.t == V_BOOL && !v.u.b; }
TEST(t_integer) { UNUSED; return v.t == V_INT; }
TEST(t_float) { UNUSED; return v.t == V_FLOAT; }
TEST(t_number) { UNUSED; return v.t == V_BOOL || v.t == V_INT || v.t == V_FLOAT; }
TEST(t_string) { UNUSED; return v.t == V_STR; }
TEST(t_mapping) { UNUSED; return v.t == V_DICT; }
TEST(t_iterable) { UNUSED; return it_can(v); }
TEST(t_escaped) { UNUSED; return v.t == V_STR && v.u.s->markup; }

TEST(t_sequence)
{
    UNUSED;
    return v.t == V_STR || v.t == V_LIST || v.t == V_TUPLE || v.t == V_DICT || v.t == V_RANGE ||
           v.t == V_UNDEF;
}

TEST(t_callable)
{
    UNUSED;
    return v.t == V_FUNC || v.t == V_METHOD || v.t == V_MACRO || v.t == V_LOOP || v.t == V_UNDEF;
}

TEST(t_lower) { UNUSED; return js_class(x, jv_to_str(x, v), IS_LOWER); }
TEST(t_upper) { UNUSED; return js_class(x, jv_to_str(x, v), IS_UPPER); }

static bool remainder_is(struct jj *x, struct jval v, struct jval by, int64_t want)
{
    return jv_eq(x, jj_binary(x, OP_MOD, v, by), jv_int(want));
}

TEST(t_odd) { UNUSED; return remainder_is(x, v, jv_int(2), 1); }
TEST(t_even) { UNUSED; return remainder_is(x, v, jv_int(2), 0); }
TEST(t_divisibleby) { return remainder_is(x, v, arg, 0); }

TEST(t_eq) { return jj_compare(x, OP_EQ, v, arg); }
TEST(t_ne) { return jj_compare(x, OP_NE, v, arg); }
TEST(t_lt) { return jj_compare(x, OP_LT, v, arg); }
TEST(t_le) { return jj_compare(x, OP_LE, v, arg); }
TEST(t_gt) { return jj_compare(x, OP_GT, v, arg); }
TEST(t_ge) { return jj_compare(x, OP_GE, v, arg); }
TEST(t_in) { return jv_in(x, v, arg); }

/* Identity; of text and numbers, which are the same object only by accident, equality. */
TEST(t_sameas)
{
    if (v.t != arg.t) return false;
    switch (v.t) {
    case V_LIST:
    case V_TUPLE: return v.u.l == arg.u.l;
    case V_DICT: return v.u.d == arg.u.d;
    default: return jv_eq(x, v, arg);
    }
}

static void want_hashable(struct jj *x, struct jval v, struct jval arg)
{
    (void)arg;
    if (!jv_hashable(x, v)) jj_fail(x, ERR_FORMAT, "a %s as a name", jv_type(v));
}

TEST(t_filter)
{
    want_hashable(x, v, arg);
    return v.t == V_STR && filter_find(v.u.s->s, v.u.s->n);
}

TEST(t_test)
{
    want_hashable(x, v, arg);
    return v.t == V_STR && test_find(v.u.s->s, v.u.s->n);
}

const struct jtest *test_find(const char *name, size_t n)
{
    static const struct jtest table[] = {
        {"!=", 1, t_ne}, {"<", 1, t_lt}, {"<=", 1, t_le}, {"==", 1, t_eq}, {">", 1, t_gt},
        {">=", 1, t_ge}, {"boolean", 0, t_boolean}, {"callable", 0, t_callable},
        {"defined", 0, t_defined}, {"divisibleby", 1, t_divisibleby}, {"eq", 1, t_eq},
        {"equalto", 1, t_eq}, {"escaped", 0, t_escaped}, {"even", 0, t_even},
        {"false", 0, t_false}, {"filter", 0, t_filter}, {"float", 0, t_float}, {"ge", 1, t_ge},
        {"greaterthan", 1, t_gt}, {"gt", 1, t_gt}, {"in", 1, t_in}, {"integer", 0, t_integer},
        {"iterable", 0, t_iterable}, {"le", 1, t_le}, {"lessthan", 1, t_lt},
        {"lower", 0, t_lower}, {"lt", 1, t_lt}, {"mapping", 0, t_mapping}, {"ne", 1, t_ne},
        {"none", 0, t_none}, {"number", 0, t_number}, {"odd", 0, t_odd}, {"sameas", 1, t_sameas},
        {"sequence", 0, t_sequence}, {"string", 0, t_string}, {"test", 0, t_test},
        {"true", 0, t_true}, {"undefined", 0, t_undefined}, {"upper", 0, t_upper},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strlen(table[i].name) == n && !memcmp(table[i].name, name, n)) return &table[i];
    return NULL;
}

bool test_call(struct jj *x, const struct jtest *t, struct jval v, const struct jargs *a)
{
    jj_step(x, 1);
    if (a->n_pos + a->n_kw != (size_t)t->n_args)
        jj_fail(x, ERR_FORMAT, "the test %s takes %s", t->name,
                t->n_args ? "one argument" : "no arguments");
    return t->f(x, v, a->n_pos ? a->pos[0] : a->n_kw ? a->kw[0] : JV_NONE);
}
