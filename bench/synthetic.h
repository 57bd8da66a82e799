// synthetic.h: models of random weights with the shapes and weight types of published ones (spec: Q4_K_M), written as GGUF, so
// that speed can be measured without a download. They know no tokens and say nothing.
#ifndef SYNTHETIC_H
#define SYNTHETIC_H

#include "base.h"

void synthetic_list(FILE *out);               // a line for each shape: name, what it is, parameters, bytes
bool synthetic_known(const char *shape);
uint64_t synthetic_bytes(const char *shape);  // of its weights; the shape is known
MUST_CHECK bool synthetic_write(const char *shape, const char *path, Err *e);

#endif
