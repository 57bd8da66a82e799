// choice.c: see choice.h
#include "choice.h"
#include "stream.h"

#include <math.h>
#include <regex.h>
#include <stdlib.h>
#include <strings.h>

enum { DEPTH = 1024, PROMPT = 2048 }; // what speeds are predicted for
static const double RING_SHARE = 1.0 / 16;

// A turn of a conversation, by whose time the length of passes is chosen for a model on both sides: longer ones make prompts faster, as each brings the
// host's weights to the device once, and tokens slower, as their buffers take the place of weights. The medians of traced conversations are
// 1,020 tokens of a prompt and 129 generated ones (Splitwise, arXiv 2311.18677); here are twice as many of the latter: most of a prompt may be
// in the cache already.
enum { TURN_PROMPT = 1024, TURN_TOKENS = 256 };

// Of what is reserved on a card that is only described (machine.h), what is not scratch. Spec 2.4 has 0.3 GB for both; the 26B's scratch was 0.13 GB then.
static const double CONTEXT = 0.17e9;
static const uint64_t RESERVE = 384u << 20; // of a device's free memory: the context's own growth, and others' windows

// ---- --override-tensor ----

typedef struct {
    const PlanUnits *u;
    const Model *m;
    regex_t re;
    Pin to, *pin;
    int n_hit;
} Override;

static bool pin_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Override *o = ctx;
    const Layer *l = layer < o->m->c.n_layer ? &o->m->layers[layer] : NULL;
    const bool is_scale = l && t == l->ffn_down_exps_scale; // the router reads it, but who names "exps" does not mean the router
    const int i = units_index(o->u, o->m, is_scale ? l->ffn_down_exps : t, layer, ffn);
    if (regexec(&o->re, t->name, 0, NULL, 0)) return true;
    o->n_hit++;
    if (o->pin[i] == PIN_NONE) o->pin[i] = o->to; // the first that matches
    return true;
}

// A table that is read row by row; NULL: none has such a name.
static const Tensor *table_named(const Model *m, const regex_t *re) {
    const Tensor *const t[] = {m->token_embd, m->per_layer_token_embd};
    for (int i = 0; i < 2; i++)
        if (t[i] && !regexec(re, t[i]->name, 0, NULL, 0)) return t[i];
    return NULL;
}

static bool make_pins(Choice *c, Model *m, const OptionList *list, Err *e) {
    c->pin = calloc((size_t)c->units.n, sizeof *c->pin);
    if (!c->pin) return err_set(e, "no memory for a plan");
    for (int k = 0; k < list->n; k++) {
        const char *text = list->text[k], *eq = strrchr(text, '=');
        Override o = {.u = &c->units, .m = m, .pin = c->pin, .to = !eq ? PIN_NONE : !strcasecmp(eq, "=CPU") ? PIN_HOST : !strcasecmp(eq, "=GPU") ? PIN_DEVICE : PIN_NONE};
        if (o.to == PIN_NONE) return err_set(e, "option --override-tensor is '%s', expected REGEX=CPU or REGEX=GPU", text);
        char *pattern = strndup(text, (size_t)(eq - text));
        const int wrong = !pattern || regcomp(&o.re, pattern, REG_EXTENDED | REG_NOSUB);
        free(pattern);
        if (wrong) return err_set(e, "option --override-tensor is '%s', expected an extended regular expression before =", text);
        model_each(m, pin_one, &o);
        const Tensor *table = o.n_hit ? NULL : table_named(m, &o.re);
        regfree(&o.re);
        if (table && o.to == PIN_DEVICE) return err_set(e, "option --override-tensor: %s is read row by row: it stays in host memory", table->name);
        if (!o.n_hit && !table) return err_set(e, "option --override-tensor: no tensor's name matches '%.*s'", (int)(eq - text), text);
    }
    return true;
}

// ---- the plan ----

static double size_of(const char *text, double otherwise) {
    uint64_t bytes;
    Err none;
    return text && place_parse_bytes(text, &bytes, &none) ? (double)bytes : otherwise; // place_check has read it
}

// What may be used of the device: of a card that is only described, what the description says.
static double usable(const Choice *c, const Backend *b, uint64_t free_bytes, const PlaceOptions *o) {
    const double keep = size_of(o->reserve, (double)RESERVE), all = c->machine.gpu.name ? c->machine.gpu.usable : 0;
    const double most = !b ? all : (double)free_bytes > keep ? (double)free_bytes - keep : 0, vram = size_of(o->vram, most);
    return vram < most ? vram : most;
}

// What of that is not for the model: the kernels' scratch and the ring, which are measured; free_bytes: before that.
static bool reserve(double *bytes, const Choice *c, Backend *b, uint64_t free_bytes, const Model *m, const PlaceOptions *o, Err *e) {
    if (!b) {
        *bytes = size_of(o->reserve, fmax(c->machine.gpu.reserve, CONTEXT + (double)session_scratch_bytes(m, &c->session))) + (double)c->session.ring_bytes;
        return true;
    }
    b->free_bytes = free_bytes;
    if (!session_reserve(m, b, &c->session, e)) return false;
    *bytes = (double)free_bytes - (double)b->free_bytes;
    return true;
}

// How prompts come through the device: in passes of so many tokens; with a ring for weights of the host, which takes at most a share of what there
// is for the model; with room in it for keys of the host, too.
typedef struct {
    int n_batch;
    bool ring, keys;
} Way;

