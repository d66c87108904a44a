/* The command table and the way in: picks the command, guards the standard streams, checks that
 * what was printed arrived.  The only place that knows all commands. */
#include "cli/cli.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "moe/base/cpu.h"

#ifndef TESSERA_COMMIT
#define TESSERA_COMMIT "unknown"
#endif

static const struct cli_command *commands(void)
{
    static const struct cli_command table[] = {
        {"chat", "-m F [-sys TEXT]", "talk with a model", cmd_chat},
        {"run", "-m F -p TEXT [-n N]", "complete one text, or a batch of them", cmd_run},
        {"plan", "-m F [--mem 6G] [--json]", "what goes where, and what it costs", cmd_plan},
        {"info", "F [--json]", "header, metadata, tensors and sizes of a GGUF file", cmd_info},
        {"tokenize", "-m F -p TEXT | -f FILE", "text to token ids", cmd_tokenize},
        {"logits", "-m F --ids 1,2,3 -o OUT", "logits of every position, as f32", cmd_logits},
        {"perplexity", "-m F -f TEXT [-c 512]", "how well a model predicts a text",
         cmd_perplexity},
        {"bench", "-m F [-p 512] [-n 128] [-r 5]", "tokens per second", cmd_bench},
        {"imatrix", "-m F -f TEXT [-o OUT]", "what matters to a model, for quantize", cmd_imatrix},
        {"quantize", "IN OUT TYPE", "another weight format", cmd_quantize},
        {"stack", "IN OUT --imatrix F | -f TEXT", "any size from one file: more bits where they help",
         cmd_stack},
        {"convert", "DIR OUT", "a Hugging Face folder to a GGUF file", cmd_convert},
        {"trace", "-m F -p TEXT | -f FILE -o OUT", "which experts a text uses, as a file", cmd_trace},
        {"replay", "TRACE... [--slots 5%,10%]", "cache policies and predictors on recorded routes",
         cmd_replay},
        {"oracle", "-m F -f TEXT [--what routes]", "what the best routes, experts or depths would be",
         cmd_oracle},
        {"doctor", "[-o FILE]", "what this machine has, how fast it is, what is slow", cmd_doctor},
        {NULL, NULL, NULL, NULL}};
    return table;
}

const struct cli_command *cli_command(const char *name)
{
    for (const struct cli_command *c = commands(); c->name; c++)
        if (!strcmp(c->name, name)) return c;
    return NULL;
}

static void usage(FILE *to)
{
    fprintf(to, "Tessera runs Mixture-of-Experts language models inside a memory budget.\n\n");
    for (const struct cli_command *c = commands(); c->name; c++)
        fprintf(to, "  tessera %-10s %-30s %s\n", c->name, c->args, c->help);
    fprintf(to, "\n  tessera help COMMAND lists its flags, tessera help support the models that "
                "can be opened;\n  tessera --version says which build this is\n");
}

static int version(void)
{
    printf("tessera %s (%s)\n", TESSERA_VERSION, TESSERA_COMMIT);
#ifdef __clang__
    printf("compiler %s\n", __VERSION__);
#else
    printf("compiler gcc %s\n", __VERSION__);
#endif
    printf("cpu      %s\n", cpu_tier_name(cpu_tier_best()));
    return CLI_OK;
}

static int unknown(const char *word)
{
    const char *names[32];
    int n = 0;
    for (const struct cli_command *c = commands(); c->name && n < 31; c++) names[n++] = c->name;
    names[n] = NULL;
    const char *near = cli_nearest(word, names);
    if (*word == '-') {
        fprintf(stderr, "tessera: the command comes first, as in `tessera chat -m F`\n");
    } else if (strstr(word, ".gguf")) {
        fprintf(stderr, "tessera: which command? `tessera chat -m %s`\n", word);
    } else if (near) {
        fprintf(stderr, "tessera: unknown command '%s'; did you mean %s?\n", word, near);
    } else {
        fprintf(stderr, "tessera: unknown command '%s'; `tessera help` lists them\n", word);
    }
    return CLI_USAGE;
}

static int call(const char *name, int argc, char **argv)
{
    const struct cli_command *c = cli_command(name);
    return c ? c->fn(argc, argv) : unknown(name);
}

static int help(int argc, char **argv)
{
    char flag[] = "--help";
    if (argc < 2) return usage(stdout), CLI_OK;
    if (!strcmp(argv[1], "support")) return cli_print_support();
    char *call_argv[] = {argv[1], flag, NULL};
    return call(argv[1], 2, call_argv);
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2) return usage(stderr), CLI_USAGE;
    const char *name = argv[1];
    if (!strcmp(name, "help") || !strcmp(name, "-h") || !strcmp(name, "--help"))
        return help(argc - 1, argv + 1);
    if (!strcmp(name, "--version") || !strcmp(name, "version")) return version();
    return call(name, argc - 1, argv + 1);
}

/* A closed standard stream would hand its number to the next file opened: keep it taken.  Reading
 * or writing it then fails as it should. */
static void guard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            (void)!open("/dev/null", fd == 1 ? O_RDONLY : O_RDWR);
}

int main(int argc, char **argv)
{
    guard_streams();
    (void)signal(SIGPIPE, SIG_IGN);
    return cli_finish_stdout(dispatch(argc, argv));
}
