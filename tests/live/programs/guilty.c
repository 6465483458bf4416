/*
 * The server and client of the stack tests: see obey.h. First the deeds, each a system
 * call below named functions; then the ways, which perform the rest of their words
 * from within a frame that is hard to walk through, or easy to mistake for another.
 */
#include "obey.h"

#include <alloca.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <ucontext.h>

#define USED(memory) __asm__ volatile("" : : "r"(memory) : "memory")

/* ---- deeds ---- */

NOIPA static int open_shop(int fd)
{
	int failed = listen(fd, 128); /* HERE: open_shop */

	STAY(failed);
	return failed;
}

/* listen ADDRESS PORT -> fd port */
NOIPA static int do_listen(char **words, char *reply)
{
	int fd = bound_to(words[1], number(words[2]));

	if (open_shop(fd)) /* HERE: do_listen */
		return -1;
	sprintf(reply, "%d %d", fd, local_port(fd));
	return 0;
}

NOIPA static int take_client(int listener, struct sockaddr_storage *peer)
{
	socklen_t length = sizeof(*peer);
	int fd = accept(listener, (struct sockaddr *)peer, &length); /* HERE: take_client */

	STAY(fd);
	return fd;
}

NOIPA static int accept_loop(int listener, struct sockaddr_storage *peer)
{
	int fd;

	do {
		fd = take_client(listener, peer); /* HERE: accept_loop */
	} while (fd < 0 && errno == EINTR);
	return fd;
}

/* accept FD -> fd peer-port */
NOIPA static int do_accept(char **words, char *reply)
{
	struct sockaddr_storage peer;
	int fd = accept_loop(number(words[1]), &peer); /* HERE: do_accept */

	sprintf(reply, "%d %d", fd, fd < 0 ? 0 : port_of(&peer));
	return fd < 0 ? -1 : 0;
}

NOIPA static int dial(int fd, const char *address_text, int port)
{
	struct sockaddr_storage to;
	socklen_t length = address_of(address_text, port, &to);
	int failed = connect(fd, (struct sockaddr *)&to, length); /* HERE: dial */

	STAY(failed);
	return failed;
}

static int socket_for(const char *address_text, int flags)
{
	return socket(strchr(address_text, ':') ? AF_INET6 : AF_INET, SOCK_STREAM | flags, 0);
}

/* connect ADDRESS PORT -> fd local-port */
NOIPA static int do_connect(char **words, char *reply)
{
	int fd = socket_for(words[1], 0);

	if (dial(fd, words[1], number(words[2]))) /* HERE: do_connect */
		return -1;
	sprintf(reply, "%d %d", fd, local_port(fd));
	return 0;
}

/* connect_later ADDRESS PORT -> fd local-port: does not block in connect() */
NOIPA static int do_connect_later(char **words, char *reply)
{
	struct pollfd one = {.fd = socket_for(words[1], SOCK_NONBLOCK), .events = POLLOUT};
	int failed = dial(one.fd, words[1], number(words[2])); /* HERE: do_connect_later */

	if (failed && errno != EINPROGRESS)
		return -1;
	sprintf(reply, "%d %d", one.fd, local_port(one.fd));
	return poll(&one, 1, 20000) == 1 ? 0 : -1;
}

NOIPA static ssize_t leaky_handler(int fd, int size)
{
	char room[256];
	ssize_t got = read(fd, room, size); /* HERE: leaky_handler */

	USED(room);
	return got;
}

/* read FD BYTES -> how many (0: end of file) */
NOIPA static int do_read(char **words, char *reply)
{
	ssize_t got = leaky_handler(number(words[1]), number(words[2])); /* HERE: do_read */

	sprintf(reply, "%zd", got);
	return got < 0 ? -1 : 0;
}

NOIPA static ssize_t reply_to(int fd, int size)
{
	static char data[256];
	ssize_t sent = send(fd, data, size, MSG_NOSIGNAL); /* HERE: reply_to */

	STAY(sent);
	return sent;
}

