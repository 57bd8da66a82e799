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
    mapped_look();
    check_canaries(now_running.name);
    close_allocations();
}

// Phantom: kernels that the host waits for, or that wait for it.
static bool runs_always(const char *kernel) {
    for (const char *const *name = emu_phantom_runs; name && *name; name++)
        if (!strncmp(kernel, *name, strlen(*name))) return true;
    return false;
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
    mapped_device_takes(true);
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
        mapped_block_ends();
    }
    mapped_device_gives(true);
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
    if (emu_config.phantom && !runs_always(launch->name)) {
        launches[launch->name]++;
        if (emu_config.log) fprintf(stderr, "emu: %s\n", launch->name);
        return;
    }
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
// The host has a time, and each stream: the end of its work so far. Work begins when the host has issued it and the stream has come to it, a copy
// over the link when its direction is free besides, and has been set up, for which copies behind it in its stream do not wait. Times are found when work runs, not when it is issued: what a kernel that waits for the host
// waits for is not known before. Kernels of several streams do not share the device: each runs as if alone.
static double host_time, next_bytes, next_flops;
void emu_cost(double bytes, double flops) {
    next_bytes = bytes;
    next_flops = flops;
}
extern "C" void emu_spend_host(const char *name, double us);
bool emu_fills(size_t bytes) {
    if (emu_config.fill > 0) emu_spend_host("copy", (double)bytes / (emu_config.fill * 1e3));
    return emu_config.phantom;
}
static std::vector<EmuSpan> spans;
static void span(EmuLane lane, const char *name, double start, double end) {
    if (emu_trace && end > start) spans.push_back(EmuSpan{lane, name, start, end});
}
struct Engine { // one direction of the link
    std::map<double, double> busy; // from: until. Copies of two streams may run here in another order than they are issued there, so gaps are filled
    double take(double ready, double us) {
        for (auto &b : busy) {
            if (b.second <= ready) continue;
            if (b.first >= ready + us) break;
            ready = b.second;
        }
        busy[ready] = ready + us;
        while (busy.size() > 64) busy.erase(busy.begin());
        return ready;
    }
};
static Engine up_engine, down_engine;

