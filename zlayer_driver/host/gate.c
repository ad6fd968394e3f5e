/* gate FIFO INIT ID: lets the container ID that `runc create` made run, as `runc start` would without loading a Go program for it.
 *
 * The container's init, whose pidfd is the fd INIT, opens FIFO for writing, which blocks until there is a reader; it writes a byte and executes
 * the container's program. FIFO's name is the mark of a container that never ran, so it goes only after that. This is a program of its
 * own because a reader that dies between the open and the write kills the container: it must outlive the driver.
 *
 * Exits with 0 when the container has passed, 1 when it ended before, 2 when nothing waits at FIFO. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

enum { PASSED, ENDED, NO_GATE };

/* Whether init passes; it closes its end when it executes the program. */
static int passes(int gate, int init)
{
	struct pollfd either[] = {{.fd = gate, .events = POLLIN}, {.fd = init, .events = POLLIN}};
	char byte;
	int seen = 0;
	for (;;) {
		if (poll(either, 2, -1) < 0 && errno != EINTR)
			return seen;
		ssize_t count = read(gate, &byte, 1); /* what init wrote before it ended counts */
		if (count > 0)
			seen = 1;
		else if ((count == 0 && seen) || either[1].revents)
			return seen;
	}
}

int main(int argc, char **argv)
{
	int gate = argc == 4 ? open(argv[1], O_RDONLY | O_NONBLOCK | O_CLOEXEC) : -1;
	if (gate < 0)
		return NO_GATE;
	if (!passes(gate, atoi(argv[2])))
		return ENDED;
	return unlink(argv[1]) ? NO_GATE : PASSED;
}
