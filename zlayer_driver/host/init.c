/* init -- COMMAND ARG…: process 1 of a container. Runs the command, passes every signal on to it, reaps whatever is left to it, and ends as
 * the command does, with 128 + n for one that died of signal n.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

static void run(char **argv, const sigset_t *mask)
{
	sigprocmask(SIG_SETMASK, mask, NULL);
	execvp(*argv, argv);
	int missing = errno == ENOENT;
	fprintf(stderr, "cannot execute %s: %s\n", *argv, strerror(errno));
	_exit(missing ? NOT_FOUND : NOT_EXECUTABLE);
}

int main(int argc, char **argv)
{
	sigset_t all, before;
	int number, status;
	if (argc < 3)
		return NOT_EXECUTABLE;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid_t pid, command = fork();
	if (!command)
		run(argv + 2, &before);
	while (command > 0) {
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			if (pid == command)
				return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
		if ((number = sigwaitinfo(&all, NULL)) > 0 && number != SIGCHLD)
			kill(command, number);
	}
	perror("cannot fork");
	return NOT_EXECUTABLE;
}