/* write FD BYTES -> how many */
NOIPA static int do_write(char **words, char *reply)
{
	ssize_t sent = reply_to(number(words[1]), number(words[2])); /* HERE: do_write */

	sprintf(reply, "%zd", sent);
	return sent < 0 ? -1 : 0;
}

NOIPA static int hang_up(int fd)
{
	int failed = close(fd); /* HERE: hang_up */

	STAY(failed);
	return failed;
}

NOIPA static int do_close(char **words, char *reply)
{
	int failed = hang_up(number(words[1])); /* HERE: do_close */

	STAY(failed);
	(void)reply;
	return failed;
}

NOIPA static int half_close(int fd)
{
	int failed = shutdown(fd, SHUT_WR); /* HERE: half_close */

	STAY(failed);
	return failed;
}

NOIPA static int do_shutdown(char **words, char *reply)
{
	int failed = half_close(number(words[1])); /* HERE: do_shutdown */

	STAY(failed);
	(void)reply;
	return failed;
}

/* ---- the same deeds by other system calls ---- */

NOIPA static int by_accept4(char **words, char *reply)
{
	int fd = accept4(number(words[1]), NULL, NULL, SOCK_CLOEXEC); /* HERE: by_accept4 */

	sprintf(reply, "%d 0", fd);
	return fd < 0 ? -1 : 0;
}

NOIPA static int by_recv(char **words, char *reply)
{
	char room[256];
	ssize_t got = recv(number(words[1]), room, number(words[2]), 0); /* HERE: by_recv */

	sprintf(reply, "%zd", got);
	return got < 0 ? -1 : 0;
}

NOIPA static int by_recvmsg(char **words, char *reply)
{
	char room[256];
	struct iovec body = {room, number(words[2])};
	struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1};
	ssize_t got = recvmsg(number(words[1]), &message, 0); /* HERE: by_recvmsg */

	sprintf(reply, "%zd", got);
	return got < 0 ? -1 : 0;
}

NOIPA static int by_readv(char **words, char *reply)
{
	char room[256];
	struct iovec body = {room, number(words[2])};
	ssize_t got = readv(number(words[1]), &body, 1); /* HERE: by_readv */

	sprintf(reply, "%zd", got);
	return got < 0 ? -1 : 0;
}

NOIPA static int by_write(char **words, char *reply)
{
	ssize_t sent = write(number(words[1]), words, number(words[2])); /* HERE: by_write */

	sprintf(reply, "%zd", sent);
	return sent < 0 ? -1 : 0;
}

NOIPA static int by_sendmsg(char **words, char *reply)
{
	struct iovec body = {words, number(words[2])};
	struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1};
	ssize_t sent = sendmsg(number(words[1]), &message, 0); /* HERE: by_sendmsg */

	sprintf(reply, "%zd", sent);
	return sent < 0 ? -1 : 0;
}

NOIPA static int by_writev(char **words, char *reply)
{
	struct iovec body = {words, number(words[2])};
	ssize_t sent = writev(number(words[1]), &body, 1); /* HERE: by_writev */

	sprintf(reply, "%zd", sent);
	return sent < 0 ? -1 : 0;
}

NOIPA static int by_sendfile(char **words, char *reply)
{
	int program = open("/proc/self/exe", O_RDONLY);
	ssize_t sent = sendfile(number(words[1]), program, NULL, 5); /* HERE: by_sendfile */

	close(program);
	sprintf(reply, "%zd", sent);
	return sent < 0 ? -1 : 0;
}

/* dup2 FD: something else under its number, which closes it */
NOIPA static int by_dup2(char **words, char *reply)
{
	int fd = dup2(2, number(words[1])); /* HERE: by_dup2 */

	(void)reply;
	return fd < 0 ? -1 : 0;
}

/* exit FD: without closing it */
NOIPA static int by_exit(char **words, char *reply)
{
	(void)words;
	(void)reply;
	_exit(0); /* HERE: by_exit */
}

