// edit_show.h: one run of `abliterate edit`, and what it has to say: a table for people, JSON with the figures of every tensor.
#ifndef EDIT_SHOW_H
#define EDIT_SHOW_H

#include "edit_file.h"
#include "lab.h"

typedef struct {
    LabOptions lab;
    OptionList directions;
    const char *layers, *out, *undo, *promote, *from, *contrast, *json;
    double strength;
    bool strict, embeddings, again, no_undo, dry_run;
} EditCommand;

typedef struct {
    const EditCommand *o;
    char *undo;         // its path; NULL: none
    Lab lab;            // with contrast prompts
    Model model;        // without
    const Model *m;     // the one of them that is open
    Steer steer;        // only holds the directions
    int first, last;
    char hash[MAX_DIRECTIONS][65]; // of the directions' content
    int n_before;       // edits the file tells of
    EditFile file;
    EditWatch watch;
    int n_prompt;       // that the gains are corrected by
    Rewritten done;     // not in a dry run
    bool has_json;      // written by this run
} Editing;

bool edit_has_norm(const Edit *x); // does a norm follow any edited matrix?
void edit_print(const Editing *x);  // to stdout
MUST_CHECK bool edit_json(const Editing *x, const Rewritten *done, Err *e); // NULL: of a dry run

#endif
