/* Init of the guest: frames to processes and back. See agent.h for the frames. */
#define _GNU_SOURCE
#include "agent.h"
#include "channel.h"
#include "usage.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char PORT[] = "/dev/vport0p1";
static int port = -1, cgroup = -1;

static void die(const char *what)
{
	printf("agent: cannot %s: %s\n", what, strerror(errno));
	fflush(stdout);
	reboot(RB_AUTOBOOT); /* QEMU runs with -no-reboot: this ends it */
	_exit(1);
}

/* The host always reads, so this never waits long: what it may not take yet is held back by credit. */
static void write_all(const void *data, size_t length)
{
	for (const char *at = data; length;) {
		ssize_t done = write(port, at, length);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			die("write to the host");
		at += done;
		length -= (size_t)done;
	}
}

void send_frame(int channel, enum kind kind, const void *payload, size_t length)
{
	static unsigned char frame[8 + PAYLOAD_MAX];
	uint32_t size = htole32((uint32_t)length);
	uint16_t number = htole16((uint16_t)channel);
	memcpy(frame, &size, 4);
	memcpy(frame + 4, &number, 2);
	frame[6] = (unsigned char)kind;
	frame[7] = 0;
	if (length)
		memcpy(frame + 8, payload, length);
	write_all(frame, 8 + length);
}

void send_failure(int channel, struct fail failed)
{
	char text[256];
	uint32_t error = htole32((uint32_t)failed.error);
	memcpy(text, &error, 4);
	int length = snprintf(text + 4, sizeof text - 4, "%s", failed.what);
	send_frame(channel, FAILED, text, 4 + (size_t)(length < 0 ? 0 : length < 251 ? length : 251));
}

static void send_usage(int channel)
{
	static uint64_t told[USAGE_MAX];
	size_t count = read_usage(cgroup, told);
	for (size_t i = 0; i < count; i++)
		told[i] = htole64(told[i]);
	send_frame(channel, PONG, told, count * sizeof *told);
}

int out_of_memory(void)
{
	return count_of_group(cgroup, "memory.events", "oom_kill ") > 0;
}

static void answer(int number, struct fail failed)
{
	if (failed.what)
		send_failure(number, failed);
	else
		send_frame(number, DONE, NULL, 0);
}

static void obey(int number, int kind, const char *payload, size_t length)
{
	struct channel *channel = find_channel(number);
	switch (kind) {
	case SETUP: answer(number, make_root(payload, length, &cgroup)); break;
	case CHANGE: answer(number, apply_fields(payload, length, cgroup)); break;
	case START: start(number, payload, length, cgroup); break;
	case PING: send_usage(number); break;
	case CLOSE:
		if (channel)
			abandon(channel);
		break;
	case INPUT:
		if (channel)
			take_input(channel, payload, length);
		break;
	case SIGNAL:
		if (channel && length == 4 && !channel->exited)
			kill(channel->pid, (int)le32toh(*(const uint32_t *)payload));
		break;
	case RESIZE:
		if (channel && length == 4)
			resize(channel, le16toh(((const uint16_t *)payload)[0]), le16toh(((const uint16_t *)payload)[1]));
		break;
	case CREDIT:
		if (channel && length == 8)
			give_credit(channel, le32toh(((const uint32_t *)payload)[0]), le32toh(((const uint32_t *)payload)[1]));
		break;
	}
}

/* Takes what the port has, and obeys every frame that is whole. */
static void listen_to_host(void)
{
	static _Alignas(8) char frame[8 + PAYLOAD_MAX + 1];
	static size_t have;
	size_t want = have < 8 ? 8 : 8 + le32toh(*(uint32_t *)frame);
	ssize_t got = read(port, frame + have, want - have);
	if (got < 0 && errno == EINTR)
		return;
	if (got <= 0)
		die("read from the host");
	have += (size_t)got;
	if (have < 8)
		return;
	uint32_t length = le32toh(*(uint32_t *)frame);
	if (length > PAYLOAD_MAX)
		errno = EPROTO, die("follow the host");
	if (have < 8 + length)
		return;
	have = 0;
	frame[8 + length] = 0;
	obey(le16toh(*(uint16_t *)(frame + 4)), frame[6], frame + 8, length);
}

static void reap(int signals)
{
	struct signalfd_siginfo ignored;
	int status;
	pid_t pid;
	if (read(signals, &ignored, sizeof ignored) < 0)
		die("read a signal");
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		note_exit(pid, status);
}

static void serve(int signals)
{
	static struct pollfd fds[2 + 3 * CHANNELS];
	for (;;) {
		fds[0] = (struct pollfd){ port, POLLIN, 0 };
		fds[1] = (struct pollfd){ signals, POLLIN, 0 };
		int count = 2 + watch_channels(fds + 2);
		if (poll(fds, (nfds_t)count, -1) < 0 && errno != EINTR)
			die("poll");
		if (fds[1].revents)
			reap(signals);
		if (fds[0].revents)
			listen_to_host();
		move_data(fds + 2);
	}
}

/* The port appears once the driver and the host have agreed on it. */
static void open_port(void)
{
	char event[4096];
	int watch = inotify_init1(IN_CLOEXEC);
	if (watch < 0 || inotify_add_watch(watch, "/dev", IN_CREATE) < 0)
		die("watch /dev");
	while ((port = open(PORT, O_RDWR | O_CLOEXEC)) < 0)
		if (read(watch, event, sizeof event) < 0)
			die("wait for the host's port");
	close(watch);
}

static int signal_fd(void)
{
	sigset_t child;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	return signalfd(-1, &child, SFD_CLOEXEC);
}

/* The frequency of the time stamp counter, which an emulated guest shares and, on a busy host, measures wrong and then hangs.
 * Two readings of each clock a fifth of a second apart; of several at each end the one that took least counts.
 */
static uint64_t read_clocks(uint64_t *nanoseconds)
{
	uint64_t best = UINT64_MAX, counter = 0;
	for (int i = 0; i < 100; i++) {
		struct timespec now;
		uint64_t before = __builtin_ia32_rdtsc();
		clock_gettime(CLOCK_MONOTONIC_RAW, &now);
		uint64_t took = __builtin_ia32_rdtsc() - before;
		if (took < best) {
			best = took;
			counter = before + took / 2;
			*nanoseconds = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
		}
	}
	return counter;
}

static int print_tsc_khz(void)
{
	uint64_t began, ended, from = read_clocks(&began);
	nanosleep(&(struct timespec){ .tv_nsec = 200000000 }, NULL);
	uint64_t to = read_clocks(&ended);
	printf("%llu\n", (unsigned long long)((to - from) * 1000000 / (ended - began)));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--tsc-khz"))
		return print_tsc_khz(); /* on the host */
	struct utsname system;
	int signals = signal_fd();
	umask(0);
	signal(SIGPIPE, SIG_IGN);
	if (mount("dev", "/dev", "devtmpfs", MS_NOSUID, NULL) && errno != EBUSY)
		die("mount /dev");
	struct fail failed = load_modules("boot");
	if (failed.what)
		errno = failed.error, die(failed.what);
	open_port();
	uname(&system);
	send_frame(0, READY, system.release, strlen(system.release));
	serve(signals);
}
