// edit_file.h: which tensors of a model file an edit changes, and their new bytes. edit_file_open; set `factor` of norms by
// edit_file_gains if they are corrected; edit_file_list; then edit_file_make for each (rewrite.h calls it); edit_file_close.
#ifndef EDIT_FILE_H
#define EDIT_FILE_H

#include "edit_watch.h"
#include "rewrite.h"

typedef struct {
    const Direction *dirs;
    int n_dir;
    EditOptions edit;
    int promote;         // type of the edited matrices where it is a finer one; -1: they keep theirs
    const char *from;    // a file of the same model whose weights are finer: the source of the edited matrices; NULL: none
    bool embeddings;     // edit the input side, too
    int n_thread;
} EditFileOptions;

typedef enum { EDITED_MATRIX, EDITED_BIAS, EDITED_GAIN, EDITED_EMBEDDING } EditedKind;
typedef struct {
    EditedKind kind;
    uint64_t tensor;         // of the file
    int writer;              // of edit.writers; embedding: -1
    int slice, n_slice;      // of the writer's
    TensorType type, out_type;
    double factor;           // gain: what it is multiplied by
    double kappa;            // known when it is made, as are the figures
    EditFigures f;
} Edited;

typedef struct {
    const Model *m;
    EditFileOptions o;
    Edit edit;
    Model from;              // if o.from
    Writers from_writers;
    Edited *of;              // [n] in the order of the file
    int n;
    int *item;               // [n_tensor] row of `of`; -1: stays
    int *type;               // [n_tensor] new type; -1: stays
    bool adds_head;          // the head is tied: a copy of the embedding is added for it
    double *factor;          // [writers.n] of the gain of each writer's last norm
    double *basis;           // [n_dir][n_embd] what is removed from the embedding
    int n_basis;
    EditFigures embedding;   // before, norm: of all rows, as the file holds them
    Pool *pool;
} EditFile;

// Refuses what cannot be edited, and options the model does not allow.
MUST_CHECK bool edit_file_open(EditFile *x, const Model *m, const EditFileOptions *o, Err *e);
void edit_file_gains(EditFile *x, const EditWatch *watch); // the norms are scaled by what was measured
MUST_CHECK bool edit_file_list(EditFile *x, Err *e);       // none: error
// The bytes of tensor i (rewrite.h) to w, and the figures. w NULL: only figures. ctx: the EditFile.
MUST_CHECK bool edit_file_make(void *ctx, uint64_t i, Rewriting *w, Err *e);
void edit_file_close(EditFile *x); // accepts zeroed ones

#endif