static bool plan_for(Choice *c, Backend *b, uint64_t free_bytes, Model *m, const PlaceOptions *o, Way way, Err *why, Err *bad) {
    choice_close(c);
    c->session = o->session;
    c->session.n_batch = way.n_batch;
    if (!units_open(&c->units, m, &c->session, sizeof(F16), bad) || !make_pins(c, m, &o->override, bad)) return false;
    const double vram = usable(c, b, free_bytes, o), room = (vram - c->machine.gpu.reserve - (double)c->units.acts) * RING_SHARE;
    const Backend device = {.kv_type = TYPE_F16};
    if (way.ring && room > 0 && !o->session.alike) c->session.ring_bytes = stream_ring_bytes(m, &device, &c->session, way.keys, (uint64_t)room);
    PlanQuery q = {.vram = vram, .gpu_layers = place_gpu_layers(o), .n_cpu_moe = o->cpu_moe ? m->c.n_layer : o->n_cpu_moe, .pin = o->override.n ? c->pin : NULL,
                   .depth = min_int(DEPTH, c->session.n_ctx - 1), .n_prompt = min_int(PROMPT, c->session.n_ctx), .ring = (double)c->session.ring_bytes,
                   .together = o->session.alike};
    return reserve(&q.reserve, c, b, free_bytes, m, o, why) && plan_make(&c->plan, &c->units, &c->machine, &q, why);
}

static double turn_seconds(const Choice *c) {
    const Candidate *best = choice_best(c);
    Timeline t = {0};
    timeline_prompt(&t, &c->units, &best->place, &c->machine, min_int(TURN_PROMPT, c->session.n_ctx));
    return t.end + TURN_TOKENS / best->decode;
}

static bool attends_on_host(const Choice *c) {
    for (int i = 0; i < c->units.n; i++)
        if (c->units.unit[i].kind == UNIT_ATTENTION && !choice_best(c)->place.part[i]) return choice_best(c)->device > 0;
    return false;
}

// All of the model in long passes; or as much as fits, in the passes that make the quickest turn.
bool choice_make(Choice *c, Backend *b, Model *m, const PlaceOptions *o, Err *why, Err *bad) {
    const uint64_t free_bytes = b ? b->free_bytes : 0;
    const int given = o->session.n_batch, first = given > 0 ? given : BATCH_HOST, last = given > 0 ? given : max_int(BATCH_HOST, min_int(BATCH_DEVICE, o->session.n_ctx));
    Way best = {0}, way = {given > 0 ? given : BATCH_DEVICE, false, false};
    double least = 0;
    if (plan_for(c, b, free_bytes, m, o, way, why, bad) && plan_is_whole(&c->plan, choice_best(c))) return true;
    for (int n = first; n <= last && !bad->text[0]; n *= 2) {
        Err none = {0};
        way = (Way){n, true, false};
        bool ok = plan_for(c, b, free_bytes, m, o, way, best.n_batch ? &none : why, bad);
        if (ok && attends_on_host(c)) ok = plan_for(c, b, free_bytes, m, o, way = (Way){n, true, true}, best.n_batch ? &none : why, bad);
        const double seconds = ok ? turn_seconds(c) : INFINITY;
        if (ok && (!best.n_batch || seconds < least)) best = way, least = seconds;
    }
    if (!best.n_batch) return false;
    *why = (Err){0};
    return best.n_batch == way.n_batch || plan_for(c, b, free_bytes, m, o, best, why, bad);
}

bool choice_less(Choice *c, Err *e) {
    const double all = choice_best(c)->device, buffers = (double)c->units.acts + c->plan.q.reserve;
    PlanQuery q = c->plan.q;
    c->n_less++;
    q.vram = buffers + (all - buffers) * (1 - c->n_less / 16.0);
    plan_close(&c->plan);
    return plan_make(&c->plan, &c->units, &c->machine, &q, e);
}

void choice_close(Choice *c) {
    const Machine machine = c->machine;
    plan_close(&c->plan);
    units_close(&c->units);
    free(c->pin);
    *c = (Choice){.machine = machine};
}

const char *choice_text(const Choice *c, char text[160]) {
    const PlanUnits *u = &c->units;
    const int *part = choice_best(c)->place.part;
    int n[N_UNIT_KIND] = {0}, experts = 0, whole = 0; // whole: layers
    for (int i = 0; i < u->n; i++) {
        const Unit *x = &u->unit[i];
        n[x->kind] += part[i];
        if (x->kind == UNIT_EXPERTS) experts += x->n_part;
        if (x->kind != UNIT_FFN) continue;
        const bool has = i + 1 < u->n && u->unit[i + 1].kind == UNIT_EXPERTS;
        whole += part[i - 1] && part[i] && (!has || part[i + 1] == u->unit[i + 1].n_part);
    }
    const char *head = n[UNIT_HEAD] ? " and the head" : "";
    const bool simple = n[UNIT_ATTENTION] == whole && n[UNIT_FFN] == whole;
    int at = simple ? snprintf(text, 160, "%d of %d layers", whole, u->n_layer)
                    : snprintf(text, 160, "attention of %d and FFN of %d of %d layers", n[UNIT_ATTENTION], n[UNIT_FFN], u->n_layer);
    if (experts && !(simple && whole == u->n_layer)) at += snprintf(text + at, 160 - (size_t)at, ", %d of %d experts", n[UNIT_EXPERTS], experts);
    snprintf(text + at, 160 - (size_t)at, "%s", head);
    return text;
}
