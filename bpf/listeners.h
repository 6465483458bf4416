/*
 * Which listener does a new child belong to? The child itself does not say. It
 * is the last entry of its listener's accept queue when it becomes ESTABLISHED,
 * so the listeners of that port (SO_REUSEPORT: several) are asked in turn.
 */

#define LISTENERS_PER_PORT 32
#define QUEUE_SEARCHED 64
#define QUEUE_ADOPTED 64

struct port_slot {
	u64 net;
	u32 port;
	u32 slot; /* 0 holds the number of listeners, 1.. their sk */
};

BPF_HASH(listeners, struct port_slot, u64, 16384);

static __always_inline struct port_slot port_of(struct head *h)
{
	struct port_slot key = {.net = HEAD(h, u64, skc_net), .port = h->sport};

	return key;
}

static __always_inline void listener_add(u64 sk, struct head *h)
{
	struct port_slot key = port_of(h);
	u64 none = 0, *listened;
	int which = SETTING_LISTENED;

	listened = settings.lookup(&which);
	if (listened)
		*listened = 1;
	listeners.insert(&key, &none);
	u64 *count = listeners.lookup(&key);
	if (!count)
		return;
	LOOP (u32 i = 1; i <= LISTENERS_PER_PORT; i++) {
		key.slot = i;
		if (listeners.insert(&key, &sk) == 0) {
			__sync_fetch_and_add(count, 1);
			return;
		}
	}
	counts.increment(COUNT_LISTENERS_FULL);
}

static __always_inline void listener_remove(u64 sk, struct head *h)
{
	struct port_slot key = port_of(h);
	u64 *count = listeners.lookup(&key);

	if (!count)
		return;
	LOOP (u32 i = 1; i <= LISTENERS_PER_PORT; i++) {
		key.slot = i;
		u64 *found = listeners.lookup(&key);
		if (found && *found == sk) {
			listeners.delete(&key);
			__sync_fetch_and_add(count, -1);
			return;
		}
	}
}

static __always_inline u64 queue_end(u64 listener, u32 offset)
{
	u64 request = 0;

	READ(request, listener, O_inet_connection_sock__icsk_accept_queue + offset);
	return request;
}

static __always_inline u64 child_of(u64 request)
{
	u64 child = 0;

	if (request)
		READ(child, request, O_request_sock__sk);
	return child;
}

static __always_inline bool queue_holds(u64 listener, u64 sk)
{
	u64 request = queue_end(listener, O_request_sock_queue__rskq_accept_head);

	LOOP (u32 i = 0; i < QUEUE_SEARCHED && request; i++) {
		if (child_of(request) == sk)
			return true;
		READ(request, request, O_request_sock__dl_next);
	}
	return false;
}

/* 0: not known (yet); the accept() that takes the child will tell. */
static __always_inline u64 listener_of(u64 sk, struct head *h)
{
	struct port_slot key = port_of(h);
	u64 *count = listeners.lookup(&key), any = 0;

	if (!count || !*count)
		return 0;
	LOOP (u32 i = 1; i <= LISTENERS_PER_PORT; i++) {
		key.slot = i;
		u64 *listener = listeners.lookup(&key);
		if (!listener)
			continue;
		any = *listener;
		if (child_of(queue_end(any, O_request_sock_queue__rskq_accept_tail)) == sk)
			return any;
	}
	/* Two CPUs queued at the same time: the child is no longer the last. */
	return *count == 1 && queue_holds(any, sk) ? any : 0;
}

static __always_inline bool port_has_listener(struct head *h)
{
	struct port_slot key = port_of(h);
	u64 *count = listeners.lookup(&key);

	return count && *count;
}
