/* What the codes of the nested codec stand for (quant/stack.h), in units of the scale: the magnitudes of
 * every depth.  Constant data only: whoever includes this says by NEST_TABLE(name) what a table of
 * [STACK_NESTED + 1][32] bytes is, here or on a device. */

/* A Lloyd tree for Gaussian weights in blocks of 64 that share the best scale, split in two at every
 * level and rounded to integers (tests/stack/tree.py makes it). */
NEST_TABLE(nest_table) = {
    {21, 70},
    {11, 33, 59, 98},
    {5, 16, 27, 39, 52, 68, 88, 115},
    {3, 8, 13, 19, 24, 30, 36, 42, 49, 56, 64, 73, 84, 94, 109, 123},
    {1,  4,  7,  9,  12, 15, 17, 20, 23, 26, 29, 32, 35, 38,  41,  44,
     47, 51, 54, 58, 62, 66, 71, 75, 81, 86, 91, 97, 106, 113, 120, 127},
};
