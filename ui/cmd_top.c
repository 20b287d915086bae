/*
 * unblock top: a live view of a watched program or of a recording.
 *
 * A little long for one file: keys, source and screen share the view's state.
 */
#include "command.h"
#include "options.h"
#include "say.h"
#include "top.h"

#include "../common/clock.h"

#include <curses.h>
#include <errno.h>
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#define REFRESH_MS     1000
#define REFRESH_MIN_MS 100
#define REFRESH_MAX_MS 60000
#define KEY_ESCAPE     27

struct top {
    /* options */
    bool once;
    int colour, sort;
    uint64_t refresh_ns;

    struct ub_top_source *source;
    struct ub_top_attached *attached; /* NULL: somebody else watches */
    struct ub_top_view view;
    bool typing; /* a search */
    bool help, quit, coloured;
    int error; /* -errno of the last reading */
};

static const char *const sort_choices[] = {"total", "max", "count", "p99", NULL}; /* enum ub_sort */

static const char about[] = "Shows a watched program live, or a recording as it grows: its loops with their\n"
                            "figures and the time lost of late, and the call sites that blocked them. PID is\n"
                            "that of a program which somebody watches (`unblock ps`); any other is attached\n"
                            "to, as by `unblock attach`, until the view is left.";

static const char more[] = "Keys: arrows, j k, PgUp PgDn, Home End   move    Enter   the call site; Esc back\n"
                           "      / n N   search, next, previous             s S     sort by another column\n"
                           "      space   pause                              r       count from now on\n"
                           "      + -     refresh faster, slower             ? q     help, quit\n"
                           "\n"
                           "With --once nothing is attached to. What is seen of a program that top itself has\n"
                           "attached to is kept nowhere: unblock attach -o FILE PID keeps it.\n"
                           "\n"
                           "Exit status: 0, or 2 for wrong use, an unreadable recording or a program that\n"
                           "nobody watches and that cannot be attached to.\n";

static const char *const help_lines[] = {/* fits 60x12 */
                                         "arrows j k PgUp PgDn Home End   choose a call site",
                                         "Enter   where and why            Esc   back, or end search",
                                         "/       search                   n N   next, previous",
                                         "s S     lost, max, count, p99    r     count from now on",
                                         "space   pause                    + -   faster, slower",
                                         "?       this help                q     quit",
                                         "A bar: a second, full from half a second lost on.",
                                         "! blocks now. Figures of loops are 10 s old at most.",
                                         NULL};

/* ---- keys: each does one thing to the view -------------------------------- */

static void move_by(struct top *top, long by)
{
    struct ub_top_view *v = &top->view;
    size_t *at = v->details ? &v->details_first : &v->chosen;

    if (by < 0 && *at < (size_t)-by)
        *at = 0;
    else
        *at += (size_t)by;
    if (!v->details)
        v->chosen_site[0] = 0; /* the row counts, not who was there */
}

static void key_down(struct top *top)
{
    move_by(top, 1);
}

static void key_up(struct top *top)
{
    move_by(top, -1);
}

static void key_page_down(struct top *top)
{
    move_by(top, top->view.list_rows > 1 ? (long)top->view.list_rows - 1 : 1);
}

static void key_page_up(struct top *top)
{
    move_by(top, top->view.list_rows > 1 ? 1 - (long)top->view.list_rows : -1);
}

static void key_first(struct top *top)
{
    move_by(top, -(long)(INT_MAX / 2));
}

static void key_last(struct top *top)
{
    move_by(top, INT_MAX / 2);
}

static void key_enter(struct top *top)
{
    top->view.details = true;
    top->view.details_first = 0;
}

static void key_back(struct top *top)
{
    if (top->help)
        top->help = false;
    else if (top->view.details)
        top->view.details = false;
    else
        top->view.search[0] = 0;
}

static void key_search(struct top *top)
{
    top->view.details = false;
    top->view.search[0] = 0;
    top->typing = true;
}

static void sort_by(struct top *top, unsigned step)
{
    top->view.sort = (enum ub_sort)(((unsigned)top->view.sort + step) % UB_SORTS);
}

static void key_sort(struct top *top)
{
    sort_by(top, 1);
}

static void key_sort_back(struct top *top)
{
    sort_by(top, UB_SORTS - 1);
}

