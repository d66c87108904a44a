/* Jinja: numbers as Python's int, float and bool behave, with integers of 64 bits: what does not
 * fit is an error, never a wrong number. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "moe/load/jinja_int.h"

/* ---- text ---- */

/* The shortest digits that read back as the same number; an exponent from 1e16 and below 1e-4. */
int num_repr(double f, char *buf)
{
    char e[NUM_TEXT], digits[NUM_TEXT];
    if (isnan(f)) return snprintf(buf, NUM_TEXT, "nan");
    if (isinf(f)) return snprintf(buf, NUM_TEXT, f < 0 ? "-inf" : "inf");
    int p = 0;
    do (void)snprintf(e, sizeof e, "%.*e", p, f);
    while (strtod(e, NULL) != f && ++p < 17);
    int n = 0, exponent = atoi(strchr(e, 'e') + 1);
    for (const char *c = e; *c != 'e'; c++)
        if (*c >= '0' && *c <= '9') digits[n++] = *c;
    while (n > 1 && digits[n - 1] == '0') n--;
    char *out = buf;
    if (e[0] == '-') *out++ = '-';
    if (exponent < -4 || exponent >= 16) {
        *out++ = digits[0];
        if (n > 1) *out++ = '.';
        memcpy(out, digits + 1, (size_t)n - 1);
        out += n - 1;
        return (int)(out - buf) + snprintf(out, 8, "e%c%02d", exponent < 0 ? '-' : '+',
                                           abs(exponent));
    }
    int point = exponent + 1; /* digits in front of the point */
    if (point <= 0) *out++ = '0';
    for (int i = 0; i < point; i++) *out++ = i < n ? digits[i] : '0';
    *out++ = '.';
    for (int i = point; i < 0; i++) *out++ = '0';
    for (int i = point > 0 ? point : 0; i < n; i++) *out++ = digits[i];
    if (out[-1] == '.') *out++ = '0';
    *out = 0;
    return (int)(out - buf);
}

static int digit_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'z' ? c - 'a' + 10
           : c >= 'A' && c <= 'Z' ? c - 'A' + 10 : 99;
}

/* Takes "0x" away when the base allows it; base 0 learns its base from it. */
static void base_prefix(const char **s, size_t *n, int *base)
{
    int seen = 0;
    if (*n > 2 && (*s)[0] == '0') {
        char c = (char)((*s)[1] | 0x20);
        seen = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
    }
    if (seen && (*base == 0 || *base == seen)) {
        *base = seen;
        *s += 2;
        *n -= 2;
        if (**s == '_') {
            ++*s;
            --*n;
        }
    } else if (*base == 0) {
        *base = 10;
    }
}

bool num_int(struct jj *x, const struct jstr *text, int base, int64_t *out)
{
    size_t skip = u8_lspace(text->s, text->n);
    const char *s = text->s + skip;
    size_t n = text->n - skip;
    n -= u8_rspace(s, n);
    if (base != 0 && (base < 2 || base > 36)) return false;
    bool minus = n && *s == '-', zero = base == 0;
    if (n && (*s == '-' || *s == '+')) s++, n--;
    base_prefix(&s, &n, &base);
    uint64_t v = 0;
    bool digit = false;
    const char *all = s;
    for (; n; s++, n--) {
        if (*s == '_' && digit) {
            digit = false;
            continue;
        }
        int d = digit_of(*s);
        if (d >= base) return false;
        digit = true;
        if (__builtin_mul_overflow(v, (uint64_t)base, &v) ||
            __builtin_add_overflow(v, (uint64_t)d, &v) || v > (uint64_t)INT64_MAX + minus)
            jj_fail(x, ERR_RANGE, "an integer beyond 64 bits");
    }
    if (!digit || (zero && base == 10 && v && *all == '0')) return false;
    *out = minus ? (int64_t)(0 - v) : (int64_t)v;
    return true;
}

/* Copies what is left of a float's text without '_'; false where one is misplaced. */
static bool float_text(const char *s, size_t n, char *buf, size_t cap)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        bool before = i && s[i - 1] >= '0' && s[i - 1] <= '9';
        bool after = i + 1 < n && s[i + 1] >= '0' && s[i + 1] <= '9';
        if (s[i] == '_' && before && after) continue;
        if (s[i] == '_' || (s[i] | 0x20) == 'x' || s[i] == '(' || !s[i] || k + 1 >= cap)
            return false;
        buf[k++] = s[i];
    }
    buf[k] = 0;
    return k > 0;
}

bool num_float(struct jj *x, const struct jstr *text, double *out)
{
    char buf[512], *end;
    jj_work(x, text->n);
    size_t skip = u8_lspace(text->s, text->n);
    size_t n = text->n - skip - u8_rspace(text->s + skip, text->n - skip);
    if (!float_text(text->s + skip, n, buf, sizeof buf)) return false;
    if (u8_lspace(buf, strlen(buf))) return false;
    *out = strtod(buf, &end);
    return !*end;
}

/* ---- reading values ---- */

bool int_of(struct jval v, int64_t *out)
{
    if (v.t == V_BOOL) *out = v.u.b;
    else if (v.t == V_INT) *out = v.u.i;
    else return false;
    return true;
}

bool num_of(struct jval v, double *out)
{
    int64_t i;
    if (v.t == V_FLOAT) *out = v.u.f;
    else if (int_of(v, &i)) *out = (double)i;
    else return false;
    return true;
}

