/*
 * The model: one line in, tables updated. Runs, processes and notes here; the
 * rest in model_stack.c, model_site.c, model_loop.c.
 */
#include "model_private.h"

#include <inttypes.h>
#include <stdio.h>

struct ub_model *ub_model_new(void)
{
    struct ub_model *m = calloc(1, sizeof(*m));

    if (!m)
        return NULL;
    m->notes = json_array();
    m->pools = json_object();
    m->lints = json_object();
    m->note_index = json_object();
    m->threads = json_array();
    m->offload = json_array();
    m->python = json_array();
    if (!m->notes || !m->pools || !m->lints || !m->note_index || !m->threads || !m->offload || !m->python) {
        ub_model_free(m);
        return NULL;
    }
    return m;
}

static void process_free(struct ub_process_entry *process)
{
    free(process->exe);
    free(process->started_as);
    free(process);
}

static void run_free(struct ub_run_entry *run)
{
    ub_model_run_stacks_free(run);
    UB_HASH_DESTROY(struct ub_process_entry, run->process, process_free);
    json_decref(run->run.header);
    json_decref(run->run.end);
    json_decref(run->run.executor);
    free(run->run.next);
}

void ub_model_free(struct ub_model *m)
{
    uint32_t i;

    if (!m)
        return;
    ub_model_sites_free(m);
    ub_model_loops_free(m);
    for (i = 0; i < m->runs; i++)
        run_free(&m->run[i]);
    free(m->run);
    ub_model_stacks_free(m);
    for (i = 0; i < m->files; i++)
        free(m->file[i].name);
    free(m->file);
    json_decref(m->notes);
    json_decref(m->pools);
    json_decref(m->lints);
    json_decref(m->note_index);
    json_decref(m->threads);
    json_decref(m->offload);
    json_decref(m->python);
    free(m);
}

/* ---- runs ------------------------------------------------------------ */

static struct ub_run_entry *add_run(struct ub_model *m)
{
    if (m->runs == UB_MODEL_RUNS_MAX) {
        m->dropped.runs++; /* the lines are filed under the last one */
        m->current = m->runs - 1;
        return NULL;
    }
    if (m->runs == m->runs_size) {
        uint32_t size = m->runs_size ? m->runs_size * 2 : 4;
        struct ub_run_entry *run = realloc(m->run, size * sizeof(*run));

        if (!run)
            return NULL;
        m->run = run;
        m->runs_size = size;
    }
    m->current = m->runs++;
    m->run[m->current] = (struct ub_run_entry){0};
    return &m->run[m->current];
}

struct ub_run_entry *ub_model_this_run(struct ub_model *m)
{
    return m->runs ? &m->run[m->current] : add_run(m);
}

static bool same_run(const json_t *a, const json_t *b)
{
    static const char *const keys[] = {"started", "monotonic_ns", "host", "command"};
    size_t i;

    for (i = 0; i < UB_ARRAY_LEN(keys); i++)
        if (!json_equal(json_object_get(a, keys[i]), json_object_get(b, keys[i])))
            return false;
    return true;
}

/* A header that was seen before begins another part of the same run: ids and totals go on. */
static void header_line(struct ub_model *m, json_t *record)
{
    struct ub_run_entry *run;
    uint32_t i;

    m->parts++;
    for (i = 0; i < m->runs; i++) {
        if (m->run[i].run.header && same_run(m->run[i].run.header, record)) {
            m->current = i;
            return;
        }
    }
    run = add_run(m);
    if (run)
        run->run.header = json_incref(record);
}

static void end_line(struct ub_model *m, json_t *record)
{
    struct ub_run_entry *run = ub_model_this_run(m);
    uint64_t at;

    if (!run)
        return;
    json_decref(run->run.end);
    run->run.end = json_incref(record);
    if (ub_json_u64(record, "at_ns", &at))
        ub_model_touch(m, at);
}

void ub_model_touch(struct ub_model *m, uint64_t ns)
{
    struct ub_run_entry *run = ub_model_this_run(m);

    if (run && ns > run->run.last_ns)
        run->run.last_ns = ns;
}

uint32_t ub_model_runs(const struct ub_model *m)
{
    return m->runs;
}

const struct ub_run *ub_model_run(const struct ub_model *m, uint32_t i)
{
    return &m->run[i].run;
}

const struct ub_run *ub_model_current_run(const struct ub_model *m)
{
    return m->runs ? &m->run[m->current].run : NULL;
}

/* ---- processes ------------------------------------------------------- */

static struct ub_process_entry *find_process(const struct ub_model *m, uint64_t pid)
{
    struct ub_process_entry *process;

    if (m->runs == 0)
        return NULL;
    HASH_FIND(hh, m->run[m->current].process, &pid, sizeof(pid), process);
    return process;
}

static struct ub_process_entry *add_process(struct ub_model *m, struct ub_run_entry *run, uint64_t pid)
{
    struct ub_process_entry *process;

