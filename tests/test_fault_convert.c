/* Fails every allocation, read, write, mapping and thread of a conversion, one after the other, and
 * demands each time: a clean error, no leak (heap blocks and file descriptors are counted), no file
 * left behind.  Also: shards cut off at any place, and a full disk.  Needs FAULT_LINK
 * (tests/fault.h). */
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

#include "quant/build/convert.h"

static char dir[64] = "/tmp/tessera-fault-XXXXXX";
static char out[96], aside[104];

static int make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir)) return -1;
    (void)snprintf(out, sizeof out, "%s/out.gguf", dir);
    (void)snprintf(aside, sizeof aside, "%s.part", out);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir); /* fails when a file was left behind */
}

static enum status convert(const char *from, const char *to, const struct osfile_ops *ops,
                           struct err *e)
{
    struct convert c;
    struct pool *pool = NULL;
    const struct convert_options o = {.dir = from, .type = CONVERT_Q8_0, .ops = ops};
    err_clear(e);
    enum status s = convert_open(&c, &o, e);
    if (!s) s = pool_open(2, &pool, e);
    if (!s) s = convert_write(&c, to, pool, NULL, NULL, e);
    pool_close(pool);
    convert_close(&c);
    return s;
}

/* The lowest free descriptor: the same before and after, or one has leaked. */
static int lowest_fd(void)
{
    int fd = dup(STDERR_FILENO);
    close(fd);
    return fd;
}

/* Every call of the kinds once; returns how many there were. */
static int fail_each(const char *from, int kinds)
{
    struct stat st;
    for (int n = 1;; n++) {
        struct err e;
        const long blocks = fault_living();
        const int fd = lowest_fd();
        fault_arm(kinds, n);
        const enum status s = convert(from, out, NULL, &e);
        const int failed = fault_disarm();
        assert_int_equal(fault_living(), blocks);
        assert_int_equal(lowest_fd(), fd);
        assert_int_equal(s, e.code);
        assert_true(!s || e.msg[0]);
        assert_int_equal(stat(aside, &st), -1);
        assert_int_equal(stat(out, &st), s ? -1 : 0);
        if (!s) (void)unlink(out);
        /* cJSON's own allocations are not seen, so a failed call is always one of ours. */
        assert_true(failed ? s != OK : s == OK);
        if (!failed) return n - 1;
        assert_true(n < 20000);
    }
}

static void test_each(void **state)
{
    (void)state;
    assert_true(fail_each("tests/convert/llama2", FAULT_ALL) > 60);
    assert_true(fail_each("tests/convert/deepseek3", FAULT_ALL) > 100);
    assert_true(fail_each("tests/convert/gpt-oss", FAULT_ALL) > 60);
}

/* ---- shards cut off ---- */

static uint64_t cut; /* the first shard ends here, for whoever asks */
static int cut_fd = -1;

static int cut_open(const char *path, int direct)
{
    int fd = osfile_system.open(path, direct);
    if (fd >= 0 && strstr(path, "model-00001")) cut_fd = fd;
    return fd;
}

static int64_t cut_pread(int fd, void *buf, size_t n, uint64_t offset)
{
    if (fd != cut_fd) return osfile_system.pread(fd, buf, n, offset);
    if (offset >= cut) return 0;
    if (n > cut - offset) n = (size_t)(cut - offset);
    return osfile_system.pread(fd, buf, n, offset);
}

static int cut_close(int fd)
{
    if (fd == cut_fd) cut_fd = -1;
    return osfile_system.close(fd);
}

static int64_t cut_size(int fd)
{
    int64_t n = osfile_system.size(fd);
    return fd == cut_fd && (uint64_t)n > cut ? (int64_t)cut : n;
}

/* The file has its size, but reading ends early: it shrank after it was opened. */
static int64_t whole_size(int fd) { return osfile_system.size(fd); }

static void test_cut(void **state)
{
    (void)state;
    struct stat st;
    struct err e;
    struct osfile_ops ops = osfile_system;
    assert_int_equal(stat("tests/convert/llama3/model-00001-of-00003.safetensors", &st), 0);
    ops.open = cut_open;
    ops.pread = cut_pread;
    ops.close = cut_close;
    for (int shrank = 0; shrank < 2; shrank++) {
        ops.size = shrank ? whole_size : cut_size;
        for (cut = 0; cut < (uint64_t)st.st_size; cut += cut < 1200 ? 7 : 997) {
            const enum status s = convert("tests/convert/llama3", out, &ops, &e);
            assert_true(s == ERR_FORMAT || s == ERR_IO);
            assert_non_null(strstr(e.msg, "model-00001"));
            assert_int_equal(access(out, F_OK), -1);
            assert_int_equal(access(aside, F_OK), -1);
        }
        assert_int_equal(convert("tests/convert/llama3", out, &ops, &e), OK);
        (void)unlink(out);
    }
}

static void test_full_disk(void **state)
{
    (void)state;
    struct err e;
    assert_int_equal(convert("tests/convert/qwen3", "/dev/full", NULL, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "No space"));
    assert_int_equal(convert("tests/convert/qwen3", "/dev/null/x.gguf", NULL, &e), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
