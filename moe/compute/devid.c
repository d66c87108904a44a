/* What a device must have been built with to be used: the version, and a digest of the sources that
 * fix layouts and arithmetic, which the Makefile makes.  Program and plugin have one each. */
#include "moe/compute/dev.h"

const char dev_build[] = "tessera 0.1.0, devices " DEV_DIGEST;
