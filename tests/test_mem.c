/* Tests of moe/base/mem.c: the ledger adds up whatever happens, refused commits change nothing,
 * pages beyond the commit cannot be touched, and trimmed pages really leave. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "moe/base/mem.h"
#include "moe/base/rng.h"

enum { MIB = 1 << 20 };

/* Whether the byte may be read: the system looks, so that nothing faults. */
static int readable(const void *p)
{
    int fd[2];
    assert_int_equal(pipe(fd), 0);
    ssize_t n = write(fd[1], p, 1);
    int fault = n < 0 && errno == EFAULT;
    close(fd[0]);
    close(fd[1]);
    assert_true(n == 1 || fault);
    return n == 1;
}

static size_t resident_pages(const struct region *r)
{
    size_t n = r->reserved / mem_page_size(), count = 0;
    unsigned char *v = calloc(n, 1);
    assert_int_equal(mincore(r->base, r->reserved, v), 0);
    for (size_t i = 0; i < n; i++) count += v[i] & 1;
    free(v);
    return count;
}

static void check_ledger(struct ledger *l, uint64_t total)
{
    uint64_t sum = 0;
    for (int i = 0; i < MEM_OWNER_N; i++) sum += l->used[i];
    assert_true(l->total == total && sum == total);
    assert_true(l->peak >= total && l->peak <= l->budget);
}

static void test_names(void **state)
{
    (void)state;
    for (int i = 0; i < MEM_OWNER_N; i++)
        assert_string_not_equal(mem_owner_name((enum mem_owner)i), "?");
    assert_string_equal(mem_owner_name(MEM_OWNER_N), "?");
    size_t page = mem_page_size();
    assert_true(page >= 4096 && !(page & (page - 1)));
}

static void test_region(void **state)
{
    (void)state;
    struct ledger l;
    struct region r;
    struct err e;
    err_clear(&e);
    ledger_init(&l, UINT64_MAX);
    assert_int_equal(region_reserve(&r, &l, MEM_WEIGHTS, 8 * MIB, &e), OK);
    assert_int_equal((uintptr_t)r.base % (2 * MIB), 0);
    assert_int_equal(r.committed, 0);
    check_ledger(&l, 0);
    assert_false(readable(r.base));
    size_t page = mem_page_size();
    assert_int_equal(region_commit(&r, 1, &e), OK);
    assert_int_equal(r.committed, page);
    check_ledger(&l, page);
    assert_true(readable((char *)r.base + page - 1));
    assert_false(readable((char *)r.base + page));
    assert_int_equal(region_commit(&r, 8 * MIB, &e), OK);
    check_ledger(&l, 8 * MIB);
    assert_true(l.used[MEM_WEIGHTS] == 8 * MIB);
    for (size_t i = 0; i < 8 * MIB; i += 64) assert_int_equal(((char *)r.base)[i], 0);
    memset(r.base, 1, 8 * MIB);
    assert_int_equal(region_commit(&r, 100, &e), OK); /* never shrinks */
    assert_int_equal(r.committed, 8 * MIB);
    assert_int_equal(e.code, OK);
    region_release(&r);
    check_ledger(&l, 0);
    assert_true(l.peak == 8 * MIB);
    assert_null(r.base);
    region_release(&r);
    memset(&r, 0, sizeof r);
    region_release(&r);
    check_ledger(&l, 0);
}

static void test_trim(void **state)
{
    (void)state;
    struct ledger l;
    struct region r;
    size_t page = mem_page_size();
    ledger_init(&l, UINT64_MAX);
    assert_int_equal(region_reserve(&r, &l, MEM_KV, MIB, NULL), OK);
    assert_int_equal(region_commit(&r, MIB, NULL), OK);
    memset(r.base, 0x55, MIB);
    assert_int_equal(resident_pages(&r), MIB / page);
    region_trim(&r, 2 * page + 1);
    assert_int_equal(r.committed, 3 * page);
    check_ledger(&l, 3 * page);
    assert_int_equal(resident_pages(&r), 3);
    assert_int_equal(((char *)r.base)[3 * page - 1], 0x55);
    assert_false(readable((char *)r.base + 3 * page));
    region_trim(&r, MIB); /* never grows */
    assert_int_equal(r.committed, 3 * page);
    assert_int_equal(region_commit(&r, MIB, NULL), OK);
    assert_int_equal(((char *)r.base)[3 * page], 0); /* new pages are zero */
    assert_int_equal(((char *)r.base)[0], 0x55);
    region_trim(&r, 0);
    check_ledger(&l, 0);
    assert_int_equal(resident_pages(&r), 0);
    region_release(&r);
}

