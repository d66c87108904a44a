/* Tests of moe/load/gguf.c and gguf_write.c: every type there and back, every error with its code
 * and byte, truncation everywhere, split sets, the writer's failures, and real files when
 * ../shared (or TESSERA_SHARED) is there.  Malformed files come from tests/ggufblob.h and are read
 * from memory; what the writer makes lies in a temporary folder that is removed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "moe/load/cursor.h"
#include "tests/ggufblob.h"
#include "tests/memfile.h"

static char dir[64]; /* temporary */

static const char *in_dir(const char *name)
{
    static char path[2][192];
    static int turn;
    turn ^= 1;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/test_gguf.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir); /* fails when a test left a file behind */
}

/* Opens bytes as m.gguf, whose real size may be larger. */
static enum status open_sized(const struct blob *b, uint64_t size, struct gguf **g, struct err *e)
{
    memfile_reset();
    memfile_add("m.gguf", b->p, b->n, size);
    err_clear(e);
    enum status s = gguf_open("m.gguf", &memfile_ops, g, e);
    assert_int_equal(memfile_io.opened, memfile_io.closed);
    return s;
}

static struct gguf *open_good(const struct blob *b)
{
    struct err e;
    struct gguf *g;
    if (open_sized(b, b->n, &g, &e)) fail_msg("%s", e.msg);
    return g;
}

static void check_error(const struct err *e, enum status code, uint64_t pos, const char *text)
{
    if (e->code == code && e->pos == pos && strstr(e->msg, text)) return;
    fail_msg("got code %d at %llu: %s; wanted %d at %llu: %s", (int)e->code,
             (unsigned long long)e->pos, e->msg, (int)code, (unsigned long long)pos, text);
}

/* Opens and frees a bad file. */
static void bad_sized(struct blob *b, uint64_t size, enum status code, uint64_t pos,
                      const char *text)
{
    struct err e;
    struct gguf *g = (struct gguf *)&e;
    assert_int_equal(open_sized(b, size, &g, &e), code);
    assert_null(g);
    check_error(&e, code, pos, text);
    blob_free(b);
}

static void bad(struct blob *b, enum status code, uint64_t pos, const char *text)
{
    bad_sized(b, b->n, code, pos, text);
}

/* ---- good files --------------------------------------------------------------------------- */

static void check_small(const struct gguf *g)
{
    assert_int_equal(gguf_n_kv(g), 15);
    assert_int_equal(gguf_n_tensors(g), 3);
    assert_int_equal(gguf_n_shards(g), 1);
    const struct gguf_kv *kv = gguf_find(g, "t.i16");
    assert_non_null(kv);
    assert_int_equal(kv->value.type, GGUF_I16);
    assert_int_equal(kv->value.n, 1);
    assert_int_equal(kv->value.bytes, 2);
    assert_true(gguf_elem_i64(&kv->value, 0) == -32768);
    assert_null(gguf_find(g, "t.i1"));
    assert_null(gguf_find(g, "t.i160"));
    assert_null(gguf_find(g, ""));
    const struct gguf_tensor *t = gguf_find_tensor(g, "b.weight");
    assert_ptr_equal(t, gguf_tensor_at(g, 1));
    assert_int_equal(t->type, 2);
    assert_int_equal(t->n_dims, 1);
    assert_int_equal(t->dim[0], 32);
    assert_int_equal(t->dim[3], 1);
    assert_int_equal(t->bytes, 18);
    assert_int_equal(t->offset % 32, 0);
    assert_int_equal(t->offset + 32, gguf_find_tensor(g, "c.weight")->offset);
    assert_null(gguf_find_tensor(g, "d.weight"));
}

static void test_small(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_small(&b);
    struct gguf *g = open_good(&b);
    check_small(g);
    assert_int_equal(gguf_version(g), 3);
    assert_int_equal(gguf_file_bytes(g), b.n);
    assert_string_equal(gguf_path(g, 0), "m.gguf");
    for (uint64_t i = 0; i < 3; i++)
        assert_int_equal(b.p[gguf_tensor_at(g, i)->offset], 32 * i);
    gguf_close(g);
    b.p[4] = 2; /* version 2 has the same layout */
    g = open_good(&b);
    assert_int_equal(gguf_version(g), 2);
    gguf_close(g);
    blob_free(&b);
    gguf_close(NULL);
}

static void test_empty_file_of_a_model(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 0);
    struct gguf *g = open_good(&b);
    assert_int_equal(gguf_n_kv(g) + gguf_n_tensors(g), 0);
    assert_null(gguf_find(g, "a"));
    assert_null(gguf_find_tensor(g, "a"));
    gguf_close(g);
    blob_free(&b);
}

static void test_arrays(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_small(&b);
    struct gguf *g = open_good(&b);
    const struct gguf_value *v = &gguf_find(g, "t.shorts")->value;
    assert_int_equal(v->type, GGUF_ARRAY);
    assert_int_equal(v->elem, GGUF_I16);
    assert_int_equal(v->n, 3);
    assert_true(gguf_elem_i64(v, 1) == -1 && gguf_elem_u64(v, 2) == 300);
    assert_true(gguf_elem_f64(v, 1) == -1.0);
    v = &gguf_find(g, "t.bools")->value;
    assert_true(gguf_elem_u64(v, 0) == 1 && gguf_elem_u64(v, 1) == 0);
    v = &gguf_find(g, "t.strings")->value;
    const char *want[] = {"one", "", "three"};
    uint64_t cursor = 0;
    for (int i = 0; i < 3; i++) {
        struct gguf_str s = gguf_elem_next_str(v, &cursor);
        assert_int_equal(s.n, strlen(want[i]));
        assert_memory_equal(s.s, want[i], s.n);
    }
    assert_null(gguf_elem_next_str(v, &cursor).s);
    assert_int_equal(cursor, v->bytes);
    assert_int_equal(gguf_elem_u64(v, 0), 0); /* not a number */
    cursor = 0;
    assert_null(gguf_elem_next_str(&gguf_find(g, "t.u8")->value, &cursor).s);
    gguf_close(g);
    blob_free(&b);
}

static void test_type_names(void **state)
{
    (void)state;
    assert_string_equal(gguf_type_name(GGUF_U8), "u8");
    assert_string_equal(gguf_type_name(GGUF_STRING), "string");
    assert_string_equal(gguf_type_name(GGUF_F64), "f64");
    assert_string_equal(gguf_type_name((enum gguf_type)99), "?");
}

static void test_getters(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_small(&b);
    struct gguf *g = open_good(&b);
    struct err e;
    uint64_t u = 7;
    float f;
    bool t = false;
    struct gguf_str s;
    err_clear(&e);
    assert_int_equal(gguf_get_u64(g, "t.u8", &u, &e), OK);
    assert_true(u == 200);
    assert_int_equal(gguf_get_u64(g, "t.u16", &u, &e), OK);
    assert_true(u == 60000);
    assert_int_equal(gguf_get_u64(g, "t.u64", &u, &e), OK);
    assert_true(u == UINT64_MAX);
    assert_int_equal(gguf_get_u64_or(g, "t.u32", 3, &u, &e), OK);
    assert_true(u == UINT32_MAX);
    assert_int_equal(gguf_get_u64_or(g, "no", 3, &u, &e), OK);
    assert_true(u == 3);
    assert_int_equal(gguf_get_f32(g, "t.f32", &f, &e), OK);
    assert_true(f == 1.5f);
    assert_int_equal(gguf_get_f32_or(g, "t.f64", 1, &f, &e), OK);
    assert_true(f == -2.5f);
    assert_int_equal(gguf_get_f32_or(g, "no", 0.5f, &f, &e), OK);
    assert_true(f == 0.5f);
    assert_int_equal(gguf_get_bool_or(g, "t.bool", false, &t, &e), OK);
    assert_true(t);
    assert_int_equal(gguf_get_bool_or(g, "no", true, &t, &e), OK);
    assert_true(t);
    assert_int_equal(gguf_get_str(g, "general.architecture", &s, &e), OK);
    assert_int_equal(s.n, 5);
    assert_memory_equal(s.s, "llama", 5);
    assert_int_equal(e.code, OK);
    gguf_close(g);
    blob_free(&b);
}

