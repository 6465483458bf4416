/*
 * The socket table: sk pointer -> owner. Entries are made when a process
 * accepts, connects, listens or first does I/O, or by adoption of a socket that
 * is older than the tracer; they go at tcp_destroy_sock.
 */

struct tracked {
	struct owner owner;
	u64 cookie;      /* the kernel's number of the socket, or OWN_NUMBER and ours */
	u64 since_ns;    /* when it entered its present state; 0: before we came */
	u64 birth_stack; /* ids of user stacks: accept, connect or listen ... */
	u64 read_stack;  /* ... and the last of each */
	u64 write_stack;
	u64 eof_stack;
	u64 close_stack;
};

BPF_HASH(sockets, u64, struct tracked, MAX_SOCKETS);

/* What was dropped, by cause; user space reports it (COUNT_x from probes/engine/constants.py). */
BPF_PERCPU_ARRAY(counts, u64, COUNT_SLOTS);

/* SETTING_WINDOW: 1 from attach until the inventory is in the table (no gap in between). */
BPF_ARRAY(settings, u64, SETTING_SLOTS);

static __always_inline u64 setting(int which)
{
	u64 *value = settings.lookup(&which);

	return value ? *value : 0;
}

static __always_inline bool inventory_is_running(void)
{
	return setting(SETTING_WINDOW) != 0;
}

static __always_inline bool all_is_attached(void)
{
	return setting(SETTING_ATTACHED) != 0;
}

static __always_inline bool had_listener(void)
{
	return TRACE_ALL_OWNERS || setting(SETTING_LISTENED);
}

#define OWN_NUMBER (1ULL << 63)

/* A socket that the kernel has not numbered: sockets made before the programs of cookies.c. */
static __always_inline u64 number_of(u64 cookie)
{
	return cookie ? cookie : OWN_NUMBER | bpf_ktime_get_ns();
}

static __always_inline struct tracked *track(u64 sk, struct tracked *fresh)
{
	sockets.delete(&sk); /* a leftover of an earlier socket at this address */
	if (sockets.update(&sk, fresh))
		counts.increment(COUNT_TABLE_FULL);
	return sockets.lookup(&sk);
}

/* The pointer may have been reused: the cookie says whether it is the same socket. */
static __always_inline struct tracked *find_tracked(u64 sk, u64 cookie)
{
	struct tracked *entry = sockets.lookup(&sk);

	if (!entry)
		return NULL;
	if (entry->cookie != cookie && !(entry->cookie & OWN_NUMBER))
		return NULL;
	return entry;
}
