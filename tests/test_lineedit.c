// The line editor at the other end of a pseudo-terminal: keys in, lines out through a pipe, and what the screen shows
// according to a terminal of a few lines here. Also that the terminal is put back, the history file, and Ctrl-Z while an answer is made.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include "console.h"
#include "lineedit.h"
#include "test.h"

enum { ROWS = 6, COLS = 20, PATIENCE = 5000 }; // ms

static int master = -1, slave = -1, result = -1, raw_seen, lines_read;
static pid_t child;

// ---- a terminal: characters in cells, no colours ----

static char cell[ROWS][COLS][8];
static int row, col;
static char esc[32];
static int n_esc;

static void clear_from(int r, int c) {
    for (; r < ROWS; r++, c = 0)
        for (; c < COLS; c++) strcpy(cell[r][c], " ");
}

static void line_feed(void) {
    if (row + 1 < ROWS) {
        row++;
        return;
    }
    memmove(cell[0], cell[1], sizeof cell[0] * (ROWS - 1));
    for (int c = 0; c < COLS; c++) strcpy(cell[ROWS - 1][c], " ");
}

static void feed_terminal(const char *p, size_t n) {
    static char ch[8];
    static int n_ch, need;
    for (size_t i = 0; i < n; i++) {
        const unsigned char b = (unsigned char)p[i];
        if (n_esc) {
            esc[n_esc++] = (char)b;
            if (n_esc == 2 || (b < 0x40 && n_esc < 31)) continue;
            esc[n_esc] = 0;
            n_esc = 0;
            const int k = atoi(esc + 2);
            if (b == 'A') row = max_int(0, row - max_int(k, 1));
            else if (b == 'C') col = min_int(COLS - 1, col + max_int(k, 1));
            else if (b == 'J' && k == 0) clear_from(row, col);
            else if (b == 'J') clear_from(0, 0);
            else if (b == 'H') row = col = 0;
            else if (!strcmp(esc, "\033[?2004h")) raw_seen++;
            continue;
        }
        if (b == 0x1B) esc[n_esc++] = 0x1B;
        else if (b == '\r') col = 0;
        else if (b == '\n') line_feed();
        else if (b >= 0x20) {
            if (b < 0x80) need = 1, n_ch = 0;
            else if (b >= 0xC0) need = b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4, n_ch = 0;
            ch[n_ch++] = (char)b;
            if (n_ch < need) continue;
            ch[n_ch] = 0;
            n_ch = 0;
            if (!strcmp(ch, "\xCC\x81")) continue; // the combining mark of these tests
            const int w = need == 4 || (need == 3 && (unsigned char)ch[0] >= 0xE3 && (unsigned char)ch[0] <= 0xED) ? 2 : 1;
            if (col + w > COLS) col = 0, line_feed();
            strcpy(cell[row][col], ch);
            if (w == 2) cell[row][col + 1][0] = 0;
            col += w;
        }
    }
}

// The visible rows, right-trimmed, joined with '|', and the cursor.
static const char *screen(void) {
    static char s[ROWS * COLS * 8 + 64];
    size_t n = 0;
    int last = row;
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++)
            if (strcmp(cell[r][c], " ")) last = max_int(last, r);
    for (int r = 0; r <= last; r++) {
        int end = COLS;
        while (end > 0 && !strcmp(cell[r][end - 1], " ")) end--;
        for (int c = 0; c < end; c++) n += (size_t)sprintf(s + n, "%s", cell[r][c]);
        if (r < last) s[n++] = '|';
    }
    sprintf(s + n, " @%d,%d", row, col);
    return s;
}

// ---- the child ----

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// Reads what the child writes to the terminal for up to ms.
static bool pump(int ms) {
    struct pollfd p = {.fd = master, .events = POLLIN};
    char buf[4096];
    if (poll(&p, 1, ms) <= 0) return false;
    const ssize_t n = read(master, buf, sizeof buf);
    if (n > 0) feed_terminal(buf, (size_t)n);
    return n > 0;
}

static void child_main(const char *history, int pipe_end) {
    LineEdit l;
    Err e;
    if (!line_open(&l, history, &e)) exit(3);
    for (;;) {
        char *line;
        const int got = line_read(&l, "> ", &line);
        const int head[2] = {got, line ? (int)strlen(line) : -1};
        if (write(pipe_end, head, sizeof head) < 0 || (line && write(pipe_end, line, strlen(line)) < 0)) exit(4);
        free(line);
        if (got == 0) break;
    }
    line_close(&l);
    exit(0);
}

