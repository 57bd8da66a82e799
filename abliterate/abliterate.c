// abliterate.c: the program `abliterate`: its command line. The commands are in command_*.c.
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "abliterate.h"
#include "options.h"

static const char HELP[] =
    "Find a direction\n"
    "  abliterate extract MODEL.gguf --target A.txt --contrast B.txt -o DIR.gguf\n"
    "      the direction in the residual stream that tells the prompts of A (which show a behaviour) from those of B (which do not):\n"
    "      difference of means at every position after the instruction and every layer, then the one that, removed, makes the\n"
    "      behaviour go and, added, makes it come; with controls.  select: the same, printing every candidate\n"
    "  abliterate report MODEL.gguf --direction DIR.gguf --target A.txt --contrast B.txt [--html OUT.html]\n"
    "      the evidence: behaviour, stream, other answers, controls, without and with the direction removed (at run time: bin/run)\n"
    "  abliterate map MODEL.gguf --direction DIR.gguf [--prompts A.txt]       who writes it; the fewest parts to edit\n"
    "  abliterate search MODEL.gguf --direction DIR.gguf --target A.txt --contrast B.txt -o BEST.gguf\n"
    "      how strongly, in which layers and parts to remove it: a seeded search, behaviour against KL\n"
    "Remove it for good\n"
    "  abliterate edit MODEL.gguf --direction DIR.gguf -o OUT.gguf    from the weights, exactly, in the file's own types\n"
    "  abliterate undo OUT.gguf -o MODEL.gguf                         gives the original back, bit for bit\n"
    "  abliterate verify A.gguf B.gguf [--direction DIR.gguf]         what an edit left, in every tensor, and in answers\n"
    "  abliterate diff A.gguf B.gguf [-o DIR.gguf]                    the direction that somebody else's edit removed\n"
    "  abliterate export DIR.gguf -o OUT.gguf --lora MODEL.gguf | --cvector | --project     for other engines, or from theirs\n"
    "\n"
    "  abliterate show DIR.gguf: what a direction file says about itself;  abliterate markers: the default marker list\n"
    "  abliterate COMMAND --help: its options\n"
    "\n"
    "Prompt files hold one prompt a line; after a TAB may stand the answer that report expects. `bin/run --direction` uses a direction.\n";

static const char EXTRACT_HELP[] =
    "abliterate extract|select MODEL.gguf --target A.txt --contrast B.txt [-o DIR.gguf] [options]\n"
    "\n"
    "  --target FILE, --contrast FILE   the two prompt sets, at least 10 prompts each\n"
    "  -o FILE                    write the direction (GGUF; llama.cpp reads it as a control vector)\n"
    "  --state FILE               keep what was measured here (default: OUT.state, deleted when done); Ctrl-C loses nothing\n"
    "  -s, --seed N               of the split and the controls (default 1)\n"
    "  --train N, --check N       prompts of each file to learn from, to check on (default: a fifth, at most 32, to check on)\n"
    "  --positions N              only the last N positions (default 16)\n"
    "  --openers FILE             tokens that begin answers with the behaviour: an id or a text a line (default: learned)\n"
    "  --write-openers FILE       write the learned ones, to be edited\n"
    "  --keep-all                 use prompts whose answer does not begin as their file says, too\n"
    "  --mask-massive             set coordinates with massive activations to zero\n"
    "  --winsorise Q              clamp every row at the Q quantile of its own sizes (0.995)\n"
    "  --max-kl X, --max-layer X, --min-induce X     what a candidate must meet (0.1, 0.8 of the layers, 0)\n"
    "  --controls N               random and shuffled directions to compare with (default 10)\n"
    "  --no-select                means only: every layer's own difference at the last position, nothing is tested\n"
    "  --per-layer                write every layer's own direction at the chosen position\n"
    "  --shuffle-labels           a test of the method: labels by lot must give no direction\n" LAB_HELP;

