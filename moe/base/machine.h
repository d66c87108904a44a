/* The machine: what it has, what this process may use of it, and how fast it measured.
 *
 * machine_detect() asks hwloc for cores, caches and NUMA nodes and the kernel's text files for
 * memory, control-group limits (v1, v2 and hybrid), disks and GPUs; it takes milliseconds and
 * measures nothing.  machine_measure_*() take seconds and fill the speed fields.  A description can
 * be written to and read from a text file (`key value` lines, # comments), so that plans can be
 * made for a machine that is not here.
 *
 * Plain data without pointers: copy it freely; any thread.  Never changes a setting. */
#ifndef MOE_BASE_MACHINE_H
#define MOE_BASE_MACHINE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "moe/base/err.h"

#define MACHINE_NONE UINT64_MAX /* bytes: no limit, or not known */

enum { MACHINE_DISKS = 8, MACHINE_NAME = 96, MACHINE_TYPES = 32 };

struct machine_disk {
    char name[32];
    uint64_t bytes;
    bool rotational;
};

struct machine {
    char cpu[MACHINE_NAME]; /* "AMD EPYC ..." */
    char tier[16];          /* instruction tier the kernels use */
    int packages, numa_nodes, cores, threads;
    int cores_usable;       /* cores in this process' affinity, at most the CPU quota */
    double cpu_quota;       /* cores' worth of time from the control group, 0 = no limit */
    uint64_t l1d_bytes, l2_bytes, l3_bytes; /* of one cache; 0 = none */
    int n_l2, n_l3, line_bytes;

    uint64_t ram_bytes, ram_available;
    uint64_t cgroup_limit;    /* the tightest on the way to the root, or MACHINE_NONE */
    uint64_t cgroup_used;     /* in that group */
    uint64_t cgroup_headroom; /* limit - used + its reclaimable page cache, or MACHINE_NONE */
    char huge_pages[16];      /* transparent huge pages: always, madvise, never, unknown */
    char gpu[MACHINE_NAME];   /* "none" or a name */

    int n_disks;
    struct machine_disk disk[MACHINE_DISKS];

    /* Measured; 0 = not measured. */
    double ram_read_1, ram_read_n; /* GB/s (1e9) streaming, one thread and ram_threads of them */
    int ram_threads;
    double disk_read;              /* GB/s past the page cache, large blocks, several in flight */
    double disk_random;            /* GB/s, 1 MiB blocks at random places */
    double disk_small;             /* GB/s, 64 KiB blocks at random places */
    double disk_wait;              /* microseconds of one such read alone, from asking another
                                      thread for it to hearing of it */
    double dot_q8, dot_q8_1;       /* 1e9 multiply-adds per second of one core, Q8_0 in cache, for 16
                                      rows and for one */
    double region;                 /* microseconds to start and end a region of ram_threads threads */
    int n_types;                   /* products of one row with weights in memory, ram_threads threads: */
    struct machine_type {
        char name[16];             /* weight type, "Q4_K" */
        double read;               /* GB/s of weights */
    } type[MACHINE_TYPES];
};

/* Fills everything but the measured fields.  root replaces "/" in the names of the kernel's text
 * files (tests); NULL = "".  What cannot be found out stays 0, MACHINE_NONE or "unknown". */
enum status machine_detect(struct machine *m, const char *root, struct err *e);

/* The part of machine_detect that a memory budget needs: the ram_ and cgroup_ fields only. */
void machine_memory(struct machine *m, const char *root);

/* Watching how much memory is left for everybody: opened once, then read as often as wanted, which
 * costs some microseconds and allocates nothing. */
struct machine_cgroup {   /* files of a controller are at mount + path + "/" + name */
    int version;          /* 1 or 2; 0 = none */
    char mount[256], path[512];
};

struct machine_watch {
    char root[256];
    struct machine_cgroup group;
};

struct machine_room {
    uint64_t available;   /* bytes that can be had without taking them from somebody: the system's and
                             the control groups'; MACHINE_NONE = not known */
    uint64_t total;       /* of the tighter one */
    double stalled;       /* % of the last 10 s in which some task waited for memory (PSI); 0 also
                             where the kernel does not say */
};

void machine_watch_open(struct machine_watch *w, const char *root);
void machine_watch_read(const struct machine_watch *w, struct machine_room *r);

/* Streams over `bytes` of own memory with n_threads, best of five passes. */
enum status machine_measure_ram(int n_threads, uint64_t bytes, double *gb_per_s, struct err *e);

/* What is done with every block (up to 4 MiB) that a drive brings, on the thread (0 to 7) that read it. */
struct machine_arrival {
    void (*fn)(void *arg, int thread, const void *block, size_t bytes);
    void *arg;
};

/* Reads a regular file past the page cache, for about a second each, with 2 to 8 threads and four
 * reads of each in flight: in order with large blocks, then 1 MiB and 64 KiB blocks at random places;
 * fills the disk_ fields.  arrival: NULL = nothing is done with the blocks.  *direct tells if the page
 * cache could be avoided; if it could not the numbers may be those of memory. */
enum status machine_measure_disk(const char *path, int n_threads, const struct machine_arrival *arrival,
                                 struct machine *m, bool *direct, struct err *e);

/* Where the measured description of this machine and of the drive that holds `path` (NULL: of no
 * drive) is kept: tessera/machine-KEY.txt in XDG_CACHE_HOME, or in .cache in HOME.  The key is made
 * of processor, instruction tier, cores of this process' affinity, memory and drive: cheap to find
 * out, without hwloc.  false: there is no such folder.  make: creates the folders. */
bool machine_cache(const char *path, bool make, char *file, size_t cap);

/* Name of the disk in m->disk[] that holds path, or "" when that is not known. */
void machine_disk_of(const struct machine *m, const char *path, char name[32]);

/* The text form.  Reading starts from an empty description: a key that is absent is "not known",
 * an unknown key or a bad value is ERR_FORMAT naming the line. */
void machine_print(const struct machine *m, FILE *to);
enum status machine_write(const struct machine *m, const char *path, struct err *e);
enum status machine_read(struct machine *m, const char *path, struct err *e);

#endif
