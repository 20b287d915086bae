#include "existing.h"

#include "loop.h"

#include "../module.h"
#include "../patch.h"
#include "../raw.h"

#include <string.h>
#include <sys/uio.h>

/*
 * How far up the stack is looked. libuv keeps 12 KB of events in the frame that
 * waits; its caller has saved the loop's address in its own.
 */
#define WORDS  2048u
#define MAX_NS 1000000u

bool ub_existing_read(uint64_t at, void *to, size_t size)
{
    struct iovec local = {to, size}, remote = {(void *)(uintptr_t)at, size};

    return ub_raw6(SYS_process_vm_readv, ub_process->pid, (long)&local, 1, (long)&remote, 1, 0) == (long)size;
}

bool ub_existing_is_librarys(uint64_t address)
{
    const char *name = ub_module_name((const void *)(uintptr_t)address);
    const char *slash = name ? strrchr(name, '/') : NULL;

    return ub_module_is_loop_library((const void *)(uintptr_t)address) ||
           (slash && strncmp(slash + 1, "libevent", 8) == 0);
}

/* An address on the heap, or in a module's data. */
static bool may_be_object(uint64_t word)
{
    return word % 8 == 0 && word >= 65536 && word < 1ull << 47;
}

/*
 * The loop's address is among what the thread goes on with after its wait: in a
 * register, or where a frame between us and the loop has saved it.
 */
static __attribute__((noinline)) void look_for_loop(const struct ub_loop_ops *ops, uint32_t copy,
                                                    const struct ub_wait *wait)
{
    uint64_t from = (uintptr_t)__builtin_frame_address(0) - 128, until = ub_clock_monotonic_ns() + MAX_NS;
    uint64_t word[64] = {0}, last[4] = {0};

    __builtin_unwind_init(); /* registers that a call keeps are on the stack now, right below the frame */
    for (uint32_t n = 0; n < WORDS; n += UB_ARRAY_LEN(word)) {
        if (!ub_existing_read(from + n * sizeof(uint64_t), word, sizeof(word)) || ub_clock_monotonic_ns() > until)
            return;
        for (uint32_t i = 0; i < UB_ARRAY_LEN(word); i++) {
            uint64_t w = word[i];

            if (!may_be_object(w) || w == last[0] || w == last[1] || w == last[2] || w == last[3])
                continue;
            memmove(&last[1], &last[0], sizeof(last) - sizeof(last[0]));
            last[0] = w;
            if (ops->adopt(copy, w, wait->kind == UB_WAIT_EPOLL ? wait->count : -1))
                return;
        }
    }
}

void ub_existing_adopt(const struct ub_wait *wait)
{
    uint32_t loop, copy;

    if (ub_process->quiet == UB_QUIET_NOT && ub_patch_library_at(wait->ra, &loop, &copy) && ub_loops[loop]->adopt)
        look_for_loop(ub_loops[loop], copy, wait);
}
