// export.h: directions in the forms that other engines use: control vectors, which they add to the stream, and LoRA adapters, which
// do to their products what an edit would do to the weights, and can be switched and scaled live. Formats: spec abliteration.md, 7.
#ifndef EXPORT_H
#define EXPORT_H

#include "edit.h"

// A plain control vector of llama.cpp: direction.N, N = 1 .. n_layer - 1, is added to the stream leaving layer N. What mode add
// would add entering layers first .. last (and leaving the last one of the model), times strength; first -1: mode add's own choice.
// Refuses where nothing is left to add. *n: how many vectors are not zero.
MUST_CHECK bool export_cvector(const Direction *d, double strength, int first, int last, const char *path, int *n, Err *e);

typedef struct {
    int n_matrix, n_bias; // changed; biases that write along a direction, which an adapter cannot change
    int64_t n_param;
} LoraFacts;
// An adapter of rank n_dir for every matrix that the edit changes: A = s take' W, B = -give (edit.h), so that W + B A = W'. Scaled by
// alpha / rank = 1 and by what the user of it says. Experts get one for each. Never the embedding, which a tied head looks up, too.
// Where a scale of each expert follows its matrix (Gemma 4), B is multiplied by it: llama.cpp (0.5.0) adds B A x to the scaled product.
MUST_CHECK bool export_lora(const Model *m, const Direction *dirs, int n_dir, const EditOptions *o, Pool *pool, const char *path, LoraFacts *facts, Err *e);

// A file of llama.cpp's cvector-generator calls direction.N what it measured entering layer N; everyone else, its own reader, too,
// means leaving layer N. Puts the rows where they were measured. Refuses directions of other makers that can be told.
MUST_CHECK bool export_from_generator(Direction *d, const char *path, Err *e);

#endif
