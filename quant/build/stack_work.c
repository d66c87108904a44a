/* The work file of a stack's build (stack_build.h), and beside it which of its tensors are done, so that a
 * build that was interrupted goes on.  Owns both files until stack_work_close().
 *
 * DESIGN.  The side file begins with what the work was made from (hashed: the source's files, tensors and
 * times, codec, importance) and has a record for every tensor whose bytes are in the work file, synced
 * before.  A record that is torn, or does not add up, ends the list.  Another beginning: all anew. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "quant/build/stack_int.h"

struct head {
    char magic[8];
    uint64_t of;
};

struct record {
    uint64_t part, sum; /* sum: of what follows */
};

/* What the work is made from. */
static uint64_t identity(const struct stack_build *b)
{
    uint64_t h = stack_hash(STACK_HASH, (int[]){(int)b->o.base, b->o.rank, b->o.n_levels}, 3 * sizeof(int));
    for (int i = 0; i < gguf_n_shards(b->plan.in); i++) {
        struct stat st;
        if (stat(gguf_path(b->plan.in, i), &st)) continue; /* encoding will say it */
        h = stack_hash(h, (int64_t[]){st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec},
                       3 * sizeof(int64_t));
    }
    for (int i = 0; i < b->n_parts; i++) {
        const struct gguf_tensor *t = b->part[i].t->in;
        const struct imatrix_entry *x = b->part[i].t->importance;
        h = stack_hash(h, t->name.s, t->name.n);
        h = stack_hash(h, t->dim, sizeof t->dim);
        h = stack_hash(h, (uint64_t[]){t->type, t->offset}, 2 * sizeof(uint64_t));
        if (!x) continue;
        h = stack_hash(h, x->sum, sizeof *x->sum * x->n_sums);
        h = stack_hash(h, x->count, sizeof *x->count * x->n_counts);
    }
    return h;
}

static bool read_all(int fd, void *p, size_t n)
{
    for (size_t done = 0; done < n;) {
        const ssize_t k = read(fd, (char *)p + done, n - done);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return false;
        done += (size_t)k;
    }
    return true;
}

/* What another build has done: parts are marked, the side file ends behind them.  A part beyond the end of
 * the work file (somebody has removed that one alone) is not done. */
static void go_on(struct stack_build *b)
{
    off_t end = sizeof(struct head);
    struct record r;
    struct stat st;
    if (fstat(b->work, &st)) return;
    while (read_all(b->state, &r, sizeof r) && r.part < (uint64_t)b->n_parts) {
        struct stack_part *p = &b->part[r.part];
        const size_t n = sizeof *p->mat * (size_t)p->n_mats;
        struct stack_mat *m = malloc(n);
        const bool good = (uint64_t)st.st_size >= p->at + p->stride * (uint64_t)p->n_mats && m &&
                          read_all(b->state, m, n) && stack_hash(STACK_HASH, m, n) == r.sum;
        if (good) memcpy(p->mat, m, n);
        free(m);
        if (!good) break;
        b->n_coded += !p->coded;
        p->coded = true;
        end += (off_t)(sizeof r + n);
    }
    if (ftruncate(b->state, end) || lseek(b->state, end, SEEK_SET) < 0) b->n_coded = -1;
}

static enum status put_state(const struct stack_build *b, const void *p, size_t n, struct err *e)
{
    for (size_t done = 0; done < n;) {
        const ssize_t k = write(b->state, (const char *)p + done, n - done);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return err_set(e, ERR_IO, "cannot write %s: %s", b->state_path, strerror(errno));
        done += (size_t)k;
    }
    return OK;
}

static char *path_of(const char *out, const char *end)
{
    char *s = malloc(strlen(out) + strlen(end) + 1);
    if (s) (void)strcat(strcpy(s, out), end);
    return s;
}

static enum status open_file(int *fd, char **path, int flags, struct err *e)
{
    *fd = open(*path, O_RDWR | O_CREAT | O_CLOEXEC | flags, 0666);
    if (*fd >= 0) return OK;
    err_set(e, ERR_IO, "cannot create %s: %s", *path, strerror(errno));
    free(*path); /* not ours to remove */
    *path = NULL;
    return e->code;
}

enum status stack_work_open(struct stack_build *b, const char *out, struct err *e)
{
    struct head now = {"TSRWORK", identity(b)}, was = {{0}, 0};
    b->work_path = path_of(out, ".work.part");
    b->state_path = path_of(out, ".done.part");
    if (!b->work_path || !b->state_path) return err_set(e, ERR_MEMORY, "no memory for a file name");
    enum status s = open_file(&b->work, &b->work_path, 0, e);
    if (!s) s = open_file(&b->state, &b->state_path, 0, e);
    if (s) return s;
    if (read_all(b->state, &was, sizeof was) && !memcmp(&was, &now, sizeof now)) go_on(b);
    if (b->n_coded > 0) return OK;
    for (int i = 0; i < b->n_parts; i++) b->part[i].coded = false;
    b->n_coded = 0;
    if (ftruncate(b->work, 0) || ftruncate(b->state, 0) || lseek(b->state, 0, SEEK_SET) < 0)
        return err_set(e, ERR_IO, "cannot write %s: %s", b->work_path, strerror(errno));
    return put_state(b, &now, sizeof now, e);
}

enum status stack_work_coded(struct stack_build *b, struct stack_part *p, struct err *e)
{
    const size_t n = sizeof *p->mat * (size_t)p->n_mats;
    const struct record r = {(uint64_t)(p - b->part), stack_hash(STACK_HASH, p->mat, n)};
    if (fdatasync(b->work))
        return err_set(e, ERR_IO, "cannot write %s: %s", b->work_path, strerror(errno));
    enum status s = put_state(b, &r, sizeof r, e);
    if (!s) s = put_state(b, p->mat, n, e);
    p->coded = !s;
    return s;
}

void stack_work_close(struct stack_build *b)
{
    if (b->work >= 0) close(b->work);
    if (b->state >= 0) close(b->state);
    if (b->work_path && !b->keep) unlink(b->work_path);
    if (b->state_path && !b->keep) unlink(b->state_path);
    free(b->work_path);
    free(b->state_path);
    b->work = b->state = -1;
    b->work_path = b->state_path = NULL;
}

enum status stack_work_put(const struct stack_build *b, const void *p, size_t n, uint64_t at,
                           struct err *e)
{
    for (size_t done = 0; done < n;) {
        const ssize_t k = pwrite(b->work, (const char *)p + done, n - done, (off_t)(at + done));
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0)
            return err_set(e, ERR_IO, "cannot write %s: %s", b->work_path, strerror(errno));
        done += (size_t)k;
    }
    return OK;
}

enum status stack_work_get(const struct stack_build *b, void *p, size_t n, uint64_t at, struct err *e)
{
    for (size_t done = 0; done < n;) {
        const ssize_t k = pread(b->work, (char *)p + done, n - done, (off_t)(at + done));
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return err_set(e, ERR_IO, "cannot read %s back", b->work_path);
        done += (size_t)k;
    }
    return OK;
}