static void test_getter_errors(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_small(&b);
    struct gguf *g = open_good(&b);
    struct err e;
    uint64_t u;
    float f;
    bool t;
    struct gguf_str s;
    err_clear(&e);
    assert_int_equal(gguf_get_u64(g, "no.key", &u, &e), ERR_MISSING);
    check_error(&e, ERR_MISSING, ERR_NO_POS, "m.gguf: key 'no.key' is missing");
    assert_int_equal(gguf_get_f32(g, "no.key", &f, NULL), ERR_MISSING);
    assert_int_equal(gguf_get_str(g, "no.key", &s, NULL), ERR_MISSING);
    const char *negative[] = {"t.i8", "t.i16", "t.i32", "t.i64"};
    for (int i = 0; i < 4; i++) {
        err_clear(&e);
        assert_int_equal(gguf_get_u64(g, negative[i], &u, &e), ERR_SHAPE);
        check_error(&e, ERR_SHAPE, gguf_find(g, negative[i])->pos, "not a number from 0 up");
    }
    err_clear(&e);
    assert_int_equal(gguf_get_u64_or(g, "t.shorts", 1, &u, &e), ERR_SHAPE);
    check_error(&e, ERR_SHAPE, gguf_find(g, "t.shorts")->pos, "is an array of i16, not a number");
    assert_int_equal(gguf_get_u64(g, "t.f32", &u, NULL), ERR_SHAPE);
    assert_int_equal(gguf_get_u64(g, "t.bool", &u, NULL), ERR_SHAPE);
    assert_int_equal(gguf_get_f32(g, "t.u32", &f, NULL), ERR_SHAPE);
    assert_int_equal(gguf_get_f32_or(g, "t.strings", 1, &f, NULL), ERR_SHAPE);
    assert_int_equal(gguf_get_str(g, "t.strings", &s, NULL), ERR_SHAPE);
    assert_int_equal(gguf_get_bool_or(g, "t.u8", true, &t, NULL), ERR_SHAPE);
    /* pos is the byte of the value, in the file. */
    const struct gguf_kv *kv = gguf_find(g, "t.u16");
    assert_true(b.p[kv->pos] == (60000 & 255) && b.p[kv->pos + 1] == 60000 >> 8);
    gguf_close(g);
    blob_free(&b);
}

static void test_f64_out_of_f32(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 2);
    blob_kv_int(&b, "big", GGUF_F64, UINT64_C(0x7fe0000000000000));
    blob_kv_int(&b, "inf", GGUF_F64, UINT64_C(0x7ff0000000000000));
    struct gguf *g = open_good(&b);
    float f;
    assert_int_equal(gguf_get_f32(g, "big", &f, NULL), ERR_SHAPE);
    assert_int_equal(gguf_get_f32(g, "inf", &f, NULL), OK);
    assert_true(f > 3e38f);
    gguf_close(g);
    blob_free(&b);
}

static void test_long_tensor_name(void **state)
{
    (void)state;
    char name[201];
    memset(name, 'n', 200);
    name[200] = 0;
    struct blob b = {0};
    blob_head(&b, 3, 1, 0);
    blob_tensor(&b, name, 1, 0, 0);
    blob_pad(&b, 32);
    blob_zeros(&b, 4);
    struct gguf *g = open_good(&b);
    assert_non_null(gguf_find_tensor(g, name));
    gguf_close(g);
    blob_free(&b);
}

static void test_unknown_tensor_type(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 2, 0);
    blob_tensor(&b, "x", 100, 60, 0);
    blob_tensor(&b, "y", 8, 0, 0);
    blob_pad(&b, 32);
    blob_zeros(&b, 32);
    struct gguf *g = open_good(&b);
    assert_int_equal(gguf_find_tensor(g, "x")->bytes, 0);
    assert_int_equal(gguf_find_tensor(g, "x")->type, 60);
    gguf_close(g);
    blob_free(&b);
}

static void test_alignment_of_data(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 2, 1);
    blob_kv_int(&b, "general.alignment", GGUF_U32, 256);
    blob_tensor(&b, "later", 4, 0, 256); /* any order, with gaps */
    blob_tensor(&b, "first", 4, 0, 0);
    blob_pad(&b, 256);
    blob_zeros(&b, 256 + 16);
    struct gguf *g = open_good(&b);
    assert_int_equal(gguf_find_tensor(g, "first")->offset, 256);
    assert_int_equal(gguf_find_tensor(g, "later")->offset, 512);
    gguf_close(g);
    blob_free(&b);
}

/* Many tensors and keys, larger than the first read, in small interrupted reads. */
static void test_big_header(void **state)
{
    (void)state;
    enum { KEYS = 300, STRS = 60000, TENSORS = 2000 };
    struct blob b = {0};
    char name[64];
    blob_head(&b, 3, TENSORS, KEYS + 1);
    for (int i = 0; i < KEYS; i++) {
        snprintf(name, sizeof name, "key.%d", i * 7919 % KEYS);
        blob_kv_int(&b, name, GGUF_U32, (uint64_t)i);
        if (i) continue;
        blob_array(&b, "words", GGUF_STRING, STRS);
        for (int k = 0; k < STRS; k++) {
            snprintf(name, sizeof name, "w%d", k);
            blob_str(&b, name);
        }
    }
    for (int i = 0; i < TENSORS; i++) {
        snprintf(name, sizeof name, "blk.%d.w", i);
        blob_tensor(&b, name, 8, 0, (uint64_t)i * 32);
    }
    blob_pad(&b, 32);
    uint64_t size = b.n + TENSORS * UINT64_C(32);
    memfile_reset();
    memfile_add("m.gguf", b.p, b.n, size);
    memfile_io.short_reads = 4999;
    memfile_io.interrupt = 1;
    struct gguf *g;
    struct err e;
    err_clear(&e);
    if (gguf_open("m.gguf", &memfile_ops, &g, &e)) fail_msg("%s", e.msg);
    for (int i = 0; i < TENSORS; i++) {
        snprintf(name, sizeof name, "blk.%d.w", i);
        assert_ptr_equal(gguf_find_tensor(g, name), gguf_tensor_at(g, (uint64_t)i));
    }
    for (int i = 0; i < KEYS; i++) {
        uint64_t v;
        snprintf(name, sizeof name, "key.%d", i * 7919 % KEYS);
        assert_int_equal(gguf_get_u64(g, name, &v, &e), OK);
        assert_true(v == (uint64_t)i);
    }
    uint64_t cursor = 0;
    const struct gguf_value *v = &gguf_find(g, "words")->value;
    for (int k = 0; k < STRS; k++) {
        int n = snprintf(name, sizeof name, "w%d", k);
        struct gguf_str s = gguf_elem_next_str(v, &cursor);
        assert_int_equal(s.n, n);
        assert_memory_equal(s.s, name, s.n);
    }
    gguf_close(g);
    blob_free(&b);
}

/* Only the header is read, even of a huge file. */
static void test_reads_header_only(void **state)
{
    (void)state;
    struct blob b = {0};
    struct gguf *g;
    struct err e;
    blob_head(&b, 3, 1, 0);
    blob_tensor(&b, "x", UINT64_C(1) << 36, 0, 0);
    blob_pad(&b, 32);
    if (open_sized(&b, b.n + (UINT64_C(4) << 36), &g, &e)) fail_msg("%s", e.msg);
    assert_true(memfile_io.bytes <= 256 << 10);
    assert_true(gguf_tensor_at(g, 0)->bytes == UINT64_C(4) << 36);
    gguf_close(g);
    blob_free(&b);
}

