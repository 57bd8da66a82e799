// yardstick_none.c: linked when there is no CUDA: no cuda backend opens, so that nobody calls these.
#include "yardstick.h"

static bool none(Err *e) { return err_set(e, "this program was built without CUDA"); }

bool yardstick_copy(Backend *b, void *dst, const void *src, size_t bytes) {
    (void)b, (void)dst, (void)src, (void)bytes;
    return false;
}
bool yardstick_memory(Backend *b, double *bytes, Err *e) {
    (void)b, (void)bytes;
    return none(e);
}
bool yardstick_link(Backend *b, size_t bytes, double *up, double *down, Err *e) {
    (void)b, (void)bytes, (void)up, (void)down;
    return none(e);
}
bool yardstick_launch(Backend *b, double *alone, double *in_graph, double *token, Err *e) {
    (void)b, (void)alone, (void)in_graph, (void)token;
    return none(e);
}
bool yardstick_handoff(Backend *b, int n, double *seconds, Err *e) {
    (void)b, (void)n, (void)seconds;
    return none(e);
}
