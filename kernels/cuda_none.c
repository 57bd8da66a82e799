// cuda_none.c: linked when there is no CUDA. Every call says so.
#include "backend.h"

int backend_cuda_devices(void) { return 0; }

int64_t cuda_launches(const Backend *b) {
    (void)b;
    return 0;
}

void cuda_wait_at_most(Backend *b, int ms) { (void)b, (void)ms; }

bool cuda_supports(TensorType type) {
    (void)type;
    return false;
}

bool backend_open_cuda(Backend *b, int device, Err *e) {
    (void)b;
    return err_set(e, "CUDA device %d: this program was built without CUDA; use --backend cpu", device);
}
