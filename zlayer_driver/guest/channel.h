/* Processes of the container, each on a channel of its own. */
#ifndef ZLAYER_CHANNEL_H
#define ZLAYER_CHANNEL_H

#include "agent.h"

#include <poll.h>
#include <sys/types.h>

enum { CHANNELS = 64 };

struct channel {
	int number;
	pid_t pid;       /* 0: the slot is free */
	int exited, status;
	int tty;         /* whether `in` and `out[0]` are a terminal's master */
	int in, out[2];  /* -1: closed */
	uint32_t credit[2];
	char *input;     /* WINDOW bytes, of which the process has yet to take `pending` from `taken` on */
	size_t taken, pending;
	int input_ends;
};

void send_frame(int channel, enum kind kind, const void *payload, size_t length);
void send_failure(int channel, struct fail failed);
int out_of_memory(void);

struct channel *find_channel(int number);
struct channel *free_channel(void);
void start(int number, const char *payload, size_t length, int cgroup);

void take_input(struct channel *channel, const char *data, size_t length);
void give_credit(struct channel *channel, uint32_t stream, uint32_t bytes);
void resize(struct channel *channel, unsigned rows, unsigned columns);
void abandon(struct channel *channel);
void note_exit(pid_t pid, int status);
int watch_channels(struct pollfd *fds);
void move_data(const struct pollfd *fds);

#endif
