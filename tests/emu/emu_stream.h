// Part of emu_rt.cpp: running a grid; streams, events and graphs; the simulated clock.
//
// Every call that gives work to a stream puts a function into its queue. When the queue runs is a setting: at once (eager), only when somebody waits
// for it (lazy), or by chance (shuffled). Lazy finds the missing synchronisation that eager hides. A graph is the list of what was put in.
//
// A kernel may wait for the host. Then its stream is blocked, and every call that would run work does as much of it as can be done; those that
// must see its end (synchronize, free) give the device time until it has come, or for emu_config.patience seconds. There is one such grid at a
// time: kernels of other streams do not begin meanwhile, copies do.

static cudaError_t sticky_error, last_error; // sticky: the device is lost
static cudaError_t result(cudaError_t e) {
    if (e) last_error = e;
    return sticky_error ? sticky_error : e;
}

static const EmuLaunch *grid_launch; // what runs, or waits for the host; NULL: nothing
static const std::vector<char> *grid_params;
static bool blocked; // the piece of work that ran last must be run again
static double stalled_until;

static bool is_stalled(const EmuLaunch *launch) {
    if (!emu_config.stall || strncmp(launch->name, emu_config.stall, strlen(emu_config.stall))) return false;
    if (stalled_until == 0) stalled_until = real_seconds() + emu_config.stall_ms * 1e-3;
    if (real_seconds() < stalled_until) return true;
    emu_config.stall = nullptr;
    stalled_until = 0;
    return false;
}
static void before_host() { // the grid is left
    check_canaries(now_running.name);
    close_allocations();
}

static void run_blocks(const EmuLaunch *launch, const std::vector<char> &params) {
    const dim3 grid = launch->grid;
    const size_t n_blocks = (size_t)grid.x * grid.y * grid.z;
    now_running = *launch;
    kernel_params = params.data();
    n_kernel_params = params.size();
    emu_block_dim = launch->block;
    emu_grid_dim = grid;
    n_threads = (int)(launch->block.x * launch->block.y * launch->block.z);
    n_warps = (n_threads + 31) / 32;
    launches[launch->name]++;
    if (emu_config.log)
        fprintf(stderr, "emu: %s grid %u,%u,%u block %u,%u,%u shared %zu\n", launch->name, grid.x, grid.y, grid.z, launch->block.x, launch->block.y,
                launch->block.z, launch->smem_bytes);
    shared_begin_launch(launch->kernel);
    checks_begin_launch(n_blocks);
    std::vector<uint32_t> order;
    if (emu_config.order == EMU_RANDOM) {
        for (size_t i = 0; i < n_blocks; i++) order.push_back((uint32_t)i);
        for (size_t i = n_blocks; i > 1; i--) std::swap(order[i - 1], order[random_below((uint32_t)i)]);
    }
    bool good = true;
    for (size_t i = 0; good && i < n_blocks; i++) {
        const size_t b = emu_config.order == EMU_RANDOM ? order[i] : emu_config.order == EMU_REVERSE ? n_blocks - 1 - i : i;
        checks_begin_block();
        good = run_block(uint3{(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / ((size_t)grid.x * grid.y))});
    }
    shared_end_launch();
    check_canaries(launch->name);
    close_allocations();
    if (!good) sticky_error = last_error = cudaErrorIllegalAddress;
}
static void grid_bottom() { // of its stack
    run_blocks(grid_launch, *grid_params);
    grid_launch = nullptr;
    void *abandoned;
    emu_switch(&abandoned, host_sp);
}
static void run_grid(const EmuLaunch *launch, const std::vector<char> &params) {
    if (sticky_error) return;
    if (grid_launch != launch) { // it begins
        blocked = grid_launch || is_stalled(launch);
        if (blocked) return;
        grid_launch = launch;
        grid_params = &params;
        grid_given_up = false;
        grid_sp = fresh_stack(MAX_THREADS, grid_bottom);
    }
    emu_switch(&host_sp, grid_sp);
    blocked = grid_launch == launch;
}

// ---- the simulated clock, in microseconds ----
static double host_time, h2d_time, d2h_time, compute_time, next_bytes, next_flops;
void emu_cost(double bytes, double flops) {
    next_bytes = bytes;
    next_flops = flops;
}

// ---- streams ----
struct Work {
    std::function<void()> run; // may be empty
    CUstream_st *after;        // or NULL: another stream must have come to...
    uint64_t after_number;     // ...this piece of work first
    uint64_t number;
};
struct CUgraph_st {
    std::vector<std::function<void(CUstream_st *)>> nodes; // in the order they were issued; replayed in it, on one stream
    CUstream_st *origin;                                   // where the capture began; other streams join by waiting for its events
};
struct CUgraphExec_st { CUgraph_st graph; };
struct CUstream_st {
    std::deque<Work> queue;
    uint64_t n_issued, n_done;
    double time;                  // simulated: when its work so far ends
    bool blocking;                // waits for stream 0, and stream 0 for it
    CUgraph_st *graph;            // being captured
    size_t n_captured, n_joined;  // nodes up to its last one; up to the last one that the origin has waited for
};
struct CUevent_st {
    CUstream_st *stream;
    uint64_t number;
    double time;
    bool recorded;
    CUgraph_st *graph; // recorded in a capture: only of use inside it
};
static CUstream_st default_stream;
static std::vector<CUstream_st *> streams; // in order of creation, so that a seed means the same every time