    process = m->processes < UB_MODEL_PROCESSES_MAX ? calloc(1, sizeof(*process)) : NULL;
    if (!process)
        return NULL;
    process->pid = pid;
    HASH_ADD(hh, run->process, pid, sizeof(process->pid), process);
    if (!UB_HASHED(process)) {
        free(process);
        return NULL;
    }
    m->processes++;
    return process;
}

/*
 * The name in args[0]. A login shell's begins with '-'; programs that change
 * their title put more behind it ("nginx: worker process", "redis-server
 * *:6379"): its first word is the name all the same.
 */
static char *started_as(const json_t *record, const char *exe)
{
    const json_t *args = json_object_get(record, "args");
    const char *title = json_string_value(json_is_array(args) ? json_array_get(args, 0) : args), *name;
    char word[64];

    if (!title || strcmp(ub_path_base(title), ub_path_base(exe)) == 0) /* a path may hold spaces */
        return NULL;
    snprintf(word, sizeof(word), "%.*s", (int)strcspn(title, " :\t\n"), title);
    name = ub_path_base(word);
    name += *name == '-';
    return *name ? strdup(name) : NULL;
}

static void process_line(struct ub_model *m, const json_t *record)
{
    struct ub_run_entry *run = ub_model_this_run(m);
    const char *exe = ub_json_string(record, "exe");
    struct ub_process_entry *process;
    uint64_t pid;

    if (!run || !exe || !ub_json_u64(record, "pid", &pid)) {
        m->dropped.malformed++;
        return;
    }
    run->run.processes++;
    process = find_process(m, pid);
    if (!process)
        process = add_process(m, run, pid);
    if (!process)
        return;
    free(process->exe); /* the newest image of the process counts */
    free(process->started_as);
    process->exe = strdup(exe);
    process->started_as = started_as(record, exe);
}

const char *ub_model_exe(const struct ub_model *m, uint64_t pid)
{
    const struct ub_process_entry *process = find_process(m, pid);

    return process ? process->exe : NULL;
}

const char *ub_model_program(const struct ub_model *m, uint64_t pid)
{
    const struct ub_process_entry *process = find_process(m, pid);

    if (!process)
        return NULL;
    if (process->started_as)
        return process->started_as;
    return process->exe ? ub_path_base(process->exe) : NULL;
}

/* ---- notes, threads, files ------------------------------------------- */

static void note_line(struct ub_model *m, json_t *record)
{
    const char *text = ub_json_string(record, "text"), *next = ub_json_string(record, "next");
    struct ub_run_entry *run = ub_model_this_run(m);
    json_t *note;

    if (!text) {
        m->dropped.malformed++;
        return;
    }
    if (run && next) { /* says what the end section says in its own words */
        free(run->run.next);
        run->run.next = strdup(next);
        return;
    }
    note = json_object_get(m->note_index, text);
    if (note) {
        json_object_set_new(note, "times", json_integer((json_int_t)ub_json_u64_or(note, "times", 1) + 1));
        return;
    }
    if (json_array_size(m->notes) >= UB_MODEL_NOTES_MAX) {
        m->dropped.notes++;
        return;
    }
    note = json_pack("{s:O?, s:O, s:i}", "level", json_object_get(record, "level"), "text",
                     json_object_get(record, "text"), "times", 1);
    if (note && json_array_append_new(m->notes, note) == 0)
        json_object_set(m->note_index, text, note);
}

/* Kept with its frames: the stack's id means nothing once another recording is read. */
static void thread_line(struct ub_model *m, json_t *record)
{
    const json_t *id = json_object_get(record, "stack");
    json_t *frames = json_is_integer(id) ? ub_model_stack(m, json_integer_value(id)) : NULL;
    json_t *thread;

    if (json_array_size(m->threads) >= UB_MODEL_THREADS_MAX) {
        m->dropped.threads++;
        return;
    }
    thread = json_copy(record);
    if (frames)
        json_object_set(thread, "frames", frames);
    json_array_append_new(m->threads, thread);
}

/* Totals of one process: the last line counts. */
static void pool_line(struct ub_model *m, json_t *record)
{
    uint64_t pid;
    const char *program;
    char key[64];
    json_t *pool;

    if (!ub_json_u64(record, "pid", &pid) || !ub_json_string(record, "kind")) {
        m->dropped.malformed++;
        return;
    }
    snprintf(key, sizeof(key), "%u/%" PRIu64, ub_model_runs(m), pid);
    if (!json_object_get(m->pools, key) && json_object_size(m->pools) >= UB_MODEL_POOLS_MAX) {
        m->dropped.pools++;
        return;
    }
    pool = json_copy(record);
    program = ub_model_program(m, pid);
    if (program)
        json_object_set_new(pool, "program", json_string(program));
    json_object_set_new(m->pools, key, pool);
}

