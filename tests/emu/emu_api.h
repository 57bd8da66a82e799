// Part of emu_rt.cpp: the calls of the CUDA runtime our host code makes. A call that is missing here fails to link: add it.
#define EMU_API extern "C" cudaError_t

// ---- device ----
EMU_API cudaDriverGetVersion(int *version) {
    init();
    *version = emu_config.driver;
    return cudaSuccess;
}
EMU_API cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
EMU_API cudaGetDeviceCount(int *n) {
    init();
    *n = 0;
    if (emu_config.driver < CUDART_VERSION / 1000 * 1000) return result(cudaErrorInsufficientDriver); // also what it says without a driver
    if (emu_config.n_device < 1) return result(cudaErrorNoDevice);
    *n = emu_config.n_device;
    return result(cudaSuccess);
}
static bool device_exists(int device) {
    int n;
    return cudaGetDeviceCount(&n) == cudaSuccess && device >= 0 && device < n;
}
EMU_API cudaSetDevice(int device) { return result(device_exists(device) ? cudaSuccess : cudaErrorInvalidDevice); }
EMU_API cudaGetDevice(int *device) {
    *device = 0; // all devices are this one
    return result(cudaSuccess);
}
EMU_API cudaSetDeviceFlags(unsigned) { return result(cudaSuccess); }
EMU_API cudaInitDevice(int device, unsigned, unsigned) { return cudaSetDevice(device); }
EMU_API cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (!device_exists(device)) return result(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated sm_%d", emu_config.arch);
    p->major = emu_config.arch / 10;
    p->minor = emu_config.arch % 10;
    p->multiProcessorCount = emu_config.n_sm;
    p->totalGlobalMem = emu_config.memory;
    p->warpSize = 32;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = shared_optin();
    p->sharedMemPerMultiprocessor = shared_optin() + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = emu_config.arch == 75 ? 1024 : emu_config.arch == 86 || emu_config.arch == 89 ? 1536 : 2048;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->l2CacheSize = 3 << 20;
    p->memoryBusWidth = 192;
    p->asyncEngineCount = 2;
    p->unifiedAddressing = p->canMapHostMemory = p->concurrentKernels = 1;
    return result(cudaSuccess);
}
EMU_API cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    const cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e) return e;
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = p.regsPerBlock; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
    case cudaDevAttrMemoryClockRate: *value = 7501000; break; // kHz
    case cudaDevAttrClockRate: *value = 1777000; break;
    case cudaDevAttrAsyncEngineCount: *value = p.asyncEngineCount; break;
    case cudaDevAttrUnifiedAddressing: case cudaDevAttrCanMapHostMemory: case cudaDevAttrConcurrentKernels: case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem: *value = 1; break;
    case cudaDevAttrHostRegisterReadOnlySupported: *value = emu_config.registers; break;
    case cudaDevAttrIntegrated: case cudaDevAttrEccEnabled: case cudaDevAttrPageableMemoryAccess:
    case cudaDevAttrMemoryPoolsSupported: case cudaDevAttrCooperativeLaunch: *value = 0; break;
    default:
        emu_report("emu-unknown", false, "cudaDeviceGetAttribute(%d): add it to the emulator", (int)attribute);
        return result(cudaErrorInvalidValue);
    }
    return result(cudaSuccess);
}
EMU_API cudaMemGetInfo(size_t *n_free, size_t *n_total) {
    if (!device_exists(0)) return last_error;
    const size_t used = memory_used + emu_config.reserve;
    *n_total = emu_config.memory;
    *n_free = used > *n_total ? 0 : *n_total - used;
    return result(cudaSuccess);
}
EMU_API cudaDeviceSynchronize() {
    init();
    if (capturing()) return result(cudaErrorStreamCaptureUnsupported);
    run_everything();
    for (CUstream_st *s : streams) host_waits_for(s->time);
    return result(cudaSuccess);
}

