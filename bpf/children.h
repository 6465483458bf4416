/*
 * Children that no process has accepted yet. Their first two transitions are
 * held back until accept() names the owner, until something else happens to
 * them, or until user space asks (tell_child): then they are told with it.
 */

struct child {
	u64 syn_recv_ns;
	u64 established_ns;
	u64 since_ns; /* when it entered its present state */
	u64 listener_start_ns;
	u32 listener_pid;
	u32 cpu_pid;
	u32 told;
	u32 state; /* by the transitions seen: the tracepoint fires before sk_state changes */
};

/*
 * One entry is deleted from `children` once and never put back, so that of several
 * CPUs that want to tell it exactly one does; then it goes on in `told_children`.
 */
BPF_HASH(children, u64, struct child, MAX_CHILDREN);
BPF_HASH(told_children, u64, struct child, MAX_CHILDREN);
BPF_ARRAY(layout_child, struct child, 1); /* never written: tells the layout */

static __always_inline void child_is_born(u64 sk, struct head *h)
{
	struct child fresh = {.syn_recv_ns = bpf_ktime_get_ns()};

	sockets.delete(&sk); /* a leftover of an earlier socket at this address */
	if (!TRACE_ALL_OWNERS && !port_has_listener(h) && !inventory_is_running())
		return;
	if (children.update(&sk, &fresh))
		counts.increment(COUNT_TABLE_FULL);
}

static __always_inline void child_is_established(struct child *child, u64 sk, struct head *h)
{
	u64 listener = listener_of(sk, h);
	struct tracked *entry = listener ? sockets.lookup(&listener) : NULL;

	child->established_ns = child->since_ns = bpf_ktime_get_ns();
	child->cpu_pid = current_tgid();
	child->state = TCP_ESTABLISHED;
	if (!entry)
		return;
	child->listener_pid = entry->owner.pid;
	child->listener_start_ns = entry->owner.start_ns;
}

/* How many transitions are held back. */
static __always_inline u32 held_back(struct child *child)
{
	if (!child || child->told)
		return 0;
	return child->established_ns ? 2 : 1;
}

static __always_inline struct child *find_child(u64 sk)
{
	struct child *child = children.lookup(&sk);

	return child ? child : told_children.lookup(&sk);
}

static __always_inline void forget_child(u64 sk)
{
	children.delete(&sk);
	told_children.delete(&sk);
}

/* Put what was held back into a record, unless another CPU has just told it. */
static __always_inline void fill_child(struct state_record *r, struct child *child, u64 sk)
{
	struct child kept;

	__builtin_memcpy(&kept, child, sizeof(kept));
	r->listener_pid = kept.listener_pid;
	r->listener_start_ns = kept.listener_start_ns;
	if (kept.told || children.delete(&sk))
		return;
	r->syn_recv_ns = kept.syn_recv_ns;
	r->established_ns = kept.established_ns;
	r->held_cpu_pid = kept.cpu_pid;
	kept.told = 1;
	if (!socket_of(sk)) /* else accept() is at work on it */
		told_children.update(&sk, &kept);
}
