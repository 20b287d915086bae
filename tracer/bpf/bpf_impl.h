/* Shared by the files of tracer/bpf. */
#ifndef UB_TRACER_BPF_IMPL_H
#define UB_TRACER_BPF_IMPL_H

#include "bpf.h"

#include <pthread.h>

#define UB_BPF_LINKS   16
#define UB_BPF_PENDING 64

struct bpf_object;

struct ub_bpf_order {
    enum ub_bpf_sees sees;
    bool (*quiet)(void *self);
    void *self;
};

struct ub_bpf {
    struct bpf_object *object;
    /* see.c. Written by its thread alone, once that runs: */
    struct bpf_link *link[UB_BPF_LINKS]; /* one a program, by its place in the object; NULL: not attached */
    enum ub_bpf_sees sees;
    uint64_t sees_from;
    /* Under `lock`, with which no other is taken: */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t news;
    bool has_thread, closing;
    bool ordered; /* `order` is not done yet: it is the thread's */
    struct ub_bpf_order order;
    int error; /* of the last one */
    struct ring_buffer *ring;
    int targets_fd, programs_fd, slots_fd, histograms_fd, free_fd;
    struct bpf_link *sampler[UB_BPF_SLOTS];
    int wake_fd;
    uint8_t *bss;
    size_t bss_size;
    uint32_t *asleep, *dozing, *no_slot, *lost_threads; /* the program's variables */
    uint64_t *lost_records, *calls_seen_ns, *stretch_at, *long_turn_at, *unclear;
    uint64_t stretch_ns;
    uint64_t program_at; /* when a program was last asked about: what it waits in has to be learned */

    /* Turns and stacks that nobody has asked for yet. A turn without an end: its stacks have come, the rest will. */
    struct ub_reasons *pending[UB_BPF_PENDING];
    uint32_t pending_at;
    const struct ub_bpf_listener *listener; /* while records are read */
};

/* see.c. 0 or -errno; the second also after the first has failed, and instead of it. */
int ub_bpf_attach(struct ub_bpf *b);
void ub_bpf_detach(struct ub_bpf *b);

/* ring.c: one record of the ring buffer. */
int ub_bpf_record(void *self, void *data, size_t size);

/* variables.c: where a global variable of the BPF program lies in its section. 0 or -ENOENT. */
int ub_bpf_variable(const struct bpf_object *object, const char *section, const char *name, uint32_t *ret_offset);

/* program.c: what `pid` runs now. */
void ub_bpf_look_at_program(pid_t pid, struct ub_bpf_program *ret);
void ub_bpf_answer(struct ub_bpf *b, const struct ub_bpf_program_record *asked);

#endif
