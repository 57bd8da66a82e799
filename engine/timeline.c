// timeline.c: see timeline.h
#include "timeline.h"
#include "stream.h"

#include <math.h>
#include <stdlib.h>

const char *const LANE_NAMES[N_LANE] = {"device", "host", "copies"};
const char *const EVENT_NAMES[N_EVENT_KIND] = {"attention", "FFN", "experts", "head", "hand-off", "copy", "wait", "token"};

// ---- events ----

static void event_at(Timeline *t, Lane lane, EventKind kind, int layer, double start, double seconds) {
    if (seconds <= 0) return;
    t->by_kind[lane][kind] += seconds;
    if (kind != EVENT_WAIT) t->busy[lane] += seconds;
    if (t->now[lane] < start + seconds) t->now[lane] = start + seconds;
    if (t->end < start + seconds) t->end = start + seconds;
    if (!t->record) return;
    if (t->n == t->cap) {
        const int cap = t->cap ? 2 * t->cap : 256;
        Event *more = realloc(t->event, sizeof *more * (size_t)cap);
        if (!more) {
            t->record = false; // the sums stay right
            return;
        }
        t->event = more;
        t->cap = cap;
    }
    t->event[t->n++] = (Event){kind, lane, layer, start, start + seconds};
}

static void event(Timeline *t, Lane lane, EventKind kind, int layer, double seconds) { event_at(t, lane, kind, layer, t->now[lane], seconds); }

// Nothing on this lane begins before.
static void wait_until(Timeline *t, Lane lane, int layer, double when) { event(t, lane, EVENT_WAIT, layer, when - t->now[lane]); }

void timeline_close(Timeline *t) {
    free(t->event);
    *t = (Timeline){0};
}

// ---- what a pass computes ----

typedef struct {
    Timeline *t;
    const PlanUnits *u;
    const Placement *p;
    const Machine *m;
    Lane lane;     // where the stream is
    int pos, rows; // positions before, rows of the pass
    int late;      // rows whose logits are wanted
    double there;  // when what comes over the link has been computed
} Pass;

static const Processor *processor(const Pass *a, Lane lane) { return lane == LANE_DEVICE ? &a->m->gpu : &a->m->host; }

static double kv_bytes(const Pass *a, const Unit *u) {
    const int seen = a->pos + a->rows;
    return u->kv_row * (u->window && seen > u->window ? u->window : seen);
}

// How many times those of a token are the parts that so many rows need, on average; as in bench/work.c.
static double met(const Unit *u, int rows) {
    const double used = (double)u->n_used / u->n_part;
    return used < 1 ? (1 - pow(1 - used, rows)) / used : 1;
}

// Seconds of `share` of a unit's parts: of a token's chosen ones, or of all in a prompt.
static double unit_seconds(const Pass *a, Lane lane, const Unit *u, double share) {
    const Processor *p = processor(a, lane);
    const int rows = u->late ? a->late : a->rows;
    if (rows == 0 || share <= 0) return 0;
    const double kv = u->kv_row > 0 ? machine_type_seconds(p, TYPE_F16, kv_bytes(a, u)) : 0;
    const double slower = u->kind == UNIT_EXPERTS && a->rows == 1 && p->experts > 0 ? p->experts : 1;
    const double read = share * met(u, rows) * machine_read_seconds(p, u->read) / slower + kv, launch = u->n_launch * p->launch;
    if (a->rows == 1) return read + launch;
    const double flop = share * (u->flop * a->rows + u->late_flop * a->late) + u->see_flop * stream_sights(a->pos, a->rows, u->window);
    return fmax(read, flop / p->rate) + launch;
}

static double link_of(const Pass *a, Lane to) { return to == LANE_DEVICE ? a->m->gpu.up_pinned : a->m->gpu.down; }

// A token's bytes are within the hand-off; a prompt's take the link's time.
static double handoff_seconds(const Pass *a, Lane to) {
    return a->m->gpu.handoff + (a->rows == 1 ? 0 : 4.0 * a->u->n_embd * a->rows / link_of(a, to));
}

// Through pinned buffers: a copy in host memory besides, which is what a pageable copy has beside a pinned one.
static double copy_seconds(const Pass *a, Lane to, double bytes) {
    return bytes * (1 / link_of(a, to) + 1 / a->m->gpu.up_pageable - 1 / a->m->gpu.up_pinned);
}

// The stream goes so.
static double crossing_seconds(const Pass *a, Lane to) {
    return a->m->gpu.handoff + copy_seconds(a, to, a->rows == 1 ? 0 : 4.0 * a->u->n_embd * a->rows);
}

