// command_map.c: `abliterate map`: measures, prints, writes.
#include "abliterate.h"
#include "map.h"

const char MAP_HELP[] =
    "abliterate map MODEL.gguf --direction DIR.gguf [--prompts A.txt] [-o FEW.gguf] [options]\n"
    "    who writes the direction to the residual stream: kappa of every matrix from the weights alone, and with prompts what each\n"
    "    layer's attention, FFN, each expert and per-layer input add to it; then the fewest of them to edit\n"
    "\n"
    "  --direction FILE           the direction\n"
    "  --prompts FILE             prompts that show the behaviour (also --target)\n"
    "  --contrast FILE            and prompts that do not: what sets the two apart counts, not what both have\n"
    "  -o FILE                    write the direction with strength 1 at the fewest parts and 0 elsewhere (mode write), for run and edit\n"
    "  --remove X                 share of the component that the suggestion is to remove (default 0.95)\n"
    "  --positions N              the last N positions (default: those after the instruction, at most 16)\n"
    "  --limit N                  prompts of each file (default all)\n"
    "  --html FILE, --json FILE   write the map there, too\n" LAB_HELP;

static const Option OPTIONS[] = {
#define O(field) offsetof(MapOptions, field)
    {"-m", "--model", OPTION_TEXT, O(lab.model), 0, 0},
    {"--direction", "--dir", OPTION_TEXT, O(direction), 0, 0},
    {"--prompts", "--target", OPTION_TEXT, O(prompts), 0, 0},
    {"--contrast", NULL, OPTION_TEXT, O(contrast), 0, 0},
    {"-o", "--out", OPTION_TEXT, O(out), 0, 0},
    {"--remove", NULL, OPTION_REAL, O(remove), 0.01, 1},
    {"--positions", NULL, OPTION_INT, O(positions), 1, 16},
    {"--limit", NULL, OPTION_INT, O(limit), 1, 1 << 30},
    {"--html", NULL, OPTION_TEXT, O(html), 0, 0},
    {"--json", NULL, OPTION_TEXT, O(json), 0, 0},
    LAB_OPTIONS,
#undef O
};

Outcome map_command(int argc, char **argv, Err *e) {
    static Lab lab;
    static Map m;
    MapOptions o = {.lab = {.n_seq = 16}, .remove = 0.95};
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, &o, argc, argv, &o.lab.model, "the model", e) || !check_lab(&o.lab, e)) return USAGE;
    if (!o.direction) return err_set(e, "--direction is missing"), USAGE;
    if ((o.contrast || o.out) && !o.prompts) return err_set(e, "%s is given, --prompts is missing", o.contrast ? "--contrast" : "-o"), USAGE;
    catch_interrupt(true);
    bool ok = lab_open(&lab, &o.lab, e) && map_measure(&m, &lab, &o, e);
    if (ok) {
        map_text(&m, stdout);
        ok = (!o.out || map_save(&m, &lab.m, o.out, e)) && (!o.json || map_json(&m, o.json, e)) && (!o.html || map_html(&m, o.html, e));
        if (ok && o.out) fprintf(stderr, "%s: written\n", o.out);
        if (ok && o.json) fprintf(stderr, "%s: written\n", o.json);
        if (ok && o.html) fprintf(stderr, "%s: written\n", o.html);
    }
    map_free(&m);
    lab_close(&lab);
    return ok ? DONE : FAILED;
}
