/* The text form of a machine description: one table of keys serves writer and reader.
 *
 *     # comment
 *     cores 16
 *     ram_bytes 128G
 *     cgroup_limit_bytes none
 *     disk nvme0n1 2000398934016 ssd
 *     type Q4_K 31.250
 *
 * Owns nothing; any thread.  See machine.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/machine.h"
#include "moe/base/osfile.h"

enum kind { KIND_TEXT, KIND_INT, KIND_BYTES, KIND_REAL };

struct field {
    const char *key;
    enum kind kind;
    size_t offset, cap; /* cap: of a text */
};

#define FIELD(key, kind, member) \
    {key, kind, offsetof(struct machine, member), sizeof ((struct machine *)0)->member}

static const struct field fields[] = {
    FIELD("cpu", KIND_TEXT, cpu),
    FIELD("tier", KIND_TEXT, tier),
    FIELD("packages", KIND_INT, packages),
    FIELD("numa_nodes", KIND_INT, numa_nodes),
    FIELD("cores", KIND_INT, cores),
    FIELD("threads", KIND_INT, threads),
    FIELD("cores_usable", KIND_INT, cores_usable),
    FIELD("cpu_quota_cores", KIND_REAL, cpu_quota),
    FIELD("l1d_bytes", KIND_BYTES, l1d_bytes),
    FIELD("l2_bytes", KIND_BYTES, l2_bytes),
    FIELD("l2_count", KIND_INT, n_l2),
    FIELD("l3_bytes", KIND_BYTES, l3_bytes),
    FIELD("l3_count", KIND_INT, n_l3),
    FIELD("line_bytes", KIND_INT, line_bytes),
    FIELD("ram_bytes", KIND_BYTES, ram_bytes),
    FIELD("ram_available_bytes", KIND_BYTES, ram_available),
    FIELD("cgroup_limit_bytes", KIND_BYTES, cgroup_limit),
    FIELD("cgroup_used_bytes", KIND_BYTES, cgroup_used),
    FIELD("cgroup_headroom_bytes", KIND_BYTES, cgroup_headroom),
    FIELD("huge_pages", KIND_TEXT, huge_pages),
    FIELD("gpu", KIND_TEXT, gpu),
    FIELD("ram_read_1_gb_s", KIND_REAL, ram_read_1),
    FIELD("ram_read_n_gb_s", KIND_REAL, ram_read_n),
    FIELD("ram_read_n_threads", KIND_INT, ram_threads),
    FIELD("disk_read_gb_s", KIND_REAL, disk_read),
    FIELD("disk_random_gb_s", KIND_REAL, disk_random),
    FIELD("disk_small_gb_s", KIND_REAL, disk_small),
    FIELD("disk_wait_us", KIND_REAL, disk_wait),
    FIELD("dot_q8_g_s", KIND_REAL, dot_q8),
    FIELD("dot_q8_1_g_s", KIND_REAL, dot_q8_1),
    FIELD("region_us", KIND_REAL, region),
};
enum { N_FIELDS = sizeof fields / sizeof *fields };

/* ---- writing ---- */

static void print_bytes(FILE *to, const char *key, uint64_t v)
{
    if (v == MACHINE_NONE)
        (void)fprintf(to, "%s none\n", key);
    else
        (void)fprintf(to, "%s %llu\n", key, (unsigned long long)v);
}

static void print_field(const struct machine *m, const struct field *f, FILE *to)
{
    const char *at = (const char *)m + f->offset;
    uint64_t bytes;
    double real;
    int whole;
    switch (f->kind) {
    case KIND_TEXT:
        if (*at) (void)fprintf(to, "%s %s\n", f->key, at);
        break;
    case KIND_INT:
        memcpy(&whole, at, sizeof whole);
        (void)fprintf(to, "%s %d\n", f->key, whole);
        break;
    case KIND_BYTES:
        memcpy(&bytes, at, sizeof bytes);
        print_bytes(to, f->key, bytes);
        break;
    case KIND_REAL:
        memcpy(&real, at, sizeof real);
        if (real > 0) (void)fprintf(to, "%s %.3f\n", f->key, real);
        break;
    }
}

void machine_print(const struct machine *m, FILE *to)
{
    (void)fprintf(to, "# Tessera machine description: key value, sizes in bytes or as 64G\n");
    for (int i = 0; i < N_FIELDS; i++) print_field(m, &fields[i], to);
    for (int i = 0; i < m->n_disks; i++)
        (void)fprintf(to, "disk %s %llu %s\n", m->disk[i].name,
                      (unsigned long long)m->disk[i].bytes,
                      m->disk[i].rotational ? "rotating" : "ssd");
    for (int i = 0; i < m->n_types; i++)
        (void)fprintf(to, "type %s %.3f\n", m->type[i].name, m->type[i].read);
}