// Of what a token costs beside its work: until the device begins. A hand-off to it includes as much; the rest is the way of the id, a hand-off.
static double starting_seconds(const Machine *m) { return fmax(m->gpu.token - m->gpu.handoff, 0); }

static void cross(Pass *a, Lane to, int layer) {
    if (a->lane == to) return;
    wait_until(a->t, to, layer, a->t->now[a->lane]);
    event(a->t, to, EVENT_HANDOFF, layer, crossing_seconds(a, to));
    a->lane = to;
}

// Weights of a unit may come over the link in this pass.
static bool may_stream(const Pass *a, const Unit *u) { return a->p->ring > 0 && a->rows >= FEWEST_STREAMED && !u->late; }

// True: the host's share of a unit comes over the link, and the device computes all of it, piece by piece as they come, after what it
// has to do beside; that takes less than otherwise. Pieces are halves of the ring, of matrices BORROW_PIECE at most: no more than the ring holds is copied
// before the device has begun with what comes, the last piece is computed when all is there, and nothing is copied ahead of the unit. After the unit: streamed.
static bool stream(Pass *a, const Unit *u, double share, double beside, double otherwise) {
    if (!may_stream(a, u)) return false;
    const double link = machine_stream_bandwidth(a->m), ring = a->p->ring;
    const double needed = share * (double)u->bytes * met(u, a->rows) * u->n_used / u->n_part, copy = needed / link;
    const double piece = u->kind == UNIT_EXPERTS ? ring / 2 : fmin(ring / 2, BORROW_PIECE);
    const double all = unit_seconds(a, LANE_DEVICE, u, 1), comes = share * all, before = beside + all - comes, last = comes * fmin(1, piece / needed);
    const double seconds = fmax(fmax(copy, before + (needed - ring) / link) + last, before + comes);
    const double there_and_back = a->lane == LANE_HOST ? 2 * crossing_seconds(a, LANE_DEVICE) : 0;
    if (seconds + there_and_back >= otherwise) return false;
    cross(a, LANE_DEVICE, u->layer);
    event_at(a->t, LANE_COPY, EVENT_COPY, u->layer, a->t->now[LANE_DEVICE], copy);
    a->there = a->t->now[LANE_DEVICE] + seconds;
    return true;
}
static void streamed(Pass *a, const Unit *u) { wait_until(a->t, LANE_DEVICE, u->layer, a->there); }

// Seconds of a unit on the host, from where the stream is and back.
static double on_host(const Pass *a, const Unit *u, double share) {
    return unit_seconds(a, LANE_HOST, u, share) + (a->lane == LANE_DEVICE ? crossing_seconds(a, LANE_HOST) + crossing_seconds(a, LANE_DEVICE) : 0);
}

static EventKind event_kind(const Unit *u) {
    return u->kind == UNIT_ATTENTION ? EVENT_ATTENTION : u->kind == UNIT_FFN ? EVENT_FFN : u->kind == UNIT_EXPERTS ? EVENT_EXPERTS : EVENT_HEAD;
}

static void compute(Pass *a, const Unit *u, Lane lane) {
    if ((u->late ? a->late : a->rows) == 0) return;
    cross(a, lane, u->layer);
    event(a->t, lane, event_kind(u), u->layer, unit_seconds(a, lane, u, 1));
}

// True: attention of the host is computed on the device, as its weights come. Its keys and values go to the host; then all that are seen come from there.
static bool attention_streamed(Pass *a, const Unit *u) {
    Timeline *t = a->t;
    const int seen = a->pos + a->rows, held = u->window && seen > u->window ? u->window - 1 + a->rows : seen;
    const double keys = u->kv_row * (held < seen ? held : seen), link = machine_stream_bandwidth(a->m), new = 4.0 * u->kv_new * a->rows;
    const double scores = u->see_flop * stream_sights(a->pos, a->rows, u->window) / a->m->gpu.rate, products = unit_seconds(a, LANE_DEVICE, u, 1) - scores;
    const double weights = (double)u->bytes / link, down = new > 0 ? 2 * a->m->gpu.handoff + copy_seconds(a, LANE_HOST, new) : 0;
    const double there_and_back = a->lane == LANE_HOST ? 2 * crossing_seconds(a, LANE_DEVICE) : 0;
    if (!may_stream(a, u) || keys > a->p->ring || fmax(weights, products) + down + keys / link + scores + there_and_back >= on_host(a, u, 1)) return false;
    cross(a, LANE_DEVICE, u->layer);
    event_at(t, LANE_COPY, EVENT_COPY, u->layer, t->now[LANE_DEVICE], weights);
    event(t, LANE_DEVICE, EVENT_ATTENTION, u->layer, products);
    wait_until(t, LANE_DEVICE, u->layer, t->now[LANE_COPY]);
    event(t, LANE_DEVICE, EVENT_HANDOFF, u->layer, down);
    event_at(t, LANE_COPY, EVENT_COPY, u->layer, t->now[LANE_DEVICE], keys / link);
    wait_until(t, LANE_DEVICE, u->layer, t->now[LANE_COPY]);
    event(t, LANE_DEVICE, EVENT_ATTENTION, u->layer, scores);
    return true;
}

