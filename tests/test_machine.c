/* moe/base/machine: fake kernel files for limits, the text form, and the real machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "moe/base/machine.h"

/* A tree of small files under a temporary folder, which stands for "/". */
static char root[] = "/tmp/tessera-machine-XXXXXX";

static void put(const char *path, const char *text)
{
    char full[512];
    (void)snprintf(full, sizeof full, "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = 0;
        (void)mkdir(full, 0755);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

static void clear_root(void)
{
    char cmd[128];
    (void)snprintf(cmd, sizeof cmd, "rm -rf %s/*", root);
    assert_int_equal(system(cmd), 0);
}

static int make_root(void **state)
{
    (void)state;
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    clear_root();
    return rmdir(root);
}

static const char meminfo[] = "MemTotal:       16777216 kB\nMemFree:         1000000 kB\n"
                              "MemAvailable:    8388608 kB\n";

static void no_files_means_not_known(void **state)
{
    (void)state;
    struct machine m;
    memset(&m, 0, sizeof m);
    clear_root();
    machine_memory(&m, root);
    assert_true(m.ram_bytes == MACHINE_NONE && m.cgroup_limit == MACHINE_NONE);
    assert_true(m.cgroup_headroom == MACHINE_NONE);
    assert_int_equal(machine_detect(&m, root, NULL), OK);
    assert_string_equal(m.huge_pages, "unknown");
    assert_string_equal(m.gpu, "none");
    assert_int_equal(m.n_disks, 0);
}

static void cgroup_v2_takes_the_tightest(void **state)
{
    (void)state;
    struct machine m;
    clear_root();
    put("/proc/meminfo", meminfo);
    put("/proc/self/cgroup", "0::/user.slice/job\n");
    put("/proc/self/mountinfo",
        "25 30 0:23 / /proc rw,nosuid - proc proc rw\n"
        "31 30 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
    put("/sys/fs/cgroup/user.slice/memory.max", "4294967296\n");
    put("/sys/fs/cgroup/user.slice/memory.current", "3221225472\n");
    put("/sys/fs/cgroup/user.slice/memory.stat",
        "anon 1073741824\nfile 2147483648\ninactive_file 1073741824\nactive_file 536870912\n");
    put("/sys/fs/cgroup/user.slice/job/memory.max", "max\n");
    put("/sys/fs/cgroup/user.slice/job/memory.current", "1000\n");
    put("/sys/fs/cgroup/user.slice/job/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/user.slice/cpu.max", "50000 100000\n");
    machine_memory(&m, root);
    assert_true(m.ram_bytes == 16ull << 30);
    assert_true(m.ram_available == 8ull << 30);
    assert_true(m.cgroup_limit == 4ull << 30);
    assert_true(m.cgroup_used == 3ull << 30);
    assert_true(m.cgroup_headroom == (4ull << 30) - (3ull << 30) + (3ull << 29));
    assert_int_equal(machine_detect(&m, root, NULL), OK);
    assert_true(m.cpu_quota > 0.49 && m.cpu_quota < 0.51);
    assert_int_equal(m.cores_usable, 1);
}

/* In a container, v1 shows the host's path in /proc/self/cgroup but mounts only its own group. */
static void cgroup_v1_strips_the_mount_root(void **state)
{
    (void)state;
    struct machine m;
    clear_root();
    put("/proc/meminfo", meminfo);
    put("/proc/self/cgroup", "12:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n");
    put("/proc/self/mountinfo",
        "40 39 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "41 39 0:34 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        "42 39 0:35 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n");
    put("/sys/fs/cgroup/memory/memory.stat",
        "inactive_file 5\ntotal_inactive_file 4096\ntotal_active_file 0\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    machine_memory(&m, root);
    assert_true(m.cgroup_limit == 2ull << 30);
    assert_true(m.cgroup_headroom == (1ull << 30) + 4096);
    assert_int_equal(machine_detect(&m, root, NULL), OK);
    assert_true(m.cpu_quota > 1.49 && m.cpu_quota < 1.51);
}

static void cgroup_v1_without_limit(void **state)
{
    (void)state;
    struct machine m;
    clear_root();
    put("/proc/self/cgroup", "4:memory:/process_api/x\n0::/\n");
    put("/proc/self/mountinfo",
        "41 39 0:34 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    machine_memory(&m, root);
    assert_true(m.cgroup_limit == MACHINE_NONE && m.cgroup_headroom == MACHINE_NONE);
    put("/proc/self/cgroup", "0::/../../elsewhere\n");
    put("/proc/self/mountinfo", "41 39 0:34 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
    put("/sys/fs/cgroup/memory.max", "1048576\n");
    machine_memory(&m, root);
    assert_true(m.cgroup_limit == 1 << 20);
}

static void garbage_is_survived(void **state)
{
    (void)state;
    static const char *const junk[] = {"", "\n", ":::\n", "0:\n", "::", "1:memory\n", "4:memory:",
                                       "\xff\xfe\n:\n", "0::\n0::\n"};
    struct machine m;
    for (size_t i = 0; i < sizeof junk / sizeof *junk; i++) {
        clear_root();
        put("/proc/meminfo", junk[i]);
        put("/proc/self/cgroup", junk[i]);
        put("/proc/self/mountinfo", junk[i]);
        put("/sys/kernel/mm/transparent_hugepage/enabled", junk[i]);
        assert_int_equal(machine_detect(&m, root, NULL), OK);
    }
}

static void disks_gpu_huge_pages(void **state)
{
    (void)state;
    struct machine m;
    clear_root();
    put("/sys/block/nvme0n1/size", "1000\n");
    put("/sys/block/nvme0n1/queue/rotational", "0\n");
    put("/sys/block/loop0/size", "8\n");
    put("/sys/block/sda/size", "2000\n");
    put("/sys/block/sda/queue/rotational", "1\n");
    put("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    put("/sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n");
    put("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n");
    assert_int_equal(machine_detect(&m, root, NULL), OK);
    assert_int_equal(m.n_disks, 2);
    for (int i = 0; i < 2; i++) {
        bool spins = !strcmp(m.disk[i].name, "sda");
        assert_int_equal(m.disk[i].rotational, spins);
        assert_true(m.disk[i].bytes == (spins ? 2000u : 1000u) * 512u);
    }
    assert_string_equal(m.huge_pages, "madvise");
    assert_non_null(strstr(m.gpu, "not loaded"));
    put("/proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t NVIDIA H200\nIRQ:   	 42\n");
    assert_int_equal(machine_detect(&m, root, NULL), OK);
    assert_string_equal(m.gpu, "NVIDIA H200");
}

static void the_real_one_makes_sense(void **state)
{
    (void)state;
    struct machine m;
    struct err e;
    err_clear(&e);
    assert_int_equal(machine_detect(&m, NULL, &e), OK);
    assert_true(m.cores >= 1 && m.cores_usable >= 1 && m.cores_usable <= m.cores);
    assert_true(m.threads >= m.cores);
    assert_true(m.ram_bytes != MACHINE_NONE && m.ram_available <= m.ram_bytes);
    double gb_s = 0;
    assert_int_equal(machine_measure_ram(2, 4 << 20, &gb_s, &e), OK);
    assert_true(gb_s > 0);
}

static void text_round_trip(void **state)
{
    (void)state;
    struct machine m, n;
    struct err e;
    char path[64];
    err_clear(&e);
    assert_int_equal(machine_detect(&m, NULL, &e), OK);
    m.ram_read_1 = 12.5;
    m.cgroup_limit = 6ull << 30;
    m.cgroup_headroom = MACHINE_NONE;
    (void)snprintf(path, sizeof path, "%s/m.txt", root);
    assert_int_equal(machine_write(&m, path, &e), OK);
    assert_int_equal(machine_read(&n, path, &e), OK);
    assert_string_equal(m.cpu, n.cpu);
    assert_string_equal(m.gpu, n.gpu);
    assert_int_equal(m.cores, n.cores);
    assert_true(n.ram_read_1 == 12.5 && n.cgroup_limit == 6ull << 30);
    assert_true(n.cgroup_headroom == MACHINE_NONE && n.ram_bytes == m.ram_bytes);
    assert_int_equal(n.n_disks, m.n_disks);
    for (int i = 0; i < m.n_disks; i++) {
        assert_string_equal(n.disk[i].name, m.disk[i].name);
        assert_true(n.disk[i].bytes == m.disk[i].bytes);
    }
}

static enum status read_as(const char *text, struct machine *m, struct err *e)
{
    char path[64];
    put("/m.txt", text);
    (void)snprintf(path, sizeof path, "%s/m.txt", root);
    err_clear(e);
    return machine_read(m, path, e);
}

static void text_by_hand(void **state)
{
    (void)state;
    struct machine m;
    struct err e;
    assert_int_equal(read_as("# mine\n\n  cores 16\r\nram_bytes 128G\ncpu My  CPU 9000\n"
                             "disk nvme0n1 2T ssd\ngpu none", &m, &e), OK);
    assert_int_equal(m.cores, 16);
    assert_true(m.ram_bytes == 128ull << 30 && m.cgroup_limit == MACHINE_NONE);
    assert_string_equal(m.cpu, "My  CPU 9000");
    assert_true(m.n_disks == 1 && m.disk[0].bytes == 2ull << 40);
    static const char *const bad[] = {
        "cores\n", "cores many\n", "cores -1\n", "cores 99999999999\n", "ram_bytes 12X\n",
        "ram_bytes 99999999999999999999\n", "ram_bytes 99999999999T\n", "frobs 3\n",
        "disk a 12\n", "disk a 12 tape\n", "disk a 12 ssd more\n", "ram_read_1_gb_s nan\n",
        "tier avx512-and-much-more-than-fits\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read_as(bad[i], &m, &e), ERR_FORMAT);
        assert_non_null(strstr(e.msg, "line 1"));
    }
    assert_int_equal(machine_read(&m, "/nonexistent/machine", NULL), ERR_IO);
    char huge[2000];
    memset(huge, 'x', sizeof huge - 1);
    huge[sizeof huge - 1] = 0;
    assert_int_equal(read_as(huge, &m, &e), ERR_FORMAT);
}

/* Types survive the text form; the cache file depends on the drive and on the folder. */
static void kept(void **state)
{
    (void)state;
    struct machine m = {.n_types = 2, .disk_small = 0.5, .region = 1.5,
                        .type = {{"Q4_K", 12.5}, {"F16", 20.25}}};
    struct machine back;
    struct err e;
    char path[64], file[300], other[300];
    err_clear(&e);
    (void)snprintf(path, sizeof path, "%s/types", root);
    assert_int_equal(machine_write(&m, path, &e), OK);
    assert_int_equal(machine_read(&back, path, &e), OK);
    assert_int_equal(back.n_types, 2);
    assert_string_equal(back.type[1].name, "F16");
    assert_true(back.type[0].read == 12.5 && back.region == 1.5 && back.disk_small == 0.5);
    assert_int_equal(setenv("XDG_CACHE_HOME", root, 1), 0);
    assert_true(machine_cache(NULL, true, file, sizeof file));
    assert_true(machine_cache("/proc/self/stat", false, other, sizeof other));
    assert_string_not_equal(file, other);
    assert_int_equal(machine_write(&m, file, &e), OK); /* the folder is there */
    assert_true(machine_cache(NULL, false, other, sizeof other));
    assert_string_equal(file, other);
    assert_false(machine_cache(NULL, false, file, 10));
    assert_int_equal(setenv("XDG_CACHE_HOME", "here", 1), 0); /* must be absolute */
    assert_int_equal(setenv("HOME", root, 1), 0);
    assert_true(machine_cache(NULL, false, file, sizeof file));
    assert_non_null(strstr(file, "/.cache/tessera/machine-"));
    assert_int_equal(unsetenv("HOME"), 0);
    assert_false(machine_cache(NULL, false, file, sizeof file));
}

static void disk_measure(void **state)
{
    (void)state;
    struct err e;
    char path[64];
    struct machine m;
    bool direct;
    err_clear(&e);
    (void)snprintf(path, sizeof path, "%s/data", root);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    static char block[1 << 16];
    for (int i = 0; i < 160; i++) assert_int_equal(fwrite(block, 1, sizeof block, f), sizeof block);
    (void)fclose(f);
    assert_int_equal(machine_measure_disk(path, 2, NULL, &m, &direct, &e), OK);
    assert_true(m.disk_read > 0 && m.disk_random > 0 && m.disk_small > 0 && m.disk_wait > 0);
    assert_int_equal(truncate(path, 10), 0); /* smaller than a block: nothing to measure */
    assert_int_equal(machine_measure_disk(path, 2, NULL, &m, &direct, &e), OK);
    assert_true(m.disk_read == 0 && m.disk_random == 0 && m.disk_small == 0);
    assert_int_equal(machine_measure_disk("/nonexistent/file", 2, NULL, &m, &direct, &e), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_files_means_not_known),
        cmocka_unit_test(cgroup_v2_takes_the_tightest),
        cmocka_unit_test(cgroup_v1_strips_the_mount_root),
        cmocka_unit_test(cgroup_v1_without_limit),
        cmocka_unit_test(garbage_is_survived),
        cmocka_unit_test(disks_gpu_huge_pages),
        cmocka_unit_test(the_real_one_makes_sense),
        cmocka_unit_test(text_round_trip),
        cmocka_unit_test(text_by_hand),
        cmocka_unit_test(disk_measure),
        cmocka_unit_test(kept),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
