// run_plan.c: run MODEL --plan: the plan of plan.h as a table, from the file's tables alone, for machines that need not be there.
#include <stdlib.h>

#include "choice.h"
#include "run.h"

bool run_plan_check(const PlanOptions *p, Err *e) {
    const char *loose = p->gpu ? "--gpu" : p->host ? "--host" : p->svg ? "--svg" : NULL;
    if (loose && !p->on) return err_set(e, "option %s needs --plan", loose);
    if (p->gpu && strcmp(p->gpu, "this") && strcmp(p->gpu, "none") && !machine_gpu(p->gpu))
        return err_set(e, "option --gpu is '%s', expected %s", p->gpu, machine_names(true));
    if (p->host && strcmp(p->host, "this") && !machine_host(p->host)) return err_set(e, "option --host is '%s', expected %s", p->host, machine_names(false));
    return true;
}

// ---- the machine ----

// *b is open where this machine's card is the one that is meant: then what is not calibrated is assumed, as for a run.
static bool describe(Machine *k, Backend *b, Model *m, const Options *o, Err *e) {
    const bool here = !o->plan.gpu || !strcmp(o->plan.gpu, "this");
    Err why = {0}, note;
    const bool has = here && backend_open_cuda(b, 0, &why);
    if (o->plan.gpu && here && !has) return err_set(e, "--gpu this: %s", why.text);
    const MachineQuery q = {.gpu = o->plan.gpu, .host = o->plan.host, .device = has ? b : NULL, .threads = o->place.threads,
                            .isa = o->place.isa ? (Isa)isa_by_name(o->place.isa) : ISA_AUTO, .at_once = has && !o->plan.host};
    if (!machine_describe(k, m, &q, &note, e)) return false;
    if (note.text[0]) fprintf(stderr, "run: %s\n", note.text);
    return true;
}

// ---- printing ----

static void print_processor(const char *what, const Processor *p) {
    printf("%-5s %s: %s; %.0f GB/s x %.2f, prompts %.3g T/s", what, p->name, p->label, p->bandwidth * 1e-9, p->share, p->rate * 1e-12);
    if (p->memory > 0) printf(", hand-off %.0f us, link %.3g GB/s", p->handoff * 1e6, p->up_pinned * 1e-9);
    printf(" (%s)\n", p->measured ? p->measured : "assumed");
    if (!p->measured) return;
    printf("      reads");
    for (int t = 0; t < TYPE_COUNT; t++)
        if (p->share_of[t] > 0) printf(" %s %.1f", type_info(t)->name, p->bandwidth * p->share_of[t] * 1e-9);
    printf(" GB/s\n");
}

static void print_candidates(const Plan *p) {
    printf("\n%-38s %12s %12s %9s %9s\n", "", "decode, t/s", "prompt, t/s", "GPU, GB", "host, GB");
    for (int f = 0; f < N_FAMILY; f++) {
        const Candidate *c = &p->best[f];
        char name[64];
        if (!c->place.part) continue;
        snprintf(name, sizeof name, "%s", FAMILY_NAMES[f]);
        if (f == FAMILY_LAYERS) snprintf(name, sizeof name, "%g %s", c->layers / 2.0, FAMILY_NAMES[f]);
        if (f == FAMILY_UNITS) snprintf(name, sizeof name, "%d %s", c->layers, FAMILY_NAMES[f]);
        if (f == FAMILY_DENSE && c->layers < p->u->n_layer) snprintf(name, sizeof name, "%d layers %s", c->layers, FAMILY_NAMES[f]);
        if (f == FAMILY_WHOLE) snprintf(name, sizeof name, "experts of %d whole layers", c->layers);
        if (f == FAMILY_OVERLAP) snprintf(name, sizeof name, "of %d, beside the dense FFN", c->layers);
        if (f == FAMILY_SHARE) snprintf(name, sizeof name, "%.1f experts of each layer, at once", (double)c->experts / p->u->n_layer);
        printf("%c %-36s %12.1f %12.0f %9.2f %9.2f\n", f == p->chosen ? '>' : ' ', name, c->decode, c->prompt, c->device * 1e-9, c->host * 1e-9);
    }
    if (p->best[p->chosen].place.ring > 0) printf("  (its prompts: the host's weights are copied to the GPU, where that is quicker)\n");
}