// ---- experts ----

// Of n_part experts, `host` on the host: the chance that k of the n_used chosen ones are there, [k]. Hypergeometric.
static void chances(const Unit *u, int host, double *chance) {
    const int used = u->n_used, here = u->n_part - host, first = used > here ? used - here : 0, last = used < host ? used : host;
    double sum = 0;
    for (int k = 0; k <= used; k++) chance[k] = 0;
    chance[first] = 1; // up to a factor
    for (int k = first; k < last; k++) chance[k + 1] = chance[k] * (host - k) * (used - k) / ((k + 1.0) * (here - used + k + 1.0));
    for (int k = first; k <= last; k++) sum += chance[k];
    for (int k = first; k <= last; k++) chance[k] /= sum;
}

// Both sides at once: after the router the host begins with its experts, the device with the dense FFN and its own.
static void fork_experts(Pass *a, const Unit *f, const Unit *x, int device) {
    Timeline *t = a->t;
    const Residency *r = a->p->residency ? &a->p->residency[x - a->u->unit] : NULL;
    const double upload = r && a->rows == 1 ? r->upload : 0;
    const int host = x->n_part - device;
    const Processor *gpu = &a->m->gpu;
    const double cross_down = handoff_seconds(a, LANE_HOST), cross_up = handoff_seconds(a, LANE_DEVICE);
    const double after = f->n_launch > 4 ? 2 * gpu->launch : 0; // norms and additions
    const double ffn = unit_seconds(a, LANE_DEVICE, f, 1) - after;
    const double before = fmin(ffn, machine_type_seconds(gpu, TYPE_F32, f->router) + f->n_launch / 2 * gpu->launch); // norms and router
    double here = 0, there = 0, join = 0, away = 0; // averages: the device's, the host's; the later end; how often the host is needed
    if (a->rows == 1) {
        double of[MAX_EXPERT + 1];
        const double *away_of = r ? r->away : x->away ? x->away + device * (x->n_used + 1) : NULL;
        if (away_of) memcpy(of, away_of, sizeof *of * (size_t)(x->n_used + 1));
        else chances(x, host, of);
        const double launch_d = x->n_launch * gpu->launch, launch_h = x->n_launch * a->m->host.launch; // read and launches, of all of them
        const double read_d = unit_seconds(a, LANE_DEVICE, x, 1) - launch_d, read_h = unit_seconds(a, LANE_HOST, x, 1) - launch_h;
        for (int k = 0; k <= x->n_used; k++) {
            const double c = of[k], share = (double)k / x->n_used;
            if (c <= 0) continue;
            const double d = k < x->n_used ? (1 - share) * read_d + launch_d : 0, h = k ? share * read_h + launch_h + upload / (a->m->host.bandwidth * a->m->host.share) : 0;
            here += c * d;
            there += c * h;
            if (k) away += c;
            join += c * fmax(ffn - before + d, k ? cross_down + h + cross_up : 0);
        }
    } else {
        const double share = (double)host / x->n_part;
        here = unit_seconds(a, LANE_DEVICE, x, 1 - share);
        there = unit_seconds(a, LANE_HOST, x, share);
        away = there > 0;
        join = fmax(ffn - before + here, away > 0 ? cross_down + there + cross_up : 0);
    }
    cross(a, LANE_DEVICE, f->layer);
    event(t, LANE_DEVICE, EVENT_FFN, f->layer, before + gpu->launch); // and what hands the rows over
    const double start = t->now[LANE_DEVICE];
    wait_until(t, LANE_HOST, x->layer, start);
    event_at(t, LANE_COPY, EVENT_COPY, x->layer, fmax(start, t->now[LANE_COPY]), upload / a->m->gpu.up_pinned);
    event(t, LANE_HOST, EVENT_HANDOFF, x->layer, away * cross_down);
    event(t, LANE_HOST, EVENT_EXPERTS, x->layer, there);
    event(t, LANE_DEVICE, EVENT_FFN, f->layer, ffn - before);
    event(t, LANE_DEVICE, EVENT_EXPERTS, x->layer, here);
    const double left = start + join - t->now[LANE_DEVICE], up = fmin(left, away * cross_up);
    wait_until(t, LANE_DEVICE, x->layer, start + join - up);
    event(t, LANE_DEVICE, EVENT_HANDOFF, x->layer, up);
    event(t, LANE_DEVICE, EVENT_FFN, f->layer, after);
}

