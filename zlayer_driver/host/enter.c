/* enter ORDER: runs a command in a container that runs, as its runtime's `exec` would, which loads a Go program three times for it and
 * compiles the container's filter of system calls anew.
 *
 * ORDER is the fd of a file of strings, each ended by a NUL, numbers in decimal (`enter.py` writes it). They are read as the steps below need
 * them: the fds for faults and of the container's init; what is to be written to oom_score_adj; the namespaces, as of setns(2); the group of the
 * v2 tree; then, each list led by its length, the files of the v1 groups; and so on. This process joins the namespaces, a child of it
 * becomes the command, and its end is ours, with 128 + n for one that died of signal n.
 *
 * Until the child has given its rights away it is a process of the host in the container's sight: it cannot be traced (it is not dumpable), its
 * program is a sealed file in memory, and all its fds close when it executes the command. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FAULT = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

static char *next, *end;
static int faults = -1;

static void tell(int code, const char *what)
{
	dprintf(faults, "%d %s: %s", code, what, strerror(errno));
	_exit(code);
}

/* `done` is what a system call gave. */
static int must(int done, const char *what)
{
	if (done < 0)
		tell(FAULT, what);
	return done;
}

static char *text(void)
{
	char *start = next, *stop = memchr(start, 0, end - start);
	if (!stop) {
		errno = EBADMSG;
		tell(FAULT, "read the order");
	}
	next = stop + 1;
	return start;
}

static unsigned long long number(void)
{
	return strtoull(text(), NULL, 10);
}

static char **list(void)
{
	unsigned long long count = number();
	char **all = count <= (unsigned long long)(end - next) ? calloc(count + 1, sizeof *all) : NULL;
	must(all ? 0 : -1, "read the order");
	for (unsigned long long i = 0; i < count; i++)
		all[i] = text();
	return all;
}

static void read_order(int fd)
{
	struct stat about;
	must(fstat(fd, &about), "read the order");
	next = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	must(next == MAP_FAILED ? -1 : 0, "read the order");
	end = next + about.st_size;
	if (syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC)) /* before Linux 5.11 */
		for (int each = STDERR_FILENO + 1; each < getdtablesize(); each++)
			fcntl(each, F_SETFD, FD_CLOEXEC);
}

static void write_file(const char *path, const char *value)
{
	int fd = must(open(path, O_WRONLY | O_CLOEXEC), path);
	must(write(fd, value, strlen(value)), path);
	close(fd);
}

/* Gives 0 in a child that is in the group `tree` of v2 from its first instant, which waits for nobody as a later move would. */
static pid_t fork_into(int tree)
{
	struct clone_args how = {.exit_signal = SIGCHLD, .flags = tree >= 0 ? CLONE_INTO_CGROUP : 0, .cgroup = tree >= 0 ? tree : 0};
	pid_t child = must(syscall(SYS_clone3, &how, sizeof how), "create a process in the container's control group");
	if (!child && tree >= 0)
		close(tree);
	return child;
}

static int ending(pid_t child)
{
	int status;
	while (waitpid(child, &status, 0) < 0)
		must(errno == EINTR ? 0 : -1, "wait for the command");
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* A thread that moves itself by v1's `tasks` does not wait until all CPUs know of it. The files are open since before the namespaces. */
static void move(int *groups)
{
	for (; *groups >= 0; groups++) {
		must(write(*groups, "0", 1), "enter the container's control groups");
		close(*groups);
	}
}

static int *open_all(char **paths)
{
	int count = 0;
	while (paths[count])
		count++;
	int *fds = calloc(count + 1, sizeof *fds);
	must(fds ? 0 : -1, "read the order");
	for (int i = 0; i < count; i++)
		fds[i] = must(open(paths[i], O_WRONLY | O_CLOEXEC), paths[i]);
	fds[count] = -1;
	return fds;
}

/* By the kernel's own call (its struct sigaction is four words): the C library keeps two signals to itself, which may be ignored too. */
static void heed_signals(void)
{
	static const unsigned long standard[4];
	sigset_t none;
	sigemptyset(&none);
	for (int each = 1; each < NSIG; each++)
		syscall(SYS_rt_sigaction, each, standard, NULL, sizeof(uint64_t));
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void hand_over(int terminal, int connection)
{
	char byte = 0;
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof terminal)];
	} control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof terminal)}};
	struct iovec data = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	memcpy(CMSG_DATA(&control.header), &terminal, sizeof terminal);
	must(sendmsg(connection, &message, 0), "hand the terminal over");
}

/* A terminal of the container's own, so that programs find its name; what lies at that path may be of the container's making. */
static void take_terminal(int connection)
{
	struct statfs about;
	int unlocked = 0, terminal = must(open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), "open a terminal");
	must(fstatfs(terminal, &about), "open a terminal");
	errno = ENOTTY;
	must(about.f_type == DEVPTS_SUPER_MAGIC ? 0 : -1, "open a terminal");
	must(ioctl(terminal, TIOCSPTLCK, &unlocked), "open a terminal");
	int side = must(ioctl(terminal, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), "open a terminal");
	hand_over(terminal, connection);
	must(ioctl(side, TIOCSCTTY, 0), "open a terminal");
	for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; stream++)
		must(dup2(side, stream), "open a terminal");
	close(terminal);
}