// ---- memory ----
static bool planned_failure() { return emu_config.fail_alloc && --emu_config.fail_alloc == 0; }

EMU_API cudaMalloc(void **p, size_t n) {
    *p = nullptr;
    if (!device_exists(0)) return last_error;
    if (sticky_error) return sticky_error;
    if (capturing()) return result(cudaErrorStreamCaptureUnsupported);
    if (n == 0) return result(cudaSuccess);
    const size_t used = memory_used + emu_config.reserve;
    if (planned_failure() || used > emu_config.memory || accounted_bytes(n) > emu_config.memory - used) return result(cudaErrorMemoryAllocation);
    const Allocation *a = allocate(n);
    if (!a) return result(cudaErrorMemoryAllocation);
    *p = a->base;
    return result(cudaSuccess);
}
EMU_API cudaFree(void *p) {
    init();
    if (!p) return result(cudaSuccess);
    if (work_pending()) lint("free-waits", "cudaFree while work is queued: it waits for the device");
    run_everything();
    Allocation *a = find_allocation(p);
    if (!a || a->base != p || a->freed) {
        emu_report("bad-free", false, "cudaFree of %s", describe(p).c_str());
        return result(cudaErrorInvalidValue);
    }
    release(a);
    return result(cudaSuccess);
}
EMU_API cudaHostAlloc(void **p, size_t n, unsigned flags) {
    *p = nullptr;
    if (!device_exists(0)) return last_error;
    if (planned_failure()) return result(cudaErrorMemoryAllocation);
    if (n == 0) return result(cudaSuccess);
    *p = aligned_alloc(PAGE, (n + PAGE - 1) / PAGE * PAGE);
    if (!*p) return result(cudaErrorMemoryAllocation);
    memset(*p, 0xff, n);
    pinned[(char *)*p] = n;
    if (flags & cudaHostAllocMapped) mapped_open((char *)*p, n);
    return result(cudaSuccess);
}
EMU_API cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
EMU_API cudaFreeHost(void *p) {
    init();
    if (!p) return result(cudaSuccess);
    run_everything();
    if (!pinned.erase((char *)p)) {
        emu_report("bad-free", false, "cudaFreeHost(%p)", p);
        return result(cudaErrorInvalidValue);
    }
    mapped_close(p);
    free(p);
    return result(cudaSuccess);
}
// All of it is mapped, and can be written, unless that is not wanted.
static bool is_mapped(const char *p, size_t n, bool written) {
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512], may[8];
    const char *end = p + n;
    unsigned long from, to;
    while (f && p < end && fgets(line, sizeof line, f))
        if (sscanf(line, "%lx-%lx %7s", &from, &to, may) == 3 && (unsigned long)p >= from && (unsigned long)p < to) {
            if (may[0] != 'r' || (written && may[1] != 'w')) break;
            p = (const char *)to;
        }
    if (f) fclose(f);
    return p >= end;
}
// Whole pages are registered, each of them once.
EMU_API cudaHostRegister(void *p, size_t n, unsigned flags) {
    if (!device_exists(0)) return last_error;
    if (planned_failure()) return result(cudaErrorMemoryAllocation);
    if (!p || !n) return result(cudaErrorInvalidValue);
    const bool read_only = flags & cudaHostRegisterReadOnly;
    if (read_only && !emu_config.registers) return result(cudaErrorNotSupported);
    char *first = (char *)((size_t)p / PAGE * PAGE), *end = (char *)(((size_t)p + n + PAGE - 1) / PAGE * PAGE);
    for (auto &other : pinned)
        if (first < other.first + other.second && other.first < end) return result(cudaErrorHostMemoryAlreadyRegistered);
    if (!is_mapped(first, (size_t)(end - first), !read_only)) return result(cudaErrorInvalidValue);
    if (emu_registered_bytes() + (size_t)(end - first) > emu_config.lockable) return result(cudaErrorMemoryAllocation);
    pinned[(char *)p] = registered[(char *)p] = n;
    return result(cudaSuccess);
}
EMU_API cudaHostUnregister(void *p) { // does not wait: what still reads it is a mistake
    if (!registered.count((char *)p)) return result(cudaErrorHostMemoryNotRegistered);
    if (work_pending()) lint("unregister-while-copying", "cudaHostUnregister while work is queued that may read the memory");
    run_everything();
    registered.erase((char *)p);
    pinned.erase((char *)p);
    return result(cudaSuccess);
}
EMU_API cudaHostGetDevicePointer(void **device, void *host, unsigned) {
    *device = mapped_view(host);
    return result(is_pinned(host, 1) ? cudaSuccess : cudaErrorInvalidValue);
}
EMU_API cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *p) {
    init();
    memset(attributes, 0, sizeof *attributes);
    const Allocation *a = find_allocation(p);
    attributes->type = a && !a->freed ? cudaMemoryTypeDevice : is_pinned(p, 1) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    attributes->devicePointer = attributes->type == cudaMemoryTypeUnregistered ? nullptr : (void *)p;
    attributes->hostPointer = attributes->type == cudaMemoryTypeHost ? (void *)p : nullptr;
    return result(cudaSuccess);
}

