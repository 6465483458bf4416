/*
 * Every TCP state transition: sock:inet_sock_set_state (4.16), as a raw
 * tracepoint, with the process that owns the socket.
 */

/* connect() and listen() make their own transition, so current is the owner. */
static __always_inline struct tracked *born_here(u64 sk, struct head *h, u32 new_state)
{
	struct tracked fresh = {};

	if (!pid_is_traced(current_tgid()) || !is_tcp(sk))
		return NULL;
	identify_current(&fresh.owner, new_state == TCP_LISTEN ? HOW_LISTEN : HOW_CONNECT);
	fresh.owner.fd = syscall_fd(); /* checked, and searched for, by settle_owner */
	fresh.cookie = number_of(HEAD(h, u64, skc_cookie));
	return track(sk, &fresh);
}

static __always_inline bool is_birth(u32 old_state, u32 new_state)
{
	return old_state == TCP_CLOSE && (new_state == TCP_SYN_SENT || new_state == TCP_LISTEN);
}

/* FIN_WAIT1 and LAST_ACK are only ever entered by close() and shutdown(). */
static __always_inline bool is_closed_by_call(struct state_record *r)
{
	if (r->old_state == r->new_state) /* close() after shutdown() */
		return false;
	if (r->new_state == TCP_CLOSE)
		return r->old_state == TCP_LISTEN || (r->facts & FACT_FILE_CLOSING);
	return r->new_state == TCP_FIN_WAIT1 || r->new_state == TCP_LAST_ACK;
}

/* The owner itself is running: in a call of its own, or as a packet comes in during one. */
static __always_inline void note_stack(struct tracked *entry, struct state_record *r)
{
	if (!(r->facts & FACT_LOCKED_BY_CURRENT) || r->cpu_pid != entry->owner.pid ||
	    !comm_is_wanted(entry->owner.comm))
		return;
	r->user_stack = user_stack();
	if (is_birth(r->old_state, r->new_state))
		entry->birth_stack = r->user_stack;
	if (is_closed_by_call(r))
		entry->close_stack = r->user_stack;
}

static __always_inline void entry_moves(struct tracked *entry, struct state_record *r, u64 file)
{
	u32 facts = *(volatile u32 *)&r->facts;

	r->facts |= FACT_TRACKED;
	if (settle_owner(&entry->owner, file, facts))
		r->facts |= FACT_VERIFIED;
	r->cookie = entry->cookie;
	r->since_ns = entry->since_ns;
	entry->since_ns = r->ts_ns;
	if ((facts & FACT_LOCKED_BY_CURRENT) && r->cpu_pid == entry->owner.pid)
		entry->owner.tid = r->cpu_tid;
	note_stack(entry, r);
	fill_stacks(r, entry);
	fill_owner(r, &entry->owner);
}

static __always_inline void child_moves(struct child *child, struct state_record *r, u64 sk)
{
	r->facts |= FACT_CHILD;
	r->since_ns = child->since_ns;
	child->since_ns = r->ts_ns;
	child->state = r->new_state;
	fill_child(r, child, sk);
}

static __always_inline void tell(void *ctx, struct tracked *entry, struct child *child, u64 sk,
				 struct head *h, u32 old_state, u32 new_state)
{
	struct state_record *r = record_reserve(1 + (entry ? 0 : held_back(child)));

	if (!r) {
		if (!entry && child)
			child->told = 1; /* counted as lost */
		return;
	}
	fill_transition(r, sk, h, old_state, new_state);
	r->kernel_stack = kernel_stack(ctx);
	r->kind = KIND_STATE;
	if (entry)
		entry_moves(entry, r, file_of(socket_of(sk)));
	else if (child)
		child_moves(child, r, sk);
	if ((r->syn_recv_ns || states_are_wanted(old_state, new_state)) && comm_is_wanted(r->comm))
		events.ringbuf_submit(r, 0);
	else
		events.ringbuf_discard(r, 0);
}

/* In whose name is a socket told that the table does not know? */
static __always_inline bool stranger_is_wanted(struct child *child, u64 sk, struct head *h)
{
	if (TRACE_ALL_OWNERS || inventory_is_running())
		return is_tcp(sk);
	/* Also while accept() is at work on it; if it is dead, a process that is not traced
	 * has accepted and closed it. */
	return child && child->listener_pid && !(HEAD(h, u64, skc_flags) & (1ULL << SOCK_DEAD));
}

static __always_inline struct tracked *note_listener(struct tracked *entry, u64 sk, struct head *h,
						     u32 old_state, u32 new_state)
{
	if (old_state == TCP_LISTEN)
		listener_remove(sk, h);
	if (!is_birth(old_state, new_state))
		return entry;
	entry = born_here(sk, h, new_state);
	if (entry && new_state == TCP_LISTEN)
		listener_add(sk, h);
	return entry;
}

/* With -p, nearly every event of a busy host is somebody else's: the shortest way out. */
static __always_inline bool is_nobodys(u64 sk, u32 old_state, u32 new_state)
{
	if (TRACE_ALL_OWNERS || inventory_is_running() || sockets.lookup(&sk))
		return false;
	if (is_birth(old_state, new_state))
		return !pid_is_traced(current_tgid());
	return !had_listener();
}

static __always_inline void state_changes(void *ctx, u64 sk, u32 old_state, u32 new_state)
{
	struct child *child = NULL;
	struct tracked *entry;
	struct head h;
	bool wanted;

	if (is_nobodys(sk, old_state, new_state) || !head_read(&h, sk))
		return;
	if (old_state == TCP_LISTEN && new_state == TCP_SYN_RECV) {
		child_is_born(sk, &h); /* its addresses are not set yet: filtered from here on */
		return;
	}
	wanted = socket_is_wanted(sk, &h);
	/* A listener is known also if it is not told: its children may be wanted. */
	if (!wanted && old_state != TCP_LISTEN && new_state != TCP_LISTEN)
		return;
	entry = find_tracked(sk, HEAD(&h, u64, skc_cookie));
	entry = note_listener(entry, sk, &h, old_state, new_state);
	if (!wanted)
		return;
	if (!entry) {
		child = find_child(sk);
		if (child && new_state == TCP_ESTABLISHED) {
			child_is_established(child, sk, &h);
			return;
		}
		if (!stranger_is_wanted(child, sk, &h))
			return;
	}
	tell(ctx, entry, child, sk, &h, old_state, new_state);
}

int on_state_change(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	u32 old_state = ctx->args[1], new_state = ctx->args[2];
	u64 number = event_number(sk, old_state, new_state);

	if (is_mine(number)) {
		state_changes(ctx, sk, old_state, new_state);
		note_done(number);
	}
	return 0;
}
