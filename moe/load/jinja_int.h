/* Inside the Jinja interpreter: values, strings, the tree, and what its files need of each other.
 *
 * DESIGN
 *   jinja_lex.c -> jinja_expr.c, jinja_parse.c -> tree -> jinja_exec.c, jinja_eval.c -> text
 *
 * One struct jj is one parse or one render.  All memory comes from its arena and goes with it, so
 * values are never freed singly and may share anything.  That makes errors cheap: jj_fail records
 * the message and leaves by longjmp to the one setjmp in jinja_parse or jinja_render; nothing in
 * between owns a resource.
 *
 * Values behave as Python's do: strings are indexed by character (UTF-8 here, a stray byte is a
 * character), dicts keep their order, lists are shared by reference, filters such as map and
 * select are lazy.
 *
 * Every string knows which of its bytes come from variables: either all alike (mark is NULL and
 * `tainted` says which) or byte by byte (mark[i]).  Code that makes strings does it through
 * struct jsb, which keeps the marks, or with js_sub, which shares them.
 *
 * Time is bounded by jj_step: each node costs one, work on text costs its length.  The C stack is
 * bounded by jj_down/jj_up around whatever recurses over the tree or over values. */
#ifndef MOE_LOAD_JINJA_INT_H
#define MOE_LOAD_JINJA_INT_H

#include <setjmp.h>
#include <string.h>

#include "moe/load/jinja.h"

/* ---- arena, errors, limits (jinja_base.c) ---- */

struct jchunk;
struct jarena {
    struct jchunk *chunk; /* the newest */
    size_t used, cap;     /* of the newest */
    size_t bytes, limit;  /* of all */
};

struct jscope;
struct jsb;
struct jdict;

struct jj {
    struct jarena a;
    jmp_buf out;
    struct err *e;
    enum status code;  /* what jj_fail was called with */
    const char *src;   /* the template with plain line ends: errors say where in it */
    size_t n_src, at;
    int depth, depth_max;
    /* rendering only */
    uint64_t steps; /* left */
    size_t output_max;
    struct jsb *sink, *top; /* where output goes now; the result */
    struct jscope *scope;
    struct jdict *vars;
    const struct jinja_env *env;
};

