/* Readings of the control group, and of each of the container's processes. */
#include "usage.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The start of a file, whoever may have written it: as a string, empty if it cannot be read. */
static void read_text(int directory, const char *file, char *text, size_t size)
{
	int fd = openat(directory, file, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
	close(fd);
	text[length < 0 ? 0 : length] = 0;
}

/* The number behind `key` in a file of the group; 0 if there is none. */
uint64_t count_of_group(int cgroup, const char *file, const char *key)
{
	char text[2048];
	read_text(cgroup, file, text, sizeof text);
	const char *at = strstr(text, key);
	return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

/* proc(5): after the name in parentheses come fields 3 on; 14 and 15 are CPU time in ticks, 24 is resident pages. */
static int read_process(int proc, const char *pid, uint64_t told[4])
{
	char file[32], text[1024];
	unsigned long long user, system, pages;
	snprintf(file, sizeof file, "%.20s/stat", pid);
	read_text(proc, file, text, sizeof text);
	const char *at = strrchr(text, ')');
	if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %*d %*d %*u %*u %llu", &user, &system, &pages) != 3)
		return 0;
	uint64_t tick = 1000000000 / (uint64_t)sysconf(_SC_CLK_TCK);
	told[0] = strtoull(pid, NULL, 10);
	told[1] = user * tick;
	told[2] = system * tick;
	told[3] = pages * (uint64_t)sysconf(_SC_PAGESIZE);
	return 1;
}

/* How many numbers it wrote. The pids are those of the container: /proc is its own. */
size_t read_usage(int cgroup, uint64_t numbers[USAGE_MAX])
{
	static const char *const wanted[][2] = {
		{ "cpu.stat", "usage_usec " },    { "cpu.stat", "system_usec " }, { "cpu.stat", "nr_throttled " },
		{ "cpu.stat", "throttled_usec " }, { "memory.current", "" },      { "memory.max", "" },
		{ "memory.peak", "" },            { "memory.stat", "anon " },       { "memory.stat", "file " },     { "memory.stat", "kernel " },
		{ "memory.swap.current", "" },    { "pids.current", "" },
	};
	size_t count = 0;
	for (; count < sizeof wanted / sizeof *wanted; count++)
		numbers[count] = count_of_group(cgroup, wanted[count][0], wanted[count][1]);
	DIR *proc = opendir("/proc");
	for (struct dirent *entry; proc && count + 4 <= USAGE_MAX && (entry = readdir(proc));)
		if (*entry->d_name >= '1' && *entry->d_name <= '9')
			count += 4 * (size_t)read_process(dirfd(proc), entry->d_name, numbers + count);
	if (proc)
		closedir(proc);
	return count;
}
