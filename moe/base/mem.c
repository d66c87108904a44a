/* See mem.h. */
#include "moe/base/mem.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20 };

size_t mem_page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

void ledger_init(struct ledger *l, uint64_t budget)
{
    memset(l, 0, sizeof *l);
    l->budget = budget;
}

const char *mem_owner_name(enum mem_owner owner)
{
    static const char *const names[MEM_OWNER_N] = {"weights", "KV cache", "activations", "staging"};
    return owner < MEM_OWNER_N ? names[owner] : "?";
}

/* Takes n bytes from the budget, or nothing. */
static int ledger_take(struct ledger *l, enum mem_owner owner, uint64_t n)
{
    uint64_t total = atomic_load(&l->total);
    do {
        if (n > l->budget || total > l->budget - n) return 0;
    } while (!atomic_compare_exchange_weak(&l->total, &total, total + n));
    atomic_fetch_add(&l->used[owner], n);
    uint64_t peak = atomic_load(&l->peak);
    while (peak < total + n && !atomic_compare_exchange_weak(&l->peak, &peak, total + n)) {}
    return 1;
}

static void ledger_give(struct ledger *l, enum mem_owner owner, uint64_t n)
{
    atomic_fetch_sub(&l->used[owner], n);
    atomic_fetch_sub(&l->total, n);
}

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

enum status region_reserve(struct region *r, struct ledger *l, enum mem_owner owner, size_t bytes,
                           struct err *e)
{
    memset(r, 0, sizeof *r);
    if (bytes > SIZE_MAX / 2)
        return err_set(e, ERR_MEMORY, "cannot reserve %zu bytes for %s", bytes,
                       mem_owner_name(owner));
    size_t want = round_up(bytes ? bytes : 1, mem_page_size());
    /* Weights are streamed: huge pages cut the page walks, so large regions start on one. */
    size_t slack = want >= HUGE_PAGE ? HUGE_PAGE : 0;
    void *map = mmap(NULL, want + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                     0);
    if (map == MAP_FAILED)
        return err_set(e, ERR_MEMORY, "the system gave no address space: %zu bytes for %s",
                       want + slack, mem_owner_name(owner));
    uintptr_t base = (uintptr_t)map;
    if (slack) base = (base + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
    r->base = (void *)base;
    r->reserved = want;
    r->map = map;
    r->map_bytes = want + slack;
    r->owner = owner;
    r->ledger = l;
    return OK;
}

enum status region_commit(struct region *r, size_t bytes, struct err *e)
{
    size_t want = round_up(bytes, mem_page_size());
    if (want <= r->committed) return OK;
    ASSERT(want <= r->reserved);
    size_t n = want - r->committed;
    if (!ledger_take(r->ledger, r->owner, n))
        return err_set(e, ERR_BUDGET, "%s needs %zu bytes more than the memory budget leaves",
                       mem_owner_name(r->owner), n);
    char *from = (char *)r->base + r->committed;
    if (mprotect(from, n, PROT_READ | PROT_WRITE)) {
        ledger_give(r->ledger, r->owner, n);
        return err_set(e, ERR_MEMORY, "the system gave no memory: %zu bytes for %s", n,
                       mem_owner_name(r->owner));
    }
    if (r->owner == MEM_WEIGHTS && r->reserved >= HUGE_PAGE) (void)madvise(from, n, MADV_HUGEPAGE);
    r->committed = want;
    return OK;
}

void region_trim(struct region *r, size_t bytes)
{
    size_t keep = round_up(bytes, mem_page_size());
    if (keep >= r->committed) return;
    size_t n = r->committed - keep;
    char *from = (char *)r->base + keep;
    /* Mapping over the pages returns them at once and makes a stray touch a fault. */
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(from, n, PROT_NONE, flags, -1, 0) == MAP_FAILED)
        (void)madvise(from, n, MADV_DONTNEED); /* too many mappings: at least the pages go */
    ledger_give(r->ledger, r->owner, n);
    r->committed = keep;
}

void region_release(struct region *r)
{
    if (!r->map) return;
    ledger_give(r->ledger, r->owner, r->committed);
    (void)munmap(r->map, r->map_bytes);
    memset(r, 0, sizeof *r);
}