// Experts where they are; those of both sides one after the other, unless they are copied.
static void experts(Pass *a, const Unit *x, int device) {
    const double share = (double)device / x->n_part;
    if (share < 1 && stream(a, x, 1 - share, 0, on_host(a, x, 1 - share) + unit_seconds(a, LANE_DEVICE, x, share))) {
        compute(a, x, LANE_DEVICE);
        streamed(a, x);
        return;
    }
    if (share > 0) {
        cross(a, LANE_DEVICE, x->layer);
        event(a->t, LANE_DEVICE, EVENT_EXPERTS, x->layer, unit_seconds(a, LANE_DEVICE, x, share));
    }
    if (share < 1) {
        cross(a, LANE_HOST, x->layer);
        event(a->t, LANE_HOST, EVENT_EXPERTS, x->layer, unit_seconds(a, LANE_HOST, x, 1 - share));
    }
}

// x NULL: no experts
static void feed_forward(Pass *a, const Unit *f, const Unit *x, int f_part, int x_part) {
    if ((f->late ? a->late : a->rows) == 0) return;
    if (x && f_part && x_part < x->n_part && a->p->concurrent) {
        const double here = (double)x_part / x->n_part, ffn = unit_seconds(a, LANE_DEVICE, f, 1);
        const double both = fmax(ffn + unit_seconds(a, LANE_DEVICE, x, here),
                                 unit_seconds(a, LANE_HOST, x, 1 - here) + handoff_seconds(a, LANE_HOST) + handoff_seconds(a, LANE_DEVICE));
        if (stream(a, x, 1 - here, ffn, both)) { // beside the dense FFN, too
            compute(a, f, LANE_DEVICE);
            compute(a, x, LANE_DEVICE);
            streamed(a, x);
        } else fork_experts(a, f, x, x_part);
        return;
    }
    if (!f_part && stream(a, f, 1, 0, on_host(a, f, 1))) {
        compute(a, f, LANE_DEVICE);
        streamed(a, f);
    } else compute(a, f, f_part ? LANE_DEVICE : LANE_HOST);
    if (x) experts(a, x, x_part);
}

// Rows of tables that stay on the host, of a prompt: over the link as they are in the file, before anything else. A token's are among its arguments.
static void table_rows(Pass *a) {
    double bytes = 0;
    for (int i = 0; i < a->u->n; i++) {
        const Unit *x = &a->u->unit[i];
        for (int t = 0; t < TYPE_COUNT && (x->kind == UNIT_EMBED || x->kind == UNIT_TABLE); t++)
            bytes += x->read[t] * a->rows;
    }
    if (a->lane != LANE_DEVICE || a->rows == 1 || bytes <= 0) return;
    event_at(a->t, LANE_COPY, EVENT_COPY, 0, a->t->now[LANE_DEVICE], bytes / a->m->gpu.up_pinned);
    wait_until(a->t, LANE_DEVICE, 0, a->t->now[LANE_COPY]);
}

static void pass(Pass *a) {
    const PlanUnits *u = a->u;
    const int *part = a->p->part;
    bool begun = false;
    for (int i = 0; i < u->n; i++) {
        const Unit *x = &u->unit[i];
        const Lane lane = part[i] ? LANE_DEVICE : LANE_HOST;
        if (!begun && x->kind == UNIT_ATTENTION) { // the embedding's rows come to where the first layer is
            const double from = fmax(a->t->now[LANE_DEVICE], a->t->now[LANE_HOST]);
            a->t->now[a->lane = lane] = from;
            if (lane == LANE_DEVICE) event(a->t, lane, EVENT_TOKEN, 0, starting_seconds(a->m));
            table_rows(a);
            begun = true;
        }
        if (x->kind == UNIT_ATTENTION && (part[i] || !attention_streamed(a, x))) compute(a, x, lane);
        if (x->kind == UNIT_HEAD && a->late) compute(a, x, lane);
        if (x->kind != UNIT_FFN) continue;
        const bool has = i + 1 < u->n && u->unit[i + 1].kind == UNIT_EXPERTS;
        feed_forward(a, x, has ? x + 1 : NULL, part[i], has ? part[i + 1] : 0);
    }
}