// stdin_fd: -1 for the terminal.
static bool start(const char *history, const char *term, int stdin_fd) {
    int ends[2];
    if (pipe(ends)) return false;
    clear_from(0, 0);
    row = col = n_esc = raw_seen = lines_read = 0;
    fflush(stdout);
    child = fork();
    if (child < 0) return false;
    if (child == 0) {
        dup2(stdin_fd >= 0 ? stdin_fd : slave, 0);
        dup2(slave, 1);
        dup2(slave, 2);
        close(ends[0]);
        close(master);
        setenv("TERM", term, 1);
        child_main(history, ends[1]);
    }
    close(ends[1]);
    result = ends[0];
    return true;
}

static int finish(void) {
    int status = -1;
    for (int64_t until = now_ms() + PATIENCE; now_ms() < until && waitpid(child, &status, WNOHANG) == 0;) pump(5);
    while (pump(0)) {}
    close(result);
    return status;
}

static bool read_all(void *p, size_t n) {
    for (int64_t until = now_ms() + PATIENCE; n && now_ms() < until;) {
        struct pollfd f = {.fd = result, .events = POLLIN};
        pump(0);
        if (poll(&f, 1, 5) <= 0) continue;
        const ssize_t k = read(result, p, n);
        if (k <= 0) return false;
        p = (char *)p + k;
        n -= (size_t)k;
    }
    return n == 0;
}

static void wait_raw(void) { // keys sent earlier would be seen by the terminal's own line discipline
    for (int64_t until = now_ms() + PATIENCE; raw_seen <= lines_read && now_ms() < until;) pump(5);
}

static void send_keys(const char *keys, size_t n) {
    while (n) {
        const ssize_t k = write(master, keys, n < 256 ? n : 256);
        if (k <= 0) return;
        keys += k;
        n -= (size_t)k;
        pump(0);
    }
}

// Waits until the screen shows this.
static void shows(int at, const char *keys, const char *want) {
    if (keys) {
        wait_raw();
        send_keys(keys, strlen(keys));
    }
    for (int64_t until = now_ms() + PATIENCE; strcmp(screen(), want) && now_ms() < until;) pump(5);
    CHECK(!strcmp(screen(), want), "line %d: the screen shows\n  %s, expected\n  %s", at, screen(), want);
}
#define SHOWS(keys, want) shows(__LINE__, keys, want)

// want NULL: no line, status got.
static void gives(int at, const char *keys, int got, const char *want) {
    static char text[200000];
    int head[2] = {99, 0};
    if (keys) {
        wait_raw();
        send_keys(keys, strlen(keys));
    }
    const bool came = read_all(head, sizeof head) && head[1] < (int)sizeof text && (head[1] < 0 || read_all(text, (size_t)head[1]));
    text[came && head[1] > 0 ? head[1] : 0] = 0;
    CHECK(came && head[0] == got && (want ? head[1] >= 0 && !strcmp(text, want) : head[1] < 0), "line %d: got %d '%.200s', expected %d '%.200s'", at, head[0], text, got,
          want ? want : "(none)");
    lines_read++;
}
#define GIVES(keys, want) gives(__LINE__, keys, 1, want)

#define LEFT "\033[D"
#define RIGHT "\033[C"
#define UP "\033[A"
#define DOWN "\033[B"
#define HOME "\033[H"
#define END "\033[F"
#define DELETE "\033[3~"