static void key_pause(struct top *top)
{
    top->view.paused = !top->view.paused;
}

static void key_reset(struct top *top)
{
    ub_model_forget_stalls(ub_top_model(top->source));
    top->view.details = false;
}

static void key_faster(struct top *top)
{
    top->view.refresh_ms = top->view.refresh_ms / 2 > REFRESH_MIN_MS ? top->view.refresh_ms / 2 : REFRESH_MIN_MS;
}

static void key_slower(struct top *top)
{
    top->view.refresh_ms = top->view.refresh_ms * 2 < REFRESH_MAX_MS ? top->view.refresh_ms * 2 : REFRESH_MAX_MS;
}

static void key_help(struct top *top)
{
    top->help = !top->help;
}

static void key_quit(struct top *top)
{
    top->quit = true;
}

static const struct {
    int key;
    void (*act)(struct top *top);
} keys[] = {
    {'j', key_down},
    {KEY_DOWN, key_down},
    {'k', key_up},
    {KEY_UP, key_up},
    {KEY_NPAGE, key_page_down},
    {KEY_PPAGE, key_page_up},
    {KEY_HOME, key_first},
    {'g', key_first},
    {KEY_END, key_last},
    {'G', key_last},
    {'\n', key_enter},
    {'\r', key_enter},
    {KEY_ENTER, key_enter},
    {KEY_ESCAPE, key_back},
    {KEY_BACKSPACE, key_back},
    {'/', key_search},
    {'n', key_down},
    {'N', key_up},
    {'s', key_sort},
    {'S', key_sort_back},
    {' ', key_pause},
    {'r', key_reset},
    {'+', key_faster},
    {'-', key_slower},
    {'?', key_help},
    {'h', key_help},
    {'q', key_quit},
    {'Q', key_quit},
};

/* While a search is typed every key is a letter of it. */
static void type(struct top *top, int key)
{
    size_t len = strlen(top->view.search);

    if (key == '\n' || key == '\r' || key == KEY_ENTER) {
        top->typing = false;
    } else if (key == KEY_ESCAPE) {
        top->typing = false;
        top->view.search[0] = 0;
    } else if ((key == KEY_BACKSPACE || key == 127 || key == '\b') && len > 0) {
        top->view.search[len - 1] = 0;
    } else if (key >= ' ' && key < 127 && len < sizeof(top->view.search) - 1) {
        top->view.search[len] = (char)key;
        top->view.search[len + 1] = 0;
    }
    top->view.chosen = 0;
    top->view.chosen_site[0] = 0;
}

static void take_key(struct top *top, int key)
{
    size_t i;

    if (key == KEY_RESIZE)
        return; /* the next drawing sees the new size */
    if (top->typing) {
        type(top, key);
        return;
    }
    for (i = 0; i < UB_ARRAY_LEN(keys); i++)
        if (keys[i].key == key)
            keys[i].act(top);
}

/* ---- screen ----------------------------------------------------------------- */

static int attribute(const struct top *top, enum ub_ink ink)
{
    static const int bold[UB_INKS] = {[UB_INK_STALL] = A_BOLD, [UB_INK_LABEL] = A_BOLD};

    return bold[ink] | (top->coloured ? COLOR_PAIR((int)ink + 1) : 0);
}

static void init_colours(struct top *top)
{
    static const short colour[UB_INKS] = {[UB_INK_PLAIN] = -1,         [UB_INK_STALL] = COLOR_RED,
                                          [UB_INK_GOOD] = COLOR_GREEN, [UB_INK_WARNING] = COLOR_YELLOW,
                                          [UB_INK_LABEL] = COLOR_CYAN, [UB_INK_CAUSE] = -1,
                                          [UB_INK_FUNCTION] = -1,      [UB_INK_POINTER] = -1,
                                          [UB_INK_ADVICE] = -1,        [UB_INK_FAINT] = -1};
    int i;

    top->coloured = has_colors() && ub_colour_use((enum ub_colour)top->colour, STDOUT_FILENO);
    if (!top->coloured)
        return;
    start_color();
    use_default_colors();
    for (i = 0; i < UB_INKS; i++)
        init_pair((short)(i + 1), colour[i], -1);
}

