// timeline.h: the schedule simulator. Replays one decoded token, or a prompt, of a model whose units are here and there, on a machine that
// is a description: what the device, the host and the copy engine do when, and who waits for whom. Pure; the planner's speeds are its ends.
//
// Of a token on one processor, a unit takes bytes / (bandwidth * share) and its launches; of a prompt the longer of that, where weights are
// read once a pass, and operations / rate. The stream changes sides in handoff seconds (of a prompt: and its bytes over the link).
// Where both sides have experts of a layer, which of the chosen ones are where is chance: n_used out of n_part without return, each set as
// likely; or it is as a trace says (Unit.away, Residency), and what is brought in the meantime slows the host's experts by its share of the
// host's memory, and the token where the link is too slow for all of it. An event of such a layer lasts as long as it does on average, and the layer until the average of the later side's end.
#ifndef TIMELINE_H
#define TIMELINE_H

#include "machine.h"
#include "units.h"

typedef enum { LANE_DEVICE, LANE_HOST, LANE_COPY } Lane;
typedef enum { EVENT_ATTENTION, EVENT_FFN, EVENT_EXPERTS, EVENT_HEAD, EVENT_HANDOFF, EVENT_COPY, EVENT_WAIT, EVENT_TOKEN } EventKind;
enum { N_LANE = LANE_COPY + 1, N_EVENT_KIND = EVENT_TOKEN + 1 };
extern const char *const LANE_NAMES[N_LANE], *const EVENT_NAMES[N_EVENT_KIND];

typedef struct {
    EventKind kind;
    Lane lane;
    int layer;
    double start, end; // seconds
} Event;

typedef struct {
    Event *event; // [n], in the order in which they were found; NULL: not recorded
    int n, cap;
    bool record;
    double now[N_LANE];               // when a lane is free
    double busy[N_LANE];              // without waiting
    double by_kind[N_LANE][N_EVENT_KIND];
    double end;
} Timeline;

// What a trace (residency.h) says of a layer's experts, in the place of chance.
typedef struct {
    const double *away; // [n_used + 1] how often so many of a token's experts are on the host
    double upload;      // bytes that a token brings to the device beside all else: over the link, and out of the memory that the host reads
} Residency;

// Where units are: parts of each on the device (experts: how many; others 0 or 1), the rest on the host.
typedef struct {
    int *part;       // [units]
    bool concurrent; // experts on both sides are computed at once, beside the dense FFN
    double ring;     // bytes of the device through which, of a prompt, the host's weights come to it where that is quicker (stream.h); 0: none do
    const Residency *residency; // [units] of a token's concurrent experts; NULL: as Unit.away says, and stays
} Placement;

// Zeroed t, or with record set. depth: positions before the token.
void timeline_token(Timeline *t, const PlanUnits *u, const Placement *p, const Machine *m, int depth);
// n tokens from position 0 in passes of u->chunk; the last one's logits.
void timeline_prompt(Timeline *t, const PlanUnits *u, const Placement *p, const Machine *m, int n);
void timeline_close(Timeline *t);

// One drawing, a chart for each timeline under its title.
void timeline_svg(FILE *f, const Timeline *t, const char *const *title, int n);

#endif