/* Totals of a run: the last line counts. */
static void executor_line(struct ub_model *m, json_t *record)
{
    struct ub_run_entry *run = ub_model_this_run(m);

    if (!run)
        return;
    json_decref(run->run.executor);
    run->run.executor = json_incref(record);
}

/* A habit of one function: the last line counts. */
static void lint_line(struct ub_model *m, json_t *record)
{
    const json_t *callback = json_object_get(record, "callback");
    const char *at = ub_json_string(json_object_get(record, "at"), "function");
    const char *what = ub_json_string(record, "lint"), *function = ub_json_string(callback, "function");
    char key[512];

    if (!what || !function) {
        m->dropped.malformed++;
        return;
    }
    snprintf(key, sizeof(key), "%u/%" PRIu64 "/%" PRIu64 "/%.16s/%.180s/%" PRIu64 "/%.180s", ub_model_runs(m),
             ub_json_u64_or(record, "pid", 0), ub_json_u64_or(record, "tid", 0), what, function,
             ub_json_u64_or(callback, "line", 0), at ? at : "");
    if (!json_object_get(m->lints, key) && json_object_size(m->lints) >= UB_MODEL_LINTS_MAX)
        m->dropped.lints++;
    else
        json_object_set_nocheck(m->lints, key, record);
}

void ub_model_file_read(struct ub_model *m, const char *name, const struct ub_recording_stats *stats)
{
    struct ub_model_file *file = realloc(m->file, (m->files + 1) * sizeof(*file));

    ub_model_loops_settle(m);
    if (!file)
        return;
    m->file = file;
    file[m->files].name = strdup(name);
    file[m->files].stats = *stats;
    if (file[m->files].name)
        m->files++;
}

/* ---- lines ----------------------------------------------------------- */

void ub_model_line(struct ub_model *m, json_t *record)
{
    const char *type = ub_json_string(record, "type");

    if (!type)
        m->dropped.malformed++;
    else if (strcmp(type, "slow") == 0)
        ub_model_slow_line(m, record);
    else if (strcmp(type, "stack") == 0)
        ub_model_stack_line(m, record);
    else if (strcmp(type, "stats") == 0)
        ub_model_stats_line(m, record);
    else if (strcmp(type, "loop") == 0)
        ub_model_loop_line(m, record);
    else if (strcmp(type, "process") == 0)
        process_line(m, record);
    else if (strcmp(type, "note") == 0)
        note_line(m, record);
    else if (strcmp(type, "pool") == 0)
        pool_line(m, record);
    else if (strcmp(type, "executor") == 0)
        executor_line(m, record);
    else if (strcmp(type, "lint") == 0)
        lint_line(m, record);
    else if (strcmp(type, "thread") == 0)
        thread_line(m, record);
    else if (strcmp(type, "offload") == 0 && json_array_size(m->offload) < UB_MODEL_OFFLOAD_MAX)
        json_array_append(m->offload, record);
    else if (strcmp(type, "python") == 0 && json_array_size(m->python) < UB_MODEL_OFFLOAD_MAX)
        json_array_append(m->python, record);
    else if (strcmp(type, "header") == 0)
        header_line(m, record);
    else if (strcmp(type, "end") == 0)
        end_line(m, record);
}

static void sink_line(void *self, json_t *record)
{
    ub_model_line(self, record);
}

struct ub_sink ub_model_sink(struct ub_model *m)
{
    return (struct ub_sink){.line = sink_line, .self = m};
}

void ub_model_settle(struct ub_model *m)
{
    ub_model_loops_settle(m);
}

static bool take_stall(void *self, const struct ub_stall *stall)
{
    return ub_model_take_stall(self, stall);
}

static bool take_stats(void *self, const struct ub_stats_line *stats)
{
    return ub_model_take_stats(self, stats);
}

struct ub_taker ub_model_taker(struct ub_model *m)
{
    return (struct ub_taker){.stall = take_stall, .stats = take_stats, .self = m};
}

const json_t *ub_model_notes(const struct ub_model *m)
{
    return m->notes;
}

const json_t *ub_model_python(const struct ub_model *m)
{
    return m->python;
}

const json_t *ub_model_offload(const struct ub_model *m)
{
    return m->offload;
}

const json_t *ub_model_lints(const struct ub_model *m)
{
    return m->lints;
}

const json_t *ub_model_pools(const struct ub_model *m)
{
    return m->pools;
}

const json_t *ub_model_threads(const struct ub_model *m)
{
    return m->threads;
}

uint32_t ub_model_files(const struct ub_model *m)
{
    return m->files;
}

const struct ub_model_file *ub_model_file(const struct ub_model *m, uint32_t i)
{
    return &m->file[i];
}

const struct ub_model_dropped *ub_model_dropped(const struct ub_model *m)
{
    return &m->dropped;
}

void ub_model_sort(struct ub_model *m, enum ub_sort sort)
{
    m->sort = sort;
}

enum ub_sort ub_model_sorted(const struct ub_model *m)
{
    return m->sort;
}
