// place.c: see place.h
#include "place.h"

void place_close(Backend *b, Model *m) {
    model_unload(m, b);
    backend_close(b);
}

static bool open_loaded(Backend *b, Model *m, bool look_only, Err *e) {
    if (!backend_open_cuda(b, 0, e)) return false;
    if (look_only || model_load(m, b, e)) return true;
    place_close(b, m);
    return false;
}

// All of the model on the GPU because -ngl asks for it; if that cannot be, why is false's reason.
static bool open_asked(Backend *b, Model *m, const PlaceOptions *o, Err *why) {
    if (backend_cuda_devices() == 0) return err_set(why, "no CUDA device is used");
    if (o->gpu_layers <= m->c.n_layer) return err_set(why, "not yet split between GPU and CPU (%d for all)", m->c.n_layer + 1);
    return open_loaded(b, m, o->look_only, why);
}

bool place_open(Backend *b, Model *m, const PlaceOptions *o, Err *e) {
    if (o->backend && !strcmp(o->backend, "ref")) return backend_open_ref(b, e);
    if (o->backend && !strcmp(o->backend, "cuda")) return open_loaded(b, m, o->look_only, e);
    if (o->gpu_layers > 0) {
        Err why = {0};
        if (!o->backend && open_asked(b, m, o, &why)) return true;
        if (!o->quiet)
            fprintf(stderr, "%s: -ngl %d: %s, everything runs on the CPU\n", o->program, o->gpu_layers, o->backend ? "--backend cpu" : why.text);
    }
    return backend_open_cpu(b, o->threads, (Isa)isa_by_name(o->isa), e);
}
