/* See machine.h.  Detection and measurement; the text form is in machine_text.c. */
#define _GNU_SOURCE
#include "moe/base/machine.h"

#include <dirent.h>
#include <fcntl.h>
#include <hwloc.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "moe/base/cpu.h"
#include "moe/base/osfile.h"
#include "moe/base/thread.h"

enum { PATH_CAP = 1024, TEXT_CAP = 16384 };

/* ---- the kernel's text files ---- */

/* Reads at most cap - 1 bytes of root/path; false when it cannot be read.  Allocates nothing. */
static bool text_of(const char *root, const char *path, char *buf, size_t cap)
{
    char full[PATH_CAP];
    int n = snprintf(full, sizeof full, "%s%s", root, path);
    buf[0] = 0;
    if (n < 0 || (size_t)n >= sizeof full) return false;
    const int fd = open(full, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    size_t got = 0;
    ssize_t k = 0;
    while (got < cap - 1 && (k = read(fd, buf + got, cap - 1 - got)) > 0) got += (size_t)k;
    (void)close(fd);
    buf[got] = 0;
    return k >= 0;
}

/* The number after `key` at the start of a line; 0 when there is none. */
static uint64_t number_after(const char *text, const char *key)
{
    size_t n = strlen(key);
    for (const char *p = text; p; p = strchr(p, '\n')) {
        if (*p == '\n') p++;
        if (!strncmp(p, key, n) && (p[n] == ' ' || p[n] == ':' || p[n] == '\t'))
            return strtoull(p + n + 1, NULL, 10);
    }
    return 0;
}

static void copy_line(char *to, size_t cap, const char *from)
{
    size_t n = strcspn(from, "\n");
    if (n >= cap) n = cap - 1;
    memcpy(to, from, n);
    to[n] = 0;
    while (n && (to[n - 1] == ' ' || to[n - 1] == '\t')) to[--n] = 0;
}

/* ---- control groups ---- */

/* Is `word` an item of a comma-separated list of n bytes? */
static bool in_list(const char *list, size_t n, const char *word)
{
    size_t w = strlen(word);
    for (const char *p = list, *end = list + n; p < end;) {
        size_t len = strcspn(p, ",");
        if (len > (size_t)(end - p)) len = (size_t)(end - p);
        if (len == w && !memcmp(p, word, w)) return true;
        p += len + 1;
    }
    return false;
}

/* /proc/self/cgroup has lines id:controllers:path; v2 has the id 0 and no controllers. */
static void cgroup_path(const char *text, const char *controller, struct machine_cgroup *c)
{
    for (const char *line = text; *line;) {
        size_t len = strcspn(line, "\n");
        const char *a = memchr(line, ':', len);
        const char *b = a ? memchr(a + 1, ':', len - (size_t)(a + 1 - line)) : NULL;
        if (b) {
            bool v1 = in_list(a + 1, (size_t)(b - a - 1), controller);
            if (v1 || (b == a + 1 && !c->version)) {
                c->version = v1 ? 1 : 2;
                copy_line(c->path, sizeof c->path, b + 1);
            }
        }
        line += len + (line[len] == '\n');
    }
}

/* One line of mountinfo: "id parent dev root mount options ... - type source superoptions". */
static bool cgroup_mount(const char *line, const char *controller, struct machine_cgroup *c)
{
    char root[PATH_CAP / 4], mount[PATH_CAP / 4], type[32], super[PATH_CAP / 4];
    if (sscanf(line, "%*s %*s %*s %255s %255s", root, mount) != 2) return false;
    const char *dash = strstr(line, " - ");
    if (!dash || sscanf(dash + 3, "%31s %*s %255s", type, super) != 2) return false;
    bool v2 = !strcmp(type, "cgroup2");
    if (c->version == 2 ? !v2
                        : strcmp(type, "cgroup") || !in_list(super, strlen(super), controller))
        return false;
    size_t n = strlen(root);
    if (n > 1 && !strncmp(c->path, root, n) && (c->path[n] == '/' || !c->path[n]))
        memmove(c->path, c->path + n, strlen(c->path + n) + 1);
    memcpy(c->mount, mount, sizeof mount);
    return true;
}

/* Finds the controller's directory for this process; false when there is none. */
static bool cgroup_find(const char *root, const char *controller, struct machine_cgroup *c)
{
    memset(c, 0, sizeof *c);
    char text[TEXT_CAP], line[PATH_CAP], full[PATH_CAP];
    if (!text_of(root, "/proc/self/cgroup", text, sizeof text)) return false;
    cgroup_path(text, controller, c);
    if (!c->version) return false;
    (void)snprintf(full, sizeof full, "%s/proc/self/mountinfo", root);
    FILE *f = fopen(full, "re");
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) found = cgroup_mount(line, controller, c);
    if (f) (void)fclose(f);
    if (strstr(c->path, "..")) c->path[0] = 0; /* outside our namespace: its root is what we see */
    return found;
}

