/* What the container uses; `frames.py` says in which order. */
#ifndef ZLAYER_USAGE_H
#define ZLAYER_USAGE_H

#include <stddef.h>
#include <stdint.h>

enum { PROCESSES_MAX = 256, USAGE_MAX = 12 + 4 * PROCESSES_MAX };

uint64_t count_of_group(int cgroup, const char *file, const char *key);
size_t read_usage(int cgroup, uint64_t numbers[USAGE_MAX]);

#endif