static void test_budget(void **state)
{
    (void)state;
    struct ledger l;
    struct region a, b;
    struct err e;
    size_t page = mem_page_size();
    ledger_init(&l, 10 * page);
    assert_int_equal(region_reserve(&a, &l, MEM_KV, 64 * page, NULL), OK);
    assert_int_equal(region_reserve(&b, &l, MEM_ACT, 64 * page, NULL), OK);
    assert_int_equal(region_commit(&a, 10 * page, NULL), OK); /* exactly all */
    err_clear(&e);
    assert_int_equal(region_commit(&b, 1, &e), ERR_BUDGET);
    assert_int_equal(e.code, ERR_BUDGET);
    assert_non_null(strstr(e.msg, "activations needs"));
    assert_int_equal(b.committed, 0);
    check_ledger(&l, 10 * page);
    region_trim(&a, 4 * page);
    assert_int_equal(region_commit(&b, 6 * page, NULL), OK);
    assert_int_equal(region_commit(&b, 7 * page, NULL), ERR_BUDGET);
    assert_int_equal(b.committed, 6 * page); /* unchanged and still there */
    memset(b.base, 1, 6 * page);
    check_ledger(&l, 10 * page);
    assert_true(l.used[MEM_KV] == 4 * page && l.used[MEM_ACT] == 6 * page);
    /* A budget that shrank below what is used refuses everything, and recovers. */
    l.budget = 5 * page;
    assert_int_equal(region_commit(&a, 5 * page, NULL), ERR_BUDGET);
    region_release(&b);
    assert_int_equal(region_commit(&a, 5 * page, NULL), OK);
    region_release(&a);
    assert_true(l.total == 0 && l.peak == 10 * page);
    ledger_init(&l, 0);
    assert_int_equal(region_reserve(&a, &l, MEM_KV, 1, NULL), OK);
    assert_int_equal(region_commit(&a, 1, NULL), ERR_BUDGET);
    region_release(&a);
}

static void test_reserve_limits(void **state)
{
    (void)state;
    struct ledger l;
    struct region r;
    struct err e;
    ledger_init(&l, UINT64_MAX);
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX / 2 + 1, SIZE_MAX / 2 - 8192};
    for (int i = 0; i < 3; i++) {
        err_clear(&e);
        assert_int_equal(region_reserve(&r, &l, MEM_ACT, sizes[i], &e), ERR_MEMORY);
        assert_int_equal(e.code, ERR_MEMORY);
        region_release(&r);
    }
    assert_int_equal(region_reserve(&r, &l, MEM_ACT, 0, NULL), OK);
    assert_int_equal(region_commit(&r, 0, NULL), OK);
    assert_int_equal(r.committed, 0);
    assert_int_equal(region_commit(&r, 1, NULL), OK);
    region_release(&r);
    /* Address space costs nothing: far more than any machine has. */
    assert_int_equal(region_reserve(&r, &l, MEM_WEIGHTS, (size_t)1 << 40, NULL), OK);
    assert_int_equal(region_commit(&r, MIB, NULL), OK);
    check_ledger(&l, MIB);
    region_release(&r);
    check_ledger(&l, 0);
}

/* Several threads, each with a region of its own, against one small budget. */
static struct ledger shared_ledger;
enum { THREADS = 4, ROUNDS = 2000, PAGES = 16, BUDGET_PAGES = 24 };

static void *spender(void *arg)
{
    struct rng rng;
    struct region r;
    size_t page = mem_page_size();
    uintptr_t refused = 0;
    rng_seed(&rng, (uint64_t)(uintptr_t)arg);
    enum mem_owner owner = (enum mem_owner)(rng_below(&rng, MEM_OWNER_N));
    if (region_reserve(&r, &shared_ledger, owner, PAGES * page, NULL)) return (void *)UINTPTR_MAX;
    for (int i = 0; i < ROUNDS; i++) {
        size_t n = rng_below(&rng, PAGES + 1) * page;
        if (rng_below(&rng, 2)) region_trim(&r, n);
        else if (region_commit(&r, n, NULL)) refused++;
        if (r.committed) memset((char *)r.base + r.committed - page, i, page);
        if (shared_ledger.total > shared_ledger.budget) return (void *)UINTPTR_MAX;
    }
    region_release(&r);
    return (void *)refused;
}

static void test_threads(void **state)
{
    (void)state;
    pthread_t t[THREADS];
    ledger_init(&shared_ledger, BUDGET_PAGES * mem_page_size());
    for (uintptr_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, spender, (void *)(i + 1)), 0);
    for (int i = 0; i < THREADS; i++) {
        void *refused;
        pthread_join(t[i], &refused);
        assert_true((uintptr_t)refused != UINTPTR_MAX);
    }
    check_ledger(&shared_ledger, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_region),
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_reserve_limits),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
