// run.h: what the parts of the program `run` share. run.c: flags and opening; run_generate.c: one answer; run_chat.c: the
// conversation; run_steer.c: directions, from flags and in a chat; run_plan.c: --plan; run_tools.c: --info, --tokenize, --perplexity and raw ids.
// These files (and no others in this folder) print.
#ifndef RUN_H
#define RUN_H

#include "chat.h"
#include "console.h"
#include "options.h"
#include "place.h"
#include "resident.h"
#include "sampler.h"
#include "session.h"
#include "steer.h"
#include "tokenizer.h"

// What belongs to --plan alone.
typedef struct {
    bool on;
    const char *gpu, *host, *svg;
} PlanOptions;

#define PLAN_OPTIONS(at) \
    {"--plan", NULL, OPTION_FLAG, (at) + offsetof(PlanOptions, on), 0, 0}, \
    {"--gpu", NULL, OPTION_TEXT, (at) + offsetof(PlanOptions, gpu), 0, 0}, \
    {"--host", NULL, OPTION_TEXT, (at) + offsetof(PlanOptions, host), 0, 0}, \
    {"--svg", NULL, OPTION_TEXT, (at) + offsetof(PlanOptions, svg), 0, 0}

typedef struct {
    const char *model, *prompt, *file, *system, *template_name;
    const char *perplexity, *tokens, *logits, *residual, *history;
    OptionList directions;
    const char *mode, *layers;
    double strength;        // NAN: not given
    int n_predict;          // -1: until the model ends or the context is full
    int n_ctx, n_batch, n_ubatch;
    PlaceOptions place;     // without program, quiet and session
    PlanOptions plan;
    int64_t seed;           // -1: from the clock
    double temp, top_p, min_p, repeat_penalty; // NAN: not given
    int top_k, repeat_last_n;                  // -2: not given
    bool info, tokenize, no_template, ignore_eos, no_bos, no_parse_special, no_escape, no_echo, chat, think, keep_embedding, bar, quiet, help, version;
} Options;

typedef struct {
    Options o;
    Model m;
    Tokenizer *tok;
    Backend b;
    Session s;
    Sampler sampler;
    Chat chat;
    Steer steer;
    Ids cached;             // the ids whose keys and values are in the session
    bool mute;              // answers are kept, not printed
    Ids bar_id;             // --bar: the ids of the answer, and r.x of the row each was predicted from
    double *bar_value;
    uint64_t prompt_tokens, answer_tokens;
    double prompt_seconds, answer_seconds;
} Run;

typedef enum { STOP_END, STOP_LIMIT, STOP_CONTEXT, STOP_INTERRUPT } StopReason;

// Makes ids the content of the session: keeps the common prefix, evaluates the rest; logits of the last id are ready.
MUST_CHECK bool run_feed(Run *r, const Ids *ids, Err *e);
// Generates from the session's logits and prints to stdout as it goes. answer (may be NULL) receives the text, content only.
MUST_CHECK bool run_generate(Run *r, int n_predict, bool chat, char **answer, StopReason *why, Err *e);
// The text as one answer: through the chat template unless there is none.
MUST_CHECK bool run_once(Run *r, const char *text, size_t n, Err *e);
MUST_CHECK bool run_chat(Run *r, Err *e);
void run_print_speed(const Run *r);

// ---- run_steer.c ----
MUST_CHECK bool run_open_steer(Run *r, Err *e);                     // --direction and what belongs to it
// /dir /mode /strength /layers /on /off /bar. False: not one of these.
bool run_steer_command(Run *r, const char *name, const char *rest);
MUST_CHECK bool run_bar_note(Run *r, int id, Err *e);               // remembers a token for the bar
void run_bar_print(Run *r);                                         // to stderr, and forgets
// Two answers beside each other, as wide as the terminal.
void run_two_columns(const char *left_title, const char *left, const char *right_title, const char *right);
void run_close_steer(Run *r);

// ---- run_plan.c ----
MUST_CHECK bool run_plan_check(const PlanOptions *p, Err *e);
MUST_CHECK bool run_plan(Run *r, const PlaceOptions *place, Err *e);

MUST_CHECK bool run_info(Run *r, const SessionParams *session, Err *e);
// The prompt that -p, -f or a pipe gives, to be freed; *text NULL: none, so a chat it is.
MUST_CHECK bool prompt_text(const Options *o, char **text, size_t *n, Err *e);
MUST_CHECK bool run_tokenize(const Options *o, Err *e);
MUST_CHECK bool run_perplexity(Run *r, Err *e);
MUST_CHECK bool run_ids(Run *r, Err *e);
MUST_CHECK bool run_open_chat(Run *r, Err *e); // recognises the prompt format

#endif
