/* What goes on on the channels: input to processes, their output to the host within its credit, and how they ended. */
#define _GNU_SOURCE
#include "channel.h"

#include <endian.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

static struct channel channels[CHANNELS];

struct channel *find_channel(int number)
{
	for (struct channel *c = channels; c < channels + CHANNELS; c++)
		if (c->pid && c->number == number)
			return c;
	return NULL;
}

struct channel *free_channel(void)
{
	for (struct channel *c = channels; c < channels + CHANNELS; c++)
		if (!c->pid)
			return c;
	return NULL;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void close_input(struct channel *c)
{
	close_fd(&c->in);
	c->pending = 0;
}

/* Channel 0 is over when the last holder of its output is, which the end of its pid namespace hastens; others with their process. */
static void finish(struct channel *c)
{
	if (!c->exited || c->out[0] >= 0 || c->out[1] >= 0)
		return;
	int signal = WIFSIGNALED(c->status) ? WTERMSIG(c->status) : 0;
	uint32_t told[] = { htole32((uint32_t)(signal ? 128 + signal : WEXITSTATUS(c->status))), htole32((uint32_t)signal),
			    htole32((uint32_t)out_of_memory()) };
	if (c->number == 0)
		sync(); /* what is mapped and not written yet reaches the host's directories */
	close_input(c);
	free(c->input);
	c->input = NULL;
	c->pid = 0;
	send_frame(c->number, EXIT, told, sizeof told);
}

/* Whether there may be more at once. */
static int read_output(struct channel *c, int stream)
{
	static char data[PAYLOAD_MAX / 2];
	size_t most = c->credit[stream] < sizeof data ? c->credit[stream] : sizeof data;
	if (c->out[stream] < 0 || !most)
		return 0;
	ssize_t got = read(c->out[stream], data, most);
	if (got > 0) {
		c->credit[stream] -= (uint32_t)got;
		send_frame(c->number, stream ? STDERR : STDOUT, data, (size_t)got);
	} else if (got == 0 || (errno != EAGAIN && errno != EINTR) || (errno == EAGAIN && c->exited && c->number)) {
		close_fd(&c->out[stream]);
	}
	return got > 0;
}

static void write_input(struct channel *c)
{
	if (c->in >= 0 && c->pending) {
		ssize_t done = write(c->in, c->input + c->taken, c->pending);
		if (done < 0 && errno != EAGAIN && errno != EINTR) {
			close_input(c);
		} else if (done > 0) {
			uint32_t credit = htole32((uint32_t)done);
			c->taken += (size_t)done;
			c->pending -= (size_t)done;
			send_frame(c->number, CREDIT, &credit, sizeof credit);
		}
	}
	if (c->input_ends && !c->pending && !c->tty)
		close_input(c);
}

void take_input(struct channel *c, const char *data, size_t length)
{
	if (!length) {
		c->input_ends = 1;
	} else if (c->in >= 0 && c->pending + length <= WINDOW) {
		memmove(c->input, c->input + c->taken, c->pending);
		memcpy(c->input + c->pending, data, length);
		c->taken = 0;
		c->pending += length;
	}
	write_input(c);
}

void give_credit(struct channel *c, uint32_t stream, uint32_t bytes)
{
	if (stream < 2 && bytes <= WINDOW - c->credit[stream])
		c->credit[stream] += bytes;
}

void resize(struct channel *c, unsigned rows, unsigned columns)
{
	struct winsize size = { .ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns };
	if (c->tty && c->out[0] >= 0)
		ioctl(c->out[0], TIOCSWINSZ, &size);
}

/* Nobody listens any more: the process is killed, and what it has still to say is dropped. */
void abandon(struct channel *c)
{
	if (!c->exited)
		kill(c->pid, SIGKILL);
	close_fd(&c->out[0]);
	close_fd(&c->out[1]);
	close_input(c);
	finish(c);
}

void note_exit(pid_t pid, int status)
{
	for (struct channel *c = channels; c < channels + CHANNELS; c++)
		if (c->pid == pid && !c->exited) {
			c->exited = 1;
			c->status = status;
			finish(c);
		}
}

/* Three entries for each slot, so that `move_data` finds them again; a negative fd is one that poll passes over. */
int watch_channels(struct pollfd *fds)
{
	for (struct channel *c = channels; c < channels + CHANNELS; c++) {
		for (int stream = 0; stream < 2; stream++)
			*fds++ = (struct pollfd){ c->pid && c->credit[stream] ? c->out[stream] : -1, POLLIN, 0 };
		*fds++ = (struct pollfd){ c->pid && c->pending ? c->in : -1, POLLOUT, 0 };
	}
	return 3 * CHANNELS;
}

void move_data(const struct pollfd *fds)
{
	for (struct channel *c = channels; c < channels + CHANNELS; c++, fds += 3) {
		if (!c->pid)
			continue;
		for (int stream = 0; stream < 2; stream++)
			if (c->exited && c->number)
				while (read_output(c, stream))
					;
			else if (fds[stream].revents)
				read_output(c, stream);
		if (fds[2].revents)
			write_input(c);
		finish(c);
	}
}