static void test_keys(void) {
    if (!start(NULL, "xterm", -1)) return;
    GIVES("hello\r", "hello");
    GIVES("\r", "");
    GIVES("world" LEFT LEFT "X" RIGHT "Y\r", "worXlYd");
    GIVES("abc\001X\005Y\r", "XabcY");
    GIVES("abc" HOME "X" END "Y\r", "XabcY");
    GIVES("abc\033[1~X\033[4~Y\r", "XabcY");
    GIVES("abc\033OHX\033OFY\r", "XabcY");
    GIVES("abc" LEFT "\x7F" "x\r", "axc");
    GIVES("abc\010\010\010\010z\r", "z");
    GIVES("abc" HOME DELETE "\004\r", "c");
    GIVES("abc" DELETE "\004\r", "abc"); // nothing to the right; not an end, as there is text
    GIVES("hello world" LEFT LEFT LEFT "\013\r", "hello wo");
    GIVES("hello world" LEFT LEFT LEFT "\025\r", "rld");
    GIVES("one two  three  \027\r", "one two  ");
    GIVES("one two" LEFT "\027\r", "one o");
    GIVES("\027\025\013\177" HOME END LEFT RIGHT DELETE "a\r", "a");
    GIVES("one two\033[1;5DX\033[1;5DY\033[1;5CZ\033b!\r", "one !YXtwoZ");
    GIVES("\033[99~\033[Z\033Oq\033xab\r", "ab"); // keys we do not know
    GIVES("a\tb\r", "a\tb");
    GIVES("a\001\006\002\002\006b\r", "ab");
    gives(__LINE__, "abc\003", -1, NULL);
    gives(__LINE__, "\003", -1, NULL);
    GIVES("after\n", "after");
    GIVES("typed\rahead\r", "typed"); // the second line was read with the first
    GIVES(NULL, "ahead");
    // characters, not bytes
    GIVES("äöü" LEFT "\177x\r", "äxü");
    GIVES("日本語" LEFT LEFT DELETE "x\r", "日x語");
    GIVES("e\xCC\x81z" LEFT LEFT "a\r", "ae\xCC\x81z");
    GIVES("e\xCC\x81z" LEFT "\177\r", "z");
    GIVES("😀😁" LEFT "\177\r", "😁");
    GIVES("a\xFF\xC3" "b" LEFT LEFT "\177\r", "a\xC3" "b"); // invalid bytes count one by one
    // several lines
    GIVES("one\\\rtwo\r", "one\ntwo");
    GIVES("one\033\rtwo" UP "X" DOWN "Y\r", "oneX\ntwoY");
    GIVES("ab\\\rcdef\001\177\r", "abcdef");
    GIVES("ab\\\rcdef\001X\005Y\025Z\r", "ab\nZ");
    GIVES("ab\\\rc" LEFT LEFT "X\013\r", "abX\nc");
    GIVES("\033[200~pasted\rtext\r\nwith\tlines\n\033[201~ end\r", "pasted\ntext\nwith\tlines\n end");
    GIVES("\033[200~\n\033[201~\r", "\n");
    GIVES("x\033[200~\033[31mred\003\004\033[201~y\r", "x[31mredy"); // no control characters
    GIVES("\033[200~ends in \\\nhere\033[201~\r", "ends in \\\nhere");
    gives(__LINE__, "\004", 0, NULL);
    CHECK(finish() == 0, "the child's exit status");
}

static void test_screen(void) {
    if (!start(NULL, "xterm", -1)) return;
    SHOWS("hello", "> hello @0,7");
    SHOWS(LEFT LEFT, "> hello @0,5");
    SHOWS("\001", "> hello @0,2");
    GIVES("\r", "hello");
    SHOWS("", "> hello|> @1,2");
    SHOWS("日本" LEFT, "> hello|> 日本 @1,4");
    SHOWS("\014", "> 日本 @0,4");
    SHOWS("\025\013e\xCC\x81x", "> ex @0,4"); // our terminal drops the mark
    SHOWS("\025", "> @0,2");
    SHOWS("123456789012345678", "> 123456789012345678| @1,0"); // a full row
    SHOWS("9", "> 123456789012345678|9 @1,1");
    SHOWS("\001", "> 123456789012345678|9 @0,2");
    SHOWS("\005\177\177", "> 12345678901234567 @0,19");
    SHOWS("語", "> 12345678901234567|語 @1,2"); // a wide one does not fit into the last column
    SHOWS(LEFT, "> 12345678901234567|語 @1,0");
    GIVES("\r", "12345678901234567語");
    gives(__LINE__, "abc\003", -1, NULL);
    SHOWS("\014a\\\rb\\\rc", "> a|b|c @2,1");
    SHOWS(UP "\001", "> a|b|c @1,0");
    SHOWS(UP, "> a|b|c @0,2"); // the first line's text begins after the prompt
    SHOWS("\005\tt", "> a    t|b|c @0,8");
    gives(__LINE__, "\003", -1, NULL);
    // more rows than the screen has: the part with the cursor is shown
    SHOWS("\0141\\\r2\\\r3\\\r4\\\r5\\\r6\\\r7\\\r8", "3|4|5|6|7|8 @5,1");
    SHOWS(UP UP UP UP UP UP, "2|3|4|5|6|7 @0,1");
    SHOWS(UP, "> 1|2|3|4|5|6 @0,3");
    GIVES("\r", "1\n2\n3\n4\n5\n6\n7\n8");
    const struct winsize narrow = {.ws_row = ROWS, .ws_col = 10};
    SHOWS("\014abcdefghijkl", "> abcdefghijkl @0,14");
    ioctl(master, TIOCSWINSZ, &narrow);
    SHOWS(NULL, "> abcdefgh|ijkl @1,4");
    ioctl(master, TIOCSWINSZ, &(struct winsize){.ws_row = ROWS, .ws_col = COLS});
    SHOWS(NULL, "> abcdefghijkl @0,14");
    gives(__LINE__, "\025\004", 0, NULL);
    CHECK(finish() == 0, "the child's exit status");
}