enum status machine_write(const struct machine *m, const char *path, struct err *e)
{
    struct osfile_writer w;
    enum status s = osfile_writer_open(&w, path, e);
    if (s) return s;
    machine_print(m, w.fp);
    return osfile_writer_commit(&w, e);
}

/* ---- reading ---- */

/* "none", or digits with an optional K, M, G or T (powers of two). */
static bool parse_bytes(const char *s, uint64_t *out)
{
    static const char units[] = "KMGT";
    if (!strcmp(s, "none")) {
        *out = MACHINE_NONE;
        return true;
    }
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (end == s || errno || s[0] == '-') return false;
    const char *unit = *end ? strchr(units, *end) : NULL;
    if (unit) {
        int shift = 10 * (int)(unit - units + 1);
        if (v > UINT64_MAX >> shift) return false;
        v <<= shift;
        end++;
    }
    *out = v;
    return !*end;
}

static bool parse_field(struct machine *m, const struct field *f, const char *value)
{
    char *at = (char *)m + f->offset, *end;
    uint64_t bytes;
    switch (f->kind) {
    case KIND_TEXT: {
        size_t n = strlen(value);
        if (n >= f->cap) return false;
        memcpy(at, value, n + 1);
        return true;
    }
    case KIND_INT: {
        long v = strtol(value, &end, 10);
        if (end == value || *end || v < 0 || v > 1 << 24) return false;
        memcpy(at, &(int){(int)v}, sizeof(int));
        return true;
    }
    case KIND_BYTES:
        if (!parse_bytes(value, &bytes)) return false;
        memcpy(at, &bytes, sizeof bytes);
        return true;
    case KIND_REAL: {
        double v = strtod(value, &end);
        if (end == value || *end || !(v >= 0 && v < 1e12)) return false;
        memcpy(at, &v, sizeof v);
        return true;
    }
    }
    return false;
}

/* "nvme0n1 2000398934016 ssd" */
static bool parse_disk(struct machine *m, const char *value)
{
    if (m->n_disks == MACHINE_DISKS) return false;
    struct machine_disk *k = &m->disk[m->n_disks];
    char bytes[32], kind[16], more;
    if (sscanf(value, "%31s %31s %15s %c", k->name, bytes, kind, &more) != 3) return false;
    k->rotational = !strcmp(kind, "rotating");
    if (!k->rotational && strcmp(kind, "ssd")) return false;
    if (!parse_bytes(bytes, &k->bytes)) return false;
    m->n_disks++;
    return true;
}

/* "Q4_K 31.250": GB/s */
static bool parse_type(struct machine *m, const char *value)
{
    if (m->n_types == MACHINE_TYPES) return false;
    struct machine_type *t = &m->type[m->n_types];
    char more;
    if (sscanf(value, "%15s %lf %c", t->name, &t->read, &more) != 2) return false;
    if (!(t->read >= 0 && t->read < 1e12)) return false;
    m->n_types++;
    return true;
}

/* NULL, or what is wrong with the line. */
static const char *parse_line(struct machine *m, char *line)
{
    line += strspn(line, " \t");
    if (*line == '#' || !*line) return NULL;
    size_t n = strcspn(line, " \t");
    char *value = line + n + strspn(line + n, " \t");
    line[n] = 0;
    if (!strcmp(line, "disk")) return parse_disk(m, value) ? NULL : "wants NAME BYTES ssd|rotating";
    if (!strcmp(line, "type")) return parse_type(m, value) ? NULL : "wants NAME GB_PER_S";
    for (int i = 0; i < N_FIELDS; i++)
        if (!strcmp(line, fields[i].key))
            return parse_field(m, &fields[i], value) ? NULL : "has a bad value";
    return "is not a known key";
}

enum status machine_read(struct machine *m, const char *path, struct err *e)
{
    memset(m, 0, sizeof *m);
    m->ram_bytes = m->ram_available = m->cgroup_limit = m->cgroup_headroom = MACHINE_NONE;
    FILE *f = fopen(path, "r");
    if (!f) return err_set(e, ERR_IO, "cannot open %s: %s", path, strerror(errno));
    char line[512];
    enum status s = OK;
    for (int n = 1; !s && fgets(line, sizeof line, f); n++) {
        size_t len = strlen(line);
        bool whole = len && line[len - 1] == '\n';
        if (!whole && len == sizeof line - 1) {
            s = err_set(e, ERR_FORMAT, "%s line %d is longer than a machine file has", path, n);
            break;
        }
        while (len && strchr("\r\n\t ", line[len - 1])) line[--len] = 0;
        const char *why = parse_line(m, line);
        if (why)
            s = err_set(e, ERR_FORMAT, "%s line %d: \"%.40s\" %s (doctor -o FILE writes one)",
                        path, n, line, why);
    }
    if (!s && ferror(f)) s = err_set(e, ERR_IO, "cannot read %s: %s", path, strerror(errno));
    (void)fclose(f);
    return s;
}
