// plan.c: see plan.h
#include "plan.h"

#include <stdlib.h>

const char *const FAMILY_NAMES[N_FAMILY] = {
    "everything on the CPU", "layers from the end", "units that save most", "without experts",
    "experts of whole layers", "the same, beside the dense FFN", "a share of all experts, at once",
};

// ---- what is allowed ----

static bool always_on_host(const Unit *u) { return u->kind == UNIT_EMBED || u->kind == UNIT_TABLE; }
static int first_allowed(const PlanUnits *u, int gpu_layers) { // layer; n_layer: only the head, more: nothing
    return gpu_layers == LAYERS_AUTO || gpu_layers > u->n_layer ? 0 : u->n_layer + 1 - gpu_layers;
}
static bool is_bound(const Plan *p, const Unit *u) { return u->layer < first_allowed(p->u, p->q.gpu_layers); }
static bool is_cpu_moe(const Plan *p, const Unit *u) { return u->kind == UNIT_EXPERTS && u->layer < p->q.n_cpu_moe; }

static bool check_pins(const Plan *p, Err *e) {
    for (int i = 0; p->q.pin && i < p->u->n; i++) {
        const Unit *u = &p->u->unit[i];
        if (p->q.pin[i] != PIN_DEVICE) continue;
        if (always_on_host(u)) return err_set(e, "the %s is read row by row: it stays in host memory", UNIT_NAMES[u->kind]);
        if (is_bound(p, u)) return err_set(e, "%s of layer %d shall be on the GPU, -ngl %d does not allow it", UNIT_NAMES[u->kind], u->layer, p->q.gpu_layers);
    }
    return true;
}

// Pins, and units that go together. False: a pin cannot be kept.
static bool settle(const Plan *p, int *part) {
    const PlanUnits *u = p->u;
    for (int i = 0; i < u->n; i++) {
        const Unit *x = &u->unit[i];
        if (p->q.pin && p->q.pin[i] != PIN_NONE) part[i] = p->q.pin[i] == PIN_DEVICE ? x->n_part : 0;
        if (always_on_host(x) || is_bound(p, x)) part[i] = 0;
    }
    for (int i = 0; i < u->n; i++) // layers that read one KV cache are where it is: all of them on the device, or none
        if (u->unit[i].kind == UNIT_ATTENTION && !part[i]) part[p->source[i]] = 0;
    for (int i = 0; i < u->n; i++) {
        if (u->unit[i].kind == UNIT_ATTENTION) part[i] = part[p->source[i]];
        if (u->whole && u->unit[i].kind == UNIT_FFN) part[i] = part[i - 1];
        if (!p->q.together || u->unit[i].kind != UNIT_EXPERTS) continue;
        part[i - 1] = part[i - 1] && part[i] == u->unit[i].n_part;
        part[i] = part[i - 1] ? u->unit[i].n_part : 0;
    }
    for (int i = 0; p->q.pin && i < u->n; i++)
        if (p->q.pin[i] != PIN_NONE && (part[i] > 0) != (p->q.pin[i] == PIN_DEVICE)) return false;
    return true;
}

// ---- candidates ----

enum { MAX_SHARES = 4096 }; // sizes of it that are tried

// Orders that candidates are made from. Of FAMILY_UNITS: the head first; of whole layers' experts: from the largest to the smallest, as what fits best
// are neighbours in this order, mostly small ones or mostly large ones. Equals from the end.
static bool rank_units(Plan *p, Err *e) {
    const PlanUnits *u = p->u;
    double *saves = malloc(sizeof *saves * (size_t)u->n);
    p->rank = calloc((size_t)u->n, sizeof *p->rank);
    p->size_rank = calloc((size_t)u->n, sizeof *p->size_rank);
    p->source = calloc((size_t)u->n, sizeof *p->source);
    const bool ok = (saves && p->rank && p->size_rank && p->source) || err_set(e, "no memory for a plan");
    for (int i = 0; ok && i < u->n; i++) {
        const Unit *x = &u->unit[i];
        const Processor *host = &p->m->host;
        const int depth = x->window ? min_int(x->window, p->q.depth) : p->q.depth;
        saves[i] = (machine_read_seconds(host, x->read) + machine_type_seconds(host, TYPE_F16, x->kv_row * depth)) / ((double)units_bytes(x, x->n_part) + 1);
        if (x->kind == UNIT_HEAD) saves[i] = 1e30;
        if (always_on_host(x)) saves[i] = 0;
    }
    for (int i = 0; ok && i < u->n; i++)
        for (int k = 0; k < u->n; k++) {
            const Unit *x = &u->unit[i], *o = &u->unit[k];
            p->rank[i] += saves[k] > saves[i] || (saves[k] == saves[i] && k > i);
            p->size_rank[i] += o->kind == UNIT_EXPERTS && (o->bytes > x->bytes || (o->bytes == x->bytes && k > i));
            if (x->kind == UNIT_ATTENTION && o->kind == UNIT_ATTENTION && o->layer == x->source) p->source[i] = k;
        }
    free(saves);
    for (int i = 0; i < u->n; i++)
        if (u->unit[i].kind == UNIT_EXPERTS) p->n_expert += u->unit[i].n_part, p->n_moe++;
    p->share_step = 1 + p->n_expert / MAX_SHARES;
    return ok;
}

