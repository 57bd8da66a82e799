// report.h: the evidence about a direction, measured in one engine on one file without and with the intervention (spec:
// abliteration.md, 5.6), and its three forms. report_measure fills a Report; report_text, report_json and report_html only
// read it. Same model, files, options and seed: same report, to the byte.
#ifndef REPORT_H
#define REPORT_H

#include "behaviour.h"
#include "forced.h"
#include "openers.h"
#include "options.h"
#include "questions.h"
#include "stats.h"

typedef struct {
    LabOptions lab;
    OptionList directions;
    const char *mode, *layers;  // NULL: what the file says
    double strength;            // NAN: what the file says
    bool keep_embedding;        // mode write: not from the embedding
    const char *target, *contrast, *keep, *markers, *openers, *text, *json, *html;
    OptionList questions;
    const char *choices;        // "letters", or "text": the likeliest answer text
    int n_predict;              // tokens of an answer
    int n_forced;               // tokens of the original's answers that are forced
    int n_control, n_answered;  // directions of each kind of control; how many of them also answer the target prompts
    int limit;                  // prompts of each file, questions of each file; 0: all
    int64_t seed;
} ReportOptions;

enum { WITHOUT, WITH };         // the intervention
typedef enum { SIDE_TARGET, SIDE_CONTRAST, SIDE_KEEP, N_SIDE } Side;

// One prompt file: how its answers begin and what they say.
typedef struct {
    const char *path;           // NULL: this side is not there
    int n;
    double *score[2];           // [n] log odds of an opener as first token
    double mean[2];
    Interval interval[2];       // of the mean, bootstrap
    int marked[2], degenerate[2], correct[2]; // answers; degenerate ones count as neither
    Interval marked_rate[2], correct_rate[2]; // Wilson; of the answers that are not degenerate; of all
    int n_expected;             // prompts that come with an expected answer
    const char **prompt;        // [n] texts in file
    PromptFile file;
    char **answer[2];           // [n] texts
    bool *is_marked[2];         // [n]
} Answers;

typedef struct {
    int n;                      // 0: not measured
    double mean, p95, p99, highest;
    double same;                // share with the same likeliest token
} Divergence;

typedef struct {
    const char *path;
    int n, right[2], same;      // same: the same choice without and with
    Interval rate[2];
} Quiz;

typedef struct {
    const char *kind;           // "random", "shuffled labels", "contrast mean"
    double cos;                 // with the direction
    double score;               // mean opener score of target prompts with it removed
    double kl;                  // mean KL of first tokens on contrast prompts
    int marked, degenerate;     // of the target answers; -1: not asked
} Control;

enum { N_CURVE = 9, MAX_QUIZ = OPTION_LIST_MAX };

typedef struct {
    const ReportOptions *o;
    // What is reported on
    char model[128], architecture[32], fingerprint[65], backend[96];
    double n_param_millions;
    int n_layer, n_embd;
    char edited[128];           // file of the edited weights that are compared; empty: an intervention at run time
    char direction[128], made_from[128]; // file name(s); model file it was made from
    int direction_layer, direction_position; // -1, 0: unknown
    SteerMode mode;
    double strength;
    int first_layer, last_layer;
    char opener_text[512];      // for people
    int n_opener, n_marker;
    // The stream: [side][WITHOUT / WITH], each [n_pos][n_layer + 1], row 0 the last position. Means over prompts.
    int n_pos;
    char (*position)[64];       // [n_pos] name, e.g. "-1 "\n""
    double *cosine[2][2];       // of x with the direction of that layer
    double *component[2][2];    // r.x
    double *difference;         // [n_pos][n_layer + 1] |mean target - mean contrast|, without

    Answers side[N_SIDE];
    Divergence kl_first, kl_forced; // on contrast prompts: first token; tokens of the original's own answers
    double ce[2];               // mean loss on those tokens ("on-distribution cross-entropy")
    double perplexity[2], perplexity_error[2];
    Divergence kl_text;         // on the text file
    int text_tokens;            // 0: no text
    Quiz quiz[MAX_QUIZ];
    int n_quiz;
    Control *control;
    int n_control;
    double random_score_95;     // 95 % quantile of the effect (drop of the score) of random directions
    double random_kl;           // their mean KL
    // Strength: the same mode at 0 .. 2; adding strength * length at the direction's layer, -2 .. 2
    double curve_strength[N_CURVE], curve_target[N_CURVE], curve_contrast[N_CURVE], curve_kl[N_CURVE];
    double add_strength[N_CURVE], add_target[N_CURVE], add_contrast[N_CURVE];
    bool has_add;
} Report;

MUST_CHECK bool report_measure(Report *r, Lab *lab, const ReportOptions *o, Err *e);
void report_free(Report *r);
void report_text(const Report *r, FILE *out);
MUST_CHECK bool report_json(const Report *r, const char *path, Err *e);
MUST_CHECK bool report_html(const Report *r, const char *path, Err *e);

#endif