/* new_pids: its children count their pids from 1, as in a container */
static int do_new_pids(char **words, char *reply)
{
	(void)words;
	(void)reply;
	return unshare(CLONE_NEWPID);
}

/* exec PROGRAM: become it; sockets stay open */
static int do_exec(char **words, char *reply)
{
	(void)reply;
	execl(words[1], words[1], (char *)NULL);
	return -1;
}

/* ---- a burst: as many call paths as COUNT has numbers ---- */

#define BITS 13

static struct {
	int listener, port;
	const char *address;
} market;

NOIPA static int visit(void)
{
	struct sockaddr_storage peer;
	int fd = socket_for(market.address, 0);
	int failed = dial(fd, market.address, market.port); /* HERE: visit */
	int far = take_client(market.listener, &peer);

	if (failed || far < 0)
		return -1;
	failed = hang_up(fd);   /* HERE: visit/client */
	failed |= hang_up(far); /* HERE: visit/server */
	return failed;
}

static int step(unsigned path, int bits);

NOIPA static int even(unsigned path, int bits)
{
	int failed = step(path, bits); /* HERE: even */

	STAY(failed);
	return failed;
}

NOIPA static int odd(unsigned path, int bits)
{
	int failed = step(path, bits); /* HERE: odd */

	STAY(failed);
	return failed;
}

NOIPA static int step(unsigned path, int bits)
{
	int failed;

	if (bits == 0)
		failed = visit(); /* HERE: step/last */
	else if (path & 1)
		failed = odd(path >> 1, bits - 1); /* HERE: step/odd */
	else
		failed = even(path >> 1, bits - 1); /* HERE: step/even */
	STAY(failed);
	return failed;
}

/* spray ADDRESS PORT LISTENER COUNT: connect, accept and close, each time by another path */
NOIPA static int spray(char **words, char *reply)
{
	int failed = 0;

	market.address = words[1];
	market.port = number(words[2]);
	market.listener = number(words[3]);
	for (int i = 0; i < number(words[4]) && !failed; i++)
		failed = step(i, BITS); /* HERE: spray */
	(void)reply;
	return failed;
}

/* ---- ways ---- */

NOIPA static int left(char **words, char *reply)
{
	int failed = perform(words + 1, reply); /* HERE: left */

	STAY(failed);
	return failed;
}

NOIPA static int right(char **words, char *reply)
{
	int failed = perform(words + 1, reply); /* HERE: right */

	STAY(failed);
	return failed;
}

NOIPA static int descend(int depth, char **words, char *reply)
{
	int failed;

	if (depth)
		failed = descend(depth - 1, words, reply); /* HERE: descend */
	else
		failed = perform(words, reply); /* HERE: descend/bottom */
	STAY(failed);
	return failed;
}

/* deep N ... */
NOIPA static int deep(char **words, char *reply)
{
	int failed = descend(number(words[1]), words + 2, reply); /* HERE: deep */

	STAY(failed);
	return failed;
}

NOIPA static void decoy(void)
{
	USED(&market);
	USED(&market);
	USED(&market);
}

/* What lies in the buffers looks like return addresses: nobody may take them for such. */
#define DECEIVE(room)                                                                              \
	for (size_t word = 0; word < sizeof(room) / sizeof(uintptr_t); word++)                     \
	((uintptr_t *)(room))[word] = (uintptr_t)decoy + 1

NOIPA static int big_room(char **words, char *reply)
{
	uintptr_t room[64 * 1024 / sizeof(uintptr_t)];

	DECEIVE(room);
	USED(room);
	int failed = perform(words + 1, reply); /* HERE: big_room */
	USED(room);
	return failed;
}

/* gap: more than one snapshot of the stack holds, but less than big_room */
NOIPA static int gap(char **words, char *reply)
{
	uintptr_t room[24 * 1024 / sizeof(uintptr_t)];

	DECEIVE(room);
	USED(room);
	int failed = perform(words + 1, reply); /* HERE: gap */
	USED(room);
	return failed;
}

