/* Tests of moe/base/osfile.c and err.c: opening what is and what is not a file, exact reads under
 * short and interrupted ones, writing aside, full disks; the first failure wins. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/memfile.h"

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/test_osfile.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir); /* fails when a test left a file behind */
}

static const char *in_dir(const char *name)
{
    static char path[2][192];
    static int turn;
    turn ^= 1;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static int exists(const char *path)
{
    struct stat st;
    return !stat(path, &st);
}

static void save(const char *name, const void *data, size_t n)
{
    FILE *f = fopen(in_dir(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

static void check_error(const struct err *e, enum status code, uint64_t pos, const char *text)
{
    if (e->code == code && e->pos == pos && strstr(e->msg, text)) return;
    fail_msg("code %d at %llu: %s", (int)e->code, (unsigned long long)e->pos, e->msg);
}

/* ---- err ------------------------------------------------------------------------------------ */

static void test_err_first_wins(void **state)
{
    (void)state;
    struct err e;
    err_clear(&e);
    assert_int_equal(e.code, OK);
    assert_true(e.pos == ERR_NO_POS && !e.msg[0]);
    assert_int_equal(err_set_at(&e, ERR_FORMAT, 7, "first %d", 1), ERR_FORMAT);
    assert_int_equal(err_set(&e, ERR_IO, "second"), ERR_IO); /* returned, not recorded */
    check_error(&e, ERR_FORMAT, 7, "first 1");
    err_clear(&e);
    assert_int_equal(err_set(&e, ERR_IO, "third"), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "third");
    assert_int_equal(err_set(NULL, ERR_SHAPE, "x"), ERR_SHAPE);
    assert_int_equal(err_set_at(NULL, ERR_SHAPE, 1, "x"), ERR_SHAPE);
    err_clear(NULL);
}

static void test_err_long_message(void **state)
{
    (void)state;
    struct err e;
    char text[2000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    err_clear(&e);
    (void)err_set(&e, ERR_IO, "%s", text);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
}

static void test_err_names(void **state)
{
    (void)state;
    for (int i = OK; i <= ERR_USAGE; i++) {
        const char *name = err_name((enum status)i);
        assert_true(name[0] && strcmp(name, "unknown"));
        for (int k = OK; k < i; k++) assert_string_not_equal(name, err_name((enum status)k));
    }
    assert_string_equal(err_name((enum status)99), "unknown");
}

/* ---- opening -------------------------------------------------------------------------------- */

static void test_open(void **state)
{
    (void)state;
    struct osfile f;
    struct err e;
    char buf[6] = {0};
    err_clear(&e);
    save("a", "hello", 5);
    assert_int_equal(osfile_open(&f, in_dir("a"), 0, NULL, &e), OK);
    assert_int_equal(f.size, 5);
    assert_int_equal(f.direct, 0);
    assert_string_equal(f.path, in_dir("a"));
    assert_int_equal(fcntl(f.fd, F_GETFL) & O_NONBLOCK, 0);
    assert_true(fcntl(f.fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(osfile_read(&f, buf, 3, 1, &e), OK);
    assert_string_equal(buf, "ell");
    assert_int_equal(osfile_read(&f, buf, 0, 99, &e), OK);
    f.ops->drop(f.fd, 0, f.size);
    osfile_close(&f);
    osfile_close(&f); /* again is harmless */
    assert_int_equal(f.fd, -1);
    unlink(in_dir("a"));
}

static void test_open_not_a_file(void **state)
{
    (void)state;
    struct osfile f;
    struct err e;
    err_clear(&e);
    assert_int_equal(osfile_open(&f, "/no/such", 0, NULL, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "cannot open /no/such: No such file");
    assert_null(f.path);
    assert_int_equal(f.fd, -1);
    osfile_close(&f); /* after a failure too */
    err_clear(&e);
    assert_int_equal(osfile_open(&f, dir, 0, NULL, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "it is a directory");
    err_clear(&e);
    assert_int_equal(osfile_open(&f, "/dev/null", OSFILE_DIRECT, NULL, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "it is not a regular file");
    /* A pipe that nobody writes to must not hang us. */
    err_clear(&e);
    assert_int_equal(mkfifo(in_dir("pipe"), 0600), 0);
    assert_int_equal(osfile_open(&f, in_dir("pipe"), 0, NULL, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "it is not a regular file");
    unlink(in_dir("pipe"));
}

/* O_DIRECT where the file system has it, else buffered: the bytes are the same. */
static void test_open_direct(void **state)
{
    (void)state;
    struct osfile f;
    struct err e;
    err_clear(&e);
    unsigned char *data = aligned_alloc(OSFILE_ALIGN, 4 * OSFILE_ALIGN);
    unsigned char *back = aligned_alloc(OSFILE_ALIGN, 4 * OSFILE_ALIGN);
    for (int i = 0; i < 4 * OSFILE_ALIGN; i++) data[i] = (unsigned char)(i * 31 + i / 4096);
    save("d", data, 4 * OSFILE_ALIGN);
    assert_int_equal(osfile_open(&f, in_dir("d"), OSFILE_DIRECT, NULL, &e), OK);
    print_message("direct reads: %s\n", f.direct ? "yes" : "no, buffered");
    assert_int_equal((fcntl(f.fd, F_GETFL) & O_DIRECT) != 0, f.direct);
    assert_int_equal(osfile_read(&f, back, 2 * OSFILE_ALIGN, OSFILE_ALIGN, &e), OK);
    assert_memory_equal(back, data + OSFILE_ALIGN, 2 * OSFILE_ALIGN);
    osfile_close(&f);
    free(data);
    free(back);
    unlink(in_dir("d"));
}

/* What the page cache holds is copied, what it does not hold is neither read nor brought into it.
 * A kernel before 6.5 always says no. */
static void test_peek(void **state)
{
    (void)state;
    enum { BYTES = 40000 };
    struct osfile f;
    struct err e;
    unsigned char *data = malloc(BYTES), *back = malloc(BYTES);
    for (int i = 0; i < BYTES; i++) data[i] = (unsigned char)(i * 31 + i / 4096);
    save("d", data, BYTES);
    assert_int_equal(osfile_open(&f, in_dir("d"), OSFILE_RANDOM, NULL, &e), OK);
    const int64_t got = f.ops->peek(f.fd, back, 20001, 777);
    print_message("page cache: %s\n", got > 0 ? "can be asked" : "cannot be asked");
    if (got > 0) {
        assert_int_equal(got, 20001);
        assert_memory_equal(back, data + 777, 20001);
        assert_int_equal(f.ops->peek(f.fd, back, BYTES, 1), -EAGAIN); /* past the end */
        assert_int_equal(f.ops->peek(f.fd, back, 0, 0), -EAGAIN);
    } else {
        assert_int_equal(got, -EAGAIN);
    }
    assert_int_equal(fsync(f.fd), 0);
    f.ops->drop(f.fd, 0, BYTES);
    for (int i = 0; i < 3; i++) { /* the first one would have brought it back */
        const int64_t again = f.ops->peek(f.fd, back, BYTES, 0);
        if (again == BYTES) break; /* a file system that is nothing but page cache */
        assert_int_equal(again, -EAGAIN);
    }
    osfile_close(&f);
    free(data);
    free(back);
    unlink(in_dir("d"));
}

static int refuses_direct(const char *path, int how)
{
    return how == OSFILE_DIRECT ? -EINVAL : memfile_open(path, how);
}

static void test_direct_fallback(void **state)
{
    (void)state;
    struct osfile_ops ops = memfile_ops;
    struct osfile f;
    ops.open = refuses_direct;
    memfile_reset();
    memfile_add("f", "abc", 3, 3);
    assert_int_equal(osfile_open(&f, "f", OSFILE_DIRECT, &ops, NULL), OK);
    assert_int_equal(f.direct, 0);
    osfile_close(&f);
    struct err e;
    err_clear(&e);
    assert_int_equal(osfile_open(&f, "g", OSFILE_DIRECT, &ops, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "cannot open g: No such file");
}

static int64_t size_fails(int fd)
{
    (void)fd;
    return -EIO;
}

static void test_size_op(void **state)
{
    (void)state;
    struct osfile_ops ops = memfile_ops;
    struct osfile f;
    struct err e;
    err_clear(&e);
    memfile_reset();
    memfile_add("f", "abc", 3, 1000);
    assert_int_equal(osfile_open(&f, "f", 0, &ops, &e), OK);
    assert_int_equal(f.size, 1000);
    osfile_close(&f);
    ops.size = size_fails;
    assert_int_equal(osfile_open(&f, "f", 0, &ops, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "cannot read f: Input/output error");
    assert_int_equal(memfile_io.opened, memfile_io.closed);
    ops = osfile_system;
    ops.size = NULL; /* then the system's */
    save("s", "12345678", 8);
    assert_int_equal(osfile_open(&f, in_dir("s"), 0, &ops, NULL), OK);
    assert_int_equal(f.size, 8);
    osfile_close(&f);
    unlink(in_dir("s"));
}

/* ---- reading -------------------------------------------------------------------------------- */

static void test_read_pieces(void **state)
{
    (void)state;
    static unsigned char data[10000], back[10000];
    struct osfile f;
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 7);
    for (uint64_t piece = 1; piece < 5000; piece = piece * 3 + 1) {
        memfile_reset();
        memfile_add("f", data, sizeof data, sizeof data);
        memfile_io.short_reads = piece;
        memfile_io.interrupt = 1;
        assert_int_equal(osfile_open(&f, "f", 0, &memfile_ops, NULL), OK);
        memset(back, 0, sizeof back);
        assert_int_equal(osfile_read(&f, back, sizeof back - 5, 5, NULL), OK);
        assert_memory_equal(back, data + 5, sizeof data - 5);
        osfile_close(&f);
    }
}

static void test_read_errors(void **state)
{
    (void)state;
    char buf[100];
    struct osfile f;
    struct err e;
    memfile_reset();
    memfile_add("f", "x", 1, 50);
    assert_int_equal(osfile_open(&f, "f", 0, &memfile_ops, NULL), OK);
    err_clear(&e);
    assert_int_equal(osfile_read(&f, buf, 41, 10, &e), ERR_IO);
    check_error(&e, ERR_IO, 50, "f ends at byte 50 where more was promised");
    memfile_io.fail_at = 30;
    memfile_io.short_reads = 7;
    err_clear(&e);
    assert_int_equal(osfile_read(&f, buf, 35, 10, &e), ERR_IO);
    assert_true(e.pos >= 10 && e.pos < 30);
    assert_non_null(strstr(e.msg, "cannot read f at byte"));
    assert_non_null(strstr(e.msg, "Input/output error"));
    osfile_close(&f);
}

/* ---- writing -------------------------------------------------------------------------------- */

static void test_write_aside(void **state)
{
    (void)state;
    struct osfile_writer w;
    struct osfile f;
    struct err e;
    char buf[4] = {0};
    err_clear(&e);
    save("w", "old", 3);
    assert_int_equal(osfile_writer_open(&w, in_dir("w"), &e), OK);
    assert_true(exists(in_dir("w.part")));
    assert_int_equal(fwrite("new", 1, 3, w.fp), 3);
    assert_int_equal(osfile_open(&f, in_dir("w"), 0, NULL, &e), OK); /* the old one still */
    assert_int_equal(osfile_read(&f, buf, 3, 0, &e), OK);
    assert_string_equal(buf, "old");
    osfile_close(&f);
    assert_int_equal(osfile_writer_commit(&w, &e), OK);
    assert_null(w.fp);
    assert_false(exists(in_dir("w.part")));
    assert_int_equal(osfile_open(&f, in_dir("w"), 0, NULL, &e), OK);
    assert_int_equal(osfile_read(&f, buf, 3, 0, &e), OK);
    assert_string_equal(buf, "new");
    osfile_close(&f);
    unlink(in_dir("w"));
}

static void test_write_abort(void **state)
{
    (void)state;
    struct osfile_writer w;
    assert_int_equal(osfile_writer_open(&w, in_dir("w"), NULL), OK);
    fputs("text", w.fp);
    osfile_writer_abort(&w);
    assert_false(exists(in_dir("w")));
    assert_false(exists(in_dir("w.part")));
    osfile_writer_abort(&w); /* again is harmless */
}

static void test_write_errors(void **state)
{
    (void)state;
    struct osfile_writer w;
    struct err e;
    err_clear(&e);
    assert_int_equal(osfile_writer_open(&w, "/no/such/file", &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "cannot write /no/such/file: No such file");
    osfile_writer_abort(&w);
    err_clear(&e);
    assert_int_equal(osfile_writer_open(&w, dir, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "Is a directory");
    /* The name is taken by a folder at the end. */
    err_clear(&e);
    assert_int_equal(osfile_writer_open(&w, in_dir("late"), &e), OK);
    assert_int_equal(mkdir(in_dir("late"), 0700), 0);
    assert_int_equal(osfile_writer_commit(&w, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "cannot write");
    assert_false(exists(in_dir("late.part")));
    rmdir(in_dir("late"));
}

static void test_write_devices(void **state)
{
    (void)state;
    struct osfile_writer w;
    struct err e;
    err_clear(&e);
    assert_int_equal(osfile_writer_open(&w, "/dev/null", &e), OK);
    fputs("text", w.fp);
    assert_int_equal(osfile_writer_commit(&w, &e), OK);
    assert_true(exists("/dev/null"));
    if (!exists("/dev/full")) return;
    assert_int_equal(osfile_writer_open(&w, "/dev/full", &e), OK);
    fputs("text", w.fp);
    assert_int_equal(osfile_writer_commit(&w, &e), ERR_IO);
    check_error(&e, ERR_IO, ERR_NO_POS, "cannot write /dev/full: No space left on device");
    assert_int_equal(osfile_writer_open(&w, "/dev/full", NULL), OK);
    fputs("text", w.fp);
    osfile_writer_abort(&w);
    assert_true(exists("/dev/full"));
}

static void test_seconds(void **state)
{
    (void)state;
    double last = os_seconds();
    for (int i = 0; i < 1000; i++) {
        double now = os_seconds();
        assert_true(now >= last);
        last = now;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err_first_wins),
        cmocka_unit_test(test_err_long_message),
        cmocka_unit_test(test_err_names),
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_open_not_a_file),
        cmocka_unit_test(test_open_direct),
        cmocka_unit_test(test_peek),
        cmocka_unit_test(test_direct_fallback),
        cmocka_unit_test(test_size_op),
        cmocka_unit_test(test_read_pieces),
        cmocka_unit_test(test_read_errors),
        cmocka_unit_test(test_write_aside),
        cmocka_unit_test(test_write_abort),
        cmocka_unit_test(test_write_errors),
        cmocka_unit_test(test_write_devices),
        cmocka_unit_test(test_seconds),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
