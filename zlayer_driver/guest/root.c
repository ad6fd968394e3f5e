/* What a container finds: its root, made of the image's block device and memory, the host's shares, a network, a control group. */
#define _GNU_SOURCE
#include "agent.h"
#include "network.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

const char *next_field(const char *payload, size_t length, size_t *at)
{
	const char *field = payload + *at;
	const char *end = *at < length ? memchr(field, 0, length - *at) : NULL;
	if (!end || end == field)
		return NULL;
	*at = (size_t)(end - payload) + 1;
	return field;
}

int make_directories(const char *path)
{
	char part[4096];
	if (strlen(path) >= sizeof part)
		return errno = ENAMETOOLONG, -1;
	for (size_t i = 1; path[i - 1]; i++)
		if (path[i] == '/' || !path[i]) {
			memcpy(part, path, i);
			part[i] = 0;
			if (mkdir(part, 0755) && errno != EEXIST)
				return -1;
		}
	return 0;
}

int write_file(int directory, const char *path, const char *text)
{
	int fd = openat(directory, path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC, 0644);
	if (fd < 0)
		return -1;
	ssize_t want = (ssize_t)strlen(text), done = write(fd, text, (size_t)want);
	close(fd);
	return done == want ? 0 : -1;
}

static struct fail make_devices(void)
{
	static const struct { const char *path; unsigned major, minor; } nodes[] = {
		{ "/root/dev/null", 1, 3 }, { "/root/dev/zero", 1, 5 },   { "/root/dev/full", 1, 7 },
		{ "/root/dev/tty", 5, 0 },  { "/root/dev/random", 1, 8 }, { "/root/dev/urandom", 1, 9 },
	};
	static const char *const links[][2] = {
		{ "pts/ptmx", "/root/dev/ptmx" },          { "/proc/self/fd", "/root/dev/fd" },
		{ "/proc/self/fd/0", "/root/dev/stdin" },  { "/proc/self/fd/1", "/root/dev/stdout" },
		{ "/proc/self/fd/2", "/root/dev/stderr" },
	};
	if (mount("tmpfs", "/root/dev", "tmpfs", MS_NOSUID, "mode=755,size=64m"))
		return FAIL("mount /dev");
	for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
		if (mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)))
			return FAIL("make a device node");
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		if (symlink(links[i][0], links[i][1]))
			return FAIL("make a link in /dev");
	mkdir("/root/dev/pts", 0755);
	mkdir("/root/dev/shm", 0755);
	mkdir("/root/dev/mqueue", 0755);
	if (mount("devpts", "/root/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"))
		return FAIL("mount /dev/pts");
	if (mount("shm", "/root/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=64m"))
		return FAIL("mount /dev/shm");
	if (mount("mqueue", "/root/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		return FAIL("mount /dev/mqueue");
	return OK;
}

static struct fail mount_root(void)
{
	static const char *const points[] = { "/root/dev", "/root/proc", "/root/sys", "/root/etc" };
	if (mount("/dev/vda", "/lower", "erofs", MS_RDONLY, NULL))
		return FAIL("mount the image's block device");
	if (mount("tmpfs", "/rw", "tmpfs", 0, "mode=755") || mkdir("/rw/upper", 0755) || mkdir("/rw/work", 0700))
		return FAIL("mount the writable layer");
	if (mount("overlay", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work"))
		return FAIL("mount the root file system");
	for (size_t i = 0; i < sizeof points / sizeof *points; i++)
		if (mkdir(points[i], 0755) && errno != EEXIST)
			return FAIL("make a mount point");
	if (mount("sysfs", "/root/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		return FAIL("mount /sys");
	return make_devices();
}

/* The kernel's root cannot be pivoted away; the container's is moved over it. */
static struct fail switch_root(void)
{
	if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		return FAIL("switch to the root file system");
	return OK;
}

static struct fail make_cgroup(int *cgroup)
{
	if (mount("cgroup2", "/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		return FAIL("mount the control groups");
	if (write_file(AT_FDCWD, "/cgroup/cgroup.subtree_control", "+memory +pids +cpu +cpuset +io") || mkdir("/cgroup/task", 0755))
		return FAIL("make the control group");
	*cgroup = open("/cgroup/task", O_PATH | O_CLOEXEC);
	return *cgroup < 0 ? FAIL("open the control group") : OK;
}

/* `text` is a path, then a newline and the content; what the image has there is replaced, a link by a file. */
static int place_file(const char *text)
{
	const char *end = strchr(text, '\n');
	char path[256];
	if (!end || (size_t)(end - text) >= sizeof path)
		return errno = EINVAL, -1;
	memcpy(path, text, (size_t)(end - text));
	path[end - text] = 0;
	unlink(path);
	return write_file(AT_FDCWD, path, end + 1);
}

/* `text` is "options target". */
static int mount_tmpfs(const char *text)
{
	char options[64];
	const char *target = strchr(text, ' ');
	if (!target || (size_t)(target - text) >= sizeof options)
		return errno = EINVAL, -1;
	memcpy(options, text, (size_t)(target - text));
	options[target - text] = 0;
	unsigned long flags = MS_NOSUID | MS_NODEV | (strncmp(options, "ro", 2) ? 0 : MS_RDONLY);
	return make_directories(target + 1) || mount("tmpfs", target + 1, "tmpfs", flags, options + 3);
}

struct share {
	int fd;
	const char *target;
};

/* `text` is "ro|rw number target": the entry `number` of the host's share. Taken while the initramfs can still be seen. */
static int take_share(const char *text, struct share *share)
{
	char path[32] = "/share/";
	const char *target = strchr(text + 3, ' ');
	if (!target || (size_t)(target - text) > 12)
		return errno = EINVAL, -1;
	memcpy(path + 7, text + 3, (size_t)(target - text) - 3);
	share->target = target + 1;
	share->fd = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
	struct mount_attr attributes = { .attr_set = MOUNT_ATTR_NODEV | (text[1] == 'o' ? MOUNT_ATTR_RDONLY : 0) };
	return share->fd < 0 || syscall(SYS_mount_setattr, share->fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes, sizeof attributes);
}

/* A file needs a file to be mounted on, a directory a directory. */
static int place_share(const struct share *share)
{
	struct stat found;
	if (fstat(share->fd, &found))
		return -1;
	if (S_ISDIR(found.st_mode)) {
		if (make_directories(share->target))
			return -1;
	} else {
		char parent[4096];
		const char *slash = strrchr(share->target, '/');
		size_t length = slash ? (size_t)(slash - share->target) : 0;
		if (!slash || length >= sizeof parent)
			return errno = EINVAL, -1;
		memcpy(parent, share->target, length);
		parent[length] = 0;
		if (length && make_directories(parent))
			return -1;
		int fd = open(share->target, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0644);
		close(fd);
	}
	int failed = (int)syscall(SYS_move_mount, share->fd, "", AT_FDCWD, share->target, MOVE_MOUNT_F_EMPTY_PATH);
	close(share->fd);
	return failed;
}

static struct fail apply(const char *field, int cgroup)
{
	switch (*field) {
	case 'h': return sethostname(field + 1, strlen(field + 1)) ? FAIL("set the host name") : OK;
	case 'm': return write_file(cgroup, "memory.max", field + 1) ? FAIL("limit memory") : OK;
	case 'p': return write_file(cgroup, "pids.max", field + 1) ? FAIL("limit processes") : OK;
	case 'c': return write_file(cgroup, "cpu.max", field + 1) ? FAIL("limit CPU time") : OK;
	case 'z': return write_file(cgroup, "cgroup.freeze", field + 1) ? FAIL("freeze or thaw") : OK;
	case 'n': return set_network(field + 1) ? FAIL("set up a network interface") : OK;
	case 'g': return add_route(field + 1) ? FAIL("add a route") : OK;
	case 'w': return make_tunnel(field + 1);
	case 'q': return add_peer(field + 1) ? FAIL("add a peer to the tunnel") : OK;
	case 'f': return place_file(field + 1) ? FAIL("write a file in /etc") : OK;
	case 't': return mount_tmpfs(field + 1) ? FAIL("mount a tmpfs") : OK;
	default: return OK;
	}
}

/* Fields that are done once the container's root is the root; others are passed over. */
struct fail apply_fields(const char *payload, size_t length, int cgroup)
{
	struct fail failed = OK;
	const char *field;
	for (size_t at = 0; !failed.what && (field = next_field(payload, length, &at));)
		failed = apply(field, cgroup);
	return failed;
}

struct fail make_root(const char *payload, size_t length, int *cgroup)
{
	enum { SHARES_MAX = 256 };
	static struct share shares[SHARES_MAX];
	int count = 0, read_only = 0;
	struct fail failed = mount_root();
	if (!failed.what)
		failed = make_cgroup(cgroup);
	for (size_t at = 0; !failed.what;) {
		const char *field = next_field(payload, length, &at);
		if (!field)
			break;
		if (*field == 'r')
			read_only = 1;
		if (*field != 'b')
			continue;
		if (!count && mount("zlayer", "/share", "virtiofs", 0, NULL))
			failed = FAIL("mount the host's share");
		else if (count == SHARES_MAX || take_share(field + 1, &shares[count++]))
			failed = FAIL("take a directory of the host's share");
	}
	if (!failed.what)
		failed = switch_root();
	if (!failed.what && loopback_up())
		failed = FAIL("set up the loopback interface");
	if (!failed.what)
		failed = apply_fields(payload, length, *cgroup);
	for (int i = 0; i < count && !failed.what; i++)
		if (place_share(&shares[i]))
			failed = FAIL(shares[i].target);
	if (!failed.what && read_only && mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL))
		failed = FAIL("make the root file system read-only");
	return failed;
}
