/* Who holds the GIL, who waits for it, and whether the garbage collector is at work. */
#include "python_impl.h"

#include "pidns.h"

/* The GIL of a thread's interpreter, 0. */
static uint64_t gil_of(const struct ub_python *py, uint64_t interp)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t gil = 0;

    if (l->runtime_gil != UB_PYTHON_NONE)
        return py->runtime + l->runtime_gil;
    if (l->interp_gil != UB_PYTHON_NONE)
        ub_python_read_pointer(py, interp + l->interp_gil, &gil);
    return gil;
}

static bool read_gil(const struct ub_python *py, uint64_t gil, uint64_t *ret_holder, int *ret_locked)
{
    return ub_python_read_pointer(py, gil + py->layout.gil_last_holder, ret_holder) &&
           ub_python_read(py, gil + py->layout.gil_locked, ret_locked, sizeof(*ret_locked));
}

static void find_holder(struct ub_python *py, uint64_t state, struct ub_python_look *look)
{
    struct ub_python_look *scratch = &py->again;
    uint32_t count;
    bool complete;

    look->holder = ub_python_thread_tid(py, state);
    if (py->foreign)
        look->holder = ub_pidns_thread(py->pid, look->holder);
    count = ub_python_walk(py, ub_python_innermost(py, state), scratch->frame, UB_PYTHON_FRAMES_MAX, &complete);
    for (uint32_t i = 0; i < count && !look->holder_frame.code; i++) {
        if (scratch->frame[i].code->owner == UB_PYTHON_USER)
            look->holder_frame = scratch->frame[i];
    }
    if (count > 0 && !look->holder_frame.code)
        look->holder_frame = scratch->frame[0];
}

static bool is_collecting(const struct ub_python *py, uint64_t interp)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t at = l->interp_gc_collecting != UB_PYTHON_NONE ? interp + l->interp_gc_collecting
                                                            : py->runtime + l->runtime_gc_collecting;
    int collecting = 0;

    return ub_python_read(py, at, &collecting, sizeof(collecting)) && collecting == 1;
}

void ub_python_gil(struct ub_python *py, uint64_t state, uint64_t futex, struct ub_python_look *look)
{
    uint64_t interp, gil, holder, again;
    int locked, locked_again;

    if (!ub_python_read_pointer(py, state + py->layout.thread_interp, &interp))
        return;
    gil = gil_of(py, interp);
    if (!gil || !read_gil(py, gil, &holder, &locked) || locked < 0 || locked > 1)
        return;
    if (locked && holder == state) {
        look->gil = UB_PYTHON_GIL_HELD;
        look->collecting = is_collecting(py, interp);
    } else if (futex >= gil + py->layout.gil_cond && futex < gil + py->layout.gil_end) {
        look->gil = UB_PYTHON_GIL_WAITED;
        if (locked && holder)
            find_holder(py, holder, look);
        /* Only the same holder before and after was one all the time. */
        if (!read_gil(py, gil, &again, &locked_again) || again != holder || locked_again != locked) {
            look->holder = 0;
            look->holder_frame.code = NULL;
        }
    } else {
        look->gil = UB_PYTHON_GIL_RELEASED;
    }
}
