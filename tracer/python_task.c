/*
 * The asyncio task that a thread runs. asyncio keeps the running task of each
 * loop in a dict, `_current_tasks`; the one whose coroutine is among the
 * thread's frames is this thread's. uvloop uses the same tasks.
 */
#include "python_impl.h"

#include <stdio.h>
#include <stdlib.h>

#define TASK_MAX    256u
#define LOOPS_MAX   256u
#define SUMMARY_MAX 128u
#define BASES_MAX   8
#define DICT_USED   16u /* PyDictObject.ma_used */

/* The type of the object is NAME or derived from it. */
bool ub_python_derives(struct ub_python *py, uint64_t address, const char *name)
{
    uint64_t type;

    if (!ub_python_read_pointer(py, address + UB_PYTHON_OBJECT_TYPE, &type))
        return false;
    for (int i = 0; type && i < BASES_MAX; i++) {
        if (strcmp(ub_python_type_name(py, type), name) == 0)
            return true;
        if (!ub_python_read_pointer(py, type + UB_PYTHON_TYPE_BASE, &type))
            return false;
    }
    return false;
}

uint64_t ub_python_modules(struct ub_python *py)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t interp, next, modules = 0;

    /* The main interpreter is the last of the list. */
    if (!ub_python_read_pointer(py, py->runtime + l->runtime_interpreters, &interp))
        return 0;
    for (int i = 0; interp && i < 64; i++, interp = next) {
        if (!ub_python_read_pointer(py, interp + l->interp_next, &next))
            return 0;
        if (!next)
            return ub_python_read_pointer(py, interp + l->interp_modules, &modules) ? modules : 0;
    }
    return 0;
}

uint64_t ub_python_module(struct ub_python *py, const char *name)
{
    uint64_t modules = ub_python_modules(py), module = modules ? ub_python_dict_get(py, modules, name) : 0;

    return module && ub_python_is(py, module, "module") ? module : 0;
}

uint64_t ub_python_asyncio(struct ub_python *py)
{
    uint64_t modules, used, module;

    if (py->asyncio)
        return py->asyncio;
    modules = ub_python_modules(py);
    if (!modules || !ub_python_read_pointer(py, modules + DICT_USED, &used) || used == py->modules_seen)
        return 0;
    py->modules_seen = used; /* not looked for again before another module was imported */
    module = ub_python_module(py, "_asyncio");
    if (module)
        ub_python_read_pointer(py, module + UB_PYTHON_MODULE_DICT, &py->asyncio);
    return py->asyncio;
}

static uint64_t find_current_tasks(struct ub_python *py)
{
    uint64_t dict = ub_python_asyncio(py), tasks = dict ? ub_python_dict_get(py, dict, "_current_tasks") : 0;

    return tasks && ub_python_is(py, tasks, "dict") ? tasks : 0;
}

/* Since 3.13 the default name is kept as a number. */
void ub_python_task_name(struct ub_python *py, uint64_t address, char *buf, size_t size)
{
    uint32_t digit;

    if (ub_python_string(py, address, buf, size))
        return;
    *buf = '\0';
    if (py->layout.version >= 0x030c && ub_python_is(py, address, "int") &&
        ub_python_read(py, address + 24, &digit, sizeof(digit)))
        snprintf(buf, size, "Task-%u", digit);
}

/* Debug mode keeps where a task was created: a list of FrameSummary, innermost last. */
static void read_created(struct ub_python *py, uint64_t list, struct ub_python_task *task)
{
    uint64_t size, items;

    if (!list || !(ub_python_is(py, list, "StackSummary") || ub_python_is(py, list, "list")) ||
        !ub_python_read_pointer(py, list + UB_PYTHON_VAR_SIZE, &size) || size > SUMMARY_MAX ||
        !ub_python_read_pointer(py, list + UB_PYTHON_LIST_ITEMS, &items))
        return;
    while (size-- > 0) {
        char file[sizeof(task->created_file)];
        uint64_t summary, slots[2];
        uint32_t line;

        if (!ub_python_read_pointer(py, items + 8 * size, &summary) || !ub_python_is(py, summary, "FrameSummary") ||
            !ub_python_read(py, summary + py->layout.summary_file, slots, sizeof(slots)) ||
            !ub_python_string(py, slots[0], file, sizeof(file)) || !ub_python_is(py, slots[1], "int") ||
            !ub_python_read(py, slots[1] + 24, &line, sizeof(line)))
            return;
        if (ub_python_owner_of(file, NULL) != UB_PYTHON_USER)
            continue;
        snprintf(task->created_file, sizeof(task->created_file), "%s", file);
        task->created_line = line < INT32_MAX ? (int)line : 0;
        return;
    }
}

static bool matches(struct ub_python *py, uint64_t loop, uint64_t address, struct ub_python_look *look)
{
    const struct ub_python_layout *l = &py->layout;
    uint8_t bytes[TASK_MAX];
    uint64_t coroutine;

    if (!ub_python_derives(py, address, "_asyncio.Task") || !ub_python_read(py, address, bytes, sizeof(bytes)))
        return false;
    coroutine = ub_python_u64(bytes, sizeof(bytes), l->task_coroutine);
    for (uint32_t i = look->count; coroutine && i-- > 0;) {
        if (look->frame[i].generator != coroutine)
            continue;
        look->task.known = true;
        look->task.address = address;
        look->task.loop = loop;
        look->task.coroutine = i;
        ub_python_task_name(py, ub_python_u64(bytes, sizeof(bytes), l->task_name), look->task.name,
                            sizeof(look->task.name));
        read_created(py, ub_python_u64(bytes, sizeof(bytes), l->future_source), &look->task);
        return true;
    }
    return false;
}

void ub_python_task(struct ub_python *py, struct ub_python_look *look)
{
    struct ub_python_entry *list;
    uint32_t count;

    if (!py->current_tasks)
        py->current_tasks = find_current_tasks(py);
    if (!py->current_tasks)
        return;
    list = ub_python_dict(py, py->current_tasks, LOOPS_MAX, &count);
    for (uint32_t i = 0; i < count; i++) {
        if (matches(py, list[i].key, list[i].value, look))
            break;
    }
    free(list);
}
