// lab.h: a model on the bench: opened with its tokenizer, prompt format and a switchable intervention, and fed with many
// prompts at once. lab_open, lab_encode for every prompt set, lab_ready once the longest prompt is known, then lab_read and
// lab_answer as often as wanted; set lab.steer and lab.steer.on between them. lab_close.
#ifndef LAB_H
#define LAB_H

#include "chat.h"
#include "console.h"
#include "place.h"
#include "prompts.h"
#include "session.h"
#include "steer.h"

typedef struct {
    const char *model, *system, *template_name;
    PlaceOptions place; // without program, quiet and session
    int n_ctx;      // most tokens of a prompt with its answer; 0: the smaller of 8192 and the model's own
    int n_seq;      // prompts at once
    bool no_template, think, quiet;
} LabOptions;

// Prompts as token ids, in the order they will be used.
typedef struct {
    Ids *ids;                // [n]
    const PromptLine **line; // [n]
    int n;
    int n_suffix;            // tokens after the instruction that all prompts share (the template's end); at least 1
} PromptSet;

typedef struct Lab {
    LabOptions o;
    Model m;
    Tokenizer *tok;
    Chat chat;
    Backend b;
    Session s;
    Steer steer;
    float *row;              // [n_embd] scratch
    struct Lab *edited;      // NULL; or who reads and answers instead while steer.on: the same model from an edited file
    const struct Reading *reading;
    int first;               // prompt in sequence 0
} Lab;

MUST_CHECK bool lab_open(Lab *lab, const LabOptions *o, Err *e);
void lab_close(Lab *lab);

// order NULL: all lines in file order. Too long for the context: error.
MUST_CHECK bool lab_encode(Lab *lab, const PromptFile *p, const int *order, int n, PromptSet *out, Err *e);
void set_free(PromptSet *s);
int set_longest(const PromptSet *s);
// Brings the model to where it runs and opens the session, for prompts of at most `longest` tokens and n_answer more. Once; what is
// kept in the backend's memory (steer_prepare) comes after it.
MUST_CHECK bool lab_ready(Lab *lab, int longest, int n_answer, Err *e);

// One pass over prompts. Rows and logits arrive prompt by prompt or interleaved, each exactly once.
typedef struct Reading {
    const Ids *prompt;       // [n]
    int n;
    int n_last;              // show the stream at this many last positions
    void (*on_row)(void *ctx, int prompt, int from_end, int site, const float *row);    // from_end 0: the last token; NULL: not wanted
    int n_logits;            // logits of this many last positions,
    const int *logits_of;    // [n] or of as many as this says for each prompt
    void (*on_logits)(void *ctx, int prompt, int from_end, const float *logits);
    bool (*on_group)(void *ctx, int done, Err *e); // after prompts 0 .. done - 1 are complete; may be NULL
    void *ctx;
    int start;               // begin with this prompt
} Reading;
// Ends early, with success, after Ctrl-C (interrupted): complete prompts only have been shown to on_group.
// bar (may be NULL) advances by one a prompt.
typedef struct {
    Progress p;
    double done, total;
} Bar;
void bar_start(Bar *b, const char *label, double total);
void bar_end(Bar *b);
MUST_CHECK bool lab_read(Lab *lab, const Reading *r, Bar *bar, Err *e);

// Greedy answers of at most n_predict tokens, without the token that ended them. ended[i]: the model ended it.
MUST_CHECK bool lab_answer(Lab *lab, const Ids *prompt, int n, int n_predict, Ids *answer, bool *ended, Bar *bar, Err *e);
// The visible text of an answer (no thoughts), to be freed.
MUST_CHECK bool lab_text(const Lab *lab, const Ids *answer, char **text, Err *e);
// One token as text for people, quoted: "I", "\n", "<|im_end|>".
void lab_token(const Lab *lab, int id, char out[48]);

#endif