/* ---- errors: the fixed part ---------------------------------------------------------------- */

static void test_not_gguf(void **state)
{
    (void)state;
    static const struct {
        const char *start, *hint;
    } cases[] = {
        {"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"},
        {"<!DOCTYPE html>", "web page"},
        {"{\"a\":1}", "JSON"},
        {"PK\3\4....", "zip"},
        {"tjgg\1\0\0\0", "old GGML"},
        {"GGU", "download it again"},
        {"something else", "give a .gguf file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct blob b = {0};
        blob_put(&b, cases[i].start, strlen(cases[i].start));
        bad(&b, ERR_FORMAT, 0, cases[i].hint);
    }
    struct blob b = {0};
    bad(&b, ERR_FORMAT, 0, "empty");
}

static void test_versions(void **state)
{
    (void)state;
    static const struct {
        uint32_t version;
        const char *text;
    } cases[] = {
        {1, "unsupported GGUF version 1: convert the model again"},
        {0, "unsupported GGUF version 0"},
        {4, "unsupported GGUF version 4, known are 2 and 3"},
        {0x03000000, "big-endian"},
        {0x02000000, "big-endian"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct blob b = {0};
        blob_head(&b, cases[i].version, 0, 0);
        bad(&b, ERR_UNSUPPORTED, 4, cases[i].text);
    }
}

static void test_counts(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, UINT64_C(1) << 60, 0);
    bad(&b, ERR_FORMAT, 8, "it has 1152921504606846976 tensors");
    blob_head(&b, 3, 0, UINT64_C(1) << 60);
    bad(&b, ERR_FORMAT, 16, "it has 1152921504606846976 keys");
    blob_head(&b, 3, UINT64_MAX, UINT64_MAX);
    bad(&b, ERR_FORMAT, 8, "cannot hold them");
    blob_head(&b, 3, 0, 1);
    bad(&b, ERR_FORMAT, 16, "cannot hold them");
    /* Believable in a large file, but more than any model has: nothing is allocated for them. */
    blob_head(&b, 3, 0, 70000);
    bad_sized(&b, UINT64_C(1) << 40, ERR_UNSUPPORTED, 16, "70000 keys, supported are 65536");
    blob_head(&b, 3, 2000000, 0);
    bad_sized(&b, UINT64_C(1) << 40, ERR_UNSUPPORTED, 8, "2000000 tensors, supported are 1048576");
}

static void test_header_limit(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 1);
    blob_key(&b, "k", GGUF_STRING);
    blob_u64(&b, UINT64_C(1) << 34);
    uint64_t pos = b.n;
    bad_sized(&b, UINT64_C(1) << 40, ERR_UNSUPPORTED, pos, "larger than 256 MiB");
    assert_true(memfile_io.bytes <= 256 << 10);
}

/* ---- errors: keys -------------------------------------------------------------------------- */

static void test_key_names(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 1);
    blob_kv_str(&b, "", "value");
    bad(&b, ERR_FORMAT, 24, "a key has no name");
    blob_head(&b, 3, 0, 1);
    blob_u64(&b, 65536);
    blob_zeros(&b, 70000);
    bad(&b, ERR_FORMAT, 24, "name of 65536 bytes");
    blob_head(&b, 3, 0, 1);
    blob_u64(&b, 60000);
    blob_zeros(&b, 50000);
    bad(&b, ERR_FORMAT, 32, "a key needs 60000 bytes from here, but the file has only 50032");
    blob_head(&b, 3, 0, 1);
    blob_u64(&b, UINT64_MAX);
    blob_zeros(&b, 50);
    bad(&b, ERR_FORMAT, 24, "name of 18446744073709551615 bytes");
}

static void test_value_types(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 1);
    blob_key(&b, "key", (enum gguf_type)13);
    blob_u64(&b, 0);
    bad(&b, ERR_FORMAT, 24 + 11, "key 'key' has value type 13");
    blob_head(&b, 3, 0, 1);
    blob_array(&b, "key", (enum gguf_type)77, 1);
    blob_u64(&b, 0);
    bad(&b, ERR_FORMAT, 24 + 15, "key 'key' has value type 77");
    blob_head(&b, 3, 0, 1);
    blob_array(&b, "key", GGUF_ARRAY, 1);
    blob_zeros(&b, 100);
    bad(&b, ERR_UNSUPPORTED, 24 + 15, "array of arrays");
}

static void test_lengths(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 1);
    blob_key(&b, "key", GGUF_STRING);
    blob_u64(&b, UINT64_C(1) << 63);
    blob_zeros(&b, 9);
    bad(&b, ERR_FORMAT, 24 + 23, "a string needs 9223372036854775808 bytes");
    blob_head(&b, 3, 0, 1);
    blob_array(&b, "key", GGUF_F64, UINT64_C(1) << 61); /* times 8 is 0 */
    blob_zeros(&b, 64);
    bad(&b, ERR_FORMAT, 24 + 19, "key 'key' says it has 2305843009213693952 elements");
    blob_head(&b, 3, 0, 1);
    blob_array(&b, "key", GGUF_U32, 17);
    blob_zeros(&b, 64);
    bad(&b, ERR_FORMAT, 24 + 19, "17 elements");
    blob_head(&b, 3, 0, 1);
    blob_array(&b, "key", GGUF_STRING, UINT64_MAX);
    blob_zeros(&b, 64);
    bad(&b, ERR_FORMAT, 24 + 19, "elements");
    blob_head(&b, 3, 0, 1);
    blob_array(&b, "key", GGUF_STRING, 2);
    blob_str(&b, "x");
    blob_u64(&b, 4);
    blob_put(&b, "abc", 3);
    bad(&b, ERR_FORMAT, 24 + 19 + 8 + 9 + 8, "a string of an array needs 4 bytes");
    blob_head(&b, 3, 0, 1);
    blob_key(&b, "key", GGUF_U64);
    blob_u32(&b, 1);
    bad(&b, ERR_FORMAT, 24 + 15, "a value needs 8 bytes");
}

static void test_bools(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 1);
    blob_kv_int(&b, "key", GGUF_BOOL, 2);
    bad(&b, ERR_FORMAT, 24 + 15, "key 'key' has a bool that is neither 0 nor 1");
    blob_head(&b, 3, 0, 1);
    blob_array(&b, "key", GGUF_BOOL, 3);
    blob_le(&b, 0xff0100, 3);
    bad(&b, ERR_FORMAT, 24 + 19 + 8 + 2, "neither 0 nor 1");
}

static void test_duplicate_keys(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 3);
    blob_kv_int(&b, "same", GGUF_U8, 1);
    blob_kv_int(&b, "other", GGUF_U8, 1);
    uint64_t pos = b.n;
    blob_kv_int(&b, "same", GGUF_U32, 1);
    bad(&b, ERR_FORMAT, pos, "key 'same' is there twice, at byte 24 and here");
}

static void test_bad_alignment(void **state)
{
    (void)state;
    static const uint64_t values[] = {0, 3, 48, UINT64_C(1) << 32, UINT64_MAX};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        struct blob b = {0};
        blob_head(&b, 3, 0, 1);
        blob_kv_int(&b, "general.alignment", GGUF_U64, values[i]);
        bad(&b, ERR_FORMAT, 24 + 8 + 17 + 4, "not a power of two");
    }
    struct blob b = {0};
    blob_head(&b, 3, 0, 1);
    blob_kv_str(&b, "general.alignment", "32");
    bad(&b, ERR_FORMAT, 24 + 8 + 17 + 4, "'general.alignment' must be an unsigned number");
}

/* Names from files reach a terminal: nothing that controls it may survive. */
static void test_names_are_printable(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 1);
    blob_key(&b, "\x1b[2J\xff\n", (enum gguf_type)99);
    struct err e;
    struct gguf *g;
    assert_int_equal(open_sized(&b, b.n, &g, &e), ERR_FORMAT);
    for (const char *p = e.msg; *p; p++) assert_true(*p >= 0x20 && *p < 0x7f);
    assert_non_null(strstr(e.msg, "?[2J??"));
    blob_free(&b);
}

