/* tessera plan: what goes where and what it costs, without reading a weight.  The text is the
 * engine's (tessera_explain). */
#include "cli/cli.h"

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
    rc = tessera_explain(e, stdout, a.json, &err) ? cli_fail(&err) : CLI_OK;
    tessera_close(e);
    return rc;
}
