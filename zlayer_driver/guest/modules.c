/* Kernel modules, from the initramfs, which the agent still holds when the container's root hides it. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Those that the file `list` names, in its order. */
struct fail load_modules(const char *list)
{
	static int directory = -1;
	char name[256];
	if (directory < 0)
		directory = open("/modules", O_PATH | O_CLOEXEC);
	int names = openat(directory, list, O_RDONLY | O_CLOEXEC);
	FILE *order = names < 0 ? NULL : fdopen(names, "r");
	if (!order)
		return FAIL("read a list of modules");
	struct fail failed = OK;
	while (!failed.what && fgets(name, sizeof name, order)) {
		name[strcspn(name, "\n")] = 0;
		int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			failed = FAIL("load a module");
		if (fd >= 0)
			close(fd);
	}
	fclose(order);
	return failed;
}
