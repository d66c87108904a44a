/* The placement solver: which weights are where when a given number of bytes is theirs.
 *
 * Weights come in four kinds, by what a token costs when they are not in RAM:
 *   small    norms, biases, little matrices: always at home
 *   dense    matrices that every token reads whole: all at home, or all streamed through a ring of
 *            slots that hold one piece each
 *   tables   rows that are looked up (token embeddings): a token reads one row of them
 *   experts  groups (gate, up, down of one expert) in slots; a slot class per size
 *
 *   levels   of a stack (quant/stack.h): more bits for some matrix, in one order for all of them; any
 *            prefix may be there
 *
 * They get memory in the order of what a byte of it saves per token: dense, experts, tables; only
 * when not even the dense ones and a slot per class fit is dense streamed.  Slots are shared out to
 * the classes in proportion to their bytes.  Levels get what is left when all else is in RAM: the
 * depth of a matrix follows from the number of bytes and from nothing else.
 *
 * Pure functions on plain data; any thread. */
#ifndef OFFLOAD_PLACE_H
#define OFFLOAD_PLACE_H

#include <stdbool.h>
#include <stdint.h>

enum { PLACE_CLASSES = 16, PLACE_RING_MIN = 2 };

struct place_sizes {
    uint64_t small, dense, tables;        /* bytes at home, whole pages */
    uint64_t ring_slot;                   /* bytes of one; 0 = nothing to stream */
    int n_pieces;                         /* of the dense matrices */
    int n_classes;
    uint64_t slot[PLACE_CLASSES];         /* bytes of a slot, whole pages */
    int n_groups[PLACE_CLASSES];          /* experts of that size in all layers */
    const uint64_t *level_end;            /* [n_units] bytes of the levels up to each; borrowed */
    int n_units, n_floor;                 /* levels; so many are always there */
};

struct placement {
    bool dense_home, tables_home;
    int n_ring;                           /* slots; 0 when dense is at home */
    int n_slots[PLACE_CLASSES];
    int n_units;                          /* levels */
    uint64_t bytes;                       /* of all these */
    int depth;                            /* reads that each loader has under way (fetch.h) */
};

/* Everything in RAM; the least that works. */
struct placement place_all(const struct place_sizes *s);
struct placement place_least(const struct place_sizes *s);
/* The best within `bytes`; false when not even the least fits. */
bool place_solve(const struct place_sizes *s, uint64_t bytes, struct placement *p);

/* Whether every expert has a slot. */
bool place_experts_fit(const struct place_sizes *s, const struct placement *p);

/* Whether nothing but levels is missing, so that nothing is read while steps run. */
bool place_resident(const struct place_sizes *s, const struct placement *p);

/* Bytes of the first n levels, whole pages. */
uint64_t place_level_bytes(const struct place_sizes *s, int n);

#endif
