/* The safetensors reader on headers written by hand: every error with its code and byte, sets with
 * an index, values of every type.  Files live in memory (tests/memfile.h). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "moe/load/jsonfile.h"
#include "moe/load/safetensors.h"
#include "tests/memfile.h"

#define INDEX "d/model.safetensors.index.json"

static char bytes[8][1 << 16];

/* A file of that header and so many bytes of data, 0 1 2 ... */
static void put_file(int slot, const char *path, const char *header, uint64_t n_data)
{
    const uint64_t n = strlen(header);
    char *p = bytes[slot];
    for (int i = 0; i < 8; i++) p[i] = (char)(n >> (8 * i));
    memcpy(p + 8, header, n);
    for (uint64_t i = 0; i < n_data; i++) p[8 + n + i] = (char)i;
    memfile_add(path, p, 8 + n + n_data, 8 + n + n_data);
}

static void put_text(const char *path, const char *text)
{
    memfile_add(path, text, strlen(text), strlen(text));
}

static enum status open_set(struct st **s, struct err *e)
{
    err_clear(e);
    enum status st = st_open("d", &memfile_ops, s, e);
    assert_int_equal(st == OK, *s != NULL);
    assert_int_equal(st, e->code);
    assert_true(st == OK || e->msg[0]);
    if (st) assert_int_equal(memfile_io.opened, memfile_io.closed);
    return st;
}

static void refused(const char *header, uint64_t n_data, enum status code, const char *message)
{
    struct st *s;
    struct err e;
    memfile_reset();
    put_file(0, "d/model.safetensors", header, n_data);
    if (open_set(&s, &e) != code) fail_msg("%s: code %d: %s", header, (int)e.code, e.msg);
    if (!strstr(e.msg, message)) fail_msg("%s: no \"%s\" in: %s", header, message, e.msg);
    assert_non_null(strstr(e.msg, "d/model.safetensors"));
}

#define T(name, type, shape, b, e) \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":[" #b "," #e "]}"

static void test_good(void **state)
{
    (void)state;
    struct st *s;
    struct err e;
    char buf[8];
    memfile_reset();
    put_file(0, "d/model.safetensors",
             "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "BF16", "[2,3]", 4, 16) ","
             T("a", "F32", "[]", 0, 4) "," T("none", "F16", "[0,7]", 16, 16) "}   ", 16);
    assert_int_equal(open_set(&s, &e), OK);
    assert_int_equal(st_n(s), 3);
    assert_int_equal(st_bytes(s), 16);
    const struct st_tensor *t = st_find(s, "b");
    assert_true(t && t->type == ST_BF16 && t->n_dims == 2 && t->dim[0] == 2 && t->dim[1] == 3);
    assert_int_equal(t->bytes, 12);
    assert_int_equal(st_read(s, t, buf, 2, 3, &e), OK);
    assert_int_equal(buf[0], 7);
    assert_int_equal(buf[1], 8);
    assert_string_equal(st_at(s, 0)->name, "a");
    assert_int_equal(st_at(s, 0)->n_dims, 0);
    assert_null(st_find(s, "c"));
    st_close(s);
    assert_int_equal(memfile_io.opened, memfile_io.closed);
}