/* variable WORDS ...: an array whose size only the caller knows */
NOIPA static int variable(char **words, char *reply)
{
	uintptr_t room[number(words[1])];

	DECEIVE(room);
	USED(room);
	int failed = perform(words + 2, reply); /* HERE: variable */
	USED(room);
	return failed;
}

/* aligned BYTES ...: the stack pointer was rounded down, the caller's lies behind a pointer */
NOIPA static int realigned(char **words, char *reply)
{
	char room[64] __attribute__((aligned(64)));
	char *more = (char *)alloca(number(words[1]));

	memset(more, 1, number(words[1]));
	USED(room);
	USED(more);
	int failed = perform(words + 2, reply); /* HERE: realigned */
	USED(room);
	return failed;
}

static inline __attribute__((always_inline)) int inner(char **words, char *reply)
{
	int failed = perform(words + 1, reply); /* HERE: inner */

	STAY(failed);
	return failed;
}

static inline __attribute__((always_inline)) int middle(char **words, char *reply)
{
	int failed = inner(words, reply); /* HERE: middle */

	STAY(failed);
	return failed;
}

NOIPA static int outer(char **words, char *reply)
{
	int failed = middle(words, reply); /* HERE: outer */

	STAY(failed);
	return failed;
}

__attribute__((cold, noinline)) static void note(char **words)
{
	USED(words);
}

/* unlikely ...: the call stands in a part that the compiler puts elsewhere (unlikely.cold) */
NOIPA static int unlikely(char **words, char *reply)
{
	int failed = 0;

	if (words[1]) {
		note(words);
		failed = perform(words + 1, reply); /* HERE: unlikely */
		note(words);
	}
	return failed;
}

/* clone ...: the compiler makes a copy of it for this one argument (clone.constprop) */
__attribute__((noinline)) static int special(char **words, char *reply, int skip)
{
	int failed = perform(words + skip, reply); /* HERE: special */

	STAY(failed);
	return failed;
}

NOIPA static int clone_way(char **words, char *reply)
{
	int failed = special(words, reply, 1); /* HERE: clone_way */

	STAY(failed);
	return failed;
}

static jmp_buf way_back;
static int result;

NOIPA __attribute__((noreturn)) static void never_returns(char **words, char *reply)
{
	result = perform(words, reply); /* HERE: never_returns */
	longjmp(way_back, 1);
}

/* The call is its last instruction: the return address lies in the next function. */
NOIPA __attribute__((noreturn)) static void dead_end(char **words, char *reply)
{
	never_returns(words + 1, reply); /* HERE: dead_end */
}

NOIPA static int one_way(char **words, char *reply)
{
	if (!setjmp(way_back))
		dead_end(words, reply); /* HERE: one_way */
	return result;
}

struct errand {
	char **words, *reply;
	int failed, error;
};

NOIPA static void *run_errand(void *argument)
{
	struct errand *errand = (struct errand *)argument;

	errand->failed = perform(errand->words, errand->reply); /* HERE: run_errand */
	errand->error = errno;
	return NULL;
}

/* thread ... */
static int do_thread(char **words, char *reply)
{
	struct errand errand = {.words = words + 1, .reply = reply};
	pthread_t thread;

	pthread_create(&thread, NULL, run_errand, &errand);
	pthread_join(thread, NULL);
	errno = errand.error;
	return errand.failed;
}

static struct errand in_coroutine;

NOIPA static void coroutine(void)
{
	in_coroutine.failed = perform(in_coroutine.words, in_coroutine.reply); /* HERE: coroutine */
	in_coroutine.error = errno;
}