/* Reads `name` of the group at c->path. */
static bool cgroup_text(const char *root, const struct machine_cgroup *c, const char *name, char *buf,
                        size_t cap)
{
    char path[PATH_CAP];
    const char *dir = strcmp(c->path, "/") ? c->path : "";
    int n = snprintf(path, sizeof path, "%s%s/%s", c->mount, dir, name);
    return n > 0 && (size_t)n < sizeof path && text_of(root, path, buf, cap);
}

/* Steps to the parent group; false at the root. */
static bool cgroup_up(struct machine_cgroup *c)
{
    char *slash = strrchr(c->path, '/');
    if (!slash) return false;
    *slash = 0;
    return true;
}

/* What one group allows: limit, use and reclaimable page cache. */
static void cgroup_memory_at(const char *root, const struct machine_cgroup *c, struct machine *m)
{
    char text[TEXT_CAP];
    bool v2 = c->version == 2;
    if (!cgroup_text(root, c, v2 ? "memory.max" : "memory.limit_in_bytes", text, sizeof text))
        return;
    if (text[0] < '0' || text[0] > '9') return; /* "max" */
    uint64_t limit = strtoull(text, NULL, 10);
    if (limit >= UINT64_MAX / 4) return; /* v1's way of saying: none */
    uint64_t used = 0, cache = 0;
    if (cgroup_text(root, c, v2 ? "memory.current" : "memory.usage_in_bytes", text, sizeof text))
        used = strtoull(text, NULL, 10);
    if (cgroup_text(root, c, "memory.stat", text, sizeof text))
        cache = number_after(text, v2 ? "inactive_file" : "total_inactive_file") +
                number_after(text, v2 ? "active_file" : "total_active_file");
    uint64_t held = used > cache ? used - cache : 0;
    uint64_t headroom = limit > held ? limit - held : 0;
    if (limit < m->cgroup_limit) {
        m->cgroup_limit = limit;
        m->cgroup_used = used;
    }
    if (headroom < m->cgroup_headroom) m->cgroup_headroom = headroom;
}

static void memory_of(const char *root, struct machine_cgroup c, struct machine *m)
{
    char text[TEXT_CAP];
    m->ram_bytes = m->ram_available = MACHINE_NONE;
    m->cgroup_limit = m->cgroup_headroom = MACHINE_NONE;
    m->cgroup_used = 0;
    if (text_of(root, "/proc/meminfo", text, sizeof text)) {
        m->ram_bytes = number_after(text, "MemTotal") * 1024;
        m->ram_available = number_after(text, "MemAvailable") * 1024;
    }
    if (!c.version) return;
    do cgroup_memory_at(root, &c, m);
    while (cgroup_up(&c));
}

void machine_memory(struct machine *m, const char *root)
{
    struct machine_cgroup c;
    if (!root) root = "";
    if (!cgroup_find(root, "memory", &c)) c.version = 0;
    memory_of(root, c, m);
}

