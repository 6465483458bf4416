/*
 * A process that does with sockets what it is told: one command per line on
 * stdin, one answer per line on stdout ("ok NUMBERS" or "error ERRNO"). The
 * answers are the tests' oracle: descriptors, ports, pids, cookies.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define WORDS 8
#define REPLY_MAX 256

struct command {
	const char *name;
	int (*run)(char **words, char *reply); /* 0, or -1 with errno */
};

static int perform(char *line, char *reply);

static int number(const char *text)
{
	return text ? atoi(text) : 0;
}

static socklen_t address_of(const char *text, int port, struct sockaddr_storage *to)
{
	struct sockaddr_in *four = (void *)to;
	struct sockaddr_in6 *six = (void *)to;

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

static int port_of(struct sockaddr_storage *address)
{
	struct sockaddr_in *four = (void *)address;
	struct sockaddr_in6 *six = (void *)address;

	return ntohs(address->ss_family == AF_INET6 ? six->sin6_port : four->sin_port);
}

static int local_port(int fd)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);

	getsockname(fd, (void *)&address, &length);
	return port_of(&address);
}

static int switch_on(int fd, int level, int option, int value)
{
	return setsockopt(fd, level, option, &value, sizeof(value));
}

/* listen ADDRESS PORT BACKLOG [reuseport] -> fd port */
static int do_listen(char **words, char *reply)
{
	struct sockaddr_storage address;
	socklen_t length = address_of(words[1], number(words[2]), &address);
	int fd = socket(address.ss_family, SOCK_STREAM, 0);

	switch_on(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	if (words[4] && switch_on(fd, SOL_SOCKET, SO_REUSEPORT, 1))
		return -1;
	if (bind(fd, (void *)&address, length) || listen(fd, number(words[3])))
		return -1;
	sprintf(reply, "%d %d", fd, local_port(fd));
	return 0;
}

/* accept FD -> fd peer-port */
static int do_accept(char **words, char *reply)
{
	struct sockaddr_storage peer;
	socklen_t length = sizeof(peer);
	int fd = accept(number(words[1]), (void *)&peer, &length);

	if (fd < 0)
		return -1;
	sprintf(reply, "%d %d", fd, port_of(&peer));
	return 0;
}

/* tryaccept FD: as accept, but error EAGAIN if nobody waits */
static int do_tryaccept(char **words, char *reply)
{
	struct pollfd one = {.fd = number(words[1]), .events = POLLIN};

	errno = EAGAIN;
	return poll(&one, 1, 0) == 1 ? do_accept(words, reply) : -1;
}

/* socket FAMILY(4|6) -> fd */
static int do_socket(char **words, char *reply)
{
	int fd = socket(number(words[1]) == 6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);

	sprintf(reply, "%d", fd);
	return fd < 0 ? -1 : 0;
}

/* connectfd FD ADDRESS PORT -> fd local-port */
static int do_connectfd(char **words, char *reply)
{
	struct sockaddr_storage address;
	int fd = number(words[1]);
	socklen_t length = address_of(words[2], number(words[3]), &address);

	if (connect(fd, (void *)&address, length))
		return -1;
	sprintf(reply, "%d %d", fd, local_port(fd));
	return 0;
}

/* connect ADDRESS PORT -> fd local-port */
static int do_connect(char **words, char *reply)
{
	int family = strchr(words[1], ':') ? AF_INET6 : AF_INET;
	char fd[16], *again[] = {"", fd, words[1], words[2]};
	int made = socket(family, SOCK_STREAM, 0);

	snprintf(fd, sizeof(fd), "%d", made);
	if (do_connectfd(again, reply) == 0)
		return 0;
	int error = errno;
	close(made);
	errno = error;
	return -1;
}

/* port FD -> local-port */
static int do_port(char **words, char *reply)
{
	sprintf(reply, "%d", local_port(number(words[1])));
	return 0;
}

/* write FD BYTES */
static int do_write(char **words, char *reply)
{
	static char data[65536];
	ssize_t sent = send(number(words[1]), data, number(words[2]), MSG_NOSIGNAL);

	sprintf(reply, "%zd", sent);
	return sent < 0 ? -1 : 0;
}

/* read FD BYTES -> how many (0: end of file) */
static int do_read(char **words, char *reply)
{
	char data[65536];
	ssize_t got = read(number(words[1]), data, number(words[2]));

	sprintf(reply, "%zd", got);
	return got < 0 ? -1 : 0;
}

static int do_close(char **words, char *reply)
{
	return close(number(words[1]));
}

static int do_shutdown(char **words, char *reply)
{
	return shutdown(number(words[1]), SHUT_WR);
}

static int do_dup(char **words, char *reply)
{
	int fd = dup(number(words[1]));

	sprintf(reply, "%d", fd);
	return fd < 0 ? -1 : 0;
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

/* linger FD: close() is to send a RST */
static int do_linger(char **words, char *reply)
{
	struct linger now = {.l_onoff = 1, .l_linger = 0};

	return setsockopt(number(words[1]), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

/* usertimeout FD MILLISECONDS */
static int do_usertimeout(char **words, char *reply)
{
	return switch_on(number(words[1]), IPPROTO_TCP, TCP_USER_TIMEOUT, number(words[2]));
}

static int do_nonblock(char **words, char *reply)
{
	return fcntl(number(words[1]), F_SETFL, O_NONBLOCK);
}

/* error FD -> SO_ERROR, after waiting until there is an event */
static int do_error(char **words, char *reply)
{
	struct pollfd one = {.fd = number(words[1]), .events = POLLOUT};
	int error = 0;
	socklen_t length = sizeof(error);

	poll(&one, 1, 20000);
	getsockopt(one.fd, SOL_SOCKET, SO_ERROR, &error, &length);
	sprintf(reply, "%d", error);
	return 0;
}

/* waitin FD: until something can be read (a FIN counts) */
static int do_waitin(char **words, char *reply)
{
	struct pollfd one = {.fd = number(words[1]), .events = POLLIN};

	errno = ETIMEDOUT;
	return poll(&one, 1, 20000) == 1 ? 0 : -1;
}

/* pair -> a b: connected unix sockets, for a child to inherit */
static int do_pair(char **words, char *reply)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends))
		return -1;
	sprintf(reply, "%d %d", ends[0], ends[1]);
	return 0;
}

union ancillary {
	struct cmsghdr header;
	char room[CMSG_SPACE(sizeof(int))];
};

static struct msghdr message_with(union ancillary *extra, struct iovec *body)
{
	return (struct msghdr){.msg_iov = body,
			       .msg_iovlen = 1,
			       .msg_control = extra->room,
			       .msg_controllen = sizeof(extra->room)};
}

/* sendfd VIA FD */
static int do_sendfd(char **words, char *reply)
{
	char byte = 'x';
	union ancillary extra = {0};
	struct iovec body = {&byte, 1};
	struct msghdr message = message_with(&extra, &body);
	int fd = number(words[2]);

	extra.header.cmsg_level = SOL_SOCKET;
	extra.header.cmsg_type = SCM_RIGHTS;
	extra.header.cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(&extra.header), &fd, sizeof(fd));
	return sendmsg(number(words[1]), &message, 0) == 1 ? 0 : -1;
}

