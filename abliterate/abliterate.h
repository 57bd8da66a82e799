// abliterate.h: the commands of the program `abliterate`. Each prints its findings to stdout, everything else to stderr, and
// returns false with one line when there is no result.
#ifndef ABLITERATE_H
#define ABLITERATE_H

#include "extract.h"
#include "options.h"
#include "report.h"

MUST_CHECK bool command_extract(const ExtractOptions *o, Err *e);
MUST_CHECK bool command_report(const ReportOptions *o, Err *e);
MUST_CHECK bool command_show(const char *path, Err *e);

// What a command that reads its own command line (argv[0]: its name) came to: USAGE is a wrong one.
typedef enum { DONE, FAILED, USAGE } Outcome;
extern const char EDIT_HELP[], UNDO_HELP[];
Outcome edit_command(int argc, char **argv, Err *e);
Outcome undo_command(int argc, char **argv, Err *e);
extern const char VERIFY_HELP[], DIFF_HELP[], MAP_HELP[];
Outcome verify_command(int argc, char **argv, Err *e);
Outcome diff_command(int argc, char **argv, Err *e);
Outcome map_command(int argc, char **argv, Err *e);
extern const char SEARCH_HELP[], EXPORT_HELP[];
Outcome search_command(int argc, char **argv, Err *e);
Outcome export_command(int argc, char **argv, Err *e);

// SHA-256 of the bytes of a direction file's vectors, as glp.content_sha256: what a stamp calls the direction by.
MUST_CHECK bool content_hash(const char *path, char hex[65], Err *e);

// The options of LabOptions, for every command that opens a model.
#define LAB_OPTIONS \
    {"-sys", "--system-prompt", OPTION_TEXT, O(lab.system), 0, 0}, \
    {"--template", "--chat-template", OPTION_TEXT, O(lab.template_name), 0, 0}, \
    {"--no-template", NULL, OPTION_FLAG, O(lab.no_template), 0, 0}, \
    {"--think", NULL, OPTION_FLAG, O(lab.think), 0, 0}, \
    {"-np", "--parallel", OPTION_INT, O(lab.n_seq), 1, 64}, \
    {"-c", "--ctx-size", OPTION_INT, O(lab.n_ctx), 1, 1 << 30}, \
    PLACE_OPTIONS(O(lab.place)), \
    {"-q", "--quiet", OPTION_FLAG, O(lab.quiet), 0, 0}

// Of ReportOptions, for report and verify.
#define REPORT_OPTIONS \
    {"--target", NULL, OPTION_TEXT, O(target), 0, 0}, \
    {"--contrast", NULL, OPTION_TEXT, O(contrast), 0, 0}, \
    {"--keep", NULL, OPTION_TEXT, O(keep), 0, 0}, \
    {"--html", NULL, OPTION_TEXT, O(html), 0, 0}, \
    {"--text", NULL, OPTION_TEXT, O(text), 0, 0}, \
    {"--questions", NULL, OPTION_LIST, O(questions), 0, 0}, \
    {"--choices", NULL, OPTION_TEXT, O(choices), 0, 0}, \
    {"--markers", NULL, OPTION_TEXT, O(markers), 0, 0}, \
    {"--openers", NULL, OPTION_TEXT, O(openers), 0, 0}, \
    {"-n", "--predict", OPTION_INT, O(n_predict), 1, 1 << 20}, \
    {"--forced", NULL, OPTION_INT, O(n_forced), 1, 1 << 20}, \
    {"--limit", NULL, OPTION_INT, O(limit), 1, 1 << 30}, \
    {"-s", "--seed", OPTION_INT64, O(seed), 0, 9007199254740992.0}, \
    LAB_OPTIONS

#define LAB_HELP \
    "  -sys TEXT                  a system prompt;  --template NAME, --no-template, --think: as in run\n" \
    "  -np N                      prompts at once (default 16);  -c N: most tokens of a prompt;  -t N: threads\n" \
    "  -ngl N, --vram SIZE, --reserve SIZE, --cpu-moe, --n-cpu-moe N, -ot REGEX=DEVICE, --experts TRACE, --residency auto|off, --no-mmap, --no-pin,\n" \
    "  --backend cpu|ref|cuda, --isa NAME, -ctk TYPE, -ctv TYPE, -q, -h: as in run\n"

static inline MUST_CHECK bool check_lab(const LabOptions *o, Err *e) {
    if (!o->model) return err_set(e, "no model given");
    return place_check(&o->place, e);
}

#endif
