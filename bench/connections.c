/*
 * The workload: N short loopback connections, one after the other, between two
 * processes; 58 bytes there and back; the server closes first. Prints the time
 * in nanoseconds per connection.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORTS_PER_ADDRESS 20000 /* a new source address before the ports run out */

static void serve(int listener, int count)
{
	char buffer[64];

	for (int i = 0; i < count; i++) {
		int fd = accept(listener, NULL, NULL);
		ssize_t got = read(fd, buffer, 58);
		if (fd < 0 || got < 0 || write(fd, buffer, got) != got)
			exit(1);
		close(fd);
	}
	exit(0);
}

static void visit(const struct sockaddr_in *server, int number)
{
	struct sockaddr_in from = {.sin_family = AF_INET};
	char buffer[64] = "";
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	from.sin_addr.s_addr = htonl(0x7f000002 + number / PORTS_PER_ADDRESS);
	if (bind(fd, (void *)&from, sizeof from) ||
	    connect(fd, (const void *)server, sizeof *server) || write(fd, buffer, 58) != 58) {
		perror("client");
		exit(1);
	}
	while (read(fd, buffer, sizeof buffer) > 0)
		;
	close(fd);
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 20000, status;
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof address;
	struct timespec start, end;
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (void *)&address, sizeof address) || listen(listener, 512) ||
	    getsockname(listener, (void *)&address, &size))
		return 1;
	if (!fork())
		serve(listener, count);
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (int i = 0; i < count; i++)
		visit(&address, i);
	wait(&status);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld\n", ((end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec) /
				 count);
	return status != 0;
}