/* ---- errors: tensors ----------------------------------------------------------------------- */

enum { T1 = 24 }; /* first byte of the directory in files without keys */

static void test_tensor_dims(void **state)
{
    (void)state;
    static const uint32_t n_dims[] = {0, 5, UINT32_MAX};
    for (int i = 0; i < 3; i++) {
        struct blob b = {0};
        blob_head(&b, 3, 1, 0);
        blob_str(&b, "ten");
        blob_u32(&b, n_dims[i]);
        blob_zeros(&b, 100);
        bad(&b, ERR_FORMAT, T1 + 11, "tensor 'ten' has ");
    }
    struct blob b = {0};
    blob_head(&b, 3, 1, 0);
    blob_tensor(&b, "ten", 0, 0, 0);
    bad(&b, ERR_FORMAT, T1 + 15, "tensor 'ten' has dimension 0");
    static const uint64_t dims[][3] = {
        {4, 0, 4}, {UINT64_C(1) << 32, UINT64_C(1) << 31, 2}, {1, UINT64_MAX, 1}};
    static const int at[] = {1, 1, 1};
    for (int i = 0; i < 3; i++) {
        blob_head(&b, 3, 1, 0);
        blob_str(&b, "ten");
        blob_u32(&b, 3);
        for (int k = 0; k < 3; k++) blob_u64(&b, dims[i][k]);
        blob_u32(&b, 0);
        blob_u64(&b, 0);
        bad(&b, ERR_FORMAT, (uint64_t)(T1 + 15 + 8 * at[i]), "tensor 'ten' has dimension ");
    }
    blob_head(&b, 3, 1, 0);
    blob_tensor(&b, "ten", (uint64_t)INT64_MAX, 0, 0); /* the weights fit, their bytes do not */
    bad(&b, ERR_FORMAT, T1 + 15, "too large");
    blob_head(&b, 3, 1, 0);
    blob_tensor(&b, "ten", 33, 2, 0);
    bad(&b, ERR_FORMAT, T1 + 15, "33 columns, type Q4_0 needs a multiple of 32");
    blob_head(&b, 3, 1, 0);
    blob_tensor(&b, "", 33, 2, 0);
    blob_zeros(&b, 8);
    bad(&b, ERR_FORMAT, T1, "a tensor has no name");
}

static void test_tensor_offsets(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 1, 0);
    blob_tensor(&b, "ten", 8, 0, 16);
    blob_zeros(&b, 1000);
    bad(&b, ERR_FORMAT, T1 + 27, "offset 16, not a multiple of the alignment 32");
    blob_head(&b, 3, 1, 0);
    blob_tensor(&b, "ten", 8, 0, UINT64_MAX - 31);
    blob_zeros(&b, 1000);
    bad(&b, ERR_FORMAT, T1 + 27, "tensor 'ten' starts at offset 18446744073709551584");
    blob_head(&b, 3, 2, 0);
    blob_tensor(&b, "aaa", 8, 0, 0);
    blob_tensor(&b, "ten", 8, 0, 32);
    blob_pad(&b, 32);
    uint64_t start = b.n;
    blob_zeros(&b, 63);
    char text[120];
    snprintf(text, sizeof text, "needs %d bytes (tensor 'ten' ends there), the file has %d",
             (int)start + 64, (int)start + 63);
    bad(&b, ERR_FORMAT, start + 63, text);
    blob_head(&b, 3, 1, 0); /* type unknown: at least the start must be there */
    blob_tensor(&b, "ten", 8, 63, 1 << 20);
    bad(&b, ERR_FORMAT, T1 + 35, "tensor 'ten' ends there");
}

static void test_tensor_overlap(void **state)
{
    (void)state;
    static const uint64_t offsets[][3] = {{0, 32, 32}, {64, 0, 32}, {0, 0, 128}};
    static const int where[] = {2, 2, 1}; /* which tensor is reported */
    static const uint64_t cols[][3] = {{8, 8, 8}, {8, 17, 8}, {8, 8, 8}};
    static const char *const text[] = {"'ten1' and 'ten2' overlap at byte 160",
                                       "'ten1' and 'ten2' overlap at byte 160",
                                       "'ten0' and 'ten1' overlap at byte 128"};
    for (int i = 0; i < 3; i++) {
        struct blob b = {0};
        blob_head(&b, 3, 3, 0);
        for (int k = 0; k < 3; k++) {
            char name[16];
            snprintf(name, sizeof name, "ten%d", k);
            blob_tensor(&b, name, cols[i][k], 0, offsets[i][k]);
        }
        blob_pad(&b, 32);
        assert_int_equal(b.n, 160);
        blob_zeros(&b, 1000);
        char want[80];
        int shift = strstr(text[i], "128") ? 160 : 192;
        snprintf(want, sizeof want, "%.*s%d", (int)(strlen(text[i]) - 3), text[i], shift);
        bad(&b, ERR_FORMAT, (uint64_t)(T1 + 36 * where[i] + 28), want);
    }
}

static void test_duplicate_tensors(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 2, 0);
    blob_tensor(&b, "ten", 8, 0, 0);
    uint64_t pos = b.n;
    blob_tensor(&b, "ten", 8, 0, 32);
    blob_pad(&b, 32);
    blob_zeros(&b, 64);
    bad(&b, ERR_FORMAT, pos, "tensor 'ten' is there twice, at byte 24 of this file and here");
}

/* ---- truncation and reading ----------------------------------------------------------------- */

static void test_truncated_everywhere(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_small(&b);
    for (size_t n = 0; n < b.n; n++) {
        struct blob cut = {malloc(n ? n : 1), n, 0}; /* exact, so that ASan sees an overrun */
        memcpy(cut.p, b.p, n);
        struct gguf *g;
        struct err e;
        assert_int_equal(open_sized(&cut, n, &g, &e), ERR_FORMAT);
        assert_null(g);
        assert_true(e.pos <= n);
        assert_non_null(strstr(e.msg, "download it again"));
        blob_free(&cut);
    }
    blob_free(&b);
}

static void test_bigger_truncated(void **state)
{
    (void)state;
    struct blob b = {0};
    char name[32];
    blob_head(&b, 3, 1, 2);
    blob_array(&b, "words", GGUF_STRING, 40000);
    for (int k = 0; k < 40000; k++) {
        snprintf(name, sizeof name, "w%d", k);
        blob_str(&b, name);
    }
    blob_array(&b, "scores", GGUF_F32, 40000);
    blob_zeros(&b, 160000);
    blob_tensor(&b, "ten", 65536, 0, 0);
    blob_pad(&b, 32);
    uint64_t size = b.n + 4 * 65536;
    for (uint64_t n = 4096; n < size; n += 4096) {
        struct gguf *g;
        struct err e;
        assert_int_equal(open_sized(&b, n, &g, &e), ERR_FORMAT);
        assert_true(e.pos <= n);
    }
    struct gguf *g;
    struct err e;
    assert_int_equal(open_sized(&b, size, &g, &e), OK);
    gguf_close(g);
    blob_free(&b);
}

static void test_read_errors(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_head(&b, 3, 0, 1);
    blob_array(&b, "zeros", GGUF_U8, 1 << 20);
    blob_zeros(&b, 1 << 20);
    for (uint64_t at = 1; at < b.n; at += 100000) {
        memfile_reset();
        memfile_add("m.gguf", b.p, b.n, b.n);
        memfile_io.fail_at = at;
        struct gguf *g;
        struct err e;
        err_clear(&e);
        assert_int_equal(gguf_open("m.gguf", &memfile_ops, &g, &e), ERR_IO);
        assert_true(e.code == ERR_IO && e.pos < at);
        assert_int_equal(memfile_io.opened, memfile_io.closed);
    }
    blob_free(&b);
}

