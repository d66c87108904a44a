/* See op.h. */
#include "moe/compute/op.h"

const char *op_name(enum op_code code)
{
    static const char *const names[OP_CODE_N] = {
#define X(code, name, doc) name,
        OP_LIST(X)
#undef X
    };
    return code < OP_CODE_N ? names[code] : "?";
}
