/* Encoders: plain C, four lanes by the compiler; encode_body.h has everything. */
#define ENCODE encode_ref
#include "quant/encode_body.h"
