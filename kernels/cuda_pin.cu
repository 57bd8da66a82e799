// cuda_pin.cu: host memory that copies read where it is: registered with the driver, which keeps its pages in their place and lets the device
// address them. Weights that the host keeps lie in a file's mapping, which cannot be written; so they are registered as read-only, where the
// driver can do that (CUDA Runtime API 12, cudaHostRegister). What is not registered goes through buffers (cuda_stream.cu).
#include <stdlib.h>
#include "cuda_common.cuh"

typedef struct Pin {
    const char *start, *end;
} Pin;

bool cuda_is_pinned(const Backend *b, const void *p, size_t bytes) {
    const Cuda *c = cuda_of(b);
    int low = 0, high = c->n_pin; // pin[low - 1] begins at p or before
    while (low < high) {
        const int middle = (low + high) / 2;
        if (c->pin[middle].start <= (const char *)p) low = middle + 1;
        else high = middle;
    }
    return low > 0 && (const char *)p + bytes <= c->pin[low - 1].end;
}

static bool registers(int device) {
    int can = 0;
    return cudaDeviceGetAttribute(&can, cudaDevAttrHostRegisterReadOnlySupported, device) == cudaSuccess && can;
}

bool cuda_pin(Backend *b, const void *p, size_t bytes, Err *e) {
    Cuda *c = cuda_of(b);
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || !registers(device)) return err_set(e, "the driver registers no memory that cannot be written");
    Pin *more = (Pin *)realloc(c->pin, sizeof *more * (size_t)(c->n_pin + 1));
    if (!more) return err_set(e, "no memory");
    c->pin = more;
    const cudaError_t error = cudaHostRegister((void *)p, bytes, cudaHostRegisterPortable | cudaHostRegisterReadOnly);
    if (error != cudaSuccess) {
        (void)cudaGetLastError(); // it is no error of an op
        return err_set(e, "registering %.1f MiB of host memory: %s", (double)bytes / 1048576, cudaGetErrorString(error));
    }
    int at = c->n_pin++;
    for (; at > 0 && c->pin[at - 1].start > (const char *)p; at--) c->pin[at] = c->pin[at - 1];
    c->pin[at] = {(const char *)p, (const char *)p + bytes};
    b->pinned_bytes += bytes;
    return true;
}

void cuda_unpin(Backend *b) {
    Cuda *c = cuda_of(b);
    if (c->n_pin) cuda_check(b, "running", cudaDeviceSynchronize());
    for (int i = 0; i < c->n_pin; i++) cuda_check(b, "unregistering host memory", cudaHostUnregister((void *)c->pin[i].start));
    free(c->pin);
    c->pin = NULL;
    c->n_pin = 0;
    b->pinned_bytes = 0;
}
