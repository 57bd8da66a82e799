// state.c: see state.h
#include "state.h"

#include <unistd.h>

#include "gguf.h"

enum { TYPE_F64 = 28 };

bool state_save(const char *path, const char *of, const StateArray *a, int n, Err *e) {
    GgufWriter *w;
    if (!gguf_writer_open(&w, path, e)) return false;
    gguf_set_string(w, "general.architecture", "abliterate.state", 16);
    gguf_set_string(w, "abliterate.state.of", of, strlen(of));
    for (int i = 0; i < n; i++) gguf_add_tensor(w, a[i].name, TYPE_F64, 1, (uint64_t[]){(uint64_t)a[i].n});
    bool ok = true;
    for (int i = 0; ok && i < n; i++) ok = gguf_writer_data(w, a[i].v, sizeof(double) * (size_t)a[i].n, e) && gguf_writer_next(w, e);
    if (ok) return gguf_writer_close(w, e);
    gguf_writer_abort(w);
    return false;
}

bool state_load(const char *path, const char *of, const StateArray *a, int n, bool *found, Err *e) {
    Gguf g;
    GgufString text = {0};
    *found = false;
    if (access(path, F_OK)) return true;
    if (!gguf_open(&g, path, e)) return false;
    bool ok = gguf_get_string(&g, "abliterate.state.of", &text, e);
    const bool same = ok && text.n == strlen(of) && !memcmp(text.p, of, strlen(of));
    for (int i = 0; same && ok && i < n; i++) {
        const GgufTensor *t = gguf_tensor(&g, a[i].name);
        ok = (t && t->type == TYPE_F64 && t->bytes == sizeof(double) * (uint64_t)a[i].n) || err_set(e, "%s: %s is missing or of another size", path, a[i].name);
        if (ok) memcpy(a[i].v, t->data, (size_t)t->bytes);
    }
    *found = ok && same;
    gguf_close(&g);
    return ok;
}