_Noreturn void jj_fail(struct jj *x, enum status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void *jj_alloc(struct jj *x, size_t n);  /* zeroed, aligned for anything */
void *jj_bytes(struct jj *x, size_t n);  /* not zeroed, not aligned */
void *jj_array(struct jj *x, size_t n, size_t each);
/* A copy with room for one more; *cap grows when it must. */
void *jj_grow(struct jj *x, void *old, size_t n, size_t *cap, size_t each);
void jj_arena_free(struct jarena *a);
void jj_step(struct jj *x, uint64_t n);
void jj_work(struct jj *x, size_t bytes); /* steps for going through so many bytes */
void jj_down(struct jj *x);
static inline void jj_up(struct jj *x) { x->depth--; }

/* ---- values ---- */

enum jtype {
    V_UNDEF, V_NONE, V_BOOL, V_INT, V_FLOAT, V_STR, V_LIST, V_TUPLE, V_DICT, V_RANGE, V_VIEW,
    V_ITER, V_NS, V_MACRO, V_FUNC, V_METHOD, V_LOOP
};

struct jval {
    enum jtype t;
    union {
        bool b;
        int64_t i;
        double f;
        const struct jstr *s;
        struct jlist *l;   /* V_LIST, V_TUPLE */
        struct jdict *d;   /* V_DICT, V_NS */
        struct jrange *r;
        struct jview *view;
        struct jiter *it;
        struct jmacro *macro;
        const struct jfunc *fn;
        struct jmethod *method;
        struct jloop *loop;
        const char *why;   /* V_UNDEF: the message when it is used */
    } u;
};

struct jbuf; /* room behind a string that was made by concatenation */
struct jstr {
    const char *s;
    const uint8_t *mark; /* [n], or NULL: all bytes are as `tainted` says */
    size_t n;
    struct jbuf *buf;
    bool tainted;
    bool markup; /* Markup of jinja2: + escapes what is added to it */
};

struct jlist {
    struct jval *v;
    size_t n, cap;
};

struct jentry {
    struct jval k, v;
    uint64_t hash;
};
struct jdict {
    struct jentry *e; /* [n] in order of insertion */
    size_t n, cap;
    uint32_t *index; /* [n_index] entry + 1, open addressing; NULL while small */
    size_t n_index;
};

struct jrange {
    int64_t start, step, n, stop;
};

enum jview_kind { VIEW_KEYS, VIEW_VALUES, VIEW_ITEMS };
struct jview {
    struct jdict *d;
    enum jview_kind kind;
};

struct jargs {
    struct jval *pos;
    size_t n_pos;
    const struct jstr **kw_name;
    struct jval *kw;
    size_t n_kw;
};

/* A global function.  `params` is as in struct jfilter. */
struct jfunc {
    const char *name;
    struct jval (*call)(struct jj *x, const struct jargs *a);
};

struct jmethod_def;
struct jmethod {
    struct jval self;
    const struct jmethod_def *def; /* NULL: what = a method of loop */
    int what;
};

#define JV_NONE ((struct jval){.t = V_NONE})
static inline struct jval jv_undef(const char *why)
{
    return (struct jval){.t = V_UNDEF, .u.why = why};
}
static inline struct jval jv_bool(bool b) { return (struct jval){.t = V_BOOL, .u.b = b}; }
static inline struct jval jv_int(int64_t i) { return (struct jval){.t = V_INT, .u.i = i}; }
static inline struct jval jv_float(double f) { return (struct jval){.t = V_FLOAT, .u.f = f}; }
static inline struct jval jv_str(const struct jstr *s)
{
    return (struct jval){.t = V_STR, .u.s = s};
}

/* ---- strings (jinja_str.c) ---- */

/* A string in the making. */
struct jsb {
    char *s;
    uint8_t *mark; /* NULL while all bytes are alike */
    size_t n, cap;
    bool tainted;
};

void sb_put(struct jj *x, struct jsb *b, const char *s, size_t n, bool tainted);
void sb_text(struct jj *x, struct jsb *b, const char *s); /* untainted */
void sb_str(struct jj *x, struct jsb *b, const struct jstr *s);
void sb_part(struct jj *x, struct jsb *b, const struct jstr *s, size_t from, size_t to);
void sb_char(struct jj *x, struct jsb *b, int32_t cp, bool tainted);
struct jval sb_val(struct jj *x, const struct jsb *b);

const struct jstr *js_new(struct jj *x, const char *s, size_t n, bool tainted); /* no copy */
const struct jstr *js_lit(struct jj *x, const char *s);
const struct jstr *js_sub(struct jj *x, const struct jstr *s, size_t from, size_t to);
const struct jstr *js_cat(struct jj *x, const struct jstr *a, const struct jstr *b);
bool js_eq(const struct jstr *a, const struct jstr *b);
bool js_is(const struct jstr *s, const char *text);
int js_cmp(const struct jstr *a, const struct jstr *b);
static inline bool js_tainted(const struct jstr *s, size_t i)
{
    return s->mark ? s->mark[i] : s->tainted;
}
/* Byte position of b in a at or behind `from`, or SIZE_MAX; rfind: the last before `end`. */
size_t js_find(struct jj *x, const struct jstr *a, const struct jstr *b, size_t from);
size_t js_rfind(struct jj *x, const struct jstr *a, const struct jstr *b, size_t end);
size_t js_chars(struct jj *x, const struct jstr *s);
/* Bytes in front of the i-th character (i at most the number of characters). */
size_t js_offset(struct jj *x, const struct jstr *s, size_t i);
const struct jstr *js_escape(struct jj *x, const struct jstr *s); /* for HTML */

/* The character at s (n > 0 bytes): its length; *cp is -1 for a stray byte. */
int u8_get(const char *s, size_t n, int32_t *cp);
int u8_put(char *s, int32_t cp);
bool u8_space(int32_t cp); /* what Python strips */
size_t u8_lspace(const char *s, size_t n); /* bytes of white space in front */
size_t u8_rspace(const char *s, size_t n); /* ... and at the end */

/* Case and classes as Python's str has them (jinja_case.c). */
enum jcase { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_SWAP };
void case_put(struct jj *x, struct jsb *b, const struct jstr *s, size_t from, size_t to,
              enum jcase how);
struct jval js_case(struct jj *x, const struct jstr *s, enum jcase how);
struct jval js_capitalize(struct jj *x, const struct jstr *s);
struct jval js_title(struct jj *x, const struct jstr *s);
enum jclass { IS_ALPHA, IS_DIGIT, IS_DECIMAL, IS_NUMERIC, IS_ALNUM, IS_SPACE, IS_UPPER, IS_LOWER,
              IS_TITLE, IS_ASCII, IS_PRINTABLE, IS_IDENTIFIER };
bool js_class(struct jj *x, const struct jstr *s, enum jclass c);
bool u8_printable(int32_t cp);

/* ---- numbers (jinja_num.c) ---- */

enum { NUM_TEXT = 40 };
int num_repr(double f, char *buf); /* as Python prints it */
/* Python's float("...") and int("...", base); false when it is none. */
bool num_float(struct jj *x, const struct jstr *s, double *out);
bool num_int(struct jj *x, const struct jstr *s, int base, int64_t *out);
bool num_of(struct jval v, double *out); /* bool, int or float */
bool int_of(struct jval v, int64_t *out); /* bool or int */
int64_t num_trunc(struct jj *x, double f);
enum jop { OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_FLOORDIV, OP_MOD, OP_POW,
           OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_IN, OP_NOT_IN };
struct jval num_op(struct jj *x, enum jop op, struct jval a, struct jval b);
struct jval num_round(struct jj *x, struct jval v, int64_t digits);

/* ---- lists, dicts, comparing, printing (jinja_value.c) ---- */

const char *jv_type(struct jval v); /* as Python calls it */
/* Uses an undefined value: always an error. */
_Noreturn void jv_use_undef(struct jj *x, struct jval v);
bool jv_true(struct jj *x, struct jval v);
bool jv_eq(struct jj *x, struct jval a, struct jval b);
/* <0, 0, >0; 2 for NaN; a type error when there is no order. */
int jv_cmp(struct jj *x, struct jval a, struct jval b, const char *op);
bool jv_in(struct jj *x, struct jval item, struct jval in);
bool jv_hashable(struct jj *x, struct jval v);
bool jv_len(struct jj *x, struct jval v, int64_t *n); /* false: it has none */
void jv_put_str(struct jj *x, struct jsb *b, struct jval v);
void jv_put_repr(struct jj *x, struct jsb *b, struct jval v);
const struct jstr *jv_to_str(struct jj *x, struct jval v); /* str(v), Markup stays */

struct jval jl_new(struct jj *x, enum jtype t, size_t n); /* n items to be filled in */
void jl_push(struct jj *x, struct jlist *l, struct jval v);
struct jval jl_pair(struct jj *x, struct jval a, struct jval b); /* a tuple */
struct jval jd_new(struct jj *x);
void jd_set(struct jj *x, struct jdict *d, struct jval k, struct jval v);
const struct jval *jd_get(struct jj *x, const struct jdict *d, struct jval k); /* NULL: not there */
const struct jval *jd_find(struct jj *x, const struct jdict *d, const char *k);
struct jval jr_at(const struct jrange *r, int64_t i);

/* ---- iteration (jinja_iter.c) ---- */

enum jiter_kind {
    IT_NONE, IT_SEQ, IT_SEQ_BACK, IT_STR, IT_DICT, IT_DICT_BACK, IT_RANGE, IT_RANGE_BACK,
    IT_DEFERRED, IT_MAP, IT_MAP_ATTR, IT_SELECT, IT_LOOP_IF
};
struct jfilter;
struct jtest;
struct jiter {
    enum jiter_kind kind;
    size_t i;
    struct jval src;
    enum jview_kind view;  /* IT_DICT */
    struct jiter *in;      /* what the lazy ones read; opened at the first item */
    /* IT_DEFERRED: a filter that begins its work, and finds its mistakes, at the first item */
    struct jval (*begin)(struct jj *x, struct jval v, const struct jargs *a);
    struct jargs args;     /* of the filter or test */
    const struct jfilter *filter;
    const struct jtest *test;
    bool negate;           /* reject */
    bool has_attr, has_dflt;
    struct jval attr, dflt;
    const struct jnode *loop; /* IT_LOOP_IF */
    struct jscope *scope;
};

struct jiter *it_open(struct jj *x, struct jval v); /* a type error if it cannot be iterated */
bool it_can(struct jval v);
bool it_next(struct jj *x, struct jiter *it, struct jval *out);
struct jval it_list(struct jj *x, struct jval v); /* list(v) */
struct jval it_value(struct jiter *it);
struct jiter *it_reversed(struct jj *x, struct jval v); /* NULL: reversed(v) is a type error */

/* ---- JSON (jinja_json.c) ---- */

struct jval json_read(struct jj *x, const char *text, const char *const *trusted);
struct jval f_tojson(struct jj *x, struct jval v, const struct jval *const *a);

/* ---- tokens and tree ---- */

enum jtok_type {
    T_EOF, T_DATA, T_VAR_BEGIN, T_VAR_END, T_BLOCK_BEGIN, T_BLOCK_END, T_NAME, T_STR, T_INT,
    T_FLOAT, T_ADD, T_SUB, T_DIV, T_FLOORDIV, T_MUL, T_MOD, T_POW, T_TILDE, T_LBRACKET,
    T_RBRACKET, T_LPAREN, T_RPAREN, T_LBRACE, T_RBRACE, T_EQ, T_NE, T_GT, T_GE, T_LT, T_LE,
    T_ASSIGN, T_DOT, T_COLON, T_PIPE, T_COMMA, T_SEMICOLON
};
struct jtok {
    enum jtok_type t;
    size_t at;
    const char *s; /* T_DATA, T_NAME, T_STR */
    size_t n;
    int64_t i;
    double f;
};
/* The tokens of x->src, the last one is T_EOF. */
struct jtok *jj_lex(struct jj *x, size_t *n);

/* A name, one struct for all its uses. */
struct jname {
    struct jstr str;
    struct jname *next;
};

enum jnode_kind {
    /* expressions */
    N_CONST, N_NAME, N_TUPLE, N_LIST, N_DICT, N_COND, N_OR, N_AND, N_NOT, N_COMPARE, N_BINARY,
    N_CONCAT, N_NEG, N_POS, N_ATTR, N_ITEM, N_SLICE, N_CALL, N_FILTER, N_TEST, N_NSREF,
    /* statements */
    N_TEXT, N_PRINT, N_FOR, N_IF, N_SET, N_SET_BLOCK, N_MACRO, N_CALL_BLOCK, N_FILTER_BLOCK,
    N_WITH, N_SCOPE, N_BREAK, N_CONTINUE
};

struct jnodes {
    struct jnode **p;
    size_t n, cap;
};
struct jcall_args {
    struct jnodes pos, kw;
    const struct jstr **kw_name;
    size_t cap_names;
    struct jnode *star, *star2; /* *args, **kwargs */
};
struct jparams { /* of a macro or call block */
    struct jnodes names, defaults; /* the last names have the defaults */
    bool caller, varargs, kwargs;  /* the body uses these, and here are their names: */
    const struct jname *caller_name, *varargs_name, *kwargs_name;
    struct jparams *outer;         /* while parsing */
};

struct jnode {
    enum jnode_kind kind;
    uint8_t op; /* enum jop */
    size_t at;
    struct jnode *a, *b, *c;
    struct jnodes list;   /* items; operands; conditions of N_IF; body */
    struct jnodes list2;  /* bodies of N_IF (each N_SCOPE); else of N_FOR; values of N_WITH */
    const struct jname *name; /* of N_FOR: `loop` */
    struct jval v;
    struct jcall_args *args;
    struct jparams *params;
    const struct jfilter *filter; /* NULL: unknown, an error when it is reached */
    const struct jtest *test;
};

/* ---- parser ---- */

struct jparser {
    struct jj *x;
    struct jtok *tok; /* the current one; tok[1] is there unless it is T_EOF */
    struct jname **names; /* [NAME_SLOTS] */
    struct jparams *params; /* innermost macro */
    int loops; /* around here, within the macro */
};
enum { NAME_SLOTS = 256 };

struct jnode *p_node(struct jparser *p, enum jnode_kind kind);
void p_add(struct jparser *p, struct jnodes *l, struct jnode *n);
const struct jname *p_intern(struct jparser *p, const char *s, size_t n);
const struct jname *p_name(struct jparser *p); /* expects a name */
bool p_is(const struct jparser *p, const char *keyword);
bool p_skip(struct jparser *p, const char *keyword);
bool p_skip_t(struct jparser *p, enum jtok_type t);
void p_expect(struct jparser *p, enum jtok_type t);
_Noreturn void p_unexpected(struct jparser *p, const char *wanted);

enum { TUPLE_PLAIN = 1, TUPLE_NO_COND = 2, TUPLE_PARENS = 4, TUPLE_NS = 8 };
struct jnode *p_expr(struct jparser *p);
struct jnode *p_tuple(struct jparser *p, unsigned flags);
struct jnode *p_filters(struct jparser *p, struct jnode *on, bool inline_first);
struct jnodes p_body(struct jparser *p); /* the whole template */

/* ---- the template ---- */

struct jinja {
    struct jarena a;
    const char *src;
    size_t n_src;
    struct jnodes body;
    struct jname *names[NAME_SLOTS];
};

/* ---- running ---- */

struct jvar {
    const struct jname *name;
    struct jval v;
};
struct jscope {
    struct jscope *up;
    struct jvar *var;
    size_t n, cap;
    bool kept; /* a macro was made in it: it cannot be used again for the next iteration */
};

struct jmacro {
    const struct jname *name; /* NULL for the body of a call block */
    const struct jnode *node;
    struct jscope *scope; /* where it was made */
};

struct jloop {
    struct jiter *it;
    struct jval src, before, cur, after;
    bool has_after, done;
    int64_t index0, length; /* -1: not known yet */
    struct jval changed;
    bool has_changed;
};

enum jflow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };
enum jflow jj_exec(struct jj *x, const struct jnodes *body);
struct jval jj_eval(struct jj *x, const struct jnode *n);
void jj_args(struct jj *x, const struct jcall_args *a, struct jargs *out);
struct jval jj_call(struct jj *x, struct jval f, const struct jargs *a);
struct jval jj_call_macro(struct jj *x, const struct jmacro *m, const struct jargs *a);
struct jval jj_attr(struct jj *x, struct jval v, const struct jstr *name);
struct jval jj_item(struct jj *x, struct jval v, struct jval key);
struct jval jj_binary(struct jj *x, enum jop op, struct jval a, struct jval b);
bool jj_compare(struct jj *x, enum jop op, struct jval a, struct jval b);
void jj_assign(struct jj *x, const struct jnode *target, struct jval v);
struct jscope *jj_scope(struct jj *x, struct jscope *up);
void jj_set(struct jj *x, const struct jname *name, struct jval v);
bool jj_lookup(struct jj *x, const struct jname *name, struct jval *out);

