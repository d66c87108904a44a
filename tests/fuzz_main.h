/* The main of a fuzz target without a fuzzer: replays the files, or all files of the folders, given
 * as arguments.  Include it last, after LLVMFuzzerTestOneInput; with -DFUZZER it is nothing, since
 * libFuzzer brings its own main.  An input that breaks a promise aborts.  A target that can write
 * seeds defines FUZZ_SEEDS as its function of a folder: `--seeds FOLDER`. */
#ifndef TESTS_FUZZ_MAIN_H
#define TESTS_FUZZ_MAIN_H
#ifndef FUZZER

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "moe/base/osfile.h"

static int fuzz_replay(const char *path);

static int fuzz_replay_folder(const char *path)
{
    DIR *d = opendir(path);
    int bad = !d, n = 0;
    for (struct dirent *f; d && (f = readdir(d));) {
        char file[1024];
        if (f->d_name[0] == '.') continue;
        snprintf(file, sizeof file, "%s/%s", path, f->d_name);
        bad |= fuzz_replay(file);
        n++;
    }
    if (d) closedir(d);
    printf("%s: %d inputs\n", path, n);
    return bad;
}

/* 0 unless the file cannot be read; a failed check aborts. */
static int fuzz_replay(const char *path)
{
    struct stat st;
    struct osfile f;
    struct err e;
    if (!stat(path, &st) && S_ISDIR(st.st_mode)) return fuzz_replay_folder(path);
    err_clear(&e);
    uint8_t *p = NULL;
    enum status s = osfile_open(&f, path, 0, NULL, &e);
    if (!s) {
        p = malloc(f.size ? (size_t)f.size : 1);
        s = p ? osfile_read(&f, p, (size_t)f.size, 0, &e) : ERR_MEMORY;
        if (!s) (void)LLVMFuzzerTestOneInput(p, (size_t)f.size);
        osfile_close(&f);
    }
    free(p);
    if (s) fprintf(stderr, "%s: %s\n", path, s == ERR_MEMORY ? "no memory" : e.msg);
    return s != OK;
}

int main(int argc, char **argv)
{
    int bad = 0;
#ifdef FUZZ_SEEDS
    if (argc == 3 && !strcmp(argv[1], "--seeds")) return FUZZ_SEEDS(argv[2]);
#endif
    for (int i = 1; i < argc; i++) bad |= fuzz_replay(argv[i]);
    return bad;
}

#endif
#endif