/* Cut at the edge: curses would go on in the next line. Without UTF-8 what is beyond ASCII becomes '?'. */
static void put_row(const struct top *top, int y, const char *text)
{
    wchar_t wide[512];
    int columns = 0, n = 0;
    mbstate_t state = {0};

    while (*text && n < (int)UB_ARRAY_LEN(wide) - 1) {
        wchar_t c = L'?';
        size_t len = top->view.unicode ? mbrtowc(&c, text, 6, &state) : 1;
        int width;

        if (len == 0 || len > 6) { /* cannot be: all of it was decoded before */
            c = L'?';
            len = 1;
        } else if (!top->view.unicode) {
            c = (unsigned char)*text < 0x80 ? (wchar_t)*text : L'?';
        }
        width = wcwidth(c) > 0 ? wcwidth(c) : 1;
        if (columns + width > COLS)
            break;
        columns += width;
        wide[n++] = c;
        text += len;
    }
    mvaddnwstr(y, 0, wide, n);
}

/* In place of all below the heading. */
static void put_help(void)
{
    int i;

    move(2, 0);
    clrtobot();
    for (i = 0; help_lines[i] && i + 3 < LINES; i++)
        mvaddnstr(i + 2, 1, help_lines[i], COLS - 2);
}

static void put_bottom(const struct top *top)
{
    const char *text = COLS >= 76   ? "Enter where  / search  s sort  space pause  r reset  ? help  q quit"
                       : COLS >= 48 ? "Enter where  / search  s sort  ? help  q quit"
                                    : "/ s space r ? q";
    char line[256];

    if (top->typing || *top->view.search)
        snprintf(line, sizeof(line), "/%s%s", top->view.search, top->typing ? "_" : "   (Esc: all)");
    else if (top->error)
        snprintf(line, sizeof(line), "cannot read on: %s", strerror(-top->error));
    else if (top->view.details)
        snprintf(line, sizeof(line), "Esc back  arrows scroll  q quit");
    else
        snprintf(line, sizeof(line), "%s", text);
    attrset(A_REVERSE);
    mvhline(LINES - 1, 0, ' ', COLS);
    mvaddnstr(LINES - 1, 0, line, COLS - 1);
    attrset(0);
}

static void draw(struct top *top)
{
    struct ub_top_view *v = &top->view;
    uint32_t i;

    v->width = COLS > 0 ? (uint32_t)COLS : 80;
    v->height = LINES > 2 ? (uint32_t)LINES : 2;
    ub_top_build(v, top->source);
    erase();
    for (i = 0; i < v->rows && (int)i < LINES - 1; i++) {
        attrset(attribute(top, v->row[i].ink) | (v->row[i].chosen ? A_REVERSE : 0));
        if (v->row[i].chosen)
            mvhline((int)i, 0, ' ', COLS);
        put_row(top, (int)i, v->row[i].text);
    }
    attrset(0);
    if (top->help)
        put_help();
    put_bottom(top);
    refresh();
}

static void loop(struct top *top)
{
    uint64_t next = 0;

    while (!top->quit) {
        uint64_t now = ub_clock_monotonic_ns();
        int key;

        if (now >= next) {
            if (!top->view.paused)
                top->error = ub_top_read(top->source);
            next = now + (uint64_t)top->view.refresh_ms * 1000000;
        }
        draw(top);
        now = ub_clock_monotonic_ns();
        timeout(next > now ? (int)((next - now) / 1000000) + 1 : 0);
        key = getch();
        if (key == ERR && (feof(stdin) || getppid() == 1)) /* the terminal is gone */
            return;
        if (key != ERR)
            take_key(top, key);
    }
}

static bool has_terminal(void)
{
    if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO))
        return true;
    ub_say("top", "standard output is no terminal: unblock top --once prints text");
    return false;
}

static int show(struct top *top)
{
    SCREEN *screen;

    screen = newterm(NULL, stdout, stdin);
    if (!screen) {
        ub_say("top", "the terminal '%s' is not known: set TERM, or use --once", getenv("TERM") ? getenv("TERM") : "");
        return -ENOTTY;
    }
    set_escdelay(50);
    init_colours(top);
    cbreak();
    noecho();
    nonl();
    keypad(stdscr, TRUE);
    curs_set(0);
    loop(top);
    endwin();
    delscreen(screen);
    return 0;
}