/* recvfd VIA -> fd */
static int do_recvfd(char **words, char *reply)
{
	char byte;
	union ancillary extra = {0};
	struct iovec body = {&byte, 1};
	struct msghdr message = message_with(&extra, &body);
	int fd = -1;

	if (recvmsg(number(words[1]), &message, 0) != 1)
		return -1;
	memcpy(&fd, CMSG_DATA(&extra.header), sizeof(fd));
	sprintf(reply, "%d", fd);
	return 0;
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
	struct clone_args how = {.exit_signal = SIGCHLD};

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

struct errand {
	char *line;
	char reply[REPLY_MAX];
	int tid, failed, error;
};

static void *run_errand(void *argument)
{
	struct errand *errand = argument;

	errand->tid = gettid();
	errand->failed = perform(errand->line, errand->reply);
	errand->error = errno;
	return NULL;
}

static char *rest_of(char **words)
{
	static char line[REPLY_MAX];

	line[0] = 0;
	for (char **word = words + 1; *word; word++)
		strcat(strcat(line, *word), " ");
	return line;
}

/* thread COMMAND... -> tid, then the command's own answer */
static int do_thread(char **words, char *reply)
{
	struct errand errand = {.line = rest_of(words)};
	pthread_t thread;

	pthread_create(&thread, NULL, run_errand, &errand);
	pthread_join(thread, NULL);
	errno = errand.error;
	sprintf(reply, "%d %s", errand.tid, errand.reply);
	return errand.failed;
}

/* name HEX: the process's name, any bytes but NUL */
static int do_name(char **words, char *reply)
{
	char name[16] = {0};

	for (int i = 0; i < 15 && words[1][2 * i]; i++) {
		char byte[3] = {words[1][2 * i], words[1][2 * i + 1], 0};

		name[i] = strtol(byte, NULL, 16);
	}
	return prctl(PR_SET_NAME, name);
}

static int do_exit(char **words, char *reply)
{
	_exit(number(words[1]));
}

/* exec PROGRAM: become it; sockets stay open */
static int do_exec(char **words, char *reply)
{
	execl(words[1], words[1], (char *)NULL);
	return -1;
}

static const struct command commands[] = {
	{"listen", do_listen},
	{"accept", do_accept},
	{"tryaccept", do_tryaccept},
	{"socket", do_socket},
	{"connect", do_connect},
	{"connectfd", do_connectfd},
	{"port", do_port},
	{"write", do_write},
	{"read", do_read},
	{"close", do_close},
	{"shutdown", do_shutdown},
	{"dup", do_dup},
	{"cookie", do_cookie},
	{"linger", do_linger},
	{"usertimeout", do_usertimeout},
	{"nonblock", do_nonblock},
	{"error", do_error},
	{"waitin", do_waitin},
	{"pair", do_pair},
	{"sendfd", do_sendfd},
	{"recvfd", do_recvfd},
	{"fork", do_fork},
	{"thread", do_thread},
	{"name", do_name},
	{"exec", do_exec},
	{"exit", do_exit},
};

static int perform(char *line, char *reply)
{
	char *words[WORDS + 1] = {0}, *rest = NULL;
	int count = 0;

	for (char *word = strtok_r(line, " \n", &rest); word && count < WORDS;
	     word = strtok_r(NULL, " \n", &rest))
		words[count++] = word;
	for (size_t i = 0; count && i < sizeof(commands) / sizeof(*commands); i++) {
		if (strcmp(commands[i].name, words[0]) == 0)
			return commands[i].run(words, reply);
	}
	errno = ENOSYS;
	return -1;
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

int main(void)
{
	char line[REPLY_MAX], reply[REPLY_MAX], answer[REPLY_MAX + 16];

	signal(SIGCHLD, SIG_IGN);
	dprintf(1, "ok %d\n", getpid());
	while (read_line(line, sizeof(line))) {
		reply[0] = 0;
		if (perform(line, reply))
			snprintf(answer, sizeof(answer), "error %d\n", errno);
		else
			snprintf(answer, sizeof(answer), "ok %s\n", reply);
		if (write(1, answer, strlen(answer)) < 0)
			return 1;
	}
	return 0;
}