enum { BAR = 60 };

// Kinds of bytes on one side, a letter each.
static void print_bar(const char *what, const Plan *p, const Candidate *c, bool device) {
    static const char letter[] = "TTAFEHKWR.";
    enum { KV = N_UNIT_KIND, WORK, RESERVE, FREE, N };
    double bytes[N] = {0}, total = 0, all = device ? p->q.vram : c->host;
    bool used = device ? c->device > 0 : false;
    for (int i = 0; i < p->u->n; i++) {
        const Unit *u = &p->u->unit[i];
        const int part = device ? c->place.part[i] : u->n_part - c->place.part[i];
        if (part) bytes[KV] += (double)u->kv_bytes;
        bytes[u->kind] += device && part ? (double)(units_bytes(u, part) - u->kv_bytes) : (double)u->bytes * part / u->n_part;
        used |= part > 0 && u->kind >= UNIT_ATTENTION;
    }
    if (used) bytes[WORK] = (double)p->u->acts;
    if (used && device) bytes[RESERVE] = p->q.reserve;
    if (!device) { // an embedding that is the head, too
        double sum = 0;
        for (int k = 0; k < FREE; k++) sum += bytes[k];
        bytes[UNIT_EMBED] += c->host - sum;
    }
    for (int k = 0; k < FREE; k++) total += bytes[k];
    if (all <= 0) return;
    bytes[FREE] = all - total;
    printf("%-5s [", what);
    double at = 0;
    int drawn = 0;
    for (int k = 0; k < N; k++)
        for (at += bytes[k]; drawn < (int)(at / all * BAR + 0.5) && drawn < BAR; drawn++) putchar(letter[k]);
    printf("] %.2f of %.2f GB\n", total * 1e-9, all * 1e-9);
}

// Units of a kind that are where they are for one reason.
static void print_reasons(const Plan *p, const Candidate *c) {
    const PlanUnits *u = p->u;
    printf("\n%-18s %-14s %-16s %9s %9s  %s\n", "unit", "layers", "where", "GB", "MB/token", "why");
    for (int kind = 0; kind < N_UNIT_KIND; kind++)
        for (int i = 0; i < u->n; i++) {
            if ((int)u->unit[i].kind != kind) continue;
            const char *why = plan_reason(p, c, i);
            const int first = i, part = c->place.part[i];
            double bytes = 0, read = 0;
            for (int k = i; k < u->n; k++) {
                if ((int)u->unit[k].kind != kind) continue;
                if (c->place.part[k] != part || plan_reason(p, c, k) != why) break;
                bytes += (double)u->unit[k].bytes + (double)u->unit[k].kv_bytes;
                for (int t = 0; t < TYPE_COUNT; t++) read += u->unit[k].read[t];
                i = k;
            }
            char layers[32], where[32];
            snprintf(layers, sizeof layers, "%d-%d", u->unit[first].layer, u->unit[i].layer);
            if (u->unit[first].layer == u->unit[i].layer) snprintf(layers, sizeof layers, "%d", u->unit[i].layer);
            if (kind == UNIT_HEAD || kind < UNIT_ATTENTION) layers[0] = 0;
            snprintf(where, sizeof where, part ? "GPU" : "host");
            if (part && part < u->unit[i].n_part) snprintf(where, sizeof where, "GPU %d of %d", part, u->unit[i].n_part);
            printf("%-18s %-14s %-16s %9.2f %9.2f  %s\n", UNIT_NAMES[kind], layers, where, bytes * 1e-9, read * 1e-6, why);
        }
}