struct jval loop_attr(struct jj *x, struct jloop *l, const struct jstr *name);
struct jval loop_call(struct jj *x, struct jloop *l, int what, const struct jargs *a);
bool loop_next(struct jj *x, struct jloop *l);
int64_t loop_length(struct jj *x, struct jloop *l);

/* ---- filters, tests, methods, functions ---- */

/* `params` names the parameters behind the value ("width first blank"), those in front of a ';'
 * must be there; they arrive in a[], NULL where not given.  NULL params: args as they are. */
enum { MAX_PARAMS = 6 };
struct jfilter {
    const char *name;
    const char *params;
    struct jval (*f)(struct jj *x, struct jval v, const struct jval *const *a);
    struct jval (*f_args)(struct jj *x, struct jval v, const struct jargs *a);
};
struct jtest {
    const char *name;
    int n_args;
    bool (*f)(struct jj *x, struct jval v, struct jval arg);
};
struct jmethod_def {
    enum jtype type; /* V_LIST: of lists; V_TUPLE: of lists and tuples */
    const char *name;
    const char *params;
    struct jval (*f)(struct jj *x, struct jval self, const struct jval *const *a);
    struct jval (*f_args)(struct jj *x, struct jval self, const struct jargs *a);
};
void jj_bind(struct jj *x, const char *what, const char *params, const struct jargs *a,
             const struct jval **out);