// As far as can be; false: something waits.
static bool run_one(CUstream_st *s);
static bool run_until(CUstream_st *s, uint64_t number) {
    while (!s->queue.empty() && s->queue.front().number <= number)
        if (!run_one(s)) return false;
    return true;
}
static bool run_one(CUstream_st *s) {
    Work &work = s->queue.front(); // it stays there until it is done
    if (work.after && !run_until(work.after, work.after_number)) return false;
    blocked = false;
    if (work.run) work.run();
    if (blocked) return false;
    s->n_done = work.number;
    s->queue.pop_front();
    return true;
}
static void device_runs() {
    for (CUstream_st *s : streams)
        if (emu_config.streams != EMU_SHUFFLED) run_until(s, ~0ull);
        else if (!s->queue.empty() && random_below(2)) run_one(s);
}
// To the end.
static void finish(CUstream_st *s, uint64_t number) {
    const double start = real_seconds();
    while (!run_until(s, number)) {
        device_runs();
        if (grid_given_up || !grid_launch || real_seconds() - start < emu_config.patience) continue;
        emu_report("waits-for-ever", false, "%s waits for the host, which waits for it, for %d s", grid_launch->name, emu_config.patience);
        grid_given_up = true;
    }
}
static void run_all(CUstream_st *s) { finish(s, ~0ull); }
static void run_everything() {
    for (CUstream_st *s : streams) run_all(s);
    run_all(&default_stream);
}
static void run_blocking() { // what work on stream 0 waits for
    for (CUstream_st *s : streams)
        if (s->blocking) run_all(s);
}
static bool work_pending() {
    for (CUstream_st *s : streams)
        if (!s->queue.empty()) return true;
    return false;
}
static bool capturing() {
    for (CUstream_st *s : streams)
        if (s->graph) return true;
    return false;
}
static void enqueue(CUstream_st *s, std::function<void()> run, CUstream_st *after = nullptr, uint64_t after_number = 0) {
    if (!s) {
        lint("default-stream", "work on stream 0 waits for other streams, and they for it");
        run_blocking();
        s = &default_stream;
    }
    s->queue.push_back(Work{std::move(run), after, after_number, ++s->n_issued});
    if (s == &default_stream) run_all(s);
    else if (emu_config.streams == EMU_EAGER) run_until(s, ~0ull);
    if (emu_config.streams == EMU_SHUFFLED && !streams.empty())
        for (uint32_t n = random_below(3); n; n--) {
            CUstream_st *lucky = streams[random_below((uint32_t)streams.size())];
            if (!lucky->queue.empty()) run_one(lucky);
        }
}
// Work that takes `us` on an engine (copy up, copy down, compute) of the simulated device. Captured or queued.
static void issue(CUstream_st *s, double *engine, double us, std::function<void()> run) {
    auto node = [=](CUstream_st *on) {
        CUstream_st *timed = on ? on : &default_stream;
        timed->time = std::max(std::max(timed->time, host_time), *engine) + us;
        *engine = timed->time;
        enqueue(on, run);
    };
    if (!s || !s->graph) {
        node(s);
        return;
    }
    s->graph->nodes.push_back(node);
    s->n_captured = s->graph->nodes.size();
}
static void host_waits_for(double time) { host_time = std::max(host_time, time); }

// ---- launches ----
static std::map<const void *, size_t> dynamic_limits; // cudaFuncSetAttribute
static size_t shared_optin() {
    switch (emu_config.arch) {
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 86: case 89: case 120: return 99 << 10;
    default: return 227 << 10;
    }
}
static int n_call; // launches asked for: of kernels, of graphs
static bool launch_fails() {
    n_call++;
    return emu_config.fail_launch && --emu_config.fail_launch == 0;
}
cudaError_t emu_launch(const EmuLaunch *launch, const void *params, size_t n_bytes, cudaStream_t stream) {
    init();
    const dim3 g = launch->grid, b = launch->block;
    const double us = std::max(emu_config.launch_us, std::max(next_bytes / (emu_config.dram * 1e3), next_flops / (emu_config.tflops * 1e6)));
    next_bytes = next_flops = 0;
    if (sticky_error) return sticky_error;
    if (emu_config.n_device < 1) return result(cudaErrorNoDevice);
    if (launch_fails()) return result(cudaErrorLaunchOutOfResources);
    if (launch->arch > emu_config.arch * 10) return result(cudaErrorNoKernelImageForDevice);
    if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535 || b.x > 1024 || b.y > 1024 || b.z > 64 ||
        (uint64_t)b.x * b.y * b.z > 1024) {
        emu_report("bad-launch", false, "%s with grid %u,%u,%u block %u,%u,%u at %s:%d", launch->name, g.x, g.y, g.z, b.x, b.y, b.z, launch->place.file,
                   launch->place.line);
        return result(cudaErrorInvalidConfiguration);
    }
    auto limit = dynamic_limits.find(launch->kernel);
    const size_t most = limit == dynamic_limits.end() ? 48 << 10 : limit->second;
    if (launch->smem_bytes > most) {
        emu_report("bad-launch", false, "%s wants %zu bytes of dynamic shared memory, may have %zu, at %s:%d", launch->name, launch->smem_bytes, most,
                   launch->place.file, launch->place.line);
        return result(cudaErrorInvalidValue);
    }
    if (!(stream && stream->graph)) host_time += emu_config.launch_us;
    auto kept = std::make_shared<std::vector<char>>((const char *)params, (const char *)params + n_bytes);
    const EmuLaunch copy = *launch;
    issue(stream, &compute_time, us, [copy, kept]() { run_grid(&copy, *kept); });
    return result(cudaSuccess);
}