static void test_headers(void **state)
{
    (void)state;
    refused("{}", 1, ERR_FORMAT, "no tensor has the bytes");
    refused("[]", 0, ERR_FORMAT, "no JSON object");
    refused("{" T("a", "F32", "[2]", 0, 8), 8, ERR_FORMAT, "no JSON");
    refused("{" T("a", "F32", "[2]", 0, 8) "} x", 8, ERR_FORMAT, "no JSON");
    refused("{" T("a", "F32", "[2]", 0, 4) "}", 4, ERR_FORMAT, "are not 4 bytes");
    refused("{" T("a", "F32", "[2]", 0, 8) "}", 7, ERR_FORMAT, "not downloaded completely");
    refused("{" T("a", "F32", "[1]", 8, 4) "}", 8, ERR_FORMAT, "bytes 8 to 4");
    refused("{" T("a", "F32", "[1]", -4, 0) "}", 8, ERR_FORMAT, "whole numbers");
    refused("{" T("a", "F32", "[1]", 0.5, 4.5) "}", 8, ERR_FORMAT, "whole numbers");
    refused("{" T("a", "F32", "[1]", 0, 1e300) "}", 8, ERR_FORMAT, "whole numbers");
    refused("{" T("a", "F32", "[1.5]", 0, 4) "}", 4, ERR_FORMAT, "dimension");
    refused("{" T("a", "F32", "[-1]", 0, 4) "}", 4, ERR_FORMAT, "dimension");
    refused("{" T("a", "F32", "[4294967296,4294967296,4294967296]", 0, 4) "}", 4, ERR_FORMAT,
            "more values");
    refused("{" T("a", "F32", "[1,1,1,1,1]", 0, 4) "}", 4, ERR_UNSUPPORTED, "dimensions");
    refused("{" T("a", "F33", "[1]", 0, 4) "}", 4, ERR_UNSUPPORTED, "dtype");
    refused("{" T("", "F32", "[1]", 0, 4) "}", 4, ERR_FORMAT, "name");
    refused("{\"a\":1}", 4, ERR_FORMAT, "not an object");
    refused("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, ERR_FORMAT, "dtype");
    refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, ERR_FORMAT, "shape");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, ERR_FORMAT, "data_offsets");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, ERR_FORMAT,
            "data_offsets");
    refused("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 4, 12) "}", 12, ERR_FORMAT,
            "inside another");
    refused("{" T("a", "F32", "[1]", 0, 4) "," T("b", "F32", "[1]", 8, 12) "}", 12, ERR_FORMAT,
            "behind a gap");
    refused("{" T("a", "F32", "[1]", 0, 4) "," T("a", "F32", "[1]", 4, 8) "}", 8, ERR_FORMAT,
            "there twice");
    refused("{" T("a\\u0000b", "F32", "[1]", 0, 4) "}", 4, ERR_FORMAT, "zero byte");
}

static void test_lengths(void **state)
{
    (void)state;
    struct st *s;
    struct err e;
    memfile_reset();
    assert_int_equal(open_set(&s, &e), ERR_IO);
    for (uint64_t n = 0; n < 10; n++) { /* cut off */
        memfile_reset();
        put_file(0, "d/model.safetensors", "{}", 0);
        memfile_table[0].size = n;
        assert_int_equal(open_set(&s, &e), n < 10 ? ERR_FORMAT : OK);
    }
    memfile_reset(); /* longer than the file, longer than the format allows */
    put_file(0, "d/model.safetensors", "{}", 0);
    bytes[0][7] = 0x7f;
    assert_int_equal(open_set(&s, &e), ERR_FORMAT);
    assert_int_equal(e.pos, 0);
    memfile_reset();
    put_file(0, "d/model.safetensors", "{}", 0);
    memset(bytes[0], 0, 8);
    bytes[0][3] = 0x10;
    memfile_table[0].size = (uint64_t)1 << 30;
    assert_int_equal(open_set(&s, &e), ERR_UNSUPPORTED);
}

/* More values than anything needs are refused before they are parsed. */
static void test_many_values(void **state)
{
    (void)state;
    const size_t n = (size_t)JF_VALUES_MAX + 10;
    char *text = malloc(n + 3);
    struct err e;
    cJSON *root;
    assert_non_null(text);
    memset(text, ',', n);
    text[0] = '[';
    text[n] = ']';
    text[n + 1] = 0;
    err_clear(&e);
    assert_int_equal(jf_parse("x", text, n + 1, 0, &root, &e), ERR_UNSUPPORTED);
    memset(text, '[', n); /* nested too deep */
    text[1500] = 0;
    err_clear(&e);
    assert_int_equal(jf_parse("x", text, 1500, 100, &root, &e), ERR_FORMAT);
    assert_true(e.pos >= 100 && e.pos <= 1600);
    free(text);
}

static void good_pair(void)
{
    memfile_reset();
    put_file(0, "d/one.safetensors", "{" T("a", "F32", "[1]", 0, 4) "}", 4);
    put_file(1, "d/two.safetensors",
             "{" T("b", "U8", "[2]", 0, 2) "," T("c", "F8_E4M3", "[1]", 2, 3) "}", 3);
}

static void refused_index(const char *index, enum status code, const char *message)
{
    struct st *s;
    struct err e;
    good_pair();
    put_text(INDEX, index);
    if (open_set(&s, &e) != code) fail_msg("%s: code %d: %s", index, (int)e.code, e.msg);
    if (!strstr(e.msg, message)) fail_msg("%s: no \"%s\" in: %s", index, message, e.msg);
}

