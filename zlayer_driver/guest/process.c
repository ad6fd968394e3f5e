/* Starting a process of the container as a START frame describes it. */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WORDS = 8192, GROUPS = 256 };

struct process {
	char *argv[WORDS], *env[WORDS];
	int argc, envc;
	const char *work_dir;
	uid_t uid;
	gid_t gid, groups[GROUPS];
	size_t group_count;
	uint64_t capabilities;
	int tty;
	unsigned short rows, columns;
};

static int parse_user(struct process *p, const char *text)
{
	int at = 0;
	if (sscanf(text, "%u:%u%n", &p->uid, &p->gid, &at) != 2)
		return -1;
	for (const char *more = text + at; *more && p->group_count < GROUPS; p->group_count++) {
		char *end;
		p->groups[p->group_count] = (gid_t)strtoul(more + 1, &end, 10);
		if (end == more + 1)
			return -1;
		more = end;
	}
	return 0;
}

static int parse(struct process *p, const char *payload, size_t length)
{
	const char *field;
	for (size_t at = 0; (field = next_field(payload, length, &at));) {
		char *value = (char *)field + 1;
		int failed = 0;
		switch (*field) {
		case 'a': failed = p->argc == WORDS - 1; p->argv[p->argc++] = value; break;
		case 'e': failed = p->envc == WORDS - 1; p->env[p->envc++] = value; break;
		case 'd': p->work_dir = value; break;
		case 'u': failed = parse_user(p, value); break;
		case 'k': p->capabilities = strtoull(value, NULL, 16); break;
		case 'w': p->tty = sscanf(value, "%hu %hu", &p->rows, &p->columns) == 2; break;
		}
		if (failed)
			return errno = E2BIG, -1;
	}
	p->argv[p->argc] = p->env[p->envc] = NULL;
	return p->argc && p->work_dir ? 0 : (errno = EINVAL, -1);
}

/* Groups before user, user before capabilities: each takes away the right to do the one before it. */
static struct fail become(const struct process *p)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2] = { 0 };
	for (int bit = 0; bit < 64 && prctl(PR_CAPBSET_READ, bit, 0, 0, 0) >= 0; bit++)
		if (!(p->capabilities >> bit & 1) && prctl(PR_CAPBSET_DROP, bit, 0, 0, 0))
			return FAIL("drop a capability");
	if (setgroups(p->group_count, p->groups) || setgid(p->gid) || setuid(p->uid))
		return FAIL("become the user");
	for (int word = 0; word < 2 && !p->uid; word++)
		sets[word].effective = sets[word].permitted = (uint32_t)(p->capabilities >> 32 * word);
	if (syscall(SYS_capset, &header, sets))
		return FAIL("set the capabilities");
	return OK;
}

/* What only the first process of the pid namespace can do. */
static struct fail settle(const struct process *p)
{
	if (unshare(CLONE_NEWCGROUP) || mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		return FAIL("mount /sys/fs/cgroup");
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		return FAIL("mount /proc");
	if (make_directories(p->work_dir))
		return FAIL(p->work_dir);
	return OK;
}

static struct fail attach(const struct process *p, int in, int out, int err)
{
	setsid();
	if (p->tty && ioctl(in, TIOCSCTTY, 0))
		return FAIL("take the terminal");
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		return FAIL("take the standard streams");
	return OK;
}

static struct fail run(struct process *p, int first, int cgroup, const int fds[3])
{
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	umask(022);
	if (write_file(cgroup, "cgroup.procs", "0"))
		return FAIL("enter the control group");
	struct fail failed = first ? settle(p) : OK;
	if (!failed.what)
		failed = attach(p, fds[0], fds[1], fds[2]);
	if (!failed.what)
		failed = become(p);
	if (failed.what)
		return failed;
	if (chdir(p->work_dir))
		return FAIL(p->work_dir);
	environ = p->env;
	execvp(p->argv[0], p->argv);
	return FAIL("execute");
}

/* The streams: `theirs` for the process, the channel's own ends non-blocking. */
static struct fail open_streams(struct channel *c, const struct process *p, int theirs[3])
{
	if (p->tty) {
		struct winsize size = { .ws_row = p->rows, .ws_col = p->columns };
		int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), zero = 0;
		if (master < 0 || ioctl(master, TIOCSPTLCK, &zero) || ioctl(master, TIOCSWINSZ, &size))
			return FAIL("open a terminal");
		c->out[0] = master;
		c->in = dup(master);
		theirs[0] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
		theirs[1] = dup(theirs[0]);
		theirs[2] = dup(theirs[0]);
		return theirs[2] < 0 ? FAIL("open a terminal") : OK;
	}
	int pair[2];
	for (int i = 0; i < 3; i++) {
		if (pipe2(pair, O_CLOEXEC))
			return FAIL("make a pipe");
		theirs[i] = pair[i ? 1 : 0];
		*(i ? &c->out[i - 1] : &c->in) = pair[i ? 0 : 1];
		fcntl(pair[i ? 0 : 1], F_SETFL, O_NONBLOCK);
	}
	return OK;
}

/* Forks; the child's failure comes back through a pipe that a successful exec closes. */
static struct fail spawn(struct channel *c, struct process *p, int cgroup, const int theirs[3])
{
	struct { int error; char what[200]; } told;
	static char what[200];
	int report[2];
	if (pipe2(report, O_CLOEXEC))
		return FAIL("make a pipe");
	c->pid = fork();
	if (c->pid < 0) {
		c->pid = 0;
		return FAIL("fork");
	}
	if (!c->pid) {
		struct fail failed = run(p, c->number == 0, cgroup, theirs);
		told.error = failed.error;
		snprintf(told.what, sizeof told.what, "%s", failed.what);
		_exit(write(report[1], &told, sizeof told) < 0);
	}
	close(report[1]);
	ssize_t got = read(report[0], &told, sizeof told);
	close(report[0]);
	if (got <= 0)
		return OK;
	c->pid = 0; /* it is gone at once, and reaped with the others */
	memcpy(what, told.what, sizeof what);
	what[sizeof what - 1] = 0;
	return (struct fail){ what, told.error };
}

void start(int number, const char *payload, size_t length, int cgroup)
{
	static struct process process;
	struct channel *c = free_channel();
	struct fail failed = OK;
	int theirs[3] = { -1, -1, -1 };
	if (!c)
		return send_failure(number, (struct fail){ "start more commands at once", EAGAIN });
	memset(&process, 0, sizeof process);
	*c = (struct channel){ .number = number, .in = -1, .out = { -1, -1 }, .credit = { WINDOW, WINDOW } };
	c->input = malloc(WINDOW);
	if (!c->input || parse(&process, payload, length))
		failed = FAIL("read the command");
	c->tty = process.tty;
	if (!failed.what && !number && unshare(CLONE_NEWPID))
		failed = FAIL("make the pid namespace"); /* of all children from now on; the first is its init */
	if (!failed.what)
		failed = open_streams(c, &process, theirs);
	if (!failed.what)
		failed = spawn(c, &process, cgroup, theirs);
	for (int i = 0; i < 3; i++)
		if (theirs[i] >= 0)
			close(theirs[i]);
	if (!failed.what)
		return send_frame(number, DONE, NULL, 0);
	for (int i = 0; i < 3; i++) {
		int fd = i ? c->out[i - 1] : c->in;
		if (fd >= 0)
			close(fd);
	}
	free(c->input);
	c->pid = 0;
	send_failure(number, failed);
}