// The k-th stretch of n: 0, then those of 1 from each beginning, of 2 ... False: there is none.
static bool stretch(int n, int k, int *begin, int *length) {
    *begin = 0;
    for (*length = 0; *length <= n; ++*length) {
        const int starts = *length ? n - *length + 1 : 1;
        if (k < starts) {
            *begin = k;
            return true;
        }
        k -= starts;
    }
    return false;
}

// Candidate number k of a family; false: there is no k-th.
static bool nth(const Plan *p, Family family, int k, Candidate *c) {
    const PlanUnits *u = p->u;
    const int first = first_allowed(u, p->q.gpu_layers), n_layer = u->n_layer, from = n_layer - k; // k layers from the end
    const int n_expert = p->n_expert, step = p->share_step;
    int begin = 0, length = 0;
    const int most = family == FAMILY_HOST ? 0 : family == FAMILY_LAYERS ? 2 * n_layer : family == FAMILY_UNITS ? u->n : family == FAMILY_SHARE ? n_expert / step : n_layer;
    const bool whole = family == FAMILY_WHOLE || family == FAMILY_OVERLAP;
    if (whole ? !stretch(p->n_moe, k, &begin, &length) : k > most) return false;
    if ((family > FAMILY_UNITS && !n_expert) || (family > FAMILY_HOST && (p->q.vram <= 0 || first > n_layer))) return false;
    c->layers = family == FAMILY_SHARE ? n_layer : whole ? length : k;
    c->experts = family == FAMILY_SHARE ? (most - k) * step : 0; // many first: fewer are hardly ever faster, and not looked at further
    int left = c->experts, layers = n_layer; // experts still to be put into so many layers: as many into each, the last ones one more
    c->place.concurrent = family != FAMILY_WHOLE;
    for (int i = 0; i < u->n; i++) {
        const Unit *x = &u->unit[i];
        const int half = 2 * (n_layer - x->layer) - (x->kind != UNIT_ATTENTION); // from the end, counted from 1
        bool on = x->kind == UNIT_HEAD;
        int *part = &c->place.part[i];
        if (family == FAMILY_HOST) on = false;
        else if (family == FAMILY_LAYERS) on |= half <= k;
        else if (family == FAMILY_UNITS) on = p->rank[i] < k;
        else if (x->kind != UNIT_EXPERTS) on |= family != FAMILY_DENSE || x->layer >= from;
        else on = whole && p->size_rank[i] >= begin && p->size_rank[i] < begin + length;
        *part = on ? x->n_part : 0;
        if (x->kind == UNIT_ATTENTION) layers = n_layer - x->layer;
        if (x->kind == UNIT_EXPERTS && family == FAMILY_SHARE) left -= *part = min_int(left / layers, x->n_part);
        if (is_cpu_moe(p, x)) *part = 0;
    }
    return true;
}

enum { PINNED = 8 << 20 }; // bytes of the two buffers through which the device is written and read (kernels/cuda_common.cuh)

static void weigh(const Plan *p, Candidate *c) {
    const PlanUnits *u = p->u;
    bool here = false, there = false;
    int first = 0; // layer 0's attention, which follows the embedding
    while (u->unit[first].kind != UNIT_ATTENTION) first++;
    c->device = c->host = 0;
    for (int i = 0; i < u->n; i++) {
        const Unit *x = &u->unit[i];
        c->device += (double)units_bytes(x, c->place.part[i]);
        c->host += (double)x->bytes * (x->n_part - c->place.part[i]) / x->n_part + (c->place.part[i] ? 0 : (double)x->kv_bytes);
        here |= c->place.part[i] > 0;
        there |= c->place.part[i] < x->n_part && !always_on_host(x);
        if (u->tied && x->kind == UNIT_HEAD && c->place.part[i] && !c->place.part[first]) c->host += (double)x->bytes; // it embeds there
    }
    if (here) c->device += (double)u->acts + p->q.reserve, c->host += PINNED;
    if (there) c->host += (double)u->acts;
}