static const char REPORT_HELP[] =
    "abliterate report MODEL.gguf --direction DIR.gguf --target A.txt --contrast B.txt [options]\n"
    "\n"
    "  --direction FILE           what is reported on (several: removed as one subspace)\n"
    "  --mode M, --strength S, --layers A-B, --keep-embedding   how it acts (default: what the file says)\n"
    "  --target FILE, --contrast FILE   prompts that show the behaviour, and prompts that do not; best ones not used by extract\n"
    "  --keep FILE                prompts whose behaviour must not change\n"
    "  --html FILE, --json FILE   write the report there, too\n"
    "  --text FILE                perplexity of this text\n"
    "  --questions FILE           multiple choice: CSV as MMLU's (question,A,B,C,D,answer), or the same with TABs; may be repeated\n"
    "  --choices letters|text     choose by the letter (default), or by the likelihood of the answer's text\n"
    "  --markers FILE             texts of answers that show the behaviour, one a line (default: ways to decline)\n"
    "  --openers FILE             tokens that begin such answers (default: those of the direction)\n"
    "  -n N                       tokens of an answer (default 64);  --forced N: of own answers that are forced (32)\n"
    "  --controls N               directions of each kind of control (default 10); --answered N: how many also answer (1)\n"
    "  --limit N                  prompts and questions of each file (default all);  -s, --seed N (default 1)\n" LAB_HELP;

static const Option EXTRACT[] = {
#define O(field) offsetof(ExtractOptions, field)
    {"-m", "--model", OPTION_TEXT, O(lab.model), 0, 0},
    {"--target", NULL, OPTION_TEXT, O(target), 0, 0},
    {"--contrast", NULL, OPTION_TEXT, O(contrast), 0, 0},
    {"-o", "--out", OPTION_TEXT, O(out), 0, 0},
    {"--state", NULL, OPTION_TEXT, O(state), 0, 0},
    {"-s", "--seed", OPTION_INT64, O(seed), 0, 9007199254740992.0},
    {"--train", NULL, OPTION_INT, O(train), 2, 1 << 30},
    {"--check", NULL, OPTION_INT, O(check), 0, 1 << 30},
    {"--positions", NULL, OPTION_INT, O(positions), 1, 64},
    {"--openers", NULL, OPTION_TEXT, O(openers), 0, 0},
    {"--write-openers", NULL, OPTION_TEXT, O(write_openers), 0, 0},
    {"--keep-all", NULL, OPTION_FLAG, O(keep_all), 0, 0},
    {"--mask-massive", NULL, OPTION_FLAG, O(mask), 0, 0},
    {"--winsorise", "--winsorize", OPTION_REAL, O(winsorise), 0.5, 1},
    {"--max-kl", NULL, OPTION_REAL, O(max_kl), 0, 1000},
    {"--max-layer", NULL, OPTION_REAL, O(max_layer), 0, 1},
    {"--min-induce", NULL, OPTION_REAL, O(min_induce), -1000, 1000},
    {"--controls", NULL, OPTION_INT, O(n_control), 0, 1000},
    {"--no-select", NULL, OPTION_FLAG, O(no_select), 0, 0},
    {"--per-layer", NULL, OPTION_FLAG, O(per_layer), 0, 0},
    {"--shuffle-labels", NULL, OPTION_FLAG, O(shuffle), 0, 0},
    LAB_OPTIONS,
#undef O
};

static const Option REPORT[] = {
#define O(field) offsetof(ReportOptions, field)
    {"-m", "--model", OPTION_TEXT, O(lab.model), 0, 0},
    {"--direction", "--dir", OPTION_LIST, O(directions), 0, 0},
    {"--mode", NULL, OPTION_TEXT, O(mode), 0, 0},
    {"--strength", NULL, OPTION_REAL, O(strength), -1000, 1000},
    {"--layers", NULL, OPTION_TEXT, O(layers), 0, 0},
    {"--keep-embedding", NULL, OPTION_FLAG, O(keep_embedding), 0, 0},
    {"--json", NULL, OPTION_TEXT, O(json), 0, 0},
    {"--controls", NULL, OPTION_INT, O(n_control), 0, 1000},
    {"--answered", NULL, OPTION_INT, O(n_answered), 0, 1000},
    REPORT_OPTIONS,
#undef O
};

static Outcome extract(int argc, char **argv, Err *e) {
    ExtractOptions o = {.lab = {.n_seq = 16}, .positions = 16, .train = -1, .check = -1, .seed = 1, .max_kl = 0.1,
                        .max_layer = 0.8, .n_control = 10, .all_candidates = !strcmp(argv[0], "select")};
    if (!options_parse(EXTRACT, sizeof EXTRACT / sizeof *EXTRACT, &o, argc, argv, &o.lab.model, "the model", e) || !check_lab(&o.lab, e)) return USAGE;
    if (!o.target || !o.contrast) return err_set(e, "%s is missing", o.target ? "--contrast" : "--target"), USAGE;
    if (o.no_select) o.keep_all = true; // nothing is known about answers
    return command_extract(&o, e) ? DONE : FAILED;
}