/* ---- memory pressure ---- */

void machine_watch_open(struct machine_watch *w, const char *root)
{
    memset(w, 0, sizeof *w);
    (void)snprintf(w->root, sizeof w->root, "%s", root ? root : "");
    if (!cgroup_find(w->root, "memory", &w->group)) w->group.version = 0;
}

/* "some avg10=1.23 avg60=..." */
static double stalled(const char *text)
{
    const char *at = strstr(text, "some avg10=");
    return at ? strtod(at + strlen("some avg10="), NULL) : 0;
}

void machine_watch_read(const struct machine_watch *w, struct machine_room *r)
{
    char text[512];
    struct machine m;
    memory_of(w->root, w->group, &m);
    r->available = m.ram_available < m.cgroup_headroom ? m.ram_available : m.cgroup_headroom;
    r->total = m.ram_bytes < m.cgroup_limit ? m.ram_bytes : m.cgroup_limit;
    r->stalled = 0;
    if (w->group.version == 2 && cgroup_text(w->root, &w->group, "memory.pressure", text, sizeof text))
        r->stalled = stalled(text);
    if (text_of(w->root, "/proc/pressure/memory", text, sizeof text) && stalled(text) > r->stalled)
        r->stalled = stalled(text);
}

/* Cores' worth of CPU time, the tightest on the way up; 0 = no limit. */
static double cgroup_quota(const char *root)
{
    struct machine_cgroup c;
    char text[256];
    double best = 0;
    if (!cgroup_find(root, "cpu", &c)) return 0;
    do {
        double quota = -1, period = 100000;
        if (c.version == 2) {
            if (cgroup_text(root, &c, "cpu.max", text, sizeof text) &&
                sscanf(text, "%lf %lf", &quota, &period) < 1)
                quota = -1; /* "max" */
        } else if (cgroup_text(root, &c, "cpu.cfs_quota_us", text, sizeof text)) {
            quota = strtod(text, NULL);
            if (cgroup_text(root, &c, "cpu.cfs_period_us", text, sizeof text))
                period = strtod(text, NULL);
        }
        if (quota > 0 && period > 0 && (best <= 0 || quota / period < best)) best = quota / period;
    } while (cgroup_up(&c));
    return best;
}

/* ---- cores and caches ---- */

static int count(hwloc_topology_t t, hwloc_obj_type_t type)
{
    int n = hwloc_get_nbobjs_by_type(t, type);
    return n > 0 ? n : 0;
}

static uint64_t cache_size(hwloc_topology_t t, hwloc_obj_type_t type, int *line)
{
    hwloc_obj_t o = hwloc_get_obj_by_type(t, type, 0);
    if (!o) return 0;
    if (line) *line = (int)o->attr->cache.linesize;
    return o->attr->cache.size;
}

/* Cores with at least one hardware thread in this process' affinity mask. */
static int cores_bound(hwloc_topology_t t, hwloc_obj_type_t type, int n)
{
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    if (!set) return n;
    bool known = !hwloc_get_cpubind(t, set, HWLOC_CPUBIND_PROCESS);
    int usable = 0;
    for (int i = 0; i < n && known; i++)
        usable += hwloc_bitmap_intersects(hwloc_get_obj_by_type(t, type, (unsigned)i)->cpuset, set);
    hwloc_bitmap_free(set);
    return usable ? usable : n;
}

