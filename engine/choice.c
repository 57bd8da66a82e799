// choice.c: see choice.h
#include "choice.h"
#include "stream.h"

#include <regex.h>
#include <stdlib.h>
#include <strings.h>

enum { DEPTH = 1024, PROMPT = 2048, BATCH = 512, BATCH_DEVICE = 2048 }; // what speeds are predicted for; tokens per pass
static const double RING_SHARE = 1.0 / 16;

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

// What may be used of the device, and what of that is not for the model: the kernels' scratch, which is measured. free_bytes: before that.
// Of a card that is only described: what the description says.
static bool budget(PlanQuery *q, const Choice *c, Backend *b, uint64_t free_bytes, const Model *m, const PlaceOptions *o, Err *e) {
    if (b) {
        b->free_bytes = free_bytes;
        if (!session_reserve(m, b, &c->session, e)) return false;
        const double keep = size_of(o->reserve, (double)RESERVE);
        q->reserve = (double)free_bytes - (double)b->free_bytes;
        q->vram = (double)free_bytes > keep ? (double)free_bytes - keep : 0;
    } else {
        q->reserve = size_of(o->reserve, c->machine.gpu.reserve) + (double)c->session.ring_bytes;
        q->vram = c->machine.gpu.name ? c->machine.gpu.usable : 0;
    }
    const double vram = size_of(o->vram, q->vram);
    if (vram < q->vram) q->vram = vram;
    return true;
}

// A plan for passes of n_batch tokens; with a ring for prompts that takes at most a share of what there is for the model.
static bool plan_for(Choice *c, Backend *b, uint64_t free_bytes, Model *m, const PlaceOptions *o, int n_batch, double ring_share, Err *why, Err *bad) {
    const double room = ring_share > 0 ? c->plan.q.vram - c->plan.q.reserve - (double)c->units.acts : 0;
    choice_close(c);
    c->session = o->session;
    c->session.n_batch = n_batch;
    c->session.ring_bytes = room > 0 && !o->session.alike ? stream_ring_bytes(m, n_batch, (uint64_t)(room * ring_share)) : 0;
    if (!units_open(&c->units, m, &c->session, sizeof(F16), bad) || !make_pins(c, m, &o->override, bad)) return false;
    PlanQuery q = {.gpu_layers = place_gpu_layers(o), .n_cpu_moe = o->cpu_moe ? m->c.n_layer : o->n_cpu_moe, .pin = o->override.n ? c->pin : NULL,
                   .depth = min_int(DEPTH, c->session.n_ctx - 1), .n_prompt = min_int(PROMPT, c->session.n_ctx), .stream = c->session.ring_bytes > 0, .together = o->session.alike};
    return budget(&q, c, b, free_bytes, m, o, why) && plan_make(&c->plan, &c->units, &c->machine, &q, why);
}

// All of the model in long passes; or as much as fits, rather more of it than long passes, with what makes prompts of the rest quicker.
bool choice_make(Choice *c, Backend *b, Model *m, const PlaceOptions *o, Err *why, Err *bad) {
    const uint64_t free_bytes = b ? b->free_bytes : 0;
    const int given = o->session.n_batch;
    if (plan_for(c, b, free_bytes, m, o, given > 0 ? given : BATCH_DEVICE, 0, why, bad) && plan_is_whole(&c->plan, choice_best(c))) return true;
    *why = (Err){0};
    return !bad->text[0] && plan_for(c, b, free_bytes, m, o, given > 0 ? given : BATCH, RING_SHARE, why, bad);
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