// ---- copies ----
enum Side { HOST, DEVICE, BAD };
static Side side_of(const void *p, size_t n, const char *what) {
    if (!in_arena(p)) return HOST;
    const Allocation *a = find_allocation(p);
    if (a && !a->freed && (const char *)p >= a->base && (const char *)p + n <= a->base + a->size) return DEVICE;
    emu_report(a && a->freed ? "use-after-free" : "copy-out-of-bounds", false, "%s of %zu bytes at %s", what, n, describe(p).c_str());
    return BAD;
}
static bool still_there(const void *p) {
    const Allocation *a = find_allocation(p);
    if (!a || !a->freed) return true;
    emu_report("use-after-free", false, "queued work reached %s", describe(p).c_str());
    return false;
}
static const size_t PHANTOM_COPY = 256 << 10; // what is larger is no ids or positions, and means nothing where nothing is computed
struct Copy { char *to; const char *from; size_t to_pitch, from_pitch, width, height; };
static void run_copy(const Copy &c) {
    if (sticky_error || !still_there(c.to) || !still_there(c.from)) return;
    if (emu_config.phantom && c.width * c.height > PHANTOM_COPY) return;
    in_copy = true;
    for (size_t row = 0; row < c.height; row++) {
        memcpy(c.to + row * c.to_pitch, c.from + row * c.from_pitch, c.width);
        checks_copied(c.to + row * c.to_pitch, c.from + row * c.from_pitch, c.width);
    }
    in_copy = false;
    close_allocations();
}
// waits: a copy of the synchronous kind.
static cudaError_t copy(Copy c, cudaMemcpyKind kind, cudaStream_t stream, bool waits) {
    init();
    if (sticky_error) return sticky_error;
    if (!c.width || !c.height) return result(cudaSuccess);
    if (c.width > c.to_pitch || c.width > c.from_pitch) return result(cudaErrorInvalidPitchValue);
    const size_t to_bytes = (c.height - 1) * c.to_pitch + c.width, from_bytes = (c.height - 1) * c.from_pitch + c.width;
    const Side to = side_of(c.to, to_bytes, "copy destination"), from = side_of(c.from, from_bytes, "copy source");
    if (to == BAD || from == BAD) return result(cudaErrorInvalidValue);
    static const struct { Side from, to; } sides[] = {{HOST, HOST}, {HOST, DEVICE}, {DEVICE, HOST}, {DEVICE, DEVICE}};
    if (kind != cudaMemcpyDefault && (sides[kind].from != from || sides[kind].to != to)) {
        emu_report("copy-kind", false, "cudaMemcpyKind %d does not fit the pointers", (int)kind);
        return result(cudaErrorInvalidValue);
    }
    const bool inside = to == DEVICE && from == DEVICE;
    const bool pageable = (from == HOST && !is_pinned(c.from, from_bytes)) || (to == HOST && !is_pinned(c.to, to_bytes));
    Engine *engine = inside ? nullptr : to == DEVICE ? &up_engine : &down_engine;
    const double speed = inside ? emu_config.dram / 2 : to == DEVICE ? emu_config.h2d : emu_config.d2h;
    const double us = (inside ? emu_config.copy_us : 0) + (double)(c.width * c.height) / (speed * 1e3) * (pageable ? 2 : 1);
    if (pageable && !waits) {
        lint("pageable-async-copy", "cudaMemcpyAsync with pageable host memory does not run beside anything");
        if (stream && stream->graph) return result(cudaErrorStreamCaptureUnsupported);
    }
    if (pageable && !waits && from == HOST) { // the driver takes a copy at once
        auto rows = std::make_shared<std::vector<char>>(c.from, c.from + from_bytes);
        issue(stream, engine, us, [c, rows]() {
            Copy late = c;
            late.from = rows->data();
            run_copy(late);
        });
        return result(cudaSuccess);
    }
    issue(stream, engine, us, [c]() { run_copy(c); });
    if (pageable && stream && !stream->graph) run_all(stream);
    if (waits || pageable) host_waits_for(stream ? stream->time : default_stream.time);
    return result(cudaSuccess);
}
EMU_API cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(Copy{(char *)to, (const char *)from, n, n, n, 1}, kind, stream, false);
}
EMU_API cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind kind,
                          cudaStream_t stream) {
    return copy(Copy{(char *)to, (const char *)from, to_pitch, from_pitch, width, height}, kind, stream, false);
}
// The synchronous calls are work on stream 0, but the usual ones: no lint. They do not wait for non-blocking streams.
struct Lenient {
    const int strict = emu_config.strict;
    Lenient() { emu_config.strict = 0; }
    ~Lenient() { emu_config.strict = strict; }
};
EMU_API cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind) {
    Lenient lenient;
    return copy(Copy{(char *)to, (const char *)from, n, n, n, 1}, kind, nullptr, true);
}
EMU_API cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind kind) {
    Lenient lenient;
    return copy(Copy{(char *)to, (const char *)from, to_pitch, from_pitch, width, height}, kind, nullptr, true);
}
EMU_API cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream) {
    init();
    if (!n) return result(cudaSuccess);
    if (side_of(p, n, "cudaMemset") != DEVICE) return result(cudaErrorInvalidValue);
    issue(stream, nullptr, emu_config.launch_us + (double)n / (emu_config.dram * 1e3), [=]() {
        if (sticky_error || !still_there(p) || emu_config.phantom) return;
        in_copy = true;
        memset(p, value, n);
        in_copy = false;
        checks_written(p, n);
        close_allocations();
    });
    return result(cudaSuccess);
}
EMU_API cudaMemset(void *p, int value, size_t n) {
    Lenient lenient;
    return cudaMemsetAsync(p, value, n, nullptr);
}
// __constant__ variables are ordinary ones here.
EMU_API cudaMemcpyToSymbolAsync(const void *symbol, const void *from, size_t n, size_t offset, cudaMemcpyKind, cudaStream_t stream) {
    auto bytes = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + n);
    issue(stream, &up_engine, 0, [=]() { memcpy((char *)symbol + offset, bytes->data(), bytes->size()); });
    return result(cudaSuccess);
}
EMU_API cudaMemcpyToSymbol(const void *symbol, const void *from, size_t n, size_t offset, cudaMemcpyKind kind) {
    Lenient lenient;
    return cudaMemcpyToSymbolAsync(symbol, from, n, offset, kind, nullptr);
}