static void test_index(void **state)
{
    (void)state;
    struct st *s;
    struct err e;
    good_pair();
    put_text(INDEX, "{\"metadata\":{},\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"two."
                    "safetensors\","
                    "\"b\":\"two.safetensors\"}}");
    assert_int_equal(open_set(&s, &e), OK);
    assert_int_equal(st_n_shards(s), 2);
    assert_int_equal(st_n(s), 3);
    assert_string_equal(st_path(s, st_find(s, "c")->shard), "d/two.safetensors");
    st_close(s);

    refused_index("{}", ERR_FORMAT, "weight_map");
    refused_index("{\"weight_map\":{}}", ERR_UNSUPPORTED, "names 0 files");
    refused_index("{\"weight_map\":{\"a\":\"three.safetensors\"}}", ERR_IO, "three");
    refused_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}",
                  ERR_FORMAT, "do not belong together");
    refused_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\","
                  "\"c\":\"two.safetensors\"}}", ERR_FORMAT, "b is not in one");
    refused_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\","
                  "\"c\":\"two.safetensors\",\"d\":\"two.safetensors\"}}",
                  ERR_FORMAT, "d is not in");
    static const char *const bad[] = {
        "../one.safetensors", "/d/one.safetensors", "x/one.safetensors", ".one.safetensors",
        "one.bin", ".safetensors", "", "one\\u000a.safetensors", "x\\\\one.safetensors",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char index[200];
        (void)snprintf(index, sizeof index, "{\"weight_map\":{\"a\":\"%s\"}}", bad[i]);
        refused_index(index, ERR_FORMAT, "no file of this folder");
    }
    refused_index("{\"weight_map\":{\"a\":1}}", ERR_FORMAT, "no file of this folder");
}

static void test_twice(void **state)
{
    (void)state;
    struct st *s;
    struct err e;
    memfile_reset();
    put_file(0, "d/one.safetensors", "{" T("a", "F32", "[1]", 0, 4) "}", 4);
    put_file(1, "d/two.safetensors",
             "{" T("a", "F32", "[1]", 0, 4) "," T("b", "U8", "[0]", 4, 4) "}", 4);
    put_text(INDEX, "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    assert_int_equal(open_set(&s, &e), ERR_FORMAT);
    assert_non_null(strstr(e.msg, "there twice"));
}

/* ---- values ---- */

static void test_values(void **state)
{
    (void)state;
    static const uint8_t f32[] = {0, 0, 0x80, 0x3f}, f16[] = {0, 0xc0, 1, 0}, bf16[] = {0x80, 0x3f};
    float x[256];
    uint8_t all[256];
    st_decode(ST_F32, f32, x, 1);
    assert_true(x[0] == 1);
    st_decode(ST_F16, f16, x, 2);
    assert_true(x[0] == -2 && x[1] == 0x1p-24f);
    st_decode(ST_BF16, bf16, x, 1);
    assert_true(x[0] == 1);
    for (int i = 0; i < 256; i++) all[i] = (uint8_t)i;
    st_decode(ST_F8_E4M3, all, x, 256);
    /* From the definition (arXiv 2209.05433): 2^(e-7) * (1 + m/8), e = 0: 2^-6 * m/8. */
    for (int i = 0; i < 256; i++) {
        const int e = i >> 3 & 15, m = i & 7;
        double want = e ? ldexp(1 + m / 8.0, e - 7) : ldexp(m / 8.0, -6);
        if (i & 128) want = -want;
        if ((i & 127) == 127) assert_true(isnan(x[i]));
        else assert_true((double)x[i] == want && !signbit(x[i]) == !(i >> 7));
    }
    assert_int_equal(st_width(ST_F8_E4M3), 1);
    assert_int_equal(st_width(ST_OTHER), 0);
}

/* Short, interrupted and failing reads. */
static void test_reads(void **state)
{
    (void)state;
    struct st *s;
    struct err e;
    char buf[4];
    memfile_reset();
    put_file(0, "d/model.safetensors", "{" T("a", "F32", "[1]", 0, 4) "}", 4);
    memfile_io.short_reads = 3;
    memfile_io.interrupt = 1;
    assert_int_equal(open_set(&s, &e), OK);
    assert_int_equal(st_read(s, st_at(s, 0), buf, 4, 0, &e), OK);
    memfile_io.fail_at = 10;
    assert_int_equal(st_read(s, st_at(s, 0), buf, 4, 0, &e), ERR_IO);
    st_close(s);
    memfile_io.closed = memfile_io.opened = 0;
    assert_int_equal(open_set(&s, &e), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),   cmocka_unit_test(test_headers),
        cmocka_unit_test(test_lengths), cmocka_unit_test(test_many_values),
        cmocka_unit_test(test_index),  cmocka_unit_test(test_twice),
        cmocka_unit_test(test_values), cmocka_unit_test(test_reads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
