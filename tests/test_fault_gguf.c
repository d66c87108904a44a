/* Fails every allocation, read and write of the GGUF reader and writer, one after the other, and
 * demands each time: a clean error, no leak (heap blocks and file descriptors are counted), no
 * file left aside.  Needs FAULT_LINK (tests/fault.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/fault.h"

#include "moe/load/gguf.h"
#include "tests/ggufblob.h"

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/test_fault.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir); /* fails when a file was left behind */
}

static void in_dir(char path[160], const char *name) { snprintf(path, 160, "%s/%s", dir, name); }

static void save(const char *name, const struct blob *b)
{
    char path[160];
    in_dir(path, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(b->p, 1, b->n, f), b->n);
    fclose(f);
}

static void erase(const char *name)
{
    char path[160];
    in_dir(path, name);
    assert_int_equal(unlink(path), 0);
}

/* The lowest free descriptor: the same before and after, or one has leaked. */
static int lowest_fd(void)
{
    int fd = dup(STDERR_FILENO);
    close(fd);
    return fd;
}

/* Opens name with every call failing once; returns how many calls there were. */
static int open_failing(const char *name)
{
    char path[160];
    in_dir(path, name);
    for (int n = 1;; n++) {
        struct err e;
        struct gguf *g = (struct gguf *)&e;
        err_clear(&e);
        long blocks = fault_living();
        int fd = lowest_fd();
        fault_arm(FAULT_ALL, n);
        enum status s = gguf_open(path, NULL, &g, n % 2 ? &e : NULL);
        int failed = fault_disarm();
        assert_int_equal(s == OK, g != NULL);
        assert_true(failed || s == OK); /* the shrinking realloc may fail: nothing is lost */
        assert_true(s == OK || s == ERR_MEMORY || s == ERR_IO);
        assert_true(!(n % 2) || (e.code == s && (s == OK || e.msg[0])));
        gguf_close(g);
        assert_int_equal(fault_living(), blocks);
        assert_int_equal(lowest_fd(), fd);
        if (!failed) return n - 1;
    }
}

static void test_open_small(void **state)
{
    (void)state;
    struct blob b = {0};
    blob_small(&b);
    save("s.gguf", &b);
    assert_true(open_failing("s.gguf") >= 9);
    erase("s.gguf");
    blob_free(&b);
}

static void test_open_bigger(void **state)
{
    (void)state;
    struct blob b = {0};
    char name[32];
    blob_head(&b, 3, 200, 1);
    blob_array(&b, "k", GGUF_U8, 600 << 10);
    blob_zeros(&b, 600 << 10);
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "t%d", i);
        blob_tensor(&b, name, 8, 0, (uint64_t)i * 32);
    }
    blob_pad(&b, 32);
    blob_zeros(&b, 6400);
    save("b.gguf", &b);
    assert_true(open_failing("b.gguf") >= 14);
    erase("b.gguf");
    blob_free(&b);
}

static void test_open_split(void **state)
{
    (void)state;
    static const char *const names[] = {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"};
    for (uint64_t i = 0; i < 2; i++) {
        struct blob b = {0};
        blob_head(&b, 3, 1, 2);
        blob_kv_int(&b, "split.no", GGUF_U16, i);
        blob_kv_int(&b, "split.count", GGUF_U16, 2);
        blob_tensor(&b, i ? "b" : "a", 8, 0, 0);
        blob_pad(&b, 32);
        blob_zeros(&b, 32);
        save(names[i], &b);
        blob_free(&b);
    }
    assert_true(open_failing(names[0]) >= 18);
    for (int i = 0; i < 2; i++) erase(names[i]);
}

static enum status write_model(const char *path, struct err *e)
{
    struct gguf_writer *w = gguf_writer_new();
    if (!w) return err_set(e, ERR_MEMORY, "no memory");
    char key[32];
    for (int i = 0; i < 100; i++) {
        snprintf(key, sizeof key, "key.%d", i);
        gguf_put_u32(w, key, (uint32_t)i);
    }
    gguf_put_strs(w, "strs", &(struct gguf_str){"text", 4}, 1);
    gguf_put_array(w, "nums", GGUF_U16, (const uint16_t[]){1, 2}, 2);
    gguf_put_tensor(w, "a", 0, 1, (const uint64_t[]){1}, 4);
    gguf_put_tensor(w, "b", 0, 1, (const uint64_t[]){1}, 4);
    enum status s = gguf_writer_begin(w, path, e);
    if (!s) s = gguf_writer_data(w, "aaaa", 4, e);
    if (!s) s = gguf_writer_data(w, "bbbb", 4, e);
    if (!s) s = gguf_writer_end(w, e);
    gguf_writer_close(w);
    return s;
}

static void test_write(void **state)
{
    (void)state;
    char path[160], aside[160];
    struct stat st;
    in_dir(path, "w.gguf");
    in_dir(aside, "w.gguf.part");
    for (int n = 1;; n++) {
        struct err e;
        err_clear(&e);
        long blocks = fault_living();
        int fd = lowest_fd();
        fault_arm(FAULT_ALL, n);
        enum status s = write_model(path, &e);
        int failed = fault_disarm();
        assert_int_equal(fault_living(), blocks);
        assert_int_equal(lowest_fd(), fd);
        assert_true(s == e.code && (s == OK || s == ERR_MEMORY || s == ERR_IO));
        assert_int_equal(failed, s != OK);
        assert_int_equal(stat(aside, &st), -1);
        assert_int_equal(stat(path, &st), failed ? -1 : 0);
        if (!failed) break;
        assert_true(n < 1000);
    }
    struct gguf *g;
    assert_int_equal(gguf_open(path, NULL, &g, NULL), OK);
    assert_int_equal(gguf_n_kv(g), 102);
    gguf_close(g);
    erase("w.gguf");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_small),
        cmocka_unit_test(test_open_bigger),
        cmocka_unit_test(test_open_split),
        cmocka_unit_test(test_write),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