static void test_open_errors(void **state)
{
    (void)state;
    struct gguf *g;
    struct err e;
    err_clear(&e);
    assert_int_equal(gguf_open("/no/such/file.gguf", NULL, &g, &e), ERR_IO);
    assert_null(g);
    check_error(&e, ERR_IO, ERR_NO_POS, "cannot open /no/such/file.gguf: No such file");
    err_clear(&e);
    assert_int_equal(gguf_open("/tmp", NULL, &g, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "it is a directory");
    assert_int_equal(gguf_open("/tmp", NULL, &g, NULL), ERR_IO);
    /* The first failure wins: an earlier one stays. */
    assert_int_equal(gguf_open("/no/such/file.gguf", NULL, &g, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "directory"));
}

/* A long path must not push the message out. */
static void test_long_path(void **state)
{
    (void)state;
    char path[1001];
    memset(path, 'p', 1000);
    path[1000] = 0;
    struct blob b = {0};
    blob_head(&b, 9, 0, 0);
    memfile_reset();
    memfile_add(path, b.p, b.n, b.n);
    struct gguf *g;
    struct err e;
    err_clear(&e);
    assert_int_equal(gguf_open(path, &memfile_ops, &g, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "unsupported GGUF version 9"));
    blob_free(&b);
}

/* ---- split sets ----------------------------------------------------------------------------- */

enum { PARTS = 3 };
static struct blob part[PARTS];
static const char *const part_path[PARTS] = {"d/m-00001-of-00003.gguf", "d/m-00002-of-00003.gguf",
                                             "d/m-00003-of-00003.gguf"};

/* A part with one tensor. */
static void make_part(struct blob *b, uint64_t no, uint64_t count, uint64_t total, const char *name)
{
    blob_head(b, 3, 1, 4);
    blob_kv_int(b, "split.no", GGUF_U16, no);
    blob_kv_int(b, "split.count", GGUF_U16, count);
    blob_kv_int(b, "split.tensors.count", GGUF_I32, total);
    blob_kv_int(b, "own", GGUF_U32, no);
    blob_tensor(b, name, 8, 0, 0);
    blob_pad(b, 32);
    blob_zeros(b, 32);
}

static void make_set(void)
{
    static const char *const names[PARTS] = {"one", "two", "three"};
    for (int i = 0; i < PARTS; i++) {
        blob_free(&part[i]);
        make_part(&part[i], (uint64_t)i, PARTS, PARTS, names[i]);
    }
}

static enum status open_set(const char *path, struct gguf **g, struct err *e)
{
    memfile_reset();
    for (int i = 0; i < PARTS; i++)
        if (part[i].p) memfile_add(part_path[i], part[i].p, part[i].n, part[i].n);
    err_clear(e);
    enum status s = gguf_open(path, &memfile_ops, g, e);
    assert_int_equal(memfile_io.opened, memfile_io.closed);
    return s;
}

static void bad_set(const char *path, enum status code, uint64_t pos, const char *text)
{
    struct gguf *g;
    struct err e;
    assert_int_equal(open_set(path, &g, &e), code);
    assert_null(g);
    check_error(&e, code, pos, text);
    for (int i = 0; i < PARTS; i++) blob_free(&part[i]);
}

enum {
    NO_POS = 24 + 8 + 8 + 4,
    COUNT_POS = NO_POS + 2 + 8 + 11 + 4,
    TOTAL_POS = COUNT_POS + 2 + 8 + 19 + 4,
};

static void test_split_good(void **state)
{
    (void)state;
    struct gguf *g;
    struct err e;
    make_set();
    if (open_set(part_path[0], &g, &e)) fail_msg("%s", e.msg);
    assert_int_equal(gguf_n_shards(g), PARTS);
    assert_int_equal(gguf_n_tensors(g), PARTS);
    assert_int_equal(gguf_file_bytes(g), part[0].n + part[1].n + part[2].n);
    for (int i = 0; i < PARTS; i++) assert_string_equal(gguf_path(g, i), part_path[i]);
    const struct gguf_tensor *t = gguf_find_tensor(g, "three");
    assert_int_equal(t->shard, 2);
    assert_int_equal(t->offset + 32, part[2].n);
    uint64_t own = 9;
    assert_int_equal(gguf_get_u64(g, "own", &own, &e), OK);
    assert_int_equal(own, 0); /* the first part's keys */
    gguf_close(g);
    /* A set of one needs no name. */
    struct blob b = {0};
    make_part(&b, 0, 1, 1, "alone");
    gguf_close(open_good(&b));
    blob_free(&b);
    for (int i = 0; i < PARTS; i++) blob_free(&part[i]);
}

static void test_split_wrong_part(void **state)
{
    (void)state;
    make_set();
    bad_set(part_path[1], ERR_FORMAT, NO_POS,
            "this is part 2 of 3: open the first part, d/m-00001-of-00003.gguf");
    struct blob b = {0};
    make_part(&b, 2, 3, 3, "x");
    bad(&b, ERR_FORMAT, NO_POS, "its name ends in -00001-of-00003.gguf");
    make_part(&b, 0, 3, 3, "x");
    bad(&b, ERR_FORMAT, COUNT_POS, "its name must end in -00001-of-00003.gguf");
    make_part(&b, 3, 3, 3, "x");
    bad(&b, ERR_FORMAT, NO_POS, "part number 3 (from 0) of 3");
}

static void test_split_missing(void **state)
{
    (void)state;
    make_set();
    blob_free(&part[1]);
    bad_set(part_path[0], ERR_IO, ERR_NO_POS,
            "part 2 of 3 is missing: cannot open d/m-00002-of-00003.gguf: No such file");
}

static void test_split_mixed(void **state)
{
    (void)state;
    make_set();
    blob_free(&part[2]);
    make_part(&part[2], 1, PARTS, PARTS, "three");
    bad_set(part_path[0], ERR_FORMAT, NO_POS,
            "d/m-00003-of-00003.gguf, byte 44: this is part 2 of 3");
    make_set();
    blob_free(&part[2]);
    make_part(&part[2], 2, 4, PARTS, "three");
    bad_set(part_path[0], ERR_FORMAT, NO_POS, "this is part 3 of 4 by its own keys");
    make_set();
    blob_free(&part[1]);
    blob_head(&part[1], 3, 0, 0);
    bad_set(part_path[0], ERR_FORMAT, 0, "this is part 1 of 1 by its own keys");
    make_set();
    part[1].p[4] = 2;
    bad_set(part_path[0], ERR_FORMAT, NO_POS, "mixed up");
    make_set();
    part[1].p[0] = 'X';
    bad_set(part_path[0], ERR_FORMAT, 0, "d/m-00002-of-00003.gguf, byte 0: not a GGUF file");
}

static void test_split_totals(void **state)
{
    (void)state;
    make_set();
    blob_free(&part[0]);
    make_part(&part[0], 0, PARTS, 4, "one");
    bad_set(part_path[0], ERR_FORMAT, TOTAL_POS, "should have 4 tensors, its parts have 3");
    make_set();
    blob_free(&part[2]);
    make_part(&part[2], 2, PARTS, PARTS, "one");
    bad_set(part_path[0], ERR_FORMAT, TOTAL_POS + 4 + 8 + 3 + 4 + 4,
            "d/m-00003-of-00003.gguf, byte 125: tensor 'one' is there twice, at byte 125 of "
            "d/m-00001-of-00003.gguf");
}

/* ---- writer --------------------------------------------------------------------------------- */

static int exists(const char *path)
{
    struct stat st;
    return !stat(path, &st);
}

static struct gguf *open_file(const char *name)
{
    struct gguf *g;
    struct err e;
    err_clear(&e);
    if (gguf_open(in_dir(name), NULL, &g, &e)) fail_msg("%s", e.msg);
    return g;
}

static void write_small(const char *name)
{
    struct gguf_writer *w = gguf_writer_new();
    struct err e;
    err_clear(&e);
    gguf_put_str(w, "general.architecture", "test");
    gguf_put_u32(w, "u32", UINT32_MAX);
    gguf_put_u64(w, "u64", UINT64_MAX);
    gguf_put_i32(w, "i32", INT32_MIN);
    gguf_put_f32(w, "f32", -0.125f);
    gguf_put_bool(w, "bool", true);
    struct gguf_str strs[] = {{"a\0b", 3}, {"", 0}, {"long enough", 11}};
    gguf_put_strs(w, "strs", strs, 3);
    gguf_put_strs(w, "none", NULL, 0);
    gguf_put_array(w, "i16s", GGUF_I16, (const int16_t[]){1, -2, 3}, 3);
    gguf_put_array(w, "f64s", GGUF_F64, (const double[]){0.5, -1e300}, 2);
    gguf_put_array(w, "bools", GGUF_BOOL, (const uint8_t[]){1, 0, 7}, 3);
    gguf_put_tensor(w, "m", 0, 2, (const uint64_t[]){3, 5}, 60);
    gguf_put_tensor(w, "odd", 63, 1, (const uint64_t[]){5}, 7);
    gguf_put_tensor(w, "void", 63, 1, (const uint64_t[]){5}, 0);
    gguf_put_tensor(w, "h", 1, 4, (const uint64_t[]){1, 1, 1, 2}, 4);
    assert_int_equal(gguf_writer_begin(w, in_dir(name), &e), OK);
    float m[15];
    for (int i = 0; i < 15; i++) m[i] = (float)i;
    assert_int_equal(gguf_writer_data(w, m, 9, &e), OK); /* pieces of any size */
    assert_false(exists(in_dir(name)));
    assert_int_equal(gguf_writer_data(w, (char *)m + 9, 51, &e), OK);
    assert_int_equal(gguf_writer_data(w, "1234567", 7, &e), OK);
    assert_int_equal(gguf_writer_data(w, NULL, 0, &e), OK);
    assert_int_equal(gguf_writer_data(w, "\x01\x02\x03\x04", 4, &e), OK);
    assert_int_equal(gguf_writer_end(w, &e), OK);
    gguf_writer_close(w);
}

static void check_written(const struct gguf *g)
{
    struct err e;
    uint64_t u, cursor = 0;
    float f;
    bool b;
    err_clear(&e);
    assert_int_equal(gguf_version(g), 3);
    assert_int_equal(gguf_get_u64(g, "u32", &u, &e), OK);
    assert_true(u == UINT32_MAX);
    assert_int_equal(gguf_get_u64(g, "u64", &u, &e), OK);
    assert_true(u == UINT64_MAX);
    assert_true(gguf_elem_i64(&gguf_find(g, "i32")->value, 0) == INT32_MIN);
    assert_int_equal(gguf_get_f32(g, "f32", &f, &e), OK);
    assert_true(f == -0.125f);
    assert_int_equal(gguf_get_bool_or(g, "bool", false, &b, &e), OK);
    assert_true(b);
    const struct gguf_value *v = &gguf_find(g, "strs")->value;
    struct gguf_str s = gguf_elem_next_str(v, &cursor);
    assert_int_equal(s.n, 3);
    assert_memory_equal(s.s, "a\0b", 3);
    assert_int_equal(gguf_elem_next_str(v, &cursor).n, 0);
    assert_int_equal(gguf_elem_next_str(v, &cursor).n, 11);
    assert_int_equal(gguf_find(g, "none")->value.n, 0);
    v = &gguf_find(g, "i16s")->value;
    assert_true(v->n == 3 && gguf_elem_i64(v, 1) == -2 && gguf_elem_i64(v, 2) == 3);
    assert_true(gguf_elem_f64(&gguf_find(g, "f64s")->value, 1) == -1e300);
    v = &gguf_find(g, "bools")->value;
    assert_true(gguf_elem_u64(v, 2) == 1 && gguf_elem_u64(v, 1) == 0);
}

static void test_writer(void **state)
{
    (void)state;
    write_small("w.gguf");
    struct gguf *g = open_file("w.gguf");
    check_written(g);
    const struct gguf_tensor *t = gguf_find_tensor(g, "m");
    assert_true(t->n_dims == 2 && t->dim[0] == 3 && t->dim[1] == 5 && t->bytes == 60);
    struct osfile file;
    float m[15];
    assert_int_equal(osfile_open(&file, in_dir("w.gguf"), 0, NULL, NULL), OK);
    assert_int_equal(osfile_read(&file, m, sizeof m, t->offset, NULL), OK);
    for (int i = 0; i < 15; i++) assert_true(m[i] == (float)i);
    char seven[7];
    assert_int_equal(osfile_read(&file, seven, 7, gguf_find_tensor(g, "odd")->offset, NULL), OK);
    assert_memory_equal(seven, "1234567", 7);
    t = gguf_find_tensor(g, "h");
    assert_true(t->n_dims == 4 && t->dim[3] == 2 && t->bytes == 4);
    assert_int_equal(osfile_read(&file, seven, 4, t->offset, NULL), OK);
    assert_memory_equal(seven, "\x01\x02\x03\x04", 4);
    assert_int_equal(file.size % 32, 0);
    osfile_close(&file);
    gguf_close(g);
    assert_false(exists(in_dir("w.gguf.part")));
    unlink(in_dir("w.gguf"));
}

static void same_value(const struct gguf_kv *a, const struct gguf_kv *b)
{
    assert_int_equal(a->key.n, b->key.n);
    assert_memory_equal(a->key.s, b->key.s, a->key.n);
    assert_int_equal(a->value.type, b->value.type);
    assert_int_equal(a->value.elem, b->value.elem);
    assert_true(a->value.n == b->value.n && a->value.bytes == b->value.bytes);
    if (a->value.bytes) assert_memory_equal(a->value.data, b->value.data, a->value.bytes);
}

/* Every type through the reader, the writer's copy, and the reader again. */
static void test_copy_every_type(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_small(&b);
    struct gguf *g = open_good(&b);
    struct gguf_writer *w = gguf_writer_new();
    struct err e;
    err_clear(&e);
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) gguf_put_kv(w, gguf_kv_at(g, i));
    assert_int_equal(gguf_writer_begin(w, in_dir("c.gguf"), &e), OK);
    assert_int_equal(gguf_writer_end(w, &e), OK);
    gguf_writer_close(w);
    struct gguf *copy = open_file("c.gguf");
    assert_int_equal(gguf_n_kv(copy), gguf_n_kv(g));
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) same_value(gguf_kv_at(g, i), gguf_kv_at(copy, i));
    gguf_close(copy);
    gguf_close(g);
    blob_free(&b);
    unlink(in_dir("c.gguf"));
}

