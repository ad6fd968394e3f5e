/* Tells without a look at any file that nothing was written in some folders: one inotify instance for the process, while handles are open.

   `watch_count` stands still only if no file in a watched folder was created, removed, renamed or written to since the last call. SQLite and
   redb write with write(2), so that a commit is counted before its writer is told that it is done. A process that cannot watch counts on
   with each call: its handles then look at the files each time. */
#ifndef ZLAYER_WATCH_H
#define ZLAYER_WATCH_H

#include <pthread.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/inotify.h>
#include <sys/ioctl.h>
#endif

static int watch_fd = -1;
static unsigned long watch_handles, watch_events, watch_forks;

static void watch_end(void) {
    if (watch_fd >= 0) close(watch_fd);
    watch_fd = -1;
    watch_events++;
}

/* A child gets its own instance: the parent's would share events with it. */
static void watch_forked(void) {
    watch_end();
    watch_forks++;
}

static void watch_handle_opened(void) {
    static int ready;
    if (!ready) ready = pthread_atfork(NULL, NULL, watch_forked) == 0;
    watch_handles++;
}

static void watch_handle_closed(void) {
    if (--watch_handles == 0) watch_end();
}

/* Whether changes in `folder` are counted from now on. */
static int watch_folder(const char *folder) {
#ifdef __linux__
    const uint32_t mask = IN_MODIFY | IN_ATTRIB | IN_CREATE | IN_DELETE | IN_MOVE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;
    if (watch_fd < 0) watch_fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    return watch_fd >= 0 && inotify_add_watch(watch_fd, folder, mask) >= 0;
#else
    (void)folder;
    return 0;
#endif
}

static unsigned long watch_count(void) {
#ifdef __linux__
    char events[4096];
    int waiting = 0;
    if (watch_fd >= 0 && ioctl(watch_fd, FIONREAD, &waiting) == 0 && waiting == 0) return watch_events;
    while (watch_fd >= 0 && read(watch_fd, events, sizeof(events)) > 0) continue;
#endif
    return ++watch_events;
}

/* Milliseconds of a clock that costs no system call. */
static long long watch_clock_ms(void) {
    struct timespec now;
#ifdef CLOCK_MONOTONIC_COARSE
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}
#endif
