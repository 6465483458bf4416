/* As guilty.c, with what only C++ has: namespaces, templates, methods, lambdas, operators. */
#include "obey.h"

#include <functional>

namespace shop
{

struct Peer {
	sockaddr_storage address;
	socklen_t length = sizeof(address);
};

class Counter
{
public:
	explicit Counter(int fd) : fd(fd)
	{
	}
	NOIPA int take(Peer &peer);
	NOIPA int operator()(int size) const;
	NOIPA virtual int hang_up();
	virtual ~Counter()
	{
	}

protected:
	int fd;
};

NOIPA int Counter::take(Peer &peer)
{
	int taken = accept(fd, (sockaddr *)&peer.address, &peer.length); /* HERE: shop::Counter::take */
	STAY(taken);
	return taken;
}

NOIPA int Counter::operator()(int size) const
{
	char room[256];
	int got = read(fd, room, size); /* HERE: shop::Counter::operator() */
	__asm__ volatile("" : : "r"(room) : "memory");
	return got;
}

NOIPA int Counter::hang_up()
{
	int failed = close(fd); /* HERE: shop::Counter::hang_up */
	STAY(failed);
	return failed;
}

namespace
{

class Polite final : public Counter
{
public:
	using Counter::Counter;
	NOIPA int hang_up() override
	{
		int failed = Counter::hang_up(); /* HERE: shop::(anonymous namespace)::Polite::hang_up */
		STAY(failed);
		return failed;
	}
};

} // namespace

template <typename Clerk> class Desk
{
public:
	template <int size> NOIPA static int serve(const Clerk &clerk)
	{
		int got = clerk(size); /* HERE: shop::Desk<shop::Counter>::serve<5> */
		STAY(got);
		return got;
	}
};

NOIPA static int call(const std::function<int()> &deed)
{
	int done = deed(); /* HERE: shop::call */
	STAY(done);
	return done;
}

/* Destroyed while the stack unwinds an exception: its destructor closes. */
struct Guard {
	int fd;
	NOIPA ~Guard()
	{
		int failed = close(fd); /* HERE: shop::Guard::~Guard */
		STAY(failed);
	}
};

NOIPA static void break_down(int fd)
{
	Guard guard{fd};
	throw std::exception();
} /* HERE: shop::break_down */

} // namespace shop

NOIPA static int do_accept(char **words, char *reply)
{
	shop::Peer peer;
	int fd = shop::Counter(number(words[1])).take(peer); /* HERE: do_accept */

	sprintf(reply, "%d %d", fd, fd < 0 ? 0 : port_of(&peer.address));
	return fd < 0 ? -1 : 0;
}

NOIPA static int do_read(char **words, char *reply)
{
	shop::Counter counter(number(words[1]));
	int got = shop::Desk<shop::Counter>::serve<5>(counter); /* HERE: do_read */

	sprintf(reply, "%d", got);
	return got < 0 ? -1 : 0;
}

NOIPA static int do_close(char **words, char *)
{
	shop::Polite polite(number(words[1]));
	auto deed = [&polite] {
		int failed = polite.hang_up(); /* HERE: do_close/lambda */
		STAY(failed);
		return failed;
	};

	int failed = shop::call(deed); /* HERE: do_close */
	STAY(failed);
	return failed;
}

NOIPA static int do_throw(char **words, char *)
{
	try {
		shop::break_down(number(words[1])); /* HERE: do_throw */
	} catch (const std::exception &) {
		return 0;
	}
	return -1;
}

const struct command commands[] = {
	{"cookie", do_cookie}, {"fork", do_fork}, {"accept", do_accept}, {"read", do_read},
	{"close", do_close},   {"throw", do_throw},   {"listen", [](char **words, char *reply) {
		 int fd = bound_to(words[1], number(words[2]));

		 sprintf(reply, "%d %d", fd, local_port(fd));
		 return listen(fd, 128); /* HERE: listen */
	 }},
	{nullptr, nullptr},
};