static void test_long(void) {
    if (!start(NULL, "xterm", -1)) return;
    enum { N = 100000 };
    char *text = malloc(N + 16);
    for (int i = 0; i < N; i++) text[i] = (char)('a' + i % 26);
    memcpy(text + N, "\r", 2);
    wait_raw();
    send_keys("\033[200~", 6);
    send_keys(text, N);
    send_keys("\033[201~\r", 7);
    text[N] = 0;
    GIVES(NULL, text);
    free(text);
    gives(__LINE__, "\004", 0, NULL);
    CHECK(finish() == 0, "the child's exit status");
}

static bool same_mode(const struct termios *a, const struct termios *b) {
    return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_cflag == b->c_cflag && a->c_lflag == b->c_lflag && !memcmp(a->c_cc, b->c_cc, sizeof a->c_cc);
}

static void test_mode(void) {
    struct termios before, now;
    tcgetattr(slave, &before);
    if (!start(NULL, "xterm", -1)) return;
    wait_raw();
    tcgetattr(slave, &now);
    CHECK(!(now.c_lflag & (ICANON | ECHO | ISIG)), "raw while a line is read");
    gives(__LINE__, "x\004\004\003", -1, NULL); // "x", deletes of nothing, Ctrl-C
    gives(__LINE__, "\004", 0, NULL);
    CHECK(finish() == 0, "the child's exit status");
    tcgetattr(slave, &now);
    CHECK(same_mode(&before, &now), "the terminal is put back after Ctrl-D");
    static const int signals[] = {SIGTERM, SIGHUP, SIGINT, SIGQUIT};
    for (int i = 0; i < 4; i++) {
        if (!start(NULL, "xterm", -1)) return;
        wait_raw();
        kill(child, signals[i]);
        const int status = finish();
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == signals[i], "killed by signal %d, status %x", signals[i], (unsigned)status);
        tcgetattr(slave, &now);
        CHECK(same_mode(&before, &now), "the terminal is put back after signal %d", signals[i]);
    }
}

// ---- plain lines ----

static void test_plain(void) {
    if (!start(NULL, "dumb", -1)) return;
    send_keys("hi\ntwo\\\nlines\n", 14);
    GIVES(NULL, "hi");
    GIVES(NULL, "two\nlines");
    send_keys("\004", 1);
    gives(__LINE__, NULL, 0, NULL);
    CHECK(finish() == 0 && raw_seen == 0, "a dumb terminal");
    int ends[2];
    static const char text[] = "hello\n\n \xFF\na\\\nb\\\n\nlong\n\\\nlast\\";
    if (pipe(ends) || write(ends[1], text, sizeof text - 1) != (ssize_t)sizeof text - 1) return;
    close(ends[1]);
    if (!start(NULL, "xterm", ends[0])) return;
    close(ends[0]);
    GIVES(NULL, "hello");
    GIVES(NULL, "");
    GIVES(NULL, " \xFF");
    GIVES(NULL, "a\nb\n");
    GIVES(NULL, "long");
    GIVES(NULL, "\nlast\n");
    gives(__LINE__, NULL, 0, NULL);
    CHECK(finish() == 0 && row == 0 && col == 0, "a pipe shows no prompt: %s", screen());
}

// ---- history ----

static int count_lines(const char *path, char *last, size_t size) {
    FILE *f = fopen(path, "r");
    int n = 0;
    while (f && fgets(last, (int)size, f)) n++;
    if (f) fclose(f);
    return n;
}

