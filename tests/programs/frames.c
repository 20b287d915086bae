// flags: -fno-omit-frame-pointer -O1 -fno-optimize-sibling-calls
/*
 * Builds one unusual stack, says which of its functions are on it, and stays there:
 *
 *     frames FILE SCENARIO
 *
 * altstack   blocked in a handler on an alternate signal stack
 * first      blocked in a handler for a trap on a function's first instruction
 * interrupted  blocked in a handler that interrupted a system call
 * noreturn   the last instruction of a function is a call that never returns
 * jit        called by code without any unwind table, that has a frame pointer
 * fiber      on a stack made by makecontext
 * deep       more frames than anybody wants
 * vdso       spins in clock_gettime
 * leftover   under an alloca lies what is left of an earlier call of the same function
 */
#include "frames.h"

#include <alloca.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define FRAME __attribute__((noipa))

static struct frames_shared *shared;

/* Ends in a call: what follows its return address is another function. */
FRAME void stay(void)
{
    shared->tid = (int32_t)syscall(SYS_gettid);
    __atomic_store_n(&shared->ready, 1, __ATOMIC_RELEASE);
    pause();
    __builtin_unreachable();
}

FRAME void on_signal(int sig)
{
    stay();
}

static void handle(int sig, int flags)
{
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = flags};

    sigaction(sig, &act, NULL);
}

/* Below the traps: a frame that must be found again behind the handler's. */
void trap_at_first(void);
__asm__(".text\n"
        ".globl trap_at_first\n"
        ".type trap_at_first, @function\n"
        "trap_at_first:\n"
        ".cfi_startproc\n"
        "ud2\n"
        "push %rbx\n"
        ".cfi_adjust_cfa_offset 8\n"
        "pop %rbx\n"
        ".cfi_adjust_cfa_offset -8\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size trap_at_first, .-trap_at_first\n");

FRAME void do_altstack(void)
{
    static char room[64 * 1024];
    stack_t ss = {.ss_sp = room, .ss_size = sizeof(room)};

    sigaltstack(&ss, NULL);
    handle(SIGUSR1, SA_ONSTACK);
    raise(SIGUSR1);
}

FRAME void do_first(void)
{
    handle(SIGILL, 0);
    trap_at_first();
}

FRAME void do_interrupted(void)
{
    struct timespec ts = {0, 20000000};
    timer_t timer;
    struct itimerspec it = {.it_value = ts};
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};

    handle(SIGUSR1, 0);
    timer_create(CLOCK_MONOTONIC, &e, &timer);
    timer_settime(timer, 0, &it, NULL);
    ts.tv_sec = 1000;
    nanosleep(&ts, NULL);
}

FRAME __attribute__((noreturn)) void never(void)
{
    for (;;)
        stay();
}

FRAME void do_noreturn(void)
{
    never();
}

typedef void (*function)(void);

/* Keeps a value in rbp, so that a blocked thread's rbp is found on the stack. */
FRAME __attribute__((optimize("omit-frame-pointer"))) void saves_rbp(void)
{
    __asm__ volatile("" ::: "rbp");
    stay();
}

FRAME void do_jit(void)
{
    /* push %rbp; mov %rsp,%rbp; call *%rdi; pop %rbp; ret */
    static const uint8_t code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};
    uint8_t *inner = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    memcpy(inner, code, sizeof(code));
    ((void (*)(function))inner)(saves_rbp);
}

static ucontext_t back, fiber;

FRAME void fiber_body(void)
{
    stay();
}

FRAME void do_fiber(void)
{
    static char room[64 * 1024];

    getcontext(&fiber);
    fiber.uc_stack.ss_sp = room;
    fiber.uc_stack.ss_size = sizeof(room);
    fiber.uc_link = &back;
    makecontext(&fiber, fiber_body, 0);
    swapcontext(&back, &fiber);
}

FRAME int recurse(int depth)
{
    if (depth == 0) {
        stay();
        return 0;
    }
    return recurse(depth - 1) + 1;
}

FRAME void do_deep(void)
{
    recurse(400);
}

enum what { RECORD, STAY };

static uint64_t frame_of_last;

FRAME void breathe(void)
{
    __asm__ volatile("");
}