// ---- streams ----
EMU_API cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    if (!device_exists(0)) return last_error;
    *stream = new CUstream_st();
    (*stream)->blocking = !(flags & cudaStreamNonBlocking);
    streams.push_back(*stream);
    return result(cudaSuccess);
}
EMU_API cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
EMU_API cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) { return cudaStreamCreateWithFlags(stream, flags); }
EMU_API cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return result(cudaSuccess);
}
static std::vector<std::unique_ptr<CUstream_st>> destroyed; // events may still point to them
EMU_API cudaStreamDestroy(cudaStream_t stream) {
    auto found = std::find(streams.begin(), streams.end(), stream);
    if (found == streams.end()) return result(cudaErrorInvalidResourceHandle);
    run_all(stream);
    streams.erase(found);
    destroyed.emplace_back(stream);
    return result(cudaSuccess);
}
EMU_API cudaStreamSynchronize(cudaStream_t stream) {
    init();
    if (stream && stream->graph) return result(cudaErrorStreamCaptureUnsupported);
    if (stream) run_all(stream);
    else run_blocking();
    host_waits_for(stream ? stream->time : default_stream.time);
    return result(cudaSuccess);
}
EMU_API cudaStreamQuery(cudaStream_t stream) {
    if (!stream) return result(cudaSuccess);
    if (stream->queue.empty()) {
        host_time = std::max(host_time, stream->time);
        mapped_host_takes(true);
        return result(cudaSuccess);
    }
    run_one(stream); // so that a program which polls comes to an end
    return cudaErrorNotReady;
}
EMU_API cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    issue(stream, nullptr, 0, [=]() { function(data); });
    return result(cudaSuccess);
}