static void print_timeline(const char *what, const Timeline *t) {
    printf("%s %.2f ms:", what, t->end * 1e3);
    for (int lane = 0; lane < N_LANE; lane++) {
        if (t->busy[lane] <= 0) continue;
        printf(" %s busy %.0f %% (", LANE_NAMES[lane], 100 * t->busy[lane] / t->end);
        const char *gap = "";
        for (int k = 0; k < N_EVENT_KIND; k++)
            if (k != EVENT_WAIT && t->by_kind[lane][k] > 0) printf("%s%s %.2f", gap, EVENT_NAMES[k], t->by_kind[lane][k] * 1e3), gap = ", ";
        printf(")");
    }
    printf("\n");
}

static bool print_schedule(const Plan *p, const Candidate *c, const char *svg, const char *name, Err *e) {
    Timeline t[2] = {{.record = svg}, {.record = svg}};
    timeline_token(&t[0], p->u, &c->place, p->m, p->q.depth);
    timeline_prompt(&t[1], p->u, &c->place, p->m, p->q.n_prompt);
    printf("\n");
    print_timeline("token ", &t[0]);
    print_timeline("prompt", &t[1]);
    bool ok = true;
    if (svg) {
        SafeFile f = {0};
        char title[2][256];
        snprintf(title[0], sizeof title[0], "%.100s, one token: %.1f tokens/s (predicted)", name, c->decode);
        snprintf(title[1], sizeof title[1], "%.100s, a prompt of %d tokens: %.0f tokens/s (predicted)", name, p->q.n_prompt, c->prompt);
        ok = safe_open(&f, svg, e);
        if (ok) timeline_svg(f.f, t, (const char *const[]){title[0], title[1]}, 2);
        ok = ok && safe_close(&f, true, e);
    }
    timeline_close(&t[0]);
    timeline_close(&t[1]);
    return ok;
}

// ---- the command ----

bool run_plan(Run *r, const PlaceOptions *place, Err *e) {
    const Options *o = &r->o;
    GgufString title = {0};
    Choice c = {0};
    bool ok = gguf_get_string(&r->m.gguf, "general.name", &title, e) && place_experts(&r->m, place, e) && describe(&c.machine, &r->b, &r->m, o, e);
    if (ok) {
        Err why = {0}, bad = {0};
        ok = choice_make(&c, r->b.close ? &r->b : NULL, &r->m, place, &why, &bad) || err_set(e, "%s", bad.text[0] ? bad.text : why.text);
    }
    if (ok) {
        const Candidate *best = choice_best(&c);
        const Plan *p = &c.plan;
        char name[128], text[160];
        snprintf(name, sizeof name, "%.*s", (int)(title.n ? title.n < 100 ? title.n : 100 : strlen(r->m.c.arch)), title.n ? title.p : r->m.c.arch);
        printf("model %s, %.2f GB; context %d tokens; a token after %d, a prompt of %d in passes of %d\n", name, (double)r->m.gguf.data_bytes * 1e-9,
               c.session.n_ctx, p->q.depth, p->q.n_prompt, c.units.chunk);
        if (place->experts) printf("experts by %s: speeds are those of its second half with what its first half chose most; optimistic for a text of another kind\n",
                                   place->experts);
        if (c.machine.gpu.name) print_processor("GPU", &c.machine.gpu);
        print_processor("host", &c.machine.host);
        print_candidates(p);
        if (best->device > 0) printf("\n%s on the GPU: %.1f MiB, in host memory: %.1f MiB, predicted %.1f tokens/s\n\n", choice_text(&c, text), best->device / 0x1p20,
                                     best->host / 0x1p20, best->decode);
        else printf("\neverything on the CPU\n\n");
        if (c.machine.gpu.name) print_bar("GPU", p, best, true);
        print_bar("host", p, best, false);
        printf("      H head, A attention, F dense FFN, E experts, K KV cache, W work buffers, R reserve, T tables\n");
        print_reasons(p, best);
        ok = print_schedule(p, best, o->plan.svg, name, e);
    }
    choice_close(&c);
    return ok;
}