static void test_array_of_every_type(void **state)
{
    (void)state;
    static const enum gguf_type types[] = {GGUF_U8,  GGUF_I8,  GGUF_U16, GGUF_I16, GGUF_U32,
                                           GGUF_I32, GGUF_F32, GGUF_U64, GGUF_I64, GGUF_F64,
                                           GGUF_BOOL};
    static const int bytes[] = {1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 1};
    uint8_t data[40];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 37 + 1);
    struct gguf_writer *w = gguf_writer_new();
    struct err e;
    err_clear(&e);
    uint8_t bools[5] = {1, 0, 0, 1, 1};
    for (int i = 0; i < 11; i++)
        gguf_put_array(w, gguf_type_name(types[i]), types[i],
                       types[i] == GGUF_BOOL ? bools : data, 5);
    assert_int_equal(gguf_writer_begin(w, in_dir("a.gguf"), &e), OK);
    assert_int_equal(gguf_writer_end(w, &e), OK);
    gguf_writer_close(w);
    struct gguf *g = open_file("a.gguf");
    for (int i = 0; i < 11; i++) {
        const struct gguf_value *v = &gguf_find(g, gguf_type_name(types[i]))->value;
        assert_true(v->elem == types[i] && v->n == 5 && v->bytes == 5 * (uint64_t)bytes[i]);
        assert_memory_equal(v->data, types[i] == GGUF_BOOL ? bools : data, v->bytes);
    }
    int32_t want;
    memcpy(&want, data + 8, 4);
    assert_true(gguf_elem_i64(&gguf_find(g, "i32")->value, 2) == want);
    gguf_close(g);
    unlink(in_dir("a.gguf"));
}

