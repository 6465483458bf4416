/*
 * What the programs of the stack tests share: they do what they are told, as puppet.c
 * does. A command may stand behind others, which then perform it from within a frame
 * of their own kind: "deep 3 thread read 5 1" reads in a thread below three calls.
 *
 * HERE marks the line of a call, with the function's name: tests/live/stacks.py finds
 * the lines by it. No function that is marked may be inlined or end in a jump.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WORDS 24
#define LINE_MAX_ 512
#define NOIPA __attribute__((noinline, noipa))
#define STAY(result) __asm__ volatile("" : "+r"(result)) /* no tail call before it */

struct command {
	const char *name;
	int (*run)(char **words, char *reply); /* 0, or -1 with errno */
};

extern const struct command commands[]; /* each program's own; the last has no name */

static int number(const char *text)
{
	return text ? atoi(text) : 0;
}

static socklen_t address_of(const char *text, int port, struct sockaddr_storage *to)
{
	struct sockaddr_in *four = (struct sockaddr_in *)to;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)to;

	memset(to, 0, sizeof(*to));
	if (strchr(text, ':')) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(port);
		inet_pton(AF_INET6, text, &six->sin6_addr);
		return sizeof(*six);
	}
	four->sin_family = AF_INET;
	four->sin_port = htons(port);
	inet_pton(AF_INET, text, &four->sin_addr);
	return sizeof(*four);
}

static int port_of(const struct sockaddr_storage *address)
{
	return ntohs(((const struct sockaddr_in *)address)->sin_port); /* same place in both */
}

static int local_port(int fd)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);

	getsockname(fd, (struct sockaddr *)&address, &length);
	return port_of(&address);
}

static int bound_to(const char *address_text, int port)
{
	struct sockaddr_storage address;
	socklen_t length = address_of(address_text, port, &address);
	int fd = socket(address.ss_family, SOCK_STREAM, 0);

	return bind(fd, (struct sockaddr *)&address, length) ? -1 : fd;
}

/* cookie FD -> as ss -e prints it, but decimal */
static int do_cookie(char **words, char *reply)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);
	int failed = getsockopt(number(words[1]), SOL_SOCKET, SO_COOKIE, &cookie, &length);

	sprintf(reply, "%llu", (unsigned long long)cookie);
	return failed;
}

static void move(const char *path, int flags, int to)
{
	int fd = open(path, flags);

	if (fd < 0)
		_exit(9);
	dup2(fd, to);
	close(fd);
}

/* fork FIFO-IN FIFO-OUT [PID] -> pid; the child obeys those pipes from now on */
static int do_fork(char **words, char *reply)
{
	pid_t wish = number(words[3]);
	struct clone_args how;

	memset(&how, 0, sizeof(how));
	how.exit_signal = SIGCHLD;
	if (wish) {
		how.set_tid = (uintptr_t)&wish;
		how.set_tid_size = 1;
	}
	pid_t pid = syscall(SYS_clone3, &how, sizeof(how));
	if (pid < 0)
		return -1;
	if (pid == 0) {
		move(words[1], O_RDONLY, 0);
		move(words[2], O_WRONLY, 1);
	}
	sprintf(reply, "%d", pid);
	return 0;
}

NOIPA static int perform(char **words, char *reply)
{
	const struct command *one = commands;

	while (words[0] && one->name && strcmp(one->name, words[0]))
		one++;
	errno = ENOSYS;
	if (!words[0] || !one->name)
		return -1;
	int failed = one->run(words, reply); /* HERE: perform */
	STAY(failed);
	return failed;
}

/* Unbuffered, so that a fork never inherits half a conversation. */
static int read_line(char *line, int size)
{
	int length = 0;

	while (length < size - 1 && read(0, line + length, 1) == 1) {
		if (line[length++] == '\n')
			break;
	}
	line[length] = 0;
	return length;
}

static void split(char *line, char **words)
{
	char *rest = NULL;
	int count = 0;

	memset(words, 0, (WORDS + 1) * sizeof(*words));
	for (char *word = strtok_r(line, " \n", &rest); word && count < WORDS;
	     word = strtok_r(NULL, " \n", &rest))
		words[count++] = word;
}

NOIPA static int obey(void)
{
	char line[LINE_MAX_], reply[LINE_MAX_], answer[LINE_MAX_ + 16], *words[WORDS + 1];

	signal(SIGCHLD, SIG_IGN);
	dprintf(1, "ok %d\n", getpid());
	while (read_line(line, sizeof(line))) {
		reply[0] = 0;
		split(line, words);
		if (perform(words, reply)) /* HERE: obey */
			snprintf(answer, sizeof(answer), "error %d\n", errno);
		else
			snprintf(answer, sizeof(answer), "ok %s\n", reply);
		if (write(1, answer, strlen(answer)) < 0)
			return 1;
	}
	return 0;
}

/* With any argument it does nothing, until its parent ends. */
int main(int argc, char **argv)
{
	if (argc > 1) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
	}
	int failed = obey(); /* HERE: main */
	STAY(failed);
	(void)argv;
	return failed;
}
