/* See mem.h. */
#define _GNU_SOURCE
#include "moe/base/mem.h"

#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20 };

size_t mem_page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

void ledger_init(struct ledger *l, uint64_t budget)
{
    memset(l, 0, sizeof *l);
    atomic_store(&l->budget, budget);
}

const char *mem_owner_name(enum mem_owner owner)
{
    static const char *const names[MEM_OWNER_N] = {"weights", "KV cache", "activations", "staging",
                                                   "process"};
    return owner < MEM_OWNER_N ? names[owner] : "?";
}

void ledger_set_budget(struct ledger *l, uint64_t budget) { atomic_store(&l->budget, budget); }

int ledger_take(struct ledger *l, enum mem_owner owner, uint64_t n)
{
    const uint64_t budget = atomic_load(&l->budget);
    uint64_t total = atomic_load(&l->total);
    do {
        if (n > budget || total > budget - n) return 0;
    } while (!atomic_compare_exchange_weak(&l->total, &total, total + n));
    atomic_fetch_add(&l->used[owner], n);
    uint64_t peak = atomic_load(&l->peak);
    while (peak < total + n && !atomic_compare_exchange_weak(&l->peak, &peak, total + n)) {}
    return 1;
}

void ledger_give(struct ledger *l, enum mem_owner owner, uint64_t n)
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

/* Charges and opens n bytes from byte `at`. */
static enum status open_pages(struct region *r, size_t at, size_t n, struct err *e)
{
    if (!ledger_take(r->ledger, r->owner, n))
        return err_set(e, ERR_BUDGET, "%s needs %zu bytes more than the memory budget leaves",
                       mem_owner_name(r->owner), n);
    char *from = (char *)r->base + at;
    if (mprotect(from, n, PROT_READ | PROT_WRITE)) {
        ledger_give(r->ledger, r->owner, n);
        return err_set(e, ERR_MEMORY, "the system gave no memory: %zu bytes for %s", n,
                       mem_owner_name(r->owner));
    }
    if (r->owner == MEM_WEIGHTS && r->reserved >= HUGE_PAGE &&
        atomic_load(&r->ledger->budget) >= MEM_HUGE_FROM)
        (void)madvise(from, n, MADV_HUGEPAGE);
    r->committed += n;
    return OK;
}

static void close_pages(struct region *r, size_t at, size_t n)
{
    char *from = (char *)r->base + at;
    /* A huge page that is cut stays charged as a whole until it is split: this splits it. */
#ifdef MADV_COLD
    if (r->reserved >= HUGE_PAGE) (void)madvise(from, n, MADV_COLD);
#endif
    /* Mapping over the pages returns them at once and makes a stray touch a fault. */
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(from, n, PROT_NONE, flags, -1, 0) == MAP_FAILED)
        (void)madvise(from, n, MADV_DONTNEED); /* too many mappings: at least the pages go */
    ledger_give(r->ledger, r->owner, n);
    r->committed -= n;
}

enum status region_commit(struct region *r, size_t bytes, struct err *e)
{
    size_t want = round_up(bytes, mem_page_size());
    if (want <= r->committed) return OK;
    ASSERT(want <= r->reserved);
    return open_pages(r, r->committed, want - r->committed, e);
}

void region_trim(struct region *r, size_t bytes)
{
    size_t keep = round_up(bytes, mem_page_size());
    if (keep < r->committed) close_pages(r, keep, r->committed - keep);
}

enum status region_commit_at(struct region *r, size_t at, size_t bytes, struct err *e)
{
    ASSERT(at % mem_page_size() == 0 && bytes % mem_page_size() == 0);
    ASSERT(at <= r->reserved && bytes <= r->reserved - at);
    return bytes ? open_pages(r, at, bytes, e) : OK;
}

void region_trim_at(struct region *r, size_t at, size_t bytes)
{
    ASSERT(at % mem_page_size() == 0 && bytes % mem_page_size() == 0);
    if (bytes) close_pages(r, at, bytes);
}

void region_release(struct region *r)
{
    if (!r->map) return;
    ledger_give(r->ledger, r->owner, r->committed);
    (void)munmap(r->map, r->map_bytes);
    memset(r, 0, sizeof *r);
}

static int drop_file(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size;
    (void)arg;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const uintptr_t page = mem_page_size(), at = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        const uintptr_t from = at & ~(page - 1), to = at + info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type == PT_LOAD && !(info->dlpi_phdr[i].p_flags & PF_W))
            (void)madvise((void *)from, to - from, MADV_RANDOM);
    }
    /* The program itself has no name; pages that are mapped stay. */
    int fd = open(info->dlpi_name[0] ? info->dlpi_name : "/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    (void)close(fd);
    return 0;
}

void mem_drop_code(void) { (void)dl_iterate_phdr(drop_file, NULL); }