// The sampled id to the host.
static void end_token(Pass *a) {
    event(a->t, a->lane, EVENT_TOKEN, a->u->n_layer, a->lane == LANE_DEVICE ? a->m->gpu.token - starting_seconds(a->m) : a->m->host.token);
}

void timeline_token(Timeline *t, const PlanUnits *u, const Placement *p, const Machine *m, int depth) {
    Pass a = {.t = t, .u = u, .p = p, .m = m, .pos = depth, .rows = 1, .late = 1};
    pass(&a);
    end_token(&a);
    if (p->residency) t->end = fmax(t->now[a.lane], t->busy[LANE_COPY]); // the last uploads go on beside the next token
}

void timeline_prompt(Timeline *t, const PlanUnits *u, const Placement *p, const Machine *m, int n) {
    Pass a = {.t = t, .u = u, .p = p, .m = m};
    for (a.pos = 0; a.pos < n; a.pos += a.rows) {
        a.rows = n - a.pos < u->chunk ? n - a.pos : u->chunk;
        a.late = a.pos + a.rows == n;
        pass(&a);
    }
    end_token(&a);
}

// ---- drawing ----

void timeline_svg(FILE *f, const Timeline *t, const char *const *title, int n) {
    enum { LEFT = 80, WIDTH = 1200, LANE_HEIGHT = 44, CHART = 60 + N_LANE * (LANE_HEIGHT + 8) + 30, LEGEND = 40 };
    static const char *const color[N_EVENT_KIND] = {"#4477aa", "#66ccee", "#228833", "#aa3377", "#ee6677", "#ccbb44", "#eeeeee", "#bbbbbb"};
    fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"13\">\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n", LEFT + WIDTH + 40, n * CHART + LEGEND);
    for (int i = 0; i < n; i++) {
        const double scale = t[i].end > 0 ? WIDTH / t[i].end : 0;
        const int top = i * CHART + 50, bottom = top + N_LANE * (LANE_HEIGHT + 8);
        fprintf(f, "<text x=\"%d\" y=\"%d\" font-size=\"16\">", LEFT, top - 16);
        for (const char *c = title[i]; *c; c++) // names may hold anything
            *c == '<' ? fputs("&lt;", f) : *c == '&' ? fputs("&amp;", f) : *c == '>' ? fputs("&gt;", f) : fputc(*c, f);
        fprintf(f, "</text>\n");
        for (int lane = 0; lane < N_LANE; lane++)
            fprintf(f, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s %.0f %%</text>\n", LEFT - 4, top + lane * (LANE_HEIGHT + 8) + LANE_HEIGHT / 2 + 4,
                    LANE_NAMES[lane], t[i].end > 0 ? 100 * t[i].busy[lane] / t[i].end : 0);
        for (const Event *v = t[i].event; v && v < t[i].event + t[i].n; v++)
            fprintf(f, "<rect x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\" fill=\"%s\"><title>layer %d, %s: %.1f us from %.3f ms</title></rect>\n",
                    LEFT + v->start * scale, top + (int)v->lane * (LANE_HEIGHT + 8), (v->end - v->start) * scale, LANE_HEIGHT, color[v->kind], v->layer,
                    EVENT_NAMES[v->kind], (v->end - v->start) * 1e6, v->start * 1e3);
        fprintf(f, "<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"black\"/>\n", LEFT, bottom, LEFT + WIDTH, bottom);
        for (int k = 0; k <= 10; k++)
            fprintf(f, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%.4g ms</text>\n", LEFT + k * WIDTH / 10, bottom + 18, t[i].end * 1e3 * k / 10);
    }
    for (int k = 0; k < N_EVENT_KIND; k++)
        fprintf(f, "<rect x=\"%d\" y=\"%d\" width=\"14\" height=\"14\" fill=\"%s\"/><text x=\"%d\" y=\"%d\">%s</text>\n", LEFT + k * 120, n * CHART + 10, color[k],
                LEFT + k * 120 + 20, n * CHART + 22, EVENT_NAMES[k]);
    fprintf(f, "</svg>\n");
}