static int print_once(struct top *top)
{
    uint32_t i;

    top->view.width = 120;
    top->view.height = 0;
    ub_top_build(&top->view, top->source);
    for (i = 0; i < top->view.rows; i++)
        puts(top->view.row[i].text);
    if (fflush(stdout) == 0 && !ferror(stdout))
        return 0;
    ub_say("top", "the text could not be written: %s", strerror(errno));
    return -EIO;
}

/* ---- the command --------------------------------------------------------------- */

static int parse(struct top *top, int argc, char **argv, int *ret_first)
{
    const struct ub_option option[] = {
        {.name = "once", .kind = UB_OPTION_FLAG, .value = &top->once, .help = "print it as text, once"},
        {.name = "sort",
         .kind = UB_OPTION_CHOICE,
         .value = &top->sort,
         .argument = "KEY",
         .help = "call sites by total (default), max, count or p99",
         .choices = sort_choices},
        {.name = "refresh",
         .kind = UB_OPTION_TIME,
         .value = &top->refresh_ns,
         .argument = "TIME",
         .help = "how often to look (default 1s)",
         .min = REFRESH_MIN_MS * 1000000ull,
         .max = REFRESH_MAX_MS * 1000000ull},
        UB_OPTION_COLOUR(&top->colour),
    };
    const struct ub_options options = {.usage = "unblock top [OPTION...] PID|FILE",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = UB_ARRAY_LEN(option)};

    return ub_options_command("top", &options, argc, argv, ret_first);
}

/* A number is a process, unless there is a file of that name. */
static int open_source(struct top *top, const char *word, char *why)
{
    pid_t pid;

    if (ub_option_pid(word, &pid, why) == 0 && access(word, F_OK) != 0) {
        int r = ub_top_open_pid(pid, &top->source, why);

        if (r != -ESRCH || top->once || kill(pid, 0) < 0)
            return r;
        r = ub_top_attach(pid, &top->attached, why);
        if (r == 0)
            r = ub_top_open_pid(pid, &top->source, why);
        if (r == 0)
            ub_top_forget_recording(top->attached);
        return r;
    }
    return ub_top_open_file(word, &top->source, why);
}

static int first_read(struct top *top, const char *name)
{
    int r = ub_top_read(top->source);

    if (r == -EINVAL)
        ub_say("top", "%s is no recording: give the .jsonl file that unblock run writes, or a PID", name);
    else if (r == -EPROTONOSUPPORT)
        ub_say("top", "%s was written by a newer unblock: read it with that one", name);
    else if (r < 0)
        ub_say("top", "%s: %s", name, strerror(-r));
    return r;
}

static int run_top(struct top *top, const char *word)
{
    char why[UB_WHY_MAX] = "out of memory";
    int r = top->once || has_terminal() ? open_source(top, word, why) : -ENOTTY;

    if (r < 0) {
        if (r != -ENOTTY)
            ub_say("top", "%s", why);
        if (top->attached)
            ub_top_detach(top->attached);
        return r;
    }
    r = first_read(top, word);
    if (r == 0)
        r = top->once ? print_once(top) : show(top);
    ub_top_view_clear(&top->view);
    free(top->view.row);
    ub_top_close(top->source);
    if (top->attached)
        ub_top_detach(top->attached);
    return r;
}

int ub_cmd_top(int argc, char **argv)
{
    struct top top = {.refresh_ns = REFRESH_MS * 1000000ull};
    int first, r = parse(&top, argc, argv, &first);

    if (r != 0)
        return r < 0 ? UB_EXIT_USAGE : 0;
    if (argc - first != 1) {
        ub_say("top", first == argc ? "what is to be shown is missing: unblock top PID, or a recording"
                                    : "one PID or recording at a time");
        return UB_EXIT_USAGE;
    }
    setlocale(LC_CTYPE, "");
    top.view.unicode = strcmp(nl_langinfo(CODESET), "UTF-8") == 0 || top.once;
    top.view.sort = (enum ub_sort)top.sort;
    top.view.refresh_ms = (uint32_t)(top.refresh_ns / 1000000);
    return run_top(&top, argv[first]) < 0 ? UB_EXIT_USAGE : 0;
}