/* coroutine ...: on a stack of its own, which ends there */
static int do_coroutine(char **words, char *reply)
{
	static char other_stack[256 * 1024];
	static ucontext_t here, there;

	in_coroutine = (struct errand){.words = words + 1, .reply = reply};
	getcontext(&there);
	there.uc_stack = (stack_t){.ss_sp = other_stack, .ss_size = sizeof(other_stack)};
	there.uc_link = &here;
	makecontext(&there, coroutine, 0);
	swapcontext(&here, &there);
	errno = in_coroutine.error;
	return in_coroutine.failed;
}

static struct errand in_handler;
static volatile char *forbidden;

NOIPA static void on_fault(int signal_number)
{
	in_handler.failed = perform(in_handler.words, in_handler.reply); /* HERE: on_fault */
	in_handler.error = errno;
	mprotect((void *)forbidden, 4096, PROT_READ | PROT_WRITE);
	(void)signal_number;
}

/* Interrupted at its very first instruction: the one before belongs to another function. */
NOIPA static int touch(volatile char *page)
{
	return *page; /* HERE: touch */
}

/* signal ...: in the handler of a fault, on a stack of its own */
NOIPA static int in_signal(char **words, char *reply)
{
	static char other_stack[64 * 1024];
	stack_t other = {.ss_sp = other_stack, .ss_size = sizeof(other_stack)};
	struct sigaction how = {.sa_handler = on_fault, .sa_flags = SA_ONSTACK};

	in_handler = (struct errand){.words = words + 1, .reply = reply};
	forbidden = (char *)mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigaltstack(&other, NULL);
	sigaction(SIGSEGV, &how, NULL);
	int zero = touch(forbidden); /* HERE: in_signal */
	STAY(zero);
	munmap((void *)forbidden, 4096);
	errno = in_handler.error;
	return in_handler.failed;
}

/* ---- ways that end this program ---- */

/* then_exit ... */
NOIPA static int then_exit(char **words, char *reply)
{
	perform(words + 1, reply); /* HERE: then_exit */
	_exit(0);
}

/* then_exec PROGRAM ...: become it at once; sockets stay open */
NOIPA static int then_exec(char **words, char *reply)
{
	perform(words + 2, reply); /* HERE: then_exec */
	execl(words[1], words[1], (char *)NULL);
	return -1;
}

/* vforked PROGRAM ... -> pid: in a child that shares this memory until it becomes PROGRAM */
NOIPA static int vforked(char **words, char *reply)
{
	pid_t pid = vfork();

	if (pid == 0) {
		perform(words + 2, reply); /* HERE: vforked */
		execl(words[1], words[1], "wait", (char *)NULL);
		_exit(9);
	}
	sprintf(reply, "%d", pid);
	return pid < 0 ? -1 : 0;
}

const struct command commands[] = {
	{"cookie", do_cookie},
	{"listen", do_listen},
	{"accept", do_accept},
	{"connect", do_connect},
	{"connect_later", do_connect_later},
	{"read", do_read},
	{"write", do_write},
	{"close", do_close},
	{"shutdown", do_shutdown},
	{"accept4", by_accept4},
	{"recv", by_recv},
	{"recvmsg", by_recvmsg},
	{"readv", by_readv},
	{"plain_write", by_write},
	{"sendmsg", by_sendmsg},
	{"writev", by_writev},
	{"sendfile", by_sendfile},
	{"dup2", by_dup2},
	{"exit", by_exit},
	{"fork", do_fork},
	{"new_pids", do_new_pids},
	{"exec", do_exec},
	{"spray", spray},
	{"left", left},
	{"right", right},
	{"deep", deep},
	{"big_room", big_room},
	{"gap", gap},
	{"variable", variable},
	{"aligned", realigned},
	{"inlined", outer},
	{"unlikely", unlikely},
	{"cloned", clone_way},
	{"one_way", one_way},
	{"thread", do_thread},
	{"coroutine", do_coroutine},
	{"signal", in_signal},
	{"then_exit", then_exit},
	{"then_exec", then_exec},
	{"vforked", vforked},
	{NULL, NULL},
};
