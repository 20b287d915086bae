/*
 * Variables that each turn and each call reads lie together (a section of their
 * own, which the linker gathers): after a system call a page that is not touched
 * is time saved.
 */
#ifndef UB_AGENT_OFTEN_H
#define UB_AGENT_OFTEN_H

#define UB_OFTEN __attribute__((section("ub_often")))

#endif