static enum status topology(struct machine *m, struct err *e)
{
    hwloc_topology_t t;
    if (hwloc_topology_init(&t)) return err_set(e, ERR_MEMORY, "hwloc cannot start");
    if (hwloc_topology_load(t)) {
        hwloc_topology_destroy(t);
        return err_set(e, ERR_IO, "hwloc cannot read this machine's topology");
    }
    m->packages = count(t, HWLOC_OBJ_PACKAGE);
    m->numa_nodes = count(t, HWLOC_OBJ_NUMANODE);
    m->threads = count(t, HWLOC_OBJ_PU);
    m->cores = count(t, HWLOC_OBJ_CORE);
    hwloc_obj_type_t core = m->cores ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
    if (!m->cores) m->cores = m->threads;
    m->cores_usable = cores_bound(t, core, m->cores);
    m->l1d_bytes = cache_size(t, HWLOC_OBJ_L1CACHE, &m->line_bytes);
    m->l2_bytes = cache_size(t, HWLOC_OBJ_L2CACHE, NULL);
    m->l3_bytes = cache_size(t, HWLOC_OBJ_L3CACHE, NULL);
    m->n_l2 = count(t, HWLOC_OBJ_L2CACHE);
    m->n_l3 = count(t, HWLOC_OBJ_L3CACHE);
    hwloc_obj_t o = hwloc_get_obj_by_type(t, HWLOC_OBJ_PACKAGE, 0);
    const char *name = o ? hwloc_obj_get_info_by_name(o, "CPUModel") : NULL;
    copy_line(m->cpu, sizeof m->cpu, name ? name : "unknown");
    hwloc_topology_destroy(t);
    return OK;
}

/* ---- disks, GPU, huge pages ---- */

static bool is_real_disk(const char *name)
{
    static const char *const virtual_disks[] = {"loop", "ram", "zram", "sr", "fd", "dm-", "md"};
    for (size_t i = 0; i < sizeof virtual_disks / sizeof *virtual_disks; i++)
        if (!strncmp(name, virtual_disks[i], strlen(virtual_disks[i]))) return false;
    return name[0] != '.';
}

/* hwloc lists block devices only below PCI devices that it may read, so the kernel's own list. */
static void find_disks(struct machine *m, const char *root)
{
    char path[PATH_CAP], text[64];
    (void)snprintf(path, sizeof path, "%s/sys/block", root);
    DIR *dir = opendir(path);
    struct dirent *d;
    while (dir && m->n_disks < MACHINE_DISKS && (d = readdir(dir)) != NULL) {
        struct machine_disk *k = &m->disk[m->n_disks];
        size_t len = strlen(d->d_name);
        if (!is_real_disk(d->d_name) || len >= sizeof k->name) continue;
        (void)snprintf(path, sizeof path, "/sys/block/%s/size", d->d_name);
        if (!text_of(root, path, text, sizeof text)) continue;
        memcpy(k->name, d->d_name, len + 1);
        k->bytes = strtoull(text, NULL, 10) * 512;
        (void)snprintf(path, sizeof path, "/sys/block/%s/queue/rotational", d->d_name);
        k->rotational = text_of(root, path, text, sizeof text) && text[0] == '1';
        m->n_disks++;
    }
    if (dir) (void)closedir(dir);
}

/* The driver's name of the first card, or the mere presence of one on the PCI bus. */
static void find_gpu(struct machine *m, const char *root)
{
    char path[PATH_CAP], text[1024], vendor[32];
    struct dirent *d;
    copy_line(m->gpu, sizeof m->gpu, "none");
    (void)snprintf(path, sizeof path, "%s/proc/driver/nvidia/gpus", root);
    DIR *dir = opendir(path);
    while (dir && (d = readdir(dir)) != NULL) {
        (void)snprintf(path, sizeof path, "/proc/driver/nvidia/gpus/%s/information", d->d_name);
        if (d->d_name[0] == '.' || !text_of(root, path, text, sizeof text)) continue;
        const char *model = strstr(text, "Model:");
        model = model ? model + strlen("Model:") : "NVIDIA";
        copy_line(m->gpu, sizeof m->gpu, model + strspn(model, " \t"));
        break;
    }
    if (dir) (void)closedir(dir);
    if (strcmp(m->gpu, "none")) return;
    (void)snprintf(path, sizeof path, "%s/sys/bus/pci/devices", root);
    dir = opendir(path);
    while (dir && (d = readdir(dir)) != NULL) {
        (void)snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/class", d->d_name);
        if (!text_of(root, path, text, sizeof text) || strncmp(text, "0x03", 4)) continue;
        (void)snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vendor", d->d_name);
        if (text_of(root, path, vendor, sizeof vendor) && !strncmp(vendor, "0x10de", 6))
            copy_line(m->gpu, sizeof m->gpu, "NVIDIA (its driver is not loaded)");
    }
    if (dir) (void)closedir(dir);
}

