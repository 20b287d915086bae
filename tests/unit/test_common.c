/* Ring, histogram and clock: what both sides of the shared memory rely on. */
#include "unit.h"

#include "../../common/arena.h"
#include "../../tracer/ticks.h"

#include <pthread.h>
#include <string.h>

static void ring_keeps_order_and_counts_losses(void **state)
{
    static struct ub_ring ring;
    struct ub_record r = {0}, got;

    assert_int_equal(ub_ring_get(&ring, &got), -EAGAIN);
    for (uint32_t i = 0; i < UB_RING_RECORDS + 5; i++) {
        r.turn = i;
        assert_int_equal(ub_ring_put(&ring, &r), i < UB_RING_RECORDS ? 0 : -ENOSPC);
    }
    assert_int_equal(ring.lost, 5);
    for (uint32_t i = 0; i < UB_RING_RECORDS; i++) {
        assert_int_equal(ub_ring_get(&ring, &got), 0);
        assert_int_equal(got.turn, i);
    }
    assert_int_equal(ub_ring_get(&ring, &got), -EAGAIN);
}

static void ring_survives_counter_wrap(void **state)
{
    static struct ub_ring ring;
    struct ub_record r = {0}, got;

    ring.head = ring.tail = UINT32_MAX - 3;
    for (uint32_t i = 0; i < 10; i++) {
        r.turn = i;
        assert_int_equal(ub_ring_put(&ring, &r), 0);
    }
    for (uint32_t i = 0; i < 10; i++) {
        assert_int_equal(ub_ring_get(&ring, &got), 0);
        assert_int_equal(got.turn, i);
    }
}

static void ring_distrusts_the_writer(void **state)
{
    static struct ub_ring ring;
    struct ub_record got;

    ring.head = 1000000; /* a hostile target */
    assert_int_equal(ub_ring_get(&ring, &got), -EBADMSG);
    assert_int_equal(ub_ring_get(&ring, &got), -EAGAIN);
}

#define CROSSING_RECORDS 200000u

static void *write_many(void *arg)
{
    struct ub_ring *ring = arg;

    for (uint64_t i = 0; i < CROSSING_RECORDS;) {
        struct ub_record r = {.turn = i, .start = ~i};

        if (ub_ring_put(ring, &r) == 0)
            i++;
    }
    return NULL;
}

static void ring_between_two_threads(void **state)
{
    static struct ub_ring ring;
    struct ub_record got;
    pthread_t writer;

    assert_int_equal(pthread_create(&writer, NULL, write_many, &ring), 0);
    for (uint64_t i = 0; i < CROSSING_RECORDS;) {
        if (ub_ring_get(&ring, &got) != 0)
            continue;
        assert_int_equal(got.turn, i);
        assert_int_equal(got.start, ~i);
        i++;
    }
    pthread_join(writer, NULL);
}

static void histogram_buckets_meet_and_are_narrow(void **state)
{
    uint64_t lower = 0;

    for (uint32_t i = 0; i < UB_HISTOGRAM_BUCKETS; i++) {
        uint64_t upper = ub_histogram_upper(i);

        assert_true(upper > lower);
        assert_int_equal(ub_histogram_index(lower), i);
        assert_int_equal(ub_histogram_index(upper - 1), i);
        if (lower >= UB_HISTOGRAM_SUB)
            assert_true((upper - lower) * 100 <= lower * 3); /* the contract: at most 3 % wide */
        lower = upper;
    }
    assert_int_equal(ub_histogram_index(UINT64_MAX), UB_HISTOGRAM_BUCKETS - 1);
    for (uint32_t i = 1; i < UB_HISTOGRAM_BUCKETS >> UB_COARSE_SHIFT; i++) {
        struct ub_coarse_histogram h = {0};
        uint64_t lower = ub_coarse_upper(i - 1), upper = ub_coarse_upper(i);

        ub_coarse_add(&h, lower);
        ub_coarse_add(&h, upper - 1);
        assert_int_equal(h.count[i], 2);
        assert_true(i < 16 || (upper - lower) * 15 <= lower);
    }
}

static void ticks_follow_the_clock(void **state)
{
    struct timespec pause = {0, 20000000};
    uint64_t t0, t1, ns0, ns1, span;

    ub_ticks_start();
    t0 = ub_ticks_now();
    ns0 = ub_clock_monotonic_ns();
    nanosleep(&pause, NULL);
    t1 = ub_ticks_now();
    ns1 = ub_clock_monotonic_ns();
    span = ub_ticks_span_to_ns(t1 - t0);
    /* A preemption between the two clocks may cost a while; a wrong slope would be off by far more. */
    assert_in_range(span, (ns1 - ns0) / 2, (ns1 - ns0) * 2);
    assert_in_range(ub_ticks_from_span_ns(span), (t1 - t0) - (t1 - t0) / 1000, (t1 - t0) + (t1 - t0) / 1000);
    assert_in_range(ub_ticks_to_ns(t1), ns0, ns1 + 20000000);
}

static void arena_layout_is_what_the_agent_was_built_with(void **state)
{
    assert_int_equal(sizeof(struct ub_slot), 64);
    assert_int_equal(offsetof(struct ub_arena, slot) % UB_CACHE_LINE, 0);
    assert_int_equal(sizeof(struct ub_slot_cold) % 4096, 0);
    /* What the fast path reads must not share a line with what agents write. */
    assert_int_not_equal(offsetof(struct ub_arena_header, threshold) / 64,
                         offsetof(struct ub_arena_header, doorbell) / 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ring_keeps_order_and_counts_losses),
        cmocka_unit_test(ring_survives_counter_wrap),
        cmocka_unit_test(ring_distrusts_the_writer),
        cmocka_unit_test(ring_between_two_threads),
        cmocka_unit_test(histogram_buckets_meet_and_are_narrow),
        cmocka_unit_test(ticks_follow_the_clock),
        cmocka_unit_test(arena_layout_is_what_the_agent_was_built_with),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