const struct jfilter *filter_find(const char *name, size_t n);
const struct jfilter *filter_find_text(const char *name, size_t n); /* jinja_filter.c */
const struct jfilter *filter_find_seq(const char *name, size_t n);  /* jinja_seq.c */
struct jval filter_call(struct jj *x, const struct jfilter *f, struct jval v,
                        const struct jargs *a);
const struct jtest *test_find(const char *name, size_t n);
bool test_call(struct jj *x, const struct jtest *t, struct jval v, const struct jargs *a);
const struct jmethod_def *method_find(enum jtype t, const struct jstr *name);
struct jval method_call(struct jj *x, const struct jmethod *m, const struct jargs *a);
const struct jfunc *func_find(const struct jstr *name);
/* A dotted path or an index, as the attribute arguments of filters are (jinja_seq.c). */
struct jval attr_path(struct jj *x, struct jval v, struct jval path, const struct jval *dflt);
struct jval fold_case(struct jj *x, struct jval v);
/* "%s of %d" % v (jinja_format.c); "{}".format(...) */
struct jval format_percent(struct jj *x, const struct jstr *s, struct jval v);
struct jval format_braces(struct jj *x, struct jval self, const struct jargs *a);
struct jval js_replace(struct jj *x, const struct jstr *s, const struct jstr *old,
                       const struct jstr *new, int64_t count); /* jinja_method.c */
struct jval js_strip(struct jj *x, const struct jstr *s, const struct jval *chars, int sides);
enum { STRIP_LEFT = 1, STRIP_RIGHT = 2 };
struct jval js_lines(struct jj *x, const struct jstr *s, bool keep);
/* s in the middle (mode '^'), on the left ('<') or right ('>') of `width` characters. */
struct jval js_pad(struct jj *x, const struct jstr *s, int64_t width, const struct jstr *fill,
                   char mode);
const struct jstr *want_str(struct jj *x, struct jval v, const char *what);
int64_t want_int(struct jj *x, struct jval v, const char *what);

#endif
