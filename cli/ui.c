/* The terminal: colours, progress, byte counts, output that notices a closed pipe, and SIGINT.
 *
 * Owns the only mutable globals of the program besides the log sink and the CPU mask: what the
 * SIGINT handler reads and writes, and why stdout failed. */
#include "cli/cli.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "moe/base/osfile.h"

/* ---- terminal ---- */

bool cli_tty(FILE *f) { return isatty(fileno(f)) == 1; }

static bool colours(void)
{
    const char *term = getenv("TERM"), *no = getenv("NO_COLOR");
    return cli_tty(stderr) && !(no && *no) && term && strcmp(term, "dumb");
}

const char *cli_dim(void) { return colours() ? "\033[2m" : ""; }
const char *cli_bold(void) { return colours() ? "\033[1m" : ""; }
const char *cli_plain(void) { return colours() ? "\033[0m" : ""; }

/* Three digits and a unit, from a factor and unit names. */
static const char *scaled(double v, double factor, const char *const *units, char buf[24])
{
    int u = 0;
    while (v >= factor * 0.9995 && units[u + 1]) {
        v /= factor;
        u++;
    }
    (void)snprintf(buf, 24, u && v < 9.95 ? "%.1f%s" : "%.0f%s", v, units[u]);
    return buf;
}

const char *cli_bytes(uint64_t n, char buf[24])
{
    static const char *const units[] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB", NULL};
    return scaled((double)n, 1024, units, buf);
}

const char *cli_count(uint64_t n, char buf[24])
{
    static const char *const units[] = {"", " K", " M", " B", " T", NULL};
    return scaled((double)n, 1000, units, buf);
}

void cli_warn(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "tessera: warning: ");
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
}

/* ---- progress ---- */

bool cli_progress(void *arg, uint64_t done_bytes, uint64_t total_bytes)
{
    struct cli_progress *p = arg;
    if (!cli_tty(stderr)) return !cli_interrupted();
    double now = os_seconds();
    if (!p->started) p->started = p->drawn = now;
    if (now - p->drawn < 0.1) return !cli_interrupted();
    enum { WIDTH = 30 };
    char bar[WIDTH + 1], done[24], total[24], rate[24];
    double part = total_bytes ? (double)done_bytes / (double)total_bytes : 0;
    int filled = part >= 1 ? WIDTH : (int)(part * WIDTH);
    memset(bar, ' ', WIDTH);
    memset(bar, '=', (size_t)filled);
    if (filled < WIDTH) bar[filled] = '>';
    bar[WIDTH] = 0;
    cli_bytes(done_bytes, done);
    cli_bytes(total_bytes, total);
    cli_bytes((uint64_t)((double)done_bytes / (now - p->started)), rate);
    fprintf(stderr, "\r%s [%s] %s of %s, %s/s \033[K", p->label, bar, done, total, rate);
    p->drawn = now;
    p->shown = true;
    return !cli_interrupted();
}

void cli_progress_end(struct cli_progress *p)
{
    if (p->shown) fprintf(stderr, "\r\033[K");
    p->shown = false;
}

/* Tokens per second; 0 where nothing was measured. */
static double rate(int n, double s) { return n > 0 && s > 0 ? n / s : 0; }

void cli_print_depth(const tessera_engine *e, double seconds)
{
    const struct tessera_depth d = tessera_depth(e);
    const double all = (double)(d.bytes + d.bytes_saved);
    char a[24], b[24];
    uint64_t sum = 0;
    if (!d.n_max || !d.rows) return;
    for (int i = 0; i <= d.n_max; i++) sum += (uint64_t)i * d.rows_at[i];
    if (d.concepts && d.rows > d.rows_at[0])
        fprintf(stderr, "  %-15s%.2f tokens to each\n", "concepts",
                (double)d.rows / (double)(d.rows - d.rows_at[0]));
    fprintf(stderr, "  %-15smean %.2f of %d;", "depth", (double)sum / (double)d.rows, d.n_max);
    for (int i = 0; i <= d.n_max; i++)
        if (d.rows_at[i])
            fprintf(stderr, " %d: %.0f %%", i, 100 * (double)d.rows_at[i] / (double)d.rows);
    fprintf(stderr, "\n  %-15sread %s of weights, %s not needed (%.0f %%); products %.0f %% less\n",
            "", cli_bytes(d.bytes, a), cli_bytes(d.bytes_saved, b),
            all > 0 ? 100 * (double)d.bytes_saved / all : 0,
            100 * (double)d.macs_saved / ((double)(d.macs + d.macs_saved) + 1e-9));
    if (seconds > 0 && d.bytes)
        fprintf(stderr, "  %-15s%.2g s less than at full depth, estimated from these bytes and %.2g s\n",
                "", seconds * (double)d.bytes_saved / (double)d.bytes, seconds);
}