// ---- streams ----
struct Work {
    std::function<void()> run; // may be empty
    CUstream_st *after;        // or NULL: another stream must have come to...
    uint64_t after_number;     // ...this piece of work first
    uint64_t number;
    // of the clock
    double issued, us;                  // by the host; how long it takes
    Engine *engine;                     // of a copy over the link; or NULL
    std::shared_ptr<double> mark, wait; // an event's time: it is now; it must be over
    bool begun;
};
struct CUgraph_st {
    std::vector<std::function<void(CUstream_st *)>> nodes; // in the order they were issued; replayed in it, on one stream
    CUstream_st *origin;                                   // where the capture began; other streams join by waiting for its events
};
struct CUgraphExec_st { CUgraph_st graph; };
struct CUstream_st {
    std::deque<Work> queue;
    uint64_t n_issued, n_done;
    double time;                  // simulated: when its work that has run ends
    double copy_start, copy_end;  // of the last copy over the link
    bool blocking;                // waits for stream 0, and stream 0 for it
    CUgraph_st *graph;            // being captured
    size_t n_captured, n_joined;  // nodes up to its last one; up to the last one that the origin has waited for
};
struct CUevent_st {
    CUstream_st *stream;
    uint64_t number;
    std::shared_ptr<double> time;
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
static CUstream_st *running_stream;
static void clock_begins(CUstream_st *s, Work *w) {
    s->time = std::max(s->time, w->issued);
    if (w->wait) s->time = std::max(s->time, *w->wait);
    if (w->engine) {
        const double ready = s->time == s->copy_end ? s->copy_start : s->time; // right behind another: it was set up meanwhile
        s->copy_start = s->time = w->engine->take(std::max(s->time, ready + emu_config.copy_us), w->us);
        s->copy_end = s->time + w->us;
    }
    span(w->engine ? EMU_LANE_COPY : EMU_LANE_DEVICE, !w->engine ? "launch" : w->engine == &up_engine ? "up" : "down", s->time, s->time + w->us);
    s->time += w->us;
    w->begun = true;
}
static bool run_one(CUstream_st *s) {
    Work &work = s->queue.front(); // it stays there until it is done
    if (work.after && !run_until(work.after, work.after_number)) return false;
    if (!work.begun) clock_begins(s, &work);
    CUstream_st *other = running_stream;
    running_stream = s;
    blocked = false;
    if (work.run) work.run();
    running_stream = other;
    if (blocked) return false;
    if (work.mark) *work.mark = s->time;
    s->n_done = work.number;
    s->queue.pop_front();
    return true;
}
void emu_move(void *to, const void *from, size_t n) {
    in_copy = true;
    memcpy(to, from, n);
    in_copy = false;
    close_allocations();
}
extern "C" int emu_choose_experts(int n_expert, int taken, const int *chosen) {
    if (emu_chooser) return emu_chooser(n_expert, taken, chosen);
    for (;;) {
        const int e = (int)random_below((uint32_t)n_expert);
        if (std::find(chosen, chosen + taken, e) == chosen + taken) return e;
    }
}
// Numbers that host and device share. The host says when it takes what a kernel has released, and when it has given what a kernel acquires.
static double released_time, given_time;
static void clock_releases() { released_time = running_stream->time; }
void emu_acquired() {
    mapped_device_takes(false);
    running_stream->time = std::max(running_stream->time, given_time + emu_config.flag_us);
}
bool emu_early() { return emu_config.fill > 0 && host_time < released_time + emu_config.flag_us; }
extern "C" void emu_host_takes(double us) { host_time = std::max(host_time, released_time + emu_config.flag_us + us); }
extern "C" void emu_host_gives(double us) { given_time = host_time + us; }
void emu_spend_device(const char *name, double us) {
    span(EMU_LANE_DEVICE, name, running_stream->time, running_stream->time + us);
    running_stream->time += us;
}
extern "C" void emu_spend_host(const char *name, double us) {
    span(EMU_LANE_HOST, name, host_time, host_time + us);
    host_time += us;
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
static void enqueue(CUstream_st *s, Work work) {
    if (!s) {
        lint("default-stream", "work on stream 0 waits for other streams, and they for it");
        run_blocking();
        s = &default_stream;
    }
    mapped_host_gives(true);
    work.number = ++s->n_issued;
    work.issued = host_time;
    s->queue.push_back(std::move(work));
    if (s == &default_stream) run_all(s);
    else if (emu_config.streams == EMU_EAGER) run_until(s, ~0ull);
    if (emu_config.streams == EMU_SHUFFLED && !streams.empty())
        for (uint32_t n = random_below(3); n; n--) {
            CUstream_st *lucky = streams[random_below((uint32_t)streams.size())];
            if (!lucky->queue.empty()) run_one(lucky);
        }
}
// Work that takes `us` of the simulated device; engine: of the link, NULL: a kernel. Captured or queued.
static void issue(CUstream_st *s, Engine *engine, double us, std::function<void()> run) {
    auto node = [=](CUstream_st *on) {
        Work work = {};
        work.run = run;
        work.us = us;
        work.engine = engine;
        enqueue(on, std::move(work));
    };
    if (!s || !s->graph) {
        node(s);
        return;
    }
    s->graph->nodes.push_back(node);
    s->n_captured = s->graph->nodes.size();
}
static void host_waits_for(double time) {
    mapped_host_takes(true);
    if (time <= host_time) return;
    host_time = time + emu_config.sync_us;
    span(EMU_LANE_HOST, "wait", time, host_time);
}
void emu_later(cudaStream_t stream, std::function<void()> run) { issue(stream, nullptr, 0, std::move(run)); }

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
    const double cost = emu_price ? 0 : std::max(next_bytes / (emu_config.dram * 1e3), next_flops / (emu_config.tflops * 1e6));
    const double us = std::max(emu_config.launch_us, cost);
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
    issue(stream, nullptr, us, [copy, kept]() { run_grid(&copy, *kept); });
    return result(cudaSuccess);
}
