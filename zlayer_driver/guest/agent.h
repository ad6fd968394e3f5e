/* The guest agent: init of the VM. It makes the container's root, and runs the container's process and further commands in it.
 *
 * All talk with the host is frames on one virtio-serial port, little-endian; `zlayer_driver/guest/frames.py` is the host's side:
 *
 *     u32 length of the payload   u16 channel   u8 kind   u8 0   payload
 *
 * Channel 0 is the container's own process; the host numbers the others. Payloads of SETUP, CHANGE and START are fields, each a letter and
 * a text that ends with NUL. The host is trusted; what the agent reads from the container's files and streams is not.
 */
#ifndef ZLAYER_AGENT_H
#define ZLAYER_AGENT_H

#include <stddef.h>
#include <stdint.h>

enum kind {
	SETUP = 1, START, INPUT, SIGNAL, RESIZE, CREDIT, PING, CLOSE, CHANGE, /* to the guest */
	READY = 16, DONE, FAILED, STDOUT, STDERR, EXIT, PONG,         /* to the host */
};

enum { PAYLOAD_MAX = 1 << 16, WINDOW = 1 << 18 };

struct fail {            /* what could not be done, and errno; all of the guest's preparations give one */
	const char *what; /* NULL: nothing failed */
	int error;
};

#define OK ((struct fail){ NULL, 0 })
#define FAIL(doing) ((struct fail){ (doing), errno })

/* The next field of a payload, its letter first, or NULL at the end; `at` moves past it. */
const char *next_field(const char *payload, size_t length, size_t *at);

struct fail load_modules(const char *list);
struct fail make_root(const char *payload, size_t length, int *cgroup);
struct fail apply_fields(const char *payload, size_t length, int cgroup);
int make_directories(const char *path);
int write_file(int directory, const char *path, const char *text);

#endif
