"""Paired measurements: two or more variants taken in turn, so that the machine's moods hit all of them alike."""

import os
import random
import statistics


def rounds(quick=False, least=20):
    """How many pairs: UNBLOCK_BENCH_PAIRS, else 20; with --quick 5 (then the interval says little)."""
    return int(os.environ.get("UNBLOCK_BENCH_PAIRS", 5 if quick else least))


def interleave(variants, measure, count):
    """Runs measure(name) `count` times for each variant, in an order that changes; {name: [values in pair order]}."""
    values = {name: [] for name in variants}
    for i in range(count):
        order = list(variants)
        if i % 2:
            order.reverse()
        for name in order:
            values[name].append(measure(name))
    return values


def interval(values, seed=1):
    """(median, low, high): the median and its 95 % interval, by resampling."""
    rand = random.Random(seed)
    medians = sorted(statistics.median(rand.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), medians[50], medians[1949]


def differences(values, with_it, without):
    return [a - b for a, b in zip(values[with_it], values[without])]


def ratios(values, with_it, without):
    return [a / b for a, b in zip(values[with_it], values[without])]


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(p * len(values)))]