static void test_writer_alignment(void **state)
{
    (void)state;
    struct gguf_writer *w = gguf_writer_new();
    struct err e;
    err_clear(&e);
    gguf_put_u32(w, "general.alignment", 1024);
    gguf_put_tensor(w, "a", 0, 1, (const uint64_t[]){1}, 4);
    gguf_put_tensor(w, "b", 0, 1, (const uint64_t[]){1}, 4);
    assert_int_equal(gguf_writer_begin(w, in_dir("l.gguf"), &e), OK);
    assert_int_equal(gguf_writer_data(w, "aaaa", 4, &e), OK);
    assert_int_equal(gguf_writer_data(w, "bbbb", 4, &e), OK);
    assert_int_equal(gguf_writer_end(w, &e), OK);
    gguf_writer_close(w);
    struct gguf *g = open_file("l.gguf");
    assert_int_equal(gguf_find_tensor(g, "a")->offset, 1024);
    assert_int_equal(gguf_find_tensor(g, "b")->offset, 2048);
    gguf_close(g);
    unlink(in_dir("l.gguf"));
}

/* What begin says about a writer that was fed something wrong. */
static void bad_writer(struct gguf_writer *w, enum status code, const char *text)
{
    struct err e;
    err_clear(&e);
    assert_int_equal(gguf_writer_begin(w, in_dir("b.gguf"), &e), code);
    check_error(&e, code, ERR_NO_POS, text);
    gguf_writer_close(w);
    assert_false(exists(in_dir("b.gguf")));
    assert_false(exists(in_dir("b.gguf.part")));
}

static void test_writer_bad_puts(void **state)
{
    (void)state;
    const uint64_t d[5] = {32, 2, 1, 1, 1}, zero[1] = {0}, odd[1] = {33};
    const uint64_t huge[2] = {UINT64_C(1) << 62, 4};
    struct gguf_writer *w = gguf_writer_new();
    gguf_put_u32(w, "k", 1);
    gguf_put_str(w, "k", "again");
    bad_writer(w, ERR_RANGE, "key 'k' was put twice");
    w = gguf_writer_new();
    gguf_put_tensor(w, "t", 0, 1, d, 128);
    gguf_put_tensor(w, "t", 0, 1, d, 128);
    bad_writer(w, ERR_RANGE, "tensor 't' was put twice");
    w = gguf_writer_new();
    gguf_put_u32(w, "", 1);
    bad_writer(w, ERR_RANGE, "must have 1 to 65535 bytes, not 0");
    w = gguf_writer_new();
    gguf_put_array(w, "k", GGUF_STRING, NULL, 0);
    bad_writer(w, ERR_RANGE, "an array of string cannot be put like this");
    w = gguf_writer_new();
    gguf_put_u32(w, "general.alignment", 24);
    bad_writer(w, ERR_RANGE, "power of two");
    w = gguf_writer_new();
    gguf_put_tensor(w, "t", 0, 1, d, 128);
    gguf_put_u32(w, "general.alignment", 64);
    bad_writer(w, ERR_RANGE, "before any tensor");
    const struct {
        uint32_t type;
        int n_dims;
        const uint64_t *dim;
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, 1, d, 127, "bytes do not suit"}, {0, 1, d, 0, "bytes do not suit"},
        {0, 0, d, 4, "1 to 4 dim"},          {0, 5, d, 256, "1 to 4 dim"},
        {0, 1, zero, 0, "dimension is 0"},   {2, 1, odd, 18, "multiple of the block"},
        {63, 2, huge, 8, "too large"},       {63, 1, d, UINT64_MAX, "too many bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        w = gguf_writer_new();
        gguf_put_tensor(w, "t", cases[i].type, cases[i].n_dims, cases[i].dim, cases[i].bytes);
        gguf_put_u32(w, "", 1); /* the first failure is the one reported */
        bad_writer(w, ERR_SHAPE, cases[i].text);
    }
}

static void test_writer_bad_data(void **state)
{
    (void)state;
    struct err e;
    for (int more = 0; more < 2; more++) {
        struct gguf_writer *w = gguf_writer_new();
        err_clear(&e);
        gguf_put_tensor(w, "ten", 0, 1, (const uint64_t[]){2}, 8);
        assert_int_equal(gguf_writer_begin(w, in_dir("b.gguf"), &e), OK);
        if (more) {
            assert_int_equal(gguf_writer_data(w, "123456789", 9, &e), ERR_RANGE);
            check_error(&e, ERR_RANGE, ERR_NO_POS, "more data than tensor 0 has");
        } else {
            assert_int_equal(gguf_writer_data(w, "123456", 6, &e), OK);
            assert_int_equal(gguf_writer_end(w, &e), ERR_RANGE);
            check_error(&e, ERR_RANGE, ERR_NO_POS, "tensor 'ten' has 6 of 8 bytes");
        }
        gguf_writer_close(w);
        assert_false(exists(in_dir("b.gguf")));
        assert_false(exists(in_dir("b.gguf.part")));
    }
    gguf_writer_close(NULL);
}

