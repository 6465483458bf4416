/*
 * write_loop_client ADDRESS PORT LOCAL-PORT default|ignored|handled: writes a message,
 * waits a while, writes the next one. It never reads, and never looks whether write()
 * failed. The last word is what it does with SIGPIPE; it catches SIGINT too, as programs
 * do that want to end in good order and then forget to look at their flag.
 *
 * The "while" lasts until the laboratory says something. It is over for good with the
 * first write that fails.
 */
#include "lab.h"

#define MESSAGE 58

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
	interrupted = number;
}

static void on_pipe(int number)
{
	(void)number;
}

static void arrange_signals(const char *pipe)
{
	if (strcmp(pipe, "ignored") == 0)
		signal(SIGPIPE, SIG_IGN);
	else if (strcmp(pipe, "handled") == 0)
		signal(SIGPIPE, on_pipe);
	signal(SIGINT, on_interrupt);
}

NOIPA static void dial(int fd, const char *address, int port)
{
	struct sockaddr_storage to;
	socklen_t length = address_of(address, port, &to);
	int failed = connect(fd, (struct sockaddr *)&to, length); /* HERE: dial */

	if (failed)
		give_up("connect");
	tell("connected %d", fd);
}

static void sleep_between(ssize_t sent)
{
	static long failed;
	char room[ROOM];

	if (sent > 0) {
		tell("wrote %zd", sent);
		told(room);
	} else if (failed++ == 0) {
		tell("failing %d", errno);
	}
	if (interrupted) {
		tell("interrupted %d", interrupted);
		interrupted = 0;
	}
}

NOIPA static void send_loop(int fd)
{
	char message[MESSAGE] = {0};

	for (;;) {
		ssize_t sent = write(fd, message, sizeof(message)); /* HERE: send_loop */

		sleep_between(sent);
	}
}

int main(int count, char **words)
{
	begin();
	arrange_signals(count > 4 ? words[4] : "default");
	int fd = bound_socket(words[1], atoi(words[3]));

	dial(fd, words[1], atoi(words[2])); /* HERE: main dial */
	send_loop(fd);                      /* HERE: main */
}