static void predict_token(const Plan *p, Candidate *c) {
    Timeline t = {0};
    timeline_token(&t, p->u, &c->place, p->m, p->q.depth);
    c->decode = t.end > 0 ? 1 / t.end : 0;
}

static void predict_prompt(const Plan *p, Candidate *c) {
    double best = 0, ring = 0;
    for (int s = 0; s < 2; s++) {
        if (s && (p->q.ring <= 0 || c->device <= 0)) break;
        Timeline t = {0};
        c->place.ring = s * p->q.ring;
        timeline_prompt(&t, p->u, &c->place, p->m, p->q.n_prompt);
        const double speed = t.end > 0 ? p->q.n_prompt / t.end : 0;
        if (speed > best) best = speed, ring = c->place.ring;
    }
    c->place.ring = ring;
    c->prompt = best;
}

static bool better(const Candidate *a, const Candidate *b) { return a->decode > b->decode || (a->decode == b->decode && a->prompt > b->prompt); }

// The best of a family; part [n units] is scratch.
static bool search(Plan *p, Family family, int *part, Err *e) {
    const int n = p->u->n;
    Candidate *best = &p->best[family];
    for (int k = 0;; k++) {
        Candidate c = {.place.part = part};
        if (!nth(p, family, k, &c)) return true;
        if (!settle(p, part)) continue;
        weigh(p, &c);
        if (c.device > p->q.vram) continue;
        predict_token(p, &c);
        if (best->place.part && c.decode < best->decode) continue;
        predict_prompt(p, &c);
        if (best->place.part && !better(&c, best)) continue;
        int *keep = best->place.part ? best->place.part : malloc(sizeof *keep * (size_t)n);
        if (!keep) return err_set(e, "no memory for a plan");
        memcpy(keep, part, sizeof *keep * (size_t)n);
        *best = c;
        best->place.part = keep;
    }
}

bool plan_make(Plan *p, const PlanUnits *u, const Machine *m, const PlanQuery *q, Err *e) {
    *p = (Plan){.u = u, .m = m, .q = *q, .chosen = -1};
    int *part = malloc(sizeof *part * (size_t)u->n);
    bool ok = part || err_set(e, "no memory for a plan");
    ok = ok && check_pins(p, e) && rank_units(p, e);
    for (int f = 0; f < N_FAMILY && ok; f++) ok = search(p, (Family)f, part, e);
    free(part);
    for (int f = 0; f < N_FAMILY && ok; f++) {
        const Candidate *c = &p->best[f];
        if (!c->place.part) continue;
        if (p->chosen < 0 || better(c, &p->best[p->chosen])) p->chosen = f;
    }
    if (ok && p->chosen < 0)
        ok = q->vram > 0 ? err_set(e, "what shall be on the GPU does not fit into %.2f GB", q->vram * 1e-9) : err_set(e, "something shall be on the GPU, and there is none");
    if (!ok) plan_close(p);
    return ok;
}

void plan_close(Plan *p) {
    for (int f = 0; f < N_FAMILY; f++) free(p->best[f].place.part);
    free(p->rank);
    free(p->size_rank);
    free(p->source);
    *p = (Plan){0};
}

bool plan_is_whole(const Plan *p, const Candidate *c) {
    for (int i = 0; i < p->u->n; i++)
        if (!always_on_host(&p->u->unit[i]) && c->place.part[i] < p->u->unit[i].n_part) return false;
    return true;
}

// ---- reasons ----

const char *plan_reason(const Plan *p, const Candidate *c, int i) {
    const Unit *u = &p->u->unit[i];
    const int part = c->place.part[i];
    const double room = p->q.vram - (c->device > 0 ? c->device : (double)p->u->acts + p->q.reserve);
    if (always_on_host(u)) return "read row by row";
    if (p->q.pin && p->q.pin[i] != PIN_NONE) return "as --override-tensor says";
    if (p->q.vram <= 0) return "there is no GPU";
    if (is_bound(p, u)) return "-ngl allows no more layers";
    if (is_cpu_moe(p, u)) return "as --cpu-moe or --n-cpu-moe says";
    if (part == u->n_part) return u->kind == UNIT_EXPERTS ? "fits" : "read by every token, fits";
    if (u->kind == UNIT_ATTENTION && u->source != u->layer) return "where the KV cache is that it reads";
    const double piece = part ? (double)(units_bytes(u, part + 1) - units_bytes(u, part)) * p->share_step : (double)units_bytes(u, c->experts ? 1 : u->n_part);
    if (piece > room) return part ? "no more of them fit" : "does not fit any more";
    return "fits, but would not be faster";
}