void cli_print_speed(const struct tessera_timing *t, const tessera_engine *e, const char *more)
{
    char mem[24];
    struct tessera_memory m = tessera_memory(e);
    int fresh = t->n_prompt - t->n_prompt_reused;
    cli_print_warnings(e);
    fprintf(stderr, "%s%d + %d tokens", cli_dim(), t->n_prompt, t->n_gen);
    if (t->n_prompt_reused > 0) fprintf(stderr, " (%d kept)", t->n_prompt_reused);
    const struct tessera_depth d = tessera_depth(e);
    char deep[48] = "";
    if (d.concepts && d.n_max == 1 && t->depth_sum)
        (void)snprintf(deep, sizeof deep, ", %.2f tokens to a concept",
                       (double)t->n_depth / (double)t->depth_sum);
    else if (d.n_max && t->n_depth)
        (void)snprintf(deep, sizeof deep, ", depth %.2f of %d",
                       (double)t->depth_sum / t->n_depth, d.n_max);
    if (t->n_passes) {
        const double seconds = t->prompt_s + t->gen_s;
        fprintf(stderr, " in %d passes (%.2f each), %.2f s, %.0f tokens/s, %s%s%s%s\n", t->n_passes,
                (double)t->n_gen / t->n_passes, seconds, rate(t->n_gen, seconds),
                cli_bytes(m.total, mem), *more ? ", " : "", more, cli_plain());
        return;
    }
    /* The first token comes out of the prompt's step, so it is no part of gen_s. */
    fprintf(stderr, ", %.0f / %.0f tokens/s, %s%s%s%s%s\n", rate(fresh, t->prompt_s),
            rate(t->n_gen - 1, t->gen_s), cli_bytes(m.total, mem), deep, *more ? ", " : "", more,
            cli_plain());
}

void cli_print_ahead(const tessera_engine *e, int label)
{
    const struct tessera_traffic t = tessera_traffic(e);
    char b[4][24];
    if (!t.token_disk_expected || !(t.hits + t.misses)) return;
    fprintf(stderr, "  %-*s%s; %.1f %% of %.0f experts in memory when asked for, %.0f evicted; %s "
            "read in all\n", label, "residency", t.policy,
            100 * (double)t.hits / (double)(t.hits + t.misses), (double)(t.hits + t.misses),
            (double)t.evictions, cli_bytes(t.bytes_read, b[0]));
    if (!strcmp(t.predictor, "none")) return;
    fprintf(stderr, "  %-*s%s, %s", label, "reading ahead", t.predictor, t.ahead ? "on" : "off");
    if (t.trials)
        fprintf(stderr, ": faster in %d of %d trials; in the last %.1f ms per token with it, %.1f "
                "without; waiting %.1f, %.1f", t.trials_won, t.trials, 1e3 * t.seconds_of[1],
                1e3 * t.seconds_of[0], 1e3 * t.waited_of[1], 1e3 * t.waited_of[0]);
    else
        fprintf(stderr, "%s", t.ahead ? "" : ": not tried yet");
    fprintf(stderr, "\n");
    if (!t.asked) return;
    fprintf(stderr, "  %-*snamed %.1f %% of the experts, %.1f %% of those not in memory; %s read, %s "
            "used (%.0f late), %s for nothing, %.0f taken back\n", label, "guesses",
            100 * (double)t.named / (double)t.asked,
            t.missed ? 100 * (double)t.missed_named / (double)t.missed : 0,
            cli_bytes(t.guess_bytes, b[0]), cli_bytes(t.useful_bytes, b[1]), (double)t.late,
            cli_bytes(t.wasted_bytes, b[2]), (double)t.cancelled);
}

/* ---- stdout ---- */

/* Why stdout failed first; the C library forgets. */
static int out_errno;

/* Has the reader of stdout gone? */
static bool reader_gone(void)
{
    struct pollfd p = {.fd = STDOUT_FILENO, .events = POLLOUT};
    return poll(&p, 1, 0) == 1 && p.revents & POLLERR;
}

bool cli_out(const void *bytes, size_t n)
{
    if (ferror(stdout)) return false;
    errno = 0;
    if (fwrite(bytes, 1, n, stdout) == n && !fflush(stdout)) return true;
    out_errno = errno;
    return false;
}

int cli_finish_stdout(int rc)
{
    bool bad = ferror(stdout);
    errno = 0;
    bad |= fflush(stdout) != 0;
    if (!bad) return rc;
    int code = out_errno ? out_errno : errno;
    if (code == EPIPE || reader_gone()) return rc;
    fprintf(stderr, "tessera: cannot write to standard output%s%s\n", code ? ": " : "",
            code ? strerror(code) : "");
    return rc == CLI_OK ? CLI_ERROR : rc;
}

/* ---- SIGINT ---- */

static volatile sig_atomic_t interrupts;
static _Atomic(tessera_engine *) target;
static int wake = -1; /* readable from an interrupt until it is cleared */

static void on_interrupt(int sig)
{
    (void)sig;
    int saved = errno;
    tessera_engine *e = atomic_load(&target);
    if (++interrupts >= 3) _exit(CLI_INTERRUPTED);
    if (e) tessera_cancel(e);
    if (wake >= 0) (void)!write(wake, &(uint64_t){1}, sizeof(uint64_t));
    errno = saved;
}

void cli_catch_interrupts(void)
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    if (wake < 0) wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sa.sa_handler = on_interrupt;
    sa.sa_flags = SA_RESTART;
    (void)sigemptyset(&sa.sa_mask);
    (void)sigaction(SIGINT, &sa, NULL);
}

void cli_interrupt_target(tessera_engine *e) { atomic_store(&target, e); }
bool cli_interrupted(void) { return interrupts > 0; }
int cli_interrupt_fd(void) { return wake; }

void cli_clear_interrupt(void)
{
    uint64_t n;
    interrupts = 0;
    if (wake >= 0) (void)!read(wake, &n, sizeof n);
}