/*
 * Leaves its frame where it was, or stays, with `n` bytes between its frame and
 * what it calls. The call in front ends the prologue before the alloca.
 */
FRAME void allocates(size_t n, enum what what)
{
    volatile char *room;

    breathe();
    room = alloca(n);
    __asm__ volatile("" : : "r"(room) : "memory"); /* untouched: the remains of earlier calls stay there */
    frame_of_last = (uint64_t)(uintptr_t)__builtin_frame_address(0);
    if (what == STAY)
        stay();
}

static void (*volatile by_pointer)(size_t n, enum what what) = allocates;

/* A direct call from a frame further down. */
FRAME void direct_caller(void)
{
    volatile char room[200];

    room[0] = 1;
    allocates(16, RECORD);
    room[1] = room[0];
}

/*
 * The second call is through a pointer, and its alloca is as large as it must be
 * for the frame of the direct one to lie where a fixed frame would put it. (What
 * the compiler rounds up to differs: a little more or less is tried too.)
 */
FRAME void leave_and_cover(long more)
{
    uint64_t mine, leftover;

    by_pointer(16, RECORD);
    mine = frame_of_last;
    direct_caller();
    leftover = frame_of_last;
    by_pointer(mine - leftover + (uint64_t)more, STAY);
}

FRAME void do_leftover(void)
{
    leave_and_cover(0);
}

FRAME void do_leftover_less(void)
{
    leave_and_cover(-16);
}

FRAME void do_leftover_more(void)
{
    leave_and_cover(16);
}

FRAME void do_vdso(void)
{
    struct timespec ts;

    shared->tid = (int32_t)syscall(SYS_gettid);
    __atomic_store_n(&shared->ready, 1, __ATOMIC_RELEASE);
    for (;;)
        clock_gettime(CLOCK_MONOTONIC, &ts);
}

static const struct {
    const char *name;
    function enter;
    const void *expected[FRAMES_MAX]; /* between the innermost one and main */
} scenarios[] = {
    {"altstack", do_altstack, {stay, on_signal, do_altstack}},
    {"first", do_first, {stay, on_signal, trap_at_first, do_first}},
    {"interrupted", do_interrupted, {stay, on_signal, do_interrupted}},
    {"noreturn", do_noreturn, {stay, never, do_noreturn}},
    {"jit", do_jit, {stay, saves_rbp, do_jit}},
    {"fiber", do_fiber, {stay, fiber_body}},
    {"deep", do_deep, {stay, recurse}},
    {"vdso", do_vdso, {do_vdso}},
    {"leftover", do_leftover, {stay, allocates, leave_and_cover, do_leftover}},
    {"leftover-", do_leftover_less, {stay, allocates, leave_and_cover, do_leftover_less}},
    {"leftover+", do_leftover_more, {stay, allocates, leave_and_cover, do_leftover_more}},
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void tell(int scenario, const void *main_function)
{
    static const void *const known[] = {
        allocates, direct_caller, do_leftover, do_leftover_less, do_leftover_more, leave_and_cover, stay,
        on_signal, trap_at_first, do_altstack, do_first,         do_interrupted,   never,           do_noreturn,
        do_jit,    do_fiber,      recurse,     do_deep,          do_vdso,          saves_rbp,       fiber_body};
    const void *const *e = scenarios[scenario].expected;

    for (size_t i = 0; i < COUNT(known); i++)
        shared->known[shared->known_count++] = (uint64_t)(uintptr_t)known[i];
    shared->known[shared->known_count++] = (uint64_t)(uintptr_t)main_function;
    for (int i = 0; e[i]; i++)
        shared->expected[shared->count++] = (uint64_t)(uintptr_t)e[i];
    if (strcmp(scenarios[scenario].name, "fiber") != 0)
        shared->expected[shared->count++] = (uint64_t)(uintptr_t)main_function;
}

int main(int argc, char **argv)
{
    int fd = argc == 3 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;

    if (fd < 0) {
        fprintf(stderr, "usage: %s FILE SCENARIO\n", argv[0]);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (size_t i = 0; i < COUNT(scenarios); i++)
        if (strcmp(argv[2], scenarios[i].name) == 0) {
            tell((int)i, (const void *)main);
            scenarios[i].enter();
        }
    return 2;
}
