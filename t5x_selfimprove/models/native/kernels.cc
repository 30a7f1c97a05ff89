// All kernels in one unit: the headers of XLA's interface take longer to compile than they do.

#include "attend.h"
#include "draw.h"
#include "packed.h"
