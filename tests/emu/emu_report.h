// Part of emu_rt.cpp: the settings, the counters, and how a finding is told.

EmuConfig emu_config = {
    1, 13000,                                 // devices, driver
    86, 28, (size_t)12 << 30, (size_t)400 << 20, // sm_86, SMs, memory, reserve: an RTX 3060
    EMU_FORWARD, EMU_EAGER, 1,                // order, streams, seed
    1, 1, 1, 0,                               // guard_host, strict, cublas, views
    0, 0,                                     // fail_alloc, fail_launch
    1, SIZE_MAX,                              // registers, lockable
    0, 0, 0, 0,                               // abort_on_report, quiet, log, stats
    12.0, 12.0, 330.0, 12.0, 8.0, 4.0, 4.0, 0, 0, 0, // the clock
    0,                                        // phantom
    60, nullptr, 0,                           // patience, stall, stall_ms
};

static std::map<std::string, int> reports;
static std::map<std::string, int> launches; // by the kernel's text
static uint64_t n_threads_run, n_accesses;
static bool checks_on; // some kernel object was compiled with the callbacks of emu_check.h

// in_kernel: kernel code of this thread is running (not the runtime, not host code). Signal handlers and callbacks look at it.
static volatile bool in_kernel;
static bool kernel_failed;
static EmuLaunch now_running;
static void leave_kernel();
static bool current_thread_text(char *text, size_t n);

static double real_seconds() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t random_state = 1;
static uint32_t random_below(uint32_t n) { // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 2685821657736338717ull >> 33) % n);
}
static void random_seed(unsigned seed) { random_state = (seed + 1) * 0x9e3779b97f4a7c15ull | 1; }

// fatal: the kernel cannot go on; its grid is given up and the device has an error from then on.
void emu_report(const char *kind, bool fatal, const char *format, ...) {
    const bool from_kernel = in_kernel;
    in_kernel = false;
    const int n = ++reports[kind];
    if (!emu_config.quiet && n <= 3) {
        char text[700], where[400];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        fprintf(stderr, "EMU %s: %s", kind, text);
        if (from_kernel && current_thread_text(where, sizeof where)) fprintf(stderr, " [%s]", where);
        fputc('\n', stderr);
    }
    if (emu_config.abort_on_report) abort();
    in_kernel = from_kernel;
    if (fatal && from_kernel) {
        kernel_failed = true;
        leave_kernel();
    }
}
// A habit that works on every device and is still wrong here (slow, or right by luck).
static void lint(const char *kind, const char *text) {
    if (emu_config.strict) emu_report(kind, false, "%s", text);
}

// ---- settings from the environment ----
static void setting(const char *name, int *value) {
    if (const char *text = getenv(name)) *value = atoi(text);
}
static void setting(const char *name, size_t *value) {
    const char *text = getenv(name);
    if (!text) return;
    char *end;
    const double number = strtod(text, &end);
    *value = (size_t)(number * (*end == 'K' ? 1 << 10 : *end == 'M' ? 1 << 20 : *end == 'G' ? 1 << 30 : 1));
}
static void setting(const char *name, int *value, const char *const words[3]) {
    const char *text = getenv(name);
    if (!text) return;
    for (int i = 0; i < 3; i++)
        if (!strcmp(text, words[i])) {
            *value = i;
            return;
        }
    fprintf(stderr, "emu: %s is '%s', expected %s, %s or %s\n", name, text, words[0], words[1], words[2]);
    exit(2);
}
static void read_environment() {
    static const char *const orders[3] = {"forward", "reverse", "random"}, *const queues[3] = {"eager", "lazy", "shuffled"};
    EmuConfig *c = &emu_config;
    int seed = (int)c->seed;
    setting("EMU_ORDER", &c->order, orders);
    setting("EMU_STREAMS", &c->streams, queues);
    setting("EMU_SEED", &seed);
    c->seed = (unsigned)seed;
    setting("EMU_DEVICES", &c->n_device);
    setting("EMU_DRIVER", &c->driver);
    setting("EMU_ARCH", &c->arch);
    setting("EMU_SMS", &c->n_sm);
    setting("EMU_MEMORY", &c->memory);
    setting("EMU_RESERVE", &c->reserve);
    setting("EMU_CUBLAS", &c->cublas);
    setting("EMU_FAIL_ALLOC", &c->fail_alloc);
    setting("EMU_FAIL_LAUNCH", &c->fail_launch);
    setting("EMU_REGISTERS", &c->registers);
    setting("EMU_PATIENCE", &c->patience);
    setting("EMU_GUARD", &c->guard_host);
    setting("EMU_STRICT", &c->strict);
    setting("EMU_VIEWS", &c->views);
    setting("EMU_ABORT", &c->abort_on_report);
    setting("EMU_QUIET", &c->quiet);
    setting("EMU_LOG", &c->log);
    setting("EMU_STATS", &c->stats);
    random_seed(c->seed);
}