/* The file shows all choices with the current one in brackets. */
static void find_huge_pages(struct machine *m, const char *root)
{
    char text[128];
    copy_line(m->huge_pages, sizeof m->huge_pages, "unknown");
    if (!text_of(root, "/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text)) return;
    char *open = strchr(text, '['), *close = open ? strchr(open, ']') : NULL;
    if (!close) return;
    *close = 0;
    copy_line(m->huge_pages, sizeof m->huge_pages, open + 1);
}

enum status machine_detect(struct machine *m, const char *root, struct err *e)
{
    if (!root) root = "";
    memset(m, 0, sizeof *m);
    enum status s = topology(m, e);
    if (s) return s;
    copy_line(m->tier, sizeof m->tier, cpu_tier_name(cpu_tier_best()));
    machine_memory(m, root);
    m->cpu_quota = cgroup_quota(root);
    if (m->cpu_quota > 0 && m->cpu_quota < m->cores_usable) {
        m->cores_usable = (int)m->cpu_quota;
        if (m->cores_usable < m->cpu_quota) m->cores_usable++;
    }
    find_disks(m, root);
    find_gpu(m, root);
    find_huge_pages(m, root);
    return OK;
}

void machine_disk_of(const struct machine *m, const char *path, char name[32])
{
    char link[PATH_CAP], real[4096];
    struct stat st;
    size_t best = 0;
    name[0] = 0;
    if (stat(path, &st)) return;
    (void)snprintf(link, sizeof link, "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
    if (!realpath(link, real)) return;
    /* A partition's place is below its disk's: .../block/nvme0n1/nvme0n1p2. */
    for (int i = 0; i < m->n_disks; i++) {
        char part[64];
        (void)snprintf(part, sizeof part, "/%s", m->disk[i].name);
        const char *at = strstr(real, part);
        size_t n = strlen(m->disk[i].name);
        if (at && n > best && (at[n + 1] == '/' || !at[n + 1])) {
            best = n;
            memcpy(name, m->disk[i].name, n + 1);
        }
    }
}

/* ---- where measurements are kept ---- */

static uint64_t hash_text(uint64_t h, const char *s)
{
    while (*s) h = (h ^ (unsigned char)*s++) * 0x100000001b3u; /* FNV-1a */
    return h;
}

static uint64_t machine_key(const char *path)
{
    char text[TEXT_CAP], line[256] = "", fact[512];
    struct stat st = {.st_dev = 0};
    cpu_set_t mine;
    struct machine m;
    if (text_of("", "/proc/cpuinfo", text, sizeof text) && strstr(text, "model name"))
        copy_line(line, sizeof line, strstr(text, "model name"));
    const int cores = sched_getaffinity(0, sizeof mine, &mine) ? 0 : CPU_COUNT(&mine);
    machine_memory(&m, NULL);
    if (path && stat(path, &st)) st.st_dev = 0;
    (void)snprintf(fact, sizeof fact, "%s|%s|%d|%llu|%u:%u", line, cpu_tier_name(cpu_tier_best()),
                   cores, (unsigned long long)(m.ram_bytes >> 26), major(st.st_dev),
                   minor(st.st_dev));
    return hash_text(0xcbf29ce484222325u, fact);
}

bool machine_cache(const char *path, bool make, char *file, size_t cap)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char dir[PATH_CAP];
    const bool own = xdg && xdg[0] == '/';
    if (!own && (!home || home[0] != '/')) return false;
    int n = snprintf(dir, sizeof dir, "%s%s", own ? xdg : home, own ? "" : "/.cache");
    if (n < 0 || (size_t)n + 16 > sizeof dir) return false;
    if (make) (void)mkdir(dir, 0700);
    memcpy(dir + n, "/tessera", sizeof "/tessera");
    if (make) (void)mkdir(dir, 0700);
    n = snprintf(file, cap, "%s/machine-%016llx.txt", dir, (unsigned long long)machine_key(path));
    return n > 0 && (size_t)n < cap;
}

/* ---- measuring memory ---- */

enum { RAM_TASK = 4 << 20, RAM_PASSES = 5, RAM_AHEAD = 4096 };

struct ram_job {
    const unsigned char *data;
    size_t task_bytes;
    _Atomic uint64_t sum; /* keeps the loads alive */
};

static void ram_task(void *arg, int task, int worker)
{
    struct ram_job *j = arg;
    const unsigned char *p = j->data + (size_t)task * j->task_bytes;
    (void)worker;
#if defined(__SSE2__)
    /* Two streams, asked for ahead: one that leaves it to the hardware is up to a third slower. */
    __m128i a = _mm_setzero_si128(), b = a, c = a, d = a;
    const size_t half = j->task_bytes / 2;
    for (size_t i = 0; i < half; i += 64)
        for (const unsigned char *q = p + i; q <= p + i + half; q += half) {
            _mm_prefetch((const char *)q + RAM_AHEAD, _MM_HINT_T0);
            a = _mm_xor_si128(a, _mm_load_si128((const __m128i *)q));
            b = _mm_xor_si128(b, _mm_load_si128((const __m128i *)(q + 16)));
            c = _mm_xor_si128(c, _mm_load_si128((const __m128i *)(q + 32)));
            d = _mm_xor_si128(d, _mm_load_si128((const __m128i *)(q + 48)));
        }
    a = _mm_xor_si128(_mm_xor_si128(a, b), _mm_xor_si128(c, d));
    uint64_t sum = (uint64_t)_mm_cvtsi128_si64(a);
#else
    uint64_t sum = 0, w[4];
    for (size_t i = 0; i < j->task_bytes; i += sizeof w) {
        memcpy(w, p + i, sizeof w);
        sum ^= w[0] ^ w[1] ^ w[2] ^ w[3];
    }
#endif
    atomic_fetch_xor(&j->sum, sum);
}

enum status machine_measure_ram(int n_threads, uint64_t bytes, double *gb_per_s, struct err *e)
{
    *gb_per_s = 0;
    size_t huge = (size_t)2 << 20;
    bytes = (bytes + RAM_TASK - 1) / RAM_TASK * RAM_TASK;
    size_t map_bytes = (size_t)bytes + huge;
    void *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return err_set(e, ERR_MEMORY, "no memory to measure the read bandwidth");
    unsigned char *data = (unsigned char *)(((uintptr_t)map + huge - 1) / huge * huge);
#ifdef MADV_HUGEPAGE
    (void)madvise(data, (size_t)bytes, MADV_HUGEPAGE);
#endif
    memset(data, 1, (size_t)bytes); /* untouched pages would all be the zero page */
    struct pool *pool;
    enum status s = pool_open(n_threads, &pool, e);
    if (!s) {
        struct ram_job j = {.data = data, .task_bytes = RAM_TASK};
        for (int pass = 0; pass < RAM_PASSES; pass++) {
            double t = os_seconds();
            pool_run(pool, ram_task, &j, (int)(bytes / RAM_TASK));
            t = os_seconds() - t;
            if (t > 0 && (double)bytes / t / 1e9 > *gb_per_s) *gb_per_s = (double)bytes / t / 1e9;
        }
        pool_close(pool);
    }
    (void)munmap(map, map_bytes);
    return s;
}
