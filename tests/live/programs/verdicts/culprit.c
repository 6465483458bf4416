/*
 * A process that does to its sockets what the rules look for: see ../obey.h. Each deed
 * is a system call below a function of its own, whose line is marked.
 */
#include "../obey.h"

#include <poll.h>
#include <pthread.h>
#include <time.h>

#define USED(memory) __asm__ volatile("" : : "r"(memory) : "memory")

static int with_port(char *reply, int fd)
{
	sprintf(reply, "%d %d", fd, local_port(fd));
	return 0;
}

static int answer(char *reply, long result)
{
	sprintf(reply, "%ld", result);
	return result < 0 ? -1 : 0;
}

/* listen ADDRESS PORT -> fd port */
static int do_listen(char **words, char *reply)
{
	int fd = bound_to(words[1], number(words[2]));

	return listen(fd, 128) ? -1 : with_port(reply, fd);
}

NOIPA static int accept_loop(int listener)
{
	int fd = accept(listener, NULL, NULL); /* HERE: accept_loop */

	STAY(fd);
	return fd;
}

/* accept FD -> fd */
static int do_accept(char **words, char *reply)
{
	return answer(reply, accept_loop(number(words[1])));
}

NOIPA static int dial(int fd, const char *address_text, int port)
{
	struct sockaddr_storage to;
	socklen_t length = address_of(address_text, port, &to);
	int failed = connect(fd, (struct sockaddr *)&to, length); /* HERE: dial */

	STAY(failed);
	return failed;
}

/* connect ADDRESS PORT -> fd port */
static int do_connect(char **words, char *reply)
{
	int fd = socket(strchr(words[1], ':') ? AF_INET6 : AF_INET, SOCK_STREAM, 0);

	return dial(fd, words[1], number(words[2])) ? -1 : with_port(reply, fd);
}

NOIPA static ssize_t leaky_handler(int fd, int size)
{
	char room[256];
	ssize_t got = read(fd, room, size); /* HERE: leaky_handler */

	USED(room);
	return got;
}

/* read FD BYTES -> how many (0: end of file) */
static int do_read(char **words, char *reply)
{
	return answer(reply, leaky_handler(number(words[1]), number(words[2])));
}

NOIPA static ssize_t reply_to(int fd, int size)
{
	static char data[256];
	ssize_t sent = write(fd, data, size); /* HERE: reply_to */

	STAY(sent);
	return sent;
}

/* write FD BYTES -> how many */
static int do_write(char **words, char *reply)
{
	return answer(reply, reply_to(number(words[1]), number(words[2])));
}

NOIPA static ssize_t quiet_reply(int fd, int size)
{
	static char data[256];
	ssize_t sent = send(fd, data, size, MSG_NOSIGNAL); /* HERE: quiet_reply */

	STAY(sent);
	return sent;
}

/* send FD BYTES -> how many; never a SIGPIPE */
static int do_send(char **words, char *reply)
{
	return answer(reply, quiet_reply(number(words[1]), number(words[2])));
}

NOIPA static int hang_up(int fd)
{
	int failed = close(fd); /* HERE: hang_up */

	STAY(failed);
	return failed;
}

static int do_close(char **words, char *reply)
{
	(void)reply;
	return hang_up(number(words[1]));
}

static int do_shutdown(char **words, char *reply)
{
	(void)reply;
	return shutdown(number(words[1]), SHUT_WR);
}

/* linger FD: close() is to send a RST */
static int do_linger(char **words, char *reply)
{
	struct linger now = {.l_onoff = 1, .l_linger = 0};

	(void)reply;
	return setsockopt(number(words[1]), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

/* dup FD -> fd */
static int do_dup(char **words, char *reply)
{
	return answer(reply, dup(number(words[1])));
}

/* waitin FD: until something can be read (a FIN counts), or it has failed */
static int do_waitin(char **words, char *reply)
{
	struct pollfd one = {.fd = number(words[1]), .events = POLLIN};

	(void)reply;
	return poll(&one, 1, 20000) == 1 ? 0 : -1;
}

/* waitend FD: until writing to it can only fail */
static int do_waitend(char **words, char *reply)
{
	struct pollfd one = {.fd = number(words[1])}; /* POLLHUP and POLLERR come unasked */

	(void)reply;
	return poll(&one, 1, 20000) == 1 ? 0 : -1;
}

static void on_sigpipe(int signal_number)
{
	(void)signal_number;
}

/* sigpipe ignore|handle|block */
static int do_sigpipe(char **words, char *reply)
{
	sigset_t set;

	(void)reply;
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	if (words[1][0] == 'b')
		return pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, words[1][0] == 'i' ? SIG_IGN : on_sigpipe);
	return 0;
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

NOIPA static long send_loop(int fd, long until)
{
	long failed = 0;

	while (now_ms() < until)
		failed += write(fd, "x", 1) < 0; /* HERE: send_loop */
	return failed;
}

/* write_loop FD MILLISECONDS -> failures */
static int do_write_loop(char **words, char *reply)
{
	return answer(reply, send_loop(number(words[1]), now_ms() + number(words[2])));
}

NOIPA static long poll_loop(int fd, long until)
{
	char room[16];
	long ends = 0;

	while (now_ms() < until)
		ends += read(fd, room, sizeof(room)) == 0; /* HERE: poll_loop */
	return ends;
}

/* read_loop FD MILLISECONDS -> ends of file */
static int do_read_loop(char **words, char *reply)
{
	return answer(reply, poll_loop(number(words[1]), now_ms() + number(words[2])));
}

static int do_exit(char **words, char *reply)
{
	(void)reply;
	_exit(number(words[1]));
}

struct errand {
	char **words, *reply;
	int tid, failed, error;
};

static void *run_errand(void *argument)
{
	struct errand *errand = argument;

	errand->tid = syscall(SYS_gettid);
	errand->failed = perform(errand->words, errand->reply);
	errand->error = errno;
	return NULL;
}

/* thread COMMAND... -> the command's own answer, then the thread */
static int do_thread(char **words, char *reply)
{
	struct errand errand = {.words = words + 1, .reply = reply};
	pthread_t thread;

	pthread_create(&thread, NULL, run_errand, &errand);
	pthread_join(thread, NULL);
	errno = errand.error;
	sprintf(reply + strlen(reply), " %d", errand.tid);
	return errand.failed;
}

const struct command commands[] = {
	{"listen", do_listen},	     {"accept", do_accept},   {"connect", do_connect},
	{"read", do_read},	     {"write", do_write},     {"send", do_send},
	{"close", do_close},	     {"shutdown", do_shutdown}, {"linger", do_linger},
	{"dup", do_dup},	     {"waitin", do_waitin},   {"waitend", do_waitend},
	{"sigpipe", do_sigpipe},     {"write_loop", do_write_loop},
	{"read_loop", do_read_loop}, {"thread", do_thread},   {"fork", do_fork},
	{"cookie", do_cookie},	     {"exit", do_exit},	      {0},
};