static void test_writer_no_folder(void **state)
{
    (void)state;
    struct gguf_writer *w = gguf_writer_new();
    struct err e;
    err_clear(&e);
    assert_int_equal(gguf_writer_begin(w, "/no/such/folder/x.gguf", &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "cannot write /no/such/folder/x.gguf: No such file");
    gguf_writer_close(w);
}

/* A failed write keeps what was there before. */
static void test_writer_keeps_old(void **state)
{
    (void)state;
    write_small("k.gguf");
    struct gguf_writer *w = gguf_writer_new();
    gguf_put_tensor(w, "t", 0, 1, (const uint64_t[]){2}, 8);
    assert_int_equal(gguf_writer_begin(w, in_dir("k.gguf"), NULL), OK);
    assert_true(exists(in_dir("k.gguf.part")));
    gguf_writer_close(w);
    assert_false(exists(in_dir("k.gguf.part")));
    struct gguf *g = open_file("k.gguf");
    check_written(g);
    gguf_close(g);
    unlink(in_dir("k.gguf"));
}

static void test_full_disk(void **state)
{
    (void)state;
    if (!exists("/dev/full")) skip();
    struct err e;
    for (int k = 0; k < 3; k++) { /* fails in data, or only at the end */
        struct gguf_writer *w = gguf_writer_new();
        const int big = k == 1;
        const uint64_t n = big ? 1 << 20 : k ? 1000 : 4;
        char *data = calloc(1, (size_t)n);
        err_clear(&e);
        gguf_put_tensor(w, "t", 0, 1, (const uint64_t[]){n / 4}, n);
        assert_int_equal(gguf_writer_begin(w, "/dev/full", &e), OK);
        gguf_writer_keep(w, k == 2 ? 1000 : 0);
        assert_int_equal(gguf_writer_data(w, data, n, &e), big ? ERR_IO : OK);
        assert_int_equal(gguf_writer_end(w, &e), ERR_IO);
        check_error(&e, ERR_IO, ERR_NO_POS, "cannot write /dev/full: No space left on device");
        gguf_writer_close(w);
        free(data);
    }
    assert_true(exists("/dev/full"));
}

/* ---- the cursor ----------------------------------------------------------------------------- */

static void test_cursor(void **state)
{
    (void)state;
    static const uint8_t bytes[15] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    struct cursor c;
    cursor_init(&c, bytes, sizeof bytes);
    assert_int_equal(cursor_u8(&c), 1);
    assert_int_equal(cursor_u16(&c), 0x0302);
    assert_int_equal(cursor_u32(&c), 0x07060504);
    assert_true(cursor_u64(&c) == UINT64_C(0x0f0e0d0c0b0a0908));
    assert_int_equal(cursor_left(&c), 0);
    assert_false(c.failed);
    assert_true(cursor_skip(&c, 0));
    assert_int_equal(cursor_u8(&c), 0);
    assert_true(c.failed && c.fail_pos == 15 && c.fail_need == 1);
    assert_false(cursor_skip(&c, 0)); /* sticks */
    assert_false(cursor_need(&c, UINT64_MAX));
    assert_true(c.fail_need == 1 && c.pos == 15);
    cursor_init(&c, bytes, sizeof bytes);
    assert_false(cursor_skip(&c, UINT64_MAX));
    assert_int_equal(c.pos, 0);
}

/* ---- real files ----------------------------------------------------------------------------- */

/* Keys, tensors and tokens as the Python package gguf 0.19 reads them; hashes are FNV-1a over
 * {name, dims, offset, bytes} of the tensors and over {text, 0} of the tokens. */
static const struct {
    const char *path;
    uint64_t n_kv, n_tensors, tensors_hash, n_tokens, tokens_hash;
} real[] = {
{"architectures/deepseek2-moe.gguf", 27, 33,
     UINT64_C(0x97f8607b7e316715), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/glm4moe-moe.gguf", 24, 36,
     UINT64_C(0xda5d0c6ae98d2142), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/gpt-oss-moe.gguf", 21, 41,
     UINT64_C(0x689506a4fa6c7dda), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/llada-moe-moe.gguf", 20, 27,
     UINT64_C(0xb983ce125f2dff28), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/llama-dense.gguf", 17, 27,
     UINT64_C(0x922eda87616eb121), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/llama-moe.gguf", 19, 23,
     UINT64_C(0x7fe6988edebec122), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/olmoe-moe.gguf", 19, 27,
     UINT64_C(0xe8597a04f55613cd), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/qwen2moe-moe.gguf", 20, 37,
     UINT64_C(0x38674be0cbc1e532), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/qwen35moe-moe.gguf", 27, 36,
     UINT64_C(0x5f69419436059d5c), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/qwen3moe-moe.gguf", 20, 27,
     UINT64_C(0xb983ce125f2dff28), 0, UINT64_C(0xcbf29ce484222325)},
    {"architectures/qwen3next-moe.gguf", 26, 36,
     UINT64_C(0x041a37a3ac357246), 0, UINT64_C(0xcbf29ce484222325)},
    {"tokenizers/ggml-vocab-deepseek-llm.gguf", 23, 0,
     UINT64_C(0xcbf29ce484222325), 102400, UINT64_C(0x80f01ac7c6a591f4)},
    {"tokenizers/ggml-vocab-gpt-2.gguf", 16, 0,
     UINT64_C(0xcbf29ce484222325), 50257, UINT64_C(0x9afb947b6443b4b9)},
    {"tokenizers/ggml-vocab-llama-spm.gguf", 22, 0,
     UINT64_C(0xcbf29ce484222325), 32000, UINT64_C(0xd0ffd146db872a00)},
    {"tokenizers/ggml-vocab-o200k.gguf", 18, 0,
     UINT64_C(0xcbf29ce484222325), 201088, UINT64_C(0x81341764e69776a7)},
    {"tokenizers/ggml-vocab-phi-3.gguf", 26, 0,
     UINT64_C(0xcbf29ce484222325), 32064, UINT64_C(0xda0aee2fc0cc050b)},
    {"tokenizers/ggml-vocab-qwen2.gguf", 18, 0,
     UINT64_C(0xcbf29ce484222325), 151936, UINT64_C(0x262ebf32b0ed0773)},
};

static uint64_t fnv(uint64_t h, const void *data, uint64_t n)
{
    const uint8_t *p = data;
    for (uint64_t i = 0; i < n; i++) h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    return h;
}

static const uint64_t FNV_START = UINT64_C(0xcbf29ce484222325);

static uint64_t hash_tensors(const struct gguf *g)
{
    uint64_t h = FNV_START;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        h = fnv(h, t->name.s, t->name.n);
        h = fnv(h, t->dim, (uint64_t)t->n_dims * 8);
        h = fnv(h, &t->offset, 8);
        h = fnv(h, &t->bytes, 8);
    }
    return h;
}

static uint64_t hash_tokens(const struct gguf *g, uint64_t *n)
{
    uint64_t h = FNV_START, cursor = 0;
    const struct gguf_kv *kv = gguf_find(g, "tokenizer.ggml.tokens");
    struct gguf_str s;
    for (*n = 0; kv && (s = gguf_elem_next_str(&kv->value, &cursor)).s; ++*n) {
        h = fnv(h, s.s, s.n);
        h = fnv(h, "", 1);
    }
    return h;
}

static void test_real_files(void **state)
{
    (void)state;
    const char *shared = getenv("TESSERA_SHARED");
    if (!shared) shared = "../shared";
    for (size_t i = 0; i < sizeof real / sizeof *real; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/reference/%s", shared, real[i].path);
        if (!exists(path)) {
            print_message("skipped: %s is not there\n", path);
            if (!i) skip();
            continue;
        }
        struct gguf *g;
        struct err e;
        err_clear(&e);
        if (gguf_open(path, NULL, &g, &e)) fail_msg("%s", e.msg);
        uint64_t n_tokens, tokens_hash = hash_tokens(g, &n_tokens);
        assert_int_equal(gguf_n_kv(g), real[i].n_kv);
        assert_int_equal(gguf_n_tensors(g), real[i].n_tensors);
        assert_true(hash_tensors(g) == real[i].tensors_hash);
        assert_int_equal(n_tokens, real[i].n_tokens);
        assert_true(tokens_hash == real[i].tokens_hash);
        gguf_close(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_empty_file_of_a_model),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_type_names),
        cmocka_unit_test(test_getters),
        cmocka_unit_test(test_getter_errors),
        cmocka_unit_test(test_f64_out_of_f32),
        cmocka_unit_test(test_long_tensor_name),
        cmocka_unit_test(test_unknown_tensor_type),
        cmocka_unit_test(test_alignment_of_data),
        cmocka_unit_test(test_big_header),
        cmocka_unit_test(test_reads_header_only),
        cmocka_unit_test(test_not_gguf),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_header_limit),
        cmocka_unit_test(test_key_names),
        cmocka_unit_test(test_value_types),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_bools),
        cmocka_unit_test(test_duplicate_keys),
        cmocka_unit_test(test_bad_alignment),
        cmocka_unit_test(test_names_are_printable),
        cmocka_unit_test(test_tensor_dims),
        cmocka_unit_test(test_tensor_offsets),
        cmocka_unit_test(test_tensor_overlap),
        cmocka_unit_test(test_duplicate_tensors),
        cmocka_unit_test(test_truncated_everywhere),
        cmocka_unit_test(test_bigger_truncated),
        cmocka_unit_test(test_read_errors),
        cmocka_unit_test(test_open_errors),
        cmocka_unit_test(test_long_path),
        cmocka_unit_test(test_split_good),
        cmocka_unit_test(test_split_wrong_part),
        cmocka_unit_test(test_split_missing),
        cmocka_unit_test(test_split_mixed),
        cmocka_unit_test(test_split_totals),
        cmocka_unit_test(test_writer),
        cmocka_unit_test(test_copy_every_type),
        cmocka_unit_test(test_array_of_every_type),
        cmocka_unit_test(test_writer_alignment),
        cmocka_unit_test(test_writer_bad_puts),
        cmocka_unit_test(test_writer_bad_data),
        cmocka_unit_test(test_writer_no_folder),
        cmocka_unit_test(test_writer_keeps_old),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_cursor),
        cmocka_unit_test(test_real_files),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
