/* tessera plan: what goes where and what it costs, without reading a weight.  The text is the
 * engine's (tessera_explain); it is made in memory, so that a closed pipe or a full disk is told
 * from an engine that failed. */
#include <stdlib.h>

#include "cli/cli.h"

static enum status print_plan(tessera_engine *e, bool json, struct err *err)
{
    char *text = NULL;
    size_t n = 0;
    FILE *to = open_memstream(&text, &n);
    if (!to) return err_set(err, ERR_MEMORY, "no memory for the plan's text");
    enum status s = tessera_explain(e, to, json, err);
    if (fclose(to) && !s) s = err_set(err, ERR_MEMORY, "no memory for the plan's text");
    if (!s) (void)cli_out(text, n); /* main says what went wrong with stdout */
    free(text);
    return s;
}

int cmd_plan(int argc, char **argv)
{
    struct cli_args a = cli_defaults();
    struct cli_spec spec = {.name = "plan", .groups = CLI_MODEL | CLI_JSON, .max_pos = 1,
                            .model_pos = true};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    a.header_only = true;
    a.quiet_open = true;
    tessera_engine *e;
    if ((rc = cli_open_engine(&a, &e))) return rc;
    struct err err;
    err_clear(&err);
    rc = print_plan(e, a.json, &err) ? cli_fail(&err) : CLI_OK;
    cli_close_engine(e);
    return rc;
}