int64_t num_trunc(struct jj *x, double f)
{
    f = trunc(f);
    if (!(f >= -0x1p63 && f < 0x1p63)) jj_fail(x, ERR_RANGE, "an integer beyond 64 bits");
    return (int64_t)f;
}

/* ---- arithmetic ---- */

static _Noreturn void too_large(struct jj *x)
{
    jj_fail(x, ERR_RANGE, "an integer beyond 64 bits");
}

static _Noreturn void by_zero(struct jj *x)
{
    jj_fail(x, ERR_FORMAT, "division by zero");
}

static int64_t int_pow(struct jj *x, int64_t a, int64_t n)
{
    int64_t r = 1;
    if (a == 0 || a == 1) return n ? a : 1;
    if (a == -1) return n % 2 ? -1 : 1;
    for (; n > 0; n--)
        if (__builtin_mul_overflow(r, a, &r)) too_large(x); /* after 63 rounds at most */
    return r;
}

static int64_t int_floordiv(struct jj *x, int64_t a, int64_t b, int64_t *mod)
{
    if (!b) by_zero(x);
    if (b == -1) {
        if (a == INT64_MIN) too_large(x);
        *mod = 0;
        return -a;
    }
    int64_t q = a / b, r = a % b;
    if (r && (r < 0) != (b < 0)) {
        q--;
        r += b;
    }
    *mod = r;
    return q;
}

static struct jval int_op(struct jj *x, enum jop op, int64_t a, int64_t b)
{
    int64_t r = 0, mod;
    bool over = false;
    switch (op) {
    case OP_ADD: over = __builtin_add_overflow(a, b, &r); break;
    case OP_SUB: over = __builtin_sub_overflow(a, b, &r); break;
    case OP_MUL: over = __builtin_mul_overflow(a, b, &r); break;
    case OP_FLOORDIV: r = int_floordiv(x, a, b, &mod); break;
    case OP_MOD: (void)int_floordiv(x, a, b, &r); break;
    default: r = int_pow(x, a, b); break;
    }
    if (over) too_large(x);
    return jv_int(r);
}

static double float_mod(struct jj *x, double a, double b, double *div)
{
    if (b == 0) by_zero(x);
    double mod = fmod(a, b);
    *div = (a - mod) / b;
    if (mod != 0) {
        if ((b < 0) != (mod < 0)) {
            mod += b;
            *div -= 1;
        }
    } else {
        mod = copysign(0, b);
    }
    if (*div != 0) {
        double whole = floor(*div);
        *div = *div - whole > 0.5 ? whole + 1 : whole;
    } else {
        *div = copysign(0, a / b);
    }
    return mod;
}

static double float_pow(struct jj *x, double a, double b)
{
    if (a == 0 && b < 0) by_zero(x);
    double r = pow(a, b);
    if (isnan(r) && !isnan(a) && !isnan(b)) jj_fail(x, ERR_FORMAT, "a complex number");
    if (isinf(r) && !isinf(a) && !isinf(b)) jj_fail(x, ERR_FORMAT, "a number too large");
    return r;
}

/* Both are numbers. */
struct jval num_op(struct jj *x, enum jop op, struct jval a, struct jval b)
{
    int64_t i, k;
    double f = 0, g = 0, r;
    bool ints = int_of(a, &i) && int_of(b, &k);
    if (ints && op != OP_DIV && !(op == OP_POW && k < 0)) return int_op(x, op, i, k);
    (void)num_of(a, &f);
    (void)num_of(b, &g);
    switch (op) {
    case OP_ADD: return jv_float(f + g);
    case OP_SUB: return jv_float(f - g);
    case OP_MUL: return jv_float(f * g);
    case OP_DIV:
        if (g == 0) by_zero(x);
        return jv_float(f / g);
    case OP_FLOORDIV: (void)float_mod(x, f, g, &r); return jv_float(r);
    case OP_MOD: return jv_float(float_mod(x, f, g, &r));
    default: return jv_float(float_pow(x, f, g));
    }
}

/* round(v, digits) of an integer: to tens and hundreds, half to even. */
static int64_t round_int(struct jj *x, int64_t v, int64_t digits)
{
    if (digits >= 0) return v;
    if (digits < -19) return 0;
    int64_t unit = digits < -18 ? 0 : int_pow(x, 10, -digits), mod;
    if (!unit) return v > 5000000000000000000 || v < -5000000000000000000 ? (too_large(x), 0) : 0;
    int64_t q = int_floordiv(x, v, unit, &mod);
    if (mod > unit - mod || (mod == unit - mod && q % 2)) q++;
    if (__builtin_mul_overflow(q, unit, &q)) too_large(x);
    return q;
}

struct jval num_round(struct jj *x, struct jval v, int64_t digits)
{
    char buf[512];
    int64_t i;
    if (int_of(v, &i)) return jv_int(round_int(x, i, digits));
    double f = v.u.f;
    if (!isfinite(f) || digits > 323) return v;
    if (digits >= 0) { /* printf rounds the exact value, half to even */
        (void)snprintf(buf, sizeof buf, "%.*f", digits > 60 ? 60 : (int)digits, f);
        return jv_float(digits > 60 ? f : strtod(buf, NULL));
    }
    if (digits < -308) return jv_float(copysign(0, f));
    double unit = pow(10, (double)-digits), y = f / unit, z = round(y);
    if (fabs(y - z) == 0.5) z = 2 * round(y / 2);
    return jv_float(z * unit);
}
