/* The ledger and the big mappings.
 *
 * Weights, KV cache, activations and staging live outside the heap, in regions: address space is
 * reserved once and pages are committed from the ledger as they are needed, so that every large
 * byte of the process has an owner and the token path allocates nothing.  The heap (jemalloc) only
 * serves small objects.
 *
 * A region belongs to the caller, who serialises its calls; the ledger's counters are atomic. */
#ifndef MOE_BASE_MEM_H
#define MOE_BASE_MEM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/base/err.h"

enum mem_owner {
    MEM_WEIGHTS, /* dense weights and experts, as laid out for the kernels */
    MEM_KV,      /* sessions' KV slots and recurrent states */
    MEM_ACT,     /* activation arena, control buffers and logits */
    MEM_STAGING, /* bytes on their way from a file to their place */
    MEM_PROCESS, /* code, libraries, heap, stacks, page tables: an estimate, held back at open */
    MEM_OWNER_N,
};

/* Weights are in huge pages from this budget on: below, one whose slots are given back piece by piece, and
 * which is charged as a whole until the system has split it, weighs more than it saves. */
enum { MEM_HUGE_FROM = 256 << 20 };

struct ledger {
    _Atomic uint64_t budget;               /* bytes; UINT64_MAX = no limit */
    _Atomic uint64_t used[MEM_OWNER_N];    /* committed bytes, whole pages */
    _Atomic uint64_t total, peak;
};

void ledger_init(struct ledger *l, uint64_t budget);
const char *mem_owner_name(enum mem_owner owner);

/* Takes bytes from the budget for something that is no region, or nothing: 0. */
int ledger_take(struct ledger *l, enum mem_owner owner, uint64_t n);
void ledger_give(struct ledger *l, enum mem_owner owner, uint64_t n);

/* Moves the limit.  What is above a smaller one is the caller's to give back first. */
void ledger_set_budget(struct ledger *l, uint64_t budget);

struct region {
    void *base;       /* NULL while not reserved; aligned to 2 MiB when reserved >= 2 MiB */
    size_t reserved;  /* bytes of address space from base */
    size_t committed; /* bytes that may be touched, from base on unless used in pieces; whole pages */
    void *map;        /* the mapping as the system gave it */
    size_t map_bytes;
    enum mem_owner owner;
    struct ledger *ledger;
};

/* Reserves address space; commits nothing.  ERR_MEMORY. */
enum status region_reserve(struct region *r, struct ledger *l, enum mem_owner owner, size_t bytes,
                           struct err *e);

/* Makes at least `bytes` from base usable (zero-filled where new), charged to the ledger.
 * ERR_BUDGET when the ledger forbids it, ERR_MEMORY when the system does; nothing changes then. */
enum status region_commit(struct region *r, size_t bytes, struct err *e);

/* Gives every page beyond `bytes` back to the system. */
void region_trim(struct region *r, size_t bytes);

/* The same for a piece of the region anywhere, in whole pages: regions that are used in slots, some
 * of them there and some not.  Such a region is not used with the two calls above. */
enum status region_commit_at(struct region *r, size_t at, size_t bytes, struct err *e);
void region_trim_at(struct region *r, size_t at, size_t bytes);

/* Unmaps; r may be zero-initialised or already released. */
void region_release(struct region *r);

size_t mem_page_size(void);

/* Gives back what the system has read of the program's and its libraries' files and nobody uses (it
 * reads far around, and a control group is charged for it), and has it read single pages of them
 * from now on. */
void mem_drop_code(void);

#endif