static void test_history(void) {
    char dir[] = "/tmp/test_lineedit.XXXXXX", path[64], last[256] = "";
    if (!mkdtemp(dir)) return;
    snprintf(path, sizeof path, "%s/history", dir);
    if (!start(path, "xterm", -1)) return;
    GIVES(UP DOWN "one\r", "one"); // none yet
    GIVES("two\\\rlines\\n\r", "two\nlines\\n");
    GIVES("two\\\rlines\\n\r", "two\nlines\\n"); // kept once
    GIVES("\r", "");
    GIVES(UP UP UP "\r", "one"); // Up inside a line of two rows goes to its first row
    GIVES("draft" UP DOWN "!\r", "draft!");
    GIVES("\020\020X\016\016\r", "");
    gives(__LINE__, "\004", 0, NULL);
    CHECK(finish() == 0, "the child's exit status");
    struct stat st = {0};
    CHECK(!stat(path, &st) && (st.st_mode & 07777) == 0600, "mode %o", (unsigned)st.st_mode);
    CHECK(count_lines(path, last, sizeof last) == 4 && !strcmp(last, "draft!\n"), "four lines, the last '%s'", last);
    if (!start(path, "xterm", -1)) return;
    GIVES(UP UP UP "\001\177\r", "twolines\\n");
    gives(__LINE__, "\004", 0, NULL);
    CHECK(finish() == 0, "the child's exit status");

    FILE *f = fopen(path, "w"); // longer than we keep, with bytes that are no text
    for (int i = 0; f && i < 700; i++) fprintf(f, "line %d\n", i);
    if (f) fputs("\n\n\xFF\033[2J\n", f);
    if (f) fclose(f);
    if (!start(path, "xterm", -1)) return;
    SHOWS(UP, "> \xEF\xBF\xBD?[2J @0,7");
    GIVES(UP "\r", "line 699");
    GIVES("new\r", "new");
    gives(__LINE__, "\004", 0, NULL);
    CHECK(finish() == 0, "the child's exit status");
    CHECK(count_lines(path, last, sizeof last) == LINE_HISTORY && !strcmp(last, "new\n"), "%d lines, the last '%s'", count_lines(path, last, sizeof last), last);

    char *const bad[] = {"/dev/full/history", "/nonexistent/history", dir}; // cannot be read or written: no matter
    for (int i = 0; i < 3; i++) {
        if (!start(bad[i], "xterm", -1)) return;
        GIVES("x\r", "x");
        gives(__LINE__, "\004", 0, NULL);
        CHECK(finish() == 0, "the child's exit status");
    }
    snprintf(last, sizeof last, "test \"$(ls -A %s)\" = history", dir);
    CHECK(system(last) == 0, "nothing but the history in its folder");
    unlink(path);
    CHECK(rmdir(dir) == 0, "the folder is empty");
}

// The tests run in a session of their own whose terminal is ours, so that a change of its size reaches the editor and the end
// of one editor does not hang the terminal up.
// ---- Ctrl-Z ----

// While an answer is made it does nothing before asked_to_stop, and there the process stops, and goes on. In a process group of its own whose
// parent is in another of this session: elsewhere nobody could let it go on, and the signal would be dropped.
static void test_suspend(void) {
    int ends[2], status = 0;
    char c = 0;
    CHECK(!pipe(ends), "no pipe");
    const pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        catch_stops(true);
        raise(SIGTSTP);
        (void)!write(ends[1], "x", 1); // not stopped yet
        const bool stop = asked_to_stop();
        (void)!write(ends[1], "y", 1);
        raise(SIGINT);
        _exit(!stop && asked_to_stop() ? 7 : 8);
    }
    close(ends[1]);
    const bool stopped = waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTSTP;
    CHECK(stopped, "Ctrl-Z: it did not stop, status %x", (unsigned)status);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    CHECK(read(ends[0], &c, 1) == 1 && c == 'x' && read(ends[0], &c, 1) == -1, "Ctrl-Z: it stopped before it was asked");
    if (stopped) kill(pid, SIGCONT), waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7, "Ctrl-Z: status %x after it went on", (unsigned)status);
    close(ends[0]);
}

static int run_tests(void) {
    setsid();
    signal(SIGPIPE, SIG_IGN);
    master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master) || (slave = open(ptsname(master), O_RDWR | O_NOCTTY)) < 0) {
        test_skip("no pseudo-terminal");
        return test_end();
    }
    ioctl(slave, TIOCSCTTY, 0);
    ioctl(master, TIOCSWINSZ, &(struct winsize){.ws_row = ROWS, .ws_col = COLS});
    test_keys();
    test_screen();
    test_long();
    test_mode();
    test_plain();
    test_history();
    test_suspend();
    return test_end();
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    const pid_t pid = fork();
    if (pid == 0) exit(run_tests());
    int status = 1;
    if (pid < 0 || waitpid(pid, &status, 0) != pid) return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