// ---- events ----
EMU_API cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    if (!device_exists(0)) return last_error;
    *event = new CUevent_st();
    return result(cudaSuccess);
}
EMU_API cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
EMU_API cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return result(cudaSuccess);
}
EMU_API cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    CUstream_st *s = stream ? stream : &default_stream;
    event->stream = s;
    event->recorded = true;
    event->graph = s->graph;
    if (s->graph) {
        event->number = s->n_captured;
        return result(cudaSuccess);
    }
    Work work = {};
    event->time = work.mark = std::make_shared<double>(0);
    enqueue(stream, std::move(work));
    event->number = s->n_issued;
    return result(cudaSuccess);
}
EMU_API cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) { return cudaEventRecord(event, stream); }
EMU_API cudaEventSynchronize(cudaEvent_t event) {
    if (!event->recorded) return result(cudaSuccess);
    if (event->graph) return result(cudaErrorCapturedEvent);
    finish(event->stream, event->number);
    host_waits_for(*event->time);
    return result(cudaSuccess);
}
EMU_API cudaEventQuery(cudaEvent_t event) {
    if (!event->recorded) return result(cudaSuccess);
    if (event->stream->n_done >= event->number) {
        if (event->time) host_time = std::max(host_time, *event->time);
        mapped_host_takes(true);
        return result(cudaSuccess);
    }
    run_one(event->stream);
    return cudaErrorNotReady;
}
EMU_API cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    if (!start->recorded || !end->recorded) return result(cudaErrorInvalidResourceHandle);
    if (start->stream->n_done < start->number || end->stream->n_done < end->number) return cudaErrorNotReady;
    *ms = (float)((*end->time - *start->time) * 1e-3);
    return result(cudaSuccess);
}
EMU_API cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (!event->recorded) return result(cudaSuccess);
    if (event->graph && stream && (!stream->graph || stream->graph == event->graph)) {
        if (!stream->graph) { // it joins the capture
            stream->graph = event->graph;
            stream->n_captured = stream->n_joined = event->number;
        }
        if (stream == event->graph->origin) event->stream->n_joined = std::max(event->stream->n_joined, (size_t)event->number);
        return result(cudaSuccess);
    }
    if (event->graph || (stream && stream->graph)) return result(cudaErrorStreamCaptureIsolation);
    Work work = {};
    work.after = event->stream;
    work.after_number = event->number;
    work.wait = event->time;
    enqueue(stream, std::move(work));
    return result(cudaSuccess);
}