/* The host's own /dev/null is not for the container, which could change its mode; input that ends at once reads the same. */
static void take_streams(uid_t user)
{
	struct stat about;
	int empty[2];
	must(fstat(STDIN_FILENO, &about), "take the command's input");
	if (!S_ISFIFO(about.st_mode) && !isatty(STDIN_FILENO)) {
		must(pipe2(empty, O_CLOEXEC), "take the command's input");
		must(dup2(empty[0], STDIN_FILENO), "take the command's input");
	}
	for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; stream++)
		if (fchown(stream, user, -1) < 0) /* so that /dev/stdout can be opened; a matter of convenience */
			continue;
}

static void limit(char **limits)
{
	for (; *limits; limits += 3) {
		struct rlimit value = {.rlim_cur = strtoull(limits[1], NULL, 10), .rlim_max = strtoull(limits[2], NULL, 10)};
		must(setrlimit(atoi(limits[0]), &value), "set a limit");
	}
}

static uint64_t capabilities(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[2] = {0};
	must(syscall(SYS_capget, &head, sets), "read capabilities");
	return sets[0].permitted | (uint64_t)sets[1].permitted << 32;
}

static void hold(uint64_t set)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	uint32_t low = set, high = set >> 32;
	struct __user_cap_data_struct sets[2] = {{.effective = low, .permitted = low}, {.effective = high, .permitted = high}};
	must(syscall(SYS_capset, &head, sets), "set capabilities");
}

static void become(uid_t user, gid_t group, char **others, uint64_t held)
{
	gid_t groups[NGROUPS_MAX];
	size_t count = 0;
	for (; others[count] && count < NGROUPS_MAX; count++)
		groups[count] = strtoul(others[count], NULL, 10);
	must(setgroups(count, groups), "set groups");
	for (int each = 0; prctl(PR_CAPBSET_READ, each) >= 0; each++)
		if (!(held >> each & 1))
			must(prctl(PR_CAPBSET_DROP, each), "drop a capability");
	uint64_t all = capabilities();
	must(prctl(PR_SET_KEEPCAPS, 1), "keep capabilities");
	must(setresgid(group, group, group), "set the group");
	must(setresuid(user, user, user), "set the user");
	hold(all); /* the filter may need them */
}

/* The rest of the order is the filter, as of seccomp(2); none if nothing is left. */
static void fence(unsigned int flags)
{
	size_t length = (end - next) / sizeof(struct sock_filter);
	struct sock_fprog program = {.len = length, .filter = memcpy(malloc(end - next + 1), next, end - next)};
	if (length)
		must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program), "load the filter of system calls");
}

static const char *search_path(char **environment)
{
	for (; *environment; environment++)
		if (!strncmp(*environment, "PATH=", 5))
			return *environment + 5;
	return "";
}

/* As a shell looks for it. */
static void execute(char **arguments, char **environment)
{
	char file[PATH_MAX];
	const char *from = search_path(environment), *to;
	int fault = ENOENT;
	if (strchr(*arguments, '/')) {
		execve(*arguments, arguments, environment);
		fault = errno;
		from = NULL;
	}
	for (; from; from = *to ? to + 1 : NULL) {
		to = strchrnul(from, ':');
		int length = snprintf(file, sizeof file, "%.*s/%s", to > from ? (int)(to - from) : 1, to > from ? from : ".", *arguments);
		if (length >= (int)sizeof file)
			continue;
		execve(file, arguments, environment);
		if (errno != ENOENT && errno != ENOTDIR)
			fault = errno;
	}
	errno = fault;
	tell(fault == ENOENT || fault == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE, *arguments);
}

static void become_command(int *groups)
{
	char here[PATH_MAX];
	move(groups);
	heed_signals();
	umask(022);
	must(setsid(), "begin a session");
	syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL); /* the host's is not for the container; a kernel may have none */
	int connection = atoi(text());
	if (connection >= 0)
		take_terminal(connection);
	uid_t user = number();
	gid_t group = number();
	char **others = list();
	uint64_t held = number();
	take_streams(user);
	limit(list());
	const char *directory = text();
	must(chdir(directory), directory);
	must(syscall(SYS_getcwd, here, sizeof here), directory);
	errno = ENOENT;
	must(*here == '/' ? 0 : -1, directory); /* else it lies outside of the container */
	become(user, group, others, held);
	int renounced = number();
	if (renounced) {
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "renounce new rights");
		hold(held);
	}
	char **arguments = list(), **environment = list();
	must(prctl(PR_SET_PDEATHSIG, SIGKILL), "tie the command to its caller");
	fence(number());
	if (!renounced) /* only now: loading the filter took a right */
		hold(held);
	execute(arguments, environment);
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return FAULT;
	read_order(atoi(argv[1]));
	faults = number();
	int init = number();
	const char *score = text();
	must(prctl(PR_SET_DUMPABLE, 0), "become untraceable");
	if (*score)
		write_file("/proc/self/oom_score_adj", score);
	int namespaces = number();
	const char *tree = text();
	int *groups = open_all(list());
	int tree_fd = *tree ? must(open(tree, O_PATH | O_DIRECTORY | O_CLOEXEC), tree) : -1;
	must(namespaces ? setns(init, namespaces) : 0, "enter the container's namespaces");
	pid_t child = fork_into(tree_fd);
	if (child)
		return ending(child);
	close(init);
	become_command(groups);
}
