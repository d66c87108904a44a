/* The grids' points for the CPU's kernels (parts_int.h). */
#include "quant/parts_int.h"

#define GRID(name, n) const uint16_t name[n]
#include "quant/grid_body.h"
