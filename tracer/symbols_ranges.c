#include "symbols_impl.h"

#include <errno.h>
#include <stdlib.h>

int ub_ranges_add(struct ub_ranges *ranges, uint64_t start, uint64_t end, uint32_t id)
{
    if (start >= end)
        return 0;
    if (ranges->count == ranges->capacity) {
        size_t capacity = ranges->capacity ? ranges->capacity * 2 : 16;
        struct ub_range *larger = reallocarray(ranges->range, capacity, sizeof(*larger));

        if (!larger)
            return -ENOMEM;
        ranges->range = larger;
        ranges->capacity = capacity;
    }
    ranges->range[ranges->count++] = (struct ub_range){start, end, id};
    return 0;
}

void ub_ranges_free(struct ub_ranges *ranges)
{
    free(ranges->range);
    *ranges = (struct ub_ranges){0};
}

static int by_start(const void *a, const void *b)
{
    const struct ub_range *x = a, *y = b;

    if (x->start != y->start)
        return x->start < y->start ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* ---- the ranges that hold the sweep's position: a heap, highest id on top ---- */

struct heap {
    const struct ub_range **item;
    size_t count;
};

static void heap_push(struct heap *heap, const struct ub_range *range)
{
    size_t at = heap->count++;

    while (at > 0) {
        size_t parent = (at - 1) / 2;

        if (heap->item[parent]->id >= range->id)
            break;
        heap->item[at] = heap->item[parent];
        at = parent;
    }
    heap->item[at] = range;
}

static void heap_pop(struct heap *heap)
{
    const struct ub_range *last = heap->item[--heap->count];
    size_t at = 0, child;

    while ((child = 2 * at + 1) < heap->count) {
        if (child + 1 < heap->count && heap->item[child + 1]->id > heap->item[child]->id)
            child++;
        if (last->id >= heap->item[child]->id)
            break;
        heap->item[at] = heap->item[child];
        at = child;
    }
    heap->item[at] = last;
}

/* Writes out who wins from `from` up to `to`. */
static int sweep_to(struct heap *heap, uint64_t from, uint64_t to, struct ub_ranges *out)
{
    while (heap->count && from < to) {
        const struct ub_range *top = heap->item[0];
        uint64_t end = top->end < to ? top->end : to;
        struct ub_range *last = out->count ? &out->range[out->count - 1] : NULL;
        int r = 0;

        if (top->end <= from) {
            heap_pop(heap);
            continue;
        }
        if (last && last->id == top->id && last->end == from)
            last->end = end;
        else
            r = ub_ranges_add(out, from, end, top->id);
        if (r < 0)
            return r;
        from = end;
    }
    return 0;
}

int ub_ranges_seal(struct ub_ranges *ranges)
{
    struct ub_ranges out = {0};
    struct heap heap = {0};
    int r = 0;

    if (ranges->count == 0)
        return 0;
    qsort(ranges->range, ranges->count, sizeof(*ranges->range), by_start);
    heap.item = calloc(ranges->count, sizeof(const struct ub_range *));
    if (!heap.item)
        r = -ENOMEM;
    for (size_t i = 0; r == 0 && i < ranges->count; i++) {
        const struct ub_range *range = &ranges->range[i];
        uint64_t next = i + 1 < ranges->count ? range[1].start : UINT64_MAX;

        heap_push(&heap, range);
        r = sweep_to(&heap, range->start, next, &out);
    }
    free(heap.item);
    ub_ranges_free(ranges);
    if (r < 0)
        ub_ranges_free(&out);
    *ranges = out;
    return r;
}

uint32_t ub_ranges_find(const struct ub_ranges *ranges, uint64_t address)
{
    size_t low = 0, high = ranges->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (address < ranges->range[middle].start)
            high = middle;
        else if (address >= ranges->range[middle].end)
            low = middle + 1;
        else
            return ranges->range[middle].id;
    }
    return UB_RANGES_NONE;
}