static Outcome report(int argc, char **argv, Err *e) {
    ReportOptions o = {.lab = {.n_seq = 16}, .strength = NAN, .choices = "letters", .n_predict = 64, .n_forced = 32, .n_control = 10,
                       .n_answered = 1, .seed = 1};
    SteerMode mode;
    if (!options_parse(REPORT, sizeof REPORT / sizeof *REPORT, &o, argc, argv, &o.lab.model, "the model", e) || !check_lab(&o.lab, e)) return USAGE;
    if (!o.directions.n) return err_set(e, "--direction is missing"), USAGE;
    if (!o.target || !o.contrast) return err_set(e, "%s is missing", o.target ? "--contrast" : "--target"), USAGE;
    if (strcmp(o.choices, "letters") && strcmp(o.choices, "text")) return err_set(e, "option --choices is '%s', expected letters or text", o.choices), USAGE;
    if (o.mode && !steer_parse_mode(o.mode, &mode, e)) return USAGE;
    return command_report(&o, e) ? DONE : FAILED;
}

static Outcome markers(int argc, char **argv, Err *e) {
    const char *nothing = NULL;
    if (!options_parse(NULL, 0, NULL, argc, argv, &nothing, "an argument", e)) return USAGE;
    for (int i = 0; DEFAULT_MARKERS[i]; i++) puts(DEFAULT_MARKERS[i]);
    return DONE;
}

static Outcome show(int argc, char **argv, Err *e) {
    const char *path = NULL;
    if (!options_parse(NULL, 0, NULL, argc, argv, &path, "the file", e)) return USAGE;
    if (!path) return err_set(e, "no file given"), USAGE;
    return command_show(path, e) ? DONE : FAILED;
}

static const struct {
    const char *name, *help;
    Outcome (*run)(int argc, char **argv, Err *e); // argv[0]: the command
} COMMANDS[] = {
    {"extract", EXTRACT_HELP, extract}, {"select", EXTRACT_HELP, extract}, {"report", REPORT_HELP, report}, {"map", MAP_HELP, map_command},
    {"search", SEARCH_HELP, search_command}, {"edit", EDIT_HELP, edit_command}, {"undo", UNDO_HELP, undo_command}, {"verify", VERIFY_HELP, verify_command},
    {"diff", DIFF_HELP, diff_command}, {"export", EXPORT_HELP, export_command}, {"show", HELP, show}, {"markers", HELP, markers}};
enum { N_COMMAND = sizeof COMMANDS / sizeof *COMMANDS };

// "extract, select, ... or markers"
static const char *all_commands(void) {
    static char text[256];
    for (int k = 0, n = 0; k < N_COMMAND; k++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%s", k == 0 ? "" : k < N_COMMAND - 1 ? ", " : " or ", COMMANDS[k].name);
    return text;
}

int main(int argc, char **argv) {
    Err e = {0};
    bool help = false, version = false;
    for (int i = 1; i < argc; i++) {
        help |= !strcmp(argv[i], "-h") || !strcmp(argv[i], "--help");
        version |= !strcmp(argv[i], "--version");
    }
    size_t k = 0, n = N_COMMAND;
    while (k < n && (argc < 2 || strcmp(argv[1], COMMANDS[k].name))) k++;
    Outcome outcome = USAGE;
    if (help || version) {
        fputs(!help ? "abliterate.c abliterate 0.1\n" : k < n ? COMMANDS[k].help : HELP, stdout);
        outcome = DONE;
    } else if (k < n) outcome = COMMANDS[k].run(argc - 1, argv + 1, &e);
    else if (argc < 2) err_set(&e, "no command: %s", all_commands());
    else err_set(&e, "unknown command '%s', expected %s", argv[1], all_commands());
    if (outcome == DONE && (fflush(stdout) || ferror(stdout))) {
        err_set(&e, "standard output: %s", strerror(errno));
        outcome = FAILED;
    }
    fflush(stdout);
    if (outcome != DONE) fprintf(stderr, "abliterate: %s%s\n", e.text, outcome == USAGE ? " (abliterate --help explains)" : "");
    return outcome == DONE ? 0 : outcome == FAILED ? 1 : 2;
}