// ---- graphs ----
EMU_API cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream) return result(cudaErrorStreamCaptureUnsupported);
    if (stream->graph) return result(cudaErrorIllegalState);
    stream->graph = new CUgraph_st();
    stream->graph->origin = stream;
    stream->n_captured = stream->n_joined = 0;
    return result(cudaSuccess);
}
EMU_API cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = nullptr;
    CUgraph_st *captured = stream ? stream->graph : nullptr;
    if (!captured || captured->origin != stream) return result(cudaErrorIllegalState);
    bool joined = true;
    for (CUstream_st *s : streams) {
        if (s->graph != captured) continue;
        if (s != stream && s->n_captured > s->n_joined) joined = false;
        s->graph = nullptr;
    }
    if (!joined) {
        delete captured;
        return result(cudaErrorStreamCaptureUnjoined);
    }
    *graph = captured;
    return result(cudaSuccess);
}
EMU_API cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    *status = stream && stream->graph ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return result(cudaSuccess);
}
EMU_API cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{*graph};
    return result(cudaSuccess);
}
EMU_API cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return result(cudaSuccess); }
EMU_API cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    if (sticky_error) return sticky_error;
    if (launch_fails()) return result(cudaErrorLaunchOutOfResources);
    host_time += emu_config.graph_us;
    for (auto &node : exec->graph.nodes) node(stream);
    return result(cudaSuccess);
}
EMU_API cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return result(cudaSuccess);
}
EMU_API cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return result(cudaSuccess);
}

// ---- kernels ----
EMU_API cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    init();
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return result(cudaSuccess);
    if (value < 0 || (size_t)value > shared_optin()) return result(cudaErrorInvalidValue);
    dynamic_limits[kernel] = (size_t)value;
    return result(cudaSuccess);
}
EMU_API cudaFuncGetAttributes(cudaFuncAttributes *a, const void *) {
    memset(a, 0, sizeof *a);
    a->ptxVersion = a->binaryVersion = CU_ARCH / 10;
    return result(CU_ARCH > emu_config.arch * 10 ? cudaErrorNoKernelImageForDevice : cudaSuccess);
}
// Registers and static shared memory are not known here; a guess that is right for small kernels.
EMU_API cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *, int n_threads_block, size_t smem_bytes, unsigned) {
    cudaDeviceProp p;
    const cudaError_t e = cudaGetDeviceProperties(&p, 0);
    if (e) return e;
    *n = n_threads_block > 0 && n_threads_block <= 1024 ? p.maxThreadsPerMultiProcessor / ((n_threads_block + 31) / 32 * 32) : 0;
    *n = std::min(*n, std::min(16, (int)(p.sharedMemPerMultiprocessor / (smem_bytes + 1024))));
    return result(cudaSuccess);
}
EMU_API cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *kernel, int n_threads_block, size_t smem_bytes) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, kernel, n_threads_block, smem_bytes, 0);
}

// ---- errors ----
EMU_API cudaGetLastError() {
    const cudaError_t e = sticky_error ? sticky_error : last_error;
    last_error = cudaSuccess;
    return e;
}
EMU_API cudaPeekAtLastError() { return sticky_error ? sticky_error : last_error; }
static const struct { cudaError_t error; const char *name, *text; } error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered", "part or all of the requested memory range is already mapped"},
};
extern "C" const char *cudaGetErrorName(cudaError_t e) {
    for (auto &known : error_texts)
        if (known.error == e) return known.name;
    return "cudaErrorOther";
}
extern "C" const char *cudaGetErrorString(cudaError_t e) {
    for (auto &known : error_texts)
        if (known.error == e) return known.text;
    static char text[64];
    snprintf(text, sizeof text, "error %d (emulated)", (int)e);
    return text;
}
