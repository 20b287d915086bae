#include "stall.h"

static struct ub_slice read_text(const json_t *record, const char *key)
{
    const json_t *value = json_object_get(record, key);

    return (struct ub_slice){json_string_value(value), json_string_length(value)};
}

static void read_samples(const json_t *list, struct ub_stall *ret)
{
    const json_t *sample;
    size_t i;

    json_array_foreach (list, i, sample) {
        const json_t *id = json_object_get(sample, "stack");

        if (ret->samples == UB_STALL_SAMPLES_MAX) {
            ret->samples_beyond++;
            continue;
        }
        ret->sample[ret->samples++] = (struct ub_stall_sample){
            .stack = json_integer_value(id),
            .has_stack = json_is_integer(id),
            .unproven = ub_json_is(sample, "proof", "unproven"),
            .incomplete = json_is_false(json_object_get(sample, "complete")),
        };
    }
}

bool ub_stall_read(const json_t *slow, struct ub_stall *ret)
{
    ret->samples = ret->samples_beyond = 0;
    if (!ub_json_u64(slow, "duration_ns", &ret->duration_ns))
        return false;
    ret->id = ret->pid = 0;
    ret->has_id = ub_json_u64(slow, "id", &ret->id);
    ret->has_pid = ub_json_u64(slow, "pid", &ret->pid);
    ret->tid = ub_json_u64_or(slow, "tid", 0);
    ret->start_ns = ub_json_u64_or(slow, "start_ns", 0);
    ret->repeats = ub_json_u64_or(slow, "repeats", 0);
    ret->repeats_ns = ub_json_u64_or(slow, "repeats_ns", 0);
    ret->repeats_max_ns = ub_json_u64_or(slow, "max_ns", 0);
    ret->ongoing = ub_json_true(slow, "ongoing");
    ret->startup = ub_json_true(slow, "startup");
    ret->unclear = ub_json_true(slow, "unclear");
    ret->nested = json_object_get(slow, "parent") != NULL;
    ret->site = read_text(slow, "site");
    ret->loop = read_text(slow, "loop");
    ret->thread = read_text(slow, "thread");
    ret->cause = read_text(slow, "cause");
    read_samples(json_object_get(slow, "samples"), ret);
    return true;
}
