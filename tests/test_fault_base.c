/* Fails every mapping, allocation and thread start of moe/base (mem, thread, osfile) in turn.
 * Needs FAULT_LINK (tests/fault.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/fault.h"

#include "moe/base/mem.h"
#include "moe/base/osfile.h"
#include "moe/base/thread.h"

static void test_region(void **state)
{
    (void)state;
    for (int n = 1;; n++) {
        struct ledger l;
        struct region r;
        struct err e;
        ledger_init(&l, UINT64_MAX);
        err_clear(&e);
        fault_arm(FAULT_ALL, n);
        enum status s = region_reserve(&r, &l, MEM_WEIGHTS, 8 << 20, &e);
        if (!s) s = region_commit(&r, 1 << 20, &e);
        size_t committed = r.committed;
        enum status more = s ? s : region_commit(&r, 3 << 20, &e);
        int failed = fault_disarm();
        assert_int_equal(failed, more != OK);
        assert_true(more == OK || more == ERR_MEMORY);
        assert_true(more == e.code);
        if (more) assert_int_equal(r.committed, committed); /* nothing changed */
        assert_true(l.total == r.committed && l.used[MEM_WEIGHTS] == r.committed);
        if (r.committed) memset(r.base, 1, r.committed);
        region_release(&r);
        assert_true(l.total == 0 && l.used[MEM_WEIGHTS] == 0);
        if (!failed) break;
    }
}

/* The address space may be split too finely to unmap a piece: the pages must still go back. */
static void test_trim(void **state)
{
    (void)state;
    struct ledger l;
    struct region r;
    ledger_init(&l, UINT64_MAX);
    assert_int_equal(region_reserve(&r, &l, MEM_KV, 1 << 20, NULL), OK);
    assert_int_equal(region_commit(&r, 1 << 20, NULL), OK);
    memset(r.base, 7, 1 << 20);
    fault_arm(FAULT_MAP, 1);
    region_trim(&r, 1 << 12);
    assert_true(fault_disarm());
    assert_int_equal(r.committed, 1 << 12);
    assert_int_equal(l.total, 1 << 12);
    assert_int_equal(region_commit(&r, 1 << 20, NULL), OK);
    assert_int_equal(((char *)r.base)[1 << 12], 0); /* new pages are zero */
    region_release(&r);
}

static void count(void *arg, int task, int worker)
{
    (void)task;
    (void)worker;
    atomic_fetch_add((_Atomic int *)arg, 1);
}

static void test_pool(void **state)
{
    (void)state;
    for (int n = 1;; n++) {
        struct pool *p;
        struct err e;
        _Atomic int done = 0;
        err_clear(&e);
        long blocks = fault_living();
        fault_arm(FAULT_ALL, n);
        enum status s = pool_open(4, &p, &e);
        int failed = fault_disarm();
        assert_int_equal(failed, s != OK);
        assert_true(s == e.code && (s == OK || s == ERR_MEMORY));
        assert_int_equal(s == OK, p != NULL);
        if (p) pool_run(p, count, &done, 100);
        assert_int_equal(done, s == OK ? 100 : 0);
        pool_close(p);
        assert_int_equal(fault_living(), blocks);
        if (!failed) break;
    }
}

static void test_file(void **state)
{
    (void)state;
    for (int n = 1;; n++) {
        struct osfile f;
        struct err e;
        char byte;
        err_clear(&e);
        long blocks = fault_living();
        fault_arm(FAULT_ALL, n);
        enum status s = osfile_open(&f, "Makefile", 0, NULL, &e);
        if (!s) s = osfile_read(&f, &byte, 1, 0, &e);
        int failed = fault_disarm();
        assert_int_equal(failed, s != OK);
        assert_true(s == e.code && (s == OK || s == ERR_MEMORY || s == ERR_IO));
        osfile_close(&f);
        assert_int_equal(fault_living(), blocks);
        if (!failed) break;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_region),
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
